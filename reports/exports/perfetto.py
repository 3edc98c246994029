"""The run as a trace that ui.perfetto.dev and chrome://tracing load.

Chrome's Trace Event Format (JSON): processes as tracks with their life time, counters beside them,
phases as slices, errors, findings and what happened as instants. Time is CLOCK_MONOTONIC in
microseconds, so a trace that another tool took on this host meanwhile lines up with it.

Source: "Trace Event Format" (Google); how each is read: Perfetto's
src/trace_processor/importers/json.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from typing import Any

import pandas as pd

from analysis.document import json_safe
from analysis.evidence import Evidence, Finding, Subject
from analysis.summary import Summary
from reports.elements.formatting import quantity
from reports.exports.plain_text import encodable, one_line

RUN_PID = 4_194_304
"""Stands for the run itself: PID_MAX_LIMIT (include/linux/threads.h), which no process can have."""

_PHASES_TID, _FINDINGS_TID, _EVENTS_TID = 1, 2, 3
_RUN_TRACKS = {_PHASES_TID: "phases", _FINDINGS_TID: "findings", _EVENTS_TID: "events"}
_ORDER_OF_ROLE = {
    "server": 1,
    "acceptor": 2,
    "backend": 3,
    "client": 4,
    "probe": 5,
    "supervisor": 6,
}

Event = dict[str, Any]


def to_perfetto(summary: Summary) -> str:
    """The trace as JSON.

    Args:
        summary: The run, understood.
    """
    trace = _Trace(summary.origin_ns)
    known = _known_processes(summary)
    events = [
        *_names(known),
        *_phases(trace, summary.phases),
        *_life_times(trace, summary, set(known)),
        *_counters(trace, summary),
        *_errors(trace, summary.errors, set(known)),
        *_findings(trace, summary.findings),
        *_events(trace, summary.events, set(known)),
    ]
    events.sort(key=lambda event: event.get("ts", -math.inf))
    document = {
        "displayTimeUnit": "ms",
        "otherData": {
            "run": str(summary.run.get("id", "")),
            "verdict": summary.verdict.cause,
            "sentence": summary.verdict.sentence,
            "tool": f"connscope {summary.manifest.get('tool_version', '')}".strip(),
        },
        "traceEvents": events,
    }
    return json.dumps(_clean(document), ensure_ascii=False, allow_nan=False) + "\n"


class _Trace:
    """Makes events; a moment that is not known makes none."""

    def __init__(self, origin_ns: int) -> None:
        self._origin_ns = origin_ns

    def _us(self, at_s: float) -> float:
        return round((self._origin_ns + at_s * 1e9) / 1e3, 3)

    def slice(
        self, name: str, pid: int, tid: int, span_s: tuple[float, float], **args: Any
    ) -> Iterator[Event]:
        start_s, end_s = span_s
        if math.isfinite(start_s) and math.isfinite(end_s):
            duration_us = round(max(0.0, end_s - start_s) * 1e6, 3)
            at = {"ts": self._us(start_s), "dur": duration_us}
            yield {"ph": "X", "name": name, "pid": pid, "tid": tid, **at, "args": args}

    def instant(self, name: str, pid: int, tid: int, at_s: float, **args: Any) -> Iterator[Event]:
        if math.isfinite(at_s):
            where = {"pid": pid, "tid": tid, "s": "t"}
            yield {"ph": "i", "name": name, "ts": self._us(at_s), **where, "args": args}

    def counter(self, name: str, unit: str, pid: int, at_s: float, value: float) -> Iterator[Event]:
        """Perfetto names the track by both, ``name unit``."""
        if math.isfinite(at_s) and math.isfinite(value):
            args = {unit: value}
            yield {"ph": "C", "name": name, "pid": pid, "ts": self._us(at_s), "args": args}


def _known_processes(summary: Summary) -> dict[int, tuple[str, int]]:
    """Role and number by pid, of all processes that any table knows."""
    frames = (summary.processes, summary.worker_cpu, summary.worker_connections)
    known: dict[int, tuple[str, int]] = {}
    for frame in frames:
        each = frame[["pid", "role", "worker"]].drop_duplicates("pid")
        for row in each.to_dict("records"):
            known.setdefault(int(row["pid"]), (str(row["role"]), int(row["worker"])))
    return known


def _names(known: dict[int, tuple[str, int]]) -> Iterator[Event]:
    yield _metadata("process_name", RUN_PID, 0, name="the run")
    yield _metadata("process_sort_index", RUN_PID, 0, sort_index=0)
    for tid, name in _RUN_TRACKS.items():
        yield _metadata("thread_name", RUN_PID, tid, name=name)
        yield _metadata("thread_sort_index", RUN_PID, tid, sort_index=tid)
    for pid, (role, worker) in known.items():
        name = str(Subject(role, pid, worker)).partition(" (pid")[0]
        order = 10_000 * _ORDER_OF_ROLE.get(role, 9) + max(0, worker)
        yield _metadata("process_name", pid, pid, name=one_line(name))
        yield _metadata("process_sort_index", pid, pid, sort_index=order)
        yield _metadata("thread_name", pid, pid, name="life and events")


def _metadata(kind: str, pid: int, tid: int, **args: Any) -> Event:
    return {"ph": "M", "name": kind, "pid": pid, "tid": tid, "args": args}


def _phases(trace: _Trace, phases: pd.DataFrame) -> Iterator[Event]:
    for row in phases.to_dict("records"):
        args = {name: row[name] for name in ("established_count", "failed_count", "open_count")}
        span_s = (float(row["start_s"]), float(row["end_s"]))
        yield from trace.slice(str(row["phase"]), RUN_PID, _PHASES_TID, span_s, **args)


def _life_times(trace: _Trace, summary: Summary, known: set[int]) -> Iterator[Event]:
    ends = [summary.duration_s, *summary.phases["end_s"].dropna()]
    end_s = max(float(end) for end in ends)
    columns = ("nofile_soft_count", "own_fds_count", "peak_open_count", "exit_status")
    for row in summary.processes.to_dict("records"):
        exited_s = float(row["exited_s"])
        span_s = (float(row["start_s"]), exited_s if math.isfinite(exited_s) else end_s)
        args = {name: row[name] for name in (*columns, "exit_signal")}
        pid = int(row["pid"])
        yield from trace.slice(str(row["role"]), pid, pid, span_s, **args)


def _counters(trace: _Trace, summary: Summary) -> Iterator[Event]:
    connections = summary.connections_over_time
    everybody = connections[connections["client"] == -1]
    yield from _series(trace, everybody, "connections", "open", "open_count")
    yield from _series(trace, everybody, "connections", "failed", "failed_total")
    yield from _series(trace, everybody, "connections", "lost", "lost_total")
    yield from _series(
        trace, _begun(everybody), "connections", "established per s", "established_per_s"
    )
    host = summary.host_cpu
    whole = _begun(host[host["core"] == -1])
    yield from _series(trace, whole, "CPU of the host", "%", "busy_pct")
    errors = summary.errors_over_time
    yield from _series(trace, _pulses(errors), "errors", "per s", "events_per_s")
    yield from _memory_counters(trace, summary)

    clients = summary.processes[summary.processes["role"] == "client"]
    pid_of = dict(zip(clients["worker"], clients["pid"], strict=True))
    of_clients = connections[connections["client"].isin(pid_of)]
    of_clients = of_clients.assign(pid=of_clients["client"].map(pid_of))
    for pid, rows in of_clients.groupby("pid"):
        yield from _series(trace, rows, "connections", "open", "open_count", int(str(pid)))
    for pid, rows in summary.worker_connections.groupby("pid"):
        yield from _series(trace, rows, "connections", "open", "open_count", int(str(pid)))
    for pid, rows in summary.worker_cpu.groupby("pid"):
        began = _begun(rows)
        yield from _series(trace, began, "CPU", "% of a core", "cpu_pct", int(str(pid)))
        yield from _series(
            trace, began, "CPU in the kernel", "% of a core", "system_pct", int(str(pid))
        )
        yield from _series(trace, rows, "resident memory", "bytes", "rss_bytes", int(str(pid)))
    for pid, rows in summary.loop_lag.groupby("pid"):
        yield from _series(trace, rows, "event loop lag", "ms", "lag_ms", int(str(pid)))
    for pid, rows in errors.groupby("pid"):
        pulses = _pulses(rows)
        yield from _series(trace, pulses, "errors", "per s", "events_per_s", int(str(pid)))


def _memory_counters(trace: _Trace, summary: Summary) -> Iterator[Event]:
    memory = summary.memory_over_time
    # Caches that never grew say nothing and would be tens of tracks.
    for _, rows in memory.groupby(["kind", "component"]):
        totals: pd.DataFrame = rows.groupby("at_s")["total_bytes"].sum().reset_index()
        if totals["total_bytes"].nunique() > 1:
            kind, component = str(rows["kind"].iloc[0]), str(rows["component"].iloc[0])
            what = component if component.startswith(kind) else f"{kind} {component}"
            name = f"memory, {what}"
            yield from _series(trace, totals, one_line(name), "bytes", "total_bytes")
    tcp = summary.tcp_mem_over_time
    yield from _series(trace, tcp, "tcp_mem", "pages", "tcp_mem_pages")
    yield from _series(trace, tcp, "open files", "of the host", "file_nr_count")


def _series(
    trace: _Trace, rows: pd.DataFrame, name: str, unit: str, column: str, pid: int = RUN_PID
) -> Iterator[Event]:
    for at_s, value in zip(rows["at_s"], rows[column], strict=True):
        yield from trace.counter(name, unit, pid, float(at_s), float(value))


def _begun(rows: pd.DataFrame) -> pd.DataFrame:
    """Rates moved to the start of their interval: a counter holds until its next value."""
    lengths_s = rows["at_s"].diff()
    first_s = float(lengths_s.median()) if len(rows) > 1 else 0.0
    return rows.assign(at_s=rows["at_s"] - lengths_s.fillna(first_s))


def _pulses(errors: pd.DataFrame) -> pd.DataFrame:
    """Rates that fall to 0 where the next interval has none, else the last would hold for ever."""
    summed: pd.DataFrame = (
        errors.groupby("at_s")[["event_count", "events_per_s"]].sum().reset_index()
    )
    summed = summed[summed["events_per_s"] > 0]
    length_s = summed["event_count"] / summed["events_per_s"]
    begun = summed.assign(at_s=summed["at_s"] - length_s)
    gap_s = begun["at_s"].shift(-1, fill_value=math.inf) - summed["at_s"]
    ended = summed[gap_s > length_s / 2].assign(events_per_s=0.0)
    return pd.concat([begun, ended]).sort_values("at_s", kind="stable", ignore_index=True)


def _errors(trace: _Trace, errors: pd.DataFrame, known: set[int]) -> Iterator[Event]:
    for row in errors[~errors["benign"].astype(bool)].to_dict("records"):
        pid, tid = _place(int(row["pid"]), known)
        name = f"first {row['errno_name']} of {row['syscall']}"
        args = {column: row[column] for column in ("side", "event_count", "last_s", "source")}
        yield from trace.instant(one_line(name), pid, tid, float(row["first_s"]), **args)


def _findings(trace: _Trace, findings: Iterable[Finding]) -> Iterator[Event]:
    for finding in findings:
        args = {
            "severity": finding.severity,
            "side": finding.side,
            "subject": str(finding.subject),
            "last_s": finding.last_s,
            "explanation": finding.explanation,
            **{_argument(e): quantity(e.value, e.unit) for e in finding.evidence},
            **{f"fix {n}": fix.command for n, fix in enumerate(finding.fix, 1)},
        }
        name = f"{finding.cause} ({finding.severity})"
        yield from trace.instant(name, RUN_PID, _FINDINGS_TID, finding.first_s, **args)


def _argument(evidence: Evidence) -> str:
    """What a number of a finding is called in its arguments: by id, so that queries find it."""
    return f"evidence: {evidence.id}" + (f" ({evidence.of})" if evidence.of else "")


def _events(trace: _Trace, events: pd.DataFrame, known: set[int]) -> Iterator[Event]:
    for row in events.to_dict("records"):
        pid, tid = _place(int(row["pid"]), known)
        name = one_line(str(row["event"]))
        yield from trace.instant(name, pid, tid, float(row["at_s"]), detail=str(row["detail"]))


def _place(pid: int, known: set[int]) -> tuple[int, int]:
    return (pid, pid) if pid in known else (RUN_PID, _EVENTS_TID)


def _clean(value: Any) -> Any:
    """Plain JSON values whose text every reader takes; NaN becomes null."""
    plain = json_safe(value)

    def walk(item: Any) -> Any:
        if isinstance(item, dict):
            return {encodable(key): walk(each) for key, each in item.items()}
        if isinstance(item, list):
            return [walk(each) for each in item]
        return encodable(item) if isinstance(item, str) else item

    return walk(plain)
