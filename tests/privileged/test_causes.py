"""Every cause that the verdict names, provoked for real, with the real probes.

The rows are those of ``harness/matrix/scenarios/every-cause.toml``, with what their verdict must
say. What more a row proves is checked below, or in the other modules of this folder.
"""

from __future__ import annotations

import json

import pytest

from harness.matrix import scenario
from tests.machine import in_turn

pytestmark = [pytest.mark.privileged, pytest.mark.in_turn]

VARIANTS = {"healthy-20000", "healthy-handoff", "worker-crash-at-limit"}
"""Rows of a cause that another one provokes as well, and of a size between two others.

So are those with a server of others: their causes are provoked in ``test_limit_causes``,
``test_wild_causes``, ``test_traffic_causes`` and ``tests/harness/test_foreign_server``.
"""

ROWS = [
    in_turn(
        row.id,
        row.extra.get("cores", 0),
        is_variant=row.id in VARIANTS or bool(row.server),
    )
    for row in scenario.load("every-cause").rows
]


@pytest.mark.parametrize("row_id", ROWS)
def test_the_cause_is_named_and_no_other(provoked, beside_others, row_id):
    run = provoked(row_id)
    expect = beside_others(run.row.expect, run.findings)
    assert expect.complaints(run.verdict) == [], json.dumps(
        {"verdict": run.verdict["verdict"], "findings": run.findings}, indent=1
    )
    is_reached = run.verdict["verdict"]["cause"] == "reached"
    assert run.returncode == (0 if is_reached else 3)


@pytest.mark.parametrize("row_id", ["healthy", "fd-limit-server"])
def test_every_probe_of_the_default_set_ran(provoked, row_id):
    probes = {p["name"]: p for p in provoked(row_id).verdict["probes"]}
    assert len(probes) >= 7, probes
    for name, probe in probes.items():
        if name in ("syscall_mix", "runq_latency", "skb_allocs"):
            continue  # on demand, or of the full set
        assert probe["state"] == "ran", probe


def test_a_healthy_run_holds_all_and_sees_the_next_wall(provoked):
    run = provoked("healthy")
    assert run.verdict["run"]["held_connections"] == 5000
    assert run.verdict["ladder"][0]["predicted_connections"] > 5000


def test_the_full_worker_is_named_with_its_limit(provoked):
    assert 400 in provoked("fd-limit-server").values("fd-limit-process")


def test_the_ports_end_at_the_size_of_the_range(provoked):
    run = provoked("ephemeral-ports")
    assert run.verdict["verdict"]["at_connections"] == pytest.approx(1000, abs=5)
    assert 1000 in run.values("ephemeral-ports-exhausted")


def test_a_spin_is_counted(provoked):
    assert max(provoked("accept-spin").values("accept-spin", "per_s")) >= 10_000


def test_the_hot_function_is_named_in_the_verdict_and_on_the_page(provoked):
    run = provoked("hot-worker-code")
    assert "hot_application_code" in json.dumps(run.finding("hot-worker-code"))
    # The profiler that was turned on this worker names the function as well.
    page = (run.run / "report.html").read_text()
    assert "hot_application_code" in page
    assert '<details class="finding warning" open' in page, "what did harm is not folded away"


def test_a_storm_is_counted_in_messages(provoked):
    assert max(provoked("keepalive-storm").values("keepalive-storm", "per_s")) > 1_000
