"""A reader that goes away costs neither a recording nor its exit code."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from harness.commands import end as command_end

AT_WORK = (
    "import sys\n"
    "from harness.commands.entry import run_command\n"
    "def work(words):\n"
    "    for n in range(3): sys.stderr.write(f'line {n}\\n'); sys.stderr.flush()\n"
    "    open(sys.argv[1], 'w').write('all of it')\n"
    "    return 3\n"
    "sys.exit(run_command(work))\n"
)


@pytest.mark.parametrize("redirection", ["2>&1 | true", "2>/dev/full", ">&- 2>&-", "| true"])
def test_work_goes_on_when_nobody_reads_what_it_says(tmp_path: Path, redirection: str):
    done = tmp_path / "done"
    line = f'set -o pipefail; "$0" -c "$1" {done} {redirection}'
    ended = subprocess.run(["bash", "-c", line, sys.executable, AT_WORK], timeout=90, check=False)
    assert done.read_text() == "all of it"
    assert ended.returncode == 3


def test_a_verdict_that_nobody_reads_still_is_the_exit_code(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("harness.results.conclusion.conclude", lambda run, **_: {"verdict": {}})
    run: Any = type("Run", (), {"path": tmp_path})
    read_fd, write_fd = os.pipe()
    os.close(read_fd)
    with suppress(BrokenPipeError), os.fdopen(write_fd, "w", buffering=1) as nobody_reads:
        monkeypatch.setattr(sys, "stdout", nobody_reads)
        assert command_end.end(run, [], as_json=True, quiet=True) == {"verdict": {}}


def test_ctrl_c_during_the_imports_is_two_lines():
    code = "import harness\nraise KeyboardInterrupt"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=90)
    assert ended.returncode != 0
    assert [line.partition(":")[0] for line in ended.stderr.splitlines()] == ["error", "fix"]
