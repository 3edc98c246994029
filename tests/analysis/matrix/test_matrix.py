"""Rows side by side: ceilings, what moved them, what was expected; and the confusion table."""

from __future__ import annotations

import pytest

from analysis.matrix.confusion import confusion
from analysis.matrix.document import document
from analysis.matrix.matrix import Outcome, RowSpec, compare, effects


def spec(row_id, **changes):
    values = {"shows": row_id, "command": "profile-run", "options": {}}
    return RowSpec(id=row_id, **{**values, **changes})


def outcome(row, ceiling, cause="fd-limit-process", repeat=1, ladder=(), complaints=(), also=()):
    named = [
        {"cause": c, "severity": "binding" if c == cause else "warning"} for c in (cause, *also)
    ]
    return Outcome(
        row=row,
        repeat=repeat,
        state="done",
        took_s=1.0,
        verdict={"cause": cause, "sentence": "s", "side": "server"},
        facts={"peak_connections": ceiling},
        findings=named,
        ladder=ladder,
        figures={"ceiling_count": float(ceiling), "fullest_share": 1.0},
        complaints=complaints,
    )


def failed(row, repeat=1):
    return Outcome(row, repeat, "failed", 1.0, error="it hung")


def rung(limit, subject, predicted):
    return {"limit": limit, "subject": subject, "predicted_connections": predicted}


def moved(before, after, **changes):
    specs = [
        spec("a", options={"workers": 1, "gc": "on"}),
        spec("b", options={"workers": 2, "gc": "on"}, against="a", **changes),
    ]
    outcomes = [outcome("a", value, repeat=i) for i, value in enumerate(before, 1)]
    outcomes += [outcome("b", value, repeat=i) for i, value in enumerate(after, 1)]
    return compare(specs, outcomes)[1]


@pytest.mark.parametrize(
    ("before", "after", "direction"),
    [
        ([1000], [2000], "up"),
        ([2000], [1000], "down"),
        ([1000], [1029], "none"),
        ([1000], [1040], "up"),
        ([1000, 1100, 1200], [1150, 1250, 1190], "none"),
        ([1000, 1001, 1002], [1100, 1101, 1102], "up"),
    ],
)
def test_a_ceiling_moves_beyond_tolerance_and_noise(before, after, direction):
    move = moved(before, after).move
    assert move.direction == direction
    assert move.changed == ("workers 1 → 2",)
    assert move.cause_before == move.cause_after == "fd-limit-process"


def test_by_how_much_in_connections_and_percent():
    move = moved([1000], [1500]).move
    assert move.delta_count == 500
    assert move.delta_pct == 50
    assert not move.at_least


def test_a_row_that_reached_its_target_moved_at_least_so_far():
    specs = [spec("a"), spec("b", against="a")]
    result = compare(specs, [outcome("a", 100), outcome("b", 150, cause="reached")])[1]
    assert result.has_reached
    assert result.move.at_least


@pytest.mark.parametrize(("expected", "held"), [("up", True), ("none", False), ("down", False)])
def test_an_expected_move_is_held_against_what_happened(expected, held):
    result = moved([1000], [1500], move=expected, has_expectation=True)
    assert result.held is held
    assert bool(result.complaints) is not held


def test_a_tolerance_of_the_row_s_own():
    assert moved([1000], [1100], tolerance_pct=12).move.direction == "none"


def test_an_expected_move_needs_the_other_row():
    specs = [spec("a"), spec("b", against="a", move="up", has_expectation=True)]
    result = compare(specs, [outcome("b", 100)])[1]
    assert result.held is False
    assert "a has no run" in result.complaints[0]


def test_bounds_of_figures_and_what_was_not_measured():
    bounds = {"ceiling_count": (90, 110), "fullest_share": (1, 1), "nothing": (0, 1)}
    specs = [spec("a", bounds=bounds, has_expectation=True)]
    result = compare(specs, [outcome("a", 111)])[0]
    assert result.held is False
    assert result.complaints == (
        "ceiling_count is 111, expected 90 to 110",
        "nothing was not measured",
    )


def test_a_failed_run_is_a_complaint_and_leaves_the_others():
    specs = [spec("a"), spec("b", against="a")]
    results = compare(specs, [failed("a"), outcome("b", 100)])
    assert results[0].held is False
    assert results[0].complaints == ("did not run: it hung",)
    assert results[0].cause == ""
    assert results[1].move is None
    assert results[1].held is None


def test_nothing_has_run_and_nothing_is_held():
    result = compare([spec("a", has_expectation=True)], [])[0]
    assert result.held is None
    assert result.shown is None
    assert result.ceiling.count == 0
    assert document([result])[0]["ceiling"] is None


def test_the_most_frequent_cause_stands_for_the_row():
    outcomes = [outcome("a", 100, cause="reached"), *(outcome("a", 90, repeat=i) for i in (2, 3))]
    result = compare([spec("a")], outcomes)[0]
    assert result.cause == "fd-limit-process"
    assert result.causes == {"reached": 1, "fd-limit-process": 2}
    assert result.shown.repeat == 2
    assert not result.has_reached


def test_rungs_of_servers_and_clients_before_and_after():
    old = [
        rung("fds_per_process", "worker 0 (pid 1, server)", 4000),
        rung("fds_per_process", "worker 1 (pid 2, server)", 3900),
        rung("fds_per_process", "client 0 (pid 3, client)", 9000),
        rung("memory", "the host", 10_000),
        rung("cpu_host", "the host", None),
    ]
    new = [rung("fds_per_process", "worker 0 (pid 9, server)", 7990), rung("memory", "h", 99_000)]
    specs = [spec("a"), spec("b", against="a")]
    outcomes = [outcome("a", 100, ladder=old), outcome("b", 100, ladder=new)]
    move = compare(specs, outcomes)[1].move
    by_name = {(r.limit, r.subject): (r.before, r.after) for r in move.rungs}
    assert by_name[("fds_per_process", "worker")] == (3900, 7990)
    assert by_name[("fds_per_process", "client")] == (9000, None)
    assert [r.limit for r in move.moved_rungs] == ["fds_per_process"]


def test_the_document_is_plain():
    specs = [spec("a"), spec("b", against="a", log="it fell", log_row=8)]
    entry = document(compare(specs, [outcome("a", 100), outcome("b", 200)]))[1]
    assert entry["ceiling"] == {"median": 200.0, "low": 200.0, "high": 200.0, "runs": 1}
    assert entry["move"]["delta_count"] == 100
    assert entry["log_row"] == 8
    assert entry["expectation_held"] is None


def test_a_spec_survives_json():
    before = spec("a", allowed=("x",), bounds={"n": (1.0, 2.0)}, log_ceiling=5.0)
    from dataclasses import asdict

    assert RowSpec.from_dict(asdict(before)) == before


def test_effects_take_the_other_options_together():
    specs = [
        spec(f"{accept}{keep}", options={"accept": accept, "keepalive": keep, "fixed": "1"})
        for accept in ("shared", "handoff")
        for keep in ("off", "5")
    ]
    outcomes = [outcome(s.id, 100 + 100 * i) for i, s in enumerate(specs)]
    found = {(e.option, e.value): e for e in effects(compare(specs, outcomes), ["ceiling_count"])}
    assert set(found) == {
        ("accept", "shared"), ("accept", "handoff"), ("keepalive", "off"), ("keepalive", "5")
    }  # fmt: skip
    handoff = found[("accept", "handoff")]
    assert handoff.row_count == 2
    assert handoff.figures["ceiling_count"].median == 350
    assert found[("keepalive", "5")].figures["ceiling_count"].low == 200


def test_confusion_counts_what_was_named_and_what_was_without_reason():
    specs = [
        spec("healthy", provoked="reached", has_expectation=True),
        spec("spin", provoked="accept-spin", allowed=("fd-limit-process",), has_expectation=True),
        spec("not provoked"),
    ]
    outcomes = [
        outcome("healthy", 100, cause="reached"),
        outcome("healthy", 100, cause="reached", repeat=2, also=("enobufs",), complaints=("no",)),
        outcome("spin", 50, also=("accept-spin",)),
        outcome("spin", 50, repeat=2, complaints=("accept-spin is not named",)),
        failed("spin", 3),
    ]
    table = confusion(compare(specs, outcomes))
    assert table.columns == ("reached", "accept-spin", "enobufs", "fd-limit-process")
    healthy, spin = table.rows
    assert healthy.false_causes == ["enobufs"]
    assert (healthy.named_count, healthy.false_count, healthy.as_expected_count) == (2, 1, 1)
    assert (spin.named_count, spin.run_count, spin.failed_count) == (1, 2, 1)
    assert spin.false_causes == []
    assert (table.named_count, table.run_count, table.false_count) == (3, 4, 1)
