"""Causes on the clients' and the host's side, provoked for real: what more their runs prove.

That each is named, on its side and process and without another, is asserted of every row in
``test_causes``.
"""

from __future__ import annotations

import json

import pytest

pytestmark = [pytest.mark.privileged, pytest.mark.in_turn]


def test_ports_end_at_bind_while_destinations_have_room(provoked):
    run = provoked("bind-ports")
    values = {e["name"]: e for e in run.finding("bind-ports-exhausted")["evidence"]}
    refused = values["bind calls that returned EADDRINUSE"]
    assert refused["table"] == "failing_syscalls"
    assert refused["value"] > 0
    assert values["local ports bound from 127.0.0.2"]["value"] == 1000
    assert values["size of ip_local_port_range"]["value"] == 1000
    assert values["destinations that share them"]["value"] == 3
    assert values["ports in use towards the fullest of them"]["value"] < 1000
    assert run.verdict["run"]["peak_connections"] == 1000
    assert "IP_BIND_ADDRESS_NO_PORT" in run.verdict["verdict"]["sentence"]


def test_a_foreign_address_fails_at_bind_and_the_other_client_gets_all(provoked):
    run = provoked("source-address")
    finding = run.finding("source-address-missing")
    values = {e["name"]: e["value"] for e in finding["evidence"]}
    assert values["connections established from 198.18.0.3"] == 0
    assert values["connections established from others"] == 1000
    assert finding["confidence"] == "high"
    assert "198.18.0.3" in run.verdict["verdict"]["sentence"]


def test_the_search_is_seen_in_time_cpu_and_kernel_stacks(provoked):
    run = provoked("port-search")
    values = {e["name"]: e["value"] for e in run.finding("port-search-cost")["evidence"]}
    before = values["connect while the pool filled to 45 %"]
    after = values["connect once it was over 55 % full"]
    assert after >= 3 * before
    assert values["client CPU samples in the port search, over 55 % full"] >= 25
    cpu = [v for name, v in values.items() if name.startswith("CPU of clients per connect")]
    assert len(cpu) == 2
    assert cpu[1] > cpu[0]
    assert values["local ports in use from 127.0.0.2"] == 20_000


def test_who_takes_the_cores_is_said(provoked):
    run = provoked("host-cpu")
    values = {e["name"]: e["value"] for e in run.finding("host-cpu-saturated")["evidence"]}
    assert values["messages sent"] < 0.8 * values["messages due"]
    assert values["of all cores: processes beside the run"] > 25
    shares = [v for name, v in values.items() if name.startswith("of all cores: ")]
    assert sum(shares) == pytest.approx(values["all cores busy"], abs=2)
    assert run.verdict["run"]["failed_connections"] == 0


@pytest.mark.parametrize(("row_id", "unmet"), [("client-hot", 0), ("client-blocked", 936)])
def test_a_slow_client_is_told_apart_from_its_sibling(provoked, row_id, unmet):
    finding = provoked(row_id).finding("client-is-the-limit")
    values = {e["name"]: e["value"] for e in finding["evidence"]}
    assert values["its connections never tried, or waiting in vain"] >= unmet
    own, theirs = values["attempts of this client"], values["attempts of its siblings, median"]
    assert own < theirs / 2
    assert values["idle share of the server's workers"] > 50
    assert values["time that its event loop was in a turn"] >= 80
    full = values["CPU of this client"] >= 80
    assert full is (row_id == "client-hot")


def test_a_limit_of_a_client_keeps_its_name(provoked):
    for row_id, cause in (
        ("fd-limit-client", "fd-limit-process"),
        ("ephemeral-ports", "ephemeral-ports-exhausted"),
    ):
        run = provoked(row_id)
        assert run.verdict["verdict"]["cause"] == cause
        named = json.dumps([f["cause"] for f in run.findings])
        assert "client-is-the-limit" not in named
