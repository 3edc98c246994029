"""What the threads of a process wait for: the call of each, and whose answer it needs.

Measures:
    Of each thread of a process: the system call that it sleeps in, and what that waits for: a
    connection of the server's own port, another TCP or UDP socket with its address, a Unix socket,
    a lock (futex), the event loop's poll, an accept, a pipe, time. Threads with the same answer are
    one row with their number (table ``thread_waits``).
Hook:
    ``/proc/PID/task/TID/stat``, ``syscall`` and ``comm`` (proc(5)); the descriptor that the call
    names by its link in ``/proc/PID/fd``, its socket by ``probes/netlink/socket_dump.py``; the
    first descriptors of poll(2) are read from the process's memory (process_vm_readv(2)), eight at
    most.
Cost:
    About 30 us a thread; at most ``THREADS_MOST`` of a process. Only while connections do not get
    through.
Misses:
    Threads beyond ``THREADS_MOST``. A coroutine waits in no thread. What a futex stands for, and
    the descriptors of select(2). Without root, threads of other users.
Checked against:
    Threads that wait in recv, poll, a lock and a name look-up
    (tests/probes/samplers/test_thread_waits.py).
"""

from __future__ import annotations

import ctypes
import os
import re
import stat
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from probes.proc import stat_text
from probes.proc.syscall_names import syscall_name

THREADS_MOST = 256
ROWS_MOST = 32
_NAME_PORT = 53
_POLL_FDS_MOST = 8
_POLLFD = struct.Struct("=ihh")
_LINK = re.compile(r"(\w+):\[?(\d+)\]?")
_DIGITS = re.compile(r"\d+$")

_FD_CALLS = frozenset(
    [
        "read",
        "readv",
        "recvfrom",
        "recvmsg",
        "recvmmsg",
        "write",
        "writev",
        "sendto",
        "sendmsg",
        "sendmmsg",
        "connect",
    ]
)
_POLL_CALLS = frozenset(("poll", "ppoll"))
_EVENT_CALLS = frozenset(
    ("epoll_wait", "epoll_pwait", "epoll_pwait2", "select", "pselect6", "io_uring_enter")
)
_SLEEP_CALLS = frozenset(("nanosleep", "clock_nanosleep"))


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What a socket is, as far as a waiting thread is concerned.

    Attributes:
        kind: ``own_connection``, ``listener``, ``remote``, ``name_server`` or ``unix``.
        address: ``127.0.0.1:5432`` or a path, '' where it has none.
    """

    kind: str
    address: str = ""


@dataclass(frozen=True, slots=True)
class Wait:
    """What one thread waits for.

    Attributes:
        thread_name: Its comm without the digits at its end.
        is_main: It is the process's first thread.
        call: System call, '' when it is in none or that is hidden.
        kind: A kind of ``Endpoint``, or ``event_loop``, ``accept``, ``lock``, ``sleep``, ``pipe``,
            ``running``, ``other``.
        address: Of the endpoint.
    """

    thread_name: str
    is_main: bool
    call: str
    kind: str
    address: str = ""


def remote_kind(port: int) -> str:
    """The kind of a socket to another address: whoever answers on port 53 is a name server."""
    return "name_server" if port == _NAME_PORT else "remote"


def waits_of(pid: int, sockets: Mapping[int, Endpoint]) -> list[tuple[Wait, int]]:
    """What a process's threads wait for, the most frequent first.

    Args:
        pid: The process.
        sockets: What each socket is, by inode.

    Returns:
        At most ``ROWS_MOST`` different waits with their number of threads.
    """
    try:
        threads = os.listdir(f"/proc/{pid}/task")[:THREADS_MOST]  # noqa: PTH208 - names only
    except OSError:
        return []
    counts: Counter[Wait] = Counter()
    for thread in threads:
        wait = _wait_of(pid, int(thread), sockets)
        if wait is not None:
            counts[wait] += 1
    return counts.most_common(ROWS_MOST)


def _wait_of(pid: int, tid: int, sockets: Mapping[int, Endpoint]) -> Wait | None:
    folder = f"/proc/{pid}/task/{tid}"
    stat = _read(f"{folder}/stat")
    if not (state := stat_text.state_of(stat)):
        return None
    name, is_main = _DIGITS.sub("", stat_text.name_of(stat)), tid == pid
    if state == "R":
        return Wait(name, is_main, "", "running")
    words = _read(f"{folder}/syscall").split()
    if not words or not words[0].isdigit():
        return Wait(name, is_main, "", "other")
    call = syscall_name(int(words[0]))
    arguments = [int(word, 16) for word in words[1:4]]
    if call == "futex":
        return Wait(name, is_main, call, "lock")
    if call in _EVENT_CALLS:
        return Wait(name, is_main, call, "event_loop")
    if call in _SLEEP_CALLS:
        return Wait(name, is_main, call, "sleep")
    if call in ("accept", "accept4"):
        return Wait(name, is_main, call, "accept")
    fds: list[int] = []
    if call in _FD_CALLS and arguments:
        fds = [arguments[0]]
    elif call in _POLL_CALLS and len(arguments) > 1:
        fds = _polled(pid, arguments[0], arguments[1])
    ends = [end for fd in fds if (end := _endpoint(pid, fd, sockets)) is not None]
    for end in ends:
        if end.kind == "listener":
            return Wait(name, is_main, call, "event_loop")
    if len(ends) > 1 and call in _POLL_CALLS and len({end.address for end in ends}) > 1:
        return Wait(name, is_main, call, "event_loop")
    if ends:
        return Wait(name, is_main, call, ends[0].kind, ends[0].address)
    return Wait(name, is_main, call, "other")


def _endpoint(pid: int, fd: int, sockets: Mapping[int, Endpoint]) -> Endpoint | None:
    try:
        link = os.readlink(f"/proc/{pid}/fd/{fd}")  # noqa: PTH115 - a link of procfs
    except OSError:
        return None
    match = _LINK.fullmatch(link)
    if match is None:
        return Endpoint("pipe") if _is_fifo(f"/proc/{pid}/fd/{fd}") else None
    if match[1] == "pipe":
        return Endpoint("pipe")
    return sockets.get(int(match[2])) if match[1] == "socket" else None


def _is_fifo(path: str) -> bool:
    """A pipe with a name: its link is that name. Looking at it opens nothing."""
    try:
        return stat.S_ISFIFO(os.stat(path).st_mode)  # noqa: PTH116 - follows a link of procfs
    except OSError:
        return False


def _polled(pid: int, address: int, count: int) -> list[int]:
    """Descriptors that a thread polls, read from its memory; empty when that is not allowed."""
    count = min(count, _POLL_FDS_MOST)
    data = _remote_bytes(pid, address, count * _POLLFD.size)
    return [fd for fd, _, _ in _POLLFD.iter_unpack(data) if fd >= 0]


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


def _remote_bytes(pid: int, address: int, size: int) -> bytes:
    """Bytes of another process's memory, b"" when they are not there or not to be read."""
    if size <= 0 or address <= 0:
        return b""
    buffer = ctypes.create_string_buffer(size)
    local = _Iovec(ctypes.cast(buffer, ctypes.c_void_p), size)
    remote = _Iovec(address, size)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.process_vm_readv.restype = ctypes.c_ssize_t
    got = libc.process_vm_readv(
        ctypes.c_int(pid),
        ctypes.byref(local),
        ctypes.c_ulong(1),
        ctypes.byref(remote),
        ctypes.c_ulong(1),
        ctypes.c_ulong(0),
    )
    return buffer.raw if got == size else b""


def _read(path: str) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(fd, 1024)
    except OSError:
        return b""
    finally:
        os.close(fd)
