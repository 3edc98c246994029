"""What root has to understand is understood by a process without rights, and is the same."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from harness import analysis_process, conclusion, pipeline
from harness.analysis_process import AnalysisProcess
from harness.run_results import write_results
from probes.errors import RunDirError
from probes.own_rights import parse_status
from probes.own_user import FIRST_ID, LAST_ID
from probes.privileges import bits_of
from probes.rundir import MANIFEST, REPORT, VERDICT, RunDir, open_files
from probes.table_writer import arrow_schema

as_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="only root has another one do it: needs root"
)
HOUSE = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A run of twenty connections, made and reported as its users do."""
    folder = tmp_path_factory.mktemp("runs")
    words = ("--connections", "20", "--hold", "0.2", "--probes", "none", "--quiet", "--output")
    done = subprocess.run(
        [sys.executable, "-P", "-m", "harness.cli_run", *words, folder],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("2*")
    return path


@pytest.fixture
def run(recorded, tmp_path):
    shutil.copytree(recorded, tmp_path / "run")
    (tmp_path / "run").chmod(0o700)
    return RunDir(tmp_path / "run")


@pytest.fixture
def process():
    made = AnalysisProcess(with_page=False)
    yield made
    made.close()


def wait_until_ready(process: AnalysisProcess) -> None:
    waiting = select.poll()
    waiting.register(process._socket, select.POLLIN)
    assert waiting.poll(120_000)


def without_rights(pid: int, *but: str) -> list[str]:
    """What each thread of a process may do beyond what it should."""
    found = []
    for path in Path(f"/proc/{pid}/task").glob("*/status"):
        said = parse_status(path.read_text())
        names = ("CapPrm", "CapEff", "CapBnd", "CapAmb")
        found += [name for name in names if int(said[name], 16) & ~bits_of(but)]
        found += [] if said["NoNewPrivs"] == "1" else ["NoNewPrivs"]
        found += [] if FIRST_ID <= int(said["Uid"].split()[1]) <= LAST_ID else ["Uid"]
    return found


@as_root
def test_it_has_no_rights_when_it_gets_the_recording(run, process):
    wait_until_ready(process)
    assert without_rights(process.pid) == []
    found = dict(process.results(run, with_page=False, with_derived=True))
    assert found == dict(pipeline.results(run, with_page=False))
    assert json.loads(found[VERDICT])["verdict"]["cause"] == "reached"
    assert sum(name.startswith("derived/") for name in found) > 10


@as_root
def test_the_page_of_a_command_is_made_by_it(recorded):
    assert (recorded / VERDICT).stat().st_mode & 0o777 == 0o600
    assert (recorded / REPORT).read_text().startswith("<!DOCTYPE html>")
    assert list((recorded / "derived").glob("*.parquet"))


def test_what_is_held_open_is_read_wherever_it_is_by_then(run):
    whole = dict(pipeline.results(run, with_page=False))
    files = open_files(run.path)
    try:
        moved = run.path.rename(run.path.with_name("elsewhere"))
        held = RunDir(run.path, files)
        assert dict(pipeline.results(held, with_page=False)) == whole
        assert moved.is_dir()
    finally:
        for fd in files.values():
            os.close(fd)


def test_neither_a_link_nor_a_pipe_is_handed_over(run, tmp_path):
    os.rename(run.path / MANIFEST, tmp_path / "manifest")
    os.symlink(tmp_path / "manifest", run.path / MANIFEST)
    os.mkfifo(run.path / "raw" / "events" / "a-pipe.arrows")
    files = open_files(run.path)
    for fd in files.values():
        os.close(fd)
    assert files
    assert not {MANIFEST, "raw/events/a-pipe.arrows"} & set(files)


@as_root
def test_what_a_full_disk_did_not_take_is_handed_over(run, process):
    schema = arrow_schema("events")
    row = {"at_ns": 1, "event": "kept in memory", "pid": 0, "detail": ""}
    run.unwritten_batches["events"] = [pa.RecordBatch.from_pylist([row], schema=schema)]
    run.unwritten_manifest = run.read_manifest() | {"run_id": "kept-in-memory"}
    wait_until_ready(process)
    found = dict(process.results(run, with_page=False, with_derived=False))
    assert found == dict(pipeline.results(run, with_page=False, with_derived=False))
    files = run.unwritten_files()
    held = RunDir(run.path, open_files(run.path) | files)
    try:
        assert held.read_table("events").table.to_pylist()[-1] == row
    finally:
        for fd in held._held.values():
            os.close(fd)


@as_root
def test_what_cannot_be_understood_is_told_as_without_it(run, monkeypatch):
    (run.path / MANIFEST).write_text("no JSON")
    messages = []
    for is_apart in (True, False):
        monkeypatch.setattr(conclusion, "is_apart", lambda apart=is_apart: apart)
        with pytest.raises(RunDirError) as error:
            conclusion.conclude(run, with_page=False)
        messages.append((error.value.message, error.value.fix))
    assert messages[0] == messages[1]


@as_root
def test_one_that_is_killed_is_told_and_the_recording_stays(run, process):
    wait_until_ready(process)
    os.kill(process.pid, signal.SIGKILL)
    with pytest.raises(RunDirError, match="was killed by signal 9") as error:
        list(process.results(run, with_page=False, with_derived=False))
    assert error.value.fix == f"free -h; profile-report {run.path}"


@as_root
def test_one_that_does_not_start_costs_nothing(run, monkeypatch):
    real = analysis_process.start_module
    monkeypatch.setattr(
        analysis_process, "start_module", lambda _, *more, **options: real("this", *more, **options)
    )
    assert conclusion.conclude(run, with_page=False)["verdict"]["cause"] == "reached"


@pytest.mark.parametrize("name", ["../verdict.json", "derived/../x.parquet", "manifest.json", "x"])
def test_it_cannot_choose_what_is_written(run, name):
    before = sorted(run.path.rglob("*"))
    with pytest.raises(RunDirError, match="wants to write"):
        write_results(run, [(name, b"{}")])
    assert sorted(run.path.rglob("*")) == before


@as_root
def test_where_it_cannot_read_our_own_files_it_may_read(run, tmp_path, monkeypatch):
    hidden = tmp_path / "hidden"
    hidden.mkdir(mode=0o700)
    for room in ("harness", "probes", "analysis", "reports"):
        shutil.copytree(HOUSE / room, hidden / room)
    monkeypatch.setenv("PYTHONPATH", str(hidden))
    process = AnalysisProcess(with_page=True)
    try:
        wait_until_ready(process)
        assert without_rights(process.pid, "dac_read_search") == []
        found = dict(process.results(run, with_page=True, with_derived=False))
    finally:
        process.close()
    assert found[REPORT].startswith(b"<!DOCTYPE html>")
