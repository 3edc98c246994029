"""Writes the page about other people's servers, in the look of report.html. Computes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from reports.elements import style
from reports.elements.svg import StyleSheet, inline_svg
from reports.elements.tables import Chart, Table
from reports.figures import ranges
from reports.page.page import render_page


@dataclass(frozen=True, slots=True)
class Bar:
    """One server in a drawing: its name, every run, their median, and that in words."""

    name: str
    values: Sequence[float]
    median: float
    text: str


@dataclass(frozen=True, slots=True)
class Bars:
    """One figure of all servers, in the order to draw.

    Attributes:
        id: Unique in the page.
        question: What it is.
        window: Of what, and which way is better.
        unit: As in ``reports.figures.ranges``.
        bars: One for each server that has it.
    """

    id: str
    question: str
    window: str
    unit: str
    bars: Sequence[Bar]


@dataclass(frozen=True, slots=True)
class Tile:
    """One answer in the head of the page: what, how much, whose."""

    label: str
    value: str
    note: str


@dataclass(frozen=True, slots=True)
class ServersPart:
    """One table with its title.

    Attributes:
        id: Unique in the page.
        short: For the navigation.
        title: The question that it answers.
        lead: What its columns mean.
        table: The numbers.
        drawings: Of some of them.
    """

    id: str
    short: str
    title: str
    lead: str
    table: Table
    drawings: Sequence[Bars] = ()


@dataclass(frozen=True, slots=True)
class ServersFacts:
    """Everything that the page says.

    Attributes:
        headline: What was measured.
        lead: One line for people.
        about: Kernel, processor, versions of what measures.
        tiles: The answers that people look for first.
        parts: The tables.
        method: One sentence each.
        remarks: What went wrong or disturbed.
        command: That measures it anew.
    """

    headline: str
    lead: str
    about: Sequence[tuple[str, str]]
    tiles: Sequence[Tile]
    parts: Sequence[ServersPart]
    method: Sequence[str]
    remarks: Sequence[str]
    command: str


def render(facts: ServersFacts) -> str:
    """The whole page as HTML."""
    sheet = StyleSheet()
    charts = {
        part.id: [_chart(drawing, sheet) for drawing in part.drawings if drawing.bars]
        for part in facts.parts
    }
    context = {"facts": facts, "charts": charts, "figure_css": sheet.css}
    return render_page(
        "servers.html.j2", context, ("page.css", "comparison.css", "servers.css"), ("page.js",)
    )


def _chart(drawing: Bars, sheet: StyleSheet) -> Chart:
    rows = [
        ranges.RangeRow(bar.name, bar.values, bar.median, bar.text, style.BLUE)
        for bar in drawing.bars
    ]

    def draw(width_pt: float) -> Figure:
        return ranges.plot_ranges(rows, unit=drawing.unit, width_pt=width_pt, with_bars=True)

    label = f"{drawing.question}: {'; '.join(f'{bar.name} {bar.text}' for bar in drawing.bars)}."
    with style.common_style():
        wide = inline_svg(draw(ranges.WIDE_PT), f"{drawing.id}-w", label, sheet)
        narrow = inline_svg(draw(ranges.NARROW_PT), f"{drawing.id}-n", label, sheet)
    return Chart(drawing.id, drawing.question, drawing.window, label, wide, narrow)
