"""Threads of a process by what they do: event loop, pool, collector; and which of them is hot."""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping
from typing import Any

import pandas as pd

from analysis.frames.cpu import df_flame
from analysis.frames.run_view import RunView
from analysis.stacks.collector import is_collector_sample
from analysis.stacks.function_shares import dominant_own_function, function_shares
from analysis.stacks.runtime_frames import jvm_name, naming_advice
from analysis.stats.thresholds import LATE_CPU_S

COLUMNS = ("tid", "thread", "kind", "sample_count", "share_pct", "function")

EVENT_LOOP = "event loop"
_COLLECTOR = "garbage collector"
_MOST_THREADS = 10  # node has nine that may work: its main thread, four of V8, four of libuv
_KINDS = (
    ("worker_threads thread", re.compile(r"node::worker::Worker::")),
    ("V8 worker thread", re.compile(r"node::\(anonymous namespace\)::PlatformWorkerThread")),
    # the functions that uv_queue_work and its kind run, src/threadpool.c and src/unix/fs.c
    (
        "libuv pool thread",
        re.compile(
            r"(?:^|;)(?:worker|uv__(?:fs|getaddrinfo|getnameinfo|queue)_work\w*"
            r"|node::ThreadPoolWork::.*?)(?:;|$)"
        ),
    ),
    (
        EVENT_LOOP,
        re.compile(
            r"(?:^|;)(?:uv_run|uv__io_poll|aeMain|event_base_loop|us_loop_run\w*|epoll_p?wait2?"
            r"|sun\.nio\.ch\.\w*Selector\w*::.*?|io\.netty\..*?EventLoop::run.*?)(?:;|$)"
        ),
    ),
    ("Java thread", re.compile(r"(?:^|;)(?:JavaThread|JavaCalls)::")),
)
_KINDS_BY_NAME = (
    ("libuv pool thread", re.compile(r"libuv-worker")),
    ("V8 worker thread", re.compile(r"V8Worker|DelayedTaskSche")),
    ("compiler thread", re.compile(r"C[12] CompilerThre|JVMCI")),
    ("VM thread", re.compile(r"VM Thread$")),
    (
        "JVM service thread",
        re.compile(
            r"VM Periodic Tas|Sweeper thread|Signal Dispatch|Service Thread|Monitor Deflati"
            r"|Common-Cleaner|Reference Handl|Finalizer|Notification Th|Attach Listener"
        ),
    ),
    (EVENT_LOOP, re.compile(r"(?:nio|epoll|kqueue)EventLoop|reactor-http|vert\.x-eventloo")),
)
_JAVA_MAIN = re.compile(r"(?:^|;)(?:Thread)?JavaMain(?:;|$)")
"""The launcher runs main() in a thread that it starts (JDK's src/java.base/share/native/libjli)."""
_GO = re.compile(r"(?:^|;)runtime\.(?:goexit|mcall|mstart|schedule|systemstack)")
"""Any thread of Go runs any goroutine, so none is for anything (src/runtime/proc.go)."""
_SERVES_NOBODY = ("libuv pool", "V8 worker", "compiler", "VM thread", "JVM service", _COLLECTOR)


def df_threads(view: RunView, pid: int, window_s: tuple[float, float]) -> pd.DataFrame:
    """The threads of a process by CPU samples, most first.

    Args:
        view: The run.
        pid: The process.
        window_s: Only samples of this span.

    Returns:
        tid, thread (comm), kind (what it is for), sample_count, share_pct (of the process's
        samples), function (its own function that most of its samples are in, '' for none).
    """
    rows = view.frames["cpu_stacks"]
    at_s = view.seconds_of(rows["at_ns"])
    mine = rows[(rows["pid"] == pid) & (at_s >= window_s[0]) & (at_s <= window_s[1])]
    total = float(mine["sample_count"].sum())
    found = []
    for tid, part in mine.groupby("tid", sort=True):
        stacks = part.assign(stack=part["user_stack"])
        shares = function_shares(stacks[["stack", "sample_count"]])
        count = int(part["sample_count"].sum())
        found.append(
            {
                "tid": int(str(tid)),
                "thread": str(part["thread"].iloc[-1]),
                "kind": thread_kind(part, is_main=int(str(tid)) == pid),
                "sample_count": count,
                "share_pct": 100 * count / total,
                "function": dominant_own_function(shares)[0],
            }
        )
    frame = pd.DataFrame(found, columns=list(COLUMNS))
    return frame.sort_values("sample_count", ascending=False, kind="stable", ignore_index=True)


def thread_kind(rows: pd.DataFrame, *, is_main: bool) -> str:
    """What a thread is for, by its name and by the frames in its stacks.

    Args:
        rows: Its rows of ``cpu_stacks``.
        is_main: Its tid is the pid of its process.
    """
    text = ";".join(rows["user_stack"])
    if _GO.search(text):
        return "Go thread"
    is_main = is_main or _JAVA_MAIN.search(text) is not None
    kind = _kind(str(rows["thread"].iloc[-1]), text)
    if is_main:
        return f"main thread, {kind}" if kind == EVENT_LOOP else "main thread"
    total = int(rows["sample_count"].sum())
    if 2 * int(rows["sample_count"][is_collector_sample(rows)].sum()) > total:
        return f"{kind}, {_COLLECTOR}" if kind.startswith(("V8 worker", "VM")) else _COLLECTOR
    return kind or "thread"


def _kind(name: str, stacks: str) -> str:
    """By name or frames, '' where neither says it."""
    for kind, pattern in _KINDS_BY_NAME:
        if pattern.match(name):
            return kind
    return next((kind for kind, pattern in _KINDS if pattern.search(stacks)), "")


def who_waits(kind: str) -> str:
    """Whose connections wait while a thread of that kind runs: all, own (of the thread), none."""
    if any(word in kind for word in _SERVES_NOBODY):
        return "none"
    return "own" if kind in ("Java thread", "Go thread", "worker_threads thread") else "all"


def with_threads(view: RunView, hot: dict[str, Any] | None) -> dict[str, Any] | None:
    """The description of the hot worker with its threads.

    Args:
        view: The run.
        hot: From ``analysis.signs.hot_worker.describe_hot_worker``.

    Returns:
        The same with ``threads``, a list of at most 10 rows of ``df_threads`` with their label, and
        ``naming_advice``, a sentence or ''.
    """
    if hot is None:
        return None
    window_s = float(hot["since_s"]), float(hot["until_s"]) + LATE_CPU_S
    subject = view.subject(int(hot["pid"]))
    rows = df_threads(view, int(hot["pid"]), window_s).head(_MOST_THREADS).to_dict("records")
    threads = [{**row, "label": thread_label(row)} for row in rows]
    native = df_flame(view, pid=int(hot["pid"]), kind="native", window_s=window_s)
    jvm = jvm_name(subject.command, subject.pid, is_alive=view.is_attached)
    advice = naming_advice(zip(native["stack"], native["sample_count"], strict=True), jvm)
    return {**hot, "threads": threads, "naming_advice": advice.sentence if advice else ""}


def thread_label(row: Mapping[Hashable, object]) -> str:
    """``event loop (node, tid 812)``: the kind, and what the kernel calls the thread."""
    return f"{row['kind']} ({row['thread']}, tid {row['tid']})"
