"""What changed between runs, what moved, and what of it is larger than the noise.

Pure: one digest a run in (made one at a time, so that a hundred large runs fit into memory), the
comparison out. The first variant is the base that the others are held against.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from analysis.comparison.comparable import run_name
from analysis.comparison.run_conditions import Change, changes, labels, variant_key
from analysis.comparison.run_figures import Better, Figure, key_figures
from analysis.document import document as verdict_document
from analysis.stats.spread import FEWEST_RUNS, Difference, Spread, differs
from analysis.summary import Summary


@dataclass(frozen=True, slots=True)
class RunDigest:
    """What a comparison needs of one run.

    Attributes:
        manifest: ``manifest.json``.
        verdict: The content of ``verdict.json``.
        figures: By name, all of ``analysis.comparison.run_figures.FIGURE_NAMES``.
    """

    manifest: Mapping[str, Any]
    verdict: Mapping[str, Any]
    figures: Mapping[str, Figure]

    @property
    def run_id(self) -> str:
        """The run's id."""
        return run_name(self.manifest)


def digest(summary: Summary) -> RunDigest:
    """Keeps of a run what a comparison needs; the tables can go."""
    return RunDigest(summary.manifest, verdict_document(summary), key_figures(summary))


@dataclass(frozen=True, slots=True)
class RunVerdict:
    """How one run ended.

    Attributes:
        run_id: The run.
        cause: Its verdict's cause.
        side: server, client or host.
        at_connections: Open connections when it was met.
        target_connections: What was asked for.
        sentence: The verdict in words.
        confidence: high, medium or low.
        also: Causes of its other findings that did something (contributing, warning).
    """

    run_id: str
    cause: str
    side: str
    at_connections: int
    target_connections: int
    sentence: str
    confidence: str
    also: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Variant:
    """The repeats of one variant.

    Attributes:
        letter: A, B, ... in the order in which they were named.
        label: What sets it apart, e.g. ``accept=shared``.
        verdicts: One a repeat.
    """

    letter: str
    label: str
    verdicts: tuple[RunVerdict, ...]

    @property
    def run_count(self) -> int:
        """Repeats."""
        return len(self.verdicts)

    @property
    def causes(self) -> dict[str, int]:
        """How often each cause was the verdict, most often first."""
        return dict(Counter(verdict.cause for verdict in self.verdicts).most_common())


@dataclass(frozen=True, slots=True)
class Against:
    """One variant held against the base.

    Attributes:
        difference: Whether it is larger than the noise, and its direction.
        change: Median against median, in the row's unit; None when one was not measured.
        change_pct: The same in percent of the base; None from a base of zero.
        is_better: True or False when a claimed difference is for better or worse, else None.
    """

    difference: Difference
    change: float | None
    change_pct: float | None
    is_better: bool | None


@dataclass(frozen=True, slots=True)
class FigureRow:
    """One key figure across the variants.

    Attributes:
        name: And label, unit, better, slowed_by_probes: as in
            ``analysis.comparison.run_figures.Figure``.
        values: Of every repeat that measured it, for each variant.
        spreads: For each variant.
        against: Each variant but the first against the first.
    """

    name: str
    label: str
    unit: str
    better: Better
    slowed_by_probes: bool
    values: tuple[tuple[float, ...], ...]
    spreads: tuple[Spread, ...]
    against: tuple[Against, ...]

    @property
    def is_measured(self) -> bool:
        """Some variant has a value."""
        return any(spread.count for spread in self.spreads)

    @property
    def is_claimed(self) -> bool:
        """Some variant differs from the base by more than the noise."""
        return any(one.difference.is_claimed for one in self.against)


@dataclass(frozen=True, slots=True)
class RungRow:
    """One limit of the ladder across the variants: the nearest of its kind in each run.

    Attributes:
        limit: As in ``analysis.ladder.rung.Rung``.
        side: server or client for limits of a process, '' for others.
        unit: Of the capacity.
        predicted: Connections at which it is met, for each variant.
        capacity: For each variant.
        met_counts: In how many repeats of each variant it was met.
        notes: Why there is no prediction, for each variant; '' when there is one.
        against: Predictions against those of the base.
    """

    limit: str
    side: str
    unit: str
    predicted: tuple[Spread, ...]
    capacity: tuple[Spread, ...]
    met_counts: tuple[int, ...]
    notes: tuple[str, ...]
    against: tuple[Against, ...]

    @property
    def is_claimed(self) -> bool:
        """It moved by more than the noise, somewhere."""
        return any(one.difference.is_claimed for one in self.against)

    @property
    def is_predicted(self) -> bool:
        """Some variant can say where it is."""
        return any(spread.count for spread in self.predicted)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Runs compared; every tuple over variants is in the order of ``variants``."""

    variants: tuple[Variant, ...]
    changes: tuple[Change, ...]
    figures: tuple[FigureRow, ...]
    ladder: tuple[RungRow, ...]
    cautions: tuple[str, ...]

    @property
    def is_noise_known(self) -> bool:
        """Every variant has, with the base, enough runs to tell noise."""
        base = self.variants[0].run_count
        return all(base + other.run_count >= FEWEST_RUNS for other in self.variants[1:])


def compare(
    digests: Sequence[RunDigest],
    *,
    names: Mapping[str, str] | None = None,
    cautions: Sequence[str] = (),
) -> Comparison:
    """Compares runs that ``analysis.comparison.comparable`` lets pass.

    Args:
        digests: In the order in which variants are to be shown; the first is of the base.
        names: Run id to the name of its variant, where the caller knows better ones than the
            settings that differ. Runs of different names are never repeats of each other.
        cautions: What a reader must know before all else.
    """
    given = names or {}
    groups: dict[tuple[str, str], list[RunDigest]] = {}
    for one in digests:
        key = (given.get(one.run_id, ""), variant_key(one.manifest))
        groups.setdefault(key, []).append(one)
    members = list(groups.values())
    found = changes([runs[0].manifest for runs in members])
    made = labels(found, len(members))
    variants = tuple(
        Variant(_letter(i), name or made[i], tuple(_run_verdict(run) for run in runs))
        for i, ((name, _), runs) in enumerate(groups.items())
    )
    return Comparison(
        variants,
        tuple(found),
        tuple(_figure_rows(members)),
        tuple(_rung_rows(members)),
        (*cautions, *_cautions(digests)),
    )


def _letter(index: int) -> str:
    """A to Z, then AA, AB, ... as in a spreadsheet."""
    head, last = divmod(index, 26)
    return (_letter(head - 1) if head else "") + chr(ord("A") + last)


def _run_verdict(run: RunDigest) -> RunVerdict:
    verdict, facts = run.verdict["verdict"], run.verdict["run"]
    also = [f["cause"] for f in run.verdict["findings"] if f["severity"] != "info"]
    return RunVerdict(
        run.run_id,
        str(verdict["cause"]),
        str(verdict["side"]),
        int(verdict["at_connections"] or 0),
        int(facts["target_connections"] or 0),
        str(verdict["sentence"]),
        str(verdict["confidence"]),
        tuple(dict.fromkeys(cause for cause in also if cause != verdict["cause"])),
    )


def _cautions(digests: Sequence[RunDigest]) -> list[str]:
    found = []
    commits = list(dict.fromkeys(str(d.manifest.get("tool_commit") or "") for d in digests))
    if len(commits) > 1:
        found.append(
            f"The runs were recorded by {len(commits)} commits of connscope "
            f"({commits[0] or 'unknown'} to {commits[-1] or 'unknown'}): a change of its own "
            "server or clients between them would show here as a difference."
        )
    lost = [sum(int(p.get("lost") or 0) for p in d.verdict.get("probes") or []) for d in digests]
    lossy = [run.run_id for run, count in zip(digests, lost, strict=True) if count]
    if lossy:
        named = ", ".join(lossy[:3]) + (", ..." if len(lossy) > 3 else "")
        found.append(
            f"Probes lost {sum(lost):,} events in {len(lossy)} of {len(digests)} runs ({named}); "
            "their reports say which."
        )
    return found


# -- figures ----------------------------------------------------------------------------------


def _figure_rows(members: Sequence[Sequence[RunDigest]]) -> list[FigureRow]:
    rows = []
    for name, kind in members[0][0].figures.items():
        spreads = tuple(
            Spread.of(
                [run.figures[name].value for run in runs],
                [run.figures[name].error for run in runs],
                [run.figures[name].resolution for run in runs],
            )
            for runs in members
        )
        values = tuple(
            tuple(v for run in runs if (v := run.figures[name].value) is not None)
            for runs in members
        )
        rows.append(
            FigureRow(
                name,
                kind.label,
                kind.unit,
                kind.better,
                kind.slowed_by_probes,
                values,
                spreads,
                _against(spreads, kind.better),
            )
        )
    return rows


def _against(spreads: Sequence[Spread], better: Better) -> tuple[Against, ...]:
    base = spreads[0]
    found = []
    for other in spreads[1:]:
        difference = differs(base, other)
        change = other.median - base.median if base.count and other.count else None
        has_share = change is not None and base.median != 0
        is_better = None
        if difference.is_claimed and better:
            is_better = (difference is Difference.HIGHER) == (better == "higher")
        found.append(
            Against(
                difference,
                change,
                100 * change / abs(base.median) if has_share and change is not None else None,
                is_better,
            )
        )
    return tuple(found)


# -- ladder -----------------------------------------------------------------------------------

_SIDES = ("server", "client")
_SAME_CAPACITY = 0.001
_MOVED_CAPACITY = 0.05
"""What a process has open besides connections, and free memory, move a capacity by less."""


def _rung_key(rung: Mapping[str, Any]) -> tuple[str, str]:
    """Pids and numbers of processes change from run to run; their side does not."""
    side = next((s for s in _SIDES if rung["scope"] == "process" and s in rung["subject"]), "")
    return str(rung["limit"]), side


def _nearest(run: RunDigest) -> dict[tuple[str, str], Mapping[str, Any]]:
    """The first rung of each kind: a ladder is sorted, next wall first."""
    found: dict[tuple[str, str], Mapping[str, Any]] = {}
    for rung in run.verdict["ladder"]:
        found.setdefault(_rung_key(rung), rung)
    return found


def _rung_rows(members: Sequence[Sequence[RunDigest]]) -> list[RungRow]:
    ladders = [[_nearest(run) for run in runs] for runs in members]
    keys = {key: None for variant in ladders for ladder in variant for key in ladder}
    rows = []
    for limit, side in keys:
        of_variants = [
            [ladder[limit, side] for ladder in variant if (limit, side) in ladder]
            for variant in ladders
        ]
        predicted = tuple(
            Spread.of([r["predicted_connections"] for r in rungs], [_error(r) for r in rungs])
            for rungs in of_variants
        )
        capacity = tuple(Spread.of([r["capacity"] for r in rungs]) for rungs in of_variants)
        rows.append(
            RungRow(
                limit,
                side,
                next((str(r["unit"]) for rungs in of_variants for r in rungs), ""),
                predicted,
                capacity,
                tuple(sum(bool(r["met"]) for r in rungs) for rungs in of_variants),
                tuple(_why_not(rungs, s) for rungs, s in zip(of_variants, predicted, strict=True)),
                _against_set(predicted, capacity),
            )
        )
    return sorted(rows, key=_place)


def _against_set(predicted: Sequence[Spread], capacity: Sequence[Spread]) -> tuple[Against, ...]:
    """Predictions against the base. Where the noise is not known, a capacity that was set to
    another value still moves its limit in that direction.
    """  # noqa: D205  # one sentence does not fit one line
    found = []
    for index, one in enumerate(_against(predicted, "higher"), start=1):
        moved = _set_anew(capacity[0], capacity[index])
        agrees = one.change is not None and one.change * moved > 0
        if one.difference is Difference.NOISE_UNKNOWN and agrees:
            direction = Difference.HIGHER if moved > 0 else Difference.LOWER
            found.append(replace(one, difference=direction, is_better=moved > 0))
        else:
            found.append(one)
    return tuple(found)


def _set_anew(base: Spread, other: Spread) -> float:
    """How much a capacity was moved, 0 when it was not set but measured (free memory varies)."""
    fixed = [s.count > 0 and s.width <= _SAME_CAPACITY * abs(s.median) for s in (base, other)]
    change = other.median - base.median
    is_moved = all(fixed) and abs(change) > _MOVED_CAPACITY * abs(base.median)
    return change if is_moved else 0.0


def _place(row: RungRow) -> tuple[float, str, str]:
    nearest = min((s.median for s in row.predicted if s.count), default=math.inf)
    return nearest, row.limit, row.side


def _error(rung: Mapping[str, Any]) -> float | None:
    predicted, error_pct = rung["predicted_connections"], rung["fit_error_pct"]
    return None if predicted is None or error_pct is None else predicted * error_pct / 100


def _why_not(rungs: Sequence[Mapping[str, Any]], predicted: Spread) -> str:
    if predicted.count:
        return ""
    return str(rungs[0]["note"]) if rungs else "this limit is not on its ladder"
