"""Whoever sets the clock meanwhile: how long something took is of a clock that nobody sets."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

HOUR_S = 3_600
JUMPS = """
#define _GNU_SOURCE
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

/* Each quarter of a second another hour: the one before, this one, the next one. */
static long jump(void)
{
    struct timespec at;
    syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &at);
    return (((long)at.tv_sec * 4 + at.tv_nsec / 250000000) % 3 - 1) * 3600;
}

int clock_gettime(clockid_t clock, struct timespec *at)
{
    long failed = syscall(SYS_clock_gettime, clock, at);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        at->tv_sec += jump();
    return failed;
}

int gettimeofday(struct timeval *at, void *zone)
{
    struct timespec now;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &now);
    at->tv_sec = now.tv_sec;
    at->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *at)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (at)
        *at = now.tv_sec;
    return now.tv_sec;
}
"""


@pytest.fixture(scope="module")
def jumping_clock(tmp_path_factory):
    """A library whose wall clock jumps by an hour, forth and back, for all that are started."""
    folder = tmp_path_factory.mktemp("clock")
    (folder / "jumps.c").write_text(JUMPS)
    library = folder / "jumps.so"
    words = ["cc", "-shared", "-fPIC", "-o", library, folder / "jumps.c"]
    subprocess.run(words, check=True)
    folder.chmod(0o755)
    return {**os.environ, "LD_PRELOAD": str(library)}


def test_the_clock_does_jump(jumping_clock):
    code = "import time, datetime; print(time.time(), datetime.datetime.now().timestamp())"
    code = f"import time\nfor _ in range(16):\n    {code}\n    time.sleep(0.06)"
    done = subprocess.run(
        [sys.executable, "-c", code], env=jumping_clock, capture_output=True, text=True, check=True
    )
    for column in (0, 1):
        seen = [float(line.split()[column]) for line in done.stdout.splitlines()]
        assert max(seen) - min(seen) > HOUR_S - 60


def test_a_run_in_which_the_clock_is_set_is_told_as_any_other(jumping_clock, tmp_path):
    words = (
        *("--connections", "60", "--ramp", "40", "--hold", "2", "--probes", "light"),
        *("--json", "--output", str(tmp_path)),
    )
    before = datetime.now(UTC)
    done = subprocess.run(
        [sys.executable, "-P", "-m", "harness.commands.run", *words],
        env=jumping_clock, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    verdict = json.loads(done.stdout)
    assert verdict["verdict"]["cause"] == "reached"
    assert verdict["run"]["held_connections"] == 60
    run = tmp_path / verdict["run"]["id"]
    manifest = json.loads((run / "manifest.json").read_text())
    lasted_s = {
        each["stage"]: (each["end_ns"] - each["start_ns"]) / 1e9 for each in manifest["stages"]
    }
    assert {"ramp", "hold", "stop"} <= set(lasted_s)
    assert all(0 <= each < HOUR_S - 60 for each in lasted_s.values()), lasted_s
    assert lasted_s["ramp"] > 1.0  # 60 at 40 a second
    assert lasted_s["hold"] > 1.9
    begun = datetime.fromtimestamp(manifest["clock"]["start"]["wall_ns"] / 1e9, UTC)
    assert abs(begun - before) < timedelta(seconds=2 * HOUR_S)
    page = (run / "report.html").read_text()
    assert begun.strftime("%Y-%m-%d %H:%M:%S UTC") in page
    assert_in_order(run)


def assert_in_order(run: Path) -> None:
    """All rows of all tables are within the run, by the clock that nobody sets."""
    from probes.contract.rundir import open_run_dir
    from probes.contract.schema import TABLES

    recording = open_run_dir(run)
    stages = recording.read_manifest()["stages"]
    first_ns, last_ns = stages[0]["start_ns"], stages[-1]["end_ns"]
    seen = 0
    for name, table in TABLES.items():
        if "at_ns" in table.column_names:
            moments = recording.read_table(name).table["at_ns"].to_pylist()
            seen += len(moments)
            slack_ns = 600 * 10**9  # a crowded machine; far from an hour
            assert all(first_ns - slack_ns <= at <= last_ns + slack_ns for at in moments), name
    assert seen > 20
