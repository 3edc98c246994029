"""Pages of the documentation, each run once for all tests that look at it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from documentation.page_commands import ROOT, Block, Result, Runner, blocks_of, pages
from harness.commands import COMMANDS, Command

PAGES_AT_ONCE = 3
FIRST = ("exports.md", "ci.md", "matrix.md")


@pytest.fixture(scope="session")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    """One for all pages, which share what was recorded."""
    assert os.geteuid() == 0, "walls are met in a network namespace: sudo make test"
    folder = tmp_path_factory.mktemp("documentation")
    runner = Runner(folder)
    yield runner
    runner.close()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def results(runner: Runner) -> Iterator[dict[str, Future[Result]]]:
    """Every page's result and that of every help; some at a time, since they mostly wait."""
    found: dict[str, Future[Result]] = {}
    with ThreadPoolExecutor(PAGES_AT_ONCE) as pool:
        # What others wait for comes first.
        for page in sorted(pages(), key=lambda page: page.name not in FIRST):
            name = str(page.relative_to(ROOT))
            found[name] = pool.submit(runner.run, name, blocks_of(page))
        for command in COMMANDS:
            found[command.name] = pool.submit(_run_help, runner, command, found)
        yield found


def _run_help(runner: Runner, command: Command, found: dict[str, Future[Result]]) -> Result:
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
def recorded(results: dict[str, Future[Result]]) -> Path:
    """``runs/`` of the page about exports: its latest run has stacks of two workers."""
    return results["docs/how-to/exports.md"].result().folder / "runs"
