"""Each cause where it is, and not where its neighbours are; with and without eBPF."""

from __future__ import annotations

import json

import pytest

from analysis.frames.run_view import RunView
from analysis.summary import summarise
from analysis.verdict.unexplained import unexplained

TARGET = 1500


def causes(summary) -> list[tuple[str, str]]:
    return [(f.cause, f.severity) for f in summary.findings]


def by_cause(summary, cause):
    return next(f for f in summary.findings if f.cause == cause)


@pytest.fixture
def full_server(build):
    """Two workers of 400 descriptors; 786 of 1,500 connections get in by 0.5 s."""
    build.stages(2.0, 3.0)
    build.manifest["target_connections"] = TARGET
    for worker in range(2):
        build.process("server", worker, nofile_soft_count=400, own_fds_count=7)
    build.process("client", 0, nofile_soft_count=20_000)
    build.connect(786, until_s=0.5)
    build.connect(256, from_s=0.5, until_s=0.6, stage="handshake", errno=110, close_kind="timeout")
    for quarter in range(21):
        at_s = quarter / 4
        for worker in range(2):
            count = min(393, round(786 * at_s))
            build.live(800 + worker, at_s, open_count=count, established_total=count)
    return build


def emfile(build, pid, count, *, at_s=0.51, last_s=None, syscall="accept4"):
    build.add(
        "failing_syscalls",
        at_s=1.0,
        pid=pid,
        syscall=syscall,
        errno=24,
        errno_name="EMFILE",
        event_count=count,
        first_s=at_s,
        last_s=last_s or at_s,
    )


# -- fd-limit-process -------------------------------------------------------------------------


def test_server_at_its_descriptor_limit(full_server):
    emfile(full_server, 801, 1, at_s=0.50)
    emfile(full_server, 800, 1, at_s=0.51)
    full_server.health("failing_syscalls", "live_samples", "process_samples")
    summary = summarise(full_server.frames())
    assert causes(summary) == [("fd-limit-process", "binding")]
    finding = summary.findings[0]
    assert (finding.side, finding.subject.pid, finding.subject.worker) == ("server", 801, 1)
    assert finding.confidence == "high"
    assert finding.value_of("descriptors_open") == 400
    assert finding.value_of("descriptor_limit") == 400
    assert finding.value_of("descriptors_own") == 7
    assert finding.value_of("processes_at_limit") == 2
    verdict = summary.verdict
    assert (verdict.cause, verdict.side) == ("fd-limit-process", "server")
    assert verdict.at_connections == pytest.approx(786, abs=2)
    for part in ("worker 1", "pid 801", "server", "400", "393", "7 own", "786", "LimitNOFILE="):
        assert part.lower() in verdict.sentence.lower(), (part, verdict.sentence)
    effects = " ".join(fix.effect for fix in finding.fix)
    assert "786" in effects


def test_server_that_leaves_its_listener_before_emfile(full_server):
    """--accept shared --at-fd-limit pause: full by count, no errno anywhere on the server."""
    summary = summarise(full_server.frames())
    assert causes(summary) == [("fd-limit-process", "binding")]
    finding = summary.findings[0]
    assert finding.side == "server"
    assert finding.confidence == "medium"
    assert any("failing_syscalls" in line for line in finding.missing)


def test_counters_of_the_workers_stand_in_for_ebpf(full_server):
    for row in full_server.rows["live_samples"]:
        if row["open_count"] >= 393:
            row["accept_emfile_total"] = 3
    finding = summarise(full_server.frames()).findings[0]
    assert finding.value_of("emfile_calls") == 3
    emfile_evidence = next(e for e in finding.evidence if e.id == "emfile_calls")
    assert emfile_evidence.table == "live_samples"
    assert finding.confidence == "medium"


def test_client_at_its_descriptor_limit(build):
    build.stages(1.0, 2.0)
    build.manifest["target_connections"] = TARGET
    build.process("server", 0, nofile_soft_count=20_000)
    build.process("client", 0, nofile_soft_count=600, own_fds_count=6)
    build.connect(594, until_s=0.5)
    build.connect(370, from_s=0.5, until_s=1.0, stage="socket", errno=24, close_kind="error")
    for at_s in (0.0, 0.5, 1.0, 2.0):
        build.live(900, at_s, open_count=round(min(594, 1188 * at_s)))
    summary = summarise(build.frames())
    assert causes(summary) == [("fd-limit-process", "binding")]
    finding = summary.findings[0]
    assert (finding.side, finding.subject.role) == ("client", "client")
    assert finding.value_of("emfile_calls", "socket") == 370
    assert summary.verdict.at_connections == pytest.approx(594, abs=2)
    assert "ulimit -n" in summary.verdict.sentence


def test_full_but_nobody_wants_in_is_no_finding(build):
    build.stages(1.0, 2.0)
    build.manifest["target_connections"] = 393
    build.process("server", 0, nofile_soft_count=400, own_fds_count=7)
    build.process("client", 0)
    build.connect(393)
    for at_s in (0.0, 1.0, 2.0):
        build.live(800, at_s, open_count=round(393 * min(1, at_s)))
    assert causes(summarise(build.frames())) == [("reached", "binding")]


def test_enfile_is_another_cause(full_server):
    """The system's table is full: descriptors below the soft limit, ENFILE."""
    for row in full_server.rows["live_samples"]:
        row["open_count"] = min(row["open_count"], 200)
    full_server.add(
        "failing_syscalls",
        at_s=1.0,
        pid=800,
        syscall="accept4",
        errno=23,
        errno_name="ENFILE",
        event_count=23,
        first_s=0.5,
        last_s=1.0,
    )
    assert causes(summarise(full_server.frames())) == []


def test_emfile_of_another_syscall_is_not_a_full_listener(full_server):
    for row in full_server.rows["live_samples"]:
        row["open_count"] = min(row["open_count"], 200)
    emfile(full_server, 800, 5, syscall="openat")
    assert causes(summarise(full_server.frames())) == []


def test_who_has_no_descriptor_left_for_a_pipe_is_full_though_it_accepts(full_server):
    """A child for each connection: what it got of six it gives back, and is never quite full."""
    for row in full_server.rows["live_samples"]:
        row["open_count"] = min(row["open_count"], 385)
    emfile(full_server, 800, 5, syscall="pipe2")
    (finding,) = [f for f in summarise(full_server.frames()).findings if f.side == "server"]
    assert (finding.cause, finding.value_of("emfile_calls", "pipe2")) == ("fd-limit-process", 5)
    assert "opens no further file, pipe or socket" in finding.explanation


# -- ephemeral-ports-exhausted ----------------------------------------------------------------


def ports_run(build, stage="connect", errno=99):
    build.stages(1.0, 2.0)
    build.manifest["target_connections"] = 2000
    build.manifest["plan"] = {"port_range": [40000, 41008]}
    build.process("server", 0, nofile_soft_count=20_000)
    build.process("client", 0, nofile_soft_count=20_000)
    build.connect(1009, until_s=0.5)
    build.connect(648, from_s=0.51, until_s=0.9, stage=stage, errno=errno, close_kind="error")
    return build


def test_no_local_port_left(build):
    summary = summarise(ports_run(build).frames())
    assert causes(summary) == [("ephemeral-ports-exhausted", "binding")]
    finding = summary.findings[0]
    assert (finding.side, finding.subject.role) == ("client", "client")
    assert finding.value_of("port_range_size") == 1009
    assert finding.value_of("ports_used") == 1009
    assert finding.value_of("eaddrnotavail_calls") == 648
    assert summary.verdict.at_connections == pytest.approx(1009, abs=2)
    assert "10055" in finding.explanation
    assert any("source-addresses" in fix.command for fix in finding.fix)
    assert finding.confidence == "medium"  # no eBPF: from the records alone
    assert summary.ladder[0].limit == "ephemeral_ports"
    assert summary.ladder[0].met


@pytest.mark.parametrize(
    ("stage", "errno", "cause"),
    [
        ("bind", 99, "source-address-missing"),
        ("bind", 98, "bind-ports-exhausted"),
        ("connect", 111, "not-explained"),
    ],
)
def test_other_failures_of_bind_and_connect_are_not_port_exhaustion(build, stage, errno, cause):
    summary = summarise(ports_run(build, stage, errno).frames())
    assert "ephemeral-ports-exhausted" not in [f.cause for f in summary.findings]
    assert summary.verdict.cause == cause


@pytest.mark.parametrize(
    ("by", "size", "fix"),
    [("socket", 1009, "profile-run --port-range"), ("host", 28232, "sysctl -w")],
)
def test_a_range_of_each_socket_is_not_the_one_of_the_host(build, by, size, fix):
    """Without root the clients set it; TIME_WAIT of a run before holds ports of the host's."""
    ports_run(build)
    build.manifest["plan"]["port_range_by"] = by
    build.add("port_groups", at_s=0.9, source_address="127.0.0.1", destination_port=9000,
              destination_address="127.0.0.1", ports_used_count=1805,
              range_low_port=32768, range_high_port=60999)  # fmt: skip
    finding = by_cause(summarise(build.frames()), "ephemeral-ports-exhausted")
    assert finding.value_of("port_range_size") == size
    assert finding.value_of("ports_used") == min(size, 1805)
    assert finding.fix[1].command.startswith(fix)


def test_ports_that_somebody_else_holds_lower_the_confidence(build):
    ports_run(build)
    build.manifest["plan"] = {"port_range": [32768, 60999]}
    finding = by_cause(summarise(build.frames()), "ephemeral-ports-exhausted")
    assert finding.confidence == "low"
    assert any("1,009 of 28,232" in line for line in finding.missing)


# -- accept-spin ------------------------------------------------------------------------------


def spin(build, pid, rate, *, from_s=1.0, until_s=5.0, progress=0, table="failing_syscalls"):
    at_s = from_s
    while at_s < until_s:
        at_s += 0.5
        if table == "failing_syscalls":
            build.add(
                table,
                at_s=at_s,
                pid=pid,
                syscall="accept4",
                errno=24,
                errno_name="EMFILE",
                event_count=rate // 2,
                first_s=0.51,
                last_s=at_s,
            )
    for row in build.rows["live_samples"]:
        since_s = (row["at_ns"] - build.ns(from_s)) / 1e9
        if row["pid"] == pid and since_s > 0:
            row["established_total"] += round(progress * since_s)
            if table == "live_samples":
                row["accept_emfile_total"] = round(rate * since_s)


@pytest.mark.parametrize("table", ["failing_syscalls", "live_samples"])
def test_a_full_worker_that_keeps_its_listener(full_server, table):
    spin(full_server, 801, 150_000, table=table)
    full_server.cpu(801, 99, from_s=0.5, until_s=5.0)
    full_server.cpu(800, 1, from_s=0.5, until_s=5.0)
    summary = summarise(full_server.frames())
    assert causes(summary) == [("fd-limit-process", "binding"), ("accept-spin", "contributing")]
    finding = by_cause(summary, "accept-spin")
    assert finding.follows_from == "fd-limit-process"
    assert finding.subject.pid == 801
    assert finding.value_of("emfile_call_rate") == pytest.approx(150_000, rel=0.01)
    assert finding.value_of("process_cpu") == pytest.approx(99, rel=0.01)
    assert finding.value_of("handshakes_completed") == 0
    assert "accept-spin" in summary.verdict.sentence
    assert summary.hot_worker["pid"] == 801
    assert summary.hot_worker["cause"] == "accept-spin"


def test_a_spin_on_a_crowded_host_is_judged_per_second_of_its_own_cpu(full_server):
    spin(full_server, 801, 4_000)
    full_server.cpu(801, 30, from_s=0.5, until_s=5.0)
    assert "accept-spin" in [f.cause for f in summarise(full_server.frames()).findings]


def calls(build, pid, **counts):
    for name, (count, failed_count) in counts.items():
        build.add(
            "syscall_mix", at_s=3.0, pid=pid, syscall=name, event_count=count,
            failed_count=failed_count,
        )  # fmt: skip


@pytest.mark.parametrize(("messages_count", "spins"), [(0, True), (3_000, False)])
def test_a_spin_on_a_slow_processor_is_known_by_the_calls_of_a_turn(
    full_server, messages_count, spins
):
    spin(full_server, 801, 300)
    full_server.cpu(801, 99, from_s=0.5, until_s=5.0)
    calls(
        full_server, 801, clock_gettime=(9_600, 0), accept4=(3_200, 3_200), epoll_wait=(3_201, 0),
        recvfrom=(messages_count, 0), sendto=(messages_count, 0),
    )  # fmt: skip
    assert ("accept-spin" in [f.cause for f in summarise(full_server.frames()).findings]) is spins


@pytest.mark.parametrize(("rate", "progress"), [(200, 0), (4_000, 0), (20_000, 2_000)])
def test_emfile_now_and_then_or_with_progress_is_no_spin(full_server, rate, progress):
    spin(full_server, 801, rate, progress=progress)
    full_server.cpu(801, 99, from_s=0.5, until_s=5.0)
    found = [f.cause for f in summarise(full_server.frames()).findings]
    assert "accept-spin" not in found
    assert "fd-limit-process" in found


# -- server-resets-when-full and worker-crash ---------------------------------------------------


def test_a_full_server_that_accepts_and_closes(full_server):
    full_server.connect(
        300, from_s=0.6, until_s=0.9, stage="handshake", errno=104, close_kind="rst"
    )
    full_server.connect(23, from_s=0.6, until_s=0.9, stage="handshake", close_kind="eof")
    emfile(full_server, 801, 323, at_s=0.50, last_s=0.9)
    summary = summarise(full_server.frames())
    assert causes(summary) == [
        ("fd-limit-process", "binding"),
        ("server-resets-when-full", "contributing"),
    ]
    finding = by_cause(summary, "server-resets-when-full")
    assert (finding.value_of("refused_by_rst"), finding.value_of("refused_by_eof")) == (300, 23)


@pytest.mark.parametrize(("emfile_count", "is_named"), [(4, True), (2, False)])
def test_one_emfile_stands_for_the_whole_queue(full_server, emfile_count, is_named):
    # uv__emfile_trick accepts and closes until the queue is empty: 323 for a few EMFILE
    full_server.connect(
        323, from_s=0.6, until_s=0.9, stage="handshake", errno=104, close_kind="rst"
    )
    emfile(full_server, 801, emfile_count, at_s=0.50, last_s=0.9)
    named = [cause for cause, _ in causes(summarise(full_server.frames()))]
    assert ("server-resets-when-full" in named) is is_named


def test_resets_without_a_full_worker_are_not_that(build):
    build.stages(1.0, 2.0)
    build.manifest["target_connections"] = 1009
    build.process("server", 0)
    build.process("client", 0)
    build.connect(986)
    build.connect(23, stage="handshake", errno=104, close_kind="rst")
    verdict = summarise(build.frames()).verdict
    assert (verdict.cause, verdict.side) == ("not-explained", "server")


@pytest.mark.parametrize(
    ("stage", "kind", "side"),
    [
        ("socket", "error", "client"),
        ("connect", "timeout", "host"),
        ("connect", "refused", "server"),
        ("handshake", "eof", "server"),
    ],
)
def test_what_nothing_explains_has_the_side_on_which_the_attempts_ended(build, stage, kind, side):
    build.stages(1.0, 2.0)
    build.manifest["target_connections"] = 120
    build.process("server", 0)
    build.process("client", 0)
    build.connect(50)
    build.connect(40, stage=stage, close_kind=kind)
    known = unexplained(RunView(build.frames()))
    assert known.side == side
    assert [count for _, count in known.ends] == [40]
    assert known.never_count == 30


def refused(build, *, kind="refused", stage="connect", argv=("profile-run", "--connections", "9")):
    build.stages(1.0, 2.0)
    build.manifest |= {"target_connections": 120, "argv": list(argv)}
    build.process("server", 0)
    build.process("client", 0)
    build.connect(50)
    build.connect(40, stage=stage, close_kind=kind)
    for probe in ("failing_syscalls", "oom_kills", "host_counters", "process_samples"):
        build.add("probe_health", probe=probe, asked_for=True, state="ran", row_count=1)
    return build


def known_of(build):
    known = summarise(build.frames()).verdict.unexplained
    assert known is not None
    return known


def test_what_nothing_explains_says_what_it_was_not_and_by_which_number(build):
    out = {each.cause: each.by for each in known_of(refused(build)).ruled_out}
    assert (out["fd-limit-process"].id, out["fd-limit-process"].value) == ("descriptor_refusals", 0)
    assert out["memory-exhausted"].id == "oom_kills"
    assert out["worker-crash"].id == "server_processes_ended"


def test_a_number_of_a_probe_that_did_not_look_rules_nothing_out(build):
    refused(build)
    build.rows["probe_health"] = []
    build.add("probe_health", probe="failing_syscalls", asked_for=True, state="unavailable",
              reason="no BTF")  # fmt: skip
    known = known_of(build)
    assert "fd-limit-process" not in {each.cause for each in known.ruled_out}
    assert [(each.probe, each.reason) for each in known.unwatched] == [
        ("failing_syscalls", "no BTF")
    ]
    assert known.decide is not None
    assert known.decide.command.endswith("profile-run --connections 9")


def test_an_end_that_speaks_for_a_cause_does_not_rule_it_out(build):
    refused(build)
    build.add("failing_syscalls", at_s=1.0, pid=800, syscall="bind", errno=99,
              errno_name="EADDRNOTAVAIL", event_count=1, first_s=0.5, last_s=0.5)  # fmt: skip
    assert "ephemeral-ports-exhausted" not in {each.cause for each in known_of(build).ruled_out}


@pytest.mark.parametrize(
    ("stage", "kind", "command"),
    [
        ("connect", "refused", "profile-run --connections 9 --stall 30 --retry 10"),
        ("connect", "timeout", "bpftrace"),
        ("socket", "error", "profile-doctor"),
        ("handshake", "eof", "strace"),
        ("handshake", "timeout", "head -n 1 /proc/800/task/"),
    ],
)
def test_one_command_would_decide(build, stage, kind, command):
    argv = ("profile-run", "--connections", "9", "--retry", "2", "--stall=1")
    decide = known_of(refused(build, kind=kind, stage=stage, argv=argv)).decide
    assert decide is not None
    assert decide.command.startswith(command)


def test_what_each_limit_had_left_is_said_fullest_first(build):
    refused(build)
    for quarter in range(9):
        build.live(800, quarter / 4, open_count=50)
    spare = known_of(build).left
    assert spare
    assert [each.left_pct for each in spare] == sorted(each.left_pct for each in spare)
    record = known_of(build).record()
    assert record["left"][0]["left_pct"] == spare[0].left_pct
    assert record["decide"]["command"]
    json.dumps(record)


def test_a_run_that_is_explained_has_no_such_list(full_server):
    emfile(full_server, 801, 323, at_s=0.50)
    assert summarise(full_server.frames()).verdict.unexplained is None


def crash(build, *, with_emfile):
    build.stages(1.0, 5.0)
    build.manifest["target_connections"] = 1009
    build.process("server", 0)
    build.process("server", 1, exited_s=3.0, exit_status=-1, exit_signal=9)
    build.process("client", 0, nofile_soft_count=20_000)
    build.connect(509)
    build.connect(500, stage="closed", close_kind="rst", errno=104, closed_s=3.0)
    for quarter in range(25):
        at_s = quarter / 4
        build.live(800, at_s, open_count=509 if at_s >= 1 else 0)
        build.live(801, at_s, open_count=500 if at_s >= 1 else 0)
    if with_emfile:
        emfile(build, 801, 1, at_s=2.9)
    return build


def test_a_worker_that_dies_takes_its_connections(build):
    summary = summarise(crash(build, with_emfile=False).frames())
    assert causes(summary) == [("worker-crash", "binding")]
    finding = summary.findings[0]
    assert finding.subject.pid == 801
    assert finding.value_of("exit_signal") == 9
    assert finding.value_of("lost_within_1s") == 500
    assert finding.value_of("process_connections") == 500
    assert summary.verdict.at_connections == 1009
    assert "SIGKILL" in summary.verdict.sentence
    assert summary.run["held_connections"] == 509


def test_a_crash_at_the_limit_follows_from_it(build):
    summary = summarise(crash(build, with_emfile=True).frames())
    assert causes(summary) == [("fd-limit-process", "binding"), ("worker-crash", "contributing")]
    assert by_cause(summary, "worker-crash").follows_from == "fd-limit-process"


@pytest.mark.parametrize("seen_until_s", [2.0, 3.5])
def test_of_a_run_that_was_killed_the_last_samples_tell_who_had_crashed(build, seen_until_s):
    """Nobody lived to write its end; who is sampled to the end has not crashed."""
    build.manifest |= {"status": "running", "target_connections": 400}
    build.add("events", at_s=0.0, event="phase_ramp")
    for worker in range(2):
        build.process("server", worker, nofile_soft_count=20_000)
    build.process("client", 0, nofile_soft_count=20_000)
    build.connect(100)
    build.connect(100, stage="closed", close_kind="rst", errno=104, closed_s=2.2)
    for quarter in range(17):
        for pid in (800, 801):
            build.live(pid, quarter / 4, open_count=100, established_total=100)
    build.cpu(800, 20, until_s=4.0)
    build.cpu(801, 20, until_s=seen_until_s)
    summary = summarise(build.frames())
    crashed = [f for f in summary.findings if f.cause == "worker-crash"]
    assert [f.subject.pid for f in crashed] == ([801] if seen_until_s == 2.0 else [])
    if crashed:
        assert summary.verdict.cause == "worker-crash"
        assert crashed[0].confidence == "medium"
        assert crashed[0].value_of("lost_within_1s") == 100
        assert "an unknown status" in crashed[0].sentence


def test_a_process_that_the_run_stopped_did_not_crash(build):
    crash(build, with_emfile=False)
    for row in build.rows["processes"]:
        row["exited_ns"] = 0
    assert "worker-crash" not in [f.cause for f in summarise(build.frames()).findings]


# -- hot-worker-code and keepalive-storm ------------------------------------------------------

OWN = "<module> (m.py:1);run (loop.py:5);application_code (app.py:{line})"
LOOP = "<module> (m.py:1);run (loop.py:5);_read (loop.py:9)"


def healthy(build, workers=2):
    build.stages(1.0, 6.0)
    build.manifest["target_connections"] = 1000
    for worker in range(workers):
        build.process("server", worker, nofile_soft_count=20_000)
    build.process("client", 0, nofile_soft_count=20_000)
    build.connect(1000)
    for quarter in range(29):
        for worker in range(workers):
            build.live(800 + worker, quarter / 4, open_count=1000 // workers)
    return build


def stacks(build, pid, stack, count=50):
    for half in range(14):
        build.add(
            "python_stacks",
            at_s=half / 2 + 0.1,
            pid=pid,
            stack=stack.format(line=half),
            sample_count=count,
            period_ns=10_000_000,
        )


def test_one_worker_in_its_own_code(build):
    healthy(build)
    build.cpu(801, 98, from_s=0.0, until_s=7.0, user_share=1.0)
    build.cpu(800, 1, from_s=0.0, until_s=7.0)
    stacks(build, 801, OWN)
    stacks(build, 800, LOOP)
    summary = summarise(build.frames())
    assert causes(summary) == [("reached", "binding"), ("hot-worker-code", "warning")]
    finding = by_cause(summary, "hot-worker-code")
    assert finding.subject.pid == 801
    assert "application_code (app.py)" in finding.sentence
    assert finding.value_of("process_cpu") == pytest.approx(98, rel=0.01)
    assert finding.value_of("function_samples") == 100
    hot = summary.hot_worker
    assert (hot["pid"], hot["cause"]) == (801, "hot-worker-code")
    assert "application_code" in hot["top_function"]
    flame = summary.flame_stacks
    assert set(flame[flame["is_hot"]]["pid"]) == {801}


@pytest.mark.parametrize(("cpu_pct", "wait_pct", "is_named"), [(66, 33, True), (66, 10, False)])
def test_a_neighbour_that_takes_a_third_of_its_core_hides_no_hot_worker(
    build, cpu_pct, wait_pct, is_named
):
    """It never rests; one that works two thirds of the time does."""
    healthy(build)
    build.cpu(801, cpu_pct, from_s=0.0, until_s=7.0, user_share=1.0, wait_pct=wait_pct)
    build.cpu(800, 1, from_s=0.0, until_s=7.0, wait_pct=0)
    stacks(build, 801, OWN)
    stacks(build, 800, LOOP)
    named = "hot-worker-code" in [cause for cause, _ in causes(summarise(build.frames()))]
    assert named is is_named


def test_without_stacks_it_is_still_seen_while_holding_but_less_sure(build):
    healthy(build)
    build.cpu(801, 98, from_s=0.0, until_s=7.0)
    build.cpu(800, 1, from_s=0.0, until_s=7.0)
    finding = by_cause(summarise(build.frames()), "hot-worker-code")
    assert finding.confidence == "low"
    assert any("function is not known" in line for line in finding.missing)


def test_workers_that_are_busy_with_the_ramp_are_not_hot(build):
    build.stages(5.0, 3.0)
    build.manifest["target_connections"] = 1000
    for worker in range(2):
        build.process("server", worker)
        build.cpu(800 + worker, 95 if worker else 40, from_s=0.0, until_s=5.0)
        build.cpu(800 + worker, 1, from_s=5.0, until_s=8.0)
        stacks(build, 800 + worker, LOOP)
    build.process("client", 0, nofile_soft_count=20_000)
    build.host_cpu(100, from_s=0.0, until_s=5.0)
    build.connect(1000, until_s=5.0)
    assert causes(summarise(build.frames())) == [("reached", "binding")]


def pings(build, workers, interval_s, *, answered=1.0):
    build.manifest["settings"]["keepalive_s"] = interval_s
    for row in build.rows["live_samples"]:
        since_s = max(0.0, (row["at_ns"] - build.ns(1.0)) / 1e9)
        sent = round(since_s * (1000 // workers) / interval_s * answered)
        row["tx_pings_total"] = row["rx_pongs_total"] = sent


def test_pings_that_fill_a_core(build):
    healthy(build, workers=1)
    pings(build, 1, 0.05)
    build.cpu(800, 99, from_s=0.0, until_s=7.0)
    stacks(build, 800, LOOP)
    summary = summarise(build.frames())
    assert causes(summary) == [("reached", "binding"), ("keepalive-storm", "warning")]
    said = summary.verdict.sentence
    assert "without a failure; yet worker 0" in said
    assert "(keepalive-storm); the next limit" in said
    finding = by_cause(summary, "keepalive-storm")
    assert finding.value_of("keepalive_rate") == pytest.approx(40_000, rel=0.01)
    assert finding.value_of("cpu_per_message") == pytest.approx(24.75, rel=0.02)
    assert "1,010 connections at 0.05 s" in finding.explanation
    assert summary.ladder[0].limit == "cpu_worker"
    assert summary.ladder[0].predicted_connections == pytest.approx(1010, rel=0.01)


def test_pings_that_fall_behind(build):
    healthy(build, workers=1)
    pings(build, 1, 0.05, answered=0.5)
    build.cpu(800, 60, from_s=0.0, until_s=7.0)
    finding = by_cause(summarise(build.frames()), "keepalive-storm")
    assert finding.value_of("due_rate", "pings") == pytest.approx(20_000)
    assert finding.value_of("sent_rate", "pings") == pytest.approx(10_000, rel=0.02)
    # 60 % of a core for half of the pings: a full core does 83 % of what 1,000 connections need
    assert "833 connections" in finding.explanation


def test_pings_that_fall_behind_because_others_have_the_cores_are_no_storm(build):
    healthy(build, workers=1)
    pings(build, 1, 0.05, answered=0.5)
    build.cpu(800, 20, from_s=0.0, until_s=7.0)  # all that are due would take 40 % of a core
    assert "keepalive-storm" not in [f.cause for f in summarise(build.frames()).findings]


@pytest.mark.parametrize(("cpu_pct", "is_storm"), [(80.0, True), (62.0, False)])
def test_a_host_that_others_fill_as_well_is_not_full_of_pings(build, cpu_pct, is_storm):
    """Of two full cores two workers have four fifths, or those beside the run more than a third."""
    healthy(build)
    build.manifest["host"] = build.manifest.get("host", {}) | {"core_count": 2}
    pings(build, 2, 0.05)
    for worker in range(2):
        build.cpu(800 + worker, cpu_pct, from_s=0.0, until_s=7.0)
    build.host_cpu(100, from_s=0.0, until_s=7.0)
    found = [f.cause for f in summarise(build.frames()).findings]
    assert ("keepalive-storm" in found) is is_storm


@pytest.mark.parametrize(("interval_s", "cpu_pct"), [(5.0, 3.0), (1.0, 30.0)])
def test_pings_that_leave_room_are_no_storm(build, interval_s, cpu_pct):
    healthy(build, workers=1)
    pings(build, 1, interval_s)
    build.cpu(800, cpu_pct, from_s=0.0, until_s=7.0)
    assert causes(summarise(build.frames())) == [("reached", "binding")]


def test_a_core_full_of_own_code_beside_a_few_pings_is_not_a_storm(build):
    healthy(build)
    pings(build, 2, 5.0)
    build.cpu(801, 98, from_s=0.0, until_s=7.0, user_share=1.0)
    build.cpu(800, 1, from_s=0.0, until_s=7.0)
    stacks(build, 801, OWN)
    stacks(build, 800, LOOP)
    assert causes(summarise(build.frames())) == [
        ("reached", "binding"),
        ("hot-worker-code", "warning"),
    ]


# -- which came first -------------------------------------------------------------------------


@pytest.mark.parametrize("ports_first", [True, False])
def test_of_two_walls_the_earlier_is_binding(build, ports_first):
    build.stages(3.0, 2.0)
    build.manifest["target_connections"] = TARGET
    build.manifest["plan"] = {"port_range": [40000, 40499]}
    build.process("server", 0, nofile_soft_count=20_000)
    build.process("client", 0, nofile_soft_count=600)
    build.connect(500, until_s=0.5)
    early, late = {"from_s": 0.6, "until_s": 0.9}, {"from_s": 2.0, "until_s": 2.5}
    build.connect(
        23, stage="connect", errno=99, close_kind="error", **(early if ports_first else late)
    )
    build.connect(
        23, stage="socket", errno=24, close_kind="error", **(late if ports_first else early)
    )
    summary = summarise(build.frames())
    wanted = "ephemeral-ports-exhausted" if ports_first else "fd-limit-process"
    assert summary.verdict.cause == wanted
    assert {f.cause for f in summary.findings} == {"ephemeral-ports-exhausted", "fd-limit-process"}
    assert [f.severity for f in summary.findings] == ["binding", "warning"]


def test_a_hot_worker_that_stops_nothing_is_not_binding_though_earlier(full_server):
    emfile(full_server, 801, 1, at_s=0.5)
    full_server.cpu(800, 97, from_s=0.0, until_s=5.0, user_share=1.0)
    full_server.cpu(801, 1, from_s=0.0, until_s=5.0)
    stacks(full_server, 800, OWN)
    stacks(full_server, 801, LOOP)
    summary = summarise(full_server.frames())
    assert summary.verdict.cause == "fd-limit-process"
    assert ("hot-worker-code", "warning") in causes(summary)


def test_lost_events_lower_the_confidence_of_what_depends_on_them(full_server):
    emfile(full_server, 801, 1, at_s=0.50)
    full_server.health("live_samples", "process_samples")
    full_server.health("failing_syscalls", lost_count=1009)
    finding = summarise(full_server.frames()).findings[0]
    assert finding.confidence == "medium"
    assert any("lost 1,009 events" in line for line in finding.missing)
