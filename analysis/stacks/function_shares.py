"""Which functions the samples of a process are in, and for what share of them."""

from __future__ import annotations

import re

import pandas as pd

from analysis.stacks.runtime_frames import MAP_SUFFIX, is_own_code


def function_shares(stacks: pd.DataFrame) -> pd.DataFrame:
    """Share of samples by function anywhere in the stack: function, share_pct, is_leaf, is_mapped.

    A recursive function counts once a stack. Line numbers are taken off, so that a loop that is
    sampled on several lines is one function. Largest share first; of two with the same share the
    deeper one. ``is_mapped``: it is in a perf map, so a function of the program that its runtime
    runs.

    Args:
        stacks: stack, sample_count.
    """
    total = float(stacks["sample_count"].sum())
    counts: dict[str, float] = {}
    depth: dict[str, int] = {}
    leaves: set[str] = set()
    mapped: set[str] = set()
    for stack, count in zip(stacks["stack"], stacks["sample_count"], strict=True):
        frames = [frame for frame in str(stack).split(";") if frame]
        names = [function_name(frame) for frame in frames]
        mapped.update(function_name(frame) for frame in frames if frame.endswith(MAP_SUFFIX))
        for position, name in enumerate(names):
            depth[name] = max(depth.get(name, 0), position)
        for name in set(names):
            counts[name] = counts.get(name, 0.0) + float(count)
        leaves.update(names[-1:])
    rows = [
        {
            "function": name,
            "share_pct": 100 * count / total,
            "is_leaf": name in leaves,
            "depth": depth[name],
            "is_mapped": name in mapped,
        }
        for name, count in counts.items()
    ]
    columns = ["function", "share_pct", "is_leaf", "depth", "is_mapped"]
    frame = pd.DataFrame(rows, columns=columns)
    return frame.sort_values(
        ["share_pct", "depth"], ascending=[False, False], kind="stable", ignore_index=True
    )


def function_name(frame: str) -> str:
    """A frame without its line: ``turn (harness/loop.py:31)`` gives ``turn (harness/loop.py)``.

    A frame of a perf map loses its mark as well. Functions without a name keep their line: it is
    all that tells them apart.
    """
    frame = frame.removesuffix(MAP_SUFFIX)
    head, colon, tail = frame.rpartition(":")
    if colon and not frame.startswith("<anonymous>") and tail.rstrip(")").isdigit():
        return head + (")" if tail.endswith(")") else "")
    return frame


_SOFTIRQ = re.compile(r"\b(?:handle_softirqs|__do_softirq|do_softirq|net_rx_action)")
"""The kernel function that every softirq runs below (kernel/softirq.c), by its names over time."""


def softirq_share(stacks: pd.DataFrame) -> float:
    """Part of CPU samples below a softirq, 0 to 1; NaN without samples.

    On loopback a sender's softirq runs the receiver's TCP, so this is work for the peers.

    Args:
        stacks: Rows of ``cpu_stacks``.
    """
    total = float(stacks["sample_count"].sum())
    below = stacks["kernel_stack"].str.contains(_SOFTIRQ)
    return float(stacks["sample_count"][below].sum()) / total if total else float("nan")


def dominant_function(shares: pd.DataFrame, least_pct: float = 50.0) -> tuple[str, float]:
    """The deepest function that at least ``least_pct`` of the samples are in, and its share."""
    held = shares[shares["share_pct"] >= least_pct]
    if held.empty:
        return "", 0.0
    row = held.sort_values(["depth", "share_pct"], ascending=False, kind="stable").iloc[0]
    return str(row["function"]), float(row["share_pct"])


def dominant_own_function(shares: pd.DataFrame, least_pct: float = 50.0) -> tuple[str, float]:
    """The same of the program's own functions.

    One that its runtime runs goes before what that calls in C: it is the one that can be changed.
    """
    own = shares[shares["function"].map(is_own_code).astype(bool)]
    found = dominant_function(own[own["is_mapped"].astype(bool)], least_pct)
    return found if found[0] else dominant_function(own, least_pct)
