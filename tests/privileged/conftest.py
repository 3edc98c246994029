"""Rows of ``every-cause.toml``, each run once for all tests that look at it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.matrix import scenario

DEADLINE_S = 240
CROWDED = "host-cpu-saturated"
MANY_OTHERS_PCT = 25
GOOD = ("reached", "no-limit-met")
WITH_PAGE = {
    *("healthy", "fd-limit-server", "ephemeral-ports", "accept-spin", "hot-worker-code"),
    "worker-crash",
}
"""Rows whose page is looked at; the verdicts of the others need none."""
EVERY_CAUSE = scenario.load("every-cause")


def provoke(machine: Any, row: scenario.Row, folder: Path) -> dict[str, Any]:
    """Runs a row: beside others when it mostly waits, else with the machine for itself."""
    assert os.geteuid() == 0, "these tests need root: sudo make test"
    limit = row.client_nofile
    command = [
        *(["prlimit", f"--nofile={limit}:{limit}"] if limit else []),
        *(sys.executable, "-P", "-m", "harness.commands.run"),
        *(() if row.id in WITH_PAGE else ("--no-report",)),
        *(*row.arguments(), "--json", "--output", str(folder), "--name", row.id),
    ]
    done = machine.record(command, folder, timeout_s=DEADLINE_S, cores=row.extra.get("cores", 0))
    assert "Traceback" not in done.stderr, done.stderr
    assert done.stdout, done.stderr
    return {"returncode": done.returncode, "stdout": done.stdout, "folder": str(folder)}


class Provoked:
    """One run of profile-run and its verdict.

    Args:
        row: What was run.
        made: What ``provoke`` made of it.
    """

    def __init__(self, row: scenario.Row, made: dict[str, Any]) -> None:
        self.row = row
        self.returncode: int = made["returncode"]
        self.verdict: dict[str, Any] = json.loads(made["stdout"])
        self.run = (Path(made["folder"]) / "latest").resolve()

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


def others_pct(findings: list[dict[str, Any]]) -> float:
    """How much of all cores processes beside the run took, where it is named; 0 elsewhere."""
    return sum(
        evidence["value"]
        for finding in findings
        if finding["cause"] == CROWDED
        for evidence in finding["evidence"]
        if (evidence["id"], evidence["of"]) == ("host_share", "processes beside the run")
    )


@pytest.fixture(scope="session")
def beside_others() -> Callable[..., scenario.Expectation]:
    """What to expect of a run that shared the machine with others, of the suite or not.

    Together they may take all cores; where a quarter of them went to others, and that did harm, it
    is named as well, and may come first.
    """

    def expect(wanted: scenario.Expectation, findings: list[dict[str, Any]]) -> Any:
        is_wanted = CROWDED in (wanted.cause, wanted.named)
        if is_wanted or others_pct(findings) < MANY_OTHERS_PCT:
            return wanted
        named = wanted.named or wanted.cause
        if named in GOOD:
            named = ""
        return replace(wanted, cause="", named=named, may=(*wanted.may, CROWDED))

    return expect


@pytest.fixture(scope="session")
def provoked(once: Callable[..., Any], machine: Any) -> Callable[[str], Provoked]:
    """Runs a row the first time that a test of the session asks for it."""

    def get(row_id: str) -> Provoked:
        row = EVERY_CAUSE.row(row_id)
        return Provoked(row, once(row_id, lambda folder: provoke(machine, row, folder)))

    return get
