"""Pages of the documentation, each run once for all tests that look at it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from documentation.page_commands import ROOT, Block, Result, Runner, blocks_of, pages
from harness.commands.family import COMMANDS, Command
from tests.machine import Machine

PAGES_AT_ONCE = 3
CORES_OF_A_VERDICT = 1.5
"""What the busiest command whose verdict is shown takes: a worker that pings, and its clients."""
FIRST = ("exports.md", "ci.md", "matrix.md")


@pytest.fixture(scope="session")
def runner(tmp_path_factory: pytest.TempPathFactory, machine: Machine) -> Iterator[Runner]:
    """One for all pages, which share what was recorded."""
    assert os.geteuid() == 0, "walls are met in a network namespace: sudo make test"
    folder = tmp_path_factory.mktemp("documentation")
    runner = Runner(folder, lambda: machine.until_recorded(cores=CORES_OF_A_VERDICT))
    yield runner
    runner.close()
    shutil.rmtree(folder, ignore_errors=True)


class Results(dict[str, "Future[Result]"]):
    """Every page's result and that of every help, some at a time, since they mostly wait."""

    def __init__(self, runner: Runner, pool: ThreadPoolExecutor) -> None:
        self._runner, self._pool = runner, pool

    def __missing__(self, name: str) -> Future[Result]:
        command = {command.name: command for command in COMMANDS}.get(name)
        if command is not None:
            self[name] = self._pool.submit(_run_help, self._runner, command, self)
        else:
            self[name] = self._pool.submit(self._runner.run, name, blocks_of(ROOT / name))
        return self[name]


@pytest.fixture(scope="session")
def results(runner: Runner, request: pytest.FixtureRequest) -> Iterator[Results]:
    """Those that have a test in this session are begun at once."""
    callspecs = [getattr(item, "callspec", None) for item in request.session.items]
    tests = {callspec.params.get("name") for callspec in callspecs if callspec}
    helps = [command.name for command in COMMANDS if command.name in tests]
    names = [str(page.relative_to(ROOT)) for page in pages()]
    # What others wait for comes first.
    first = [name for name in names if Path(name).name in FIRST and (helps or name in tests)]
    with ThreadPoolExecutor(PAGES_AT_ONCE) as pool:
        found = Results(runner, pool)
        for name in [*first, *(name for name in names if name in tests), *helps]:
            assert found[name]
        yield found


def _run_help(runner: Runner, command: Command, found: Results) -> Result:
    """The examples of a help, where the runs that they name are there."""
    name = f"help of {command.name}"
    runs = runner.folder_of(name) / "runs"
    runs.mkdir()
    exports, ci, matrix = (found[f"docs/how-to/{page}"].result().folder / "runs" for page in FIRST)
    (base,), (change,) = ci.glob("*-base-*"), ci.glob("*-change-*")
    for run, short in (
        (base, "A"), (change, "B"), (change, "C"), (base, "x-before-1"), (change, "x-after-1"),
        ((exports / "latest").resolve(), "recorded"),
        (max(matrix.glob("*-matrix-*")), "x-matrix-x"),
    ):  # fmt: skip
        shutil.copytree(run, runs / short)
    (runs / "latest").symlink_to("recorded")
    examples = [example.command for example in command.make_parser().examples]
    return runner.run(name, [Block(0, [text]) for text in examples])


@pytest.fixture(scope="session")
def recorded(results: Results) -> Path:
    """``runs/`` of the page about exports: its latest run has stacks of two workers."""
    return results["docs/how-to/exports.md"].result().folder / "runs"
