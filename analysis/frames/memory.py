"""What a connection costs in memory: slab, socket buffers, user space, each with its slope."""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis.frames.run_view import RunView
from analysis.stats import slopes
from probes.contract.schema import SERVER_ROLES

_BUFFERS = {
    "rmem": "rmem_alloc_bytes",
    "wmem": "wmem_queued_bytes",
    "forward_alloc": "forward_alloc_bytes",
}

_COLUMNS = ["at_s", "component", "kind", "side", "total_bytes", "open_count"]


def df_memory_over_time(view: RunView) -> pd.DataFrame:
    """Bytes of every component over time, and the connections open at that moment.

    Slab counts objects in use times their size: pages that a cache keeps for later would make a
    connection look dearer after a peak. A loopback connection has both its ends in the slab.
    """
    slab = view.frames["slab_caches"]
    slab_rows = pd.DataFrame(
        {
            "at_ns": slab["at_ns"],
            "component": slab["cache"],
            "kind": "slab",
            "side": "both",
            "total_bytes": slab["active_objects_count"] * slab["object_size_bytes"],
        }
    )
    sockets = view.frames["socket_memory"]
    # one row a snapshot, also of a side without sockets, so that the line starts at zero
    summed = sockets.groupby(["at_ns", "side"], as_index=False)[list(_BUFFERS.values())].sum()
    buffer_rows = [
        pd.DataFrame(
            {
                "at_ns": summed["at_ns"],
                "component": name,
                "kind": "buffers",
                "side": summed["side"],
                "total_bytes": summed[column],
            }
        )
        for name, column in _BUFFERS.items()
    ]
    samples = view.frames["process_samples"]
    side = samples["role"].map({**dict.fromkeys(SERVER_ROLES, "server"), "client": "client"})
    user = samples.assign(side=side.fillna("").astype("str"))
    user = _steady(user[user["side"] != ""])
    user_rows = pd.DataFrame(
        {
            "at_ns": user["at_ns"],
            "component": "user " + user["side"],
            "kind": "user",
            "side": user["side"],
            "total_bytes": user["rss_bytes"],
        }
    )
    frame = pd.concat([slab_rows, *buffer_rows, user_rows], ignore_index=True)
    frame = frame.assign(at_s=view.seconds_of(frame["at_ns"]))
    frame = frame.assign(open_count=view.open_at(frame["at_s"]))
    return frame[_COLUMNS].astype({"total_bytes": "int64"})


def _steady(samples: pd.DataFrame) -> pd.DataFrame:
    """RSS of each side at moments where all its processes were sampled.

    Samples of one round carry one ``at_ns``; a round that misses a process would look like
    memory that was given back.
    """
    rounds = samples.groupby(["at_ns", "side"], as_index=False).agg(
        rss_bytes=("rss_bytes", "sum"), process_count=("pid", "nunique")
    )
    most = rounds.groupby("side")["process_count"].transform("max")
    return rounds[rounds["process_count"] == most]


_WATCHED_MOST_ERROR_PCT = 15.0


def df_memory_per_connection(view: RunView, over_time: pd.DataFrame) -> pd.DataFrame:
    """Bytes a connection of each component, by least squares from ramp to the end of the hold.

    Args:
        view: The run.
        over_time: From ``df_memory_over_time``.
    """
    before = over_time["at_s"] <= view.stop_s
    rows = []
    for (component, kind, side), part in over_time[before].groupby(
        ["component", "kind", "side"], sort=False
    ):
        line = slopes.fit(part["open_count"], part["total_bytes"])
        lowest = part.sort_values(["open_count", "at_s"], kind="stable").iloc[0]
        baseline = line.intercept if line and line.is_usable else float(lowest["total_bytes"])
        peak = part.iloc[int(part["open_count"].to_numpy().argmax())]
        span = int(peak["open_count"] - lowest["open_count"])
        if line is not None:
            per_connection, error_pct = line.per_x, line.error_pct
        elif span > 0:
            grown = float(peak["total_bytes"] - lowest["total_bytes"])
            per_connection, error_pct = grown / span, np.nan
        else:
            continue
        rows.append(
            {
                "component": component,
                "kind": kind,
                "side": side,
                "bytes_per_connection": per_connection,
                "fit_error_pct": error_pct if np.isfinite(error_pct) else np.nan,
                "baseline_bytes": max(0.0, baseline),
                "peak_bytes": float(part["total_bytes"].max()),
            }
        )
    columns = ["component", "kind", "side", "bytes_per_connection", "fit_error_pct"]
    columns += ["baseline_bytes", "peak_bytes"]
    frame = pd.DataFrame(rows, columns=columns)
    if view.is_attached:
        # The host is not the run's alone: what grew beside the connections is told by its error.
        frame = frame[frame["fit_error_pct"] <= _WATCHED_MOST_ERROR_PCT]
    return frame.sort_values(
        "bytes_per_connection", ascending=False, kind="stable", ignore_index=True
    )


def df_tcp_mem_over_time(view: RunView) -> pd.DataFrame:
    """TCP's memory and the host's tables over time."""
    sockstat = view.frames["sockstat"]
    columns = ["at_s", "tcp_mem_pages", "tcp_mem_pressure_pages", "tcp_mem_max_pages"]
    columns += ["tcp_inuse_count", "tcp_timewait_count", "file_nr_count", "file_max_count"]
    columns += ["conntrack_count", "conntrack_max_count"]
    return sockstat.assign(at_s=view.seconds_of(sockstat["at_ns"]))[columns]
