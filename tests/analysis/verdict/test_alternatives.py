"""When the verdict names two explanations, and what it says would decide."""

from __future__ import annotations

import json

import pytest

from analysis.causes import CAUSE_IDS
from analysis.evidence import Evidence, Finding, Fix, Subject
from analysis.frames.run_view import RunView
from analysis.verdict.alternatives import alternatives, how_to_decide, tolerance_s
from analysis.verdict.verdict import conclude


def finding(cause, *, first_s=1.0, table="failing_syscalls", explained=23, **values):
    defaults = {"severity": "warning", "side": "server", "subject": Subject("server", 800, 0)}
    return Finding(
        **{
            "cause": cause,
            "first_s": first_s,
            "last_s": 5.0,
            "evidence": (Evidence("emfile_calls", 1009, table, first_s),),
            "explanation": f"It was {cause}.",
            "fix": (Fix("sysctl -w net.core.somaxconn=4096", "moves it"),),
            "explained_count": explained,
            **defaults,
            **values,
        }
    )


def binding(cause="fd-limit-process", **values):
    return finding(cause, severity="binding", **values)


def causes_of(*findings):
    return [a.cause for a in alternatives(findings)]


def test_two_that_began_together_are_both_named():
    rival = finding("hot-worker-code", first_s=1.3, table="process_samples")
    (other,) = alternatives([binding(), rival])
    assert (other.cause, other.side) == ("hot-worker-code", "server")
    assert "23 connections" in other.why
    assert "0.300 s apart" in other.why
    assert "0.5 s" in other.why
    assert "--nofile" in other.decide


def test_the_one_that_explains_most_comes_first():
    few = finding("worker-blocked", table="live_samples", explained=2)
    many = finding("accept-queue-overflow", table="live_samples", explained=99)
    assert causes_of(binding(), few, many) == ["accept-queue-overflow", "worker-blocked"]


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(finding("worker-crash", first_s=1.5), id="exact tables, half a second later"),
        pytest.param(finding("worker-crash", explained=0), id="it explains no connection"),
        pytest.param(
            finding("accept-spin", follows_from="fd-limit-process"), id="it is a consequence"
        ),
        pytest.param(finding("fd-limit-process"), id="the same cause again"),
    ],
)
def test_what_is_ruled_out_is_no_alternative(other):
    assert causes_of(binding(), other) == []


def test_the_same_cause_on_the_other_side_is_one():
    assert causes_of(binding(), finding("fd-limit-process", side="client")) == ["fd-limit-process"]


def test_a_binding_finding_of_low_confidence_has_rivals_at_any_time():
    late = finding("worker-crash", first_s=4.0)
    assert causes_of(binding(), late) == []
    (other,) = alternatives([binding(confidence="low"), late])
    assert "fd-limit-process is low" in other.why


def test_nothing_binding_or_all_reached_has_none():
    rival = finding("worker-crash")
    assert causes_of(rival) == []
    assert causes_of(binding("reached"), rival) == []


def test_a_sample_is_as_late_as_its_period():
    assert tolerance_s(finding("worker-crash")) == 0.001
    assert tolerance_s(finding("worker-crash", table="live_samples")) == 0.25
    assert tolerance_s(finding("worker-crash", table="manifest")) == 0.6


def test_every_pair_has_something_that_decides():
    for one in CAUSE_IDS:
        for other in CAUSE_IDS:
            assert how_to_decide(one, other) == how_to_decide(one, other).strip() != ""
    pair = how_to_decide("fd-limit-process", "fd-limit-system")
    assert pair == how_to_decide("fd-limit-system", "fd-limit-process")
    assert "ENFILE" in pair


def test_the_sentence_says_both(small_run):
    rival = finding("hot-worker-code", first_s=1.3, table="process_samples")
    verdict = conclude(RunView(small_run), [binding(), rival], [])
    assert verdict.alternatives[0].cause == "hot-worker-code"
    assert "it may as well be hot-worker-code (server)" in verdict.sentence
    assert verdict.alternatives[0].decide in verdict.sentence


def test_verdict_json_and_the_terminal_show_them(build, tmp_path):
    """No port at connect and no address at bind, from the same moment on."""
    from analysis.document import document
    from analysis.summary import summarise
    from reports.terminal.terminal import end_lines

    build.stages(1.0, 2.0)
    build.manifest["target_connections"] = 2000
    build.manifest["plan"] = {"port_range": [40000, 41008]}
    build.process("server", 0, nofile_soft_count=20_000)
    build.process("client", 0, nofile_soft_count=20_000)
    build.process("client", 1, nofile_soft_count=20_000)
    build.connect(1009, until_s=0.5)
    build.connect(23, from_s=0.6, until_s=0.7, stage="connect", errno=99, close_kind="error")
    build.connect(11, client=1, from_s=0.6, until_s=0.7, stage="bind", errno=99, close_kind="error")
    plain = json.loads(json.dumps(document(summarise(build.frames()))))
    assert plain["verdict"]["cause"] == "source-address-missing"  # it explains more, never tried
    (other,) = plain["verdict"]["alternatives"]
    assert set(other) == {"cause", "side", "why", "decide"}
    assert other["cause"] == "ephemeral-ports-exhausted"
    lines = end_lines(plain, tmp_path / "report.html", 100)
    assert any(line.startswith("or ") and "ephemeral-ports-exhausted" in line for line in lines)
