"""What a faulty worker does in each turn of its event loop (``harness.faults``)."""

from __future__ import annotations

import time
from collections.abc import Iterable

from harness.event_loop import IDLE_WAIT_S
from harness.faults import Fault, faults_of

_HOT_TURN_NS = 20_000_000


class WorkerFault:
    """A fault of one worker.

    Attributes:
        wait_s: The longest that the event loop may wait for events.
    """

    wait_s: float = IDLE_WAIT_S

    def __init__(self, fault: Fault, slot: memoryview) -> None:
        self.fault = fault
        self.slot = slot

    def turn(self, now_ns: int) -> None:
        """Called once in each turn, after the events were served."""


class HotCode(WorkerFault):
    """Turns without end and calculates."""

    wait_s = 0.0

    def turn(self, now_ns: int) -> None:
        """Keeps the core for most of the time."""
        hot_application_code(now_ns + _HOT_TURN_NS)


class Several(WorkerFault):
    """More than one fault in one worker."""

    def __init__(self, faults: list[WorkerFault]) -> None:
        self.wait_s = min(fault.wait_s for fault in faults)
        self._faults = faults

    def turn(self, now_ns: int) -> None:
        """One after the other."""
        for fault in self._faults:
            fault.turn(now_ns)


_CLASSES: dict[str, type[WorkerFault]] = {"hot-code": HotCode}


def of_worker(inject: Iterable[str], index: int, slot: memoryview) -> WorkerFault | None:
    """What is wrong with a worker; None, the usual case, when nothing is.

    Args:
        inject: As given on the command line.
        index: Number of the worker.
        slot: Its counters.
    """
    found = faults_of(inject, "worker", index)
    faults = [_CLASSES[fault.name](fault, slot) for fault in found if fault.name in _CLASSES]
    if len(faults) > 1:
        return Several(faults)
    return faults[0] if faults else None


def hot_application_code(until_ns: int) -> None:
    """Application code that never yields: what ``--inject hot-code:WORKER`` puts into a worker."""
    while time.monotonic_ns() < until_ns:
        pass
