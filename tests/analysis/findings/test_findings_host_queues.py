"""Tables and queues of the whole host on built runs: named where the run itself was refused."""

from __future__ import annotations

import pytest

from analysis.summary import summarise

HOST_WIDE = {"neighbour-table-full", "softnet-drops", "orphans-or-time-wait"}
PROBES = ("host_counters", "tcp_events", "failing_syscalls", "live_samples", "process_samples")
TARGET = 300


def named(summary):
    return [f.cause for f in summary.findings if f.cause in HOST_WIDE]


def counter(build, name, change, *, before=1009, at_s=0.5):
    build.add("net_counters", at_s=-0.5, counter=name, value_total=before)
    build.add("net_counters", at_s=at_s, counter=name, value_total=before + change)


def dropped(build, reason, count, *, of_server=1, location="", at_s=0.6):
    build.add("skb_drops", at_s=at_s, reason=reason, location=location, event_count=count,
              namespace_known=1, of_server=of_server)  # fmt: skip


def sockstat(build, **values):
    for at_s in (-0.5, 0.5, 1.5):
        build.add("sockstat", at_s=at_s, **(values if at_s > 0 else {}))


@pytest.fixture
def stalled(build):
    """200 of 300 connections get in, 20 of them after a second, 100 time out."""
    build.stages(3.0, 2.0)
    build.manifest["target_connections"] = TARGET
    build.manifest.setdefault("host", {})["sysctls"] = {
        "net.core.netdev_max_backlog": 1000,
        "net.ipv4.tcp_max_orphans": 131_072,
    }
    build.process("server", 0, nofile_soft_count=20_000)
    build.process("client", 0, nofile_soft_count=20_000)
    build.cpu(800, 3.0, from_s=-0.5, until_s=5.0)
    build.connect(180, until_s=1.0)
    build.connect(
        20, from_s=0.2, until_s=0.3, connected_ns=build.ns(1.31), established_ns=build.ns(1.32)
    )
    build.connect(
        100, from_s=0.3, until_s=0.9, closed_s=2.9, stage="connect", errno=110, close_kind="timeout"
    )
    build.health(*PROBES)
    return build


@pytest.fixture
def fine(build):
    """Every connection gets in at once."""
    build.stages(1.0, 2.0)
    build.manifest["target_connections"] = TARGET
    build.process("server", 0, nofile_soft_count=20_000)
    build.process("client", 0, nofile_soft_count=20_000)
    build.connect(TARGET)
    build.health(*PROBES)
    return build


# -- softnet-drops ----------------------------------------------------------------------------


def full_core(build, *, of_server=1, reason="CPU_BACKLOG", location=""):
    counter(build, "SoftnetDropped", 230)
    counter(build, "SoftnetDroppedCpu3", 200, before=0)
    counter(build, "SoftnetDroppedCpu1", 30, before=0)
    dropped(build, reason, 170, of_server=of_server, location=location)


def test_segments_that_a_core_dropped_name_it_with_its_limit(stalled):
    full_core(stalled)
    summary = summarise(stalled.frames())
    assert named(summary) == ["softnet-drops"]
    finding = summary.findings[0]
    assert (finding.severity, finding.side, finding.confidence) == ("binding", "host", "high")
    assert finding.value_of("backlog_drops") == 170
    assert finding.value_of("softnet_drops") == 230
    assert finding.value_of("core_softnet_drops") == 200
    assert finding.value_of("limit_size") == 1000
    assert finding.value_of("timed_out_attempts") == finding.explained_count == 100
    assert finding.fix[0].command == "sysctl -w net.core.netdev_max_backlog=4096"
    assert "core 3" in summary.verdict.sentence


def test_drops_have_a_place_where_the_kernel_tells_no_reason(stalled):
    full_core(stalled, reason="", location="enqueue_to_backlog")
    assert named(summarise(stalled.frames())) == ["softnet-drops"]


def test_rounds_cut_short_prove_nothing_alone(stalled):
    counter(stalled, "SoftnetSqueezed", 4_000)
    assert named(summarise(stalled.frames())) == []


def test_rounds_cut_short_are_told_beside_it(stalled):
    counter(stalled, "SoftnetSqueezed", 4_000)
    full_core(stalled)
    finding = summarise(stalled.frames()).findings[0]
    assert finding.value_of("softnet_squeezed") == 4_000
    assert "netdev_budget" in finding.fix[-1].command


def test_a_limit_that_could_not_be_read_is_missing_and_not_guessed(stalled):
    full_core(stalled)
    stalled.manifest["host"]["sysctls"] = {}
    finding = summarise(stalled.frames()).findings[0]
    assert finding.cause == "softnet-drops"
    assert finding.confidence == "medium"
    assert any("netdev_max_backlog" in each for each in finding.missing)
    assert "=" not in finding.fix[0].command


def test_the_hosts_counter_alone_names_nothing_though_clients_waited(stalled):
    counter(stalled, "SoftnetDropped", 230_000)
    dropped(stalled, "CPU_BACKLOG", 230_000, of_server=0)
    assert named(summarise(stalled.frames())) == []


@pytest.mark.parametrize(("dropped_count", "is_named"), [(30, False), (230, True)])
def test_few_drops_do_not_explain_many_handshakes_that_nobody_answered(
    fine, dropped_count, is_named
):
    """A neighbour fills the queue, and the server is full: what it dropped came again at once."""
    fine.connect(100, from_s=0.3, until_s=0.9, closed_s=2.9, stage="handshake", errno=110,
                 close_kind="timeout")  # fmt: skip
    counter(fine, "SoftnetDropped", 900)
    dropped(fine, "CPU_BACKLOG", dropped_count)
    assert (named(summarise(fine.frames())) == ["softnet-drops"]) is is_named


def test_drops_that_delayed_nobody_are_no_finding(fine):
    full_core(fine)
    assert [f.cause for f in summarise(fine.frames()).findings] == ["reached"]


def test_segments_that_came_again_in_time_are_worth_knowing(fine):
    full_core(fine)
    fine.add("tcp_retransmits", at_s=0.9, side="server", state="ESTABLISHED", event_count=170)
    summary = summarise(fine.frames())
    assert summary.verdict.cause == "reached"
    assert [(f.cause, f.severity) for f in summary.findings[1:]] == [("softnet-drops", "info")]


# -- neighbour-table-full ---------------------------------------------------------------------


def full_table(build, *, name="arp", change=230, entries=1_024):
    sockstat(build, **{f"{name}_entries_count": entries, f"{name}_max_count": 1_024})
    counter(build, {"arp": "ArpTableFulls", "ndisc": "NdiscTableFulls"}[name], change)


@pytest.mark.parametrize(("name", "family"), [("arp", "ipv4"), ("ndisc", "ipv6")])
def test_segments_without_a_neighbour_name_the_full_table(stalled, name, family):
    full_table(stalled, name=name)
    dropped(stalled, "NEIGH_CREATEFAIL", 170)
    summary = summarise(stalled.frames())
    assert named(summary) == ["neighbour-table-full"]
    finding = summary.findings[0]
    assert (finding.severity, finding.side, finding.confidence) == ("binding", "host", "high")
    assert finding.value_of("limit_used") == finding.value_of("limit_size") == 1_024
    assert finding.value_of("neighbours_refused") == 230
    assert finding.value_of("neighbour_drops") == 170
    assert finding.explained_count == 100
    command = finding.fix[0].command
    assert f"net.{family}.neigh.default.gc_thresh3=4096" in command
    assert "gc_thresh2=2048" in command


def test_enobufs_follows_from_a_table_that_is_full(stalled):
    full_table(stalled)
    dropped(stalled, "NEIGH_CREATEFAIL", 170)
    stalled.add("failing_syscalls", at_s=0.9, pid=900, syscall="sendto", errno=105, event_count=23,
                first_ns=stalled.ns(0.7), last_ns=stalled.ns(0.8))  # fmt: skip
    summary = summarise(stalled.frames())
    finding = next(f for f in summary.findings if f.cause == "enobufs")
    assert finding.follows_from == "neighbour-table-full"


def test_a_table_that_others_filled_is_not_named_where_the_run_sent_all(stalled):
    full_table(stalled)
    dropped(stalled, "NEIGH_CREATEFAIL", 9_000, of_server=0)
    assert named(summarise(stalled.frames())) == []


def test_drops_without_a_full_table_are_something_else(stalled):
    full_table(stalled, entries=23)
    dropped(stalled, "NEIGH_CREATEFAIL", 170)
    assert named(summarise(stalled.frames())) == []


def test_what_the_table_refused_before_the_ramp_does_not_count(stalled):
    sockstat(stalled, arp_entries_count=1_024, arp_max_count=1_024)
    stalled.add("net_counters", at_s=-0.5, counter="ArpTableFulls", value_total=1_009)
    dropped(stalled, "NEIGH_CREATEFAIL", 170)
    assert named(summarise(stalled.frames())) == []


# -- orphans-or-time-wait ---------------------------------------------------------------------


@pytest.fixture
def closing(build):
    """Connections that the server closes while they are held; 40 clients see a reset."""
    build.stages(1.0, 4.0)
    build.manifest["target_connections"] = TARGET
    host = build.manifest.setdefault("host", {})
    host["sysctls"] = {"net.ipv4.tcp_max_orphans": 1_000}
    build.process("server", 0, nofile_soft_count=20_000)
    build.process("client", 0, nofile_soft_count=20_000)
    build.connect(260)
    build.connect(40, closed_s=2.0, stage="closed", close_kind="rst", errno=104)
    build.health(*PROBES)
    return build


def test_orphans_at_their_limit_are_named_with_what_was_reset(closing):
    sockstat(closing, tcp_orphan_count=1_009, tcp_mem_pages=9, tcp_mem_max_pages=90)
    counter(closing, "TcpExtTCPAbortOnMemory", 50)
    summary = summarise(closing.frames())
    assert named(summary) == ["orphans-or-time-wait"]
    finding = next(f for f in summary.findings if f.cause == "orphans-or-time-wait")
    assert finding.value_of("limit_used") == 1_009
    assert finding.value_of("limit_size") == 1_000
    assert finding.value_of("tcp_memory_aborts") == 50
    assert finding.explained_count == 40
    assert finding.fix[0].command == "sysctl -w net.ipv4.tcp_max_orphans=4096"


@pytest.mark.parametrize(("orphans", "pages"), [(23, 9), (1_009, 89)])
def test_aborts_while_orphans_are_few_or_memory_is_gone_are_not_theirs(closing, orphans, pages):
    counter(closing, "TcpExtTCPAbortOnMemory", 50)
    sockstat(closing, tcp_orphan_count=orphans, tcp_mem_pages=pages, tcp_mem_max_pages=90)
    assert named(summarise(closing.frames())) == []


@pytest.fixture
def crowded(closing):
    """The same in a network namespace of many, at the limit of the host."""
    closing.manifest["host"]["network_namespace"] = "host"
    sockstat(closing, tcp_orphan_count=1_009, tcp_mem_pages=9, tcp_mem_max_pages=90)
    counter(closing, "TcpExtTCPAbortOnMemory", 50)
    return closing


def test_orphans_of_others_are_not_named_in_a_namespace_of_many(crowded):
    assert named(summarise(crowded.frames())) == []


def test_resets_of_its_own_are_named_in_a_namespace_of_many(crowded):
    crowded.add("tcp_resets", at_s=2.0, direction="tx", side="server", state="CLOSE",
                reason="TCP_ABORT_ON_MEMORY", event_count=23)  # fmt: skip
    finding = next(f for f in summarise(crowded.frames()).findings if f.cause in HOST_WIDE)
    assert finding.value_of("tcp_memory_aborts") == 23


def overflown(build, change=150):
    sockstat(build, tcp_timewait_count=100, tcp_timewait_max_count=100)
    counter(build, "TcpExtTCPTimeWaitOverflow", change)


def test_a_full_time_wait_is_worth_knowing_and_explains_nothing(fine):
    overflown(fine)
    summary = summarise(fine.frames())
    assert summary.verdict.cause == "reached"
    (finding,) = summary.findings[1:]
    assert (finding.cause, finding.severity) == ("orphans-or-time-wait", "info")
    assert finding.value_of("limit_used") == finding.value_of("limit_size") == 100
    assert finding.value_of("time_wait_overflows") == 150
    assert finding.fix[0].command == "sysctl -w net.ipv4.tcp_max_tw_buckets=512"


@pytest.mark.parametrize(("closed_first", "told"), [(0, []), (120, ["orphans-or-time-wait"])])
def test_a_time_wait_that_others_fill_is_not_told(fine, closed_first, told):
    fine.manifest.setdefault("host", {})["network_namespace"] = "host"
    overflown(fine)
    fine.add("tcp_state_transitions", at_s=0.9, side="server", old_state="FIN_WAIT2",
             new_state="CLOSE", event_count=closed_first)  # fmt: skip
    assert named(summarise(fine.frames())) == told


def test_an_older_recording_knows_none_of_these_limits(fine):
    sockstat(fine, tcp_timewait_count=100, tcp_timewait_max_count=-1, arp_max_count=-1)
    counter(fine, "TcpExtTCPTimeWaitOverflow", 150)
    assert named(summarise(fine.frames())) == []
