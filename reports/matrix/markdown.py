"""The confusion table as Markdown: ``docs/diagnosis-provoked.md``, written by ``make diagnose``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from analysis.findings import CATALOGUE
from analysis.matrix.confusion import Confusion, ConfusionRow
from analysis.matrix.matrix import RowResult
from reports.elements import formatting

_HEAD = """\
# Provoked and named

Every cause that can be provoked safely is provoked for real, on a real kernel with real processes
(`harness/matrix/scenarios/every-cause.toml`), and the verdict is held against it. Written by
`make diagnose`; do not edit.
"""


def diagnosis(
    table: Confusion, results: Sequence[RowResult], host: Mapping[str, Any], repeats: int
) -> str:
    """The whole document.

    Args:
        table: From ``analysis.matrix.confusion.confusion``.
        results: The rows that it was made from.
        host: Kernel, cores, memory, versions.
        repeats: Runs of each row.
    """
    machine = (
        f"{repeats} runs of each row, in shuffled order, on Linux {host.get('kernel')} with "
        f"{host.get('cpu_count')} cores and {formatting.size(host.get('memory_total_bytes'))}; "
        f"connscope {host.get('tool_version')} ({host.get('tool_commit') or 'installed'})."
    )
    summary = (
        f"**{table.named_count} of {table.run_count} runs named what was provoked; "
        f"{table.false_count} causes were named without reason.**"
    )
    return "\n".join(
        [
            _HEAD,
            machine,
            "",
            summary,
            "",
            "## Row by row",
            "",
            *_row_table(table, results),
            "",
            "## Confusion table",
            "",
            "Down: what was provoked. Across: in how many runs each cause was named. Bold is what "
            "was provoked; plain numbers belong to the row (what it follows from, or brings "
            "about); `!` was named without reason.",
            "",
            *_confusion_table(table),
            "",
            *(f"{index + 1}. `{cause}`" for index, cause in enumerate(table.columns)),
            "",
            *_not_provoked(table),
        ]
    )


def _not_provoked(table: Confusion) -> list[str]:
    """The causes of the catalogue that no row provokes, so that nobody takes them for tested."""
    provoked = {row.provoked for row in table.rows}
    left = [f"- `{c.id}`: {c.line}" for c in CATALOGUE.values() if c.id not in provoked]
    if not left:
        return []
    return [
        "## Not provoked here",
        "",
        "No row brings these about: it would harm the host, or needs an external server. "
        "They are tested on built tables or in tests of their own.",
        "",
        *left,
        "",
    ]


def _row_table(table: Confusion, results: Sequence[RowResult]) -> list[str]:
    shows = {result.spec.id: result.spec.shows for result in results}
    lines = [
        "| row | provoked | named | as expected | binding | without reason |",
        "|---|---|---|---|---|---|",
    ]
    for row in table.rows:
        runs = str(row.run_count) + (f" (+{row.failed_count} failed)" if row.failed_count else "")
        wrong = ", ".join(f"`{cause}`" for cause in row.false_causes)
        lines.append(
            f"| {row.row}: {_plain(shows.get(row.row, ''))} | `{row.provoked}` "
            f"| {row.named_count} of {runs} | {row.as_expected_count} of {row.run_count} "
            f"| `{row.binding or 'none'}` | {wrong} |"
        )
    return lines


def _confusion_table(table: Confusion) -> list[str]:
    numbers = range(1, len(table.columns) + 1)
    lines = [
        "| row | " + " | ".join(map(str, numbers)) + " |",
        "|---|" + "--:|" * len(table.columns),
    ]
    for row in table.rows:
        cells = " | ".join(_cell(row, cause) for cause in table.columns)
        lines.append(f"| {row.row} | {cells} |")
    return lines


def _cell(row: ConfusionRow, cause: str) -> str:
    count = row.counts.get(cause, 0)
    if cause == row.provoked:
        return f"**{count}**"
    if not count:
        return ""
    return f"{count}!" if cause in row.false_causes else str(count)


def _plain(text: str) -> str:
    return text.replace("|", "\\|")
