"""Causes of one worker: blocked, collecting, uneven, full beside room, an acceptor that is full."""

from __future__ import annotations

import pytest

from analysis.findings.cpu.accept_imbalance import is_uneven, spread_of
from analysis.stacks.collector import COLLECTOR_FRAME, COLLECTOR_THREAD
from analysis.summary import summarise

TARGET = 1000


def causes(summary) -> list[tuple[str, str]]:
    return [(f.cause, f.severity) for f in summary.findings]


def by_cause(summary, cause):
    return next(f for f in summary.findings if f.cause == cause)


@pytest.fixture
def held(build):
    """Two workers hold 1,000 connections from 1 s to 6 s."""
    build.stages(1.0, 5.0)
    build.manifest["target_connections"] = TARGET
    for worker in range(2):
        build.process("server", worker, nofile_soft_count=20_000)
    build.process("client", 0, nofile_soft_count=20_000)
    build.connect(TARGET)
    build.health("blocked_samples", "process_samples", "live_samples")
    return build


def live(build, pid, *, until_s=6.0, **values):
    """Counters of a worker four times a second; a callable gets the moment."""
    for quarter in range(round(until_s * 4) + 1):
        at_s = quarter / 4
        row = {k: v(at_s) if callable(v) else v for k, v in values.items()}
        build.live(pid, at_s, **row)


# -- worker-blocked ----------------------------------------------------------------------------

SLEEP = "Worker.run (harness/server/worker.py:153);report (app.py:{line})"


def block(build, pid, *, from_s=2.0, until_s=5.0, every_s=0.1, **values):
    for i in range(round((until_s - from_s) / every_s)):
        at_s = from_s + (i + 1) * every_s
        row = {
            "state": "S",
            "wait_channel": "hrtimer_nanosleep",
            "syscall": "clock_nanosleep",
            "kernel_stack": "__x64_sys_clock_nanosleep_[k];hrtimer_nanosleep_[k]",
            "python_stack": SLEEP.format(line=31) if i % 10 == 5 else "",
            "period_ns": 100_000_000,
            **values,
        }
        build.add(
            "blocked_samples", at_s=at_s, pid=pid, turn_s=from_s, lag_ns=10**8 * (i + 1), **row
        )


def test_a_worker_that_sleeps_is_seen_where_looks_are_seconds_apart(held):
    for at_s in (1.4, 2.6, 3.8, 5.0, 5.9):  # turns of 1.1 s, of which each look saw one
        held.add(
            "blocked_samples", at_s=at_s, pid=801, turn_s=at_s - 1.1, lag_ns=1_100_000_000,
            state="S", wait_channel="hrtimer_nanosleep", syscall="clock_nanosleep",
            kernel_stack="", python_stack="", period_ns=1_100_000_000,
        )  # fmt: skip
    held.cpu(801, 1, from_s=0.0, until_s=6.0)
    held.cpu(800, 2, from_s=0.0, until_s=6.0)
    finding = by_cause(summarise(held.frames()), "worker-blocked")
    assert finding.subject.pid == 801
    assert finding.value_of("loop_blocked_time") > 90


@pytest.mark.parametrize(("step_s", "is_named"), [(0.45, True), (0.2, False)])
def test_one_long_sleep_is_seen_in_few_looks_where_there_were_no_more(held, step_s, is_named):
    for look in range(1, 4):
        held.add(
            "blocked_samples", at_s=2.0 + step_s * look, pid=801, turn_s=2.0,
            lag_ns=round(1e9 * step_s * look), state="S", wait_channel="hrtimer_nanosleep",
            syscall="clock_nanosleep", kernel_stack="", python_stack="",
            period_ns=round(1e9 * step_s),
        )  # fmt: skip
    held.cpu(801, 1, from_s=0.0, until_s=6.0)
    held.cpu(800, 2, from_s=0.0, until_s=6.0)
    found = [cause for cause, _ in causes(summarise(held.frames()))]
    assert ("worker-blocked" in found) is is_named


def test_a_worker_that_sleeps_in_its_loop(held):
    block(held, 801)
    held.cpu(801, 1, from_s=0.0, until_s=6.0)
    held.cpu(800, 2, from_s=0.0, until_s=6.0)
    summary = summarise(held.frames())
    assert causes(summary) == [("reached", "binding"), ("worker-blocked", "warning")]
    finding = by_cause(summary, "worker-blocked")
    assert (finding.side, finding.subject.pid, finding.confidence) == ("server", 801, "high")
    assert (finding.first_s, finding.last_s) == pytest.approx((2.0, 5.0), abs=0.01)
    assert finding.value_of("loop_blocked_time") == pytest.approx(100, abs=1)
    assert finding.value_of("blocked_samples") == 30
    assert finding.value_of("longest_blocked_turn") == 3000
    assert finding.value_of("blocked_syscall_samples", "clock_nanosleep") == 100
    assert finding.value_of("process_cpu") == pytest.approx(1, rel=0.01)
    for part in (
        "worker 1",
        "pid 801",
        "server",
        "clock_nanosleep",
        "a sleep",
        "report (app.py:31)",
    ):
        assert part.lower() in finding.sentence.lower()
    assert "report (app.py)" in finding.fix[0].command


@pytest.mark.parametrize(
    ("syscall", "word"), [("futex", "a lock"), ("fsync", "the disk"), ("ioctl", "something else")]
)
def test_what_it_waits_for_is_named(held, syscall, word):
    block(held, 801, syscall=syscall, state="D")
    assert word in by_cause(summarise(held.frames()), "worker-blocked").sentence


@pytest.mark.parametrize(
    ("channel", "word"), [("anon_pipe_write", "a full pipe"), ("n_tty_write", "something else")]
)
def test_a_full_pipe_is_told_from_another_write(held, channel, word):
    block(held, 801, syscall="write", wait_channel=channel)
    assert word in by_cause(summarise(held.frames()), "worker-blocked").sentence


def test_all_that_were_stopped_go_on_by_one_command(held):
    for pid in (800, 801):
        block(held, pid, state="T", syscall="epoll_pwait", python_stack="")
    found = [f for f in summarise(held.frames()).findings if f.cause == "worker-blocked"]
    assert [f.fix[0].command for f in found] == ["kill -CONT 800 801"] * 2


def test_a_second_worker_that_stood_still_had_its_part(held):
    held.manifest["target_connections"] = TARGET + 40
    held.connect(40, from_s=2.5, until_s=3.0, stage="handshake", errno=110, close_kind="timeout",
                 closed_s=5.5)  # fmt: skip
    block(held, 800)
    block(held, 801, from_s=2.2)
    assert causes(summarise(held.frames())) == [
        *(("worker-blocked", "binding"), ("worker-blocked", "contributing")),
    ]


@pytest.mark.parametrize(
    ("state", "said", "command"),
    [
        ("T", "stopped by a signal", "kill -CONT 801"),
        ("t", "by a debugger", "grep TracerPid /proc/801"),
    ],
)
def test_a_process_that_was_stopped_is_in_no_call_of_its_own(held, state, said, command):
    block(held, 801, state=state, syscall="epoll_pwait", python_stack="")
    finding = by_cause(summarise(held.frames()), "worker-blocked")
    assert said in finding.sentence
    assert "epoll_pwait" not in finding.sentence
    assert finding.fix[0].command.startswith(command)


def test_clients_that_wait_for_a_blocked_worker_are_explained(held):
    held.manifest["target_connections"] = TARGET + 40
    held.connect(
        40,
        from_s=2.5,
        until_s=3.0,
        stage="handshake",
        errno=110,
        close_kind="timeout",
        closed_s=4.0,
    )
    block(held, 801)
    summary = summarise(held.frames())
    assert causes(summary) == [("worker-blocked", "binding")]
    assert summary.findings[0].explained_count == 40


def test_short_and_rare_blocks_are_none(held):
    block(held, 801, from_s=2.0, until_s=2.6)  # 0.6 s
    block(held, 800, from_s=2.0, until_s=5.0, every_s=0.5)  # a fifth of the time
    assert causes(summarise(held.frames())) == [("reached", "binding")]


def test_lost_samples_lower_the_confidence(held):
    held.rows["probe_health"] = []
    held.health("process_samples", "live_samples")
    held.health("blocked_samples", lost_count=5)
    block(held, 801)
    finding = by_cause(summarise(held.frames()), "worker-blocked")
    assert finding.confidence == "medium"
    assert any("lost 5 events" in line for line in finding.missing)


@pytest.mark.parametrize("channel", ["jbd2_log_wait_commit", "ep_poll"])
def test_without_samples_long_turns_of_a_sleeping_process_tell(held, channel):
    held.cpu(801, 2, from_s=0.0, until_s=6.0)
    for row in held.rows["process_samples"]:
        row["state"], row["wait_channel"] = "disk-sleep", channel
    live(held, 801, loop_lag_ns=lambda s: round(max(0, min(s, 5) - 2) * 1e9))
    summary = summarise(held.frames())
    found = [f for f in summary.findings if f.cause == "worker-blocked"]
    if channel == "ep_poll":
        assert found == []
    else:
        assert found[0].confidence == "medium"
        assert channel in str(found[0].evidence)


def test_a_long_turn_on_the_cpu_is_not_blocked(held):
    held.cpu(801, 99, from_s=0.0, until_s=6.0)
    live(held, 801, loop_lag_ns=lambda s: round(max(0, s - 2) * 1e9))
    assert "worker-blocked" not in [f.cause for f in summarise(held.frames()).findings]


# -- garbage-collection ------------------------------------------------------------------------


def collect(build, pid, share, *, from_s=2.0, pause_ms=50):
    live(
        build,
        pid,
        gc_ns_total=lambda s: round(max(0, s - from_s) * share * 1e9),
        gc_collections_total=lambda s: round(max(0, s - from_s) * 100),
        gc_max_pause_ns=lambda s: pause_ms * 10**6 if s > from_s else 0,
    )


def test_the_collector_takes_the_core_and_wins_over_the_code_it_interrupts(held):
    collect(held, 801, 0.75)
    held.cpu(801, 99, from_s=0.0, until_s=6.0)
    held.cpu(800, 1, from_s=0.0, until_s=6.0)
    for half in range(12):
        held.add(
            "python_stacks",
            at_s=half / 2 + 0.1,
            pid=801,
            stack="run (loop.py:1);allocate (app.py:7)",
            sample_count=20,
            period_ns=10_000_000,
        )
    summary = summarise(held.frames())
    assert causes(summary) == [("reached", "binding"), ("garbage-collection", "warning")]
    finding = by_cause(summary, "garbage-collection")
    assert finding.subject.pid == 801
    # the span begins with the first second that is mostly in the collector
    assert finding.value_of("collector_time") == pytest.approx(75, rel=0.08)
    assert finding.value_of("collection_rate") == pytest.approx(100, rel=0.08)
    assert finding.value_of("longest_pause") == 50
    assert summary.hot_worker["cause"] == "garbage-collection"


def test_a_collector_that_takes_a_quarter_is_by_design(held):
    collect(held, 801, 0.25)
    held.cpu(801, 99, from_s=0.0, until_s=6.0)
    held.cpu(800, 1, from_s=0.0, until_s=6.0)
    found = [f.cause for f in summarise(held.frames()).findings]
    assert "garbage-collection" not in found
    assert "hot-worker-code" in found


def test_one_long_pause_is_seen_though_it_is_counted_at_its_end(held):
    live(
        held,
        801,
        gc_ns_total=lambda s: 1_500_000_000 if s >= 4 else 0,
        gc_collections_total=lambda s: int(s >= 4),
        gc_max_pause_ns=lambda s: 1_500_000_000 if s >= 4 else 0,
    )
    finding = by_cause(summarise(held.frames()), "garbage-collection")
    assert finding.value_of("longest_pause") == 1500


def test_frames_tell_where_the_runtime_keeps_no_clock(held):
    held.cpu(801, 99, from_s=0.0, until_s=6.0)
    held.health("cpu_stacks")
    for second in range(2, 5):
        for count, stack in ((35, "main;v8::internal::MarkCompactCollector"), (14, "main;work")):
            held.add(
                "cpu_stacks",
                at_s=second + 0.5,
                pid=801,
                tid=801,
                thread="node",
                user_stack=stack,
                sample_count=count,
                period_ns=20_408_163,
            )
    finding = by_cause(summarise(held.frames()), "garbage-collection")
    assert finding.value_of("collector_samples") == pytest.approx(100 * 35 / 49)
    assert finding.confidence == "medium"


@pytest.mark.parametrize(
    "frame",
    [
        *("gc_collect_main", "_ZN2v88internal20MarkCompactCollector5StartEv"),
        *("runtime.gcBgMarkWorker", "G1FullGCMarkTask::work", "GenMarkSweep::invoke_at_safepoint"),
    ],
)
def test_frames_of_collectors(frame):
    assert COLLECTOR_FRAME.search(f"start;{frame};leaf")


def test_frames_and_threads_of_others():
    assert not COLLECTOR_FRAME.search("PyObject_GC_New;_PyObject_GC_Link;runtime.mallocgc")
    assert COLLECTOR_THREAD.search("GC Thread#0")
    assert not COLLECTOR_THREAD.search("python3")


# -- hot-acceptor ------------------------------------------------------------------------------


@pytest.fixture
def handoff(build):
    """An acceptor passes 1,000 connections on in 4 s to two workers."""
    build.stages(4.0, 2.0)
    build.manifest["target_connections"] = TARGET
    build.manifest["settings"]["accept"] = "handoff"
    for worker in range(2):
        build.process("server", worker, nofile_soft_count=20_000)
        build.cpu(800 + worker, 3, from_s=0.0, until_s=6.0)
    build.process("acceptor", 0, nofile_soft_count=20_000)
    build.process("client", 0, nofile_soft_count=20_000)
    live(build, 850, tx_messages_total=lambda s: round(min(4, s) * 250))
    build.health("process_samples", "live_samples")
    return build


def connect_late(build, wait_s):
    for i in range(TARGET):
        start_s = 4 * i / TARGET
        at_ns = build.ns(start_s + wait_s)
        build.connect(1, from_s=start_s, until_s=start_s, connected_ns=at_ns, established_ns=at_ns)


def test_an_acceptor_that_everybody_waits_for(handoff):
    handoff.cpu(850, 97, from_s=0.0, until_s=4.0)
    handoff.cpu(850, 0, from_s=4.0, until_s=6.0)
    connect_late(handoff, 0.4)
    summary = summarise(handoff.frames())
    assert causes(summary) == [("reached", "binding"), ("hot-acceptor", "warning")]
    finding = by_cause(summary, "hot-acceptor")
    assert (finding.subject.role, finding.subject.pid) == ("acceptor", 850)
    assert finding.value_of("process_cpu") == pytest.approx(97, rel=0.01)
    assert finding.value_of("handoff_rate") == pytest.approx(250, rel=0.1)
    assert finding.value_of("handshake_wait_median") == pytest.approx(400, rel=0.01)


@pytest.mark.parametrize(("cpu_pct", "wait_s"), [(97, 0.005), (60, 0.4)])
def test_an_acceptor_that_keeps_up_or_is_not_full(handoff, cpu_pct, wait_s):
    handoff.cpu(850, cpu_pct, from_s=0.0, until_s=4.0)
    handoff.cpu(850, 0, from_s=4.0, until_s=6.0)
    connect_late(handoff, wait_s)
    assert "hot-acceptor" not in [f.cause for f in summarise(handoff.frames()).findings]


# -- accept-imbalance --------------------------------------------------------------------------


def spread(build, *totals):
    for worker, total in enumerate(totals):
        if worker >= 2:
            build.process("server", worker, nofile_soft_count=20_000)
        live(
            build,
            800 + worker,
            established_total=lambda s, total=total: round(total * min(1, s)),
            open_count=lambda s, total=total: round(total * min(1, s)),
            loop_iterations_total=lambda s, total=total: total + round(s * 10),
        )


def test_one_worker_has_nearly_all(held):
    held.manifest["settings"]["accept"] = "shared-exclusive"
    spread(held, 940, 30, 20, 10)
    summary = summarise(held.frames())
    assert causes(summary) == [("reached", "binding"), ("accept-imbalance", "warning")]
    finding = by_cause(summary, "accept-imbalance")
    assert finding.subject.pid == 800
    assert finding.value_of("worker_established") == 940
    assert finding.value_of("even_share") == 250
    assert finding.value_of("fewest_worker_established") == 10
    assert finding.value_of("sigmas_above_even_share") == pytest.approx(50.4, rel=0.01)


def test_weights_explain_an_uneven_spread_and_not_the_kernel(held):
    held.manifest["settings"] |= {"accept": "shared", "accept_weights": [13, 1, 1, 1]}
    spread(held, 810, 70, 60, 60)
    finding = by_cause(summarise(held.frames()), "accept-imbalance")
    assert "as --accept-weights 13,1,1,1 says" in finding.explanation
    assert "awake" not in finding.explanation


def test_what_a_shared_listener_does_under_full_load_is_no_finding(held):
    spread(held, 390, 250, 200, 160)
    assert causes(summarise(held.frames())) == [("reached", "binding")]


def test_few_connections_and_chance_are_never_uneven():
    assert spread_of({1: 5}) is None
    assert spread_of({1: 0, 2: 0}) is None
    few = spread_of({1: 30, 2: 4, 3: 2})
    assert few is not None
    assert not is_uneven(few)  # 12 each: too few to say a word
    chance = spread_of({1: 15_360, **dict.fromkeys(range(2, 9), 15_000)})
    assert chance is not None
    assert not is_uneven(chance)


def test_a_blocked_worker_explains_what_its_sibling_got(held):
    spread(held, 940, 60)
    block(held, 801)
    found = [f.cause for f in summarise(held.frames()).findings]
    assert "worker-blocked" in found
    assert "accept-imbalance" not in found


# -- full-worker-on-shared-listener ------------------------------------------------------------


def full_beside_room(build, nofile, *, accept="shared", sibling=300):
    """Worker 0 is full at 0.5 s; 100 clients are reset while worker 1 holds ``sibling``."""
    build.stages(2.0, 2.0)
    build.manifest["target_connections"] = TARGET
    build.manifest["settings"] |= {"accept": accept, "at_fd_limit": "reset"}
    capacity = nofile - 9
    for worker in range(2):
        build.process("server", worker, nofile_soft_count=nofile, own_fds_count=9)
    build.process("client", 0, nofile_soft_count=20_000)
    build.connect(capacity + sibling, until_s=0.5)
    build.connect(100, from_s=0.51, until_s=1.0, stage="handshake", errno=104, close_kind="rst")
    for worker, count in enumerate((capacity, sibling)):
        live(
            build,
            800 + worker,
            until_s=4.0,
            open_count=lambda s, n=count: round(n * min(1, 2 * s)),
            established_total=lambda s, n=count: round(n * min(1, 2 * s)),
        )
    build.add(
        "failing_syscalls",
        at_s=1.0,
        pid=800,
        syscall="accept4",
        errno=24,
        errno_name="EMFILE",
        event_count=100,
        first_s=0.5,
        last_s=1.0,
    )
    build.health("failing_syscalls", "live_samples", "process_samples")
    return summarise(build.frames())


def test_the_spread_is_the_root_where_the_limits_had_been_enough(build):
    summary = full_beside_room(build, 529)
    assert causes(summary) == [
        ("full-worker-on-shared-listener", "binding"),
        ("fd-limit-process", "contributing"),
        ("server-resets-when-full", "contributing"),
    ]
    assert {f.follows_from for f in summary.findings[1:]} == {"full-worker-on-shared-listener"}
    finding = summary.findings[0]
    assert finding.subject.pid == 800
    assert finding.explained_count == 100
    assert finding.value_of("process_connections", "") == 520
    assert finding.value_of("process_connections", "worker 1 (pid 801, server)") == 300
    assert finding.value_of("all_workers_capacity") == 1040
    assert "1,040" in finding.fix[0].effect


def test_the_limit_is_the_root_where_all_together_were_too_few(build):
    summary = full_beside_room(build, 429)
    assert summary.verdict.cause == "fd-limit-process"
    finding = by_cause(summary, "full-worker-on-shared-listener")
    assert (finding.severity, finding.follows_from) == ("contributing", "fd-limit-process")


@pytest.mark.parametrize(("accept", "sibling"), [("reuseport", 300), ("shared", 520)])
def test_own_listeners_and_siblings_without_room_are_another_cause(build, accept, sibling):
    summary = full_beside_room(build, 529, accept=accept, sibling=sibling)
    assert "full-worker-on-shared-listener" not in [f.cause for f in summary.findings]


# -- worker-crash ------------------------------------------------------------------------------


def test_a_killed_worker_is_binding_by_itself(build):
    build.stages(1.0, 3.0)
    build.manifest["target_connections"] = TARGET
    build.process("server", 0, nofile_soft_count=20_000)
    build.process("server", 1, nofile_soft_count=20_000, exited_s=0.5, exit_signal=9)
    build.process("client", 0, nofile_soft_count=20_000)
    build.connect(600)
    build.connect(400, until_s=0.4, stage="closed", closed_s=0.5, errno=104, close_kind="rst")
    live(build, 801, open_count=400)
    summary = summarise(build.frames())
    assert causes(summary) == [("worker-crash", "binding")]
    assert summary.findings[0].value_of("process_connections") == 400


def test_what_a_dead_client_held_was_not_held(build):
    build.stages(1.0, 3.0)
    build.manifest["target_connections"] = TARGET
    build.process("server", 0, nofile_soft_count=20_000)
    build.process("client", 0, nofile_soft_count=20_000, exited_s=2.0, exit_signal=9)
    build.connect(TARGET)
    summary = summarise(build.frames())
    assert causes(summary) == [("worker-crash", "binding")]
    assert summary.verdict.side == "client"


def test_what_a_dead_worker_held_is_told_by_the_next_sample_however_late_it_comes(build):
    """On a crowded host two samples may be seconds apart; the counters outlive the worker."""
    build.stages(1.0, 5.0)
    build.manifest["target_connections"] = TARGET
    build.process("server", 0, nofile_soft_count=20_000)
    build.process("server", 1, nofile_soft_count=20_000, exited_s=0.35, exit_signal=9)
    build.process("client", 0, nofile_soft_count=20_000)
    build.connect(600)
    build.connect(400, until_s=0.3, stage="closed", closed_s=0.34, errno=104, close_kind="rst")
    for at_s, open_count in ((0.01, 8), (3.5, 400), (5.2, 400)):
        build.add("live_samples", at_s=at_s, pid=801, role="server", worker=1, slot=1,
                  open_count=open_count)  # fmt: skip
    summary = summarise(build.frames())
    assert causes(summary) == [("worker-crash", "binding")]
    assert summary.findings[0].value_of("process_connections") == 400


# -- the description of the hot worker -----------------------------------------------------------


def test_the_hot_worker_is_described_with_what_the_others_do(held):
    held.cpu(801, 98, from_s=0.0, until_s=6.0)
    held.cpu(800, 2, from_s=0.0, until_s=6.0)
    for count, stack in ((30, "write_[k];handle_softirqs_[k]"), (70, "write_[k]")):
        held.add(
            "cpu_stacks",
            at_s=3.0,
            pid=801,
            tid=801,
            kernel_stack=stack,
            sample_count=count,
            period_ns=20_408_163,
        )
    hot = summarise(held.frames()).hot_worker
    assert hot is not None
    assert hot["softirq_pct"] == pytest.approx(0.3 * 98, rel=0.01)
    assert hot["kernel_stack"] == "write_[k]"
    assert hot["python_stack"] == ""
    (other,) = hot["others"]
    assert (other["pid"], other["worker"], other["state"]) == (800, 0, "running")
    assert other["cpu_pct"] == pytest.approx(2, rel=0.01)
