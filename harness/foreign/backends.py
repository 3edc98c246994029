"""Who works behind a server: the processes that its own connections lead to.

A proxy holds the clients, and the limit that they meet is often that of the application behind it.
A backend is a process of the server's tree with a listener of its own, or any process of this host
that a process of the server is connected to, by TCP or by a Unix socket.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from harness.fleet import netns
from probes.netlink import connection_dump, socket_dump, socket_owners
from probes.netlink.connection_dump import Ends
from probes.netlink.socket_dump import LISTEN, UnixSocket
from probes.netlink.socket_owners import Listener


@dataclass(frozen=True, slots=True)
class Backend:
    """A process behind the server.

    Attributes:
        pid: The process.
        front_pid: Who is connected to it, 0 where only the tree says that it belongs to the server.
        listens_on: What it listens on: ``127.0.0.1:9002`` or a path.
        connection_count: Connections on that, when it was found.
    """

    pid: int
    front_pid: int
    listens_on: str
    connection_count: int = 0


def in_tree(pids: Iterable[int], ports: Iterable[int]) -> list[Backend]:
    """Those of a server's processes that listen on something else than its ports.

    Args:
        pids: Processes of its tree that do not hold its connections.
        ports: The server's.
    """
    found: list[Backend] = []
    for pid in pids:
        mine = set(socket_owners.early_socket_inodes(pid))
        if not mine:
            continue
        places = [place for place, inode in _listeners(pid, ports) if inode in mine]
        if places:
            found.append(Backend(pid, 0, places[0]))
    return found


def _listeners(pid: int, ports: Iterable[int]) -> list[tuple[str, int]]:
    try:
        tcp = socket_owners.listeners(pid)
    except OSError:
        tcp = []
    own = frozenset(ports)
    found = [(f"{each.address}:{each.port}", each.inode) for each in tcp if each.port not in own]
    return found + socket_owners.unix_listeners(pid)


def by_connections(fronts: Iterable[int], known: Iterable[int]) -> list[Backend]:
    """Processes of this host that some processes are connected to.

    Args:
        fronts: Whose connections to follow; they share a network namespace.
        known: Processes that are no news.

    Returns:
        Empty too when the kernel does not list its sockets by netlink.
    """
    inodes = {inode: pid for pid in fronts for inode in socket_owners.early_socket_inodes(pid)}
    if not inodes:
        return []
    try:
        wanted = _listeners_behind(next(iter(inodes.values())), inodes)
    except OSError:
        return []
    if not wanted:
        return []
    skipped = {*known, *inodes.values(), os.getpid()}
    found: list[Backend] = []
    for pid in socket_owners.all_pids():
        if pid in skipped:
            continue
        for inode in socket_owners.early_socket_inodes(pid):
            if inode in wanted:
                front_pid, place, count = wanted[inode]
                found.append(Backend(pid, front_pid, place, count))
                break
    return found


def _listeners_behind(pid: int, inodes: dict[int, int]) -> dict[int, tuple[int, str, int]]:
    """The listeners that some sockets are connected to.

    Args:
        pid: A process of their network namespace.
        inodes: Pid by inode of the connected side's sockets.

    Returns:
        By inode of the listener: a pid that is connected to it, where it listens, and how many
        connections it has that were accepted.

    Raises:
        OSError: It is gone, may not be entered, or the kernel does not list its sockets by netlink.
    """
    ends = connection_dump.ends_of(pid, inodes)
    found = tcp_behind(inodes, socket_owners.listeners(pid), ends)
    ports = {port for _, _, port in found.values()}
    counts = connection_dump.accepted_counts(pid, ports) if ports else {}
    behind = {
        inode: (front_pid, f"{address}:{port}", counts[port])
        for inode, (front_pid, address, port) in found.items()
    }
    return behind | unix_behind(inodes, _unix_sockets_of(pid))


def tcp_behind(
    inodes: Mapping[int, int], listeners: Iterable[Listener], ends: Mapping[int, Ends]
) -> dict[int, tuple[int, str, int]]:
    """Listeners of the same host that TCP connections lead to.

    Args:
        inodes: Pid by inode of the connected side's sockets.
        listeners: All listeners of the namespace.
        ends: Of those sockets that are established, by inode.

    Returns:
        By inode of the listener: a pid that is connected to it, and the address and port.
    """
    listening = {each.port: each for each in listeners}
    own = {each.inode for each in listening.values() if each.inode in inodes}
    found: dict[int, tuple[int, str, int]] = {}
    for inode, end in ends.items():
        behind = listening.get(end.remote_port)
        is_outward = end.local_port not in listening
        if is_outward and behind is not None and behind.inode not in own:
            found[behind.inode] = inodes[inode], end.remote_address, end.remote_port
    return found


def unix_behind(
    inodes: Mapping[int, int], sockets: Sequence[UnixSocket]
) -> dict[int, tuple[int, str, int]]:
    """The same of Unix sockets, with the number of connections of each listener.

    Args:
        inodes: Pid by inode of the connected side's sockets.
        sockets: All of the namespace.
    """
    found: dict[int, tuple[int, str, int]] = {}
    paths = {each.path: each for each in sockets if each.state == LISTEN and each.path}
    names = {each.inode: each.path for each in sockets}
    accepted = Counter(each.path for each in sockets)
    for peer in sockets:
        pid = inodes.get(peer.inode, 0)
        server = paths.get(names.get(peer.peer_inode, ""))
        if pid and server is not None and server.inode not in inodes:
            found[server.inode] = pid, server.path, max(0, accepted[server.path] - 1)
    return found


def _unix_sockets_of(pid: int) -> list[UnixSocket]:
    """Unix sockets of a process's network namespace; none where the kernel does not say."""
    try:
        namespace_fd = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return []
    try:
        with netns.inside(namespace_fd):
            return socket_dump.unix_sockets()
    except OSError:  # CONFIG_UNIX_DIAG is a module of its own
        return []
    finally:
        os.close(namespace_fd)
