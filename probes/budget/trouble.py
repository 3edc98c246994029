"""The first sign that connections do not get through: what the closer looks wait for.

Measures:
    Nothing by itself. Of a run with clients of ours: an attempt failed, or some are under way and
    none came through for ``STALLED_NS``. Of a server that is watched with its own clients: a queue
    of a listener, its own or of who works behind it, that is not empty for two looks in a row,
    sockets that were closed with unread data, or some that stay open after their clients have left.
Hook:
    ``live.bin``; NETLINK_SOCK_DIAG of listeners alone; TCPAbortOnClose of /proc/self/net/netstat
    (net/ipv4/tcp.c, __tcp_close), which is of the whole network namespace and therefore only a sign
    to look, never evidence.
Cost:
    0.3 us a client and look; 50 us a look from outside; 10 us a connection each time that requests
    without an answer are looked for: every three seconds, and in a thousandth of the time at most;
    once more within a hundredth where there were some. What clients have left is looked for every
    three seconds by its state: next to nothing where there is none.
Misses:
    A failure that no client of ours and no counter shows.
Checked against:
    Clients that fail and wait, a listener that nobody serves
    (tests/probes/samplers/test_open_fates.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path

from probes.contract.clock import NS_PER_MS, NS_PER_S
from probes.contract.live import Counter, Live, Phase, Role
from probes.netlink import socket_dump
from probes.netlink.socket_dump import InetSocket
from probes.netlink.socket_owners import early_socket_inodes

STALLED_NS = 300 * NS_PER_MS
_LEAST_ABORTS_COUNT = 5
_LEAST_PENDING_COUNT = 5
LEFT_LEAST_COUNT = 20
_PENDING_PERIOD_NS, _CONFIRM_PERIOD_NS = 3 * NS_PER_S, NS_PER_S - 100 * NS_PER_MS
_PENDING_REST_FACTOR, _CONFIRM_REST_FACTOR = 1_000, 100
_NETSTAT = Path("/proc/self/net/netstat")


class ClientTrouble:
    """Looks at clients of ours in the shared memory.

    Args:
        live: Where they count.
    """

    def __init__(self, live: Live) -> None:
        self._live = live
        self._slots = [live.slot(index) for index in range(live.slot_count)]
        self._established_total = -1
        self._moved_ns = 0

    def is_seen(self, at_ns: int) -> bool:
        """Whether attempts fail or wait at this moment."""
        clients = [slot for slot in self._slots if slot[Counter.ROLE] == Role.CLIENT]
        established = sum(slot[Counter.ESTABLISHED_TOTAL] for slot in clients)
        if established != self._established_total:
            self._established_total, self._moved_ns = established, at_ns
        if any(slot[Counter.FAILED_TOTAL] or slot[Counter.LOST_TOTAL] for slot in clients):
            return True
        waiting = sum(slot[Counter.IN_FLIGHT_COUNT] for slot in clients)
        is_loading = Phase.RAMP <= self._live.phase < Phase.STOP
        return is_loading and waiting > 0 and at_ns - self._moved_ns >= STALLED_NS


class OutsideTrouble:
    """Looks at the server's listeners and at the namespace's counters.

    Args:
        ports: Of the server.
    """

    def __init__(self, ports: Iterable[int]) -> None:
        self._ports = set(ports)
        self._had_queue = False
        self._aborts_total = -1

    def is_seen(self, at_ns: int) -> bool:
        """Whether clients wait or are turned away at this moment."""
        del at_ns
        has_queue = self._has_queue()
        stands, self._had_queue = has_queue and self._had_queue, has_queue
        aborts = aborts_on_close_total(_NETSTAT)
        grown = aborts - self._aborts_total if self._aborts_total >= 0 <= aborts else 0
        self._aborts_total = aborts
        return stands or grown >= _LEAST_ABORTS_COUNT

    def add_ports_of(self, pid: int) -> None:
        """Looks at the listeners of a process that works behind the server, too.

        Those in front of it take whoever comes, and have no queue of their own.
        """
        try:
            found = socket_dump.tcp_sockets(states=1 << socket_dump.LISTEN, with_info=False)
        except OSError:
            return
        mine = set(early_socket_inodes(pid))
        self._ports |= {each.local_port for each in found if each.inode in mine}

    def _has_queue(self) -> bool:
        try:
            found = socket_dump.tcp_sockets(states=1 << socket_dump.LISTEN, with_info=False)
        except OSError:
            return False
        return any(each.receive_queue_bytes > 0 for each in found if each.local_port in self._ports)


class PendingTrouble:
    """Looks for connections whose request stays without an answer.

    Args:
        ports: Of the server.
        is_pending: Whether a connection waits for its first answer.
    """

    def __init__(self, ports: Iterable[int], is_pending: Callable[[InetSocket], bool]) -> None:
        self._ports = sorted(ports)
        self._is_pending = is_pending
        self._before: frozenset[int] = frozenset()
        self._due_ns = 0
        self._stands = False

    def is_seen(self, at_ns: int) -> bool:
        """Whether some of the same connections waited at the last two looks for them."""
        if at_ns < self._due_ns:
            return self._stands
        began_ns = time.thread_time_ns()
        try:
            found = [
                each
                for port in self._ports
                for each in socket_dump.tcp_sockets(
                    states=1 << socket_dump.ESTABLISHED, local_port=port
                )
            ]
        except OSError:
            found = []
        pending = frozenset(each.inode for each in found if each.inode and self._is_pending(each))
        self._stands = len(pending & self._before) >= _LEAST_PENDING_COUNT
        self._before = pending
        cost_ns = time.thread_time_ns() - began_ns
        # clients give up: whom it saw once it looks for again before they do
        is_open = len(pending) >= _LEAST_PENDING_COUNT and not self._stands
        period_ns, factor = (
            (_CONFIRM_PERIOD_NS, _CONFIRM_REST_FACTOR)
            if is_open
            else (_PENDING_PERIOD_NS, _PENDING_REST_FACTOR)
        )
        self._due_ns = at_ns + max(period_ns, factor * cost_ns)
        return self._stands


class LeftTrouble:
    """Looks for sockets that the server keeps after their clients have left (CLOSE_WAIT).

    Args:
        ports: Of the server.
    """

    def __init__(self, ports: Iterable[int]) -> None:
        self._ports = sorted(ports)
        self._before: frozenset[int] = frozenset()
        self._due_ns = 0
        self._stands = False

    def is_seen(self, at_ns: int) -> bool:
        """Whether many of the same sockets were left at the last two looks for them."""
        if at_ns < self._due_ns:
            return self._stands
        self._due_ns = at_ns + _PENDING_PERIOD_NS
        try:
            left = frozenset(
                each.inode
                for port in self._ports
                for each in socket_dump.tcp_sockets(
                    states=1 << socket_dump.CLOSE_WAIT, local_port=port, with_info=False
                )
                if each.inode
            )
        except OSError:
            left = frozenset()
        self._stands = len(left & self._before) >= LEFT_LEAST_COUNT
        self._before = left
        return self._stands


def aborts_on_close_total(path: Path) -> int:
    """Sockets that were closed with unread data (TCPAbortOnClose), -1 when that is not known."""
    try:
        lines = path.read_text(encoding="ascii", errors="replace").split("\n")
    except OSError:
        return -1
    for names, values in zip(lines[::2], lines[1::2], strict=False):
        table = dict(zip(names.split(), values.split(), strict=False))
        text = table.get("TCPAbortOnClose", "")
        if text.isdigit():
            return int(text)
    return -1
