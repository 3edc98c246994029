"""How long connect took against how full its pool of local ports was."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from reports.elements import formatting, style
from reports.figures.latency import LINES


def plot_by_use(frame: pd.DataFrame, *, width_pt: float) -> Figure:
    """Percentiles of connect time by use, the time axis logarithmic.

    Args:
        frame: Summary.connect_by_use with at least one row.
        width_pt: style.WIDE_PT or NARROW_PT.
    """
    narrow = style.is_narrow(width_pt)
    height_pt = 170.0
    figure, (axes,) = style.new_figure(width_pt, [height_pt])
    axes.set_xlim(0, 100)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(numticks=6))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda ms, _: formatting.seconds(ms / 1e3)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda pct, _: f"{pct:g} %"))
    axes.set_xlabel("share of the pool's ports in use")
    known = frame[[column for column, *_ in LINES]].to_numpy(dtype="float64")
    known = known[np.isfinite(known) & (known > 0)]
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.01, 1.0)
    axes.set_ylim(low / 1.5, high * (3.0 if narrow else 1.5))
    axes.axvline(50, color=style.MUTED, linewidth=1, dashes=(2, 3))
    axes.annotate(
        "one parity full",
        (50, 0),
        xytext=(4, 5),
        textcoords="offset points",
        xycoords=("data", "axes fraction"),
        color=style.MUTED,
        fontsize=style.FONT_PT - 1,
    )
    ends: list[tuple[float, str, str]] = []
    for column, name, colour, width in LINES:
        x, y = frame["used_pct"].to_numpy(), frame[column].to_numpy()
        axes.plot(x, y, color=colour, linewidth=width, marker="o", markersize=2.5)
        ends.append((float(y[-1]), name, colour))
    style.label_ends(axes, ends, narrow=narrow, panel_pt=height_pt)
    return figure
