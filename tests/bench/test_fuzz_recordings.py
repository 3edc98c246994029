"""Damaged run directories: a few of those of ``bench.fuzz_recordings``, and some by name."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from bench.fuzz_recordings import RECORDINGS, Outcome
from bench.recordings import archive
from harness.commands import compare as cli_compare
from harness.commands import report as cli_report
from probes.contract import live as live_memory
from probes.contract.errors import RunDirError
from probes.contract.live import Header, Live

COUNT = 24


def test_no_damage_is_a_traceback_a_signal_or_gigabytes():
    done = subprocess.run(
        [sys.executable, "-m", "bench.fuzz_recordings", "--count", str(COUNT), "--seed", "2016"],
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{COUNT} damaged runs, 0 not as they must be" in done.stdout


@pytest.mark.parametrize(
    ("code", "said", "is_wrong"),
    [
        (0, "note: x\n", False),
        (5, "error: a\nfix: b\n", False),
        (2, "error: a\nfix: b\n", False),
        (5, "error: a\n", True),
        (1, "Traceback (most recent call last):\n", True),
        (5, "error: MemoryError\nfix: b\n", True),
        (-11, "", True),
    ],
)
def test_what_counts_as_wrong(code, said, is_wrong):
    assert bool(Outcome(0, "", code, 0, said).complaint) is is_wrong


@pytest.fixture
def run(tmp_path):
    return archive.unpack(RECORDINGS / f"every-cause/fd-limit-server{archive.SUFFIX}", tmp_path)


@pytest.mark.parametrize("name", ["settings", "host", "server", "stages", "clock"])
def test_a_manifest_of_other_types_is_two_lines(run, call, name):
    document = json.loads((run / "manifest.json").read_text())
    document[name] = "a text"
    (run / "manifest.json").write_text(json.dumps(document))
    for main, arguments in ((cli_report.main, [run, "--format", "json"]),
                            (cli_compare.main, [run, run])):  # fmt: skip
        done = call(main, *arguments)
        assert done.returncode in {0, 2, 5}, done.stderr
        assert len(done.stderr.splitlines()) == (2 if done.returncode else 0)


def test_a_pipe_in_the_place_of_live_bin_is_not_waited_for(run, call):
    (run / "raw" / "connections").rename(run / "gone")
    (run / "live.bin").unlink(missing_ok=True)
    os.mkfifo(run / "live.bin")
    done = call(cli_report.main, run)
    assert done.returncode in {0, 5}, done.stderr


def test_a_file_of_holes_that_claims_a_billion_connections_is_refused(tmp_path):
    fd = live_memory.create(tmp_path / "live.bin", 1, 1)
    live = Live(fd)
    live.header[Header.CAPACITY] = 1_000_000_000
    live.close()
    os.ftruncate(fd, 1 << 40)
    with pytest.raises(RunDirError):
        Live(fd, writable=False)
    os.close(fd)
