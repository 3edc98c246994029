"""Moves a thread into another network namespace: setns(2)."""

from __future__ import annotations

import ctypes
import os

CLONE_NEWNET = 0x40000000  # include/uapi/linux/sched.h
_libc = ctypes.CDLL(None, use_errno=True)


def enter(namespace_fd: int) -> None:
    """Moves the calling thread into a network namespace.

    Args:
        namespace_fd: Of ``/proc/PID/ns/net``, or what it refers to.

    Raises:
        OSError: Not permitted, or not a namespace.
    """
    if _libc.setns(namespace_fd, CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"setns: {os.strerror(number)}")
