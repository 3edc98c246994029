"""Who works behind a server: the processes that its own connections lead to.

A proxy holds the clients, and the limit that they meet is often that of the application behind it.
A backend is a process of the server's tree with a listener of its own, or any process of this host
that a process of the server is connected to, by TCP or by a Unix socket.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

from harness import netns
from probes import socket_dump, socket_owners
from probes.socket_dump import InetSocket, UnixSocket


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
        tcp, unix = _sockets_of(next(iter(inodes.values())))
    except OSError:
        return []
    wanted = listeners_behind(inodes, tcp, unix)
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


def _sockets_of(pid: int) -> tuple[list[InetSocket], list[UnixSocket]]:
    """TCP and Unix sockets of a process's network namespace.

    Raises:
        OSError: It is gone, may not be entered, or the kernel does not say.
    """
    namespace_fd = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        with netns.inside(namespace_fd):
            tcp = socket_dump.tcp_sockets(with_info=False)
            try:
                return tcp, socket_dump.unix_sockets()
            except OSError:
                return tcp, []  # CONFIG_UNIX_DIAG is a module of its own
    finally:
        os.close(namespace_fd)


def listeners_behind(
    inodes: dict[int, int], tcp: Iterable[InetSocket], unix: Iterable[UnixSocket]
) -> dict[int, tuple[int, str, int]]:
    """The listeners that some sockets are connected to.

    Args:
        inodes: Pid by inode of the connected side's sockets.
        tcp: All TCP sockets of the namespace.
        unix: All Unix sockets of it.

    Returns:
        By inode of the listener: a pid that is connected to it, where it listens, and how many
        connections it has that were accepted.
    """
    listening = {each.local_port: each for each in tcp if each.state == socket_dump.LISTEN}
    accepted: dict[int, int] = {}
    for each in tcp:
        if each.state == socket_dump.ESTABLISHED and each.inode and each.local_port in listening:
            accepted[each.local_port] = accepted.get(each.local_port, 0) + 1
    found: dict[int, tuple[int, str, int]] = {}
    own_listeners = {each.inode for each in listening.values() if each.inode in inodes}
    for each in tcp:
        pid = inodes.get(each.inode, 0)
        behind = listening.get(each.remote_port)
        is_outward = each.state == socket_dump.ESTABLISHED and each.local_port not in listening
        if pid and is_outward and behind is not None and behind.inode not in own_listeners:
            place = f"{each.remote_address}:{each.remote_port}"
            found[behind.inode] = pid, place, accepted.get(each.remote_port, 0)
    paths = {each.path: each for each in unix if each.state == socket_dump.LISTEN and each.path}
    names = {each.inode: each.path for each in unix}
    for peer in unix:
        pid = inodes.get(peer.inode, 0)
        server = paths.get(names.get(peer.peer_inode, ""))
        if pid and server is not None and server.inode not in inodes:
            count = sum(1 for each in unix if each.path == server.path) - 1
            found[server.inode] = pid, server.path, max(0, count)
    return found
