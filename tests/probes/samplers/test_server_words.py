"""The server's own words, against programs that write known lines."""

import os
import shutil
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probes.contract.clock import now_ns
from probes.contract.probe import ProcessRef, Target
from probes.samplers.server_words import (
    LINE_CHARACTERS,
    LOOK_BYTES,
    MOST_KINDS_COUNT,
    ServerWordsProbe,
    inert,
    journal_lines,
    kind_of,
    telling,
)

EMFILE = "2026/11/29 21:30:01 [crit] 23#23: accept4() failed (24: Too many open files)"


def rows(run, probe):
    probe.stop(now_ns())
    for writer in probe.writers:
        writer.close()
    return run.read_table("server_words").table.to_pylist()


@pytest.fixture
def log(run):
    (run.path / "logs").mkdir(exist_ok=True)
    path = run.path / "logs" / "server.log"
    path.write_text("listening on 9001\n")
    return path


@pytest.fixture
def probe(run, log):
    made = ServerWordsProbe()
    made.check()
    made.start(Target(run, {}, frozenset(), None))
    return made


def append(path, text):
    with path.open("a") as stream:
        stream.write(text)


def test_lines_of_one_kind_are_one_row_an_interval_with_their_count(run, log, probe):
    append(log, EMFILE + "\n" + EMFILE.replace("23#23", "24#24") + "\nhello\n")
    before_ns = now_ns()
    probe.sample(before_ns)
    append(log, 5 * (EMFILE + "\n"))
    probe.sample(now_ns())
    found = rows(run, probe)
    assert [(row["line"], row["event_count"]) for row in found] == [(EMFILE, 2), (EMFILE, 5)]
    assert {row["first_ns"] for row in found} == {before_ns}
    assert {(row["source"], row["pid"]) for row in found} == {("server.log", 0)}


def test_a_line_that_has_not_ended_waits_for_its_end(run, log, probe):
    append(log, "fatal: out of ")
    probe.sample(now_ns())
    append(log, "cheese\nerror without an end")
    probe.sample(now_ns())
    lines = [row["line"] for row in rows(run, probe)]
    assert lines == ["fatal: out of cheese", "error without an end"]


def test_a_flood_is_read_in_part_and_said_to_be(run, log, probe):
    append(log, "error: flood\n" * (3 * LOOK_BYTES // 13))
    probe.sample(now_ns())
    append(log, "error: the end\n")
    found = rows(run, probe)
    assert found[0]["event_count"] <= LOOK_BYTES // 13 + 1
    assert [row["line"] for row in found] == ["error: flood", "error: the end"]
    assert "passed over" in probe.note
    assert probe.lost_count == 0


def test_kinds_beyond_what_is_kept_are_counted(run, log, probe):
    for index in range(MOST_KINDS_COUNT + 7):
        append(log, f"error in {chr(0x4E00 + index)}\n")
    found = rows(run, probe)
    assert len(found) == MOST_KINDS_COUNT
    assert probe.lost_count == 7


def test_a_log_that_was_cut_is_read_from_its_start(run, log, probe):
    append(log, "warning: one, and long enough\n")
    probe.sample(now_ns())
    log.write_text("warning: two\n")
    probe.sample(now_ns())
    assert [row["line"] for row in rows(run, probe)] == [
        "warning: one, and long enough",
        "warning: two",
    ]


@given(st.binary(max_size=3_000))
def test_any_bytes_become_lines_that_are_inert_and_short(data):
    for line in telling(b"error ".decode() + data.decode("utf-8", "replace")):
        assert line.isprintable()
        assert 0 < len(line) <= LINE_CHARACTERS
        assert len(kind_of(line)) <= LINE_CHARACTERS


def test_escapes_and_marks_of_direction_do_not_survive():
    assert inert("\x1b[31merror\u202e\u2028 x\t\ty\r") == "[31merror x y"


WRITES = """
import os, sys
log = os.open({log!r}, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
access = os.open({access!r}, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
print("old error", file=sys.stderr, flush=True)
os.write(log, b"old error of the log\\n")
print("ready", flush=True)
sys.stdin.readline()
print("panic: on stderr", file=sys.stderr, flush=True)
os.write(log, b"error: in its own log\\n")
os.write(access, b"error: 500 GET /\\n")
print("written", flush=True)
sys.stdin.readline()
"""


def test_a_server_that_runs_already_is_heard_from_now_on(run, tmp_path):
    code = WRITES.format(log=str(tmp_path / "error.log"), access=str(tmp_path / "access.log"))
    with (tmp_path / "stderr").open("ab") as stderr:
        child = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
    with child:
        assert child.stdout.readline() == "ready\n"
        probe = ServerWordsProbe()
        ref = ProcessRef(child.pid, "server", 0, is_python=True)
        probe.start(Target(run, {child.pid: ref}, frozenset(), None, attached=True))
        held = len(os.listdir("/proc/self/fd"))
        child.stdin.write("go\n")
        child.stdin.flush()
        assert child.stdout.readline() == "written\n"
        found = rows(run, probe)
        assert len(os.listdir("/proc/self/fd")) < held
        child.communicate("end\n")
    assert {(row["source"], row["line"], row["pid"]) for row in found} == {
        ("stderr", "panic: on stderr", child.pid),
        ("error.log", "error: in its own log", child.pid),
    }


EXPORT = """__CURSOR=s=0;i=1
__REALTIME_TIMESTAMP=1764450000000000
__MONOTONIC_TIMESTAMP=23000001
_BOOT_ID=0123456789abcdef0123456789abcdef
_PID=23
MESSAGE=error: from the unit

__CURSOR=s=0;i=2
__REALTIME_TIMESTAMP=1764450001000000
__MONOTONIC_TIMESTAMP=24000001
_BOOT_ID=0123456789abcdef0123456789abcdef
_PID=24
MESSAGE=fatal: of another

"""


def test_the_journal_is_asked_by_pid_and_answers_in_the_clock_of_the_run(tmp_path):
    remote = shutil.which("systemd-journal-remote", path="/lib/systemd:/usr/lib/systemd")
    if remote is None or shutil.which("journalctl") is None:
        pytest.skip("systemd-journal-remote, which makes a journal of a text, is not installed")
    path = tmp_path / "a.journal"
    subprocess.run([remote, "-o", path, "-"], input=EXPORT.encode(), check=True)
    words = ["journalctl", f"--file={path}", "--output=json", "--no-pager", "_PID=23"]
    assert journal_lines(words) == [(23_000_001_000, 23, "error: from the unit")]


def test_no_journal_and_nonsense_from_it_are_no_lines():
    assert journal_lines(["/nowhere/journalctl"]) == []
    assert journal_lines(["echo", '{"MESSAGE": 1}\n[1]\nnonsense']) == []
