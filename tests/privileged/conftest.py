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
    """Runs each row once. Rows that mostly wait run side by side, the others alone.

    Args:
        folders: Makes the folder of a row's run.
        calm: Ids of the rows of this session that may run side by side.
    """

    def __init__(self, folders: Callable[[str], Path], calm: Sequence[str]) -> None:
        self._folders = folders
        self._calm = [row_id for row_id in calm if EVERY_CAUSE.row(row_id).extra.get("calm")]
        self._pool = ThreadPoolExecutor(max_workers=AT_ONCE)
        self._runs: dict[str, Future[Provoked]] = {}

    def get(self, row_id: str) -> Provoked:
        """The run of a row; started when nobody asked for it before."""
        if row_id in self._calm and row_id not in self._runs:
            for calm_id in self._calm:
                self._submit(calm_id)
        if row_id not in self._runs:
            wait(self._runs.values())  # what needs the cores has them for itself
            self._submit(row_id)
        return self._runs[row_id].result()

    def _submit(self, row_id: str) -> None:
        run = self._pool.submit(Provoked, self._folders(row_id), EVERY_CAUSE.row(row_id))
        self._runs[row_id] = run

    def close(self) -> None:
        """Waits for what runs; drops what has not begun."""
        self._pool.shutdown(cancel_futures=True)


@pytest.fixture(scope="session")
def provoked(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], Provoked]]:
    """Runs a row the first time it is asked for."""
    specs = (getattr(item, "callspec", None) for item in request.session.items)
    asked = dict.fromkeys(spec.params.get("row_id") for spec in specs if spec is not None)
    known = {row.id for row in EVERY_CAUSE.rows}
    runs = Runs(tmp_path_factory.mktemp, [row_id for row_id in asked if row_id in known])
    yield runs.get
    runs.close()
