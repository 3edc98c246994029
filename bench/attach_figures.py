"""From pairs of windows, without and with profile-attach, to a change with an interval. Pure."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

BAR_PCT = 1.0
FOREIGN_MOST_PCT = 15.0
"""CPU of a core that strangers may take in a window of a pair that counts, beyond what they take in
the quieter windows all the time."""
LEAST_PAIRS = 6
_TRIM_SHARE = 0.2
_RESAMPLES = 4_000
_INTERVAL_PCT = 95.0

Figures = dict[str, float]
Pair = tuple[Figures, Figures]


@dataclass(frozen=True, slots=True)
class Change:
    """What a figure changes by when the server is watched.

    Attributes:
        without: Median of the windows without profile-attach.
        with_it: Median of the windows with it.
        change_pct: Trimmed mean over the pairs.
        low_pct: Lower end of the interval.
        high_pct: Upper end.
        verdict: ``within``, ``over`` or ``not decided``, about the bar.
    """

    without: float
    with_it: float
    change_pct: float
    low_pct: float
    high_pct: float
    verdict: str


def undisturbed(pairs: Sequence[Pair]) -> list[Pair]:
    """Pairs in which strangers took no more than usual; the least disturbed where few are so.

    What they take all the time meets both windows of a pair alike; what comes and goes does not.
    """

    def foreign_pct(pair: Pair) -> float:
        return max(window["foreign_cpu_pct"] for window in pair)

    every = sorted(window["foreign_cpu_pct"] for pair in pairs for window in pair)
    most_pct = every[len(every) // 4] + FOREIGN_MOST_PCT
    kept = [pair for pair in pairs if foreign_pct(pair) <= most_pct]
    if len(kept) >= min(LEAST_PAIRS, len(pairs)):
        return kept
    return sorted(pairs, key=foreign_pct)[:LEAST_PAIRS]


def trimmed_mean(values: Sequence[float]) -> float:
    """Mean without the lowest and highest fifth: one stall of the machine does not decide."""
    ordered = sorted(values)
    cut = int(len(ordered) * _TRIM_SHARE)
    inner = ordered[cut : len(ordered) - cut]
    return sum(inner) / len(inner)


def change_of(pairs: Sequence[Pair], name: str, *, more_is_better: bool, seed: int = 0) -> Change:
    """The change of one figure.

    Args:
        pairs: Windows without and with profile-attach, neighbours in time; at least one.
        name: The figure, above 0 in each.
        more_is_better: A lower value is worse.
        seed: Of the resampling.

    Returns:
        The trimmed mean of the log ratios, with the 95 % interval of a percentile bootstrap
        (Efron, Tibshirani: An Introduction to the Bootstrap, 13.3) over the pairs.
    """
    logs = [math.log(on[name] / off[name]) for off, on in pairs]
    draw = random.Random(seed)
    means = sorted(trimmed_mean(draw.choices(logs, k=len(logs))) for _ in range(_RESAMPLES))
    tail = int(_RESAMPLES * (100 - _INTERVAL_PCT) / 200)
    low_pct, high_pct = _as_pct(means[tail]), _as_pct(means[-1 - tail])
    best_pct, worst_pct = (-high_pct, -low_pct) if more_is_better else (low_pct, high_pct)
    return Change(
        median([off[name] for off, _ in pairs]),
        median([on[name] for _, on in pairs]),
        _as_pct(trimmed_mean(logs)),
        low_pct,
        high_pct,
        "within" if worst_pct <= BAR_PCT else "over" if best_pct > BAR_PCT else "not decided",
    )


def _as_pct(log_ratio: float) -> float:
    return 100 * math.expm1(log_ratio)
