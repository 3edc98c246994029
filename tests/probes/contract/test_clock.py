import time
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from probes.contract.clock import NS_PER_S, Anchor, now_ns


def test_now_is_the_clock_of_the_kernels_events():
    before_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    at_ns = now_ns()
    assert before_ns <= at_ns <= time.clock_gettime_ns(time.CLOCK_MONOTONIC)


def test_an_anchor_lies_between_readings_around_it():
    monotonic_ns, wall_ns = time.monotonic_ns(), time.time_ns()
    anchor = Anchor.take()
    assert monotonic_ns <= anchor.monotonic_ns <= time.monotonic_ns()
    assert wall_ns <= anchor.wall_ns <= time.time_ns()
    assert anchor.uncertainty_ns >= 0


def test_an_anchor_keeps_the_tightest_bracket(monkeypatch):
    # brackets of 500, 10 and 300 ns around wall times 1, 2, 3
    monotonic = iter([0, 500, 1000, 1010, 2000, 2300])
    wall = iter([1, 2, 3])
    monkeypatch.setattr(time, "monotonic_ns", lambda: next(monotonic))
    monkeypatch.setattr(time, "time_ns", lambda: next(wall))
    assert Anchor.take(3) == Anchor(monotonic_ns=1005, wall_ns=2, uncertainty_ns=10)


def test_an_anchor_needs_at_least_one_bracket():
    assert Anchor.take(0).monotonic_ns > 0


@given(st.integers(-3_600, 3_600))
def test_wall_time_follows_the_monotonic_clock(seconds: int):
    wall = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    anchor = Anchor(5_000 * NS_PER_S, int(wall.timestamp()) * NS_PER_S, 0)
    at_ns = anchor.monotonic_ns + seconds * NS_PER_S
    assert anchor.wall_time(at_ns) == wall + timedelta(seconds=seconds)
