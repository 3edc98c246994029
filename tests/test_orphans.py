"""Tests of others that leave processes behind, in sessions of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.orphans import command_of

CONFTEST = """
from tests.orphans import Orphans
def pytest_configure(config):
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Orphans())
"""
LEAVES = """
import os, pathlib, signal, subprocess, time
FOLDER = pathlib.Path({folder!r})
def leave():
    words = ["setsid", "sleep", "{seconds}"]
    child = subprocess.Popen(words, stdin=subprocess.DEVNULL)
    child.returncode = 0  # it is forgotten
    (FOLDER / str(child.pid)).touch()
def test_one():
    leave()
"""
DIES = "def test_two():\n    leave()\n    os.kill(os.getpid(), signal.SIGKILL)\n"
WAITS = "def test_two():\n    (FOLDER / 'waits').touch()\n    time.sleep(20)\n"


def session(path: Path, *, more: str = "", words: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    """pytest on a test that leaves a process behind, and on one more."""
    left = path / "left"
    left.mkdir()
    (path / "conftest.py").write_text(CONFTEST)
    text = LEAVES.format(folder=str(left), seconds=f"{os.getpid()}.5") + more
    (path / "test_it.py").write_text(text)
    command = [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "--rootdir", str(path)]
    return subprocess.Popen(
        [*command, "-p", "no:cacheprovider", *words, str(path)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
    )


def pids(path: Path) -> list[int]:
    return [int(each.name) for each in (path / "left").iterdir() if each.name.isdigit()]


@pytest.mark.parametrize("words", [(), ("-n", "1")])
def test_what_is_left_behind_is_ended_and_makes_a_green_session_red(tmp_path, words):
    with session(tmp_path, words=words) as child:
        said, _ = child.communicate(timeout=90)
    assert "1 passed" in said
    assert child.returncode == 1
    assert f"LEFT BEHIND and ended: sleep {os.getpid()}.5" in said
    assert not any(command_of(pid) for pid in pids(tmp_path))


def test_what_a_test_process_that_died_had_started_is_ended(tmp_path):
    with session(tmp_path, more=DIES, words=("-n", "1", "--max-worker-restart", "0")) as child:
        said, _ = child.communicate(timeout=90)
    assert "crashed while running" in said
    assert len(pids(tmp_path)) == 2
    assert not any(command_of(pid) for pid in pids(tmp_path))


def test_ctrl_c_ends_what_the_tests_had_started(tmp_path, deadline):
    with session(tmp_path, more=WAITS, words=("-n", "1")) as child:
        deadline("the second test", (tmp_path / "left" / "waits").exists, seconds=60)
        child.send_signal(signal.SIGINT)
        child.communicate(timeout=90)
    # interrupted, or failed where the test was told before its session
    assert child.returncode in (1, 2)
    assert len(pids(tmp_path)) == 1
    assert not any(command_of(pid) for pid in pids(tmp_path))
