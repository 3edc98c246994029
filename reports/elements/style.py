"""The common look of all figures: colours that change with the page's scheme, one size of text.

A figure is drawn with stand-in colours; ``reports.elements.svg`` replaces each by a CSS variable of
``assets/page.css``, so that one SVG serves light, dark and print. The palette is Okabe and Ito's
(Color Universal Design, 2008), darkened or lightened until text in it has contrast AA on the
page's background. A line is never told apart by its colour alone: it carries its name.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

Floats = npt.NDArray[np.float64]

# Stand-ins: no other colour of a figure has these values.
TEXT = "#000101"
MUTED = "#000102"
GRID = "#000103"
PAGE = "#000104"
BLUE = "#000105"
ORANGE = "#000106"
GREEN = "#000107"
PURPLE = "#000108"
AMBER = "#000109"
GREY = "#00010a"

CSS_VARIABLES = {
    TEXT: "var(--text)",
    MUTED: "var(--muted)",
    GRID: "var(--line)",
    PAGE: "var(--panel)",
    BLUE: "var(--blue)",
    ORANGE: "var(--orange)",
    GREEN: "var(--green)",
    PURPLE: "var(--purple)",
    AMBER: "var(--amber)",
    GREY: "var(--grey)",
}

SERIES = (BLUE, ORANGE, GREEN, PURPLE, AMBER, GREY)
SIDE_COLOURS = {"server": BLUE, "client": GREEN, "host": PURPLE, "other": GREY}

WIDE_PT, NARROW_PT = 1040.0, 350.0
FONT_PT = 12.0
MAX_POINTS = 1000

_RC: dict[str, Any] = {
    "svg.fonttype": "none",  # real text: searchable, read aloud, in the reader's own font, small
    "svg.hashsalt": "connscope",  # the same run gives the same bytes
    "path.simplify": True,
    "path.simplify_threshold": 0.5,
    "font.size": FONT_PT,
    "font.family": "DejaVu Sans",
    "axes.titlesize": FONT_PT,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": FONT_PT,
    "xtick.labelsize": FONT_PT,
    "ytick.labelsize": FONT_PT,
    "text.color": TEXT,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": GRID,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "xtick.major.size": 4,
    "ytick.major.size": 0,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "lines.solid_joinstyle": "round",
    "axes.xmargin": 0.0,
    "text.parse_math": False,  # a dollar sign in a name is a dollar sign
}


@contextmanager
def common_style() -> Iterator[None]:
    """Draws with the common style, leaving matplotlib's settings as they were."""
    with mpl.rc_context(cast(Any, _RC)):  # the stub wants each key as a literal
        yield


def new_figure(
    width_pt: float, panel_heights_pt: Sequence[float], *, top_pt: float = 24.0
) -> tuple[Figure, list[Axes]]:
    """A figure of stacked panels of one width, without pyplot's global state.

    Args:
        width_pt: WIDE_PT or NARROW_PT; one point is one CSS pixel of the drawing.
        panel_heights_pt: Height of each panel's plotting area, top first.
        top_pt: Room above the first panel.

    Returns:
        The figure and its panels, top first.
    """
    narrow = is_narrow(width_pt)
    gap_pt, bottom_pt = 38.0, 42.0
    left_pt, right_pt = (50.0, 8.0) if narrow else (64.0, 150.0)
    height_pt = top_pt + sum(panel_heights_pt) + gap_pt * (len(panel_heights_pt) - 1) + bottom_pt
    figure = Figure(figsize=(width_pt / 72, height_pt / 72), dpi=72)
    FigureCanvasSVG(figure)
    panels: list[Axes] = []
    upper_pt = height_pt - top_pt
    for panel_pt in panel_heights_pt:
        lower_pt = upper_pt - panel_pt
        axes = figure.add_axes(
            (
                left_pt / width_pt,
                lower_pt / height_pt,
                (width_pt - left_pt - right_pt) / width_pt,
                panel_pt / height_pt,
            ),
            sharex=panels[0] if panels else None,
        )
        panels.append(axes)
        upper_pt = lower_pt - gap_pt
    for axes in panels[:-1]:
        axes.tick_params(labelbottom=False)
    return figure, panels


def is_narrow(width_pt: float) -> bool:
    """Whether the figure is the variant for phones."""
    return width_pt < 600


def thin(x: npt.ArrayLike, y: npt.ArrayLike, max_points: int = MAX_POINTS) -> tuple[Floats, Floats]:
    """Thins a long series but keeps its extremes: of each bin its smallest and largest value.

    Args:
        x: Ascending positions.
        y: Values.
        max_points: Most points to return, at least 4.
    """
    xs, ys = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if len(xs) <= max_points:
        return xs, ys
    bins = np.array_split(np.arange(len(xs)), max_points // 2)
    filled = np.where(np.isnan(ys), 0.0, ys)
    picked: list[int] = []
    for indexes in bins:
        part = filled[indexes]
        picked += sorted({int(indexes[part.argmin()]), int(indexes[part.argmax()])})
    return xs[picked], ys[picked]


def spread(positions: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Moves labels apart so that neighbours are at least ``gap`` away, within low..high.

    Returns:
        New positions, in the order given.
    """
    order = sorted(range(len(positions)), key=lambda i: positions[i])
    placed = list(positions)
    floor = low
    for index in order:
        placed[index] = max(placed[index], floor)
        floor = placed[index] + gap
    ceiling = high
    for index in reversed(order):
        placed[index] = min(placed[index], ceiling)
        ceiling = placed[index] - gap
    return placed


def label_ends(
    axes: Axes, labels: Sequence[tuple[float, str, str]], *, narrow: bool, panel_pt: float
) -> None:
    """Writes the name of each line at its end instead of a legend.

    Args:
        axes: The panel, its limits already set.
        labels: (value at the end of the line, text, colour).
        narrow: On phones there is no room beside the panel: a coloured line of names above.
        panel_pt: Height of the panel.
    """
    if narrow:
        # Offsets in points along the top: the longest name must not push another out.
        x_pt = 0.0
        for _, text, colour in labels:
            axes.annotate(
                text,
                (0, 1),
                xytext=(x_pt, -11),
                textcoords="offset points",
                xycoords="axes fraction",
                color=colour,
                fontsize=FONT_PT - 1,
            )
            x_pt += 6.2 * len(text) + 10
        return
    # In the panel's own height, so that a logarithmic axis spreads its names as evenly.
    to_pixels = axes.transData.transform
    floor, top = (float(to_pixels((0, limit))[1]) for limit in axes.get_ylim())
    heights = [(float(to_pixels((0, value))[1]) - floor) / (top - floor) for value, _, _ in labels]
    placed = spread(heights, 14.5 / panel_pt, 0.0, 1.0 - 6 / panel_pt)
    for (_, text, colour), position in zip(labels, placed, strict=True):
        axes.annotate(
            text,
            (1, position),
            xytext=(7, 0),
            textcoords="offset points",
            xycoords="axes fraction",
            color=colour,
            va="center",
            annotation_clip=False,
        )


def binary_ticks(highest: float) -> list[float]:
    """Three or so round positions for an axis of bytes from 0 to ``highest``."""
    wanted = max(highest, 4.0) / 3
    power = 1024.0 ** max(0, int(np.log2(wanted) // 10))
    step = next(
        (s for s in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512) if s * power >= wanted),
        1024,
    )
    return [float(step * power * i) for i in range(int(highest / (step * power)) + 1)]


def thousands(value: float, _position: int | None = None) -> str:
    """Tick label: 20 k, 1.5 M; small numbers as they are."""
    magnitude = abs(value)
    if magnitude >= 1e6:
        return f"{value / 1e6:g} M"
    if magnitude >= 1e3:
        return f"{value / 1e3:g} k"
    return f"{value:,g}"


def binary_size(value: float, _position: int | None = None) -> str:
    """Tick label for bytes."""
    for power, prefix in ((3, "GiB"), (2, "MiB"), (1, "KiB")):
        if abs(value) >= 1024**power:
            return f"{value / 1024**power:.4g} {prefix}"
    return f"{value:g} B" if value else "0"
