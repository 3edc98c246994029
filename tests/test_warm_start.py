"""A command that is forked does what one that is executed does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest

from tests import warm_start
from tests.warm_start import PREFIX, WarmProcess

RUN = [*PREFIX, "harness.commands.run"]
ATTACH = [*PREFIX, "harness.commands.attach"]
LIGHT = ["--connections", "23", "--workers", "1", "--probes", "light", "--no-report"]
WORDS = [
    pytest.param([*RUN, "--connections", "x"], id="usage"),
    pytest.param([*RUN, "--help"], id="help"),
    pytest.param([*ATTACH, "--pid", str(2**22 + 1)], id="nobody"),
]


@pytest.mark.parametrize("words", WORDS)
def test_it_says_and_ends_as_one_that_is_executed(words):
    there = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    here = warm_start.run(words, timeout=60)
    assert vars(here) == vars(there)


def test_a_run_is_recorded_with_its_words_folder_and_environment(tmp_path):
    words = [*RUN, *LIGHT, "--hold", "0", "--json", "--quiet"]
    done = warm_start.run(words, timeout=60, cwd=tmp_path, env={**os.environ, "RUNS": "23"})
    assert done.returncode == 0, done.stderr
    verdict = json.loads(done.stdout)
    assert verdict["verdict"]["cause"] == "reached"
    assert verdict["run"]["argv"][1:] == words[4:]
    assert (tmp_path / "runs" / "latest").resolve().name == verdict["run"]["id"]


def test_ctrl_c_and_a_kill_reach_it(tmp_path, deadline):
    words = [*RUN, *LIGHT, "--hold", "60", "--output", str(tmp_path)]
    for number, code in ((signal.SIGINT, 130), (signal.SIGKILL, -9)):
        run = warm_start.start(
            words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
        )
        assert isinstance(run, WarmProcess)
        assert os.getpgid(run.pid) == run.pid
        lines = iter(run.stderr)
        assert any("| hold " in line for line in lines)
        run.send_signal(number)
        assert run.wait(60) == code
        run.communicate(60)
    deadline("its fleet is gone", lambda: not fleet_in(tmp_path))


def fleet_in(path):
    """Processes that have the folder in their command line."""
    found = subprocess.run(["pgrep", "-f", str(path)], capture_output=True, text=True, check=False)
    return [pid for pid in found.stdout.split() if int(pid) != os.getpid()]


def test_what_is_not_ours_is_executed():
    child = warm_start.start([sys.executable, "-c", "print(23)"], stdout=subprocess.PIPE)
    assert isinstance(child, subprocess.Popen)
    assert child.communicate(timeout=60)[0] == "23\n"
