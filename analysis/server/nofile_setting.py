"""Where a server's limit on descriptors was set, and what sets it for good."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from analysis.frames.run_view import RunView
from analysis.server.control_group import nofile_command

_SETS_NOFILE = re.compile(r"ulimit|nofile|setrlimit", re.IGNORECASE)
"""A line that sets it: of a shell, prlimit(1), a unit, nginx (worker_rlimit_nofile), a program."""


def lasting_limit_command(view: RunView, pid: int, nofile_count: int) -> str:
    """The command that gives a process another RLIMIT_NOFILE whenever it is started.

    Args:
        view: The run.
        pid: The process.
        nofile_count: The limit.
    """
    groups = view.frames["cgroups"]
    own = groups[(groups["pid"] == pid) & (groups["level"] == 0)]["path"]
    return nofile_command(str(own.iloc[0]) if len(own) else "", nofile_count)


def raised_where_it_is_set(view: RunView, pid: int, soft_count: int, new_count: int) -> str | None:
    """How to raise a limit that is lower than the one the run gave to the server that it started.

    Args:
        view: The run.
        pid: The process at its limit.
        soft_count: Its RLIMIT_NOFILE.
        new_count: What it needs.

    Returns:
        For people; None when the run gave it this limit, or did not start the server.
    """
    given_count = _given_count(view)
    if not view.server_command or not 0 < soft_count < given_count:
        return None
    for setting in _settings(view, pid):
        text = str(setting.get("text") or "")
        if int(setting["value"]) == soft_count and _SETS_NOFILE.search(text):
            where = f"{setting['file']}:{setting['line']}" if setting["file"] else "--server-cmd"
            return f"{new_count} instead of {soft_count} in {where}  # {text}"
    return (
        f"ulimit -n {new_count}  # in what starts it: it has {soft_count:,} of the "
        f"{given_count:,} that this run gave"
    )


def raised_in_the_shell(view: RunView, pid: int, flag: str, kib: int) -> str | None:
    """How to lift another limit, in KiB, that the command sets by ulimit; None elsewhere."""
    sets = re.compile(rf"\bulimit\b.*\s-\w*{flag}\s+{kib}\b")
    for setting in _settings(view, pid):
        text = str(setting.get("text") or "")
        if int(setting["value"]) == kib and sets.search(text):
            where = f"{setting['file']}:{setting['line']}" if setting["file"] else "--server-cmd"
            return f"ulimit -{flag} unlimited instead of {kib} in {where}  # {text}"
    return None


def _given_count(view: RunView) -> int:
    """RLIMIT_NOFILE of the server's command, 0 when not known."""
    limits = view.host.get("limits") or {}
    return int(view.settings.get("nofile") or limits.get("nofile_soft_count") or 0)


def _settings(view: RunView, pid: int) -> Iterable[Mapping[str, Any]]:
    """Those of the process, of what started the server, and of the server's other processes."""
    server = view.manifest.get("server") or {}
    yield from view.process_facts(pid).get("settings") or []
    yield from server.get("settings") or []
    for each in server.get("processes") or []:
        yield from each.get("settings") or []
