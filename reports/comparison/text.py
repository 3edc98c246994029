"""The comparison for a terminal: plain text that survives a pipe, a log and a mail."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from analysis.comparison.comparison import Against, Comparison
from analysis.comparison.document import headline, noise_note
from analysis.stats.spread import Spread
from reports.comparison.words import (
    change_text,
    limit_name,
    noise_text,
    says_text,
    value_text,
)

_GAP = "  "
_LONGEST_CELL = 44


def comparison_text(comparison: Comparison, width: int = 100) -> str:
    """The whole comparison.

    Args:
        comparison: What to show.
        width: Columns of the terminal; paragraphs are wrapped to it. Tables are not cut: one that
            is too wide is written variant by variant.
    """
    lines = [*textwrap.wrap(headline(comparison), width), ""]
    for caution in comparison.cautions:
        lines += textwrap.wrap(f"caution: {caution}", width, subsequent_indent="         ")
    if comparison.cautions:
        lines.append("")
    lines += _variant_lines(comparison)
    if comparison.changes:
        header = ["what changed", *(variant.letter for variant in comparison.variants)]
        rows = [[change.name, *change.values] for change in comparison.changes]
        lines += ["", *_table(header, rows, numbers=False)]
    lines += ["", *_value_tables(comparison, "key figure", _figures(comparison), width)]
    lines += ["", *_value_tables(comparison, "limit is met at", _rungs(comparison), width)]
    lines += ["", *textwrap.wrap(f"rule: {noise_note(comparison)}", width)]
    lines += textwrap.wrap(
        "A value is the median of the repeats; ~ is their range in percent of it.", width
    )
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _variant_lines(comparison: Comparison) -> list[str]:
    header = ["variant", "", "runs", "verdict", "at connections"]
    rows = []
    for variant in comparison.variants:
        causes = ", ".join(
            cause if count == variant.run_count else f"{cause} ({count} of {variant.run_count})"
            for cause, count in variant.causes.items()
        )
        at = Spread.of([verdict.at_connections for verdict in variant.verdicts])
        where = f"{at.median:,.0f} {noise_text(at)}".replace(" ~0 %", "")
        rows.append([variant.letter, variant.label, str(variant.run_count), causes, where])
    return _table(header, rows, numbers=False)


_Row = tuple[str, str, Sequence[Spread], Sequence[Against]]


def _figures(comparison: Comparison) -> list[_Row]:
    return [
        (row.label, row.unit, row.spreads, row.against)
        for row in comparison.figures
        if row.is_measured
    ]


def _rungs(comparison: Comparison) -> list[_Row]:
    return [
        (limit_name(row), "count", row.predicted, row.against)
        for row in comparison.ladder
        if row.is_predicted
    ]


def _value_tables(
    comparison: Comparison, title: str, rows: Sequence[_Row], width: int
) -> Iterator[str]:
    """One table with every variant, or one for each variant against the base when too wide."""
    variants = comparison.variants
    every = list(range(1, len(variants)))
    whole = _value_table(comparison, title, rows, every)
    if len(every) < 2 or max(len(line) for line in whole) <= width:
        yield from whole
        return
    for index in every:
        yield from _value_table(comparison, title, rows, [index])
        if index != every[-1]:
            yield ""


def _value_table(
    comparison: Comparison, title: str, rows: Sequence[_Row], shown: Sequence[int]
) -> list[str]:
    header = [title, comparison.variants[0].letter]
    for index in shown:
        letter = comparison.variants[index].letter
        header += [letter, "change", f"{letter} against A"]
    body = []
    for label, unit, spreads, against in rows:
        cells = [label, _value(spreads[0], unit)]
        for index in shown:
            one = against[index - 1]
            says = says_text(one)
            cells += [
                _value(spreads[index], unit),
                change_text(one, unit),
                says.upper() if one.difference.is_claimed else says,
            ]
        body.append(cells)
    return _table(header, body, numbers=True)


def _value(spread: Spread, unit: str) -> str:
    text = value_text(spread.median if spread.count else None, unit)
    noise = noise_text(spread)
    return f"{text} {noise}" if noise and noise != "~0 %" else text


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: bool) -> list[str]:
    """Columns set under each other; with numbers, values and changes are set to the right."""
    cells = [[_cut(cell) for cell in row] for row in [header, *rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = []
    for row in cells:
        shown = []
        for index, (cell, column_width) in enumerate(zip(row, widths, strict=True)):
            # first column is the name, then value, and for each variant value, change, words
            is_number = numbers and (index == 1 or (index > 1 and (index - 2) % 3 < 2))
            shown.append(cell.rjust(column_width) if is_number else cell.ljust(column_width))
        lines.append(_GAP.join(shown).rstrip())
    return lines


def _cut(text: str) -> str:
    """One line of printable characters: names come from manifests, which anybody may have made."""
    plain = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    return plain if len(plain) <= _LONGEST_CELL else f"{plain[: _LONGEST_CELL - 3]}..."
