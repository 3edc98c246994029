"""Runs what a matrix has left, one row after the other, and keeps matrix.json up to date."""

from __future__ import annotations

import re
import shlex
import statistics
from pathlib import Path

from harness.matrix.child import run_row
from harness.matrix.store import FILE, PAGE, Matrix
from harness.results import conclusion
from harness.results.analysis_request import MATRIX_PAGE, Request
from harness.results.analysis_request import PAGE as DRAWN
from harness.supervision.supervisor import Interrupt
from probes.contract.rundir import write_atomically
from reports.matrix.terminal import MatrixView

_RUN_S = 7.0
"""A run of a few thousand connections beside its hold: start 1.5, stop 1, analysis and page 2 to
4 s; used until this matrix has timed its own."""


def run_matrix(matrix: Matrix, interrupt: Interrupt, view: MatrixView) -> bool:
    """Runs everything that is not done.

    Args:
        matrix: New or resumed; every outcome is added and saved at once.
        interrupt: Ends the run under way, whose outcome is then dropped.
        view: Where progress is shown.

    Returns:
        Whether it ran to its end.

    Raises:
        RunDirError: matrix.json cannot be written.
    """
    matrix.status = "running"
    matrix.save()
    to_do = matrix.to_do()
    overheads_s: list[float] = []
    for number, (row_id, repeat) in enumerate(to_do):
        row = matrix.row(row_id)
        view.begin(name_of(matrix, row_id, repeat), row.spec.shows, left_s(matrix, to_do[number:],
                   overheads_s))  # fmt: skip
        label = label_of(matrix, row_id, repeat)
        outcome = run_row(
            matrix.path, row, repeat, label, lambda: bool(interrupt.signal_name), view.tick
        )
        if outcome is not None:
            overheads_s.append(outcome.took_s - row.hold_s)
            matrix.add(outcome)
            view.end(outcome)
        is_interrupted = bool(interrupt.signal_name)
        is_last = number == len(to_do) - 1
        if is_interrupted and (outcome is None or not is_last):
            matrix.status = "interrupted"
            matrix.save()
            return False
        matrix.save()
    matrix.status = "finished"
    matrix.save()
    return True


def left_s(matrix: Matrix, to_do: list[tuple[str, int]], overheads_s: list[float]) -> float:
    """Estimated seconds for these runs.

    Args:
        matrix: Whose rows.
        to_do: Which.
        overheads_s: What earlier runs took beside their hold.
    """
    beside_s = statistics.mean(overheads_s) if overheads_s else _RUN_S
    return sum(matrix.row(row_id).hold_s + beside_s for row_id, _ in to_do)


def name_of(matrix: Matrix, row_id: str, repeat: int) -> str:
    """A run for people."""
    return row_id if matrix.repeats == 1 else f"{row_id}, run {repeat} of {matrix.repeats}"


def label_of(matrix: Matrix, row_id: str, repeat: int) -> str:
    """A run as part of a file name, unique in the matrix."""
    number = next(i for i, row in enumerate(matrix.rows) if row.spec.id == row_id)
    safe = re.sub(r"[^A-Za-z0-9.-]+", "-", row_id).strip("-.")[:40]
    return f"{number:02d}-{safe or 'row'}-{repeat}"


def write_page(matrix: Matrix) -> Path:
    """Writes matrix.html.

    Raises:
        RunDirError: No room or no permission.
    """
    path = matrix.path / PAGE
    write_atomically(path, made_page(matrix), is_private=True)
    return path


def made_page(matrix: Matrix) -> str:
    """The comparison as a page, drawn by whoever may (``harness.results.conclusion``).

    Raises:
        ToolkitError: It could not be drawn.
    """
    asked = Request(
        MATRIX_PAGE,
        str(matrix.path / FILE),
        f"profile-matrix --resume {shlex.quote(str(matrix.path))}",
        with_page=True,
        options={"path": str(matrix.path), "matrix": matrix.to_dict()},
    )
    return dict(conclusion.answers(asked, []))[DRAWN].decode()


def page_text(matrix: Matrix) -> str:
    """The comparison as a page."""
    from reports.matrix.page import MatrixFacts, render  # matplotlib: only when nothing runs

    facts = MatrixFacts(
        name=matrix.name,
        shows=matrix.shows,
        status=matrix.status,
        started=matrix.started,
        seed=matrix.seed,
        repeats=matrix.repeats,
        command=" ".join(matrix.argv),
        directory=str(matrix.path),
        host=matrix.host,
        log_scale=matrix.scale.factor if matrix.scale.log > 1 else None,
        scale_words=_scale_words(matrix),
        left_count=len(matrix.to_do()),
        is_varied=matrix.is_varied,
    )
    return render(facts, matrix.results())


def _scale_words(matrix: Matrix) -> str:
    scale = matrix.scale
    if scale.log <= 1:
        return ""
    return (
        f"{scale.here:,.0f} descriptors stand for the log's {scale.log:,.0f}: connections and "
        f"ports are divided by {1 / scale.factor:.1f}"
    )
