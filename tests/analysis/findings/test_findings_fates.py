"""Limits of a server's own, waits, and what works behind it, on built tables."""

from __future__ import annotations

import pytest

from analysis.frames.run_view import RunView
from analysis.server.fates import served_by_children
from analysis.server.own_limits import name_limit
from analysis.server.own_timeouts import name_timeout
from analysis.summary import summarise
from tests.analysis.findings.test_findings_foreign import accepted, foreign
from tests.analysis.findings.test_findings_workers import block

__all__ = ["foreign"]  # a fixture


def named(build, cause):
    (finding,) = [f for f in summarise(build.frames()).findings if f.cause == cause]
    return finding


def served(build, count=60):
    accepted(build, count)
    build.connect(count)


def kept_out(build, kind, **values):
    build.connect(40, from_s=1.2, until_s=1.6, stage="handshake", close_kind=kind, **values)


def test_who_closes_the_others_at_once_has_a_limit_of_its_own(foreign):
    served(foreign)
    kept_out(foreign, "rst", errno=104)
    total = {"pid": 800, "at_s": 2.0, "last_s": 1.6}
    foreign.add("connection_fates", **total, fate="accepted", connection_total=100, first_s=0.0)
    foreign.add("connection_fates", **total, fate="closed_unread", connection_total=40,
                at_once_total=40, first_s=1.2)  # fmt: skip
    finding = named(foreign, "own-limit")
    assert finding.subject.pid == 800
    assert (finding.value_of("let_in"), finding.value_of("closed_at_once")) == (60, 40)
    assert finding.value_of("attempts_after_let_in") == 0


@pytest.mark.parametrize(
    ("closed_s", "is_limit"), [(1.65, True), (2.4, False)], ids=["at once", "later"]
)
def test_who_closes_at_once_is_told_by_clients_where_nobody_watched_it(foreign, closed_s, is_limit):
    foreign.connect(60)
    for quarter in range(12):
        foreign.live(800, quarter / 4, open_count=60)
    foreign.connect(40, from_s=1.5, until_s=1.6, stage="handshake", close_kind="rst", errno=104,
                    closed_s=closed_s)  # fmt: skip
    foreign.rows["probe_health"] = []
    foreign.health("live_samples", "process_samples")
    found = [f for f in summarise(foreign.frames()).findings if f.cause == "own-limit"]
    assert bool(found) is is_limit
    if is_limit:
        (finding,) = found
        assert finding.subject.pid == 800
        assert (finding.value_of("let_in"), finding.value_of("closed_on_connect")) == (60, 40)
        assert finding.confidence == "medium"  # nobody saw which process closed them


def test_clients_are_not_believed_where_the_closing_process_was_watched(foreign):
    served(foreign)
    kept_out(foreign, "rst", errno=104, closed_s=1.7)
    foreign.add("connection_fates", pid=800, at_s=2.0, last_s=1.6, fate="accepted",
                connection_total=100, first_s=0.0)  # fmt: skip
    assert "own-limit" not in [f.cause for f in summarise(foreign.frames()).findings]


@pytest.mark.parametrize("is_told", [True, False])
def test_who_closes_some_makes_room_for_others_and_is_believed_when_it_says_so(foreign, is_told):
    """A burst is over before its log is read: 8 of the 20 that came last took such a place."""
    served(foreign)
    kept_out(foreign, "rst", errno=104)
    foreign.connect(8, from_s=1.4, until_s=1.5)
    foreign.connect(12, from_s=1.4, until_s=1.5, stage="handshake", close_kind="rst", errno=104)
    total = {"pid": 800, "at_s": 2.0, "last_s": 1.6}
    foreign.add("connection_fates", **total, fate="accepted", connection_total=120, first_s=0.0)
    foreign.add("connection_fates", **total, fate="closed_unread", connection_total=52,
                at_once_total=52, first_s=1.2)  # fmt: skip
    if is_told:
        foreign.add("server_words", at_s=2.5, pid=0, source="server.log", event_count=1,
                    line="1024 worker_connections are not enough", first_s=2.0)  # fmt: skip
    causes = [f.cause for f in summarise(foreign.frames()).findings]
    assert ("own-limit" in causes) is is_told


@pytest.mark.parametrize(("held_by_itself", "is_limit"), [(1, False), (30, True)])
def test_who_passes_connections_on_closes_them_for_itself_alone(foreign, held_by_itself, is_limit):
    served(foreign)
    kept_out(foreign, "rst", errno=104)
    worker = foreign.process("server", 1)
    for row in foreign.rows["live_samples"]:
        if row["pid"] == 800:
            row["open_count"] = held_by_itself
    for quarter in range(4, 12):
        foreign.live(worker, quarter / 4, open_count=30)
    total = {"pid": 800, "at_s": 2.0, "last_s": 1.6}
    foreign.add("connection_fates", **total, fate="accepted", connection_total=100, first_s=0.0)
    foreign.add("connection_fates", **total, fate="closed_unread", connection_total=40,
                at_once_total=40, first_s=1.2)  # fmt: skip
    causes = [f.cause for f in summarise(foreign.frames()).findings]
    assert ("own-limit" in causes) is is_limit


def test_who_lets_others_in_after_it_closed_some_has_none(foreign):
    served(foreign)
    kept_out(foreign, "rst", errno=104)
    foreign.connect(40, from_s=1.6, until_s=2.0)
    foreign.add("connection_fates", at_s=2.5, pid=800, fate="closed_unread", connection_total=40,
                at_once_total=40, first_s=1.2, last_s=1.6)  # fmt: skip
    foreign.add("connection_fates", at_s=2.5, pid=800, fate="accepted", connection_total=140,
                first_s=0.0, last_s=2.0)  # fmt: skip
    assert "own-limit" not in [f.cause for f in summarise(foreign.frames()).findings]


def test_threads_that_are_all_taken_are_a_slot_that_is_waited_for(foreign):
    served(foreign)
    kept_out(foreign, "timeout")
    for at_s in (1.5, 2.0, 2.5):
        row = {"at_s": at_s, "pid": 800}
        foreign.add("open_fates", **row, local_port=9000, fate="unread", socket_count=40)
        foreign.add("open_fates", **row, local_port=9000, fate="answered", socket_count=60)
        foreign.add("thread_waits", **row, thread_name="pool", syscall="recvfrom",
                    waits_for="own_connection", thread_count=60)  # fmt: skip
        foreign.add("thread_waits", **row, thread_name="main", is_main=True, syscall="epoll_wait",
                    waits_for="event_loop", thread_count=1)  # fmt: skip
    finding = named(foreign, "waits-for-slot")
    assert finding.value_of("unread_connections") == 40
    assert finding.value_of("waiting_threads", "recvfrom for a connection of their own") == 60


@pytest.mark.parametrize(("locked_count", "is_slot"), [(0, True), (60, True), (80, False)])
def test_each_connection_may_hold_a_second_thread_but_an_idle_pool_is_no_slot(
    foreign, locked_count, is_slot
):
    """One reads it, one serves what was read; a larger pool that rests has room."""
    served(foreign)
    kept_out(foreign, "timeout")
    for at_s in (1.5, 2.0, 2.5):
        row = {"at_s": at_s, "pid": 800}
        foreign.add("open_fates", **row, local_port=9000, fate="unread", socket_count=40)
        foreign.add("open_fates", **row, local_port=9000, fate="answered", socket_count=60)
        foreign.add("thread_waits", **row, thread_name="app", syscall="recvfrom",
                    waits_for="own_connection", thread_count=60)  # fmt: skip
        if locked_count:
            foreign.add("thread_waits", **row, thread_name="app", syscall="futex",
                        waits_for="lock", thread_count=locked_count)  # fmt: skip
        foreign.add("thread_waits", **row, thread_name="main", is_main=True, syscall="epoll_wait",
                    waits_for="event_loop", thread_count=1)  # fmt: skip
    causes = {f.cause for f in summarise(foreign.frames()).findings}
    assert ("waits-for-slot" in causes) is is_slot
    assert ("own-limit" in causes) is not is_slot


@pytest.mark.parametrize(("refused_by", "is_limit"), [("proxy", True), ("backend", False)])
def test_what_its_proxy_refuses_says_nothing_of_whom_a_process_behind_it_let_in(
    foreign, refused_by, is_limit
):
    """30 are let in, 40 refused: by the proxy that did not reach it, or by itself before."""
    served(foreign, 30)
    kept_out(foreign, "protocol")
    foreign.add("events", at_s=1.2, event="upgrade_refused", detail="HTTP 502: Bad Gateway")
    behind = foreign.process("backend", 0)
    accepted_count = 30 if refused_by == "proxy" else 40
    foreign.add("connection_fates", pid=behind, at_s=1.1, last_s=1.0, fate="accepted",
                connection_total=accepted_count, first_s=0.0)  # fmt: skip
    if refused_by == "backend":
        foreign.add("connection_fates", pid=behind, at_s=1.3, last_s=1.2, fate="closed_answered",
                    connection_total=40, first_s=0.0)  # fmt: skip
    for at_s in (1.5, 2.0, 2.5):
        foreign.add("unix_listeners", at_s=at_s, pid=behind, path="/run/app",
                    accept_queue_count=33, backlog_count=32, socket_inode=7)  # fmt: skip
    causes = {f.cause: f for f in summarise(foreign.frames()).findings}
    assert ("own-limit" in causes) is is_limit
    if is_limit:
        assert causes["own-limit"].subject.pid == behind
        assert causes["own-limit"].value_of("let_in") == 30
        assert causes["unix-queue-full"].follows_from == "own-limit"


@pytest.mark.parametrize("is_main", [True, False])
def test_who_serves_one_client_after_the_other_has_no_loop_that_stands_still(foreign, is_main):
    served(foreign, 1)
    kept_out(foreign, "timeout")
    for at_s in (1.5, 2.0, 2.5):
        row = {"at_s": at_s, "pid": 800}
        foreign.add("open_fates", **row, local_port=9000, fate="unaccepted", socket_count=40)
        foreign.add("open_fates", **row, local_port=9000, fate="answered", socket_count=1)
        foreign.add("thread_waits", **row, thread_name="main", is_main=is_main, thread_count=1,
                    syscall="recvfrom", waits_for="own_connection")  # fmt: skip
    block(foreign, 800, from_s=1.0, until_s=2.5, syscall="recvfrom", wait_channel="wait_woken")
    named = {f.cause for f in summarise(foreign.frames()).findings}
    assert ("waits-for-slot" in named) is is_main
    assert ("worker-blocked" in named) is not is_main


def test_a_unix_queue_at_its_backlog_is_full(foreign):
    served(foreign)
    kept_out(foreign, "protocol")
    for at_s in (1.5, 2.0, 2.5):
        foreign.add("unix_listeners", at_s=at_s, pid=800, path="/run/app", accept_queue_count=33,
                    backlog_count=32, socket_inode=7)  # fmt: skip
    finding = named(foreign, "unix-queue-full")
    assert finding.value_of("standing_queue", "/run/app") == 33


@pytest.mark.parametrize(("code", "label"), [(111, "ECONNREFUSED"), (11, "EAGAIN")])
def test_a_proxy_whose_connects_fail_reaches_nobody(foreign, code, label):
    accepted(foreign, 0)
    kept_out(foreign, "protocol")
    foreign.add("events", at_s=1.2, event="upgrade_refused", detail="HTTP 502: Bad Gateway")
    foreign.add("failing_syscalls", at_s=2.0, pid=800, syscall="connect", errno=code,
                errno_name=label, event_count=40, first_s=1.2, last_s=1.6)  # fmt: skip
    finding = named(foreign, "backend-unavailable")
    assert finding.value_of("refused_connects", label) == 40


def test_connects_that_fail_after_the_call_are_told_by_the_resets_that_came(foreign):
    """As always where what is behind is on another host: EINPROGRESS, then SO_ERROR."""
    accepted(foreign, 0)
    kept_out(foreign, "protocol")
    foreign.add("events", at_s=1.2, event="upgrade_refused", detail="HTTP 502: Bad Gateway")
    foreign.add("tcp_resets", at_s=2.0, direction="rx", side="other", state="SYN_SENT",
                event_count=40, first_s=1.2)  # fmt: skip
    finding = named(foreign, "backend-unavailable")
    (evidence,) = [each for each in finding.evidence if each.id == "refused_connects"]
    assert (evidence.value, evidence.table) == (40, "tcp_resets")


@pytest.mark.parametrize(("line", "is_named"), [
    ("connect() failed (111: Connection refused) while connecting to upstream", True),
    ("upstream prematurely closed connection while reading response header", False),
])  # fmt: skip
def test_of_a_proxy_in_the_hosts_network_its_words_on_connects_tell(foreign, line, is_named):
    accepted(foreign, 0)
    kept_out(foreign, "protocol")
    foreign.manifest["host"]["network_namespace"] = "host"
    foreign.add("events", at_s=1.2, event="upgrade_refused", detail="HTTP 502: Bad Gateway")
    foreign.add("server_words", at_s=1.3, pid=800, source="server.log", line=line, event_count=40,
                first_s=1.2)  # fmt: skip
    named = {finding.cause for finding in summarise(foreign.frames()).findings}
    assert ("backend-unavailable" in named) is is_named


@pytest.mark.parametrize("let_in", [0, 60])
def test_who_takes_all_and_sends_some_away_has_not_stopped_accepting(foreign, let_in):
    """A queue stood for a moment of a server that was short of a core: no limit of its own."""
    if let_in:
        served(foreign, let_in)
    kept_out(foreign, "protocol")
    foreign.add("events", at_s=1.2, event="upgrade_refused", detail="HTTP 401: not allowed")
    foreign.add("connection_fates", at_s=2.5, pid=800, fate="accepted",
                connection_total=let_in + 40, first_s=0.0, last_s=1.2)  # fmt: skip
    for at_s in (1.5, 2.0, 2.5):
        foreign.add("open_fates", at_s=at_s, pid=800, local_port=9000, fate="unaccepted",
                    socket_count=8)  # fmt: skip
    assert {f.cause for f in summarise(foreign.frames()).findings} == {"upgrade-refused"}


@pytest.mark.parametrize(("poller", "cause"), [(True, "own-limit"), (False, "upgrade-refused")])
def test_a_runtime_whose_first_thread_has_nothing_to_do_is_free_to_serve(foreign, poller, cause):
    """Go: the first thread is parked, another one has the events."""
    served(foreign)
    kept_out(foreign, "protocol")
    foreign.add("events", at_s=1.3, event="upgrade_refused", detail="HTTP 503: too many clients")
    foreign.add("connection_fates", at_s=2.5, pid=800, fate="accepted", connection_total=100,
                first_s=0.0, last_s=2.0)  # fmt: skip
    for at_s in (1.5, 2.0, 2.5):
        row = {"at_s": at_s, "pid": 800, "thread_name": "app"}
        foreign.add("thread_waits", **row, is_main=True, syscall="futex", waits_for="lock",
                    thread_count=1)  # fmt: skip
        if poller:
            foreign.add("thread_waits", **row, syscall="epoll_pwait", waits_for="event_loop",
                        thread_count=1)  # fmt: skip
    assert summarise(foreign.frames()).verdict.cause == cause


def test_the_thread_that_has_the_lock_is_told_with_what_it_waits_for(foreign):
    served(foreign)
    kept_out(foreign, "timeout")
    for at_s in (1.5, 2.0, 2.5):
        row = {"at_s": at_s, "pid": 800}
        foreign.add("open_fates", **row, local_port=9000, fate="unanswered", socket_count=32)
        foreign.add("open_fates", **row, local_port=9000, fate="answered", socket_count=60)
        row |= {"thread_name": "pool"}
        foreign.add("thread_waits", **row, syscall="futex", waits_for="lock", thread_count=31)
        foreign.add("thread_waits", **row, syscall="recvfrom", waits_for="remote", thread_count=1,
                    address="10.0.0.5:5432")  # fmt: skip
    finding = named(foreign, "waits-for-slot")
    assert "10.0.0.5:5432" in finding.fix[0].command


def test_a_line_of_code_names_a_limit_before_a_comment_does():
    lines = ["// at most 120", "server.maxConnections = 120;"]
    settings = [
        {"name": "", "value": 120, "file": "/srv/a.js", "line": number, "text": text}
        for number, text in enumerate(lines, start=1)
    ]
    limit = name_limit("node a.js", {"settings": settings}, 120, 140, 500)
    assert limit.where == "/srv/a.js:2: server.maxConnections = 120;"


def test_a_status_in_a_line_that_answers_is_no_limit_and_what_fits_exactly_goes_first():
    line = 'answer = b"HTTP/1.1 101 Switching Protocols"'
    status = {"name": "", "value": 101, "file": "/srv/a.py", "line": 35, "text": line}
    assert name_limit("python a.py", {"settings": [status]}, 100, 106, 500) is None
    near = {"name": "", "value": 101, "file": "/srv/a.py", "line": 9, "text": "room = 101"}
    argument = {"name": "", "value": 100, "file": "", "line": 0, "text": ""}
    limit = name_limit("python a.py", {"settings": [status, near, argument]}, 100, 106, 500)
    assert (limit.value, limit.where) == (100, "its command line")


def blind(build):
    """Nobody watched calls: no eBPF."""
    build.rows["probe_health"] = []
    build.health("live_samples", "process_samples", "open_fates")


@pytest.mark.parametrize("grows", [False, True])
def test_a_queue_that_stands_is_seen_without_the_calls_of_its_owner(foreign, grows):
    foreign.connect(60)
    kept_out(foreign, "timeout", errno=110)
    for quarter in range(12):
        foreign.live(800, quarter / 4, open_count=60 + grows * quarter)
    for at_s in (1.5, 2.0, 2.5):
        foreign.add("open_fates", at_s=at_s, pid=0, local_port=9000, fate="unaccepted",
                    socket_count=40)  # fmt: skip
    blind(foreign)
    found = [f for f in summarise(foreign.frames()).findings if f.cause == "own-limit"]
    assert bool(found) is not grows
    if found:
        assert found[0].value_of("let_in") == 60
        assert found[0].confidence == "medium"


def test_a_refusal_by_its_own_count_is_told_without_the_calls_of_the_server(foreign):
    foreign.connect(60)
    for quarter in range(12):
        foreign.live(800, quarter / 4, open_count=60)
    kept_out(foreign, "protocol", closed_s=1.7)
    foreign.add("events", at_s=1.7, event="upgrade_refused", detail="HTTP 503: full")
    blind(foreign)
    finding = named(foreign, "own-limit")
    assert (finding.value_of("let_in"), finding.value_of("http_status")) == (60, 503)


@pytest.mark.parametrize(("listeners", "causes"), [(1, {"own-limit"}), (2, set())])
def test_a_queue_that_all_who_share_it_have_left_is_their_limit(foreign, listeners, causes):
    """gunicorn --max-requests 30: two workers, each waits for the threads of its 30 clients."""
    foreign.manifest["server"]["processes"][0]["settings"] = [
        {"name": "max-requests", "value": 30, "file": "", "line": 0, "text": ""}
    ]
    other = foreign.process("server", 1)
    foreign.connect(60)
    kept_out(foreign, "timeout", closed_s=4.0, errno=110)
    for pid in (800, other):
        foreign.cpu(pid, 1, until_s=5.0)
        for quarter in range(20):
            foreign.live(pid, quarter / 4, open_count=min(30, 30 * quarter))
        foreign.add("connection_fates", at_s=1.5, pid=pid, fate="accepted", connection_total=30,
                    first_s=0.0, last_s=1.1)  # fmt: skip
    for number in range(listeners):
        row = {"at_s": 0.5, "local_port": 9000, "socket_inode": 70 + number}
        foreign.add("listeners", **row, backlog_count=512)
        for pid in (800, other) if listeners == 1 else ((800, other)[number],):
            foreign.add("listener_owners", at_s=0.5, pid=pid, socket_inode=70 + number)
    for half in range(3, 9):
        at_s = half / 2
        foreign.add("open_fates", at_s=at_s, pid=0, local_port=9000, fate="unaccepted",
                    socket_count=40)  # fmt: skip
        for pid in (800, other):
            row = {"at_s": at_s, "pid": pid, "thread_name": "gunicorn"}
            foreign.add("open_fates", at_s=at_s, pid=pid, local_port=9000, fate="answered",
                        socket_count=30)  # fmt: skip
            foreign.add("thread_waits", **row, syscall="recvfrom", waits_for="own_connection",
                        thread_count=30)  # fmt: skip
            foreign.add("thread_waits", **row, is_main=True, syscall="futex", waits_for="lock",
                        thread_count=1)  # fmt: skip
    summary = summarise(foreign.frames())
    assert {f.cause for f in summary.findings} == causes
    if causes:
        (finding,) = summary.findings
        assert finding.fix[0].command.startswith("--max-requests=")


@pytest.mark.parametrize("loop", ["event_loop", "pipe"])
def test_workers_that_share_a_listener_have_one_limit_together(foreign, loop):
    """As httpd's: the first thread of each waits for its parent's word, others have the events."""
    served(foreign)
    kept_out(foreign, "timeout")
    second = foreign.process("server", 1)
    for quarter in range(4, 12):
        foreign.live(second, quarter / 4, open_count=30)
    for pid in (800, second):
        foreign.add("listener_owners", at_s=-0.2, pid=pid, socket_inode=7)
        foreign.add("connection_fates", at_s=2.0, pid=pid, fate="accepted", connection_total=30,
                    first_s=0.0, last_s=0.9)  # fmt: skip
        for at_s in (1.5, 2.0, 2.5):
            row = {"at_s": at_s, "pid": pid}
            foreign.add("thread_waits", **row, thread_name="main", is_main=True, syscall="read",
                        waits_for="pipe", thread_count=1)  # fmt: skip
            foreign.add("thread_waits", **row, thread_name="pool", syscall="poll",
                        waits_for=loop, thread_count=25)  # fmt: skip
    for at_s in (1.5, 2.0, 2.5):
        foreign.add("listeners", at_s=at_s, local_port=9000, socket_inode=7, backlog_count=511)
        foreign.add("open_fates", at_s=at_s, pid=0, local_port=9000, fate="unaccepted",
                    socket_count=40)  # fmt: skip
    found = [f for f in summarise(foreign.frames()).findings if f.cause == "own-limit"]
    if loop == "pipe":  # nobody has the events: each waits for an answer that does not come
        assert not found
        return
    (finding,) = found
    assert finding.value_of("let_in") == 60, "of both"
    assert "and 1 other that share" in finding.sentence


def test_a_limit_on_the_rate_is_told_to_those_who_come(foreign):
    served(foreign)
    kept_out(foreign, "protocol")
    foreign.add("events", at_s=1.3, event="upgrade_refused", detail="HTTP 429 Too Many Requests")
    foreign.add("connection_fates", at_s=2.0, pid=800, fate="accepted", connection_total=100,
                first_s=0.0, last_s=1.6)  # fmt: skip
    finding = named(foreign, "own-limit")
    assert any(fix.command.startswith("profile-run --ramp ") for fix in finding.fix)


@pytest.mark.parametrize(("said", "words", "fix"), [
    ("HTTP 429: Retry-After: 1; slow down", "a limit of its own on how fast clients come",
     "a higher rate or burst"),
    ("HTTP 403: Too many connections from this address", "answered the other 40 with HTTP 403",
     "profile-run --source-addresses 2"),
    ("HTTP 402: your plan has 60 connections", "answered the other 40 with HTTP 402", "raise"),
])  # fmt: skip
def test_who_let_some_in_and_refuses_the_others_counts_them(foreign, said, words, fix):
    served(foreign)
    kept_out(foreign, "protocol")
    foreign.add("events", at_s=1.3, event="upgrade_refused", detail=said)
    foreign.add("connection_fates", at_s=2.0, pid=800, fate="accepted", connection_total=100,
                first_s=0.0, last_s=1.6)  # fmt: skip
    finding = named(foreign, "own-limit")
    assert words in finding.sentence
    assert any(each.command.startswith(fix) for each in finding.fix)


def waits(build, *threads, unanswered=40, answered=60, pid=800, unread=0):
    """Three looks: connections by fate, and threads as (name, is_main, syscall, kind, count)."""
    for at_s in (1.5, 2.0, 2.5):
        row = {"at_s": at_s, "pid": pid, "local_port": 9000}
        counts = {"unanswered": unanswered, "answered": answered, "unread": unread}
        for fate, count in counts.items():
            if count:
                build.add("open_fates", **row, fate=fate, socket_count=count)
        for name, is_main, syscall, kind, count in threads:
            build.add("thread_waits", at_s=at_s, pid=pid, thread_name=name, is_main=is_main,
                      syscall=syscall, waits_for=kind, thread_count=count)  # fmt: skip


LOOP = ("app", True, "epoll_wait", "event_loop", 1)


@pytest.mark.parametrize(("threads", "is_named"), [(41, True), (54, True), (90, False)])
def test_a_thread_for_each_that_waits_for_a_lock_before_it_reads_is_told(
    foreign, threads, is_named
):
    """As many as nobody reads are no idle pool, and the server has no limit of its own."""
    served(foreign)
    kept_out(foreign, "timeout", closed_s=4.0)
    waits(foreign, ("app", True, "accept4", "accept", 1),
          ("app", False, "recvfrom", "own_connection", 60),
          ("app", False, "futex", "lock", threads), unanswered=0, unread=40)  # fmt: skip
    causes = {f.cause for f in summarise(foreign.frames()).findings}
    assert ("waits-for-slot" in causes) is is_named
    assert ("own-limit" in causes) is not is_named


@pytest.mark.parametrize(
    ("syscall", "kind"),
    [("clock_nanosleep", "sleep"), ("read", "pipe"), ("wait4", "other"), ("flock", "other")],
)
def test_a_pool_that_is_held_up_is_smaller_than_what_waits_for_it(foreign, syscall, kind):
    """ThreadPoolExecutor's six threads, each in a call that lasts; a hundred requests wait."""
    served(foreign, 12)
    kept_out(foreign, "timeout")
    waits(foreign, LOOP, ("app", False, syscall, kind, 6))
    finding = named(foreign, "waits-for-slot")
    assert "6 threads of it " in finding.sentence
    assert syscall in finding.sentence
    assert "more than 6 threads" in finding.fix[0].command


def test_an_idle_pool_beside_a_loop_that_queues_is_not_what_is_waited_for(foreign):
    served(foreign)
    kept_out(foreign, "timeout")
    waits(foreign, LOOP, ("app", False, "futex", "lock", 8), ("log", False, "clock_nanosleep",
          "sleep", 1))  # fmt: skip
    assert "inside of the program" in named(foreign, "waits-for-slot").sentence


def test_who_has_answered_nobody_when_most_wait_has_answered_later(foreign):
    """A slow pool: at first all that may come wait, and nobody has an answer yet."""
    served(foreign, 12)
    kept_out(foreign, "timeout")
    foreign.add("open_fates", at_s=1.2, pid=800, local_port=9000, fate="unanswered",
                socket_count=40)  # fmt: skip
    waits(foreign, LOOP, answered=12)
    assert named(foreign, "waits-for-slot").value_of("served_connections") == 12


def test_threads_at_a_lock_are_not_the_one_that_has_it(foreign):
    """Java: a monitor that is held while its owner waits for its client."""
    served(foreign, 1)
    kept_out(foreign, "timeout")
    waits(
        foreign,
        ("java", True, "futex", "lock", 1),
        ("conn", False, "futex", "lock", 39),
        ("GC Thread#", False, "futex", "lock", 2),
        ("conn", False, "read", "own_connection", 1),
        unanswered=39, answered=1, unread=20,
    )  # fmt: skip
    finding = named(foreign, "waits-for-slot")
    assert finding.value_of("waiting_threads", "futex for a lock") == 39
    assert "waits in read for its client" in finding.fix[0].command
    assert "served 1 connection while" in finding.sentence


@pytest.mark.parametrize("has_time", [True, False])
def test_a_pool_of_connections_to_what_is_behind_is_short(foreign, has_time):
    """Ten connections to a database that stands: its threads are on no port of the clients."""
    served(foreign, 80)
    kept_out(foreign, "timeout")
    behind = foreign.process("backend", 0)
    waits(foreign, LOOP, answered=80)
    for at_s in (1.5, 2.0, 2.5):
        foreign.add("thread_waits", at_s=at_s, pid=behind, thread_name="db", thread_count=10,
                    syscall="clock_nanosleep", waits_for="sleep")  # fmt: skip
    if not has_time:
        block(foreign, behind, from_s=1.0, until_s=2.5, syscall="flock", wait_channel="flock_lock")
    found = [f for f in summarise(foreign.frames()).findings if f.cause == "waits-for-slot"]
    assert bool(found) is has_time
    if has_time:
        assert found[0].subject.pid == 800
        assert "10 threads of it sleep in clock_nanosleep" in found[0].sentence


def test_a_loop_that_stands_in_a_write_has_no_limit_of_its_own(foreign):
    """Its log goes into a pipe that nobody reads."""
    served(foreign)
    kept_out(foreign, "timeout")
    foreign.add("connection_fates", at_s=2.0, pid=800, fate="accepted", connection_total=60,
                first_s=0.0, last_s=0.9)  # fmt: skip
    for at_s in (1.5, 2.0, 2.5):
        foreign.add("open_fates", at_s=at_s, pid=0, local_port=9000, fate="unaccepted",
                    socket_count=40)  # fmt: skip
    waits(foreign, ("app", True, "write", "pipe", 1), unanswered=0, unread=0)
    block(foreign, 800, from_s=1.0, until_s=2.5, syscall="write", wait_channel="anon_pipe_write")
    causes = {f.cause for f in summarise(foreign.frames()).findings}
    assert "own-limit" not in causes
    assert "worker-blocked" in causes


def test_who_closes_its_listening_socket_lets_nobody_in(foreign):
    served(foreign)
    foreign.connect(40, from_s=1.2, until_s=1.6, stage="connect", close_kind="refused", errno=111)
    foreign.add("connection_fates", at_s=2.0, pid=800, fate="accepted", connection_total=60,
                first_s=0.0, last_s=0.9)  # fmt: skip
    finding = named(foreign, "own-limit")
    assert (finding.subject.pid, finding.value_of("let_in")) == (800, 60)
    assert finding.value_of("connects_refused") == 40


def test_a_port_where_nobody_ever_listened_is_no_limit(foreign):
    accepted(foreign, 0)
    foreign.connect(40, from_s=0.2, until_s=1.6, stage="connect", close_kind="refused", errno=111)
    assert "own-limit" not in [f.cause for f in summarise(foreign.frames()).findings]


def dies(build, count, *, line="", signal=0):
    """The only process ends at 1.2 s, and takes all its connections with it."""
    build.connect(count, until_s=1.0, stage="closed", close_kind="rst", closed_s=1.2, errno=104)
    build.connect(40, from_s=1.2, until_s=1.6, stage="connect", close_kind="refused", errno=111)
    accepted(build, count - 20)
    row = next(row for row in build.rows["processes"] if row["pid"] == 800)
    row |= {"exited_ns": build.ns(1.21), "exit_signal": signal, "exit_status": -1 if signal else 1}
    row |= {"nofile_soft_count": 20_000}
    if line:
        build.add("server_words", at_s=1.3, first_s=1.2, pid=800, source="server.log", line=line,
                  event_count=1)  # fmt: skip


@pytest.mark.parametrize(
    ("count", "line", "signal", "is_limit"),
    [
        (1018, "ValueError: filedescriptor out of range in select()", 0, True),
        (1019, "", 6, True),  # *** buffer overflow detected ***, which others die of as well
        (600, "", 6, False),
        (1018, "KeyError: 'user'", 0, False),
    ],
)
def test_who_dies_of_its_own_limit_had_one(foreign, count, line, signal, is_limit):
    dies(foreign, count, line=line, signal=signal)
    summary = summarise(foreign.frames())
    found = {f.cause: f for f in summary.findings}
    assert found["worker-crash"].value_of("process_connections") == count
    assert ("own-limit" in found) is is_limit
    if is_limit:
        assert (found["own-limit"].severity, found["worker-crash"].severity) == (
            "binding",
            "contributing",
        )
        assert "FD_SETSIZE" in found["own-limit"].sentence


@pytest.mark.parametrize(
    ("line", "is_limit"),
    [('limiting connections by zone "per", client: 10.0.0.1', True), ("upstream is slow", False)],
)
def test_several_workers_that_refuse_have_the_limit_that_they_speak_of(foreign, line, is_limit):
    """nginx counts in memory that its workers share."""
    served(foreign)
    second = foreign.process("server", 1)
    kept_out(foreign, "protocol")
    foreign.add("events", at_s=1.3, event="upgrade_refused", detail="HTTP 503: unavailable")
    for pid in (800, second):
        foreign.add("connection_fates", at_s=2.0, pid=pid, fate="accepted", connection_total=50,
                    first_s=0.0, last_s=1.6)  # fmt: skip
    foreign.add("server_words", at_s=1.3, first_s=1.2, pid=0, source="server.log", line=line,
                event_count=40)  # fmt: skip
    found = {f.cause: f.severity for f in summarise(foreign.frames()).findings}
    assert ("own-limit" in found) is is_limit
    if is_limit:
        assert found == {"own-limit": "binding", "upgrade-refused": "contributing"}


def test_a_rate_that_the_server_speaks_of_is_raised_where_it_stands(foreign):
    served(foreign)
    kept_out(foreign, "protocol")
    text = "limit_req zone=rate burst=20 nodelay;"
    foreign.manifest["server"]["processes"][0]["settings"] = [
        {"name": "burst", "value": 20, "file": "/n.conf", "line": 9, "text": text}
    ]
    foreign.add("events", at_s=1.3, event="upgrade_refused", detail="HTTP 503: unavailable")
    foreign.add("connection_fates", at_s=2.0, pid=800, fate="accepted", connection_total=100,
                first_s=0.0, last_s=1.6)  # fmt: skip
    foreign.add("server_words", at_s=1.3, first_s=1.2, pid=0, source="server.log", event_count=40,
                line='limiting requests, excess: 20.8 by zone "rate"')  # fmt: skip
    finding = named(foreign, "own-limit")
    assert finding.fix[0].command == f"a higher rate or burst in /n.conf:9  # {text}"
    assert "how fast clients come" in finding.sentence


def test_threads_of_a_runtime_that_rest_are_not_what_one_request_waits_for(foreign):
    """node: its pools rest on futexes, and one request was read when its loop stood still."""
    served(foreign)
    kept_out(foreign, "timeout")
    waits(foreign, LOOP, ("node", False, "futex", "lock", 9), unanswered=1)
    assert "waits-for-slot" not in {f.cause for f in summarise(foreign.frames()).findings}


def test_a_child_that_is_forked_while_its_parent_waits_serves_nobody(foreign):
    """multiprocessing: the child has its parent's sockets, and sleeps for it."""
    served(foreign)
    child = foreign.process("server", 1, start_ns=foreign.ns(1.1))
    for quarter in range(5, 16):
        foreign.live(child, quarter / 4, open_count=60)
    foreign.add("connection_fates", at_s=2.0, pid=800, fate="accepted", connection_total=60,
                first_s=0.0, last_s=0.9)  # fmt: skip
    block(foreign, 800, from_s=1.2, until_s=3.0, syscall="wait4", wait_channel="do_wait")
    block(foreign, child, from_s=1.2, until_s=3.0)
    found = [f.subject.pid for f in summarise(foreign.frames()).findings]
    assert 800 in found
    assert child not in found


def test_a_refusal_by_its_own_count_is_told_once(foreign):
    served(foreign)
    kept_out(foreign, "protocol")
    foreign.add("events", at_s=1.3, event="upgrade_refused", detail="HTTP 429 Too Many Requests")
    foreign.add("connection_fates", at_s=2.0, pid=800, fate="accepted", connection_total=100,
                first_s=0.0, last_s=1.6)  # fmt: skip
    found = {f.cause: f.severity for f in summarise(foreign.frames()).findings}
    assert found == {"own-limit": "binding", "upgrade-refused": "contributing"}


def test_of_several_settings_of_one_name_that_is_shown_which_was_met():
    lines = [("maxconn 4000", 2, 4000), ("server s 127.0.0.1:90 maxconn 150", 14, 150)]
    lines.append(("maxconn 9000", 20, 9000))
    settings = [
        {"name": "maxconn", "value": value, "file": "/h.cfg", "line": line, "text": text}
        for text, line, value in lines
    ]
    limit = name_limit("haproxy", {"settings": settings}, 150, 400, 500)
    assert limit.raise_it.startswith("maxconn 550  #")
    assert limit.raise_it.endswith("now 150 in /h.cfg:14: server s 127.0.0.1:90 maxconn 150")


def test_who_accepts_and_reads_a_request_itself_is_none_of_its_threads(foreign):
    """A thread for each connection, and a first one that waits between two accepts."""
    served(foreign)
    kept_out(foreign, "timeout")
    waits(foreign, ("app", False, "recvfrom", "own_connection", 60), unanswered=1)
    for at_s, syscall, kind in ((1.5, "recvfrom", "own_connection"), (2.0, "clock_nanosleep",
                                "sleep"), (2.5, "clock_nanosleep", "sleep")):  # fmt: skip
        foreign.add("thread_waits", at_s=at_s, pid=800, thread_name="app", is_main=True,
                    syscall=syscall, waits_for=kind, thread_count=1)  # fmt: skip
        foreign.add("open_fates", at_s=at_s, pid=0, local_port=9000, fate="unaccepted",
                    socket_count=6)  # fmt: skip
    block(foreign, 800, from_s=1.0, until_s=2.5)
    causes = {f.cause for f in summarise(foreign.frames()).findings}
    assert "waits-for-slot" not in causes
    assert "worker-blocked" in causes


@pytest.mark.parametrize(
    ("held_count", "is_shared", "state", "is_named"),
    [(0, True, "S", False), (30, True, "S", True), (0, False, "S", True), (0, True, "T", True)],
)
def test_a_parent_that_sleeps_while_its_workers_take_all_does_not_stand_still(
    foreign, held_count, is_shared, state, is_named
):
    """uvicorn --workers: the parent opened the listener, and waits for a condition."""
    served(foreign)
    parent = foreign.process("acceptor", 0)
    for quarter in range(16):
        foreign.live(parent, quarter / 4, open_count=held_count)
    for pid, inode in ((800, 7), (parent, 7 if is_shared else 8)):
        foreign.add("listener_owners", at_s=-0.2, pid=pid, socket_inode=inode)
    block(foreign, parent, from_s=0.5, until_s=3.5, state=state, syscall="futex",
          wait_channel="futex_do_wait", python_stack="")  # fmt: skip
    found = {f.subject.pid for f in summarise(foreign.frames()).findings
             if f.cause == "worker-blocked"}  # fmt: skip
    assert (parent in found) is is_named


def standing(build, *pids, count=40):
    """Connections wait in the queue of port 9000, which these processes share."""
    build.manifest["server"]["ports"] = [9000]
    for at_s in (1.5, 2.0, 2.5, 3.0):
        build.add("open_fates", at_s=at_s, pid=0, local_port=9000, fate="unaccepted",
                  socket_count=count)  # fmt: skip
    build.add("listeners", at_s=0.0, local_port=9000, socket_inode=7, backlog_count=511)
    for pid in pids:
        build.add("listener_owners", at_s=0.0, pid=pid, socket_inode=7)


@pytest.mark.parametrize(
    ("wanted_pct", "cause"), [(0.0, "own-limit"), (60.0, "host-cpu-saturated")]
)
def test_neighbours_keep_nobody_out_of_a_server_that_wants_no_core(foreign, wanted_pct, cause):
    served(foreign)
    kept_out(foreign, "timeout", closed_s=4.0)
    total = {"at_s": 2.0, "pid": 800, "fate": "accepted"}
    foreign.add("connection_fates", **total, connection_total=60, first_s=0.0, last_s=1.3)
    standing(foreign, 800)
    foreign.host_cpu(100, from_s=-0.5, until_s=6.0)
    foreign.cpu(800, 1.0, from_s=-0.5, until_s=6.0, wait_pct=wanted_pct)
    foreign.cpu(900, 10.0, from_s=-0.5, until_s=6.0, wait_pct=40.0)
    summary = summarise(foreign.frames())
    assert summary.verdict.cause == cause
    others = {"own-limit", "host-cpu-saturated"} - {cause}
    assert (others <= {f.cause for f in summary.findings}) is (wanted_pct > 0)


@pytest.mark.parametrize(("late", "is_limit"), [(30, True), (0, True), (-1, False)])
def test_a_queue_stands_from_when_the_youngest_process_took_the_last(foreign, late, is_limit):
    """Processes that were forked meanwhile were not seen to accept: clients know it."""
    served(foreign)
    foreign.process("server", 1)
    if late > 0:
        foreign.connect(late, from_s=1.0, until_s=1.3)
    if late < 0:  # somebody lets in whoever comes, slowly
        foreign.connect(30, from_s=1.0, until_s=3.4)
    foreign.connect(40, from_s=1.2, until_s=1.6, stage="handshake", close_kind="none")
    for pid, last_s in ((800, 0.4), (801, 0.9)):
        foreign.add("connection_fates", at_s=2.0, pid=pid, fate="accepted", connection_total=30,
                    first_s=0.0, last_s=last_s)  # fmt: skip
    standing(foreign, 800, 801)
    found = [f for f in summarise(foreign.frames()).findings if f.cause == "own-limit"]
    assert bool(found) is is_limit
    if found:
        assert found[0].value_of("let_in") == 60 + late


def gateway(build, status="HTTP 502: Bad Gateway", closed_s=None):
    accepted(build, 0)
    build.manifest["server"]["processes"][0]["command"] = "nginx: worker process"
    build.connect(40, from_s=1.2, until_s=1.6, stage="handshake", close_kind="protocol",
                  closed_s=closed_s)  # fmt: skip
    build.add("events", at_s=1.3, event="upgrade_refused", detail=status)


@pytest.mark.parametrize(("space", "count", "found"), [("own", 40, True), ("own", 3, False),
                                                       ("host", 40, False)])  # fmt: skip
def test_connects_that_got_a_reset_later_found_nobody_either(foreign, space, count, found):
    """A connect that does not wait returns EINPROGRESS: no call fails."""
    gateway(foreign)
    foreign.manifest["host"]["network_namespace"] = space
    foreign.add("tcp_resets", at_s=2.0, direction="rx", side="other", state="SYN_SENT",
                event_count=count, first_s=1.2)  # fmt: skip
    summary = summarise(foreign.frames())
    assert (summary.verdict.cause == "backend-unavailable") is found
    assert not any("--path" in fix.command for f in summary.findings for fix in f.fix)
    if found:
        binding = summary.findings[0]
        assert binding.value_of("refused_connects", "ECONNREFUSED") == 40
        assert [f.follows_from for f in summary.findings[1:]] == ["backend-unavailable"]


def test_a_process_behind_that_does_not_answer_is_named_with_the_patience_of_the_proxy(foreign):
    gateway(foreign, "HTTP 504: Gateway Time-out", closed_s=3.5)
    line = {"name": "proxy_read_timeout", "value": 0, "value_s": 2.0, "file": "/etc/nginx.conf"}
    text = "proxy_read_timeout 2s"
    foreign.manifest["server"]["processes"][0]["settings"] = [{**line, "line": 9, "text": text}]
    foreign.process("backend", 0, start_s=-0.5)
    for at_s in (1.5, 2.0, 2.5):
        foreign.add("open_fates", at_s=at_s, pid=950, local_port=9100, fate="unanswered",
                    socket_count=40)  # fmt: skip
    finding = named(foreign, "backend-unavailable")
    assert (finding.severity, finding.subject.pid) == ("binding", 950)
    assert finding.value_of("own_timeout", f"/etc/nginx.conf:9: {text}") == 2.0
    assert "/etc/nginx.conf:9" in finding.fix[1].command


def test_what_a_proxy_says_of_who_is_behind_it_is_the_cause(foreign):
    gateway(foreign)
    line = "connect() failed (111: Connection refused) while connecting to upstream"
    # the parent opened the log that its workers write to
    foreign.add("server_words", at_s=1.6, first_s=1.2, pid=799, source="error.log", line=line,
                event_count=40)  # fmt: skip
    finding = named(foreign, "backend-unavailable")
    assert finding.severity == "binding"
    assert [quote.line for quote in finding.quotes] == [line]


@pytest.mark.parametrize(
    ("command", "settings", "waited_s", "fix"),
    [
        ("haproxy", [("tunnel", 0, 3.0, "timeout tunnel 3s")], 3.2, "timeout tunnel 1h"),
        ("node app.js", [("idle", 4000, None, "const idle = 4000")], 4.1, "more than 4 s in"),
        ("nginx", [], 60.4, "proxy_read_timeout 1h;"),
        ("nginx", [("proxy_read_timeout", 0, 300.0, "proxy_read_timeout 5m;")], 60.4, None),
        ("node app.js", [("port", 4000, None, "const port = 4000")], 4.1, None),
        ("haproxy", [("tunnel", 0, 3.0, "timeout tunnel 3s")], 6.0, None),
        ("haproxy", [("tunnel", 0, 3.0, "timeout tunnel 3s")], 2.0, None),
    ],
)
def test_a_time_is_named_that_lasts_as_long(command, settings, waited_s, fix):
    found = [
        {"name": name, "value": value, "file": "/a.conf", "line": 3, "text": text}
        | ({} if value_s is None else {"value_s": value_s})
        for name, value, value_s, text in settings
    ]
    named = name_timeout(command, [{"settings": found}], waited_s)
    assert (named is None) is (fix is None)
    if named is not None:
        assert named.fix().startswith(fix)


WAIT = [("ws-ping-interval", 20, None, ""), ("ws-ping-timeout", 5, None, "")]


@pytest.mark.parametrize(
    ("command", "settings", "path", "waited_s", "text"),
    [
        ("python3 -m uvicorn", WAIT, "/", 25.2, "--ws-ping-interval 20 and --ws-ping-timeout 5"),
        ("python3 -m uvicorn", WAIT, "/", 40.2, None),
        ("node app.js", [], "/socket.io/?EIO=4", 45.1, "the default of Socket.IO"),
        ("node app.js", [], "/chat", 45.1, None),
        ("node app.js", [("pingInterval", 9000, None, "")], "/socket.io/", 45.1, None),
        ("java Main", [], "/chat", 30.2, "the default of Jetty"),
        ("java Main", [("idle", 30, 30.0, "idle 30s")], "/chat", 30.2, "idle 30s"),
        ("java Main", [], "/chat", 60.0, None),
        ("traefik", [], "/chat", 60.1, "readTimeout 60 s (its default)"),
    ],
)
def test_pings_together_and_defaults_of_libraries_are_named(
    command, settings, path, waited_s, text
):
    found = [
        {"name": name, "value": value, "file": "", "line": 0, "text": line}
        | ({} if value_s is None else {"value_s": value_s})
        for name, value, value_s, line in settings
    ]
    named = name_timeout(command, [{"settings": found}], waited_s, path)
    assert (named is None) is (text is None)
    if named is not None:
        assert text in str(named)


def test_who_closed_first_after_its_time_is_named_with_the_setting(foreign):
    accepted(foreign, 60)
    foreign.process("server", 1)
    foreign.connect(60, close_kind="eof", stage="closed", closed_s=3.2, from_s=0.0, until_s=0.1)
    setting = {"name": "tunnel", "value": 0, "value_s": 3.0, "file": "/etc/haproxy.cfg", "line": 8}
    told = {"pid": 801, "worker": 1, "command": "haproxy", "settings": []}
    told["settings"] = [{**setting, "text": "timeout tunnel 3s"}]
    foreign.manifest["server"]["processes"].append(told)
    row = {"at_s": 3.4, "connection_total": 60, "first_s": 3.2, "last_s": 3.3}
    foreign.add("connection_fates", **row, pid=800, fate="closed_after_peer")
    foreign.add("connection_fates", **row, pid=801, fate="closed_answered")
    finding = named(foreign, "closed-by-server")
    assert finding.subject.pid == 801
    assert finding.value_of("own_timeout", "/etc/haproxy.cfg:8: timeout tunnel 3s") == 3.0
    assert finding.fix[0].command.startswith("timeout tunnel 1h")


def test_a_child_that_has_the_listener_until_it_executes_another_program_is_no_worker(foreign):
    foreign.process("server", 1)
    foreign.connect(100)
    for tenth in range(5):
        foreign.live(800, tenth * 1.0, open_count=100, established_total=100)
        foreign.live(801, tenth * 1.0, open_count=0)
    foreign.add("listener_owners", at_s=1.0, pid=800, socket_inode=7)
    assert "accept-imbalance" not in [f.cause for f in summarise(foreign.frames()).findings]


@pytest.mark.parametrize("at_once", [40, 25])
def test_who_lets_nobody_in_has_no_number(foreign, at_once):
    """It closes each since what it asks is not there, some a little later than at once."""
    kept_out(foreign, "rst", errno=104)
    total = {"pid": 800, "at_s": 2.0, "last_s": 1.6}
    foreign.add("connection_fates", **total, fate="accepted", connection_total=40, first_s=0.0)
    foreign.add("connection_fates", **total, fate="closed_unread", connection_total=40,
                at_once_total=at_once, first_s=1.2)  # fmt: skip
    assert "own-limit" not in {f.cause for f in summarise(foreign.frames()).findings}


@pytest.mark.parametrize("failed", [False, True])
def test_a_proxy_that_has_enough_behind_it_has_a_limit_and_no_failure(foreign, failed):
    """nginx: max_conns of each server of an upstream."""
    served(foreign)
    kept_out(foreign, "protocol")
    foreign.add("events", at_s=1.3, event="upgrade_refused", detail="HTTP 502: Bad Gateway")
    foreign.add("connection_fates", at_s=2.0, pid=800, fate="accepted", connection_total=100,
                first_s=0.0, last_s=1.6)  # fmt: skip
    foreign.add("server_words", at_s=1.3, pid=800, source="error.log", first_s=1.2, event_count=40,
                line="no live upstreams while connecting to upstream")  # fmt: skip
    if failed:
        foreign.add("failing_syscalls", at_s=1.4, pid=800, syscall="connect", errno=111,
                    errno_name="ECONNREFUSED", event_count=1, first_s=1.2, last_s=1.2)  # fmt: skip
    cause = summarise(foreign.frames()).verdict.cause
    assert cause == ("backend-unavailable" if failed else "own-limit")


def stands(build, pid=800, count=40):
    for at_s in (1.5, 2.0, 2.5):
        build.add("open_fates", at_s=at_s, pid=pid, local_port=9000, fate="unaccepted",
                  socket_count=count, quiet_count=count)  # fmt: skip
        build.add("listener_watches", at_s=at_s, pid=pid, local_port=9000, watch="edge")


def test_of_a_runtime_that_accepts_to_the_end_an_edge_says_nothing(foreign):
    """Go and tokio watch every listener so: who stops at a number has a limit (LimitListener)."""
    served(foreign)
    kept_out(foreign, "timeout")
    foreign.add("connection_fates", at_s=2.5, pid=800, fate="accepted", connection_total=60,
                first_s=0.0, last_s=0.9)  # fmt: skip
    stands(foreign)
    for at_s in (1.5, 2.0, 2.5):
        row = {"at_s": at_s, "pid": 800, "thread_name": "app"}
        for is_main, count in ((True, 1), (False, 4)):
            foreign.add("thread_waits", **row, is_main=is_main, syscall="futex", waits_for="lock",
                        thread_count=count)  # fmt: skip
        foreign.add("thread_waits", **row, syscall="epoll_pwait", waits_for="event_loop",
                    thread_count=1)  # fmt: skip
    verdict = summarise(foreign.frames()).verdict
    assert (verdict.cause, verdict.confidence) == ("own-limit", "high")


def test_children_serve_for_who_forks_in_front_of_a_backend_too(foreign):
    """socat: a child for each connection, and what they pass it on to is none of them."""
    accepted(foreign, 0)
    foreign.connect(60)
    foreign.add("connection_fates", at_s=2.5, pid=800, fate="accepted", connection_total=60,
                first_s=0.0, last_s=0.9)  # fmt: skip
    backend = foreign.process("backend", 1)
    foreign.live(backend, 1.0, open_count=60)
    for worker in range(2, 62):
        child = foreign.process("server", worker)
        foreign.live(child, 0.9, open_count=1)
    assert served_by_children(RunView(foreign.frames()), 800, 2.5) == 60


@pytest.mark.parametrize(("syscall", "code", "name", "fix"), [
    ("inotify_init1", 24, "EMFILE", "sysctl -w fs.inotify.max_user_instances"),
    ("openat", 28, "ENOSPC", "df -h"),
    ("write", 122, "EDQUOT", "df -h"),
])  # fmt: skip
def test_what_a_server_asks_for_each_may_be_used_up(foreign, syscall, code, name, fix):
    served(foreign)
    kept_out(foreign, "protocol")
    foreign.add("events", at_s=1.3, event="upgrade_refused", detail="HTTP 500: sorry")
    foreign.add("connection_fates", at_s=2.0, pid=800, fate="accepted", connection_total=100,
                first_s=0.0, last_s=1.6)  # fmt: skip
    foreign.add("failing_syscalls", at_s=1.6, pid=800, syscall=syscall, errno=code,
                errno_name=name, event_count=40, first_s=1.2, last_s=1.6)  # fmt: skip
    finding = named(foreign, "own-limit")
    assert finding.value_of("used_up_calls", syscall) == 40
    assert f"{syscall} returned {name} (" in finding.sentence
    assert finding.fix[0].command.startswith(fix)


@pytest.mark.parametrize(("state", "is_named"), [("stopped", False), ("sleeping", True)])
def test_who_was_stopped_by_a_signal_has_no_limit_of_its_own(foreign, state, is_named):
    served(foreign)
    kept_out(foreign, "timeout")
    foreign.add("connection_fates", at_s=2.5, pid=800, fate="accepted", connection_total=60,
                first_s=0.0, last_s=0.9)  # fmt: skip
    for at_s in (1.5, 2.0, 2.5):
        foreign.add("open_fates", at_s=at_s, pid=800, local_port=9000, fate="unaccepted",
                    socket_count=40)  # fmt: skip
        foreign.add("process_samples", at_s=at_s, pid=800, role="server", state=state)
    found = {f.cause for f in summarise(foreign.frames()).findings}
    assert ("own-limit" in found) is is_named


def test_a_store_that_closes_those_beyond_its_number_is_named_not_who_answers_for_it(foreign):
    """As Redis does at maxclients: an error, and a close; its client answers 500."""
    served(foreign)
    kept_out(foreign, "protocol")
    foreign.add("events", at_s=1.3, event="upgrade_refused", detail="HTTP 500: sorry")
    store = foreign.process("backend", 1)
    foreign.live(store, 1.0, open_count=60)
    for pid in (800, store):
        foreign.add("connection_fates", at_s=2.0, pid=pid, fate="accepted", connection_total=100,
                    first_s=0.0, last_s=1.6)  # fmt: skip
        foreign.add("connection_fates", at_s=2.0, pid=pid, fate="closed_answered",
                    connection_total=40, at_once_total=40, first_s=1.2, last_s=1.6)  # fmt: skip
    finding = named(foreign, "own-limit")
    assert (finding.subject.pid, finding.at_connections) == (store, 60)


@pytest.mark.parametrize(("count", "is_named"), [(40, True), (9, False)])
def test_who_closes_each_since_its_own_connect_failed_has_nobody_behind_it(
    foreign, count, is_named
):
    kept_out(foreign, "eof")
    foreign.add("server_words", at_s=1.3, pid=800, source="server.log", event_count=count,
                line="Error: connect ECONNREFUSED 127.0.0.1:6379", first_s=1.2)  # fmt: skip
    found = {f.cause: f for f in summarise(foreign.frames()).findings}
    assert ("backend-unavailable" in found) is is_named
    if is_named:
        assert found["backend-unavailable"].sentence.endswith("it closed 40 handshakes")
        assert found["upgrade-refused"].severity == "contributing"


def test_who_names_itself_by_an_address_has_the_setting_of_its_program():
    settings = [{"name": "t", "value": 20, "file": "", "line": 0, "text": ""}]
    limit = name_limit("puma 5.6.5 (tcp://127.0.0.1:9001) [app]", {"settings": settings}, 20, 0, 90)
    assert limit.raise_it.startswith("puma -t 99:99")
    other = name_limit("app", {"settings": settings}, 20, 0, 90)
    assert other.raise_it.startswith("-t 99  #")
