"""The commands of the documentation, page by page, each page run in a folder of its own.

For the tests: every command of README and docs is run for real, at the size of ``smaller.py``.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from harness.commands.family import COMMANDS

ROOT = Path(__file__).resolve().parent.parent
SMALLER = Path(__file__).with_name("smaller.py")
DEADLINE_S = 300

NOT_RUN = (
    (r"make ", "its targets are looked up in the Makefile; what they run is what all tests run"),
    (r"sudo ", "changes the machine; the same commands are run without it elsewhere"),
    (r"apt-get ", "installs packages on the machine"),
    (r"docker ", "there is no container engine where the tests run"),
    (r"sysctl -w ", "changes a setting of the machine"),
    (r"profile-attach --(unit|container) ", "no systemd and no containers where the tests run"),
    (r"profile-\w+ .*--hosts ", "one host where the pages run; tests/hosts makes several"),
    (r"python3 -m venv |/opt/", "installs packages on other hosts"),
)
"""Beginning of a line, and why it is not run."""

_SERVER = """
const { WebSocketServer } = require('ws');
const server = new WebSocketServer({ host: '127.0.0.1', port: Number(process.argv[3]) });
server.on('connection', (socket) => socket.on('message', (data) => socket.send(data)));
server.on('listening', () => console.log(server.address().port));
"""


@dataclass(frozen=True)
class Block:
    """One fenced block: its commands, and for a console block what it shows after the last one."""

    line: int
    commands: list[str]
    shown: str = ""

    @property
    def shows_verdict(self) -> bool:
        """What it shows is a verdict, which the same command must give again."""
        return self.shown.startswith("verdict")


@dataclass
class Result:
    """What came of a page: (block, exit code, stdout, stderr) of each that has something to run."""

    blocks: list[tuple[Block, int, str, str]] = field(default_factory=list)
    folder: Path = Path()
    took_s: float = 0.0


def pages() -> list[Path]:
    """Every page with a block of commands; the generated reference has tables alone."""
    found = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [page for page in found if blocks_of(page)]


def blocks_of(page: Path) -> list[Block]:
    """The blocks ``sh`` and ``console`` of a page."""
    blocks = []
    text = page.read_text()
    for match in re.finditer(r"^```(sh|console)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        kind, body = match.groups()
        line = text.count("\n", 0, match.start()) + 1
        if kind == "sh":
            blocks.append(Block(line, re.sub(r"\\\n\s*", "", body).splitlines()))
        else:
            for part in re.split(r"^\$ ", body, flags=re.MULTILINE)[1:]:
                command, _, shown = part.partition("\n")
                blocks.append(Block(line, [command], shown))
    return blocks


def reason_not_to_run(command: str) -> str:
    """Why a line is not run, '' when it is."""
    return next((why for start, why in NOT_RUN if re.match(start, command.strip())), "")


class Runner:
    """Runs pages.

    Args:
        folder: For everything.
        turn: Gives the cores to the commands of a block that shows a verdict, as it does to a run
            that is judged.
    """

    def __init__(
        self, folder: Path, turn: Callable[[], AbstractContextManager[object]] = nullcontext
    ) -> None:
        self._folder = folder
        self._turn = turn
        self._bin = folder / "bin"
        self._bin.mkdir()
        (folder / "kept").mkdir()
        for command in COMMANDS:
            start = f'exec {sys.executable} -S -E {SMALLER} {command.name} "$@"\n'
            path = self._bin / command.name
            path.write_text(f"#!/bin/sh\n{start}")
            path.chmod(0o755)
        self._environment = {
            **os.environ,
            "PATH": f"{self._bin}:{os.environ['PATH']}",
            "CONNSCOPE_BIN": str(Path(sys.executable).parent),
            "CONNSCOPE_KEPT": str(folder / "kept"),
            "NODE_PATH": str(ROOT / "tests" / "node_modules"),
            "CONNSCOPE_WARM": str(folder / "warm.sock"),
            "CI": "true",
        }
        self._warm = subprocess.Popen(
            [sys.executable, "-m", "documentation.warm", self._environment["CONNSCOPE_WARM"]],
            cwd=ROOT,
            env=self._environment,
            stdout=subprocess.PIPE,
        )
        assert self._warm.stdout is not None
        assert self._warm.stdout.readline() == b"ready\n"

    def close(self) -> None:
        """Ends what runs beside the pages."""
        self._warm.kill()
        self._warm.communicate()

    def folder_of(self, name: str) -> Path:
        """The folder of a page, made with what commands find there."""
        folder = self._folder / re.sub(r"\W", "-", name)
        folder.mkdir(exist_ok=True)
        (folder / "server.js").write_text(_SERVER)
        return folder

    def run(self, name: str, blocks: list[Block]) -> Result:
        """All blocks of a page in order, in a folder of the page's own."""
        folder = self.folder_of(name)
        result, started_s = Result(folder=folder), time.monotonic()
        for block in blocks:
            commands = [c for c in block.commands if c.strip() and not reason_not_to_run(c)]
            if commands:
                with self._turn() if block.shows_verdict else nullcontext():
                    result.blocks.append((block, *self._run_block(block, commands, folder)))
        result.took_s = time.monotonic() - started_s
        return result

    def _run_block(self, block: Block, commands: list[str], folder: Path) -> tuple[int, str, str]:
        script = "\n".join(self._adapted(command) for command in commands)
        server = None
        if "4711" in script or "profile-attach" in script:
            server = subprocess.Popen(
                ["node", "server.js", "--port", "0"], cwd=folder, env=self._environment,
                stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
            assert server.stdout is not None
            port = server.stdout.readline().strip()
            script = script.replace("4711", str(server.pid)).replace("9001", port)
        try:
            done = subprocess.run(
                ["bash", "-e", "-o", "pipefail", "-c", script], cwd=folder, capture_output=True,
                check=False, text=True, timeout=DEADLINE_S,
                env=self._environment | ({"CONNSCOPE_AS_IT_IS": "1"} if block.shown else {}),
            )  # fmt: skip
        finally:
            if server is not None:
                server.kill()
                server.communicate()
        return done.returncode, done.stdout, done.stderr

    @staticmethod
    def _adapted(command: str) -> str:
        """The places where a text cannot be run word by word."""
        command = command.replace(".venv/bin/", "").replace("in 1 2 3;", "in 1;")
        if command.rstrip().endswith("| source"):  # fish's
            return f"fish -N -c '{command}'"
        return command
