"""Completion in the real shells: the words after TAB."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import time

import pytest

from harness.commands.completion import completion_script
from harness.options.parser import SHELLS

LINES = {
    "profile-run --connecti": "--connections",
    "profile-run --accept hand": "handoff",
    "profile-run --probes lig": "light",
    "profile-run --inject garb": "garbage:",
    "profile-run --output fol": "folder/",
    "profile-report --format openm": "openmetrics",
    "profile-matrix every": "every-cause",
    "profile-compare fol": "folder/",
    "profile-doctor --print-completion fi": "fish",
}


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("completion")
    (folder / "folder").mkdir()
    for shell in SHELLS:
        (folder / f"script.{shell}").write_text(completion_script(shell))
    return folder


def _run(command, folder):
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_bash(scripts):
    ask = """
    source script.bash
    complete_line() {
      read -ra COMP_WORDS <<<"$1"; COMP_CWORD=$(( ${#COMP_WORDS[@]} - 1 )); COMPREPLY=()
      how=$(complete -p "${COMP_WORDS[0]}"); how=${how#* -F }
      "${how%% *}" "${COMP_WORDS[0]}" "${COMP_WORDS[COMP_CWORD]}"
      echo "${COMPREPLY[0]}"
    }
    while IFS= read -r line; do complete_line "$line"; done
    """
    done = subprocess.run(
        ["bash", "--norc", "-c", ask], cwd=scripts, input="\n".join(LINES) + "\n",
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.stderr == ""
    # bash itself adds the slash of a folder
    assert done.stdout.splitlines() == [word.rstrip("/") for word in LINES.values()]


def test_fish(scripts):
    for line, word in LINES.items():
        ask = f"source script.fish; complete -C '{line}'"
        found = [answer.split("\t")[0] for answer in _run(["fish", "-N", "-c", ask], scripts)]
        assert word in found, line


def test_zsh(scripts):
    """An interactive zsh on a terminal gets the line, TAB and Return; the command echoes."""
    leader, follower = pty.openpty()
    shell = subprocess.Popen(
        ["zsh", "-f", "-i"], stdin=follower, stdout=follower, stderr=follower, cwd=scripts,
        start_new_session=True, env={"PATH": os.environ["PATH"], "TERM": "dumb", "PS1": ""},
    )  # fmt: skip
    os.close(follower)
    try:
        commands = {line.split()[0] for line in LINES}
        echo = "; ".join(f'{name}() {{ print -r -- "<$*>" }}' for name in sorted(commands))
        _say(
            leader,
            'autoload -U compinit; compinit -u -D; eval "$(<script.zsh)"\n'
            f"{echo}; print R''EADY\n",
        )
        _read_until(leader, "READY")
        for line, word in LINES.items():
            _say(leader, f"{line}\t\n")
            rest = line.rpartition(" ")[0].partition(" ")[2]
            wanted = [*rest.split(), word.rstrip("/")]  # Return takes the slash away again
            assert _read_until(leader, r"<[^>]*>").strip("<>").split() == wanted
    finally:
        shell.kill()
        shell.wait()
        os.close(leader)


def _say(leader, text):
    os.write(leader, text.encode())


def _read_until(leader, pattern, *, seconds=30.0):
    end_s, seen = time.monotonic() + seconds, ""
    while not (found := re.search(pattern, seen)):
        assert time.monotonic() < end_s, f"waited for {pattern}, saw {seen[-400:]!r}"
        if select.select([leader], [], [], 0.5)[0]:
            seen += os.read(leader, 65536).decode(errors="replace")
    return found[0]
