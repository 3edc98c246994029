"""Full queues and a full table on built runs: each where it is, not where its neighbours are."""

from __future__ import annotations

import pytest

from analysis.summary import summarise

TARGET = 600
PORT = 9001
QUEUES = {"accept-queue-overflow", "syn-backlog-overflow", "conntrack-full"}
PROBES = ("host_counters", "tcp_snapshot", "live_samples", "process_samples")


def named(summary):
    return [f.cause for f in summary.findings if f.cause in QUEUES]


def counter(build, name, change, *, before=1009, at_s=0.5):
    build.add("net_counters", at_s=-0.5, counter=name, value_total=before)
    build.add("net_counters", at_s=at_s, counter=name, value_total=before + change // 2)
    build.add("net_counters", at_s=at_s + 0.5, counter=name, value_total=before + change)


def snapshot(build, worker, *, accept=0, half_open=0, dropped=0, backlog=64):
    """The listener of one worker: empty at first, then as given."""
    inode = 70 + worker
    if not any(r["socket_inode"] == inode for r in build.rows.get("listener_owners", [])):
        build.add("listener_owners", at_s=-0.2, pid=800 + worker, socket_inode=inode)
    for at_s, filled in ((-0.2, 0), (0.9, 1)):
        build.add(
            "listeners",
            at_s=at_s,
            local_address="127.0.0.1",
            local_port=PORT,
            socket_inode=inode,
            backlog_count=backlog,
            accept_queue_count=filled * accept,
            syn_queue_count=filled * half_open,
            dropped_total=filled * dropped,
        )


@pytest.fixture
def stalled(build):
    """Two idle workers; 450 of 600 connections get in, 20 of them after 1 s, 150 never."""
    build.stages(3.0, 2.0)
    build.manifest["target_connections"] = TARGET
    for worker in range(2):
        build.process("server", worker, nofile_soft_count=20_000)
        build.cpu(800 + worker, 3.0, from_s=-0.5, until_s=5.0)
        for quarter in range(21):
            count = min(225, 45 * quarter)
            build.live(
                800 + worker,
                quarter / 4,
                open_count=count,
                established_total=count,
                attempted_total=count,
            )
    build.process("client", 0, nofile_soft_count=20_000)
    build.connect(430, until_s=1.0)
    build.connect(
        20, from_s=0.2, until_s=0.3, connected_ns=build.ns(1.31), established_ns=build.ns(1.32)
    )
    build.connect(
        150, from_s=0.3, until_s=0.9, closed_s=2.9, stage="connect", errno=110, close_kind="timeout"
    )
    build.health(*PROBES)
    return build


def full_accept_queue(build):
    counter(build, "TcpExtListenOverflows", 230)
    counter(build, "TcpExtListenDrops", 230)
    snapshot(build, 0, dropped=10, accept=3)
    snapshot(build, 1, dropped=300, accept=65)


# -- accept-queue-overflow --------------------------------------------------------------------


def test_the_full_accept_queue_names_the_worker_that_owns_it(stalled):
    full_accept_queue(stalled)
    summary = summarise(stalled.frames())
    assert named(summary) == ["accept-queue-overflow"]
    finding = summary.findings[0]
    assert (finding.severity, finding.side, finding.subject.pid) == ("binding", "server", 801)
    assert finding.confidence == "high"
    assert finding.value_of("listen_overflows") == 230
    assert finding.value_of("listener_backlog") == 64
    assert finding.value_of("longest_accept_queue") == 65
    assert finding.value_of("timed_out_attempts") == finding.explained_count == 150
    assert finding.value_of("late_attempts") == 20
    assert finding.value_of("longest_stall") == pytest.approx(1.12, abs=0.01)
    # the counters say by 0.5 s; the first connect that came through late, when
    assert finding.first_s == pytest.approx(0.2)
    assert "had time" in finding.explanation
    for part in ("worker 1", "pid 801", "64", "230", "150"):
        assert part in summary.verdict.sentence


@pytest.mark.parametrize(("other_stands", "pid"), [(False, 801), (True, 0)])
def test_where_all_dropped_some_in_a_burst_the_one_whose_queue_still_stands_is_named(
    stalled, other_stands, pid
):
    full_accept_queue(stalled)
    snapshot(stalled, 0, dropped=290, accept=60)
    for worker, count in ((0, 60 if other_stands else 1), (1, 65)):
        for at_s in (1.5, 2.5):
            stalled.add("listeners", at_s=at_s, local_address="127.0.0.1", local_port=PORT,
                        socket_inode=70 + worker, backlog_count=64, accept_queue_count=count,
                        dropped_total=290 + 10 * worker)  # fmt: skip
    (finding,) = [f for f in summarise(stalled.frames()).findings if f.severity == "binding"]
    assert (finding.cause, finding.subject.pid) == ("accept-queue-overflow", pid)
    assert ("those of 1 other for a while" in finding.sentence) is not other_stands


@pytest.mark.parametrize(("somaxconn", "says"), [("4096", "is 4,096"), ("128", "sysctl -w")])
def test_an_idle_acceptor_of_others_has_to_accept_before_its_queue_grows(stalled, somaxconn, says):
    full_accept_queue(stalled)
    stalled.manifest["server"] = {"foreign": True, "command": [], "ports": [PORT]}
    stalled.manifest["host"] = {"sysctls": {"net.core.somaxconn": somaxconn}}
    (finding,) = [f for f in summarise(stalled.frames()).findings if f.cause in QUEUES]
    first, second = finding.fix
    assert first.command.startswith("accept in a loop in which nothing waits")
    assert says in second.command, "it never lowers what is there"


def test_a_shared_queue_is_that_of_the_servers_together(stalled):
    full_accept_queue(stalled)
    stalled.rows["listener_owners"] = []
    for pid in (800, 801):
        stalled.add("listener_owners", at_s=-0.2, pid=pid, socket_inode=71)
    finding = summarise(stalled.frames()).findings[0]
    assert (finding.cause, finding.subject.pid) == ("accept-queue-overflow", 0)
    assert finding.subject.role == "server"


def test_an_overflow_that_delayed_nobody_is_no_finding(build):
    build.stages(1.0, 2.0)
    build.manifest["target_connections"] = 500
    build.process("server", 0, nofile_soft_count=20_000)
    build.process("client", 0, nofile_soft_count=20_000)
    build.connect(500)
    counter(build, "TcpExtListenOverflows", 1382)
    counter(build, "TcpExtListenDrops", 1382)
    snapshot(build, 0, dropped=1382, accept=65)
    build.health(*PROBES)
    assert [f.cause for f in summarise(build.frames()).findings] == ["reached"]


def test_what_was_counted_before_the_ramp_does_not_count(stalled):
    for name in ("TcpExtListenOverflows", "TcpExtTCPReqQFullDrop", "ConntrackDrop"):
        stalled.add("net_counters", at_s=-0.5, counter=name, value_total=1009)
    snapshot(stalled, 0)
    assert named(summarise(stalled.frames())) == []


def test_the_queue_of_a_worker_at_its_descriptor_limit_is_not_blamed(stalled):
    full_accept_queue(stalled)
    for row in stalled.rows["listeners"]:
        if row["socket_inode"] == 70:
            row["dropped_total"] = 0
    for row in stalled.rows["processes"]:
        if row["pid"] == 801:
            row["nofile_soft_count"] = 225 + row["own_fds_count"]
    summary = summarise(stalled.frames())
    assert named(summary) == []
    assert summary.findings[0].cause == "fd-limit-process"


def test_lost_snapshots_lower_the_confidence(stalled):
    full_accept_queue(stalled)
    stalled.rows["probe_health"] = []
    stalled.health("host_counters", "live_samples", "process_samples")
    stalled.health("tcp_snapshot", lost_count=23)
    finding = summarise(stalled.frames()).findings[0]
    assert finding.cause == "accept-queue-overflow"
    assert finding.confidence == "medium"
    assert any("23 events" in line for line in finding.missing)


# -- syn-backlog-overflow ---------------------------------------------------------------------


def test_the_full_queue_of_half_open_connections(stalled):
    counter(stalled, "TcpExtTCPReqQFullDrop", 473)
    counter(stalled, "TcpExtListenDrops", 473)
    snapshot(stalled, 0, half_open=65, dropped=240)
    snapshot(stalled, 1, half_open=65, dropped=233)
    summary = summarise(stalled.frames())
    assert named(summary) == ["syn-backlog-overflow"]
    finding = summary.findings[0]
    assert (finding.severity, finding.side, finding.subject.role) == ("binding", "server", "server")
    assert finding.value_of("syn_drops", "TcpExtTCPReqQFullDrop") == 473
    assert finding.value_of("half_open_connections") == 65
    assert "65 of 64" in finding.sentence
    assert finding.explained_count == 150


def test_a_small_tcp_max_syn_backlog_has_no_counter_of_its_own(stalled):
    stalled.manifest["settings"]["sysctls"] = {"net.ipv4.tcp_max_syn_backlog": "32"}
    counter(stalled, "TcpExtListenDrops", 100)
    snapshot(stalled, 0, half_open=24, dropped=100, backlog=4096)
    summary = summarise(stalled.frames())
    assert named(summary) == ["syn-backlog-overflow"]
    assert summary.findings[0].subject.pid == 800
    assert summary.findings[0].value_of("syn_drops", "TcpExtListenDrops") == 100


@pytest.mark.parametrize(("half_open", "expected"), [(95, []), (96, ["syn-backlog-overflow"])])
def test_drops_that_no_counter_explains_need_a_full_queue(stalled, half_open, expected):
    counter(stalled, "TcpExtListenDrops", 100)
    snapshot(stalled, 0, half_open=half_open, dropped=100, backlog=4096)
    assert named(summarise(stalled.frames())) == expected


def test_syncookies_drop_nothing(stalled):
    counter(stalled, "TcpExtTCPReqQFullDoCookies", 268)
    snapshot(stalled, 0, half_open=65)
    assert named(summarise(stalled.frames())) == []


@pytest.mark.parametrize(
    ("overflows", "half_open", "expected"),
    [
        (400, 473, "accept-queue-overflow"),  # it keeps handshakes from ending
        (10, 473, "syn-backlog-overflow"),  # half-open ones that ended at once went through it
    ],
)
def test_both_queues_overflow_and_one_is_the_cause(stalled, overflows, half_open, expected):
    counter(stalled, "TcpExtListenOverflows", overflows)
    counter(stalled, "TcpExtTCPReqQFullDrop", half_open)
    snapshot(stalled, 0, half_open=65, accept=65, dropped=overflows + half_open)
    assert named(summarise(stalled.frames())) == [expected]


# -- conntrack-full ---------------------------------------------------------------------------


def table(build, count, *, most=65_536):
    for at_s, entries in ((-0.5, 23), (0.5, count), (1.0, count)):
        build.add("sockstat", at_s=at_s, conntrack_count=entries, conntrack_max_count=most)


def test_the_full_connection_tracking_table(stalled):
    table(stalled, 65_536)
    counter(stalled, "ConntrackDrop", 1009, before=0)
    stalled.add("skb_drops", at_s=1.0, reason="NETFILTER_DROP", event_count=1009)
    summary = summarise(stalled.frames())
    assert named(summary) == ["conntrack-full"]
    finding = summary.findings[0]
    assert (finding.severity, finding.side, finding.subject.pid) == ("binding", "host", 0)
    assert finding.value_of("conntrack_entries") == finding.value_of("conntrack_max") == 65_536
    assert finding.value_of("conntrack_drops") == finding.value_of("netfilter_drops") == 1009
    assert finding.explained_count == 150
    assert "nf_conntrack_max=131072" in finding.fix[0].command
    assert "65,536" in summary.verdict.sentence


@pytest.mark.parametrize(
    ("count", "dropped"),
    [
        (65_536, 0),  # full, and nothing needed an entry
        (40_000, 1009),  # dropped for another reason
        (-1, 1009),  # no table
    ],
)
def test_a_table_that_is_not_full_or_drops_nothing_is_no_finding(stalled, count, dropped):
    table(stalled, count, most=-1 if count < 0 else 65_536)
    counter(stalled, "ConntrackDrop", dropped, before=0)
    assert named(summarise(stalled.frames())) == []


def test_a_full_table_that_nobody_waited_for_is_no_finding(build):
    build.stages(1.0, 2.0)
    build.manifest["target_connections"] = 23
    build.process("client", 0)
    build.connect(23)
    table(build, 65_536)
    counter(build, "ConntrackDrop", 5)
    assert named(summarise(build.frames())) == []
