"""A disk that fills, or becomes read-only, costs rows: the run and its verdict go on."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from harness.commands import attach as cli_attach
from harness.commands import report as cli_report
from harness.commands import run as cli_run
from harness.supervision import recording
from probes.contract.rundir import RunDir, create_run_dir
from probes.contract.table_writer import TableWriter

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")

QUICK = ["--connections", "100", "--workers", "1", "--probes", "light", "--hold", "0.2"]
MIB = 1 << 20


@pytest.fixture
def disk(tmp_path):
    """A file system of its own, of 80 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=80m", "none", place], check=True)
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


@pytest.fixture
def copying_disk(tmp_path):
    """A file system that takes a new place for each write, with a quota of 24 MiB on a part."""
    image, place = tmp_path / "btrfs.img", tmp_path / "btrfs"
    with image.open("wb") as stream:
        stream.truncate(128 * MIB)
    subprocess.run(["mkfs.btrfs", "--quiet", image], check=True, capture_output=True)
    place.mkdir()
    subprocess.run(["mount", "-o", "loop", image, place], check=True)
    try:
        part = place / "part"
        for words in (
            ["subvolume", "create", part],
            ["quota", "enable", place],
            ["qgroup", "limit", "24M", part],
        ):
            subprocess.run(["btrfs", *words], check=True, stdout=subprocess.DEVNULL)
        yield part
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


def fill(disk: Path) -> None:
    """Takes what is free, for real: the next write of anybody is ENOSPC, or EDQUOT."""
    for step in (MIB, 4096, 1):
        try:
            with (disk / f"full-{len(os.listdir(disk))}").open("wb", buffering=0) as stream:
                while True:
                    stream.write(bytes(step))
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise


def make_room(disk: Path) -> None:
    for each in disk.glob("full-*"):
        each.unlink()


@contextmanager
def happening(monkeypatch, stages: set[str], what) -> None:
    """Does something to the disk as soon as a stage has begun."""
    begin = recording.Manifest.begin_stage

    def begin_and_do(self, stage, at_ns=None):
        begin(self, stage, at_ns)
        if stage in stages:
            what()

    with monkeypatch.context() as patch:
        patch.setattr(recording.Manifest, "begin_stage", begin_and_do)
        yield


def the_run(disk: Path) -> Path:
    (path,) = (disk / "runs").glob("2*")
    return path


def check_told(done, path: Path) -> None:
    """The verdict is on the terminal, and one line says what was not written and what to do."""
    assert "Traceback" not in done.stderr
    assert re.search(r"^verdict  \S", done.stdout, re.MULTILINE), done.stdout
    (line,) = [each for each in done.stdout.splitlines() if each.startswith("report ")]
    assert f"cannot write {path}/verdict.json: No space left on device" in line
    assert line.endswith(f"make room, then profile-report {path}")


RUN_STAGES = ["ramp", "hold", "collect", "stop"]


@pytest.mark.parametrize("stage", RUN_STAGES)
def test_a_disk_that_is_full_from_then_on_costs_no_verdict(stage, disk, monkeypatch, call):
    later = set(RUN_STAGES[RUN_STAGES.index(stage) :])  # somebody else takes what is given back
    # One of them draws its page as well; where the disk fills makes no difference to that.
    options = ["--quiet"] if stage == "ramp" else ["--quiet", "--no-report"]
    with happening(monkeypatch, later, lambda: fill(disk)):
        done = call(cli_run.main, *QUICK, *options, "--output", disk / "runs")
    path = the_run(disk)
    assert done.returncode == 0, done.stdout + done.stderr
    check_told(done, path)
    assert "All 100 connections were established" in done.stdout
    assert not (path / "verdict.json").exists()
    # Once there is room the verdict is made of what was recorded.
    make_room(disk)
    verdict = disk / "made-later.json"
    form = [] if stage == "ramp" else ["--format", "json", "--output", verdict]
    again = call(cli_report.main, path, *form)
    assert again.returncode == 0, again.stderr
    if stage == "ramp":
        assert (path / "report.html").is_file()
    else:
        assert json.loads(verdict.read_text())["verdict"]["cause"] == "reached"


@pytest.mark.parametrize("stage", ["ramp", "hold"])
def test_room_that_was_kept_has_the_end_of_the_run(stage, disk, monkeypatch, call):
    with happening(monkeypatch, {stage}, lambda: fill(disk)):
        done = call(cli_run.main, *QUICK, "--no-report", "--output", disk / "runs")
    path = the_run(disk)
    assert done.returncode == 0, done.stdout + done.stderr
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["status"] == "finished"
    assert [each["stage"] for each in manifest["stages"]] == ["setup", *RUN_STAGES]
    verdict = json.loads((path / "verdict.json").read_text())
    assert verdict["verdict"]["cause"] == "reached"
    assert {each["name"] for each in verdict["probes"]} >= {"live_samples", "process_samples"}
    if stage == "ramp":  # the change to the hold had no room
        assert any("could not be written when they were made" in n for n in manifest["notes"])
    assert not (path / ".room").exists()


@pytest.mark.parametrize("stage", ["ramp", "hold"])
def test_a_quota_where_each_write_needs_room_ends_no_client(stage, copying_disk, monkeypatch, call):
    later = set(RUN_STAGES[RUN_STAGES.index(stage) :])
    with happening(monkeypatch, later, lambda: fill(copying_disk)):
        done = call(cli_run.main, *QUICK, "--no-report", "--output", copying_disk / "runs")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "All 100 connections were established" in done.stdout
    assert "SIGBUS" not in done.stdout


def test_json_is_printed_though_no_file_can_be_written(disk, monkeypatch, call):
    with happening(monkeypatch, {"hold", "collect", "stop"}, lambda: fill(disk)):
        done = call(cli_run.main, *QUICK, "--json", "--no-report", "--output", disk / "runs")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["verdict"]["cause"] == "reached"


SERVER = """
import socket, sys
listener = socket.create_server(("127.0.0.1", 0))
print("listens", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def server():
    child = subprocess.Popen(
        [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdout.readline() == b"listens\n"
    yield child
    child.communicate(timeout=60)


ATTACH_STAGES = ["watch", "collect", "stop"]


@pytest.mark.parametrize("stage", ATTACH_STAGES)
def test_a_watch_on_a_disk_that_fills_ends_with_its_verdict(stage, disk, server, monkeypatch, call):
    later = set(ATTACH_STAGES[ATTACH_STAGES.index(stage) :])
    words = [
        "--pid",
        server.pid,
        "--duration",
        "0.3",
        "--probes",
        "light",
        "--quiet",
        "--no-report",
    ]
    for name in ("go_first_without_memory", "stand_back", "raise_own_limit"):
        monkeypatch.setattr(cli_attach, name, lambda *_: None)  # this process is the tests' own
    with happening(monkeypatch, later, lambda: fill(disk)):
        done = call(cli_attach.main, *words, "--output", disk / "runs")
    assert done.returncode == 0, done.stdout + done.stderr
    check_told(done, the_run(disk))
    assert "No limit was met" in done.stdout


def test_a_disk_that_becomes_read_only_does_not_end_the_run(disk, monkeypatch, call):
    def protect():
        # Who has files open for writing keeps a remount away; a bind of it does not ask them.
        subprocess.run(["mount", "--bind", disk / "runs", disk / "runs"], check=True)
        subprocess.run(["mount", "-o", "remount,bind,ro", disk / "runs"], check=True)

    try:
        with happening(monkeypatch, {"hold"}, protect):
            done = call(cli_run.main, *QUICK, "--quiet", "--no-report", "--output", disk / "runs")
    finally:
        subprocess.run(["umount", "--lazy", disk / "runs"], check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "All 100 connections were established" in done.stdout
    assert "Read-only file system; make room, then profile-report" in done.stdout


def test_a_read_only_place_is_two_lines_before_anything_starts(disk, call):
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    done = call(cli_run.main, *QUICK, "--output", disk / "runs")
    assert done.returncode == 5, done.stderr
    error, fix = done.stderr.splitlines()
    assert "Read-only file system" in error
    assert "--output" in fix


def test_a_report_on_a_full_disk_shows_the_verdict_and_says_what_is_not_written(disk, call):
    done = call(cli_run.main, *QUICK, "--no-report", "--quiet", "--output", disk / "runs")
    assert done.returncode == 0, done.stderr
    path = the_run(disk)
    fill(disk)
    done = call(cli_report.main, path)
    assert done.returncode == 5, done.stdout
    assert done.stdout.startswith("verdict  All 100 connections")
    assert f"error: cannot write {path}/verdict.json" in done.stderr


def test_the_room_that_a_killed_run_kept_is_given_back_by_its_report(disk, call):
    done = call(cli_run.main, *QUICK, "--no-report", "--quiet", "--output", disk / "runs")
    assert done.returncode == 0, done.stderr
    run = RunDir(the_run(disk))
    run.reserve_room()
    assert (run.path / ".room").stat().st_blocks * 512 >= 4 * MIB
    assert call(cli_report.main, run.path).returncode == 0
    assert not (run.path / ".room").exists()


def test_half_a_batch_is_taken_back_and_the_next_goes_on(disk):
    run = create_run_dir(disk, "run")
    writer = run.writer("events", "test")
    writer.append(1, "first", 0, "")
    writer.flush()
    fill(disk)
    for number in range(3):
        writer.append(2 + number, "lost", 0, "x" * 100_000)
        writer.flush()
    assert writer.lost_rows_count == 3
    assert "No space left" in writer.last_error
    make_room(disk)
    writer._try_again_s = 0.0  # as when a second has passed
    writer.append(9, "later", 0, "")
    writer.close()
    read = RunDir(run.path).read_table("events")
    assert read.table.column("event").to_pylist() == ["first", "later"]
    assert len(list(run.table_dir("events").iterdir())) == 2  # and none for each try


def test_what_is_kept_in_memory_is_read_with_the_rest(disk):
    run = create_run_dir(disk, "run")
    fill(disk)
    writer = run.writer("events", "test", keeps_unwritten=True)
    writer.append(1, "kept", 0, "")
    writer.close()
    assert isinstance(writer, TableWriter)
    assert writer.lost_rows_count == 0
    assert run.read_table("events").table.column("event").to_pylist() == ["kept"]
