"""The scorer on verdicts that are made by hand, and Wilson's interval against published values."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.recordings.label import LACKING, OWN, Label, Provoked
from bench.recordings.score_document import markdown, text
from bench.recordings.scoring import (
    Case,
    complaints,
    confused,
    is_cause,
    is_process,
    is_side,
    score,
    wilson,
)

FULL, SPIN, HOT, MEMORY = "fd-limit-process", "accept-spin", "hot-worker-code", "memory-exhausted"


def finding(cause, severity="warning", side="server", worker=0, follows_from=""):
    return {
        "cause": cause,
        "severity": severity,
        "side": side,
        "subject": {"role": "server", "pid": 100 + worker, "worker": worker},
        "follows_from": follows_from,
    }


def case(label, *findings, verdict=None, missing=()):
    first = findings[0]["cause"] if findings else "not-explained"
    found = {
        "verdict": {"cause": verdict or first},
        "findings": list(findings),
        "grounding": grounding(*missing),
    }
    return Case(label, found)


def grounding(*missing):
    return {"found_count": 3, "missing": [*missing], "made_up_count": 3, "made_up_found_count": 1}


def labelled(*provoked, **more):
    return Label("own/row", OWN, "a row", "profile-run", provoked=provoked, **more)


AT_LIMIT = labelled(
    Provoked(FULL, "server", "server", worker=1),
    Provoked(SPIN, "server", follows_from=FULL),
    verdict=FULL,
    may=("host-cpu-saturated",),
    never=(MEMORY,),
)
HEALTHY = labelled(verdict="reached")
OUTSIDE = labelled(Provoked("bad-luck", "server"), never=(MEMORY,))
RIGHT = case(
    AT_LIMIT, finding(FULL, "binding", worker=1), finding(SPIN, "contributing", follows_from=FULL)
)


@pytest.mark.parametrize(
    ("part", "whole", "low", "high"),
    [  # R. G. Newcombe, Statistics in Medicine 17 (1998), table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_is_the_published_interval(part, whole, low, high):
    assert wilson(part, whole) == pytest.approx((low, high), abs=5e-5)
    assert wilson(whole - part, whole) == pytest.approx((1 - high, 1 - low), abs=5e-5)


def test_without_a_trial_nothing_is_known():
    assert wilson(0, 0) == (0.0, 1.0)


def shares(*cases):
    return {m.name: (m.share.part, m.share.whole) for m in score(cases)}


def test_a_right_verdict_has_everything():
    measured = shares(RIGHT)
    assert complaints(AT_LIMIT, RIGHT.found) == []
    for name in ("AC@1, cause", "AC@1, cause, side and process", "Avg@3, cause", "exact set"):
        assert measured[name] == (1.0, 1), name
    assert measured["false alarm, healthy runs"] == (0.0, 0)


def test_a_root_that_is_named_second_counts_at_three_and_in_part_in_the_mean():
    second = case(AT_LIMIT, finding(HOT), finding(FULL, worker=1), finding(SPIN, follows_from=FULL))
    assert [second.accuracy_at(k, is_cause) for k in (1, 2, 3)] == [0, 1, 1]
    assert shares(second)["Avg@3, cause"] == pytest.approx((2 / 3, 1))
    assert second.unrelated == [HOT]
    assert not second.is_exact


def test_the_wrong_side_and_the_wrong_process_are_told_from_the_cause():
    wrong_side = case(AT_LIMIT, finding(FULL, side="client", worker=1))
    wrong_worker = case(AT_LIMIT, finding(FULL, worker=0))
    assert [wrong_side.accuracy_at(1, how) for how in (is_cause, is_side, is_process)] == [1, 0, 0]
    assert [wrong_worker.accuracy_at(1, how) for how in (is_cause, is_side, is_process)] == [
        *(1, 1, 0)
    ]
    both = case(AT_LIMIT, finding(FULL, worker=0), finding(FULL, worker=1))
    assert both.accuracy_at(1, is_process) == 1, "of two full workers one is the meant one"


def test_two_roots_are_half_right_when_one_is_named():
    two = labelled(Provoked(FULL, "server"), Provoked(HOT, "server"))
    half = case(two, finding(HOT, "binding"))
    assert [half.accuracy_at(k, is_cause) for k in (1, 2, 3)] == [1, 0.5, 0.5]


def test_a_consequence_without_its_origin_breaks_the_chain():
    loose = case(AT_LIMIT, finding(FULL, "binding", worker=1), finding(SPIN))
    assert loose.is_exact
    assert not loose.has_right_chain
    assert "follow from nothing" in complaints(AT_LIMIT, loose.found)[0]


def test_evidence_that_is_not_in_the_tables_is_not_grounded():
    made_up = Case(AT_LIMIT, {**RIGHT.found, "grounding": grounding("x: y 7")})
    assert RIGHT.is_grounded
    assert not made_up.is_grounded


def test_what_may_be_named_is_no_false_cause_and_what_never_may_is_one_even_as_a_remark():
    busy = case(AT_LIMIT, *RIGHT.found["findings"], finding("host-cpu-saturated"))
    remark = case(AT_LIMIT, *RIGHT.found["findings"], finding(MEMORY, "info"))
    other_remark = case(AT_LIMIT, *RIGHT.found["findings"], finding(HOT, "info"))
    assert busy.is_exact
    assert remark.unrelated == [MEMORY]
    assert other_remark.is_exact


def test_a_healthy_run_counts_only_for_false_alarms():
    good = case(HEALTHY, finding("reached", "binding"))
    alarmed = case(HEALTHY, finding("reached", "binding"), finding(HOT))
    measured = shares(good, alarmed)
    assert measured["false alarm, healthy runs"] == (1, 2)
    assert measured["AC@1, cause"] == (0, 0)
    assert complaints(HEALTHY, alarmed.found) == [f"{HOT} is named without reason"]


def test_a_cause_without_a_word_wants_silence():
    silent, loud = case(OUTSIDE), case(OUTSIDE, finding(MEMORY, "binding"))
    measured = shares(silent, loud)
    name = "abstention: not-explained where the catalogue lacks the cause"
    assert measured[name] == (1, 2)
    assert complaints(OUTSIDE, silent.found) == []
    assert len(complaints(OUTSIDE, loud.found)) == 2


def test_silence_about_a_cause_of_the_catalogue_is_counted():
    silent = case(AT_LIMIT)
    assert shares(silent)["silent: not-explained although the catalogue has the cause"] == (1, 1)


def test_what_was_taken_for_what():
    wrong = case(AT_LIMIT, finding(MEMORY, "binding", side="host"))
    rows = {row.provoked: row for row in confused([RIGHT, wrong, case(HEALTHY), case(OUTSIDE)])}
    assert rows[FULL].first == {FULL: 1, MEMORY: 1}
    assert rows[FULL].unrelated == {MEMORY: 1}
    assert rows["nothing"].first == {"not-explained": 1}
    assert rows["bad-luck"].is_outside


def test_the_page_has_a_column_for_each_group_and_lists_what_is_not_as_labelled():
    other = replace(HEALTHY, id="lacking/row", group=LACKING)
    wrong = case(other, finding("reached", "binding"), finding(HOT))
    page = markdown([RIGHT, wrong])
    assert f"| | all | {OWN} | {LACKING} |" in page
    assert "| AC@1, cause | 1.00 of 1 (0.21 to 1.00) | 1.00 of 1 (0.21 to 1.00) |  |" in page
    assert f"- lacking/row: {HOT} is named without reason" in page
    assert "Every verdict is as labelled." in text([RIGHT])
