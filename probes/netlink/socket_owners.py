"""Which processes own a listener or its connections.

Measures:
    Listening TCP sockets of a network namespace, and the processes whose descriptors refer to them.
Hook:
    sock_diag (``probes/netlink/inet_diag.py``), and ``/proc/PID/net/tcp`` and ``tcp6`` of any
    process of the namespace where that is refused; ``/proc/PID/fd/N`` links.
Cost:
    A walk over the descriptors of a process costs 1 us and, in the kernel, 1-2 kB for each: it is
    only made of processes with at most ``WALK_MOST_COUNT`` (``probes/proc/descriptor_count.py``).
    Listeners by sock_diag take 50 us, whatever the number of sockets; by ``/proc/net/tcp`` 20 ms on
    a host with many buckets and few sockets. For connections there is ``connection_dump``.
Misses:
    Descriptors in flight between two processes (SCM_RIGHTS) belong to nobody meanwhile. A thread
    blocked in accept4 has a number reserved that counts as open (net/socket.c).
Checked against:
    Listeners of IPv4 and IPv6, 23 connections, a forked process with the listener inherited
    (tests/probes/netlink/test_socket_owners.py).
"""

from __future__ import annotations

import os
import re
import socket
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import ip_address, ip_network

from probes.netlink import inet_diag
from probes.proc.descriptor_count import descriptor_count

WALK_MOST_COUNT = 4_096
"""Descriptors of a process up to which they are looked at one by one."""

EARLY_COUNT = 256
"""Lowest descriptors that are looked at in a process with more than ``WALK_MOST_COUNT``."""

_TABLES = ("tcp", "tcp6")
_PORTION_COUNT = 4_096
_LISTEN, _TIME_WAIT = "0A", "06"
_ACCEPTS = 1 << 16  # __SO_ACCEPTCON, include/uapi/linux/net.h
_SOCKET_LINK = re.compile(r"socket:\[(\d+)\]")


@dataclass(frozen=True, slots=True)
class Listener:
    """A listening TCP socket.

    Attributes:
        address: Dotted or with colons; ``0.0.0.0`` and ``::`` are any address.
        port: Its port.
        inode: Of the socket; what a descriptor's link names.
    """

    address: str
    port: int
    inode: int

    def takes(self, address: str) -> bool:
        """Whether a connection to an IPv4 address of this host arrives here."""
        return self.address in ("0.0.0.0", "::", address, f"::ffff:{address}")  # noqa: S104 - compared, not bound


def parse_address(text: str) -> tuple[str, int]:
    """Address and port of ``0100007F:2329``: words of 32 bits in the host's byte order."""
    number, _, port = text.partition(":")
    words = [int(number[at : at + 8], 16) for at in range(0, len(number), 8)]
    packed = struct.pack(f"={len(words)}I", *words)
    family = socket.AF_INET if len(words) == 1 else socket.AF_INET6
    return socket.inet_ntop(family, packed), int(port, 16)


def listeners(namespace_pid: int | str = "self", port: int | None = None) -> list[Listener]:
    """Listening sockets of a process's network namespace.

    Args:
        namespace_pid: Any process of that namespace; ``thread-self`` after a setns of this thread.
        port: Only those of this port.

    Raises:
        OSError: The process is gone, or may not be looked at.
    """
    try:
        found = _listeners_by_netlink(namespace_pid)
    except OSError:  # not permitted, or a kernel without it
        found = _listeners_of_proc(namespace_pid)
    return [each for each in found if port is None or each.port == port]


def _listeners_by_netlink(namespace_pid: int | str) -> list[Listener]:
    found: list[Listener] = []
    with inet_diag.socket_in(namespace_pid) as channel:
        for family in (socket.AF_INET, socket.AF_INET6):
            for halves, step in inet_diag.dump(channel, family, inet_diag.LISTENER_STATES):
                raw = halves.cast("B")
                words = raw.cast("I")
                for index in range(len(words) // step):
                    address = raw[4 * step * index + inet_diag.LOCAL_ADDRESS_AT :]
                    size = 4 if family == socket.AF_INET else 16
                    port = halves[2 * step * index + inet_diag.LOCAL_PORT_HALF]
                    inode = words[step * index + inet_diag.INODE_WORD]
                    text = socket.inet_ntop(family, bytes(address[:size]))
                    found.append(Listener(text, socket.ntohs(port), inode))
    return found


def _listeners_of_proc(namespace_pid: int | str) -> list[Listener]:
    found: list[Listener] = []
    for table in _TABLES:
        try:
            lines = open(f"/proc/{namespace_pid}/net/{table}", encoding="ascii")  # noqa: PTH123, SIM115 - closed below
        except FileNotFoundError:
            if table == "tcp6":
                continue  # no IPv6 in this kernel
            raise
        with lines:
            next(lines, "")
            for line in lines:
                words = line.split()
                if len(words) < 10 or words[3] != _LISTEN:
                    break  # listeners come first (net/ipv4/tcp_ipv4.c, tcp_seq_start)
                address, number = parse_address(words[1])
                found.append(Listener(address, number, int(words[9])))
    return found


def unix_listeners(pid: int) -> list[tuple[str, int]]:
    """Path and inode of the listening Unix sockets of a process's network namespace.

    Source: ``/proc/PID/net/unix`` (net/unix/af_unix.c, unix_seq_show); the flag is __SO_ACCEPTCON.
    """
    try:
        lines = open(f"/proc/{pid}/net/unix", encoding="utf-8", errors="replace")  # noqa: PTH123, SIM115 - closed below
    except OSError:
        return []
    found = []
    with lines:
        next(lines, "")
        for line in lines:
            words = line.rstrip("\n").split(None, 7)
            if len(words) == 8 and int(words[3], 16) & _ACCEPTS:
                found.append((words[7], int(words[6])))
    return found


def is_local_address(namespace_pid: int | str, address: str) -> bool:
    """Whether a connection to an IPv4 address ends on this host; True where that is not known.

    Source: ``/proc/PID/net/fib_trie`` (net/ipv4/fib_trie.c, fib_trie_seq_show): the routes of type
    LOCAL of the process's network namespace.
    """
    try:
        lines = open(f"/proc/{namespace_pid}/net/fib_trie", encoding="ascii")  # noqa: PTH123, SIM115 - closed below
    except OSError:
        return True
    wanted, network = ip_address(address), ""
    with lines:
        for line in lines:
            words = line.split()
            if words[:1] == ["|--"]:
                network = words[1]
            elif words[1:] == ["host", "LOCAL"] and wanted in ip_network(network + words[0]):
                return True
    return False


def connections_of_proc(namespace_pid: int | str) -> Iterator[tuple[list[int], list[int]]]:
    """Local ports and inodes of the sockets that are this end of a connection, in portions.

    Args:
        namespace_pid: Any process of the network namespace.
    """
    for table in _TABLES:
        try:
            lines = open(f"/proc/{namespace_pid}/net/{table}", encoding="ascii")  # noqa: PTH123, SIM115 - closed below
        except OSError:
            continue
        ports: list[int] = []
        inodes: list[int] = []
        with lines:
            next(lines, "")
            for line in lines:
                words = line.split(None, 10)
                if words[3] in (_LISTEN, _TIME_WAIT):
                    continue
                ports.append(int(words[1][-4:], 16))
                inodes.append(int(words[9]))
                if len(inodes) >= _PORTION_COUNT:
                    yield ports, inodes
                    ports, inodes = [], []
        yield ports, inodes


def socket_inodes(pid: int) -> list[int]:
    """Inodes of all sockets among a process's descriptors, by a walk; empty when not allowed."""
    try:
        numbers = os.listdir(f"/proc/{pid}/fd")  # noqa: PTH208 - names only
    except OSError:
        return []
    return _sockets_among(pid, numbers)


def _sockets_among(pid: int, numbers: Iterable[int | str]) -> list[int]:
    found: list[int] = []
    for number in numbers:
        try:
            link = os.readlink(f"/proc/{pid}/fd/{number}")  # noqa: PTH115 - thousands of them
        except OSError:
            continue
        match = _SOCKET_LINK.fullmatch(link)
        if match:
            found.append(int(match[1]))
    return found


def early_socket_inodes(pid: int) -> list[int]:
    """Likewise; of a process with more than ``WALK_MOST_COUNT`` only of its lowest descriptors.

    A server opens its listener before it has connections, so that is among them. Each is looked at
    by its number: a listing would make the kernel keep an entry for every connection.
    """
    if descriptor_count(pid) <= WALK_MOST_COUNT:
        return socket_inodes(pid)
    return _sockets_among(pid, range(EARLY_COUNT))


def owners(inodes: Iterable[int], pids: Iterable[int]) -> list[int]:
    """Those of the processes that have one of the sockets among their descriptors, in order.

    Processes with more than ``WALK_MOST_COUNT`` descriptors are not walked and left out.
    """
    wanted = set(inodes)
    return [
        pid
        for pid in pids
        if descriptor_count(pid) <= WALK_MOST_COUNT and not wanted.isdisjoint(socket_inodes(pid))
    ]


def all_pids() -> list[int]:
    """Every process that /proc shows."""
    return sorted(int(name) for name in os.listdir("/proc") if name.isdigit())  # noqa: PTH208 - names only


def network_namespace(pid: int | str) -> int:
    """Number of a process's network namespace, 0 when it is gone or may not be looked at."""
    try:
        return os.stat(f"/proc/{pid}/ns/net").st_ino  # noqa: PTH116 - a link of procfs
    except OSError:
        return 0
