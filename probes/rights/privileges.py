"""What a process of ours may do, given up for good: prctl(2) and capset(2).

``PR_SET_NO_NEW_PRIVS`` lets no program that is executed later gain anything (setuid bits, file
capabilities), and is inherited. The bounding set is what could be gained at all. Both stay until
the process and all that it starts have ended, and /proc/PID/status shows them.

Source: capabilities(7), prctl(2), capset(2); include/uapi/linux/{capability,prctl}.h.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Collection
from pathlib import Path

CAPABILITIES = (
    "chown",
    "dac_override",
    "dac_read_search",
    "fowner",
    "fsetid",
    "kill",
    "setgid",
    "setuid",
    "setpcap",
    "linux_immutable",
    "net_bind_service",
    "net_broadcast",
    "net_admin",
    "net_raw",
    "ipc_lock",
    "ipc_owner",
    "sys_module",
    "sys_rawio",
    "sys_chroot",
    "sys_ptrace",
    "sys_pacct",
    "sys_admin",
    "sys_boot",
    "sys_nice",
    "sys_resource",
    "sys_time",
    "sys_tty_config",
    "mknod",
    "lease",
    "audit_write",
    "audit_control",
    "setfcap",
    "mac_override",
    "mac_admin",
    "syslog",
    "wake_alarm",
    "block_suspend",
    "audit_read",
    "perfmon",
    "bpf",
    "checkpoint_restore",
)
"""Names by bit number, without ``CAP_``."""

_PR_SET_DUMPABLE, _PR_SET_KEEPCAPS = 4, 8
_PR_CAPBSET_READ, _PR_CAPBSET_DROP = 23, 24
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 47, 4
_VERSION_3 = 0x20080522  # _LINUX_CAPABILITY_VERSION_3
_MOST_BITS = 64
_libc = ctypes.CDLL(None, use_errno=True)


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Data(ctypes.Structure):
    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


def bits_of(names: Collection[str]) -> int:
    """The set as /proc/PID/status writes it.

    Args:
        names: As in ``CAPABILITIES``.
    """
    return sum(1 << CAPABILITIES.index(name) for name in names)


def names_of(bits: int) -> list[str]:
    """The names in a set; a capability that is newer than this list is its number."""
    return [
        CAPABILITIES[bit] if bit < len(CAPABILITIES) else str(bit)
        for bit in range(_MOST_BITS)
        if bits >> bit & 1
    ]


def gain_nothing() -> None:
    """No program that this process or a child of it executes gains a right (no_new_privs)."""
    _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def outlive_user() -> None:
    """What this thread may do outlives the next change of its user (PR_SET_KEEPCAPS)."""
    _libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0)


def be_undumpable() -> None:
    """No process of the same user may trace this one or read its memory (prctl(2))."""
    _libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def bound_by(names: Collection[str] = ()) -> bool:
    """Takes all but these capabilities out of the bounding set, which needs CAP_SETPCAP.

    Those that the process has stay its own, until it gives them up or executes a program.

    Returns:
        Whether it was permitted.
    """
    kept, is_done = bits_of(names), True
    for bit in range(_MOST_BITS):
        present = _libc.prctl(_PR_CAPBSET_READ, bit, 0, 0, 0)
        if present < 0:
            break  # the kernel knows no more of them
        if present and not kept >> bit & 1:
            is_done &= _libc.prctl(_PR_CAPBSET_DROP, bit, 0, 0, 0) == 0
    return is_done


def keep_only(names: Collection[str] = ()) -> None:
    """Gives up all but these capabilities, of which it keeps those that it has; never fails."""
    _libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    kept = bits_of(names) & permitted()
    header, data = _Header(_VERSION_3, 0), (_Data * 2)()
    for half in range(2):
        word = kept >> 32 * half & 0xFFFF_FFFF
        data[half] = _Data(word, word, 0)
    _libc.capset(ctypes.byref(header), ctypes.byref(data))


def kept_by_reader(names: Collection[str]) -> Collection[str]:
    """What a process keeps that reads others: these, or all where it lacks CAP_SYS_PTRACE.

    Without that one it may read only who has no capability that it lacks itself (ptrace(2), access
    mode checking): root of a container would lose sight of a server that is root beside it.
    """
    return names if permitted() & bits_of({"sys_ptrace"}) else CAPABILITIES


def permitted() -> int:
    """What this process has, as a set of bits; 0 where that cannot be read."""
    header, data = _Header(_VERSION_3, 0), (_Data * 2)()
    if _libc.capget(ctypes.byref(header), ctypes.byref(data)) != 0:
        return 0
    return int(data[0].permitted) | int(data[1].permitted) << 32


def would_gain(program: Path, uid: int, gid: int) -> str:
    """What a user gains by executing a program: ``is setuid root``; '' for nothing.

    Args:
        program: A file; what a ``#!`` script has is ignored, by the kernel too.
        uid: The user.
        gid: The user's first group.
    """
    try:
        found, mount = program.stat(), os.statvfs(program)
        with program.open("rb") as stream:
            is_script = stream.read(2) == b"#!"
    except OSError:
        return ""
    if is_script or mount.f_flag & os.ST_NOSUID:
        return ""
    if found.st_mode & 0o4000 and found.st_uid != uid:
        return "is setuid"
    if found.st_mode & 0o2010 == 0o2010 and found.st_gid != gid:
        return "is setgid"
    try:
        has_own = bool(os.getxattr(program, "security.capability"))
    except OSError:  # no such attribute, or no such thing on this file system
        has_own = False
    return "has file capabilities" if has_own and uid != 0 else ""
