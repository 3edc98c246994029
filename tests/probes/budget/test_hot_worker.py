import os
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probes.budget.hot_worker import (
    HotWorkerWatch,
    Use,
    choose_hot,
    idle_siblings,
    parse_cpu_ns,
)
from probes.contract.clock import now_ns
from probes.contract.live import Counter, Header, Phase, Role
from probes.contract.probe import AcceptFailures, ProcessRef


def use(pid, role, cpu, established=100, demand=None, failing_per_s=0.0):
    return Use(pid, role, cpu, cpu if demand is None else demand, established, failing_per_s)


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


NONE_FAIL = st.just(0.0)


def processes(most_cpu: float, failing_per_s=NONE_FAIL):
    return st.lists(
        st.builds(
            use,
            st.integers(1, 50),
            st.sampled_from(["server", "client"]),
            st.floats(0, most_cpu),
            st.integers(0, 9),
            failing_per_s=failing_per_s,
        ),
        unique_by=lambda u: u.pid,
    )


@given(processes(0.84), st.sampled_from(Phase))
def test_nobody_below_the_threshold_is_ever_hot(uses: list[Use], phase: Phase):
    assert choose_hot(uses, phase) == 0


@pytest.mark.parametrize("phase", [Phase.RAMP, Phase.HOLD])
def test_a_process_whose_accepts_fail_all_the_time_is_hot_with_less_of_a_core(phase: Phase):
    spinning = use(7, "server", 0.3, 0, failing_per_s=2_500)
    assert choose_hot([*IDLE, spinning, use(8, "client", 0.6)], phase) == 7
    assert choose_hot([use(7, "server", 0.2, 0, failing_per_s=800)], phase, 7) == 7
    assert choose_hot([use(7, "server", 0.1, 0, failing_per_s=800)], phase, 7) == 0


def test_a_few_failing_accepts_or_hardly_any_cpu_heat_nobody():
    assert choose_hot([use(1, "server", 0.5, 0, failing_per_s=400)], Phase.HOLD) == 0
    assert choose_hot([use(1, "server", 0.1, 0, failing_per_s=5_000)], Phase.HOLD) == 0
    assert choose_hot([use(1, "server", 0.5, 0, failing_per_s=5_000)], Phase.START) == 0


def test_whoever_wants_a_core_comes_before_one_whose_accepts_fail():
    full = use(1, "server", 0.3, 0, failing_per_s=5_000)
    busy = use(2, "server", 0.9, 0)
    assert choose_hot([full, busy], Phase.HOLD) == 2
    assert choose_hot([full, busy], Phase.HOLD, 1) == 2


@given(
    processes(1.0, st.floats(0, 1e6)),
    st.sampled_from([Phase.RAMP, Phase.HOLD]),
    st.integers(0, 50),
)
def test_a_spinning_process_never_goes_unseen(uses: list[Use], phase: Phase, current_pid: int):
    chosen = choose_hot(uses, phase, current_pid)
    by_pid = {each.pid: each for each in uses}
    assert chosen in {0, *by_pid}
    if any(each.is_spinning for each in uses):
        assert chosen
        assert by_pid[chosen].is_spinning or by_pid[chosen].demand_share >= 0.5


def test_cpu_time_is_read_behind_any_command_name():
    stat = b"12 (a ) (b) R) S 1 2 3 4 -1 4194304 101 0 0 0 17 25 0 0 20 0 1 0 270592 3133440"
    tick_ns = 10**9 // os.sysconf("SC_CLK_TCK")
    assert parse_cpu_ns(stat) == 42 * tick_ns


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
    assert watch.use is not None
    assert watch.use.demand_share >= 0.85
    children[1].kill()
    children[1].wait()
    deadline("it is forgotten when it is gone", lambda: hot_pid() == 0)
    assert changes == [children[1].pid, 0]
    open_before = len(os.listdir("/proc/self/fd"))
    watch.close()
    assert len(os.listdir("/proc/self/fd")) == open_before - 2


class Halved:
    """A process that spins, by a clock twice as fast: it has and wants half of a core."""

    def __init__(self, pid: int, live, deadline) -> None:
        self.failures: AcceptFailures | None = None
        refs = {pid: ProcessRef(pid, "server", 0, True)}
        self.watch = HotWorkerWatch(refs, live, lambda: self.failures)
        self._deadline = deadline
        self.sample()

    def sample(self) -> int:
        """Its next window, of a tenth of a second of its clock at least."""
        before_ns = now_ns()
        self._deadline("the window is over", lambda: now_ns() - before_ns > 5e7)
        self.watch.sample(2 * now_ns())
        return self.watch.pid


@pytest.fixture
def halved(new_live, occupy, python_child, deadline):
    live, _ = new_live(1)
    pid = python_child("ready()\nwhile 1: pass")[0].pid
    occupy(live, 0, Role.SERVER, pid)
    live.header[Header.PHASE] = Phase.HOLD
    process = Halved(pid, live, deadline)
    yield process, pid, live
    process.watch.close()


@pytest.mark.alone
def test_failing_accepts_are_counted_over_the_time_that_they_were_watched(halved):
    process, pid, _ = halved
    process.failures = AcceptFailures({}, 0)
    assert process.sample() == 0
    process.failures = AcceptFailures({pid: 100}, 10**9)
    assert process.sample() == 0
    process.failures = AcceptFailures({pid: 1_100}, 11 * 10**8)  # 10,000 a second while watched
    assert process.sample() == pid
    assert process.watch.use is not None
    assert process.watch.use.failing_accepts_per_s == pytest.approx(10_000)
    assert process.sample() == pid, "what was not watched since is no news"
    process.failures = AcceptFailures({pid: 1_100}, 21 * 10**8)
    process.watch.pid = 0  # at half of a core it would stay hot for that alone
    assert process.sample() == 0


@pytest.mark.alone
def test_without_that_probe_a_worker_s_own_count_serves(halved):
    process, pid, live = halved
    assert process.sample() == 0
    live.slot(0)[Counter.ACCEPT_EMFILE_TOTAL] = 1_000_000
    assert process.sample() == pid


def test_a_process_that_is_gone_is_no_failure(python_child):
    child, _ = python_child("ready(); time.sleep(60)")
    child.kill()
    child.wait()
    watch = HotWorkerWatch({child.pid: ProcessRef(child.pid, "server", 0, True)}, None)
    assert not watch.sample(now_ns())
    watch.close()
