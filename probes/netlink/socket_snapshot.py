"""What one look at all TCP sockets of a network namespace found, whoever looked.

``probes/ebpf/tcp_iterator.py`` has the kernel add it up, ``probes/netlink/sock_diag.py`` adds up
what the kernel lists; both give the same to ``probes/ebpf/tcp_snapshot.py``.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

SIDES_COUNT, STATES_COUNT = 4, 16
"""Of the sums; powers of two, so that an index is bounded by a mask."""

STATE_SUMS = np.dtype(
    [
        ("sockets", "<u8"),
        ("full_sockets", "<u8"),
        ("rmem_alloc", "<i8"),
        ("wmem_alloc", "<i8"),
        ("wmem_queued", "<i8"),
        ("forward_alloc", "<i8"),
        ("sndbuf", "<i8"),
        ("rcvbuf", "<i8"),
        ("rmem_alloc_max", "<i8"),
        ("wmem_queued_max", "<i8"),
        ("data_segs_out", "<u8"),
        ("bytes_sent", "<u8"),
        ("data_segs_in", "<u8"),
        ("bytes_received", "<u8"),
    ]
)
"""Sums over the sockets of one side and state, in bytes where no other unit is named.

Full sockets are those with buffers: neither in TIME_WAIT nor in the handshake.
"""

_AF_INET6 = 10


class SeenListener(NamedTuple):
    """A listening socket: a row of the table ``listeners`` without its time."""

    address: str
    port: int
    inode: int
    queue_count: int
    backlog_count: int
    half_open_count: int
    dropped_total: int


class PortGroup(NamedTuple):
    """Local ports in use towards one destination, by sockets of clients over IPv4."""

    source: str
    destination: str
    port: int
    ports_count: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One look.

    Attributes:
        sums: ``STATE_SUMS`` by side and state.
        listeners: All of them.
        groups: Ports in use.
        lost_count: Sockets whose port group did not fit, since the reader began.
    """

    sums: npt.NDArray[Any]
    listeners: Sequence[SeenListener]
    groups: Sequence[PortGroup]
    lost_count: int


def dotted(words: Sequence[int], family: int) -> str:
    """An address of a kernel socket (network order in memory) as people write it.

    Args:
        words: Four words of 32 bits, of which IPv4 uses the first.
        family: AF_INET6 or any other.
    """
    raw = struct.pack("=4I", *words)
    return str(
        ipaddress.IPv6Address(raw) if family == _AF_INET6 else ipaddress.IPv4Address(raw[:4])
    )


def dotted_ipv4(word: int) -> str:
    """An IPv4 address of a kernel socket."""
    return dotted((word, 0, 0, 0), 0)
