"""The bench of profile-attach: its arithmetic on known windows, and its load on a real server."""

from __future__ import annotations

import json
import random

import pytest

from bench import attach, attach_document
from bench.attach_document import Measured, Setting
from bench.attach_figures import Block, change_of, trimmed_mean, undisturbed
from bench.attach_windows import Load

WINDOW = {
    "messages_per_s": 1_000.0,
    "p50_us": 100.0,
    "p99_us": 900.0,
    "server_cpu_us": 4.0,
    "server_cpu_pct": 30.0,
    "foreign_cpu_pct": 2.0,
    "probe_cpu_pct": 0.3,
    "supervisor_cpu_pct": 0.1,
    "watch_cpu_s": 0.5,
}
SETTING = Setting("6.18", "2 cores", 2_032, 32, 2.5, 10.0, "auto")


def blocks(factor: float, noise: float, count: int = 12, *, per_watch: float = 0.0) -> list[Block]:
    """Windows of a machine that slows down at an even pace; a start costs a fifth, settling less.

    Args:
        factor: What a watch makes of every figure.
        noise: Of each window.
        count: Watches.
        per_watch: What differs from watch to watch.
    """
    draw = random.Random(7)

    def window(position: int, factor: float) -> dict[str, float]:
        changed = factor * 1.01**position * (1 + draw.gauss(0, noise))
        return {name: value * changed for name, value in WINDOW.items()} | {"foreign_cpu_pct": 2.0}

    made = []
    for _ in range(count):
        watched = factor * (1 + draw.gauss(0, per_watch))
        made.append(
            Block(
                off=[window(position, 1.0) for position in (0, 1, 6, 7)],
                start=[window(3, 1.2)],
                settle=[window(3, 1.1)] * 2,
                on=[window(position, watched) for position in (2, 3, 4, 5)],
            )
        )
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
    change = change_of(blocks(factor, noise), "p50_us", more_is_better=more_is_better)
    assert change.verdict == verdict
    assert change.low_pct <= change.change_pct <= change.high_pct
    assert change.low_pct - 0.5 <= 100 * (factor - 1) <= change.high_pct + 0.5


def test_windows_of_one_watch_do_not_count_for_themselves():
    """What differs from watch to watch is in all windows of one: more of them prove no more."""

    def width_pct(found: list[Block]) -> float:
        change = change_of(found, "p50_us", more_is_better=False)
        return change.high_pct - change.low_pct

    found = blocks(1.0, 0.0, per_watch=0.02)
    doubled = [Block(each.off * 2, each.start, each.settle, each.on * 2) for each in found]
    assert width_pct(doubled) == pytest.approx(width_pct(found))
    assert width_pct(found) == pytest.approx(100 * 2 * 1.96 * 0.02 / 12**0.5, rel=0.5)


def test_the_interval_holds_the_truth_as_often_as_it_says():
    draw, held = random.Random(11), 0
    for seed in range(100):
        found = [
            Block(off=[{"p50_us": 100.0}], on=[{"p50_us": 100 + draw.gauss(0, 2)}])
            for _ in range(10)
        ]
        change = change_of(found, "p50_us", more_is_better=False, seed=seed, resamples_count=200)
        held += change.low_pct <= 0 <= change.high_pct
    assert 90 <= held < 100


def test_one_stall_does_not_decide():
    stalled = blocks(1.001, 0.001)
    stalled[3].on[0]["p50_us"] *= 50
    assert abs(change_of(stalled, "p50_us", more_is_better=False).change_pct) < 0.5
    assert trimmed_mean([1, 2, 3, 4, 1_000]) == 3


def test_windows_that_strangers_disturbed_do_not_count():
    quiet, loud = blocks(1.0, 0.0, 8), blocks(1.0, 0.0, 3)
    assert undisturbed(quiet) == quiet
    quiet[0].on[1]["foreign_cpu_pct"] = 60.0
    for block in loud:
        for window in block.off:
            window["foreign_cpu_pct"] = 60.0
    kept = undisturbed([*loud, *quiet])
    assert [len(block.on) for block in kept] == [3] + [4] * 7
    assert all(block.off == quiet[0].off for block in kept)
    few = undisturbed([*loud, *quiet[:3]])
    assert len(few) == 5  # too few: the least disturbed, as they are
    assert [len(block.on) for block in few] == [4] * 5


@pytest.mark.parametrize(
    ("factor", "said"), [(1.0, "**The bar of 1 % is met**"), (1.2, "**The bar is missed:** p50")]
)
def test_the_page_says_what_the_intervals_say(factor, said):
    measured = Measured("30 % of the most", ("p50_us",), 14, blocks(factor, 0.0))
    text = attach_document.page(SETTING, [measured])
    assert said in text
    assert "| 30 % of the most | 12 of 14 | " in text
    first = f"{100 * (1.2 * 1.01**-0.5 - 1):+.2f} %"  # in the middle of a block it is 3.5
    assert f"| 30 % of the most | p50, µs | 104 | {first} " in text
    assert "| 30 % of the most | CPU of the watch until then, s |  | 0.62 | 0.57 |" in text
    assert max(map(len, text.splitlines())) < 200


def test_a_machine_that_strangers_fill_decides_nothing():
    measured = blocks(1.2, 0.001)
    for block in measured:
        for window in (*block.off, *block.on):
            window["foreign_cpu_pct"] = 90.0
    text = attach_document.page(SETTING, [Measured("30 % of the most", ("p50_us",), 12, measured)])
    assert "**The machine was not quiet**: other programs took 90 % of a core." in text
    assert "| not decided |" in text
    assert "is missed" not in text


def test_what_was_measured_is_kept_and_not_measured_again(tmp_path):
    path = tmp_path / "windows.json"
    parts = attach.parts_of(0.3)
    store = attach.Store(path, SETTING, parts)
    parts["room"].rate_per_s, parts["room"].blocks = 400.0, blocks(1.0, 0.0, 2)
    store.write()
    again = attach.parts_of(0.3)
    attach.Store(path, SETTING, again)
    assert again == parts
    other = Setting(**json.loads(path.read_text())["setting"] | {"seconds": 9.0})
    with pytest.raises(SystemExit, match=r"was measured otherwise \(seconds\)"):
        attach.Store(path, other, attach.parts_of(0.3))


def test_a_block_has_as_many_windows_with_a_watch_as_without(monkeypatch):
    asked = []

    class Watch:
        began_s = 0.0  # long ago: it has settled

        def __init__(self, *_) -> None:
            asked.append("begin")

        def end(self) -> None:
            asked.append("end")

    class Server:
        port = 1

        def window(self, seconds, rate_per_s, watch=None, *, begin=None):
            assert rate_per_s == 400
            if begin is not None:
                begin()
            asked.append("on" if watch else f"start {seconds:g}" if begin else f"off {seconds:g}")
            return dict(WINDOW)

    monkeypatch.setattr(attach, "Attached", Watch)
    block = attach.measure_block(Server(), 400, SETTING, 7)
    off = ["off 2.5"] * 2
    assert asked == [*off, "begin", "start 5", *["on"] * (2 + 4), "end", "off 1", *off]
    assert (len(block.off), len(block.start), len(block.settle), len(block.on)) == (4, 1, 2, 4)


def test_the_load_holds_its_rate_and_is_counted():
    load = Load(3, 4)
    try:
        load.limit_descriptors(100)
        found = load.window(0.5, 400)
    finally:
        load.end()
    assert found["message_count"] == 200
    assert 0 < found["p50_us"] <= found["p99_us"]
    assert found["server_cpu_us"] > 0
