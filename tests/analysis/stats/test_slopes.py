from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from analysis.ladder.rung import NoPrediction, Rung, next_wall, ordered, predict
from analysis.stats import slopes

counts = st.lists(st.integers(0, 200_000), min_size=3, max_size=60)


@given(xs=counts, slope=st.floats(0.1, 1e5), start=st.floats(0, 1e9))
def test_an_exact_line_is_found_without_error(xs, slope, start):
    assume(len(set(xs)) > 1)
    x = np.array(xs, dtype=float)
    line = slopes.fit(x, start + slope * x)
    assert line is not None
    scale = start + slope * x.max()
    assert line.per_x * np.ptp(x) == pytest.approx(slope * np.ptp(x), abs=1e-9 * scale)
    assert line.sample_count == len(xs)


@given(
    points=st.lists(
        st.tuples(st.integers(0, 100_000), st.floats(-1e6, 1e6)), min_size=3, max_size=40
    )
)
def test_least_squares_agrees_with_numpy(points):
    x, y = np.array(points).T
    # polyfit itself loses digits when x hardly varies against its size
    assume(np.ptp(x) > 0.05 * np.abs(x).max())
    line = slopes.fit(x, y)
    slope, intercept = np.polyfit(x, y, 1)
    assert line is not None
    size = np.abs(y).max() + 1
    assert line.per_x == pytest.approx(slope, abs=1e-7 * size / np.ptp(x))
    assert line.intercept == pytest.approx(intercept, abs=1e-6 * size)


def test_the_standard_error_is_that_of_the_textbook():
    generator = np.random.default_rng(23)
    x = np.linspace(0, 1009, 400)
    y = 3 * x + generator.normal(0, 50, len(x))
    line = slopes.fit(x, y)
    _, covariance = np.polyfit(x, y, 1, cov=True)
    assert line is not None
    assert line.error_pct >= 100 * np.sqrt(covariance[0, 0]) / 3 * 0.95
    assert abs(line.per_x - 3) / 3 * 100 < 4 * line.error_pct


def test_a_curve_has_a_larger_error_than_its_residuals_say():
    x = np.linspace(0, 1000, 200)
    bent = slopes.fit(x, x**2)
    assert bent is not None
    # the halves have slopes 500 and 1500 around the whole's 1000
    assert bent.error_pct == pytest.approx(50, rel=0.05)


@pytest.mark.parametrize(
    ("x", "y"),
    [([], []), ([1, 2], [1, 2]), ([5, 5, 5], [1, 2, 3]), ([1, 2, np.nan], [1, 2, 3])],
)
def test_too_little_to_fit(x, y):
    assert slopes.fit(x, y) is None


def test_a_flat_line_is_not_usable():
    flat = slopes.fit([1, 2, 3, 4], [7, 7, 7, 7])
    assert flat is not None
    assert not flat.is_usable


@given(slope=st.floats(0.5, 1e5), start=st.floats(0, 1e6), room=st.floats(1, 500))
def test_prediction_is_where_the_line_meets_the_capacity(slope, start, room):
    peak = 1009
    x = np.array([0, 400, 800, peak])
    line = slopes.fit(x, start + slope * x)
    capacity = start + slope * peak * room
    predicted = predict(capacity, line, peak, start + slope * peak)
    if capacity >= 10**12:
        assert predicted is NoPrediction.UNLIMITED
    else:
        assert predicted == pytest.approx(peak * room, rel=1e-6, abs=1.5)


def test_what_cannot_be_predicted_says_why():
    rising = slopes.fit([0, 500, 1000], [0, 1, 2])
    for capacity, line, peak, used, why in (
        (2**63, rising, 1000, 2, NoPrediction.UNLIMITED),
        (1000, None, 1000, 2, NoPrediction.FEW_SAMPLES),
        (10**9, rising, 1000, 2, NoPrediction.FAR_AWAY),
        (100, rising, 20, 2, NoPrediction.FEW_CONNECTIONS),
        (100, rising, 1000, 0.9, NoPrediction.DID_NOT_GROW),  # more than all that was used
    ):
        assert predict(capacity, line, peak, used) is why


def rung(predicted: int | None, *, met: bool = False, used: float = 1.0) -> Rung:
    return Rung(
        "memory", "host", "the host", 10.0, used, "bytes", None, None, predicted, "", "", met
    )


rungs = st.builds(
    rung,
    st.none() | st.integers(0, 10**7),
    met=st.booleans(),
    used=st.floats(0, 10).map(lambda used: round(used, 6)),  # no share is subnormal
)


@given(st.lists(rungs, max_size=20))
def test_the_ladder_is_sorted_and_complete(unsorted):
    result = ordered(unsorted)
    assert sorted(map(repr, result)) == sorted(map(repr, unsorted))
    predictions = [r.predicted_connections for r in result]
    known = [p for p in predictions if p is not None]
    assert known == sorted(known)
    assert predictions[len(known) :] == [None] * (len(predictions) - len(known))
    blind = result[len(known) :]
    for first, second in itertools.pairwise(blind):
        assert (not first.met, -first.used_at_peak) <= (not second.met, -second.used_at_peak)


@given(st.lists(rungs, max_size=20))
def test_the_next_wall_is_the_nearest_that_was_not_met(unsorted):
    wall = next_wall(ordered(unsorted))
    left = [
        r.predicted_connections
        for r in unsorted
        if not r.met and r.predicted_connections is not None
    ]
    assert (wall.predicted_connections if wall else None) == (min(left) if left else None)
