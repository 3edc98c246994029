"""The hot worker: CPU by worker, flame graph, system calls, event loop, all processes."""

from __future__ import annotations

from typing import Any

import pandas as pd

from analysis.stacks.runtime_frames import naming_advice, runtime_of
from reports.elements import formatting
from reports.elements.flamegraph import build_tree, flame_data, self_counts
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
from reports.figures.processes import plot_per_process
from reports.sections.before import before_part
from reports.sections.view import View

MAX_FUNCTIONS = 15
ALIKE_SHARE = 0.8  # siblings with that part of the hot worker's CPU are as hot


def hot_section(view: View) -> dict[str, Any]:
    """CPU by worker, the hot worker, its flame graph, its syscalls, its event loop."""
    s = view.summary
    hot = s.hot_worker
    title = "Was one worker hotter than the others?"
    lead = "No worker was hot: none stood out from its siblings or kept a core busy."
    if hot is not None:
        name = process_name(str(hot["role"]), int(hot["worker"]), int(hot["pid"]))
        others_pct = float(hot["others_cpu_pct"])
        is_alone = not formatting.is_known(others_pct)
        alike = others_pct > ALIKE_SHARE * float(hot["cpu_pct"])
        answer = "No, all were alike" if alike else "It has no siblings" if is_alone else "Yes"
        beside = "" if is_alone else f", its siblings {formatting.percent(others_pct)} (median)"
        lead = (
            f"{answer}: {name} used "
            f"{formatting.percent(float(hot['cpu_pct']))} of a core from "
            f"{formatting.moment(float(hot['since_s']))} to "
            f"{formatting.moment(float(hot['until_s']))} "
            f"({formatting.percent(float(hot['system_pct']))} in the kernel){beside}."
        )
        if hot.get("is_ramp_only"):
            lead += " Connections were opened meanwhile, as fast as it made them."
        if hot.get("top_function"):
            lead += (
                f" {formatting.percent(float(hot['top_share_pct']))} of its samples are in "
                f"{hot['top_function']}."
            )
        if hot.get("threads"):
            thread = hot["threads"][0]
            lead += (
                f" {formatting.percent(float(thread['share_pct']))} of its CPU samples are on its "
                f"{thread['label']}."
            )
    cpu = Part("hot-cpu", title, lead)
    servers = s.worker_cpu[s.worker_cpu["side"] == "server"]
    if servers.empty:
        cpu.lead = ""
        cpu.empty = view.why_empty("process_samples", otherwise="No worker lived long enough.")
    else:
        cpu.charts.append(
            view.chart(
                "cpu-chart",
                title,
                "CPU of each server worker, user and system, per cent of one core.",
                lead,
                lambda width_pt: plot_per_process(
                    servers,
                    "cpu_pct",
                    key="worker",
                    noun="worker",
                    plural="workers",
                    highlight=int(hot["worker"]) if hot else None,
                    format_tick=lambda value, _: f"{value:g} %",
                    time=view.time,
                    width_pt=width_pt,
                    at_least=100.0,
                ),
            )
        )
    return {
        "parts": [cpu],
        "flame": _flame(view),
        "more": [
            before_part(view),
            _threads_part(view),
            _syscalls_part(view),
            _loop_part(view),
            _processes_part(view),
        ],
    }


def _flame(view: View) -> dict[str, Any]:
    s = view.summary
    data = flame_data(s.flame_stacks, process_name)
    if data is None:
        return {
            "data": None,
            "tables": [],
            "empty": view.why_empty(
                "python_stacks", "cpu_stacks", otherwise="The probes ran but caught no sample."
            ),
        }
    lacking = [
        f"{name}: {view.why_empty(table, otherwise='no sample was caught.')}"
        for source, table, name in (
            ("python", "python_stacks", "No Python stacks"),
            ("native", "cpu_stacks", "No native and kernel stacks"),
        )
        if not any(source in process for process in data["processes"])
        and not (source == "python" and _is_no_python(s.flame_stacks))
    ]
    lacking += _naming_notes(data["processes"], s.flame_stacks)
    first = data["processes"][0]
    tables = [
        table
        for source in ("python", "native")
        if (table := _functions_table(s.flame_stacks, first, source)) is not None
    ]
    return {"data": data, "tables": tables, "empty": "", "lacking": lacking}


def _is_no_python(stacks: pd.DataFrame) -> bool:
    """Whether the servers are of another runtime, so that nobody expects Python stacks."""
    servers = stacks[(stacks["source"] == "native") & (stacks["role"] != "client")]
    return runtime_of(servers["stack"]) not in ("", "python")


def _naming_notes(processes: list[dict[str, Any]], stacks: pd.DataFrame) -> list[str]:
    """What would name frames that have none, one line for each kind of runtime."""
    native = stacks[(stacks["source"] == "native") & (stacks["role"] != "client")]
    labels = {process["pid"]: process["label"] for process in processes}
    found: dict[str, list[str]] = {}
    for pid, rows in native.groupby("pid", sort=True):
        advice = naming_advice(zip(rows["stack"], rows["sample_count"], strict=True))
        if advice is not None:
            found.setdefault(advice.sentence, []).append(labels.get(pid, f"pid {pid}"))
    return [
        f"{names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}: {sentence}."
        for sentence, names in found.items()
    ]


def _functions_table(stacks: pd.DataFrame, process: dict[str, Any], source: str) -> Table | None:
    part = stacks[(stacks["pid"] == process["pid"]) & (stacks["source"] == source)]
    if part.empty:
        return None
    rows = zip(part["stack"], part["sample_count"], part["in_failure_window"], strict=True)
    root = build_tree(((str(t), int(n), bool(w)) for t, n, w in rows), "")
    counts = self_counts(root)
    frame = pd.DataFrame(
        [(name, own, total) for name, (own, total) in counts.items()],
        columns=["function", "own", "total"],
    ).sort_values(["own", "total"], ascending=False)
    whole = float(max(root.total_count, 1))
    frame = (
        frame[frame["own"] > 0]
        .head(MAX_FUNCTIONS)
        .assign(
            own_pct=lambda f: f["own"] / whole * 100, total_pct=lambda f: f["total"] / whole * 100
        )
    )
    kind = "Python" if source == "python" else "Runtime, native and kernel"
    unit = f"% of {root.total_count:,} samples"
    return table_of(
        f"functions-{source}",
        f"{kind} functions that {process['label']} spent most in",
        frame,
        [
            text_column("Function", "function", is_code=True),
            number_column("Itself", "own_pct", unit, formatting.percent, share_of=100.0),
            number_column("With callees", "total_pct", unit, formatting.percent),
        ],
    )


def _threads_part(view: View) -> Part:
    part = Part("threads", "Which of its threads was hot?")
    hot = view.summary.hot_worker
    if hot is None or not hot.get("threads"):
        part.empty = view.why_empty(
            "cpu_stacks",
            otherwise="No worker was hot." if hot is None else "No sample of it was caught.",
        )
        return part
    name = process_name(str(hot["role"]), int(hot["worker"]), int(hot["pid"]))
    part.tables.append(
        table_of(
            "threads-table",
            f"Threads of {name}",
            pd.DataFrame(hot["threads"]).astype({"tid": "str"}),
            [
                text_column("Thread", "kind"),
                text_column("Name", "thread", is_code=True),
                text_column("Id", "tid", is_code=True),
                number_column(
                    "CPU", "share_pct", "% of its samples", formatting.percent, share_of=100.0
                ),
                text_column("Mostly in", "function", is_code=True),
            ],
        )
    )
    return part


def _syscalls_part(view: View) -> Part:
    s = view.summary
    part = Part("syscalls", "Which system calls did the hot worker make?")
    if s.syscall_mix.empty:
        part.empty = view.why_empty(
            "syscall_mix",
            otherwise="No worker was hot for long enough, so none was watched this closely.",
        )
        return part
    frame = s.syscall_mix.sort_values("events_per_s", ascending=False)
    top = float(frame["events_per_s"].max())
    if frame["pid"].nunique() == 1:
        part.lead = (
            "Only the hottest process was counted call by call: it has no idle sibling. --probes "
            "full counts all, and is slower. Which of their calls failed is under Errors."
        )
    else:
        part.lead = (
            "The hottest process beside idle siblings. A call that only the hot one makes, or "
            "makes far more often, is what it is busy with."
        )
    part.tables.append(
        table_of(
            "syscalls-table",
            "System calls by process",
            frame,
            [
                process_column(),
                text_column("System call", "syscall", is_code=True),
                number_column(
                    "Rate", "events_per_s", "per s while watched", share_of=max(top, 1.0)
                ),
                number_column("Calls", "event_count", "while watched"),
                number_column("Failed", "failed_count", "of them"),
            ],
        )
    )
    return part


def _loop_part(view: View) -> Part:
    s = view.summary
    part = Part("loop", "Did an event loop stand still?")
    frame = s.loop_lag[s.loop_lag["role"] == "server"] if not s.loop_lag.empty else s.loop_lag
    if frame.empty:
        part.empty = view.why_empty("live_samples", otherwise="The workers reported no turn.")
        return part
    longest = frame.iloc[int(frame["max_lag_ms"].to_numpy().argmax())]
    who = process_name(str(longest["role"]), int(longest["worker"]), int(longest["pid"]))
    part.lead = (
        f"The longest turn of an event loop took "
        f"{formatting.seconds(float(longest['max_lag_ms']) / 1e3)}, in {who}, "
        f"{formatting.moment(float(longest['at_s']))} {view.words.after_it}."
    )
    part.charts.append(
        view.chart(
            "loop-chart",
            "Did an event loop stand still?",
            "Longest turn of each worker's event loop between two samples, milliseconds.",
            part.lead,
            lambda width_pt: plot_per_process(
                frame,
                "max_lag_ms",
                key="worker",
                noun="worker",
                plural="workers",
                highlight=int(longest["worker"]),
                format_tick=lambda value, _: f"{value:g} ms",
                time=view.time,
                width_pt=width_pt,
            ),
        )
    )
    return part


def _processes_part(view: View) -> Part:
    s = view.summary
    part = Part("processes", "What did each process reach?")
    if s.processes.empty:
        part.empty = "No process of the fleet reported for work."
        return part

    def ended(row: dict[str, Any]) -> Cell:
        if int(row["exit_signal"]) > 0:
            return Cell(f"killed by signal {int(row['exit_signal'])}", tone="bad")
        if formatting.is_known(float(row["exited_s"])) and int(row["exit_status"]) >= 0:
            tone = "bad" if int(row["exit_status"]) else ""
            return Cell(f"exit status {int(row['exit_status'])}", tone=tone)
        return Cell("stopped by the run")

    def descriptors(row: dict[str, Any]) -> Cell:
        peak, limit = float(row["peak_fd_count"]), float(row["nofile_soft_count"])
        share = peak / limit if limit > 0 and peak >= 0 else None
        tone = "bad" if share is not None and share >= 1 else ""
        if limit <= 0:  # of supervisor and probes no limit is recorded
            return Cell(formatting.count(peak), peak)
        return Cell(f"{formatting.count(peak)} of {formatting.count(limit)}", peak, share, tone)

    watched = view.is_watched
    of_clients = [
        number_column("Failed", "failed_total", "attempts"),
        number_column("Lost", "lost_total", "connections"),
    ]
    of_ramp = [
        number_column("CPU in the ramp", "ramp_cpu_pct", "% of a core, mean", formatting.percent)
    ]
    part.tables.append(
        table_of(
            "processes-table",
            view.words.processes,
            s.processes,
            [
                process_column(),
                number_column("Connections", "peak_open_count", "open at its peak"),
                *([] if watched else of_clients),
                (Heading("Descriptors", "open at its peak", is_number=True), descriptors),
                number_column("Memory", "peak_rss_bytes", "RSS at its peak", formatting.size),
                *([] if watched else of_ramp),
                number_column(
                    view.words.hold_cpu, "hold_cpu_pct", "% of a core, mean", formatting.percent
                ),
                (Heading("End"), ended),
            ],
        )
    )
    return part
