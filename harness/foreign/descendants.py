"""Signals for all below a process, none of which can reach a stranger.

A number is free as soon as its process was reaped, and may be anybody's. So each one is opened
first, and then looked at whether it is still what was found: a child of one of them. What a
descriptor refers to never changes (pidfd_open(2), pidfd_send_signal(2)).
"""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable, Collection
from contextlib import suppress

from probes.proc.process_tree import children_of, read_stat, tree_of

_PR_SET_CHILD_SUBREAPER, _PR_GET_CHILD_SUBREAPER = 36, 37
_libc = ctypes.CDLL(None, use_errno=True)


def adopt_orphans(*, is_one: bool = True) -> bool:
    """Makes this process the one that descendants come to when they lose their parent, or no more.

    Source: prctl(2), PR_SET_CHILD_SUBREAPER. It does not hold for its children.

    Returns:
        Whether it was one before.
    """
    before = ctypes.c_int()
    _libc.prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(before), 0, 0, 0)
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, int(is_one), 0, 0, 0)
    return bool(before.value)


def below(root_pid: int, *, spared: Collection[int] = ()) -> list[int]:
    """Living descendants of a process, parents before their children.

    Args:
        root_pid: The process.
        spared: Children of it that are left out with all below them.
    """
    children = [pid for pid in children_of(root_pid) if pid not in spared]
    return [pid for child in children for pid in tree_of(child)]


def signal_below(
    root_pid: int,
    number: signal.Signals,
    *,
    spared: Collection[int] = (),
    wanted: Callable[[int], bool] = lambda _pid: True,
) -> int:
    """Signals the descendants of a process.

    Args:
        root_pid: The process; it gets none.
        number: The signal.
        spared: Children of it that are left out with all below them.
        wanted: Which of the descendants get it.

    Returns:
        How many were there.
    """
    members = below(root_pid, spared=spared)
    parents = {root_pid, *members}
    for pid in members:
        if wanted(pid):
            send(pid, number, lambda each: getattr(read_stat(each), "ppid", 0) in parents)
    return len(members)


def send(pid: int, number: signal.Signals, is_meant: Callable[[int], bool]) -> None:
    """Signals a process, unless its number is somebody else's by now.

    Args:
        pid: The process, as it was found.
        number: The signal.
        is_meant: Asked once the process cannot be mistaken any more.
    """
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    except OSError:  # before Linux 5.3, or a filter of calls: the number is all that there is
        with suppress(ProcessLookupError, PermissionError):
            if is_meant(pid):
                os.kill(pid, number)
        return
    try:
        with suppress(ProcessLookupError, PermissionError):
            if is_meant(pid):
                signal.pidfd_send_signal(fd, number)
    finally:
        os.close(fd)
