"""Rows of ``harness/scenarios/every-cause.toml``, each run once for all tests that look at it."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness import scenario

DEADLINE_S = 120
EVERY_CAUSE = scenario.load("every-cause")


class Provoked:
    """One run of profile-run and its verdict."""

    def __init__(self, path: Path, row: scenario.Row) -> None:
        assert os.geteuid() == 0, "these tests need root: sudo make test"

        def before() -> None:
            if row.client_nofile:
                limit = row.client_nofile
                resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))

        self.row = row
        self.done = subprocess.run(
            [
                *(sys.executable, "-P", "-m", "harness.cli_run"),
                *(*row.arguments(), "--json", "--output", str(path), "--name", row.id),
            ],
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            preexec_fn=before,
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


@pytest.fixture(scope="session")
def provoked(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Provoked]:
    """Runs a row the first time it is asked for."""
    runs: dict[str, Provoked] = {}

    def get(row_id: str) -> Provoked:
        if row_id not in runs:
            path = tmp_path_factory.mktemp(row_id)
            runs[row_id] = Provoked(path, EVERY_CAUSE.row(row_id))
        return runs[row_id]

    return get
