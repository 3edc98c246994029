"""Lets a process of ours die with its parent: PR_SET_PDEATHSIG of prctl(2)."""

from __future__ import annotations

import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent(parent_pid: int, number: signal.Signals = signal.SIGKILL) -> None:
    """Asks the kernel for a signal when the parent dies, and exits at once if it already has.

    Must come after every change of credentials: those clear the setting; execve(2) of a program
    that gains nothing keeps it. And the signal is the parent's own: one that has become another
    user cannot send it to a child that is still root, which finds out here.

    Args:
        parent_pid: Who the parent was when this process was started, as that parent knew it, or
            read as early as possible: later os.getppid(2) may be whoever adopted this process.
        number: The signal.

    Raises:
        OSError: The kernel refused.
    """
    if _libc.prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"prctl: {os.strerror(error)}")
    if os.getppid() != parent_pid:
        os._exit(1)
