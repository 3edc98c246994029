"""Plays one recording: profile-run or profile-attach as its users start it, ended as it says."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import psutil

from analysis.frames.run_frames import load
from analysis.matrix.figures import figures_of
from analysis.summary import summarise
from bench.peers import catalogue as peers
from bench.recordings.catalogue import Recording
from bench.recordings.watched import Attach, WaitingFleet, wait_until
from probes.contract.errors import HostError
from probes.contract.rundir import MANIFEST, open_run_dir

DEADLINE_S = 150
_ROOT = Path(__file__).parents[2]
_ENDS_S = 30
_AS_NOBODY = (
    *("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"),
    *("--bounding-set", "-all"),
)


def play(recording: Recording, folder: Path) -> Path:
    """Plays it.

    Args:
        recording: What.
        folder: An empty one, which others may read.

    Returns:
        Its run directory.

    Raises:
        HostError: It did not become a run.
    """
    folder.chmod(0o777)  # the fleet, or all of it, is another user than root
    if recording.is_watched:
        return _watch(recording, folder)
    calibration = recording.calibration
    if calibration is not None:
        trial = replace(recording, words=tuple(calibration.trial_words(recording.words)))
        value = calibration.value(_figure(_run(trial, folder / "trial"), calibration.of))
        words = calibration.words(recording.words, value)
        recording = replace(recording, words=tuple(words))
    run = _run(recording, folder / "run")
    if recording.cut < 1:
        _cut(run, recording.cut)
    return run


def _figure(run: Path, name: str) -> float:
    figure = figures_of(summarise(load(open_run_dir(run)))).get(name)
    if figure is None:
        raise HostError(f"{name} was not measured by the trial", fix="record it anew")
    return figure


def _run(recording: Recording, folder: Path) -> Path:
    folder.mkdir()
    folder.chmod(0o777)
    source = _source_of(recording.commit, folder) if recording.commit else _ROOT
    log = folder / "said.log"
    with log.open("w") as said:
        child = subprocess.Popen(
            _command(recording, folder),
            cwd=folder,  # node leaves files where it is started
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=said,
            start_new_session=True,
            env={**peers.environment(), "PYTHONPATH": str(source)},
        )
    try:
        if recording.end:
            _end(recording, child, folder)
        child.wait(DEADLINE_S)
    except (subprocess.TimeoutExpired, TimeoutError) as error:
        raise HostError(
            f"{recording.id}: {error}", fix="record it anew when the machine is quiet"
        ) from error
    finally:
        _end_group(child)
    run = _run_of(folder / "runs")
    if run is None or "Traceback" in log.read_text():
        raise HostError(
            f"{recording.id} did not become a run (exit code {child.returncode}): "
            f"{log.read_text()[-600:]}",
            fix=f"try it by hand: {recording.label.provoked_by}",
        )
    return run


def _command(recording: Recording, folder: Path) -> list[str]:
    as_nobody = [] if recording.is_root else [*_AS_NOBODY]
    launch = [*as_nobody, sys.executable, "-P", "-m", "harness.matrix.launch"]
    bound = [str(os.getpid()), str(recording.client_nofile)]
    ours = ["--quiet", "--output", str(folder / "runs"), "--name", "recording"]
    without_page = [] if recording.commit else ["--no-report"]  # not in every version
    return [*launch, *bound, *recording.words, *ours, *without_page]


def _source_of(commit: str, folder: Path) -> Path:
    """The program as it was then, from this repository; it knows its commit."""
    source = folder / "source"
    for words in (
        ("clone", "--quiet", "--shared", "--no-checkout", str(_ROOT), str(source)),
        ("-C", str(source), "checkout", "--quiet", "--detach", commit),
    ):
        subprocess.run(["git", *words], check=True, timeout=60)
    return source


def _end(recording: Recording, child: subprocess.Popen[bytes], folder: Path) -> None:
    wait_until(
        f"the {recording.at} of {recording.id}",
        lambda: child.poll() is not None or _is_in(recording.at, folder / "runs"),
    )
    time.sleep(recording.after_s)  # so much of that stage belongs to the recording
    if recording.end == "interrupt":
        child.send_signal(signal.SIGINT)
    elif recording.end == "kill":
        child.kill()
        _wait_for_group(child)
    else:
        for process in psutil.Process(child.pid).children():
            if any("probes.collect.main" in word for word in process.cmdline()):
                process.kill()


def _is_in(stage: str, runs: Path) -> bool:
    run = _run_of(runs)
    if run is None:
        return False
    stages = json.loads((run / MANIFEST).read_text(encoding="utf-8"))["stages"]
    return any(each["stage"] == stage for each in stages)


def _run_of(runs: Path) -> Path | None:
    found = [path.parent for path in runs.glob(f"*/{MANIFEST}") if not path.parent.is_symlink()]
    return found[0] if found else None


def _wait_for_group(child: subprocess.Popen[bytes]) -> None:
    """Until all that the run had started is gone: they die with their parents."""
    child.wait()
    wait_until("the end of what was left of a killed run", lambda: not _members(child.pid))


def _members(session: int) -> list[int]:
    found = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except (OSError, psutil.Error):
            continue
    return found


def _end_group(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is None:
        child.kill()
        child.wait()
    for pid in _members(child.pid):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def _cut(run: Path, share: float) -> None:
    """Leaves the beginning of each stream, as a copy that was cut short does."""
    for path in run.glob("raw/*/*.arrows"):
        os.truncate(path, int(path.stat().st_size * share))


def _watch(recording: Recording, folder: Path) -> Path:
    with ExitStack() as stack:
        fleet = WaitingFleet(folder, recording.row)
        stack.callback(fleet.close)
        attach = Attach(folder, recording.row, fleet.server_pid)
        stack.callback(attach.close)
        wait_until("the watch begins", lambda: attach.has_begun)
        fleet.play()
        attach.interrupt()
        fleet.end_burning()
        attach.result()
    run = _run_of(folder / "runs")
    if run is None:
        raise HostError(f"{recording.id} did not become a run", fix="record it anew")
    return run
