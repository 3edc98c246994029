"""What both sides' event loops share: the slot of live.bin and the accounting of a turn."""

from __future__ import annotations

import time

from probes.contract.live import LAG_BUCKETS, Counter, Live, Phase

# Plain ints: an IntEnum as index costs a method call each time, on the hottest lines we have.
PHASE_WORD, STOP_REASON_WORD = 4, 9
RAMP, HOLD, STOP = int(Phase.RAMP), int(Phase.HOLD), int(Phase.STOP)
IDLE_WAIT_S = 0.1  # longest wait for events: how soon a change of phase is seen
MAX_EVENTS = 512

_ITERATIONS = int(Counter.LOOP_ITERATIONS_TOTAL)
_BUSY = int(Counter.LOOP_BUSY_NS_TOTAL)
_ENTERED = int(Counter.LOOP_ENTERED_NS)
_MAX_LAG = int(Counter.LOOP_MAX_LAG_NS)


class Turns:
    """Counts the turns of one event loop and how long each kept the loop busy.

    A turn's length is what everything else on that loop has to wait: the event-loop lag.
    """

    __slots__ = ("_began_ns", "_histogram", "_slot")

    def __init__(self, live: Live, slot_index: int) -> None:
        self._slot = live.slot(slot_index)
        self._histogram = live.lag_histogram(slot_index)
        self._began_ns = 0

    def begin(self) -> int:
        """epoll_wait has returned; gives the time in ns."""
        now_ns = time.monotonic_ns()
        self._began_ns = now_ns
        self._slot[_ENTERED] = now_ns
        return now_ns

    def end(self) -> None:
        """The next call is epoll_wait."""
        busy_ns = time.monotonic_ns() - self._began_ns
        slot = self._slot
        slot[_ENTERED] = 0
        slot[_ITERATIONS] += 1
        slot[_BUSY] += busy_ns
        slot[_MAX_LAG] = max(slot[_MAX_LAG], busy_ns)
        self._histogram[min(busy_ns.bit_length(), LAG_BUCKETS - 1)] += 1
