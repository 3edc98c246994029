import os
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probes.clock import now_ns
from probes.hot_worker import (
    HotWorkerWatch,
    Use,
    choose_hot,
    idle_siblings,
    parse_cpu_ns,
    parse_runqueue_ns,
)
from probes.live import Header, Phase, Role
from probes.probe import ProcessRef


def use(pid, role, cpu, established=100, demand=None):
    return Use(pid, role, cpu, cpu if demand is None else demand, established)


IDLE = [use(pid, "server", 0.01, 0) for pid in range(1, 7)]
RAMP = [use(pid, "server", 0.9) for pid in range(1, 8)] + [
    use(pid, "client", 0.95) for pid in range(11, 18)
]


def test_siblings_are_of_its_role_idle_and_few():
    uses = [*IDLE, use(7, "server", 0.97), use(8, "server", 0.6), use(11, "client", 0.0)]
    assert idle_siblings(uses, 7) == (1, 2)
    assert idle_siblings([use(7, "server", 0.9), use(8, "server", 0.6)], 7) == ()
    assert idle_siblings(uses, 0) == ()


def test_in_the_hold_phase_the_busy_process_is_hot():
    assert choose_hot([*IDLE, use(7, "server", 0.97)], Phase.HOLD) == 7
    assert choose_hot([*IDLE, use(17, "client", 0.97)], Phase.HOLD) == 17


def test_a_starved_process_that_always_wants_a_core_is_hot():
    assert choose_hot([*IDLE, use(7, "server", 0.22, 0, demand=1.0)], Phase.HOLD) == 7


def test_a_busy_process_of_a_normal_ramp_is_not_hot():
    assert choose_hot(RAMP, Phase.RAMP) == 0


def test_in_the_ramp_a_process_far_above_its_siblings_is_hot():
    uses = [use(pid, "server", 0.1) for pid in range(1, 7)] + [use(7, "server", 0.95)]
    assert choose_hot([*uses, use(11, "client", 0.5)], Phase.RAMP) == 7


def test_in_the_ramp_a_process_that_only_burns_is_hot():
    stuck = use(3, "server", 0.99, established=0)
    assert choose_hot([*RAMP[:2], stuck, *RAMP[3:]], Phase.RAMP) == 3


def test_the_only_server_of_a_normal_ramp_is_not_hot():
    assert choose_hot([use(1, "server", 0.99), use(2, "client", 0.99)], Phase.RAMP) == 0


@pytest.mark.parametrize("phase", [Phase.START, Phase.STOP])
def test_starting_and_stopping_heat_nobody(phase: Phase):
    assert choose_hot([use(1, "server", 1.0, 0)], phase) == 0


def test_a_hot_process_stays_so_until_it_cools():
    other = use(2, "server", 1.0, 0)
    assert choose_hot([use(1, "server", 0.6), other], Phase.HOLD, 1) == 1
    assert choose_hot([use(1, "server", 0.3), other], Phase.HOLD, 1) == 2
    assert choose_hot([use(1, "server", 0.3)], Phase.HOLD, 1) == 0
    assert choose_hot([other], Phase.HOLD, 1) == 2


def test_of_equally_hot_ones_the_server_comes_first():
    assert choose_hot([use(1, "client", 0.99), use(2, "server", 0.97)], Phase.HOLD) == 2


@given(
    st.lists(
        st.builds(
            use,
            st.integers(1, 50),
            st.sampled_from(["server", "client"]),
            st.floats(0, 0.84),
            st.integers(0, 9),
        ),
        unique_by=lambda u: u.pid,
    ),
    st.sampled_from(Phase),
)
def test_nobody_below_the_threshold_is_ever_hot(uses: list[Use], phase: Phase):
    assert choose_hot(uses, phase) == 0


def test_cpu_time_is_read_behind_any_command_name():
    stat = b"12 (a ) (b) R) S 1 2 3 4 -1 4194304 101 0 0 0 17 25 0 0 20 0 1 0 270592 3133440"
    tick_ns = 10**9 // os.sysconf("SC_CLK_TCK")
    assert parse_cpu_ns(stat) == 42 * tick_ns


def test_run_queue_time_is_the_second_field():
    assert parse_runqueue_ns(b"59920 1009 23\n") == 1_009
    assert parse_runqueue_ns(b"") == 0


def test_a_spinning_process_is_found_among_sleeping_ones(new_live, occupy, python_child, deadline):
    live, _ = new_live(2)
    children = [
        python_child("ready(); time.sleep(60)")[0],
        python_child("ready()\nwhile 1: pass")[0],
    ]
    for index, child in enumerate(children):
        occupy(live, index, Role.SERVER, child.pid)
    live.header[Header.PHASE] = Phase.HOLD
    watch = HotWorkerWatch(
        {child.pid: ProcessRef(child.pid, "server", 0, True) for child in children}, live
    )
    changes = []

    def hot_pid() -> int:
        time.sleep(0.2)
        if watch.sample(now_ns()):
            changes.append(watch.pid)
        return watch.pid

    assert deadline("the spinning process is hot", hot_pid) == children[1].pid
    assert watch.demand_share >= 0.85
    children[1].kill()
    children[1].wait()
    deadline("it is forgotten when it is gone", lambda: hot_pid() == 0)
    assert changes == [children[1].pid, 0]
    open_before = len(os.listdir("/proc/self/fd"))
    watch.close()
    assert len(os.listdir("/proc/self/fd")) == open_before - 2


def test_a_process_that_is_gone_is_no_failure(python_child):
    child, _ = python_child("ready(); time.sleep(60)")
    child.kill()
    child.wait()
    watch = HotWorkerWatch({child.pid: ProcessRef(child.pid, "server", 0, True)}, None)
    assert not watch.sample(now_ns())
    watch.close()
