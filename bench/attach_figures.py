"""From windows without and with profile-attach to a change with an interval. Pure."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean, median

BAR_PCT = 1.0
FOREIGN_MOST_PCT = 15.0
"""CPU of a core that strangers may take in a window that counts, beyond what they take in the
quieter windows all the time."""
LEAST_BLOCKS = 5
_TRIM_SHARE = 0.2
_INTERVAL_PCT = 95.0

Figures = dict[str, float]


@dataclass(slots=True)
class Block:
    """The windows around and within one watch.

    Attributes:
        off: Nobody watches: half of them before the watch, half of them after it.
        start: The command is started and begins to watch.
        settle: It watches, and is not yet settled.
        on: It watches and is settled.
    """

    off: list[Figures] = field(default_factory=list)
    start: list[Figures] = field(default_factory=list)
    settle: list[Figures] = field(default_factory=list)
    on: list[Figures] = field(default_factory=list)

    def to_dict(self) -> dict[str, list[Figures]]:
        """For JSON."""
        return asdict(self)

    def windows(self, kind: str) -> list[Figures]:
        """Of one kind, by the attribute's name."""
        found: list[Figures] = getattr(self, kind)
        return found


@dataclass(frozen=True, slots=True)
class Change:
    """What a figure changes by when the server is watched.

    Attributes:
        without: Median of the windows without profile-attach.
        with_it: Median of the windows with it.
        change_pct: Trimmed mean over the watches.
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


def undisturbed(blocks: Sequence[Block]) -> list[Block]:
    """The blocks without the windows in which strangers took more than usual.

    What they take all the time meets all windows alike; what comes and goes does not. A block with
    less than half of its windows left, without or with the watch, is no comparison. Where too few
    blocks are left, the least disturbed ones count as they are.
    """
    every = sorted(_foreign_pct(window) for block in blocks for window in (*block.off, *block.on))
    most_pct = every[len(every) // 4] + FOREIGN_MOST_PCT

    def calm(windows: list[Figures]) -> list[Figures]:
        return [window for window in windows if _foreign_pct(window) <= most_pct]

    kept = []
    for block in blocks:
        off, on = calm(block.off), calm(block.on)
        if 2 * len(off) >= len(block.off) and 2 * len(on) >= len(block.on):
            kept.append(Block(off, block.start, block.settle, on))
    if len(kept) >= min(LEAST_BLOCKS, len(blocks)):
        return kept

    def disturbance_pct(block: Block) -> float:
        return fmean(_foreign_pct(window) for window in (*block.off, *block.on))

    return sorted(blocks, key=disturbance_pct)[:LEAST_BLOCKS]


def _foreign_pct(window: Figures) -> float:
    return window["foreign_cpu_pct"]


def trimmed_mean(values: Sequence[float]) -> float:
    """Mean without the lowest and highest fifth: one stall of the machine does not decide."""
    ordered = sorted(values)
    cut = int(len(ordered) * _TRIM_SHARE)
    return fmean(ordered[cut : len(ordered) - cut])


def change_of(
    blocks: Sequence[Block],
    name: str,
    *,
    more_is_better: bool,
    kind: str = "on",
    seed: int = 0,
    resamples_count: int = 4_000,
    bar_pct: float = BAR_PCT,
) -> Change:
    """The change of one figure.

    Windows of one watch are not independent of each other: what that watch happened to do at its
    start is in all of them. So each block gives one value, the difference of the means of the
    figure's logarithm with and without the watch, and the blocks are what is resampled.

    Args:
        blocks: At least one, each with windows of that kind and without a watch.
        name: The figure, above 0 in each.
        more_is_better: A lower value is worse.
        kind: Which windows are held against those without a watch.
        seed: Of the resampling.
        resamples_count: How often.
        bar_pct: What it may get worse by.

    Returns:
        The trimmed mean over the blocks, with the 95 % interval of a percentile bootstrap (Efron,
        Tibshirani: An Introduction to the Bootstrap, 13.3), wider by the square root of n/(n - 1):
        of few blocks the plain one is too narrow (Hesterberg: What Teachers Should Know About the
        Bootstrap, 2015).
    """
    logs = [_mean_log(block.windows(kind), name) - _mean_log(block.off, name) for block in blocks]
    middle = trimmed_mean(logs)
    draw = random.Random(seed)
    means = sorted(trimmed_mean(draw.choices(logs, k=len(logs))) for _ in range(resamples_count))
    tail = int(resamples_count * (100 - _INTERVAL_PCT) / 200)
    wider = math.sqrt(len(logs) / max(1, len(logs) - 1))
    low_pct = _as_pct(middle + wider * (means[tail] - middle))
    high_pct = _as_pct(middle + wider * (means[-1 - tail] - middle))
    best_pct, worst_pct = (-high_pct, -low_pct) if more_is_better else (low_pct, high_pct)
    return Change(
        median([window[name] for block in blocks for window in block.off]),
        median([window[name] for block in blocks for window in block.windows(kind)]),
        _as_pct(middle),
        low_pct,
        high_pct,
        "within" if worst_pct <= bar_pct else "over" if best_pct > bar_pct else "not decided",
    )


def _mean_log(windows: Sequence[Figures], name: str) -> float:
    return fmean(math.log(window[name]) for window in windows)


def _as_pct(log_ratio: float) -> float:
    return 100 * math.expm1(log_ratio)
