"""What all figures over time share: phases behind, events across, seconds below."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from reports.elements import style

Phase = tuple[str, float, float]
Mark = tuple[float, str]


@dataclass(frozen=True, slots=True)
class TimeFrame:
    """The time that the figures of a page share.

    Attributes:
        phases: (name, start_s, end_s).
        window_s: Seconds around the first failures, None for none.
        end_s: Right end of the axis.
        began: What was at second 0, for the axis.
    """

    phases: Sequence[Phase]
    window_s: tuple[float, float] | None
    end_s: float
    began: str


def set_time_axis(
    panels: Sequence[Axes], time: TimeFrame, *, narrow: bool, until_s: float | None = None
) -> None:
    """Gives all panels the same seconds and labels the lowest.

    Args:
        panels: All panels of the figure, top first.
        time: Of the page.
        narrow: It is drawn for a narrow screen.
        until_s: An earlier end, None for that of the page.
    """
    end_s = time.end_s if until_s is None else min(time.end_s, until_s)
    for axes in panels:
        axes.set_xlim(0.0, max(end_s, 1e-3))
        axes.yaxis.set_major_locator(MaxNLocator(4, min_n_ticks=2, steps=[1, 2, 2.5, 5, 10]))
    panels[-1].xaxis.set_major_locator(MaxNLocator(5 if narrow else 11))
    panels[-1].set_xlabel(f"seconds since {time.began}")


def draw_phases(panels: Sequence[Axes], phases: Sequence[Phase], *, named: bool = True) -> None:
    """Marks where ramp and hold begin, by a hairline and the phase's name above the first panel.

    Args:
        panels: All panels of the figure, top first.
        phases: (name, start_s, end_s).
        named: False leaves the names out.
    """
    low, high = panels[0].get_xlim()
    for name, start_s, end_s in phases:
        if name not in ("ramp", "hold", "watch", "stop") or end_s <= low or start_s >= high:
            continue
        for axes in panels:
            axes.axvline(start_s, color=style.GRID, linewidth=1, zorder=0)
        if named and (min(end_s, high) - max(start_s, low)) / (high - low) > 0.06:
            panels[0].annotate(
                name,
                (max(start_s, low), 1),
                xytext=(4, 7),
                textcoords="offset points",
                xycoords=("data", "axes fraction"),
                color=style.MUTED,
                fontsize=style.FONT_PT - 1,
            )


def draw_marks(panels: Sequence[Axes], marks: Sequence[Mark]) -> None:
    """Draws each event as a line through all panels, with its number above the phases' names.

    Args:
        panels: All panels of the figure, top first.
        marks: (at_s, what to write above the line), earliest first.
    """
    low, high = panels[0].get_xlim()
    shown = [(at_s, name) for at_s, name in marks if low <= at_s <= high]
    width_pt = panels[0].get_window_extent().width
    unit = (high - low) / max(width_pt, 1.0)
    placed = style.spread([at_s for at_s, _ in shown], 17 * unit, low, high)
    for (at_s, name), label_s in zip(shown, placed, strict=True):
        for axes in panels:
            axes.axvline(at_s, color=style.ORANGE, linewidth=1.1, dashes=(3, 2.4), zorder=1)
        panels[0].annotate(
            name,
            (label_s, 1),
            xytext=(0, 26),
            textcoords="offset points",
            xycoords=("data", "axes fraction"),
            ha="center",
            color=style.ORANGE,
            fontweight="bold",
            bbox={
                "boxstyle": "circle,pad=0.18",
                "facecolor": style.PAGE,
                "edgecolor": style.ORANGE,
            },
        )


def draw_window(panels: Sequence[Axes], window_s: tuple[float, float] | None) -> None:
    """Shades the seconds around the first failures."""
    if window_s is None:
        return
    for axes in panels:
        axes.axvspan(*window_s, color=style.ORANGE, alpha=0.09, linewidth=0, zorder=0)
