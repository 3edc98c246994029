"""All TCP sockets by netlink (sock_diag(7)), where the kernel offers no iterator: no eBPF, no BTF.

The kernel lists every socket with its buffers and TCP's counters; numpy adds up what
``probes/ebpf/tcp_iterator.py`` has the kernel add up. That is 0.4 kB a socket from the kernel and
about 2 us, where the iterator takes 0.5 us, and each socket is locked for the moment in which its
TCP counters are read. It needs no privilege.

What it tells less exactly: half-open connections are known by port, so listeners that share one
(SO_REUSEPORT) are said to have an even part of them each.

Source: include/uapi/linux/inet_diag.h, include/uapi/linux/tcp.h, net/ipv4/inet_diag.c.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
from collections.abc import Callable, Collection, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from probes.contract.errors import ProbeUnavailableError
from probes.contract.probe import never
from probes.netlink.socket_snapshot import (
    SIDES_COUNT,
    STATE_SUMS,
    STATES_COUNT,
    PortGroup,
    SeenListener,
    Snapshot,
    dotted,
    dotted_ipv4,
)

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_DUMP_REQUEST = 0x301  # NLM_F_REQUEST | NLM_F_DUMP
_INFO, _SKMEMINFO = 2, 7  # INET_DIAG_*
_EXTENSIONS = 1 << (_INFO - 1) | 1 << (_SKMEMINFO - 1)
_STATES = (1 << 13) - 1  # all but BOUND_INACTIVE, in which no connection is
_REQUEST = struct.Struct("=IHHII BBBxI 48x")  # nlmsghdr, inet_diag_req_v2 without a socket
_LENGTH = struct.Struct("=I")
_ATTRIBUTE = struct.Struct("=HH")
_HEADER_BYTES = 16
_ATTRIBUTES_AT = _HEADER_BYTES + 72  # behind struct inet_diag_msg
_BUFFER_BYTES = 1 << 20
_MESSAGE_BYTES = 1 << 16
"""Room for one recv(2): the kernel fills 32 KiB at most (net/netlink/af_netlink.c)."""
_TIMEOUT_S = 5.0

# offsets in bytes in struct tcp_info
_DATA_SEGS_IN, _DATA_SEGS_OUT, _BYTES_RECEIVED, _BYTES_SENT = 152, 156, 128, 200
_TCP_INFO_LEAST_BYTES = _BYTES_SENT + 8  # Linux 4.19
# words of SK_MEMINFO_*
_RMEM_ALLOC, _RCVBUF, _WMEM_ALLOC, _SNDBUF, _FORWARD_ALLOC, _WMEM_QUEUED, _DROPS = (
    0,
    1,
    2,
    3,
    4,
    5,
    8,
)

_ESTABLISHED, _SYN_RECV, _TIME_WAIT, _LISTEN, _NEW_SYN_RECV = 1, 3, 6, 10, 12
_SERVER, _CLIENT = 1, 2  # SIDE_* of probes/bpf/common.h

Words = npt.NDArray[Any]


class SockDiag:
    """Reads snapshots of the network namespace in which it was made.

    Args:
        server_ports: Whose sockets are the server's side.

    Raises:
        ProbeUnavailableError: This kernel does not list its TCP sockets.
    """

    def __init__(self, server_ports: Collection[int]) -> None:
        self._is_server = np.zeros(1 << 16, dtype=bool)
        self._is_server[list(server_ports)] = True
        self._socket: socket.socket | None = None
        try:
            self._open()
            for _ in self._dump(socket.AF_INET, states=0):
                pass
        except OSError as error:
            self.close()
            raise ProbeUnavailableError(
                f"the kernel does not list its TCP sockets (sock_diag): {error.strerror}",
                fix="modprobe tcp_diag (CONFIG_INET_DIAG)",
            ) from error

    def read(self, is_enough: Callable[[], bool] = never) -> Snapshot | None:
        """Looks at every socket.

        Args:
            is_enough: Asked after each message of the kernel; when it says so the walk ends.

        Returns:
            None when it ended before it had seen all.

        Raises:
            OSError: As the kernel says.
        """
        sums = _Sums(self._is_server)
        for family in (socket.AF_INET, socket.AF_INET6):
            try:
                for words in self._dump(family):
                    if is_enough():
                        self._open()  # what is left of the list goes with the socket
                        return None
                    sums.add(words)
            except FileNotFoundError:  # no IPv6 in this kernel
                if family == socket.AF_INET:
                    raise
        return sums.snapshot()

    def _open(self) -> None:
        self.close()
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG
        )
        self._socket.settimeout(_TIMEOUT_S)

    def close(self) -> None:
        """Closes the socket; may be called twice."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _dump(self, family: int, states: int = _STATES) -> Iterator[Words]:
        """The kernel's messages about the sockets of a family, many at a time, as 32-bit words."""
        assert self._socket is not None
        values = (_SOCK_DIAG_BY_FAMILY, _DUMP_REQUEST, 0, 0, family, socket.IPPROTO_TCP)
        self._socket.send(_REQUEST.pack(_REQUEST.size, *values, _EXTENSIONS, states))
        is_done = False
        while not is_done:
            buffer = bytearray(_BUFFER_BYTES)
            view, end = memoryview(buffer), 0
            while not is_done and end + _MESSAGE_BYTES <= len(buffer):
                got = self._socket.recv_into(view[end:])
                is_done = _is_last(buffer, end)
                end += 0 if is_done else got
            yield np.frombuffer(buffer, dtype=np.uint32, count=end // 4)


def _is_last(buffer: bytearray, at: int) -> bool:
    """Whether a message ends the list.

    Raises:
        OSError: It says that the kernel failed.
    """
    (kind,) = struct.unpack_from("=H", buffer, at + 4)
    if kind == _NLMSG_DONE:
        return True
    if kind == _NLMSG_ERROR:
        (code,) = struct.unpack_from("=i", buffer, at + _HEADER_BYTES)
        raise OSError(-code, os.strerror(-code) if code else errno.errorcode.get(-code, ""))
    return False


def _starts(words: Words) -> Words:
    """Where each message begins, as indices of words."""
    lengths_at, end, at, starts = _LENGTH.unpack_from, 4 * len(words), 0, []
    buffer = words.data.cast("B")
    while at + _ATTRIBUTES_AT <= end:
        (length,) = lengths_at(buffer, at)
        if length < _ATTRIBUTES_AT:
            break
        starts.append(at)
        at += (length + 3) & ~3
    return np.array(starts, dtype=np.int64) // 4


def _attributes(words: Words, start: int) -> list[tuple[int, int, int]]:
    """(kind, index of the word behind its header, bytes) of each attribute of a message."""
    raw = words[start : start + int(words[start] + 3) // 4].tobytes()
    found, at = [], _ATTRIBUTES_AT
    while at + 4 <= len(raw):
        length, kind = _ATTRIBUTE.unpack_from(raw, at)
        if length < 4:
            break
        found.append((kind, (at + 4) // 4, length - 4))
        at += (length + 3) & ~3
    return found


class _Sums:
    """Adds up messages."""

    def __init__(self, is_server: npt.NDArray[np.bool_]) -> None:
        self._is_server = is_server
        self._sums = np.zeros(SIDES_COUNT * STATES_COUNT, dtype=STATE_SUMS)
        self._groups: dict[tuple[int, int, int], int] = {}
        self._listeners: list[SeenListener] = []
        self._half_open: dict[int, int] = {}

    def add(self, words: Words) -> None:
        """Adds messages, together those whose attributes are at the same places."""
        starts = _starts(words)
        while len(starts):
            first = int(starts[0])
            layout = _attributes(words, first)
            same = words[starts] == words[first]
            for _, at, _ in layout:
                same &= words[np.where(same, starts, first) + at - 1] == words[first + at - 1]
            places = {kind: at for kind, at, length in layout if _is_long_enough(kind, length)}
            self._add_alike(words, starts[same], places)
            starts = starts[~same]

    def _add_alike(self, words: Words, starts: Words, places: dict[int, int]) -> None:
        octets, halves = words.view(np.uint8), words.view(">u2")
        head = _HEADER_BYTES // 4
        state = octets[4 * (starts + head) + 1].astype(np.int64)
        local = halves[2 * (starts + head + 1)].astype(np.int64)
        remote = halves[2 * (starts + head + 1) + 1].astype(np.int64)
        if _SKMEMINFO not in places:
            # A socket without buffers: a request is shown in SYN_RECV, one in TIME_WAIT in the
            # state that it had before.
            state = np.where(state == _SYN_RECV, _NEW_SYN_RECV, _TIME_WAIT)
        side = np.where(self._is_server[local], _SERVER, 0)
        side = np.where((side == 0) & self._is_server[remote], _CLIENT, side)
        index = side * STATES_COUNT + (state & (STATES_COUNT - 1))
        self._sum("sockets", index, np.ones(len(index)))
        self._count_groups(words, starts, remote, side)
        if _SKMEMINFO not in places:
            for port in local[state == _NEW_SYN_RECV].tolist():
                self._half_open[port] = self._half_open.get(port, 0) + 1
            return
        self._add_memory(words, starts + places[_SKMEMINFO], index)
        if _INFO in places:
            carries = state == _ESTABLISHED
            self._add_traffic(words, starts[carries] + places[_INFO], index[carries])
        for start in starts[state == _LISTEN].tolist():
            self._add_listener(words[start:], int(words[start + places[_SKMEMINFO] + _DROPS]))

    def _sum(self, field: str, index: Words, values: Words) -> None:
        total = np.bincount(index, weights=values, minlength=len(self._sums))
        self._sums[field] += total.astype(self._sums[field].dtype)

    def _add_memory(self, words: Words, at: Words, index: Words) -> None:
        self._sum("full_sockets", index, np.ones(len(index)))
        for field, word in (
            ("rmem_alloc", _RMEM_ALLOC),
            ("wmem_alloc", _WMEM_ALLOC),
            ("wmem_queued", _WMEM_QUEUED),
            ("forward_alloc", _FORWARD_ALLOC),
            ("sndbuf", _SNDBUF),
            ("rcvbuf", _RCVBUF),
        ):
            values = words.view(np.int32)[at + word]
            self._sum(field, index, values)
            if f"{field}_max" in STATE_SUMS.fields:  # type: ignore[operator]  # a structured type
                np.maximum.at(self._sums[f"{field}_max"], index, values)

    def _add_traffic(self, words: Words, at: Words, index: Words) -> None:
        low, high = (0, 1) if sys.byteorder == "little" else (1, 0)
        for field, offset in (("data_segs_out", _DATA_SEGS_OUT), ("data_segs_in", _DATA_SEGS_IN)):
            self._sum(field, index, words[at + offset // 4])
        for field, offset in (("bytes_sent", _BYTES_SENT), ("bytes_received", _BYTES_RECEIVED)):
            word = at + offset // 4
            self._sum(field, index, words[word + low] + words[word + high] * 2.0**32)

    def _count_groups(self, words: Words, starts: Words, remote: Words, side: Words) -> None:
        head = _HEADER_BYTES // 4
        family = words.view(np.uint8)[4 * (starts + head)]
        ours = (side == _CLIENT) & (family == socket.AF_INET)
        source, destination = words[starts[ours] + head + 2], words[starts[ours] + head + 6]
        keys = np.stack([source, destination, remote[ours].astype(np.uint32)], axis=1)
        found, counts = np.unique(keys, axis=0, return_counts=True)
        for key, count in zip(map(tuple, found.tolist()), counts.tolist(), strict=True):
            self._groups[key] = self._groups.get(key, 0) + count

    def _add_listener(self, message: Words, drops: int) -> None:
        body = message[_HEADER_BYTES // 4 :]
        family = int(body.view(np.uint8)[0])
        port = int(body.view(">u2")[2])
        address = dotted(tuple(int(word) for word in body[2:6]), family)
        queue, backlog, inode = int(body[14]), int(body[15]), int(body[17])
        self._listeners.append(SeenListener(address, port, inode, queue, backlog, 0, drops))

    def snapshot(self) -> Snapshot:
        """What was added up."""
        sharing: dict[int, int] = {}
        for each in self._listeners:
            sharing[each.port] = sharing.get(each.port, 0) + 1
        listeners = [
            each._replace(half_open_count=self._half_open.get(each.port, 0) // sharing[each.port])
            for each in self._listeners
        ]
        groups = [
            PortGroup(dotted_ipv4(source), dotted_ipv4(destination), port, count)
            for (source, destination, port), count in self._groups.items()
        ]
        sums = self._sums.reshape(SIDES_COUNT, STATES_COUNT)
        return Snapshot(sums, listeners, groups, 0)


def _is_long_enough(kind: int, length: int) -> bool:
    return length >= {_INFO: _TCP_INFO_LEAST_BYTES, _SKMEMINFO: 36}.get(kind, 0)
