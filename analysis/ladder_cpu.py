"""The rungs of the ladder that depend on work instead of numbers: CPU and accept queues."""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis.cpu import cpu_between
from analysis.evidence import Subject, side_of_role
from analysis.run_view import RunView
from analysis.rung import Rung, blind

_IDLE_PCT = 2.0
"""Below this much of a core in the hold phase, CPU says nothing about how many more fit."""


def _cpu_rung(
    view: RunView, limit: str, subject: str, cpu_pct: float, error_pct: float | None, source: str
) -> Rung:
    held = view.held_count
    per_connection = cpu_pct / held if held else None
    predicted, note = None, "CPU in the hold phase, from keep-alives and messages"
    if cpu_pct < _IDLE_PCT:
        note = f"{cpu_pct:.1f} % in the hold phase: these connections cost no CPU while they idle"
    elif not view.settings.get("keepalive_s") and not view.settings.get("message_rate_per_s"):
        note = f"{cpu_pct:.0f} % in the hold phase does not come from the connections (no traffic)"
    elif held:
        predicted = round(100 / (cpu_pct / held))
        if error_pct is not None and error_pct >= 50:
            predicted, note = None, "CPU in the hold phase varies too much to fit a slope"
    return Rung(
        limit=limit,
        scope="process" if limit == "cpu_worker" else "host",
        subject=subject,
        capacity=100.0,
        used_at_peak=cpu_pct,
        unit="pct",
        per_connection=per_connection,
        fit_error_pct=error_pct if predicted is not None else None,
        predicted_connections=predicted,
        source=source,
        note=note,
        met=cpu_pct >= 97 and predicted is not None,
    )


def _error_of_mean_pct(values: np.ndarray) -> float | None:
    mean = float(values.mean()) if len(values) else 0.0
    if len(values) < 3 or mean <= 0:
        return None
    return float(100 * values.std(ddof=1) / np.sqrt(len(values)) / mean)


def worker_cpu_rung(view: RunView) -> Rung:
    """The server process that used most CPU in the hold phase, against one full core."""
    source = "process_samples in the hold phase"
    mean = cpu_between(view, view.hold) if view.hold.duration_s >= 1 else pd.DataFrame()
    servers = mean[mean["role"].map(side_of_role) == "server"] if len(mean) else mean
    if servers.empty or not view.held_count:
        return blind("cpu_worker", "process", "pct", "the run did not hold for a second", source)
    top = servers.loc[servers["cpu_pct"] == servers["cpu_pct"].max()].iloc[0]
    samples = view.frames["process_samples"]
    mine = samples[samples["pid"] == top["pid"]]
    at_s = view.seconds_of(mine["at_ns"])
    busy = (mine["cpu_user_ns_total"] + mine["cpu_system_ns_total"]).to_numpy()
    steps = 100 * np.diff(busy) / np.maximum(1, np.diff(mine["at_ns"].to_numpy()))
    inside = (at_s[1:] > view.hold.start_s + 0.5) & (at_s[1:] <= view.hold.end_s)
    subject = str(Subject(str(top["role"]), int(top["pid"]), int(top["worker"])))
    error_pct = _error_of_mean_pct(steps[inside])
    return _cpu_rung(view, "cpu_worker", subject, float(top["cpu_pct"]), error_pct, source)


def host_cpu_rung(view: RunView) -> Rung:
    """All cores in the hold phase, less what was busy before the ramp, against all of them."""
    source = "/proc/stat in the hold phase, less what was busy before the ramp"
    raw = view.frames["host_cpu"]
    kinds = ["user", "system", "softirq", "irq"]
    whole = raw[raw["core"] >= 0] if (raw["core"] >= 0).any() else raw
    moments = whole.groupby("at_ns")[[f"{k}_ns_total" for k in [*kinds, "idle", "steal"]]].sum()
    at_s = view.seconds_of(moments.index)
    steps = moments.diff().iloc[1:]
    share = 100 * steps[[f"{k}_ns_total" for k in kinds]].sum(axis=1) / steps.sum(axis=1)
    inside = (at_s[1:] > view.hold.start_s + 0.5) & (at_s[1:] <= view.hold.end_s)
    busy = share.to_numpy()[inside]
    if not len(busy) or not view.held_count:
        return blind("cpu_host", "host", "pct", "the hold phase was not sampled", source)
    earlier = share.to_numpy()[at_s[1:] < 0]
    quiet = float(earlier.min()) if len(earlier) else 0.0
    cpu_pct = max(0.0, float(busy.mean()) - quiet)
    return _cpu_rung(view, "cpu_host", "the host", cpu_pct, _error_of_mean_pct(busy), source)


def accept_queue_rung(listeners: pd.DataFrame) -> Rung:
    """The accept queue that came closest to its backlog."""
    source = "iter/tcp: sk_ack_backlog, sk_max_ack_backlog"
    if listeners.empty:
        return blind("accept_queue", "listener", "count", "no listener was seen", source)
    top = listeners.sort_values("used_pct", ascending=False, kind="stable").iloc[0]
    used, capacity = int(top["accept_queue_max_count"]), int(top["backlog_count"])
    return Rung(
        limit="accept_queue",
        scope="listener",
        subject=f"{top['local_address']}:{top['local_port']} (inode {top['socket_inode']})",
        capacity=float(capacity),
        used_at_peak=float(used),
        unit="count",
        per_connection=None,
        fit_error_pct=None,
        predicted_connections=None,
        source=source,
        note="it follows the rate of new connections, not their number",
        met=used >= capacity > 0,
    )
