"""The bench of healthy runs: what counts as false, what is kept, and one real watch."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from bench import healthy
from bench.healthy import KINDS, HealthyRun, read, table

FINE = HealthyRun("own", 5_000, 5_000, (), "All were held.", 12.0)
WRONG = HealthyRun("attach", 5_000, 5_000, ("memory-exhausted",), "Used up.", 30.0, "runs/x")


def test_false_findings_are_counted_by_kind():
    lines = table([FINE, FINE, WRONG]).splitlines()
    assert lines[2:] == [
        "| own | 5,000 | 2 | 0 | 12 |",
        "| attach | 5,000 | 1 | memory-exhausted 1 | 30 |",
        "| all | | 3 | 1 runs with any | |",
    ]


def test_thirty_runs_have_each_kind_three_times():
    kinds = [KINDS[number % len(KINDS)] for number in range(30)]
    assert min(kinds.count(kind) for kind in KINDS) == 3
    assert set(KINDS) == {(w, n) for w in healthy.WAYS for n in (5_000, 20_000, 120_000)}


def test_a_series_goes_on_where_it_stopped(tmp_path, capsys):
    kept = tmp_path / "runs.jsonl"
    kept.write_text("".join(json.dumps(asdict(run)) + "\n" for run in (FINE, WRONG)))
    assert read(kept) == [FINE, WRONG]
    assert healthy.main(["--runs", "2", "--quiet", "--output", str(tmp_path)]) == 1
    assert "memory-exhausted 1" in capsys.readouterr().out


def test_a_run_without_a_verdict_is_no_healthy_one(tmp_path, monkeypatch):
    def fails(*_arguments: object) -> dict:
        raise healthy.HealthyRunError("no port")

    monkeypatch.setattr(healthy, "_profile_run", fails)
    run = healthy._one_run("own", 10, tmp_path / "run")
    assert run.named == ("no verdict",)
    assert (tmp_path / "run" / "error.log").read_text() == "no port"


@pytest.mark.privileged
@pytest.mark.node
@pytest.mark.shared
def test_node_is_watched_while_its_clients_come(tmp_path, monkeypatch):
    monkeypatch.setattr(healthy, "_ATTACH_HOLD_S", 0.5)
    run = healthy._one_run("attach", 300, tmp_path / "run")
    assert (run.way, run.connections) == ("attach", 300)
    assert set(run.named) <= {"host-cpu-saturated"}, run  # where it shares the machine
