"""What is said of a server that is not ours, on built tables."""

from __future__ import annotations

import pytest

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


def test_closing_without_a_word_is_a_refusal_of_less_confidence(foreign):
    accepted(foreign, 0)
    foreign.connect(100, stage="handshake", close_kind="eof")
    (finding,) = summarise(foreign.frames()).findings
    assert (finding.cause, finding.confidence) == ("upgrade-refused", "medium")


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
    assert any(command.startswith("prlimit --pid 800 --nofile=") for command in commands)
    assert not any("--workers" in command for command in commands)


def test_accepted_and_never_answered(foreign):
    accepted(foreign, 100)
    foreign.connect(100, stage="handshake", close_kind="timeout", errno=110, closed_s=3.0)
    (finding,) = summarise(foreign.frames()).findings
    assert finding.cause == "upgrade-unanswered"
    assert finding.subject.pid == 800


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
