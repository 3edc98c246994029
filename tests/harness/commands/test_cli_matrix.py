"""profile-matrix as its users meet it: real small rows, one that fails, an interrupted matrix."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness.commands import matrix as cli_matrix
from harness.matrix import store as matrix_store

COMMAND = [sys.executable, "-P", "-m", "harness.commands.matrix"]
DEADLINE_S = 150
QUICK = ["--connections", "300", "--hold", "0.2", "--probes", "none", "--workers", "2"]


@pytest.fixture(scope="module")
def profile_matrix(call):
    """profile-matrix in this process; its rows are processes of their own."""
    return lambda *arguments: call(cli_matrix.main, *arguments)


def matrix_as_users_start_it(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, timeout=DEADLINE_S
    )


def matrix_of(parent: Path) -> Path:
    (path,) = parent.glob("*-matrix-*")
    return path


def content(path: Path) -> dict:
    return json.loads((path / "matrix.json").read_text())


def scenario_of(tmp_path: Path, *rows: str) -> str:
    path = tmp_path / "mine.toml"
    path.write_text('name = "mine"\nshows = "small rows"\n' + "\n".join(rows))
    return str(path)


def row(row_id: str, options: str, rest: str = "") -> str:
    return f'[[row]]\nid = "{row_id}"\nshows = "{row_id}"\noptions = {{ {options} }}\n{rest}\n'


QUICK_ROW = 'connections = 300, hold = 0.2, probes = "none"'


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A scenario of three rows: one as expected, one not, and one that cannot run."""
    tmp_path = tmp_path_factory.mktemp("finished")
    file = scenario_of(
        tmp_path,
        row("reaches", QUICK_ROW, 'expect = { cause = "reached" }'),
        row(
            "ports-end",
            QUICK_ROW + ', source_addresses = 1, port_range = "40000-40099"',
            'against = "reaches"\nmove = "down"\nceiling = 100\n'
            'expect = { cause = "ephemeral-ports-exhausted", side = "client" }',
        ),
        row("cannot", 'connections = 300, nofile = 999999999, probes = "none"'),
    )
    done = matrix_as_users_start_it(file, "--output", str(tmp_path / "runs"))
    return done, matrix_of(tmp_path / "runs")


def test_a_failing_row_leaves_the_others_and_the_exit_code_says_so(finished):
    done, path = finished
    assert done.returncode == 3, done.stderr
    outcomes = content(path)["outcomes"]
    states = {o["row"]: o["state"] for o in outcomes}
    errors = [o["error"] for o in outcomes]
    assert states == {"reaches": "done", "ports-end": "done", "cannot": "failed"}, errors
    assert content(path)["status"] == "finished"
    assert "Traceback" not in done.stderr


def test_each_row_says_what_bound_it_and_what_moved(finished):
    _, path = finished
    rows = {entry["row"]: entry for entry in content(path)["comparison"]}
    assert rows["reaches"]["expectation_held"] is True
    ports = rows["ports-end"]
    assert ports["binding_cause"] == "ephemeral-ports-exhausted"
    assert ports["ceiling"]["median"] == 100
    assert (ports["move"]["direction"], ports["move"]["delta_count"]) == ("down", -200)
    assert "port-range default → 40000-40099" in ports["move"]["changed"]
    assert ports["expectation_held"] is True
    assert rows["cannot"]["expectation_held"] is False
    assert "999,999,999" in rows["cannot"]["complaints"][0]


def test_progress_is_plain_lines_and_the_table_is_on_stdout(finished):
    done, path = finished
    assert "1/3 " in done.stderr
    assert "\x1b" not in done.stderr + done.stdout
    assert "ok  reaches" in done.stdout
    assert "NO  cannot" in done.stdout
    assert str(path / "matrix.html") in done.stdout


def test_the_page_links_the_reports_that_are_there(finished):
    _, path = finished
    page = (path / "matrix.html").read_text()
    runs = [o["run"] for o in content(path)["outcomes"] if o["state"] == "done"]
    assert len(runs) == 2
    for run in runs:
        assert f'href="{run}/report.html"' in page
        assert (path / run / "report.html").is_file()


def test_a_varied_matrix_with_repeats_has_spread(tmp_path, profile_matrix):
    done = profile_matrix(
        *("--vary", "accept=handoff", "--repeats", "2", "--seed", "5", "--json"),
        *("--no-report", "--output", str(tmp_path / "runs"), "--", *QUICK),
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document == content(matrix_of(tmp_path / "runs"))
    assert document["seed"] == 5
    assert len(document["outcomes"]) == 2
    assert {e["ceiling"]["runs"] for e in document["comparison"]} == {2}
    assert {e["ceiling"]["median"] for e in document["comparison"]} == {300}
    page = (matrix_of(tmp_path / "runs") / "matrix.html").read_text()
    for outcome in document["outcomes"]:
        assert f'href="{outcome["run"]}/verdict.json"' in page
        assert not (matrix_of(tmp_path / "runs") / outcome["run"] / "report.html").exists()


def test_a_calibrated_row_measures_first_and_says_what_came_of_it(tmp_path, profile_matrix):
    file = scenario_of(
        tmp_path,
        row(
            "pings",
            'connections = 300, workers = 1, keepalive = 0.01, hold = 0.5, probes = "light"',
            'calibrate = { option = "keepalive", times = 100, of = "keepalive_full_s" }\n'
            'expect = { cause = "reached" }',
        ),
        row(
            "silent",
            'connections = 300, keepalive = "off", probes = "none", hold = 0',
            'calibrate = { option = "keepalive", times = 100, of = "keepalive_full_s" }',
        ),
    )
    profile_matrix(file, "--no-report", "--output", str(tmp_path / "runs"))
    path = matrix_of(tmp_path / "runs")
    pings, silent = sorted(content(path)["outcomes"], key=lambda o: o["row"])
    said = pings["calibrated"]
    assert said["value"] == pytest.approx(100 * said["trial"], rel=1e-3)
    manifest = json.loads((path / pings["run"] / "manifest.json").read_text())
    assert manifest["settings"]["keepalive_s"] == said["value"]
    assert manifest["settings"]["hold_s"] == 0.5
    assert len(list((path / "rows").glob("*-trial-*"))) == 2
    assert f"keepalive was set to {said['value']:g}" in (path / "matrix.html").read_text()
    assert silent["state"] == "failed"
    assert silent["error"] == "its trial: keepalive_full_s was not measured"


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for(what: str, condition) -> None:
    end_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end_s, f"waited {DEADLINE_S} s for: {what}"
        time.sleep(0.01)


def stages(parent: Path) -> list[list[str]]:
    """Stages of every run below a matrix, as far as its manifest is written."""
    return [
        [stage["stage"] for stage in json.loads(path.read_text())["stages"]]
        for path in parent.glob("*-matrix-*/rows/2*/manifest.json")
    ]


def test_ctrl_c_leaves_what_resume_goes_on_with(tmp_path, profile_matrix):
    runs = tmp_path / "runs"
    process = start(
        *("--vary", "hold=0.2,15", "--output", str(runs), "--seed", "1", "--no-report", "--",
          "--connections", "300", "--probes", "none"),
    )  # fmt: skip

    def holds_long() -> bool:
        logs = runs.glob("*-matrix-*/logs/*-hold-15-1.log")
        return any("| hold" in log.read_text() for log in logs)

    wait_for("the hold of the long row", holds_long)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 130, said
    assert "profile-matrix --resume" in said
    path = matrix_of(runs)
    before = content(path)
    assert before["status"] == "interrupted"
    assert "hold=15" not in {o["row"] for o in before["outcomes"]}
    done_before = {o["row"]: o["run"] for o in before["outcomes"]}
    again = profile_matrix("--resume", str(path))
    assert again.returncode == 0, again.stderr
    assert (
        "runs  profile-run --connections 300 --probes none --hold 15 --no-report\n" in again.stderr
    )
    after = content(path)
    assert after["status"] == "finished"
    assert {o["row"] for o in after["outcomes"]} == {"hold=0.2", "hold=15"}
    for outcome in after["outcomes"]:
        assert done_before.get(outcome["row"], outcome["run"]) == outcome["run"], "ran again"

    runs_before = sorted(p.name for p in (path / "rows").iterdir())
    nothing = profile_matrix("--resume", str(path), "--quiet")
    assert nothing.returncode == 0, nothing.stderr
    assert sorted(p.name for p in (path / "rows").iterdir()) == runs_before


def members_of(pids: set[int]) -> set[int]:
    return {pid for pid in pids if Path(f"/proc/{pid}").exists()}


def descendants(pid: int) -> set[int]:
    found: set[int] = set()
    pending = [pid]
    while pending:
        for task in Path(f"/proc/{pending.pop()}/task").glob("*/children"):
            try:
                children = [int(each) for each in task.read_text().split()]
            except (FileNotFoundError, ProcessLookupError):
                continue
            found.update(children)
            pending += children
    return found


def test_a_row_that_hangs_is_killed_with_its_whole_fleet(tmp_path):
    runs = tmp_path / "runs"
    process = start(
        *("--vary", "workers=2", "--deadline", "10", "--no-report", "--output", str(runs), "--",
          "--connections", "100", "--probes", "none", "--hold", "600"),
    )  # fmt: skip
    # A busy machine may need all of the deadline for the start: so no stage is waited for.
    wait_for("a fleet", lambda: len(descendants(process.pid)) >= 4)
    fleet = descendants(process.pid)  # profile-run, two parents, workers and clients
    assert fleet
    _, said = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 3, said
    outcomes = content(matrix_of(runs))["outcomes"]
    assert [o["state"] for o in outcomes] == ["failed"]
    assert "had not ended after 10 s" in outcomes[0]["error"]
    wait_for("the fleet to be gone", lambda: not members_of(fleet))


def test_the_death_of_the_matrix_takes_its_run_along_and_is_resumable(tmp_path):
    runs = tmp_path / "runs"
    process = start(
        *("--vary", "workers=2", "--no-report", "--output", str(runs), "--",
          "--connections", "100", "--probes", "none", "--hold", "600"),
    )  # fmt: skip
    wait_for("the hold", lambda: any("hold" in each for each in stages(runs)))
    fleet = descendants(process.pid)
    process.kill()
    process.communicate()
    wait_for("the fleet to be gone", lambda: not members_of(fleet))
    left = matrix_store.load(matrix_of(runs))
    assert left.status == "running"
    assert left.to_do() == [("workers=2", 1)]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "one of SCENARIO"),
        (["the-2016-log", "--vary", "accept=shared"], "one of SCENARIO"),
        (["no-such-scenario"], "no-such-scenario"),
        (["the-2016-log", "--only", "r99*"], "r99*"),
        (["the-2016-log", "--scale", "7"], "--scale"),
        (["the-2016-log", "--repeats", "0"], "--repeats"),
        (["the-2016-log", "--deadline", "0"], "--deadline"),
        (["every-cause", "--scale", "4000"], "has no scale"),
        (["--vary", "accept=shared"], "share"),
        (["--vary", "accept=telepathy", "--", "--connections", "10"], "telepathy"),
        (["--vary", "accept=shared", "--", "--hold", "1"], "--connections"),
        (["--resume", "nowhere", "--seed", "1"], "--seed"),
        (["--resume", "nowhere", "--no-report"], "--no-report"),
        (["the-2016-log", "--list", "--name", "../x", "--markdown", "/no/such/x.md"], "--markdown"),
        (["the-2016-log", "--only", "r04*", "--name", "../x"], "../x"),
    ],
)
def test_nonsense_is_two_lines_and_exit_code_2(tmp_path, arguments, said, profile_matrix):
    place = [] if "--" in arguments else ["--output", str(tmp_path / "runs")]
    done = profile_matrix(*arguments, *place)
    assert done.returncode == 2, done.stdout + done.stderr
    error, fix = done.stderr.splitlines()
    assert error.startswith("error: ")
    assert said in error
    assert fix.startswith("fix: ")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [(None, 2, "matrix.json"), ("{", 5, "cannot read"), ("{}", 5, "version"),
     ('{"schema_version": 1}', 5, "damaged")],
)  # fmt: skip
def test_what_is_no_matrix_cannot_be_resumed(tmp_path, text, code, said, profile_matrix):
    if text is not None:
        (tmp_path / "matrix.json").write_text(text)
    done = profile_matrix("--resume", str(tmp_path))
    assert done.returncode == code, done.stderr
    assert said in done.stderr.splitlines()[0]
    assert len(done.stderr.splitlines()) == 2


def test_a_directory_that_is_not_there_cannot_be_resumed(tmp_path, profile_matrix):
    done = profile_matrix("--resume", str(tmp_path / "nowhere"))
    assert done.returncode == 2, done.stderr
    assert "nowhere" in done.stderr.splitlines()[0]


def test_two_cannot_run_one_matrix(tmp_path, finished, profile_matrix):
    _, path = finished
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        done = profile_matrix("--resume", str(path))
    finally:
        os.close(fd)
    assert done.returncode == 2, done.stderr
    assert "another profile-matrix" in done.stderr


def test_list_prints_the_rows_and_runs_nothing(tmp_path, profile_matrix):
    done = profile_matrix("the-2016-log", "--list", "--output", str(tmp_path / "runs"))
    assert done.returncode == 0, done.stderr
    assert "r12-one-process-spins" in done.stdout
    assert "profile-run --connections" in done.stdout
    assert not (tmp_path / "runs").exists()


def test_only_takes_along_what_a_row_is_compared_with(profile_matrix):
    done = profile_matrix("the-2016-log", "--only", "r07*", "--list")
    assert [line.split()[0] for line in done.stdout.splitlines() if line.startswith("r0")] == [
        "r05-eaddrnotavail",
        "r07-wide-range",
    ]


def test_the_confusion_table_becomes_markdown(tmp_path, profile_matrix):
    file = scenario_of(tmp_path, row("healthy", QUICK_ROW, 'expect = { cause = "reached" }'))
    target = tmp_path / "diagnosis.md"
    done = profile_matrix(
        *(file, "--repeats", "2", "--no-report"),
        *("--markdown", str(target), "--output", str(tmp_path / "runs")),
    )
    assert done.returncode == 0, done.stderr
    assert "named as provoked in 2 of 2 runs; 0 named without reason" in done.stdout
    text = target.read_text()
    assert "**2 of 2 runs named what was provoked; 0 causes were named without reason.**" in text
    assert "| healthy: healthy | `reached` | 2 of 2 | 2 of 2 | `reached` |  |" in text
