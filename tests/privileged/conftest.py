"""Rows of ``harness/scenarios/every-cause.toml``, each run once for all tests that look at it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import pytest

from harness import scenario

DEADLINE_S = 120
AT_ONCE = 3
EVERY_CAUSE = scenario.load("every-cause")


class Provoked:
    """One run of profile-run and its verdict."""

    def __init__(self, path: Path, row: scenario.Row) -> None:
        assert os.geteuid() == 0, "these tests need root: sudo make test"
        limit = row.client_nofile
        self.row = row
        self.done = subprocess.run(
            [
                *(["prlimit", f"--nofile={limit}:{limit}"] if limit else []),
                *(sys.executable, "-P", "-m", "harness.cli_run"),
                *(*row.arguments(), "--json", "--output", str(path), "--name", row.id),
            ],
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
        )
        assert "Traceback" not in self.done.stderr, self.done.stderr
        assert self.done.stdout, self.done.stderr
        self.verdict: dict[str, Any] = json.loads(self.done.stdout)
        self.run = (path / "latest").resolve()

    @property
    def findings(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.verdict["findings"]
        return found

    def finding(self, cause: str) -> dict[str, Any]:
        found = [f for f in self.findings if f["cause"] == cause]
        assert found, f"{cause} is not among {[f['cause'] for f in self.findings]}"
        return found[0]

    def values(self, cause: str, unit: str = "") -> list[float]:
        """The numbers that prove a cause, of one unit or of all."""
        evidence = self.finding(cause)["evidence"]
        return [e["value"] for e in evidence if unit in ("", e["unit"])]


class Runs:
    """Makes each run once. Those that mostly wait run side by side, the others alone.

    Args:
        make: Makes the run of that name.
        calm: Names of the runs that this session asks for and that may run side by side.
    """

    def __init__(self, make: Callable[[str], Any], calm: Sequence[str]) -> None:
        self._make = make
        self._calm = calm
        self._pool = ThreadPoolExecutor(max_workers=AT_ONCE)
        self._runs: dict[str, Future[Any]] = {}

    def get(self, name: str) -> Any:
        """The run of that name; started when nobody asked for it before."""
        if name in self._calm and name not in self._runs:
            for calm_name in self._calm:
                self._submit(calm_name)
        if name not in self._runs:
            wait(self._runs.values())  # what needs the cores has them for itself
            self._submit(name)
        return self._runs[name].result()

    def _submit(self, name: str) -> None:
        self._runs[name] = self._pool.submit(self._make, name)

    def close(self) -> None:
        """Waits for what runs; drops what has not begun."""
        self._pool.shutdown(cancel_futures=True)


def _asked(request: pytest.FixtureRequest, parameter: str) -> list[str]:
    """The values that a parameter has in the tests of this session, each once."""
    specs = (getattr(item, "callspec", None) for item in request.session.items)
    found = (spec.params.get(parameter) for spec in specs if spec is not None)
    return [value for value in dict.fromkeys(found) if value is not None]


@pytest.fixture(scope="session")
def provoked(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], Provoked]]:
    """Runs a row the first time it is asked for."""
    known = {row.id: row for row in EVERY_CAUSE.rows}
    asked = [known[row_id] for row_id in _asked(request, "row_id") if row_id in known]
    folder = tmp_path_factory.mktemp("rows")
    runs = Runs(
        lambda row_id: Provoked(folder / row_id, known[row_id]),
        [row.id for row in asked if row.extra.get("calm")],
    )
    yield runs.get
    runs.close()


@pytest.fixture(scope="module")
def side_by_side(request: pytest.FixtureRequest) -> Iterator[Callable[..., Callable[[str], Any]]]:
    """``side_by_side(make, parameter, is_calm)`` gives what ``Runs.get`` does, for one module."""
    started: list[Runs] = []

    def start(
        make: Callable[[str], Any], parameter: str, is_calm: Callable[[str], bool]
    ) -> Callable[[str], Any]:
        started.append(Runs(make, [name for name in _asked(request, parameter) if is_calm(name)]))
        return started[-1].get

    yield start
    for runs in started:
        runs.close()
