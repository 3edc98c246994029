"""How well verdicts do against labels, in the terms in which others score diagnosis. Pure.

A run's *ranking* are its findings that did harm (binding, contributing, warning), in the order in
which the verdict has them. RCAEval (arXiv 2412.17015) gives AC@k and Avg@k, OpenRCA 2.0 (arXiv
2606.27154) the exact set and the grounded path, AIOpsLab (arXiv 2501.06706) false alarms on runs
to which nothing was done, RootCauseBench the abstention.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from analysis.causes import GOOD_CAUSES, NOT_EXPLAINED
from bench.recordings.label import Label, Provoked

Z_95 = 1.959963984540054
"""The 97.5 % quantile of the normal distribution."""
_HARMFUL = ("binding", "contributing", "warning")

Found = Mapping[str, Any]
"""What a verdict means, or one of its findings."""


@dataclass(frozen=True, slots=True)
class Case:
    """One recording, scored.

    Attributes:
        label: What was provoked.
        found: What the verdict means (``bench.recordings.examine.examine``).
    """

    label: Label
    found: Found

    @property
    def ranking(self) -> list[Mapping[str, Any]]:
        """Findings that did harm, in order."""
        return [
            finding
            for finding in self.found["findings"]
            if finding["severity"] in _HARMFUL and finding["cause"] not in GOOD_CAUSES
        ]

    @property
    def causes(self) -> list[str]:
        """Their causes, each once."""
        return list(dict.fromkeys(finding["cause"] for finding in self.ranking))

    @property
    def is_silent(self) -> bool:
        """The verdict says that it cannot tell."""
        return bool(self.found["verdict"]["cause"] == NOT_EXPLAINED)

    @property
    def unrelated(self) -> list[str]:
        """Causes that are named without reason."""
        belonging = {each.cause for each in self.label.provoked} | set(self.label.may)
        mentioned = {finding["cause"] for finding in self.found["findings"]}
        return sorted(({*self.causes} - belonging) | (mentioned & {*self.label.never}))

    def accuracy_at(self, most: int, is_right: Callable[[Provoked, Found], bool]) -> float:
        """Share of the roots among the first ``most`` that are named (RCAEval's AC@k)."""
        roots = self.label.roots
        first = self._first(most, is_right)
        named = sum(any(is_right(root, finding) for finding in first) for root in roots)
        return named / min(most, len(roots))

    def _first(self, most: int, is_right: Callable[[Provoked, Found], bool]) -> list[Found]:
        """The first ``most``; of one cause, whichever finding of it is right stands for it."""
        first: dict[str, Found] = {}
        for finding in self.ranking:
            kept = first.setdefault(finding["cause"], finding)
            if is_right is is_cause or kept is finding:
                continue
            if any(is_right(root, finding) for root in self.label.roots):
                first[finding["cause"]] = finding
        return list(first.values())[:most]

    @property
    def is_exact(self) -> bool:
        """What was provoked is named, all of it, and nothing else but what may be."""
        named = set(self.causes)
        wanted = {each.cause for each in self.label.provoked}
        return wanted <= named and not self.unrelated

    @property
    def has_right_chain(self) -> bool:
        """Each provoked cause is named with the origin that it was given."""
        return all(
            any(
                finding["cause"] == each.cause and finding["follows_from"] == each.follows_from
                for finding in self.ranking
            )
            for each in self.label.provoked
        )

    @property
    def is_grounded(self) -> bool:
        """The roots and their consequences are named, on evidence that is in the tables."""
        return self.has_right_chain and not self.found["grounding"]["missing"]


def is_cause(root: Provoked, finding: Found) -> bool:
    """The cause is right."""
    return bool(finding["cause"] == root.cause)


def is_side(root: Provoked, finding: Found) -> bool:
    """Cause and side are right."""
    return is_cause(root, finding) and root.side in ("", finding["side"])


def is_process(root: Provoked, finding: Found) -> bool:
    """Cause, side and process are right."""
    return is_side(root, finding) and root.is_process(finding["subject"])


def complaints(label: Label, found: Found) -> list[str]:
    """What of a label a verdict does not meet, for people; empty when all is met."""
    case = Case(label, found)
    wrong = []
    said = found["verdict"]["cause"]
    if label.is_outside and not case.is_silent:
        wrong.append(f"the verdict is {said}, expected {NOT_EXPLAINED}")
    elif label.verdict and said != label.verdict:
        wrong.append(f"the verdict is {said}, expected {label.verdict}")
    for each in label.provoked if not label.is_outside else ():
        mine = [finding for finding in case.ranking if is_cause(each, finding)]
        if not mine:
            wrong.append(f"{each.cause} is not named")
        elif not any(is_process(each, finding) for finding in mine):
            whom = ", ".join(f"{finding['side']} {finding['subject']}" for finding in mine)
            wrong.append(f"{each.cause} is named of {whom}")
        elif not any(finding["follows_from"] == each.follows_from for finding in mine):
            origins = ", ".join(finding["follows_from"] or "nothing" for finding in mine)
            wrong.append(f"{each.cause} is said to follow from {origins}")
    return wrong + [f"{cause} is named without reason" for cause in case.unrelated]


@dataclass(frozen=True, slots=True)
class Share:
    """A part of so many runs; a run may count in part (Avg@3).

    Attributes:
        part: Of ``whole``.
        whole: How many there are; 0 when the measure does not apply.
    """

    part: float
    whole: int

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % score interval."""
        return wilson(self.part, self.whole)


def wilson(part: float, whole: int, z: float = Z_95) -> tuple[float, float]:
    """Wilson's score interval of a proportion (E. B. Wilson, JASA 22, 1927, p. 209).

    Args:
        part: Successes, 0 to ``whole``.
        whole: Trials.
        z: Quantile of the normal distribution.

    Returns:
        Lower and upper bound; 0 and 1 without a trial.
    """
    if not whole:
        return 0.0, 1.0
    share = part / whole
    centre = share + z * z / (2 * whole)
    spread = z * math.sqrt(share * (1 - share) / whole + z * z / (4 * whole * whole))
    scale = 1 + z * z / whole
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


@dataclass(frozen=True, slots=True)
class Measure:
    """One line of the table.

    Attributes:
        name: For people.
        share: Of some cases.
    """

    name: str
    share: Share


def score(cases: Sequence[Case]) -> list[Measure]:
    """All measures over some recordings, in the order to show."""
    faulty = [c for c in cases if not c.label.is_healthy and not c.label.is_outside]
    healthy = [case for case in cases if case.label.is_healthy]
    outside = [case for case in cases if case.label.is_outside]
    return [
        *_accuracies("cause", faulty, is_cause),
        *_accuracies("cause and side", faulty, is_side),
        *_accuracies("cause, side and process", faulty, is_process),
        _measure("exact set", faulty, lambda case: case.is_exact),
        _measure("right chain of causes", faulty, lambda case: case.has_right_chain),
        _measure("grounded: right chain, on evidence that is in the tables", faulty,
                 lambda case: case.is_grounded),
        _measure("silent: not-explained although the catalogue has the cause", faulty,
                 lambda case: case.is_silent),
        _measure("a cause named without reason, runs with a fault", faulty,
                 lambda case: bool(case.unrelated)),
        _measure("false alarm, healthy runs", healthy, lambda case: bool(case.unrelated)),
        _measure("abstention: not-explained where the catalogue lacks the cause", outside,
                 lambda case: case.is_silent and not case.unrelated),
    ]  # fmt: skip


def _accuracies(
    what: str, cases: Sequence[Case], is_right: Callable[[Provoked, Found], bool]
) -> list[Measure]:
    at = {k: [case.accuracy_at(k, is_right) for case in cases] for k in (1, 2, 3)}
    mean = [sum(each) / 3 for each in zip(*at.values(), strict=True)]
    return [
        Measure(f"AC@1, {what}", _share(at[1])),
        Measure(f"AC@3, {what}", _share(at[3])),
        Measure(f"Avg@3, {what}", _share(mean)),
    ]


def _measure(name: str, cases: Sequence[Case], holds: Callable[[Case], bool]) -> Measure:
    return Measure(name, _share([float(holds(case)) for case in cases]))


def _share(values: Iterable[float]) -> Share:
    each = list(values)
    return Share(sum(each), len(each))


@dataclass(frozen=True, slots=True)
class Confused:
    """What was named first where one cause was provoked.

    Attributes:
        provoked: Its root; ``nothing`` for healthy runs.
        run_count: Runs.
        first: Cause named first to the number of runs, most first; ``nothing`` where none was.
        unrelated: Causes named without reason to the number of runs.
        is_outside: The catalogue has no word for it.
    """

    provoked: str
    run_count: int
    first: Mapping[str, int]
    unrelated: Mapping[str, int]
    is_outside: bool


NOTHING = "nothing"


def confused(cases: Sequence[Case]) -> list[Confused]:
    """The confusion table, by what was provoked, in the order of the cases."""
    groups: dict[str, list[Case]] = {}
    for case in cases:
        roots = " + ".join(root.cause for root in case.label.roots) or NOTHING
        groups.setdefault(roots, []).append(case)
    return [
        Confused(
            provoked=roots,
            run_count=len(members),
            first=_counts(case.causes[0] if case.causes else _nothing(case) for case in members),
            unrelated=_counts(cause for case in members for cause in case.unrelated),
            is_outside=any(case.label.is_outside for case in members),
        )
        for roots, members in groups.items()
    ]


def _nothing(case: Case) -> str:
    return NOT_EXPLAINED if case.is_silent else NOTHING


def _counts(names: Iterable[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for name in names:
        counts[name] = counts.get(name, 0) + 1
    return dict(sorted(counts.items(), key=lambda each: (-each[1], each[0])))
