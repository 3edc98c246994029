"""The planner over hosts: shares, ports, walls with their host; and what hosts.toml may say."""

import json
import tomllib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.hosts.hosts_file import parse_hosts, read_hosts
from harness.hosts.layout import lay_out, shares_of
from harness.hosts.plan_text import hosts_plan_json, hosts_plan_text
from harness.planning.request import PlanRequest
from probes.contract.errors import HostError, UsageError
from tests.harness.planning.test_plan import HOST

FOUR = """
[[host]]
name = "s"
address = "192.0.2.1"
role = "server"
[[host]]
name = "a"
address = "192.0.2.2"
[[host]]
name = "b"
address = "192.0.2.3"
addresses = ["192.0.2.3", "192.0.2.4"]
[[host]]
name = "c"
address = "192.0.2.5"
"""


def hosts_of(text=FOUR):
    return parse_hosts(tomllib.loads(text), "hosts.toml")


def laid_out(connections, text=FOUR, facts=None, **asked):
    hosts = hosts_of(text)
    known = {each.name: HOST for each in hosts.hosts} | (facts or {})
    return lay_out(PlanRequest(connections=connections, **asked), hosts, known)


@given(
    st.integers(1, 10**7),
    st.lists(st.integers(0, 10**6), min_size=1, max_size=20),
)
def test_no_host_gets_more_than_it_holds_while_others_have_room(total, capacities):
    shares = shares_of(total, capacities, [None] * len(capacities))
    assert sum(shares) == total
    if sum(capacities) >= total:
        assert all(share <= most for share, most in zip(shares, capacities, strict=True))


def test_shares_are_even_and_make_the_target():
    plan = laid_out(12_001)
    assert sorted(part.share for part in plan.loads) == [4_000, 4_000, 4_001]
    assert [part.entry.name for part in plan.parts] == ["s", "a", "b", "c"]
    server = plan.server.plan
    assert server.clients == 0
    for part in plan.loads:
        assert part.plan.server_address == "192.0.2.1"
        assert part.plan.destination_ports == server.destination_ports
        assert sum(part.plan.client_shares) == part.share
        groups = [g for i in range(part.plan.clients) for g in part.plan.client_groups(i)]
        assert {g.source_address for g in groups} <= set(part.entry.source_addresses)
        assert sum(g.count for g in groups) == part.share


def test_more_connections_take_more_ports_of_the_server():
    big = replace(HOST, memory_available_bytes=10**12)
    facts = dict.fromkeys("sabc", big)
    plan = laid_out(600_000, facts=facts)
    assert len(plan.server.plan.destination_ports) > 1
    assert all(not part.rungs for part in plan.loads)


def test_a_wall_has_its_host():
    text = FOUR + "connections = 4000\nclients = 1\nnofile = 1000\n"
    plan = laid_out(12_000, text)
    assert [part.entry.name for part in plan.parts if part.rungs] == ["c"]
    assert plan.parts[-1].rungs[0].limit == "fds_per_process"
    assert "c: fds_per_process of the clients" in hosts_plan_text(plan)
    told = json.loads(hosts_plan_json(plan))
    assert told["hosts"][3]["plan"]["rungs"][0]["capacity_count"] == 992


def test_a_host_with_few_descriptors_gets_less():
    plan = laid_out(12_000, FOUR + "clients = 1\nnofile = 1000\n")
    assert plan.parts[-1].share < 1_000
    assert not any(part.rungs for part in plan.parts)


def test_all_clients_together_fit_the_servers_queue():
    plan = laid_out(60_000)
    under_way = sum(p.plan.clients * p.plan.client_in_flight_count for p in plan.loads)
    assert under_way <= plan.server.plan.backlog_count * plan.server.plan.workers


def test_shares_that_are_not_the_target_are_refused():
    with pytest.raises(HostError, match="12,000"):
        shares_of(12_000, [9, 9], [1, 2])


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "no \\[\\[host"),
        ('[[host]]\nname = "a"\naddress = "x"', "no IPv4"),
        ('[[host]]\nname = "../a"\naddress = "192.0.2.1"', "no name"),
        (FOUR.replace('"c"', '"a"'), "two hosts 'a'"),
        (FOUR.replace('role = "server"', ""), "0 hosts that serve"),
        (FOUR + "nofile = 0", "nofile = 0"),
        (FOUR + 'ssh = "-oProxyCommand=x"', "no destination"),
        (FOUR + "colour = 1", "'colour', which is not known"),
        (FOUR + 'start = "sh -c"', "no list of words"),
    ],
)
def test_what_makes_no_sense_is_said_with_its_host(text, word):
    with pytest.raises(UsageError, match=word):
        hosts_of(text)


def test_ssh_checks_host_keys_and_nothing_secret_is_on_the_command_line():
    entry = hosts_of(FOUR + 'ssh = "bench@192.0.2.5"').hosts[-1]
    command = entry.agent_command()
    assert command[0] == "ssh"
    assert "StrictHostKeyChecking=yes" in command
    assert command[-1].endswith("-P -m harness.hosts.agent_main")


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UsageError, match="No such file"):
        read_hosts(tmp_path / "none.toml")
