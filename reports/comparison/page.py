"""comparison.html: what changed between runs, what moved, what is larger than the noise."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from analysis.comparison.comparison import Against, Comparison, FigureRow, RungRow, Variant
from analysis.comparison.document import headline, noise_note
from analysis.stats.spread import Spread
from probes.contract.rundir import write_atomically
from reports.comparison.words import (
    change_text,
    limit_name,
    noise_text,
    range_text,
    says_text,
    tone,
    value_text,
)
from reports.elements import formatting, style
from reports.elements.svg import StyleSheet, inline_svg
from reports.elements.tables import Cell, Chart, Heading, Table
from reports.figures import ranges
from reports.page.page import render_page

NAVIGATION = (
    ("answer", "Answer"),
    ("changed", "What changed"),
    ("verdicts", "Verdicts"),
    ("figures", "Key figures"),
    ("ladder", "Ladder"),
    ("method", "Method"),
)
_AREA_WORDS = {
    "settings": "set",
    "plan": "planned from it",
    "host": "host",
    "tool": "connscope",
}
_TONE_COLOURS = {"good": style.GREEN, "bad": style.ORANGE}
_COST_UNITS = ("us", "pct", "bytes")
_UNKNOWN_SORT = -1e300


def write_comparison(path: Path, comparison: Comparison, commands: dict[str, list[str]]) -> None:
    """Writes the page.

    Args:
        path: Where to.
        comparison: What to show.
        commands: Run id to the command line that recorded it.

    Raises:
        RunDirError: It cannot be written there.
    """
    write_atomically(path, render_comparison(comparison, commands))


def render_comparison(comparison: Comparison, commands: dict[str, list[str]]) -> str:
    """The whole page as HTML."""
    sheet = StyleSheet()
    answer, _, rest = headline(comparison).partition(". ")
    variants = comparison.variants
    run_count = sum(variant.run_count for variant in variants)
    context: dict[str, Any] = {
        "navigation": NAVIGATION,
        "badge": f"{run_count} runs, {len(variants)} "
        + ("variants" if len(variants) > 1 else "variant"),
        "headline": answer.rstrip("."),
        "rest": rest,
        "cautions": comparison.cautions,
        "variants": [_variant(variant) for variant in variants],
        "claimed": _claimed_table(comparison),
        "is_noise_known": comparison.is_noise_known,
        "changes": _changes_table(comparison),
        "verdicts": _verdicts_table(comparison),
        "charts": _charts(comparison, sheet),
        "unchanged": _unchanged_sentence(comparison),
        "figure_tables": _figures_tables(comparison),
        "ladder": _ladder_table(comparison),
        "rule": noise_note(comparison),
        "probe_sensitive": [
            row.label for row in comparison.figures if row.slowed_by_probes and row.is_measured
        ],
        "runs": _runs_table(variants, commands),
    }
    context["figure_css"] = sheet.css  # after the charts, which fill it
    return render_page("comparison.html.j2", context, ("page.css", "comparison.css"), ("page.js",))


def _variant(variant: Variant) -> dict[str, str]:
    runs = "1 run" if variant.run_count == 1 else f"{variant.run_count} runs"
    outcomes = [
        cause if count == variant.run_count else f"{cause} ({count} of {variant.run_count})"
        for cause, count in variant.causes.items()
    ]
    return {
        "letter": variant.letter,
        "label": variant.label,
        "runs": runs,
        "outcome": ", ".join(outcomes),
        "tone": "good" if list(variant.causes) == ["reached"] else "bad",
    }


# -- tables -----------------------------------------------------------------------------------


def _spread_cell(spread: Spread, unit: str, cell_tone: str = "") -> Cell:
    """Median and noise: a column of them can be sorted and read down."""
    text = value_text(spread.median if spread.count else None, unit)
    noise = noise_text(spread)
    shown = f"{text} {noise}" if noise and noise != "~0 %" else text
    return Cell(shown, spread.median if spread.count else _UNKNOWN_SORT, tone=cell_tone)


def _change_cell(against: Against, unit: str) -> Cell:
    text = change_text(against, unit)
    sort = against.change_pct if against.change_pct is not None else against.change
    return Cell(text or "", sort if sort is not None else _UNKNOWN_SORT, tone=tone(against))


def _claimed_table(comparison: Comparison) -> Table | None:
    rows = []
    for name, unit, spreads, against in _everything(comparison):
        for variant, spread, one in zip(comparison.variants[1:], spreads[1:], against, strict=True):
            if one.difference.is_claimed:
                rows.append(
                    [
                        Cell(name),
                        Cell(variant.letter),
                        _spread_cell(spreads[0], unit),
                        _spread_cell(spread, unit, tone(one)),
                        _change_cell(one, unit),
                        Cell(says_text(one), tone=tone(one)),
                    ]
                )
    if not rows:
        return None
    headings = (
        Heading("What"),
        Heading("Variant"),
        Heading("Base", "A: median, noise", is_number=True),
        Heading("Variant's", "median, noise", is_number=True),
        Heading("Change", "of the median", is_number=True),
        Heading("Which is"),
    )
    return Table("claimed-table", "What differs by more than the noise", headings, rows)


def _everything(
    comparison: Comparison,
) -> list[tuple[str, str, Sequence[Spread], Sequence[Against]]]:
    figures = [(r.label, r.unit, r.spreads, r.against) for r in comparison.figures]
    rungs = [
        (f"{limit_name(r)}: met at", "connections", r.predicted, r.against)
        for r in comparison.ladder
    ]
    return [*figures, *rungs]


def _letter_headings(comparison: Comparison, note: str, *, is_number: bool) -> list[Heading]:
    return [Heading(variant.letter, note, is_number) for variant in comparison.variants]


def _changes_table(comparison: Comparison) -> Table | None:
    rows = [
        [
            Cell(change.name, is_code=True),
            Cell(_AREA_WORDS.get(change.area, change.area)),
            *(
                Cell(value, tone="" if value == change.values[0] else "changed")
                for value in change.values
            ),
        ]
        for change in comparison.changes
    ]
    if not rows:
        return None
    headings = (
        Heading("Condition"),
        Heading("Kind"),
        *_letter_headings(comparison, "", is_number=False),
    )
    return Table("changes-table", "Conditions that differ", headings, rows)


def _verdicts_table(comparison: Comparison) -> Table:
    rows = [
        [
            Cell(variant.letter),
            Cell(verdict.cause, tone="good" if verdict.cause == "reached" else "bad", is_code=True),
            Cell(verdict.side),
            Cell(f"{verdict.at_connections:,}", verdict.at_connections),
            Cell(f"{verdict.target_connections:,}", verdict.target_connections),
            Cell(", ".join(verdict.also) or "nothing", is_code=bool(verdict.also)),
            Cell(verdict.sentence),
        ]
        for variant in comparison.variants
        for verdict in variant.verdicts
    ]
    headings = (
        Heading("Variant"),
        Heading("Verdict"),
        Heading("Side"),
        Heading("At", "connections", is_number=True),
        Heading("Target", "connections", is_number=True),
        Heading("Also found"),
        Heading("In words"),
    )
    return Table("verdicts-table", "How each run ended", headings, rows)


def _figures_tables(comparison: Comparison) -> list[Table]:
    """Two tables: what a run reached and how fast, and what it cost."""
    rows = [row for row in comparison.figures if row.is_measured]
    costs = [row for row in rows if row.unit in _COST_UNITS]
    reached = [row for row in rows if row.unit not in _COST_UNITS]
    missing = [row.label for row in comparison.figures if not row.is_measured]
    note = f"Not measured in any run: {', '.join(missing)}." if missing else ""
    tables = [
        _figures_table(comparison, "reached-table", "What was reached, and how fast", reached),
        _figures_table(comparison, "costs-table", "What it cost", costs, note),
    ]
    return [table for table in tables if table.rows]


def _figures_table(
    comparison: Comparison,
    table_id: str,
    caption: str,
    figures: Sequence[FigureRow],
    note: str = "",
) -> Table:
    rows = []
    for row in figures:
        cells = [Cell(row.label), _spread_cell(row.spreads[0], row.unit)]
        for spread, one in zip(row.spreads[1:], row.against, strict=True):
            cells += [
                _spread_cell(spread, row.unit, tone(one)),
                _change_cell(one, row.unit),
                Cell(says_text(one), tone=tone(one)),
            ]
        rows.append(cells)
    headings = [Heading("Figure"), Heading(comparison.variants[0].letter, "base", is_number=True)]
    for variant in comparison.variants[1:]:
        headings += [
            Heading(variant.letter, "median, noise", is_number=True),
            Heading("Change", f"{variant.letter} against A", is_number=True),
            Heading("Difference", f"{variant.letter} against A"),
        ]
    return Table(table_id, caption, tuple(headings), rows, note=note)


def _rung_cell(row: RungRow, index: int, runs: int, cell_tone: str) -> Cell:
    spread, met = row.predicted[index], row.met_counts[index]
    if not spread.count:
        return Cell("no prediction", 1e300)
    text = formatting.count(spread.median)
    noise = noise_text(spread)
    if noise and noise != "~0 %":
        text += f" {noise}"
    if met:
        text += ", met" if met == runs else f", met in {met} of {runs}"
    return Cell(text, spread.median, tone=cell_tone)


def _ladder_table(comparison: Comparison) -> Table | None:
    variants = comparison.variants
    rows = []
    for row in comparison.ladder:
        if not row.is_predicted:
            continue
        tones = ["", *(tone(one) for one in row.against)]
        cells = [Cell(limit_name(row)), Cell(_capacity_text(row))]
        cells += [
            _rung_cell(row, i, variant.run_count, tones[i]) for i, variant in enumerate(variants)
        ]
        for one in row.against:
            cells += [_change_cell(one, "connections"), Cell(says_text(one), tone=tone(one))]
        rows.append(cells)
    if not rows:
        return None
    headings = [
        Heading("Limit"),
        Heading("Capacity"),
        *_letter_headings(comparison, "met at connections", is_number=True),
    ]
    for variant in variants[1:]:
        headings += [
            Heading("Change", f"{variant.letter} against A", is_number=True),
            Heading("Difference", f"{variant.letter} against A"),
        ]
    blind = [limit_name(row) for row in comparison.ladder if not row.is_predicted]
    note = f"No run can say where these are met: {'; '.join(blind)}." if blind else ""
    return Table("ladder-table", "Where each limit is met", tuple(headings), rows, note=note)


def _capacity_text(row: RungRow) -> str:
    texts = [
        formatting.quantity(spread.median, row.unit) if spread.count else "not known"
        for spread in row.capacity
    ]
    return texts[0] if len(set(texts)) == 1 else " \N{RIGHTWARDS ARROW} ".join(texts)


def _runs_table(variants: Sequence[Variant], commands: dict[str, list[str]]) -> Table:
    rows = [
        [
            Cell(variant.letter),
            Cell(verdict.run_id, is_code=True),
            Cell(shlex.join(commands.get(verdict.run_id, [])), is_code=True),
        ]
        for variant in variants
        for verdict in variant.verdicts
    ]
    headings = (Heading("Variant"), Heading("Run"), Heading("Command"))
    return Table("runs-table", "The runs", headings, rows)


# -- charts -----------------------------------------------------------------------------------


def _is_constant(row: FigureRow) -> bool:
    return len({value for values in row.values for value in values}) < 2


def _unchanged_sentence(comparison: Comparison) -> str:
    names = [
        f"{row.label} ({value_text(row.spreads[0].median, row.unit)})"
        for row in comparison.figures
        if row.is_measured and _is_constant(row) and all(s.count for s in row.spreads)
    ]
    return f"The same in every run: {', '.join(names)}." if names else ""


def _charts(comparison: Comparison, sheet: StyleSheet) -> list[Chart]:
    return [
        _chart(row, comparison.variants, sheet)
        for row in comparison.figures
        if row.is_measured and not _is_constant(row)
    ]


def _chart(row: FigureRow, variants: Sequence[Variant], sheet: StyleSheet) -> Chart:
    chart_id = f"chart-{row.name.replace('_', '-')}"
    rows = [_range_row(row, index, variant) for index, variant in enumerate(variants)]

    def draw(width_pt: float) -> Figure:
        with style.common_style():
            return ranges.plot_ranges(rows, unit=row.unit, width_pt=width_pt)

    label = f"{row.label}: {'; '.join(_spoken(row, i, v) for i, v in enumerate(variants))}."
    with style.common_style():
        wide = inline_svg(draw(ranges.WIDE_PT), f"{chart_id}-w", label, sheet)
        narrow = inline_svg(draw(ranges.NARROW_PT), f"{chart_id}-n", label, sheet)
    better = f"{row.better} is better" if row.better else ""
    question = f"{row.label[:1].upper()}{row.label[1:]}"
    return Chart(chart_id, question, better, label, wide, narrow)


def _range_row(row: FigureRow, index: int, variant: Variant) -> ranges.RangeRow:
    spread = row.spreads[index]
    text = value_text(spread.median if spread.count else None, row.unit)
    colour = style.BLUE
    if index:
        against = row.against[index - 1]
        change = change_text(against, row.unit)
        text += f" ({change})" if change else ""
        colour = _TONE_COLOURS.get(tone(against), style.MUTED)
    return ranges.RangeRow(
        f"{variant.letter} {variant.label}", row.values[index], spread.median, text, colour
    )


def _spoken(row: FigureRow, index: int, variant: Variant) -> str:
    spread = row.spreads[index]
    text = f"{variant.letter} {variant.label} "
    text += value_text(spread.median if spread.count else None, row.unit)
    between = range_text(spread, row.unit)
    text += f", {between}" if between else ""
    return f"{text}, {says_text(row.against[index - 1])}" if index else text
