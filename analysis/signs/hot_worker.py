"""The worker at a full core: which, and since when."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from analysis.frames.cpu import wants_full_core
from analysis.frames.run_view import RunView
from analysis.stats.spans import runs_of
from analysis.stats.thresholds import LATE_EVENT_S


def find_hot_worker(view: RunView, worker_cpu: pd.DataFrame) -> dict[str, Any] | None:
    """The server-side process that was at a full core for at least 1 s while it was not the norm.

    During the ramp of a host whose cores are all busy, every worker takes what it gets: there a
    worker counts as hot only when it wants a core (``wants_full_core``) and has twice the median
    of its siblings. In the hold phase the first is enough. Where no stretch is such a one, a lone
    worker that wants a core in the ramp is hot as well: it does what it is there for, and is as
    fast as it can be.

    Returns:
        pid, role, worker, since_s, until_s, cpu_pct, user_pct, system_pct, others_cpu_pct,
        is_ramp_only (a lone worker, and only while connections were opened); the longest such
        stretch of the run, None when there was none.
    """
    servers = worker_cpu[worker_cpu["side"] == "server"]
    if servers.empty:
        return None
    return _longest_hot(view, servers, in_ramp=False) or _longest_hot(view, servers, in_ramp=True)


def _longest_hot(view: RunView, servers: pd.DataFrame, *, in_ramp: bool) -> dict[str, Any] | None:
    worker_rows = servers[servers["role"] == "server"]
    best: dict[str, Any] | None = None
    for pid, rows in servers.groupby("pid", sort=True):
        wants = wants_full_core(rows["cpu_pct"].to_numpy(), rows["wait_pct"].to_numpy())
        if not wants.any():
            continue
        others = worker_rows[worker_rows["pid"] != pid].groupby("at_s")["cpu_pct"].median()
        at_s = rows["at_s"].to_numpy()
        cpu = rows["cpu_pct"].to_numpy()
        beside = np.interp(at_s, others.index, others) if len(others) else np.full(len(at_s), 0.0)
        if in_ramp and (len(others) or str(rows["role"].iloc[0]) != "server"):
            continue
        in_hold = (at_s > view.hold.start_s + 0.6) & (at_s <= view.stop_s + LATE_EVENT_S)
        unlike = (cpu >= 2 * beside) & (len(others) > 0)
        in_hold |= in_ramp & (at_s > view.ramp.start_s)
        hot = wants & (at_s <= view.stop_s + LATE_EVENT_S) & (in_hold | unlike)
        for start, stop in runs_of(hot):
            since_s = float(at_s[start - 1]) if start else float(at_s[start]) - 0.5
            length_s = float(at_s[stop - 1]) - since_s
            if length_s >= 0.9 and (best is None or length_s > best["until_s"] - best["since_s"]):
                part = rows.iloc[start:stop]
                best = {
                    "pid": int(str(pid)),
                    "role": str(part["role"].iloc[0]),
                    "worker": int(part["worker"].iloc[0]),
                    "since_s": since_s,
                    "until_s": float(at_s[stop - 1]),
                    "cpu_pct": float(part["cpu_pct"].mean()),
                    "user_pct": float(part["user_pct"].mean()),
                    "system_pct": float(part["system_pct"].mean()),
                    "others_cpu_pct": float(beside[start:stop].mean()) if len(others) else np.nan,
                    "is_ramp_only": in_ramp,
                }
    return best
