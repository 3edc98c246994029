"""What others do on the host is not the run's: counters that move for somebody else's sake."""

from __future__ import annotations

import pytest

from analysis.summary import summarise

PORT = 9001
GB = 1 << 30
OWN, POD, ELSEWHERE = 71, 72, 99
"""Control groups: that of the server, one above it, and one that is not of the run."""


def causes(summary):
    return {finding.cause for finding in summary.findings}


def named(summary, cause):
    (finding,) = [f for f in summary.findings if f.cause == cause]
    return finding


@pytest.fixture
def run(build):
    """Two workers and a client with 200 connections, open from 1 s to 6 s."""
    build.stages(1.0, 5.0)
    build.manifest["target_connections"] = 200
    build.manifest["host"]["network_namespace"] = "own"
    build.manifest["server"] = {"ports": [PORT]}
    for worker in range(2):
        pid = build.process("server", worker)
        for quarter in range(25):
            build.live(pid, quarter / 4, open_count=min(100, 40 * quarter))
    build.process("client", 0)
    build.health("failing_syscalls", "tcp_events", "tcp_snapshot", "host_counters", "oom_kills")
    return build


@pytest.fixture
def healthy(run):
    run.connect(200)
    return run


@pytest.fixture
def watched(build):
    """A server of two workers with 100 connections each, watched for 6 s from outside."""
    build.manifest["argv"] = ["profile-attach", "--port", str(PORT)]
    build.manifest["server"] = {"foreign": True, "attached": True, "ports": [PORT], "processes": []}
    build.manifest["settings"] = {"accept": "foreign"}
    moments = [("setup", -1.0, 0.0), ("watch", 0.0, 6.0), ("collect", 6.0, 6.2)]
    build.manifest["stages"] = [
        {"stage": name, "start_ns": build.ns(a), "end_ns": build.ns(b)} for name, a, b in moments
    ]
    for worker in range(2):
        pid = build.process("server", worker)
        for quarter in range(25):
            build.live(pid, quarter / 4, open_count=100, established_total=100)
    build.health("failing_syscalls", "tcp_events", "tcp_snapshot", "host_counters", "oom_kills")
    return build


@pytest.fixture(params=["run", "attach"])
def fine(request):
    """Nothing is wrong with it: it is reached, or no limit was met."""
    name = {"run": "healthy", "attach": "watched"}[request.param]
    return request.getfixturevalue(name)


GOOD = ({"reached"}, {"no-limit-met"})

# -- memory -----------------------------------------------------------------------------------


def groups(build, *pids, path="/pod/app.service"):
    for pid in pids or (800, 801, 900):
        build.add("cgroups", at_s=-0.5, pid=pid, level=0, cgroup_id=OWN, path=path)
        build.add("cgroups", at_s=-0.5, pid=pid, level=1, cgroup_id=POD, path="/pod")


def memory(build, *, own=None, pod=None, available=20 * GB, host_kills=0, from_s=2.5):
    """Samples twice a second; totals of a group grow to what is given at ``from_s``."""
    blank = {"used_bytes": 1 << 28, "peak_bytes": 1 << 28, "max_bytes": -1, "limit_hits_total": 0,
             "oom_kills_total": 0, "own_oom_kills_total": 0, "own_ooms_total": 0}  # fmt: skip
    for half in range(13):
        at_s = half / 2
        is_over = at_s >= from_s
        for cgroup_id, grown in ((OWN, own or {}), (POD, pod or {})):
            row = blank | {k: v for k, v in grown.items() if k == "max_bytes"}
            row |= {k: v if is_over else 0 for k, v in grown.items() if k.endswith("_total")}
            build.add("cgroup_memory", at_s=at_s, cgroup_id=cgroup_id, **row)
        build.add(
            "host_memory",
            at_s=at_s,
            total_bytes=24 * GB,
            available_bytes=available,
            oom_kills_total=host_kills if is_over else 0,
        )


def strangers(build, count=40):
    for second in range(6):
        build.add("oom_kills", at_s=second + 0.1, pid=0, cgroup_id=-1, killed_count=count)


def crash(build, *, at_s=2.2, pid=801):
    row = next(r for r in build.rows["processes"] if r["pid"] == pid)
    row |= {"exited_ns": build.ns(at_s), "exit_signal": 9, "exit_status": -1}


def lose(build, at_s=2.2, *, kept=100):
    """A run that lost what the worker held."""
    build.connect(kept)
    build.connect(200 - kept, until_s=0.9, stage="closed", close_kind="rst", closed_s=at_s)


def test_processes_of_others_that_are_killed_are_no_sign(fine):
    groups(fine)
    memory(fine, host_kills=240)
    strangers(fine)
    assert causes(summarise(fine.frames())) in GOOD


def test_a_crash_beside_a_group_that_is_killed_again_and_again_is_a_crash_alone(run):
    lose(run)
    crash(run)
    groups(run)
    memory(run, host_kills=240)
    strangers(run)
    summary = summarise(run.frames())
    assert summary.verdict.cause == "worker-crash"
    assert causes(summary) == {"worker-crash"}


def test_what_a_group_above_counts_of_its_other_children_is_no_sign(run):
    lose(run)
    crash(run)
    groups(run)
    # memory.events of the parent: another child met its own limit
    memory(run, pod={"max_bytes": GB, "oom_kills_total": 240}, host_kills=240)
    strangers(run)
    assert causes(summarise(run.frames())) == {"worker-crash"}


@pytest.mark.parametrize("which", ["own", "pod"])
def test_a_worker_that_was_killed_at_the_limit_of_its_group_or_of_one_above(run, which):
    lose(run)
    crash(run)
    groups(run)
    limit = {"max_bytes": GB, "limit_hits_total": 90, "own_ooms_total": 3}
    memory(run, **{which: limit}, host_kills=240)
    strangers(run)
    run.add("oom_kills", at_s=2.19, pid=801, cgroup_id=OWN, killed_count=1)
    summary = summarise(run.frames())
    finding = named(summary, "memory-exhausted")
    assert (summary.verdict.cause, finding.confidence) == ("memory-exhausted", "high")
    assert finding.value_of("oom_kills") == 1
    assert finding.value_of("cgroup_memory_limit") == GB
    path = "/pod/app.service" if which == "own" else "/pod"
    assert f"of the cgroup {path} were used up" in finding.sentence
    unit = "app.service" if which == "own" else "NAME.service"
    assert finding.fix[0].command.startswith(f"systemctl edit {unit} ")
    assert named(summary, "worker-crash").follows_from == "memory-exhausted"
    assert finding.explained_count == 100


def test_only_the_worker_that_was_killed_for_memory_follows_from_it(run):
    lose(run, kept=0)
    crash(run, pid=800, at_s=2.2)
    crash(run, pid=801, at_s=2.2)
    groups(run)
    memory(run, own={"max_bytes": GB, "limit_hits_total": 90, "own_ooms_total": 1})
    run.add("oom_kills", at_s=2.19, pid=801, cgroup_id=OWN, killed_count=1)
    crashes = [f for f in summarise(run.frames()).findings if f.cause == "worker-crash"]
    assert {f.subject.pid: f.follows_from for f in crashes} == {800: "", 801: "memory-exhausted"}


def test_a_worker_that_was_killed_while_the_host_was_out_of_memory(run):
    lose(run)
    crash(run)
    groups(run)
    memory(run, available=50 << 20, host_kills=1)
    run.add("oom_kills", at_s=2.19, pid=801, cgroup_id=OWN, killed_count=1)
    finding = named(summarise(run.frames()), "memory-exhausted")
    assert "the host's memory was used up" in finding.sentence
    assert finding.confidence == "high"


def test_a_worker_that_was_killed_by_a_limit_that_nobody_saw(run):
    lose(run)
    crash(run)
    groups(run)
    memory(run, host_kills=1)
    run.add("oom_kills", at_s=2.19, pid=801, cgroup_id=OWN, killed_count=1)
    finding = named(summarise(run.frames()), "memory-exhausted")
    assert "host's" not in finding.sentence
    assert finding.confidence == "medium"
    assert "dmesg" in finding.fix[0].command


@pytest.mark.parametrize("is_harmed", [True, False])
def test_somebody_else_in_the_group_of_the_run_counts_where_the_run_lost_something(run, is_harmed):
    if is_harmed:
        lose(run)
    else:
        run.connect(200)
    groups(run)
    memory(run, own={"max_bytes": GB, "limit_hits_total": 90, "own_ooms_total": 1})
    run.add("oom_kills", at_s=2.19, pid=4711, cgroup_id=OWN, killed_count=1)
    assert ("memory-exhausted" in causes(summarise(run.frames()))) == is_harmed


@pytest.mark.parametrize("noticed_s", [2.25, 3.8])
@pytest.mark.parametrize("left_count", [0, 60])
def test_somebody_in_the_group_of_a_watched_server_counts_where_connections_ended(
    watched, left_count, noticed_s
):
    groups(watched, 800, 801)
    memory(watched, own={"max_bytes": GB, "limit_hits_total": 90, "own_ooms_total": 1})
    for row in watched.rows["live_samples"]:
        if row["at_ns"] >= watched.ns(noticed_s):
            row["open_count"] -= left_count
    watched.add("oom_kills", at_s=2.19, pid=4711, cgroup_id=OWN, killed_count=1)
    assert ("memory-exhausted" in causes(summarise(watched.frames()))) == (left_count > 0)


def test_connections_that_end_as_before_are_no_harm_of_somebody_in_the_group(watched):
    groups(watched, 800, 801)
    memory(watched, own={"max_bytes": GB, "limit_hits_total": 90, "own_ooms_total": 1})
    for row in watched.rows["live_samples"]:
        row["established_total"] += 20 * (row["at_ns"] - watched.ns(0.0)) // 10**9
    watched.add("oom_kills", at_s=2.19, pid=4711, cgroup_id=OWN, killed_count=1)
    assert "memory-exhausted" not in causes(summarise(watched.frames()))


def test_what_is_sampled_late_of_a_watched_server_counts(watched):
    groups(watched, 800, 801)
    grown = {"max_bytes": GB, "limit_hits_total": 90, "own_ooms_total": 1}
    memory(watched, own=grown, from_s=6.0)
    samples = [row for row in watched.rows["cgroup_memory"] if row["limit_hits_total"]]
    assert samples
    watched.manifest["stages"][-1]["end_ns"] = watched.ns(9.0)
    for row in samples:  # the probes of a busy host took their last look seconds after the stop
        row["at_ns"] = watched.ns(8.9)
    watched.add("oom_kills", at_s=5.5, pid=801, cgroup_id=OWN, killed_count=1)
    finding = named(summarise(watched.frames()), "memory-exhausted")
    assert finding.value_of("cgroup_limit_hits") == 90


def without_probe(build):
    rows = build.rows["probe_health"]
    build.rows["probe_health"] = [row for row in rows if row["probe"] != "oom_kills"]
    build.health("oom_kills", state="unavailable", reason="eBPF needs root")


def test_without_ebpf_a_crash_beside_a_group_that_is_killed_is_a_crash_alone(run):
    without_probe(run)
    lose(run)
    crash(run)
    groups(run)
    memory(run, host_kills=240)
    assert causes(summarise(run.frames())) == {"worker-crash"}


def test_without_ebpf_the_group_of_the_process_says_that_it_was_killed(run):
    without_probe(run)
    lose(run)
    crash(run)
    groups(run)
    own = {"max_bytes": GB, "limit_hits_total": 90, "own_ooms_total": 1, "own_oom_kills_total": 1}
    memory(run, own=own, host_kills=240)
    summary = summarise(run.frames())
    finding = named(summary, "memory-exhausted")
    assert (summary.verdict.cause, finding.confidence) == ("memory-exhausted", "medium")
    assert finding.evidence[0].table == "cgroup_memory"
    assert named(summary, "worker-crash").follows_from == "memory-exhausted"


@pytest.mark.parametrize(("available", "expected"), [
    (20 * GB, {"worker-crash"}),
    (50 << 20, {"worker-crash", "memory-exhausted"}),
])  # fmt: skip
def test_without_groups_the_hosts_count_needs_a_host_that_is_out(run, available, expected):
    without_probe(run)
    lose(run)
    crash(run)
    memory(run, available=available, host_kills=240)
    run.rows.pop("cgroup_memory")
    assert causes(summarise(run.frames())) == expected


def refuse(build, errno=12, name="ENOMEM", syscall="mmap", pid=800):
    build.add("failing_syscalls", at_s=3.0, pid=pid, syscall=syscall, errno=errno,
              errno_name=name, event_count=23, first_s=2.0, last_s=2.9)  # fmt: skip


REFUSALS = [{}, {"errno": 23, "name": "ENFILE", "syscall": "accept4"}]


@pytest.mark.parametrize("refusal", REFUSALS, ids=["ENOMEM", "ENFILE"])
def test_a_refusal_while_memory_is_plentiful_is_not_the_hosts_memory(fine, refusal):
    groups(fine)
    memory(fine, own={"max_bytes": GB}, pod={"max_bytes": 2 * GB, "oom_kills_total": 9})
    fine.add("sockstat", at_s=2.0, file_nr_count=1_000, file_max_count=100_000)
    refuse(fine, **refusal)
    assert "memory-exhausted" not in causes(summarise(fine.frames()))


@pytest.mark.parametrize("refusal", REFUSALS, ids=["ENOMEM", "ENFILE"])
@pytest.mark.parametrize(("where", "words"), [
    ({"own": {"max_bytes": GB, "limit_hits_total": 9, "own_ooms_total": 9}}, "the cgroup"),
    ({"available": 50 << 20}, "the host's memory"),
])  # fmt: skip
def test_a_refusal_while_memory_was_short_names_it(fine, refusal, where, words):
    groups(fine)
    memory(fine, **where)
    fine.add("sockstat", at_s=2.0, file_nr_count=1_000, file_max_count=100_000)
    refuse(fine, **refusal)
    finding = named(summarise(fine.frames()), "memory-exhausted")
    assert words in finding.sentence
    assert finding.value_of("enfile_calls" if refusal else "enomem_calls") == 23


# -- queues and tables of a network namespace of many -----------------------------------------


def counter(build, name, after, before=0, at_s=2.0):
    build.add("net_counters", at_s=-0.5, counter=name, value_total=before)
    build.add("net_counters", at_s=at_s, counter=name, value_total=after)


def listener(build, *, port=PORT, inode=70, dropped=0, accept=0, half_open=0, backlog=128):
    """One of worker 0, or of nobody that is known where the port is another."""
    if port == PORT:
        build.add("listener_owners", at_s=-0.2, pid=800, socket_inode=inode)
    for at_s in (-0.2, 2.5):
        build.add(
            "listeners",
            at_s=at_s,
            local_address="127.0.0.1",
            local_port=port,
            socket_inode=inode,
            backlog_count=backlog,
            accept_queue_count=accept if at_s > 0 else 0,
            syn_queue_count=half_open if at_s > 0 else 0,
            dropped_total=dropped if at_s > 0 else 0,
        )


def late(build, count=150):
    """Attempts that were sent a second time: in a run of ours, its clients say so."""
    build.connect(200 - count)
    build.connect(count, stage="connect", close_kind="timeout", errno=110, closed_s=5.0)


@pytest.fixture(params=["host-network", "attach"])
def shared(request):
    """A run in the host's network namespace, or a server that is only watched."""
    if request.param == "attach":
        return request.getfixturevalue("watched")
    built = request.getfixturevalue("run")
    built.manifest["host"]["network_namespace"] = "host"
    return built


QUEUES = [("TcpExtListenOverflows", "accept"), ("TcpExtTCPReqQFullDrop", "half_open")]
CAUSES = {"accept": "accept-queue-overflow", "half_open": "syn-backlog-overflow"}


def is_run(build):
    return "attached" not in build.manifest["server"]


@pytest.mark.parametrize(("name", "queue"), QUEUES, ids=list(CAUSES))
def test_a_queue_of_another_server_of_the_namespace_is_not_this_ones(shared, name, queue):
    if is_run(shared):
        late(shared)  # for a reason of its own
    counter(shared, name, 1_009)
    counter(shared, "TcpExtListenDrops", 1_009)
    listener(shared)
    listener(shared, port=22, inode=99, dropped=1_009, **{queue: 128})
    summary = summarise(shared.frames())
    assert causes(summary).isdisjoint(CAUSES.values())


@pytest.mark.parametrize(("name", "queue"), QUEUES, ids=list(CAUSES))
def test_an_own_queue_is_named_by_what_it_dropped_itself(shared, name, queue):
    if is_run(shared):
        late(shared)
    counter(shared, name, 1_009 + 150)
    listener(shared, dropped=150, **{queue: 128})
    listener(shared, port=22, inode=99, dropped=1_009, **{queue: 128})
    summary = summarise(shared.frames())
    finding = named(summary, CAUSES[queue])
    assert summary.verdict.cause == CAUSES[queue]
    assert finding.subject.pid == 800
    if queue == "accept":
        assert finding.value_of("listen_overflows") == 150
    else:
        assert finding.value_of("syn_drops", "TcpExtTCPReqQFullDrop") == 150


def test_two_servers_with_another_queue_each_are_told_apart(shared):
    if is_run(shared):
        late(shared)
    counter(shared, "TcpExtListenOverflows", 1_009)
    counter(shared, "TcpExtTCPReqQFullDrop", 150)
    listener(shared, dropped=150, half_open=128)
    listener(shared, port=22, inode=99, dropped=1_009, accept=128)
    found = causes(summarise(shared.frames()))
    assert "syn-backlog-overflow" in found
    assert "accept-queue-overflow" not in found


@pytest.mark.parametrize(("name", "queue"), QUEUES, ids=list(CAUSES))
def test_where_nobody_saw_the_listeners_the_own_clients_tell_and_are_believed_less(
    shared, name, queue
):
    if is_run(shared):
        late(shared)
    counter(shared, name, 1_009)
    summary = summarise(shared.frames())
    if is_run(shared):
        finding = named(summary, CAUSES[queue])
        assert finding.confidence == "low"
        assert "other servers" in finding.missing[-1]
    else:
        assert causes(summary) == {"no-limit-met"}


def test_a_table_that_others_fill_is_not_named_of_a_server_that_lost_no_segment(watched):
    counter(watched, "ConntrackDrop", 1_009)
    for half in range(12):
        watched.add("sockstat", at_s=half / 2, conntrack_count=1_000, conntrack_max_count=1_000)
    drops = {"reason": "NETFILTER_DROP", "at_s": 3.0, "event_count": 1_009}
    watched.add("skb_drops", namespace_known=1, of_server=0, **drops)
    watched.add("skb_drops", namespace_known=0, of_server=1, **drops)
    assert causes(summarise(watched.frames())) == {"no-limit-met"}


def full_tcp_memory(build):
    for half in range(12):
        build.add("sockstat", at_s=half / 2, tcp_mem_pages=999, tcp_mem_pressure_pages=1_000,
                  tcp_mem_max_pages=1_500)  # fmt: skip


def test_memory_of_tcp_that_others_use_and_are_refused(fine):
    full_tcp_memory(fine)
    fine.manifest["host"]["network_namespace"] = "host"
    counter(fine, "TcpExtTCPMemoryPressures", 23)
    counter(fine, "TcpExtTCPRcvQDrop", 1_009)
    fine.add("socket_pressure", at_s=3.0, kind="exceed_buf_limit_rx", side="other",
             event_count=1_009, allocated_max_pages=1_000, first_s=2.0)  # fmt: skip
    assert causes(summarise(fine.frames())) in GOOD


def test_memory_of_tcp_that_others_use_and_the_run_is_refused(fine):
    full_tcp_memory(fine)
    fine.add("socket_pressure", at_s=3.0, kind="exceed_buf_limit_rx", side="server",
             event_count=23, allocated_max_pages=1_000, first_s=2.0)  # fmt: skip
    finding = named(summarise(fine.frames()), "tcp-memory-pressure")
    assert finding.value_of("over_limit_receives", "server") == 23


@pytest.mark.parametrize("full", [1, 4])
def test_windows_that_others_closed_need_an_own_socket_that_stays_full(watched, full):
    counter(watched, "TcpExtTCPToZeroWindowAdv", 1_009)
    counter(watched, "TcpExtTCPFromZeroWindowAdv", 0)
    for snapshot in range(5):
        is_full = snapshot < full
        watched.add("socket_memory", at_s=1.9 + snapshot, side="server", state="ESTABLISHED",
                    socket_count=200, rcvbuf_bytes=200 * 131_072,
                    rmem_alloc_max_bytes=131_072 if is_full else 0)  # fmt: skip
    found = causes(summarise(watched.frames()))
    assert ("receive-buffer-full" in found) == (full == 4)
    if full == 4:
        finding = named(summarise(watched.frames()), "receive-buffer-full")
        assert finding.value_of("closed_windows") == 200


# -- tables, cores and pressure of the host ---------------------------------------------------


def test_a_file_table_that_others_fill_is_no_sign_without_a_call_that_it_refused(fine):
    for half in range(12):
        fine.add("sockstat", at_s=half / 2, file_nr_count=99_999, file_max_count=100_000)
    assert causes(summarise(fine.frames())) in GOOD


def test_cores_that_others_burn_and_nobody_of_the_run_wants(fine):
    fine.host_cpu(100, from_s=0.0, until_s=6.0)
    for pid in (800, 801):
        fine.cpu(pid, 2, from_s=0.0, until_s=6.0, wait_pct=1.0)
    for second in range(7):
        for resource in ("cpu", "memory", "io"):
            fine.add("host_pressure", at_s=second, resource=resource,
                     some_ns_total=second * 10**9, full_ns_total=second * 10**9)  # fmt: skip
    assert causes(summarise(fine.frames())) in GOOD


def test_sockets_of_others_that_are_orphans_or_in_time_wait(fine):
    for half in range(12):
        fine.add("sockstat", at_s=half / 2, tcp_orphan_count=60_000, tcp_timewait_count=60_000,
                 tcp_alloc_count=200_000)  # fmt: skip
    counter(fine, "TcpExtTCPAbortOnMemory", 0)
    counter(fine, "TcpExtTCPTimeWaitOverflow", 1_009)
    counter(fine, "TcpExtTCPOFOQueue", 1_009)
    assert causes(summarise(fine.frames())) in GOOD


def test_drops_of_any_namespace_are_shown_apart(fine):
    drops = {"reason": "PROTO_MEM", "location": "tcp_rcv_established", "at_s": 2.0}
    fine.add("skb_drops", event_count=1_009, namespace_known=0, **drops)
    fine.add("skb_drops", event_count=23, namespace_known=1, **drops)
    summary = summarise(fine.frames())
    assert causes(summary) in GOOD
    assert summary.drops[["namespace_known", "event_count"]].to_numpy().tolist() == [
        [0, 1_009], [1, 23],
    ]  # fmt: skip
