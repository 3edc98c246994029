"""Pages of the documentation, each run once for all tests that look at it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from documentation.page_commands import ROOT, Result, Runner, blocks_of, pages

PAGES_AT_ONCE = 3


@pytest.fixture(scope="session")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    """One for all pages, which share what was recorded."""
    assert os.geteuid() == 0, "walls are met in a network namespace: sudo make test"
    folder = tmp_path_factory.mktemp("documentation")
    yield Runner(folder)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def results(runner: Runner) -> Iterator[dict[str, Future[Result]]]:
    """Every page's result; pages are run some at a time, since they mostly wait."""
    with ThreadPoolExecutor(PAGES_AT_ONCE) as pool:
        yield {
            str(page.relative_to(ROOT)): pool.submit(
                runner.run, str(page.relative_to(ROOT)), blocks_of(page)
            )
            for page in pages()
        }


@pytest.fixture(scope="session")
def recorded(results: dict[str, Future[Result]]) -> Path:
    """``runs/`` of the page about exports: its latest run has stacks of two workers."""
    return results["docs/how-to/exports.md"].result().folder / "runs"
