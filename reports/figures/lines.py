"""A few named series over time: TCP states, accept queues, TCP's buffer memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter

from reports.elements import style
from reports.figures.time_axis import TimeFrame, draw_phases, draw_window, set_time_axis

Series = Mapping[str, tuple[npt.ArrayLike, npt.ArrayLike]]


def plot_lines(
    series: Series,
    *,
    format_tick: Callable[[float, int | None], str],
    time: TimeFrame,
    width_pt: float,
    limit: tuple[str, float] | None = None,
) -> Figure:
    """Draws each series with its name at its end, and a limit as a dotted line.

    Args:
        series: Name to (seconds, values), at most six.
        format_tick: How the axis writes values.
        time: Of the page.
        width_pt: style.WIDE_PT or NARROW_PT.
        limit: Name and value of a limit; drawn when the data come within a factor of ten of it.
    """
    narrow = style.is_narrow(width_pt)
    height_pt = 150.0
    figure, panels = style.new_figure(width_pt, [height_pt])
    axes = panels[0]
    set_time_axis(panels, time, narrow=narrow)
    ends: list[tuple[float, str, str]] = []
    high = 0.0
    for colour, (name, (xs, ys)) in zip(style.SERIES, series.items(), strict=False):
        x, y = style.thin(xs, ys)
        axes.plot(x, y, color=colour, linewidth=1.5)
        high = max(high, float(y.max(initial=0.0)))
        ends.append((float(y[-1]) if len(y) else 0.0, name, colour))
    if limit is not None and high * 10 >= limit[1]:
        axes.axhline(limit[1], color=style.MUTED, linewidth=1, dashes=(2, 3))
        ends.append((limit[1], limit[0], style.MUTED))
        high = max(high, limit[1])
    axes.set_ylim(0, max(high, 1.0) * (1.3 if narrow else 1.12))
    if format_tick is style.binary_size:
        axes.yaxis.set_major_locator(FixedLocator(style.binary_ticks(max(high, 1.0) * 1.1)))
    axes.yaxis.set_major_formatter(FuncFormatter(format_tick))
    draw_window(panels, time.window_s)
    draw_phases(panels, time.phases)
    style.label_ends(axes, ends, narrow=narrow, panel_pt=height_pt)
    return figure
