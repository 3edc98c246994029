"""From a recorded run to the formats that other tools read; nothing is written.

Imported when an export is asked for: pandas and pyarrow come with it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from analysis.document import document
from analysis.evidence import Subject
from analysis.frames.run_frames import load
from analysis.frames.run_view import RunView
from analysis.stacks.stack_samples import df_stack_samples
from analysis.summary import Summary, summarise
from probes.contract.errors import RunDirError, UsageError
from probes.contract.rundir import RunDir
from reports.exports.folded import to_folded
from reports.exports.markdown import to_markdown
from reports.exports.openmetrics import to_openmetrics
from reports.exports.perfetto import to_perfetto
from reports.exports.speedscope import to_speedscope
from reports.exports.tables import csv_files, parquet_files

_PROBES_OF_STACKS = ("python_stacks", "cpu_stacks")


@dataclass(frozen=True, slots=True)
class Choice:
    """Whose stacks of when; the default is everybody's of the whole run.

    Attributes:
        worker: Number of a server worker.
        pid: A process; at most one of the two is given.
        from_s: Seconds since the ramp began, None from the first sample.
        until_s: Likewise to the last one.
    """

    worker: int | None = None
    pid: int | None = None
    from_s: float | None = None
    until_s: float | None = None

    @property
    def window_s(self) -> tuple[float, float] | None:
        """The span, None for the whole run."""
        if self.from_s is None and self.until_s is None:
            return None
        start_s = float("-inf") if self.from_s is None else self.from_s
        return start_s, float("inf") if self.until_s is None else self.until_s


def export_text(run: RunDir, form: str, choice: Choice) -> str:
    """A run as one text.

    Args:
        run: The recording.
        form: html, json, md, openmetrics, perfetto, speedscope or folded.
        choice: For the last two.

    Raises:
        UsageError: The run has no such process, or no sample in that window.
        RunDirError: The recording cannot be read, or has no stacks at all.
    """
    if form in ("speedscope", "folded"):
        return _stacks(run, form, choice)
    return _OF_SUMMARY[form](summarise(load(run)))


def export_tables(run: RunDir, form: str) -> Iterator[tuple[str, bytes]]:
    """A run's tables as files: name and content of each.

    Args:
        run: The recording.
        form: csv or parquet.

    Raises:
        RunDirError: The recording cannot be read.
    """
    summary = summarise(load(run))
    yield from csv_files(summary) if form == "csv" else parquet_files(summary)


def _html(summary: Summary) -> str:
    from reports.page.page import render  # matplotlib

    return render(summary)


def _json(summary: Summary) -> str:
    return json.dumps(document(summary), indent=2) + "\n"


_OF_SUMMARY: dict[str, Callable[[Summary], str]] = {
    "html": _html,
    "json": _json,
    "md": to_markdown,
    "openmetrics": to_openmetrics,
    "perfetto": to_perfetto,
}


def _stacks(run: RunDir, form: str, choice: Choice) -> str:
    view = RunView(load(run))
    pid = _chosen_pid(view, choice)
    samples = df_stack_samples(view, pid=pid, window_s=choice.window_s)
    if samples.empty:
        _say_why_empty(run, view, pid)
    if form == "folded":
        return to_folded(samples)
    who = f", {view.subject(pid)}" if pid is not None else ""
    name = f"{view.manifest.get('run_id') or run.run_id}{who}"
    version = view.manifest.get("tool_version", "")
    return to_speedscope(samples, name=name, exporter=f"connscope@{version}")


def _chosen_pid(view: RunView, choice: Choice) -> int | None:
    if choice.worker is not None:
        pid = view.pid_of("server", choice.worker)
        if not pid:
            raise UsageError(
                f"--worker {choice.worker}: this run has no such worker",
                fix=f"choose one of {_listed(view, 'server')}, or a --pid",
            )
        return pid
    if choice.pid is not None and not (view.who["pid"] == choice.pid).any():
        raise UsageError(
            f"--pid {choice.pid}: this run has no such process",
            fix=f"choose one of {_listed(view, '')}",
        )
    return choice.pid


def _listed(view: RunView, role: str) -> str:
    who = view.who if not role else view.who[view.who["role"] == role]
    subjects = list(_subjects(who.to_dict("records")))
    shown = ", ".join(subjects[:8])
    return f"{shown}, ..." if len(subjects) > 8 else shown or "none: no process was recorded"


def _subjects(rows: list[dict[object, object]]) -> Iterator[str]:
    for row in rows:
        yield str(Subject(str(row["role"]), int(str(row["pid"])), int(str(row["worker"]))))


def _say_why_empty(run: RunDir, view: RunView, pid: int | None) -> None:
    everything = df_stack_samples(view)
    if everything.empty:
        health = view.frames["probe_health"]
        reasons = [
            f"{row['probe']}: {row['reason'] or row['state']}"
            for row in health[health["probe"].isin(_PROBES_OF_STACKS)].to_dict("records")
        ]
        raise RunDirError(
            f"{run.path} has no stack samples ({'; '.join(reasons) or 'no probe took any'})",
            fix="profile-doctor says what makes python_stacks and cpu_stacks run; then run again",
        )
    mine = everything if pid is None else everything[everything["pid"] == pid]
    if mine.empty:
        sampled = view.who[view.who["pid"].isin(everything["pid"])]
        names = ", ".join(_subjects(sampled.to_dict("records")[:8]))
        raise UsageError(f"{view.subject(pid or 0)} was not sampled", fix=f"choose one of {names}")
    raise UsageError(
        "no stack was sampled in that window",
        fix=f"--from and --until between 0 and {float(mine['at_s'].max()):.1f} "
        "(seconds since the ramp began)",
    )
