"""What a faulty client does in each turn of its event loop (``harness.faults.kinds``)."""

from __future__ import annotations

import time
from collections.abc import Iterable

from harness.faults.kinds import Fault, faults_of
from harness.fleet.config import GroupShare
from harness.fleet.event_loop import IDLE_WAIT_S


class ClientFault:
    """A fault of one client.

    Attributes:
        wait_s: The longest that the event loop may wait for events.
        is_mute: It sends no opening handshake.
        reads_nothing: Once a connection is open it reads nothing more from it.
    """

    wait_s: float = IDLE_WAIT_S
    is_mute: bool = False
    reads_nothing: bool = False

    def __init__(self, fault: Fault, slot: memoryview) -> None:
        self.fault = fault
        self.slot = slot

    def turn(self, now_ns: int) -> None:
        """Called once in each turn, after the events were served."""

    def shares(self, shares: list[GroupShare]) -> list[GroupShare]:
        """Which connections it makes instead of the planned ones."""
        return shares


class ForeignSource(ClientFault):
    """Binds addresses of the benchmarking network (RFC 2544), which no host has: no packet."""

    def shares(self, shares: list[GroupShare]) -> list[GroupShare]:
        """The same counts from 198.18/16 instead of 127.0/16."""
        return [
            share._replace(source_address=share.source_address.replace("127.0.", "198.18.", 1))
            for share in shares
        ]


class Mute(ClientFault):
    """Connects and then says nothing.

    To a listener with TCP_DEFER_ACCEPT that is a client that never finished the handshake: its
    request stays in the queue of half-open connections (net/ipv4/tcp_minisocks.c, tcp_check_req).
    """

    is_mute = True


class NoRead(ClientFault):
    """Leaves what it is sent in the kernel: its windows close, and the server's queues fill."""

    reads_nothing = True


class HotClient(ClientFault):
    """Calculates in each turn."""

    wait_s = 0.0

    def turn(self, now_ns: int) -> None:
        """Keeps the core for so many milliseconds."""
        until_ns = now_ns + int(self.fault.value * 1e6)
        while time.monotonic_ns() < until_ns:
            pass


class SlowClient(ClientFault):
    """Sleeps in each turn: its event loop stands still, off the CPU."""

    def turn(self, now_ns: int) -> None:
        """Blocks for so many milliseconds."""
        time.sleep(self.fault.value / 1e3)


_CLASSES: dict[str, type[ClientFault]] = {
    "foreign-source": ForeignSource,
    "hot-client": HotClient,
    "mute": Mute,
    "no-read-client": NoRead,
    "slow-client": SlowClient,
}


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
