"""``worker-crash``: a process died and all its connections with it.

Proof: exit status or signal from wait4 before the run began to stop, and the connections that it
held or that clients lost within a second. A worker of a server in service that held none, and ended
by a request to end or nobody saw how, was replaced and did not crash.
Told apart from ``server-resets-when-full``: there the process lives.
"""

from __future__ import annotations

import signal
from collections.abc import Hashable, Mapping
from typing import Any

from analysis.evidence import Evidence, Finding, Fix, capitalised, connections_text, side_of_role
from analysis.run_view import RunView, run_directory
from analysis.signs import Signs
from probes.schema import SERVER_ROLES

_AT_ONCE_S = 1.0
_ASKED_TO_END = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)


def find(signs: Signs) -> list[Finding]:
    """One finding for each process that died, the first first."""
    view = signs.view
    processes = view.frames["processes"]
    dead = processes[
        (processes["exited_ns"] > 0)
        & (
            (processes["exit_status"] > 0)
            | (processes["exit_signal"] > 0)
            # of a server that was there before: how it ended is not always to be seen
            | ((processes["exit_status"] < 0) & view.is_attached)
        )
        & processes["role"].isin([*SERVER_ROLES, "client"])
    ]
    rows = dead.sort_values("exited_ns", kind="stable").to_dict("records")
    found = [_finding(signs, row) for row in rows if not _was_replaced(signs, row)]
    return [finding for finding in found if finding.first_s < view.stop_s]


def _was_replaced(signs: Signs, row: Mapping[Hashable, Any]) -> bool:
    """A reload of a server in service: the old worker served its last connection and ended."""
    if not signs.view.is_attached or int(str(row["exit_status"])) > 0:
        return False
    number = int(str(row["exit_signal"]))
    return (not number or number in _ASKED_TO_END) and not _held_count(signs, int(str(row["pid"])))


def _held_count(signs: Signs, pid: int) -> int:
    live = signs.view.frames["live_samples"]
    mine = live[live["pid"] == pid]
    # the counters outlive their writer: a later sample still shows what it held when it died
    return int(mine["open_count"].iloc[-1]) if len(mine) else 0


def _finding(signs: Signs, row: Mapping[Hashable, Any]) -> Finding:
    view = signs.view
    pid = int(str(row["pid"]))
    subject = view.subject(pid)
    died_s = view.seconds(int(str(row["exited_ns"])))
    status, number = int(str(row["exit_status"])), int(str(row["exit_signal"]))
    held = _held_count(signs, pid)
    connections = view.connections
    near = connections["closed_s"].between(died_s - 0.3, died_s + _AT_ONCE_S)
    lost = int((near & connections["is_lost"]).sum())
    failed = int((near & connections["is_failed"]).sum())
    if number:
        how = f"signal {_signal_name(number)}"
    else:
        how = f"exit status {status}" if status >= 0 else "a status that nobody could see"
    evidence = [
        Evidence("exit_signal" if number else "exit_status", number or status, "processes", died_s)
    ]
    seen = f"clients lost {lost:,} within a second, with those of other workers that died then"
    if view.is_attached:
        seen, lost = "their clients lost them then", held
    else:
        evidence += [
            Evidence("lost_within_1s", lost, "connections", died_s),
            Evidence("failed_within_1s", failed, "connections", died_s),
        ]
    evidence += [
        Evidence("process_connections", held, "live_samples", died_s),
    ]
    name = str(subject)
    return Finding(
        cause="worker-crash",
        severity="warning",
        side=side_of_role(subject.role),
        subject=subject,
        first_s=died_s,
        last_s=died_s,
        evidence=tuple(evidence),
        explanation=(
            f"{capitalised(name)} ended with {how} while the run went on; the kernel "
            f"closed what it held, {connections_text(held)}, all at once; {seen}."
        ),
        fix=(
            Fix(
                log_command(view, subject.role, pid),
                f"shows why it ended; {connections_text(held or lost)} more when it does not",
            ),
        ),
        at_connections=view.open_count_at(died_s - 0.01),
        confidence="medium" if status < 0 and not number else "high",
        sentence=f"{capitalised(name)} ended with {how} and took "
        f"{connections_text(held or lost)} with it",
        explained_count=lost + failed,
    )


def log_command(view: RunView, role: str, pid: int) -> str:
    """Where a process says why: a log of this run, or of who started it."""
    if view.is_attached or (view.is_foreign and not view.server_command and role != "client"):
        return f"journalctl _PID={pid} -n 40; dmesg | tail  # or its own log"
    return f"tail -n 40 {run_directory(view.manifest)}/logs/*{role}*.log"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)
