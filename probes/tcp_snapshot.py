"""All TCP sockets at one moment: states, buffer memory, listeners, ports in use.

Measures
    By (side, state): sockets, and for full sockets the sums and largest values of sk_rmem_alloc,
    sk_wmem_alloc - 1, sk_wmem_queued, sk_forward_alloc, sk_sndbuf and sk_rcvbuf; of established
    ones what they sent and received so far, in segments with data and in bytes. Each listener's
    accept queue, backlog, half-open connections and drops, and the processes that own it. Local
    ports in use per (source, destination, port).
Hook
    ``iter/tcp`` (net/ipv4/tcp_ipv4.c, bpf_iter_tcp), run by read(2) when a snapshot is due, in the
    network namespace of this process; probes/bpf/tcp_snapshot.c adds up in the kernel. Owners come
    from /proc/PID/fd of each server, once, before it has many connections.
Cost
    About 0.5 us a socket and a few ms for the walk over the hash table. Rows do not grow with the
    connections. A snapshot waits at least 200 times as long as the last one took: 0.5 % of a
    core. At 50 times, the snapshots of a ramp of 4 s were a third of what all probes cost it. Of a
    server in service it waits 1,000 times as long, twice that while nothing happens; 30 s at most.
Misses
    TIME_WAIT and sockets in the handshake (NEW_SYN_RECV) are counted but have no buffers. A socket
    that is bound and not connected is in no list that the iterator walks. Ports of IPv6 clients.
    The walk is no instant: a socket that changes state during it may count twice or not at all.
Checked against
    sock_diag's SO_MEMINFO of each socket, 1,009 unread bytes, 5 connections that nobody accepts.
"""

from __future__ import annotations

import ipaddress
import os
import struct
import time
from pathlib import Path

import numpy as np

from probes import bpf_kernel, bpf_shared, bpf_sources
from probes.bpf_probe import BpfProbe
from probes.bpf_program import BpfObject
from probes.bpf_sources import SourceBuilder
from probes.clock import NS_PER_S, now_ns
from probes.descriptor_count import descriptor_count
from probes.probe import ProcessRef, Target
from probes.socket_owners import WALK_MOST_COUNT, socket_inodes
from probes.tcp_names import SIDES, state_name

PORT_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")

_LISTENER = struct.Struct("=Q4I6I")
_AF_INET6 = 10
_ESTABLISHED = 1  # include/net/tcp_states.h
_DUTY_FACTOR = 200
_SPARING_DUTY_FACTOR = 1_000
_LONGEST_PAUSE_NS = 30 * NS_PER_S
_SHORTEST_PAUSE_NS = NS_PER_S


def next_pause_ns(cost_ns: int, *, is_sparing: bool = False, stretch: float = 1.0) -> int:
    """How long to wait after a snapshot.

    Args:
        cost_ns: CPU time that it took.
        is_sparing: It is of a server in service.
        stretch: How much longer than usual its periods are now.
    """
    factor = _SPARING_DUTY_FACTOR * stretch if is_sparing else _DUTY_FACTOR
    return max(_SHORTEST_PAUSE_NS, min(round(factor * cost_ns), _LONGEST_PAUSE_NS))


def dotted(words: tuple[int, ...], family: int) -> str:
    """An address of a kernel socket (network order in memory) as people write it."""
    raw = struct.pack("=4I", *words)
    return str(
        ipaddress.IPv6Address(raw) if family == _AF_INET6 else ipaddress.IPv4Address(raw[:4])
    )


class TcpSnapshotProbe(BpfProbe):
    """Writes tcp_states, socket_memory, socket_traffic, listeners, port_groups, listener_owners.

    ``sample`` takes a snapshot when one is due or the fleet's phase changed; ``snapshot_now``
    always does.
    """

    name = "tcp_snapshot"
    tables = (
        "tcp_states",
        "socket_memory",
        "listeners",
        "port_groups",
        "listener_owners",
        "socket_traffic",
    )
    programs = ("bpf_iter__tcp",)

    def __init__(self) -> None:
        super().__init__()
        self.snapshot_cost_ns = 0
        self._iterator = -1
        self._taken_ns = 0
        self._phase = -1
        self._target: Target | None = None
        self._unlooked: list[ProcessRef] = []

    def _source(self) -> SourceBuilder:
        return bpf_sources.tcp_snapshot

    def _attach(self, loaded: BpfObject, target: Target) -> None:
        self._target = target
        self._unlooked = list(target.processes.values())
        self._iterator = loaded.attach_iterator("bpf_iter__tcp")

    def add_process(self, ref: ProcessRef) -> None:
        """Looks at the next snapshot which listeners it has."""
        super().add_process(ref)
        self._unlooked.append(ref)

    def sample(self, at_ns: int) -> None:
        """Takes a snapshot when one is due."""
        phase = self._target.live.phase if self._target and self._target.live else -1
        if at_ns >= self._due_ns() or phase != self._phase:
            self._phase = phase
            super().sample(at_ns)

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
        super().sample(now_ns())

    def _read(self, loaded: BpfObject, at_ns: int) -> None:
        sums_map, groups_map = loaded.maps["snapshot_sums"], loaded.maps["port_groups"]
        sums_map.put(0, np.zeros(1, dtype=bpf_sources.SNAPSHOT_SUMS)[0])
        begin_ns = time.thread_time_ns()
        records = bpf_kernel.read_iterator(self._iterator)
        self.snapshot_cost_ns = time.thread_time_ns() - begin_ns
        at_ns = self._taken_ns = now_ns()
        states, memory, listeners, groups, _, traffic = self.writers
        sums = sums_map.get(0)
        assert sums is not None
        for side, by_state in zip(SIDES, sums[0]["by"], strict=False):
            for number, (sockets, full, *values) in enumerate(by_state.tolist()):
                if sockets:
                    states.append(at_ns, side, state_name(number), sockets)
                if full:
                    memory.append(at_ns, side, state_name(number), full, *values[:-4])
                if full and number == _ESTABLISHED:
                    traffic.append(at_ns, side, full, *values[-4:])
        inodes: set[int] = set()
        for record in _LISTENER.iter_unpack(records):
            inode, *words, family, port, queue, backlog, half_open, drops = record
            address = dotted(tuple(words), family)
            listeners.append(at_ns, address, port, inode, queue, backlog, half_open, drops)
            inodes.add(inode)
        if inodes:
            self._append_owners(at_ns, inodes)
        low, high = (int(word) for word in PORT_RANGE.read_text(encoding="ascii").split())
        keys, counts = groups_map.items(delete=True)
        for (source, destination, port), count in zip(
            keys.tolist(), counts[:, 0].tolist(), strict=True
        ):
            source_text = dotted((source, 0, 0, 0), 0)
            destination_text = dotted((destination, 0, 0, 0), 0)
            groups.append(at_ns, source_text, destination_text, port, count, low, high)
        self.lost_count = bpf_shared.lost(loaded, "port_groups")

    def _append_owners(self, at_ns: int, inodes: set[int]) -> None:
        """Who accepts from which listener, of those that were not looked at yet."""
        for ref in self._unlooked:
            if ref.role == "client" or descriptor_count(ref.pid) > WALK_MOST_COUNT:
                continue
            for inode in sorted(inodes.intersection(socket_inodes(ref.pid))):
                self.writers[4].append(at_ns, ref.pid, inode)
        self._unlooked = []

    def _close(self) -> None:
        if self._iterator >= 0:
            os.close(self._iterator)
            self._iterator = -1
