"""What the worker at a full core was doing, for the page and the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from analysis.evidence import Finding
from analysis.findings import CATALOGUE
from analysis.frames.cpu import df_flame
from analysis.frames.run_view import RunView
from analysis.signs.signs import Signs
from analysis.stacks.function_shares import (
    dominant_function,
    dominant_own_function,
    function_shares,
    softirq_share,
)
from analysis.stacks.runtime_frames import is_own_code
from analysis.stats.thresholds import LATE_CPU_S


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
    window = (float(hot["since_s"]), float(hot["until_s"]) + LATE_CPU_S)
    stacks = df_flame(signs.view, pid=pid, window_s=window)
    function, share_pct = dominant_function(function_shares(stacks[stacks["source"] == "python"]))
    if not function:
        native = function_shares(stacks[stacks["source"] == "native"])
        function, share_pct = dominant_own_function(native)
        if not function and not native["function"].map(is_own_code).any():
            function, share_pct = dominant_function(native)
    causes = [f.cause for f in findings if f.subject.pid == pid]
    named = [cause for cause in causes if CATALOGUE[cause].fills_a_core]
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
