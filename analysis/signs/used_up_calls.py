"""Calls of the server that failed for each connection that it let in no more: what they ask for.

Of some errors it is sure that a number is used up, and which: inotify has its own EMFILE, a full
file system and a full table of terminals say ENOSPC. Frames in, small records out. Pure.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass

from analysis.signs.signs import Signs

_SOON_S = 1.0
_EACH_SHARE = 0.5
"""Of those that were kept out for so many it failed; one may try it twice, or ask only some."""
_INOTIFY = ("inotify_init", "inotify_init1")
_BY_CALL = {
    (each, errno.EMFILE): (
        "sysctl -w fs.inotify.max_user_instances=8192  # now: sysctl fs.inotify",
        "the user may have more of inotify",
    )
    for each in _INOTIFY
}
_BY_CALL |= {
    ("inotify_add_watch", errno.ENOSPC): (
        "sysctl -w fs.inotify.max_user_watches=1048576  # now: sysctl fs.inotify",
        "the user may watch more files",
    ),
    ("epoll_ctl", errno.ENOSPC): (
        "sysctl -w fs.epoll.max_user_watches=10000000  # now: sysctl fs.epoll",
        "the user may have more descriptors in epoll",
    ),
    ("shmget", errno.ENOSPC): ("sysctl -w kernel.shmmni=32768", "there is room for more segments"),
    ("semget", errno.ENOSPC): ("ipcs -u; sysctl kernel.sem", "there is room for more semaphores"),
    ("openat", errno.ENOSPC): (
        "df -h; df -i  # a full file system; of terminals: sysctl kernel.pty",
        "there is room for one more file or terminal",
    ),
}
_FULL_DISK = (
    "df -h; df -i  # and make room, or write elsewhere",
    "there is room for what it writes",
)
_ERRNOS = (errno.ENOSPC, errno.EDQUOT)
_NAMES = {
    errno.ENOSPC: "ENOSPC (no space left)",
    errno.EDQUOT: "EDQUOT (a quota is used up)",
    errno.EMFILE: "EMFILE (of inotify, not of its descriptors)",
}


@dataclass(frozen=True, slots=True)
class UsedUp:
    """A call that failed since what it asks for is used up.

    Attributes:
        syscall: Which.
        errno_name: What it returned, and in words.
        count: How often, from about then on.
        first_s: When first.
        fix: What shows or raises it.
        effect: What that does.
    """

    syscall: str
    errno_name: str
    count: int
    first_s: float
    fix: str
    effect: str


def is_of_another_limit(syscall: str, code: int) -> bool:
    """EMFILE that says nothing of RLIMIT_NOFILE (fs/notify/inotify/inotify_user.c)."""
    return syscall in _INOTIFY and code == errno.EMFILE


def used_up(signs: Signs, pid: int, first_s: float, kept_out: int) -> UsedUp | None:
    """What failed for those that a process kept out from a moment on, None for nothing."""
    rows = signs.errors
    is_then = rows["first_s"].between(first_s - _SOON_S, first_s + _SOON_S)
    rows = rows[(rows["pid"] == pid) & is_then]
    rows = rows[rows["event_count"] >= max(1, _EACH_SHARE * kept_out)]
    for row in rows.sort_values("event_count", ascending=False).to_dict("records"):
        syscall, code = str(row["syscall"]), int(row["errno"])
        known = _BY_CALL.get((syscall, code)) or (_FULL_DISK if code in _ERRNOS else None)
        if known is not None:
            name, count = _NAMES[code], int(row["event_count"])
            return UsedUp(syscall, name, count, float(row["first_s"]), *known)
    return None
