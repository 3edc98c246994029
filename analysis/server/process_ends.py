"""Server processes that ended while the run went on: how, with what, and who took their place."""

from __future__ import annotations

import signal
from dataclasses import dataclass

import numpy as np

from analysis.frames.run_view import RunView
from probes.contract.schema import SERVER_ROLES

ASKED_TO_END = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR2)
_LATE_SUCCESSOR_S = 5.0
"""A service manager, or a parent that notices, starts the next one within this."""
_LONGEST_DRAIN_S = 120.0
"""How long before its end the old one may have stopped to accept: what was lost until then."""
_APART_S = 1.0
"""One that started with the others is no successor, nor is one that was there before the load."""
_SEEN_LATE_S = 5.0
"""On a crowded host who follows the processes may be told so late that one ended."""
_NEARLY_ALL_SHARE = 0.9
_AT_ONCE_S = 1.0
_BEFORE_S = 0.3


@dataclass(frozen=True, slots=True)
class ProcessEnd:
    """One process that ended by itself, or that somebody else ended.

    Attributes:
        pid: Which.
        ended_s: When it was reaped.
        status: Exit status, -1 when a signal ended it or nobody saw how.
        signal: Signal that ended it, 0 for none.
        successor_pid: A process of the same program that started before or soon after, 0 for none.
        successor_s: When that started.
        first_lost_s: When the first of its connections went, its end where none is known.
        held_count: Connections that it had then, each counted once.
        lost_count: Connections that clients lost with it; of a run that only watched those it held.
        failed_count: Attempts that failed within a second of its end.
    """

    pid: int
    ended_s: float
    status: int
    signal: int
    successor_pid: int
    successor_s: float
    first_lost_s: float
    held_count: int
    lost_count: int
    failed_count: int

    @property
    def is_orderly(self) -> bool:
        """It ended as it was asked to, or by itself and without an error."""
        return self.status == 0 or self.signal in ASKED_TO_END


def process_ends(view: RunView) -> list[ProcessEnd]:
    """Ends of server processes before the run began to stop, the first first."""
    processes = view.frames["processes"]
    if not (view.seconds_of(processes["exited_ns"]) < view.stop_s).any():
        return []
    servers = processes[processes["role"].isin(SERVER_ROLES)].drop_duplicates("pid")
    rows = servers.assign(
        start_s=view.seconds_of(servers["start_ns"]), ended_s=view.seconds_of(servers["exited_ns"])
    ).sort_values("ended_s", kind="stable")
    taken: set[int] = set()
    found = []
    for row in rows[rows["ended_s"] < view.stop_s].to_dict("records"):
        pid, ended_s = int(row["pid"]), float(row["ended_s"])
        program = _program(view, pid)
        heirs = [
            (float(other["start_s"]), int(other["pid"]))
            for other in rows.to_dict("records")
            if int(other["pid"]) not in taken | {pid}
            and _program(view, int(other["pid"])) == program
            and float(other["start_s"]) > max(0.0, float(row["start_s"]) + _APART_S)
            and -_LONGEST_DRAIN_S <= float(other["start_s"]) - ended_s <= _LATE_SUCCESSOR_S
        ]
        successor_s, successor_pid = max(heirs, default=(0.0, 0))
        taken.add(successor_pid)
        status, number = int(row["exit_status"]), int(row["exit_signal"])
        begun_s = ended_s - _BEFORE_S
        if successor_pid:
            begun_s = min(begun_s, _last_full_s(view, pid, ended_s)) - _SEEN_LATE_S
        found.append(
            _end(view, pid, ended_s, (status, number), (successor_pid, successor_s), begun_s)
        )
    return found


def _end(
    view: RunView,
    pid: int,
    ended_s: float,
    how: tuple[int, int],
    successor: tuple[int, float],
    begun_s: float,
) -> ProcessEnd:
    connections = view.connections
    near = connections["closed_s"].between(begun_s, ended_s + _AT_ONCE_S)
    lost_s = connections["closed_s"][near & connections["is_lost"]]
    at_once = connections["closed_s"].between(ended_s - _BEFORE_S, ended_s + _AT_ONCE_S)
    held = held_before(view, pid, begun_s, ended_s)
    if view.is_foreign and not view.is_attached and _served_alone(view, pid):
        # counted four times a second, and more may have come since; clients know all of theirs
        held = max(held, len(lost_s))
    lost_count = held if view.is_attached else min(len(lost_s), held) if held else len(lost_s)
    return ProcessEnd(
        pid=pid,
        ended_s=ended_s,
        status=how[0],
        signal=how[1],
        successor_pid=successor[0],
        successor_s=successor[1],
        first_lost_s=min(ended_s, float(lost_s.min())) if len(lost_s) else ended_s,
        held_count=held,
        lost_count=lost_count,
        failed_count=int((at_once & connections["is_failed"]).sum()),
    )


def _served_alone(view: RunView, pid: int) -> bool:
    """No other process of the server ever had connections."""
    live = view.frames["live_samples"]
    serving = live["pid"][live["role"].isin(SERVER_ROLES) & (live["open_count"] > 0)]
    return set(serving.unique()) <= {pid}


def _last_full_s(view: RunView, pid: int, ended_s: float) -> float:
    """When a process was last seen with nearly the most connections that it ever had."""
    live = view.frames["live_samples"]
    mine = live[live["pid"] == pid]
    at_s = view.seconds_of(mine["at_ns"])
    counts = mine["open_count"].to_numpy()
    full = (counts >= _NEARLY_ALL_SHARE * counts.max(initial=1)) & (at_s <= ended_s)
    return float(at_s[full][-1]) if full.any() else ended_s


def held_before(view: RunView, pid: int, begun_s: float, ended_s: float) -> int:
    """Most connections that a process had in a span; a proxy's two descriptors for one are one."""
    live = view.frames["live_samples"]
    mine = live[live["pid"] == pid]
    at_s = view.seconds_of(mine["at_ns"])
    # The counters outlive their writer: a later sample still shows what it had when it died. The
    # span begins with the last sample before it, and ends with the first one after it, however
    # late a crowded host lets that one be taken.
    first = max(0, int(np.searchsorted(at_s, begun_s)) - 1)
    last = max(
        int(np.searchsorted(at_s, ended_s + _AT_ONCE_S, side="right")),
        int(np.searchsorted(at_s, ended_s)) + 1,
    )
    inside = mine["open_count"].iloc[first:last]
    if inside.empty:
        return 0
    each = view.descriptors_per_connection(view.subject(pid).role)
    return round(int(inside.max()) / each)


def _program(view: RunView, pid: int) -> str:
    """Its name; of a process title what stands before the colon, because the rest changes."""
    return view.subject(pid).command.partition(":")[0]
