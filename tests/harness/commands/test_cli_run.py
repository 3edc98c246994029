"""profile-run as its users meet it: plan, errors in two lines, exit codes, interruption."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from analysis.frames.run_frames import load
from harness.commands import report as cli_report
from harness.commands import run as cli_run
from probes.contract.rundir import open_run_dir

COMMAND = [sys.executable, "-P", "-m", "harness.commands.run"]
DEADLINE_S = 150


def profile_run(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, timeout=DEADLINE_S, **options
    )


def only_run(parent: Path) -> Path:
    (path,) = (entry for entry in parent.iterdir() if entry.is_dir() and not entry.is_symlink())
    return path


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--connections", "0"], "--connections"),
        (["--connections", "-5"], "--connections"),
        (["--connections", "many"], "'many'"),
        (["--connections", "10", "--workers", "0"], "--workers"),
        (["--connections", "10", "--accept", "telepathy"], "telepathy"),
        (["--connections", "10", "--port-range", "9-1"], "9-1"),
        (["--connections", "10", "--keepalive", "nan"], "nan"),
        (["--connections", "10", "--hold", "-1"], "-1"),
        (["--connections", "10", "--ramp", "0"], "'0'"),
        (["--connections", "10", "--payload", "9m"], "9,000,000"),
        (["--connections", "10", "--probes", "crystal_ball"], "crystal_ball"),
        (["--connections", "10", "--inject", "hot-code:99"], "hot-code:99"),
        (["--connections", "10", "--name", "../x"], "../x"),
        (["--connections", "10", "--nonsense"], "--nonsense"),
        ([], "--connections"),
    ],
)
def test_nonsense_is_two_lines_and_exit_code_2(tmp_path, call, arguments, said):
    done = call(cli_run.main, *arguments, "--output", tmp_path / "runs")
    assert done.returncode == 2, done.stderr
    error, fix = done.stderr.splitlines()
    assert error.startswith("error: ")
    assert said in error
    assert fix.startswith("fix: ")
    assert not (tmp_path / "runs").exists()


def test_impossible_target_is_refused_with_exit_code_4(tmp_path):
    done = profile_run("--connections", "90m", "--output", str(tmp_path / "runs"))
    assert done.returncode == 4, done.stderr
    assert len(done.stderr.splitlines()) == 2
    assert not (tmp_path / "runs").exists()


def test_unwritable_output_is_said_before_anything_starts(tmp_path):
    (tmp_path / "file").write_text("")
    done = profile_run("--connections", "10", "--output", str(tmp_path / "file" / "runs"))
    assert done.returncode == 5, done.stderr
    assert str(tmp_path / "file") in done.stderr.splitlines()[0]
    assert "--output" in done.stderr.splitlines()[1]


def test_full_disk_is_said_at_the_start(tmp_path):
    def small_files_only() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    done = profile_run(
        *("--connections", "20000", "--output", str(tmp_path / "runs"), "--quiet"),
        preexec_fn=small_files_only,
    )
    assert done.returncode == 5, done.stderr
    assert "cannot reserve" in done.stderr
    assert "Traceback" not in done.stderr
    assert json.loads((only_run(tmp_path / "runs") / "manifest.json").read_text())["status"] == (
        "failed"
    )


def test_plan_is_printed_and_nothing_runs(tmp_path):
    done = profile_run("--connections", "120000", "--plan", "--json", "--output", str(tmp_path))
    plan = json.loads(done.stdout)
    assert done.returncode == 0
    assert sum(plan["client_shares"]) == plan["target_connections"] == 120_000
    assert list(tmp_path.iterdir()) == []


def test_without_a_report_the_verdict_is_written_and_the_command_for_the_page_said(tmp_path):
    done = profile_run(
        *("--connections", "23", "--hold", "0.2", "--probes", "none", "--no-report", "--quiet"),
        *("--output", str(tmp_path / "runs")),
    )
    assert done.returncode == 0, done.stderr
    run = only_run(tmp_path / "runs")
    assert json.loads((run / "verdict.json").read_text())["run"]["peak_connections"] == 23
    assert not (run / "report.html").exists()
    assert f"report   profile-report {run}" in done.stdout


def test_without_probes_the_counters_are_those_of_the_full_fleet_not_of_one_that_ends(tmp_path):
    done = profile_run(
        *("--connections", "23", "--workers", "1", "--clients", "1", "--hold", "0.2"),
        *("--probes", "none", "--no-report", "--quiet", "--output", str(tmp_path / "runs")),
    )
    assert done.returncode == 0, done.stderr
    frames = load(open_run_dir(only_run(tmp_path / "runs")))
    samples, events = frames["live_samples"], frames["events"]
    assert list(samples["open_count"]) == [23, 23], samples
    stop_ns = int(events["at_ns"][events["event"] == "phase_stop"].iloc[0])
    assert set(samples["at_ns"]) == {stop_ns}, "before the connections are closed"


@pytest.mark.parametrize("side", ["client", "server"])
def test_a_parent_that_is_killed_is_told_as_that_and_nobody_else_is_blamed(
    tmp_path, deadline, side
):
    """Its processes die with it and report nothing: their records still say that all is open."""
    command = [
        *(*COMMAND, "--connections", "23", "--workers", "2", "--clients", "2", "--hold", "60"),
        *("--probes", "none", "--no-report", "--quiet", "--json", "--output", str(tmp_path)),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as run:

        def holds():
            events = [json.loads(p.read_text()) for p in tmp_path.glob("2*/manifest.json")]
            return any(s["stage"] == "hold" for each in events for s in each["stages"])

        def parent_pid():
            children = psutil.Process(run.pid).children()
            (found,) = (c.pid for c in children if f"harness.{side}.main" in c.cmdline())
            return found

        deadline("all are open", lambda: run.poll() is not None or holds())
        killed = parent_pid()
        os.kill(killed, signal.SIGKILL)
        out, _ = run.communicate(timeout=DEADLINE_S)
    said = json.loads(out)
    verdict = said["verdict"]
    assert (verdict["cause"], verdict["side"]) == ("worker-crash", side), out
    assert f"(pid {killed}) was ended from outside, and 2 processes" in verdict["sentence"]
    assert run.returncode == 3
    assert [f["cause"] for f in said["findings"]] == ["worker-crash"]


def test_json_is_alone_on_stdout_and_progress_on_stderr(tmp_path):
    done = profile_run(
        *("--connections", "23", "--hold", "0.2", "--probes", "none", "--json"),
        *("--output", str(tmp_path / "runs")),
    )
    assert done.returncode == 0, done.stderr
    verdict = json.loads(done.stdout)
    assert verdict["verdict"]["cause"] == "reached"
    assert verdict["run"]["peak_connections"] == 23
    assert "23/23 established" in done.stderr
    run = only_run(tmp_path / "runs")
    assert json.loads((run / "verdict.json").read_text()) == verdict
    assert (run / "report.html").stat().st_size > 1_000
    assert (tmp_path / "runs" / "latest").resolve() == run.resolve()


def start(tmp_path: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, *arguments, "--output", str(tmp_path / "runs")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_stage(tmp_path: Path, stage: str) -> Path:
    end_s = time.monotonic() + DEADLINE_S
    while time.monotonic() < end_s:
        for manifest in (tmp_path / "runs").glob("2*/manifest.json"):
            stages = [each["stage"] for each in json.loads(manifest.read_text())["stages"]]
            if stage in stages:
                return manifest.parent
        time.sleep(0.01)
    raise AssertionError(f"stage {stage} did not come within {DEADLINE_S} s")


def descendants(pid: int) -> set[int]:
    found: set[int] = set()
    pending = [pid]
    while pending:
        for task in Path(f"/proc/{pending.pop()}/task").glob("*/children"):
            for child in map(int, task.read_text().split()):
                found.add(child)
                pending.append(child)
    return found


def wait_until_gone(pids: set[int]) -> None:
    end_s = time.monotonic() + DEADLINE_S
    while alive := {pid for pid in pids if Path(f"/proc/{pid}").exists()}:
        assert time.monotonic() < end_s, f"still there: {alive}"
        time.sleep(0.01)


@pytest.mark.parametrize("stage", ["setup", "ramp", "hold"])
@pytest.mark.parametrize("probes", ["none", "auto"])
def test_interrupt_at_any_stage_still_reports(tmp_path, stage, probes):
    draws = (stage, probes) == ("ramp", "none")
    child = start(
        tmp_path,
        *("--connections", "2000", "--ramp", "1000" if stage == "ramp" else "max"),
        *("--hold", "60", "--probes", probes, *([] if draws else ["--no-report"])),
    )
    run = wait_for_stage(tmp_path, stage)
    children = descendants(child.pid)
    assert children or stage == "setup"
    child.send_signal(signal.SIGINT)
    _, stderr = child.communicate(timeout=DEADLINE_S)
    assert child.returncode == 130, stderr
    assert "Traceback" not in stderr
    assert json.loads((run / "manifest.json").read_text())["status"] == "interrupted"
    assert json.loads((run / "verdict.json").read_text())["run"]["status"] == "interrupted"
    assert (run / "report.html").exists() == draws
    wait_until_gone(children)


def test_killing_the_supervisor_takes_everything_and_keeps_the_recording(tmp_path, call):
    child = start(tmp_path, "--connections", "500", "--hold", "60", "--probes", "auto")
    run = wait_for_stage(tmp_path, "hold")
    children = descendants(child.pid)
    assert len(children) >= 4
    os.kill(child.pid, signal.SIGKILL)
    child.communicate(timeout=DEADLINE_S)
    wait_until_gone(children)
    done = call(cli_report.main, run)
    assert done.returncode == 0, done.stderr
    verdict = json.loads((run / "verdict.json").read_text())
    assert verdict["run"]["peak_connections"] == 500
    assert verdict["run"]["status"] != "finished"
    assert (run / "report.html").exists()
