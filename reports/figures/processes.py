"""One line per process over time: who filled first, who was hot, whose loop stood still."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from reports.elements import style
from reports.figures.time_axis import TimeFrame, draw_phases, draw_window, set_time_axis

NAMED_LINES = 3


def plot_per_process(
    frame: pd.DataFrame,
    value: str,
    *,
    key: str,
    noun: str,
    plural: str,
    highlight: int | None,
    format_tick: Callable[[float, int | None], str],
    time: TimeFrame,
    width_pt: float,
    colour: str = style.BLUE,
    at_least: float = 1.0,
) -> Figure:
    """Every process as a thin line, the one that matters thick and named, the extremes named.

    Args:
        frame: Columns at_s, ``key`` and ``value``.
        value: Column to draw.
        key: Column that tells the processes apart (worker or client).
        noun: What one is called in a label ("worker").
        plural: What the rest are called ("other workers").
        highlight: The key to set apart, None for the one with the largest value.
        format_tick: How the axis writes values.
        time: Of the page.
        width_pt: style.WIDE_PT or NARROW_PT.
        colour: Of the ordinary lines.
        at_least: Smallest upper end of the value axis.
    """
    narrow = style.is_narrow(width_pt)
    height_pt = 150.0 if narrow else 190.0
    figure, panels = style.new_figure(width_pt, [height_pt])
    axes = panels[0]
    set_time_axis(panels, time, narrow=narrow)
    frame = frame[frame["at_s"] >= 0]
    largest = frame.groupby(key)[value].max()
    if highlight is None or highlight not in largest.index:
        highlight = int(cast(int, largest.idxmax())) if len(largest) else None
    ends: list[tuple[float, str, str]] = []
    others: list[float] = []
    crowd = max(0.25, 0.9 - 0.012 * len(largest))
    for number, part in frame.groupby(key):
        x, y = style.thin(part["at_s"], part[value])
        if number == highlight and len(largest) > 1:
            continue
        axes.plot(x, y, color=colour, linewidth=1.1, alpha=crowd)
        others.append(float(y[-1]))
    if highlight is not None:
        part = frame[frame[key] == highlight]
        x, y = style.thin(part["at_s"], part[value])
        axes.plot(x, y, color=style.ORANGE, linewidth=2.2)
        ends.append((float(y[-1]), f"{noun} {highlight}", style.ORANGE))
    if others and len(largest) > 1:
        middle = sorted(others)[len(others) // 2]
        name = f"{len(others)} other {plural}" if len(others) > 1 else f"the other {noun}"
        ends.append((middle, name, colour))
    axes.set_ylim(0, max(float(largest.max()) if len(largest) else 0.0, at_least) * 1.12)
    axes.yaxis.set_major_formatter(FuncFormatter(format_tick))
    draw_window(panels, time.window_s)
    draw_phases(panels, time.phases)
    style.label_ends(axes, ends, narrow=narrow, panel_pt=height_pt)
    return figure
