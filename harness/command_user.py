"""Whom a server command runs as: the user behind sudo, doas or pkexec, by name.

What a run writes belongs to the same user, by number (``probes.calling_user``). There one that is
gone gets nothing; here nothing may be started instead as somebody else.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Mapping

from probes.errors import UsageError

_NAMES = ("SUDO_USER", "DOAS_USER")
_PKEXEC = "PKEXEC_UID"


def command_user() -> str:
    """The user behind sudo(8), doas(1) or pkexec(1), '' where that is the user of this process.

    Raises:
        UsageError: There is no such user (any more).
    """
    return user_behind(os.environ, os.geteuid())


def user_behind(environment: Mapping[str, str], uid: int) -> str:
    """The same for an environment and a user: only root has somebody behind it.

    Raises:
        UsageError: There is no such user (any more).
    """
    if uid != 0:
        return ""
    for variable in _NAMES:
        if name := environment.get(variable, ""):
            try:
                return name if pwd.getpwnam(name).pw_uid != 0 else ""
            except (KeyError, ValueError):
                raise _nobody(f"{variable}={name!r}") from None
    number = environment.get(_PKEXEC, "")
    if not number:
        return ""
    try:
        found = pwd.getpwuid(int(number))
    except (KeyError, ValueError, OverflowError):
        raise _nobody(f"{_PKEXEC}={number!r}") from None
    return found.pw_name if found.pw_uid != 0 else ""


def _nobody(said: str) -> UsageError:
    return UsageError(
        f"the server command is to run as who called, but there is no such user: {said}",
        fix="--server-user NAME  # getent passwd shows who there is",
    )
