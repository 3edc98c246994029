"""A finished run as OpenMetrics: for a dashboard, a textfile collector, an alert in CI."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from analysis.frames.message_times import QUANTILES
from analysis.ladder.ladder import Rung
from analysis.summary import Summary
from reports.exports.openmetrics_text import Family, exposition

_WHO = ("role", "worker", "pid")
# Units of the ladder as OpenMetrics writes them. What is only counted has the unit "items".
_UNITS = {"count": ("items", 1.0), "pct": ("ratio", 0.01), "s": ("seconds", 1.0)}


def to_openmetrics(summary: Summary) -> str:
    """Verdict, counts, phases, ladder, errors, processes and probes of a run.

    Times are seconds since the ramp began. What was not measured has no sample.

    Args:
        summary: The run, understood.
    """
    return exposition(
        [
            *_of_verdict(summary),
            *_of_ladder(summary.ladder),
            *_of_phases(summary.phases),
            *_of_errors(summary),
            *_of_processes(summary.processes),
            *_of_memory(summary),
            *_of_messages(summary),
            *_of_probes(summary.probe_health),
        ]
    )


def _gauge(name: str, unit: str, text: str) -> Family:
    return Family(f"connscope_{name}", "gauge", unit, text)


def _counter(name: str, unit: str, text: str) -> Family:
    return Family(f"connscope_{name}", "counter", unit, text)


def _of_verdict(summary: Summary) -> Iterator[Family]:
    run, verdict, manifest = summary.run, summary.verdict, summary.manifest
    info = _gauge("run_info", "", "Always 1; its labels name the run.")
    info.add(
        1,
        {
            "run_id": run.get("id", ""),
            "name": manifest.get("name", ""),
            "status": run.get("status", ""),
            "tool_version": manifest.get("tool_version", ""),
        },
    )
    said = _gauge("verdict_info", "", "Always 1; its labels are the verdict.")
    said.add(
        1,
        {
            "cause": verdict.cause,
            "side": verdict.side,
            "confidence": verdict.confidence,
            "sentence": verdict.sentence,
        },
    )
    reached = _gauge("verdict_reached", "", "1 when the target was reached, else 0.")
    reached.add(float(verdict.cause == "reached"))
    at_count = _gauge("verdict_connections", "", "Connections open when the limit was met.")
    at_count.add(verdict.at_connections)
    at_s = _gauge("verdict_time_seconds", "seconds", "When it was met, since the ramp began.")
    at_s.add(verdict.at_s)
    yield from (info, said, reached, at_count, at_s)
    for word, text in (
        ("target", "Connections asked for."),
        ("peak", "Most connections open at once."),
        ("held", "Connections open when the run began to stop."),
        ("failed", "Connections that never were established."),
        ("lost", "Established connections that ended before the stop."),
    ):
        family = _gauge(f"{word}_connections", "", text)
        family.add(run.get(f"{word}_connections"))
        yield family
    finding = _gauge("finding_first_seconds", "seconds", "When each finding began.")
    for found in summary.findings:
        subject = {"role": found.subject.role, "worker": found.subject.worker}
        labels = {"cause": found.cause, "severity": found.severity, "side": found.side}
        finding.add(found.first_s, {**labels, **subject, "pid": found.subject.pid})
    yield finding


def _of_messages(summary: Summary) -> Iterator[Family]:
    messages = summary.run.get("messages") or {}
    took = _gauge("message_time_seconds", "seconds", "From due to answered, by quantile.")
    for name, share in QUANTILES.items():
        took.add(_scaled(messages.get(name), 1e-3), {"quantile": f"{share:g}"})
    took.add(_scaled(messages.get("longest_ms"), 1e-3), {"quantile": "1"})
    sent = _counter("messages_sent", "", "Messages that the clients sent.")
    sent.add(messages.get("sent_count"))
    answered = _counter("messages_answered", "", "Answers that they read.")
    answered.add(messages.get("answered_count"))
    yield from (took, sent, answered)


def _of_ladder(rungs: list[Rung]) -> Iterator[Family]:
    capacity: dict[str, Family] = {}
    used: dict[str, Family] = {}
    share = _gauge("limit_used_share_ratio", "ratio", "Use at the peak by capacity.")
    wall = _gauge("limit_predicted_connections", "", "Connections at which the limit is met.")
    met = _gauge("limit_met", "", "1 when the run was at this limit, else 0.")
    for rung in rungs:
        labels = {"limit": rung.limit, "scope": rung.scope, "subject": rung.subject}
        unit, factor = _UNITS.get(rung.unit, (rung.unit or "items", 1.0))
        text = f"Where the limit is, in {unit}."
        family = capacity.setdefault(unit, _gauge(f"limit_capacity_{unit}", unit, text))
        family.add(_scaled(rung.capacity, factor), labels)
        text = f"Use when most connections were open, in {unit}."
        family = used.setdefault(unit, _gauge(f"limit_used_{unit}", unit, text))
        family.add(_scaled(rung.used_at_peak, factor), labels)
        if rung.capacity and rung.used_at_peak is not None:
            share.add(rung.used_at_peak / rung.capacity, labels)
        wall.add(rung.predicted_connections, labels)
        met.add(float(rung.met), labels)
    yield from (*capacity.values(), *used.values(), share, wall, met)


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def _of_phases(phases: pd.DataFrame) -> Iterator[Family]:
    duration = _gauge("phase_duration_seconds", "seconds", "Length of each phase.")
    rate = _gauge("phase_established_per_second", "", "Handshakes per second, mean of the phase.")
    cpu = _gauge("phase_cpu_ratio", "ratio", "Mean CPU by side; 1 is one full core.")
    host = _gauge("phase_host_cpu_ratio", "ratio", "Mean CPU of the host; 1 is all its cores.")
    for row in phases.to_dict("records"):
        phase = {"phase": row["phase"]}
        duration.add(float(row["duration_s"]), phase)
        rate.add(float(row["established_per_s"]), phase)
        for side in ("server", "client", "probe"):
            cpu.add(float(row[f"{side}_cpu_pct"]) / 100, {**phase, "side": side})
        host.add(float(row["host_cpu_pct"]) / 100, phase)
    yield from (duration, rate, cpu, host)


def _of_errors(summary: Summary) -> Iterator[Family]:
    tables = (
        (_counter("errors", "", "Failed system calls."), summary.errors,
         ("side", *_WHO, "syscall", "errno_name", "source", "benign"), "event_count"),
        (_counter("connection_failures", "", "Connections that failed or were lost."),
         summary.connection_failures, ("client", "stage", "errno_name", "close_kind"),
         "connection_count"),
        (_counter("packet_drops", "", "Packets that the kernel dropped."), summary.drops,
         ("reason", "location", "benign"), "event_count"),
        (_counter("tcp_resets", "", "RST segments."), summary.resets,
         ("direction", "side", "state", "reason"), "event_count"),
        (_counter("tcp_retransmits", "", "Segments sent again."), summary.retransmits,
         ("side", "state"), "event_count"),
    )  # fmt: skip
    for family, frame, labels, value in tables:
        _rows(family, frame, labels, value)
        yield family


def _of_processes(processes: pd.DataFrame) -> Iterator[Family]:
    gauges = (
        ("process_peak_connections", "", "Most connections open at once.", "peak_open_count"),
        ("process_max_fds", "", "RLIMIT_NOFILE of the process.", "nofile_soft_count"),
        ("process_peak_resident_memory_bytes", "bytes", "Most resident memory.", "peak_rss_bytes"),
    )
    for name, unit, text, column in gauges:
        family = _gauge(name, unit, text)
        _rows(family, processes, _WHO, column)
        yield family
    fds = _gauge("process_peak_fds", "", "Most descriptors open at once.")
    _rows(fds, processes[processes["peak_fd_count"] >= 0], _WHO, "peak_fd_count")
    yield fds
    cpu = _counter("process_cpu_seconds", "seconds", "Processor time of the run by mode.")
    for row in processes.to_dict("records"):
        for mode in ("user", "system"):
            labels = {**{name: row[name] for name in _WHO}, "mode": mode}
            cpu.add(float(row[f"cpu_{mode}_s"]), labels)
    yield cpu


def _of_memory(summary: Summary) -> Iterator[Family]:
    family = _gauge("memory_per_connection_bytes", "bytes", "Memory of one connection.")
    columns = ("component", "kind", "side")
    _rows(family, summary.memory_per_connection, columns, "bytes_per_connection")
    yield family


def _of_probes(health: pd.DataFrame) -> Iterator[Family]:
    ran = _gauge("probe_ran", "", "1 when the probe ran to the end, else 0.")
    for row in health.to_dict("records"):
        ran.add(float(row["state"] == "ran"), {"probe": row["probe"], "state": row["state"]})
    lost = _counter("probe_lost_events", "", "Events that the probe saw and did not record.")
    _rows(lost, health, ("probe",), "lost_count")
    seen = _counter("probe_seen_events", "", "Events that the probe saw, those that it lost too.")
    _rows(seen, health[health["seen_count"] >= 0], ("probe",), "seen_count")
    yield from (ran, lost, seen)


def _rows(family: Family, frame: pd.DataFrame, labels: tuple[str, ...], value: str) -> None:
    for row in frame.to_dict("records"):
        family.add(float(row[value]), {name: _label(row[name]) for name in labels})


def _label(value: object) -> object:
    return str(value).lower() if isinstance(value, bool) else value
