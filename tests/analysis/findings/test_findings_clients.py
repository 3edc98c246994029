"""Causes on the clients' and the host's side: where they are, and not where their neighbours are.

``fd-limit-system`` is tested here alone: fs.file-max cannot be filled without harm to the host.
"""

from __future__ import annotations

import pytest

from analysis.summary import summarise


def harmful(summary) -> list[str]:
    return [f.cause for f in summary.findings if f.cause != "reached"]


def by_cause(summary, cause):
    return next(f for f in summary.findings if f.cause == cause)


def failing(build, pid, syscall, errno, count, *, at_s):
    build.add(
        "failing_syscalls",
        at_s=at_s + 0.5,
        pid=pid,
        syscall=syscall,
        errno=errno,
        errno_name={23: "ENFILE", 98: "EADDRINUSE", 99: "EADDRNOTAVAIL"}[errno],
        event_count=count,
        first_s=at_s,
        last_s=at_s + 0.4,
    )


def fleet(build, *, target, clients=1, ramp_s=1.0, hold_s=2.0):
    build.stages(ramp_s, hold_s)
    build.manifest["target_connections"] = target
    for worker in range(2):
        build.process("server", worker, nofile_soft_count=50_000)
    for client in range(clients):
        build.process("client", client, nofile_soft_count=50_000)
    return build


# -- bind-ports-exhausted ---------------------------------------------------------------------


@pytest.fixture
def early_bind(build):
    """1,009 local ports, three destinations, 1,009 connections of 2,500 get in by 0.5 s."""
    fleet(build, target=2500)
    build.manifest["plan"] = {"port_range": [40000, 41008], "bind": "early"}
    for port in (9001, 9002, 9003):
        build.connect(337 if port == 9001 else 336, until_s=0.5, destination_port=port)
    build.connect(
        648, from_s=0.51, until_s=0.9, stage="bind", errno=98, close_kind="error",
        destination_port=9001,
    )  # fmt: skip
    return build


def test_no_port_left_at_bind_while_destinations_have_room(early_bind):
    failing(early_bind, 900, "bind", 98, 648, at_s=0.51)
    early_bind.health("failing_syscalls", "tcp_snapshot")
    summary = summarise(early_bind.frames())
    assert harmful(summary) == ["bind-ports-exhausted"]
    finding = summary.findings[0]
    assert (finding.severity, finding.side, finding.subject.role) == ("binding", "client", "client")
    assert finding.value_of("eaddrinuse_calls", "bind") == 648
    assert finding.value_of("ports_used") == 1009
    assert finding.value_of("port_range_size") == 1009
    assert finding.value_of("destinations") == 3
    assert finding.value_of("fullest_destination_ports") == 337
    assert finding.explained_count == 648 + 2500 - 1009 - 648
    assert finding.confidence == "high"
    assert "IP_BIND_ADDRESS_NO_PORT" in finding.fix[0].command
    assert "from 1,009 to 3,027" in finding.fix[0].effect
    rung = next(r for r in summary.ladder if r.limit == "ephemeral_ports")
    assert (rung.predicted_connections, rung.met) == (1009, True)


def test_a_server_that_finds_its_port_taken_is_no_clients_matter(early_bind):
    for column in early_bind.connections.values():
        del column[1009:]
    failing(early_bind, 800, "bind", 98, 1, at_s=0.51)
    assert harmful(summarise(early_bind.frames())) == []


def test_lost_events_lower_the_confidence_at_bind(early_bind):
    failing(early_bind, 900, "bind", 98, 600, at_s=0.51)
    early_bind.health("failing_syscalls", lost_count=48)
    early_bind.health("tcp_snapshot")
    finding = summarise(early_bind.frames()).findings[0]
    assert finding.confidence == "medium"
    assert any("lost 48 events" in line for line in finding.missing)


def test_bound_ports_that_somebody_else_holds_lower_the_confidence(early_bind):
    early_bind.manifest["plan"]["port_range"] = [32768, 60999]
    finding = summarise(early_bind.frames()).findings[0]
    assert (finding.cause, finding.confidence) == ("bind-ports-exhausted", "low")


# -- source-address-missing -------------------------------------------------------------------


@pytest.fixture
def foreign_source(build):
    """Client 1 binds 198.18.0.3; client 0 has its 500."""
    fleet(build, target=1000, clients=2)
    build.connect(500, client=0, until_s=0.4)
    build.connect(
        323, client=1, until_s=0.5, stage="bind", errno=99, close_kind="error",
        source_address="198.18.0.3",
    )  # fmt: skip
    return build


def test_an_address_that_is_not_local(foreign_source):
    failing(foreign_source, 901, "bind", 99, 323, at_s=0.001)
    foreign_source.health("failing_syscalls")
    summary = summarise(foreign_source.frames())
    assert harmful(summary) == ["source-address-missing"]
    finding = summary.findings[0]
    assert (finding.side, finding.subject.pid, finding.confidence) == ("client", 901, "high")
    assert finding.value_of("eaddrnotavail_calls") == 323
    assert finding.value_of("connections_from_address", "198.18.0.3") == 0
    assert finding.value_of("connections_from_others") == 500
    assert finding.explained_count == 500
    assert "ip address add 198.18.0.3/32" in finding.fix[0].command


def test_the_same_errno_at_connect_is_the_ports(build):
    fleet(build, target=2000)
    build.manifest["plan"] = {"port_range": [40000, 41008]}
    build.connect(1009, until_s=0.5)
    build.connect(99, from_s=0.5, until_s=0.6, stage="connect", errno=99, close_kind="error")
    assert harmful(summarise(build.frames())) == ["ephemeral-ports-exhausted"]


# -- port-search-cost -------------------------------------------------------------------------

_SEARCH_STACK = "do_syscall_64_[k];tcp_v4_connect_[k];__inet_hash_connect_[k]"
_OTHER_STACK = "do_syscall_64_[k];ksys_write_[k];tcp_sendmsg_[k]"


@pytest.fixture
def filling_pool(build):
    """10,009 of 14,009 ports; from half full on, connect takes 900 us instead of 30."""

    def fill(*, late_us=900, stack=_SEARCH_STACK, late_cpu_pct=95, sources=1, samples=47):
        fleet(build, target=10_009, ramp_s=4.0)
        build.manifest["plan"] = {"port_range": [40000, 54008]}
        half = 14_009 // 2
        for count, from_s, until_s, us in (
            (half, 0.0, 1.0, 30),
            (10_009 - half, 1.0, 3.9, late_us),
        ):
            first = len(build.connections.get("connection", []))
            build.connect(count, from_s=from_s, until_s=until_s)
            for i in range(first, first + count):
                start_ns = build.connections["start_ns"][i]
                build.connections["connected_ns"][i] = start_ns + us * 1000
                build.connections["established_ns"][i] = start_ns + us * 1000 + 100_000
                build.connections["source_address"][i] = f"127.0.0.{2 + i % sources}"
        build.cpu(900, 30, from_s=0.0, until_s=1.0)
        build.cpu(900, late_cpu_pct, from_s=1.0, until_s=4.0)
        if stack:
            for at_s, kernel in ((0.9, _OTHER_STACK), (2.0, stack), (3.0, stack), (4.0, stack)):
                build.add(
                    "cpu_stacks",
                    at_s=at_s,
                    pid=900,
                    tid=900,
                    kernel_stack=kernel,
                    sample_count=samples,
                )
            build.health("cpu_stacks", "process_samples")
        return summarise(build.frames())

    return fill


def test_connect_slows_in_a_pool_over_half_full(filling_pool):
    summary = filling_pool()
    assert summary.verdict.cause == "reached"
    assert harmful(summary) == ["port-search-cost"]
    finding = by_cause(summary, "port-search-cost")
    assert (finding.severity, finding.side, finding.confidence) == ("warning", "client", "high")
    assert finding.value_of("connect_median", "filled to 45 %") == pytest.approx(30, rel=0.01)
    assert finding.value_of("connect_median", "over 55 % full") == pytest.approx(900, rel=0.01)
    assert finding.value_of("ports_used") == 10_009
    assert finding.value_of("port_search_samples", "over 55 % full") == 100
    assert "--source-addresses 2" in finding.fix[0].command


def test_without_stacks_the_cpu_of_the_clients_tells(filling_pool):
    finding = by_cause(filling_pool(stack=""), "port-search-cost")
    assert finding.confidence == "medium"
    assert any("cpu_stacks" in line for line in finding.missing)


@pytest.mark.parametrize(
    "other",
    [
        pytest.param({"stack": _OTHER_STACK}, id="time spent elsewhere: a slow server"),
        pytest.param({"stack": _OTHER_STACK, "samples": 5}, id="15 samples, none in the search"),
        pytest.param({"samples": 1}, id="three samples prove nothing"),
        pytest.param({"late_us": 150}, id="0.4 s in all: no matter"),
        pytest.param({"stack": "", "late_cpu_pct": 10}, id="no CPU of the client: a slow server"),
        pytest.param({"late_us": 45}, id="no slower"),
        pytest.param({"sources": 4}, id="four addresses: no pool is half full"),
    ],
)
def test_a_slow_connect_is_not_always_the_search(filling_pool, other):
    assert harmful(filling_pool(**other)) == []


# -- host-cpu-saturated -----------------------------------------------------------------------


def full_host(
    build, *, sent_per_s, busy_pct=100, fleet_pct=10, pressure_pct=99, rate=10_000, wait_pct=None
):
    """1,000 connections held 4 s; both cores busy, two workers and a client at ``fleet_pct``.

    The client waits for a core ``wait_pct`` of the time, the workers hardly; None: nobody knows.
    """
    fleet(build, target=1000, hold_s=4.0)
    build.manifest["settings"] = {"message_rate_per_s": rate}
    build.connect(1000)
    for pid in (800, 801, 900):
        wait = wait_pct if pid == 900 else wait_pct and 1
        build.cpu(pid, fleet_pct, from_s=0.0, until_s=5.0, wait_pct=wait)
    build.host_cpu(busy_pct, from_s=0.0, until_s=5.0)
    for tenth in range(51):
        at_s = tenth / 10
        build.live(900, at_s, tx_messages_total=round(sent_per_s * max(0.0, at_s - 1.0)))
        build.add(
            "host_pressure",
            at_s=at_s,
            resource="cpu",
            some_ns_total=round(pressure_pct * 1e7 * at_s),
        )
    build.health("host_counters", "process_samples", "live_samples")
    return summarise(build.frames())


def test_messages_fall_behind_on_a_host_that_others_fill(build):
    summary = full_host(build, sent_per_s=4_000)
    assert summary.verdict.cause == "reached"
    assert harmful(summary) == ["host-cpu-saturated"]
    finding = by_cause(summary, "host-cpu-saturated")
    assert (finding.severity, finding.side, str(finding.subject)) == ("warning", "host", "the host")
    assert finding.value_of("sent_rate", "messages") == pytest.approx(4_000, rel=0.01)
    assert finding.value_of("due_rate", "messages") == 10_000
    assert finding.value_of("host_share", "servers") == pytest.approx(10, abs=0.5)
    assert finding.value_of("host_share", "processes beside the run") == pytest.approx(85, abs=1)
    assert finding.value_of("core_pressure") == pytest.approx(99, abs=1)
    assert finding.confidence == "high"
    assert finding.fix[0].command.startswith("top ")


def test_the_process_of_the_run_that_waited_longest_is_evidence(build):
    finding = by_cause(full_host(build, sent_per_s=4_000, wait_pct=85), "host-cpu-saturated")
    assert finding.value_of("core_wait", "client 0 (pid 900, client)") == pytest.approx(85)
    assert finding.confidence == "high"


def test_load_beyond_the_machine_needs_more_cores(build):
    finding = by_cause(full_host(build, sent_per_s=4_000, fleet_pct=64), "host-cpu-saturated")
    assert finding.value_of("host_share", "processes beside the run") == pytest.approx(4, abs=1)
    assert "6 cores" in finding.fix[0].effect  # 2 cores carried 4,000 of 10,000, and 10 % to spare


def test_run_queue_latency_is_evidence(build):
    for low_ns, count in ((1024, 50), (1 << 22, 40), (1 << 24, 10)):
        build.add("runq_latency", at_s=3.0, pid=800, bucket_low_ns=low_ns, event_count=count)
    finding = by_cause(full_host(build, sent_per_s=4_000), "host-cpu-saturated")
    assert finding.value_of("runq_wait_p99") == pytest.approx(16.8, abs=0.1)


@pytest.mark.parametrize(
    "healthy",
    [
        pytest.param({"sent_per_s": 9_900}, id="busy, and nothing was harmed"),
        pytest.param({"sent_per_s": 4_000, "busy_pct": 60}, id="behind, with cores free"),
        pytest.param({"sent_per_s": 4_000, "pressure_pct": 29}, id="busy, and nobody waits"),
        pytest.param({"sent_per_s": 4_000, "wait_pct": 29}, id="others wait, not the run"),
        pytest.param({"sent_per_s": 0, "rate": 0}, id="no messages were asked for"),
    ],
)
def test_a_full_host_alone_is_no_finding(build, healthy):
    assert harmful(full_host(build, **healthy)) == []


@pytest.mark.parametrize("waits", [{"pressure_pct": 31}, {"wait_pct": 31, "pressure_pct": 0}])
def test_a_run_that_waits_for_a_core_a_third_of_the_time_is_harmed(build, waits):
    assert harmful(full_host(build, sent_per_s=4_000, **waits)) == ["host-cpu-saturated"]


def test_attempts_that_time_out_on_a_full_host(build):
    fleet(build, target=1000, ramp_s=4.0)
    build.connect(700)
    build.connect(
        300, from_s=1.0, until_s=1.5, closed_s=3.5, stage="handshake", errno=110,
        close_kind="timeout",
    )  # fmt: skip
    for pid in (800, 801, 900):
        build.cpu(pid, 5, from_s=0.0, until_s=5.0)
    build.host_cpu(100, from_s=0.0, until_s=6.0)
    summary = summarise(build.frames())
    assert (summary.verdict.cause, summary.verdict.side) == ("host-cpu-saturated", "host")
    finding = summary.findings[0]
    assert finding.explained_count == 300
    assert finding.confidence == "medium"  # nobody measured who waits


def test_timeouts_of_a_full_server_are_not_the_hosts(build):
    build.stages(2.0, 3.0)
    build.manifest["target_connections"] = 1500
    build.process("server", 0, nofile_soft_count=400, own_fds_count=7)
    build.process("client", 0, nofile_soft_count=20_000)
    build.connect(393, until_s=0.5)
    build.connect(
        256, from_s=0.5, until_s=0.6, closed_s=3.0, stage="handshake", errno=110,
        close_kind="timeout",
    )  # fmt: skip
    for quarter in range(21):
        build.live(800, quarter / 4, open_count=min(393, round(786 * quarter / 4)))
    build.host_cpu(100, from_s=0.0, until_s=5.0)
    assert "host-cpu-saturated" not in harmful(summarise(build.frames()))


# -- client-is-the-limit ----------------------------------------------------------------------


def slow_client(
    build,
    *,
    cpu_pct=99,
    wait_pct=None,
    server_pct=5,
    busy=1.0,
    made=500,
    until_s=4.0,
    errno=0,
    host_pct=55,
):
    """Client 0 makes its 500 in 0.2 s; client 1 makes ``made`` of its own until ``until_s``."""
    fleet(build, target=1000, clients=2, ramp_s=4.0)
    build.manifest["plan"] = {"client_shares": [500, 500]}
    build.connect(500, client=0, until_s=0.2)
    build.connect(made, client=1, until_s=until_s)
    if errno:
        build.connect(
            500 - made, client=1, from_s=3.0, until_s=3.1, stage="socket", errno=errno,
            close_kind="error",
        )  # fmt: skip
    for worker in (800, 801):
        build.cpu(worker, server_pct, from_s=0.0, until_s=6.0)
    build.cpu(900, 2, from_s=0.0, until_s=6.0)
    build.cpu(901, cpu_pct, from_s=0.0, until_s=6.0, wait_pct=wait_pct)
    build.host_cpu(host_pct, from_s=0.0, until_s=6.0)
    for quarter in range(25):
        at_s = quarter / 4
        build.live(900, at_s, loop_busy_ns_total=round(0.01 * at_s * 1e9))
        build.live(
            901, at_s, loop_busy_ns_total=round(busy * at_s * 1e9), loop_max_lag_ns=300_000_000
        )
    build.health("process_samples", "live_samples", "failing_syscalls")
    return summarise(build.frames())


def test_a_client_at_a_full_core_that_comes_late(build):
    summary = slow_client(build)
    assert summary.verdict.cause == "reached"
    assert harmful(summary) == ["client-is-the-limit"]
    finding = by_cause(summary, "client-is-the-limit")
    assert (finding.severity, finding.side, finding.subject.pid) == ("warning", "client", 901)
    assert finding.value_of("process_cpu") == pytest.approx(99, rel=0.01)
    assert finding.value_of("servers_idle") == pytest.approx(95, abs=1)
    assert finding.value_of("longest_loop_turn") == pytest.approx(300)
    assert finding.value_of("attempt_rate") == pytest.approx(125, rel=0.02)
    assert finding.value_of("siblings_attempt_rate") == pytest.approx(2500, rel=0.02)
    assert finding.value_of("later_than_siblings") == pytest.approx(3.8, abs=0.1)
    assert finding.explained_count == 0


def test_a_hot_client_on_a_full_host_gets_what_is_left(build):
    """Others take half of its core: its loop never waits, its sibling was done, workers idle."""
    finding = by_cause(slow_client(build, cpu_pct=50, host_pct=100), "client-is-the-limit")
    assert finding.confidence == "medium"
    assert any("cores were full" in line for line in finding.missing)
    assert "50 % of a core" in finding.sentence


def test_a_hot_client_beside_a_neighbour_is_hot_though_a_core_is_free(build):
    finding = by_cause(slow_client(build, cpu_pct=66, wait_pct=33), "client-is-the-limit")
    assert finding.confidence == "high"
    assert "66 % of a core" in finding.sentence


def test_a_blocked_client_stops_the_run(build):
    summary = slow_client(build, cpu_pct=1, made=64, until_s=0.1)
    assert (summary.verdict.cause, summary.verdict.side) == ("client-is-the-limit", "client")
    finding = summary.findings[0]
    assert finding.explained_count == 436
    assert "blocked off the CPU" in summary.verdict.sentence
    assert "client 1" in summary.verdict.sentence.lower()


def test_a_client_that_hardly_waits_is_blocked_whoever_fills_the_host(build):
    summary = slow_client(build, cpu_pct=1, wait_pct=1, made=64, until_s=0.1, host_pct=99)
    assert summary.verdict.cause == "client-is-the-limit"
    assert "blocked off the CPU" in summary.verdict.sentence


@pytest.mark.parametrize(
    "other",
    [
        pytest.param({"server_pct": 90}, id="the workers are busy: it waits for them"),
        pytest.param({"cpu_pct": 10, "busy": 0.1}, id="its loop waits for events"),
        pytest.param(
            {"cpu_pct": 50, "host_pct": 100, "server_pct": 30},
            id="a full host: the workers get as little as it does",
        ),
        pytest.param({"until_s": 0.3}, id="hardly later than its sibling"),
        pytest.param({"cpu_pct": 10, "wait_pct": 60}, id="it waits for a core: not blocked"),
    ],
)
def test_a_late_client_is_not_always_the_limit(build, other):
    assert "client-is-the-limit" not in harmful(slow_client(build, **other))


def test_a_limit_with_a_name_goes_before(build):
    """EMFILE at its socket: fd-limit-process, side client."""
    summary = slow_client(build, made=484, errno=24)
    assert harmful(summary) == ["fd-limit-process"]
    assert summary.findings[0].side == "client"


# -- fd-limit-system --------------------------------------------------------------------------


def full_table(build, *, file_nr, lost=0, health=True):
    fleet(build, target=1500)
    build.connect(700, until_s=0.5)
    build.connect(250, from_s=0.5, until_s=0.6, stage="handshake", errno=110, close_kind="timeout")
    build.connect(50, from_s=0.6, until_s=0.7, stage="socket", errno=23, close_kind="error")
    failing(build, 801, "accept4", 23, 1000, at_s=0.5)
    failing(build, 900, "socket", 23, 50, at_s=0.6)
    for half in range(7):
        build.add(
            "sockstat",
            at_s=half / 2,
            file_nr_count=min(file_nr, 1000 + 4000 * half),
            file_max_count=5000,
        )
    for at_s in (0.0, 0.5, 1.0):
        build.live(801, at_s, open_count=round(350 * min(1, 2 * at_s)))
    if health:
        build.health("failing_syscalls", lost_count=lost)
        build.health("host_counters")
    return summarise(build.frames())


def test_the_file_table_of_the_host_is_full(build):
    summary = full_table(build, file_nr=5000)
    assert harmful(summary) == ["fd-limit-system"]
    finding = summary.findings[0]
    assert (finding.severity, finding.side, finding.confidence) == ("binding", "host", "high")
    assert finding.value_of("enfile_calls") == 1050
    assert finding.value_of("open_files") == 5000
    assert finding.value_of("file_max") == 5000
    assert finding.value_of("descriptors_open") < finding.value_of("descriptor_limit")
    assert finding.explained_count == 300
    assert finding.fix[0].command.startswith("sysctl -w fs.file-max=")


def test_enfile_with_room_in_the_file_table_is_memory(build):
    assert "fd-limit-system" not in harmful(full_table(build, file_nr=2400))


def test_lost_events_lower_the_confidence_of_a_full_table(build):
    finding = full_table(build, file_nr=5000, lost=23).findings[0]
    assert finding.confidence == "medium"
    assert any("lost 23 events" in line for line in finding.missing)


# -- the healthy run --------------------------------------------------------------------------


def test_a_healthy_run_on_full_cores_names_nothing(build):
    """The ramp of a loopback fleet fills both cores by design; clients finish at 1.0 and 1.4 s."""
    fleet(build, target=20_000, clients=2, ramp_s=1.5)
    build.manifest["plan"] = {"client_shares": [10_000, 10_000], "port_range": [32768, 60999]}
    for client, until_s in ((0, 1.0), (1, 1.4)):
        build.connect(10_000, client=client, until_s=until_s)
    for pid in (800, 801, 900, 901):
        build.cpu(pid, 50, from_s=0.0, until_s=1.5)
        build.cpu(pid, 2, from_s=1.5, until_s=3.5)
        for quarter in range(15):
            build.live(pid, quarter / 4, loop_busy_ns_total=round(min(1.4, quarter / 4) * 1e9))
    build.host_cpu(100, from_s=0.0, until_s=1.5)
    build.host_cpu(5, from_s=1.5, until_s=3.5)
    summary = summarise(build.frames())
    assert harmful(summary) == []
    assert summary.verdict.cause == "reached"
