"""Sockets of this network namespace by netlink: who waits in which queue, and what was exchanged.

Measures:
    TCP sockets with their queues, inode and what they sent and received; Unix sockets with their
    peer, and of listening ones the queue and its limit.
Hook:
    NETLINK_SOCK_DIAG (sock_diag(7); net/ipv4/inet_diag.c, net/unix/diag.c), the interface of ss(8).
    Needs no eBPF and no BTF; struct tcp_info is UAPI and only grows at its end.
Cost:
    About 1 ms for 1,000 TCP sockets with INET_DIAG_INFO, listeners alone next to nothing.
Misses:
    The walk is no instant. ``bytes_sent`` needs Linux 4.19; before, it is -1. Unix sockets need
    CONFIG_UNIX_DIAG: without it ``unix_sockets`` raises OSError.
Checked against:
    Sockets of known queues and bytes (tests/probes/netlink/test_socket_dump.py).
"""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_DUMP = 0x301  # NLM_F_REQUEST | NLM_F_ROOT | NLM_F_MATCH
_HEADER = struct.Struct("=IHHII")
_ERROR = struct.Struct("=i")
_ATTRIBUTE = struct.Struct("=HH")
_INET_REQUEST = struct.Struct("=BBBBI2s2s16s16sIII")
_INET_MESSAGE = struct.Struct("=BBBB2s2s16s16sIIIIIIII")
_UNIX_REQUEST = struct.Struct("=BBHIIIII")
_UNIX_MESSAGE = struct.Struct("=BBBBIII")
_QUEUES = struct.Struct("=II")
_INET_DIAG_INFO = 2
_UNIX_DIAG_NAME, _UNIX_DIAG_PEER, _UNIX_DIAG_RQLEN = 0, 2, 4
_UDIAG_SHOW = 0x1 | 0x4 | 0x10  # name, peer, queue lengths
_NOTSENT_BYTES_AT, _BYTES_RECEIVED_AT, _BYTES_SENT_AT = 144, 128, 200  # of struct tcp_info
_LAST_DATA_RECV_MS_AT = 52
_BUFFER_BYTES = 1 << 18
_SECONDS = 5.0
ESTABLISHED, CLOSE_WAIT, LISTEN = 1, 8, 10
"""States of include/net/tcp_states.h."""
ALL_STATES = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class InetSocket:
    """One TCP or UDP socket.

    Attributes:
        state: TCP_ESTABLISHED, ... of include/net/tcp_states.h.
        local_port: Its port.
        remote_port: Its peer's, 0 for none.
        remote_address: Its peer's address as text.
        inode: Of the socket; 0 while no process has it: it waits in an accept queue.
        receive_queue_bytes: Unread bytes; of a listener the connections that wait for accept.
        send_queue_bytes: Bytes that the peer has not acknowledged; of a listener its backlog.
        bytes_sent: Data sent so far, -1 when not known.
        bytes_received: Data received so far, -1 when not known.
        not_sent_bytes: Of the send queue what has not been sent even once, -1 when not known.
        quiet_ms: Since its peer last sent data, or since it was established; -1 when not known.
    """

    state: int
    local_port: int
    remote_port: int
    remote_address: str
    inode: int
    receive_queue_bytes: int
    send_queue_bytes: int
    bytes_sent: int = -1
    bytes_received: int = -1
    not_sent_bytes: int = -1
    quiet_ms: int = -1


@dataclass(frozen=True, slots=True)
class UnixSocket:
    """One Unix socket.

    Attributes:
        state: Like a TCP state.
        inode: Of the socket.
        path: Its name; an abstract one begins with ``@``; '' for none.
        peer_inode: Of the other end, 0 for none.
        queue_count: Connections that wait for accept, of a listening one; else unread bytes.
        backlog_count: Most that may wait, of a listening one.
    """

    state: int
    inode: int
    path: str
    peer_inode: int
    queue_count: int
    backlog_count: int


def tcp_sockets(
    *, states: int = ALL_STATES, local_port: int = 0, with_info: bool = True
) -> list[InetSocket]:
    """TCP sockets of IPv4 and IPv6.

    Args:
        states: Bit per state: ``1 << LISTEN``.
        local_port: Only those of this port; 0 for all.
        with_info: Ask for bytes sent and received, too.

    Raises:
        OSError: The kernel has no such interface, or did not answer in time.
    """
    return _inet_sockets(socket.IPPROTO_TCP, states, local_port, with_info=with_info)


def udp_sockets() -> list[InetSocket]:
    """Connected and bound UDP sockets.

    Raises:
        OSError: As ``tcp_sockets``.
    """
    return _inet_sockets(socket.IPPROTO_UDP, ALL_STATES, 0, with_info=False)


def _inet_sockets(
    protocol: int, states: int, local_port: int, *, with_info: bool
) -> list[InetSocket]:
    found: list[InetSocket] = []
    extensions = 1 << (_INET_DIAG_INFO - 1) if with_info else 0
    for family in (socket.AF_INET, socket.AF_INET6):
        request = _INET_REQUEST.pack(
            family,
            protocol,
            extensions,
            0,
            states,
            struct.pack("!H", local_port),
            b"\0\0",
            b"",
            b"",
            0,
            ALL_STATES,  # INET_DIAG_NOCOOKIE, twice
            ALL_STATES,
        )
        for data, start, end in _answers(request):
            fields = _INET_MESSAGE.unpack_from(data, start)
            sent, received, not_sent, quiet_ms = -1, -1, -1, -1
            if with_info:
                sent, received, not_sent, quiet_ms = _info(data, start + _INET_MESSAGE.size, end)
            found.append(
                InetSocket(
                    state=fields[1],
                    local_port=int.from_bytes(fields[4], "big"),
                    remote_port=int.from_bytes(fields[5], "big"),
                    remote_address=_address(fields[0], fields[7]),
                    inode=fields[15],
                    receive_queue_bytes=fields[12],
                    send_queue_bytes=fields[13],
                    bytes_sent=sent,
                    bytes_received=received,
                    not_sent_bytes=not_sent,
                    quiet_ms=quiet_ms,
                )
            )
    return found


def unix_sockets() -> list[UnixSocket]:
    """All Unix sockets of the namespace.

    Raises:
        OSError: The kernel has no such interface, or did not answer in time.
    """
    request = _UNIX_REQUEST.pack(
        socket.AF_UNIX, 0, 0, ALL_STATES, 0, _UDIAG_SHOW, ALL_STATES, ALL_STATES
    )
    found: list[UnixSocket] = []
    for data, start, end in _answers(request):
        _, _, state, _, inode, _, _ = _UNIX_MESSAGE.unpack_from(data, start)
        path, peer, queue, backlog = "", 0, 0, 0
        for kind, at, length in _attributes(data, start + _UNIX_MESSAGE.size, end):
            if kind == _UNIX_DIAG_NAME:
                path = _path(data[at : at + length])
            elif kind == _UNIX_DIAG_PEER and length >= 4:
                peer = int.from_bytes(data[at : at + 4], sys.byteorder)
            elif kind == _UNIX_DIAG_RQLEN and length >= _QUEUES.size:
                queue, backlog = _QUEUES.unpack_from(data, at)
        found.append(UnixSocket(state, inode, path, peer, queue, backlog))
    return found


def _path(raw: bytes) -> str:
    abstract = raw[:1] == b"\0"
    text = (raw[1:] if abstract else raw.rstrip(b"\0")).decode("utf-8", "replace")
    return f"@{text}" if abstract else text


def _address(family: int, raw: bytes) -> str:
    if family == socket.AF_INET:
        return socket.inet_ntop(family, raw[:4])
    address = ipaddress.IPv6Address(raw)
    return str(address.ipv4_mapped or address)


def _info(data: bytes, start: int, end: int) -> tuple[int, int, int, int]:
    """Bytes sent, received, not sent, and ms since data came, of struct tcp_info; -1: not there."""
    for kind, at, length in _attributes(data, start, end):
        if kind == _INET_DIAG_INFO:
            sent = received = not_sent = quiet_ms = -1
            if length >= _LAST_DATA_RECV_MS_AT + 4:
                (quiet_ms,) = struct.unpack_from("=I", data, at + _LAST_DATA_RECV_MS_AT)
            if length >= _BYTES_RECEIVED_AT + 8:
                (received,) = struct.unpack_from("=Q", data, at + _BYTES_RECEIVED_AT)
            if length >= _NOTSENT_BYTES_AT + 4:
                (not_sent,) = struct.unpack_from("=I", data, at + _NOTSENT_BYTES_AT)
            if length >= _BYTES_SENT_AT + 8:
                (sent,) = struct.unpack_from("=Q", data, at + _BYTES_SENT_AT)
            return sent, received, not_sent, quiet_ms
    return -1, -1, -1, -1


def _attributes(data: bytes, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Kind, offset and length of each attribute of a message (netlink(7))."""
    while start + _ATTRIBUTE.size <= end:
        length, kind = _ATTRIBUTE.unpack_from(data, start)
        if length < _ATTRIBUTE.size or start + length > end:
            return
        yield kind, start + _ATTRIBUTE.size, length - _ATTRIBUTE.size
        start += (length + 3) & ~3


def _answers(request: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Each message of a dump: the data that it stands in, its begin without header, its end."""
    with socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG
    ) as netlink:
        netlink.settimeout(_SECONDS)
        header = _HEADER.pack(_HEADER.size + len(request), _SOCK_DIAG_BY_FAMILY, _DUMP, 1, 0)
        netlink.sendall(header + request)
        while True:
            data = netlink.recv(_BUFFER_BYTES)
            at = 0
            while at + _HEADER.size <= len(data):
                length, kind, _, _, _ = _HEADER.unpack_from(data, at)
                if kind == _NLMSG_DONE or length < _HEADER.size:
                    return
                if kind == _NLMSG_ERROR:
                    (code,) = _ERROR.unpack_from(data, at + _HEADER.size)
                    if code:
                        raise OSError(-code, os.strerror(-code))
                    return
                yield data, at + _HEADER.size, min(at + length, len(data))
                at += (length + 3) & ~3
