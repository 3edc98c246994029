"""Cores that a run may use, against host-wide shares; pages of other sizes."""

from __future__ import annotations

import pandas as pd
import pytest

from analysis.frames.host_facts import allowed_cpus, of_allowed_cpus, quota_cores

COLUMNS = ["at_ns", "core", "user_ns_total", "idle_ns_total"]


def host_cpu(cores: int) -> pd.DataFrame:
    """Two moments a second apart; cores 0 and 1 are full, all others idle."""
    rows = []
    for at_s in (0, 1):
        each = [
            (at_s * 10**9, core, at_s * 10**9 * (core < 2), at_s * 10**9 * (core >= 2))
            for core in range(cores)
        ]
        rows += each
        rows.append((at_s * 10**9, -1, sum(e[2] for e in each), sum(e[3] for e in each)))
    return pd.DataFrame(rows, columns=COLUMNS)


def busy_share(frame: pd.DataFrame) -> float:
    together = frame[frame["core"] == -1].sort_values("at_ns")
    grown = together.iloc[-1] - together.iloc[0]
    return float(grown["user_ns_total"] / (grown["user_ns_total"] + grown["idle_ns_total"]))


@pytest.mark.parametrize(
    ("text", "cpus"),
    [
        ("0-3,8", {0, 1, 2, 3, 8}),
        ("", set()),
        ("x,-,1-99999999", set()),
        ("7", {7}),
    ],
)
def test_cores_are_read_as_the_kernel_lists_them(text, cpus):
    assert allowed_cpus({"cpus_allowed": text}) == cpus


def test_two_full_cores_of_128_are_a_full_host_for_who_may_use_no_others():
    everywhere = host_cpu(128)
    assert busy_share(everywhere) == pytest.approx(2 / 128)
    own = of_allowed_cpus(everywhere, frozenset({0, 1}))
    assert busy_share(own) == 1
    assert set(own["core"]) == {-1, 0, 1}
    half = of_allowed_cpus(everywhere, frozenset({1, 2}))
    assert busy_share(half) == 0.5


@pytest.mark.parametrize("allowed", [set(), {0, 1, 2, 3}, {0, 1, 2, 3, 4}, {77}])
def test_who_may_use_all_of_them_sees_the_host_as_it_is(allowed):
    frame = host_cpu(4)
    assert of_allowed_cpus(frame, frozenset(allowed)) is frame


def test_what_was_not_recorded_is_as_usual():
    assert quota_cores({}) is None
    assert quota_cores({"cgroup": {"cpu_quota_cores": 1.5}}) == 1.5
