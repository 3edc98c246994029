"""The rungs of the ladder that depend on work instead of numbers: CPU and accept queues."""

from __future__ import annotations

import pandas as pd

from analysis.evidence import side_of_role
from analysis.frames.cpu import cpu_between
from analysis.frames.host_facts import quota_cores
from analysis.frames.keepalive import PingWork, fleet_cpu_pct, ping_work
from analysis.frames.run_view import RunView
from analysis.ladder.rung import HARDWARE, SETTING, Rung, blind

_MET_SHARE = 0.97
_IDLE_PCT = 2.0
"""Below this much of a core in the hold phase, CPU says nothing about how many more fit."""


def worker_cpu_rung(view: RunView) -> Rung:
    """The server process that used most CPU in the hold phase, against one full core."""
    source = f"process_samples {view.words.in_hold}"
    mean = cpu_between(view, view.hold) if view.hold.duration_s >= 1 else pd.DataFrame()
    servers = mean[mean["role"].map(side_of_role) == "server"] if len(mean) else mean
    if servers.empty or not view.held_count:
        return blind("cpu_worker", "process", "pct", "the run did not hold for a second", source)
    top = servers.sort_values("cpu_pct", ascending=False, kind="stable").to_dict("records")[0]
    subject = view.subject(int(top["pid"]))
    work = next((w for w in ping_work(view) if w.pid == subject.pid), None)
    wanted_pct = work.wanted_cpu_pct if work else float(top["cpu_pct"])
    return _cpu_rung(view, "cpu_worker", str(subject), wanted_pct, 100.0, work, source)


def host_cpu_rung(view: RunView) -> Rung:
    """Servers and clients together in the hold phase, against what others leave of the cores."""
    source = f"process_samples of the fleet and /proc/stat {view.words.in_hold}"
    raw = view.host_cpu
    kinds = ["user", "system", "softirq", "irq", "steal"]  # nobody has a core that is stolen
    whole = raw[raw["core"] >= 0] if (raw["core"] >= 0).any() else raw
    moments = whole.groupby("at_ns")[[f"{k}_ns_total" for k in [*kinds, "idle"]]].sum()
    at_s = view.seconds_of(moments.index)
    inside = moments[(at_s >= view.hold.start_s) & (at_s <= view.hold.end_s)]
    fleet_pct = fleet_cpu_pct(view)
    if len(inside) < 2 or not view.held_count:
        return blind("cpu_host", "host", "pct", f"{view.words.hold} was not sampled", source)
    grown = inside.iloc[-1] - inside.iloc[0]
    cores_pct = 100.0 * view.core_count
    busy = float(grown[[f"{k}_ns_total" for k in kinds]].sum())
    busy_pct = cores_pct * busy / max(1.0, float(grown.sum()))
    room_pct = max(fleet_pct, cores_pct - max(0.0, busy_pct - fleet_pct))
    quota = None if view.is_attached else quota_cores(view.host)
    if quota is not None:  # of the group that the run is in: others of the host do not use it
        room_pct = min(room_pct, 100.0 * quota)
    work = ping_work(view)
    behind = max((w.wanted_cpu_pct / max(w.cpu_pct, 0.1) for w in work), default=1.0)
    worst = work[0] if work else None
    return _cpu_rung(view, "cpu_host", "the host", fleet_pct * behind, room_pct, worst, source)


def _cpu_rung(
    view: RunView,
    limit: str,
    subject: str,
    used_pct: float,
    capacity_pct: float,
    work: PingWork | None,
    source: str,
) -> Rung:
    """A rung of CPU over connections held.

    Args:
        view: The run.
        limit: cpu_worker or cpu_host.
        subject: For people.
        used_pct: CPU of the hold phase at the rate that is due; 100 is one core.
        capacity_pct: What there is.
        work: Keep-alives that it comes from, None when there were none.
        source: For people.
    """
    held = view.held_count
    predicted, error_pct = None, None
    if used_pct < _IDLE_PCT:
        note = f"{used_pct:.1f} % {view.words.in_hold}: too little to say where it ends"
    elif view.is_attached:
        note = "what its clients asked for is not seen: CPU is not told by connections alone"
    elif view.settings.get("message_rate_per_s") and work is None:
        note = "messages came at a fixed rate of the whole run: CPU does not grow with connections"
    elif not view.settings.get("keepalive_s"):
        note = f"{used_pct:.0f} % in the hold phase does not come from traffic: there was none"
    elif work is None:
        note = "the hold phase was too short to see a keep-alive: hold longer than its interval"
    else:
        error_pct = work.error_pct
        predicted = round(held * capacity_pct / used_pct)
        note = "CPU of keep-alives in the hold phase, in proportion to connections" + _elsewhere(
            predicted, work.interval_s
        )
    return Rung(
        limit=limit,
        scope="process" if limit == "cpu_worker" else "host",
        subject=subject,
        capacity=capacity_pct,
        used_at_peak=used_pct,
        unit="pct",
        per_connection=used_pct / held if predicted is not None else None,
        fit_error_pct=error_pct,
        predicted_connections=predicted,
        source=source,
        note=note,
        met=predicted is not None and used_pct >= _MET_SHARE * capacity_pct,
        moved_by=HARDWARE if limit == "cpu_host" else SETTING,
    )


_USUAL_INTERVALS_S = (1.0, 5.0, 25.0, 60.0)


def _elsewhere(predicted: int, interval_s: float) -> str:
    """The same cost per message at other intervals: the ceiling is in proportion to them."""
    others = [s for s in _USUAL_INTERVALS_S if s > 1.2 * interval_s][:2]
    ceilings = [f"about {round(predicted * s / interval_s):,} at {s:g} s" for s in others]
    return f"; by the same cost {' and '.join(ceilings)}" if ceilings else ""


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
