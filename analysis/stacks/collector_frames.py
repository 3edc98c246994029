"""What the collector's samples say: whose collector, which kind, on which threads, who allocated.

Every list of names was read in the sources of V8 (src/heap), HotSpot (src/hotspot/share/gc) and Go
(src/runtime/mgc*.go); a function that is renamed there loses its rule and nothing else.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import pandas as pd

from analysis.frames.run_view import RunView
from analysis.stacks.collector import COLLECTOR_FRAME, is_collector_sample
from analysis.stacks.function_shares import function_name
from analysis.stacks.hot_thread import EVENT_LOOP, thread_kind
from analysis.stacks.runtime_frames import MAP_SUFFIX, is_own_code, runtime_of

_YOUNG = re.compile(r"Scaveng|Minor|YoungGeneration|G1ParScan|G1Evacuat|PSPromotion|DefNew")
_HELPER = re.compile(r"runtime\.(?:gcBgMarkWorker|bgsweep|bgscavenge)|PlatformWorkerThread")
_LEAST_SAMPLES = 10
_LEAST_SHARE = 0.5


class Collecting(NamedTuple):
    """What the collector of one process was seen to do.

    Attributes:
        runtime: node, java, go, python; '' for another.
        is_young: Most of its samples are in collections of new objects, not of the whole heap: of
            those of an event loop where there are any.
        loop_pct: Part of the samples of the main thread and of other event loops that are in the
            collector; NaN when fewer than ten were taken, and for Go and Java, which stop a loop
            and collect elsewhere.
        helper_count: Other threads that collect.
        helper_pct: Part of the collector's samples that they have.
        allocator: The program's function in which at least half of the collections began that did
            not run on threads of their own, '' when none stands out or none has a name.
    """

    runtime: str
    is_young: bool
    loop_pct: float
    helper_count: int
    helper_pct: float
    allocator: str


def describe_collecting(view: RunView, pid: int, window_s: tuple[float, float]) -> Collecting:
    """Reads ``cpu_stacks`` of one process.

    Args:
        view: The run.
        pid: The process.
        window_s: The span in which it collected.
    """
    rows = view.frames["cpu_stacks"]
    at_s = view.seconds_of(rows["at_ns"])
    mine = rows[(rows["pid"] == pid) & (at_s >= window_s[0]) & (at_s <= window_s[1])]
    collects = is_collector_sample(mine)
    found = mine[collects]
    total = int(found["sample_count"].sum())
    own = _own_threads(mine, pid)
    on_own = found[found["tid"].isin(own)]
    of_loop = mine[mine["tid"].isin(own)]
    loop_count = int(of_loop["sample_count"].sum())
    halting = on_own if len(on_own) else found  # what the event loop stands still for
    young_count = int(halting["sample_count"][halting["user_stack"].str.contains(_YOUNG)].sum())
    helpers_count = total - int(on_own["sample_count"].sum())
    runtime = runtime_of(mine["user_stack"])
    is_known = loop_count >= _LEAST_SAMPLES and runtime not in ("go", "java")
    return Collecting(
        runtime=runtime,
        is_young=2 * young_count > int(halting["sample_count"].sum()),
        loop_pct=(
            100 * int(on_own["sample_count"].sum()) / loop_count if is_known else float("nan")
        ),
        helper_count=int(found["tid"][~found["tid"].isin(own)].nunique()),
        helper_pct=100 * helpers_count / total if total else 0.0,
        allocator=_allocator(found[~found["user_stack"].str.contains(_HELPER)]),
    )


def _own_threads(mine: pd.DataFrame, pid: int) -> set[int]:
    """The main thread and every other event loop."""
    return {
        int(str(tid))
        for tid, part in mine.groupby("tid")
        if int(str(tid)) == pid or EVENT_LOOP in thread_kind(part, is_main=False)
    }


def _allocator(found: pd.DataFrame) -> str:
    counts: dict[str, int] = {}
    for stack, count in zip(found["user_stack"], found["sample_count"], strict=True):
        name = _above_collector(str(stack))
        counts[name] = counts.get(name, 0) + int(count)
    best = max(counts, key=lambda name: counts[name], default="")
    return best if counts and counts[best] >= _LEAST_SHARE * sum(counts.values()) else ""


def _above_collector(stack: str) -> str:
    """The program's function that needed the memory: the last one above the collector's frames.

    In Go that is any function of a package beside ``runtime``, elsewhere one of a perf map: what
    stands between them is the runtime's own.
    """
    frames = stack.split(";")
    first = next((i for i, frame in enumerate(frames) if COLLECTOR_FRAME.search(frame)), 0)
    is_go = any(frame.startswith("runtime.") for frame in frames)
    for frame in reversed(frames[:first]):
        is_program = frame.endswith(MAP_SUFFIX) or (is_go and not frame.startswith("runtime."))
        if is_program and is_own_code(frame):
            return function_name(frame)
    return ""
