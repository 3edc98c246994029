"""Dumps of TCP sockets by netlink, in bulk: of any network namespace, without moving into it.

``probes/netlink/socket_owners.py`` asks for listeners so, ``probes/netlink/connection_dump.py`` for
connections. The kernel walks only the tables that the states asked for are in
(net/ipv4/inet_diag.c, inet_diag_dump_icsk): listeners take microseconds, where reading the first
line of ``/proc/net/tcp`` makes it walk all of the table of connections, 20 ms for the quarter of a
million buckets of a host with 8 GB.
"""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Iterator

from probes.contract.errors import ProbeUnavailableError
from probes.rights import network_namespace

LISTEN, TIME_WAIT = 10, 6
LISTENER_STATES = 1 << LISTEN
ESTABLISHED_STATES = 1 << 1
CONNECTION_STATES = ((1 << 13) - 2) & ~(1 << LISTEN | 1 << TIME_WAIT)
"""Every state but those that are no end of a connection (include/net/tcp_states.h)."""

LOCAL_PORT_HALF, SEND_QUEUE_WORD, INODE_WORD = 10, 19, 21
"""Words of 16 and of 32 bits of a message, in nlmsghdr and inet_diag_msg together."""
STATE_AT, TIMER_AT, LOCAL_ADDRESS_AT, REMOTE_ADDRESS_AT = 17, 18, 24, 40
"""Bytes."""
WINDOW_PROBE_TIMER = 4
"""The timer of a socket that probes a closed window (net/ipv4/inet_diag.c, ICSK_TIME_PROBE0)."""
MESSAGE_BYTES = 88
"""Of nlmsghdr and inet_diag_msg; attributes follow."""

_MAPPED = b"\0" * 10 + b"\xff\xff"
"""The beginning of an IPv4 address as an IPv6 one (RFC 4291, 2.5.5.2)."""

_SOCK_DIAG_BY_FAMILY = 20
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_REQUEST, _REQUEST_DUMP = 0x1, 0x301  # NLM_F_REQUEST, and with NLM_F_DUMP
_INFO = 2  # INET_DIAG_INFO
_ID_AT, _ID_BYTES = 20, 48  # struct inet_diag_sockid in a message
_ATTRIBUTE = struct.Struct("=HH")
_HEADER = struct.Struct("=IHHII")
_BUFFER_BYTES, _ANSWER_BYTES = 1 << 17, 1 << 12


def socket_in(namespace_pid: int | str) -> socket.socket:
    """A netlink socket of a network namespace; this process stays where it is.

    Raises:
        OSError: Not permitted, or the process is gone.
    """
    own = os.stat("/proc/thread-self/ns/net").st_ino  # noqa: PTH116 - a link of procfs
    path = f"/proc/{namespace_pid}/ns/net"
    if os.stat(path).st_ino == own:  # noqa: PTH116 - as above
        return _new_socket()
    made: list[socket.socket | OSError] = []

    def enter_and_open() -> None:
        # setns(2) moves this thread alone, which ends right after it.
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                network_namespace.enter(fd)
            finally:
                os.close(fd)
            made.append(_new_socket())
        except OSError as error:
            made.append(error)

    thread = threading.Thread(target=enter_and_open)
    thread.start()
    thread.join()
    (outcome,) = made
    if isinstance(outcome, OSError):
        raise outcome
    return outcome


def _new_socket() -> socket.socket:
    netlink_sock_diag = 4
    return socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, netlink_sock_diag
    )


def _request(family: int, states: int, local_port: int) -> bytes:
    port = struct.pack("!H", local_port)
    wanted = struct.pack("=BBBxI2s46x", family, socket.IPPROTO_TCP, 0, states, port)
    size_bytes = _HEADER.size + len(wanted)
    return _HEADER.pack(size_bytes, _SOCK_DIAG_BY_FAMILY, _REQUEST_DUMP, 1, 0) + wanted


def dump(
    channel: socket.socket, family: int, states: int, local_port: int = 0
) -> Iterator[tuple[memoryview[int], int]]:
    """The sockets of one family, some hundred at a time.

    Args:
        channel: From ``socket_in``.
        family: AF_INET or AF_INET6.
        states: Bit set of the states asked for.
        local_port: Only those of this port, which the kernel passes over cheaply; 0 for all.

    Yields:
        Their messages as 16-bit words, and how many words of 32 bits each message has.

    Raises:
        OSError: This kernel has no sock_diag for TCP.
    """
    channel.send(_request(family, states, local_port))
    buffer = bytearray(_BUFFER_BYTES)
    while True:
        size = channel.recv_into(buffer)
        for length, start, end in equal_messages(buffer, size):
            kind = struct.unpack_from("=H", buffer, start + 4)[0]
            if kind == _NLMSG_DONE:
                return
            if kind == _NLMSG_ERROR:
                code = -struct.unpack_from("=i", buffer, start + _HEADER.size)[0]
                raise OSError(code, os.strerror(code))
            if length >= MESSAGE_BYTES:
                yield memoryview(buffer)[start:end].cast("H"), length // 4


def require() -> None:
    """The kernel lists sockets by netlink, those of both families.

    Raises:
        ProbeUnavailableError: It does not.
    """
    try:
        with socket_in("self") as channel:
            for family in (socket.AF_INET, socket.AF_INET6):
                for _ in dump(channel, family, LISTENER_STATES):
                    pass
    except OSError as error:
        raise ProbeUnavailableError(
            f"sockets cannot be listed by netlink: {error.strerror or error}",
            fix="a kernel with CONFIG_INET_DIAG (modprobe inet_diag tcp_diag)",
        ) from error


def peer_of(message: bytes) -> tuple[str, int]:
    """Address and port of the other end; an IPv4 address of a dual socket as IPv4.

    Args:
        message: What a dump said of a socket.
    """
    (port,) = struct.unpack_from("!H", message, 2 * LOCAL_PORT_HALF + 2)
    family = message[_HEADER.size]
    address = message[REMOTE_ADDRESS_AT:][: 4 if family == socket.AF_INET else 16]
    if address.startswith(_MAPPED):
        family, address = socket.AF_INET, address[len(_MAPPED) :]
    return socket.inet_ntop(family, address), port


def tcp_info(channel: socket.socket, message: bytes) -> bytes:
    """``struct tcp_info`` of one socket (include/uapi/linux/tcp.h), as long as this kernel has it.

    The kernel looks the socket up by its addresses and its cookie, and locks it for a moment.

    Args:
        channel: From ``socket_in``, with no dump under way.
        message: What a dump said of it, ``MESSAGE_BYTES`` long.

    Returns:
        Empty when the socket is gone.

    Raises:
        OSError: The kernel did not answer.
    """
    family = message[_HEADER.size]
    wanted = struct.pack("=BBBxI", family, socket.IPPROTO_TCP, 1 << (_INFO - 1), 0xFFFFFFFF)
    wanted += message[_ID_AT : _ID_AT + _ID_BYTES]
    size_bytes = _HEADER.size + len(wanted)
    channel.send(_HEADER.pack(size_bytes, _SOCK_DIAG_BY_FAMILY, _REQUEST, 2, 0) + wanted)
    answer = channel.recv(_ANSWER_BYTES)
    if len(answer) < MESSAGE_BYTES or struct.unpack_from("=H", answer, 4)[0] == _NLMSG_ERROR:
        return b""
    at, end = MESSAGE_BYTES, min(len(answer), struct.unpack_from("=I", answer)[0])
    while at + _ATTRIBUTE.size <= end:
        length, kind = _ATTRIBUTE.unpack_from(answer, at)
        if length < _ATTRIBUTE.size:
            break
        if kind == _INFO:
            return answer[at + _ATTRIBUTE.size : min(at + length, end)]
        at += (length + 3) & ~3
    return b""


def equal_messages(buffer: bytearray, size: int) -> Iterator[tuple[int, int, int]]:
    """Runs of messages of the same kind and length: that length, where they begin and end.

    As a rule all that one call of recv(2) brings are alike; that is told without a look at each.
    """
    at = 0
    while at + _HEADER.size <= size:
        length = struct.unpack_from("=I", buffer, at)[0]
        if length < _HEADER.size or length % 4:
            return
        end = at + length
        count = (size - at) // length
        words = memoryview(buffer)[at : at + count * length].cast("I")
        if count > 1 and words[:: length // 4].tolist() == [length] * count:
            kinds = words[1 :: length // 4].tolist()
            if kinds == [kinds[0]] * count:
                end = at + count * length
        yield length, at, min(end, size)
        at = end
