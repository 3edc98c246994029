"""Leaves a process of ours only the system calls that it needs: seccomp(2), filter mode.

All others fail with EPERM. What is allowed is told by name; the numbers are those of x86-64 and of
the architectures that share the generic table (aarch64, riscv64, loongarch64). Where they are not
known no filter is installed, and ``install`` says so. A filter is inherited, stays until the
process ends, and needs no_new_privs.

Source: seccomp(2), Documentation/userspace-api/seccomp_filter.rst; include/uapi/linux/{seccomp,
filter,audit}.h; arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/asm-generic/unistd.h.
"""

from __future__ import annotations

import ctypes
import errno
import platform
import struct
from collections.abc import Collection, Iterable

_NUMBERS = {  # x86-64, generic; -1: there is none
    "read": (0, 63),
    "write": (1, 64),
    "close": (3, 57),
    "fstat": (5, 80),
    "lseek": (8, 62),
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "munmap": (11, 215),
    "brk": (12, 214),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "ioctl": (16, 29),
    "pread64": (17, 67),
    "sched_yield": (24, 124),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "dup2": (33, -1),
    "getpid": (39, 172),
    "sendmsg": (46, 211),
    "recvmsg": (47, 212),
    "clone": (56, 220),
    "fork": (57, -1),
    "exit": (60, 93),
    "wait4": (61, 260),
    "fcntl": (72, 25),
    "getppid": (110, 173),
    "prctl": (157, 167),
    "setrlimit": (160, 164),
    "gettid": (186, 178),
    "futex": (202, 98),
    "restart_syscall": (219, 128),
    "clock_gettime": (228, 113),
    "exit_group": (231, 94),
    "tgkill": (234, 131),
    "newfstatat": (262, 79),
    "set_robust_list": (273, 99),
    "dup3": (292, 24),
    "prlimit64": (302, 261),
    "getrandom": (318, 278),
    "rseq": (334, 293),
}
_ARCHITECTURES = {  # AUDIT_ARCH_*, column of the numbers
    "x86_64": (0xC000003E, 0),
    "aarch64": (0xC00000B7, 1),
    "riscv64": (0xC00000F3, 1),
    "loongarch64": (0xC0000102, 1),
}
_LOAD_WORD, _JUMP_EQUAL, _RETURN = 0x20, 0x15, 0x06  # BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_RET|K
_NUMBER_AT, _ARCHITECTURE_AT = 0, 4  # struct seccomp_data
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 22, 2
_INSTRUCTION = struct.Struct("=HBBI")


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def install(calls: Collection[str]) -> bool:
    """Leaves this process these calls alone; ``privileges.gain_nothing`` must have come before.

    Args:
        calls: Their names.

    Returns:
        Whether the kernel has taken it.
    """
    code = program(calls, platform.machine())
    if not code:
        return False
    told = _Program(len(code) // _INSTRUCTION.size, code)
    libc = ctypes.CDLL(None, use_errno=True)
    return bool(libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(told), 0, 0) == 0)


def program(calls: Collection[str], machine: str) -> bytes:
    """The filter as the kernel takes it; b"" for a machine whose numbers are not known.

    Calls of another architecture (``int 0x80`` of an x86-64 process) end the process.

    Raises:
        KeyError: There is no such name in the table here.
    """
    if machine not in _ARCHITECTURES:
        return b""
    architecture, column = _ARCHITECTURES[machine]
    numbers = sorted(number for name in calls if (number := _NUMBERS[name][column]) >= 0)
    return b"".join(_instructions(architecture, numbers))


def _instructions(architecture: int, numbers: list[int]) -> Iterable[bytes]:
    yield _INSTRUCTION.pack(_LOAD_WORD, 0, 0, _ARCHITECTURE_AT)
    yield _INSTRUCTION.pack(_JUMP_EQUAL, 1, 0, architecture)
    yield _INSTRUCTION.pack(_RETURN, 0, 0, _KILL)
    yield _INSTRUCTION.pack(_LOAD_WORD, 0, 0, _NUMBER_AT)
    for left_count, number in zip(range(len(numbers), 0, -1), numbers, strict=True):
        yield _INSTRUCTION.pack(_JUMP_EQUAL, left_count, 0, number)
    yield _INSTRUCTION.pack(_RETURN, 0, 0, _ERRNO | errno.EPERM)
    yield _INSTRUCTION.pack(_RETURN, 0, 0, _ALLOW)
