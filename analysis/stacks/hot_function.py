"""The function that the CPU time of one process goes to, and not that of its siblings."""

from __future__ import annotations

from typing import NamedTuple

from analysis.frames.cpu import df_flame
from analysis.frames.run_view import RunView
from analysis.stacks.function_shares import (
    dominant_function,
    dominant_own_function,
    function_shares,
)
from analysis.stacks.runtime_frames import unnamed_share

_LEAST_SHARE_PCT = 50.0
_SIBLING_SHARE_PCT = 25.0
_LEAST_SAMPLES = 10
UNNAMED = "unnamed"


class OwnFunction(NamedTuple):
    """Where the samples of one process are.

    Attributes:
        kind: Source of the stacks: python, native, '' when there are none, ``unnamed`` when most
            go through code that a runtime made and did not name.
        function: The function that only this process is in, '' when none is its own.
        share_pct: Of its samples there.
        sibling_pct: The largest share that it has in a sibling.
    """

    kind: str
    function: str
    share_pct: float
    sibling_pct: float


def own_function(view: RunView, pid: int, role: str, window_s: tuple[float, float]) -> OwnFunction:
    """The function that a process alone is in for most of a span.

    Args:
        view: The run.
        pid: The process.
        role: Its role: others of it are its siblings.
        window_s: Only samples of this span.
    """
    stacks = df_flame(view, window_s=window_s)
    servers = view.who[view.who["role"] == role]["pid"]
    for kind in ("python", "native"):
        of_kind = stacks[stacks["source"] == kind]
        mine = of_kind[of_kind["pid"] == pid]
        if int(mine["sample_count"].sum()) < _LEAST_SAMPLES:
            continue
        shares = function_shares(mine)
        beside: dict[str, float] = {}
        for other in servers[servers != pid]:
            theirs = of_kind[of_kind["pid"] == other]
            if int(theirs["sample_count"].sum()) < _LEAST_SAMPLES:
                continue
            of_sibling = function_shares(theirs)
            for name, share in zip(of_sibling["function"], of_sibling["share_pct"], strict=True):
                beside[str(name)] = max(beside.get(str(name), 0.0), float(share))
        rare = shares["function"].map(beside).fillna(0.0) <= _SIBLING_SHARE_PCT
        dominant = dominant_own_function if kind == "native" else dominant_function
        function, share_pct = dominant(shares[rare], _LEAST_SHARE_PCT)
        if function and not _is_event_loop(function):
            return OwnFunction(kind, function, share_pct, beside.get(function, 0.0))
        unnamed = 100 * unnamed_share(zip(mine["stack"], mine["sample_count"], strict=True))
        return OwnFunction(UNNAMED if unnamed >= _LEAST_SHARE_PCT else kind, "", unnamed, 0.0)
    return OwnFunction("", "", 0.0, 0.0)


_LOOP_WORDS = ("epoll", "poll (", "select", "do_syscall_64", "entry_SYSCALL", "Worker.run", "run (")


def _is_event_loop(function: str) -> bool:
    """The loop itself or its way into the kernel: in every stack of a worker, so no cause."""
    return function.endswith("_[k]") or any(function.startswith(w) for w in _LOOP_WORDS)
