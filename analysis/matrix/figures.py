"""The numbers that rows of a matrix are held against, of one run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from analysis.comparison.run_figures import key_figures
from analysis.matrix.matrix import CEILING
from analysis.summary import Summary


@dataclass(frozen=True, slots=True)
class FigureName:
    """A figure that a page may show: its id, what people call it, its unit."""

    name: str
    label: str
    unit: str


SHOWN = (
    FigureName("held_count", "held to the end", "count"),
    FigureName("established_per_s", "established", "per_s"),
    FigureName("open_p99_ms", "connect and handshake, 99th percentile", "ms"),
    FigureName("server_cpu_us_per_connection", "server CPU for each connection", "us"),
    FigureName("server_ramp_cpu_pct", "server CPU in the ramp", "pct"),
    FigureName("server_hold_cpu_pct", "server CPU while holding", "pct"),
    FigureName("client_ramp_cpu_pct", "client CPU in the ramp", "pct"),
    FigureName("client_hold_cpu_pct", "client CPU while holding", "pct"),
    FigureName("worker_imbalance_pct", "fullest worker above the mean", "pct"),
    FigureName("bytes_per_connection", "memory for each connection", "bytes"),
    FigureName("cpu_worker_count", "a worker's core is full at", "count"),
)
"""Those that a row is shown with; CPU: 100 % is one core."""

_LEAST_PINGS_PER_S = 1_000
"""With fewer than this, CPU is not that of pings."""
_IDLE_PCT = 0.1
"""Below this a share of a core is one tick of 10 ms in ten seconds: no smaller number is meant."""


def figures_of(summary: Summary) -> dict[str, float | None]:
    """Every figure of one run by name; None where it was not measured.

    Those of ``key_figures``, and besides: the ceiling, the share of all established that was
    lost, how full the fullest and the emptiest worker were, CPU of both sides in ramp and hold
    (100 is one core), the connections at which the fitted CPU model says that a worker's core is
    full, also as a share of the target, and that share for whichever is full first, a worker's core
    or all cores. ``keepalive_full_s`` is the interval at which keep-alives would fill whichever of
    these is full first, if the machine did nothing else.
    """
    run, phases = summary.run, summary.phases
    figures: dict[str, float | None] = {
        name: figure.value for name, figure in key_figures(summary).items()
    }
    peak = float(run["peak_connections"])
    figures[CEILING] = peak
    figures["at_count"] = float(summary.verdict.at_connections)
    lost, held = float(run["lost_connections"]), float(run["held_connections"])
    figures["lost_share"] = lost / (lost + held) if lost + held else None
    shares = [w["peak_count"] / w["room_count"] for w in workers_of(summary) if w["room_count"] > 0]
    figures["fullest_share"] = max(shares, default=None)
    figures["emptiest_share"] = min(shares, default=None)
    for side in ("server", "client"):
        by_phase = {}
        for phase in ("ramp", "hold"):
            rows = phases[phases["phase"] == phase]
            by_phase[phase] = _known(rows[f"{side}_cpu_pct"].iloc[0]) if len(rows) else None
            figures[f"{side}_{phase}_cpu_pct"] = by_phase[phase]
        ramp, hold = by_phase["ramp"], by_phase["hold"]
        is_known = ramp is not None and hold is not None
        figures[f"{side}_ramp_over_hold"] = ramp / max(hold, _IDLE_PCT) if is_known else None  # type: ignore[operator, type-var]  # both are numbers
    figures["cpu_worker_count"] = at = _full_at(summary, "cpu_worker")
    figures["cpu_worker_over_target"] = None if at is None else at / run["target_connections"]
    first = _full_at(summary, "cpu_worker", "cpu_host")
    figures["cpu_over_target"] = None if first is None else first / run["target_connections"]
    figures["keepalive_full_s"] = _keepalive_full_s(summary)
    return figures


def _full_at(summary: Summary, *limits: str) -> float | None:
    """Connections at which the first of these is full, None when none of them is fitted."""
    predicted = [r.predicted_connections for r in summary.ladder if r.limit in limits]
    return min((float(each) for each in predicted if each is not None), default=None)


def _keepalive_full_s(summary: Summary) -> float | None:
    """Connections held, times the CPU of one ping: of its worker, or of all together on all cores.

    By CPU time, not by how many got out: that would be less beside a neighbour.
    """
    held = int(summary.run["held_connections"])
    hold = summary.phases[summary.phases["phase"] == "hold"]
    if not held or hold.empty:
        return None
    samples = summary.worker_connections
    inside = samples[samples["at_s"].between(hold["start_s"].iloc[0], hold["end_s"].iloc[0])]
    means = inside.groupby("pid")["pings_per_s"].mean()
    sent_per_s = {int(str(pid)): float(mean) for pid, mean in means.items() if mean > 0}
    if sum(sent_per_s.values()) < _LEAST_PINGS_PER_S:
        return None
    cores = int(summary.manifest["host"]["cpu_count"])
    fleet_pct = float(hold[["server_cpu_pct", "client_cpu_pct"]].sum(axis=1).iloc[0])
    worker_pct = dict(zip(summary.processes["pid"], summary.processes["hold_cpu_pct"], strict=True))
    per_ping_s = [fleet_pct / 100 / cores / sum(sent_per_s.values())]
    per_ping_s += [float(worker_pct[pid]) / 100 / each for pid, each in sent_per_s.items()]
    return held * max(per_ping_s)


def workers_of(summary: Summary) -> list[dict[str, Any]]:
    """Each server worker: its most connections, its room for them, its own open files."""
    frame = summary.processes[summary.processes["role"] == "server"].sort_values("worker")
    return [
        {
            "worker": int(row["worker"]),
            "peak_count": int(row["peak_open_count"]),
            "own_count": int(row["own_fds_count"]),
            "room_count": int(row["nofile_soft_count"]) - int(row["own_fds_count"]),
        }
        for row in frame.to_dict("records")
    ]


def _known(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
