"""One figure across variants: a dot for every repeat, a bar for the median, from zero."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from reports.elements import style

WIDE_PT, NARROW_PT = 540.0, 340.0
_ROW_PT, _TOP_PT, _BOTTOM_PT, _SIDE_PT = 44.0, 4.0, 26.0, 10.0
_DOT_Y = 0.68
_EDGE_SHARE = 0.94
"""Of the axis: a label in the middle of a tick beyond it is cut off."""
_CHARACTER_PT = 7.4
"""Of the widest of the fonts that readers have (DejaVu Sans at 12 points), on average."""


@dataclass(frozen=True, slots=True)
class RangeRow:
    """One variant in the drawing.

    Attributes:
        name: Letter and label.
        values: One for each repeat that measured it.
        median: NaN when none did.
        text: Median and difference in words.
        colour: A stand-in of ``reports.elements.style``.
    """

    name: str
    values: Sequence[float]
    median: float
    text: str
    colour: str


def plot_ranges(
    rows: Sequence[RangeRow], *, unit: str, width_pt: float, with_bars: bool = False
) -> Figure:
    """Dots and ranges, one row a variant, its name above it: also on a phone.

    The axis begins at zero, so that a difference looks as large as it is.

    Args:
        rows: The base first.
        unit: As in ``analysis.comparison.run_figures.Figure``.
        width_pt: WIDE_PT or NARROW_PT of this module.
        with_bars: Also a bar from zero to each median, where sizes are compared.
    """
    height_pt = _TOP_PT + _ROW_PT * len(rows) + _BOTTOM_PT
    figure = Figure(figsize=(width_pt / 72, height_pt / 72), dpi=72)
    FigureCanvasSVG(figure)
    axes = figure.add_axes(
        (
            _SIDE_PT / width_pt,
            _BOTTOM_PT / height_pt,
            1 - 2 * _SIDE_PT / width_pt,
            _ROW_PT * len(rows) / height_pt,
        )
    )
    highest = max((value for row in rows for value in row.values), default=0.0)
    axes.set_xlim(0, highest * 1.04 if highest > 0 else 1.0)
    axes.set_ylim(len(rows), 0)
    axes.grid(visible=True, axis="x")
    axes.grid(visible=False, axis="y")
    axes.set_yticks([])
    if unit == "bytes":
        axes.set_xticks(style.binary_ticks(highest))
    else:
        axes.xaxis.set_major_locator(MaxNLocator(5 if width_pt > 400 else 3))
    axes.xaxis.set_major_formatter(FuncFormatter(_tick(unit, highest)))
    for index, row in enumerate(rows):
        _draw_row(axes, index, row, width_pt)
        if with_bars and math.isfinite(row.median):
            axes.barh(index + _DOT_Y, row.median, height=0.34, color=row.colour, alpha=0.28)
    labels = axes.get_xticklabels()
    if labels:
        labels[0].set_horizontalalignment("left")
    for at, label in zip(axes.get_xticks(), labels, strict=True):
        if _EDGE_SHARE * axes.get_xlim()[1] < at <= axes.get_xlim()[1]:
            label.set_horizontalalignment("right")
    return figure


def _draw_row(axes: Axes, index: int, row: RangeRow, width_pt: float) -> None:
    dot_y = index + _DOT_Y
    # The words of a row stand on the grid: a line through a letter reads as another letter.
    box = {"facecolor": style.PAGE, "edgecolor": "none", "pad": 1.0}
    room = int((width_pt - 2 * _SIDE_PT) / _CHARACTER_PT) - len(row.text) - 2
    name = row.name if len(row.name) <= room else f"{row.name[: max(1, room - 1)]}\u2026"
    axes.annotate(
        name,
        (0, index + 0.06),
        xycoords=("axes fraction", "data"),
        va="top",
        ha="left",
        color=style.TEXT,
        bbox=box,
    )
    axes.annotate(
        row.text,
        (1, index + 0.06),
        xycoords=("axes fraction", "data"),
        va="top",
        ha="right",
        color=row.colour,
        bbox=box,
    )
    if not row.values or not math.isfinite(row.median):
        return
    axes.plot([min(row.values), max(row.values)], [dot_y, dot_y], color=row.colour, linewidth=2.0)
    axes.plot(
        list(row.values),
        [dot_y] * len(row.values),
        linestyle="none",
        marker="o",
        markersize=6.0,
        color=row.colour,
        alpha=0.65,
        clip_on=False,
    )
    axes.plot(
        [row.median, row.median],
        [dot_y - 0.17, dot_y + 0.17],
        color=row.colour,
        linewidth=2.6,
        clip_on=False,
    )


_STEPS = {"s": ("s", "ms", "\N{MICRO SIGN}s"), "ms": ("ms", "\N{MICRO SIGN}s", "ns")}
_SUFFIXES = {
    "per_s": "/s",
    "us": " \N{MICRO SIGN}s",
    "pct": " %",
    "kB": " kB",
    "\N{MICRO SIGN}s": " \N{MICRO SIGN}s",
}


def _tick(unit: str, highest: float) -> Callable[[float, int | None], str]:
    names = _STEPS.get(unit, ())
    smaller = next((i for i in range(len(names)) if highest * 1000**i >= 1), 0)
    suffix = f" {names[smaller]}" if names else _SUFFIXES.get(unit, "")

    def show(value: float, _position: int | None) -> str:
        if value == 0:
            return "0"
        if unit == "bytes":
            return style.binary_size(value)
        scaled = round(value * 1000**smaller, 6)
        return f"{scaled:,g}{suffix}" if names else f"{style.thousands(scaled)}{suffix}"

    return show
