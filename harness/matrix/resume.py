"""What a resumed matrix runs: never words that a file alone vouches for.

``matrix.json`` has the command line of each row, ``--server-cmd`` among its options, so whoever
wrote it would run commands as whoever resumes it. Its rows are taken as they are only where this
user has written them on this host (``harness/matrix/seal.py``). All others are made anew, from the
scenario of that name that comes with the program, or from the scenario or ``--vary`` that the
caller names again, and must then be the same as those that are stored.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from harness.foreign.secret_words import HIDDEN
from harness.matrix import scenario
from harness.matrix.rows import MatrixRow, Scale, rows_of_file, scale_of
from harness.matrix.store import Matrix
from probes.contract.errors import UsageError

NO_REPORT = "--no-report"
_SHOWN_CHARACTERS = 300


def shipped_rows(matrix: Matrix, most_here: int) -> list[MatrixRow] | None:
    """The rows of the scenario of a matrix's name that comes with the program; None for none.

    Args:
        matrix: As it was stored.
        most_here: The most descriptors that a process may have on this host.
    """
    if matrix.is_varied or matrix.name not in {
        each.stem for each in scenario.FOLDER.glob("*.toml")
    }:
        return None
    file, _ = scenario.load(matrix.name).without_missing_servers()
    return rows_of_file(file, stored_scale(matrix, file, most_here))


def stored_scale(matrix: Matrix, file: scenario.ScenarioFile, most_here: int) -> Scale:
    """The scale that a matrix was planned at, as far as its scenario has one.

    Args:
        matrix: As it was stored.
        file: Its scenario.
        most_here: The most descriptors that a process may have on this host.
    """
    scale = scale_of(file, None, most_here)
    is_same = scale.log == matrix.scale.log and 0 < matrix.scale.here <= most_here
    return replace(scale, here=matrix.scale.here) if is_same else scale


def rebuilt(matrix: Matrix, made: Sequence[MatrixRow], source: str) -> Matrix:
    """A stored matrix with rows that were made anew in place of its own.

    Args:
        matrix: As it was stored.
        made: Rows of the scenario, or of ``--vary``; those that it left out (``--only``) as well.
        source: What they were made from, for people.

    Raises:
        UsageError: A stored row is another one.
    """
    by_id = {row.spec.id: row for row in made}
    rows = []
    for stored in matrix.rows:
        row = by_id.get(stored.spec.id)
        if row is not None and NO_REPORT in stored.words:
            row = replace(row, words=(*row.words, NO_REPORT))
        if row is None or not _is_same(row, stored):
            planned = "has no such row" if row is None else f"says {_short(row.shown_words)}"
            raise UsageError(
                f"row {stored.spec.id:.60} of {matrix.path} is {_short(stored.words)}, and "
                f"{source} {planned}",
                fix="name what it was begun with, or begin it again",
            )
        # --only leaves out what a row is compared with, and --deadline holds for all of them.
        spec = replace(row.spec, against=stored.spec.against, move=stored.spec.move)
        rows.append(replace(row, spec=spec, deadline_s=stored.deadline_s))
    return replace(matrix, rows=rows, is_own=True)


def _is_same(row: MatrixRow, stored: MatrixRow) -> bool:
    return (
        tuple(row.shown_words) == stored.words
        and (row.client_nofile, row.calibration) == (stored.client_nofile, stored.calibration)
        and stored.spec.against in ("", row.spec.against)
        and stored.spec.move in ("", row.spec.move)
    )


def _short(words: Sequence[str]) -> str:
    text = shlex.join(words)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"


def require_complete(matrix: Matrix) -> None:
    """Refuses stored rows that lack what is not written into files.

    Raises:
        UsageError: The values of a header, a cookie or a query are not known.
    """
    for row in matrix.rows:
        if any(HIDDEN in word for word in row.words):
            raise UsageError(
                f"row {row.spec.id} of {matrix.path} sends values that are kept in no file",
                fix=f"profile-matrix --resume {shlex.quote(str(matrix.path))}, and after it the "
                "scenario, or --vary and --, as it was begun",
            )


def refused(path: Path) -> UsageError:
    """That rows of somebody else are not run."""
    shown = shlex.quote(str(path))
    return UsageError(
        f"the rows of {path} are commands that were not written by this user on this host",
        fix=f"profile-matrix --resume {shown} --list shows them; to run them, name the scenario, "
        "or --vary and --, once more after --resume",
    )
