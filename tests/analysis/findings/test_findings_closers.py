"""Who closes, forks for, or forgets its connections: limits of a server's own, on built tables."""

from __future__ import annotations

import pytest

from analysis.summary import summarise
from tests.analysis.findings.test_findings_attached import PORT, watched
from tests.analysis.findings.test_findings_fates import kept_out, named, served, waits
from tests.analysis.findings.test_findings_foreign import accepted, foreign
from tests.analysis.findings.test_findings_workers import block

__all__ = ["foreign", "watched"]  # fixtures


def causes(build):
    return {finding.cause for finding in summarise(build.frames()).findings}


def fates(build, pid, at_s, *, took, closed=0, fate="closed_unread", at_once=None, first_s=1.2):
    build.add("connection_fates", at_s=at_s, pid=pid, fate="accepted", connection_total=took,
              first_s=0.0, last_s=at_s)  # fmt: skip
    if closed:
        build.add("connection_fates", at_s=at_s, pid=pid, fate=fate, connection_total=closed,
                  at_once_total=closed if at_once is None else at_once, first_s=first_s,
                  last_s=at_s)  # fmt: skip


def forks_for_each(build, count):
    """The first process accepts, and forks a child for each connection, which waits for it."""
    for row in build.rows["live_samples"]:
        if row["pid"] == 800:
            row["open_count"] = 0
    pids = []
    for number in range(1, count + 1):
        child = build.process("server", number, start_s=-0.01 * number)
        pids.append(child)
        for quarter in range(1, 20):
            build.live(child, quarter / 4, open_count=1)
        block(build, child, from_s=0.5, until_s=4.0, every_s=0.5, syscall="recvfrom",
              wait_channel="wait_woken", period_ns=500_000_000)  # fmt: skip
    return pids


def test_children_with_a_connection_each_wait_for_their_client(foreign):
    served(foreign, 12)
    forks_for_each(foreign, 12)
    fates(foreign, 800, 2.0, took=12, closed=12)
    foreign.manifest["target_connections"] = 12
    assert causes(foreign) == {"reached"}


@pytest.mark.parametrize(("waits_for", "syscall"), [("other", "wait4"), ("sleep", "nanosleep")])
@pytest.mark.parametrize("kind", ["run", "unseen", "watch"])
def test_who_forks_for_each_and_takes_no_more_has_a_limit_of_its_own(
    request, kind, waits_for, syscall
):
    """ForkingTCPServer of Python waits for a child in wait4, socat in a sleep."""
    build = request.getfixturevalue("watched" if kind == "watch" else "foreign")
    port = 9000
    if kind != "watch":
        served(build, 12)
        kept_out(build, "timeout")
        if kind == "run":
            fates(build, 800, 1.1, took=12, closed=12)
    else:
        port = PORT
        del build.rows["processes"][1]
        build.live(800, 0.25, open_count=0)
    build.rows["processes"][0]["role"] = "acceptor"
    for row in build.rows["live_samples"]:
        if row["pid"] == 800:
            row["role"] = "acceptor"
    forks_for_each(build, 12)
    for at_s in (2.0, 2.5, 3.0):
        build.add("open_fates", at_s=at_s, pid=0, local_port=port, fate="unaccepted",
                  socket_count=40)  # fmt: skip
        build.add("thread_waits", at_s=at_s, pid=800, thread_name="app", is_main=True,
                  syscall=syscall, waits_for=waits_for, thread_count=1)  # fmt: skip
    for row in build.rows["processes"]:
        if row["role"] != "client":  # a child inherits the listener
            build.add("listener_owners", at_s=0.1, pid=row["pid"], socket_inode=7)
    build.add("listeners", at_s=0.1, local_port=port, socket_inode=7, backlog_count=100)
    finding = named(build, "own-limit")
    assert (finding.subject.pid, finding.value_of("let_in")) == (800, 12)
    assert summarise(build.frames()).verdict.cause == "own-limit"


def test_a_child_that_somebody_stopped_is_told_all_the_same(foreign):
    served(foreign, 12)
    pids = forks_for_each(foreign, 12)
    fates(foreign, 800, 2.0, took=12, closed=12)
    for row in foreign.rows["blocked_samples"]:
        if row["pid"] == pids[3]:
            row["state"] = "T"
    finding = named(foreign, "worker-blocked")
    assert finding.subject.pid == pids[3]


def test_of_workers_that_have_many_each_one_that_has_one_may_stand_still(foreign):
    """A node cluster: the first process accepts for all."""
    served(foreign, 60)
    pids = forks_for_each(foreign, 6)
    for row in foreign.rows["live_samples"]:
        if row["pid"] in pids[1:]:
            row["open_count"] = 12
    fates(foreign, 800, 2.0, took=60, closed=60)
    assert {f.subject.pid for f in summarise(foreign.frames()).findings} >= {pids[0]}


@pytest.mark.parametrize("is_one_each", [True, False])
def test_who_forks_up_to_a_number_closes_the_others_itself(foreign, is_one_each):
    served(foreign, 12)
    pids = forks_for_each(foreign, 12)
    kept_out(foreign, "rst", errno=104)
    fates(foreign, 800, 2.0, took=52, closed=52)
    if not is_one_each:  # one of them may have closed what it got
        foreign.live(pids[0], 3.0, open_count=2)
    found = [f for f in summarise(foreign.frames()).findings if f.cause == "own-limit"]
    assert bool(found) is is_one_each
    if found:
        (finding,) = found
        assert finding.subject.pid == 800
        assert (finding.value_of("let_in"), finding.value_of("closed_at_once")) == (12, 40)


@pytest.mark.parametrize(("kept", "is_limit"), [(0, True), (20, False)])
def test_each_of_several_workers_is_judged_by_those_that_came_to_it(foreign, kept, is_limit):
    """One is full while its sibling goes on to let clients in."""
    served(foreign)
    second = foreign.process("server", 1)
    foreign.connect(30, from_s=1.2, until_s=2.4)  # to the second
    kept_out(foreign, "rst", errno=104)
    for pid in (800, second):
        foreign.live(pid, 1.0, open_count=30)
        foreign.live(pid, 3.0, open_count=30)
    fates(foreign, 800, 1.3, took=32, closed=2)
    fates(foreign, 800, 2.5, took=72 + kept, closed=40)
    fates(foreign, second, 2.5, took=60)
    found = [f for f in summarise(foreign.frames()).findings if f.cause == "own-limit"]
    assert bool(found) is is_limit
    for finding in found:
        assert finding.subject.pid == 800
        assert finding.value_of("attempts_after") == 40
        assert finding.value_of("attempts_after_let_in") == 2


@pytest.mark.parametrize(("url", "is_limit"), [("wss://h:1/", True), ("ws://h:1/", False)])
def test_what_a_client_of_tls_is_answered_first_lets_nobody_in(foreign, url, is_limit):
    foreign.manifest["server"]["url"] = url
    served(foreign)
    kept_out(foreign, "eof")
    fates(foreign, 800, 2.0, took=100, closed=40, fate="closed_answered", at_once=0)
    found = [f for f in summarise(foreign.frames()).findings if f.cause == "own-limit"]
    assert bool(found) is is_limit
    if found:
        assert (found[0].value_of("let_in"), found[0].value_of("closed_at_once")) == (60, 40)


def test_connections_that_were_open_and_lost_are_no_handshakes_of_tls(foreign):
    foreign.manifest["server"]["url"] = "wss://h:1/"
    served(foreign)
    foreign.connect(40, stage="closed", closed_s=3.0, close_kind="eof")
    fates(foreign, 800, 3.5, took=100, closed=40, fate="closed_answered", at_once=0)
    assert causes(foreign) == {"closed-by-server"}


@pytest.mark.parametrize("what", ["emfile", "ended", "fine"])
def test_a_proxy_that_has_nobody_to_ask_has_no_limit_of_its_own(foreign, what):
    served(foreign)
    kept_out(foreign, "rst", errno=104)
    fates(foreign, 800, 2.0, took=100, closed=40)
    ended = {"exited_s": 1.1, "exit_status": 1} if what == "ended" else {}
    backend = foreign.process("backend", 1, **ended)
    foreign.live(backend, 1.0, open_count=60)
    if what == "emfile":
        foreign.add("failing_syscalls", at_s=2.0, pid=backend, syscall="accept4", errno=24,
                    errno_name="EMFILE", event_count=1, first_s=1.1, last_s=1.1)  # fmt: skip
    assert ("own-limit" in causes(foreign)) is (what == "fine")


def left_in_queue(build, *, last_accept_s):
    build.add("connection_fates", at_s=3.0, pid=800, fate="accepted", connection_total=60,
              first_s=0.0, last_s=last_accept_s)  # fmt: skip
    for at_s in (2.0, 2.5, 3.0):
        build.add("open_fates", at_s=at_s, pid=0, local_port=9000, fate="unaccepted",
                  socket_count=40)  # fmt: skip
        build.add("thread_waits", at_s=at_s, pid=800, thread_name="app", is_main=True,
                  syscall="epoll_wait", waits_for="event_loop", thread_count=1)  # fmt: skip


@pytest.mark.parametrize(("last_accept_s", "confidence"), [(1.6, "medium"), (1.1, "high")])
def test_who_accepts_as_long_as_clients_come_may_have_left_some(foreign, last_accept_s, confidence):
    """One accept for each event of a listener with EPOLLET: the others wait for the next event."""
    served(foreign)
    kept_out(foreign, "timeout")  # the last of them came at 1.6 s
    left_in_queue(foreign, last_accept_s=last_accept_s)
    finding = named(foreign, "own-limit")
    assert finding.confidence == confidence
    assert ("EAGAIN" in finding.fix[0].command) is (confidence == "medium")


@pytest.mark.parametrize(("quiet", "is_limit"), [(40, True), (0, False)])
def test_one_look_is_enough_where_the_kernel_says_how_long_they_stood(foreign, quiet, is_limit):
    """On a host that is busy there may be no second look."""
    served(foreign)
    kept_out(foreign, "timeout")
    foreign.add("connection_fates", at_s=3.0, pid=800, fate="accepted", connection_total=60,
                first_s=0.0, last_s=1.1)  # fmt: skip
    foreign.add("open_fates", at_s=3.0, pid=0, local_port=9000, fate="unaccepted",
                socket_count=40, quiet_count=quiet)  # fmt: skip
    assert ("own-limit" in causes(foreign)) is is_limit


def test_who_took_some_slowly_and_then_nobody_has_a_limit_all_the_same(foreign):
    served(foreign)
    kept_out(foreign, "timeout")
    foreign.add("connection_fates", at_s=5.0, pid=800, fate="accepted", connection_total=60,
                first_s=0.0, last_s=1.2)  # fmt: skip
    for at_s in (0.2, 0.7, 1.3, 2.0, 2.5, 3.0):
        foreign.add("open_fates", at_s=at_s, pid=0, local_port=9000, fate="unaccepted",
                    socket_count=40, quiet_count=20)  # fmt: skip
        foreign.add("thread_waits", at_s=at_s, pid=800, thread_name="app", is_main=True,
                    syscall="epoll_wait", waits_for="event_loop", thread_count=1)  # fmt: skip
    assert named(foreign, "own-limit").value_of("let_in") == 60
    assert "queue-left-standing" not in causes(foreign)


def test_a_thread_that_accepted_until_its_heap_was_full_closed_no_listener_by_itself(foreign):
    served(foreign)
    kept_out(foreign, "refused", errno=111)
    foreign.add("server_words", at_s=3.0, first_s=3.0, pid=800, source="server.log", event_count=1,
                line="java.lang.OutOfMemoryError: Java heap space")  # fmt: skip
    assert "own-limit" not in causes(foreign)
    assert summarise(foreign.frames()).verdict.cause == "runtime-heap-limit"


@pytest.mark.parametrize(("signal", "origin"), [(6, "worker-blocked"), (11, "")])
def test_who_stood_still_until_somebody_ended_it_crashed_of_that(foreign, signal, origin):
    """A watchdog aborts what does not answer; a fault of its own comes from no sleep."""
    accepted(foreign, 60)
    foreign.connect(60, stage="closed", close_kind="eof", closed_s=3.0)
    block(foreign, 800, from_s=1.0, until_s=2.9, syscall="clock_nanosleep",
          wait_channel="hrtimer_nanosleep")  # fmt: skip
    foreign.cpu(800, 1.0, from_s=-0.5, until_s=3.0)
    foreign.rows["processes"][0] |= {"exited_ns": foreign.ns(3.0), "exit_signal": signal}
    found = {f.cause: f for f in summarise(foreign.frames()).findings}
    assert found["worker-crash"].follows_from == origin
    assert found["worker-blocked" if origin else "worker-crash"].severity == "binding"


def test_workers_that_serve_one_connection_each_are_short_of_threads(foreign):
    """gunicorn's sync worker: its thread rests in a lock of the library until the client speaks."""
    foreign.process("server", 1)
    foreign.connect(2)
    kept_out(foreign, "timeout", closed_s=4.0)
    for pid in (800, 801):
        foreign.add("connection_fates", at_s=2.0, pid=pid, fate="accepted", connection_total=1,
                    first_s=0.0, last_s=0.1)  # fmt: skip
        foreign.add("listener_owners", at_s=0.0, pid=pid, socket_inode=7)
        for quarter in range(16):
            foreign.live(pid, quarter / 4, open_count=1)
        block(foreign, pid, from_s=0.3, until_s=3.9, syscall="futex", wait_channel="futex_wait")
        foreign.cpu(pid, 1.0, from_s=-0.5, until_s=4.0)
    foreign.add("listeners", at_s=0.0, local_port=9000, socket_inode=7, backlog_count=511)
    for at_s in (1.7, 2.2, 2.7):
        foreign.add("open_fates", at_s=at_s, pid=0, local_port=9000, fate="unaccepted",
                    socket_count=40, quiet_count=20)  # fmt: skip
        for pid in (800, 801):
            foreign.add("thread_waits", at_s=at_s, pid=pid, thread_name="gunicorn", is_main=True,
                        syscall="futex", waits_for="lock", thread_count=1)  # fmt: skip
    found = [f for f in summarise(foreign.frames()).findings if f.severity != "info"]
    assert {(f.cause, f.subject.pid) for f in found} == {("waits-for-slot", p) for p in (800, 801)}


def test_a_number_that_is_found_is_believed_also_when_nobody_came_later(foreign):
    foreign.manifest["server"]["processes"][0]["settings"] = [
        {"name": "max", "value": 60, "file": "", "line": 0, "text": ""}
    ]
    served(foreign)
    kept_out(foreign, "timeout")
    left_in_queue(foreign, last_accept_s=1.6)
    finding = named(foreign, "own-limit")
    assert finding.confidence == "high"
    assert finding.fix[0].command.startswith("--max=")


def test_of_a_watched_server_that_had_stopped_before_what_it_holds_counts(watched):
    for quarter in range(25):
        watched.live(800, quarter / 4, open_count=200, established_total=200)
    for at_s in (2.0, 3.0, 4.0, 5.0):
        watched.add("listeners", at_s=at_s, local_port=PORT, socket_inode=7, backlog_count=100,
                    accept_queue_count=101)  # fmt: skip
        watched.add("open_fates", at_s=at_s, pid=0, local_port=PORT, fate="unaccepted",
                    socket_count=101)  # fmt: skip
        watched.add("thread_waits", at_s=at_s, pid=800, thread_name="app", is_main=True,
                    syscall="epoll_wait", waits_for="event_loop", thread_count=1)  # fmt: skip
    watched.add("listener_owners", at_s=0.1, pid=800, socket_inode=7)
    summary = summarise(watched.frames())
    assert summary.verdict.cause == "own-limit"
    (finding,) = [f for f in summary.findings if f.cause == "own-limit"]
    assert (finding.value_of("let_in"), finding.first_s) == (200, 0.0)


@pytest.mark.parametrize(("has_backend", "let_in"), [(True, 255), (False, 510)])
def test_of_a_watched_proxy_half_of_its_sockets_are_its_clients(watched, has_backend, let_in):
    for quarter in range(25):
        watched.live(800, quarter / 4, open_count=510, established_total=510)
    if has_backend:
        watched.live(watched.process("backend", 2), 1.0, open_count=255)
    fates(watched, 800, 1.5, took=20, closed=20)
    fates(watched, 800, 5.5, took=90, closed=90)
    finding = named(watched, "own-limit")
    assert finding.value_of("let_in") == let_in


@pytest.mark.parametrize(("lag_ms", "cpu_pct", "is_blocked"), [
    (30, 65, False), (30, 5, True), (400, 65, True),
])  # fmt: skip
def test_a_first_thread_that_waits_for_threads_that_work_stands_not_still(
    foreign, lag_ms, cpu_pct, is_blocked
):
    """stunnel in a burst of handshakes: its threads compute, the first one waits for a lock."""
    accepted(foreign, 60)
    foreign.connect(60)
    kept_out(foreign, "timeout")
    foreign.cpu(800, cpu_pct, until_s=5.0)
    block(foreign, 800, from_s=0.5, until_s=2.5, syscall="futex", wait_channel="futex_do_wait")
    for row in foreign.rows["blocked_samples"]:
        row["lag_ns"] = lag_ms * 10**6
    assert ("worker-blocked" in causes(foreign)) is is_blocked


def full_of_descriptors(build, *, soft=400, own=20):
    accepted(build, 300)
    build.connect(380)
    build.connect(40, from_s=2.2, until_s=2.6, stage="handshake", close_kind="rst", errno=104)
    build.add("failing_syscalls", at_s=3.0, pid=800, syscall="accept4", errno=24,
              errno_name="EMFILE", event_count=40, first_s=2.1, last_s=2.6)  # fmt: skip


@pytest.mark.parametrize(("left", "is_leak"), [
    ((90, 150), True),
    ((0, 150), False),  # a moment in which many left
    ((150, 90), False),  # it was late, and closes them
    ((30, 50), False),  # a few that nobody misses
])  # fmt: skip
def test_sockets_that_clients_left_are_closed_and_not_made_room_for(foreign, left, is_leak):
    full_of_descriptors(foreign)
    for at_s, count in zip((0.5, 1.5), left, strict=True):
        for state, sockets in (("ESTABLISHED", 300), ("CLOSE_WAIT", count)):
            foreign.add("tcp_states", at_s=at_s, side="server", state=state, socket_count=sockets)
    summary = summarise(foreign.frames())
    (finding,) = [f for f in summary.findings if f.cause == "fd-limit-process"]
    assert ("close each socket" in finding.fix[0].command) is is_leak
    assert ("CLOSE_WAIT" in finding.sentence) is is_leak
    assert ("raise it with close" in summary.verdict.sentence) is False


@pytest.mark.parametrize(("own", "is_shared_out"), [(683, True), (60, False)])
def test_pipes_that_a_relay_opens_for_each_connection_are_not_its_own(foreign, own, is_shared_out):
    """Go's relay: two sockets and four pipes for each; a pool that opens once is its own."""
    process = foreign.rows["processes"][0]
    process |= {"nofile_soft_count": 1024, "own_fds_count": own}
    foreign.connect(170)
    for quarter in range(20):
        foreign.live(800, quarter / 4, open_count=340)
    foreign.cpu(800, 5, from_s=-1.0, until_s=0.0, fd_count=7)
    foreign.add("failing_syscalls", at_s=3.0, pid=800, syscall="accept4", errno=24,
                errno_name="EMFILE", event_count=40, first_s=2.1, last_s=2.6)  # fmt: skip
    foreign.connect(40, from_s=2.2, until_s=2.6, stage="handshake", close_kind="rst", errno=104)
    finding = named(foreign, "fd-limit-process")
    assert finding.value_of("descriptors_own") == (7 if is_shared_out else own)


@pytest.mark.parametrize(("text", "fix"), [
    ("POOL = 40", "instead of 40 in /srv/a.rb:2"),
    ("", "give it "),
])  # fmt: skip
def test_threads_are_wanted_of_each_process_that_is_short_of_them(foreign, text, fix):
    foreign.manifest["target_connections"] = 500
    settings = [{"name": "", "value": 40, "file": "/srv/a.rb", "line": 2, "text": text}]
    foreign.manifest["server"]["processes"] = [
        {"pid": 800 + n, "worker": n, "command": "ruby a.rb", "settings": settings if text else []}
        for n in range(2)
    ]
    served(foreign, 80)
    second = foreign.process("server", 1)
    kept_out(foreign, "timeout")
    for pid in (800, second):
        waits(foreign, ("app", True, "accept4", "event_loop", 1),
              ("app", False, "read", "own_connection", 40), pid=pid, unread=30, unanswered=0,
              answered=40)  # fmt: skip
    found = [f for f in summarise(foreign.frames()).findings if f.cause == "waits-for-slot"]
    assert len(found) == 2
    assert {f.value_of("served_together") for f in found} == {80}
    assert all(fix in f.fix[0].command and "500" not in f.fix[0].command for f in found)


@pytest.mark.parametrize(
    ("closed", "began_s", "confidence"), [(12, 1.1, "high"), (60, 1.1, "low"), (12, -0.9, "low")]
)
def test_a_watched_server_that_forks_may_have_turned_others_away(
    watched, closed, began_s, confidence
):
    """Of 12 that it closed at once 12 children went on to serve them, if they began meanwhile."""
    acceptor = watched.process("acceptor", 0)
    children = [watched.process("server", number, start_s=began_s) for number in range(2, 14)]
    for pid in children:
        for quarter in range(25):
            watched.live(pid, quarter / 4, open_count=1, established_total=1)
    watched.live(acceptor, 1.0, open_count=0)
    fates(watched, acceptor, 5.0, took=closed, closed=closed)
    finding = named(watched, "no-limit-met")
    assert finding.confidence == confidence


@pytest.mark.parametrize(("text", "more"), [("limit_conn perip 60;", True), ("max 60", False)])
def test_a_limit_on_one_address_is_told_to_who_has_more(foreign, text, more):
    line = {"name": "perip", "value": 60, "file": "/etc/nginx.conf", "line": 5, "text": text}
    foreign.manifest["server"]["processes"][0]["settings"] = [line]
    served(foreign)
    kept_out(foreign, "rst", errno=104)
    fates(foreign, 800, 2.0, took=100, closed=40)
    finding = named(foreign, "own-limit")
    assert any("--source-addresses 2" in fix.command for fix in finding.fix) is more


@pytest.mark.parametrize(("kind", "severity"), [("rst", "info"), ("timeout", "warning")])
def test_a_first_thread_that_is_held_up_for_moments_is_worth_knowing(foreign, kind, severity):
    """Nobody waited in vain for it: those that failed were turned away by somebody else."""
    accepted(foreign, 60)
    foreign.connect(60)
    kept_out(foreign, kind)
    foreign.cpu(800, 20, until_s=5.0)
    block(foreign, 800, from_s=0.5, until_s=2.5, syscall="futex", wait_channel="futex_do_wait")
    for row in foreign.rows["blocked_samples"]:
        row["lag_ns"] = 30_000_000
    found = {f.cause: f for f in summarise(foreign.frames()).findings}
    assert (found["worker-blocked"].severity == "info") is (severity == "info")


@pytest.mark.parametrize(("role", "wait_pct", "cpu_pct", "is_named"), [
    ("backend", None, 0, False),  # of a process with many threads the waits are not read
    ("backend", 1, 1, False),
    ("backend", 60, 1, True),  # it would accept if it had a core
    ("server", 1, 1, True),  # the busy one may be who keeps clients out
])  # fmt: skip
def test_beside_neighbours_who_keeps_clients_out_counts(foreign, role, wait_pct, cpu_pct, is_named):
    """A proxy that ends TLS wants a core; who works behind it let in 60 and is idle."""
    served(foreign)
    kept_out(foreign, "timeout", closed_s=4.0, errno=110)
    behind = foreign.process(role, 1)
    foreign.live(behind, 1.0, open_count=60)
    foreign.add("connection_fates", at_s=3.0, pid=behind, fate="accepted", connection_total=60,
                first_s=0.0, last_s=1.0)  # fmt: skip
    foreign.add("connection_fates", at_s=3.0, pid=800, fate="accepted", connection_total=100,
                first_s=0.0, last_s=1.6)  # fmt: skip
    row = {"local_port": 9100 if role == "backend" else 9000, "socket_inode": 7}
    foreign.add("listeners", at_s=0.5, **row, backlog_count=128)
    foreign.add("listener_owners", at_s=0.5, pid=behind, socket_inode=7)
    for at_s in (1.5, 2.0, 2.5, 3.0):
        foreign.add("open_fates", at_s=at_s, pid=0, local_port=row["local_port"],
                    fate="unaccepted", socket_count=40)  # fmt: skip
        foreign.add("thread_waits", at_s=at_s, pid=behind, thread_name="app", is_main=True,
                    syscall="epoll_wait", waits_for="event_loop", thread_count=1)  # fmt: skip
    foreign.cpu(behind, cpu_pct, until_s=5.0, wait_pct=wait_pct)
    foreign.cpu(800, 20, until_s=5.0, wait_pct=30)
    foreign.host_cpu(99, from_s=-0.5, until_s=5.0)
    found = causes(foreign)
    assert "own-limit" in found
    assert ("host-cpu-saturated" in found) is is_named


@pytest.mark.parametrize("listeners", [1, 2])
def test_workers_that_stopped_at_a_number_each_are_told_with_it(foreign, listeners):
    """One listener that all have left, or one for each (SO_REUSEPORT): its own queue stands."""
    foreign.manifest["target_connections"] = 200
    settings = [{"name": "", "value": 30, "file": "/srv/a.py", "line": 3, "text": "EACH = 30"}]
    foreign.manifest["server"] |= {
        "ports": [9000],
        "processes": [
            {"pid": 800 + n, "worker": n, "command": "python3 a.py", "settings": settings}
            for n in range(2)
        ],
    }
    served(foreign)
    kept_out(foreign, "timeout", closed_s=4.0, errno=110)
    second = foreign.process("server", 1)
    foreign.live(second, 1.0, open_count=30)
    for number, pid in enumerate((800, second)):
        inode = 70 + number if listeners == 2 else 70
        foreign.add("listener_owners", at_s=0.5, pid=pid, socket_inode=inode)
        foreign.add("connection_fates", at_s=3.0, pid=pid, fate="accepted", connection_total=30,
                    first_s=0.0, last_s=0.9 + 0.2 * number)  # fmt: skip
        foreign.cpu(pid, 1, until_s=5.0)
    for at_s in (1.5, 2.0, 2.5, 3.0):
        foreign.add("open_fates", at_s=at_s, pid=0, local_port=9000, fate="unaccepted",
                    socket_count=40)  # fmt: skip
        for number in range(listeners):
            foreign.add("listeners", at_s=at_s, local_port=9000, socket_inode=70 + number,
                        backlog_count=128, accept_queue_count=40 // listeners)  # fmt: skip
        for pid in (800, second):
            foreign.add("thread_waits", at_s=at_s, pid=pid, thread_name="app", is_main=True,
                        syscall="epoll_wait", waits_for="event_loop", thread_count=1)  # fmt: skip
    found = [f for f in summarise(foreign.frames()).findings if f.cause == "own-limit"]
    assert {f.subject.pid for f in found} == ({800, second} if listeners == 2 else {800})
    assert all(f.value_of("let_in") == 30 for f in found)
    assert all("instead of 30 in /srv/a.py:3" in f.fix[0].command for f in found)
    if listeners == 1:
        assert "60 together with 1 other" in found[0].sentence
        assert found[0].fix[0].command.startswith("110 instead"), "for its half of 200"


@pytest.mark.parametrize("is_asleep", [True, False])
def test_a_worker_that_sleeps_on_its_own_listener_has_no_limit(foreign, is_asleep):
    served(foreign)
    kept_out(foreign, "timeout", closed_s=4.0, errno=110)
    second = foreign.process("server", 1)
    foreign.live(second, 1.0, open_count=30)
    for number, pid in enumerate((800, second)):
        foreign.add("listener_owners", at_s=0.5, pid=pid, socket_inode=70 + number)
        foreign.add("connection_fates", at_s=3.0, pid=pid, fate="accepted", connection_total=30,
                    first_s=0.0, last_s=0.9)  # fmt: skip
    kind = ("clock_nanosleep", "sleep") if is_asleep else ("epoll_wait", "event_loop")
    for at_s in (1.5, 2.0, 2.5, 3.0):
        foreign.add("open_fates", at_s=at_s, pid=0, local_port=9000, fate="unaccepted",
                    socket_count=40)  # fmt: skip
        for number in range(2):
            foreign.add("listeners", at_s=at_s, local_port=9000, socket_inode=70 + number,
                        backlog_count=128, accept_queue_count=40 * number)  # fmt: skip
        foreign.add("thread_waits", at_s=at_s, pid=second, thread_name="app", is_main=True,
                    syscall=kind[0], waits_for=kind[1], thread_count=1)  # fmt: skip
    if is_asleep:
        block(foreign, second, from_s=1.0, until_s=4.0)
    found = {(f.cause, f.subject.pid) for f in summarise(foreign.frames()).findings}
    assert ("worker-blocked" if is_asleep else "own-limit", second) in found
    assert (("own-limit", second) in found) is not is_asleep
