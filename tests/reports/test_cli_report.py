"""``profile-report`` on run directories written by the real writer: whole, cut, old, missing."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys

import pandas as pd
import pytest

from harness.commands import report as cli_report
from harness.commands.entry import run_command
from probes.contract import schema
from probes.contract.errors import HostError
from probes.contract.rundir import create_run_dir

pytestmark = pytest.mark.usefixtures("understood_here")

S = 1_000_000_000
T0 = 1_000 * S
CONNECTIONS = 23


def _row(table, **values):
    """One row of a table; what is not given is 0 or ''."""
    empty = {schema.TEXT: "", schema.BOOL: True, schema.F64: 0.0, schema.I64: 0}
    return [values.get(c.name, empty[c.type]) for c in schema.TABLES[table].columns]


def _write(run, table, rows):
    writer = run.writer(table, "test")
    for row in rows:
        writer.append(*_row(table, **row))
    writer.close()


@pytest.fixture
def run(tmp_path):
    """23 connections from one client to one worker; half of the probes could not run."""
    run = create_run_dir(tmp_path / "runs", "small")
    server = {"pid": 101, "role": "server", "worker": 0}
    client = {"pid": 202, "role": "client", "worker": 0, "slot": 1}
    run.write_manifest(
        {
            "schema_version": schema.SCHEMA_VERSION, "tool_version": "0.1.0", "run_id": run.run_id,
            "name": "small", "argv": ["profile-run", "--connections", "23"], "status": "finished",
            "target_connections": CONNECTIONS, "settings": {"accept": "reuseport", "hold_s": 2},
            "plan": {"workers": 1, "clients": 1}, "host": {"kernel": "6.18", "cpu_count": 2},
            "clock": {"start": {"monotonic_ns": T0, "wall_ns": 1_795_470_419 * S,
                                "uncertainty_ns": 1}},
            "stages": [{"stage": "ramp", "start_ns": T0, "end_ns": T0 + S},
                       {"stage": "hold", "start_ns": T0 + S, "end_ns": T0 + 3 * S}],
            "server": {"address": "127.0.0.1", "ports": [9001]}, "probes_asked": ["tcp_events"],
        }
    )  # fmt: skip
    limits = {"start_ns": T0 - S, "nofile_soft_count": 1000, "own_fds_count": 7, "exit_status": -1}
    _write(run, "processes", [{**server, **limits}, {**client, **limits}])
    _write(
        run,
        "connections",
        [
            {"connection": n, "start_ns": T0 + n * 1_009, "connected_ns": T0 + n * 1_009 + 500_000,
             "established_ns": T0 + n * 1_009 + 2_000_000, "stage": "open", "close_kind": "none",
             "source_address": "127.0.0.2", "destination_port": 9001}
            for n in range(CONNECTIONS)
        ],
    )  # fmt: skip
    samples = [
        {**who, "at_ns": T0 + step * S // 4, "open_count": min(step, 1) * CONNECTIONS}
        for step in range(13)
        for who in (server, client)
    ]
    _write(run, "live_samples", samples)
    _write(
        run,
        "process_samples",
        [
            {**s, "cpu_user_ns_total": 1_000_000, "rss_bytes": 5 << 20, "fd_count": 30}
            for s in samples
        ],
    )
    _write(
        run,
        "probe_health",
        [
            {"at_ns": T0 + 3 * S, "probe": "tcp_events", "state": "unavailable",
             "reason": "needs root", "fix": "sudo profile-run"},
            {"at_ns": T0 + 3 * S, "probe": "live_samples", "state": "ran", "row_count": 26},
        ],
    )  # fmt: skip
    return run


def test_everything_is_rebuilt_and_the_recording_is_untouched(run, capsys):
    raw = {p: p.read_bytes() for p in (run.path / "raw").rglob("*.arrows")}
    assert cli_report.main([str(run.path)]) == 0
    shown = capsys.readouterr()
    page = (run.path / "report.html").read_text()
    verdict = json.loads((run.path / "verdict.json").read_text())
    assert verdict["run"]["peak_connections"] == CONNECTIONS
    assert verdict["verdict"]["cause"] == "reached"
    assert verdict["verdict"]["sentence"].split("; ")[0] in page
    assert "needs root" in page
    assert "sudo profile-run" in page
    assert shown.out.startswith("verdict  ")
    assert f"report   {run.path / 'report.html'}" in shown.out
    assert "probe    tcp_events unavailable: needs root" in shown.out
    assert shown.err == ""
    derived = {p.stem for p in (run.path / "derived").glob("*.parquet")}
    assert {"connections_over_time", "worker_cpu", "processes", "flame_stacks"} <= derived
    over_time = pd.read_parquet(run.path / "derived" / "connections_over_time.parquet")
    assert over_time["open_count"].max() == CONNECTIONS
    assert raw == {p: p.read_bytes() for p in (run.path / "raw").rglob("*.arrows")}
    assert not list(run.path.rglob(".*")), "no temporary file stays"


def test_rebuilding_gives_the_same(run):
    assert cli_report.main([str(run.path)]) == 0
    first = (run.path / "report.html").read_bytes(), (run.path / "verdict.json").read_bytes()
    assert cli_report.main([str(run.path)]) == 0
    assert first == (
        (run.path / "report.html").read_bytes(),
        (run.path / "verdict.json").read_bytes(),
    )


def test_the_newest_run_is_the_default_and_json_has_stdout_alone(run, capsys, monkeypatch):
    monkeypatch.chdir(run.path.parent.parent)
    assert cli_report.main(["--json"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out) == json.loads((run.path / "verdict.json").read_text())
    assert "verdict  " in shown.err


def test_output_goes_elsewhere(run, tmp_path):
    elsewhere = tmp_path / "page.html"
    assert cli_report.main([str(run.path), "--output", str(elsewhere)]) == 0
    assert elsewhere.read_text().startswith("<!DOCTYPE html>")
    assert not (run.path / "report.html").exists()


@pytest.mark.parametrize("cut_bytes", [1, 40, 700])
def test_a_cut_stream_still_gives_a_report_that_says_so(run, capsys, cut_bytes):
    (stream,) = (run.path / "raw" / "live_samples").glob("*.arrows")
    os.truncate(stream, stream.stat().st_size - cut_bytes)
    assert cli_report.main([str(run.path)]) == 0
    assert f"raw/live_samples/{stream.name}" in (run.path / "report.html").read_text()


def test_a_run_without_any_table_still_gives_a_report(run):
    shutil.rmtree(run.path / "raw")
    assert cli_report.main([str(run.path)]) == 0
    page = (run.path / "report.html").read_text()
    assert "left no health row" in page
    assert page.count('class="empty"') >= 10


def _two_lines(capsys):
    shown = capsys.readouterr()
    lines = shown.err.splitlines()
    assert len(lines) == 2, shown.err
    assert lines[0].startswith("error: ")
    assert lines[1].startswith("fix: ")
    assert "Traceback" not in shown.out + shown.err
    return lines


def test_no_run_yet(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli_report.main([]) == 2
    assert "profile-run" in _two_lines(capsys)[1]


@pytest.mark.parametrize("kind", ["missing", "empty directory", "file"])
def test_not_a_run_directory(tmp_path, capsys, kind):
    path = tmp_path / "x"
    if kind == "empty directory":
        path.mkdir()
    elif kind == "file":
        path.write_text("")
    assert cli_report.main([str(path)]) == 2
    assert str(path) in _two_lines(capsys)[0]


def test_another_schema_version(run, capsys):
    manifest = run.read_manifest()
    run.write_manifest({**manifest, "schema_version": 99, "tool_version": "9.9"})
    assert cli_report.main([str(run.path)]) == 5
    lines = _two_lines(capsys)
    assert "schema version 99" in lines[0]
    assert "9.9" in lines[1]


@pytest.mark.parametrize("text", ["", '{"schema_version": 1, "na', "[]"])
def test_a_cut_manifest(run, capsys, text):
    (run.path / "manifest.json").write_text(text)
    assert cli_report.main([str(run.path)]) == 5
    _two_lines(capsys)


@pytest.mark.parametrize("arguments", [["--nonsense"], ["a", "b"], ["--output"]])
def test_wrong_usage(capsys, arguments):
    assert cli_report.main(arguments) == 2
    _two_lines(capsys)


def test_an_output_that_cannot_be(run, tmp_path, capsys):
    assert cli_report.main([str(run.path), "--output", str(tmp_path)]) == 2
    assert "is a directory" in _two_lines(capsys)[0]
    assert cli_report.main([str(run.path), "--output", str(tmp_path / "no" / "x.html")]) == 2
    assert f"mkdir -p {tmp_path / 'no'}" in _two_lines(capsys)[1]


def test_results_that_cannot_be_written(run, capsys):
    shutil.rmtree(run.path / "derived")
    (run.path / "derived").write_text("in the way")
    assert cli_report.main([str(run.path)]) == 5
    assert "derived" in _two_lines(capsys)[0]
    assert (run.path / "verdict.json").exists(), "what matters most was written first"


@pytest.mark.privileged
def test_a_full_disk_is_two_lines_and_loses_nothing(run, tmp_path):
    """A file system of 200 KiB: the recording and the verdict fit, the page does not."""
    disk = tmp_path / "disk"
    disk.mkdir()
    script = (
        f"mount -t tmpfs -o size=200k tmpfs {disk} && cp -r {run.path} {disk}/run && "
        f"cd / && {sys.executable} -P -m harness.commands.report {disk}/run; code=$?; "
        f"ls -A {disk}/run; exit $code"
    )
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script], capture_output=True, text=True, timeout=150
    )
    assert done.returncode == 5, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 2, done.stderr
    assert "No space left on device" in lines[0]
    assert lines[1].startswith("fix: df -h ")
    assert {"verdict.json", "manifest.json", "raw"} <= set(done.stdout.split())
    assert not [name for name in done.stdout.split() if name.startswith(".")], "no torn page"


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (HostError("no BTF", fix="boot one"), 4, "no BTF"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (
            OSError(errno.ENOSPC, "No space left on device", "/x/y"),
            5,
            "No space left on device (/x/y)",
        ),
        (PermissionError(errno.EACCES, "Permission denied"), 5, "Permission denied"),
        (HostError("a\nb\x1b[2J", fix="c\nd"), 4, "a b\N{REPLACEMENT CHARACTER}[2J"),
    ],
)
def test_every_error_is_two_lines_and_a_code(capsys, error, code, text):
    def fail(_argv):
        raise error

    assert run_command(fail, []) == code
    assert text in _two_lines(capsys)[0]


def test_a_defect_is_not_hidden():
    with pytest.raises(ZeroDivisionError):
        run_command(lambda _argv: 1 // 0, [])


def test_help_fits_a_screen_and_has_examples(capsys):
    with pytest.raises(SystemExit) as stop:
        cli_report.main(["--help"])
    assert stop.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 24
    assert any("profile-report runs/" in line for line in lines)
