"""Hiccups of a server under our own load: a while in which no client was answered, and its process.

A gap is what clients saw: some were answered before it and others after it, and whoever waited
meanwhile waited all of it. Why is in the process that takes connections: it took none, and was on a
core, off it in a call, or seen in neither. Frames in, small records out. Pure.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd

from analysis.evidence import Evidence
from analysis.frames.run_view import RunView

_LEAST_S = 0.4
_WAITED_S = 0.3
_LEAST_WAITING = 5
_MOST_GAPS = 8
_ON_CORE_SHARE, _LEAST_CORE_SHARE = 0.6, 0.3
"""Of the gap it wanted a core, and had one. Who is only kept from a core takes some when it has it.
"""
_OFF_CORE_SHARE = 0.5
_TAKEN_SHARE = 0.02
_WAITS_SHARE = 0.3
"""From here on it may be the host that keeps it from answering."""
_LONG_S, _HAD_CORE_S = 1.5, 0.05
"""But not who had a core for so long in such a gap: a thousand accepts take no longer.

It asks for a file or a disk again and again, and waits for a core each time that it has its answer.
"""
_SETTLED_S = 0.05
"""What was accepted before the gap is counted by then."""


class Gap(NamedTuple):
    """A while without one answer.

    Attributes:
        since_s: The last answer before it, or the first attempt after that.
        until_s: The first answer after it.
        waiting_count: Connections that were established by TCP and waited in it.
        failed_count: Of them, those that never got an answer.
    """

    since_s: float
    until_s: float
    waiting_count: int
    failed_count: int

    @property
    def length_s(self) -> float:
        """How long no client was answered."""
        return self.until_s - self.since_s


class Hiccup(NamedTuple):
    """A process that stood still in a gap.

    Attributes:
        pid: It.
        gap: What clients saw of it.
        cpu_share: Part of the gap that it was on a core, 0 to 1.
        off_core_share: Part that it was seen in a call other than its poll.
        wait_share: Part that it was ready to run and had no core; None when not known.
        untaken_count: Connections that clients had and no process of the server had taken.
        queue_s: Between the first and the last look at what it had taken: nothing came to that.
    """

    pid: int
    gap: Gap
    cpu_share: float
    off_core_share: float
    wait_share: float | None
    untaken_count: int
    queue_s: float

    def evidence(self) -> list[Evidence]:
        """What clients saw, and that it took nobody meanwhile."""
        gap = self.gap
        return [
            Evidence("gap_length", gap.length_s, "connections", gap.since_s),
            Evidence("gap_waiting", gap.waiting_count, "connections", gap.since_s),
            Evidence("gap_failed", gap.failed_count, "connections", gap.since_s),
            Evidence("gap_untaken", self.untaken_count, "live_samples", gap.since_s),
            Evidence("time_without_accept", self.queue_s, "live_samples", gap.since_s),
        ]

    @property
    def harm(self) -> str:
        """What clients saw, for people."""
        vain = f", {self.gap.failed_count:,} of them in vain" if self.gap.failed_count else ""
        return (
            f"for {self.gap.length_s:.1f} s no client was answered, while "
            f"{self.gap.waiting_count:,} connections waited{vain}"
        )

    @property
    def is_on_core(self) -> bool:
        """It calculated, and let those wait who stood in its queue."""
        wanted = self.cpu_share + (self.wait_share or 0.0)
        is_full = self.cpu_share >= _LEAST_CORE_SHARE and wanted >= _ON_CORE_SHARE
        return is_full and self.untaken_count >= _LEAST_WAITING

    @property
    def is_off_core(self) -> bool:
        """It was in a call, and that was sampled."""
        return not self.is_on_core and self.off_core_share >= _OFF_CORE_SHARE

    @property
    def is_elsewhere(self) -> bool:
        """It was in neither for long, did not want a core, and let those wait who stood in line."""
        if self.is_on_core or self.is_off_core or self.wait_share is None:
            return False
        length_s = self.gap.length_s
        had_core = length_s >= _LONG_S and self.cpu_share * length_s >= _HAD_CORE_S
        may_run = self.wait_share < _WAITS_SHARE or had_core
        return may_run and self.untaken_count >= _LEAST_WAITING


def gaps(view: RunView) -> list[Gap]:
    """The longest gaps of a run against a server that is not ours, in the order of time."""
    if view.is_attached or not view.is_foreign:
        return []
    connections = view.connections
    answered = np.sort(connections["established_s"].dropna().to_numpy(dtype=np.float64))
    answered = answered[answered < view.stop_s]
    steps = np.diff(answered)
    longest = np.argsort(-steps, kind="stable")[:_MOST_GAPS]
    found = []
    for position in sorted(int(at) for at in longest if steps[at] >= _LEAST_S):
        gap = _gap(connections, float(answered[position]), float(answered[position + 1]))
        if gap is not None:
            found.append(gap)
    return found


def _gap(connections: pd.DataFrame, last_s: float, next_s: float) -> Gap | None:
    came_s = connections["connected_s"].to_numpy(dtype=np.float64)
    ends = connections[["established_s", "closed_s"]].min(axis=1)
    over_s = ends.fillna(np.inf).to_numpy(dtype=np.float64)
    waited = np.fmin(over_s, next_s) - np.fmax(came_s, last_s) >= _WAITED_S
    waited &= (came_s < next_s) & (over_s > last_s)
    count = int(waited.sum())
    if count < _LEAST_WAITING:
        return None
    since_s = max(last_s, float(came_s[waited].min()))
    if next_s - since_s < _LEAST_S:
        return None
    failed = waited & connections["is_failed"].to_numpy()
    return Gap(since_s, next_s, count, int(failed.sum()))


def hiccups(view: RunView) -> list[Hiccup]:
    """Processes that took nobody in a gap, the longest gap first."""
    found = []
    live = view.watched_samples
    live = live.assign(at_s=view.seconds_of(live["at_ns"]))
    for gap in gaps(view):
        before = live[(live["at_s"] <= gap.since_s + _SETTLED_S) & (live["open_count"] > 0)]
        for pid in before["pid"].unique():  # one that came later got what others had taken
            hiccup = _hiccup(view, int(pid), gap)
            if hiccup is not None:
                found.append(hiccup)
    return sorted(found, key=lambda each: -each.gap.length_s)


def _hiccup(view: RunView, pid: int, gap: Gap) -> Hiccup | None:
    live = view.watched_samples
    at_s = view.seconds_of(live["at_ns"])
    inside = (at_s >= gap.since_s + _SETTLED_S) & (at_s <= gap.until_s)
    mine = live[(live["pid"] == pid).to_numpy() & inside]
    if len(mine) < 2:
        return None
    grown = int(mine["open_count"].max()) - int(mine["open_count"].iloc[0])
    if grown > max(1.0, _TAKEN_SHARE * gap.waiting_count):
        return None  # it was busy with taking them
    looks_s = view.seconds_of(mine["at_ns"])
    hiccup = Hiccup(
        pid,
        gap,
        _share_of(view, pid, gap, "cpu_user_ns_total", "cpu_system_ns_total") or 0.0,
        _off_core_share(view, pid, gap),
        _share_of(view, pid, gap, "run_queue_wait_ns_total"),
        _untaken_of(view, pid, gap, int(mine["at_ns"].iloc[-1])),
        float(looks_s[-1] - looks_s[0]),
    )
    return hiccup if hiccup.is_on_core or hiccup.is_off_core or hiccup.is_elsewhere else None


def _untaken_of(view: RunView, pid: int, gap: Gap, at_ns: int) -> int:
    """Connections that a process could have taken, and did not.

    Where each has a listener of its own (SO_REUSEPORT) they are those in its own queue: what stands
    in that of a sibling is not for it. Nothing is known of a queue that was not looked at in the
    gap, and then one that waits for events is believed to be empty.
    """
    untaken = _untaken_count(view, at_ns)
    listeners, owners = view.frames["listeners"], view.frames["listener_owners"]
    mine = set(owners["socket_inode"][owners["pid"] == pid])
    ours = set(listeners["socket_inode"][listeners["local_port"].isin(view.server_ports)])
    if not mine & ours or mine >= ours:
        return untaken
    at_s = view.seconds_of(listeners["at_ns"])
    inside = (at_s >= gap.since_s) & (at_s <= gap.until_s)
    looks = listeners[listeners["socket_inode"].isin(mine).to_numpy() & inside]
    if len(looks):
        return min(untaken, int(looks["accept_queue_count"].max()))
    return 0 if _waits_for_events(view, pid, gap) else untaken


def _waits_for_events(view: RunView, pid: int, gap: Gap) -> bool:
    """Each look at a process in a gap found it where an event loop waits."""
    rows = view.frames["process_samples"]
    at_s = view.seconds_of(rows["at_ns"])
    mine = rows[(rows["pid"] == pid).to_numpy() & (at_s >= gap.since_s) & (at_s <= gap.until_s)]
    return len(mine) > 0 and bool(mine["wait_channel"].str.startswith(_EPOLL_CHANNELS).all())


_EPOLL_CHANNELS = ("ep_poll", "do_epoll")


def _untaken_count(view: RunView, at_ns: int) -> int:
    """Connections of clients that none of the server's processes had taken at a look."""
    live, connections = view.watched_samples, view.connections
    taken_count = int(live["open_count"][live["at_ns"] == at_ns].sum())
    at_s = view.seconds(at_ns)
    is_there = (connections["connected_s"] <= at_s) & ~(connections["closed_s"] <= at_s)
    return int(is_there.sum()) - taken_count


def _share_of(view: RunView, pid: int, gap: Gap, *columns: str) -> float | None:
    """Part of the gap by which totals of a process grew, 0 to 1; None where they are not known."""
    rows = view.frames["process_samples"]
    rows = rows[rows["pid"] == pid]
    if len(rows) < 2 or (rows[list(columns)] < 0).any(axis=None):
        return None
    at_s = view.seconds_of(rows["at_ns"])
    total_s = rows[list(columns)].sum(axis=1).to_numpy(dtype=np.float64) / 1e9
    grown = np.diff(np.interp([gap.since_s, gap.until_s], at_s, total_s))
    return float(min(1.0, grown[0] / gap.length_s))


def _off_core_share(view: RunView, pid: int, gap: Gap) -> float:
    rows = view.frames["blocked_samples"]
    at_s = view.seconds_of(rows["at_ns"])
    mine = rows[(rows["pid"] == pid).to_numpy() & (at_s >= gap.since_s) & (at_s <= gap.until_s)]
    return float(min(1.0, mine["period_ns"].sum() / 1e9 / gap.length_s))
