"""The story: connections, errors, CPU, memory and events on one time axis; who filled first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from reports.elements import formatting, style
from reports.elements.tables import (
    Cell,
    Heading,
    Part,
    Table,
    number_column,
    process_column,
    process_name,
    table_of,
    text_column,
)
from reports.figures.latency import plot_latency
from reports.figures.processes import plot_per_process
from reports.figures.story import plot_story
from reports.sections.view import CLIENTS_ELSEWHERE, View
from reports.terminal.terminal import message_sentence

MAX_MARKS = 12
MIN_BINS = 4  # fewer points than that are read more easily from the table
# What people call an event of the run (harness/supervision/supervisor.py,
# probes/collect/collector.py).
_MOMENT_WORDS = {
    "first_failure": "first failure",
    "port_pool_full": "port pool full",
    "process_exited": "process ended",
    "hot_worker": "process became hot",
    "hot_worker_cooled": "no process hot any more",
    "stalled": "no progress",
    "interrupted": "interrupted",
    "upgrade_refused": "upgrade refused",
    "connection_closed": "closed by the server",
}


def story_section(view: View) -> dict[str, Any]:
    """Connections, errors, CPU, memory and events on one time axis, by client and by worker."""
    s = view.summary
    loud = s.moments
    marks = [
        (float(at_s), str(number))
        for number, at_s in enumerate(loud["at_s"].head(MAX_MARKS), start=1)
    ]
    overview = Part("story-all", "What came first?")
    if s.connections_over_time.empty and s.worker_cpu.empty:
        overview.empty = view.why_empty(
            "process_samples", otherwise="No connection was attempted before the run ended."
        )
    else:
        hot_pid = int(s.hot_worker["pid"]) if s.hot_worker else None
        overview.charts.append(
            view.chart(
                "story-chart",
                "What came first?",
                " ".join(
                    (
                        "One time axis for all panels.",
                        "" if loud.empty else "Dashed lines are the numbered events below.",
                        "The shaded seconds are around the first failures." if _window(s) else "",
                    )
                ),
                _story_label(view),
                lambda width_pt: plot_story(
                    s.connections_over_time,
                    s.errors_over_time,
                    s.worker_cpu,
                    s.host_cpu,
                    s.memory_over_time,
                    target_connections=int(s.run.get("target_connections") or 0),
                    hot_pid=hot_pid,
                    time=view.time,
                    marks=marks,
                    width_pt=width_pt,
                ),
            )
        )
        if loud.empty:
            overview.lead = (
                "Nothing but the phases of the run: no failure, no full pool, no process that "
                "ended or ran hot."
            )
        else:
            overview.lead = _first_sentence(view, loud)
            overview.tables.append(_events_table(view, loud))
        overview.tables.append(_phases_table(view, s.phases.sort_values("start_s")))
    parts = [overview, _workers_part(view), _clients_part(view), _latency_part(view)]
    messages = view.summary.run.get("messages")
    return {"parts": [*parts, *([_messages_part(view, messages)] if messages else [])]}


def _window(summary: Any) -> bool:
    return summary.failure_window_s is not None


def _story_label(view: View) -> str:
    run = view.summary.run
    failed = formatting.count(run.get("failed_connections") or 0)
    if view.is_watched:
        return (
            f"Time series over {formatting.seconds(view.end_s)}: up to "
            f"{formatting.count(run.get('peak_connections'))} connections open in the watched "
            "processes. Below: new connections per second, errors per second, CPU per worker, "
            "memory. The table of phases has the numbers."
        )
    return (
        f"Time series over {formatting.seconds(view.end_s)}: open connections rise to "
        f"{formatting.count(run.get('peak_connections'))} of "
        f"{formatting.count(run.get('target_connections'))}; {failed} attempts failed. "
        "Below: new connections per second, errors per second, CPU per worker, memory. "
        "The table of phases has the numbers."
    )


def _first_sentence(view: View, loud: pd.DataFrame) -> str:
    first = loud.iloc[0]
    who = ""
    if int(first["pid"]) > 0:
        name = process_name(str(first["role"]), int(first["worker"]), int(first["pid"]))
        who = f" in {name}"
    return (
        f"First, {formatting.moment(float(first['at_s']))} {view.words.after_it}: "
        f"{_moment_words(str(first['moment']))}{who} ({first['detail']})."
    )


def _moment_words(moment: str) -> str:
    return _MOMENT_WORDS.get(moment, moment.replace("_", " "))


def _events_table(view: View, loud: pd.DataFrame) -> Table:
    numbered = loud.assign(number=range(1, len(loud) + 1))
    return table_of(
        "events-table",
        "Events, earliest first",
        numbered,
        [
            number_column("No.", "number", "in the chart"),
            number_column("When", "at_s", view.words.after_it, formatting.moment),
            (Heading("Event"), lambda r: Cell(_moment_words(str(r["moment"])))),
            process_column_or_host(),
            text_column("Detail", "detail"),
        ],
    )


def process_column_or_host() -> tuple[Heading, Any]:
    """Like process_column, with 'the run' where no process is meant."""
    heading, make = process_column()
    return heading, lambda row: make(row) if int(row["pid"]) > 0 else Cell("the run")


def _phases_table(view: View, phases: pd.DataFrame) -> Table:
    of_clients = [
        number_column("Failed", "failed_count", "in the phase"),
        number_column("Client CPU", "client_cpu_pct", "% of a core, sum", formatting.percent),
    ]
    if view.is_watched:
        of_clients = []
    return table_of(
        "phases-table",
        "Phases",
        phases,
        [
            text_column("Phase", "phase"),
            number_column("Began", "start_s", view.words.after_it, formatting.moment),
            number_column("Lasted", "duration_s", "", formatting.seconds),
            number_column("Established", "established_count", "in the phase"),
            number_column("Rate", "established_per_s", "per s, mean"),
            *of_clients[:1],
            number_column("Open", "open_count", "at its end"),
            number_column("Server CPU", "server_cpu_pct", "% of a core, sum", formatting.percent),
            *of_clients[1:],
            number_column("Probe CPU", "probe_cpu_pct", "% of a core", formatting.percent),
            number_column("Host CPU", "host_cpu_pct", "% of all cores", formatting.percent),
        ],
    )


def _workers_part(view: View) -> Part:
    s = view.summary
    part = Part("workers", "Which worker filled first?")
    frame = s.worker_connections
    if frame.empty:
        part.empty = view.why_empty("live_samples", otherwise="No worker reported a connection.")
        return part
    servers = frame[frame["role"] == "server"]
    peaks = servers.groupby("worker")["open_count"].max()
    hot = int(s.hot_worker["worker"]) if s.hot_worker else None
    part.lead = _who_filled(view, servers, peaks)
    part.charts.append(
        view.chart(
            "workers-chart",
            "Which worker filled first?",
            "Connections open in each server worker, sampled from shared memory.",
            part.lead,
            lambda width_pt: plot_per_process(
                servers,
                "open_count",
                key="worker",
                noun="worker",
                plural="workers",
                highlight=hot,
                format_tick=style.thousands,
                time=view.time,
                width_pt=width_pt,
            ),
        )
    )
    return part


def _who_filled(view: View, servers: pd.DataFrame, peaks: pd.Series[int]) -> str:
    """Who was full when: the answer in words, by the samples (four a second)."""
    fullest, emptiest = int(peaks.max()), int(peaks.min())
    if len(peaks) == 1:
        return f"There was one worker; it held {fullest:,} connections at its peak."
    alike = emptiest == fullest
    held = f"{fullest:,} connections each" if alike else f"{emptiest:,} to {fullest:,} connections"
    text = f"At their own peaks the {len(peaks)} workers held {held}."
    at_peak = servers["open_count"] >= 0.99 * servers["worker"].map(peaks)
    reached = servers[at_peak & (servers["open_count"] > 0)].groupby("worker")["at_s"].min()
    if len(reached) < 2:
        return text
    first_s, last_s = float(reached.min()), float(reached.max())
    if last_s - first_s < 0.2:
        return f"{text} They filled together: no sample shows one before another."
    return (
        f"{text} First to be at its peak was worker {reached.idxmin()}, "
        f"{formatting.moment(first_s)} {view.words.after_it}; last was worker {reached.idxmax()}, "
        f"after {formatting.moment(last_s)}."
    )


def _clients_part(view: View) -> Part:
    s = view.summary
    part = Part("clients", "Did every client get its share?")
    frame = s.connections_over_time
    clients = frame[frame["client"] >= 0]
    if clients.empty:
        part.empty = "No connection was attempted before the run ended."
        if view.is_watched:
            part.empty = CLIENTS_ELSEWHERE
        return part
    peaks = clients.groupby("client")["open_count"].max()
    low, high = int(peaks.min()), int(peaks.max())
    held = f"{low:,} to {high:,} connections" if low < high else f"{high:,} connections each"
    part.lead = (
        f"There was one client; it had {high:,} connections open at its peak."
        if len(peaks) == 1
        else f"At their own peaks the {len(peaks)} clients had {held} open."
    )
    failed = clients.groupby("client")["failed_total"].max()
    worst = int(str(failed.idxmax())) if float(failed.max()) > 0 else int(str(peaks.idxmin()))
    part.charts.append(
        view.chart(
            "clients-chart",
            "Did every client get its share?",
            "Connections open in each client process, from the connection records. "
            "Set apart: the client with most failures, else with fewest connections.",
            part.lead,
            lambda width_pt: plot_per_process(
                clients,
                "open_count",
                key="client",
                noun="client",
                plural="clients",
                highlight=worst,
                format_tick=style.thousands,
                time=view.time,
                width_pt=width_pt,
                colour=style.GREEN,
            ),
        )
    )
    return part


def _latency_part(view: View) -> Part:
    s = view.summary
    part = Part("latency", "Did connecting get slower as it filled?")
    if s.latency.empty:
        part.empty = "No connection was established, so there is no time to show."
        if view.is_watched:
            part.empty = CLIENTS_ELSEWHERE
        return part
    questions = {
        "connect": ("How long did TCP connect take?", "From connect(2) to TCP established"),
        "handshake": (
            "How long did the WebSocket handshake take?",
            "From TCP established to the 101 response",
        ),
    }
    for kind, (question, window) in questions.items():
        frame = s.latency[s.latency["kind"] == kind]
        if len(frame) < MIN_BINS:  # no chart where a number serves
            continue
        slowest = float(frame["p99_ms"].max())
        label = (
            f"{question} The highest 99th percentile was {formatting.significant(slowest)} ms, "
            f"the highest median {formatting.significant(float(frame['p50_ms'].max()))} ms."
        )
        part.charts.append(
            view.chart(
                f"latency-{kind}",
                question,
                f"{window}, milliseconds, per bin of the ramp, as the clients saw it.",
                label,
                lambda width_pt, frame=frame: plot_latency(  # type: ignore[misc]  # bound now, not when drawn
                    frame,
                    time=view.time,
                    width_pt=width_pt,
                ),
            )
        )
    if len(s.latency_totals):
        part.tables.append(_latency_table(s.latency_totals))
    return part


def _messages_part(view: View, messages: Mapping[str, Any]) -> Part:
    part = Part("messages", "How long did a message take?")
    frame = view.summary.message_times
    said = message_sentence(messages)
    part.lead = f"{said[0].upper()}{said[1:]}."
    if len(frame) < MIN_BINS:
        return part
    question = "How long did a message take, second by second?"
    slowest = formatting.significant(float(frame["p99_ms"].max()))
    part.charts.append(
        view.chart(
            "message-times",
            question,
            "From when a message was due to be sent until its answer was read, milliseconds. What "
            "a client could not send in time counts as waiting.",
            f"{question} The highest 99th percentile of a second was {slowest} ms.",
            lambda width_pt: plot_latency(frame, time=view.time, width_pt=width_pt),
        )
    )
    return part


def _latency_table(totals: pd.DataFrame) -> Table:
    words = {"connect": "TCP connect", "handshake": "WebSocket handshake", "open": "both together"}

    def milliseconds(column: str, label: str) -> tuple[Heading, Any]:
        return number_column(
            label, column, "whole run", lambda value: formatting.seconds(value / 1e3)
        )

    return table_of(
        "latency-table",
        "Time to connect, whole run",
        totals,
        [
            (Heading("Step"), lambda r: Cell(words.get(str(r["kind"]), str(r["kind"])))),
            number_column("Connections", "connection_count", "measured"),
            milliseconds("p50_ms", "Median"),
            milliseconds("p90_ms", "90th percentile"),
            milliseconds("p99_ms", "99th percentile"),
            milliseconds("max_ms", "Longest"),
        ],
    )
