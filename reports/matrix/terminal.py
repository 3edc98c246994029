"""The terminal of profile-matrix: one progress display while rows run, one table at the end.

A terminal gets a picture redrawn in place; a pipe, a CI job or a dumb terminal gets one line when a
row starts and one when it ends.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self, TextIO

from analysis.matrix.confusion import Confusion, ConfusionRow
from analysis.matrix.matrix import Outcome, RowResult
from reports.terminal.redrawn import Redrawn
from reports.terminal.terminal import REDRAW_PERIOD_S, bar, has_colour, is_interactive, printable

_SHOWN_COUNT = 8


class MatrixView:
    """Shows on stderr which row runs, what the last ones came to, and how much is left.

    Args:
        total_count: Runs to make, those already done included.
        done_count: Runs already done.
        enabled: False shows nothing.
        stream: Where to; sys.stderr when None.
    """

    def __init__(
        self, total_count: int, done_count: int, enabled: bool, stream: TextIO | None = None
    ) -> None:
        self._total_count = total_count
        self._done_count = done_count
        self._enabled = enabled
        self._stream = stream if stream is not None else sys.stderr
        self._picture: Redrawn | None = None
        self._finished: list[str] = []
        self._row, self._left_s, self._started_s, self._next_s = "", 0.0, 0.0, 0.0

    def __enter__(self) -> Self:
        if self._enabled and is_interactive(self._stream):
            self._picture = Redrawn(self._stream, colour=has_colour(self._stream))
        return self

    def begin(self, row: str, shows: str, left_s: float) -> None:
        """A run starts.

        Args:
            row: Its name.
            shows: One line for people.
            left_s: Estimated seconds until all is done.
        """
        self._row, self._left_s, self._started_s = row, left_s, time.monotonic()
        if self._enabled and self._picture is None:
            number = f"{self._done_count + 1}/{self._total_count}"
            self._say(f"{number} {row}: {shows} (about {_minutes(left_s)} left)")

    def tick(self, last_line: str) -> None:
        """Redraws, when it is time to.

        Args:
            last_line: What the run said last.
        """
        now_s = time.monotonic()
        if self._picture is None or now_s < self._next_s:
            return
        from rich.text import Text

        took_s = now_s - self._started_s
        share = self._done_count / self._total_count if self._total_count else 1.0
        width, _ = self._picture.size()
        head = f" run {self._done_count + 1} of {self._total_count}"
        left = f"   about {_minutes(max(0.0, self._left_s - took_s))} left"
        lines = [
            *(Text(line, style="dim") for line in self._finished[-_SHOWN_COUNT:]),
            Text(bar(share, max(10, min(40, width - 40))) + head + left),
            Text(f"{printable(self._row)}   {took_s:.0f} s", style="bold cyan"),
            Text(printable(last_line), style="dim"),
        ]
        self._picture.draw(lines)
        self._next_s = now_s + REDRAW_PERIOD_S

    def end(self, outcome: Outcome) -> None:
        """A run is over."""
        self._done_count += 1
        line = printable(outcome_line(outcome))
        self._finished.append(line)
        if self._enabled and self._picture is None:
            self._say(f"    {line}")

    def _say(self, text: str) -> None:
        self._stream.write(text + "\n")
        self._stream.flush()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._picture is not None:
            self._picture.close()
            self._picture = None


def outcome_line(outcome: Outcome) -> str:
    """One line about a run that is over."""
    if outcome.state == "failed":
        return f"{outcome.row}: did not run: {outcome.error}"
    peak = int(outcome.facts.get("peak_connections", 0))
    judged = f"; {outcome.complaints[0]}" if outcome.complaints else ""
    return f"{outcome.row}: {outcome.cause} at {peak:,} connections, {outcome.took_s:.0f} s{judged}"


def result_lines(results: Sequence[RowResult], width: int | None = None) -> list[str]:
    """The table at the end: one line a row, and below it what was not as expected."""
    width = width or max(60, shutil.get_terminal_size((120, 24)).columns)
    id_width = min(34, max((len(r.spec.id) for r in results), default=3))
    lines = [f"{'':4}{'row':<{id_width}}  {'ceiling':>8}  {'moved':>8}  binding cause"]
    for result in results:
        mark = {True: "ok", False: "NO", None: "-"}[result.held]
        ceiling = f"{result.ceiling.median:,.0f}" if result.ceiling.count else "-"
        row_id = _cut(printable(result.spec.id), id_width)
        cause = result.cause or "no run"
        if len(result.causes) > 1:
            cause = ", ".join(f"{name} x{count}" for name, count in result.causes.items())
        lines.append(
            f"{mark:<4}{row_id:<{id_width}}  {ceiling:>8}  {move_text(result):>8}  {cause}"[:width]
        )
        lines += [f"      {printable(complaint)}" for complaint in result.complaints[:3]]
    return lines


def move_text(result: RowResult) -> str:
    """How far the ceiling moved, in a few characters."""
    move = result.move
    if move is None:
        return ""
    if move.direction == "none" or move.delta_pct is None:
        return "same" if move.direction == "none" else "?"
    return f"{move.delta_pct:+,.0f} %"


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def confusion_lines(table: Confusion) -> list[str]:
    """The confusion table as text: provoked down, named across by number."""
    numbers = {cause: index + 1 for index, cause in enumerate(table.columns)}
    id_width = max((len(row.row) for row in table.rows), default=3)
    heads = "".join(f"{number:>4}" for number in numbers.values())
    lines = [f"{'provoked by row':<{id_width}}  {'runs':>4} {heads}"]
    for row in table.rows:
        cells = "".join(f"{cell_text(row.counts.get(c, 0), c, row):>4}" for c in table.columns)
        lines.append(f"{row.row:<{id_width}}  {row.run_count:>4} {cells}")
    lines.append("")
    lines += [f"{number:>4} {cause}" for cause, number in numbers.items()]
    lines.append(
        f"named as provoked in {table.named_count} of {table.run_count} runs; "
        f"{table.false_count} named without reason (marked !); * is what was provoked; "
        "unmarked belongs to it"
    )
    return lines


def cell_text(count: int, cause: str, row: ConfusionRow) -> str:
    """One cell: a count, marked as provoked (*) or as false (!)."""
    if cause == row.provoked:
        return f"{count}*"
    if not count:
        return "."
    return f"{count}!" if cause in row.false_causes else str(count)


def _minutes(value_s: float) -> str:
    return f"{value_s:.0f} s" if value_s < 90 else f"{value_s / 60:.0f} min"
