"""The worker at a full core: which, since when, and what it was doing."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from analysis.cpu import df_flame, wants_full_core
from analysis.evidence import Finding
from analysis.run_view import RunView
from analysis.runtime_frames import MAP_SUFFIX, is_own_code

if TYPE_CHECKING:
    from analysis.signs import Signs


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


def find_hot_worker(view: RunView, worker_cpu: pd.DataFrame) -> dict[str, Any] | None:
    """The server-side process that was at a full core for at least 1 s while it was not the norm.

    During the ramp of a host whose cores are all busy, every worker takes what it gets: there a
    worker counts as hot only when it wants a core (``wants_full_core``) and has twice the median
    of its siblings. In the hold phase the first is enough. Where no stretch is such a one, a lone
    worker that wants a core in the ramp is hot as well: it does what it is there for, and is as
    fast as it can be.

    Returns:
        pid, role, worker, since_s, until_s, cpu_pct, user_pct, system_pct, others_cpu_pct,
        is_ramp_only (a lone worker, and only while connections were opened); the longest such
        stretch of the run, None when there was none.
    """
    servers = worker_cpu[worker_cpu["side"] == "server"]
    if servers.empty:
        return None
    return _longest_hot(view, servers, in_ramp=False) or _longest_hot(view, servers, in_ramp=True)


def _longest_hot(view: RunView, servers: pd.DataFrame, *, in_ramp: bool) -> dict[str, Any] | None:
    worker_rows = servers[servers["role"] == "server"]
    best: dict[str, Any] | None = None
    for pid, rows in servers.groupby("pid", sort=True):
        others = worker_rows[worker_rows["pid"] != pid].groupby("at_s")["cpu_pct"].median()
        at_s = rows["at_s"].to_numpy()
        cpu = rows["cpu_pct"].to_numpy()
        beside = np.interp(at_s, others.index, others) if len(others) else np.full(len(at_s), 0.0)
        if in_ramp and (len(others) or str(rows["role"].iloc[0]) != "server"):
            continue
        in_hold = (at_s > view.hold.start_s + 0.6) & (at_s <= view.stop_s + 0.1)
        unlike = (cpu >= 2 * beside) & (len(others) > 0)
        in_hold |= in_ramp & (at_s > view.ramp.start_s)
        wants = wants_full_core(cpu, rows["wait_pct"].to_numpy())
        hot = wants & (at_s <= view.stop_s + 0.1) & (in_hold | unlike)
        for start, stop in runs_of(hot):
            since_s = float(at_s[start - 1]) if start else float(at_s[start]) - 0.5
            length_s = float(at_s[stop - 1]) - since_s
            if length_s >= 0.9 and (best is None or length_s > best["until_s"] - best["since_s"]):
                part = rows.iloc[start:stop]
                best = {
                    "pid": int(str(pid)),
                    "role": str(part["role"].iloc[0]),
                    "worker": int(part["worker"].iloc[0]),
                    "since_s": since_s,
                    "until_s": float(at_s[stop - 1]),
                    "cpu_pct": float(part["cpu_pct"].mean()),
                    "user_pct": float(part["user_pct"].mean()),
                    "system_pct": float(part["system_pct"].mean()),
                    "others_cpu_pct": float(beside[start:stop].mean()) if len(others) else np.nan,
                    "is_ramp_only": in_ramp,
                }
    return best


def runs_of(flags: Any) -> list[tuple[int, int]]:
    """Start and end (exclusive) of every unbroken run of True."""
    padded = np.concatenate([[False], np.asarray(flags, dtype=bool), [False]])
    edges = np.flatnonzero(padded[1:] != padded[:-1])
    return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]


_EXPLAINS_A_HOT_WORKER = (
    "accept-spin",
    "keepalive-storm",
    "message-amplification",
    "garbage-collection",
    "hot-acceptor",
    "port-search-cost",
    "handshake-cost",
    "hot-worker-code",
)
_SOFTIRQ = re.compile(r"\b(?:handle_softirqs|__do_softirq|do_softirq|net_rx_action)")
"""The kernel function that every softirq runs below (kernel/softirq.c), by its names over time."""


def describe_hot_worker(signs: Signs, findings: Sequence[Finding]) -> dict[str, Any] | None:
    """The hot worker for the page: stacks, syscalls, and the finding that explains it.

    Args:
        signs: From the run.
        findings: Ranked.

    Returns:
        See ``Summary.hot_worker``; None when no worker was hot.
    """
    hot = signs.hot_worker
    if hot is None:
        return None
    pid = int(hot["pid"])
    window = (float(hot["since_s"]), float(hot["until_s"]) + 0.5)
    stacks = df_flame(signs.view, pid=pid, window_s=window)
    function, share_pct = dominant_function(function_shares(stacks[stacks["source"] == "python"]))
    if not function:
        native = function_shares(stacks[stacks["source"] == "native"])
        function, share_pct = dominant_own_function(native)
        if not function and not native["function"].map(is_own_code).any():
            function, share_pct = dominant_function(native)
    causes = [f.cause for f in findings if f.subject.pid == pid]
    named = [c for c in causes if c in _EXPLAINS_A_HOT_WORKER]
    top = stacks.head(10)[["source", "stack", "sample_count"]]
    of_pid = signs.view.frames["cpu_stacks"]
    at_s = signs.view.seconds_of(of_pid["at_ns"])
    mine = of_pid[(of_pid["pid"] == pid) & (at_s >= window[0]) & (at_s <= window[1])]
    return {
        **hot,
        "softirq_pct": float(hot["cpu_pct"]) * softirq_share(mine),
        "kernel_stack": _most_sampled(mine, "kernel_stack"),
        "python_stack": _first_stack(stacks, "python"),
        "others": _others(signs, pid, window),
        "top_function": function,
        "top_share_pct": share_pct,
        "cause": named[0] if named else "",
        "syscalls": _syscalls_of(signs.view, pid, window),
        "stacks": top.to_dict("records"),
    }


def softirq_share(stacks: pd.DataFrame) -> float:
    """Part of CPU samples below a softirq, 0 to 1; NaN without samples.

    On loopback a sender's softirq runs the receiver's TCP, so this is work for the peers.

    Args:
        stacks: Rows of ``cpu_stacks``.
    """
    total = float(stacks["sample_count"].sum())
    below = stacks["kernel_stack"].str.contains(_SOFTIRQ)
    return float(stacks["sample_count"][below].sum()) / total if total else float("nan")


def _most_sampled(stacks: pd.DataFrame, column: str) -> str:
    counted = stacks[stacks[column] != ""].groupby(column)["sample_count"].sum()
    return str(counted.idxmax()) if len(counted) else ""


def _first_stack(stacks: pd.DataFrame, source: str) -> str:
    of_source = stacks[stacks["source"] == source]["stack"]
    return str(of_source.iloc[0]) if len(of_source) else ""


def _others(signs: Signs, pid: int, window_s: tuple[float, float]) -> list[dict[str, Any]]:
    """What each sibling did meanwhile: its CPU, its last state and wait, its handshakes."""
    rows = signs.worker_cpu
    inside = rows["at_s"].between(window_s[0] + 0.01, window_s[1])
    near = rows[inside & (rows["side"] == "server") & (rows["pid"] != pid)]
    found = []
    for other, part in near.groupby("pid", sort=True):
        last = part.iloc[-1]
        found.append(
            {
                "pid": int(str(other)),
                "role": str(last["role"]),
                "worker": int(last["worker"]),
                "cpu_pct": float(part["cpu_pct"].mean()),
                "state": str(last["state"]),
                "wait_channel": str(last["wait_channel"]),
                "established_count": signs.established_between(int(str(other)), *window_s),
            }
        )
    return found


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


def _syscalls_of(view: RunView, pid: int, window_s: tuple[float, float]) -> list[dict[str, Any]]:
    """What it called, most first: all syscalls where they were counted, else the failing ones."""
    span_s = max(0.1, window_s[1] - window_s[0])
    failing = view.frames["failing_syscalls"]
    at_s = view.seconds_of(failing["at_ns"])
    mine = failing[(failing["pid"] == pid) & (at_s >= window_s[0]) & (at_s <= window_s[1])]
    failed = mine.groupby(["syscall", "errno_name"], as_index=False)["event_count"].sum()
    mix = view.frames["syscall_mix"]
    at_s = view.seconds_of(mix["at_ns"])
    mixed = mix[(mix["pid"] == pid) & (at_s >= window_s[0]) & (at_s <= window_s[1])]
    every = mixed.groupby("syscall", as_index=False)["event_count"].sum().assign(errno_name="")
    rows = pd.concat([every, failed], ignore_index=True).sort_values(
        "event_count", ascending=False, kind="stable"
    )
    return [
        {
            "syscall": str(row["syscall"]),
            "errno_name": str(row["errno_name"]),
            "events_per_s": float(row["event_count"]) / span_s,
        }
        for row in rows.head(8).to_dict("records")
    ]
