"""One run of a row: profile-run as a child with a deadline, and what it came to."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from analysis.matrix.matrix import Outcome
from harness.matrix.rows import MatrixRow
from harness.matrix.store import LOGS, ROWS
from probes.contract.errors import ToolkitError
from probes.contract.private_file import open_new
from probes.contract.rundir import REPORT

POLL_S = 0.1
INTERRUPT_GRACE_S = 20.0
"""profile-run ends a run of 120,000 connections 4 s after Ctrl-C, with its page."""

_HAS_VERDICT = (0, 3)


@dataclass(frozen=True, slots=True)
class ChildEnd:
    """How a child ended.

    Attributes:
        code: Exit code; negative for a signal.
        took_s: From its start.
        why: ``ended`` by itself, ``hung`` and was killed, or ``interrupted``.
    """

    code: int
    took_s: float
    why: str


def run_row(
    folder: Path,
    row: MatrixRow,
    repeat: int,
    label: str,
    should_stop: Callable[[], bool],
    tick: Callable[[str], None],
) -> Outcome | None:
    """Runs a row once.

    Args:
        folder: Of the matrix.
        row: What to run.
        repeat: 1 for its first run.
        label: Unique for this run, fit for a file name.
        should_stop: True as soon as somebody interrupts.
        tick: Called ten times a second with the last line that the run said.

    Returns:
        The outcome, also of a run that failed; None when it was interrupted.
    """

    def run(words: Sequence[str], label: str) -> Outcome | None:
        return _run_once(folder, row, repeat, label, words, should_stop, tick)

    calibration = row.calibration
    if calibration is None:
        return run(row.words, label)
    trial = run(calibration.trial_words(row.words), f"{label}-trial")
    if trial is None:
        return None
    figure = trial.figure(calibration.of)
    if figure is None:
        why = trial.error or f"{calibration.of} was not measured"
        return replace(trial, state="failed", error=f"its trial: {why}")
    value = calibration.value(figure)
    outcome = run(calibration.words(row.words, value), label)
    if outcome is None:
        return None
    said = {"option": calibration.option, "value": value, "of": calibration.of, "trial": figure}
    return replace(outcome, calibrated=said, took_s=outcome.took_s + trial.took_s)


def _run_once(
    folder: Path,
    row: MatrixRow,
    repeat: int,
    label: str,
    words: Sequence[str],
    should_stop: Callable[[], bool],
    tick: Callable[[str], None],
) -> Outcome | None:
    said, answer = folder / LOGS / f"{label}.log", folder / LOGS / f"{label}.json"
    words = [*words, "--json", "--output", str(folder / ROWS), "--name", label]
    for each in (said, answer):  # of an earlier try, or a link that somebody put there
        each.unlink(missing_ok=True)
    with open_new(said) as stderr, open_new(answer) as stdout:
        end = _run_child(row, words, stdout, stderr, said, should_stop, tick)
    try:
        if end.why == "interrupted":
            return None
        return _outcome(folder, row, repeat, label, end, answer, said)
    finally:
        answer.unlink(missing_ok=True)  # the same stands in the run's verdict.json


def _run_child(
    row: MatrixRow,
    words: list[str],
    stdout: BinaryIO,
    stderr: BinaryIO,
    said: Path,
    should_stop: Callable[[], bool],
    tick: Callable[[str], None],
) -> ChildEnd:
    launch = [sys.executable, "-P", "-m", "harness.matrix.launch"]
    started_s = time.monotonic()
    process = subprocess.Popen(
        [*launch, str(os.getpid()), str(row.client_nofile), *words],
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        start_new_session=True,  # Ctrl-C is for us; the run is ended by us, as a group
    )
    why, kill_at_s = "ended", started_s + row.deadline_s
    try:
        while process.poll() is None:
            now_s = time.monotonic()
            if should_stop() and why == "ended":
                why, kill_at_s = "interrupted", now_s + INTERRUPT_GRACE_S
                process.send_signal(signal.SIGINT)
            if now_s > kill_at_s:
                why = "hung" if why == "ended" else why
                _kill_group(process)
            tick(_last_line(said))
            _wait(process, POLL_S)
    finally:
        if process.poll() is None:
            _kill_group(process)
    if should_stop() and why == "ended" and process.returncode not in _HAS_VERDICT:
        why = "interrupted"
    return ChildEnd(process.returncode, time.monotonic() - started_s, why)


def _wait(process: subprocess.Popen[bytes], most_s: float) -> None:
    try:
        process.wait(most_s)
    except subprocess.TimeoutExpired:
        pass


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """The whole group; the fleet in it dies with its parents (PR_SET_PDEATHSIG) as well."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


def _outcome(
    folder: Path,
    row: MatrixRow,
    repeat: int,
    label: str,
    end: ChildEnd,
    answer: Path,
    said: Path,
) -> Outcome:
    path = next((p for p in (folder / ROWS).glob(f"*-{label}-????") if p.is_dir()), None)
    run = str(path.relative_to(folder)) if path else ""

    def failed(error: str) -> Outcome:
        return Outcome(row.spec.id, repeat, "failed", end.took_s, error=error, run=run)

    if end.why == "hung":
        return failed(f"it had not ended after {row.deadline_s:,.0f} s and was killed")
    if end.code < 0:
        return failed(f"profile-run was killed by {signal.Signals(-end.code).name}")
    if end.code not in _HAS_VERDICT or path is None:
        return failed(_error_line(said) or f"profile-run ended with exit code {end.code}")
    try:
        verdict: dict[str, Any] = json.loads(answer.read_bytes())
        figures, workers = _measure(path)
    except (ValueError, ToolkitError) as error:
        return failed(f"its recording cannot be read: {error}")
    return Outcome(
        row=row.spec.id,
        repeat=repeat,
        state="done",
        took_s=end.took_s,
        run=run,
        verdict=verdict["verdict"],
        facts=verdict["run"],
        findings=[_short(finding) for finding in verdict["findings"]],
        ladder=verdict["ladder"],
        figures=figures,
        workers=workers,
        complaints=row.expect.complaints(verdict) if row.spec.has_expectation else [],
        has_page=(path / REPORT).exists(),
    )


def _measure(path: Path) -> tuple[dict[str, float | None], list[dict[str, Any]]]:
    from analysis.frames.run_frames import load
    from analysis.matrix.figures import figures_of, workers_of  # pandas: only when a run is over
    from analysis.summary import summarise
    from probes.contract.rundir import open_run_dir

    summary = summarise(load(open_run_dir(path)))
    return figures_of(summary), workers_of(summary)


def _short(finding: dict[str, Any]) -> dict[str, Any]:
    subject = finding["subject"]
    return {
        "cause": finding["cause"],
        "severity": finding["severity"],
        "side": finding["side"],
        "role": subject["role"],
        "worker": subject["worker"],
        "first_s": finding["first_s"],
        "at_connections": finding["at_connections"],
        "follows_from": finding["follows_from"],
        "confidence": finding["confidence"],
        "evidence": finding["evidence"][:6],
        "fix": finding["fix"][:2],
    }


def _last_line(path: Path) -> str:
    lines = _tail(path)
    return lines[-1].strip() if lines else ""


def _error_line(path: Path) -> str:
    errors = [line for line in _tail(path) if line.startswith("error: ")]
    return errors[-1].removeprefix("error: ") if errors else _last_line(path)


def _tail(path: Path) -> list[str]:
    with path.open("rb") as stream:
        stream.seek(0, os.SEEK_END)
        stream.seek(max(0, stream.tell() - 4096))
        return stream.read().decode("utf-8", "replace").splitlines()
