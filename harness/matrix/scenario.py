"""Scenario files: rows of runs with what each shows, how it is started, and what is expected.

``harness/matrix/scenarios/*.toml``. ``profile-matrix`` runs them, and so do the tests that provoke
every cause. A file:

    name = "every-cause"
    shows = "one line about the whole"

    [[row]]
    id = "fd-limit-server"
    shows = "a worker at its descriptor limit"
    options = { connections = 1500, workers = 2, nofile = 400, hold = 2 }
    client_nofile = 600        # RLIMIT_NOFILE of the command itself, and so of the clients
    [row.expect]
    cause = "fd-limit-process"
    side = "server"
    also = ["accept-spin"]     # named as well
    may = ["host-cpu-saturated"]  # may be named besides

``options`` are those of profile-run without their dashes; a list repeats an option, true is a flag
without a value. A row that needs a server of others says so beside them:

    server = "{python} {foreign}/own_limit.py {port} 256"

``{foreign}`` is the folder of such servers in the source tree, ``tests/harness/foreign``.
"""

from __future__ import annotations

import shlex
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from analysis.causes import CAUSE_IDS, INTERRUPTED, NOT_EXPLAINED
from analysis.evidence_kinds import BESIDE_THE_RUN
from probes.contract.errors import UsageError

FOLDER = Path(__file__).parent / "scenarios"
"""Where the files are that come with the program."""
FOREIGN = Path(__file__).resolve().parents[2] / "tests" / "harness" / "foreign"
"""Servers that are not ours, each with a limit of its own: in the source tree, not installed."""

_HARMFUL = ("binding", "contributing", "warning")
_CROWDED, _OTHERS_PCT = "host-cpu-saturated", 25.0


@dataclass(frozen=True, slots=True)
class Expectation:
    """What the verdict of a row must say.

    Attributes:
        cause: The verdict's cause, '' for any.
        named: The cause that the row provokes: among the findings whatever the verdict says. A
            worker may be hot, say, and the target be reached all the same. '' for ``cause``.
        side: Side of the finding of ``named``, '' for any.
        role: Role of the process of that finding, '' for any.
        worker: Its number, -1 for any.
        also: Further causes that must be named.
        may: Causes that may be named besides.
    """

    cause: str = ""
    named: str = ""
    side: str = ""
    role: str = ""
    worker: int = -1
    also: tuple[str, ...] = ()
    may: tuple[str, ...] = ()

    def complaints(self, verdict: Mapping[str, Any]) -> list[str]:
        """What of this a ``verdict.json`` does not meet, for people; empty when all is met.

        That others had the cores is true of the moment, whatever the row provokes.
        """
        said = verdict["verdict"]
        named = self.named or self.cause
        found: list[str] = []
        if self.cause and said["cause"] != self.cause:
            found.append(f"the verdict is {said['cause']}, expected {self.cause}")
        harmful = [f for f in verdict["findings"] if f["severity"] in _HARMFUL]
        mine = [f for f in harmful if f["cause"] == named]
        if named and not mine:
            found.append(f"{named} is not named")
        if mine and not any(self._is_meant(finding) for finding in mine):
            subjects = [f"{f['side']} {f['subject']}" for f in mine]
            found.append(f"{named} is named of {', '.join(subjects)}")
        causes = {f["cause"] for f in harmful}
        found += [f"{cause} is not named" for cause in self.also if cause not in causes]
        unrelated = causes - {named, self.cause, "reached", *self.also, *self.may}
        if all(map(is_of_others, (f for f in harmful if f["cause"] == _CROWDED))):
            unrelated.discard(_CROWDED)
        found += [f"{cause} is named without reason" for cause in sorted(unrelated)]
        return found

    def _is_meant(self, finding: Mapping[str, Any]) -> bool:
        subject = finding["subject"]
        return (
            self.side in ("", finding["side"])
            and self.role in ("", subject["role"])
            and self.worker in (-1, subject["worker"])
        )


def is_of_others(finding: Mapping[str, Any]) -> bool:
    """A full host, of which processes beside the run had a good part."""
    return any(
        each.get("of") == BESIDE_THE_RUN and each["value"] >= _OTHERS_PCT
        for each in finding.get("evidence", ())
    )


@dataclass(frozen=True, slots=True)
class Row:
    """One run of a scenario file.

    Attributes:
        id: Unique within the file.
        shows: One line for people.
        options: Options of profile-run without dashes.
        client_nofile: RLIMIT_NOFILE of the command, 0 to leave it.
        expect: What its verdict must say.
        server: Command of a server that is not ours, with ``{port}``, ``{python}`` and
            ``{foreign}`` in it; '' for ours.
        extra: Whatever else the file says of the row, for the command that reads it.
    """

    id: str
    shows: str
    options: Mapping[str, Any]
    expect: Expectation
    client_nofile: int = 0
    server: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)

    def arguments(self) -> list[str]:
        """The command line of profile-run."""
        words = ["--server-cmd", self._server_command()] if self.server else []
        for name, value in self.options.items():
            option = f"--{name.replace('_', '-')}"
            for each in value if isinstance(value, list) else [value]:
                words += [option] if each is True else [option, str(each)]
        return words

    def _server_command(self) -> str:
        command = self.server
        for name, path in (("{python}", sys.executable), ("{foreign}", str(FOREIGN))):
            command = command.replace(name, shlex.quote(path))
        return command


@dataclass(frozen=True, slots=True)
class ScenarioFile:
    """A file of rows; ``extra`` is what else it says at the top."""

    name: str
    shows: str
    rows: tuple[Row, ...]
    extra: Mapping[str, Any] = field(default_factory=dict)

    def row(self, row_id: str) -> Row:
        """The row of that id.

        Raises:
            UsageError: There is none.
        """
        for row in self.rows:
            if row.id == row_id:
                return row
        known = ", ".join(row.id for row in self.rows)
        raise UsageError(f"{self.name} has no row {row_id!r}", fix=f"one of: {known}")

    def without_missing_servers(self) -> tuple[ScenarioFile, tuple[Row, ...]]:
        """The file without rows whose servers are not here, and those rows.

        Servers of others are in the source tree and are not installed.
        """
        if FOREIGN.is_dir():
            return self, ()
        left_out = tuple(row for row in self.rows if "{foreign}" in row.server)
        kept = tuple(row for row in self.rows if row not in left_out)
        return replace(self, rows=kept), left_out


def load(name: str) -> ScenarioFile:
    """Reads a file by its path, or one that comes with the program by its name.

    Raises:
        UsageError: Not there, not TOML, or not of this form.
    """
    path = Path(name) if name.endswith(".toml") else FOLDER / f"{name}.toml"
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        known = ", ".join(sorted(each.stem for each in FOLDER.glob("*.toml")))
        raise UsageError(
            f"cannot read the scenario {name}: {error.strerror}",
            fix=f"a path that ends in .toml, or one of: {known}",
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not TOML: {error}", fix=f"correct {path}") from error
    return parse(document, str(path))


def parse(document: Mapping[str, Any], where: str) -> ScenarioFile:
    """Checks the content of a file.

    Raises:
        UsageError: Not of this form.
    """
    rest = dict(document)
    try:
        raw_rows = rest.pop("row")
        name, shows = str(rest.pop("name")), str(rest.pop("shows"))
        rows = tuple(_row(dict(raw), where) for raw in raw_rows)
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"{where} lacks or misspells something: {error}",
            fix="name, shows, and [[row]] with id, shows, options and [row.expect]",
        ) from error
    ids = [row.id for row in rows]
    if not ids or len(set(ids)) != len(ids):
        raise UsageError(f"{where}: the ids of its rows are not unique", fix=f"correct {where}")
    return ScenarioFile(name, shows, rows, rest)


def _row(raw: dict[str, Any], where: str) -> Row:
    row_id = str(raw.pop("id"))
    expect = dict(raw.pop("expect", {}))
    also, may = (tuple(expect.pop(key, ())) for key in ("also", "may"))
    expectation = Expectation(**expect, also=also, may=may)
    known = {*CAUSE_IDS, NOT_EXPLAINED, INTERRUPTED, ""}
    for cause in (expectation.cause, expectation.named, *expectation.also, *expectation.may):
        if cause not in known:
            raise UsageError(
                f"{where}, row {row_id}: {cause!r} is no cause",
                fix="the ids are those of docs/reference/causes.md",
            )
    return Row(
        id=row_id,
        shows=str(raw.pop("shows")),
        options=dict(raw.pop("options")),
        client_nofile=int(raw.pop("client_nofile", 0)),
        expect=expectation,
        server=str(raw.pop("server", "")),
        extra=raw,
    )
