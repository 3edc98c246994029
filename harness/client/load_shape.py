"""In which order and at which pace one client process makes its connections."""

from __future__ import annotations

import _socket
from collections.abc import Iterator

from harness.fleet.config import GroupShare


class Group:
    """A group share with its addresses in the forms that the hot path needs."""

    __slots__ = (
        "address_number",
        "destination",
        "destination_port",
        "left_count",
        "source_address",
    )

    def __init__(self, share: GroupShare, server_address: str) -> None:
        self.source_address = share.source_address
        self.destination_port = share.destination_port
        self.destination = (server_address, share.destination_port)
        self.address_number = int.from_bytes(_socket.inet_aton(share.source_address), "big")
        self.left_count = share.connections


def groups_of(shares: list[GroupShare], server_address: str) -> list[Group]:
    """The groups of a client's shares, in their order."""
    return [Group(share, server_address) for share in shares]


def interleave(groups: list[Group]) -> Iterator[Group]:
    """Takes turns between the groups until each has had its count, so that all fill evenly."""
    while groups:
        for group in groups:
            if group.left_count:
                group.left_count -= 1
                yield group
        groups = [group for group in groups if group.left_count]


class Pace:
    """Spreads events over time: a rate, shifted so that processes take turns.

    Args:
        rate_per_s: Of this process; 0 means no limit.
        processes: How many share the whole rate.
        index: Which of them this is.
    """

    __slots__ = ("_began_ns", "_interval_ns", "_offset_ns", "_used")

    def __init__(self, rate_per_s: float, processes: int, index: int) -> None:
        self._interval_ns = int(1e9 / rate_per_s) if rate_per_s > 0 else 0
        self._offset_ns = self._interval_ns * index // max(1, processes)
        self._began_ns = 0
        self._used = 0

    def begin(self, now_ns: int) -> None:
        """Starts counting."""
        self._began_ns = now_ns + self._offset_ns

    def allowed(self, now_ns: int, most_count: int) -> int:
        """How many events may happen now, at most ``most_count``; they count as used."""
        if not self._interval_ns:
            return most_count
        due = max(0, (now_ns - self._began_ns) // self._interval_ns + 1)
        count = min(due - self._used, most_count)
        self._used += count
        return count

    def due_ns(self, back_count: int) -> int:
        """When an event that counts as used was due: 1 the last one, 2 the one before it."""
        return self._began_ns + (self._used - back_count) * self._interval_ns

    @property
    def interval_ns(self) -> int:
        """Between two events, 0 for no limit."""
        return self._interval_ns

    def forgo(self, now_ns: int) -> None:
        """Gives up what was allowed until now and not used: no burst makes up for it."""
        if self._interval_ns:
            self._used = max(self._used, (now_ns - self._began_ns) // self._interval_ns)

    def wait_s(self, now_ns: int, idle_wait_s: float) -> float:
        """How long until the next event may happen."""
        if not self._interval_ns:
            return 0.0
        due_ns = self._began_ns + self._used * self._interval_ns
        return min(idle_wait_s, max(0.0, (due_ns - now_ns) / 1e9))
