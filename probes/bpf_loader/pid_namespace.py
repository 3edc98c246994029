"""The pid namespace of this process, and what eBPF has to know of it.

The kernel's own number of a process, which eBPF programs see, is that of the first pid namespace.
In any other one, as in a container, a process has a number of its own, and that is what /proc,
``os.getpid()`` and people say. Every task has both (``struct pid``, kernel/pid.c): programs read
that of the namespace which this process is in.

Source: pid_namespaces(7), namespaces(7); include/linux/pid.h; include/linux/proc_ns.h
(PROC_PID_INIT_INO).
"""

from __future__ import annotations

import os
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:  # the supervisor asks here too, and stays without numpy
    from probes.bpf_loader.btf import Btf

FIRST_INODE = 0xEFFFFFFC
"""PROC_PID_INIT_INO: the pid namespace that the kernel made."""


class Numbers(NamedTuple):
    """Where a task's numbers are in ``struct pid``, in bytes.

    Attributes:
        at: The first one, of the first namespace.
        size: From one to the next.
        number_at: The number within one.
        namespace_at: The pointer to its namespace within one.
    """

    at: int
    size: int
    number_at: int
    namespace_at: int


@cache
def is_first() -> bool:
    """Whether this process is in the first pid namespace; True where that cannot be known."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino == FIRST_INODE  # noqa: PTH116 - a link of procfs
    except OSError:
        return True


def numbers(btf: Btf) -> Numbers:
    """Where this kernel keeps the numbers of a task.

    Raises:
        MissingTypeError: Elsewhere than any kernel since 2.6.24 does.
    """
    return Numbers(
        btf.field("pid", "numbers").offset_bytes,
        btf.size_bytes("upid"),
        btf.field("upid", "nr").offset_bytes,
        btf.field("upid", "ns").offset_bytes,
    )


def proc_is_of_another() -> bool:
    """Whether /proc shows another pid namespace than the one that this process is in.

    So it is after ``unshare --pid`` without ``--mount-proc``, and in a container that got the
    host's /proc: the numbers in it are not those that ``os.getpid()`` and signals mean.
    """
    try:
        return os.readlink("/proc/self") != str(os.getpid())  # noqa: PTH115 - a link of procfs
    except OSError:
        return False  # no /proc, or one in which this process has no number: others say so
