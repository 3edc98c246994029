"""``call_filter.py COMMAND``: runs a command without the calls that container engines refuse.

A classic BPF program (seccomp(2)) on x86-64 and arm64. The list is what Docker's default profile
(moby, profiles/seccomp/default.json) leaves to nobody or to CAP_SYS_ADMIN, CAP_BPF and CAP_PERFMON
alone, of the calls that connscope and its fleet might make; ``clone3`` gets ENOSYS as there, since
its flags cannot be looked at.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys

REFUSED = {
    "x86_64": {
        "mount": 165, "umount2": 166, "pivot_root": 155, "unshare": 272, "setns": 308, "bpf": 321,
        "perf_event_open": 298, "kcmp": 312, "userfaultfd": 323, "io_uring_setup": 425,
        "open_by_handle_at": 304, "name_to_handle_at": 303, "quotactl": 179, "keyctl": 250,
        "lookup_dcookie": 212, "fanotify_init": 300, "syslog": 103, "sethostname": 170,
    },
    "aarch64": {
        "mount": 40, "umount2": 39, "pivot_root": 41, "unshare": 97, "setns": 268, "bpf": 280,
        "perf_event_open": 241, "kcmp": 272, "userfaultfd": 282, "io_uring_setup": 425,
        "open_by_handle_at": 265, "name_to_handle_at": 264, "quotactl": 60, "keyctl": 219,
        "lookup_dcookie": 18, "fanotify_init": 262, "syslog": 116, "sethostname": 161,
    },
}  # fmt: skip
_CLONE3 = 435
_PR_SET_SECCOMP, _FILTER_MODE = 22, 2
_LOAD_NUMBER = (0x20, 0, 0, 0)  # BPF_LD | BPF_W | BPF_ABS: seccomp_data.nr
_ALLOW = 0x7FFF0000
_WITH_ERRNO = 0x00050000


def program(machine: str) -> list[tuple[int, int, int, int]]:
    """Instructions: code, jump if true, jump if false, operand."""
    answers = [(number, errno.EPERM) for number in REFUSED[machine].values()]
    instructions = [_LOAD_NUMBER]
    for number, answer in (*answers, (_CLONE3, errno.ENOSYS)):
        instructions.append((0x15, 0, 1, number))  # BPF_JMP | BPF_JEQ | BPF_K
        instructions.append((0x06, 0, 0, _WITH_ERRNO | answer))  # BPF_RET | BPF_K
    return [*instructions, (0x06, 0, 0, _ALLOW)]


def install() -> None:
    """For this process and all that it becomes or starts. Needs CAP_SYS_ADMIN."""
    instructions = program(platform.machine())
    packed = b"".join(struct.pack("HBBI", *each) for each in instructions)
    held = ctypes.create_string_buffer(packed)
    described = struct.pack("HxxxxxxQ", len(instructions), ctypes.addressof(held))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_SECCOMP, _FILTER_MODE, described, 0, 0):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


if __name__ == "__main__":
    install()
    os.execvp(sys.argv[1], sys.argv[1:])
