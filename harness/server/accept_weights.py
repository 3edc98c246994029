"""``--accept-weights``: in which proportion workers take connections from a shared listener.

Without weights the first to wake up takes what waits. How even that comes out is a matter of the
kernel, the cores and the load of the moment: 50.7 to 57 % for the first of two workers of one and
the same run [measured]. With weights 14,13 it is 52 %, give or take half a round.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from probes.contract.live import Counter

HELD_BACK_WAIT_S = 0.001
"""How soon a worker that is ahead looks again: a round in each, 16,000 connects a second."""
_ROUND_COUNT = 16
"""Connections that all workers together may take while one of them is late."""
_LATE_NS = 100_000_000
"""A worker that takes nothing for so long may be dead: its process is looked for."""
_AWAITED_NS = 2_000_000_000
"""A worker that takes nothing for so long stands still, and is not waited for either. On a crowded
host (load 13 on two cores) healthy ones were late by half a second [measured]."""

_PID, _OPEN, _CAPACITY = int(Counter.PID), int(Counter.OPEN_COUNT), int(Counter.TARGET_COUNT)
_ATTEMPTED, _RESET = int(Counter.ATTEMPTED_TOTAL), int(Counter.ACCEPT_RESET_TOTAL)


class _Sibling:
    """Another worker of the same listener, as this one sees it."""

    __slots__ = ("is_gone", "slot", "taken_count", "weight")

    def __init__(self, slot: memoryview, weight: int) -> None:
        self.slot = slot
        self.weight = weight
        self.taken_count = 0
        self.is_gone = False


class AcceptWeights:
    """How many connections one worker may take now.

    A worker may be ahead of the slowest of its siblings by half a round. What a full worker accepts
    and closes at once (``--at-fd-limit reset``) counts as taken; one that leaves its listener or
    spins when it is full is not waited for.

    Args:
        weights: Of all workers, in order; each at least 1.
        index: Number of this worker.
        slots: Counters of all workers, in order.
        takes_when_full: A full worker goes on taking connections.
    """

    def __init__(
        self,
        weights: Sequence[int],
        index: int,
        slots: Sequence[memoryview],
        *,
        takes_when_full: bool,
    ) -> None:
        self._slot = slots[index]
        self._weight = weights[index]
        self._round_count = _ROUND_COUNT * self._weight / sum(weights)
        self._takes_when_full = takes_when_full
        self._siblings = [
            _Sibling(slot, weight)
            for number, (slot, weight) in enumerate(zip(slots, weights, strict=True))
            if number != index
        ]
        self._held_since_ns = 0

    def room_count(self, now_ns: int) -> int:
        """How many connections to take now; 0 while the siblings are behind."""
        level = self._level(now_ns)
        if level is None:
            return max(1, int(self._round_count))
        slot = self._slot
        # rounded up: the worker that is behind may always take one
        most_count = -int(-(self._weight * level + self._round_count) // 1)
        room_count: int = most_count - slot[_ATTEMPTED] - slot[_RESET]
        if room_count > 0:
            self._held_since_ns = 0
            return room_count
        self._held_since_ns = self._held_since_ns or now_ns
        return 0

    def _level(self, now_ns: int) -> float | None:
        """Connections taken for each unit of weight by the slowest awaited sibling, or None."""
        late_ns = now_ns - self._held_since_ns if self._held_since_ns else 0
        lowest: float | None = None
        for sibling in self._siblings:
            slot = sibling.slot
            taken_count = slot[_ATTEMPTED] + slot[_RESET]
            if taken_count != sibling.taken_count:
                sibling.taken_count = taken_count
                sibling.is_gone = False
                self._held_since_ns = late_ns = 0
        for sibling in self._siblings:
            slot = sibling.slot
            if sibling.is_gone or (
                not self._takes_when_full and slot[_OPEN] >= slot[_CAPACITY] > 0
            ):
                continue
            if late_ns >= _AWAITED_NS or (late_ns >= _LATE_NS and _is_dead(slot[_PID])):
                sibling.is_gone = True
                continue
            level = sibling.taken_count / sibling.weight
            lowest = level if lowest is None else min(lowest, level)
        return lowest


def _is_dead(pid: int) -> bool:
    try:
        os.kill(pid, 0)  # the parent reaps its children at once
    except ProcessLookupError:
        return True
    return False
