"""The spread of one figure over repeats, and when two spreads are told apart.

The rule of ``differs``. Repeats of one variant give a range, lowest to highest; the wider of the
two ranges is the noise. Two variants differ when their ranges are apart by more than the noise
times a factor, and by more than the measurements' own errors and resolutions together:

=====================================  ==================================
runs of both variants together         the ranges must be apart by
=====================================  ==================================
two variants with repeats, 2 + 2       5 x noise
2 + 3                                  2 x noise
2 + 4, 3 + 3 and more                  1 x noise
one variant without repeats, 1 + 3     5 x noise
1 + 4                                  3 x noise
1 + 5, 1 + 6                           2 x noise
1 + 7 and more                         1 x noise
=====================================  ==================================

The factors are those with which two samples of one normal distribution are called different in
about 1 % of cases (tests/analysis/stats/test_spread.py draws them). They are large because two or
three repeats show little of the noise there is.

With three runs or fewer together the noise is not known. Then a difference is claimed only of a
figure that was fitted and says its error, when it is far larger than that: five times both errors
together, and one value is twice the other. The error of a fit says nothing about how much the next
run will differ; user memory per connection of one variant was seen to move by a third.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

FEWEST_RUNS = 4
"""Runs of both variants together from which on their ranges say something about noise."""
FAR_ERRORS = 5.0
FAR_SHARE = 0.5

_PAIR_FACTORS = {4: 5.0, 5: 2.0}
_SINGLE_FACTORS = {4: 5.0, 5: 3.0, 6: 2.0, 7: 2.0}


class Difference(StrEnum):
    """What can be said of b when it is compared with a."""

    HIGHER = "higher"
    LOWER = "lower"
    WITHIN_NOISE = "within the noise"
    NOISE_UNKNOWN = "noise not known"
    NOT_MEASURED = "not measured"

    @property
    def is_claimed(self) -> bool:
        """A difference is larger than the noise."""
        return self in (Difference.HIGHER, Difference.LOWER)

    @property
    def opposite(self) -> Difference:
        """The same seen from the other side."""
        swapped = {Difference.HIGHER: Difference.LOWER, Difference.LOWER: Difference.HIGHER}
        return swapped.get(self, self)


@dataclass(frozen=True, slots=True)
class Spread:
    """One figure over the repeats of one variant.

    Attributes:
        median: Of the repeats; NaN when nothing was measured.
        low: The smallest.
        high: The largest.
        count: Repeats in which it was measured, 0 or more.
        error: Error of the fit that the figure comes from, in its unit, the largest of the
            repeats; None when it was not fitted.
        resolution: Smallest step that the measurement can see, in its unit (0: fine enough).
    """

    median: float
    low: float
    high: float
    count: int
    error: float | None = None
    resolution: float = 0.0

    @classmethod
    def of(
        cls,
        values: Iterable[float | None],
        errors: Iterable[float | None] = (),
        resolutions: Iterable[float] = (),
    ) -> Spread:
        """The spread of repeats; what is None or not finite was not measured.

        Args:
            values: One for each repeat.
            errors: Errors of fits, None for what was not fitted.
            resolutions: Smallest steps that could be seen.
        """
        known = np.array([v for v in values if v is not None and math.isfinite(v)], dtype=float)
        said = [e for e in errors if e is not None and math.isfinite(e)]
        error = max(said) if said else None
        resolution = max(resolutions, default=0.0)
        if not known.size:
            return cls(math.nan, math.nan, math.nan, 0, error, resolution)
        median, low, high = float(np.median(known)), float(known.min()), float(known.max())
        return cls(median, low, high, int(known.size), error, resolution)

    @property
    def width(self) -> float:
        """From the lowest to the highest."""
        return self.high - self.low


def noise_factor(a_count: int, b_count: int) -> float | None:
    """How many times the noise two ranges must be apart; None with too few runs to say."""
    runs = a_count + b_count
    if min(a_count, b_count) < 1 or runs < FEWEST_RUNS:
        return None
    factors = _SINGLE_FACTORS if min(a_count, b_count) == 1 else _PAIR_FACTORS
    return factors.get(runs, 1.0)


def gap(a: Spread, b: Spread) -> float:
    """How far two ranges are apart, 0 when they overlap."""
    return max(0.0, a.low - b.high, b.low - a.high)


def differs(a: Spread, b: Spread) -> Difference:
    """Compares b with a by the rule of this module.

    Returns:
        HIGHER or LOWER (b against a) when the difference is larger than the noise.
    """
    if a.count < 1 or b.count < 1:
        return Difference.NOT_MEASURED
    direction = Difference.HIGHER if b.median > a.median else Difference.LOWER
    errors = (a.error or 0.0) + (b.error or 0.0) + a.resolution + b.resolution
    apart = gap(a, b)
    factor = noise_factor(a.count, b.count)
    if factor is not None:
        noise = max(a.width, b.width)
        is_apart = apart > 0 and apart > factor * noise and apart > errors
        return direction if is_apart else Difference.WITHIN_NOISE
    if a.error is None or b.error is None:
        return Difference.NOISE_UNKNOWN
    share = FAR_SHARE * max(abs(a.median), abs(b.median))
    is_far = apart > 0 and apart > FAR_ERRORS * errors and apart > share
    return direction if is_far else Difference.NOISE_UNKNOWN
