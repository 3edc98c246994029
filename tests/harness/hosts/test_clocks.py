"""Clocks of hosts: known offsets are found, and no reading is further off than the bound."""

import asyncio
import time

from hypothesis import example, given
from hypothesis import strategies as st

from harness.hosts.clock_echo import ClockEcho, exchange
from harness.hosts.clocks import fit, readings
from harness.hosts.whole_manifest import reference_ns

HOUR_NS = 3_600 * 10**9
MS = 10**6


def pairs_of(offset_ns, drift_ppm, *, at_s, there_ms, back_ms):
    """What an exchange finds of a clock that is off and drifts, over ways of those lengths."""
    found = []
    for second, there, back in zip(at_s, there_ms, back_ms, strict=True):
        asked = HOUR_NS + round(second * 1e9)
        came = asked + round(there * MS)
        other = came + offset_ns + round((came - HOUR_NS) * drift_ppm / 1e6)
        found.append([asked, other, other, came + round(back * MS)])
    return found


@example(offset_ns=0, drift_ppm=0.0, ways=[(0.0, 1.0, 2.0), (1.0, 0.25, 2.0), (3.0, 1.0, 1.0)])
@example(offset_ns=0, drift_ppm=99.0, ways=[(0.0, 9.0, 9.0), (1.5, 0.01, 0.01), (3.0, 9.0, 9.0)])
@given(
    offset_ns=st.integers(-10 * HOUR_NS, 10 * HOUR_NS),
    drift_ppm=st.floats(-100, 100),
    ways=st.lists(
        st.tuples(st.floats(0, 60), st.floats(0.01, 20), st.floats(0.01, 20)), min_size=1
    ),
)
def test_the_true_clock_is_within_the_bound(offset_ns, drift_ppm, ways):
    at_s, there, back = zip(*sorted(ways), strict=True)
    line = fit(readings(pairs_of(offset_ns, drift_ppm, at_s=at_s, there_ms=there, back_ms=back)))
    for second in (at_s[0], at_s[-1]):
        now = HOUR_NS + round(second * 1e9)
        true = now + offset_ns + round((now - HOUR_NS) * drift_ppm / 1e6)
        slack_ns = 5 + 1e-4 * 40 * MS  # it drifts while an answer is on its way
        assert abs(line.local_ns(now) - true) <= line.bound_ns + slack_ns


def test_of_many_ways_the_shortest_counts():
    pairs = pairs_of(HOUR_NS, 0, at_s=[0, 0.1, 0.2], there_ms=[9, 0.02, 30], back_ms=[1, 0.03, 0.1])
    line = fit(readings(pairs))
    assert line.bound_ns <= 26_000 + 0.3 * 1e9 * 500e-6  # it may have drifted at the other ends
    assert abs(line.offset_ns - HOUR_NS) <= line.bound_ns


def test_drift_is_a_line():
    pairs = pairs_of(5_000, 50, at_s=[0, 10, 20], there_ms=[0.02] * 3, back_ms=[0.02] * 3)
    line = fit(readings(pairs))
    assert abs(line.drift_ppm - 50) < 0.1
    assert line.bound_ns < 25_000


@given(st.integers(HOUR_NS, 5 * HOUR_NS), st.integers(-HOUR_NS, HOUR_NS), st.floats(-400, 400))
def test_moving_there_and_back_is_nothing(at_ns, offset_ns, drift_ppm):
    pairs = pairs_of(offset_ns, drift_ppm, at_s=[0, 30], there_ms=[0.1] * 2, back_ms=[0.1] * 2)
    line = fit(readings(pairs))
    assert abs(reference_ns(line.local_ns(at_ns), line) - at_ns) <= 10 + at_ns * 2e-7


def test_without_an_answer_there_is_no_line():
    assert fit([]) is None
    assert readings([[5, 9, 3, 6], [10, 1, 1, 9]]) == []


def test_two_clocks_of_one_host_are_the_same():
    key = b"k" * 16

    async def compared():
        echo = await ClockEcho.listen("127.0.0.1", key)
        loop = asyncio.get_running_loop()
        try:
            right = await loop.run_in_executor(None, exchange, "127.0.0.1", echo.port, key, 20)
            wrong = await loop.run_in_executor(None, exchange, "127.0.0.1", echo.port, b"x", 2)
        finally:
            echo.close()
        return right, wrong

    right, wrong = asyncio.run(compared())
    assert right
    assert wrong == []  # who has not the key of the run is not answered
    line = fit(readings(right))
    assert abs(line.offset_ns) <= line.bound_ns
    assert line.at_ns <= time.monotonic_ns()
