"""``worker-crash``: a process died and all its connections with it.

Proof: exit status or signal from wait4 before the run began to stop, and the connections that it
held or that clients lost within a second. A worker of a server in service that held none, and ended
by a request to end or nobody saw how, was replaced and did not crash. One that ended with status 0
crashed only for its clients: nobody took its place.
Told apart from ``server-resets-when-full``: there the process lives. From ``worker-replaced``:
there it ended in good order and has a successor.
"""

from __future__ import annotations

import shlex
import signal
from collections.abc import Hashable, Mapping
from typing import Any

import pandas as pd

from analysis.causes import Cause, Effect
from analysis.evidence import Evidence, Finding, Fix, capitalised, connections_text, side_of_role
from analysis.frames.run_view import RunView, run_directory
from analysis.server.process_ends import ASKED_TO_END, ProcessEnd
from analysis.signs.signs import Signs
from probes.contract.schema import SERVER_ROLES

CAUSE = Cause(
    id="worker-crash",
    line="a worker died and its connections with it",
    follows_from=(
        Effect.FILLS_DESCRIPTORS,
        "own-limit",
        "slow-consumers",
        "memory-exhausted",
        "runtime-heap-limit",
        "task-limit",
        "mapping-limit",
        "worker-blocked",
    ),
    decide="the worker's exit status and log: did it die before or after the failures",
)

_AT_ONCE_S = 1.0
_STARTERS = {
    "server": {
        "server_parent_ended": "The parent of the run's own servers",
        "server_launcher_ended": "The process that started the server command",
    },
    "client": {"client_parent_ended": "The parent of the run's own clients"},
}
"""What started the processes of a role, by the event of its end."""


def find(signs: Signs) -> list[Finding]:
    """One finding for each process that died, the first first."""
    view = signs.view
    processes = view.frames["processes"]
    if not (processes["exited_ns"] > 0).any():
        return []
    ends = {end.pid: end for end in signs.process_ends}
    dead = processes[
        (processes["exited_ns"] > 0) & processes["role"].isin([*SERVER_ROLES, "client"])
    ]
    rows = dead.sort_values("exited_ns", kind="stable").to_dict("records")
    with_parent = {role: pids for role, pids in _ended_with_parent(view, dead).items() if pids}
    together = {pid for pids in with_parent.values() for pid in pids}
    rows = [row for row in rows if int(str(row["pid"])) not in together]
    found = [_of_parent(signs, role, pids) for role, pids in with_parent.items()]
    found += [
        _finding(signs, row, ends.get(int(str(row["pid"]))))
        for row in rows
        if _died(signs, row, ends.get(int(str(row["pid"]))))
    ]
    return [finding for finding in found if finding.first_s < view.stop_s]


def _ended_with_parent(view: RunView, dead: pd.DataFrame) -> dict[str, list[int]]:
    """Pids by role of those that were killed because the process of ours that started them was."""
    events = view.frames["events"]
    found = {}
    for role in ("server", "client"):
        moments = events["at_ns"][events["event"].isin(_STARTERS[role])]
        roles = SERVER_ROLES if role == "server" else ("client",)
        mine = dead[dead["role"].isin(roles) & dead["exited_ns"].isin(moments)]
        found[role] = [int(pid) for pid in mine["pid"]]
    return found


def _of_parent(signs: Signs, role: str, pids: list[int]) -> Finding:
    """Who started a side ended, and all of it with it: no word of that is about the server."""
    view = signs.view
    events = view.frames["events"]
    parent = events[events["event"].isin(_STARTERS[role])].iloc[0]
    died_s, parent_pid = view.seconds(int(parent["at_ns"])), int(parent["pid"])
    live = view.frames["live_samples"]
    live = live[live["pid"].isin(pids)].drop_duplicates("pid", keep="last")
    held = int(live["open_count"].sum())
    connections = view.connections
    ended = connections["is_lost"] | connections["is_failed"]
    gone = int((ended & (connections["closed_s"] >= died_s - 0.3)).sum())
    who = _STARTERS[role][str(parent["event"])]
    sentence = (
        f"{who} (pid {parent_pid}) was ended from outside, and "
        f"{len(pids):,} process{'es' if len(pids) > 1 else ''} with {connections_text(held)} ended "
        "with it"
    )
    return Finding(
        cause=CAUSE.id,
        severity="warning",
        side=side_of_role(role),
        subject=view.subject(pids[0]),
        first_s=died_s,
        last_s=died_s,
        evidence=(
            Evidence("processes_ended", len(pids), "processes", died_s),
            Evidence("process_connections", held, "live_samples", died_s),
        ),
        explanation=f"{sentence}. What happened from then on says nothing about a limit.",
        fix=(
            Fix(
                "journalctl -k -n 40; dmesg | tail  # the OOM killer, or a kill from outside",
                "shows who ended it; then run again",
            ),
        ),
        at_connections=view.open_count_at(died_s - 0.001),
        confidence="high",
        missing=(),
        sentence=sentence,
        explained_count=max(gone, held, 1),
    )


def _died(signs: Signs, row: Mapping[Hashable, Any], end: ProcessEnd | None) -> bool:
    """It did not end in good order, or in good order and nobody took over what it held."""
    status, number = int(str(row["exit_status"])), int(str(row["exit_signal"]))
    if end is not None and end.is_orderly:
        if end.successor_pid:
            return False  # a reload: worker-replaced, where it cost connections
        if status == 0:
            # what its clients lost is only known where they are ours
            is_ours = not signs.view.is_attached
            return is_ours and signs.view.is_foreign and end.lost_count > 0
    if signs.view.is_attached and end is not None and not end.held_count:
        # It served its last connection and ended. How, is not always to be seen.
        return status > 0 or (number > 0 and number not in ASKED_TO_END)
    # how it ended is not always to be seen: it was there before, or who would have seen it ended
    is_unseen = signs.view.is_attached or signs.view.frames.is_cut_short
    return status > 0 or number > 0 or (status < 0 and is_unseen)


def _finding(signs: Signs, row: Mapping[Hashable, Any], end: ProcessEnd | None) -> Finding:
    view = signs.view
    pid = int(str(row["pid"]))
    subject = view.subject(pid)
    died_s = view.seconds(int(str(row["exited_ns"])))
    status, number = int(str(row["exit_status"])), int(str(row["exit_signal"]))
    held = end.held_count if end is not None else _client_held_count(view, pid)
    connections = view.connections
    near = connections["closed_s"].between(died_s - 0.3, died_s + _AT_ONCE_S)
    lost = int((near & connections["is_lost"]).sum())
    failed = int((near & connections["is_failed"]).sum())
    # the kernel closes what a process held before its parent is told that it ended
    lost_s = connections["closed_s"][near & connections["is_lost"]]
    begun_s = min(died_s, float(lost_s.min())) if len(lost_s) else died_s
    if number:
        how = f"signal {_signal_name(number)}"
    else:
        how = f"exit status {status}" if status >= 0 else "an unknown status"
    evidence = [
        Evidence("exit_signal" if number else "exit_status", number or status, "processes", died_s)
    ]
    seen = f"clients lost {lost:,} within a second"
    if lost > held:
        seen += ", with those of other workers that died then"
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
        cause=CAUSE.id,
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
        at_connections=view.open_count_at(begun_s - 0.001),
        confidence="medium" if status < 0 and not number else "high",
        sentence=f"{capitalised(name)} ended with {how} and took "
        f"{connections_text(held or lost)} with it",
        explained_count=lost + failed,
    )


def _client_held_count(view: RunView, pid: int) -> int:
    live = view.frames["live_samples"]
    mine = live[live["pid"] == pid]
    # the counters outlive their writer: a later sample still shows what it held when it died
    return int(mine["open_count"].iloc[-1]) if len(mine) else 0


def log_command(view: RunView, role: str, pid: int) -> str:
    """Where a process says why: a log of this run, or of who started it."""
    if view.is_attached or (view.is_foreign and not view.server_command and role != "client"):
        return f"journalctl _PID={pid} -n 40; dmesg | tail  # or its own log"
    return f"tail -n 40 {shlex.quote(run_directory(view.manifest))}/logs/*{role}*.log"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)
