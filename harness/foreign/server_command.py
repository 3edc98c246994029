"""Reads ``--server-cmd``: words for execve(2), and a clear word where it was meant for a shell."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence

from probes.contract.errors import ToolkitError, UsageError

_OPERATORS = frozenset({"&&", "||", "|", ";", "&", ">", ">>", "<", "2>&1"})
_BUILTINS = frozenset({"cd", "export", "source", ".", "ulimit", "set", "unset", "umask"})
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=.*", re.DOTALL)


def words(command: str, port: int) -> tuple[str, ...]:
    """The words of a command with its port filled in.

    Raises:
        UsageError: There are none, a quote is open, or only a shell could run it.
    """
    try:
        found = shlex.split(command)
    except ValueError as error:
        raise UsageError(f"--server-cmd {command!r}: {error}", fix="close every quote") from None
    if not found:
        raise UsageError("--server-cmd is empty", fix="--server-cmd 'node server.js --port {port}'")
    _refuse_shell(command, found)
    return tuple(word.replace("{port}", str(port)) for word in found)


def _refuse_shell(command: str, found: Sequence[str]) -> None:
    told = next((word for word in found if word in _OPERATORS), "")
    if found[0] in _BUILTINS:
        told = found[0]
    if told:
        raise UsageError(
            f"--server-cmd {command!r} is not given to a shell, and {told!r} is for one",
            fix=f"--server-cmd {_quoted(f'sh -c {shlex.quote(command)}')}",
        )
    if _ASSIGNMENT.fullmatch(found[0]):
        raise UsageError(
            f"--server-cmd {command!r} begins with an assignment, and is not given to a shell",
            fix=f"--server-cmd {_quoted(f'env {command}')}",
        )


def _quoted(text: str) -> str:
    """For a shell, in the quotes that a person would choose."""
    return shlex.quote(text) if "'" not in text or set('"$`\\!') & set(text) else f'"{text}"'


def cannot_start(why: str, command: Sequence[str]) -> ToolkitError:
    """The error of a command that could not be executed.

    Args:
        why: What could not be done, and the system's reason.
        command: Its words.
    """
    program = shlex.quote(command[0])
    if os.path.isfile(command[0]):  # noqa: PTH113 - a word of the command line
        fix = f"chmod +x {program}, or name its interpreter before it"
    elif "/" in command[0]:
        fix = f"ls -l {program}"
    else:
        fix = f"command -v {program}  # is it on this PATH?"
    return ToolkitError(f"the server command: {why}", fix=fix)
