"""Who stands behind root: the user that called sudo, doas or pkexec.

What a command writes is that user's, and a folder of that user's is the caller's own. Who is root
without any of these (a login, ``su``, a service, a container) is nobody else. Numbers are enough
for an owner; ``harness/foreign/command_user.py`` needs the name that a server command is started
as, and refuses a user that is gone. Both have what ``told_caller`` reads.

Source: sudo(8) "Environment" (SUDO_UID, SUDO_GID, SUDO_USER), doas(1) (DOAS_USER), pkexec(1)
(PKEXEC_UID). They are believed of root alone: anybody may set them, but only for processes with his
own rights.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Mapping
from dataclasses import dataclass

_PROGRAMS = (("SUDO_UID", "SUDO_GID", "SUDO_USER"), ("", "", "DOAS_USER"), ("PKEXEC_UID", "", ""))
"""Variables with number, group and name of who called, by program."""
_MOST_ID = (1 << 32) - 2
"""Beyond is -1, which chown(2) takes for "leave it"."""
_UNKNOWN = -1


@dataclass(frozen=True, slots=True)
class CallingUser:
    """A user that is not root.

    Attributes:
        uid: Above 0.
        gid: Primary group.
    """

    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class ToldCaller:
    """What a program that gives root says of who called it.

    Attributes:
        said: Variable and value, for people.
        uid: Number, -1 when it is none.
        gid: Group, -1 when it is not known.
        name: '' when no user has this number, or this name.
    """

    said: str
    uid: int
    gid: int
    name: str


def told_caller(environment: Mapping[str, str]) -> ToldCaller | None:
    """Who called as the environment has it, root too; None when no such program started this."""
    for uid_key, gid_key, name_key in _PROGRAMS:
        number, name = environment.get(uid_key, ""), environment.get(name_key, "")
        if not number and not name:
            continue
        key = name_key if name else uid_key
        uid = _number(number) if number else _UNKNOWN
        entry = _entry(name, uid)
        if entry is not None and not number:
            uid = entry.pw_uid
        gid = _number(environment.get(gid_key, ""))
        if gid <= 0 and entry is not None:
            gid = entry.pw_gid
        known_as = entry.pw_name if entry is not None else ""
        return ToldCaller(f"{key}={environment[key]!r}", uid, gid, known_as)
    return None


def calling_user(environment: Mapping[str, str] | None = None) -> CallingUser | None:
    """The user behind root, None where that is the user of this process.

    A number without a group that no user has is nobody's: nothing is given to it.

    Args:
        environment: ``os.environ`` when None.
    """
    if os.geteuid() != 0:
        return None
    told = told_caller(os.environ if environment is None else environment)
    if told is None or told.uid <= 0 or told.gid < 0:
        return None
    return CallingUser(told.uid, told.gid)


def _number(text: str) -> int:
    number = int(text) if text.isascii() and text.isdigit() and len(text) <= 10 else _UNKNOWN
    return number if number <= _MOST_ID else _UNKNOWN


def _entry(name: str, uid: int) -> pwd.struct_passwd | None:
    try:
        return pwd.getpwnam(name) if name else pwd.getpwuid(uid)
    except (KeyError, ValueError, OverflowError):
        return None


def own_uids() -> frozenset[int]:
    """Whose files are the caller's own: root's, this process's, and those of who called sudo."""
    behind = calling_user()
    return frozenset({0, os.geteuid()} | ({behind.uid} if behind is not None else set()))
