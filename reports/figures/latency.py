"""How long connecting took while the ramp went on, and messages in the hold."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from reports.elements import style
from reports.figures.time_axis import TimeFrame, draw_phases, draw_window, set_time_axis

LINES = (
    ("p50_ms", "median", style.BLUE, 1.8),
    ("p90_ms", "90th percentile", style.GREEN, 1.2),
    ("p99_ms", "99th percentile", style.ORANGE, 1.2),
)
_SLOWEST = ("p99_9_ms", "99.9th", style.PURPLE, 1.2)
"""Of messages alone: of connects there are too few in a bin."""


def plot_latency(
    latency: pd.DataFrame,
    *,
    time: TimeFrame,
    width_pt: float,
) -> Figure:
    """Percentiles of one kind of latency over time.

    Args:
        latency: Summary.latency of one kind, or Summary.message_times.
        time: Of the page.
        width_pt: style.WIDE_PT or NARROW_PT.
    """
    narrow = style.is_narrow(width_pt)
    height_pt = 150.0
    figure, panels = style.new_figure(width_pt, [height_pt])
    axes = panels[0]
    # Nothing connects in the hold phase: the axis ends with the data, so that it can be read.
    last_s = float(latency["at_s"].max()) if len(latency) else time.end_s
    set_time_axis(panels, time, narrow=narrow, until_s=last_s)
    ends: list[tuple[float, str, str]] = []
    lines = (*LINES, _SLOWEST) if _SLOWEST[0] in latency else LINES
    for column, name, colour, width in lines:
        x, y = style.thin(latency["at_s"], latency[column])
        axes.plot(x, y, color=colour, linewidth=width, marker="o", markersize=2.5)
        ends.append((float(y[-1]) if len(y) else 0.0, name, colour))
    high = float(latency[lines[-1][0]].max()) if len(latency) else 1.0
    axes.set_ylim(0, max(high, 1e-3) * (1.3 if narrow else 1.12))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} ms"))
    draw_window(panels, time.window_s)
    draw_phases(panels, time.phases)
    style.label_ends(axes, ends, narrow=narrow, panel_pt=height_pt)
    return figure
