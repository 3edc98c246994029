"""Before against at the failure: which figures moved when the first connection failed."""

from __future__ import annotations

import math
from typing import Any

from reports.elements import formatting
from reports.elements.tables import Cell, Heading, MakeCell, Part, table_of, text_column
from reports.sections.view import View

LEAD_S = (
    0.5  # analysis.frames.run_view.FAILURE_LEAD_S: the window begins so long before the failure
)

_PER_CENT = ("% of a core", "% of all cores", "% of its samples")
"""Units of ``analysis.signs.before_failure`` that are shown as a share."""


def before_part(view: View) -> Part:
    """The table of ``Summary.before_failure``, or why there is none."""
    s = view.summary
    part = Part("before", "What changed at the first failure?")
    window = s.failure_window_s
    if s.before_failure.empty or window is None:
        part.empty = "No connection failed and no descriptor ran out, so there is no such moment."
        return part
    at_s = max(0.0, window[0] + LEAD_S)
    moment = formatting.moment(at_s)
    part.lead = (
        f"The first failure came {moment} {view.words.after_it}. "
        "The flame graph above has the same windows."
    )
    if at_s < 0.1:
        part.lead += " That is too soon for a time before it to compare with."
    part.tables.append(
        table_of(
            "before-table",
            "Before, at and after the first failure",
            s.before_failure,
            [
                text_column("Measured", "measure"),
                (Heading("Of"), lambda r: Cell(str(r["subject"]) or "the run")),
                (Heading("Unit"), lambda r: Cell(str(r["unit"]))),
                _span("Before", f"0 s to {moment}", "before"),
                _span(
                    "At the failure", f"{moment} to {formatting.moment(window[1])}", "at_failure"
                ),
                _span("After", f"from {formatting.moment(window[1])}", "after"),
            ],
        )
    )
    return part


def _span(label: str, window: str, column: str) -> tuple[Heading, MakeCell]:
    def make(row: dict[str, Any]) -> Cell:
        value = float(row[column])
        if not math.isfinite(value):
            return Cell(formatting.NOT_MEASURED, -1e300)
        per_cent = row["unit"] in _PER_CENT
        text = formatting.percent(value) if per_cent else formatting.significant(value)
        return Cell(text, value)

    return Heading(label, window, is_number=True), make
