"""Errors for people: what happened with the value, the command that fixes it, an exit code."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of every command of the family."""

    REACHED = 0
    USAGE = 2
    LIMIT_MET = 3
    HOST_CANNOT = 4
    FAILED = 5
    NOT_SEEN = 6
    INTERRUPTED = 130


class ToolkitError(Exception):
    """A failure that a person can act on; the command line prints it in two lines, no traceback.

    Args:
        message: What happened, with the value that was seen.
        fix: The command or change that makes it go away.
        exit_code: What the process returns.
    """

    def __init__(self, message: str, *, fix: str, exit_code: ExitCode = ExitCode.FAILED) -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix
        self.exit_code = exit_code


class UsageError(ToolkitError):
    """The command line or a value in it makes no sense."""

    def __init__(self, message: str, *, fix: str) -> None:
        super().__init__(message, fix=fix, exit_code=ExitCode.USAGE)


class HostError(ToolkitError):
    """This host cannot do what was asked (exit code 4)."""

    def __init__(self, message: str, *, fix: str) -> None:
        super().__init__(message, fix=fix, exit_code=ExitCode.HOST_CANNOT)


class RunDirError(ToolkitError):
    """A run directory cannot be read or written."""


class ProbeUnavailableError(ToolkitError):
    """A probe cannot run here; becomes a row of ``probe_health``, never a failed run."""

    def __init__(self, message: str, *, fix: str) -> None:
        super().__init__(message, fix=fix, exit_code=ExitCode.HOST_CANNOT)
