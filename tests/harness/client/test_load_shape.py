"""Order and pace of the load: every connection once, groups even, rates never exceeded."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from harness.client.load_shape import Pace, groups_of, interleave
from harness.fleet.config import GroupShare

groups = st.lists(st.integers(0, 50), min_size=1, max_size=8)


@given(groups)
def test_every_group_gets_its_count(counts):
    shares = [GroupShare(f"127.0.0.{i + 2}", 9001 + i, n) for i, n in enumerate(counts)]
    made = [group.destination_port for group in interleave(groups_of(shares, "127.0.0.1"))]
    assert [made.count(9001 + i) for i in range(len(counts))] == counts


@given(groups)
def test_groups_fill_evenly_until_the_smallest_is_done(counts):
    shares = [GroupShare("127.0.0.2", 9001 + i, n) for i, n in enumerate(counts)]
    made = [group.destination_port for group in interleave(groups_of(shares, "127.0.0.1"))]
    even = made[: min(counts) * len(counts)]
    for i in range(len(counts)):
        assert even.count(9001 + i) == min(counts)


@given(
    st.floats(0.5, 50_000),
    st.lists(st.integers(0, 400_000_000), min_size=1, max_size=50),
    st.integers(1, 64),
)
def test_a_pace_is_never_exceeded_and_never_starves(rate_per_s, steps_ns, most_count):
    pace = Pace(rate_per_s, 1, 0)
    pace.begin(0)
    now_ns = used = 0
    for step_ns in steps_ns:
        now_ns += step_ns
        allowed = pace.allowed(now_ns, most_count)
        assert 0 <= allowed <= most_count
        used += allowed
        due = now_ns * rate_per_s / 1e9 + 1
        assert used <= due * (1 + 1e-6) + 1
    for _ in range(10_000):
        if not pace.allowed(now_ns, 10_000):
            break
    assert pace.allowed(now_ns, 1) == 0
    wait_ns = pace.wait_s(now_ns, 10.0) * 1e9
    assert pace.allowed(now_ns + int(wait_ns) + 1_000, 1) == 1


def test_no_rate_means_as_fast_as_possible():
    pace = Pace(0, 3, 1)
    pace.begin(0)
    assert pace.allowed(0, 64) == 64
    assert pace.wait_s(0, 0.1) == 0.0


def test_processes_take_turns():
    paces = [Pace(10, 4, index) for index in range(4)]
    for pace in paces:
        pace.begin(0)
    firsts = [pace.wait_s(0, 1.0) for pace in paces]
    assert firsts == sorted(firsts)
    assert len(set(firsts)) == 4
