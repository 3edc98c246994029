"""Causes on the clients' and the host's side, provoked for real: what more their runs prove.

That each is named, on its side and process and without another, is asserted of every row in
``test_causes``.
"""

from __future__ import annotations

import json

import pytest

pytestmark = [pytest.mark.privileged, pytest.mark.in_turn]


def values_of(finding):
    """Id and qualifier to value."""
    return {(e["id"], e["of"]): e["value"] for e in finding["evidence"]}


def test_ports_end_at_bind_while_destinations_have_room(provoked):
    run = provoked("bind-ports")
    values = {e["id"]: e for e in run.finding("bind-ports-exhausted")["evidence"]}
    refused = values["eaddrinuse_calls"]
    assert refused["table"] == "failing_syscalls"
    assert refused["value"] > 0
    assert values["ports_used"]["value"] == 1000
    assert values["ports_used"]["of"] == "127.0.0.2"
    assert values["port_range_size"]["value"] == 1000
    assert values["destinations"]["value"] == 3
    assert values["fullest_destination_ports"]["value"] < 1000
    assert run.verdict["run"]["peak_connections"] == 1000
    assert "IP_BIND_ADDRESS_NO_PORT" in run.verdict["verdict"]["sentence"]


def test_a_foreign_address_fails_at_bind_and_the_other_client_gets_all(provoked):
    run = provoked("source-address")
    finding = run.finding("source-address-missing")
    values = values_of(finding)
    assert values["connections_from_address", "198.18.0.3"] == 0
    assert values["connections_from_others", ""] == 1000
    assert finding["confidence"] == "high"
    assert "198.18.0.3" in run.verdict["verdict"]["sentence"]


def test_the_search_is_seen_in_time_cpu_and_kernel_stacks(provoked):
    run = provoked("port-search")
    values = values_of(run.finding("port-search-cost"))
    before = values["connect_median", "filled to 45 %"]
    after = values["connect_median", "over 55 % full"]
    assert after >= 3 * before
    assert values["port_search_samples", "over 55 % full"] >= 25
    cpu = [v for (what, _), v in values.items() if what == "cpu_per_connect"]
    assert len(cpu) == 2
    assert cpu[1] > cpu[0]
    assert values["ports_used", "127.0.0.2"] == 20_000


def test_who_takes_the_cores_is_said(provoked):
    run = provoked("host-cpu")
    values = values_of(run.finding("host-cpu-saturated"))
    assert values["sent_rate", "messages"] < 0.8 * values["due_rate", "messages"]
    assert values["host_share", "processes beside the run"] > 25
    shares = [v for (what, _), v in values.items() if what == "host_share"]
    assert sum(shares) == pytest.approx(values["host_busy", ""], abs=2)
    assert run.verdict["run"]["failed_connections"] == 0


@pytest.mark.parametrize(("row_id", "unmet"), [("client-hot", 0), ("client-blocked", 936)])
def test_a_slow_client_is_told_apart_from_its_sibling(provoked, row_id, unmet):
    finding = provoked(row_id).finding("client-is-the-limit")
    values = {e["id"]: e["value"] for e in finding["evidence"]}
    assert values["unmet_attempts"] >= unmet
    own, theirs = values["attempt_rate"], values["siblings_attempt_rate"]
    assert own < theirs / 2
    assert values["servers_idle"] > 50
    assert values["loop_busy"] >= 80
    # beside others it gets less than a core; the one that sleeps takes next to nothing
    calculates = values["process_cpu"] >= 40
    assert calculates is (row_id == "client-hot")


def test_a_limit_of_a_client_keeps_its_name(provoked):
    for row_id, cause in (
        ("fd-limit-client", "fd-limit-process"),
        ("ephemeral-ports", "ephemeral-ports-exhausted"),
    ):
        run = provoked(row_id)
        assert run.verdict["verdict"]["cause"] == cause
        named = json.dumps([f["cause"] for f in run.findings])
        assert "client-is-the-limit" not in named
