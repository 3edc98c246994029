"""The kernel's tables of neighbours (ARP, NDISC): entries, the most that they take, refusals.

There is one table for each family for the whole host, whichever network namespaces its entries are
of (net/ipv4/arp.c, arp_tbl). Its limit and counters have files only in the first namespace, while
netlink tells them in every one, without a privilege (rtnetlink(7), RTM_GETNEIGHTBL;
net/core/neighbour.c, neightbl_fill_info).
"""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass

_RTM_NEWNEIGHTBL, _RTM_GETNEIGHTBL = 64, 66
_NLM_F_REQUEST, _NLM_F_DUMP = 0x1, 0x300
_NAME, _MOST, _CONFIG, _STATS = 1, 4, 5, 7
"""NDTA_NAME, NDTA_THRESH3, NDTA_CONFIG, NDTA_STATS (linux/neighbour.h)."""
_ENTRIES_AT, _FULLS_AT = 4, 80
"""Of ndt_config (32 bits) and ndt_stats (64 bits; ndts_table_fulls since Linux 4.2)."""
_HEADER, _TABLE_HEADER, _ATTRIBUTE = struct.Struct("=IHHII"), 4, struct.Struct("=HH")
_ANSWER_BYTES = 1 << 16
"""The kernel fills at most half of that at once: first the table itself, then its devices."""

FAMILIES = {"arp": socket.AF_INET, "ndisc": socket.AF_INET6}
"""By the beginning of the table's name (arp_cache, ndisc_cache)."""


@dataclass(frozen=True, slots=True)
class NeighbourTable:
    """One table at one moment.

    Attributes:
        entries_count: Its entries, of all network namespaces.
        most_count: ``gc_thresh3``: beyond it no entry is made that does not replace one.
        fulls_total: Entries that were refused since the host began, -1 where it does not count.
    """

    entries_count: int
    most_count: int
    fulls_total: int


def parse_tables(answer: bytes) -> dict[str, NeighbourTable]:
    """The tables of an answer to RTM_GETNEIGHTBL, by ``arp`` or ``ndisc``; devices are left out."""
    found = {}
    for kind, body in _messages(answer):
        parts = dict(_attributes(body[_TABLE_HEADER:])) if kind == _RTM_NEWNEIGHTBL else {}
        config, stats, most = (parts.get(key, b"") for key in (_CONFIG, _STATS, _MOST))
        if len(config) < _ENTRIES_AT + 4 or len(most) < 4:
            continue  # of one device
        has_fulls = len(stats) >= _FULLS_AT + 8
        found[parts.get(_NAME, b"").decode("ascii", "replace").partition("_")[0]] = NeighbourTable(
            int.from_bytes(config[_ENTRIES_AT : _ENTRIES_AT + 4], sys.byteorder),
            int.from_bytes(most[:4], sys.byteorder),
            int.from_bytes(stats[_FULLS_AT : _FULLS_AT + 8], sys.byteorder) if has_fulls else -1,
        )
    return found


def read_table(name: str) -> NeighbourTable | None:
    """One table as it is now; None where the kernel does not have it or does not tell.

    Args:
        name: A key of ``FAMILIES``.
    """
    body = struct.pack("=BBH", FAMILIES[name], 0, 0)
    flags = _NLM_F_REQUEST | _NLM_F_DUMP
    request = _HEADER.pack(_HEADER.size + len(body), _RTM_GETNEIGHTBL, flags, 1, 0) + body
    try:
        # anew each time: what is left of an answer goes with its socket
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as asking:
            asking.settimeout(1.0)
            asking.sendto(request, (0, 0))
            return parse_tables(asking.recv(_ANSWER_BYTES)).get(name)
    except OSError:
        return None


def _messages(answer: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + _HEADER.size <= len(answer):
        length, kind, *_ = _HEADER.unpack_from(answer, at)
        if length < _HEADER.size:
            return
        yield kind, answer[at + _HEADER.size : at + length]
        at += (length + 3) & ~3


def _attributes(body: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + _ATTRIBUTE.size <= len(body):
        length, kind = _ATTRIBUTE.unpack_from(body, at)
        if length < _ATTRIBUTE.size:
            return
        yield kind & 0x3FFF, body[at + _ATTRIBUTE.size : at + length]
        at += (length + 3) & ~3
