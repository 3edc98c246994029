"""The terminal on a real pseudo-terminal and on a pipe."""

from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reports.terminal.terminal import (
    LiveView,
    Status,
    bar,
    end_lines,
    has_colour,
    is_interactive,
    picture,
    plain_line,
    print_end,
    rung_sentence,
)

WORKERS = tuple((f"server {n}", 15_000 + n, 17_143, float(n)) for n in range(64))


def _status(**changes):
    values = {
        "elapsed_s": 3.2,
        "phase": "ramp",
        "established": 80_000,
        "open_count": 79_997,
        "rate_per_s": 22_000.0,
        "failed": 3,
        "errors": (("client", "EADDRNOTAVAIL", 3),),
        "workers": WORKERS[:7],
        "time_left_s": 4.0,
        "note": "",
    }
    return Status(**{**values, **changes})


class _Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_pipe_gets_plain_lines_one_per_phase():
    stream = io.StringIO()
    with LiveView(120_000, enabled=True, stream=stream) as view:
        for phase in ("ramp", "ramp", "ramp", "hold", "hold"):
            view.update(_status(phase=phase))
    lines = stream.getvalue().splitlines()
    assert len(lines) == 3, "two phases at once, and the last status at the end"
    assert "80,000/120,000 established" in lines[0]
    assert "client EADDRNOTAVAIL 3" in lines[0]
    assert "\x1b" not in stream.getvalue()


def test_a_status_is_asked_for_only_when_it_would_be_shown():
    with LiveView(0, enabled=True, stream=io.StringIO()) as view:
        assert view.is_due("watch")
        view.update(_status(phase="watch"))
        assert not view.is_due("watch")
        assert view.is_due("collect")
    with LiveView(0, enabled=True, stream=io.StringIO(), redraw_period_s=0.0) as view:
        view.update(_status(phase="watch"))
        assert not view.is_due("watch"), "a pipe keeps its own period"
    with LiveView(0, enabled=False, stream=io.StringIO()) as view:
        assert not view.is_due("watch")


def test_disabled_shows_nothing():
    stream = io.StringIO()
    with LiveView(10, enabled=False, stream=stream) as view:
        view.update(_status())
    assert stream.getvalue() == ""


@pytest.mark.parametrize(
    ("environ", "interactive", "colour"),
    [
        ({"TERM": "xterm"}, True, True),
        ({"TERM": "xterm", "NO_COLOR": "1"}, True, False),
        ({"TERM": "xterm", "NO_COLOR": ""}, True, True),
        ({"TERM": "dumb"}, False, False),
        ({"TERM": "xterm", "CI": "true"}, False, False),
        ({"TERM": "xterm", "CI": "false"}, True, True),
        ({}, False, False),
    ],
)
def test_what_the_environment_says(environ, interactive, colour):
    assert is_interactive(_Terminal(), environ) is interactive
    assert has_colour(_Terminal(), environ) is colour
    assert not is_interactive(io.StringIO(), environ)


@pytest.mark.parametrize(("width", "height"), [(80, 24), (100, 30), (200, 50), (120, 20)])
def test_64_workers_fit(width, height):
    lines = [line.plain for line in picture(_status(workers=WORKERS), 120_000, width, height)]
    assert len(lines) < height
    shown = sum(len(re.findall(r"server \d+", line)) for line in lines)
    assert shown == 64
    assert max(len(line) for line in lines[5:]) <= width


@given(st.integers(20, 250), st.integers(4, 80), st.integers(0, 130))
def test_the_picture_never_scrolls(width, height, worker_count):
    workers = tuple((f"w{n}", n, 100, float(n)) for n in range(worker_count))
    lines = picture(_status(workers=workers, note="x"), 1000, width, height)
    assert len(lines) <= max(1, height - 1)


@given(st.floats(-1, 2), st.integers(0, 60))
def test_a_bar_has_its_width(share, width):
    assert len(bar(share, width)) == width


def test_hostile_names_cannot_drive_the_terminal():
    hostile = _status(errors=(("client", "\x1b[2J\x07", 1),), note="\x1b]0;pwned\x07")
    assert "\x1b" not in plain_line(hostile, 10)
    assert not any("\x1b" in line.plain for line in picture(hostile, 10, 80, 24))
    verdict = {"verdict": {"cause": "x", "sentence": "\x1b[2Jgone"}}
    assert not any("\x1b" in line for line in end_lines(verdict, None, 80))


_DRAW = """
import sys, time
from reports.terminal.terminal import LiveView, Status
with LiveView(1000, enabled=True) as view:
    for n in range(3):
        view.update(Status(n, f"phase{n}", n * 100, n * 100, 5.0, 0, (), (("w0", n, 10, 50.0),)))
assert "pandas" not in sys.modules
assert "matplotlib" not in sys.modules
assert "pyarrow" not in sys.modules
assert "numpy" not in sys.modules
"""


def _in_terminal(environ):
    """Runs the live view on a pseudo-terminal and returns what it wrote there."""
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", _DRAW],
        stdout=subprocess.PIPE,
        stderr=follower,
        env={"PATH": os.environ["PATH"], "TERM": "xterm-256color", "COLUMNS": "80", **environ},
    )
    os.close(follower)
    written = b""
    while True:
        try:
            part = os.read(leader, 65536)
        except OSError:  # EIO: the other end is closed
            break
        if not part:
            break
        written += part
    os.close(leader)
    stdout, _ = process.communicate(timeout=90)
    assert process.returncode == 0, written.decode()
    assert stdout == b"", "progress goes to stderr only"
    return written.decode()


def test_on_a_terminal_it_redraws_in_place_and_stays_lean():
    written = _in_terminal({})
    assert written.count("\x1b[?2026h\x1b[H") == 3, "each picture begins at the top, none scrolls"
    assert written.index("\x1b[?1049h") < written.index("phase0") < written.index("\x1b[?1049l")
    assert "\x1b[2K" not in written, "a line is overwritten, not erased first: that flickers"
    assert "\x1b[2J" not in written, "never clears the screen: that flickers"
    assert "\x1b[?25h" in written, "the cursor is shown again"
    assert re.search(r"\x1b\[[0-9;]*36m", written), "cyan"
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", written)
    last = plain[plain.rindex("phase2   ") :].splitlines()
    after = written.partition("\x1b[?1049l")[2]
    assert after.splitlines() == ["200 of 1,000 established, 0 failed, 2.0 s"]
    assert last[0].startswith("phase2   2.0 s")
    assert last[1].endswith("200 of 1,000"), "each thing on its own line"
    assert last[2].startswith("200 open")
    assert last[4].startswith("w0 ")


_RUN = """
import time
from reports.terminal.terminal import LiveView, Status
workers = tuple((f"worker {n}", 200 + n, 252, float(n)) for n in range(4))
with LiveView(1000, enabled=True, remarks=["plan: a remark"]) as view:
    for n in range(600):
        view.update(Status(n / 10, "ramp", n, n, 5.0, 0, (), workers))
        time.sleep(0.02)
"""


@pytest.fixture
def tmux(tmp_path):
    """``tmux(...)`` on a server of the test's own."""

    def run(*words):
        done = subprocess.run(
            ["tmux", "-S", str(tmp_path / "socket"), "-f", "/dev/null", *words],
            capture_output=True, text=True, timeout=90,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    yield run
    subprocess.run(["tmux", "-S", str(tmp_path / "socket"), "kill-server"], capture_output=True)


def test_a_resize_leaves_nothing_of_the_old_picture(tmux, tmp_path, deadline):
    (tmp_path / "draw.py").write_text(_RUN)
    tmux(
        "new-session", "-d", "-s", "view", "-x", "120", "-y", "40",
        f"env -u CI {sys.executable} {tmp_path / 'draw.py'}",
    )  # fmt: skip

    def settled(width, height):
        lines = tmux("capture-pane", "-p", "-t", "view").splitlines()
        drawn = [line for line in lines if line.startswith("worker 3 ")]
        bars = [line for line in lines if "of 1,000" in line]
        is_right = len(bars) == 1 and len(drawn) == 1
        return lines if is_right and 20 < len(bars[0]) <= width and len(lines) <= height else None

    for width, height in ((120, 40), (60, 15), (100, 30), (50, 12)):
        tmux("resize-window", "-t", "view", "-x", str(width), "-y", str(height))
        lines = deadline(f"one picture at {width}x{height}", lambda: settled(width, height))  # noqa: B023
        assert sum(line.startswith("ramp ") for line in lines) == 1, lines
        assert [line for line in lines if "remark" in line] == ["plan: a remark"]


def test_no_color_is_respected():
    written = _in_terminal({"NO_COLOR": "1"})
    assert "phase2" in written
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]m", written)


VERDICT = {
    "run": {"peak_connections": 80_000},
    "verdict": {"cause": "accept-spin", "sentence": "word " * 200},
    "findings": [
        {"cause": "fd-limit-process", "severity": "binding", "fix": [{"command": "wrong"}]},
        {"cause": "accept-spin", "severity": "binding",
         "fix": [{"command": f"c{n}"} for n in "12345"]},
    ],
    "ladder": [
        {"limit": "fds_per_process", "subject": "worker 1", "predicted_connections": 80_000},
        {"limit": "ephemeral_ports", "subject": "127.0.0.2", "predicted_connections": 395_222,
         "used_at_peak": 8572, "capacity": 28232, "unit": "ports"},
        {"limit": "memory", "subject": "the host", "predicted_connections": None},
    ],
    "probes": [
        {"name": "pyspy", "state": "ran", "reason": ""},
        {"name": "cpu_stacks", "state": "unavailable", "reason": "needs root"},
    ],
}  # fmt: skip


def test_the_end_has_three_lines_each_at_most():
    lines = end_lines(VERDICT, Path("runs/x/report.html"), 80)
    heads = [line[:8].strip() for line in lines]
    assert heads == ["verdict", "", "", "fix", "", "", "next", "", "report", "probe"]
    assert [line[9:] for line in lines[3:6]] == ["c1", "c2", "c3"], "of the cause itself"
    assert "the local ports of 127.0.0.2 at about 395,222" in lines[6]
    assert lines[-2].endswith("runs/x/report.html")
    assert lines[-1].endswith("cpu_stacks unavailable: needs root")
    assert all(len(line) <= 80 for line in lines)


def test_probes_that_fail_for_one_reason_have_one_line():
    late = [{"name": n, "state": "failed", "reason": "late"} for n in ("live_samples", "process")]
    verdict = {**VERDICT, "probes": [*VERDICT["probes"], *late]}
    lines = [line[9:] for line in end_lines(verdict, None, 80) if line.startswith("probe")]
    assert lines == [
        "cpu_stacks unavailable: needs root",
        "2 probes (live_samples, ...) failed: late",
    ]


def test_a_reached_target_has_the_fix_of_what_harmed_it_and_else_none():
    storm = {"cause": "keepalive-storm", "severity": "warning", "fix": [{"command": "longer"}]}
    after = {**storm, "follows_from": "x", "first_s": -1.0, "fix": [{"command": "consequence"}]}
    info = {"cause": "x", "severity": "info", "fix": [{"command": "hint"}]}
    reached = {"cause": "reached", "severity": "binding", "fix": []}
    verdict = {"verdict": {"cause": "reached", "sentence": "All."}}
    lines = end_lines({**verdict, "findings": [reached, after, storm, info]}, None, 80)
    assert lines == ["verdict  All.", "fix      longer"]
    assert end_lines({**verdict, "findings": [reached, info]}, None, 80) == ["verdict  All."]


def test_the_end_survives_an_encoding_without_blocks():
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    print_end({"verdict": {"cause": "x", "sentence": "µ"}}, None, stream)
    assert raw.getvalue() == b"verdict  ?\n"


def test_a_large_capacity_is_written_out():
    rung = {
        "limit": "file_max", "subject": "the host", "unit": "count", "used_at_peak": 240_496.0,
        "capacity": 2_466_174.0, "predicted_connections": 1_235_441.0,
    }  # fmt: skip
    assert "(used 240,496 of 2,466,174)" in rung_sentence(rung)
    cores = rung | {"used_at_peak": 0.25, "capacity": 2, "unit": ""}
    assert "(used 0.25 of 2)" in rung_sentence(cores)
