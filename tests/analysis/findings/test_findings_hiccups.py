"""A server that stands still for a moment under our own load, on built runs."""

from __future__ import annotations

import pytest

from analysis.server import answer_gaps
from analysis.server.answer_gaps import Gap
from analysis.summary import summarise

SERVER = 800
SINCE_S, UNTIL_S = 1.0, 2.0
STILL = {"worker-blocked", "hot-worker-code"}
PROBES = (
    *("blocked_samples", "process_samples", "live_samples", "python_stacks", "cpu_stacks"),
    "host_counters",
)


def named(summary):
    return [(f.cause, f.severity) for f in summary.findings if f.cause in STILL]


class Hiccup:
    """200 connections, 100 a second, to a server that answers nobody from 1 s to 2 s.

    It takes each at once but for that second, after which it takes those who stand in its queue.
    """

    def __init__(self, build):
        self.build = build
        build.stages(2.0, 4.0)
        build.manifest["target_connections"] = 200
        build.manifest["server"] = {"foreign": True, "command": ["server"], "ports": [9000]}
        build.process("server", 0, nofile_soft_count=20_000)
        build.process("client", 0, nofile_soft_count=20_000)
        build.connect(100, from_s=0.0, until_s=0.99)

    def waiting(self, **values):
        late = {"established_ns": self.build.ns(UNTIL_S), **values}
        for at_s in range(10):
            start_s = SINCE_S + 0.01 + at_s / 20
            self.build.connect(8, from_s=start_s, until_s=start_s + 0.04,
                               connected_ns=self.build.ns(start_s + 0.001), **late)  # fmt: skip
        self.build.connect(20, from_s=UNTIL_S + 0.01, until_s=UNTIL_S + 0.1)

    def takes(self, count_in_gap=100):
        for quarter in range(25):
            at_s = quarter / 4
            count = 100 * min(1.0, at_s) if at_s <= SINCE_S else count_in_gap
            count = 200 if at_s > UNTIL_S else count
            self.build.live(SERVER, at_s, open_count=int(count), established_total=int(count))

    def runs(self, *, still_pct, wait_pct=0.0):
        spans = ((-0.5, SINCE_S, 4.0, 0.0), (SINCE_S, UNTIL_S, still_pct, wait_pct),
                 (UNTIL_S, 6.0, 4.0, 0.0))  # fmt: skip
        for from_s, until_s, pct, waits_pct in spans:
            self.build.cpu(SERVER, pct, from_s=from_s, until_s=until_s, wait_pct=waits_pct)

    def blocked(self, *, state="S", syscall="clock_nanosleep", since_s=SINCE_S, until_s=UNTIL_S):
        for look in range(1, round(10 * (until_s - since_s))):
            lag_s = look / 10
            self.build.add(
                "blocked_samples", at_s=since_s + lag_s, pid=SERVER, lag_ns=round(lag_s * 1e9),
                turn_ns=self.build.ns(since_s), state=state, syscall=syscall, period_ns=100_000_000,
            )  # fmt: skip

    def summary(self):
        self.build.health(*PROBES)
        return summarise(self.build.frames())


@pytest.fixture
def hiccup(build):
    return Hiccup(build)


def test_a_call_in_which_nobody_was_answered_is_named_with_those_who_waited(hiccup):
    hiccup.waiting()
    hiccup.takes()
    hiccup.runs(still_pct=0)
    hiccup.blocked()
    summary = hiccup.summary()
    assert summary.verdict.cause == "reached"
    assert named(summary) == [("worker-blocked", "warning")]
    finding = next(f for f in summary.findings if f.cause == "worker-blocked")
    assert finding.subject.pid == SERVER
    assert finding.value_of("gap_length") == pytest.approx(1.0, abs=0.03)
    assert finding.value_of("gap_waiting") >= 40
    assert finding.value_of("gap_failed") == 0
    assert "no client was answered" in finding.sentence


def test_attempts_that_gave_up_meanwhile_are_explained_by_it(hiccup):
    hiccup.waiting(established_ns=0, closed_s=1.95, stage="handshake", close_kind="timeout",
                   errno=110)  # fmt: skip
    hiccup.takes()
    hiccup.runs(still_pct=0)
    hiccup.blocked()
    summary = hiccup.summary()
    assert named(summary) == [("worker-blocked", "binding")]
    assert summary.findings[0].explained_count == 80


def test_a_core_that_is_full_while_nobody_is_answered_is_code_of_its_own(hiccup):
    hiccup.waiting()
    hiccup.takes()
    hiccup.runs(still_pct=100)
    summary = hiccup.summary()
    assert named(summary) == [("hot-worker-code", "warning")]
    finding = next(f for f in summary.findings if f.cause == "hot-worker-code")
    assert finding.value_of("gap_untaken") >= 40


def test_a_core_that_others_want_as_well_changes_nothing(hiccup):
    hiccup.waiting()
    hiccup.takes()
    hiccup.runs(still_pct=50, wait_pct=50)
    assert named(hiccup.summary()) == [("hot-worker-code", "warning")]


def test_what_no_sample_shows_is_said_to_be_so(hiccup):
    hiccup.waiting()
    hiccup.takes()
    hiccup.runs(still_pct=25)
    summary = hiccup.summary()
    assert named(summary) == [("worker-blocked", "warning")]
    finding = next(f for f in summary.findings if f.cause == "worker-blocked")
    assert finding.confidence == "medium"
    assert "strace" in finding.fix[0].command


def test_a_server_that_had_taken_all_is_not_accused_of_a_client_that_did_not_read(hiccup):
    hiccup.waiting()
    hiccup.takes(count_in_gap=200)
    hiccup.runs(still_pct=25)
    assert named(hiccup.summary()) == []


def test_a_server_that_goes_on_taking_them_is_only_slow(hiccup):
    hiccup.waiting()
    for quarter in range(25):
        count = min(200, 25 * quarter)
        hiccup.build.live(SERVER, quarter / 4, open_count=count, established_total=count)
    hiccup.runs(still_pct=100)
    assert named(hiccup.summary()) == []


def test_a_server_that_waits_for_a_core_does_not_stand_still(hiccup):
    hiccup.waiting()
    hiccup.takes()
    hiccup.runs(still_pct=15, wait_pct=80)
    assert named(hiccup.summary()) == []


@pytest.mark.parametrize(
    ("length_s", "cpu_share", "is_named"),
    [(2.0, 0.05, True), (2.0, 0.11, True), (2.0, 0.01, False), (1.0, 0.11, False)],
)
def test_who_had_a_core_for_long_and_took_nobody_was_not_only_kept_from_one(
    length_s, cpu_share, is_named
):
    """It asks a disk again and again on a crowded host: in none of its states for long."""
    gap = Gap(1.0, 1.0 + length_s, 100, 0)
    seen = answer_gaps.Hiccup(SERVER, gap, cpu_share, 0.2, 0.6, 100, length_s - 0.25)
    assert not seen.is_on_core
    assert not seen.is_off_core
    assert seen.is_elsewhere is is_named


def test_a_moment_that_nobody_noticed_is_worth_knowing_only(hiccup):
    hiccup.build.connect(100, from_s=1.0, until_s=1.9)
    hiccup.takes()
    hiccup.runs(still_pct=4)
    hiccup.blocked(state="T", syscall="epoll_wait", since_s=4.0, until_s=4.7)
    summary = hiccup.summary()
    assert summary.verdict.cause == "reached"
    assert named(summary) == [("worker-blocked", "info")]
    finding = next(f for f in summary.findings if f.cause == "worker-blocked")
    assert "signal_generate" in finding.fix[0].command


def test_a_frozen_group_is_told_from_a_call(hiccup):
    hiccup.waiting()
    hiccup.takes()
    hiccup.runs(still_pct=0)
    hiccup.blocked(syscall="epoll_wait")
    for row in hiccup.build.rows["blocked_samples"]:
        row["wait_channel"] = "do_freezer_trap"
    finding = next(f for f in hiccup.summary().findings if f.cause == "worker-blocked")
    assert "docker unpause" in finding.fix[0].command


@pytest.mark.parametrize(
    ("queue_count", "listeners", "names"), [(0, 2, False), (30, 2, True), (0, 1, True)]
)
def test_who_has_nobody_in_its_own_queue_does_not_stand_still(
    hiccup, queue_count, listeners, names
):
    """SO_REUSEPORT: a sibling is stopped, and has in its queue all that clients may try at once."""
    hiccup.waiting()
    hiccup.takes()
    hiccup.runs(still_pct=1)
    build = hiccup.build
    other = build.process("server", 1)
    for number, pid in enumerate((SERVER, other)):
        inode = 70 + (number if listeners == 2 else 0)
        build.add("listener_owners", at_s=-0.1, pid=pid, socket_inode=inode)
        if number < listeners:
            build.add("listeners", at_s=1.5, local_port=9000, socket_inode=inode,
                      accept_queue_count=queue_count if number == 0 else 60)  # fmt: skip
    pids = {f.subject.pid for f in hiccup.summary().findings if f.cause in STILL}
    assert (SERVER in pids) is names


@pytest.mark.parametrize(("until_s", "says"), [(1.35, "in fsync (the disk) again and again"),
                                               (1.15, "no sample shows")])  # fmt: skip
def test_a_call_that_some_looks_met_is_named_with_less_confidence(hiccup, until_s, says):
    """It syncs a file for each of those that it has taken: most looks fall between two calls."""
    hiccup.waiting()
    hiccup.takes()
    hiccup.runs(still_pct=5, wait_pct=5)
    hiccup.blocked(syscall="fsync", until_s=until_s)
    (finding,) = [f for f in hiccup.summary().findings if f.cause == "worker-blocked"]
    assert says in finding.sentence
    assert finding.confidence == "medium"
