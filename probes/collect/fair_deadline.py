"""A deadline that comes later by the time for which a process waited for a core.

On a crowded host everything takes long, and who waits for a core is not stuck: what he has to write
he still writes. Only what he does with a core, or waits for otherwise, counts.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from probes.budget.own_cost import core_wait_ns
from probes.contract.clock import NS_PER_S


class FairDeadline:
    """Begins when it is made.

    Args:
        limit_s: How long it may take with a core at hand.
        longest_s: How long at most, however crowded the host is.
        pid: Whose waiting does not count; 0 for this process.
        clock: Seconds.
        waited_ns: How long the process has waited for a core since it began.
    """

    def __init__(
        self,
        limit_s: float,
        longest_s: float,
        pid: int = 0,
        *,
        clock: Callable[[], float] = time.monotonic,
        waited_ns: Callable[[int], int] = core_wait_ns,
    ) -> None:
        self._limit_s = limit_s
        self._longest_s = max(limit_s, longest_s)
        self._pid = pid or os.getpid()
        self._clock, self._waited_ns = clock, waited_ns
        self._begun_s = clock()
        self._begun_ns = waited_ns(self._pid)

    def left_s(self) -> float:
        """Seconds until it comes as far as is known now; 0 or less when it has come."""
        gone_s = self._clock() - self._begun_s
        waited_s = max(0, self._waited_ns(self._pid) - self._begun_ns) / NS_PER_S
        return min(self._limit_s + waited_s, self._longest_s) - gone_s
