"""Time that a runtime's garbage collector takes: its own clock, else its frames in the samples."""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np
import pandas as pd

from analysis.frames.run_view import RunView
from analysis.stats.remembered import remembered
from analysis.stats.spans import runs_of

COLLECTOR_FRAME = re.compile(
    # CPython; its statics have names only in a build that was not stripped
    r"gc_collect|PyGC_Collect|deduce_unreachable|subtract_refs|visit_decref|visit_reachable"
    r"|update_refs|move_unreachable"
    # V8, also in mangled names
    r"|MarkCompact|Scaveng|CollectGarbage|ConcurrentMarking|IncrementalMarking|ConcurrentSweep"
    r"|v8::internal::(?:Sweeper|Evacuator|MarkingWorklist|PageEvacuationJob|PointersUpdatingJob)"
    r"|v8::internal::Heap::(?:PerformGarbage|Mark|Scavenge|Sweep|Minor|Evacuate)\w*|YoungGeneration"
    # Go
    r"|runtime\.(?:gcBgMarkWorker|gcDrain|gcAssist|gcStart|scanobject|greyobject|bgsweep)"
    # HotSpot
    r"|G1CollectedHeap|G1ParScan|G1Evacuat|G1Full|G1RemSet|G1CMTask|GenCollectedHeap|GenMarkSweep"
    r"|DefNewGeneration|ParallelScavenge|PSPromotion|PSParallelCompact|ZMark|ZRelocate|ShenandoahHeap"
)
"""A native frame of a collector."""
COLLECTOR_THREAD = re.compile(r"GC Thread|G1 (?:Conc|Main|Refine)|ZWorker|Shenandoah|ZDriver")
"""A thread that does nothing else (comm)."""

_WINDOW_S = 1.0
_LEAST_SAMPLES = 20
_MOST_WINDOWS = 3


class CollectorTime(NamedTuple):
    """A span in which the collector took much of a process's time.

    Attributes:
        since_s: Its begin.
        until_s: Its end.
        share_pct: Part of it: of the wall time by the collector's own clock, of the CPU samples by
            frames.
        collections_per_s: NaN where only frames tell.
        longest_ms: Longest collection of the span, NaN likewise.
        longest_before_ms: Longest of the first second of the span, NaN likewise.
        table: Where this comes from.
    """

    since_s: float
    until_s: float
    share_pct: float
    collections_per_s: float
    longest_ms: float
    longest_before_ms: float
    table: str


@remembered
def collector_time(view: RunView, pid: int, least_share: float) -> CollectorTime | None:
    """The longest span of at least a second in which every second had at least that share.

    Args:
        view: The run.
        pid: A process.
        least_share: 0 to 1.

    Returns:
        None when there is no such span.
    """
    return _by_clock(view, pid, least_share) or _by_frames(view, pid, least_share)


def _by_clock(view: RunView, pid: int, least_share: float) -> CollectorTime | None:
    live = view.frames["live_samples"]
    mine = live[live["pid"] == pid]
    at_s = view.seconds_of(mine["at_ns"])
    inside = (at_s >= view.ramp.start_s) & (at_s <= view.stop_s)
    mine, at_s = mine[inside], at_s[inside]
    if len(mine) < 2 or int(mine["gc_ns_total"].iloc[-1]) == 0:
        return None
    used_s = mine["gc_ns_total"].to_numpy() / 1e9
    # the sample a second later: a long collection is counted when it ends, so shorter lies
    later = np.searchsorted(at_s, at_s + _WINDOW_S - 0.05)
    known = later < len(at_s)
    share = np.zeros(len(at_s))
    share[known] = (used_s[later[known]] - used_s[known]) / (at_s[later[known]] - at_s[known])
    spans = [(start, int(later[stop - 1])) for start, stop in runs_of(share >= least_share)]
    if not spans:
        return None
    start, stop = max(spans, key=lambda span: at_s[span[1]] - at_s[span[0]])
    length_s = float(at_s[stop] - at_s[start])
    longest_ms = mine["gc_max_pause_ns"].to_numpy() / 1e6
    counts = mine["gc_collections_total"].to_numpy()
    return CollectorTime(
        since_s=float(at_s[start]),
        until_s=float(at_s[stop]),
        share_pct=100 * float(used_s[stop] - used_s[start]) / length_s,
        collections_per_s=float(counts[stop] - counts[start]) / length_s,
        longest_ms=float(longest_ms[stop]),
        longest_before_ms=float(longest_ms[later[start]]),
        table="live_samples",
    )


def _by_frames(view: RunView, pid: int, least_share: float) -> CollectorTime | None:
    """For runtimes that keep no clock for us: seconds with many of their collector's frames.

    Where others keep the host busy a process has few samples a second: it takes more seconds then
    until they say something.
    """
    stacks = view.frames["cpu_stacks"]
    mine = stacks[stacks["pid"] == pid]
    at_s = view.seconds_of(mine["at_ns"])
    mine = mine.assign(second=np.floor(at_s / _WINDOW_S))
    mine = mine[(at_s >= view.ramp.start_s) & (at_s <= view.stop_s)]
    if mine.empty:
        return None
    is_collector = is_collector_sample(mine)
    seconds = mine.assign(collector_count=mine["sample_count"].where(is_collector, 0))
    sums = seconds.groupby("second")[["sample_count", "collector_count"]].sum()
    every = np.arange(sums.index.min(), sums.index.max() + 1)
    sums = sums.reindex(every, fill_value=0)
    told = _telling(sums)
    share = told["collector_count"] / told["sample_count"].clip(lower=1)
    spans = runs_of((share >= least_share) & (told["sample_count"] >= _LEAST_SAMPLES))
    if not spans:
        return None
    start, stop = max(spans, key=lambda span: span[1] - span[0])
    part = sums.iloc[start:stop]
    return CollectorTime(
        since_s=max(view.ramp.start_s, float(every[start]) * _WINDOW_S),
        until_s=min(view.stop_s, float(every[stop - 1] + 1) * _WINDOW_S),
        share_pct=100 * float(part["collector_count"].sum() / part["sample_count"].sum()),
        collections_per_s=float("nan"),
        longest_ms=float("nan"),
        longest_before_ms=float("nan"),
        table="cpu_stacks",
    )


def _telling(sums: pd.DataFrame) -> pd.DataFrame:
    """Each second with the sums of the few seconds around it that have samples enough together.

    Args:
        sums: sample_count, collector_count of each second.
    """
    groups: list[int] = []
    number = held = length = 0
    for count in sums["sample_count"]:
        groups.append(number)
        held, length = held + int(count), length + 1
        if held >= _LEAST_SAMPLES or length >= _MOST_WINDOWS:
            number, held, length = number + 1, 0, 0
    return sums.groupby(np.asarray(groups, dtype=np.int64)).transform("sum")


def is_collector_sample(stacks: pd.DataFrame) -> pd.Series[bool]:
    """Rows of ``cpu_stacks`` that a collector took."""
    frames = stacks["user_stack"].str.contains(COLLECTOR_FRAME)
    return frames | stacks["thread"].str.contains(COLLECTOR_THREAD)
