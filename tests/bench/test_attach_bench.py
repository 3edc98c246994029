"""The bench of profile-attach: its arithmetic on known windows, and its load on a real server."""

from __future__ import annotations

import random

import pytest

from bench import attach, attach_document
from bench.attach_figures import change_of, trimmed_mean, undisturbed

WINDOW = {
    "messages_per_s": 1_000.0,
    "p50_us": 100.0,
    "p99_us": 900.0,
    "server_cpu_us": 4.0,
    "server_cpu_pct": 30.0,
    "foreign_cpu_pct": 2.0,
    "probe_cpu_pct": 0.3,
    "supervisor_cpu_pct": 0.1,
}


def pairs(factor: float, noise: float, count: int = 20):
    draw = random.Random(7)
    made = []
    for number in range(count):
        drift = 1 + number / count  # the machine slows down: both windows of a pair alike
        off = {name: value * drift for name, value in WINDOW.items()}
        on = {name: value * factor * (1 + draw.gauss(0, noise)) for name, value in off.items()}
        made.append((off | {"foreign_cpu_pct": 2.0}, on | {"foreign_cpu_pct": 2.0}))
    return made


@pytest.mark.parametrize(
    ("factor", "noise", "more_is_better", "verdict"),
    [
        (1.002, 0.002, False, "within"),
        (1.05, 0.01, False, "over"),
        (1.01, 0.03, False, "not decided"),
        (0.95, 0.01, True, "over"),
        (1.05, 0.01, True, "within"),
        (0.95, 0.01, False, "within"),
    ],
)
def test_a_verdict_needs_the_whole_interval(factor, noise, more_is_better, verdict):
    change = change_of(pairs(factor, noise), "p50_us", more_is_better=more_is_better)
    assert change.verdict == verdict
    assert change.low_pct <= change.change_pct <= change.high_pct
    assert change.low_pct - 0.5 <= 100 * (factor - 1) <= change.high_pct + 0.5


def test_one_stall_does_not_decide():
    steady = pairs(1.001, 0.001)
    stalled = [(off, on | {"p50_us": 50 * on["p50_us"]} if not n else on)
               for n, (off, on) in enumerate(steady)]  # fmt: skip
    assert change_of(stalled, "p50_us", more_is_better=False).verdict == "within"
    assert trimmed_mean([1, 2, 3, 4, 1_000]) == 3


def test_pairs_that_strangers_disturbed_do_not_count():
    quiet, loud = pairs(1.0, 0.0, 8), pairs(1.0, 0.0, 3)
    assert undisturbed(quiet) == quiet
    for off, _ in loud:
        off["foreign_cpu_pct"] = 60.0
    assert undisturbed([*loud, *quiet]) == quiet
    assert len(undisturbed([*loud, *quiet[:4]])) == 6  # too few: the least disturbed


def test_windows_come_in_an_order_that_cancels_drift():
    assert list(attach.kinds(4)) == ["off", "on", "on", "off", "off", "on", "on", "off"]


@pytest.mark.parametrize(
    ("factor", "said"), [(1.0, "**The bar of 1 % is met**"), (1.2, "**The bar is missed:** p50")]
)
def test_the_page_says_what_the_intervals_say(factor, said):
    setting = attach_document.Setting("6.18", "2 cores", 2_032, 32, 2.5, "auto")
    measured = pairs(factor, 0.001)
    text = attach_document.page(setting, [("30 % of the most", ("p50_us",), 22, measured)])
    assert said in text
    assert "| 30 % of the most | 20 of 22 | " in text
    assert max(map(len, text.splitlines())) < 200


def test_a_machine_that_strangers_fill_decides_nothing():
    setting = attach_document.Setting("6.18", "2 cores", 2_032, 32, 2.5, "auto")
    measured = pairs(1.2, 0.001)
    for pair in measured:
        for window in pair:
            window["foreign_cpu_pct"] = 90.0
    text = attach_document.page(setting, [("30 % of the most", ("p50_us",), 20, measured)])
    assert "**The machine was not quiet**: other programs took 90 % of a core." in text
    assert "| not decided |" in text
    assert "is missed" not in text


def test_the_load_holds_its_rate_and_is_counted():
    load = attach.Load(3, 4)
    try:
        load.limit_descriptors(100)
        found = load.window(0.5, 400)
    finally:
        load.end()
    assert found["message_count"] == 200
    assert 0 < found["p50_us"] <= found["p99_us"]
    assert found["server_cpu_us"] > 0
