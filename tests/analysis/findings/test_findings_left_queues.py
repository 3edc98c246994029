"""What a server leaves: connections in its queue, and sockets whose clients have gone."""

from __future__ import annotations

import pytest

from analysis.summary import summarise
from tests.analysis.findings.test_findings_attached import PORT, hold, idle, watched
from tests.analysis.findings.test_findings_fates import named
from tests.analysis.findings.test_findings_foreign import accepted, foreign

__all__ = ["foreign", "watched"]  # fixtures


def stand(build, *counts, port=PORT, quiet=None, watch="edge", pid=800, waits_for="event_loop",
          syscall="epoll_wait", table="listener_watches"):  # fmt: skip
    """A queue at looks a second apart, with a first thread that waits."""
    build.add("listener_owners", at_s=0.1, pid=pid, socket_inode=7)
    build.add("listeners", at_s=0.1, local_port=port, socket_inode=7, backlog_count=1024)
    for at_s, count in enumerate(counts, 2):
        build.add("open_fates", at_s=at_s, pid=0, local_port=port, fate="unaccepted",
                  socket_count=count, quiet_count=count if quiet is None else quiet)  # fmt: skip
        build.add("thread_waits", at_s=at_s, pid=pid, thread_name="app", is_main=True,
                  syscall=syscall, waits_for=waits_for, thread_count=1)  # fmt: skip
        if watch:
            build.add(table, at_s=at_s, pid=pid, socket_inode=7, local_port=port, watch=watch)


def causes(build):
    return {finding.cause for finding in summarise(build.frames()).findings}


def test_a_watched_server_that_is_told_once_leaves_some_in_its_queue(watched):
    hold(watched, 0, 50, 60, 70, 80)
    stand(watched, 20, 30, 40, 50)
    summary = summarise(watched.frames())
    finding = named(watched, "queue-left-standing")
    assert summary.verdict.cause == "queue-left-standing"
    assert (finding.subject.pid, finding.confidence) == (800, "high")
    assert finding.value_of("standing_queue") == 50
    assert finding.value_of("taken_meanwhile") > 0
    assert "EPOLLET" in finding.sentence
    assert "EAGAIN" in finding.fix[0].command


def test_one_that_is_told_once_needs_nobody_to_come_meanwhile(watched):
    idle(watched)
    stand(watched, 40, 40, 40)
    finding = named(watched, "queue-left-standing")
    assert finding.value_of("taken_meanwhile") == 0
    assert "own-limit" not in causes(watched)


def test_who_takes_nobody_although_some_come_has_a_limit_of_its_own(watched):
    idle(watched)
    stand(watched, 20, 30, 40)
    assert "queue-left-standing" not in causes(watched)


@pytest.mark.parametrize("watch", ["level", ""])
def test_one_that_paces_itself_is_named_with_less_confidence(watched, watch):
    hold(watched, 0, 50, 60, 70, 80)
    stand(watched, 20, 30, 40, 50, watch=watch)
    finding = named(watched, "queue-left-standing")
    assert finding.confidence == "medium"
    assert "EPOLLET" not in finding.sentence


@pytest.mark.parametrize("what", ["new", "once", "few", "busy", "elsewhere"])
def test_a_queue_that_moves_or_whose_owner_works_is_none(watched, what):
    hold(watched, 0, 50, 60, 70, 80, cpu_pct=97.0 if what == "busy" else 3.0)
    counts = {"once": (50,), "few": (3, 4, 4, 4)}.get(what, (20, 30, 40, 50))
    elsewhere = {"waits_for": "sleep", "syscall": "clock_nanosleep"}
    stand(watched, *counts, quiet=0 if what == "new" else None,
          **(elsewhere if what == "elsewhere" else {}))  # fmt: skip
    assert "queue-left-standing" not in causes(watched)


@pytest.mark.parametrize("watch", ["edge", "off"])
def test_who_takes_one_for_each_that_leaves_has_a_limit_of_its_own(watched, watch):
    idle(watched)
    for row in watched.rows["live_samples"]:
        row["established_total"] += (row["at_ns"] - watched.ns(0)) // 1_000_000_000
    watched.add("connection_fates", at_s=4.0, pid=800, fate="accepted", connection_total=104,
                first_s=0.0, last_s=3.5)  # fmt: skip
    stand(watched, 20, 30, 40, 50, watch=watch)
    finding = named(watched, "own-limit")
    assert "queue-left-standing" not in causes(watched)
    assert finding.subject.pid == 800


def test_who_has_no_descriptor_left_does_not_pace_itself(watched):
    """A runtime that sleeps between two tries to accept takes one whenever a client leaves."""
    hold(watched, 0, 50, 60, 70, 80)
    stand(watched, 20, 30, 40, 50)
    watched.add("failing_syscalls", at_s=4.0, pid=800, syscall="accept4", errno=24,
                errno_name="EMFILE", event_count=40, first_s=2.0, last_s=3.9)  # fmt: skip
    assert "queue-left-standing" not in causes(watched)


def test_of_an_older_recording_nothing_is_known_of_how_long_they_stood(watched):
    hold(watched, 0, 50, 60, 70, 80)
    stand(watched, 20, 30, 40, 50, quiet=-1)
    assert "queue-left-standing" not in causes(watched)


@pytest.mark.parametrize("is_watched", [True, False])
def test_under_clients_of_ours_what_came_together_and_stayed_is_no_limit(foreign, is_watched):
    """Without root nobody sees who accepts: clients know when the last of them got in."""
    foreign.connect(100, stage="open", from_s=0.0, until_s=0.01)
    accepted(foreign, 100)
    foreign.connect(40, stage="handshake", close_kind="timeout", from_s=0.01, until_s=0.02,
                    closed_s=4.9)  # fmt: skip
    if is_watched:
        foreign.add("connection_fates", at_s=4.0, pid=800, fate="accepted", connection_total=100,
                    first_s=0.0, last_s=0.02)  # fmt: skip
    stand(foreign, 40, 40, 40, port=9000)
    assert named(foreign, "queue-left-standing").severity == "binding"
    assert "own-limit" not in causes(foreign)


@pytest.mark.parametrize(("count", "confidence"), [(40, "low"), (4, "high")])
def test_nothing_was_met_is_not_believed_of_a_server_whose_queue_stands(watched, count, confidence):
    """More sockets than are looked at one by one: only the length of the queue is known."""
    idle(watched)
    for at_s in (1.0, 5.9):
        watched.add("listeners", at_s=at_s, local_port=PORT, socket_inode=7, backlog_count=1024,
                    accept_queue_count=count)  # fmt: skip
    verdict = summarise(watched.frames()).verdict
    assert (verdict.cause, verdict.confidence) == ("no-limit-met", confidence)


def leaves(build, *counts, pid=800, socket_count=400):
    for at_s, count in enumerate(counts, 1):
        build.add("open_fates", at_s=at_s, pid=pid, local_port=PORT, fate="answered",
                  socket_count=socket_count, left_count=count)  # fmt: skip


def test_sockets_that_clients_have_left_are_told_before_the_limit_is_met(watched):
    idle(watched)
    leaves(watched, 40, 65, 90, 115)
    summary = summarise(watched.frames())
    finding = named(watched, "sockets-left-open")
    assert summary.verdict.cause == "sockets-left-open"
    assert (finding.subject.pid, finding.confidence) == (800, "high")
    assert finding.value_of("left_sockets") == 115
    assert finding.value_of("left_growth") == 25
    # 1,009 descriptors less 16 of its own and 100 that are open, at 25 a second
    assert finding.value_of("time_to_wall") == pytest.approx((1009 - 16 - 100) / 25)


@pytest.mark.parametrize(
    ("counts", "socket_count"),
    [
        ((40, 65), 400),  # two looks
        ((40, 65, 65, 90), 400),  # they do not grow
        ((90, 65, 40), 400),  # they go
        ((4, 8, 12), 400),  # few
        ((40, 65, 90), 4_000),  # of many
        ((-1, -1, -1), 400),  # an older recording
    ],
)
def test_clients_that_have_just_left_are_no_leak(watched, counts, socket_count):
    idle(watched)
    leaves(watched, *counts, socket_count=socket_count)
    assert "sockets-left-open" not in causes(watched)


def test_clients_that_left_since_nobody_served_them_follow_from_that(watched):
    idle(watched)
    leaves(watched, 40, 65, 90, 115)
    stand(watched, 20, 30, 40, watch="off")
    finding = named(watched, "sockets-left-open")
    assert summarise(watched.frames()).verdict.cause == "own-limit"
    assert finding.follows_from == "own-limit"
