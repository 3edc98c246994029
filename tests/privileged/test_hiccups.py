"""Servers of strangers that stand still once in the ramp: named, with those who waited."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.privileged, pytest.mark.in_turn(cores=1)]

FOREIGN = Path(__file__).parents[1] / "harness" / "foreign"
STILL = {"worker-blocked", "hot-worker-code"}
SECONDS, ANSWERED, WANTED = 2, 150, 300
NODE = pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
NODE_TOO = (NODE, pytest.mark.variant)


@pytest.fixture
def ran(machine: Any, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """``ran(server, kind, count)``: the verdict of a run against one that stands still at count."""

    def run(server: str, kind: str, count: int = ANSWERED) -> dict[str, Any]:
        path = FOREIGN / server
        program = sys.executable if path.suffix == ".py" else "node"
        words = [
            *(
                sys.executable,
                "-P",
                "-m",
                "harness.commands.run",
                "--json",
                "--quiet",
                "--no-report",
            ),
            *("--output", str(tmp_path), "--connections", str(WANTED), "--ramp", str(ANSWERED)),
            *("--hold", "2", "--server-cmd", f"{program} {path} {kind} {SECONDS} {count} {{port}}"),
        ]
        done = machine.record(words, tmp_path, timeout_s=120, cores=1)
        assert "Traceback" not in done.stderr, done.stderr
        verdict: dict[str, Any] = json.loads(done.stdout)
        return verdict

    return run


def of_still(verdict: dict[str, Any]) -> list[dict[str, Any]]:
    return [finding for finding in verdict["findings"] if finding["cause"] in STILL]


@pytest.mark.parametrize(
    ("server", "kind", "causes", "word"),
    [
        ("stands_still.py", "sleep", {"worker-blocked"}, "a sleep"),
        pytest.param(
            *("stands_still.py", "stop", {"worker-blocked"}, "stopped by a signal"),
            marks=pytest.mark.variant,
        ),
        pytest.param(
            *("stands_still.py", "asks", {"worker-blocked"}, "an answer from a socket"),
            marks=pytest.mark.variant,
        ),
        pytest.param(
            *("stands_still.py", "calculate", {"hot-worker-code"}, "of a core"),
            marks=pytest.mark.variant,
        ),
        # a file system in memory takes no time but that of the core
        pytest.param("stands_still.py", "flush", STILL, "", marks=pytest.mark.variant),
        pytest.param("stands_still.cjs", "sleep", {"worker-blocked"}, "a lock", marks=NODE_TOO),
        pytest.param("stands_still.cjs", "calculate", {"hot-worker-code"}, "of a core", marks=NODE),
        pytest.param("stands_still.cjs", "flush", STILL, "", marks=NODE_TOO),
    ],
)
def test_a_server_that_stands_still_is_named_with_those_who_waited(ran, server, kind, causes, word):
    verdict = ran(server, kind)
    (finding,) = of_still(verdict)
    assert finding["cause"] in causes
    assert finding["severity"] in ("binding", "warning")
    assert finding["subject"]["role"] == "server"
    assert server in finding["subject"]["command"]
    assert word in finding["explanation"]
    if kind == "flush":
        return  # where it only takes the core, that core alone may name it
    values = {e["id"]: e["value"] for e in finding["evidence"]}
    assert values["gap_length"] > 1
    assert values["gap_waiting"] >= 5


def test_one_that_never_does_is_not_accused(ran):
    assert of_still(ran("stands_still.py", "sleep", 0)) == []
