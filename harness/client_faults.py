"""What a faulty client does in each turn of its event loop (``harness.faults``)."""

from __future__ import annotations

from collections.abc import Iterable

from harness.event_loop import IDLE_WAIT_S
from harness.faults import Fault, faults_of


class ClientFault:
    """A fault of one client.

    Attributes:
        wait_s: The longest that the event loop may wait for events.
    """

    wait_s: float = IDLE_WAIT_S

    def __init__(self, fault: Fault, slot: memoryview) -> None:
        self.fault = fault
        self.slot = slot

    def turn(self, now_ns: int) -> None:
        """Called once in each turn, after the events were served."""


_CLASSES: dict[str, type[ClientFault]] = {}


def of_client(inject: Iterable[str], index: int, slot: memoryview) -> ClientFault | None:
    """What is wrong with a client; None, the usual case, when nothing is. One fault at most.

    Args:
        inject: As given on the command line.
        index: Number of the client.
        slot: Its counters.
    """
    for fault in faults_of(inject, "client", index):
        if fault.name in _CLASSES:
            return _CLASSES[fault.name](fault, slot)
    return None
