"""Where the connections stand that do not get through, and what the server's threads wait for.

Measures:
    At a moment, by process and port: connections that wait in the accept queue, that were accepted
    and whose request lies unread, that were read and never answered, and that were answered; how
    many have data that their peer does not take, and how much (table ``open_fates``). Listening
    Unix sockets of the server with their queues (``unix_listeners``). What its threads wait for
    (``thread_waits``).
Hook:
    ``probes/netlink/socket_dump.py``; the owner of a socket by /proc/PID/fd;
    ``probes/proc/epoll_watch.py``; ``probes/samplers/thread_waits.py``. A look is taken at a sign
    of trouble (``probes/budget/trouble.py``); under clients of ours also at the end.
Cost:
    About 10 us a socket and look and 1 us a descriptor of the servers; a look waits
    ``_REST_FACTOR`` times as long as the last one took, 1,000 times beside a server in service (100
    times after each of the first three). Nothing without trouble but the look for it.
Misses:
    With TLS, a connection counts as answered after the server's hello. A process with more than
    ``_WALK_MOST_COUNT`` descriptors is not walked: where several such serve, its sockets have pid
    0. Sockets of other network namespaces. All, where the namespace has more than 300,000 sockets,
    beside a server in service 10,000.
Checked against:
    A server with 5 connections in its queue, 7 unread, 11 unanswered and 13 answered; one whose
    clients do not read (tests/probes/samplers/test_open_fates.py).
"""

from __future__ import annotations

import os
import re
import time
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence

from probes.budget.trouble import ClientTrouble, LeftTrouble, OutsideTrouble, PendingTrouble
from probes.contract.clock import NS_PER_S
from probes.contract.probe import Probe, ProcessRef, Target
from probes.contract.schema import SERVER_ROLES
from probes.netlink import inet_diag, socket_dump
from probes.netlink.socket_dump import InetSocket, UnixSocket
from probes.proc.descriptor_count import descriptor_count
from probes.proc.epoll_watch import watches
from probes.samplers.thread_waits import Endpoint, remote_kind, waits_of

FATES = ("unaccepted", "unread", "unanswered", "answered")

_PERIOD_NS = NS_PER_S // 2
_LAST_LOOK_MOST_NS = NS_PER_S // 2
_OUTSIDE_PERIOD_S = 1.0
"""Between two looks for trouble beside a server in service, whose budget all probes share."""
_REST_FACTOR, _SPARING_REST_FACTOR = 20, 1_000
_FIRST_LOOKS_COUNT, _FIRST_REST_FACTOR = 3, 100
_WALK_MOST_COUNT, _SPARING_WALK_MOST_COUNT = 32_768, 4_096
_PROCESSES_MOST = 64
_SOCKETS_MOST, _SPARING_SOCKETS_MOST = 300_000, 10_000
"""While a look goes on no other probe of this process is sampled."""
_COST_OF_ONE_NS = 10_000.0
"""Of one socket in a look, at least; the last look tells how much more it is on this host."""
_SOCKET = re.compile(r"socket:\[(\d+)\]")
_EPOLL_LINK = "anon_inode:[eventpoll]"
_WATCHES_MOST_COUNT = 4
"""Looks at the epolls of a process: their mutex is held meanwhile."""
_QUIET_MS = 1_000
_OPEN = (1 << socket_dump.ESTABLISHED) | (1 << socket_dump.CLOSE_WAIT)


def fate_of(each: InetSocket) -> str:
    """Where a connection of the server stands."""
    if not each.inode:
        return "unaccepted"
    if each.bytes_sent > 0:
        return "answered"
    # the end of a peer that gave up counts as a byte that nobody has read
    if each.receive_queue_bytes > (each.state == socket_dump.CLOSE_WAIT):
        return "unread"
    return "unanswered" if each.bytes_received > 0 else "silent"


def _is_pending(each: InetSocket) -> bool:
    """It has asked and has no answer yet."""
    return fate_of(each) in ("unread", "unanswered")


def tcp_sockets_in_use() -> int:
    """TCP sockets of this network namespace (/proc/net/sockstat, inuse), 0 when not known."""
    try:
        with open("/proc/net/sockstat", "rb") as stream:  # noqa: PTH123 - read at each look
            text = stream.read()
    except OSError:
        return 0
    found = re.search(rb"^TCP: inuse (\d+)", text, re.MULTILINE)
    return int(found[1]) if found else 0


class OpenFatesProbe(Probe):
    """Appends rows to ``open_fates``, ``unix_listeners`` and ``thread_waits``."""

    name = "open_fates"
    period_s = 0.1

    def __init__(self) -> None:
        super().__init__()
        self.seen_count = 0
        self._pids: dict[int, None] = {}
        self._ports: frozenset[int] = frozenset()
        self._client: ClientTrouble | None = None
        self._outside: OutsideTrouble | None = None
        self._pending: PendingTrouble | None = None
        self._left: LeftTrouble | None = None
        self._is_sparing = False
        self._due_ns = 0
        self._cost_of_one_ns = _COST_OF_ONE_NS
        self._is_active = False
        self._epoll_fds: dict[int, list[int]] = {}
        self._watched_count: Counter[int] = Counter()
        self._note = ""

    @property
    def note(self) -> str:
        """What it could not look at."""
        return self._note

    def check(self) -> None:
        """The kernel answers NETLINK_SOCK_DIAG.

        Raises:
            ProbeUnavailableError: It does not.
        """
        inet_diag.require()

    def start(self, target: Target) -> None:
        """Opens the tables."""
        self.writers = [
            target.run.writer(table, self.name)
            for table in ("open_fates", "unix_listeners", "thread_waits", "listener_watches")
        ]
        self._ports = target.server_ports
        self._is_sparing = target.is_sparing
        self._is_active = target.is_foreign
        self._pids = dict.fromkeys(
            ref.pid for ref in target.processes.values() if ref.role in SERVER_ROLES
        )
        if not target.is_foreign:  # servers of our own say it themselves
            return
        if target.attached or target.live is None:
            self._outside = OutsideTrouble(target.server_ports)
            self._pending = PendingTrouble(target.server_ports, _is_pending)
            self._left = LeftTrouble(target.server_ports)
            for ref in target.processes.values():
                self._look_behind(ref)
            self.period_s = _OUTSIDE_PERIOD_S
        else:
            self._client = ClientTrouble(target.live)

    def add_process(self, ref: ProcessRef) -> None:
        """Watches a process that came later."""
        if ref.role in SERVER_ROLES:
            self._pids[ref.pid] = None
        self._look_behind(ref)

    def _look_behind(self, ref: ProcessRef) -> None:
        if self._outside is not None and ref.role == "backend":
            self._outside.add_ports_of(ref.pid)

    def remove_processes(self, pids: Collection[int]) -> None:
        """Looks no more at processes that ended."""
        for pid in pids:
            self._pids.pop(pid, None)

    def sample(self, at_ns: int) -> None:
        """Takes a look where there is trouble, or where one is due."""
        if not self._is_active:
            return
        if self._client is not None:
            is_wanted = self._client.is_seen(at_ns)
        else:
            assert self._outside is not None
            assert self._pending is not None
            assert self._left is not None
            is_wanted = self._outside.is_seen(at_ns)
            most = _SPARING_SOCKETS_MOST if self._is_sparing else _SOCKETS_MOST
            if not is_wanted and tcp_sockets_in_use() <= most:
                is_wanted = self._pending.is_seen(at_ns) or self._left.is_seen(at_ns)
        if is_wanted and at_ns >= self._due_ns:
            self._look(at_ns)

    def stop(self, at_ns: int) -> None:
        """The last look, while the connections still stand; it must not delay the end.

        Beside a server in service there is none: that may have no core to spare for it.
        """
        if self._is_active and self._client is not None and self._pids and self._is_cheap():
            self._look(at_ns)
        self._is_active = False

    def _is_cheap(self) -> bool:
        """A look at as many sockets as there are now costs no more than the end may wait."""
        return tcp_sockets_in_use() * self._cost_of_one_ns < _LAST_LOOK_MOST_NS

    def _look(self, at_ns: int) -> None:
        began_ns = time.thread_time_ns()
        self.seen_count += 1
        most = _SPARING_SOCKETS_MOST if self._is_sparing else _SOCKETS_MOST
        if (count := tcp_sockets_in_use()) > most:
            self._note = f"{count:,} sockets: of more than {most:,} none is looked at one by one"
            self.lost_count += 1
            return
        try:
            tcp = socket_dump.tcp_sockets()
        except OSError:
            self.lost_count += 1
            return
        unix = _unix_sockets()
        queueing = _queueing_ports(tcp, unix)
        owners, holders = self._owners(queueing)
        # What works behind the server listens on ports of its own.
        ports = self._ports | {
            each.local_port
            for each in tcp
            if each.state == socket_dump.LISTEN and each.inode in owners
        }
        for row in count_fates(tcp, ports, owners, list(self._pids)):
            self.writers[0].append(at_ns, *row)
        for each in unix:
            if each.state == socket_dump.LISTEN and each.inode in owners:
                self.writers[1].append(
                    at_ns,
                    owners[each.inode],
                    each.inode,
                    each.path,
                    each.queue_count,
                    each.backlog_count,
                )
        self._look_at_watches(at_ns, holders, queueing)
        sockets = endpoints(tcp, unix, ports)
        for pid in self._pids:
            for wait, count in waits_of(pid, sockets):
                self.writers[2].append(
                    at_ns,
                    pid,
                    wait.thread_name,
                    wait.is_main,
                    wait.call,
                    wait.kind,
                    wait.address,
                    count,
                )
        cost_ns = time.thread_time_ns() - began_ns
        self._cost_of_one_ns = max(_COST_OF_ONE_NS, cost_ns / max(1, count))
        factor = _SPARING_REST_FACTOR if self._is_sparing else _REST_FACTOR
        if self.seen_count <= _FIRST_LOOKS_COUNT:  # what stands is told from two or three
            factor = min(factor, _FIRST_REST_FACTOR)
        self._due_ns = at_ns + max(_PERIOD_NS, factor * cost_ns)

    def _look_at_watches(
        self, at_ns: int, holders: Mapping[int, Sequence[int]], ports: Mapping[int, int]
    ) -> None:
        """How each process waits for those of its listeners whose queue is not empty."""
        for pid, inodes in holders.items():
            if self._watched_count[pid] >= _WATCHES_MOST_COUNT:
                continue
            self._watched_count[pid] += 1
            for inode, watch in watches(pid, self._epoll_fds.get(pid, ()), inodes).items():
                self.writers[3].append(at_ns, pid, inode, ports[inode], watch)

    def _owners(self, queueing: Collection[int]) -> tuple[dict[int, int], dict[int, list[int]]]:
        """Who has which socket, of the servers.

        Args:
            queueing: Listening sockets in whose queue somebody stands.

        Returns:
            Pid by inode, of shared sockets the first; and by pid those of ``queueing`` that it has.
        """
        most = _SPARING_WALK_MOST_COUNT if self._is_sparing else _WALK_MOST_COUNT
        found: dict[int, int] = {}
        holders: dict[int, list[int]] = {}
        self._epoll_fds = {}
        for pid in list(self._pids)[:_PROCESSES_MOST]:
            folder = f"/proc/{pid}/fd"
            if descriptor_count(pid) > most:
                continue  # a listing would make the kernel keep an entry for each
            try:
                names = os.listdir(folder)  # noqa: PTH208 - names only
            except OSError:
                self._pids.pop(pid, None)
                continue
            for name in names:
                try:
                    link = os.readlink(f"{folder}/{name}")  # noqa: PTH115 - thousands of them
                except OSError:
                    continue
                match = _SOCKET.fullmatch(link)
                if match:
                    inode = int(match[1])
                    found.setdefault(inode, pid)
                    if inode in queueing:
                        holders.setdefault(pid, []).append(inode)
                elif link == _EPOLL_LINK:
                    self._epoll_fds.setdefault(pid, []).append(int(name))
        return found, holders


def _queueing_ports(tcp: Iterable[InetSocket], unix: Iterable[UnixSocket]) -> dict[int, int]:
    """Listening sockets in whose queue somebody stands, by inode with their port (Unix: 0)."""
    found = {
        each.inode: each.local_port
        for each in tcp
        if each.state == socket_dump.LISTEN and each.receive_queue_bytes > 0
    }
    found |= {
        each.inode: 0 for each in unix if each.state == socket_dump.LISTEN and each.queue_count > 0
    }
    return found


def _unix_sockets() -> list[UnixSocket]:
    try:
        return socket_dump.unix_sockets()
    except OSError:
        return []  # CONFIG_UNIX_DIAG is a module of its own


FateRow = tuple[int, int, str, int, int, int, int, int]


def count_fates(
    sockets: Iterable[InetSocket],
    ports: frozenset[int],
    owners: dict[int, int],
    pids: list[int],
) -> list[FateRow]:
    """Connections of the server by process, port and fate.

    Args:
        sockets: All TCP sockets.
        ports: Local ports of the server.
        owners: Pid by inode.
        pids: The server's processes; the only one has what no owner is known of.

    Returns:
        pid (0: not known, or nobody's yet), local_port, fate, socket_count, unsent_count (those
        with data that was not sent yet), send_queue_bytes, quiet_count (whose peer has sent nothing
        for a second), left_count (whose peer has closed).
    """
    only = pids[0] if len(pids) == 1 else 0
    counts: Counter[tuple[int, int, str]] = Counter()
    unsent: Counter[tuple[int, int, str]] = Counter()
    quiet: Counter[tuple[int, int, str]] = Counter()
    left: Counter[tuple[int, int, str]] = Counter()
    queued: defaultdict[tuple[int, int, str], int] = defaultdict(int)
    for each in sockets:
        if each.local_port not in ports or not 1 << each.state & _OPEN:
            continue
        pid = owners.get(each.inode, only) if each.inode else 0
        key = (pid, each.local_port, fate_of(each))
        counts[key] += 1
        unsent[key] += each.not_sent_bytes > 0
        queued[key] += each.send_queue_bytes
        quiet[key] += each.quiet_ms >= _QUIET_MS
        left[key] += each.state == socket_dump.CLOSE_WAIT
    return [
        (*key, count, unsent[key], queued[key], quiet[key], left[key])
        for key, count in sorted(counts.items())
    ]


def endpoints(
    tcp: Iterable[InetSocket], unix: Iterable[UnixSocket], ports: frozenset[int]
) -> dict[int, Endpoint]:
    """What each socket is to a thread that waits for it, by inode."""
    found: dict[int, Endpoint] = {}
    for each in tcp:
        if each.state == socket_dump.LISTEN:
            found[each.inode] = Endpoint("listener")
        elif each.local_port in ports:
            found[each.inode] = Endpoint("own_connection")
        else:
            address = f"{each.remote_address}:{each.remote_port}"
            found[each.inode] = Endpoint(remote_kind(each.remote_port), address)
    try:
        udp = socket_dump.udp_sockets()
    except OSError:
        udp = []
    for each in udp:
        address = f"{each.remote_address}:{each.remote_port}" if each.remote_port else ""
        found[each.inode] = Endpoint(remote_kind(each.remote_port), address)
    paths = {each.inode: each.path for each in unix}
    listening = {each.path for each in unix if each.state == socket_dump.LISTEN and each.path}
    for peer in unix:
        if peer.state == socket_dump.LISTEN:
            found[peer.inode] = Endpoint("listener")
        elif peer.path in listening:  # accepted: it has the name of its listener
            found[peer.inode] = Endpoint("own_connection", peer.path)
        else:
            found[peer.inode] = Endpoint("unix", peer.path or paths.get(peer.peer_inode, ""))
    found.pop(0, None)
    return found
