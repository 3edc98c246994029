"""What is said of a server that was only watched, on built tables: its clients are elsewhere."""

from __future__ import annotations

import math

import pytest

from analysis.frames.run_view import RunView
from analysis.summary import summarise
from analysis.verdict import verdict as verdict_module
from probes.contract.errors import ExitCode

PORT = 9001
S = 10**9
PROBES = ("failing_syscalls", "tcp_events", "tcp_snapshot", "host_counters", "live_samples")


@pytest.fixture
def watched(build):
    """Two idle workers for 6 s, with 100 connections each from the first look on."""
    build.manifest["argv"] = ["profile-attach", "--port", str(PORT)]
    build.manifest["server"] = {"foreign": True, "attached": True, "ports": [PORT], "processes": []}
    build.manifest["settings"] = {"accept": "foreign"}
    moments = [("setup", -1.0, 0.0), ("watch", 0.0, 6.0), ("collect", 6.0, 6.2)]
    build.manifest["stages"] = [
        {"stage": name, "start_ns": build.ns(a), "end_ns": build.ns(b)} for name, a, b in moments
    ]
    for worker in range(2):
        build.process("server", worker)
    build.health(*PROBES, "process_samples")
    return build


def hold(build, worker, *counts, fds=True, cpu_pct=3.0):
    """Live samples of a worker four times a second, counts spread over 6 s."""
    pid = 800 + worker
    for quarter in range(25):
        count = counts[min(len(counts) - 1, quarter * len(counts) // 25)]
        build.live(pid, quarter / 4, open_count=count, established_total=max(counts[0], count))
    build.cpu(pid, cpu_pct, from_s=-0.5, until_s=6.0, fd_count=16 + max(counts) if fds else -1)


def idle(build):
    hold(build, 0, 100)
    hold(build, 1, 100)


def emfile(build, pid, count, *, first_s=2.0, at_s=3.0, last_s=2.9, call="accept4"):
    build.add(
        "failing_syscalls",
        at_s=at_s,
        pid=pid,
        syscall=call,
        errno=24,
        errno_name="EMFILE",
        event_count=count,
        first_s=first_s,
        last_s=last_s,
    )


def counter(build, name, before, after, at_s=2.0):
    build.add("net_counters", at_s=-0.5, counter=name, value_total=before)
    build.add("net_counters", at_s=at_s, counter=name, value_total=after)


def listener(build, worker, *, queue=0, dropped=(0, 0), backlog=128, port=PORT, inode=None):
    inode = inode or 70 + worker
    build.add("listener_owners", at_s=-0.2, pid=800 + worker, socket_inode=inode)
    for at_s, total in ((-0.2, dropped[0]), (2.5, dropped[1])):
        build.add(
            "listeners",
            at_s=at_s,
            local_address="127.0.0.1",
            local_port=port,
            socket_inode=inode,
            backlog_count=backlog,
            accept_queue_count=queue if at_s > 0 else 0,
            dropped_total=total,
        )


def causes(summary):
    return {finding.cause for finding in summary.findings}


def named(summary, cause):
    (finding,) = [f for f in summary.findings if f.cause == cause]
    return finding


def test_nothing_wrong_is_a_verdict_of_its_own_with_exit_code_0(watched):
    idle(watched)
    summary = summarise(watched.frames())
    assert causes(summary) == {"no-limit-met"}
    assert summary.verdict.cause == "no-limit-met"
    assert summary.verdict.sentence.startswith(
        "No limit was met in 6 s of watching: up to 200 connections in 2 processes"
    )
    assert verdict_module.exit_code(summary.verdict) == ExitCode.REACHED
    assert summary.run["target_connections"] == 0
    assert summary.run["peak_connections"] == 200
    assert list(summary.phases["phase"]) == ["setup", "watch", "collect"]
    open_count = summary.connections_over_time["open_count"]
    assert (open_count.max(), set(summary.connections_over_time["client"])) == (200, {-1})
    assert summary.latency.empty
    rungs = {rung.limit: rung for rung in summary.ladder}
    assert rungs["fds_per_process"].predicted_connections == 2 * (1009 - 16)
    assert rungs["ephemeral_ports"].predicted_connections is None


def test_without_probes_it_is_believed_less(watched):
    idle(watched)
    watched.rows["probe_health"] = []
    watched.health("failing_syscalls", state="unavailable", reason="not root")
    verdict = summarise(watched.frames()).verdict
    assert (verdict.cause, verdict.confidence) == ("no-limit-met", "medium")


DECIDING = {"failing_syscalls": "failing_syscalls", "host_counters": "net_counters",
            "process_samples": "process_samples"}  # fmt: skip
"""Probes without which nothing says that a limit was not met, and a table of each."""


def verdict_with(watched, probe, **health):
    idle(watched)
    rows = [row for row in watched.rows["probe_health"] if row["probe"] != probe]
    watched.rows["probe_health"] = rows
    watched.manifest["probes_asked"] = list(DECIDING)
    if health:
        watched.health(probe, **health)
    return summarise(watched.frames()).verdict


@pytest.mark.parametrize("probe", DECIDING)
def test_a_probe_that_failed_half_way_is_no_exit_code_0(watched, probe):
    failed = {"state": "failed", "reason": "no memory", "failed_ns": watched.ns(2.5)}
    verdict = verdict_with(watched, probe, **failed)
    assert (verdict.cause, verdict.confidence) == ("no-limit-met", "medium")
    assert verdict_module.exit_code(verdict) == ExitCode.NOT_SEEN == 6
    (said,) = verdict.unseen
    assert said.startswith(DECIDING[probe])
    assert "no memory" in said
    assert said in verdict.sentence


@pytest.mark.parametrize(
    ("health", "code"),
    [
        ({"state": "unavailable", "reason": "not root"}, 6),
        ({}, 6),  # its process was gone before it could say how it went
        ({"state": "not_asked", "asked_for": False}, 0),
        ({"state": "ran", "lost_count": 40_000, "seen_count": 100_000}, 0),
        ({"state": "ran"}, 0),
    ],
    ids=["unavailable", "gone", "not asked", "lost", "ran"],
)
def test_only_what_was_asked_for_and_not_seen_has_an_exit_code_of_its_own(watched, health, code):
    verdict = verdict_with(watched, "failing_syscalls", **health)
    assert verdict.cause == "no-limit-met"
    assert int(verdict_module.exit_code(verdict)) == code
    assert bool(verdict.unseen) is (code == 6)


@pytest.mark.parametrize(
    ("unwatched_s", "ended", "confidence"), [(4.0, 31, "low"), (0.0, 31, "high"), (4.0, 4, "high")]
)
def test_connections_that_end_at_once_while_nobody_watched_are_a_doubt(
    watched, unwatched_s, ended, confidence
):
    """A mapping limit: what refused them was over before failing calls were watched again."""
    hold(watched, 1, 100)
    for quarter in range(25):
        come, gone = (80, ended) if quarter >= 12 else (0, 0)
        watched.live(800, quarter / 4, open_count=100 + come - gone, established_total=100 + come)
    watched.cpu(800, 3.0, from_s=-0.5, until_s=6.0, fd_count=200)
    for row in watched.rows["probe_health"]:
        if row["probe"] == "failing_syscalls":
            row["unwatched_ns"] = int(unwatched_s * S)
    summary = summarise(watched.frames())
    assert (summary.verdict.cause, summary.verdict.confidence) == ("no-limit-met", confidence)
    (found,) = summary.findings
    said = "31 of 80 connections ended as soon as they had come, and why is not known: calls that "
    said += "fail were watched 2.0 of 6.0 s"
    assert any(line.startswith(said) for line in found.missing) is (confidence == "low")


def test_between_two_samples_of_a_watch_connections_came_evenly_and_ended_late(watched):
    """On a crowded host samples are seconds apart, and a limit is met between two of them."""
    for at_s, count in ((1.0, 10), (3.0, 80), (5.0, 20)):
        watched.live(800, at_s, open_count=count, established_total=80)
    view = RunView(watched.frames())
    moments = (0.5, 1.0, 2.0, 3.0, 4.9, 5.0, 7.0)
    assert [view.open_count_at(at_s) for at_s in moments] == [10, 10, 45, 80, 80, 20, 20]


def test_a_limit_that_was_seen_is_exit_code_3_whatever_failed_later(watched):
    hold(watched, 0, 993)
    hold(watched, 1, 100)
    emfile(watched, 800, 40)
    watched.rows["probe_health"] = []
    failed = {"state": "failed", "reason": "no memory", "failed_ns": watched.ns(3.5)}
    watched.health("failing_syscalls", **failed)
    verdict = summarise(watched.frames()).verdict
    assert verdict_module.exit_code(verdict) == ExitCode.LIMIT_MET
    assert verdict.unseen == ()


def test_a_full_worker_that_nobody_refuses_is_at_its_limit_all_the_same(watched):
    hold(watched, 0, 993)
    hold(watched, 1, 100)
    summary = summarise(watched.frames())
    assert summary.verdict.cause == "fd-limit-process"
    assert named(summary, "fd-limit-process").subject.pid == 800


def test_emfile_names_the_limit_and_the_connections_of_that_moment(watched):
    hold(watched, 0, 500, 500, 993)
    hold(watched, 1, 100)
    emfile(watched, 800, 40)
    summary = summarise(watched.frames())
    limit = named(summary, "fd-limit-process")
    assert summary.verdict.cause == "fd-limit-process"
    assert verdict_module.exit_code(summary.verdict) == ExitCode.LIMIT_MET
    # the samples are behind, the full one is known to be full: 993 of it and 100 of its sibling
    assert summary.verdict.at_connections == 1_093
    assert limit.value_of("connections_open") == 1_093
    assert "server-resets-when-full" not in causes(summary)


def test_the_limit_of_a_server_in_a_container_is_raised_by_its_engine(watched):
    hold(watched, 0, 200, 984)
    hold(watched, 1, 100)
    emfile(watched, 800, 23)
    watched.add("cgroups", pid=801, level=0, cgroup_id=7, path="/system.slice/other.service")
    watched.add("cgroups", pid=800, level=1, cgroup_id=8, path="/docker")
    watched.add("cgroups", pid=800, level=0, cgroup_id=9, path="/docker/" + "ab12" * 16)
    fixes = [fix.command for fix in named(summarise(watched.frames()), "fd-limit-process").fix]
    assert any(fix.startswith("docker run --ulimit nofile=") for fix in fixes)
    assert not any("systemctl" in fix for fix in fixes)


def test_resets_at_the_limit_are_told_by_what_the_server_sent(watched):
    hold(watched, 0, 993)
    hold(watched, 1, 100)
    emfile(watched, 800, 40)
    watched.add(
        "tcp_resets",
        at_s=3.0,
        direction="tx",
        side="server",
        state="ESTABLISHED",
        event_count=38,
        first_s=2.1,
    )
    summary = summarise(watched.frames())
    resets = named(summary, "server-resets-when-full")
    assert resets.value_of("server_resets") == 38
    assert (resets.severity, resets.follows_from) == ("contributing", "fd-limit-process")


@pytest.mark.parametrize("call", ["accept4", "accept"])  # the JDK calls accept
def test_a_full_worker_beside_one_with_room_on_the_same_listener(watched, call):
    hold(watched, 0, 993)
    hold(watched, 1, 100)
    emfile(watched, 800, 40, call=call)
    for worker in range(2):
        listener(watched, worker, inode=70)
    summary = summarise(watched.frames())
    assert summary.verdict.cause == "full-worker-on-shared-listener"
    shared = named(summary, "full-worker-on-shared-listener")
    assert (shared.subject.pid, shared.value_of("descriptors_left")) == (800, 1009 - 116)
    assert named(summary, "fd-limit-process").follows_from == "full-worker-on-shared-listener"


def test_two_full_workers_on_one_listener_are_at_their_limit(watched):
    for worker in range(2):
        hold(watched, worker, 993)
        emfile(watched, 800 + worker, 40)
        listener(watched, worker, inode=70)
    summary = summarise(watched.frames())
    assert summary.verdict.cause == "fd-limit-process"
    assert "full-worker-on-shared-listener" not in causes(summary)


def test_handshakes_that_a_full_accept_queue_dropped(watched):
    idle(watched)
    counter(watched, "TcpExtListenOverflows", 5_000, 5_300)
    listener(watched, 0, queue=129, dropped=(5_000, 5_300))
    listener(watched, 1)
    summary = summarise(watched.frames())
    assert summary.verdict.cause == "accept-queue-overflow"
    queue = named(summary, "accept-queue-overflow")
    assert queue.subject.pid == 800
    assert queue.value_of("listen_overflows") == 300
    assert queue.value_of("listener_drops") == 300  # not those of before
    assert "delayed a client" in queue.explanation
    assert queue.explained_count == 300


def test_another_servers_accept_queue_is_not_this_ones(watched):
    idle(watched)
    counter(watched, "TcpExtListenOverflows", 0, 300)
    listener(watched, 0)
    listener(watched, 1, queue=129, dropped=(0, 300), port=22, inode=99)
    assert causes(summarise(watched.frames())) == {"no-limit-met"}


def test_half_open_connections_that_fill_their_queue(watched):
    idle(watched)
    counter(watched, "TcpExtTCPReqQFullDrop", 0, 200)
    listener(watched, 0, dropped=(0, 200))
    assert summarise(watched.frames()).verdict.cause == "syn-backlog-overflow"


def test_a_full_connection_tracking_table(watched):
    idle(watched)
    counter(watched, "ConntrackDrop", 7, 77)
    for half in range(12):
        watched.add("sockstat", at_s=half / 2, conntrack_count=1_000, conntrack_max_count=1_000)
    drops = {"reason": "NETFILTER_DROP", "namespace_known": 1}
    watched.add("skb_drops", at_s=3.0, event_count=23, of_server=1, **drops)
    watched.add("skb_drops", at_s=3.0, event_count=1009, of_server=0, **drops)
    summary = summarise(watched.frames())
    assert (summary.verdict.cause, summary.verdict.side) == ("conntrack-full", "host")
    assert named(summary, "conntrack-full").explained_count == 23


def test_enobufs_of_a_server(watched):
    idle(watched)
    watched.add("failing_syscalls", at_s=3.0, pid=800, syscall="sendmsg", errno=105,
                errno_name="ENOBUFS", event_count=23, first_s=2.0, last_s=2.9)  # fmt: skip
    summary = summarise(watched.frames())
    assert (summary.verdict.cause, summary.verdict.side) == ("enobufs", "server")


@pytest.mark.parametrize("kills_total", [
    [0, 0, 0, 0, 1, 1],
    [7, 7, 0, 0, 1, 1],  # another group began to be the tightest
])  # fmt: skip
def test_memory_that_ran_out(watched, kills_total):
    idle(watched)
    for half, kills in enumerate(kills_total):
        watched.add("cgroup_memory", at_s=half * 1.0, used_bytes=1 << 29, peak_bytes=1 << 29,
                    max_bytes=1 << 29, limit_hits_total=half, oom_kills_total=kills)  # fmt: skip
        watched.add("host_memory", at_s=half * 1.0, total_bytes=8 << 30, available_bytes=4 << 30,
                    slab_bytes=1 << 28, cgroup_max_bytes=1 << 29)  # fmt: skip
    row = watched.rows["processes"][0]
    row |= {"exited_ns": watched.ns(3.9), "exit_signal": 9}
    summary = summarise(watched.frames())
    assert (summary.verdict.cause, summary.verdict.side) == ("memory-exhausted", "host")
    assert named(summary, "memory-exhausted").value_of("oom_kills") == 1
    assert named(summary, "worker-crash").follows_from == "memory-exhausted"
    # what the killed one held is gone with it
    assert summary.run["held_connections"] == 100


@pytest.mark.parametrize("page_bytes", [4_096, 65_536])
def test_tcp_that_is_out_of_memory(watched, page_bytes):
    idle(watched)
    watched.manifest["host"]["page_size_bytes"] = page_bytes
    watched.add("socket_pressure", at_s=3.0, kind="exceed_buf_limit_rx", side="server",
                event_count=50, allocated_max_pages=1_000, first_s=2.0)  # fmt: skip
    for half in range(12):
        watched.add("sockstat", at_s=half / 2, tcp_mem_pages=999, tcp_mem_pressure_pages=1_000,
                    tcp_mem_max_pages=1_500)  # fmt: skip
    summary = summarise(watched.frames())
    assert (summary.verdict.cause, summary.verdict.side) == ("tcp-memory-pressure", "host")
    finding = named(summary, "tcp-memory-pressure")
    assert "did)" not in finding.explanation
    assert finding.value_of("tcp_memory_limit") == 1_000 * page_bytes
    commands = [fix.command for fix in finding.fix]
    assert 'sysctl -w net.ipv4.tcp_mem="2000 4000 8000"' in commands


@pytest.mark.parametrize(("side", "cause"), [("server", "receive-buffer-full"), ("client", "")])
def test_receive_buffers_that_nobody_reads_are_those_of_the_server(watched, side, cause):
    idle(watched)
    counter(watched, "TcpExtTCPToZeroWindowAdv", 0, 40)
    for half in range(12):
        watched.add("socket_memory", at_s=half / 2, side=side, state="ESTABLISHED", socket_count=10,
                    rcvbuf_bytes=1_310_720, rmem_alloc_bytes=1_200_000,
                    rmem_alloc_max_bytes=125_000)  # fmt: skip
    assert causes(summarise(watched.frames())) == {cause or "no-limit-met"}


def test_a_worker_that_ended_takes_what_it_held_also_when_nobody_saw_how(watched):
    idle(watched)
    watched.rows["processes"][0]["exited_ns"] = watched.ns(3.1)
    summary = summarise(watched.frames())
    crash = named(summary, "worker-crash")
    assert summary.verdict.cause == "worker-crash"
    assert (crash.confidence, crash.value_of("process_connections")) == ("medium", 100)
    assert summary.verdict.at_connections == 200
    assert summary.run["held_connections"] == 100


def test_a_worker_that_ended_well_is_no_crash(watched):
    idle(watched)
    watched.rows["processes"][0] |= {"exited_ns": watched.ns(3.1), "exit_status": 0}
    assert causes(summarise(watched.frames())) == {"no-limit-met"}


@pytest.mark.parametrize(("exit_signal", "held", "is_crash"), [
    (0, 0, False), (15, 0, False), (15, 100, True), (11, 0, True),
])  # fmt: skip
def test_a_worker_that_was_replaced_is_no_crash(watched, exit_signal, held, is_crash):
    """A reload: the old worker serves its last connection, is asked to end, and does."""
    hold(watched, 0, 100, held)
    hold(watched, 1, 100)
    watched.rows["processes"][0] |= {"exited_ns": watched.ns(5.5), "exit_signal": exit_signal}
    assert ("worker-crash" in causes(summarise(watched.frames()))) is is_crash


def test_failing_calls_that_are_watched_now_and_then_are_counted_per_watched_second(watched):
    """A second of two and a half: 15,000 failures in each, and a core that is full."""
    hold(watched, 0, 993, cpu_pct=99)
    hold(watched, 1, 100)
    for nth in range(3):
        at_s = 1.0 + 2.4 * nth
        emfile(watched, 800, 15_000, first_s=0.3, at_s=at_s, last_s=at_s)
    spin = named(summarise(watched.frames()), "accept-spin")
    assert spin.value_of("emfile_call_rate", "accept4") == 15_000


def test_uneven_workers_are_a_warning_beside_no_limit(watched):
    hold(watched, 0, 900)
    hold(watched, 1, 50)
    summary = summarise(watched.frames())
    assert summary.verdict.cause == "no-limit-met"
    uneven = named(summary, "accept-imbalance")
    assert uneven.severity == "warning"
    assert "profile-run" not in uneven.fix[0].command


def passing_on(build, *, queue, acceptor_pct=97.0, worker_pct=10.0, workers_listen=False):
    """An acceptor that passes on 100 connections a second to each of two workers."""
    pid = build.process("acceptor", 2)
    build.cpu(pid, acceptor_pct, from_s=-0.5, until_s=6.0)
    for worker in range(2):
        for quarter in range(25):
            build.live(800 + worker, quarter / 4, open_count=25 * quarter,
                       established_total=25 * quarter)  # fmt: skip
        build.cpu(800 + worker, worker_pct, from_s=-0.5, until_s=6.0)
    build.manifest["server"]["processes"] = [
        {"pid": pid, "worker": 2, "command": "node", "owns_listener": True},
        *({"pid": 800 + w, "worker": w, "command": "node", "owns_listener": workers_listen}
          for w in range(2)),
    ]  # fmt: skip
    for second in range(6):
        build.add("listeners", at_s=second, local_address="127.0.0.1", local_port=PORT,
                  socket_inode=70, backlog_count=511, accept_queue_count=queue)  # fmt: skip
    return pid


def test_an_acceptor_that_is_full_is_named_with_the_wait_in_its_queue(watched):
    pid = passing_on(watched, queue=120)
    summary = summarise(watched.frames())
    assert summary.verdict.cause == "hot-acceptor"
    hot = named(summary, "hot-acceptor")
    assert (hot.side, hot.subject.pid) == ("server", pid)
    assert hot.value_of("handoff_rate") == pytest.approx(200, rel=0.05)
    assert hot.value_of("accept_queue_wait") == pytest.approx(600, rel=0.05)
    assert hot.value_of("longest_accept_queue") == 120
    assert "SCHED_NONE" in hot.fix[0].command
    assert "hot-worker-code" not in causes(summary)


@pytest.mark.parametrize(
    ("change", "also"),
    [
        ({"queue": 0}, {"hot-worker-code"}),  # nobody waits
        ({"queue": 120, "workers_listen": True}, {"hot-worker-code"}),  # it passes nothing on
        ({"queue": 120, "worker_pct": 60.0}, {"hot-worker-code"}),  # its workers are as busy
        ({"queue": 120, "acceptor_pct": 60.0}, set()),
    ],
)
def test_a_parent_that_is_busy_is_not_always_a_hot_acceptor(watched, change, also):
    passing_on(watched, **change)
    assert causes(summarise(watched.frames())) - {"no-limit-met"} == also


def traffic(build, *, per_s=10_000, tx_bytes=6, rx_bytes=10, answered=1.0, count=200):
    """What the sockets of two workers carry, summed at each second."""
    for second in range(-1, 7):
        total = per_s * (second + 1)
        build.add("socket_traffic", at_s=second, side="server", socket_count=count,
                  tx_segments_total=total, tx_bytes_total=total * tx_bytes,
                  rx_segments_total=int(total * answered),
                  rx_bytes_total=int(total * answered * rx_bytes))  # fmt: skip


def test_pings_that_fill_a_core_are_told_by_their_size(watched):
    hold(watched, 0, 190, cpu_pct=97.0)
    hold(watched, 1, 10, cpu_pct=5.0)
    traffic(watched)
    summary = summarise(watched.frames())
    assert summary.verdict.cause == "keepalive-storm"
    storm = named(summary, "keepalive-storm")
    assert (storm.side, storm.subject.pid, storm.confidence) == ("server", 800, "medium")
    assert storm.value_of("message_rate") == pytest.approx(20_000)
    assert storm.value_of("mean_sent_size") == 6
    assert storm.value_of("message_interval") == pytest.approx(0.02)
    assert "interval" in storm.fix[0].command
    assert "profile-run" not in storm.fix[0].command


@pytest.mark.parametrize(
    "change",
    [
        {"tx_bytes": 90, "rx_bytes": 96},  # a chat
        {"tx_bytes": 6, "rx_bytes": 60},  # what comes is longer than a pong
        {"answered": 0.05},  # a broadcast of something short
        {"per_s": 1_000},  # 500 us of CPU each: other work
        {"per_s": 40},
    ],
)
def test_other_traffic_of_a_full_core_is_no_keepalive_storm(watched, change):
    hold(watched, 0, 190, cpu_pct=97.0)
    hold(watched, 1, 10, cpu_pct=5.0)
    traffic(watched, **change)
    assert causes(summarise(watched.frames())) - {"accept-imbalance"} == {"hot-worker-code"}


def test_a_worker_that_is_hot_beside_one_with_as_many_pings_is_hot_of_something_else(watched):
    hold(watched, 0, 100, cpu_pct=97.0)
    hold(watched, 1, 100, cpu_pct=5.0)
    traffic(watched)
    assert causes(summarise(watched.frames())) == {"hot-worker-code"}


def test_pings_while_connections_come_are_not_what_fills_the_core(watched):
    hold(watched, 0, 100, 5_000, 9_000, 13_000, 17_000, cpu_pct=97.0, fds=False)
    hold(watched, 1, 10, cpu_pct=1.0)
    traffic(watched)
    assert "keepalive-storm" not in causes(summarise(watched.frames()))


def test_a_core_that_pings_take_70_percent_of_is_no_limit(watched):
    hold(watched, 0, 190, cpu_pct=70.0)
    hold(watched, 1, 10, cpu_pct=5.0)
    traffic(watched)
    assert causes(summarise(watched.frames())) - {"accept-imbalance"} == {"no-limit-met"}


def test_a_full_core_is_a_limit_also_when_no_function_stands_out(watched):
    hold(watched, 0, 100, cpu_pct=98.0)
    hold(watched, 1, 100)
    for half in range(12):
        for name in range(10):
            watched.add("cpu_stacks", at_s=half / 2, pid=800, tid=800,
                        user_stack=f"start{name};work{name}", sample_count=5)  # fmt: skip
    summary = summarise(watched.frames())
    assert summary.verdict.cause == "hot-worker-code"
    hot = named(summary, "hot-worker-code")
    assert "not seen from outside" in hot.explanation
    assert hot.confidence == "medium"


@pytest.mark.parametrize(("until_s", "cause"), [(2.0, "no-limit-met"), (3.0, "hot-worker-code")])
def test_a_burst_without_a_function_is_traffic_and_a_full_core_that_lasts_a_limit(
    watched, until_s, cause
):
    for worker in range(2):
        for quarter in range(25):
            watched.live(800 + worker, quarter / 4, open_count=100, established_total=100)
    watched.cpu(800, 83.0, from_s=0.5, until_s=until_s, fd_count=116)
    watched.cpu(801, 3.0, from_s=-0.5, until_s=6.0, fd_count=116)
    watched.add("cpu_stacks", at_s=1.0, pid=800, tid=800, user_stack="", sample_count=40)
    assert summarise(watched.frames()).verdict.cause == cause


def full_host(build, **host):
    fill_host(build, **host)
    return summarise(build.frames())


def fill_host(build, *, wait_pct=None, cpu_pct=5.0, pressure_pct=99, busy_pct=99, steal_pct=0.0):
    """6 s of a host that others fill; worker 0 as said, worker 1 idle. None: an older recording."""
    for worker, pct, wait in ((0, cpu_pct, wait_pct), (1, 0.5, wait_pct and 1)):
        for quarter in range(25):
            build.live(800 + worker, quarter / 4, open_count=100, established_total=100)
        build.cpu(800 + worker, pct, from_s=-0.5, until_s=6.0, fd_count=116, wait_pct=wait)
    build.host_cpu(busy_pct, from_s=-0.5, until_s=6.0, steal_pct=steal_pct)
    for half in range(-1, 13):
        build.add("host_pressure", at_s=half / 2, resource="cpu",
                  some_ns_total=int((half + 1) * S / 2 * pressure_pct / 100))  # fmt: skip


@pytest.mark.parametrize(
    ("host", "cause"),
    [
        pytest.param({"wait_pct": 60}, "host-cpu-saturated", id="starved: it wants 65 %"),
        pytest.param({"wait_pct": 21, "cpu_pct": 5}, "host-cpu-saturated", id="a fifth"),
        pytest.param({"wait_pct": 19, "cpu_pct": 5}, "no-limit-met", id="less than a fifth"),
        pytest.param(
            {"wait_pct": 31, "cpu_pct": 30}, "host-cpu-saturated", id="got less than half"
        ),
        pytest.param({"wait_pct": 29, "cpu_pct": 30}, "no-limit-met", id="got more than half"),
        pytest.param({"wait_pct": 41, "cpu_pct": 48}, "host-cpu-saturated", id="waited two fifths"),
        pytest.param({"wait_pct": 39, "cpu_pct": 49}, "no-limit-met", id="less than two fifths"),
        pytest.param({"wait_pct": 1, "cpu_pct": 1}, "no-limit-met", id="idle on a full host"),
        pytest.param({"wait_pct": 1, "cpu_pct": 40}, "no-limit-met", id="busy, and gets its core"),
        pytest.param({"wait_pct": 60, "busy_pct": 94}, "no-limit-met", id="a core is free"),
        pytest.param({"wait_pct": 60, "pressure_pct": 0}, "host-cpu-saturated", id="psi=0"),
        pytest.param(
            {"wait_pct": 60, "busy_pct": 90, "steal_pct": 9}, "host-cpu-saturated", id="steal"
        ),
    ],
)
def test_a_server_is_starved_when_it_waits_for_a_core_and_not_when_others_do(watched, host, cause):
    assert full_host(watched, **host).verdict.cause == cause


@pytest.mark.parametrize(
    ("state", "cause"), [("zombie", "no-limit-met"), ("sleeping", "host-cpu-saturated")]
)
def test_a_process_that_ended_waits_for_no_core(watched, state, cause):
    """Of a child that had ended the kernel said 12.6 s of waiting in 4.8 s; it never wanted one."""
    fill_host(watched, wait_pct=1, cpu_pct=0.0)
    rows = [row for row in watched.rows["process_samples"] if row["pid"] == 800]
    watched.rows["process_samples"] = [
        row
        for row in watched.rows["process_samples"]
        if row["pid"] != 800 or not 1.0 < (row["at_ns"] - rows[0]["at_ns"]) / S < 6.0
    ]
    for row in rows[-2:]:
        row |= {"state": state, "run_queue_wait_ns_total": 13 * S}
    assert summarise(watched.frames()).verdict.cause == cause


def test_the_starved_process_is_said_with_what_it_waited_and_got(watched):
    starved = named(full_host(watched, wait_pct=60, cpu_pct=5), "host-cpu-saturated")
    assert (starved.side, starved.confidence) == ("host", "high")
    assert starved.value_of("core_wait", "worker 0 (pid 800, server)") == pytest.approx(60)
    assert starved.value_of("process_cpu", "worker 0 (pid 800, server)") == pytest.approx(5)
    assert starved.value_of("host_share", "processes beside the run") == pytest.approx(
        99 - 5.5 / 2, abs=1
    )
    assert starved.fix[0].command.startswith("top ")
    assert "does not belong to the server" in starved.fix[0].command


def test_cores_that_the_hypervisor_took_are_not_processes_beside_the_server(watched):
    summary = full_host(watched, wait_pct=60, busy_pct=29, steal_pct=70)
    starved = named(summary, "host-cpu-saturated")
    assert starved.value_of("host_busy") == pytest.approx(99, abs=1)
    shares = {e.of: e.value for e in starved.evidence if e.id == "host_share"}
    assert shares["other machines of the hypervisor"] == pytest.approx(70, abs=1)
    assert shares["processes beside the run"] == pytest.approx(29 - 5.5 / 2, abs=1)
    assert "other machines of the hypervisor took 70 %" in starved.sentence
    assert starved.fix[0].command.startswith("vmstat 1")


def test_a_server_that_fills_the_host_itself_needs_more_cores(watched):
    for pid in (800, 801):
        watched.cpu(pid, 75, from_s=-0.5, until_s=6.0, wait_pct=45)
    watched.host_cpu(99, from_s=-0.5, until_s=6.0)
    fix = named(summarise(watched.frames()), "host-cpu-saturated").fix[0]
    assert fix.command.startswith("nproc")
    assert "the server alone took 75 %" in fix.effect


def test_a_collector_that_fills_the_host_says_more_than_that_it_is_full(watched):
    watched.cpu(800, 150, from_s=-0.5, until_s=6.0, wait_pct=60)
    watched.host_cpu(99, from_s=-0.5, until_s=6.0)
    for tenth in range(60):
        watched.add("cpu_stacks", at_s=tenth / 10, pid=800, tid=801, sample_count=7,
                    user_stack="v8::internal::ConcurrentMarking::Run")  # fmt: skip
    assert causes(summarise(watched.frames())) == {"garbage-collection"}


@pytest.mark.parametrize(("starved_s", "is_named"), [(2.5, False), (3.5, True)])
def test_a_server_that_waits_for_a_moment_is_not_starved(watched, starved_s, is_named):
    idle(watched)
    watched.rows["process_samples"].clear()
    watched.cpu(800, 3, from_s=-0.5, until_s=1.0, wait_pct=0)
    watched.cpu(800, 3, from_s=1.0, until_s=1.0 + starved_s, wait_pct=80)
    watched.cpu(800, 3, from_s=1.0 + starved_s, until_s=6.0, wait_pct=0)
    watched.host_cpu(99, from_s=-0.5, until_s=6.0)
    assert ("host-cpu-saturated" in causes(summarise(watched.frames()))) is is_named


@pytest.mark.parametrize(
    ("wait_pcts", "is_named"),
    [
        # what was read late belongs to the interval before: the mean of 3 s tells
        ((80, 11, 80, 11, 80, 11), True),
        ((80, 9, 80, 9, 80, 9), False),  # it came to rest in between
        ((20, 11, 20, 11, 20, 11), False),
        ((21, 21, 21, 21, 21, 21), True),
        ((95, 1, 1, 1, 1, 1), False),  # a burst
    ],
)
def test_waits_are_judged_over_three_seconds_without_a_rest(watched, wait_pcts, is_named):
    idle(watched)
    watched.rows["process_samples"].clear()
    for second, wait_pct in enumerate(wait_pcts):
        watched.cpu(800, 3, from_s=second, until_s=second + 1, wait_pct=wait_pct)
    watched.host_cpu(100, from_s=-0.5, until_s=6.0)
    assert ("host-cpu-saturated" in causes(summarise(watched.frames()))) is is_named


@pytest.mark.parametrize(("wait_pct", "is_named"), [(90, True), (49, False)])
def test_a_last_sample_that_comes_late_is_worth_what_cannot_lie_behind_the_end(
    watched, wait_pct, is_named
):
    idle(watched)  # the watch ends at 6 s, and the sample of 1 to 6 s comes at 9
    watched.rows["process_samples"].clear()
    watched.cpu(800, 3, from_s=-0.5, until_s=1.0, wait_pct=0)
    watched.cpu(800, 5, from_s=1.0, until_s=9.0, wait_pct=wait_pct)
    watched.rows["process_samples"] = [
        row
        for row in watched.rows["process_samples"]
        if not watched.ns(1.0) < row["at_ns"] < watched.ns(9.0)
    ]
    watched.host_cpu(99, from_s=-0.5, until_s=9.0)
    summary = summarise(watched.frames())
    assert ("host-cpu-saturated" in causes(summary)) is is_named
    if is_named:  # 7.2 s of waiting, 3 of them behind the end
        starved = named(summary, "host-cpu-saturated")
        (waited,) = [e.value for e in starved.evidence if e.id == "core_wait"]
        assert waited == pytest.approx(100 * 4.2 / 5, abs=1)


@pytest.mark.parametrize(("full_from_s", "is_named"), [(2.5, True), (3.5, False)])
def test_a_server_is_starved_only_while_no_core_is_free(watched, full_from_s, is_named):
    idle(watched)
    watched.rows["process_samples"].clear()
    watched.cpu(800, 3, from_s=-0.5, until_s=6.0, wait_pct=50)
    watched.host_cpu(50, from_s=-0.5, until_s=full_from_s)
    watched.host_cpu(100, from_s=full_from_s, until_s=6.0)
    summary = summarise(watched.frames())
    assert ("host-cpu-saturated" in causes(summary)) is is_named
    if is_named:
        assert named(summary, "host-cpu-saturated").first_s == full_from_s


@pytest.mark.parametrize(("last_s", "is_named"), [(6.6, True), (7.5, True), (8.4, False)])
def test_a_full_host_delays_samples_to_the_end_of_the_watch(watched, last_s, is_named):
    """A sample at 2 s, the next after the end at 6 s: 3 s waited, some of it within the watch."""
    idle(watched)
    watched.rows["process_samples"].clear()
    for at_s, wait_s in ((-0.5, 0.0), (2.0, 0.0), (last_s, 3.0)):
        watched.add("process_samples", at_s=at_s, pid=800, role="server", state="sleeping",
                    run_queue_wait_ns_total=int(wait_s * S))  # fmt: skip
    watched.host_cpu(100, from_s=-0.5, until_s=8.0)
    assert ("host-cpu-saturated" in causes(summarise(watched.frames()))) is is_named


def test_a_process_that_came_late_is_not_starved_from_the_begin_on(watched):
    idle(watched)
    watched.rows["process_samples"].clear()
    watched.cpu(800, 3, from_s=-0.5, until_s=6.0, wait_pct=0)
    watched.cpu(801, 3, from_s=4.0, until_s=6.0, wait_pct=80)
    watched.host_cpu(100, from_s=-0.5, until_s=6.0)
    assert causes(summarise(watched.frames())) == {"no-limit-met"}


@pytest.mark.parametrize(
    ("pressure_pct", "cpu_pct", "cause"),
    [
        (61, 20.0, "host-cpu-saturated"),
        (59, 20.0, "no-limit-met"),
        (99, 19.0, "no-limit-met"),
    ],
)
def test_of_an_older_recording_the_pressure_of_the_host_tells(
    watched, pressure_pct, cpu_pct, cause
):
    summary = full_host(watched, pressure_pct=pressure_pct, cpu_pct=cpu_pct)
    assert summary.verdict.cause == cause


def test_a_watch_that_was_cut_short_still_has_a_verdict(watched):
    watched.manifest["status"] = "running"
    watched.manifest["stages"] = watched.manifest["stages"][:1]
    summary = summarise(watched.frames())
    assert summary.verdict.cause == "no-limit-met"
    assert math.isfinite(summary.verdict.at_s or 0.0)
