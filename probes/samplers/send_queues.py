"""Whose data nobody takes: connections of the server whose send queue stands.

Measures:
    At a look, by process and port: connections with data that their peer has not taken; of these
    the ones whose peer acknowledged nothing since an earlier look although more waits to be sent,
    what they hold in the kernel, and how many peers closed their window (table ``send_queues``).
    Of those that hold most also the peer's address (``standing_sockets``). What a process keeps for
    them beside, once the kernel's buffer is full, is in its resident set (``process_samples``).
Hook:
    NETLINK_SOCK_DIAG (``probes/netlink/inet_diag.py``): queues and timers of all connections of the
    server's ports, and struct tcp_info of those whose queue did not shrink between two looks.
Cost:
    20 us a second, and 5 us for each process, as long as TCP holds next to no data on this host
    (/proc/net/sockstat, which lacks up to 1 MB for each core) and no server process grows. Else
    4 ms a look for the walk over the kernel's table (24 GB host), 2 us a connection, and 20 us for
    each whose queue may stand, at most ``_ASKED_MOST_COUNT``. A look waits 200 times as long as the
    last one took, 100 times while queues stand; 1,000 and 400 times beside a server in service, of
    up to 5,000 connections 4 s at most. It is taken in slices of ``_SLICE_NS``, so that a million
    connections stop no other probe.
Misses:
    A queue that stands for less than two looks: of a million connections in service these are a
    quarter of an hour apart. A peer that takes a little now and then moves. In
    which order they queue in the process. More than ``_ASKED_MOST_COUNT`` such queues are counted
    as not looked at. Which process has a connection, where several serve and one has more
    descriptors than are walked. Servers of our own, which close what takes nothing.
Checked against:
    Peers that read, that never read and that begin to read
    (tests/probes/samplers/test_send_queues.py).
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from probes.contract.clock import NS_PER_MS, NS_PER_S
from probes.contract.probe import Probe, ProcessRef, Target
from probes.contract.schema import SERVER_ROLES
from probes.netlink import inet_diag, socket_owners
from probes.proc.descriptor_count import descriptor_count

SOCKSTAT = Path("/proc/net/sockstat")

_LEAST_PAGES = 64
"""Of buffers of all of TCP: an idle host has fewer, and a single standing queue more."""
_LEAST_GROWN_BYTES = 4 << 20
_GROWN_WITHIN_NS = 30 * NS_PER_S
_REST_FACTOR, _SPARING_REST_FACTOR = 200, 1_000
_SUSPICIOUS_FACTOR, _SPARING_SUSPICIOUS_FACTOR = 100, 400
"""While some queue did not shrink from look to look."""
_FEW_COUNT, _FEW_REST_MOST_NS = 5_000, 4 * NS_PER_S
"""Connections of which a look takes some ms: where it took longer once, the host was busy."""
_SLICE_NS = 3 * NS_PER_MS
_ASKED_MOST_COUNT = 512
_NAMED_COUNT = 8
_PORTS_MOST, _PROCESSES_MOST = 8, 64
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_STATES = 1 << 1 | 1 << 8  # ESTABLISHED, CLOSE_WAIT (include/net/tcp_states.h)
_ACKED_AT, _NOT_SENT_AT, _WINDOW_AT = 120, 144, 228  # of struct tcp_info
_NO_OWNER = 0
_ANSWER_S = 1.0
"""The kernel answers at once; what does not come is counted as lost, and stops no other probe."""


@dataclass(frozen=True, slots=True)
class Queue:
    """What one connection had in its send queue at a look.

    Attributes:
        message: What the kernel said of it, for asking again.
        inode: Of the socket.
        bytes: Not acknowledged by the peer.
    """

    message: bytes
    inode: int
    bytes: int

    @property
    def local_port(self) -> int:
        """Its port."""
        return int(struct.unpack_from("!H", self.message, 2 * inet_diag.LOCAL_PORT_HALF)[0])

    @property
    def remote(self) -> tuple[str, int]:
        """Address and port of its peer; an IPv4 address of a dual socket as IPv4."""
        return inet_diag.peer_of(self.message)

    @property
    def probes_window(self) -> bool:
        """Its timer is that of a closed window."""
        return self.message[inet_diag.TIMER_AT] == inet_diag.WINDOW_PROBE_TIMER


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a connection had come at a look.

    Attributes:
        acked_bytes: Taken by the peer so far.
        not_sent_bytes: Not sent even once, -1 when not known.
        window_bytes: What the peer would take, -1 when not known (before Linux 5.4).
        since_ns: The first look at which it had come this far.
    """

    acked_bytes: int
    not_sent_bytes: int
    window_bytes: int
    since_ns: int


def parse_progress(info: bytes, at_ns: int) -> Progress | None:
    """What ``struct tcp_info`` says; None where it is too short (before Linux 4.1)."""
    if len(info) < _ACKED_AT + 8:
        return None
    (acked,) = struct.unpack_from("=Q", info, _ACKED_AT)
    not_sent = window = -1
    if len(info) >= _NOT_SENT_AT + 4:
        (not_sent,) = struct.unpack_from("=I", info, _NOT_SENT_AT)
    if len(info) >= _WINDOW_AT + 4:
        (window,) = struct.unpack_from("=I", info, _WINDOW_AT)
    return Progress(acked, not_sent, window, at_ns)


@dataclass(slots=True)
class Sums:
    """One row of ``send_queues`` in the making."""

    queued_count: int = 0
    queued_bytes: int = 0
    standing_count: int = 0
    standing_bytes: int = 0
    closed_window_count: int = 0
    longest_ns: int = 0
    unlooked_count: int = 0


@dataclass(slots=True)
class _Look:
    """A look under way: connections with a queue, how many were walked over, what it cost."""

    queues: list[Queue] = field(default_factory=list)
    walked_count: int = 0
    cost_ns: int = 0


def queues_of(halves: memoryview[int], step: int, ports: frozenset[int]) -> Iterator[Queue]:
    """The connections with data in their send queue among some messages of a dump.

    Args:
        halves: Messages as 16-bit words.
        step: Words of 32 bits in each.
        ports: Local ports that count, in host order.
    """
    raw = halves.cast("B")
    words = np.frombuffer(raw, dtype=np.uint32)
    words = words[: len(words) // step * step].reshape(-1, step)
    has_queue = (words[:, inet_diag.SEND_QUEUE_WORD] > 0) & (words[:, inet_diag.INODE_WORD] > 0)
    for index in np.flatnonzero(has_queue).tolist():
        at = 4 * step * index
        found = Queue(
            bytes(raw[at : at + inet_diag.MESSAGE_BYTES]),
            int(words[index, inet_diag.INODE_WORD]),
            int(words[index, inet_diag.SEND_QUEUE_WORD]),
        )
        if found.local_port in ports:
            yield found


def tcp_pages() -> int:
    """Pages of buffers of all of TCP on this host (sockstat, mem), 0 when not known."""
    try:
        text = SOCKSTAT.read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0
    words = next((line.split() for line in text.split("\n") if line.startswith("TCP:")), [])
    named = dict(zip(words[1::2], words[2::2], strict=False))
    return int(named.get("mem", "0")) if named.get("mem", "").isdigit() else 0


def families(channel: socket.socket, port: int) -> list[int]:
    """Address families that connections of a port may have: those of its listeners, or both.

    The kernel walks its whole table for each, however few they are.
    """
    both: list[int] = [socket.AF_INET, socket.AF_INET6]
    found = [
        family
        for family in both
        # to its end: what is not read would be taken for the next answer
        if list(inet_diag.dump(channel, family, inet_diag.LISTENER_STATES, port))
    ]
    return found if found and port else both


def resident_bytes(pid: int) -> int:
    """Resident set of a process (/proc/PID/statm, proc(5)), 0 when it is gone."""
    try:
        text = Path(f"/proc/{pid}/statm").read_text(encoding="ascii")
    except OSError:
        return 0
    return int(text.split()[1]) * _PAGE_BYTES


class SendQueuesProbe(Probe):
    """Appends rows to ``send_queues`` and ``standing_sockets``."""

    name = "send_queues"
    period_s = 1.0
    is_self_paced = True

    def __init__(self) -> None:
        super().__init__()
        self.seen_count = 0
        self._target: Target | None = None
        self._pids: dict[int, str] = {}
        self._ports: frozenset[int] = frozenset()
        self._owners: dict[int, int] = {}
        self._resident: dict[int, tuple[int, int]] = {}
        self._had_standing: set[tuple[int, int]] = set()
        self._before: dict[int, int] = {}
        self._progress: dict[int, Progress] = {}
        self._look: _Look | None = None
        self._steps: Iterator[None] = iter(())
        self._due_ns = 0

    def check(self) -> None:
        """The kernel answers NETLINK_SOCK_DIAG.

        Raises:
            ProbeUnavailableError: It does not.
        """
        inet_diag.require()

    def start(self, target: Target) -> None:
        """Opens the tables."""
        self.writers = [
            target.run.writer(table, self.name) for table in ("send_queues", "standing_sockets")
        ]
        self._target = target if target.is_foreign else None
        self._ports = target.server_ports
        for ref in target.processes.values():
            self.add_process(ref)

    def add_process(self, ref: ProcessRef) -> None:
        """Watches a process that came later; of one behind the server also its own ports."""
        if ref.role in SERVER_ROLES:
            self._pids[ref.pid] = ref.role
            if ref.role == "backend" and self._target is not None:
                self._ports |= _ports_of(ref.pid)

    def remove_processes(self, pids: Collection[int]) -> None:
        """Looks no more at processes that ended."""
        for pid in pids:
            self._pids.pop(pid, None)
            self._resident.pop(pid, None)
        self._owners = {inode: pid for inode, pid in self._owners.items() if pid in self._pids}

    def sample(self, at_ns: int) -> None:
        """Goes on with a look that is under way, or begins one where TCP holds data."""
        if self._target is None or not self._ports:
            return
        if self._look is None:
            if at_ns < self._due_ns:
                return
            has_grown = self._has_grown(at_ns)
            if not has_grown and not self._had_standing and tcp_pages() < _LEAST_PAGES:
                return
            self._look = _Look()
            self._steps = self._walk(self._look)
        self._go_on(self._look, at_ns)

    def stop(self, at_ns: int) -> None:
        """Nothing is open between two looks but a dump under way, which ends here."""
        del at_ns
        self._end_look()
        self._target = None

    def _has_grown(self, at_ns: int) -> bool:
        """Whether the memory of some server process grew within half a minute."""
        has_grown = False
        for pid in list(self._pids)[:_PROCESSES_MOST]:
            now_bytes = resident_bytes(pid)
            since_ns, least_bytes = self._resident.get(pid, (at_ns, now_bytes))
            has_grown |= now_bytes - least_bytes >= _LEAST_GROWN_BYTES
            if at_ns - since_ns >= _GROWN_WITHIN_NS or now_bytes < least_bytes:
                since_ns, least_bytes = at_ns, now_bytes
            self._resident[pid] = since_ns, least_bytes
        return has_grown

    def _go_on(self, look: _Look, at_ns: int) -> None:
        began_ns = time.thread_time_ns()
        try:
            for _ in self._steps:
                if time.thread_time_ns() - began_ns >= _SLICE_NS:
                    look.cost_ns += time.thread_time_ns() - began_ns
                    self.period_s = 0.1
                    return
            self._judge(look, at_ns)
        except OSError:
            self.lost_count += 1
        look.cost_ns += time.thread_time_ns() - began_ns
        is_sparing = self._target is not None and self._target.is_sparing
        factor = _SPARING_REST_FACTOR if is_sparing else _REST_FACTOR
        if self._progress:
            factor = _SPARING_SUSPICIOUS_FACTOR if is_sparing else _SUSPICIOUS_FACTOR
        rest_ns = max(NS_PER_S // 2, factor * look.cost_ns)
        if look.walked_count <= _FEW_COUNT:
            rest_ns = min(rest_ns, _FEW_REST_MOST_NS)
        self._due_ns = at_ns + rest_ns
        self._end_look()

    def _end_look(self) -> None:
        self._look, self._steps = None, iter(())
        self.period_s = 1.0

    def _walk(self, look: _Look) -> Iterator[None]:
        """Goes over the connections of the server's ports, a portion at a time."""
        self.seen_count += 1
        ports = sorted(self._ports) if len(self._ports) <= _PORTS_MOST else [0]
        with inet_diag.socket_in("self") as channel:
            channel.settimeout(_ANSWER_S)
            for port in ports:
                for family in families(channel, port):
                    for halves, step in inet_diag.dump(channel, family, _STATES, port):
                        look.queues += queues_of(halves, step, self._ports)
                        look.walked_count += len(halves) // (2 * step)
                        yield

    def _judge(self, look: _Look, at_ns: int) -> None:
        """Which of the queues stand: they did not shrink, and their peers took nothing."""
        suspects = [
            each
            for each in look.queues
            if each.probes_window or 0 < self._before.get(each.inode, 0) <= each.bytes
        ]
        suspects.sort(key=lambda each: each.bytes, reverse=True)
        asked, unlooked = suspects[:_ASKED_MOST_COUNT], suspects[_ASKED_MOST_COUNT:]
        progress: dict[int, Progress] = {}
        with inet_diag.socket_in("self") as channel:
            channel.settimeout(_ANSWER_S)
            for each in asked:
                found = parse_progress(inet_diag.tcp_info(channel, each.message), at_ns)
                if found is None:
                    continue
                last = self._progress.get(each.inode)
                if last is not None and last.acked_bytes == found.acked_bytes:
                    found = Progress(
                        found.acked_bytes, found.not_sent_bytes, found.window_bytes, last.since_ns
                    )
                progress[each.inode] = found
        standing = [
            each
            for each in asked
            if each.inode in progress and is_standing(each, progress[each.inode], at_ns)
        ]
        self._find_owners(each.inode for each in standing)
        self._write(at_ns, look.queues, standing, unlooked, progress)
        self._before = {each.inode: each.bytes for each in look.queues}
        self._progress = progress
        self._owners = {inode: pid for inode, pid in self._owners.items() if inode in self._before}

    def _write(
        self,
        at_ns: int,
        queues: list[Queue],
        standing: list[Queue],
        unlooked: list[Queue],
        progress: dict[int, Progress],
    ) -> None:
        rows: dict[tuple[int, int], Sums] = {}
        for each in standing:
            row = rows.setdefault((self._owner(each.inode), each.local_port), Sums())
            known = progress[each.inode]
            row.standing_count += 1
            row.standing_bytes += each.bytes
            row.closed_window_count += each.probes_window or known.window_bytes == 0
            row.longest_ns = max(row.longest_ns, at_ns - known.since_ns)
        for key in self._had_standing:
            rows.setdefault(key, Sums())
        if not rows:
            return
        # Of those that move the owner is not looked for: they count with the first of their port.
        first: dict[int, tuple[int, int]] = {}
        for key in rows:
            first.setdefault(key[1], key)
        for each in queues:
            if each.local_port in first:
                key = (self._owner(each.inode), each.local_port)
                row = rows.get(key, rows[first[each.local_port]])
                row.queued_count += 1
                row.queued_bytes += each.bytes
        for each in unlooked:
            if each.local_port in first:
                rows[first[each.local_port]].unlooked_count += 1
        for (pid, port), row in rows.items():
            self.writers[0].append(
                at_ns,
                pid,
                port,
                row.queued_count,
                row.queued_bytes,
                row.standing_count,
                row.standing_bytes,
                row.closed_window_count,
                row.longest_ns,
                row.unlooked_count,
            )
        for each in standing[:_NAMED_COUNT]:
            known = progress[each.inode]
            self.writers[1].append(
                at_ns,
                self._owner(each.inode),
                each.local_port,
                *each.remote,
                each.bytes,
                known.not_sent_bytes,
                known.acked_bytes,
                known.window_bytes,
                known.since_ns,
            )
        self._had_standing = {key for key, row in rows.items() if row.standing_count}

    def _owner(self, inode: int) -> int:
        if len(self._pids) == 1:
            return next(iter(self._pids))
        return self._owners.get(inode, _NO_OWNER)

    def _find_owners(self, inodes: Iterable[int]) -> None:
        """Which process has each, by a walk over descriptors where several may."""
        unknown = {inode for inode in inodes if inode not in self._owners}
        if not unknown or len(self._pids) == 1:
            return
        for pid in list(self._pids):
            if 0 <= descriptor_count(pid) <= socket_owners.WALK_MOST_COUNT:
                for inode in unknown.intersection(socket_owners.socket_inodes(pid)):
                    self._owners.setdefault(inode, pid)
        for inode in unknown:
            self._owners.setdefault(inode, _NO_OWNER)


def is_standing(each: Queue, known: Progress, at_ns: int) -> bool:
    """Its peer took nothing between two looks although there is more to send.

    What is only on its way, as a ping to a peer that is far off, is not waiting to be sent.
    """
    waits = known.not_sent_bytes > 0 or each.probes_window or known.window_bytes == 0
    return known.since_ns < at_ns and waits


def _ports_of(pid: int) -> frozenset[int]:
    """Ports that a process listens on; empty when that cannot be told."""
    try:
        mine = set(socket_owners.early_socket_inodes(pid))
        return frozenset(each.port for each in socket_owners.listeners() if each.inode in mine)
    except OSError:
        return frozenset()
