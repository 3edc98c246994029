"""Every table of a run as CSV or Parquet, with a README that says units and meaning.

CSV: UTF-8, text in quotes, an unknown value empty, so that readers who look tell an empty text from
none (RFC 4180 but for its line ends); a text that begins like a formula has an apostrophe before
it. Parquet: the unit of a column is in its field's metadata
under ``unit``.
"""

from __future__ import annotations

import inspect
import io
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, fields
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from analysis.evidence import EVIDENCE_KEYS, Finding, Fix
from analysis.ladder.rung import Rung
from analysis.summary import Summary
from reports.exports.plain_text import encodable, one_line

README = "README.md"
_FORMULA = "^([=+@\\-\t\r\n\uff1d\uff0b\uff20\uff0d])"
"""What makes a cell a formula, in the wide forms that Japanese spreadsheets take as well."""
_UNITS = (
    ("_per_s", "1 per second"),
    ("_bytes", "bytes"),
    ("_bytes_per_connection", "bytes"),
    ("_pages", "pages of memory"),
    ("_pct", "per cent"),
    ("_count", "count"),
    ("_connections", "count"),
    ("_total", "count since the start"),
    ("_ns", "nanoseconds"),
    ("_us", "microseconds"),
    ("_ms", "milliseconds"),
    ("_s", "seconds"),
)
_MEANINGS = {
    "findings": "causes that this run shows, binding first",
    "evidence": "the numbers that each finding rests on; finding is its place in findings",
    "fixes": "commands for each finding, best first; finding is its place in findings",
    "ladder": "how far each limit was used; capacity, use and slope are in unit",
}


def frames_of(summary: Summary) -> Iterator[tuple[str, pd.DataFrame]]:
    """All tables of a run by name: those of the summary, the findings and the ladder."""
    evidence, fixes, findings = [], [], []
    for number, finding in enumerate(summary.findings):
        row = asdict(finding)
        row.pop("evidence")
        evidence += [{"finding": number, **each.record()} for each in finding.evidence]
        fixes += [{"finding": number, **each} for each in row.pop("fix")]
        subject, missing = row.pop("subject"), "; ".join(row["missing"])
        findings.append({"finding": number, **subject, **row, "missing": missing})
    yield "findings", pd.DataFrame(findings, columns=_columns(findings, Finding))
    yield "evidence", pd.DataFrame(evidence, columns=["finding", *EVIDENCE_KEYS])
    yield "fixes", pd.DataFrame(fixes, columns=_columns(fixes, Fix))
    ladder = [asdict(rung) for rung in summary.ladder]
    yield "ladder", pd.DataFrame(ladder, columns=_columns(ladder, Rung))
    for field in fields(summary):
        frame = getattr(summary, field.name)
        if isinstance(frame, pd.DataFrame) and len(frame.columns):
            yield field.name, frame


def _columns(rows: list[dict[str, Any]], kind: type[Any]) -> list[str]:
    """Names of the columns, also when there are no rows: no reader takes a file without any."""
    return list(rows[0]) if rows else [field.name for field in fields(kind)]


def csv_files(summary: Summary) -> Iterator[tuple[str, bytes]]:
    """File name and content of every table as CSV, and of the README."""
    yield README, readme(summary, "csv").encode()
    for name, frame in frames_of(summary):
        stream = io.BytesIO()
        pa_csv.write_csv(_without_formulas(_arrow(frame)), stream)
        yield f"{name}.csv", stream.getvalue()


def _without_formulas(table: pa.Table) -> pa.Table:
    """Texts that a spreadsheet would take for a formula begin with an apostrophe.

    Names of threads, functions and programs are a stranger's: ``=HYPERLINK(...)`` is one
    (owasp.org, CSV Injection).
    """
    for index, field in enumerate(table.schema):
        if pa.types.is_string(field.type) or pa.types.is_large_string(field.type):
            inert = pc.replace_substring_regex(table.column(index), _FORMULA, r"'\1")
            table = table.set_column(index, field, inert)
    return table


def parquet_files(summary: Summary) -> Iterator[tuple[str, bytes]]:
    """File name and content of every table as Parquet, and of the README."""
    yield README, readme(summary, "parquet").encode()
    for name, frame in frames_of(summary):
        table = _arrow(frame)
        columns = [
            field.with_metadata({"unit": unit_of(field.name)}) if unit_of(field.name) else field
            for field in table.schema
        ]
        about = {
            **(table.schema.metadata or {}),
            b"connscope": json.dumps(_about(summary)).encode(),
        }
        stream = io.BytesIO()
        table = table.cast(pa.schema(columns, metadata=about))
        pq.write_table(table, stream, compression="zstd")
        yield f"{name}.parquet", stream.getvalue()


def _arrow(frame: pd.DataFrame) -> pa.Table:
    return pa.Table.from_pandas(_clean_text(frame), preserve_index=False)


def _about(summary: Summary) -> dict[str, str]:
    return {
        "run": encodable(str(summary.run.get("id", ""))),
        "tool_version": encodable(str(summary.manifest.get("tool_version", ""))),
        "origin_ns": str(summary.origin_ns),
    }


def unit_of(column: str) -> str:
    """The unit that a column's name carries, '' for a text, a name or a number without one."""
    if column.startswith("bytes_"):
        return "bytes"
    return next((unit for suffix, unit in _UNITS if column.endswith(suffix)), "")


def readme(summary: Summary, suffix: str) -> str:
    """What the tables are, column by column, with units."""
    lines = [
        f"# Tables of {one_line(str(summary.run.get('id', '')))}",
        "",
        f"Verdict: {one_line(summary.verdict.sentence)}",
        "",
        "Times in columns that end in `_s` are seconds since the ramp began, which was at",
        f"{summary.origin_ns} ns of CLOCK_MONOTONIC. CPU of a process: 100 per cent is one core.",
        "",
    ]
    meanings = {**_meanings(), **_MEANINGS}
    for name, frame in frames_of(summary):
        lines += [f"## {name}.{suffix}", ""]
        if name in meanings:
            lines += [f"{meanings[name]}", ""]
        lines += [f"{len(frame):,} rows.", "", "| column | type | unit |", "|---|---|---|"]
        for column in frame.columns:
            kind = _type_of(frame[column])
            lines.append(f"| {column} | {kind} | {unit_of(str(column))} |")
        lines.append("")
    return "\n".join(lines)


def _type_of(column: pd.Series[Any]) -> str:
    kind = column.dtype.kind
    return {"i": "integer", "u": "integer", "f": "number", "b": "boolean"}.get(kind, "text")


def _meanings() -> dict[str, str]:
    """What each frame is, from the docstring that declares it."""
    text = inspect.getdoc(Summary) or ""
    entries = re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", text, flags=re.MULTILINE)
    return {name: " ".join(body.split()) for name, body in entries}


def _clean_text(frame: pd.DataFrame) -> pd.DataFrame:
    """Text without what no reader takes; columns of mixed objects become text or numbers."""
    changed: dict[str, Any] = {}
    for name in frame.columns:
        column = frame[name]
        if column.dtype.kind not in "iufb":
            values = [None if pd.isna(value) else encodable(str(value)) for value in column]
            changed[str(name)] = pd.Series(values, index=frame.index, dtype="str")
    return frame.assign(**changed)
