"""``accept-spin``: a full worker keeps its listener and calls accept4 for ever.

Proof: accept4 returns EMFILE at 10^4 to 10^6 a second, sustained, while that worker completes no
handshake, and its CPU goes there. With a part of a core (others want it too, a quota, rests between
its tries) the rate is judged per second of its own CPU time. A runtime that also logs each failure
fails less often: then 5,000 a second at a full core are the sign; with a part of a core, or 2,000 a
second at a full one, a tenth of its stacks in the function that accepts as well; else, as on a
slow processor, most of them, or at a full core nothing but waits and accepts among its calls, where
these were counted. The function comes from the stacks of that span: the one that accepts,
or the one that most samples are in.
Told apart from ``server-resets-when-full`` by what the next calls return: there a connection is
accepted and closed for each failure, whatever the rate. From ``hot-worker-code`` and
``keepalive-storm`` by that rate: theirs is zero. From the limit itself by what it costs: a worker
that leaves its listener is at the limit too, and idle.
The function that calls accept is named by the stacks: asyncio's retry loop, libuv without its
reserve descriptor, or the server's own.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd

from analysis.causes import Cause, Effect
from analysis.evidence import Evidence, Finding, Fix, capitalised, side_of_role
from analysis.frames.cpu import wants_full_core
from analysis.server.nofile_setting import lasting_limit_command
from analysis.signs.accept_outcomes import is_closing_at_once
from analysis.signs.signs import ACCEPT_CALLS, EMFILE, Signs
from analysis.stacks.accept_caller import (
    AcceptCaller,
    accept_caller,
    accept_share_pct,
    busiest_function,
)
from analysis.stats.remembered import remembered
from analysis.stats.spans import runs_of
from analysis.stats.thresholds import LATE_CPU_S

CAUSE = Cause(
    id="accept-spin",
    line="a full worker calls accept4 for ever without progress",
    follows_from=(Effect.FILLS_DESCRIPTORS,),
    fills_a_core=True,
)

_SPIN_PER_S = 10_000
_SPIN_WITH_SHARE_PER_S = 2_000
"""Per second of its own CPU time, where its stacks say that it accepts."""
_SPIN_LEAST_PER_S = 200
"""Who only meets its limit fails a few times a second, and rests in between."""
_SPIN_AND_LOG_PER_S = 5_000
"""Per second of its own CPU time, of a runtime that also logs each failure."""
_ACCEPTS_LEAST_PCT = 10.0
"""Samples in the function that accepts, of a worker at a full core or that fails so often."""
_SPIN_AT_A_PART_PCT, _ACCEPTS_MOSTLY_PCT = 15.0, 50.0
"""With a part of a core (others want it, a quota, rests between its tries) most of them."""
_ACCEPTS_OF_CALLS_LEAST = 0.4
"""Of its system calls but clocks: a turn that does nothing else waits and fails, half and half."""
_CLOCKS = ("clock_gettime", "gettimeofday", "time", "clock_gettime64")
"""Calls only where the processor's own counter cannot be read (vdso(7)), as under emulation."""
_LEAST_S = 0.8


def find(signs: Signs) -> list[Finding]:
    """One finding about the worker that spins fastest; the others are counted."""
    found = []
    for pid, rows in signs.emfile_rates.groupby("pid", sort=True):
        finding = _judge(signs, int(str(pid)), rows)
        if finding is not None:
            found.append(finding)
    if not found:
        return []
    found.sort(key=lambda finding: -(finding.value_of("emfile_call_rate") or 0.0))
    worst = found[0]
    count = Evidence("spinning_workers", len(found), worst.evidence[0].table)
    others = f" {len(found) - 1} more spin as well." if len(found) > 1 else ""
    return [
        replace(
            worst,
            evidence=(*worst.evidence, count),
            explanation=worst.explanation + others,
            first_s=min(f.first_s for f in found),
            last_s=max(f.last_s for f in found),
        )
    ]


@remembered
def spinning_pids(signs: Signs) -> set[int]:
    """Every process that spins."""
    groups = signs.emfile_rates.groupby("pid", sort=True)
    pids = [int(str(pid)) for pid, _ in groups]
    rows = signs.emfile_rates
    return {pid for pid in pids if _judge(signs, pid, rows[rows["pid"] == pid]) is not None}


def _judge(signs: Signs, pid: int, rows: pd.DataFrame) -> Finding | None:
    per_s = rows["per_s"].to_numpy()
    spans = [
        (
            float(rows["at_s"].iloc[a] - rows["interval_s"].iloc[a]),
            float(rows["at_s"].iloc[b - 1]),
            a,
            b,
        )
        for a, b in runs_of(per_s >= _SPIN_LEAST_PER_S)
    ]
    spans = [span for span in spans if span[1] - span[0] >= _LEAST_S]
    if not spans:
        return None
    since_s, until_s, start, stop = max(spans, key=lambda span: span[1] - span[0])
    since_s = max(since_s, _first_emfile_s(signs, pid))
    rate = float(np.median(per_s[start:stop]))
    cpu_pct = signs.cpu_pct_of(pid, since_s, until_s)
    failing_count = rate * (until_s - since_s)
    progress = signs.established_between(pid, since_s + 0.5, until_s)
    if progress is not None and progress > 0.01 * failing_count:
        return None
    if is_closing_at_once(signs, pid, (since_s, until_s)):
        return None
    if not _burns_cpu(signs, pid, (since_s, until_s), rate, cpu_pct):
        return None
    return _finding(signs, pid, (since_s, until_s), rate, cpu_pct, progress, rows)


def _burns_cpu(
    signs: Signs, pid: int, span_s: tuple[float, float], rate: float, cpu_pct: float | None
) -> bool:
    """Its CPU time goes into accepts that fail: by how many there are, or by its stacks."""
    if rate >= _SPIN_PER_S:
        return True
    if cpu_pct is None:
        return False
    per_cpu_s = rate / max(0.2, cpu_pct / 100)
    if per_cpu_s >= _SPIN_PER_S:
        return True
    is_full = bool(wants_full_core(cpu_pct, signs.wait_pct_of(pid, *span_s) or 0.0))
    is_often = per_cpu_s >= _SPIN_AND_LOG_PER_S
    if is_full and (is_often or _does_nothing_else(signs, pid, span_s)):
        return True
    if cpu_pct < _SPIN_AT_A_PART_PCT:
        return False
    accepts_pct = accept_share_pct(signs.view, pid, (span_s[0], span_s[1] + LATE_CPU_S))
    is_clear = is_often or (is_full and per_cpu_s >= _SPIN_WITH_SHARE_PER_S)
    return accepts_pct >= (_ACCEPTS_LEAST_PCT if is_clear else _ACCEPTS_MOSTLY_PCT)


def _does_nothing_else(signs: Signs, pid: int, span_s: tuple[float, float]) -> bool:
    """Each turn of its loop is an accept that fails: a sign that no slow processor changes."""
    calls = _calls_of(signs, pid, span_s)
    calls = calls[~calls.index.isin(_CLOCKS)]
    failed_count = int(calls["failed_count"].reindex(list(ACCEPT_CALLS), fill_value=0).sum())
    return failed_count > 0 and failed_count >= _ACCEPTS_OF_CALLS_LEAST * calls["event_count"].sum()


def _calls_of(signs: Signs, pid: int, span_s: tuple[float, float]) -> pd.DataFrame:
    """Its system calls by name, where they were counted: event_count, failed_count."""
    mix = signs.view.frames["syscall_mix"]
    at_s = signs.view.seconds_of(mix["at_ns"])
    mine = mix[(mix["pid"] == pid) & (at_s >= span_s[0]) & (at_s <= span_s[1] + LATE_CPU_S)]
    return mine.groupby("syscall")[["event_count", "failed_count"]].sum()


def _first_emfile_s(signs: Signs, pid: int) -> float:
    rows = signs.accept_errors(EMFILE)
    first_s = rows[rows["pid"] == pid]["first_s"]
    return float(first_s.min()) if len(first_s) else float("-inf")


def _finding(
    signs: Signs,
    pid: int,
    span_s: tuple[float, float],
    rate: float,
    cpu_pct: float | None,
    progress: int | None,
    rows: pd.DataFrame,
) -> Finding:
    view = signs.view
    subject = view.subject(pid)
    since_s, until_s = span_s
    table = str(rows["table"].iloc[0])
    confidence, missing = signs.trust("failing_syscalls", "process_samples")
    syscall = _call_of(signs, pid)
    evidence = [
        Evidence("emfile_call_rate", rate, table, since_s, of=syscall),
        Evidence("span_length", until_s - since_s, table, since_s),
    ]
    busy = ""
    if cpu_pct is not None:
        evidence.append(Evidence("process_cpu", cpu_pct, "process_samples", since_s))
        busy = f" at {cpu_pct:.0f} % of a core"
    if progress is not None:
        evidence.append(Evidence("handshakes_completed", progress, "live_samples", until_s))
    caller = accept_caller(view, pid, (since_s, until_s + LATE_CPU_S))
    where = in_function = ""
    if caller is not None:
        where = _where(caller, _syscalls_text(signs, pid, since_s, until_s))
        in_function = f", called by {caller.function},"
        if caller.share_pct == caller.share_pct:  # NaN: too few samples
            evidence.append(
                Evidence(
                    "function_samples", caller.share_pct, caller.table, since_s, of=caller.function
                )
            )
    most = busiest_function(view, pid, (since_s, until_s + LATE_CPU_S))
    if most.function and (caller is None or most.function != caller.function):
        evidence.append(
            Evidence("function_samples", most.share_pct, most.table, since_s, of=most.function)
        )
        where = where or f" {most.share_pct:.0f} % of its samples are in {most.function}."
    name = str(subject)
    return Finding(
        cause=CAUSE.id,
        severity="warning",
        side=side_of_role(subject.role),
        subject=subject,
        first_s=since_s,
        last_s=until_s,
        evidence=tuple(evidence),
        explanation=(
            f"{capitalised(name)} has no descriptor left but keeps its listener in the "
            f"event loop. {_why(caller)}, {syscall} fails with EMFILE {rate:,.0f} times a second, "
            f"and nothing gets done{busy}.{where}"
        ),
        fix=(
            Fix(
                "leave the listener at EMFILE and come back when a descriptor is freed"
                if view.is_foreign
                else "profile-run --at-fd-limit pause  # leave the listener at EMFILE, come back "
                "when a descriptor is freed",
                f"the CPU of this worker falls from {cpu_pct or 100:.0f} % to that of its "
                f"connections; {rate:,.0f} failing calls a second go away",
            ),
            *_runtime_fixes(caller),
            Fix(
                lasting_limit_command(view, pid, 65_535),
                "the worker does not meet the limit at this load, so it never begins to spin",
            ),
        ),
        at_connections=view.open_count_at(since_s),
        confidence=confidence,
        missing=missing,
        sentence=f"{capitalised(name)} spins in {syscall}: {rate:,.0f} EMFILE a second"
        f"{in_function}{busy}, without one connection accepted",
        explained_count=0,
    )


def _call_of(signs: Signs, pid: int) -> str:
    rows = signs.accept_errors(EMFILE)
    names = rows[rows["pid"] == pid]["syscall"]
    return str(names.iloc[0]) if len(names) else "accept4"


def _where(caller: AcceptCaller, syscalls: str) -> str:
    """The function that spins, what it is made of, and what is known of it, in sentences."""
    share = ""
    if caller.share_pct == caller.share_pct:  # NaN: too few samples
        share = f", {caller.share_pct:.0f} % of its samples"
        if caller.mostly_in:
            share += f", most of them in {caller.mostly_in}"
    text = f" Its stacks lead to {' > '.join(caller.path)}{share}.{syscalls}"
    for function, sentence, _ in _KNOWN_CALLERS:
        if function in caller.function:
            return text + sentence
    return text


_ASYNCIO = "BaseSelectorEventLoop._accept_connection"


def _why(caller: AcceptCaller | None) -> str:
    if caller is not None and _ASYNCIO in caller.function:
        return "A connection waits in its queue, so the loop comes back to it again and again"
    return (
        "The listener is level-triggered and a connection waits in its queue, so the loop returns "
        "at once"
    )


_KNOWN_CALLERS = (
    (
        "uv__server_io",
        " libuv keeps one descriptor in reserve, with which it accepts and closes what it cannot "
        "hold (uv__emfile_trick); this process has lost it to another open, and libuv does not "
        "tell the application.",
        Fix(
            "server.maxConnections = N  // node: net.Server, below the limit less its own files",
            "connections above N are closed at once and the process never meets EMFILE",
        ),
    ),
    (
        _ASYNCIO,
        " asyncio goes on for the length of the backlog at EMFILE, writes a log record for each "
        "try, and takes the listener back a second later, once for each of them.",
        Fix(
            "loop.create_server(..., backlog=100)  # asyncio",
            "asyncio tries, and logs, once for each place of the backlog a second",
        ),
    ),
)
"""Part of a function's name, what is known of it, and what helps there.

Source: uv__server_io, src/unix/stream.c; _accept_connection, Lib/asyncio/selector_events.py.
"""


def _runtime_fixes(caller: AcceptCaller | None) -> tuple[Fix, ...]:
    if caller is None:
        return ()
    return tuple(fix for function, _, fix in _KNOWN_CALLERS if function in caller.function)


def _syscalls_text(signs: Signs, pid: int, since_s: float, until_s: float) -> str:
    """The system calls that it makes most, where they were counted; '' otherwise."""
    counts = _calls_of(signs, pid, (since_s, until_s))["event_count"]
    counts = counts.sort_values(ascending=False)
    total = float(counts.sum())
    if not total:
        return ""
    most = [
        f"{name} {100 * count / total:.0f} %"
        for name, count in counts.head(3).items()
        if count >= 0.01 * total
    ]
    return f" Its system calls: {', '.join(most)}."
