"""Which function of a process calls accept, and what part of its CPU time goes there."""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np
import pandas as pd

from analysis.frames.cpu import df_flame
from analysis.frames.run_view import RunView
from analysis.stacks.function_shares import dominant_function, function_name, function_shares
from analysis.stacks.runtime_frames import KERNEL_SUFFIX, is_named
from analysis.stats.remembered import remembered

_ACCEPT = re.compile(r"accept", re.IGNORECASE)
_SYSCALL = re.compile(
    r"_*accept4?(?:@.*)?|syscall\.\w*|(?:internal/)?runtime/(?:internal/)?syscall\.\w*"
)
_PYTHON_WRAPPER = "socket.accept "
"""Lib/socket.py: says no more than the system call below it."""
_SYSCALL_FRAME = re.compile(r"(?:^|;)_*accept4?(?:@[^;]*)?(?:;[^;]*_\[k\])*$")
"""The system call is what the process was in: nothing but the kernel is deeper."""
_PATH_FRAMES = 4
_LEAST_SAMPLES = 3
_MOST_LEAST_PCT = 50.0


class BusiestFunction(NamedTuple):
    """The deepest function of a process that at least half of its samples are in.

    Attributes:
        function: Its name, '' when there is none.
        share_pct: The samples that it is in.
        table: Where they come from: Python's stacks where there are some, else native ones.
    """

    function: str
    share_pct: float
    table: str


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


@remembered
def accept_caller(view: RunView, pid: int, window_s: tuple[float, float]) -> AcceptCaller | None:
    """The function that calls accept in a process: in Python by py-spy, else by native stacks.

    Args:
        view: The run.
        pid: The process.
        window_s: The span of the samples for the share.

    Returns:
        None when no stack names one.
    """
    python, native = _stacks(view, pid, window_s)
    return _in_python(python) or _in_native(native, _failed_stacks(view, pid))


def accept_share_pct(view: RunView, pid: int, window_s: tuple[float, float]) -> float:
    """The samples of a process that are in a function which accepts, the kernel's included.

    Returns:
        Of its Python or its native stacks, whichever is more; NaN without samples.
    """
    shares = [float("nan")]
    for stacks in _stacks(view, pid, window_s):
        total = int(stacks["sample_count"].sum())
        if total >= _LEAST_SAMPLES:
            inside = stacks["stack"].map(lambda stack: _accept_depth(_names(stack)) >= 0)
            shares.append(100.0 * int(stacks["sample_count"][inside.astype(bool)].sum()) / total)
    return float(np.fmax.reduce(shares))


def busiest_function(view: RunView, pid: int, window_s: tuple[float, float]) -> BusiestFunction:
    """What most samples of a process are in; frames of the kernel and without a name left out."""
    for stacks, table in zip(
        _stacks(view, pid, window_s), ("python_stacks", "cpu_stacks"), strict=True
    ):
        if int(stacks["sample_count"].sum()) < _LEAST_SAMPLES:
            continue
        shares = function_shares(stacks)
        named = shares["function"].map(lambda f: is_named(f) and not f.endswith(KERNEL_SUFFIX))
        function, share_pct = dominant_function(shares[named.astype(bool)], _MOST_LEAST_PCT)
        if function:
            return BusiestFunction(function, share_pct, table)
    return BusiestFunction("", 0.0, "")


def _stacks(
    view: RunView, pid: int, window_s: tuple[float, float]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Folded stacks of a process: Python's, native ones."""
    stacks = df_flame(view, pid=pid, window_s=window_s)
    return stacks[stacks["source"] == "python"], stacks[stacks["source"] == "native"]


def _names(stack: str) -> list[str]:
    return [function_name(frame) for frame in stack.split(";") if frame]


def _accept_depth(names: list[str]) -> int:
    """The position of the deepest function with ``accept`` in its name, -1 for none.

    A Python frame has its file behind it, which does not count.
    """
    return max(
        (i for i, name in enumerate(names) if _ACCEPT.search(name.split(" (")[0])), default=-1
    )


def _in_python(stacks: pd.DataFrame) -> AcceptCaller | None:
    """The deepest frame with ``accept`` in its name, over all stacks; one sample names it."""
    counts: dict[tuple[str, ...], int] = {}
    for stack, count in zip(stacks["stack"], stacks["sample_count"], strict=True):
        names = _names(str(stack))
        depth = _accept_depth(["" if n.startswith(_PYTHON_WRAPPER) else n for n in names])
        if depth >= 0:
            path = tuple(names[: depth + 1])
            counts[path] = counts.get(path, 0) + int(count)
    if not counts:
        return None
    path = max(counts, key=lambda key: counts[key])
    return _caller(path, stacks, "python_stacks")


def _in_native(stacks: pd.DataFrame, failed: list[str]) -> AcceptCaller | None:
    """The last named frame before the system call, in stacks of failed calls, else of samples.

    Where compiled code without a name lies between (a JIT's), a function that has accept in its
    name says more than what called that code.
    """
    sampled = [str(stack) for stack in stacks["stack"] if _SYSCALL_FRAME.search(str(stack))]
    farther: tuple[str, ...] = ()
    for stack in (*failed, *sampled):
        names = _names(stack)
        while names and (_SYSCALL.fullmatch(names[-1]) or names[-1].endswith(KERNEL_SUFFIX)):
            names.pop()
        path = tuple(name for name in names if is_named(name))
        if path and is_named(names[-1]):
            return _caller(path, stacks, "cpu_stacks")
        farther = farther or path
    path = _named_after_accept(stacks) or farther
    return _caller(path, stacks, "cpu_stacks") if path else None


def _named_after_accept(stacks: pd.DataFrame) -> tuple[str, ...]:
    """The most frequent path to a function of user space with accept in its name, () for none."""
    counts: dict[tuple[str, ...], int] = {}
    for stack, count in zip(stacks["stack"], stacks["sample_count"], strict=True):
        names = [
            name
            for name in _names(str(stack))
            if is_named(name) and not _SYSCALL.fullmatch(name) and not name.endswith(KERNEL_SUFFIX)
        ]
        depth = _accept_depth(names)
        if depth >= 0:
            path = tuple(names[: depth + 1])
            counts[path] = counts.get(path, 0) + int(count)
    return max(counts, key=lambda path: counts[path]) if counts else ()


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
    below = stacks[stacks["stack"].map(lambda s: function in _names(s)).astype(bool)]
    deepest = dominant_function(function_shares(below))[0] if len(below) and is_known else ""
    return AcceptCaller(
        function,
        path[-_PATH_FRAMES:],
        float(mine.iloc[0]) if len(mine) and is_known else float("nan"),
        "" if deepest == function or deepest.endswith(KERNEL_SUFFIX) else deepest,
        table,
    )
