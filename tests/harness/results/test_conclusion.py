"""What root has to understand is understood by a process without rights, and is the same."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from harness.matrix import loop as matrix_loop
from harness.matrix.rows import Scale, rows_of_vary
from harness.matrix.store import Matrix
from harness.results import analysis_process, analysis_request, bundle, conclusion, pipeline
from harness.results.analysis_process import AnalysisProcess
from harness.results.analysis_request import BUNDLE, COMPARISON, RESULTS, TABLES, TEXT, Request
from harness.results.results import Result, write_results, write_tables
from probes.bpf_loader.own_rights import parse_status
from probes.contract.errors import RunDirError
from probes.contract.rundir import MANIFEST, REPORT, VERDICT, RunDir, open_files
from probes.contract.table_writer import arrow_schema
from probes.rights.own_user import FIRST_ID, LAST_ID
from probes.rights.privileges import bits_of

as_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="only root has another one do it: needs root"
)
HOUSE = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A run of twenty connections, made and reported as its users do."""
    folder = tmp_path_factory.mktemp("runs")
    words = ("--connections", "20", "--hold", "0.2", "--probes", "none", "--quiet", "--output")
    done = subprocess.run(
        [sys.executable, "-P", "-m", "harness.commands.run", *words, folder],
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


def asked(
    process: AnalysisProcess, run: RunDir, *, with_page: bool, with_derived: bool
) -> Iterator[Result]:
    """As ``harness.results.conclusion`` asks for a report."""
    again = f"profile-report {run.path}"
    options = {"with_derived": with_derived}
    request = Request(RESULTS, str(run.path), again, with_page=with_page, options=options)
    return process.answers(request, [run])


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
    found = dict(asked(process, run, with_page=False, with_derived=True))
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
    found = dict(asked(process, run, with_page=False, with_derived=False))
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
        list(asked(process, run, with_page=False, with_derived=False))
    assert error.value.fix == f"free -h; profile-report {run.path}"


@as_root
def test_one_that_does_not_start_costs_nothing(run, monkeypatch):
    real = analysis_process.start_module
    monkeypatch.setattr(
        analysis_process, "start_module", lambda _, *more, **options: real("this", *more, **options)
    )
    assert conclusion.conclude(run, with_page=False)["verdict"]["cause"] == "reached"


WHOLE = {"worker": None, "pid": None, "from_s": None, "until_s": None}


@as_root
@pytest.mark.parametrize(
    ("what", "options"),
    [
        (BUNDLE, {"redact": True}),
        (COMPARISON, {"across_hosts": False, "across_probes": False, "columns": 100}),
        pytest.param(TABLES, {"form": "csv"}, marks=pytest.mark.variant),
        pytest.param(TEXT, {"form": "md", "choice": WHOLE}, marks=pytest.mark.variant),
    ],
)
def test_what_is_made_for_others_is_made_by_it_and_is_the_same(run, tmp_path, what, options):
    request = Request(what, "this", "again", options=options)
    runs = [run]
    if what == COMPARISON:
        shutil.copytree(run.path, tmp_path / "other")
        runs.append(RunDir(tmp_path / "other"))
        runs[1].write_manifest(run.read_manifest() | {"run_id": "other"})
    here = dict(analysis_request.answers(what, runs, options, with_page=False))
    assert dict(conclusion.answers(request, runs)) == here
    assert all(here.values())


@as_root
def test_the_page_of_a_matrix_is_drawn_by_it(tmp_path, monkeypatch):
    rows = rows_of_vary(["workers=1,2"], ["--connections", "100"])
    order = [(row.spec.id, 1) for row in rows]
    words = ("kernel", "machine", "cpu_model", "python", "tool_version", "tool_commit")
    host = dict.fromkeys(words, "x") | {"cpu_count": 23, "memory_total_bytes": 1_009}
    matrix = Matrix(tmp_path, "vary", "workers", [], 1, 1, Scale(), rows, order, host)
    there = matrix_loop.made_page(matrix)
    monkeypatch.setattr(conclusion, "is_apart", lambda: False)
    assert matrix_loop.made_page(matrix) == there
    assert there.startswith("<!DOCTYPE html>")


ROOT_STAYS_LEAN = """
import sys
from harness.commands import {module}
code = {module}.main(sys.argv[1:])
print(code, sorted({{"pandas", "pyarrow", "matplotlib"}} & set(sys.modules)), file=sys.stderr)
"""


@as_root
@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("report", ["--format", "md"]),
        pytest.param("report", ["--format", "parquet"], marks=pytest.mark.variant),
        pytest.param("report", ["--bundle", "b.tar.xz"], marks=pytest.mark.variant),
    ],
)
def test_a_command_of_root_reads_nothing_of_a_recording_itself(run, tmp_path, module, words):
    done = subprocess.run(
        [sys.executable, "-P", "-c", ROOT_STAYS_LEAN.format(module=module), run.path, *words],
        capture_output=True, text=True, check=False, cwd=tmp_path, timeout=240,
    )  # fmt: skip
    assert done.stderr.splitlines()[-1] == "0 []", done.stderr


def test_a_link_in_a_recording_is_not_packed(run, tmp_path):
    """Whoever packs a stranger's recording for somebody else must not send a file of this host."""
    secret = tmp_path / "secret"
    secret.write_text("of this host alone")
    stream = next(run.path.glob("raw/events/*.arrows"))
    stream.unlink()
    for path in (stream, run.path / "logs" / "a.log", run.path / "logs" / "b.log"):
        path.symlink_to(secret)
    bundle.make_bundle(run, tmp_path / "b.tar.xz", redact=False)
    with tarfile.open(tmp_path / "b.tar.xz") as packed:
        contents = {each.name: packed.extractfile(each).read() for each in packed}
    assert any(name.endswith("manifest.json") for name in contents)
    assert not any(secret.read_bytes() in content for content in contents.values())
    assert not any(name.endswith(("/a.log", "/b.log")) for name in contents)


@pytest.mark.parametrize("name", ["../x.csv", "/x.csv", "x.sh", "a/b.csv", ""])
def test_nor_which_table_is_written(tmp_path, name):
    with pytest.raises(RunDirError, match="wants to write"):
        write_tables(tmp_path / "tables", [(name, b"x")])
    assert not list(tmp_path.iterdir())


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
        found = dict(asked(process, run, with_page=True, with_derived=False))
    finally:
        process.close()
    assert found[REPORT].startswith(b"<!DOCTYPE html>")
