"""All TCP sockets at one moment: states, buffer memory, listeners, ports in use.

Measures
    By (side, state): sockets, and for full sockets the sums and largest values of sk_rmem_alloc,
    sk_wmem_alloc - 1, sk_wmem_queued, sk_forward_alloc, sk_sndbuf and sk_rcvbuf; of established
    ones what they sent and received so far, in segments with data and in bytes. Each listener's
    accept queue, backlog, half-open connections and drops, and the processes that own it. Local
    ports in use per (source, destination, port).
Hook
    ``iter/tcp`` (net/ipv4/tcp_ipv4.c, bpf_iter_tcp; Linux 5.9), run by read(2) when a snapshot is
    due, in the network namespace of this process; probes/bpf/tcp_snapshot.c adds up in the kernel.
    A kernel that refuses its loads gets the same program with a helper call for each field (half as
    much again). Without root, BTF, bcc or that iterator sock_diag(7) lists the same sockets
    (``probes/netlink/sock_diag.py``), and the row in ``probe_health`` says so and why. Owners come
    from /proc/PID/fd of each server, once, before it has many connections.
Cost
    About 0.5 us a socket and a few ms for the walk over the hash table. Rows do not grow with the
    connections. A snapshot waits at least 200 times as long as the last one took: 0.5 % of a
    core, 30 s at most. At 50 times, the snapshots of a ramp of 4 s were a third of what all probes
    cost it. Of a server in service it waits 1,000 times as long, twice that while nothing happens,
    and ten minutes at most: a walk over 600,000 sockets took 0.9 s of CPU.
Misses
    TIME_WAIT and sockets in the handshake (NEW_SYN_RECV) are counted but have no buffers. A socket
    that is bound and not connected is in no list that the iterator walks. Ports of IPv6 clients.
    The walk is no instant: a socket that changes state during it may count twice or not at all.
Checked against
    sock_diag's SO_MEMINFO of each socket, 1,009 unread bytes, 5 connections that nobody accepts.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from probes.bpf_loader.program import BpfObject
from probes.contract.clock import NS_PER_S, now_ns
from probes.contract.errors import ProbeUnavailableError
from probes.contract.probe import ProcessRef, Target, never
from probes.ebpf import shared as bpf_shared
from probes.ebpf import sources as bpf_sources
from probes.ebpf.base import BpfProbe
from probes.ebpf.sources import SourceBuilder
from probes.ebpf.tcp_iterator import PROGRAM, TcpIterator
from probes.netlink.sock_diag import SockDiag
from probes.netlink.socket_owners import WALK_MOST_COUNT, socket_inodes
from probes.netlink.socket_snapshot import Snapshot
from probes.proc.descriptor_count import descriptor_count
from probes.proc.tcp_names import SIDES, state_name

PORT_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")

_ESTABLISHED = 1  # include/net/tcp_states.h
_DUTY_FACTOR = 200
_SPARING_DUTY_FACTOR = 1_000
_LONGEST_PAUSE_NS, _SPARING_LONGEST_PAUSE_NS = 30 * NS_PER_S, 600 * NS_PER_S
_SHORTEST_PAUSE_NS = NS_PER_S


def next_pause_ns(cost_ns: int, *, is_sparing: bool = False, stretch: float = 1.0) -> int:
    """How long to wait after a snapshot.

    Args:
        cost_ns: CPU time that it took.
        is_sparing: It is of a server in service.
        stretch: How much longer than usual its periods are now.
    """
    factor = _SPARING_DUTY_FACTOR * stretch if is_sparing else _DUTY_FACTOR
    longest_ns = _SPARING_LONGEST_PAUSE_NS if is_sparing else _LONGEST_PAUSE_NS
    return max(_SHORTEST_PAUSE_NS, min(round(factor * cost_ns), longest_ns))


class TcpSnapshotProbe(BpfProbe):
    """Writes tcp_states, socket_memory, socket_traffic, listeners, port_groups, listener_owners.

    ``sample`` takes a snapshot when one is due or the fleet's phase changed; ``snapshot_now``
    always does.
    """

    name = "tcp_snapshot"
    writes_rows = True
    is_sampled_at_hold = True
    stop_order = -1  # the fleet is stopped next, and closes the sockets
    tables = (
        "tcp_states",
        "socket_memory",
        "listeners",
        "port_groups",
        "listener_owners",
        "socket_traffic",
    )
    programs = (PROGRAM,)

    def __init__(self) -> None:
        super().__init__()
        self.snapshot_cost_ns = 0
        self._duration_ns = 0
        self._is_last_left_out = False
        self._reader: TcpIterator | SockDiag | None = None
        self._refused = self._instead = ""
        self._taken_ns = 0
        self._phase = -1
        self._target: Target | None = None
        self._unlooked: list[ProcessRef] = []

    def _source(self) -> SourceBuilder:
        return bpf_sources.tcp_snapshot

    @property
    def note(self) -> str:
        """How the sockets were looked at and why, when it was not as usual."""
        notes = []
        if self._instead:
            notes.append(f"the sockets were listed by sock_diag: {self._instead}")
        elif self._refused:
            notes.append(f"the sockets were read by helper: {self._refused}")
        if self._is_last_left_out:
            took_s = self._duration_ns / NS_PER_S
            notes.append(f"no last look at all sockets, which takes {took_s:.0f} s here")
        return "; ".join(notes)

    def check(self) -> None:
        """The iterator or sock_diag is there.

        Raises:
            ProbeUnavailableError: Neither is.
        """
        self._or_sock_diag(super().check)

    def prepare(self) -> None:
        """Compiles, unless the iterator is known not to be there."""
        if not self._instead:
            self._or_sock_diag(super().prepare)

    def _or_sock_diag(self, step: Callable[[], None]) -> None:
        try:
            step()
        except ProbeUnavailableError as error:
            SockDiag(()).close()
            self._instead = error.message

    def start(self, target: Target) -> None:
        """Takes the iterator, or the one that no kernel refuses, or else sock_diag.

        Raises:
            ProbeUnavailableError: None of them is there.
        """
        self._target = target
        self._unlooked = list(target.processes.values())
        for begin in (super().start, self._start_by_helper) if not self._instead else ():
            try:
                begin(target)
                return
            except ProbeUnavailableError as error:
                self._refused = self._refused or error.message
                self._give_back()
        self._instead = self._instead or self._refused
        self._reader = SockDiag(target.server_ports)
        self._open_writers(target)

    def _start_by_helper(self, target: Target) -> None:
        self._object = loaded = bpf_shared.load([bpf_sources.tcp_snapshot_by_helper])
        bpf_shared.aim(loaded, target, ())
        self._attach(loaded, target)
        self._open_writers(target)

    def _open_writers(self, target: Target) -> None:
        if not self.writers:  # by the start that failed
            self.writers = [target.run.writer(table, self.name) for table in self.tables]

    def _attach(self, loaded: BpfObject, target: Target) -> None:
        self._reader = TcpIterator(loaded)

    def add_process(self, ref: ProcessRef) -> None:
        """Looks at the next snapshot which listeners it has."""
        super().add_process(ref)
        self._unlooked.append(ref)

    def sample(self, at_ns: int) -> None:
        """Takes a snapshot when one is due."""
        phase = self._target.live.phase if self._target and self._target.live else -1
        if at_ns >= self._due_ns() or phase != self._phase:
            self._phase = phase
            self.snapshot_now()

    def _due_ns(self) -> int:
        """When the next one is due: sooner when something has begun to happen since the last."""
        if not self._taken_ns or self._target is None:
            return 0
        is_sparing, stretch = self._target.is_sparing, self._target.stretch
        pause_ns = next_pause_ns(self.snapshot_cost_ns, is_sparing=is_sparing, stretch=stretch)
        return self._taken_ns + pause_ns

    def focus(self, pid: int) -> None:
        """Is told that another process is hot, or none any more.

        Snapshots of a server in service are far apart, so one is due now: it sees who waits and
        what the sockets carry.

        Args:
            pid: The hot process, 0 for none.
        """
        if self._target is not None and self._target.attached:
            self._taken_ns = 0

    def snapshot_now(self) -> None:
        """Takes a snapshot, whether or not one is due."""
        if self._reader is not None:
            self._take(self._reader)

    def stop(self, at_ns: int) -> None:
        """Takes the last snapshot and frees everything."""
        if self._object is None and self._reader is not None:
            self._take_last(self._reader)
            self._close()
        super().stop(at_ns)

    def _read(self, loaded: BpfObject, at_ns: int) -> None:
        if self._reader is not None:
            self._take_last(self._reader)

    def _take_last(self, reader: TcpIterator | SockDiag) -> None:
        """Unless it would leave too little time for those that stop after it."""
        stop_by_ns = self._target.stop_by_ns if self._target is not None else 0
        if stop_by_ns and 2 * self._duration_ns > stop_by_ns - now_ns():
            self._is_last_left_out = True
            return
        self._take(reader, is_enough=never)

    def _take(
        self, reader: TcpIterator | SockDiag, is_enough: Callable[[], bool] | None = None
    ) -> None:
        """Takes a snapshot; one that somebody would have to wait for is given up.

        Args:
            reader: Of all sockets.
            is_enough: Whether it is to be given up, None to ask the target.
        """
        if is_enough is None:
            is_enough = self._target.is_stop_asked if self._target is not None else never
        begin_ns, begin_cpu_ns = now_ns(), time.thread_time_ns()
        seen = reader.read(is_enough)
        at_ns = self._taken_ns = now_ns()
        self._duration_ns = max(self._duration_ns, at_ns - begin_ns)
        self.snapshot_cost_ns = max(1, time.thread_time_ns() - begin_cpu_ns)
        if seen is None:
            return
        self._append_sums(at_ns, seen)
        _, _, listeners, groups, _, _ = self.writers
        for listener in seen.listeners:
            address, port, inode, *counts = listener
            listeners.append(at_ns, address, port, inode, *counts)
        inodes = {listener.inode for listener in seen.listeners}
        if inodes:
            self._append_owners(at_ns, inodes)
        low, high = (int(word) for word in PORT_RANGE.read_text(encoding="ascii").split())
        for group in seen.groups:
            groups.append(at_ns, *group, low, high)
            self._recorded_count += group.ports_count
        self._count_losses(seen.lost_count)

    def _append_sums(self, at_ns: int, seen: Snapshot) -> None:
        states, memory, _, _, _, traffic = self.writers
        for side, by_state in zip(SIDES, seen.sums, strict=False):
            for number, (sockets, full, *values) in enumerate(by_state.tolist()):
                if sockets:
                    states.append(at_ns, side, state_name(number), sockets)
                if full:
                    memory.append(at_ns, side, state_name(number), full, *values[:-4])
                if full and number == _ESTABLISHED:
                    traffic.append(at_ns, side, full, *values[-4:])

    def _append_owners(self, at_ns: int, inodes: set[int]) -> None:
        """Who accepts from which listener, of those that were not looked at yet."""
        for ref in self._unlooked:
            if ref.role == "client" or descriptor_count(ref.pid) > WALK_MOST_COUNT:
                continue
            for inode in sorted(inodes.intersection(socket_inodes(ref.pid))):
                self.writers[4].append(at_ns, ref.pid, inode)
        self._unlooked = []

    def _close(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None
