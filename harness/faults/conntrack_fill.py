"""Fills the connection tracking table of a network namespace: ``--inject conntrack-full:FREE``.

The table's size is the host's and is not changed. What a namespace may hold is counted per
namespace (net/netfilter/nf_conntrack_core.c, __nf_conntrack_alloc compares ``cnet->count`` with
``nf_conntrack_max``), so entries made here leave room for nobody but this run, and go with it.

Three things, by netlink alone (no nft or conntrack has to be installed):

* A rule that reads the tracking state, because only a user of it turns tracking on in a namespace
  (net/netfilter/nft_ct.c, nft_ct_get_init).
* Entries between addresses of the benchmarking network (RFC 2544), so that none is of the run.
* They are UDP and assured: whatever is not assured is evicted first when the table is full
  (early_drop), and so is a TCP flow that is closing (tcp_can_early_drop).
"""

from __future__ import annotations

import os
import socket
import struct
from pathlib import Path

from probes.contract.errors import HostError

COUNT = Path("/proc/sys/net/netfilter/nf_conntrack_count")
MAX = Path("/proc/sys/net/netfilter/nf_conntrack_max")

_NETLINK_NETFILTER = 12
_NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_CREATE, _NLM_F_EXCL = 0x1, 0x4, 0x400, 0x200
_NLMSG_ERROR = 2
_NLA_F_NESTED = 0x8000
_SUBSYS_CTNETLINK, _SUBSYS_NFTABLES = 1, 10
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_NEW_TABLE, _NEW_CHAIN, _NEW_RULE = 0, 3, 6  # linux/netfilter/nf_tables.h
_HOOK_LOCAL_OUT = 3
_CT_KEY_STATE, _REGISTER_1 = 0, 1
_SEEN_REPLY, _ASSURED, _CONFIRMED = 0x2, 0x4, 0x8  # linux/netfilter/nf_conntrack_common.h
_LIFE_S = 86_400
_PER_ADDRESS_COUNT = 1000
_FIRST_PORT = 1024
_DISCARD = 9
_SOURCE = bytes((198, 18))
_DESTINATION = bytes((198, 19, 0, 1))
_NAME = b"connscope\0"
_LAST = 1  # sequence number of the message that is acknowledged


def fill(free_count: int) -> int:
    """Fills the table of the calling thread's namespace.

    Args:
        free_count: How many entries to leave free.

    Returns:
        How many entries the table holds now.

    Raises:
        HostError: This kernel or this process cannot do it.
    """
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as netlink:
            netlink.bind((0, 0))
            netlink.settimeout(5.0)
            _send(netlink, _tracking_rule())
            missing_count = int(MAX.read_text()) - free_count - int(COUNT.read_text())
            _make_entries(netlink, missing_count)
        return int(COUNT.read_text())
    except OSError as error:
        raise HostError(
            f"the connection tracking table cannot be filled: {error.strerror or error}",
            fix="run as root, on a kernel with nf_tables, nft_ct and nf_conntrack_netlink",
        ) from error


def _make_entries(netlink: socket.socket, count: int) -> None:
    whole = bytearray()
    at: list[int] = []
    for host in range(-(-count // _PER_ADDRESS_COUNT)):
        left_count = count - host * _PER_ADDRESS_COUNT
        if left_count < _PER_ADDRESS_COUNT:
            _send(netlink, _entries(host, left_count))
            return
        if not whole:
            whole = _entries(host, _PER_ADDRESS_COUNT)
            size = len(whole) // _PER_ADDRESS_COUNT
            source = _SOURCE + bytes(2)
            first = whole[:size].index(source) + 2
            at = [first, whole[:size].index(source, first) + 2]
        # A quarter of a million messages differ in four bytes each: these are patched, all at once.
        for offset in at:
            whole[offset::size] = bytes((host >> 8,)) * _PER_ADDRESS_COUNT
            whole[offset + 1 :: size] = bytes((host & 0xFF,)) * _PER_ADDRESS_COUNT
        _send(netlink, whole)


def _send(netlink: socket.socket, message: bytes | bytearray) -> None:
    """Sends and reads answers until the one of the last message, which asks for it.

    Raises:
        OSError: The kernel refused something.
    """
    netlink.send(message)
    while True:
        answer = netlink.recv(65_536)
        _, kind, _, sequence, _ = struct.unpack_from("=IHHII", answer)
        if kind != _NLMSG_ERROR:
            continue
        (number,) = struct.unpack_from("=i", answer, 16)
        if number:
            raise OSError(-number, f"netlink: {os.strerror(-number)}")
        if sequence == _LAST:
            return


def _attribute(kind: int, data: bytes) -> bytes:
    size = 4 + len(data)
    return struct.pack("=HH", size, kind) + data + bytes(-size % 4)


def _nested(kind: int, *parts: bytes) -> bytes:
    return _attribute(kind | _NLA_F_NESTED, b"".join(parts))


def _message(kind: int, flags: int, family: int, resource: int, body: bytes, last: bool) -> bytes:
    flags |= _NLM_F_REQUEST | (_NLM_F_ACK if last else 0)
    head = struct.pack("=IHHII", 20 + len(body), kind, flags, _LAST if last else 0, 0)
    return head + struct.pack("=BB", family, 0) + struct.pack(">H", resource) + body


def _tracking_rule() -> bytes:
    """One batch: table, chain at the output hook, and a rule that reads the state of a packet."""

    def nft(kind: int, *parts: bytes, last: bool = False) -> bytes:
        number = _SUBSYS_NFTABLES << 8 | kind
        body = b"".join(parts)
        return _message(number, _NLM_F_CREATE, socket.AF_INET, 0, body, last)

    hook = _nested(
        4,  # NFTA_CHAIN_HOOK: number and priority
        _attribute(1, struct.pack(">I", _HOOK_LOCAL_OUT)),
        _attribute(2, struct.pack(">i", 0)),
    )
    reads_state = _nested(
        1,  # NFTA_LIST_ELEM: name and data of an expression
        _attribute(1, b"ct\0"),
        _nested(
            2,
            _attribute(1, struct.pack(">I", _REGISTER_1)),
            _attribute(2, struct.pack(">I", _CT_KEY_STATE)),
        ),
    )
    return b"".join(
        (
            _message(_BATCH_BEGIN, 0, 0, _SUBSYS_NFTABLES, b"", last=False),
            nft(_NEW_TABLE, _attribute(1, _NAME)),
            nft(
                _NEW_CHAIN,
                _attribute(1, _NAME),
                _attribute(3, _NAME),
                hook,
                _attribute(7, b"filter\0"),
            ),
            nft(
                _NEW_RULE,
                _attribute(1, _NAME),
                _attribute(2, _NAME),
                _nested(4, reads_state),
                last=True,
            ),
            _message(_BATCH_END, 0, 0, _SUBSYS_NFTABLES, b"", last=False),
        )
    )


def _tuple(kind: int, source: bytes, destination: bytes, ports: tuple[int, int]) -> bytes:
    """CTA_TUPLE_ORIG (1) or CTA_TUPLE_REPLY (2): addresses, protocol and ports."""
    return _nested(
        kind,
        _nested(1, _attribute(1, source), _attribute(2, destination)),
        _nested(
            2,
            _attribute(1, bytes((socket.IPPROTO_UDP,))),
            _attribute(2, struct.pack(">H", ports[0])),
            _attribute(3, struct.pack(">H", ports[1])),
        ),
    )


def _entries(host: int, count: int) -> bytearray:
    """One buffer of messages that make so many entries, a port each, all of one source address."""
    source = _SOURCE + host.to_bytes(2, "big")
    status = _attribute(3, struct.pack(">I", _SEEN_REPLY | _ASSURED | _CONFIRMED))
    life = _attribute(7, struct.pack(">I", _LIFE_S))
    messages = bytearray()
    for port in range(_FIRST_PORT, _FIRST_PORT + count):
        there = _tuple(1, source, _DESTINATION, (port, _DISCARD))
        back = _tuple(2, _DESTINATION, source, (_DISCARD, port))
        messages += _message(
            _SUBSYS_CTNETLINK << 8,
            _NLM_F_CREATE | _NLM_F_EXCL,
            socket.AF_INET,
            0,
            there + back + status + life,
            last=port == _FIRST_PORT + count - 1,
        )
    return messages
