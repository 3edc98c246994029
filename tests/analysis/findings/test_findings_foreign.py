"""What is said of a server that is not ours, on built tables."""

from __future__ import annotations

import pytest

from analysis.server.refusal_help import refusal_help
from analysis.summary import summarise


@pytest.fixture
def foreign(build):
    """One process of node, 20 own descriptors of 400, and a client."""
    build.manifest["server"] = {
        "foreign": True,
        "command": [],
        "processes": [{"pid": 800, "worker": 0, "command": "node server.js"}],
    }
    build.manifest["settings"]["connect_timeout_s"] = 2.0
    build.manifest["target_connections"] = 100
    build.stages(ramp_s=4.0, hold_s=1.0)
    build.process("server", 0, nofile_soft_count=400, own_fds_count=20)
    build.process("client", 0)
    build.health("failing_syscalls", "live_samples", "process_samples")
    return build


def causes(build):
    return [finding.cause for finding in summarise(build.frames()).findings]


def accepted(build, count):
    for tenth in range(5):
        build.live(800, tenth * 1.0, open_count=count)


def test_a_status_instead_of_the_upgrade_is_named_with_the_process(foreign):
    accepted(foreign, 0)
    foreign.connect(100, stage="handshake", close_kind="protocol")
    foreign.add("events", at_s=0.1, event="upgrade_refused", detail="HTTP 401: who are you")
    summary = summarise(foreign.frames())
    (finding,) = summary.findings
    assert finding.cause == "upgrade-refused"
    assert {100, 401} <= {evidence.value for evidence in finding.evidence}
    assert "node server.js, pid 800" in summary.verdict.sentence
    assert "HTTP 401: who are you" in summary.verdict.sentence
    assert "Authorization" in finding.fix[0].command


@pytest.mark.parametrize(
    ("may_raise", "hard", "nofile"), [(True, 20_000, 65_535), (False, 20_000, 20_000)]
)
def test_the_first_fix_of_a_server_that_the_run_starts_can_be_run(foreign, may_raise, hard, nofile):
    foreign.manifest["server"]["command"] = ["node", "server.js"]
    foreign.manifest["host"] |= {
        "may_raise_nofile": may_raise, "limits": {"nofile_hard_count": hard}
    }  # fmt: skip
    full(foreign)
    limit = by_cause(foreign)["fd-limit-process"]
    assert limit.fix[0].command == f"profile-run --nofile {nofile}"


@pytest.mark.parametrize(
    ("settings", "command"),
    [
        ([("/srv/run.sh", 2, 400, "ulimit -n 400")],
         "20000 instead of 400 in /srv/run.sh:2  # ulimit -n 400"),
        ([("", 1, 400, "ulimit -n 400; exec node server.js")],
         "20000 instead of 400 in --server-cmd  # ulimit -n 400; exec node server.js"),
        ([("/srv/run.sh", 2, 400, "WORKERS=400"), ("/srv/run.sh", 3, 500, "ulimit -n 500")],
         "ulimit -n 20000  # in what starts it: it has 400 of the 20,000 that this run gave"),
    ],
)  # fmt: skip
def test_a_limit_that_the_server_s_launcher_set_is_raised_there(foreign, settings, command):
    names = ("file", "line", "value", "text")
    foreign.manifest["server"] |= {
        "command": ["sh", "run.sh"],
        "settings": [{"name": "n", **dict(zip(names, each, strict=True))} for each in settings],
    }
    foreign.manifest["host"]["limits"] = {"nofile_soft_count": 20_000, "nofile_hard_count": 20_000}
    foreign.manifest["host"]["may_raise_nofile"] = False
    full(foreign)
    limit = by_cause(foreign)["fd-limit-process"]
    assert limit.fix[0].command == command
    assert not any("profile-run" in fix.command for fix in limit.fix)


@pytest.mark.parametrize(
    ("said", "sentence", "command"),
    [
        ("HTTP 302: Location: /v2/chat", "refused 100 handshakes with HTTP 302: Location: /v2/chat",
         "profile-run --path /v2/chat  "),
        ("HTTP 301: Location: https://a.example/s?x=1&y=2; moved", "with HTTP 301: Location",
         "profile-run --target 'wss://a.example/s?x=1&y=2'  "),
        ("the reply names a subprotocol that was not offered: Sec-WebSocket-Protocol: chat.v2",
         "upgraded none of 100 handshakes: the reply names", "profile-run --subprotocol chat.v2 "),
        ("the reply is TLS", "upgraded none of 100 handshakes: the reply is TLS",
         "profile-run --target wss://127.0.0.1:9001/chat --insecure"),
        ("the reply is HTTP/2", "the reply is HTTP/2", "let the server speak HTTP/1.1 too"),
        ("TLS: the server's certificate was refused: self-signed certificate",
         "upgraded none of 100 handshakes: TLS", "profile-run --ca FILE"),
        ("the reply names an extension that was not offered", "extension", "turn compression off"),
        ("the reply's Sec-WebSocket-Accept does not match the key", "Accept", "correct the server"),
        ("HTTP 404: not found", "refused 100 handshakes with HTTP 404", "profile-run --path PATH"),
    ],
)  # fmt: skip
def test_each_way_to_refuse_has_its_own_fix(foreign, said, sentence, command):
    foreign.manifest["server"]["url"] = "ws://127.0.0.1:9001/chat"
    accepted(foreign, 0)
    foreign.connect(100, stage="handshake", close_kind="protocol")
    foreign.add("events", at_s=0.1, event="upgrade_refused", detail=said)
    summary = summarise(foreign.frames())
    (finding,) = summary.findings
    assert sentence in finding.sentence
    assert finding.fix[0].command.startswith(command)


@pytest.mark.parametrize(
    ("said", "late_s", "front", "commands"),
    [
        ('HTTP 400: {"code":0,"message":"Transport unknown"}', 0.0, "node app.js",
         ["--path '/socket.io/?EIO=4&transport=websocket'"]),
        ("HTTP 404: Not Found", 0.0, "node app.js", ["--path PATH", "/socket.io/"]),
        ("", 1.0, "node app.js", ["/socket.io/", "--target wss://"]),
        ("", 0.01, "node app.js", ["--target wss://", "/socket.io/"]),
        ("HTTP 426: invalid Connection header: close", 0.0, "nginx: worker process",
         ["proxy_set_header Upgrade $http_upgrade"]),
        ("HTTP 400: websocket: 'upgrade' token not found in 'Connection' header", 0.0, "haproxy",
         ["let haproxy pass the headers Upgrade and Connection on"]),
        ('HTTP 400: Can "Upgrade" only to "WebSocket".', 0.0, "apache2 -k start",
         ["upgrade=websocket"]),
        ("HTTP 426: Upgrade Required", 0.0, "node app.js", ["--subprotocol"]),
    ],
)  # fmt: skip
def test_what_helps_a_handshake_follows_from_who_refused_it(said, late_s, front, commands):
    status = int(said[5:8]) if said.startswith("HTTP") else 0
    found = refusal_help(status, said, "ws://h:1/", late_s=late_s, front=front, is_proxy=False)
    assert len(found) == len(commands)
    assert all(part in command for part, command in zip(commands, found, strict=True))


def test_a_server_that_keeps_so_many_and_closes_the_others_has_a_limit_of_its_own(foreign):
    foreign.manifest["server"]["processes"][0]["settings"] = [
        {"name": "max_per_ip", "value": 60, "file": "/srv/app.py", "line": 3,
         "text": "MAX_PER_IP = 60"}
    ]  # fmt: skip
    accepted(foreign, 100)
    foreign.connect(60)
    for number in range(40):
        foreign.connect(1, stage="closed", close_kind="close", from_s=1.2 + number / 100,
                        closed_s=1.21 + number / 100)  # fmt: skip
    foreign.add("events", at_s=2.0, event="connection_closed",
                detail="code 1008: too many connections from your address")  # fmt: skip
    found = by_cause(foreign)
    limit = found["own-limit"]
    assert (limit.severity, limit.value_of("let_in")) == ("binding", 60)
    assert "right after their upgrade, code 1008: too many" in limit.sentence
    assert limit.fix[0].command.startswith(("105 instead of 60", "110 instead of 60"))
    assert any("--source-addresses 2" in fix.command for fix in limit.fix)
    assert found["closed-by-server"].follows_from == "own-limit"


@pytest.mark.parametrize("what", ["all", "mixed", "late"])
def test_closes_that_follow_no_number_are_no_limit(foreign, what):
    """Who closes everybody, some of all, or each after a while has another reason."""
    accepted(foreign, 100)
    foreign.connect(60 if what == "late" else 0)
    for number in range(80):
        at_s = number / 80
        if what == "mixed" and number % 2:
            foreign.connect(1, from_s=at_s)
            continue
        closed_s = at_s + (2.0 if what == "late" else 0.01)
        foreign.connect(1, stage="closed", close_kind="close", from_s=at_s, closed_s=closed_s)
    foreign.add("events", at_s=2.0, event="connection_closed", detail="code 1008: no")
    assert "own-limit" not in by_cause(foreign)


def test_a_full_host_explains_little_beside_a_worker_that_died_with_most(foreign):
    foreign.process("server", 1, exited_s=1.0, exit_status=1)
    accepted(foreign, 100)
    for quarter in range(4):
        foreign.live(801, quarter / 4, open_count=90)
    foreign.connect(10)
    foreign.connect(90, stage="closed", close_kind="eof", closed_s=1.0)
    foreign.connect(2, stage="handshake", close_kind="timeout", closed_s=3.5)
    foreign.host_cpu(100, from_s=-0.5, until_s=6.0)
    for pid in (800, 801):
        foreign.cpu(pid, 10.0, from_s=-0.5, until_s=6.0, wait_pct=40.0)
    foreign.cpu(900, 10.0, from_s=-0.5, until_s=6.0, wait_pct=40.0)
    found = by_cause(foreign)
    assert "host-cpu-saturated" in found
    assert found["worker-crash"].severity == "binding"


@pytest.mark.parametrize("how", ["log", "answer"])
def test_a_proxy_that_holds_all_for_down_asks_nobody(foreign, how):
    accepted(foreign, 0)
    foreign.connect(100, stage="handshake", close_kind="protocol")
    body = ": No server is available to handle this request" if how == "answer" else ""
    foreign.add("events", at_s=0.1, event="upgrade_refused", detail=f"HTTP 503{body}")
    if how == "log":
        foreign.add("server_words", at_s=0.2, first_s=-0.5, pid=800, source="server.log",
                    line="backend b has no server available!", event_count=1)  # fmt: skip
    found = by_cause(foreign)
    assert found["backend-unavailable"].severity == "binding"
    assert "holds them all for down" in found["backend-unavailable"].sentence
    assert found["upgrade-refused"].follows_from == "backend-unavailable"


def test_closing_without_a_word_is_a_refusal_of_less_confidence(foreign):
    accepted(foreign, 0)
    foreign.connect(100, stage="handshake", close_kind="eof")
    (finding,) = summarise(foreign.frames()).findings
    assert (finding.cause, finding.confidence) == ("upgrade-refused", "medium")
    assert "closed 100 handshakes without a word" in finding.sentence
    assert "--target wss://" in finding.fix[0].command  # a TLS server closes so


def test_closing_at_the_descriptor_limit_is_no_refusal(foreign):
    accepted(foreign, 380)
    foreign.connect(50)
    foreign.connect(50, from_s=1.0, until_s=2.0, stage="handshake", close_kind="rst", errno=104)
    foreign.add(
        "failing_syscalls", at_s=1.2, pid=800, syscall="accept4", errno=24, errno_name="EMFILE",
        event_count=50, first_s=1.0, last_s=1.2,
    )  # fmt: skip
    found = summarise(foreign.frames()).findings
    named = {finding.cause: finding for finding in found}
    assert "server-resets-when-full" in named
    assert "upgrade-refused" not in named
    limit = named["fd-limit-process"]
    assert limit.subject.command == "node server.js"
    commands = [fix.command for fix in limit.fix]
    assert commands[0].startswith("prlimit --pid 800 --nofile=")  # can be pasted as it stands
    assert not any("--workers" in command for command in commands)


def test_a_server_that_listens_on_another_family_refuses_every_connect(foreign):
    accepted(foreign, 0)
    foreign.connect(100, stage="connect", close_kind="refused", errno=111)
    (finding,) = summarise(foreign.frames()).findings
    assert finding.cause == "upgrade-refused"
    assert "upgraded none of 100 handshakes: ECONNREFUSED" in finding.sentence
    assert "0.0.0.0" in finding.fix[0].command
    assert "TCP connection" not in finding.explanation  # it took none


@pytest.mark.parametrize(
    ("kind", "said", "sentence", "command"),
    [
        ("close", "code 4401: token missing", "closed 100 open connections with code 4401: token",
         "profile-run --header 'Authorization"),
        ("close", "code 1013: too busy", "with code 1013: too busy", "profile-run --ramp RATE"),
        ("close", "code 1009", "with code 1009, 2.0 s after the upgrade", "profile-run --payload"),
        ("close", "code 1000", "with code 1000", "profile-run --message-rate 100  "),
        ("close", "code 1011: oops", "with code 1011", "profile-run --message-rate"),
        ("protocol", "a frame of the server: reserved bit set",
         "broke the protocol on 100 open connections", "turn compression off"),
        ("protocol", "a frame of the server: text is not UTF-8",
         "broke the protocol on 100 open connections", "correct what the server sends"),
        ("close", "code 4000: idle timeout",
         "closed 100 open connections with code 4000: idle", "profile-run --message-rate"),
        ("eof", "", "closed 100 open connections without a close frame", "profile-run --message"),
    ],
)  # fmt: skip
def test_open_connections_that_the_server_closes_are_told_with_code_and_reason(
    foreign, kind, said, sentence, command
):
    accepted(foreign, 100)
    foreign.connect(100, stage="closed", close_kind=kind, closed_s=2.0, from_s=0.0, until_s=0.001)
    if said:
        foreign.add("events", at_s=2.0, event="connection_closed", detail=said)
    summary = summarise(foreign.frames())
    (finding,) = summary.findings
    assert (finding.cause, finding.severity) == ("closed-by-server", "binding")
    assert finding.confidence == ("high" if said else "medium")
    assert sentence in summary.verdict.sentence
    assert "node server.js, pid 800" in summary.verdict.sentence
    assert finding.fix[0].command.startswith(command)


@pytest.mark.parametrize(
    ("ends", "died", "is_named"),
    [
        ({"close": 9}, False, False),  # of 1,000: no limit
        ({"close": 9, "eof": 200}, False, True),
        ({"eof": 200}, True, False),  # that is worker-crash
        ({"close": 200}, True, True),  # it said goodbye before
    ],
)
def test_a_few_clients_and_those_of_a_server_that_died_were_not_closed_by_it(
    foreign, ends, died, is_named
):
    accepted(foreign, 100)
    foreign.connect(1000)
    for kind, count in ends.items():
        foreign.connect(count, stage="closed", close_kind=kind, closed_s=2.0)
    if died:
        foreign.process("server", 1, exited_s=2.0, exit_signal=9)
    foreign.manifest["target_connections"] = 2000
    assert ("closed-by-server" in causes(foreign)) is is_named


def test_accepted_and_never_answered(foreign):
    accepted(foreign, 100)
    foreign.connect(100, stage="handshake", close_kind="timeout", errno=110, closed_s=3.0)
    (finding,) = summarise(foreign.frames()).findings
    assert finding.cause == "upgrade-unanswered"
    assert finding.subject.pid == 800


def test_a_proxy_whose_backend_lets_nobody_in_does_not_speak_another_protocol(foreign):
    accepted(foreign, 100)
    foreign.connect(100, stage="handshake", close_kind="timeout", errno=110, closed_s=3.0)
    behind = foreign.process("backend", 0, start_s=-0.5)
    foreign.add("connection_fates", at_s=2.0, pid=behind, fate="accepted", connection_total=60,
                first_s=0.0, last_s=0.9)  # fmt: skip
    for at_s in (1.5, 2.0, 2.5):
        foreign.add("unix_listeners", at_s=at_s, pid=behind, path="/run/app", socket_inode=7,
                    accept_queue_count=40, backlog_count=512)  # fmt: skip
    (finding,) = summarise(foreign.frames()).findings
    assert (finding.cause, finding.subject.pid) == ("own-limit", behind)


def test_neither_in_a_server_that_established_some_or_accepted_none(foreign):
    accepted(foreign, 0)
    foreign.connect(100, stage="handshake", close_kind="timeout", errno=110, closed_s=3.0)
    assert not {"upgrade-refused", "upgrade-unanswered"} & set(causes(foreign))


def test_a_healthy_foreign_run_names_nothing_and_has_no_loop_lag_of_its_server(foreign):
    accepted(foreign, 100)
    foreign.connect(100)
    summary = summarise(foreign.frames())
    assert [finding.cause for finding in summary.findings] == ["reached"]
    assert "server" not in set(summary.loop_lag["role"])


# -- what other runtimes do at their descriptor limit ----------------------------------------------


def full(build, call="accept4", rate=50, syscalls=()):
    """380 of 380 connections, 100 clients hang, and calls fail from second 1 to second 5."""
    accepted(build, 380)
    build.connect(380)
    build.connect(
        100, from_s=1.0, until_s=1.5, stage="handshake", close_kind="timeout", errno=110,
        closed_s=4.0,
    )  # fmt: skip
    build.manifest["target_connections"] = 600
    for name in (call, *syscalls):
        for i in range(8):
            build.add(
                "failing_syscalls", at_s=1.5 + 0.5 * i, pid=800, syscall=name, errno=24,
                errno_name="EMFILE", event_count=rate // 2, first_s=1.0 + 0.5 * i,
                last_s=1.5 + 0.5 * i,
            )  # fmt: skip


def by_cause(build):
    return {finding.cause: finding for finding in summarise(build.frames()).findings}


def test_clients_that_hang_at_the_limit_are_counted(foreign):
    full(foreign)
    found = by_cause(foreign)
    assert set(found) == {"fd-limit-process"}
    limit = found["fd-limit-process"]
    assert limit.value_of("handshakes_unanswered") == 100
    assert "they hang" in limit.explanation
    # the first of the tries is at 1.0 s, the last at 5.0 s
    assert "It keeps its listener and tries 50 times a second" in limit.explanation


def test_asyncio_s_loop_is_explained_from_a_single_sample(foreign):
    """py-spy is starved by what it looks at; its share is then not known."""
    full(foreign, rate=15_000)
    foreign.cpu(800, 99, from_s=0.5, until_s=5.0)
    accept = "BaseSelectorEventLoop._accept_connection (asyncio/selector_events.py:180)"
    stacks(
        foreign, "python_stacks",
        (f"run (runners.py:1);{accept};socket.accept (python3.11/socket.py:294)", 1),
    )  # fmt: skip
    spin = by_cause(foreign)["accept-spin"]
    assert "_accept_connection (asyncio/selector_events.py), at" in spin.sentence
    assert "the loop comes back to it again and again" in spin.explanation
    assert "asyncio goes on for the length of the backlog" in spin.explanation
    assert "the loop returns at once" not in spin.explanation
    assert any("backlog=100" in fix.command for fix in spin.fix)


def test_accept_counts_as_accept4_does(foreign):
    """The JDK calls accept."""
    full(foreign, call="accept", rate=400_000)
    foreign.cpu(800, 99, from_s=0.5, until_s=5.0)
    found = by_cause(foreign)
    assert found["fd-limit-process"].value_of("emfile_calls", "accept") == 1_600_000
    assert "spins in accept:" in found["accept-spin"].sentence


def stacks(build, table, *rows, from_s=1.1):
    for stack, count in rows:
        column = "stack" if table == "python_stacks" else "user_stack"
        build.add(table, at_s=from_s, pid=800, sample_count=count, **{column: stack})


def test_the_caller_of_accept_is_named_from_native_stacks(foreign):
    full(foreign, rate=900_000)
    foreign.cpu(800, 99, from_s=0.5, until_s=5.0)
    stacks(
        foreign, "cpu_stacks",
        ("main;uv_run;uv__io_poll;uv__server_io;accept4", 40),
        ("main;uv_run;uv__io_poll;epoll_pwait", 30), ("[unknown];libc.so.6+0x1f", 30),
    )  # fmt: skip
    spin = by_cause(foreign)["accept-spin"]
    assert spin.value_of("function_samples", "uv__server_io") == 40
    assert spin.value_of("function_samples", "uv__io_poll") == 70
    assert "main > uv_run > uv__io_poll > uv__server_io, 40 % of its samples" in spin.explanation


def test_compiled_code_without_a_name_gives_way_to_a_function_that_is_called_after_accept(foreign):
    full(foreign, rate=150_000)
    foreign.cpu(800, 99, from_s=0.5, until_s=5.0)
    stacks(
        foreign, "cpu_stacks",
        ("main;JavaCalls::call_helper;[anon]+0xcc8;accept", 10),
        ("[anon]+0x3e54b;[anon]+0x178;Java_sun_nio_ch_Net_accept;jni_Throw", 30),
        ("[unknown];fill_in_stack_trace", 60),
    )  # fmt: skip
    spin = by_cause(foreign)["accept-spin"]
    assert spin.value_of("function_samples", "Java_sun_nio_ch_Net_accept") == 30


@pytest.mark.parametrize("accepts", [True, False])
def test_a_loop_that_logs_each_failure_spins_where_its_stacks_say_so(foreign, accepts):
    """At a full core it fails less often, as a worker does that is busy with something else."""
    full(foreign, rate=4_000)
    foreign.cpu(800, 99, from_s=0.5, until_s=5.0)
    turn = "_accept_connection (loop.py:9)" if accepts else "render (views.py:9)"
    stacks(foreign, "python_stacks", (f"run (app.py:1);{turn};emit (log.py:3)", 90))
    found = by_cause(foreign)
    assert ("accept-spin" in found) is accepts
    if accepts:
        assert found["accept-spin"].value_of("function_samples", "emit (log.py)") == 100
        assert (
            found["accept-spin"].value_of("function_samples", "_accept_connection (loop.py)") == 100
        )


@pytest.mark.parametrize(("rate", "spins"), [(6_500, True), (3_500, False)])
def test_thousands_of_failures_at_a_full_core_are_a_spin_without_stacks(foreign, rate, spins):
    full(foreign, rate=rate)
    foreign.cpu(800, 97, from_s=0.5, until_s=5.0)
    assert ("accept-spin" in by_cause(foreign)) is spins


@pytest.mark.parametrize(
    ("cpu_pct", "turn", "spins"),
    [
        (35, "_accept_connection (loop.py:9);emit (log.py:3)", True),
        (35, "render (views.py:9)", False),
        (12, "_accept_connection (loop.py:9);emit (log.py:3)", False),
    ],
)
def test_with_a_part_of_a_core_it_spins_where_that_part_goes_into_accepts(
    foreign, cpu_pct, turn, spins
):
    """Others want the core, a quota holds it, or it rests between its tries."""
    full(foreign, rate=2_500 if cpu_pct > 20 else 1_800)
    foreign.cpu(800, cpu_pct, from_s=0.5, until_s=5.0)
    stacks(foreign, "python_stacks", (f"run (app.py:1);{turn}", 30))
    found = by_cause(foreign)
    assert ("accept-spin" in found) is spins
    if spins:
        assert "called by _accept_connection (loop.py)" in found["accept-spin"].sentence


@pytest.mark.parametrize(
    ("rate", "accepts_count", "spins"), [(4_000, 20, True), (4_000, 5, False), (3_000, 20, False)]
)
def test_often_for_the_cpu_that_it_got_a_tenth_of_its_stacks_will_do(
    foreign, rate, accepts_count, spins
):
    """At 70 % of a core: of stacks that nothing stops for, some are torn."""
    full(foreign, rate=rate)
    foreign.cpu(800, 70, from_s=0.5, until_s=5.0)
    stacks(
        foreign, "python_stacks",
        ("run (app.py:1);_accept_connection (loop.py:9)", accepts_count),
        ("run (app.py:1);render (views.py:9)", 100 - accepts_count),
    )  # fmt: skip
    assert ("accept-spin" in by_cause(foreign)) is spins


# -- a server that accepts and closes fails as often as clients come -------------------------------


def reset(build, count):
    build.connect(count, from_s=1.0, until_s=5.0, stage="handshake", close_kind="rst", errno=104)


@pytest.mark.parametrize(("resets_count", "spins"), [(6_000, False), (4, True)])
def test_clients_that_are_reset_tell_a_reserve_descriptor_from_a_spin(foreign, resets_count, spins):
    """12,000 failures in four seconds at 20 % of a core, of either kind."""
    full(foreign, rate=3_000)
    foreign.cpu(800, 20, from_s=0.5, until_s=5.0)
    reset(foreign, resets_count)
    found = by_cause(foreign)
    assert "server-resets-when-full" in found
    assert ("accept-spin" in found) is spins


@pytest.mark.parametrize(("accepted_count", "spins"), [(7_500, False), (2, True)])
def test_what_its_calls_return_comes_before_what_clients_saw(foreign, accepted_count, spins):
    full(foreign, rate=15_000)
    foreign.cpu(800, 25, from_s=0.5, until_s=5.0)
    foreign.add(
        "syscall_mix", at_s=3.0, pid=800, syscall="accept4",
        event_count=7_500 + accepted_count, failed_count=7_500,
    )  # fmt: skip
    assert ("accept-spin" in by_cause(foreign)) is spins


@pytest.mark.parametrize(("sent_count", "spins"), [(40_000, False), (40, True)])
def test_of_a_watched_server_the_resets_that_it_sent_tell(foreign, sent_count, spins):
    full(foreign, rate=15_000)
    foreign.connections = {}
    foreign.manifest["server"]["attached"] = True
    foreign.cpu(800, 25, from_s=0.5, until_s=5.0)
    foreign.add(
        "tcp_resets", at_s=3.0, direction="tx", side="server", event_count=sent_count, first_s=1.1
    )
    found = by_cause(foreign)
    assert ("accept-spin" in found) is spins
    assert ("server-resets-when-full" in found) is not spins


@pytest.fixture
def proxy(foreign):
    """Two descriptors a connection: 190 connections fill 380; the rest is refused."""
    accepted(foreign, 380)
    foreign.connect(190)
    foreign.add(
        "failing_syscalls", at_s=1.5, pid=800, syscall="socket", errno=24, errno_name="EMFILE",
        event_count=50, first_s=1.0, last_s=1.5,
    )  # fmt: skip
    foreign.manifest["target_connections"] = 240
    return foreign


def refused(build, status, at_s):
    build.connect(50, from_s=at_s, until_s=at_s + 0.1, stage="handshake", close_kind="protocol")
    build.add("events", at_s=at_s, event="upgrade_refused", detail=f"HTTP {status}: sorry")


def test_a_full_proxy_refuses_because_it_is_full(proxy):
    refused(proxy, 500, 1.2)
    found = by_cause(proxy)
    limit = found["fd-limit-process"]
    assert limit.severity == "binding"
    assert limit.value_of("emfile_calls", "socket") == 50
    assert limit.value_of("descriptors_per_connection") == 2
    assert found["upgrade-refused"].follows_from == "fd-limit-process"
    (rung,) = [
        rung for rung in summarise(proxy.frames()).ladder
        if rung.limit == "fds_per_process" and "800" in rung.subject
    ]  # fmt: skip
    assert rung.predicted_connections == 190
    # in connections of clients, of which each takes two descriptors
    assert "for 190 connections" in limit.sentence
    assert "from about 190 connections" in limit.fix[0].effect
    assert limit.fix[-1].effect.startswith("190 connections a process")


def test_a_proxy_without_ports_is_the_server_s_side(proxy):
    proxy.rows["failing_syscalls"].clear()
    proxy.manifest["plan"]["port_range"] = [40_000, 40_189]
    proxy.add(
        "failing_syscalls", at_s=1.5, pid=800, syscall="connect", errno=99,
        errno_name="EADDRNOTAVAIL", event_count=50, first_s=1.1, last_s=1.5,
    )  # fmt: skip
    refused(proxy, 502, 1.2)
    proxy.rows["processes"][0]["nofile_soft_count"] = 20_000
    found = by_cause(proxy)
    ports = found["ephemeral-ports-exhausted"]
    assert (ports.severity, ports.side, ports.subject.pid) == ("binding", "server", 800)
    assert ports.value_of("eaddrnotavail_calls", "connect") == 50
    assert ports.value_of("port_range_size") == 190
    assert found["upgrade-refused"].follows_from == "ephemeral-ports-exhausted"
    assert "--source-addresses" not in str(ports.fix)


def test_credentials_that_are_missing_are_no_consequence_of_a_limit(proxy):
    refused(proxy, 403, 1.2)
    assert by_cause(proxy)["upgrade-refused"].follows_from == ""
