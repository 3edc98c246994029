"""The key figures of one run: what two runs are compared by."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from analysis.summary import Summary

Better = Literal["lower", "higher", ""]

CPU_TICK_S = 0.01
"""/proc/PID/stat counts CPU time in steps of USER_HZ, 10 ms (proc_pid_stat(5))."""
_FULL_COVER = 0.9
_FEWEST_LEVELS = 5


@dataclass(frozen=True, slots=True)
class Figure:
    """One number of one run.

    Attributes:
        name: Its id, with the unit as suffix.
        value: None when this run did not measure it.
        unit: count, per_s, s, ms, us, bytes or pct (of one core).
        better: Which direction is the better one, '' when neither is.
        label: What people call it.
        error: Error of the fit that it comes from, in its unit; None when it was not fitted.
        resolution: Smallest step that its measurement can see, in its unit.
        slowed_by_probes: Watching costs CPU, which changes this figure.
    """

    name: str
    value: float | None
    unit: str
    better: Better
    label: str = ""
    error: float | None = None
    resolution: float = 0.0
    slowed_by_probes: bool = False


@dataclass(frozen=True, slots=True)
class _Kind:
    name: str
    label: str
    unit: str
    better: Better
    slowed_by_probes: bool = False


_KINDS = (
    _Kind("held_count", "connections held", "count", "higher"),
    _Kind("failed_count", "connections that failed", "count", "lower"),
    _Kind("lost_count", "connections lost", "count", "lower"),
    _Kind("established_per_s", "established per second", "per_s", "higher", True),
    _Kind("ramp_s", "ramp time", "s", "lower", True),
    _Kind("connect_p50_ms", "TCP connect, median", "ms", "lower", True),
    _Kind("connect_p99_ms", "TCP connect, 99th percentile", "ms", "lower", True),
    _Kind("open_p50_ms", "connect and handshake, median", "ms", "lower", True),
    _Kind("open_p99_ms", "connect and handshake, 99th percentile", "ms", "lower", True),
    _Kind("message_p50_ms", "answer to a message, median", "ms", "lower", True),
    _Kind("message_p99_ms", "answer to a message, 99th percentile", "ms", "lower", True),
    _Kind("server_cpu_us_per_connection", "server CPU per connection", "us", "lower", True),
    _Kind("client_cpu_us_per_connection", "client CPU per connection", "us", "lower", True),
    _Kind("server_hold_cpu_pct", "server CPU while holding", "pct", "lower", True),
    _Kind("worker_imbalance_pct", "fullest worker above the mean", "pct", "lower"),
    _Kind("bytes_per_connection", "memory per connection, both ends", "bytes", "lower"),
    _Kind("kernel_bytes_per_connection", "memory per connection, kernel", "bytes", "lower"),
    _Kind(
        "server_bytes_per_connection", "memory per connection, server processes", "bytes", "lower"
    ),
    _Kind("probe_cpu_pct", "CPU of the probe process in the ramp", "pct", "lower"),
    _Kind("bpf_cpu_pct", "CPU of eBPF programs", "pct", "lower"),
)
FIGURE_NAMES = tuple(kind.name for kind in _KINDS)

_Measured = tuple[float | None, float | None, float]  # value, error of the fit, resolution
_NOTHING: _Measured = (None, None, 0.0)


def key_figures(summary: Summary) -> dict[str, Figure]:
    """Every key figure of a run, by name, in the order to show; those not measured have no value.

    ``*_cpu_us_per_connection`` is the CPU time of a side's processes in the ramp for each
    connection that it established; ``*_hold_cpu_pct`` is 100 for one full core; memory is the
    slope over the run, both ends together as both are on this machine.
    """
    measured = {
        **_counts(summary),
        **_ramp(summary),
        **_latency(summary),
        **_memory(summary),
        **_probes(summary),
        "worker_imbalance_pct": (_imbalance_pct(summary.processes), None, 0.0),
    }
    return {kind.name: _figure(kind, *measured.get(kind.name, _NOTHING)) for kind in _KINDS}


def _figure(kind: _Kind, value: float | None, error: float | None, resolution: float) -> Figure:
    known = None if value is None or not math.isfinite(value) else float(value)
    is_fitted = known is not None and error is not None and math.isfinite(error)
    return Figure(
        kind.name,
        known,
        kind.unit,
        kind.better,
        label=kind.label,
        error=error if is_fitted else None,
        resolution=resolution,
        slowed_by_probes=kind.slowed_by_probes,
    )


def _counts(summary: Summary) -> dict[str, _Measured]:
    return {
        f"{name}_count": (float(summary.run[f"{name}_connections"]), None, 0.0)
        for name in ("held", "failed", "lost")
    }


def _phase(summary: Summary, name: str) -> pd.Series[float] | None:
    rows = summary.phases[summary.phases["phase"] == name]
    return rows.iloc[0] if len(rows) else None


def _ramp(summary: Summary) -> dict[str, _Measured]:
    ramp, hold = _phase(summary, "ramp"), _phase(summary, "hold")
    figures: dict[str, _Measured] = {}
    if ramp is not None and ramp["duration_s"] > 0:
        figures["established_per_s"] = (float(ramp["established_per_s"]), None, 0.0)
        figures["ramp_s"] = (float(ramp["duration_s"]), None, 0.0)
        established = float(ramp["established_count"])
        for side in ("server", "client"):
            spent_s, resolution_s = _cpu_s_in(summary.worker_cpu, side, float(ramp["end_s"]))
            if spent_s is not None and established > 0:
                per_s = 1e6 / established
                name = f"{side}_cpu_us_per_connection"
                figures[name] = (spent_s * per_s, None, resolution_s * per_s)
    if hold is not None and hold["duration_s"] > 0:
        processes = int((summary.processes["side"] == "server").sum())
        resolution_pct = 100 * CPU_TICK_S * processes / float(hold["duration_s"])
        figures["server_hold_cpu_pct"] = (float(hold["server_cpu_pct"]), None, resolution_pct)
    return figures


def _cpu_s_in(worker_cpu: pd.DataFrame, side: str, end_s: float) -> tuple[float | None, float]:
    """CPU seconds of a side in the ramp, and the resolution of that.

    Every sampling interval that touches the ramp counts whole: an interval is longer than the ramp
    of a small run, and the fleet is idle outside of it.
    """
    mine = worker_cpu[worker_cpu["side"] == side].sort_values(["pid", "at_s"], kind="stable")
    if mine.empty:
        return None, 0.0
    took_s = mine.groupby("pid")["at_s"].diff()
    took_s = took_s.fillna(took_s.median())
    begun_s = mine["at_s"] - took_s
    touches = (begun_s < end_s) & (mine["at_s"] > 0)
    covered_s = mine["at_s"].clip(upper=end_s) - begun_s.clip(lower=0)
    process_count = mine["pid"].nunique()
    if covered_s[touches].sum() < _FULL_COVER * end_s * process_count:
        return None, 0.0
    spent_s = (mine["cpu_pct"] / 100 * took_s)[touches].sum()
    return float(spent_s), CPU_TICK_S * process_count


def _latency(summary: Summary) -> dict[str, _Measured]:
    totals = summary.latency_totals
    figures: dict[str, _Measured] = {}
    for kind in ("connect", "open"):
        rows = totals[totals["kind"] == kind] if len(totals) else totals
        for quantile in ("p50_ms", "p99_ms"):
            value = float(rows[quantile].iloc[0]) if len(rows) else None
            figures[f"{kind}_{quantile}"] = (value, None, 0.0)
    messages = summary.run.get("messages") or {}
    for quantile in ("p50_ms", "p99_ms"):
        figures[f"message_{quantile}"] = (messages.get(quantile), None, 0.0)
    return figures


def _memory(summary: Summary) -> dict[str, _Measured]:
    frame = summary.memory_per_connection
    frame = frame.assign(fit_error_pct=frame["fit_error_pct"].where(_is_fitted(summary, frame)))
    is_kernel = frame["kind"].isin(["slab", "buffers"])
    is_server = (frame["kind"] == "user") & (frame["side"] == "server")
    # Sockets are in the slab: a sum without it would be a part that looks like the whole.
    has_slab = (frame["bytes_per_connection"].where(frame["kind"] == "slab") > 0).any()
    return {
        "bytes_per_connection": _slope_sum(frame) if has_slab else _NOTHING,
        "kernel_bytes_per_connection": _slope_sum(frame[is_kernel]) if has_slab else _NOTHING,
        "server_bytes_per_connection": _slope_sum(frame[is_server]),
    }


def _is_fitted(summary: Summary, frame: pd.DataFrame) -> pd.Series[bool]:
    """Rows whose slope has enough levels of connections behind it for its error to mean something.

    A ramp shorter than the sampling gives two levels, none open and all open: any line fits those.
    """
    key = ["component", "kind", "side"]
    before = summary.memory_over_time[summary.memory_over_time["at_s"] <= summary.duration_s]
    levels = before.groupby(key)["open_count"].nunique().rename("level_count").reset_index()
    counts = frame[key].merge(levels, on=key, how="left")["level_count"]
    return pd.Series(counts.to_numpy() >= _FEWEST_LEVELS, index=frame.index)


def _slope_sum(frame: pd.DataFrame) -> _Measured:
    """Sum of slopes; a part that shrinks while connections grow costs nothing.

    Its error is that of its parts when most of the sum (nine tenths) was fitted.
    """
    known = frame[frame["bytes_per_connection"].notna()]
    if known.empty:
        return _NOTHING
    slopes = known["bytes_per_connection"].clip(lower=0)
    errors = known["bytes_per_connection"].abs() * known["fit_error_pct"] / 100
    whole, fitted = float(slopes.sum()), float(slopes[errors.notna()].sum())
    is_fitted = errors.notna().any() and fitted >= _FULL_COVER * whole
    error = float(np.sqrt((errors.dropna() ** 2).sum())) if is_fitted else None
    return whole, error, 0.0


def _probes(summary: Summary) -> dict[str, _Measured]:
    overhead = summary.probe_overhead
    ramp = overhead[overhead["phase"] == "ramp"]
    return {
        name: (float(ramp[name].iloc[0]) if len(ramp) else None, None, 0.0)
        for name in ("probe_cpu_pct", "bpf_cpu_pct")
    }


def _imbalance_pct(processes: pd.DataFrame) -> float | None:
    workers = processes[processes["role"] == "server"]["peak_open_count"]
    mean = float(workers.mean()) if len(workers) else 0.0
    return 100 * (float(workers.max()) / mean - 1) if mean > 0 else None
