"""The confusion table: what each row provoked against what its runs named. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from analysis.matrix.matrix import RowResult


@dataclass(frozen=True, slots=True)
class ConfusionRow:
    """One provoked cause.

    Attributes:
        row: Id of the row.
        provoked: The cause that was provoked; ``reached`` for a healthy run.
        run_count: Runs with a verdict.
        failed_count: Runs without one.
        counts: In how many runs each cause was named.
        allowed: Causes that belong to it: what it follows from, or what it brings about.
        as_expected_count: Runs without a complaint.
        binding: What bound it most often.
    """

    row: str
    provoked: str
    run_count: int
    failed_count: int
    counts: Mapping[str, int]
    allowed: frozenset[str]
    as_expected_count: int
    binding: str

    @property
    def named_count(self) -> int:
        """Runs that named what was provoked."""
        return self.counts.get(self.provoked, 0)

    @property
    def false_count(self) -> int:
        """Causes named without reason, each run's counted."""
        is_false = self._unrelated()
        return sum(count for cause, count in self.counts.items() if cause in is_false)

    @property
    def false_causes(self) -> list[str]:
        """Which ones."""
        return sorted(self._unrelated())

    def _unrelated(self) -> set[str]:
        return set(self.counts) - {self.provoked, "reached", *self.allowed}


@dataclass(frozen=True, slots=True)
class Confusion:
    """The table. ``columns``: every cause that was provoked or named, in the order of the rows."""

    rows: tuple[ConfusionRow, ...]
    columns: tuple[str, ...]

    @property
    def run_count(self) -> int:
        """All runs with a verdict."""
        return sum(row.run_count for row in self.rows)

    @property
    def named_count(self) -> int:
        """Runs that named what was provoked."""
        return sum(row.named_count for row in self.rows)

    @property
    def false_count(self) -> int:
        """Causes named without reason."""
        return sum(row.false_count for row in self.rows)


def confusion(results: Sequence[RowResult]) -> Confusion:
    """The table of the rows that are to provoke something.

    Args:
        results: From ``analysis.matrix.matrix.compare``.
    """
    rows = tuple(_row(result) for result in results if result.spec.provoked)
    provoked = [row.provoked for row in rows]
    named = [cause for row in rows for cause in sorted(row.counts)]
    return Confusion(rows, tuple(dict.fromkeys([*provoked, *named])))


def _row(result: RowResult) -> ConfusionRow:
    done = result.done
    counts: dict[str, int] = {}
    for outcome in done:
        for cause in outcome.named:
            counts[cause] = counts.get(cause, 0) + 1
    complained = sum(bool(outcome.complaints) for outcome in done)
    return ConfusionRow(
        row=result.spec.id,
        provoked=result.spec.provoked,
        run_count=len(done),
        failed_count=len(result.outcomes) - len(done),
        counts=counts,
        allowed=frozenset(result.spec.allowed),
        as_expected_count=len(done) - complained,
        binding=result.cause,
    )
