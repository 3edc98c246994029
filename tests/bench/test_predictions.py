"""The ladder's predictions against the walls themselves, on the rungs that count something.

The CPU rungs are measured by ``python -m bench.predictions``: how much work fits into a core is a
timing.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from bench import predictions
from harness.options import run as run_options
from tests.machine import in_turn

COUNTED = [row.id for row in predictions.scenario().rows if row.extra["limit"] != "cpu_worker"]
SPREAD = "SO_REUSEPORT"
"""How even the kernel's hash spreads connections is judged where nothing times out."""
IS_VARIANT = (SPREAD, "of a client", "local")


def marked(row_id: str) -> Any:
    """A row with its cores, as a variant where it is one."""
    is_variant = any(words in row_id for words in IS_VARIANT)
    return in_turn(row_id, 0 if SPREAD in row_id else 0.5, is_variant=is_variant)


@pytest.mark.privileged
@pytest.mark.parametrize("row_id", [marked(row_id) for row_id in COUNTED])
def test_a_run_below_the_wall_says_where_it_is(machine, tmp_path, row_id):
    row = predictions.scenario().row(row_id)
    # others may take the cores, of the suite or not: what is counted stays what it is
    row = replace(row, expect=replace(row.expect, may=(*row.expect.may, "host-cpu-saturated")))
    tmp_path.chmod(0o755)
    if SPREAD in row_id:
        outcome = predictions.predict_and_meet(
            row,
            tmp_path,
            lambda command, path: machine.record(command, path, timeout_s=predictions.DEADLINE_S),
        )
    else:
        with machine.shared():
            outcome = predictions.predict_and_meet(row, tmp_path)
    assert outcome.below_connections < 0.6 * outcome.met_connections
    assert outcome.holds, outcome


def test_every_row_is_complete():
    for row in predictions.scenario().rows:
        run_options.parse(row.arguments())
        assert row.extra["into"] or row.extra["beyond_factor"] > 1
        assert row.extra["bar_pct"] in (5, 15)


def outcome(predicted: int, met: int) -> predictions.Outcome:
    return predictions.Outcome("a", "memory", 10, predicted, None, met, 5.0)


def test_the_error_is_relative_to_the_fact():
    assert outcome(1050, 1000).error_pct == pytest.approx(5.0)
    assert outcome(1050, 1000).holds
    assert not outcome(940, 1000).holds
    assert "| 1,050 | 1,000 | +5.0 % |" in predictions.table([outcome(1050, 1000)])


def test_another_interval_moves_the_ceiling_in_proportion():
    rows = predictions.scenario()
    assert predictions.interval_factor(rows.row("CPU of a worker, another interval")) == 0.5
    assert predictions.interval_factor(rows.row("CPU of a worker, keep-alives")) == 1.0
    assert predictions.interval_factor(rows.row("local ports")) == 1.0


def test_keepalives_are_met_where_the_pings_end():
    row = predictions.scenario().row("CPU of a worker, keep-alives")
    evidence = [
        {"id": "sent_rate", "value": 50_000.0},
        {"id": "keepalive_interval", "value": 0.1},
        {"id": "process_cpu", "value": 100.0},
    ]
    verdict = {"findings": [{"cause": "keepalive-storm", "evidence": evidence}]}
    assert predictions.met_connections(row, verdict) == 5_000
    evidence[-1]["value"] = 80.0  # others took a fifth of its core
    assert predictions.met_connections(row, verdict) == 6_250
