"""What decides how often a server in service is looked at, on real clocks and shared memory."""

from __future__ import annotations

import ctypes
import os
import time
from pathlib import Path

import pytest

from probes.budget import own_cost
from probes.budget import pace as attached_pace
from probes.budget.governor import FORWARD_NS, QUIET_STRETCH, STARVED_NS, Governor
from probes.budget.own_cost import OwnCost, process_cpu_ns, stand_back
from probes.budget.pace import CALM_FLUSH_NS, FLUSH_NS, AttachedPace, notes, signs_of
from probes.budget.row_budget import RowBudget
from probes.contract.clock import NS_PER_MS, NS_PER_S, now_ns
from probes.contract.live import Counter
from probes.contract.probe import ProcessRef, Target
from probes.python_stacks.python_stacks import (
    ATTACHED_LOW_MOST_COUNT,
    QUIET_REST_S,
    PythonStacksProbe,
)


def occupy(slot, pid: int, **words: int) -> None:
    slot[Counter.PID] = pid
    for name, value in words.items():
        slot[Counter[name.upper()]] = value


def test_signs_are_of_the_processes_that_are_followed(new_live):
    live, _ = new_live(4, 1)
    assert signs_of(live) == (0, 0, 0, 0)
    occupy(live.slot(0), 23, open_count=80, own_fds_count=10, nofile_soft_count=100)
    occupy(live.slot(1), 24, open_count=79, own_fds_count=10, nofile_soft_count=100)
    occupy(live.slot(2), 25, stopped_ns=7, accept_emfile_total=11, open_count=100)
    assert signs_of(live) == (3, 1, 1, 11)


@pytest.mark.parametrize(
    ("word", "value"), [("ACCEPT_EMFILE_TOTAL", 1), ("STOPPED_NS", 1), ("OPEN_COUNT", 95)]
)
def test_a_sign_brings_close_samples(new_live, word, value):
    live, _ = new_live(2, 1)
    occupy(live.slot(0), os.getpid(), open_count=10, nofile_soft_count=100)
    pace = AttachedPace(live)
    assert pace.look(NS_PER_S, is_hot=False) == 2
    assert pace.look(2 * NS_PER_S, is_hot=False) == 2
    assert pace.next_due_ns(2 * NS_PER_S + 1, NS_PER_S, False) == (4 * NS_PER_S, 0)
    live.slot(0)[Counter[word]] = value
    assert pace.look(3 * NS_PER_S, is_hot=False) == 1
    assert pace.next_due_ns(3 * NS_PER_S + 1, NS_PER_S, False) == (4 * NS_PER_S, 0)


def test_a_quiet_server_is_looked_at_less_often_and_that_is_not_put_on_the_budget(new_live):
    live, _ = new_live(1, 1)
    occupy(live.slot(0), os.getpid(), open_count=10, nofile_soft_count=100)
    pace = AttachedPace(live, Governor(budget_share=1.0))
    pace.look(NS_PER_S, is_hot=False)
    assert pace.look_due_ns(NS_PER_S) == NS_PER_S + NS_PER_S // 5
    later_ns = 100 * NS_PER_S
    assert pace.look(later_ns, is_hot=False) == QUIET_STRETCH
    assert pace.look_due_ns(later_ns) == later_ns + 2 * NS_PER_S // 5
    assert pace.next_due_ns(later_ns, NS_PER_S // 10, False) == (later_ns + 2 * NS_PER_S // 5, 0)
    assert pace.flush_due_ns(later_ns) == later_ns + CALM_FLUSH_NS
    assert pace.look(later_ns, is_hot=True) == 1
    assert pace.look_due_ns(later_ns) == later_ns + NS_PER_S // 5
    assert pace.flush_due_ns(later_ns) == later_ns + FLUSH_NS


def test_a_watch_that_waits_for_a_core_stands_back_no_longer(new_live, monkeypatch):
    waited_ns = [0]
    monkeypatch.setattr(attached_pace, "core_wait_ns", lambda pid: waited_ns[0])
    pace = AttachedPace(new_live(1, 1)[0])
    pace.look(NS_PER_S, is_hot=False)
    assert pace.nice(NS_PER_S) == own_cost.WATCH_NICE
    waited_ns[0] += STARVED_NS
    pace.look(4 * NS_PER_S, is_hot=False)
    assert pace.nice(4 * NS_PER_S) == own_cost.START_NICE
    pace.look(4 * NS_PER_S + FORWARD_NS, is_hot=False)
    assert pace.nice(4 * NS_PER_S + FORWARD_NS) == own_cost.WATCH_NICE


def test_what_the_budget_takes_is_counted(new_live):
    live, _ = new_live(1, 1)
    governor = Governor(budget_share=0.0, burst_ns=0)
    pace = AttachedPace(live, governor)
    at_ns = now_ns()
    pace.look(at_ns, is_hot=False)
    end_s = time.process_time() + 0.01
    while time.process_time() < end_s:
        pass
    assert pace.look(at_ns + 2 * NS_PER_S, is_hot=True) == 4
    due_ns, put_off_count = pace.next_due_ns(at_ns, NS_PER_S, False)
    assert (due_ns % (4 * NS_PER_S), put_off_count) == (0, 1)
    assert pace.next_due_ns(NS_PER_S, NS_PER_S // 5, True) == (NS_PER_S + NS_PER_S // 5, 0)
    assert notes("seen half", 0) == "seen half"
    assert notes("seen half", 3).startswith("seen half; 3 samples were not taken")


BURN = """
def burn(cpu_s):
    end_s = time.process_time() + cpu_s
    while time.process_time() < end_s:
        pass
burn(0.1)
ready()
select.select([0], [], [])
"""


def test_the_cost_is_of_this_process_its_parent_and_children_that_live_or_ended(python_child):
    cost = OwnCost(0)
    before_ns = cost.total_ns()
    child, _ = python_child(BURN)
    living_ns = cost.total_ns() - before_ns
    assert living_ns >= 100 * NS_PER_MS
    assert process_cpu_ns(child.pid) <= living_ns
    child.kill()
    child.wait()
    # rusage counts whole microseconds, and the scheduler scales it to ticks
    assert cost.total_ns() - before_ns >= living_ns - 5 * NS_PER_MS
    assert OwnCost(os.getppid()).total_ns() > cost.total_ns() - NS_PER_S // 2
    assert process_cpu_ns(child.pid) == -1


def autogroup_of(pid: int) -> str:
    """'' where the kernel has none (CONFIG_SCHED_AUTOGROUP), or the process is in none."""
    try:
        return Path(f"/proc/{pid}/autogroup").read_text()
    except OSError:
        return ""


def slice_ns_of(pid: int) -> int:
    """sched_runtime of sched_getattr(2), which is the number after sched_setattr's."""
    number = own_cost._SYS_SCHED_SETATTR[os.uname().machine] + 1
    answer = ctypes.create_string_buffer(own_cost._SCHED_ATTR.size)
    assert ctypes.CDLL(None).syscall(number, pid, answer, len(answer), 0) == 0
    return int(own_cost._SCHED_ATTR.unpack(answer.raw)[5])


def test_who_stands_back_takes_what_others_leave(python_child):
    child, _ = python_child("os.setsid()\nready(); time.sleep(60)")
    stand_back(own_cost.WATCH_NICE, child.pid)
    assert os.sched_getscheduler(child.pid) == os.SCHED_BATCH
    assert os.getpriority(os.PRIO_PROCESS, child.pid) == 19
    slack = Path(f"/proc/{child.pid}/timerslack_ns").read_text()
    assert int(slack) == own_cost.TIMER_SLACK_NS
    assert slice_ns_of(child.pid) in (own_cost.SLICE_NS, 0)  # 0 before Linux 6.12
    group = autogroup_of(child.pid)
    assert group == "" or group.split()[-1] == "19"
    stand_back(own_cost.WATCH_NICE, 1 << 30)  # gone: nothing to do


def test_who_shares_a_session_slows_only_itself(python_child):
    child, _ = python_child("ready(); time.sleep(60)")
    before = autogroup_of(os.getpid())
    stand_back(own_cost.START_NICE, child.pid)
    assert os.getpriority(os.PRIO_PROCESS, child.pid) == 5
    assert autogroup_of(os.getpid()) == before


def test_many_workers_are_sampled_in_turn(run, monkeypatch):
    opened: list[int] = []
    probe = PythonStacksProbe()
    monkeypatch.setattr(probe, "check", lambda: None)
    monkeypatch.setattr(probe, "_open", lambda pid, *_: opened.append(pid))
    monkeypatch.setattr(probe, "_is_there", lambda pid: pid != 12)
    refs = {pid: ProcessRef(pid, "server", pid, is_python=True) for pid in range(10, 17)}
    probe.start(Target(run, refs, frozenset(), None, attached=True, is_sparing=True))
    assert opened == [10, 11, 12, 13]
    assert len(opened) == ATTACHED_LOW_MOST_COUNT
    probe._begun_ns = {10: 1, 11: 2, 12: 3, 13: 4, 14: 5}
    probe._open_next(_window(11))
    assert opened[-1] == 15  # was never sampled yet
    probe._begun_ns |= {15: 6, 16: 7}
    probe._open_next(_window(15))
    assert opened[-1] == 10  # the longest ago; 12 is gone
    for writer in probe.writers:
        writer.close()


def test_of_a_quiet_server_a_part_of_the_time_is_sampled(run, monkeypatch):
    opened: list[int] = []
    probe = PythonStacksProbe()
    monkeypatch.setattr(probe, "check", lambda: None)
    monkeypatch.setattr(probe, "_open", lambda pid, *_: opened.append(pid))
    monkeypatch.setattr(probe, "_is_there", lambda _: True)
    refs = {pid: ProcessRef(pid, "server", pid, is_python=True) for pid in (10, 11)}
    target = Target(run, refs, frozenset(), None, attached=True, is_sparing=True)
    probe.start(target)
    assert opened == [10, 11]
    target.stretch = QUIET_STRETCH
    begin_ns = now_ns()
    probe._open_next(_window(10))
    probe._open_next(_window(11))
    probe.sample(begin_ns + NS_PER_S)
    assert opened == [10, 11]
    assert "a third of the time" in probe.note
    probe.sample(begin_ns + int((QUIET_REST_S + 5) * NS_PER_S))
    assert opened == [10, 11, 10, 11]
    probe._open_next(_window(10))
    probe.focus(10)  # it is sampled closely now
    target.stretch = 1.0  # something happens: nobody rests
    probe._resting[11] = now_ns() + NS_PER_S
    probe.sample(begin_ns)
    assert opened == [10, 11, 10, 11, 10, 11]
    assert probe._resting == {}
    for writer in probe.writers:
        writer.close()


def _window(pid: int):
    class Window:
        pass

    window = Window()
    window.pid = pid
    return window


def test_rows_of_a_quiet_watch_come_further_apart_and_looks_for_harm_do_not(new_live):
    live, _ = new_live(1, 1)
    occupy(live.slot(0), os.getpid(), open_count=10, nofile_soft_count=1_000, target_count=990)
    rows = RowBudget(1_000, quiet_stretch=64)
    pace = AttachedPace(live, Governor(budget_share=1.0), rows)
    at_ns = 600 * NS_PER_S
    pace.look(NS_PER_S, is_hot=False)
    pace.look(at_ns, is_hot=False)
    assert pace.is_coarse
    usual_ns, _ = pace.next_due_ns(at_ns, NS_PER_S // 2, False)
    assert usual_ns == at_ns + 2 * NS_PER_S
    coarse_ns, put_off_count = pace.next_due_ns(at_ns, NS_PER_S // 2, False, writes_rows=True)
    assert (coarse_ns, put_off_count) == (at_ns - at_ns % (32 * NS_PER_S) + 32 * NS_PER_S, 0)
    assert pace.flush_due_ns(at_ns) == at_ns + 60 * NS_PER_S
    live.slot(0)[Counter.OPEN_COUNT] = 60  # no sign of harm, but something moves
    pace.look(at_ns + NS_PER_S, is_hot=False)
    assert pace.row_stretch == QUIET_STRETCH
    pace.look(at_ns + 20 * NS_PER_S, is_hot=False)
    assert pace.is_coarse
    pace.look(at_ns + 21 * NS_PER_S, is_hot=True)
    assert pace.row_stretch == 1
    assert pace.flush_due_ns(at_ns) == at_ns + FLUSH_NS
