"""The planner: known answers, and properties over any host and request."""

import errno
import json
import math
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from harness.planning.control_group import Cgroup
from harness.planning.host import Host
from harness.planning.limits import peak_share, ports_in_range, safe_connections
from harness.planning.plan import make_plan
from harness.planning.port_groups import loopback_address
from harness.planning.request import ACCEPT_MODES, MAX_PROCESSES, PlanRequest
from harness.planning.text import plan_json, plan_text
from probes.contract.errors import HostError, UsageError

ALL_CAPABILITIES = (1 << 41) - 1
CAP_SYS_RESOURCE = 1 << 24
GB = 10**9

# The machine of reference/feasibility: hard limit 20,000 and no CAP_SYS_RESOURCE.
HOST = Host(
    kernel="6.18.44",
    machine="x86_64",
    python="3.11.2",
    cpu_model="AMD EPYC",
    cpu_count=2,
    is_root=True,
    effective_capabilities=ALL_CAPABILITIES & ~CAP_SYS_RESOURCE,
    has_btf=True,
    nofile_soft_count=1024,
    nofile_hard_count=20_000,
    nr_open_count=1_048_576,
    file_max_count=2_466_177,
    file_used_count=500,
    port_range=(32768, 60999),
    reserved_ports=(),
    listening_ports=(),
    somaxconn_count=4096,
    tcp_mem_pages=(287_901, 383_868, 575_802),
    page_size_bytes=4096,
    memory_total_bytes=25 * GB,
    memory_available_bytes=24 * GB,
    conntrack_max_count=262_144,
    conntrack_used_count=0,
    epoll_max_user_watches_count=5_491_511,
)


def plan_for(connections, host=HOST, own_namespace=True, **asked):
    return make_plan(
        PlanRequest(connections=connections, own_namespace=own_namespace, **asked), host
    )


def only_rung(plan):
    (rung,) = plan.rungs
    return rung


def group_totals(plan):
    totals = Counter()
    for client in range(plan.clients):
        for group in plan.client_groups(client):
            totals[group.source_address, group.destination_port] += group.count
    return totals


# --- known answers


def test_120_000_needs_seven_and_seven_processes_under_a_limit_of_20_000():
    plan = plan_for(120_000)
    assert (plan.workers, plan.clients) == (7, 7)
    assert plan.client_shares == (17_143,) * 6 + (17_142,)
    assert plan.worker_capacity_count == plan.client_capacity_count == 20_000 - 8
    assert plan.source_addresses == tuple(f"127.0.0.{n}" for n in range(2, 16))
    assert plan.destination_ports == (9001,)
    assert max(group_totals(plan).values()) == 8_572
    assert plan.rungs == ()
    assert all(constraint.holds for constraint in plan.constraints)


def test_ten_connections_need_one_and_one_also_on_many_cores():
    plan = plan_for(10, host=replace(HOST, cpu_count=64))
    assert (plan.workers, plan.clients, plan.client_shares) == (1, 1, (10,))
    assert [(g.source_address, g.count) for g in plan.client_groups(0)] == [("127.0.0.2", 10)]


def test_every_core_gets_a_process_when_there_is_work_for_it():
    plan = plan_for(120_000, host=replace(HOST, cpu_count=16))
    assert (plan.workers, plan.clients) == (16, 16)


def test_a_million_keeps_room_for_the_uneven_spread_of_reuseport():
    even = plan_for(1_000_000, accept="handoff")
    spread = plan_for(1_000_000, accept="reuseport")
    assert even.workers == 51
    assert spread.workers == 52
    assert spread.rungs == ()


def test_two_fixed_workers_predict_the_wall_at_twice_their_capacity():
    rung = only_rung(plan_for(120_000, workers=2))
    assert (rung.limit, rung.subject, rung.scope) == ("fds_per_process", "server", "process")
    assert (rung.capacity_count, rung.predicted_connections) == (19_992, 2 * 19_992)
    assert rung.earliest_connections < rung.predicted_connections
    assert "--workers 7" in rung.fix


def test_handing_off_is_exactly_even_so_nothing_fails_before_the_wall():
    rung = only_rung(plan_for(120_000, workers=2, accept="handoff"))
    assert rung.earliest_connections == rung.predicted_connections == 2 * 19_992


@pytest.mark.parametrize("accept", ["shared", "shared-exclusive"])
def test_a_shared_listener_may_fill_one_worker_first(accept):
    plan = plan_for(120_000, workers=2, accept=accept)
    assert only_rung(plan).earliest_connections == 19_992
    assert any("unevenly" in note for note in plan.notes)


def test_weights_say_when_the_first_worker_is_full():
    plan = plan_for(120_000, workers=2, accept="shared", accept_weights=(2, 1))
    assert only_rung(plan).earliest_connections == 19_992 * 3 // 2
    assert not any("unevenly" in note for note in plan.notes)
    assert plan.accept_weights == (2, 1)
    assert "as 2:1" in plan_text(plan)


def test_a_shared_listener_says_so_even_when_the_sum_fits():
    plan = plan_for(30_000, workers=2, accept="shared")
    assert plan.rungs == ()
    assert any("19,992" in note for note in plan.notes)


def test_a_tight_fixed_worker_count_predicts_the_risk_of_random_spread():
    plan = plan_for(39_900, workers=2)  # 19,950 each on average, one of them likely above 19,992
    rung = only_rung(plan)
    assert rung.limit == "fds_per_process"
    assert rung.predicted_connections < 39_900
    assert plan_for(39_900, workers=2, accept="handoff").rungs == ()


def test_two_fixed_clients_predict_the_clients_wall():
    rung = only_rung(plan_for(120_000, clients=2))
    assert (rung.limit, rung.subject) == ("fds_per_process", "client")
    assert rung.predicted_connections == 2 * 19_992
    assert rung.fix == "--clients 7"


def test_a_lower_nofile_is_for_the_workers_only():
    plan = plan_for(2_000, workers=1, clients=1, nofile=1_000)
    assert (plan.worker_nofile_count, plan.client_nofile_count) == (1_000, 20_000)
    rung = only_rung(plan)
    assert rung.predicted_connections == 1_000 - 8
    assert "--nofile 20000" in rung.fix


def test_one_source_address_meets_the_port_range_and_still_gets_every_connection():
    plan = plan_for(120_000, source_addresses=1)
    rung = only_rung(plan)
    assert (rung.limit, rung.scope) == ("ephemeral_ports", "port_group")
    assert rung.predicted_connections == 28_232
    assert rung.fix == "--source-addresses 14"
    assert group_totals(plan) == {("127.0.0.2", 9001): 120_000}


def test_four_source_addresses_meet_it_four_times_as_late():
    plan = plan_for(120_000, source_addresses=4)
    assert only_rung(plan).predicted_connections == 4 * 28_232
    assert set(group_totals(plan).values()) == {30_000}


def test_ports_taken_at_bind_serve_all_destinations_together():
    late = plan_for(2_500, source_addresses=1, destination_ports=3, port_range=(40_000, 40_999))
    assert len(late.destination_ports) == 3
    assert not late.rungs
    early = plan_for(
        2_500, source_addresses=1, destination_ports=3, port_range=(40_000, 40_999), bind="early"
    )
    rung = only_rung(early)
    assert (rung.limit, rung.predicted_connections) == ("ephemeral_ports", 1_000)
    enough = plan_for(2_500, destination_ports=3, port_range=(40_000, 40_999), bind="early")
    assert len(enough.source_addresses) >= 3
    assert not enough.rungs


def test_more_than_half_the_range_is_slow_but_no_wall():
    plan = plan_for(20_000, source_addresses=1)
    assert plan.rungs == ()
    broken = [c.name for c in plan.constraints if not c.holds]
    assert broken == ["port_search"]
    assert any("slow" in note for note in plan.notes)


def test_a_narrow_port_range_gets_more_source_addresses():
    plan = plan_for(12_000, port_range=(40_000, 40_099))
    assert plan.group_capacity_count == 100
    assert max(group_totals(plan).values()) <= 50
    assert plan.rungs == ()
    assert plan.sysctls["net/ipv4/ip_local_port_range"] == "40000 40099"


def test_a_range_that_covers_every_port_loses_those_that_listen():
    plan = plan_for(10, port_range=(1024, 65535))
    assert plan.group_capacity_count == 65535 - 1024 + 1 - len(plan.destination_ports)


def test_an_own_namespace_starts_from_the_kernels_range_not_from_the_hosts():
    host = replace(HOST, port_range=(50_000, 50_999), reserved_ports=((40_000, 41_000),))
    assert plan_for(10, host=host).group_capacity_count == 28_232
    shared = plan_for(10, host=host, own_namespace=False)
    assert shared.group_capacity_count == 1_000
    assert shared.sysctls == {}


def test_on_the_hosts_network_reserved_and_listening_ports_are_left_alone():
    host = replace(HOST, reserved_ports=((40_000, 40_009),), listening_ports=(9001, 9002, 50_000))
    plan = plan_for(10, host=host, own_namespace=False)
    assert plan.destination_ports == (9003,)
    assert plan.group_capacity_count == 28_232 - 11


def test_on_the_hosts_network_the_port_range_can_only_be_narrowed():
    plan = plan_for(10, own_namespace=False, port_range=(20_000, 40_000))
    assert (plan.port_range, plan.port_range_by) == ((32_768, 40_000), "socket")
    assert any("only narrow" in note for note in plan.notes)
    old = replace(HOST, kernel="5.15.0-91-generic")
    plan = plan_for(10, host=old, own_namespace=False, port_range=(40_000, 40_999))
    assert (plan.port_range, plan.port_range_by) == ((32_768, 60_999), "host")
    assert any("6.3" in note for note in plan.notes)
    with pytest.raises(HostError, match="outside the host's"):
        plan_for(10, own_namespace=False, port_range=(1024, 2000))


def test_conntrack_counts_only_where_somebody_tracks():
    host = replace(HOST, conntrack_max_count=65_536, conntrack_used_count=36)
    assert plan_for(120_000, host=host).rungs == ()
    rung = only_rung(plan_for(120_000, host=host, own_namespace=False))
    assert (rung.limit, rung.predicted_connections) == ("conntrack", 65_500)
    idle = replace(host, conntrack_used_count=0)
    assert plan_for(120_000, host=idle, own_namespace=False).rungs == ()


def test_file_max_counts_both_ends_and_warns_that_it_is_everybodys():
    host = replace(HOST, file_max_count=100_000, file_used_count=1_000)
    plan = plan_for(60_000, host=host)
    rung = only_rung(plan)
    processes = plan.workers + plan.clients
    assert rung.limit == "file_max"
    assert rung.predicted_connections == (100_000 - 1_000 - 8 * processes) // 2
    assert any("whole host" in note for note in plan.notes)


def test_a_backlog_that_is_asked_for_gets_its_somaxconn_in_an_own_namespace():
    own = plan_for(10, backlog=20_000)
    assert (own.backlog_count, own.sysctls["net/core/somaxconn"]) == (20_000, "20000")
    shared = plan_for(10, backlog=20_000, own_namespace=False)
    assert shared.backlog_count == 20_000
    assert any("cuts the backlog" in note for note in shared.notes)


def test_a_small_backlog_on_one_listener_is_a_wall_for_connects_at_once():
    plan = plan_for(120_000, backlog=100, accept="shared")
    rung = only_rung(plan)
    assert (rung.limit, rung.predicted_connections) == ("accept_queue", 100)
    assert f"--backlog {7 * 256}" in rung.fix


def test_a_small_somaxconn_of_the_host_lowers_the_connects_under_way():
    host = replace(HOST, somaxconn_count=128)
    plan = plan_for(120_000, host=host, accept="handoff", own_namespace=False)
    assert plan.backlog_count == 128
    assert plan.clients * plan.client_in_flight_count <= 128
    assert plan.rungs == ()


def test_what_only_delays_is_listed_after_what_stops():
    plan = plan_for(120_000, backlog=100, accept="shared", source_addresses=1)
    assert [rung.limit for rung in plan.rungs] == ["ephemeral_ports", "accept_queue"]


def test_the_hard_limit_is_raised_only_where_it_must_and_may():
    able = replace(HOST, effective_capabilities=ALL_CAPABILITIES)
    plan = plan_for(120_000, host=able)
    assert (plan.workers, plan.clients, plan.worker_nofile_count) == (2, 2, 1_048_576)
    assert any("CAP_SYS_RESOURCE" in note for note in plan.notes)
    assert plan_for(20_000, host=able).worker_nofile_count == 20_000


def test_memory_is_refused_when_it_cannot_be_and_names_what_fits():
    with pytest.raises(HostError, match="memory") as caught:
        plan_for(1_000_000, host=replace(HOST, memory_available_bytes=3 * GB))
    assert int(caught.value.exit_code) == 4
    fits = int(caught.value.fix.removeprefix("--connections "))
    assert 200_000 < fits < 3 * GB / 8_300
    assert plan_for(fits, host=replace(HOST, memory_available_bytes=3 * GB)).rungs == ()


def test_the_cgroups_memory_limit_counts():
    cgroup = Cgroup(2, "/box", memory_limit_bytes=2 * GB, memory_used_bytes=GB)
    with pytest.raises(HostError, match=r"1\.0 GB"):
        plan_for(1_000_000, host=replace(HOST, cgroup=cgroup))


def test_memory_is_no_reason_to_refuse_when_another_wall_comes_first():
    host = replace(HOST, memory_available_bytes=3 * GB)
    plan = plan_for(1_000_000, host=host, workers=2, clients=60)
    assert [rung.limit for rung in plan.rungs] == ["fds_per_process", "memory"]


def test_force_plans_what_does_not_fit():
    plan = plan_for(1_000_000, host=replace(HOST, memory_available_bytes=3 * GB), force=True)
    assert "memory" in [rung.limit for rung in plan.rungs]


def test_a_nofile_that_cannot_be_set_is_refused():
    with pytest.raises(HostError, match="20,001"):
        plan_for(10, nofile=20_001)


def test_a_host_without_descriptors_is_refused():
    with pytest.raises(HostError, match="RLIMIT_NOFILE"):
        plan_for(10, host=replace(HOST, nofile_hard_count=8))


@pytest.mark.parametrize(
    "asked",
    [
        {"connections": 0},
        {"connections": -5},
        {"connections": 100_000_001},
        {"workers": 0},
        {"clients": 5_000},
        {"nofile": 8},
        {"accept": "round-robin"},
        {"source_addresses": 0},
        {"port_range": (80, 2000)},
        {"port_range": (3000, 2000)},
        {"port_range": (3000, 65_536)},
        {"backlog": 0},
    ],
)
def test_nonsense_is_a_usage_error_with_a_fix(asked):
    with pytest.raises(UsageError) as caught:
        PlanRequest(**{"connections": 10, **asked})
    assert caught.value.fix
    assert int(caught.value.exit_code) == 2


def test_more_clients_than_connections_are_kept_and_said():
    plan = plan_for(3, clients=5)
    assert plan.client_shares == (1, 1, 1, 0, 0)
    assert plan.client_groups(4) == ()
    assert any("2 of the 5 clients" in note for note in plan.notes)


def test_loopback_addresses_skip_the_server_and_the_ends_of_each_block():
    addresses = [loopback_address(index) for index in range(65_000)]
    assert addresses[:2] == ["127.0.0.2", "127.0.0.3"]
    assert addresses[252:254] == ["127.0.0.254", "127.0.1.1"]
    assert len(set(addresses)) == 65_000
    assert not any(a.endswith((".0", ".255")) for a in addresses)


@pytest.mark.parametrize("accept", ACCEPT_MODES)
@pytest.mark.parametrize("workers", [1, 2, 7, 53])
def test_safe_connections_is_the_inverse_of_peak_share(accept, workers):
    most = safe_connections(1_009, workers, accept)
    assert peak_share(most, workers, accept) <= 1_009
    assert peak_share(most + 1, workers, accept) > 1_009


# --- the kernel agrees

_FILL_A_RANGE = """
import socket, sys
low, high, port = map(int, sys.argv[1:])
open("/proc/sys/net/ipv4/ip_local_port_range", "w").write(f"{low} {high}")
listener = socket.socket()
listener.bind(("127.0.0.1", port))
listener.listen(4096)
kept = []
try:
    while len(kept) < 200:
        one = socket.socket()
        one.setsockopt(socket.IPPROTO_IP, 24, 1)
        one.bind(("127.0.0.2", 0))
        one.connect(("127.0.0.1", port))
        kept.append(one)
except OSError as error:
    print(error.errno, len(kept))
"""


@pytest.mark.privileged
@pytest.mark.parametrize(
    ("low", "high", "port", "luck"),
    [(40_000, 40_009, 9001, 0), (40_000, 40_009, 40_004, 0), (40_001, 40_011, 9001, 1)],
)
def test_the_kernel_holds_as_many_ports_as_the_plan_says(low, high, port, luck):
    assert os.geteuid() == 0, "this test needs root"
    script = 'ip link set lo up && exec "$@"'
    command = ["unshare", "--net", "sh", "-c", script, "sh", sys.executable, "-c", _FILL_A_RANGE]
    done = subprocess.run(
        [*command, str(low), str(high), str(port)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    number, held = map(int, done.stdout.split())
    assert number == errno.EADDRNOTAVAIL
    expected = ports_in_range((low, high), (), (port,))
    assert expected in (9, 10)
    assert expected <= held <= expected + luck


# --- properties


@st.composite
def hosts(draw, connections):
    """Hosts whose limits are about what so many connections need, so that either side is met."""

    def about(needed):
        return draw(st.integers(needed // 2, 2 * needed + 100))

    hard = draw(st.integers(64, 30_000) | st.integers(64, 1_100_000))
    pressure = draw(st.integers(100, 10**6))
    available = about(500 * 10**6 + 9_300 * connections)
    limited = draw(st.booleans())
    low = draw(st.integers(1024, 60_000))
    high = draw(st.integers(low + 100, 65_535))
    reserved = draw(st.lists(st.integers(1024, 65_000), max_size=3))
    tracking = draw(st.booleans())
    return replace(
        HOST,
        kernel=draw(st.sampled_from(["6.18.44", "6.3.0", "5.10.0-28-amd64", "odd"])),
        cpu_count=draw(st.integers(1, 64)),
        effective_capabilities=draw(
            st.sampled_from([HOST.effective_capabilities, 0, ALL_CAPABILITIES])
        ),
        nofile_soft_count=draw(st.integers(32, hard)),
        nofile_hard_count=hard,
        file_max_count=about(2 * connections) if draw(st.booleans()) else 2**63 - 1,
        file_used_count=draw(st.integers(0, 2_000)),
        port_range=draw(st.sampled_from([(low, high), (32_768, 60_999), (1024, 65_535)])),
        reserved_ports=tuple((start, start + 20) for start in reserved),
        listening_ports=tuple(sorted(draw(st.sets(st.integers(1024, 65_535), max_size=5)))),
        somaxconn_count=draw(st.integers(16, 65_535)),
        tcp_mem_pages=draw(st.sampled_from([None, (pressure // 2, pressure, pressure * 2)])),
        memory_available_bytes=available * (2 if limited else 1),
        conntrack_max_count=about(connections) if tracking else None,
        conntrack_used_count=draw(st.integers(0, 1_000)) if tracking else None,
        epoll_max_user_watches_count=about(2 * connections) if draw(st.booleans()) else None,
        cgroup=Cgroup(2, "/box", available, 10**7) if limited else Cgroup(),
    )


@st.composite
def requests(draw, host, connections):
    def maybe(strategy):
        return draw(st.none() | strategy)

    low = draw(st.integers(1024, 65_400))
    return PlanRequest(
        connections=connections,
        workers=maybe(st.integers(1, 100)),
        clients=maybe(st.integers(1, 100)),
        nofile=maybe(st.integers(64, host.nofile_ceiling_count)),
        accept=draw(st.sampled_from(ACCEPT_MODES)),
        source_addresses=maybe(st.integers(1, 100)),
        port_range=maybe(st.integers(low + 100, 65_535).map(lambda high: (low, high))),
        backlog=maybe(st.integers(1, 65_535)),
        own_namespace=draw(st.booleans()),
        force=draw(st.booleans()),
    )


@st.composite
def cases(draw):
    connections = int(10 ** draw(st.floats(0, 6.2)))
    host = draw(hosts(connections))
    return host, draw(requests(host, connections))


def free_ports(plan, host):
    low, high = plan.port_range
    gone = set(plan.destination_ports)
    if not plan.own_namespace:
        gone.update(host.listening_ports)
        for first, last in host.reserved_ports:
            gone.update(range(first, last + 1))
    size = high - low + 1
    return len(set(range(low, high + 1)) - gone) - (size % 2)


def checked_again(plan, host, request, largest_group):
    """(limit, subject, needed, available), worked out here from the host and not from the plan."""
    total = request.connections
    processes = plan.workers + plan.clients + (plan.accept == "handoff")
    listeners = len(plan.destination_ports) - 1
    yield "fds_per_process", "client", plan.client_shares[0] + 8, plan.client_nofile_count
    share = math.ceil(total / plan.workers)
    yield "fds_per_process", "server", share + 8 + listeners, plan.worker_nofile_count
    files = 2 * total + 8 * processes + host.file_used_count
    yield "file_max", "host", files, host.file_max_count
    yield "ephemeral_ports", "ports", largest_group, free_ports(plan, host)
    yield "memory", "host", 9_300 * total + 4_000_000 * processes, host.memory_room_bytes
    if host.epoll_max_user_watches_count is not None:
        yield "epoll_watches", "host", 2 * total, host.epoll_max_user_watches_count
    if host.conntrack_used_count and not request.own_namespace:
        yield "conntrack", "host", total + host.conntrack_used_count, host.conntrack_max_count
    somaxconn = int(plan.sysctls.get("net/core/somaxconn", host.somaxconn_count))
    in_flight = min(total, plan.clients * plan.client_in_flight_count)
    queues = plan.workers if plan.accept == "reuseport" else 1
    queue = min(plan.backlog_count, somaxconn)
    yield "accept_queue", "listener", math.ceil(in_flight / queues), queue


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(cases())
def test_every_plan_satisfies_what_it_read_or_says_where_it_will_not(case):
    host, request = case
    try:
        plan = make_plan(request, host)
    except HostError:
        assume(False)

    # What the user fixed is kept.
    for name, value in (("workers", request.workers), ("clients", request.clients)):
        assert value is None or getattr(plan, name) == value
    assert request.nofile is None or plan.worker_nofile_count == request.nofile
    assert request.backlog is None or plan.backlog_count == request.backlog
    assert request.source_addresses in (None, len(plan.source_addresses))
    if request.own_namespace and request.port_range is not None:
        assert plan.port_range == request.port_range

    # Everything is assigned, to groups that exist.
    assert len(plan.client_shares) == plan.clients
    assert sum(plan.client_shares) == request.connections
    totals, owners = Counter(), Counter()
    for client in range(plan.clients):
        groups = plan.client_groups(client)
        assert sum(group.count for group in groups) == plan.client_shares[client]
        assert all(group.count > 0 for group in groups)
        for group in groups:
            totals[group.source_address, group.destination_port] += group.count
            owners[group.source_address, group.destination_port] += 1
    pairs = {(s, p) for s in plan.source_addresses for p in plan.destination_ports}
    assert len(pairs) == len(plan.source_addresses) * len(plan.destination_ports)
    assert set(totals) <= pairs
    assert not plan.own_namespace or "127.0.0.1" not in plan.source_addresses
    if not plan.own_namespace:
        assert not set(plan.destination_ports) & set(host.listening_ports)

    # No limit of the host is passed in silence, and no wall is invented.
    assert plan.worker_nofile_count <= host.nofile_ceiling_count
    assert plan.client_nofile_count <= host.nofile_ceiling_count
    rungs = {(rung.limit, rung.subject) for rung in plan.rungs}
    for limit, subject, needed, available in checked_again(
        plan, host, request, max(totals.values())
    ):
        assert needed <= available or (limit, subject) in rungs, (limit, subject)
    broken = {(c.limit, c.subject) for c in plan.constraints if c.limit and not c.holds}
    assert rungs == broken
    for rung in plan.rungs:
        assert 0 <= rung.earliest_connections <= rung.predicted_connections < request.connections
        assert rung.fix

    # The planner's own choices never make a wall of processes, ports or the backlog.
    limits = {rung.limit for rung in plan.rungs}
    if request.workers is None and plan.workers < MAX_PROCESSES:
        assert ("fds_per_process", "server") not in rungs
    if request.clients is None and plan.clients < MAX_PROCESSES:
        assert ("fds_per_process", "client") not in rungs
    if request.source_addresses is None and len(plan.source_addresses) < 65_000:
        assert max(totals.values()) <= plan.group_limit_count <= 10_000
        assert plan.group_limit_count <= max(1, free_ports(plan, host) // 2)
        assert "ephemeral_ports" not in limits
        assert set(owners.values()) == {1}
    if request.backlog is None:
        somaxconn = int(plan.sysctls.get("net/core/somaxconn", host.somaxconn_count))
        assert plan.backlog_count <= somaxconn

    # It can be shown.
    assert max(map(len, plan_text(plan).splitlines())) <= 80
    assert json.loads(plan_json(plan)) == plan.to_dict()


@pytest.mark.parametrize(
    ("asked", "fixed"),
    [
        ({}, ()),
        ({"workers": 7}, ("workers",)),
        ({"nofile": 700, "source_addresses": 2}, ("nofile", "source_addresses")),
        ({"port_range": (40_000, 40_999)}, ("port_range",)),
    ],
)
def test_a_plan_knows_what_the_user_decided(asked, fixed):
    plan = plan_for(1_000, **asked)
    assert plan.fixed == fixed
    assert plan.to_dict()["fixed"] == list(fixed)
