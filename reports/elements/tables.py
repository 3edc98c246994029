"""What the templates show: tables, figures, facts. Text and numbers only, no markup."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from markupsafe import Markup

from probes.contract.several_hosts import host_number, pid_on_host
from reports.elements import formatting

MAX_ROWS = 400


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell.

    Attributes:
        text: What is shown.
        sort: What it is sorted by; the text when None.
        share: Bar behind the text, 0 to 1; None for no bar.
        tone: '', bad, warn or good.
        href: Where it links to, '' for nowhere.
        is_code: Set in a fixed-width font (names of functions, commands, addresses).
    """

    text: str
    sort: float | str | None = None
    share: float | None = None
    tone: str = ""
    href: str = ""
    is_code: bool = False


@dataclass(frozen=True, slots=True)
class Heading:
    """A column: its name, its unit or window, whether it holds numbers."""

    label: str
    unit: str = ""
    is_number: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """A table with its caption; ``cut_count`` rows beyond MAX_ROWS are left out and said so."""

    id: str
    caption: str
    headings: tuple[Heading, ...]
    rows: list[list[Cell]]
    cut_count: int = 0
    note: str = ""


@dataclass(frozen=True, slots=True)
class Chart:
    """A figure in two widths. Its title is the question that it answers.

    Attributes:
        id: Unique in the page.
        question: The title.
        window: Unit, window and source of the numbers.
        label: What a screen reader says: the answer in words.
        wide: For screens and paper.
        narrow: For phones.
    """

    id: str
    question: str
    window: str
    label: str
    wide: Markup
    narrow: Markup


@dataclass(frozen=True, slots=True)
class Gauge:
    """How much of a limit was used: one bar with its thresholds marked.

    Attributes:
        label: What is measured, and when.
        share: Used part of the whole bar, 0 to 1.
        value: The use as text with its unit.
        marks: (share, text) of each threshold, ascending.
    """

    label: str
    share: float
    value: str
    marks: list[tuple[float, str]]


@dataclass(slots=True)
class Part:
    """One part of a section: why it is empty, or its gauges, charts and tables."""

    id: str
    title: str
    lead: str = ""
    empty: str = ""
    gauges: list[Gauge] = field(default_factory=list)
    charts: list[Chart] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)


MakeCell = Callable[[dict[str, Any]], Cell]


def table_of(
    table_id: str,
    caption: str,
    frame: pd.DataFrame,
    columns: Iterable[tuple[Heading, MakeCell]],
    note: str = "",
) -> Table:
    """A table with one row per row of a frame.

    Args:
        table_id: Unique in the page.
        caption: What a row is.
        frame: The rows, in the order to show.
        columns: Heading and how to make its cell from a row.
        note: A remark below the table.
    """
    pairs = list(columns)
    records: list[dict[str, Any]] = frame.head(MAX_ROWS).to_dict("records")  # type: ignore[assignment]  # column names are text
    rows = [[make(record) for _, make in pairs] for record in records]
    headings = tuple(heading for heading, _ in pairs)
    return Table(table_id, caption, headings, rows, max(0, len(frame) - MAX_ROWS), note)


def text_column(label: str, column: str, *, is_code: bool = False) -> tuple[Heading, MakeCell]:
    """A column of text."""
    return Heading(label), lambda row: Cell(str(row[column]), is_code=is_code)


def number_column(
    label: str,
    column: str,
    unit: str,
    show: Callable[[float], str] = formatting.count,
    *,
    share_of: float | None = None,
) -> tuple[Heading, MakeCell]:
    """A column of numbers.

    Args:
        label: Name of the column.
        column: Column of the frame.
        unit: Unit and window, shown in the heading.
        show: Number to text.
        share_of: Draws a bar of value / share_of.
    """

    def make(row: dict[str, Any]) -> Cell:
        value = float(row[column])
        share = min(1.0, max(0.0, value / share_of)) if share_of else None
        # NaN sorts below everything: what was not measured is never the largest.
        known = value == value  # noqa: PLR0124
        return Cell(show(value), value if known else -1e300, share if known else None)

    return Heading(label, unit, is_number=True), make


def process_column(label: str = "Process") -> tuple[Heading, MakeCell]:
    """Who: role, number and pid of the row."""

    def make(row: dict[str, Any]) -> Cell:
        name = process_name(str(row["role"]), int(row["worker"]), int(row["pid"]))
        return Cell(name, f"{row['role']} {int(row['worker']):06d} {int(row['pid']):08d}")

    return Heading(label), make


def process_name(role: str, worker: int, pid: int) -> str:
    """The name of a process as people read it: worker 3 (pid 812).

    Of a run over several hosts the number of its host, which a table of the page names, comes with
    it but for the host that serves.
    """
    noun = {"server": "worker", "": "process"}.get(role, role)
    number = f" {worker}" if worker >= 0 and role != "acceptor" else ""
    if pid <= 0:
        return f"{noun}{number}"
    host = f", host {host_number(pid)}" if host_number(pid) else ""
    return f"{noun}{number} (pid {pid_on_host(pid)}{host})"
