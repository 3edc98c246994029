"""The rule that tells two variants apart: its properties, and how often it is wrong."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from analysis.stats.spread import FEWEST_RUNS, Difference, Spread, differs, gap, noise_factor

numbers = st.floats(-1e9, 1e9).map(lambda x: round(x, 3))
repeats = st.lists(numbers, min_size=1, max_size=8)
errors = st.none() | st.floats(0, 1e6)
spreads = st.builds(
    lambda values, error, resolution: Spread.of(values, [error], [resolution]),
    repeats,
    errors,
    st.floats(0, 1e3),
)


@given(repeats)
def test_a_spread_is_its_values(values):
    spread = Spread.of(values)
    assert (spread.low, spread.high, spread.count) == (min(values), max(values), len(values))
    assert spread.low <= spread.median <= spread.high
    assert spread.width >= 0


def test_what_was_not_measured_does_not_count():
    assert Spread.of([1009.0, None, math.nan, math.inf]).count == 1
    nothing = Spread.of([None, math.nan])
    assert nothing.count == 0
    assert math.isnan(nothing.median)
    assert differs(nothing, Spread.of([1.0, 2.0, 3.0, 4.0])) is Difference.NOT_MEASURED
    assert differs(Spread.of([1.0] * 4), nothing) is Difference.NOT_MEASURED


@given(spreads, spreads)
def test_seen_from_the_other_side_it_is_the_opposite(a, b):
    assert differs(b, a) is differs(a, b).opposite


@given(spreads)
def test_nothing_differs_from_itself(a):
    assert not differs(a, a).is_claimed


@given(spreads, spreads)
def test_ranges_that_overlap_never_differ(a, b):
    assume(gap(a, b) == 0)
    assert not differs(a, b).is_claimed


@given(spreads, spreads)
def test_a_claim_names_the_direction_of_the_medians(a, b):
    found = differs(a, b)
    if found.is_claimed:
        assert (found is Difference.HIGHER) == (b.median > a.median)
        assert gap(a, b) > (a.error or 0) + (b.error or 0) + a.resolution + b.resolution


@given(repeats, repeats)
def test_too_few_runs_without_a_fit_claim_nothing(a_values, b_values):
    assume(len(a_values) + len(b_values) < FEWEST_RUNS)
    assert differs(Spread.of(a_values), Spread.of(b_values)) is Difference.NOISE_UNKNOWN


@given(repeats, repeats)
def test_enough_runs_always_say_something(a_values, b_values):
    assume(len(a_values) + len(b_values) >= FEWEST_RUNS)
    found = differs(Spread.of(a_values), Spread.of(b_values))
    assert found.is_claimed or found is Difference.WITHIN_NOISE


@given(spreads, spreads, st.integers(0, 10**6), st.booleans())
def test_far_enough_is_always_claimed_and_farther_never_takes_it_back(a, b, steps, upwards):
    """With known noise: one more than the rule asks for, and then any further distance."""
    factor = noise_factor(a.count, b.count)
    if factor is None:
        return
    needed = factor * max(a.width, b.width) + (a.error or 0) + (b.error or 0)
    needed += a.resolution + b.resolution + 1.0
    low = a.high + needed + steps if upwards else a.low - needed - steps - b.width
    moved = Spread(low + b.width / 2, low, low + b.width, b.count, b.error, b.resolution)
    assert differs(a, moved) is (Difference.HIGHER if upwards else Difference.LOWER)


@given(repeats, repeats, st.floats(0.01, 100))
def test_the_unit_does_not_matter(a_values, b_values, factor):
    """Milliseconds or seconds: the same claim, where rounding does not decide it."""
    a, b = Spread.of(a_values), Spread.of(b_values)
    limit = (noise_factor(a.count, b.count) or 0) * max(a.width, b.width)
    assume(abs(gap(a, b) - limit) > 1e-6 * max(1.0, limit))
    scaled = [Spread.of([v * factor for v in values]) for values in (a_values, b_values)]
    assert differs(*scaled) is differs(a, b)


@pytest.mark.parametrize(
    ("a", "b", "found"),
    [
        ([100, 110], [170, 175], Difference.HIGHER),  # 60 apart, noise 10, factor 5
        ([100, 110], [155, 165], Difference.WITHIN_NOISE),  # 45 apart
        ([100, 110, 104], [125, 121, 130], Difference.HIGHER),  # 11 apart, noise 10, factor 1
        ([100, 110, 104], [119, 121, 130], Difference.WITHIN_NOISE),
        ([100, 110, 104], [40], Difference.LOWER),  # 60 apart, noise 10, factor 5
        ([100, 110, 104], [51], Difference.WITHIN_NOISE),
        ([786, 786], [1500, 1500], Difference.HIGHER),  # no noise at all
        ([23, 23], [23, 23], Difference.WITHIN_NOISE),
        ([1], [1_000_000], Difference.NOISE_UNKNOWN),
        ([1, 1], [1_000_000], Difference.NOISE_UNKNOWN),
    ],
)
def test_examples_by_hand(a, b, found):
    assert differs(Spread.of(a), Spread.of(b)) is found


def test_single_runs_differ_only_far_beyond_the_error_of_their_fit():
    def pair(first, second, error):
        return differs(Spread.of([first], [error]), Spread.of([second], [error]))

    assert pair(1000, 2500, 20) is Difference.HIGHER  # 1,500 > 5 * 40, and more than twice
    assert pair(1000, 2500, 200) is Difference.NOISE_UNKNOWN  # 1,500 < 5 * 400
    assert pair(1000, 1900, 1) is Difference.NOISE_UNKNOWN  # less than twice
    assert pair(2500, 1000, 0) is Difference.LOWER
    one_fitted = differs(Spread.of([1000], [1]), Spread.of([9000], [None]))
    assert one_fitted is Difference.NOISE_UNKNOWN


def test_a_clock_that_cannot_see_the_difference_shows_none():
    """Two CPU times of no spread, one tick of 10 ms apart."""
    ticks = [Spread.of([value] * 3, resolutions=[0.01]) for value in (0.02, 0.03)]
    assert differs(*ticks) is Difference.WITHIN_NOISE
    fine = [Spread.of([value] * 3, resolutions=[0.001]) for value in (0.02, 0.03)]
    assert differs(*fine) is Difference.HIGHER


COUNTS = [(1, 3), (1, 4), (1, 5), (1, 6), (1, 8), (2, 2), (2, 3), (2, 4), (3, 3), (3, 5), (5, 5)]


@pytest.mark.parametrize(("a_count", "b_count"), COUNTS)
def test_two_samples_of_one_distribution_are_called_different_in_one_percent(a_count, b_count):
    random = np.random.default_rng(20261124)
    factor = noise_factor(a_count, b_count)
    assert factor is not None
    draws = 100_000
    a, b = random.normal(size=(draws, a_count)), random.normal(size=(draws, b_count))
    noise = np.maximum(np.ptp(a, axis=1), np.ptp(b, axis=1))
    apart = np.maximum(a.min(axis=1) - b.max(axis=1), b.min(axis=1) - a.max(axis=1))
    claimed = apart > factor * noise
    assert claimed.mean() < 0.015
    # The table of draws is the rule itself: compare the first ones with differs().
    for row in range(200):
        assert differs(Spread.of(a[row]), Spread.of(b[row])).is_claimed == bool(claimed[row])


def test_three_repeats_find_a_difference_of_six_standard_deviations():
    """The rule is careful, not blind."""
    random = np.random.default_rng(7)
    found = [
        differs(Spread.of(random.normal(size=3)), Spread.of(random.normal(6, size=3))).is_claimed
        for _ in range(500)
    ]
    assert np.mean(found) > 0.9
