"""Whom a server command runs as: the user behind sudo, doas or pkexec, by name.

What a run writes belongs to the same user, by number (``probes.rights.calling_user``). There one
that is gone gets nothing; here nothing may be started instead as somebody else.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from probes.contract.errors import UsageError
from probes.rights.calling_user import told_caller


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
    told = told_caller(environment) if uid == 0 else None
    if told is None or told.uid == 0:
        return ""
    if not told.name:
        raise UsageError(
            "the server command is to run as who called, but there is no such user: " + told.said,
            fix="--server-user NAME  # getent passwd shows who there is",
        )
    return told.name
