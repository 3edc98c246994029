"""The matrix of kills: what it takes for wrong, and one kill of each kind for real.

``python -m bench.kill_matrix`` makes hundreds of them, at any moment.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from bench import kill_matrix

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_S = 200


@pytest.mark.parametrize(
    ("words", "parent", "role"),
    [
        (["python", "-P", "-m", "probes.collect.main", "--run-dir", "x"], "supervisor", "probes"),
        (["py-spy", "record"], "probes", "py_spy"),
        (
            ["python", "-P", "-m", "probes.symbols.name_parser_main", "7", "8"],
            "probes",
            "name_parser",
        ),
        (["python", "-P", "-m", "harness.server.main"], "supervisor", "server_parent"),
        (["python", "-P", "-m", "harness.server.main"], "server_parent", "worker"),
        (["python", "-P", "-m", "harness.client.main"], "client_parent", "client"),
        (["python", "-P", "-m", "harness.foreign.main"], "supervisor", "launcher"),
        (["nginx: worker process"], "server", "server"),
        (["sh"], "supervisor", "other"),
    ],
)
def test_a_process_is_known_by_what_it_runs_and_by_its_parent(words, parent, role):
    assert kill_matrix.role_of(words, parent) == role


def test_who_ends_while_it_stands_still_was_stopped_all_the_same(monkeypatch):
    child = subprocess.Popen(["sleep", "60"])

    def ends_meanwhile(_seconds):
        child.kill()
        child.wait()

    monkeypatch.setattr(kill_matrix.time, "sleep", ends_meanwhile)
    kill_matrix._send(child.pid, "stop", random.Random(1))
    assert child.returncode == -9


def finding(cause: str, pid: int = 0) -> dict:
    return {"cause": cause, "subject": {"pid": pid}}


@pytest.mark.parametrize(
    ("role", "found", "is_right"),
    [
        ("probes", finding("reached"), True),
        ("worker", finding("worker-crash", 7), True),
        ("worker", finding("worker-crash", 8), False),
        ("supervisor", finding("worker-crash", 7), False),
        ("client", finding("memory-exhausted"), False),
    ],
)
def test_nobody_else_may_be_blamed_for_a_kill(role, found, is_right):
    assert (kill_matrix.complaints(role, {"findings": [found]}, {7}) == []) is is_right


def test_what_stood_still_may_be_named_for_what_that_did():
    verdict = {"findings": [finding("worker-blocked", 7)]}
    assert kill_matrix.complaints("worker", verdict, {7}, "stop") == []
    assert kill_matrix.complaints("worker", verdict, {7}, "kill")
    assert kill_matrix.complaints("probes", verdict, {7}, "stop")


def test_all_roles_are_drawn_equally_often_and_the_same_again():
    drawn = list(kill_matrix.draws(200, 2016))
    assert drawn == list(kill_matrix.draws(200, 2016))
    pairs = [(way, role) for _, way, role, _ in drawn]
    assert {pairs.count(pair) for pair in pairs} <= {9, 10}
    assert len(set(pairs)) == sum(map(len, kill_matrix.ROLES.values()))


@pytest.mark.privileged
@pytest.mark.shared
@pytest.mark.parametrize(
    ("only", "how"),
    [
        ("own,supervisor", "kill"),
        ("own,server_parent", "kill"),
        ("command,launcher", "kill"),
        ("watch,probes", "kill"),
        pytest.param("own,cgroup_guard", "kill", marks=pytest.mark.variant),
        pytest.param("command,supervisor", "kill", marks=pytest.mark.variant),
        ("own,probes", "memory"),
        pytest.param("watch,probes", "memory", marks=pytest.mark.variant),
        pytest.param("own,probes", "stop", marks=pytest.mark.variant),
    ],
)
def test_whoever_is_killed_there_is_a_report_and_nothing_is_left(tmp_path, only, how):
    words = ["--kills", "1", "--at", "3", "--only", only, "--how", how, "--output", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "bench.kill_matrix", *words],
        cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (line,) = (tmp_path / f"{how}s-2016.jsonl").read_text().splitlines()
    kill = json.loads(line)
    assert kill["killed_pid"] > 0
    assert kill["wrong"] == []
    assert kill["cause"]
