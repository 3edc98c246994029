"""The size of a long watch: an arithmetic of days, with a writer that follows it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probes.budget.row_budget import (
    BURST_BYTES,
    COARSEST_STRETCH,
    FINEST_STRETCH,
    RowBudget,
    bytes_per_s,
    most_bytes,
)
from probes.contract.clock import NS_PER_S

DAY_S = 86_400


def written(
    budget: RowBudget, seconds: int, usual_bytes_per_s: float, is_quiet, step_s: int = 10
) -> tuple[int, list[float]]:
    """Bytes after a watch that writes so much at its usual periods, and the factors it had."""
    total, stretches = 0.0, []
    for at_s in range(step_s, seconds + 1, step_s):
        quiet = is_quiet(at_s)
        stretches.append(budget.stretch(is_quiet=quiet))
        total += usual_bytes_per_s * step_s / stretches[-1]
        budget.wrote(at_s * NS_PER_S, round(total), is_quiet=quiet)
    return round(total), stretches


def test_a_quiet_month_writes_at_its_rate_and_keeps_what_is_saved_up():
    rate = bytes_per_s(8, 2)
    budget = RowBudget(rate)
    total, stretches = written(budget, 30 * DAY_S, 16_000, lambda _: True, step_s=60)
    assert total < 1.1 * 30 * DAY_S * rate
    assert max(stretches) == 16  # 1,000 bytes a second fit
    assert budget.balance_bytes > 0.9 * BURST_BYTES
    assert budget.stretch(is_quiet=False) == 1  # a moment that matters is paid at once
    assert budget.stretch(is_quiet=True, is_moving=True) == FINEST_STRETCH


def test_a_restless_day_is_close_until_the_burst_is_spent_and_bounded_after_it():
    rate = bytes_per_s(8, 2)
    budget = RowBudget(rate)
    total, stretches = written(budget, DAY_S, 50_000, lambda _: False)
    assert stretches[0] == 1
    assert stretches[-1] > FINEST_STRETCH
    assert total < 1.1 * most_bytes(DAY_S, 8, 2)
    assert total > BURST_BYTES


def test_moving_connections_leave_half_of_what_is_saved_up_for_moments_that_matter():
    budget = RowBudget(1_000, balance_bytes=BURST_BYTES / 2)
    assert budget.stretch(is_quiet=True, is_moving=True) == budget.quiet_stretch
    assert budget.stretch(is_quiet=False) == 1


def test_a_server_with_little_to_tell_is_told_of_often():
    budget = RowBudget(1_200, quiet_stretch=COARSEST_STRETCH)
    _, stretches = written(budget, DAY_S, 1_000, lambda _: True)
    assert stretches[-1] == FINEST_STRETCH


@given(
    st.lists(st.tuples(st.booleans(), st.integers(1, 4_000)), min_size=1, max_size=40),
    st.floats(100, 400_000),
)
def test_no_watch_writes_more_than_is_said(spans, usual_bytes_per_s):
    moods = [quiet for quiet, minutes in spans for _ in range(minutes)]
    budget = RowBudget(bytes_per_s(1, 1))
    total, _ = written(
        budget,
        len(moods) * 60,
        usual_bytes_per_s,
        lambda at_s: moods[min(at_s // 60, len(moods) - 1)],
        step_s=60,
    )
    # Beyond it is what the coarsest rows take, and the minutes until the factor was learned.
    floor = usual_bytes_per_s / COARSEST_STRETCH * len(moods) * 60
    learning = usual_bytes_per_s * 3_600
    assert total <= most_bytes(len(moods) * 60, 1, 1) + BURST_BYTES + floor + learning


@pytest.mark.parametrize(("processes", "cores"), [(1, 1), (8, 4), (256, 128)])
def test_the_coarsest_rows_fit_in_the_rate(processes: int, cores: int):
    """A row of live_samples (25 columns), of process_samples (13) and of host_cpu (8) a minute."""
    floor = (processes * (200 + 130) + cores * 64) / 60
    assert floor < bytes_per_s(processes, cores)
    assert most_bytes(60, processes, cores) < most_bytes(DAY_S, processes, cores)
