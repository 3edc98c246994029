"""Processes that closed connections as soon as they had accepted them.

Frames in, small records out. Pure. A close says nothing where another process goes on to serve the
connection: that is told from it.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import pandas as pd

from analysis.frames.run_view import RunView
from analysis.server import fates
from analysis.stats.remembered import remembered

_FORKED_S = 0.2
"""Who closes its end forked for it a moment before."""
_PASSING_SHARE = 0.05
"""Who accepts for others has so many of their connections open at most: those on their way."""


@dataclass(frozen=True, slots=True)
class ClosedAtOnce:
    """Connections that a process closed within 50 ms of their accept, without an answer.

    Attributes:
        pid: The process.
        count: How many.
        unread_count: Of them those of which it had read nothing.
        first_s: Moment of the first close.
        last_s: Likewise the last.
        accepted_count: All that it accepted.
    """

    pid: int
    count: int
    unread_count: int
    first_s: float
    last_s: float
    accepted_count: int


@remembered
def closed_at_once(view: RunView) -> list[ClosedAtOnce]:
    """Processes that closed connections at once, those with most first."""
    rows = fates.latest(view)
    found = []
    for pid, mine in rows.groupby("pid"):
        by_fate = mine.set_index("fate")
        early = by_fate[by_fate.index.isin(_early_fates(view))]
        closed = _closed_early(early.reset_index())
        first_s = view.seconds(int(early["first_ns"].min())) if len(early) else 0.0
        count = int(closed.sum())
        if count >= fates.LEAST_COUNT and _passes_on(view, int(str(pid))):
            passed_count, first_s = _passed_on(view, int(str(pid)))
            count -= passed_count
        if count < fates.LEAST_COUNT:
            continue
        unread = by_fate.index == "closed_unread"
        accepted = by_fate.index == "accepted"
        found.append(
            ClosedAtOnce(
                pid=int(str(pid)),
                count=count,
                unread_count=min(count, int(by_fate["at_once_total"][unread].sum())),
                first_s=first_s,
                last_s=view.seconds(int(early["last_ns"].max())),
                accepted_count=int(by_fate["connection_total"][accepted].sum()),
            )
        )
    return sorted(found, key=lambda each: -each.count)


def _early_fates(view: RunView) -> tuple[str, ...]:
    """Those of connections that were closed before anybody could use them.

    What a client of TLS is answered first is a part of that handshake, no upgrade. Those that were
    open and then lost cannot be told from it.
    """
    is_tls = str((view.manifest.get("server") or {}).get("url") or "").startswith("wss:")
    early = ("closed_unread", "closed_unanswered")
    return (*early, "closed_answered") if is_tls and view.lost_count < fates.LEAST_COUNT else early


def _closed_early(rows: pd.DataFrame) -> pd.Series[int]:
    """How many of each row: of answered ones, whose handshake takes its time, all."""
    return rows["at_once_total"].where(rows["fate"] != "closed_answered", rows["connection_total"])


def unclear_count(view: RunView) -> int:
    """Connections of a watched server that were closed at once by who forks for each connection.

    So are those that a child goes on to serve; as many as children began meanwhile are no question.
    """
    rows = fates.latest(view)
    children = [pid for pid in fates.servers(view) if fates.is_process_per_connection(view, pid)]
    early = rows[rows["fate"].isin(_early_fates(view)) & ~rows["pid"].isin(children)]
    early = early[[_passes_on(view, int(pid)) for pid in early["pid"]]]
    if early.empty or not children:
        return 0
    first_s = view.seconds(int(early["first_ns"].min()))
    last_s = view.seconds(int(early["last_ns"].max()))
    began = fates.children_begun_count(view, first_s - _FORKED_S, last_s)
    return max(0, int(_closed_early(early).sum()) - began)


def let_in_after(view: RunView, pid: int, since_s: float) -> tuple[int, int]:
    """Connections that a process accepted after a moment, and how many of them it did not close."""
    rows = view.frames["connection_fates"]
    rows = rows[(rows["pid"] == pid) & (view.seconds_of(rows["at_ns"]) >= since_s)]
    if rows.empty:
        return 0, 0
    early = rows[rows["fate"].isin(_early_fates(view))]
    accepted = rows[rows["fate"] == "accepted"].groupby("at_ns")["connection_total"].sum()
    closed = early.assign(count=_closed_early(early)).groupby("at_ns")["count"].sum()
    if len(accepted) < 2 or len(closed) < 1:
        return 0, 0
    closed = closed.reindex(accepted.index).ffill().fillna(0)
    tried = int(accepted.iloc[-1] - accepted.iloc[0])
    return tried, max(0, tried - int(closed.iloc[-1] - closed.iloc[0]))


def _passes_on(view: RunView, pid: int) -> bool:
    """It closes its own descriptor of what other processes of the server go on to serve.

    They got it by SCM_RIGHTS or by fork: it holds next to none of the connections, they do.
    """
    peaks = fates.peak_counts(view, "server", "acceptor")
    others = int(peaks.drop(pid, errors="ignore").sum())
    return others >= fates.LEAST_COUNT and int(peaks.get(pid, 0)) <= _PASSING_SHARE * others


def _passed_on(view: RunView, pid: int) -> tuple[int, float]:
    """How many that it closed another process went on to serve, and when one was closed for good.

    A server that forks for each connection serves as many as clients saw established; what it
    closed beside these nobody had. Of processes with many connections each it is not known which
    of them closed one: then all count as passed on.
    """
    connections = view.connections
    gone = connections["is_failed"] & connections["close_kind"].isin(["eof", "rst"])
    live = view.frames["live_samples"]
    others = live["open_count"][(live["role"] == "server") & (live["pid"] != pid)]
    if view.is_attached or not gone.any() or others.empty or int(others.max()) > 1:
        return sys.maxsize, 0.0
    established = int(connections["established_s"].notna().sum())
    return established, float(connections["closed_s"][gone].min())
