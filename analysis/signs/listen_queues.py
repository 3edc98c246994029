"""Why connects stall: the counters of the listening side, the queues of each listener, who waited.

The three causes that drop a connection before anybody can accept it (accept queue, queue of
half-open connections, connection tracking) share what is computed here.

The counters are of the network namespace. Where that is not the run's alone, other servers count
there too: then a drop is the run's where a listener of its own dropped something.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from analysis.evidence import Evidence, Subject
from analysis.frames.failures import drops_of_run
from analysis.signs.signs import EMFILE, ETIMEDOUT, Signs
from analysis.stats.remembered import remembered

LATE_S = 0.9
"""A connect that takes longer was dropped at least once: the first SYN is sent again after 1 s
(TCP_TIMEOUT_INIT, include/net/tcp.h; RFC 6298 2.1). A healthy one takes some milliseconds."""

LEAST_LATE_COUNT = 10
LEAST_LATE_SHARE = 0.001
"""What of the attempts must be late to be harm, when none failed."""

_PERIOD_S = 0.5
"""Counters come twice a second: what moved did so within the half second before."""

_STANDING_LEAST_COUNT = 5
_MAIN_SHARE = 0.6
"""One listener is named alone when it dropped that part of all."""


@dataclass(frozen=True, slots=True)
class Moved:
    """What a counter of the network stack gained in the run.

    Attributes:
        name: Its name in ``net_counters``.
        change_count: By how much it grew, 0 when it did not.
        first_s: Moment of the sample that saw it first grown, NaN when none did.
        last_s: Likewise the last.
    """

    name: str
    change_count: int
    first_s: float
    last_s: float


@remembered
def moved(signs: Signs, name: str) -> Moved:
    """Growth of one counter from the ramp to the stop."""
    view = signs.view
    rows = view.frames["net_counters"]
    rows = rows[rows["counter"] == name]
    if rows.empty:
        return Moved(name, 0, float("nan"), float("nan"))
    at_s = view.seconds_of(rows["at_ns"])
    values = rows["value_total"].to_numpy()
    inside = (at_s >= view.ramp.start_s) & (at_s <= view.stop_s)
    if not inside.any():
        return Moved(name, 0, float("nan"), float("nan"))
    # Only changes have rows, so the last one before the ramp is its value at the ramp's start.
    earlier = values[at_s < view.ramp.start_s]
    before = int(earlier[-1]) if len(earlier) else int(values[inside][0])
    steps = np.diff(values[inside], prepend=before) > 0
    times = at_s[inside][steps]
    if not len(times):
        return Moved(name, 0, float("nan"), float("nan"))
    change = int(values[inside][-1]) - before
    return Moved(name, change, float(times[0]), float(times[-1]))


def moved_by_own(signs: Signs, name: str, queues: pd.DataFrame) -> Moved:
    """The same, without what listeners of others dropped.

    Args:
        signs: From the run.
        name: The counter.
        queues: From ``own_queues``.
    """
    whole = moved(signs, name)
    if signs.view.has_own_namespace or not _are_listeners_known(signs):
        return whole
    return replace(whole, change_count=min(whole.change_count, int(queues["dropped_count"].sum())))


def server_drops(signs: Signs, reason: str, functions: tuple[str, ...]) -> Moved:
    """Segments to the server, or from it, that the kernel dropped for one reason.

    Counters of a host or of a namespace are of everybody; these are the server's own.

    Args:
        signs: From the run.
        reason: Of skb_drop_reason.
        functions: Where they are dropped, for kernels that do not tell why (before Linux 5.17).
    """
    view = signs.view
    drops = drops_of_run(view)
    if drops.empty:
        return Moved(reason, 0, float("nan"), float("nan"))
    by_reason = (drops["reason"] == reason) | (
        (drops["reason"] == "") & drops["location"].isin(functions)
    )
    rows = drops[by_reason & (drops["of_server"] == 1) & (drops["event_count"] > 0)]
    at_s = view.seconds_of(rows["at_ns"])
    if not len(at_s):
        return Moved(reason, 0, float("nan"), float("nan"))
    return Moved(reason, int(rows["event_count"].sum()), float(at_s.min()), float(at_s.max()))


def is_told_by_clients_alone(signs: Signs) -> bool:
    """Nobody saw the listeners of a namespace of many: only own clients that waited tell."""
    return not signs.view.has_own_namespace and not _are_listeners_known(signs)


def _are_listeners_known(signs: Signs) -> bool:
    return len(signs.view.frames["listeners"]) > 0


@dataclass(frozen=True, slots=True)
class Stalls:
    """Attempts that waited for an answer as only a dropped packet makes them wait.

    Attributes:
        failed_count: Timed out, or waited to the end of the run.
        late_count: Came through after ``LATE_S`` or more.
        longest_s: The longest wait of one that came through, 0 when none was late.
        begun_s: When the late ones were begun, sorted; the failed ones when none was late. Who
            came through late was dropped for sure, who failed may also have said nothing itself.
        attempt_count: All attempts of the run.
        is_unseen: The clients were not watched: what was dropped is known, not who waited.
    """

    failed_count: int
    late_count: int
    longest_s: float
    begun_s: tuple[float, ...]
    attempt_count: int
    is_unseen: bool = False

    def is_harm(self, dropped: Moved) -> bool:
        """Somebody failed, or more were late than chance makes late.

        Args:
            dropped: What the kernel dropped: each drop delays a client, seen or not.
        """
        if not dropped.change_count:
            return False
        if self.is_unseen:
            return dropped.change_count >= LEAST_LATE_COUNT
        least = max(LEAST_LATE_COUNT, LEAST_LATE_SHARE * self.attempt_count)
        return self.failed_count > 0 or self.late_count >= least

    def explained_count(self, dropped: Moved) -> int:
        """Attempts that the drops kept out: those that failed, or every one where none was seen."""
        return dropped.change_count if self.is_unseen else self.failed_count

    def evidence(self) -> list[Evidence]:
        """Counts of those who waited; none where they were not watched."""
        if self.is_unseen:
            return []
        return [
            Evidence("timed_out_attempts", self.failed_count, "connections"),
            Evidence("late_attempts", self.late_count, "connections"),
        ]

    def began_s(self, seen: Moved) -> float:
        """When the counter began to move, as exactly as the stalled attempts tell."""
        since_s = seen.first_s - _PERIOD_S
        inside = [at_s for at_s in self.begun_s if since_s <= at_s <= seen.first_s]
        return inside[0] if inside else seen.first_s


@remembered
def stalls(signs: Signs, *, connect_only: bool = False) -> Stalls:
    """Who waited.

    Args:
        signs: From the run.
        connect_only: Leave out those whose SYN was answered and whose request was not.
    """
    connections = signs.view.connections
    failed = (connections["is_failed"] | connections["is_waiting"]).to_numpy(dtype=bool)
    if failed.any():
        timed_out = (connections["close_kind"] == "timeout") | (connections["errno"] == ETIMEDOUT)
        stages = ["connect"] if connect_only else ["connect", "handshake"]
        in_vain = (timed_out | connections["is_waiting"]) & connections["stage"].isin(stages)
        failed = failed & in_vain.to_numpy(dtype=bool)
    start_s = connections["start_s"].to_numpy()
    came_s = connections["connected_s" if connect_only else "established_s"].to_numpy()
    is_open = ~np.isnan(connections["established_s"].to_numpy())
    wait_s = np.where(is_open, came_s - start_s, np.nan)
    late = wait_s >= LATE_S
    dropped = late if late.any() else failed
    begun_s = tuple(float(at_s) for at_s in np.sort(start_s[dropped]))
    longest_s = float(wait_s[late].max()) if late.any() else 0.0
    return Stalls(
        int(failed.sum()),
        int(late.sum()),
        longest_s,
        begun_s,
        len(connections),
        is_unseen=signs.view.is_attached,
    )


def stall_sentence(stalled: Stalls) -> str:
    """What became of them, for people."""
    if stalled.is_unseen:
        return "each delayed a client by 1, 3 or 7 s, or for good"
    parts = []
    if stalled.failed_count:
        parts.append(f"{stalled.failed_count:,} attempts waited in vain")
    if stalled.late_count:
        parts.append(
            f"{stalled.late_count:,} came through late, after up to {stalled.longest_s:.1f} s"
        )
    return " and ".join(parts)


@remembered
def df_queues(signs: Signs) -> pd.DataFrame:
    """Every listener with the longest queues that snapshots saw, most dropped first.

    Returns:
        socket_inode, local_port, backlog_count, accept_queue_count, syn_queue_count (largest),
        dropped_count (grown in the run), standing_count (the shorter of the accept queues at the
        last two looks), at_s (of the longest accept queue), pids (owners, a tuple; empty when not
        known).
    """
    view = signs.view
    raw = view.frames["listeners"]
    rows = raw.assign(at_s=view.seconds_of(raw["at_ns"]))
    if not view.is_attached:  # else its clients went on when the watch was over
        rows = rows[rows["at_s"] <= view.stop_s]
    rows = rows[rows["socket_inode"] > 0]
    owners = view.frames["listener_owners"]
    # a listener of a run of ours begins with it; another one has a past
    has_past = view.is_foreign and not view.server_command
    found = []
    for inode, mine in rows.groupby("socket_inode", sort=True):
        longest = mine.sort_values("accept_queue_count", kind="stable").iloc[-1]
        pids = owners["pid"][owners["socket_inode"] == inode].drop_duplicates()
        found.append(
            {
                "socket_inode": int(str(inode)),
                "local_port": int(longest["local_port"]),
                "backlog_count": int(longest["backlog_count"]),
                "accept_queue_count": int(longest["accept_queue_count"]),
                "syn_queue_count": int(mine["syn_queue_count"].max()),
                "dropped_count": int(mine["dropped_total"].max())
                - (int(mine["dropped_total"].min()) if has_past else 0),
                "standing_count": int(
                    mine.sort_values("at_s", kind="stable")["accept_queue_count"].iloc[-2:].min()
                ),
                "at_s": float(longest["at_s"]),
                "pids": tuple(int(pid) for pid in pids),
            }
        )
    columns = ["socket_inode", "local_port", "backlog_count", "accept_queue_count"]
    columns += ["syn_queue_count", "dropped_count", "standing_count", "at_s", "pids"]
    frame = pd.DataFrame(found, columns=columns)
    order = ["dropped_count", "accept_queue_count", "syn_queue_count"]
    return frame.sort_values(order, ascending=False, kind="stable", ignore_index=True)


@remembered
def own_queues(signs: Signs) -> pd.DataFrame:
    """Rows of ``df_queues`` of the run's server: of all listeners where no others can be."""
    queues = df_queues(signs)
    if signs.view.has_own_namespace:
        return queues
    known = set(signs.view.who["pid"])
    is_own = [not pids or not known.isdisjoint(pids) for pids in queues["pids"]]
    return queues[np.array(is_own, dtype=bool) & queues["local_port"].isin(signs.view.server_ports)]


_FULL_QUEUE_SHARE = 0.75


def fuller_queue(queues: pd.DataFrame) -> str:
    """``accept``, ``half-open`` or, where no snapshot saw either nearly full, ''.

    A full accept queue keeps handshakes from ending and fills the other one: it goes first.
    """
    least = _FULL_QUEUE_SHARE * queues["backlog_count"]
    if (queues["accept_queue_count"] >= least).any():
        return "accept"
    return "half-open" if (queues["syn_queue_count"] >= least).any() else ""


def who_dropped(signs: Signs, queues: pd.DataFrame) -> Subject:
    """The process whose listener dropped most; the servers as a whole when it was not one alone.

    Where all dropped some in a burst, it is the one that dropped most and whose queue stands when
    those of the others are served again.

    Args:
        signs: From the run.
        queues: Rows of ``df_queues`` that count.
    """
    nobody = Subject("server")
    if queues.empty:
        return nobody
    top = queues.iloc[0]
    whole = int(queues["dropped_count"].sum())
    is_alone = len(queues) == 1 or int(top["dropped_count"]) >= _MAIN_SHARE * max(1, whole)
    is_alone = is_alone or stands_alone(queues)
    pids = top["pids"]
    return signs.view.subject(pids[0]) if is_alone and len(pids) == 1 else nobody


def stands_alone(queues: pd.DataFrame) -> bool:
    """The queue of the listener that dropped most stood half full and more, no other one did."""
    half = queues["backlog_count"] / 2
    stands = (queues["standing_count"] >= _STANDING_LEAST_COUNT) & (
        queues["standing_count"] >= half
    )
    return len(queues) > 1 and bool(stands.iloc[0]) and int(stands.sum()) == 1


def full_pids(signs: Signs) -> set[int]:
    """Server processes at their descriptor limit: they leave their queues for that reason."""
    rows = signs.descriptors
    full = rows[(rows["role"] != "client") & (rows["peak_count"] >= rows["capacity_count"] - 1)]
    return {int(pid) for pid in (*full["pid"], *signs.accept_errors(EMFILE)["pid"])}
