"""Rows of a matrix: what a scenario file and its scale, or --vary, become."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.matrix import scenario
from harness.matrix import store as matrix_store
from harness.matrix.calibration import Calibration
from harness.matrix.rows import MatrixRow, Scale, rows_of_file, rows_of_vary, scale_of
from probes.contract.errors import UsageError

BASE = ["--connections", "300", "--hold", "1"]


def file_of(*rows, **top):
    return scenario.parse({"name": "n", "shows": "s", "row": list(rows), **top}, "mine.toml")


def raw(row_id="a", **changes):
    options = {"connections": 125000, "nofile": 65535}
    return {"id": row_id, "shows": "s", "options": options, **changes}


def test_every_value_meets_every_other_and_the_first_row_is_compared_with():
    rows = rows_of_vary(["accept=reuseport,shared", "keepalive=off,5"], BASE)
    assert [row.spec.id for row in rows] == [
        "accept=reuseport keepalive=off", "accept=reuseport keepalive=5",
        "accept=shared keepalive=off", "accept=shared keepalive=5",
    ]  # fmt: skip
    assert rows[0].words == (*BASE, "--accept", "reuseport", "--keepalive", "off")
    assert [row.spec.against for row in rows] == ["", *[rows[0].spec.id] * 3]
    assert rows[3].spec.options == {"accept": "shared", "keepalive": "5"}


def test_options_without_a_value_are_true_or_false():
    with_it, without = rows_of_vary(["force=true,false"], BASE)
    assert "--force" in with_it.words
    assert "--force" not in without.words


@pytest.mark.parametrize(
    ("vary", "words"),
    [
        (["accept"], "NAME=VALUE"),
        (["accept="], "NAME=VALUE"),
        (["=1,2"], "NAME=VALUE"),
        (["accept=shared,,handoff"], "NAME=VALUE"),
        (["accept=shared", "accept=handoff"], "twice"),
        (["output=a,b"], "itself"),
        (["accept=telepathy"], "telepathy"),
        (["colour=red"], "--colour"),
        ([f"hold={','.join(map(str, range(30)))}", f"workers={','.join(map(str, range(1, 30)))}"],
         "870 rows"),
    ],
)  # fmt: skip
def test_a_vary_that_makes_no_sense_is_refused(vary, words):
    with pytest.raises(UsageError) as caught:
        rows_of_vary(vary, BASE)
    assert words in caught.value.message
    assert caught.value.fix


@pytest.mark.parametrize("word", ["--output=x", "--json", "--name", "--quiet", "--plan"])
def test_what_the_matrix_sets_itself_is_refused(word):
    with pytest.raises(UsageError, match="itself"):
        rows_of_vary(["accept=shared"], [*BASE, word])


def test_the_log_s_numbers_are_scaled_and_others_are_not():
    row = raw(
        options={
            "connections": 125000, "nofile": 65535, "port_range": "32768-60999", "keepalive": 5,
            "inject": "crash:0:45000", "workers": 2,
        },
        scaled=["connections", "nofile", "port_range", "keepalive", "inject"],
        ceiling=65535,
        tolerance_pct=1,
        log_ceiling=100000,
    )  # fmt: skip
    (ready,) = rows_of_file(file_of(row), Scale(65535, 4000))
    options = ready.spec.options
    assert options["connections"] == 7630
    assert options["nofile"] == 4000
    low, high = map(int, options["port_range"].split("-"))
    assert (low, high - low + 1) == (32768, 1723)
    assert options["keepalive"] == pytest.approx(5 * 4000 / 65535, abs=1e-4)
    assert options["inject"] == ["crash:0:2747"]
    assert options["workers"] == 2
    assert ready.spec.bounds["ceiling_count"] == pytest.approx((3960, 4040))
    assert ready.spec.log_ceiling == 100000
    assert ready.spec.scale == pytest.approx(4000 / 65535)


@given(here=st.integers(500, 65535))
def test_any_scale_gives_command_lines_that_keep_the_log_s_proportions(here):
    file = scenario.load("the-2016-log")
    by_id = {row.spec.id: row for row in rows_of_file(file, Scale(65535, here))}
    options = by_id["r08-one-worker-full"].spec.options
    assert options["nofile"] == here
    assert options["nofile"] / options["connections"] == pytest.approx(65535 / 130000, rel=0.002)


@given(here=st.integers(1000, 65535))
def test_whichever_spread_a_full_worker_follows_from_the_numbers(here):
    """What a row is to show must not hang on how the kernel spreads connections."""
    file = scenario.load("the-2016-log")
    by_id = {row.spec.id: row.spec.options for row in rows_of_file(file, Scale(65535, here))}
    own = 8
    for row_id in ("r08-one-worker-full", "r13-no-gc", "r16-no-keep-alives"):
        options = by_id[row_id]
        first, second = map(int, str(options["accept_weights"]).split(","))
        share = options["connections"] / (first + second)
        # the rule of accept_weights is exact to half a round of 16
        assert first * share >= options["nofile"] - own + 9
        assert second * share <= 0.98 * (options["nofile"] - own)
    for row_id in ("r10-unhandled-error", "r12-one-process-spins"):
        options = by_id[row_id]
        assert options["connections"] > options["workers"] * (options["nofile"] - own)


CALIBRATE = {"option": "keepalive", "times": 0.5, "of": "keepalive_full_s"}
KEEPALIVE = {"connections": 300, "keepalive": 0.01, "hold": 6}


def test_a_calibrated_option_follows_from_a_trial():
    (ready,) = rows_of_file(file_of(raw(options=KEEPALIVE, calibrate=CALIBRATE)), Scale())
    assert ready.calibration == Calibration("keepalive", 0.5, "keepalive_full_s")
    assert ready.hold_s == 8
    assert ready.spec.options["keepalive"] == "0.5 x keepalive_full_s"
    trial = ready.calibration.trial_words(ready.words)
    assert trial == [*("--connections", "300", "--keepalive", "0.01", "--hold", "2", "--no-report")]
    value = ready.calibration.value(0.123456)
    assert value == 0.06173
    words = ready.calibration.words(ready.words, value)
    assert words == ["--connections", "300", "--hold", "6", "--keepalive", "0.06173"]
    assert MatrixRow.from_dict(json.loads(json.dumps(ready.to_dict()))) == ready


@pytest.mark.parametrize(
    "wrong",
    [{"times": 0}, {"times": "x"}, {"option": "ramp"}, {"of": None}, {"more": 1}],
)
def test_a_calibration_that_makes_no_sense_is_refused(wrong):
    calibrate = {k: v for k, v in {**CALIBRATE, **wrong}.items() if v is not None}
    with pytest.raises(UsageError, match="row a"):
        rows_of_file(file_of(raw(options=KEEPALIVE, calibrate=calibrate)), Scale())


def test_a_row_that_is_not_scaled_keeps_its_numbers():
    rows = rows_of_file(scenario.load("the-2016-log"), Scale(65535, 4000))
    ports = next(row for row in rows if row.spec.id == "r01-windows-ports")
    assert "49152-65535" in ports.words
    assert ports.spec.scale == 1.0


def test_the_log_has_every_row_and_each_expects_something():
    rows = rows_of_file(scenario.load("the-2016-log"), Scale(65535, 4000))
    assert {row.spec.log_row for row in rows} == set(range(1, 17))
    assert all(row.spec.has_expectation and row.spec.log for row in rows)


def test_the_client_s_limit_is_part_of_what_changed():
    (row,) = rows_of_file(file_of(raw(client_nofile=600)), Scale())
    assert row.spec.options["client nofile"] == 600
    assert row.client_nofile == 600


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"against": "nobody"}, "nobody"),
        ({"move": "sideways"}, "sideways"),
        ({"scaled": ["workers"]}, "workers"),
        ({"bounds": {"ceiling_count": 5}}, "row a"),
        ({"options": {"connections": 5, "port_range": "all"}, "scaled": ["port_range"]}, "'all'"),
        ({"options": {"connections": 5, "nonsense": 1}}, "--nonsense"),
    ],
)
def test_a_row_that_is_wrong_is_refused_with_its_name(changes, words):
    with pytest.raises(UsageError) as caught:
        rows_of_file(file_of(raw(**changes)), Scale())
    assert words in caught.value.message


def test_the_scale_of_a_file_and_its_limits():
    file = file_of(raw(), scale={"log": 65535, "here": 4000})
    assert scale_of(file, None, 20000).here == 4000
    assert scale_of(file, None, 512).here == 512
    assert scale_of(file, 8000, 20000).here == 8000
    for wrong in (999, 20001):
        with pytest.raises(UsageError, match="--scale"):
            scale_of(file, wrong, 20000)
    with pytest.raises(UsageError, match="has no scale"):
        scale_of(file_of(raw()), 4000, 20000)
    with pytest.raises(UsageError, match="scale"):
        scale_of(file_of(raw(), scale={"log": 65535}), None, 20000)
    assert scale_of(file_of(raw()), None, 20000) == Scale()


def test_rows_survive_json():
    for row in rows_of_file(scenario.load("the-2016-log"), Scale(65535, 4000)):
        assert MatrixRow.from_dict(json.loads(json.dumps(row.to_dict()))) == row


def test_the_order_is_shuffled_by_its_seed_in_whole_rounds():
    rows = rows_of_vary(["workers=1,2,3,4,5,6"], BASE)
    order = matrix_store.shuffled(rows, 3, seed=7)
    assert order == matrix_store.shuffled(rows, 3, seed=7)
    assert order != matrix_store.shuffled(rows, 3, seed=8)
    ids = [row.spec.id for row in rows]
    rounds = [order[i : i + 6] for i in (0, 6, 12)]
    for number, each in enumerate(rounds, 1):
        assert sorted(row for row, _ in each) == sorted(ids)
        assert {repeat for _, repeat in each} == {number}
    assert [row for row, _ in rounds[0]] != ids
