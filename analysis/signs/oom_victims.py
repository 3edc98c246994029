"""Whose memory ran out: which process of the run was killed for it, and at whose limit.

The kernel's own count of killed processes is the host's, and what a control group counts may be
of other groups below it. So a kill is taken for the run's only where its process was the victim,
or somebody in a group of the run while that group's own limit was met. A call that returned ENOMEM
says nothing of memory by itself; what was short at that moment does.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from analysis.frames.run_view import RunView
from analysis.signs.memory import SIGKILL, until_stop
from probes.contract.schema import SERVER_ROLES

_FLEET = (*SERVER_ROLES, "client")
_OLDER_GROUP = -1
"""``cgroup_id`` of recordings that have one group alone: the tightest of the servers."""

_SHORT_SHARE, _SHORT_LEAST_BYTES, _SHORT_MOST_BYTES = 0.03, 64 << 20, 2 << 30
"""Memory available below which the host counts as out of it. The kernel kills when next to nothing
is left; samples are half a second apart, in which a fleet takes a gigabyte at most."""

_BEFORE_END_S, _AFTER_END_S = 1.0, 0.3
"""A process is reaped up to so long after it was killed: its memory is given back first."""
_HARM_S = 2.0
_LEAST_LEFT_SHARE, _LEAST_LEFT_COUNT = 0.005, 20
"""So many ended at that moment: more than those that come and go, of whatever length of a run."""


@dataclass(frozen=True)
class Group:
    """A control group with a limit that was met.

    Attributes:
        path: Below the mount, '' when not known.
        samples: Its rows of ``cgroup_memory`` until the stop, with ``at_s``.
    """

    path: str
    samples: pd.DataFrame

    @property
    def limit_bytes(self) -> int:
        """Its limit, as it was last."""
        return int(self.samples["max_bytes"].iloc[-1])


@dataclass(frozen=True, slots=True)
class Victim:
    """One process that was killed for memory; ``pid`` is 0 where only its group is known."""

    pid: int
    at_s: float
    cgroup_id: int


@dataclass(frozen=True)
class Victims:
    """Who was killed.

    Attributes:
        own: Processes of the run.
        beside: Others in a control group of the run.
        table: Where they are from.
        is_exact: The kernel named each; else it is told by counts of the groups, or of the host.
    """

    own: list[Victim] = field(default_factory=list)
    beside: list[Victim] = field(default_factory=list)
    table: str = "oom_kills"
    is_exact: bool = True

    @property
    def pids(self) -> set[int]:
        """Processes of the run among them."""
        return {victim.pid for victim in self.own}


def victims(view: RunView) -> Victims:
    """Everybody of the run, or in a group of it, that was killed for memory before the stop."""
    rows = view.frames["oom_kills"]
    rows = rows.assign(at_s=view.seconds_of(rows["at_ns"]))
    rows = rows[(rows["pid"] > 0) & (rows["at_s"] < view.stop_s)]
    known = set(view.who["pid"][view.who["role"].isin(_FLEET)])
    found = Victims()
    for pid, at_s, cgroup_id in zip(rows["pid"], rows["at_s"], rows["cgroup_id"], strict=True):
        group = found.own if pid in known else found.beside
        group.append(Victim(int(pid), float(at_s), int(cgroup_id)))
    health = view.frames["probe_health"]
    mine = health[health["probe"] == "oom_kills"]
    if (mine["state"] == "ran").any() and not mine["lost_count"].sum():
        return found
    counted, table = _counted(view, without=found.pids)
    if not counted:
        return found
    return Victims([*found.own, *counted], found.beside, table, is_exact=False)


def _counted(view: RunView, without: set[int]) -> tuple[list[Victim], str]:
    """Processes that ended by SIGKILL while their own group counted a kill, and the table.

    Where the groups count nothing the host's count is asked, which others move as well: it counts
    only while the host was out of memory.
    """
    processes = view.frames["processes"]
    died_s = pd.Series(view.seconds_of(processes["exited_ns"]), index=processes.index)
    unseen = (processes["exit_status"] < 0) & (processes["exit_signal"] == 0) & view.is_attached
    dead = processes["role"].isin(_FLEET) & (processes["exited_ns"] > 0) & (died_s < view.stop_s)
    dead &= (processes["exit_signal"] == SIGKILL) | unseen
    dead &= ~processes["pid"].isin(without)
    own, table = [], "cgroup_memory"
    for pid, at_s in zip(processes["pid"][dead], died_s[dead], strict=True):
        groups = groups_above(view, int(pid))
        span = (float(at_s) - _BEFORE_END_S, float(at_s) + _AFTER_END_S)
        count = _kills_counted(view, groups[0], span) if groups else -1
        if count < 0:
            host = until_stop(view, "host_memory")
            count = grown_around(host, "oom_kills_total", span) if is_short(view, span) else 0
            table = "host_memory" if count > 0 else table
        if count > 0:
            own.append(Victim(int(pid), float(at_s), groups[0] if groups else -1))
    return own, table


def _kills_counted(view: RunView, cgroup_id: int, span_s: tuple[float, float]) -> int:
    """Processes of that very group that were killed in a span, -1 when it does not count them."""
    samples = _samples(view, cgroup_id)
    own = grown_around(samples, "own_oom_kills_total", span_s)
    # without a count of its own: an older recording, or a kernel that has only those of all below
    return own if own >= 0 else grown_around(samples, "oom_kills_total", span_s)


def groups_above(view: RunView, pid: int) -> list[int]:
    """Control groups that bind a process, its own first; empty when not known."""
    known = view.frames["cgroups"]
    if known.empty:
        samples = view.frames["cgroup_memory"]
        return [_OLDER_GROUP] if (samples["cgroup_id"] == _OLDER_GROUP).any() else []
    mine = known[known["pid"] == pid].sort_values("level", kind="stable")
    return [int(cgroup_id) for cgroup_id in mine["cgroup_id"].drop_duplicates()]


def group_at_limit(view: RunView, pid: int, span_s: tuple[float, float]) -> Group | None:
    """The nearest group of a process whose own limit was met in a span, None when none was.

    Args:
        view: The run.
        pid: The process.
        span_s: First and last moment; what the samples around it show counts.
    """
    for cgroup_id in groups_above(view, pid):
        samples = _samples(view, cgroup_id)
        samples = samples[samples["max_bytes"] > 0]
        if samples.empty:
            continue
        hits = grown_around(samples, "own_ooms_total", span_s)
        if hits < 0:  # version 1, older kernels and recordings
            hits = grown_around(samples, "limit_hits_total", span_s)
        if hits > 0:
            return Group(_path(view, cgroup_id), samples)
    return None


def _samples(view: RunView, cgroup_id: int) -> pd.DataFrame:
    samples = until_stop(view, "cgroup_memory")
    return samples[samples["cgroup_id"] == cgroup_id]


def _path(view: RunView, cgroup_id: int) -> str:
    known = view.frames["cgroups"]
    paths = known["path"][known["cgroup_id"] == cgroup_id]
    return str(paths.iloc[0]) if len(paths) else ""


def grown_around(samples: pd.DataFrame, column: str, span_s: tuple[float, float]) -> int:
    """How far a total grew from the last sample before a span to the first one after it.

    Args:
        samples: With ``at_s``, in order.
        column: A total; negative values are unknown.
        span_s: First and last moment.

    Returns:
        The growth, -1 when it is not known.
    """
    known = samples[samples[column] >= 0]
    if known.empty:
        return -1
    values = known[column].to_numpy()
    before, after = _samples_around(known["at_s"], span_s)
    # Where it falls another source began: no less grew.
    return int(np.maximum(np.diff(values[before : after + 1]), 0).sum())


def _samples_around(at_s: pd.Series[float], span_s: tuple[float, float]) -> tuple[int, int]:
    """Positions of the last sample before a span and of the first one after it, as there are."""
    moments = at_s.to_numpy()
    before = max(0, int(moments.searchsorted(span_s[0], side="left")) - 1)
    return before, min(len(moments) - 1, int(moments.searchsorted(span_s[1], side="right")))


def is_short(view: RunView, span_s: tuple[float, float]) -> bool:
    """The host was out of memory: what it had available at some sample around a span."""
    least = least_available(view, span_s)
    if least is None:
        return False
    available, total = least
    return available < min(max(_SHORT_LEAST_BYTES, _SHORT_SHARE * total), _SHORT_MOST_BYTES)


def least_available(view: RunView, span_s: tuple[float, float]) -> tuple[int, int] | None:
    """Least bytes available around a span, and all that the host has; None when not sampled."""
    host = until_stop(view, "host_memory")
    host = host[host["available_bytes"] >= 0]
    if host.empty:
        return None
    before, after = _samples_around(host["at_s"], span_s)
    near = host.iloc[before : after + 1]
    return int(near["available_bytes"].min()), int(host["total_bytes"].iloc[-1])


def harmed(view: RunView, at_s: float) -> bool:
    """The run lost something when somebody in a group of it was killed."""
    connections = view.connections
    ended = connections["closed_s"][connections["is_failed"] | connections["is_lost"]]
    processes = view.frames["processes"]
    died_s = view.seconds_of(processes["exited_ns"][processes["exited_ns"] > 0])
    inside = ended.between(at_s - _AFTER_END_S, at_s + _HARM_S).any()
    inside |= (abs(died_s - at_s) <= _BEFORE_END_S).any()
    return bool(inside or (view.is_attached and _left_around(view, at_s) >= _LEAST_LEFT_SHARE))


def _left_around(view: RunView, at_s: float) -> float:
    """Of the connections of a watched server the share that ended soon after a moment.

    Its clients are not seen, so nobody says which of them were lost: one that was killed takes all
    that it had along at once. A busy server notices each of their ends only when its turn comes, so
    that two seconds count, without what ended as usual until then.
    """
    live = view.frames["live_samples"]
    live = live[live["role"] == "server"]
    live = live.assign(
        at_s=view.seconds_of(live["at_ns"]), left=live["established_total"] - live["open_count"]
    )
    span = (at_s - _AFTER_END_S, at_s + _HARM_S)
    left = sum(_left_in(mine, span) for _, mine in live.groupby("pid"))
    most = int(live.groupby("pid")["open_count"].max().sum()) if len(live) else 0
    return left / most if left >= _LEAST_LEFT_COUNT else 0.0


def _left_in(samples: pd.DataFrame, span_s: tuple[float, float]) -> float:
    """Connections of one process that ended around a span, beyond its usual number.

    Args:
        samples: With ``at_s`` and ``left``, in order.
        span_s: First and last moment.
    """
    at_s, left = samples["at_s"].to_numpy(), samples["left"].to_numpy()
    before, after = _samples_around(samples["at_s"], span_s)
    usual_per_s = 0.0
    if before > 0:
        usual_per_s = float((left[before] - left[0]) / (at_s[before] - at_s[0]))
    usual = usual_per_s * float(at_s[after] - at_s[before])
    return max(0.0, grown_around(samples, "left", span_s) - max(0.0, usual))
