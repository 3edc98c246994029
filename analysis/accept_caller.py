"""Which function of a process calls accept, by its stacks."""

from __future__ import annotations

import re
from typing import NamedTuple

import pandas as pd

from analysis.cpu import df_flame
from analysis.hot_worker import dominant_function, function_name, function_shares
from analysis.run_view import RunView
from analysis.runtime_frames import KERNEL_SUFFIX, is_named

_ACCEPT = re.compile(r"accept", re.IGNORECASE)
_SYSCALL = re.compile(
    r"_*accept4?(?:@.*)?|syscall\.\w*|(?:internal/)?runtime/(?:internal/)?syscall\.\w*"
)
_PYTHON_WRAPPER = "socket.accept "
"""Lib/socket.py: says no more than the system call below it."""
_PATH_FRAMES = 4
_LEAST_SAMPLES = 5


class AcceptCaller(NamedTuple):
    """Who calls accept.

    Attributes:
        function: The function next to the system call that has a name.
        path: Functions from the event loop to it, root first, at most four.
        share_pct: CPU samples of the process that it is in; NaN when too few were taken.
        mostly_in: The deepest function below it that has at least half of the samples; '' for none.
        table: Where the share comes from.
    """

    function: str
    path: tuple[str, ...]
    share_pct: float
    mostly_in: str
    table: str


def accept_caller(view: RunView, pid: int, window_s: tuple[float, float]) -> AcceptCaller | None:
    """The function that calls accept in a process: in Python by py-spy, else by native stacks.

    Args:
        view: The run.
        pid: The process.
        window_s: The span of the samples for the share.

    Returns:
        None when no stack names one.
    """
    stacks = df_flame(view, pid=pid, window_s=window_s)
    python = stacks[stacks["source"] == "python"]
    native = stacks[stacks["source"] == "native"]
    return _in_python(python) or _in_native(native, _failed_stacks(view, pid))


def _in_python(stacks: pd.DataFrame) -> AcceptCaller | None:
    """The deepest frame with ``accept`` in its name, over all stacks; one sample names it."""
    counts: dict[tuple[str, ...], int] = {}
    for stack, count in zip(stacks["stack"], stacks["sample_count"], strict=True):
        names = [function_name(frame) for frame in str(stack).split(";")]
        accepting = (
            i
            for i, name in enumerate(names)
            if _ACCEPT.search(name.split(" (")[0]) and not name.startswith(_PYTHON_WRAPPER)
        )
        depth = max(accepting, default=-1)
        if depth >= 0:
            path = tuple(names[: depth + 1])
            counts[path] = counts.get(path, 0) + int(count)
    if not counts:
        return None
    path = max(counts, key=lambda key: counts[key])
    return _caller(path, stacks, "python_stacks")


def _in_native(stacks: pd.DataFrame, failed: list[str]) -> AcceptCaller | None:
    """The last named frame before the system call in the stacks of the calls that failed."""
    for stack in failed:
        names = [function_name(frame) for frame in stack.split(";")]
        while names and (_SYSCALL.fullmatch(names[-1]) or not is_named(names[-1])):
            names.pop()
        path = tuple(name for name in names if is_named(name))
        if path:
            return _caller(path, stacks, "cpu_stacks")
    return None


def _failed_stacks(view: RunView, pid: int) -> list[str]:
    rows = view.frames["failure_stacks"]
    mine = rows[(rows["pid"] == pid) & rows["syscall"].isin(["accept", "accept4"])]
    found = mine[mine["user_stack"] != ""]["user_stack"]
    return [str(stack) for stack in found.value_counts().index]


def _caller(path: tuple[str, ...], stacks: pd.DataFrame, table: str) -> AcceptCaller:
    function = path[-1]
    shares = function_shares(stacks)
    mine = shares[shares["function"] == function]["share_pct"]
    is_known = int(stacks["sample_count"].sum()) >= _LEAST_SAMPLES
    below = stacks[stacks["stack"].map(lambda s: function in map(function_name, s.split(";")))]
    deepest = dominant_function(function_shares(below))[0] if len(below) and is_known else ""
    return AcceptCaller(
        function,
        path[-_PATH_FRAMES:],
        float(mine.iloc[0]) if len(mine) and is_known else float("nan"),
        "" if deepest == function or deepest.endswith(KERNEL_SUFFIX) else deepest,
        table,
    )
