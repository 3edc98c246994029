"""Slots that are given back: who gets one, and what stays of who had it."""

from __future__ import annotations

import os

import pytest

from harness.foreign.process_slots import GIVE_BACK_S, ProcessSlots
from probes.contract import live as live_memory
from probes.contract.live import Counter, Header, Live, Role


@pytest.fixture
def live(tmp_path):
    fd = live_memory.create(tmp_path / "live.bin", slot_count=3, capacity=1)
    mapped = Live(fd)
    yield mapped
    mapped.close()
    os.close(fd)


def occupy(live: Live, slots: ProcessSlots, now_s: float, pid: int) -> int:
    taken = slots.take(now_s)
    assert taken is not None
    slot = slots.clear(taken[0])
    slot[Counter.PID], slot[Counter.STOPPED_NS], slot[Counter.ROLE] = pid, 0, Role.SERVER
    return taken[0]


def test_fresh_slots_go_in_order_until_all_live(live):
    slots = ProcessSlots(live, 3)
    assert [occupy(live, slots, 0.0, pid) for pid in (23, 24, 25)] == [0, 1, 2]
    assert slots.take(0.0) is None


def test_a_slot_rests_before_another_process_gets_it(live):
    slots = ProcessSlots(live, 3)
    occupy(live, slots, 0.0, 23)
    slots.give_back(0, 10.0)
    assert occupy(live, slots, 10.0 + GIVE_BACK_S - 1, 24) == 1
    assert occupy(live, slots, 10.0 + GIVE_BACK_S, 25) == 0


def test_where_all_are_taken_who_ended_first_makes_room(live):
    slots = ProcessSlots(live, 3)
    for pid in (23, 24, 25):
        occupy(live, slots, 0.0, pid)
    slots.give_back(2, 1.0)
    slots.give_back(1, 2.0)
    assert occupy(live, slots, 3.0, 26) == 2
    assert occupy(live, slots, 3.0, 27) == 1
    assert slots.take(3.0) is None


def test_what_it_counted_stays_in_the_header(live):
    slots = ProcessSlots(live, 3)
    occupy(live, slots, 0.0, 23)
    slot = live.slot(0)
    slot[Counter.ESTABLISHED_TOTAL], slot[Counter.ACCEPT_EMFILE_TOTAL] = 1_009, 5
    slot[Counter.STOPPED_NS] = 7
    slots.give_back(0, 0.0)
    taken = slots.take(GIVE_BACK_S)
    assert taken is not None
    index, departed = taken
    assert index == 0
    assert departed is not None
    assert departed.words[Counter.PID] == 23
    assert departed.words[Counter.ESTABLISHED_TOTAL] == 1_009
    assert live.header[Header.ENDED_COUNT] == 1
    assert live.header[Header.ENDED_ESTABLISHED_TOTAL] == 1_009
    assert live.header[Header.ENDED_EMFILE_TOTAL] == 5


def test_an_emptied_slot_is_no_end_of_those_that_are_followed(live):
    slots = ProcessSlots(live, 3)
    for pid in (23, 24):
        occupy(live, slots, 0.0, pid)
    live.slot(0)[Counter.STOPPED_NS] = 7
    slots.give_back(0, 0.0)
    taken = slots.take(GIVE_BACK_S)
    assert taken is not None
    slot = slots.clear(taken[0])
    assert (slot[Counter.ROLE], slot[Counter.STOPPED_NS]) == (Role.FREE, 7)
    assert [each[Counter.PID] for each in live.followed_slots()] == [23, 24]
