"""Shares of processes from their totals, on built tables."""

from __future__ import annotations

import numpy as np
import pytest

from analysis.frames.cpu import cpu_between, df_worker_cpu, wants_full_core
from analysis.frames.run_view import Phase, RunView

S = 10**9


def sampled(build, *rows):
    """One server at second 0, 1, 2, …: state; CPU and waits in ms and switches, all so far."""
    build.stages(ramp_s=1.0, hold_s=4.0)
    build.process("server", 0)
    for second, (state, cpu_ms, wait_ms, switches) in enumerate(rows):
        build.add("process_samples", at_s=second, pid=800, role="server", state=state,
                  cpu_user_ns_total=cpu_ms * 10**6, voluntary_switches_total=switches,
                  run_queue_wait_ns_total=wait_ms * 10**6 if wait_ms >= 0 else -1)  # fmt: skip
    return RunView(build.frames())


def waits(view):
    return df_worker_cpu(view)["wait_pct"].tolist()


def test_waits_are_shares_of_the_interval(build):
    view = sampled(build, ("running", 0, 7_000, 0), ("sleeping", 50, 7_600, 5),
                   ("sleeping", 51, 7_610, 9))  # fmt: skip
    assert waits(view) == pytest.approx([60, 1])
    (mean,) = cpu_between(view, Phase("both", 0.0, 2.0))["wait_pct"]
    assert mean == pytest.approx(30.5)


def test_an_older_recording_knows_no_waits(build):
    view = sampled(build, ("running", 0, -1, 0), ("running", 50, -1, 5))
    assert np.isnan(waits(view)).all()
    assert np.isnan(cpu_between(view, Phase("all", 0.0, 1.0))["wait_pct"]).all()


def test_waits_that_are_not_known_for_a_while_are_not_taken_for_a_step(build):
    view = sampled(build, ("running", 0, 900, 0), ("running", 1, -1, 1), ("running", 2, 1_000, 2),
                   ("running", 3, 1_500, 3))  # fmt: skip
    assert waits(view) == pytest.approx([np.nan, np.nan, 50], nan_ok=True)


@pytest.mark.parametrize(
    ("before", "after", "wait_pct"),
    [
        (("running", 0, 0, 0), ("running", 0, 0, 0), 100),
        (("sleeping", 0, 0, 0), ("running", 0, 0, 0), 0),
        (("running", 0, 0, 0), ("sleeping", 0, 0, 0), 0),
        (("running", 0, 0, 0), ("running", 0, 0, 1), 0),
        (("running", 0, 0, 0), ("running", 10, 0, 0), 0),
    ],
)
def test_one_that_neither_ran_nor_slept_waited_all_along(build, before, after, wait_pct):
    """A wait is counted when it ends, and this one goes on."""
    assert waits(sampled(build, before, after)) == [wait_pct]


def test_a_long_wait_that_is_counted_at_its_end_is_no_more_than_the_interval(build):
    view = sampled(build, *[("running", 0, 0, 0)] * 3, ("running", 10, 2_900, 0))
    assert waits(view) == [100, 100, 100]


@pytest.mark.parametrize(
    ("cpu_pct", "wait_pct", "wants"),
    [
        (81, 0, True),
        (81, np.nan, True),
        (66, 33, True),
        (66, np.nan, False),
        (66, 10, False),
        (40, 60, False),
    ],
)
def test_who_never_rests_wants_all_of_a_core(cpu_pct, wait_pct, wants):
    """One that gets less than half of it is starved, whatever it would do with more."""
    assert bool(wants_full_core(cpu_pct, wait_pct)) is wants
