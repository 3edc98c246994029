"""Straight lines through samples, with an error that does not flatter."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Slope:
    """A line ``y = intercept + per_x * x``.

    Attributes:
        per_x: The slope.
        intercept: Value at x = 0.
        error_pct: Error of the slope in percent of the slope: the larger of the standard error of
            least squares and half the difference between the slopes of the lower and the upper
            half of x, since a curve that bends has small residuals and a wrong slope.
        sample_count: Points used.
    """

    per_x: float
    intercept: float
    error_pct: float
    sample_count: int

    @property
    def is_usable(self) -> bool:
        """The slope is positive and better known than by a factor of two."""
        return self.per_x > 0 and self.error_pct < 50


def fit(x: npt.ArrayLike, y: npt.ArrayLike) -> Slope | None:
    """Least squares through the points; None with fewer than three, or all at the same x.

    Args:
        x: For example connections open.
        y: For example bytes. Points with NaN on either side are left out.
    """
    xs, ys = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    known = np.isfinite(xs) & np.isfinite(ys)
    xs, ys = xs[known], ys[known]
    if len(xs) < 3 or np.ptp(xs) == 0:
        return None
    per_x, intercept, standard_error = _line(xs, ys)
    error = standard_error
    order = np.argsort(xs, kind="stable")
    middle = len(xs) // 2
    low, high = order[: middle + 1], order[middle:]
    if len(xs) >= 6 and np.ptp(xs[low]) > 0 and np.ptp(xs[high]) > 0:
        bend = abs(_line(xs[low], ys[low])[0] - _line(xs[high], ys[high])[0]) / 2
        # a half that spans little of x says little about the slope: weigh it by what it spans
        span = min(float(np.ptp(xs[low])), float(np.ptp(xs[high]))) / float(np.ptp(xs))
        error = max(error, bend * min(1.0, 2 * span))
    if per_x == 0:
        return Slope(0.0, intercept, float("inf"), len(xs))
    return Slope(per_x, intercept, 100 * error / abs(per_x), len(xs))


def _line(xs: Floats, ys: Floats) -> tuple[float, float, float]:
    """Slope, intercept, standard error of the slope."""
    mean_x, mean_y = float(xs.mean()), float(ys.mean())
    dx, dy = xs - mean_x, ys - mean_y
    spread = float(dx @ dx)
    slope = float(dx @ dy) / spread
    residual = dy - slope * dx
    freedom = len(xs) - 2
    error = float(np.sqrt(float(residual @ residual) / freedom / spread)) if freedom > 0 else 0.0
    return slope, mean_y - slope * mean_x, error
