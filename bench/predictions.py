"""``python -m bench.predictions``: does the ladder's prediction hold? A run below, a run into it.

For each rung of ``predictions.toml`` a first run stays below the wall and predicts it; a second run
goes on until it is met. The difference is the error of the prediction, measured, not estimated.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.command import say, write
from harness.commands.entry import run_command
from harness.matrix.scenario import Row, ScenarioFile, load
from probes.contract.errors import ToolkitError

SCENARIO = Path(__file__).parent / "predictions.toml"
DEADLINE_S = 120
_HEAD = """\
# Predictions against facts

A run below a wall predicts where it is; a second run goes into it (`bench/predictions.toml`).
Error: the prediction against where the limit was met. Written by `make diagnose`; do not edit.

"""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One rung: what was predicted and what happened.

    Attributes:
        row_id: Of the scenario.
        limit: The ladder's name of the rung.
        below_connections: Held by the run that predicted.
        predicted_connections: Its prediction.
        fit_error_pct: The error that it gave itself, None when it fitted no slope.
        met_connections: Where the second run met the limit.
        bar_pct: The error that is allowed.
    """

    row_id: str
    limit: str
    below_connections: int
    predicted_connections: int
    fit_error_pct: float | None
    met_connections: int
    bar_pct: float

    @property
    def error_pct(self) -> float:
        """Prediction against fact; positive when the wall was nearer than predicted."""
        return 100 * (self.predicted_connections - self.met_connections) / self.met_connections

    @property
    def holds(self) -> bool:
        """The error is within the bar."""
        return abs(self.error_pct) <= self.bar_pct


class PredictionError(ToolkitError):
    """A run did not say what was asked of it."""


Execute = Callable[[list[str], Path], "subprocess.CompletedProcess[str]"]


def _execute(command: list[str], _folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, capture_output=True, text=True, timeout=DEADLINE_S, check=False, cwd=Path.cwd()
    )


def predict_and_meet(row: Row, folder: Path, execute: Execute = _execute) -> Outcome:
    """Makes both runs of a row.

    Args:
        row: With ``limit``, ``into``, ``bar_pct``, perhaps ``beyond_factor`` in its extra values.
        folder: Where the run directories go.
        execute: Runs a command that records there.

    Raises:
        PredictionError: A run failed, the first met a limit, or the second another than expected.
    """
    below = _run(row, folder, execute)
    if below["verdict"]["cause"] != "reached":
        raise _not_said(row, f"the run below the wall ended with {below['verdict']['cause']}")
    rung = _rung(row, below)
    predicted_connections = round(rung["predicted_connections"] * interval_factor(row))
    into = {**row.options, **row.extra["into"]}
    if "beyond_factor" in row.extra:
        # How fast a core is differs by machine: go past its own prediction, not past a number.
        into["connections"] = round(predicted_connections * float(row.extra["beyond_factor"]))
    beyond = _run(replace(row, options=into), folder, execute)
    complaints = row.expect.complaints(beyond)
    if complaints:
        raise _not_said(row, "; ".join(complaints))
    return Outcome(
        row_id=row.id,
        limit=str(row.extra["limit"]),
        below_connections=int(below["run"]["held_connections"]),
        predicted_connections=predicted_connections,
        fit_error_pct=rung["fit_error_pct"],
        met_connections=met_connections(row, beyond),
        bar_pct=float(row.extra["bar_pct"]),
    )


def interval_factor(row: Row) -> float:
    """How much the ceiling of keep-alives moves by another interval in the second run."""
    below = row.options.get("keepalive")
    beyond = row.extra["into"].get("keepalive", below)
    return float(beyond) / float(below) if below else 1.0


def met_connections(row: Row, verdict: Mapping[str, Any]) -> int:
    """Where a run met the limit of its row, in connections.

    For keep-alives: the connections whose pings the full worker kept up with, that is the pings
    that went out a second times their interval. Where other processes took part of its core, in
    proportion to the part that it got: the rung is that of a whole core.

    Args:
        row: Whose expected cause names the finding.
        verdict: ``verdict.json`` of the run that met it.
    """
    cause = row.expect.named or row.expect.cause
    finding = next(f for f in verdict["findings"] if f["cause"] == cause)
    if cause != "keepalive-storm":
        return int(finding["at_connections"])
    values = {e["id"]: float(e["value"]) for e in finding["evidence"]}
    kept_up = values["sent_rate"] * values["keepalive_interval"]
    return round(kept_up * 100 / values["process_cpu"])


def _rung(row: Row, verdict: Mapping[str, Any]) -> Mapping[str, Any]:
    """The nearest rung of that limit (and role) that has a prediction."""
    role = str(row.extra.get("role", ""))
    for rung in verdict["ladder"]:
        is_meant = rung["limit"] == row.extra["limit"] and role in rung["subject"]
        if is_meant and rung["predicted_connections"] is not None:
            found: Mapping[str, Any] = rung
            return found
    raise _not_said(row, f"no rung {row.extra['limit']} has a prediction")


def _run(row: Row, folder: Path, execute: Execute) -> dict[str, Any]:
    command = [
        *(sys.executable, "-P", "-m", "harness.commands.run", "--no-report", *row.arguments()),
        *("--json", "--quiet", "--output", str(folder)),
    ]
    if row.client_nofile:
        command = ["prlimit", f"--nofile={row.client_nofile}:{row.client_nofile}", *command]
    done = execute(command, folder)
    if not done.stdout:
        raise _not_said(row, done.stderr.strip() or f"exit status {done.returncode}")
    verdict: dict[str, Any] = json.loads(done.stdout)
    return verdict


def _not_said(row: Row, what: str) -> PredictionError:
    words = " ".join(row.arguments())
    return PredictionError(f"{row.id}: {what}", fix=f"look at: profile-run {words}")


def table(outcomes: Sequence[Outcome]) -> str:
    """The outcomes as Markdown."""
    lines = [
        "| rung | limit | run below | predicted | met at | error | allowed |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    lines += [
        f"| {o.row_id} | `{o.limit}` | {o.below_connections:,} | {o.predicted_connections:,} | "
        f"{o.met_connections:,} | {o.error_pct:+.1f} % | {o.bar_pct:g} % |"
        for o in outcomes
    ]
    return "\n".join(lines) + "\n"


def scenario() -> ScenarioFile:
    """The rungs that are tried."""
    return load(str(SCENARIO))


def predictions(argv: Sequence[str]) -> int:
    """Tries every rung and prints the table.

    Returns:
        0 when every error is within its bar, 3 when one is not.

    Raises:
        ToolkitError: A run could not be judged.
    """
    top = argparse.ArgumentParser(prog="python -m bench.predictions", description=__doc__)
    top.add_argument("--row", action="append", metavar="ID", help="only this one; may be repeated")
    top.add_argument("--markdown", type=Path, metavar="FILE", help="write the table there as well")
    options = top.parse_args(argv)
    file = scenario()
    rows = [file.row(row_id) for row_id in options.row] if options.row else file.rows
    outcomes = []
    with tempfile.TemporaryDirectory(prefix="connscope-predictions-") as folder:
        os.chmod(folder, 0o755)  # noqa: PTH101  # the fleet's processes gave up root
        for row in rows:
            outcomes.append(predict_and_meet(row, Path(folder)))
            last = outcomes[-1]
            say(f"{last.row_id}: {last.error_pct:+.1f} %")
    text = table(outcomes)
    sys.stdout.write(text)
    if options.markdown:
        write(options.markdown, _HEAD + text)
    return 0 if all(outcome.holds for outcome in outcomes) else 3


def main() -> int:
    """Entry point."""
    return run_command(predictions, None)


if __name__ == "__main__":
    sys.exit(main())
