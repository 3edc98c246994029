"""Many runs side by side: what bound each row, what moved its ceiling, what was expected.

Pure: outcomes of rows in, a comparison out. A *row* is one set of options; it may be run several
times. Its *ceiling* is the most connections that were open at once; a row that reached its target
has a ceiling of at least that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from analysis.stats.spread import Difference, Spread, differs
from probes.contract.limits import LIMITS

Direction = Literal["up", "down", "none", "unknown"]

TOLERANCE_PCT = 3.0
"""A ceiling that moved by less did not move, where a row says nothing else: walls that are counted
(descriptors, ports) repeat within 1 %, those of a shared listener within 2 %."""

CEILING = "ceiling_count"
HOST_LIMITS = frozenset(name for name, limit in LIMITS.items() if limit.is_shared)
"""Their slopes hold other load of the host as well; a short run sees them move by themselves."""
FAR_RATIO = 1.3
"""Rungs of uneven workers and clients differ by less than this from run to run."""
HARMFUL = ("binding", "contributing", "warning")


@dataclass(frozen=True, slots=True)
class RowSpec:
    """One row as it was planned.

    Attributes:
        id: Unique in the matrix.
        shows: One line for people.
        command: The command line of its runs.
        options: What tells it from other rows, by option name.
        provoked: Cause that it is to provoke, '' when none is expected.
        allowed: Further causes that may be named.
        log_row: Row of the log that it reproduces, 0 for none.
        log: What the log said, '' for nothing.
        log_ceiling: Connections that the log reached, None when it does not say.
        scale: Connections here for one of the log's.
        note: What else a reader must know of this row.
        against: Id of the row that it is compared with, '' for none.
        move: Expected direction of the ceiling against that row, '' for any.
        tolerance_pct: How far a ceiling may move and still count as the same.
        bounds: Lowest and highest value that a figure may have.
        has_expectation: Something is expected of it at all.
    """

    id: str
    shows: str
    command: str
    options: Mapping[str, Any]
    provoked: str = ""
    allowed: tuple[str, ...] = ()
    log_row: int = 0
    log: str = ""
    log_ceiling: float | None = None
    scale: float = 1.0
    note: str = ""
    against: str = ""
    move: str = ""
    tolerance_pct: float = TOLERANCE_PCT
    bounds: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    has_expectation: bool = False

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Self:
        """From the JSON of ``asdict``."""
        values = dict(document)
        values["allowed"] = tuple(values["allowed"])
        values["bounds"] = {name: (low, high) for name, (low, high) in values["bounds"].items()}
        return cls(**values)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one run of a row came to.

    Attributes:
        row: Id of the row.
        repeat: 1 for its first run.
        state: ``done``: it has a verdict. ``failed``: it has none, and ``error`` says why.
        took_s: From start to page.
        error: For people, '' when done.
        run: Its run directory, relative to the matrix; '' when there is none.
        verdict: The object ``verdict`` of verdict.json.
        facts: The object ``run`` of it.
        findings: Of it, without explanations.
        ladder: Of it.
        figures: Numbers by name; None when not measured.
        workers: Server workers: worker, peak_count, room_count, own_count.
        complaints: What of the row's expectation the verdict does not meet.
        has_page: Its report.html was written.
        calibrated: Where an option follows from a trial just before: its name, its value, the
            figure of the trial, what that was; else empty.
    """

    row: str
    repeat: int
    state: Literal["done", "failed"]
    took_s: float
    error: str = ""
    run: str = ""
    verdict: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    findings: Sequence[Mapping[str, Any]] = ()
    ladder: Sequence[Mapping[str, Any]] = ()
    figures: Mapping[str, float | None] = field(default_factory=dict)
    workers: Sequence[Mapping[str, Any]] = ()
    complaints: Sequence[str] = ()
    has_page: bool = True
    calibrated: Mapping[str, Any] = field(default_factory=dict)

    @property
    def cause(self) -> str:
        """What bound it; '' when it failed."""
        return str(self.verdict.get("cause", ""))

    @property
    def named(self) -> list[str]:
        """Every cause that it names as harmful, each once, binding first."""
        causes = [str(f["cause"]) for f in self.findings if f["severity"] in HARMFUL]
        return list(dict.fromkeys(causes))

    def figure(self, name: str) -> float | None:
        """One number, None when it was not measured."""
        return self.figures.get(name)


@dataclass(frozen=True, slots=True)
class RungMove:
    """One rung of the ladder in two rows: connections at which it would be met, None: not seen."""

    limit: str
    subject: str
    before: float | None
    after: float | None

    @property
    def ratio(self) -> float:
        """How far it moved, in either direction; 1 for not at all or not known."""
        if not self.before or not self.after:
            return 1.0
        return max(self.before, self.after) / min(self.before, self.after)


@dataclass(frozen=True, slots=True)
class Move:
    """A row against another.

    Attributes:
        against: Id of the other.
        changed: Options that differ, in words.
        before: Ceiling of the other, median.
        after: Ceiling of this one, median.
        direction: What the ceiling did, beyond the tolerance and the noise.
        noise: What the repeats say of the difference.
        at_least: This one reached its target: the ceiling may be higher.
        cause_before: What bound the other.
        cause_after: What bound this one.
        rungs: First rung of every limit that either of the two met or would meet next.
    """

    against: str
    changed: tuple[str, ...]
    before: float
    after: float
    direction: Direction
    noise: str
    at_least: bool
    cause_before: str
    cause_after: str
    rungs: tuple[RungMove, ...]

    @property
    def moved_rungs(self) -> list[RungMove]:
        """Limits that lie elsewhere now, farthest first; not those of the host as a whole."""
        both = [r for r in self.rungs if r.before and r.after and r.limit not in HOST_LIMITS]
        far = [r for r in both if r.ratio >= FAR_RATIO]
        return sorted(far, key=lambda r: -r.ratio)

    @property
    def delta_count(self) -> float:
        """Connections more (or, negative, fewer)."""
        return self.after - self.before

    @property
    def delta_pct(self) -> float | None:
        """The same of the other's ceiling; None when that was 0."""
        return 100 * self.delta_count / self.before if self.before else None


@dataclass(frozen=True, slots=True)
class RowResult:
    """One row, understood.

    Attributes:
        spec: The row.
        outcomes: Its runs, by repeat.
        cause: What bound it most often, '' when no run is done.
        causes: Every binding cause and in how many runs.
        ceiling: Over its runs.
        move: Against the row that it is compared with; None without one, or when either is not
            done.
        complaints: What was not as expected, for people.
        held: Whether everything was as expected; None: nothing was expected, or nothing has run.
    """

    spec: RowSpec
    outcomes: tuple[Outcome, ...]
    cause: str
    causes: Mapping[str, int]
    ceiling: Spread
    move: Move | None
    complaints: tuple[str, ...]
    held: bool | None

    @property
    def done(self) -> list[Outcome]:
        """Its runs that have a verdict."""
        return [each for each in self.outcomes if each.state == "done"]

    @property
    def shown(self) -> Outcome | None:
        """The run that stands for the row: the first with the most frequent cause."""
        return next((each for each in self.done if each.cause == self.cause), None)

    @property
    def has_reached(self) -> bool:
        """Every run reached its target."""
        return bool(self.done) and set(self.causes) == {"reached"}

    def spread(self, figure: str) -> Spread:
        """One figure over its runs."""
        return Spread.of(each.figure(figure) for each in self.done)


def compare(specs: Sequence[RowSpec], outcomes: Sequence[Outcome]) -> list[RowResult]:
    """Understands a matrix, finished or not.

    Args:
        specs: The rows, in the order to show.
        outcomes: The runs that were made, in any order.
    """
    results = {spec.id: _alone(spec, outcomes) for spec in specs}
    return [_against(results[spec.id], results.get(spec.against)) for spec in specs]


def _alone(spec: RowSpec, outcomes: Sequence[Outcome]) -> RowResult:
    mine = tuple(sorted((o for o in outcomes if o.row == spec.id), key=lambda o: o.repeat))
    done = [each for each in mine if each.state == "done"]
    causes = Counter(each.cause for each in done)
    ceiling = Spread.of(each.figure(CEILING) for each in done)
    complaints = [f"{_which(o, mine)}did not run: {o.error}" for o in mine if o.state == "failed"]
    for outcome in done:
        said = [*outcome.complaints, *_out_of_bounds(spec, outcome)]
        complaints += [f"{_which(outcome, mine)}{each}" for each in said]
    cause = causes.most_common(1)[0][0] if causes else ""
    return RowResult(spec, mine, cause, dict(causes), ceiling, None, tuple(complaints), held=None)


def _which(outcome: Outcome, outcomes: Sequence[Outcome]) -> str:
    return f"run {outcome.repeat}: " if len(outcomes) > 1 else ""


def _out_of_bounds(spec: RowSpec, outcome: Outcome) -> list[str]:
    complaints = []
    for name, (low, high) in spec.bounds.items():
        value = outcome.figure(name)
        if value is None:
            complaints.append(f"{name} was not measured")
        elif not low <= value <= high:
            complaints.append(f"{name} is {value:,.5g}, expected {low:,.5g} to {high:,.5g}")
    return complaints


def _against(result: RowResult, other: RowResult | None) -> RowResult:
    spec, complaints = result.spec, list(result.complaints)
    move = None
    if other is not None and other.done and result.done:
        move = _move(result, other)
    if spec.move and move is None and result.done:
        complaints.append(f"{spec.against} has no run to compare with")
    elif spec.move and move is not None and move.direction != spec.move:
        complaints.append(
            f"the ceiling was expected to {_WORDS[spec.move]} against {spec.against}: "
            f"{move.before:,.0f} became {move.after:,.0f}"
        )
    is_judged = bool(result.outcomes) and (spec.has_expectation or bool(complaints))
    return RowResult(
        spec,
        result.outcomes,
        result.cause,
        result.causes,
        result.ceiling,
        move,
        tuple(complaints),
        held=not complaints if is_judged else None,
    )


_WORDS = {"up": "rise", "down": "fall", "none": "stay"}


def _move(result: RowResult, other: RowResult) -> Move:
    before, after = other.ceiling.median, result.ceiling.median
    noise = differs(other.ceiling, result.ceiling)
    tolerance = result.spec.tolerance_pct / 100 * max(before, after)
    if before != before or after != after:  # noqa: PLR0124 - NaN: nothing was measured
        direction: Direction = "unknown"
    elif abs(after - before) <= tolerance or noise == Difference.WITHIN_NOISE:
        direction = "none"
    else:
        direction = "up" if after > before else "down"
    return Move(
        against=other.spec.id,
        changed=tuple(_changed(other.spec.options, result.spec.options)),
        before=before,
        after=after,
        direction=direction,
        noise=str(noise),
        at_least=result.has_reached,
        cause_before=other.cause,
        cause_after=result.cause,
        rungs=tuple(_rungs(other.shown, result.shown)),
    )


def _changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    names = [*before, *(name for name in after if name not in before)]
    return [
        f"{name.replace('_', '-')} {_value(before.get(name))} → {_value(after.get(name))}"
        for name in names
        if before.get(name) != after.get(name)
    ]


def _value(value: Any) -> str:
    if value is None:
        return "default"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return f"{value:,}" if is_number else str(value)


def _rungs(before: Outcome | None, after: Outcome | None) -> list[RungMove]:
    """The first rung of every limit, of server and clients apart, soonest first in ``after``."""
    if before is None or after is None:
        return []
    old, new = _first_rungs(before), _first_rungs(after)
    moves = [
        RungMove(limit, subject, old.get((limit, subject)), new.get((limit, subject)))
        for limit, subject in {**new, **old}
    ]
    return sorted(moves, key=lambda m: m.after if m.after is not None else float("inf"))


def _first_rungs(outcome: Outcome) -> dict[tuple[str, str], float]:
    first: dict[tuple[str, str], float] = {}
    for rung in outcome.ladder:
        predicted = rung.get("predicted_connections")
        if predicted is None:
            continue
        subject = str(rung.get("subject") or "")
        whose = next((s for s in ("client", "worker", "acceptor") if s in subject), "")
        key = str(rung["limit"]), whose
        first[key] = min(float(predicted), first.get(key, float("inf")))
    return first


@dataclass(frozen=True, slots=True)
class Effect:
    """One value of one varied option, over all rows that have it.

    Attributes:
        option: Its name.
        value: As it was written.
        row_count: Rows that have it and have run.
        figures: Spread over those rows' runs, by name.
    """

    option: str
    value: str
    row_count: int
    figures: Mapping[str, Spread]


def effects(results: Sequence[RowResult], figures: Sequence[str]) -> list[Effect]:
    """What each value of each option came to, the other options taken together.

    Args:
        results: Of a matrix in which every value meets every other.
        figures: Names of the figures to show.
    """
    found = []
    options = dict.fromkeys(name for result in results for name in result.spec.options)
    for option in options:
        values = dict.fromkeys(_value(result.spec.options.get(option)) for result in results)
        if len(values) < 2:
            continue
        for value in values:
            mine = [r for r in results if _value(r.spec.options.get(option)) == value and r.done]
            runs = [outcome for result in mine for outcome in result.done]
            spreads = {name: Spread.of(run.figure(name) for run in runs) for name in figures}
            found.append(Effect(option, value, len(mine), spreads))
    return found
