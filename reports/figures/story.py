"""The run on one time axis, so that the eye sees what came first.

Connections, errors, CPU, memory and events share their seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter

from reports.elements import style
from reports.figures.time_axis import (
    Mark,
    TimeFrame,
    draw_marks,
    draw_phases,
    draw_window,
    set_time_axis,
)

KIND_NAMES = {"slab": "kernel slab", "buffers": "socket buffers", "user": "user memory"}
KIND_COLOURS = {"slab": style.BLUE, "buffers": style.ORANGE, "user": style.GREEN}
MAX_ERROR_LINES = 3


def plot_story(
    connections: pd.DataFrame,
    errors: pd.DataFrame,
    cpu: pd.DataFrame,
    host_cpu: pd.DataFrame,
    memory: pd.DataFrame,
    *,
    target_connections: int,
    hot_pid: int | None,
    time: TimeFrame,
    marks: Sequence[Mark],
    width_pt: float,
) -> Figure:
    """Stacked panels with one time axis; a panel without data is left out.

    Args:
        connections: Summary.connections_over_time; the rows of all clients together are drawn.
        errors: Summary.errors_over_time.
        cpu: Summary.worker_cpu.
        host_cpu: Summary.host_cpu.
        memory: Summary.memory_over_time.
        target_connections: Drawn as a line.
        hot_pid: The worker to set apart, None for the busiest at its peak.
        time: Of the page.
        marks: (at_s, number) of events.
        width_pt: style.WIDE_PT or NARROW_PT.
    """
    narrow = style.is_narrow(width_pt)
    drawn: list[tuple[float, str]] = []
    if not connections.empty:
        drawn += [(150.0, "open"), (90.0, "rate")]
    if not errors.empty:
        drawn.append((90.0, "errors"))
    if not cpu.empty:
        drawn.append((120.0, "cpu"))
    if not memory.empty:
        drawn.append((100.0, "memory"))
    if not drawn:
        drawn = [(60.0, "nothing")]
    figure, panels = style.new_figure(
        width_pt, [height for height, _ in drawn], top_pt=42.0 if marks else 24.0
    )
    set_time_axis(panels, time, narrow=narrow)
    for axes, (height_pt, kind) in zip(panels, drawn, strict=True):
        if kind == "open":
            _draw_open(axes, connections, target_connections, narrow=narrow, panel_pt=height_pt)
        elif kind == "rate":
            _draw_rate(axes, connections)
        elif kind == "errors":
            _draw_errors(axes, errors, time.end_s, narrow=narrow, panel_pt=height_pt)
        elif kind == "cpu":
            _draw_cpu(axes, cpu, host_cpu, hot_pid, narrow=narrow, panel_pt=height_pt)
        elif kind == "memory":
            _draw_memory(axes, memory, narrow=narrow, panel_pt=height_pt)
    draw_window(panels, time.window_s)
    draw_phases(panels, time.phases)
    draw_marks(panels, marks)
    return figure


def _title(axes: Axes, text: str) -> None:
    """The panel's name, above its left end, out of the way of the marks over the first panel."""
    axes.annotate(
        text,
        (0, 1),
        xytext=(0, 7),
        textcoords="offset points",
        xycoords="axes fraction",
        color=style.TEXT,
        fontweight="bold",
    )


def _draw_open(
    axes: Axes, connections: pd.DataFrame, target: int, *, narrow: bool, panel_pt: float
) -> None:
    total = connections[connections["client"] == -1]
    x, y = style.thin(total["at_s"], total["open_count"])
    axes.fill_between(x, y, color=style.BLUE, alpha=0.14, linewidth=0)
    axes.plot(x, y, color=style.BLUE)
    axes.set_ylim(0, max(float(target), float(y.max(initial=0.0)), 1.0) * 1.12)
    if target:
        axes.axhline(target, color=style.MUTED, linewidth=1, dashes=(2, 3))
    axes.yaxis.set_major_formatter(FuncFormatter(style.thousands))
    last = float(y[-1]) if len(y) else 0.0
    labels = [(last, f"{last:,.0f} open", style.BLUE)]
    if target and not narrow and abs(target - last) > 0.02 * target:
        labels.append((float(target), f"target {target:,}", style.MUTED))
    if not narrow:
        style.label_ends(axes, labels, narrow=False, panel_pt=panel_pt)


def _draw_rate(axes: Axes, connections: pd.DataFrame) -> None:
    total = connections[connections["client"] == -1]
    x, y = style.thin(total["at_s"], total["established_per_s"])
    axes.fill_between(x, y, step="mid", color=style.GREEN, alpha=0.16, linewidth=0)
    axes.step(x, y, where="mid", color=style.GREEN)
    axes.set_ylim(0, max(float(y.max(initial=0.0)), 1.0) * 1.1)
    axes.yaxis.set_major_formatter(FuncFormatter(style.thousands))
    _title(axes, "new connections per second")


def _draw_errors(
    axes: Axes, errors: pd.DataFrame, end_s: float, *, narrow: bool, panel_pt: float
) -> None:
    by_time = errors.groupby(["side", "syscall", "errno_name", "at_s"], as_index=False)
    sums = by_time["events_per_s"].sum()
    keys = ["side", "syscall", "errno_name"]
    order = sums.groupby(keys)["events_per_s"].sum().sort_values(ascending=False)
    labels: list[tuple[float, str, str]] = []
    top = 1.0
    for number, key in enumerate(order.index[:MAX_ERROR_LINES]):
        side, syscall, errno_name = key
        part = sums[
            (sums["side"] == side)
            & (sums["syscall"] == syscall)
            & (sums["errno_name"] == errno_name)
        ]
        x, y = style.thin(*_with_zeros(part["at_s"], part["events_per_s"], end_s))
        colour = (style.ORANGE, style.PURPLE, style.AMBER)[number]
        axes.step(x, y, where="mid", color=colour)
        top = max(top, float(y.max(initial=0.0)))
        labels.append((float(y[-1]), f"{side} {syscall} {errno_name}", colour))
    axes.set_ylim(0, top * (1.35 if narrow else 1.1))
    axes.yaxis.set_major_formatter(FuncFormatter(style.thousands))
    style.label_ends(axes, labels[: 1 if narrow else None], narrow=narrow, panel_pt=panel_pt)
    _title(axes, "errors per second")


def _with_zeros(
    at_s: pd.Series[float], per_s: pd.Series[float], end_s: float
) -> tuple[style.Floats, style.Floats]:
    """Adds the zeros that nobody recorded: before the first error, after the last, in gaps."""
    times = np.asarray(at_s, dtype=np.float64)
    values = np.asarray(per_s, dtype=np.float64)
    step_s = float(np.median(np.diff(times))) if len(times) > 1 else end_s / 100
    gaps = np.flatnonzero(np.diff(times) > 1.8 * step_s)
    quiet = np.concatenate(
        ([0.0, times[0] - step_s], times[gaps] + step_s, times[gaps + 1] - step_s)
        if len(gaps)
        else ([0.0, times[0] - step_s],)
    )
    if times[-1] + step_s < end_s:
        quiet = np.append(quiet, [times[-1] + step_s, end_s])
    quiet = np.asarray(quiet[quiet >= 0], dtype=np.float64)
    x = np.concatenate((times, quiet))
    y = np.concatenate((values, np.zeros(len(quiet))))
    order = np.argsort(x, kind="stable")
    return x[order], y[order]


def _draw_cpu(
    axes: Axes,
    cpu: pd.DataFrame,
    host_cpu: pd.DataFrame,
    hot_pid: int | None,
    *,
    narrow: bool,
    panel_pt: float,
) -> None:
    labels: list[tuple[float, str, str]] = []
    servers = cpu[cpu["side"] == "server"]
    if not servers.empty:
        if hot_pid is None or hot_pid not in set(servers["pid"]):
            hot_pid = int(cast(int, servers.groupby("pid")["cpu_pct"].mean().idxmax()))
        hot = servers[servers["pid"] == hot_pid]
        others = servers[servers["pid"] != hot_pid]
        if not others.empty:
            band = others.groupby("at_s")["cpu_pct"].agg(["min", "median", "max"]).reset_index()
            axes.fill_between(
                band["at_s"], band["min"], band["max"], color=style.BLUE, alpha=0.2, linewidth=0
            )
            x, y = style.thin(band["at_s"], band["median"])
            axes.plot(x, y, color=style.BLUE, linewidth=1.2)
            count = others["pid"].nunique()
            name = "the other worker" if count == 1 else f"{count} other workers"
            labels.append((float(y[-1]), name, style.BLUE))
        x, y = style.thin(hot["at_s"], hot["cpu_pct"])
        axes.plot(x, y, color=style.ORANGE, linewidth=2.2)
        worker = int(hot["worker"].iloc[0])
        labels.insert(0, (float(y[-1]), f"worker {worker}", style.ORANGE))
    clients = cpu[cpu["side"] == "client"]
    if not clients.empty:
        middle = clients.groupby("at_s")["cpu_pct"].median().reset_index()
        x, y = style.thin(middle["at_s"], middle["cpu_pct"])
        axes.plot(x, y, color=style.GREEN, linewidth=1.2, dashes=(4, 2))
        labels.append((float(y[-1]), "clients (median)", style.GREEN))
    whole = host_cpu[host_cpu["core"] == -1]
    if not whole.empty and not narrow:
        x, y = style.thin(whole["at_s"], whole["busy_pct"])
        axes.plot(x, y, color=style.PURPLE, linewidth=1.2, dashes=(1, 2))
        labels.append((float(y[-1]), "all cores (mean)", style.PURPLE))
    top = max(105.0, float(cpu["cpu_pct"].max()) * 1.05)
    axes.set_ylim(0, top * (1.25 if narrow else 1.0))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} %"))
    style.label_ends(axes, labels, narrow=narrow, panel_pt=panel_pt)
    _title(axes, "CPU, per cent of one core")


def _draw_memory(axes: Axes, memory: pd.DataFrame, *, narrow: bool, panel_pt: float) -> None:
    sums = memory.groupby(["at_s", "kind"])["total_bytes"].sum().unstack("kind").sort_index()
    # Slab, buffers and processes are sampled at their own moments: carry each on to the next.
    filled = sums.interpolate(method="index").bfill().ffill().fillna(0.0)
    kinds = [kind for kind in KIND_NAMES if kind in filled.columns]
    x = filled.index.to_numpy(dtype=float)
    base = np.zeros(len(x))
    labels: list[tuple[float, str, str]] = []
    for kind in kinds:
        upper = base + filled[kind].to_numpy(dtype=float)
        axes.fill_between(x, base, upper, color=KIND_COLOURS[kind], alpha=0.3, linewidth=0)
        axes.plot(*style.thin(x, upper), color=KIND_COLOURS[kind], linewidth=1.3)
        labels.append((float((base[-1] + upper[-1]) / 2), KIND_NAMES[kind], KIND_COLOURS[kind]))
        base = upper
    highest = max(float(base.max(initial=0.0)), 1.0)
    axes.set_ylim(0, highest * (1.3 if narrow else 1.1))
    axes.yaxis.set_major_locator(FixedLocator(style.binary_ticks(highest * 1.1)))
    axes.yaxis.set_major_formatter(FuncFormatter(style.binary_size))
    style.label_ends(axes, labels, narrow=narrow, panel_pt=panel_pt)
    _title(axes, "memory of sockets and processes")
