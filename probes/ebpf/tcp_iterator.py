"""All TCP sockets by ``iter/tcp``: the kernel walks, and probes/bpf/tcp_snapshot.c adds up.

What leaves the kernel are sums and one record a listener, however many sockets there are. The walk
gives the core away after each ``bpf_sources.BREATH_SOCKETS`` sockets: the program writes a record
that is none, and read(2), which asks for one record at a time, returns with it.

Source: net/ipv4/tcp_ipv4.c (bpf_iter_tcp), kernel/bpf/bpf_iter.c (bpf_seq_read).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable

import numpy as np

from probes.bpf_loader import syscalls as bpf_kernel
from probes.bpf_loader.program import BpfObject
from probes.contract.probe import never
from probes.ebpf import shared as bpf_shared
from probes.ebpf import sources as bpf_sources
from probes.netlink.socket_snapshot import PortGroup, SeenListener, Snapshot, dotted, dotted_ipv4

PROGRAM = "bpf_iter__tcp"

_LISTENER = struct.Struct("=Q4I6I")  # struct listener_record


class TcpIterator:
    """Reads snapshots of the network namespace of this process.

    Args:
        loaded: With the source ``bpf_sources.tcp_snapshot``.

    Raises:
        ProbeUnavailableError: The kernel refused the program or has no such iterator.
    """

    def __init__(self, loaded: BpfObject) -> None:
        self._loaded = loaded
        self._link_fd = loaded.attach_iterator(PROGRAM)

    def read(self, is_enough: Callable[[], bool] = never) -> Snapshot | None:
        """Looks at every socket.

        Args:
            is_enough: Asked every ``BREATH_SOCKETS`` sockets; when it says so the walk ends.

        Returns:
            None when it ended before it had seen all.

        Raises:
            OSError: As read(2).
        """
        sums_map, groups_map = self._loaded.maps["snapshot_sums"], self._loaded.maps["port_groups"]
        sums_map.put(0, np.zeros(1, dtype=bpf_sources.SNAPSHOT_SUMS)[0])
        records = bpf_kernel.read_iterator(self._link_fd, _LISTENER.size, is_enough)
        if records is None:
            groups_map.items(delete=True)
            return None
        sums = sums_map.get(0)
        assert sums is not None
        listeners = []
        for inode, *words, family, port, queue, backlog, half_open, drops in _LISTENER.iter_unpack(
            records
        ):
            if family:
                address = dotted(words, family)
                seen = SeenListener(address, port, inode, queue, backlog, half_open, drops)
                listeners.append(seen)
        keys, counts = groups_map.items(delete=True)
        groups = [
            PortGroup(dotted_ipv4(source), dotted_ipv4(destination), port, count)
            for (source, destination, port), count in zip(
                keys.tolist(), counts[:, 0].tolist(), strict=True
            )
        ]
        lost_count = bpf_shared.lost(self._loaded, "port_groups")
        return Snapshot(sums[0]["by"], listeners, groups, lost_count)

    def close(self) -> None:
        """Gives the link back; may be called twice."""
        if self._link_fd >= 0:
            os.close(self._link_fd)
            self._link_fd = -1
