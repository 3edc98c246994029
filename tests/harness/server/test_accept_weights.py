"""--accept-weights: what the rule allows, and what real workers of one listener come to."""

from __future__ import annotations

import array
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.options import run as run_options
from harness.planning.request import PlanRequest
from harness.server.accept_weights import AcceptWeights
from probes.contract.errors import UsageError
from probes.contract.live import COUNTER_WORDS, Counter

MS = 1_000_000


def slots_of(count):
    slots = [memoryview(array.array("q", [0]) * COUNTER_WORDS) for _ in range(count)]
    for slot in slots:
        slot[Counter.TARGET_COUNT] = 1_000
        slot[Counter.PID] = os.getpid()
    return slots


def rules_of(weights, slots, *, takes_when_full=True):
    return [
        AcceptWeights(weights, index, slots, takes_when_full=takes_when_full)
        for index in range(len(weights))
    ]


@given(
    weights=st.lists(st.integers(1, 50), min_size=2, max_size=5),
    turns=st.lists(st.tuples(st.integers(0, 4), st.integers(1, 64)), min_size=200, max_size=400),
)
def test_whoever_is_awake_the_counts_keep_the_weights(weights, turns):
    slots = slots_of(len(weights))
    rules = rules_of(weights, slots)
    for worker, wanted in turns:
        index = worker % len(weights)
        # the clock stands still: nobody counts as gone
        slots[index][Counter.ATTEMPTED_TOTAL] += min(wanted, rules[index].room_count(MS))
    taken = [slot[Counter.ATTEMPTED_TOTAL] for slot in slots]
    levels = [count / weight for count, weight in zip(taken, weights, strict=True)]
    for level, weight in zip(levels, weights, strict=True):
        assert level - min(levels) <= 16 / sum(weights) + 1 / weight
    assert any(rule.room_count(MS) > 0 for rule in rules), "nobody may take: a standstill"


def test_what_a_full_worker_sends_away_is_part_of_its_share():
    slots = slots_of(2)
    ahead, behind = rules_of([1, 1], slots)
    slots[0][Counter.ACCEPT_RESET_TOTAL] = 100
    assert ahead.room_count(MS) == 0
    assert behind.room_count(MS) > 100


def test_a_full_worker_that_leaves_its_listener_is_not_waited_for():
    slots = slots_of(2)
    slots[1][Counter.OPEN_COUNT] = slots[1][Counter.TARGET_COUNT]
    slots[0][Counter.ATTEMPTED_TOTAL] = 5_000
    rule, _ = rules_of([1, 1], slots, takes_when_full=False)
    assert rule.room_count(MS) > 0
    rule, _ = rules_of([1, 1], slots, takes_when_full=True)
    assert rule.room_count(MS) == 0


def test_who_takes_nothing_is_waited_for_two_seconds_and_again_once_it_takes():
    slots = slots_of(2)
    rule, _ = rules_of([1, 1], slots)
    slots[0][Counter.ATTEMPTED_TOTAL] = 1_000
    assert rule.room_count(1_000 * MS) == 0
    assert rule.room_count(2_999 * MS) == 0
    assert rule.room_count(3_001 * MS) > 0
    assert rule.room_count(3_002 * MS) > 0
    slots[1][Counter.ATTEMPTED_TOTAL] = 1
    assert rule.room_count(3_003 * MS) == 0
    slots[1][Counter.ATTEMPTED_TOTAL] = 2
    assert rule.room_count(4_900 * MS) == 0
    assert rule.room_count(5_899 * MS) == 0, "it has taken one meanwhile"


@pytest.mark.parametrize("ramp_per_s", [0.0, 2_000.0])
def test_workers_of_one_listener_take_by_weight(small_fleet, ramp_per_s):
    fleet = small_fleet(
        connections=1_600, workers=4, clients=1, accept="shared", accept_weights=[13, 1, 1, 1],
        ramp_per_s=ramp_per_s,
    ).ramp()  # fmt: skip
    counts = [slot[Counter.OPEN_COUNT] for slot in fleet.fleet.server_slots]
    assert sum(counts) == 1_600
    # A late worker is caught up with; beside a noisy neighbour it may have been late for long.
    assert counts[0] == pytest.approx(1_300, abs=100), counts
    assert fleet.clients_total(Counter.FAILED_TOTAL) == 0


def test_a_full_worker_sends_its_share_away_while_its_sibling_has_room(small_fleet):
    fleet = small_fleet(
        connections=390, workers=2, clients=1, accept="shared", accept_weights=[2, 1],
        worker_nofile_count=200, at_fd_limit="reset",
    ).ramp()  # fmt: skip
    full, roomy = fleet.fleet.server_slots
    assert full[Counter.OPEN_COUNT] == full[Counter.TARGET_COUNT]
    assert full[Counter.ACCEPT_RESET_TOTAL] >= 40
    assert 100 <= roomy[Counter.OPEN_COUNT] <= 160
    assert roomy[Counter.ACCEPT_EMFILE_TOTAL] == 0


@pytest.mark.parametrize("policy", ["pause", "spin"])
def test_a_full_worker_that_takes_no_more_leaves_the_rest_to_its_sibling(small_fleet, policy):
    fleet = small_fleet(
        connections=370, workers=2, clients=1, accept="shared", accept_weights=[3, 1],
        worker_nofile_count=200, at_fd_limit=policy,
    ).ramp()  # fmt: skip
    assert fleet.clients_total(Counter.ESTABLISHED_TOTAL) == 370


def test_a_dead_worker_is_not_waited_for(small_fleet):
    fleet = small_fleet(
        connections=300, workers=2, clients=1, accept="shared", accept_weights=[1, 1],
        inject=["crash:1:20"],
    ).ramp()  # fmt: skip
    assert fleet.fleet.server_slots[0][Counter.OPEN_COUNT] >= 250


@pytest.mark.parametrize("text", ["", "1,,2", "1,x", "-1,2", "1.5,2", "1," * 5000 + "1"])
def test_what_is_no_list_of_weights_is_refused(text):
    with pytest.raises(UsageError, match="weights"):
        run_options.parse(["--connections", "9", f"--accept-weights={text}"])


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"accept": "handoff", "workers": 2}, "share one listener"),
        ({"accept": "shared", "workers": 3}, "for 3 workers"),
        ({"accept": "shared", "workers": 2, "accept_weights": (0, 1)}, "not between 1"),
    ],
)
def test_weights_that_do_not_fit_are_refused(values, words):
    with pytest.raises(UsageError) as caught:
        PlanRequest(**{"connections": 100, "accept_weights": (2, 1), **values})
    assert words in caught.value.message
    assert caught.value.fix


def test_as_many_workers_as_weights_and_the_fleet_is_told():
    options = run_options.parse(
        ["--connections", "9", "--accept", "shared", "--accept-weights", "14,13"]
    )
    request = run_options.plan_request(options, own_namespace=False)
    assert (request.workers, request.accept_weights) == (2, (14, 13))
    assert run_options.settings(options, [])["accept_weights"] == [14, 13]
