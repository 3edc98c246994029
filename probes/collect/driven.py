"""One probe as the collector drives it: state, deadlines, and how long it may take to stop."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType

from probes.collect.fair_deadline import FairDeadline
from probes.contract.probe import Probe

STOP_LIMIT_S = 6.5
"""The last samples of all probes may take so long."""
USUAL_STOP_S = 8.0
"""So long a probe process gets for its end: what is left it needs to write what it has."""
LONGEST_STOP_S = 60.0
"""Likewise on a host where everything takes long."""
_HEALTH_S = 0.15
_LEAST_WAIT_S = 0.01


@dataclass(slots=True)
class Driven:
    """One probe and what the collector knows of it.

    Attributes:
        name: Of the registry.
        probe: None when it could not be made.
        state: ran, unavailable or failed (``probe_health``).
        reason: Why not, '' while it runs.
        fix: What would help.
        due_ns: When its next sample is due.
        late_count: Samples that came more than a period late.
        cpu_ns: CPU time of this thread inside the probe.
        running: It is started and has not failed.
        reported: Its health row is written.
        put_off_count: Samples that were not taken, to keep the cost within the budget.
        failed_ns: When it failed after it had begun, 0 when it did not.
    """

    name: str
    probe: Probe | None = None
    state: str = "ran"
    reason: str = ""
    fix: str = ""
    due_ns: int = 0
    late_count: int = 0
    cpu_ns: int = 0
    running: bool = False
    reported: bool = False
    put_off_count: int = 0
    failed_ns: int = 0

    def fail(self, at_ns: int) -> None:
        """It takes no samples any more; the first time is kept at which one that ran failed."""
        if self.running and not self.failed_ns:
            self.failed_ns = at_ns
        self.running = False


class ProbeHangs(Exception):  # noqa: N818  # a signal inside this module, never shown
    """A probe's stop took longer than its share."""


def next_due_ns(due_ns: int, at_ns: int, period_ns: int) -> tuple[int, bool]:
    """When the next sample is due, and whether this one came more than a period late.

    A late probe does not catch up: samples in a burst would measure the same moment twice.
    """
    if at_ns - due_ns > period_ns:
        return at_ns + period_ns, True
    return due_ns + period_ns, False


def stop_limit_s(told_s: float) -> float:
    """How long the last samples may take when the process has ``told_s`` for its whole end."""
    if told_s <= USUAL_STOP_S:
        return min(STOP_LIMIT_S, max(0.3, told_s - _HEALTH_S))
    return STOP_LIMIT_S * min(told_s, LONGEST_STOP_S) / USUAL_STOP_S


def longest_stop_s(limit_s: float) -> float:
    """How long they may take on a crowded host: whoever is in a hurry waits for nobody.

    Args:
        limit_s: How long they may take with a core at hand.
    """
    return limit_s if limit_s < STOP_LIMIT_S else stop_limit_s(LONGEST_STOP_S)


@contextlib.contextmanager
def time_limit(deadline: FairDeadline) -> Iterator[None]:
    """Raises ProbeHangs inside the block when the deadline has come, if a signal reaches it.

    Args:
        deadline: Of this process.
    """

    def hangs(_number: int, _frame: FrameType | None) -> None:
        left_s = deadline.left_s()
        if left_s <= 0:
            raise ProbeHangs
        signal.setitimer(signal.ITIMER_REAL, max(left_s, _LEAST_WAIT_S))

    before = signal.signal(signal.SIGALRM, hangs)
    signal.setitimer(signal.ITIMER_REAL, max(deadline.left_s(), _LEAST_WAIT_S))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
