"""A user id of our own for processes that need no rights, which no other process has.

``nobody`` is shared: every daemon that runs as it may signal and trace every other (kill(2),
ptrace(2)). So a number is taken of the range that systemd keeps for users that nobody has named
(systemd.exec(5), DynamicUser=): one without a name, and of which no process is there. Its group has
the same number. Where there is none (a container that has not these numbers, user_namespaces(7))
it is ``nobody``.
"""

from __future__ import annotations

import grp
import os
import pwd
import re
import secrets
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from probes.rights import privileges

FIRST_ID, LAST_ID = 61_184, 65_519
_TRIALS_COUNT = 16
_IDS = re.compile(rb"^(?:Uid|Gid|Groups):[ \t]*(.*)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class OwnUser:
    """Whom a process of ours becomes.

    Attributes:
        uid: Above 0.
        gid: Its only group.
    """

    uid: int
    gid: int


def own_user(besides: Collection[int] = ()) -> OwnUser | None:
    """A user of our own, else ``nobody``; None where this process may become neither.

    Args:
        besides: Numbers that are taken already, though no process has them yet.
    """
    if os.geteuid() != 0:
        return None
    taken = ids_in_use() | set(besides)
    for _ in range(_TRIALS_COUNT):
        number = FIRST_ID + secrets.randbelow(LAST_ID - FIRST_ID + 1)
        if number not in taken and not _has_name(number) and can_become(OwnUser(number, number)):
            return OwnUser(number, number)
    try:
        entry = pwd.getpwnam("nobody")
    except KeyError:
        return None
    nobody = OwnUser(entry.pw_uid, entry.pw_gid)
    return nobody if can_become(nobody) else None


def become(user: OwnUser, keeps: Collection[str] = ()) -> None:
    """Becomes that user for good.

    Args:
        user: Whom.
        keeps: Capabilities that the calling thread has afterwards; others have none.

    Raises:
        OSError: It is not permitted, or there is no such number in this user namespace.
    """
    if keeps:
        privileges.outlive_user()
    os.setgroups([])
    os.setresgid(user.gid, user.gid, user.gid)
    os.setresuid(user.uid, user.uid, user.uid)
    if keeps:
        privileges.keep_only(keeps)


def can_become(user: OwnUser) -> bool:
    """Whether ``become`` works here.

    It does not without CAP_SETUID and CAP_SETGID, nor in a user namespace without those numbers, or
    in one that may not drop groups (user_namespaces(7)). That is read, not tried in a child: a
    process that has threads must not fork and go on in Python (Python 3.12 and later warn of it).

    Args:
        user: Whom.
    """
    own = Path("/proc/self")
    held = re.search(
        rb"^CapEff:\s*([0-9a-f]+)", Path("/proc/thread-self/status").read_bytes(), re.MULTILINE
    )
    needed = privileges.bits_of(("setuid", "setgid"))
    if held is None or int(held[1], 16) & needed != needed:
        return False
    try:
        if (own / "setgroups").read_bytes().strip() == b"deny":
            return False
        maps = (own / "uid_map").read_bytes(), (own / "gid_map").read_bytes()
    except FileNotFoundError:
        return True  # a kernel without user namespaces
    return all(
        has_number(text, number) for text, number in zip(maps, (user.uid, user.gid), strict=True)
    )


def has_number(id_map: bytes, number: int) -> bool:
    """Whether a user namespace has a user or group.

    Args:
        id_map: ``/proc/PID/uid_map``: first number inside, first outside, how many.
        number: Of the user or group, inside.
    """
    for line in id_map.split(b"\n"):
        words = line.split()
        if len(words) == 3 and 0 <= number - int(words[0]) < int(words[2]):
            return True
    return False


def ids_in_use() -> set[int]:
    """Users and groups of all processes that this one can see (proc(5), status)."""
    found: set[int] = set()
    for path in Path("/proc").glob("[0-9]*/status"):
        try:
            text = path.read_bytes()
        except OSError:
            continue  # it has ended
        for ids in _IDS.findall(text):
            found.update(map(int, ids.split()))
    return found


def _has_name(number: int) -> bool:
    for look_up in (pwd.getpwuid, grp.getgrgid):
        try:
            look_up(number)
        except KeyError:
            continue
        return True
    return False
