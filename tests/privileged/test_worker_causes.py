"""What the rows about one worker prove beyond their verdict."""

from __future__ import annotations

import json
import sys

import pytest

pytestmark = [pytest.mark.privileged, pytest.mark.in_turn]


@pytest.mark.parametrize(
    ("row_id", "call", "function"),
    [
        ("worker-blocked-sleep", "clock_nanosleep", "sleeping_application_code"),
        ("worker-blocked-lock", "futex", "waiting_for_lock"),
        ("worker-blocked-disk", "", "waiting_for_disk"),
    ],
)
def test_the_call_and_the_function_that_block_are_named(provoked, row_id, call, function):
    finding = provoked(row_id).finding("worker-blocked")
    seen = {(e["id"], e["of"]) for e in finding["evidence"]}
    assert not call or ("blocked_syscall_samples", call) in seen
    assert [of for what, of in seen if what == "blocked_function_samples" and function in of]
    assert function in finding["fix"][0]["command"]


def test_a_blocked_worker_is_on_no_cpu(provoked):
    finding = provoked("worker-blocked-sleep").finding("worker-blocked")
    (cpu_pct,) = [e["value"] for e in finding["evidence"] if e["id"] == "process_cpu"]
    assert cpu_pct < 10


def test_the_pauses_of_the_collector_are_measured(provoked):
    run = provoked("garbage-collection")
    assert run.values("garbage-collection", "pct")[0] >= 40
    assert run.values("garbage-collection", "ms")[0] > 10


def test_what_a_connection_costs_the_acceptor_is_measured(provoked):
    (cost_us,) = provoked("hot-acceptor").values("hot-acceptor", "us")
    assert 900 < cost_us < 1500


def test_connections_were_sent_away_while_there_was_room(provoked):
    run = provoked("full-worker-shared")
    values = {
        e["id"]: e["value"] for e in run.finding("full-worker-on-shared-listener")["evidence"]
    }
    assert values["all_workers_connections"] < values["all_workers_capacity"]
    assert values["sent_away"] > 100
    for cause in ("fd-limit-process", "server-resets-when-full"):
        assert run.finding(cause)["follows_from"] == "full-worker-on-shared-listener"


@pytest.mark.variant
def test_however_fast_clients_come_a_reserve_descriptor_is_no_spin(machine, tmp_path):
    """Up to 10,000 failing accepts a second in each worker, each followed by one that is closed."""
    words = [
        *(sys.executable, "-P", "-m", "harness.commands.run", "--json", "--quiet", "--no-report"),
        *("--output", str(tmp_path), "--connections", "40000", "--hold", "0.2"),
        *("--workers", "2", "--nofile", "400", "--at-fd-limit", "reset"),
    ]
    done = machine.record(words, tmp_path, timeout_s=150)
    assert done.returncode == 3, done.stderr
    findings = {f["cause"]: f for f in json.loads(done.stdout)["findings"]}
    resets = findings["server-resets-when-full"]["evidence"]
    assert resets[0]["id"] == "refused_by_rst"
    # each client gives up after a hundred in a row, and how many more there are is its speed
    assert resets[0]["value"] >= 100
    assert "accept-spin" not in findings


def test_a_crash_takes_what_the_worker_held(provoked):
    finding = provoked("worker-crash").finding("worker-crash")
    assert finding["severity"] == "binding"
    assert finding["follows_from"] == ""
    (held,) = [e["value"] for e in finding["evidence"] if e["id"] == "process_connections"]
    assert held >= 400
