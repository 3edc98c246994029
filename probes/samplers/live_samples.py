"""Rows of the fleet's own counters, read from shared memory.

Measures:
    Connections, messages, pings, event-loop turns and lag of every worker and client (table
    ``live_samples``), as the processes count them themselves; and how long the clients' messages
    took, from when they were due until their answer was read (table ``message_times``).
Hook:
    None: one ``struct`` read of each slot of ``live.bin`` (probes/contract/live.py), 4 times a
    second, and once a second the buckets of clients that send messages. The measured processes are
    not involved.
Cost:
    About 5 us a process and sample; 14 processes at 4 Hz cost 0.05 % of a core. Buckets: 6 us a
    client and second.
Misses:
    What happens between two samples, except totals and the longest event-loop turn. That turn is
    exact when it is the longest of the run; else it is the upper bound of its power-of-two bucket
    (at most twice the true value), since a reader may not reset the writer's counter. Messages that
    were never answered are in no bucket.
Checked against:
    A slot with known counters; a writer that was killed
    (tests/probes/samplers/test_live_sampler.py). Buckets: exact quantiles of drawn times
    (tests/probes/contract/test_message_times.py), a server and a client that stand still for a
    second (tests/harness/fleet/test_fleet.py).
"""

from __future__ import annotations

import struct

import numpy as np
import numpy.typing as npt

from probes.contract.clock import NS_PER_S
from probes.contract.errors import ProbeUnavailableError
from probes.contract.live import COUNTER_WORDS, LAG_BUCKETS, Counter, Header, Live, Role
from probes.contract.message_times import BUCKET_COUNT, HEAD_WORDS, Head, bucket_from_us
from probes.contract.probe import Probe, Target

_SLOT = struct.Struct(f"<{COUNTER_WORDS}q")
_LAGS = struct.Struct(f"<{LAG_BUCKETS}q")
_ROLES = {
    Role.SERVER: "server",
    Role.ACCEPTOR: "acceptor",
    Role.CLIENT: "client",
    Role.BACKEND: "backend",
}


def longest_turn_ns(
    before: tuple[int, ...], after: tuple[int, ...], run_max_before_ns: int, run_max_ns: int
) -> int:
    """Longest event-loop turn that ended between two readings.

    Args:
        before: Lag histogram then; bucket b counts turns whose ns have bit length b.
        after: Lag histogram now.
        run_max_before_ns: Longest turn of the run, then.
        run_max_ns: The same now.

    Returns:
        Exact when the run's record was broken, else an upper bound, 0 when no turn ended.
    """
    if run_max_ns > run_max_before_ns:
        return run_max_ns
    for bucket in range(LAG_BUCKETS - 1, -1, -1):
        if after[bucket] != before[bucket]:
            return min((1 << bucket) - 1, run_max_ns)
    return 0


_TIMES_PERIOD_NS = NS_PER_S


class LiveSamplesProbe(Probe):
    """Appends one row per fleet process to ``live_samples``, and ``message_times`` of all."""

    name = "live_samples"
    tables = ("live_samples", "message_times")
    writes_rows = True
    period_s = 0.25

    def __init__(self) -> None:
        super().__init__()
        self._live: Live | None = None
        self._slots: list[tuple[int, memoryview[int], memoryview[int]]] = []
        self._before: dict[int, tuple[int, int, int, tuple[int, ...]]] = {}
        self._last_rows: dict[int, int] = {}
        self._attached = False
        self._times: list[npt.NDArray[np.int64]] = []
        self._counts_before = np.zeros(BUCKET_COUNT, dtype=np.int64)
        self._times_due_ns = 0

    def check(self) -> None:
        """Always possible where a fleet of ours runs."""

    def start(self, target: Target) -> None:
        """Opens the table and remembers the views of all slots.

        Raises:
            ProbeUnavailableError: The servers are not ours, so there is no shared memory.
        """
        if target.live is None:
            raise ProbeUnavailableError(
                "the watched processes have no shared counters",
                fix="none needed: process_samples and the eBPF probes watch foreign servers",
            )
        self._live = target.live
        self._attached = target.attached
        self.writers = [target.run.writer(table, self.name) for table in self.tables]
        words = map(target.live.message_times, range(target.live.header[Header.TIMED_CLIENTS]))
        self._times = [np.frombuffer(each, dtype=np.int64) for each in words if each is not None]
        self._slots = [
            (index, target.live.slot(index), target.live.lag_histogram(index))
            for index in range(target.live.slot_count)
        ]

    def sample(self, at_ns: int) -> None:
        """Appends a row for every slot that has an owner."""
        if self._times and at_ns >= self._times_due_ns:
            self._times_due_ns = at_ns + _TIMES_PERIOD_NS
            self._sample_times(at_ns)  # before what was sent: no answer without its message
        writer = self.writers[0]
        slots = self._slots
        if self._attached and self._live is not None:
            slots = slots[: sum(1 for _ in self._live.followed_slots())]
        for index, slot, lags in slots:
            word = _SLOT.unpack_from(slot)
            role = _ROLES.get(word[Counter.ROLE])
            if role is None or not word[Counter.PID]:
                continue
            if self._attached and word[Counter.STOPPED_NS]:
                if self._last_rows.get(index) == word[Counter.STARTED_NS]:
                    continue  # its counters stand still: one row after its end says all
                self._last_rows[index] = word[Counter.STARTED_NS]
            entered_ns = word[Counter.LOOP_ENTERED_NS]
            lag_ns = max(0, at_ns - entered_ns) if entered_ns else 0
            turns, run_max_ns = word[Counter.LOOP_ITERATIONS_TOTAL], word[Counter.LOOP_MAX_LAG_NS]
            before = self._before.get(index)
            if before is not None and before[0] != word[Counter.STARTED_NS]:
                before = None  # the slot is another process's by now
            longest_ns = 0
            if before is None or before[1] != turns or before[2] != run_max_ns:
                now = _LAGS.unpack_from(lags)
                if before is None:
                    longest_ns = run_max_ns
                else:
                    longest_ns = longest_turn_ns(before[3], now, before[2], run_max_ns)
                self._before[index] = (word[Counter.STARTED_NS], turns, run_max_ns, now)
            writer.append(
                at_ns,
                word[Counter.PID],
                role,
                index,
                word[Counter.WORKER],
                word[Counter.OPEN_COUNT],
                word[Counter.ESTABLISHED_TOTAL],
                word[Counter.ATTEMPTED_TOTAL],
                word[Counter.FAILED_TOTAL],
                word[Counter.LOST_TOTAL],
                word[Counter.IN_FLIGHT_COUNT],
                word[Counter.RX_MESSAGES_TOTAL],
                word[Counter.TX_MESSAGES_TOTAL],
                word[Counter.RX_PINGS_TOTAL],
                word[Counter.TX_PINGS_TOTAL],
                word[Counter.RX_PONGS_TOTAL],
                word[Counter.ACCEPT_EMFILE_TOTAL],
                turns,
                word[Counter.LOOP_BUSY_NS_TOTAL],
                lag_ns,
                max(lag_ns, longest_ns),
                word[Counter.WRITE_BUFFERED_BYTES],
                word[Counter.GC_NS_TOTAL],
                word[Counter.GC_COLLECTIONS_TOTAL],
                word[Counter.GC_MAX_PAUSE_NS],
            )

    def _sample_times(self, at_ns: int) -> None:
        counts = np.sum([each[HEAD_WORDS:] for each in self._times], axis=0)
        longest_ns = max(int(each[Head.LONGEST_NS]) for each in self._times)
        grown = counts - self._counts_before
        self._counts_before = counts
        for bucket in np.flatnonzero(grown).tolist():
            self.writers[1].append(
                at_ns,
                1000 * bucket_from_us(bucket),
                1000 * bucket_from_us(bucket + 1),
                int(grown[bucket]),
                longest_ns,
            )

    def stop(self, at_ns: int) -> None:
        """Takes the last rows and drops the views."""
        if self.writers:
            self._times_due_ns = 0
            self.sample(at_ns)
        self._slots = []
        self._times = []
        self._live = None
