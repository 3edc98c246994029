"""The rows of a matrix: from a scenario file and its scale, or from ``--vary``.

A row of a scenario file may say, besides what ``harness.matrix.scenario`` reads:

    log_row = 8                       # row of the log that it reproduces
    log = "what the log said"
    log_ceiling = 100000              # connections that the log reached
    note = "what else a reader must know"
    scaled = ["connections", "nofile", "port_range", "keepalive", "inject"]
    against = "id of another row"     # whose ceiling this one's is compared with
    move = "up"                       # up, down or none: what its ceiling must do against that
    tolerance_pct = 3                 # how far it may move and count as the same
    ceiling = 65520                   # connections that it must reach, to the tolerance
    bounds = { fullest_share = [1, 1] }  # figures of analysis/matrix/figures.py: lowest, highest
    calibrate = { ... }               # an option in proportion to what this machine can:
                                      # harness/matrix/calibration.py
    deadline_s = 120

and the file, at its top:

    [scale]
    log = 65535          # what the numbers in ``scaled`` and ``ceiling`` are written for
    here = 4000          # what stands for it here; --scale changes it

Then the options in ``scaled`` are multiplied by here / log, and so is ``ceiling`` where connections
are. A port range keeps its first port; ``inject`` scales the value after the last colon.
"""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from analysis.matrix.matrix import CEILING, TOLERANCE_PCT, RowSpec
from harness.foreign.secret_words import shown_value, without_secrets
from harness.matrix.calibration import TRIAL_HOLD_S, Calibration
from harness.matrix.scenario import Expectation, Row, ScenarioFile
from harness.options import run as run_options
from probes.contract.errors import UsageError

MOST_ROWS = 400
DEADLINE_S = 150.0
"""For start, stop, analysis and page of one run; its ramp and hold come on top."""

_OURS = ("output", "name", "json", "plan", "quiet", "no_report")
_SHORTEST_KEEPALIVE_S = 0.01
"""profile-run takes no shorter one."""
LEAST_SCALE = 1000
"""Descriptors of a process; with fewer, what is measured drowns in what each run costs anyhow."""
_NO_KNOBS = ("hold", "connect_timeout", "stall")
"""Options of a scenario's row that make it quick; no ceiling moves by them."""
_SLOWEST_RAMP_PER_S = 500.0


@dataclass(frozen=True, slots=True)
class Scale:
    """What stands for the log's numbers here: ``here`` for ``log``."""

    log: float = 1.0
    here: float = 1.0

    @property
    def factor(self) -> float:
        """Connections, descriptors and ports here for one of the log's."""
        return self.here / self.log


@dataclass(frozen=True, slots=True)
class MatrixRow:
    """One row, ready to run.

    Attributes:
        spec: What the comparison needs to know of it.
        words: Arguments of profile-run.
        expect: What its verdict must say.
        client_nofile: RLIMIT_NOFILE of the command, 0 to leave it.
        deadline_s: When a run of it counts as hung.
        hold_s: For the estimate of the time left, that of a trial included.
        calibration: What is set from a trial just before; None for nothing.
    """

    spec: RowSpec
    words: tuple[str, ...]
    expect: Expectation
    client_nofile: int
    deadline_s: float
    hold_s: float
    calibration: Calibration | None = None

    @property
    def shown_words(self) -> list[str]:
        """``words`` as they may stand in a file: without what is only to be sent."""
        return without_secrets(self.words)

    def to_dict(self) -> dict[str, Any]:
        """As JSON, without what is only to be sent."""
        return {**asdict(self), "words": self.shown_words}

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> MatrixRow:
        """From the JSON of ``to_dict``."""
        expect = dict(document["expect"])
        also, may = tuple(expect.pop("also")), tuple(expect.pop("may"))
        calibration = document.get("calibration")
        return cls(
            spec=RowSpec.from_dict(document["spec"]),
            words=tuple(str(word) for word in document["words"]),
            expect=Expectation(**expect, also=also, may=may),
            client_nofile=int(document["client_nofile"]),
            deadline_s=float(document["deadline_s"]),
            hold_s=float(document["hold_s"]),
            calibration=Calibration(**calibration) if calibration else None,
        )


def scale_of(file: ScenarioFile, here: int | None, most_here: int) -> Scale:
    """The scale of a file on this host.

    Args:
        file: The scenario.
        here: ``--scale``, None for what the file says.
        most_here: The most descriptors that a process may have on this host.

    Raises:
        UsageError: The file has no scale, or the host has fewer descriptors than asked for.
    """
    raw = file.extra.get("scale")
    if raw is None:
        if here is not None:
            raise UsageError(f"{file.name} has no scale", fix="leave --scale away")
        return Scale()
    try:
        scale = Scale(float(raw["log"]), float(raw["here"]))
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"{file.name}: [scale] lacks or misspells something: {error}",
            fix="[scale] with log and here, both numbers",
        ) from error
    if here is None:
        return replace(scale, here=min(scale.here, float(most_here)))
    if not LEAST_SCALE <= here <= most_here:
        raise UsageError(
            f"--scale {here:,} is not between {LEAST_SCALE:,} and {most_here:,} descriptors",
            fix=f"--scale {min(4000, most_here)}, or raise the hard limit before: ulimit -Hn",
        )
    return replace(scale, here=float(here))


def rows_of_file(
    file: ScenarioFile, scale: Scale, more_words: Sequence[str] = ()
) -> list[MatrixRow]:
    """The rows of a scenario file.

    Args:
        file: The scenario.
        scale: From ``scale_of``.
        more_words: Arguments of profile-run that every row gets besides.

    Raises:
        UsageError: A row is no command line, or is compared with one that is not there.
    """
    rows = [_row_of_file(file.name, row, scale, more_words) for row in file.rows]
    ids = {row.spec.id for row in rows}
    for row in rows:
        if row.spec.against and row.spec.against not in ids:
            raise UsageError(
                f"{file.name}, row {row.spec.id}: there is no row {row.spec.against!r}",
                fix=f"against is one of: {', '.join(sorted(ids))}",
            )
    return rows


def _row_of_file(file: str, row: Row, scale: Scale, more_words: Sequence[str]) -> MatrixRow:
    extra = dict(row.extra)
    expect = row.expect
    try:
        scaled = [str(name) for name in extra.pop("scaled", ())]
        options = {
            name: _scaled(name, value, scale) if name in scaled else value
            for name, value in row.options.items()
        }
        factor = scale.factor if "connections" in scaled else 1.0
        tolerance_pct = float(extra.pop("tolerance_pct", TOLERANCE_PCT))
        bounds = {
            n: (float(low), float(high)) for n, (low, high) in extra.pop("bounds", {}).items()
        }
        ceiling = extra.pop("ceiling", None)
        if ceiling is not None:
            wanted, share = float(ceiling) * factor, tolerance_pct / 100
            bounds[CEILING] = (wanted * (1 - share), wanted * (1 + share))
        log_ceiling = extra.pop("log_ceiling", None)
        move = str(extra.pop("move", ""))
        raw = extra.pop("calibrate", None)
        calibration = None if raw is None else Calibration.of_row(raw, options)
        spec = RowSpec(
            id=row.id,
            shows=row.shows,
            command="",
            options=_for_comparison(options, row.client_nofile, calibration),
            provoked=expect.named or expect.cause,
            allowed=tuple(dict.fromkeys((*expect.also, *expect.may, expect.cause))),
            log_row=int(extra.pop("log_row", 0)),
            log=str(extra.pop("log", "")),
            log_ceiling=None if log_ceiling is None else float(log_ceiling),
            scale=factor,
            note=str(extra.pop("note", "")),
            against=str(extra.pop("against", "")),
            move=move,
            tolerance_pct=tolerance_pct,
            bounds=bounds,
            has_expectation=expect != Expectation() or bool(bounds) or bool(move),
        )
        deadline_s = float(extra.pop("deadline_s", 0.0))
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"{file}, row {row.id}: {error}", fix="see the head of harness/matrix/rows.py"
        ) from error
    if move not in ("", "up", "down", "none") or set(scaled) - set(row.options):
        wrong = f"move = {move!r}" if move else f"scaled = {scaled}"
        raise UsageError(
            f"{file}, row {row.id}: {wrong} makes no sense",
            fix="move is up, down or none; scaled names options of the row",
        )
    concrete = replace(row, options=options)
    words = [*concrete.arguments(), *more_words]
    ready = _ready(spec, words, expect, row.client_nofile, deadline_s)
    if calibration is None:
        return ready
    return replace(ready, calibration=calibration, hold_s=ready.hold_s + TRIAL_HOLD_S)


def _for_comparison(
    options: Mapping[str, Any], client_nofile: int, calibration: Calibration | None
) -> dict[str, Any]:
    knobs = {
        name: [shown_value(name, str(each)) for each in value]
        if isinstance(value, list)
        else shown_value(name, value)
        if isinstance(value, str)
        else value
        for name, value in options.items()
        if name not in _NO_KNOBS
    }
    if calibration is not None:
        knobs[calibration.option] = calibration.text
    return {**knobs, **({"client nofile": client_nofile} if client_nofile else {})}


def _scaled(name: str, value: Any, scale: Scale) -> Any:
    factor = scale.factor
    if name == "keepalive":
        return (
            value if value == "off" else round(max(_SHORTEST_KEEPALIVE_S, float(value) * factor), 4)
        )
    if name == "port_range":
        match = re.fullmatch(r"(\d+)-(\d+)", str(value))
        if match is None:
            raise ValueError(f"port_range {value!r} is no range")
        low, high = int(match[1]), int(match[2])
        return f"{low}-{low + max(1, round((high - low + 1) * factor)) - 1}"
    if name == "inject":
        texts = value if isinstance(value, list) else [value]
        return [_scaled_fault(str(text), factor) for text in texts]
    return max(1, round(float(value) * factor))


def _scaled_fault(text: str, factor: float) -> str:
    head, _, last = text.rpartition(":")
    return f"{head}:{max(1, round(float(last) * factor))}"


def rows_of_vary(varies: Sequence[str], base_words: Sequence[str]) -> list[MatrixRow]:
    """Every value of every varied option with every other.

    Args:
        varies: ``NAME=VALUE,VALUE...`` each; ``true`` and ``false`` for options without a value.
        base_words: Arguments of profile-run that all rows share.

    Raises:
        UsageError: Not of this form, too many, or no command line of profile-run.
    """
    axes: dict[str, list[str]] = {}
    for text in varies:
        name, equals, values = text.partition("=")
        name = name.strip().lstrip("-").replace("_", "-")
        chosen = list(dict.fromkeys(value.strip() for value in values.split(",")))
        if not equals or not name or not all(chosen):
            raise UsageError(
                f"--vary {text!r} is not NAME=VALUE,VALUE", fix="--vary keepalive=off,5"
            )
        if name in axes or name in _OURS:
            reason = "is given twice" if name in axes else "is set by profile-matrix itself"
            raise UsageError(f"--vary {text!r}: {name} {reason}", fix=f"one --vary {name}=... only")
        if any(shown_value(name, value) != value for value in chosen):
            raise UsageError(
                f"--vary {name} would write what is only to be sent into the names of rows",
                fix="a scenario file, whose rows have names of their own: docs/how-to/matrix.md",
            )
        axes[name] = chosen
    rows_count = 1
    for chosen in axes.values():
        rows_count *= len(chosen)
    if rows_count > MOST_ROWS:
        raise UsageError(
            f"--vary makes {rows_count:,} rows, more than {MOST_ROWS}", fix="vary fewer values"
        )
    rows = []
    first = ""
    for combination in itertools.product(*axes.values()):
        chosen_values = dict(zip(axes, combination, strict=True))
        row_id = " ".join(f"{name}={value}" for name, value in chosen_values.items()) or "base"
        words = list(base_words)
        for name, value in chosen_values.items():
            if value != "false":
                words += [f"--{name}"] if value == "true" else [f"--{name}", value]
        spec = RowSpec(row_id, row_id, "", chosen_values, against=first)
        rows.append(_ready(spec, words, Expectation(), 0, 0.0))
        first = first or row_id
    return rows


def _name(word: str) -> str:
    return word[2:].partition("=")[0].replace("-", "_")


def _ready(
    spec: RowSpec, words: Sequence[str], expect: Expectation, client_nofile: int, deadline_s: float
) -> MatrixRow:
    """Checks the command line before anything runs."""
    ours = [word for word in words if word.startswith("--") and _name(word) in _OURS]
    if ours:
        raise UsageError(f"{ours[0]} is set by profile-matrix itself", fix=f"leave {ours[0]} away")
    try:
        options = run_options.parse(list(words))
    except UsageError as error:
        raise UsageError(f"row {spec.id}: {error.message}", fix=error.fix) from error
    ramp_per_s = min(options.ramp or _SLOWEST_RAMP_PER_S, _SLOWEST_RAMP_PER_S)
    usual_s = DEADLINE_S + options.hold + options.connections / ramp_per_s
    return MatrixRow(
        spec=replace(spec, command=shlex.join(["profile-run", *without_secrets(words)])),
        words=tuple(words),
        expect=expect,
        client_nofile=client_nofile,
        deadline_s=deadline_s or usual_s,
        hold_s=options.hold,
    )
