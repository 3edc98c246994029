"""Who stands behind root: the user that called sudo, doas or pkexec.

What a command writes is that user's, and a folder of that user's is the caller's own. Who is root
without any of these (a login, ``su``, a service, a container) is nobody else. Numbers are enough
for an owner; ``harness/command_user.py`` has the name that a server command is started as, and
refuses a user that is gone.

Source: sudo(8) "Environment" (SUDO_UID, SUDO_GID), doas(1) (DOAS_USER), pkexec(1) (PKEXEC_UID).
They are believed of root alone: anybody may set them, but only for processes with his own rights.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Mapping
from dataclasses import dataclass

_MOST_ID = (1 << 32) - 2
"""Beyond is -1, which chown(2) takes for "leave it"."""


@dataclass(frozen=True, slots=True)
class CallingUser:
    """A user that is not root.

    Attributes:
        uid: Above 0.
        gid: Primary group.
    """

    uid: int
    gid: int


def calling_user(environment: Mapping[str, str] | None = None) -> CallingUser | None:
    """The user behind root, None where that is the user of this process.

    Args:
        environment: ``os.environ`` when None.
    """
    if os.geteuid() != 0:
        return None
    told = os.environ if environment is None else environment
    if uid := _number(told.get("SUDO_UID", "")):
        return _user(uid, _number(told.get("SUDO_GID", "")))
    if uid := _number(told.get("PKEXEC_UID", "")):
        return _user(uid, 0)
    if name := told.get("DOAS_USER", ""):
        try:
            entry = pwd.getpwnam(name)
        except (KeyError, ValueError):
            return None
        return CallingUser(entry.pw_uid, entry.pw_gid) if entry.pw_uid else None
    return None


def _number(text: str) -> int:
    """0, which is root, for what is none."""
    number = int(text) if text.isascii() and text.isdigit() and len(text) <= 10 else 0
    return number if number <= _MOST_ID else 0


def _user(uid: int, gid: int) -> CallingUser | None:
    if not gid:
        try:
            gid = pwd.getpwuid(uid).pw_gid
        except KeyError:
            return None  # a number that no user has: nothing is given to it
    return CallingUser(uid, gid)


def own_uids() -> frozenset[int]:
    """Whose files are the caller's own: root's, this process's, and those of who called sudo."""
    behind = calling_user()
    return frozenset({0, os.geteuid()} | ({behind.uid} if behind is not None else set()))
