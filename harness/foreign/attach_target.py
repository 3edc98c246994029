"""Finds what ``profile-attach`` watches: a process, who listens on a port, a unit, a container.

Only reads: /proc, and the control groups' file system. What is found is a set of root processes
(their descendants are looked at too, so that workers which are replaced are followed), the ports
that they listen on, and the network namespace that they are in.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from harness.foreign import cgroup_members
from probes.contract.errors import HostError, ToolkitError, UsageError
from probes.netlink import socket_owners
from probes.netlink.socket_owners import Listener
from probes.proc import process_tree

_LISTED_MOST = 4
_FORWARDERS = ("docker-proxy", "rootlessport", "slirp4netns", "conmon")
_SS = "ss -ltnp shows who listens where"
_OTHER_PIDS = "run it on the host (docker run --pid=host): its pid namespace is another one"


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachTarget:
    """What is watched.

    Attributes:
        selector: What the user said, ``--port 9001``.
        pid: The process that stands for it: of the roots the eldest.
        roots: Processes whose descendants are the server.
        ports: Ports that it listens on.
        listens_on: Address and port of each listener, for people.
        look_again: Finds the roots anew (a unit or container that is started again has others);
            None where a pid was given.
        notes: What else a person should know.
    """

    selector: str
    pid: int
    roots: tuple[int, ...]
    ports: tuple[int, ...]
    listens_on: tuple[str, ...] = ()
    look_again: Callable[[], list[int]] | None = None
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The manifest's ``server``."""
        return {
            "foreign": True,
            "attached": True,
            "selector": self.selector,
            "url": "",
            "address": self.listens_on[0].rpartition(":")[0] if self.listens_on else "",
            "ports": list(self.ports),
            "listens_on": list(self.listens_on),
            "command": [],
            "pid": self.pid,
            "user": "",
            "processes": [],
        }

    def open_namespace(self) -> int:
        """Its network namespace where that is not ours, -1 where it is.

        Raises:
            ToolkitError: It ended meanwhile.
            HostError: It may not be entered.
        """
        pid = next((each for each in (self.pid, *self.roots) if _is_alive(each)), 0)
        if not pid:
            raise self.ended()
        theirs = socket_owners.network_namespace(pid)
        if theirs == socket_owners.network_namespace("self"):
            return -1
        try:
            return os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            if not _is_alive(pid):
                raise self.ended() from None
            raise HostError(
                f"pid {pid} is in another network namespace, which cannot be entered: "
                f"{error.strerror}",
                fix="run as root",
            ) from None

    def ended(self) -> ToolkitError:
        """What to say when nothing of it is left before the watch could begin."""
        return ToolkitError(
            f"{self.selector}: the server ended before it could be watched", fix="start it again"
        )


def _is_alive(pid: int) -> bool:
    stat = process_tree.read_stat(pid)
    return stat is not None and stat.is_alive


def find_target(
    *, pid: int = 0, port: int = 0, unit: str = "", container: str = ""
) -> AttachTarget:
    """What the user named. ``port`` beside another selector narrows that to one port.

    Raises:
        UsageError: There is no such thing, or it does not listen.
        HostError: This process may not look at it.
    """
    if pid:
        return _by_pid(pid, port)
    if unit:
        return _by_cgroup("--unit", unit, cgroup_members.unit_folders, port)
    if container:
        return _by_cgroup("--container", container, cgroup_members.container_folders, port)
    return _by_port(port)


def check_pid(pid: int, option: str) -> None:
    """A process of that pid is there, has a program of its own, and may be looked at.

    Raises:
        UsageError: It is gone, or a kernel thread.
        HostError: It is another user's.
    """
    stat = process_tree.read_stat(pid)
    if stat is None or not stat.is_alive:
        raise UsageError(f"{option}: there is no such process", fix="pgrep -af NAME lists them")
    if stat.is_kernel_thread:
        raise UsageError(f"{option} is a kernel thread ({stat.comm})", fix=_SS)
    process = process_tree.thread_group_of(pid)
    if process not in (0, pid):
        name = option.partition(" ")[0]
        raise UsageError(
            f"{option} is a thread of pid {process} ({process_tree.command_name(process)})",
            fix=f"{name} {process}",
        )
    if os.geteuid() != 0 and process_tree.user_of(pid) != os.geteuid():
        raise HostError(f"{option} ({stat.comm}) is another user's process", fix="run as root")


def check_tree(pid: int, option: str) -> list[int]:
    """The same, and its descendants are a server's alone.

    Returns:
        The process and its descendants.

    Raises:
        UsageError: As ``check_pid``, or this command is one of them.
        HostError: As ``check_pid``.
    """
    check_pid(pid, option)
    tree = process_tree.tree_of(pid)
    if os.getpid() in tree:
        raise UsageError(
            f"{option} ({process_tree.command_name(pid)}) is an ancestor of this command, so its "
            "processes are not the server's alone",
            fix=f"name the server itself; {_SS}",
        )
    return tree


def _by_pid(pid: int, port: int) -> AttachTarget:
    option = f"--pid {pid}"
    tree = check_tree(pid, option)
    selector = option + (f" --port {port}" if port else "")
    target = AttachTarget(selector=selector, pid=pid, roots=(pid,), ports=())
    return _with_ports(target, tree, port)


def _by_cgroup(option: str, name: str, find: Callable[[str], list[Any]], port: int) -> AttachTarget:
    folders = find(name)
    what = "systemd unit" if option == "--unit" else "container"
    if not folders:
        fix = (
            "systemctl list-units --type=service" if option == "--unit" else "docker ps, podman ps"
        )
        raise UsageError(f"{option} {name}: no control group of such a {what} is here", fix=fix)
    names = cgroup_members.identities(folders)
    if len(names) > 1:
        listed = ", ".join(each[:40] for each in names[:_LISTED_MOST])
        raise UsageError(
            f"{option} {name} fits {len(names)} of them: {listed}", fix="give more of its name"
        )
    pids = cgroup_members.members(folders)
    if not pids:
        raise UsageError(
            f"{option} {name}: its control group has no process; the {what} does not run",
            fix=f"systemctl start {name}" if option == "--unit" else f"docker start {name}",
        )
    check_pid(pids[0], f"{option} {name}: pid {pids[0]}")
    target = AttachTarget(
        selector=f"{option} {name}" + (f" --port {port}" if port else ""),
        pid=_eldest(pids)[0],
        roots=tuple(pids),
        ports=(),
        look_again=lambda: cgroup_members.members(find(name)),
    )
    return _with_ports(target, pids, port)


def _with_ports(target: AttachTarget, tree: Iterable[int], port: int) -> AttachTarget:
    """The same with what its processes listen on.

    Raises:
        UsageError: They listen on nothing, or not on that port.
        HostError: That cannot be seen.
    """
    pids = list(tree)
    try:
        found = socket_owners.listeners(target.pid)
    except OSError as error:
        raise HostError(
            f"{target.selector}: its sockets cannot be read: {error.strerror}", fix="run as root"
        ) from None
    owned: set[int] = set()
    for pid in pids:
        owned.update(socket_owners.early_socket_inodes(pid))
    mine = [each for each in found if each.inode in owned]
    wanted = [each for each in mine if not port or each.port == port]
    if wanted:
        return _listening(target, wanted)
    name = process_tree.command_name(target.pid)
    if mine:
        raise UsageError(
            f"{target.selector} ({name}) does not listen there; it listens on {_listed(mine)}",
            fix=f"--port {mine[0].port}, or without --port",
        )
    if not owned and os.geteuid() != 0:
        raise HostError(
            f"{target.selector} ({name}): its descriptors cannot be read", fix="run as root"
        )
    raise UsageError(
        f"{target.selector} ({name}) and its children listen on no TCP socket: there is nothing "
        "to watch",
        fix=_SS,
    )


def _listening(target: AttachTarget, found: list[Listener]) -> AttachTarget:
    places = dict.fromkeys(f"{each.address}:{each.port}" for each in found)
    ports = tuple(sorted({each.port for each in found}))
    return replace(target, ports=ports, listens_on=tuple(places), notes=_notes(target))


def _notes(target: AttachTarget) -> tuple[str, ...]:
    return tuple(
        f"pid {pid} is a 32-bit program: its functions are not named, only module and offset"
        for pid in dict.fromkeys((target.pid, *target.roots))
        if process_tree.is_32_bit(pid)
    )


# -- by port ----------------------------------------------------------------------------------


def _by_port(port: int) -> AttachTarget:
    everybody = socket_owners.all_pids()
    member: int | str = "self"
    found = socket_owners.listeners("self", port)
    if not found:
        member, found = _elsewhere(port, everybody)
    inodes = {each.inode: each for each in found}
    owners = {
        pid: mine
        for pid in everybody
        if (mine := inodes.keys() & set(socket_owners.early_socket_inodes(pid)))
    }
    if not owners:
        raise HostError(
            f"--port {port}: a process listens on {_listed(found)}, but which process cannot be "
            "seen",
            fix="run as root" if os.geteuid() != 0 else _OTHER_PIDS,
        )
    servers = _servers(owners)
    if len(servers) > 1:
        said = "; ".join(_description(server, owners, inodes) for server in servers[:_LISTED_MOST])
        raise UsageError(
            f"--port {port}: {len(servers)} unrelated servers listen there: {said}",
            fix=f"--pid {servers[0][0]}, or another of them",
        )
    pids = servers[0]
    name = process_tree.command_name(pids[0])
    if name.startswith(_FORWARDERS):
        raise UsageError(
            f"--port {port} is taken by {name} (pid {pids[0]}), which only forwards to a container",
            fix="--container ID (docker ps, podman ps)",
        )
    check_pid(pids[0], f"--port {port}: pid {pids[0]}")
    roots = _with_parent(pids)
    target = AttachTarget(
        selector=f"--port {port}",
        pid=pids[0],
        roots=tuple(roots),
        ports=(),
        look_again=lambda: _look_again(member, port),
    )
    return _listening(target, found)


def _elsewhere(port: int, everybody: list[int]) -> tuple[int, list[Listener]]:
    """Who listens in another network namespace: a member of it, and the listeners.

    Raises:
        UsageError: Nobody, or in several.
    """
    seen = {socket_owners.network_namespace("self")}
    places: list[tuple[int, list[Listener]]] = []
    for pid in everybody:
        namespace = socket_owners.network_namespace(pid)
        if not namespace or namespace in seen:
            continue
        seen.add(namespace)
        try:
            found = socket_owners.listeners(pid, port)
        except OSError:
            continue  # it is gone
        if found:
            places.append((pid, found))
    if not places:
        raise UsageError(
            f"--port {port}: no process listens there"
            + ("" if os.geteuid() == 0 else ", as far as this user may see"),
            fix=_SS,
        )
    if len(places) > 1:
        listed = ", ".join(
            f"pid {pid} ({process_tree.command_name(pid)})" for pid, _ in places[:_LISTED_MOST]
        )
        raise UsageError(
            f"--port {port}: a process listens there in {len(places)} network namespaces, those of "
            f"{listed}",
            fix="--pid PID, --unit NAME or --container ID",
        )
    return places[0]


def _look_again(member: int | str, port: int) -> list[int]:
    """Who listens there now, for a server that was started again."""
    try:
        inodes = {each.inode for each in socket_owners.listeners(member, port)}
    except OSError:
        return []  # the namespace went with its last process
    return [
        pid
        for pid in socket_owners.all_pids()
        if inodes.intersection(socket_owners.early_socket_inodes(pid))
    ]


def roots_with(pid: int, inodes: set[int]) -> list[int]:
    """Roots of the server that a process is of, among all who own one of these listeners.

    Workers with a listener each (SO_REUSEPORT) are in no tree that begins with one of them.
    """
    owners = {
        each: mine
        for each in socket_owners.all_pids()
        if (mine := inodes & set(socket_owners.early_socket_inodes(each)))
    }
    return _with_parent(next((one for one in _servers(owners) if pid in one), [pid]))


def _servers(owners: dict[int, set[int]]) -> list[list[int]]:
    """Owners of listeners as separate servers, eldest process first in each.

    Two are one server when they share a socket, when one is an ancestor of the other, or when one
    parent started both from the same program: workers with a listener each (SO_REUSEPORT).
    """
    left = _eldest(list(owners))
    servers: list[list[int]] = []
    for pid in left:
        near = [server for server in servers if any(_is_one(pid, o, owners) for o in server)]
        merged = [pid]
        for server in near:
            servers.remove(server)
            merged = server + merged
        servers.append(merged)
    return [_eldest(server) for server in servers]


def _is_one(first: int, second: int, owners: dict[int, set[int]]) -> bool:
    if owners[first] & owners[second]:
        return True
    if first in _ancestors(second) or second in _ancestors(first):
        return True
    parents = [stat.ppid if (stat := process_tree.read_stat(pid)) else 0 for pid in (first, second)]
    same_parent = parents[0] == parents[1] and parents[0] > 0
    return same_parent and process_tree.command_name(first) == process_tree.command_name(second)


def _ancestors(pid: int) -> list[int]:
    found: list[int] = []
    stat = process_tree.read_stat(pid)
    while stat is not None and stat.ppid > 0 and stat.ppid not in found:
        found.append(stat.ppid)
        stat = process_tree.read_stat(stat.ppid)
    return found


def _eldest(pids: list[int]) -> list[int]:
    """Ancestors before their descendants, else those that started first."""

    def age(pid: int) -> tuple[int, int]:
        stat = process_tree.read_stat(pid)
        return (stat.start_ticks if stat else 0), pid

    return sorted(pids, key=age)


def _with_parent(pids: list[int]) -> list[int]:
    """Roots for a server: its eldest processes, and a parent that all of several share.

    The parent starts workers anew. It owns no socket of the server, so it is not watched itself.
    """
    members = set(pids)
    parents = {stat.ppid for pid in pids if (stat := process_tree.read_stat(pid)) is not None}
    tops = [pid for pid in pids if not members.intersection(_ancestors(pid))]
    outer = parents - members
    # a shell may have started both them and this command
    no_server = {0, 1, os.getpid(), *_ancestors(os.getpid())}
    if len(tops) > 1 and len(outer) == 1 and outer.isdisjoint(no_server):
        return [*tops, *outer]
    return tops


def _description(pids: list[int], owners: dict[int, set[int]], inodes: dict[int, Listener]) -> str:
    mine = [inodes[inode] for inode in sorted(owners[pids[0]])]
    return f"pid {pids[0]} ({process_tree.command_name(pids[0])}) on {_listed(mine)}"


def _listed(found: list[Listener]) -> str:
    places = list(dict.fromkeys(f"{each.address}:{each.port}" for each in found))
    more = len(places) - _LISTED_MOST
    return ", ".join(places[:_LISTED_MOST]) + (f" and {more} more" if more > 0 else "")
