"""The directory of a matrix: what was planned and what has run, so that it can be resumed.

::

    runs/<utc>-matrix-<name>-<4 hex>/
      matrix.json     plan, order, outcomes, comparison; by temp file and rename after every run
      matrix.html     the comparison
      rows/<run>/     the run directory of each run, as profile-run writes it
      logs/           what each run said on stderr
"""

from __future__ import annotations

import fcntl
import json
import os
import random
import re
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from analysis.matrix.document import document
from analysis.matrix.matrix import Outcome, RowResult, compare
from harness.matrix.own_folder import require_own
from harness.matrix.rows import MatrixRow, Scale
from harness.matrix.seal import is_own, seal_of
from probes.contract.errors import RunDirError, UsageError
from probes.contract.private_file import FOLDER_MODE, make_folder
from probes.contract.rundir import write_atomically

SCHEMA_VERSION = 1
FILE = "matrix.json"
PAGE = "matrix.html"
ROWS = "rows"
LOGS = "logs"
_MOST_CHARACTERS = 256 << 20
"""400 rows of 100 runs have 30 MB."""
_RUN = rf"(?:{ROWS}/[A-Za-z0-9][A-Za-z0-9._-]*)?"
"""A run of a matrix, as its page links it."""


@dataclass(slots=True)
class Matrix:
    """A matrix, planned or under way.

    Attributes:
        path: Its directory.
        name: Of the scenario, or ``vary``.
        shows: One line for people.
        argv: Of profile-matrix.
        seed: That the order was shuffled with.
        repeats: Runs of each row.
        scale: What stands for the log's numbers.
        rows: In the order to show.
        order: (row id, repeat), in the order to run.
        host: Kernel, cores, memory, versions.
        outcomes: What has run.
        status: running, interrupted or finished.
        is_varied: Made by --vary.
        started: Wall time, ISO 8601.
        is_own: Planned here, or written by this user on this host (``harness/matrix/seal.py``):
            its rows are what somebody asked for, and not what a file says.
    """

    path: Path
    name: str
    shows: str
    argv: list[str]
    seed: int
    repeats: int
    scale: Scale
    rows: list[MatrixRow]
    order: list[tuple[str, int]]
    host: dict[str, Any]
    outcomes: list[Outcome] = field(default_factory=list)
    status: str = "running"
    is_varied: bool = False
    started: str = ""
    is_own: bool = True

    def row(self, row_id: str) -> MatrixRow:
        """The row of that id."""
        return next(row for row in self.rows if row.spec.id == row_id)

    def set_deadline(self, deadline_s: float) -> None:
        """Gives all runs this deadline."""
        self.rows = [replace(row, deadline_s=deadline_s) for row in self.rows]

    def to_do(self) -> list[tuple[str, int]]:
        """What is not done yet; a run that failed is tried again."""
        done = {(each.row, each.repeat) for each in self.outcomes if each.state == "done"}
        return [each for each in self.order if each not in done]

    def add(self, outcome: Outcome) -> None:
        """Takes the outcome of a run in, in place of an earlier one of the same."""
        mine = (outcome.row, outcome.repeat)
        self.outcomes = [o for o in self.outcomes if (o.row, o.repeat) != mine] + [outcome]

    def results(self) -> list[RowResult]:
        """The comparison as far as it is known."""
        return compare([row.spec for row in self.rows], self.outcomes)

    def save(self) -> None:
        """Writes matrix.json.

        Raises:
            RunDirError: No room or no permission.
        """
        text = json.dumps(self.to_dict(), indent=2)
        write_atomically(self.path / FILE, text + "\n", is_private=True)

    def to_dict(self) -> dict[str, Any]:
        """As JSON; ``comparison`` is for readers, the rest is what a resume needs."""
        # pandas comes with it: not for a list, nor for what is refused
        from analysis.document import json_safe

        plain = {
            "schema_version": SCHEMA_VERSION,
            "name": self.name,
            "shows": self.shows,
            "status": self.status,
            "started": self.started,
            "argv": self.argv,
            "seed": self.seed,
            "repeats": self.repeats,
            "is_varied": self.is_varied,
            "scale": asdict(self.scale),
            "host": self.host,
            "comparison": document(self.results()),
            "rows": [row.to_dict() for row in self.rows],
            "order": [list(each) for each in self.order],
            "outcomes": [asdict(outcome) for outcome in self.outcomes],
        }
        safe: dict[str, Any] = json_safe(plain)
        return {**safe, "seal": seal_of(safe) if self.is_own else ""}


def shuffled(rows: Sequence[MatrixRow], repeats: int, seed: int) -> list[tuple[str, int]]:
    """The order to run in: every repeat is a round of all rows, each round shuffled anew.

    So a machine that changes while the matrix runs changes all rows alike, and an interrupted
    matrix has whole rounds.
    """
    shuffler = random.Random(seed)
    order = []
    for repeat in range(1, repeats + 1):
        ids = [row.spec.id for row in rows]
        shuffler.shuffle(ids)
        order += [(row_id, repeat) for row_id in ids]
    return order


def create_folder(parent: Path, name: str) -> Path:
    """Makes the directory of a new matrix.

    Raises:
        UsageError: The name has other characters than a directory should.
        RunDirError: It cannot be made.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
        raise UsageError(
            f"--name {name!r} cannot be part of a directory name",
            fix="use letters, digits, '.', '_' and '-', at most 64",
        )
    utc = datetime.now(tz=UTC).strftime("%Y%m%dT%H%M%SZ")
    path = parent / f"{utc}-matrix-{name}-{secrets.token_hex(2)}"
    try:
        make_folder(path)
        for part in (ROWS, LOGS):
            (path / part).mkdir(mode=FOLDER_MODE)
    except OSError as error:
        raise RunDirError(
            f"cannot make the directory {path}: {error.strerror}",
            fix="choose a writable place with --output DIR",
        ) from error
    return path


def load(path: Path) -> Matrix:
    """Reads a matrix that was begun. Whose its rows are, ``is_own`` says.

    Raises:
        UsageError: There is none at that place.
        RunDirError: It cannot be read, or is of another version.
    """
    file = path / FILE
    try:
        with file.open(encoding="utf-8") as stream:
            text = stream.read(_MOST_CHARACTERS)  # what is longer is cut, and then no JSON
        raw = json.loads(text)
    except FileNotFoundError:
        raise UsageError(
            f"{path} is not the directory of a matrix: it has no {FILE}",
            fix="ls -d runs/*-matrix-*; name one of those",
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise RunDirError(f"cannot read {file}: {error}", fix="start it again") from error
    if not isinstance(raw, dict):
        raise RunDirError(f"{file} holds no object", fix="start it again")
    if raw.get("schema_version") != SCHEMA_VERSION:
        raise RunDirError(
            f"{file} has schema version {raw.get('schema_version')!r}, "
            f"this connscope reads {SCHEMA_VERSION}",
            fix="start it again",
        )
    try:
        matrix = from_dict(path, raw)
        matrix.results()  # what its outcomes lack is missed here, and not after hours of runs
        return matrix
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise RunDirError(f"{file} is damaged: {error!r}", fix="start it again") from error


def from_dict(path: Path, raw: dict[str, Any]) -> Matrix:
    """A matrix of its document (``Matrix.to_dict``), which may be a stranger's."""
    rows = [MatrixRow.from_dict(row) for row in raw["rows"]]
    order = [(str(row), int(repeat)) for row, repeat in raw["order"]]
    outcomes = [Outcome(**outcome) for outcome in raw["outcomes"]]
    if unknown := {row for row, _ in order} - {row.spec.id for row in rows}:
        raise ValueError(f"its order names a row that it has not: {min(unknown)!r:.60}")
    for each in outcomes:
        if not re.fullmatch(_RUN, each.run):
            raise ValueError(f"a run of it is not below {ROWS}/: {each.run!r:.60}")
    return Matrix(
        path=path,
        name=str(raw["name"]),
        shows=str(raw["shows"]),
        argv=[str(word) for word in raw["argv"]],
        seed=int(raw["seed"]),
        repeats=int(raw["repeats"]),
        scale=Scale(**raw["scale"]),
        rows=rows,
        order=order,
        host=dict(raw["host"]),
        outcomes=outcomes,
        status=str(raw["status"]),
        is_varied=bool(raw["is_varied"]),
        started=str(raw["started"]),
        is_own=is_own(raw),
    )


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Keeps a second profile-matrix out of this directory, and this one out of somebody else's.

    Raises:
        UsageError: One is in it, there is no such directory, or others may write it.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(
            f"there is no directory {path}", fix="ls -d runs/*-matrix-*; name one of those"
        ) from None
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(
                f"another profile-matrix is running {path}", fix="wait for it, or end it"
            ) from None
        require_own(path, fd, files=(FILE, PAGE), folders=(ROWS, LOGS))
        yield
    finally:
        os.close(fd)
