"""Descriptors of every fleet process against its own limit."""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis.frames.run_view import RunView
from probes.contract.schema import SERVER_ROLES


def df_descriptors(view: RunView) -> pd.DataFrame:
    """Descriptor use of every fleet process, the fullest first.

    Returns:
        pid, role, worker, soft_count, own_count, capacity_count (soft - own), peak_count
        (connections at its peak, from live counters and descriptor samples), first_full_s (first
        sample at the limit, NaN when never), table, use (part of its capacity), share (part of
        the connections that all processes of its role held).
    """
    processes = view.frames["processes"]
    fleet = processes[processes["role"].isin([*SERVER_ROLES, "client"])]
    fleet = fleet[fleet["nofile_soft_count"] > 0]
    live = view.frames["live_samples"]
    live_pids, live_s = live["pid"].to_numpy(), view.seconds_of(live["at_ns"])
    held, under_way = live["open_count"].to_numpy(), live["in_flight_count"].to_numpy()
    sampled = view.frames["process_samples"]
    sampled_pids, sampled_s = sampled["pid"].to_numpy(), view.seconds_of(sampled["at_ns"])
    open_fds = sampled["fd_count"].to_numpy()
    rows = []
    for pid, role, worker, soft, counted in zip(
        fleet["pid"],
        fleet["role"],
        fleet["worker"],
        fleet["nofile_soft_count"],
        fleet["own_fds_count"],
        strict=True,
    ):
        own = _own_count(view, int(pid), int(counted)) if role == "server" else counted
        capacity = int(soft - own)
        is_of_it = live_pids == pid
        used = held[is_of_it] + (under_way[is_of_it] if role == "client" else 0)
        seen = (sampled_pids == pid) & (open_fds >= 0)
        fds = open_fds[seen] - own
        by_live = int(used.max()) if len(used) else 0
        if role == "client":
            by_live = max(by_live, _most_open(view, int(worker)))
        by_fds = int(fds.max()) if len(fds) else 0
        near = capacity - 2
        moments = [
            *live_s[is_of_it][used >= near][:1],
            *sampled_s[seen][fds >= near][:1],
        ]
        rows.append(
            {
                "pid": int(pid),
                "role": role,
                "worker": int(worker),
                "soft_count": int(soft),
                "own_count": int(own),
                "capacity_count": capacity,
                "peak_count": min(capacity, max(by_live, by_fds, 0)),
                "first_full_s": min(moments) if moments else np.nan,
                "table": "process_samples" if by_fds > by_live else "live_samples",
            }
        )
    columns = ["pid", "role", "worker", "soft_count", "own_count", "capacity_count", "peak_count"]
    frame = pd.DataFrame(rows, columns=[*columns, "first_full_s", "table"])
    use = frame["peak_count"] / frame["capacity_count"].replace(0, np.nan).astype("float64")
    whole = frame.groupby("role")["peak_count"].transform("sum").replace(0, np.nan)
    frame = frame.assign(use=use, share=frame["peak_count"] / whole.astype("float64"))
    return frame.sort_values("use", ascending=False, kind="stable", ignore_index=True)


def _own_count(view: RunView, pid: int, counted: int) -> int:
    """Descriptors that a process had before the first connection, where the rest came with them.

    What is no socket counts as its own, also the pipes that a relay has for each connection (Go
    splices: four of them). A pool that opens with the first connections does not grow with them.
    """
    if not view.is_foreign or view.is_attached:
        return counted
    samples = view.frames["process_samples"]
    before = samples[(samples["pid"] == pid) & (samples["fd_count"] >= 0)]
    before = before[view.seconds_of(before["at_ns"]) <= view.ramp.start_s]
    if before.empty or view.peak_count < _LEAST_CONNECTIONS:
        return counted
    at_first = int(before["fd_count"].iloc[-1])
    sharing = max(1, len(view.pids_of("server")))
    return at_first if (counted - at_first) * sharing >= view.peak_count else counted


_LEAST_CONNECTIONS = 50


def server_capacity_count(descriptors: pd.DataFrame) -> int:
    """Connections that all workers together can hold by their limits.

    Args:
        descriptors: From ``df_descriptors``.
    """
    workers = descriptors[descriptors["role"] == "server"]
    return int(workers["capacity_count"].sum())


def _most_open(view: RunView, client: int) -> int:
    """Most connections that a client had open at once, by its records."""
    mine = view.connections[view.connections["client"] == client]
    opened = np.sort(mine["established_s"].dropna().to_numpy())
    ended = np.sort(mine["closed_s"][mine["established_s"].notna()].dropna().to_numpy())
    counts = np.arange(1, len(opened) + 1) - np.searchsorted(ended, opened, side="right")
    return int(counts.max()) if len(counts) else 0
