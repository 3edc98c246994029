"""How a process waits for events of a socket: what its epoll descriptors say.

Measures:
    Whether a socket is in an epoll of the process, and whether it is told of events as long as they
    stand (level), only once (EPOLLET), or not at all.
Hook:
    ``/proc/PID/fdinfo/FD`` of each epoll descriptor: a line ``tfd: N events: MASK ... ino: INODE``
    for each socket in it (fs/eventpoll.c, ep_show_fdinfo; ``ino`` since Linux 4.12).
Cost:
    About 1 us for each descriptor in the epoll, while its mutex is held: events of the process wait
    as long. So it is asked for a few times a process, and ``_LINES_MOST_BYTES`` are read at most.
Misses:
    Sockets beyond these bytes, io_uring, poll and select. Without root, processes of other users.
Checked against:
    Listeners in epolls of this process (tests/probes/proc/test_epoll_watch.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

EDGE, LEVEL, OFF, NONE = "edge", "level", "off", "none"

_EPOLLIN, _EPOLLET = 0x1, 1 << 31
_LINES_MOST_BYTES = 1 << 20
_LINE = re.compile(rb"^tfd:\s*\d+ events:\s*([0-9a-f]+) .*\bino:([0-9a-f]+)\b", re.MULTILINE)


def watches(pid: int, epoll_fds: Iterable[int], inodes: Iterable[int]) -> dict[int, str]:
    """How a process waits for events of its sockets.

    Args:
        pid: The process.
        epoll_fds: Its epoll descriptors.
        inodes: Of the sockets.

    Returns:
        By inode ``edge``, ``level``, ``off`` or ``none``; empty where no epoll of it can be read.
    """
    wanted = set(inodes)
    found: dict[int, str] = {}
    is_read = False
    for fd in epoll_fds:
        text = _fdinfo(pid, fd)
        is_read = is_read or text is not None
        for mask, inode in _LINE.findall(text or b""):
            if (number := int(inode, 16)) in wanted:
                found[number] = _stronger(found.get(number), _watch_of(int(mask, 16)))
    return {inode: found.get(inode, NONE) for inode in wanted} if is_read else {}


def _watch_of(mask: int) -> str:
    if not mask & _EPOLLIN:
        return OFF
    return EDGE if mask & _EPOLLET else LEVEL


def _stronger(one: str | None, other: str) -> str:
    """Of several epolls the one that tells more often."""
    order = (LEVEL, EDGE, OFF)
    return other if one is None else min(one, other, key=order.index)


def _fdinfo(pid: int, fd: int) -> bytes | None:
    try:
        with Path(f"/proc/{pid}/fdinfo/{fd}").open("rb") as stream:
            return stream.read(_LINES_MOST_BYTES)
    except OSError:
        return None
