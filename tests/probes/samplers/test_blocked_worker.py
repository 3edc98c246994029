from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from probes.contract.clock import NS_PER_MS, NS_PER_S, now_ns
from probes.contract.errors import ProbeUnavailableError
from probes.contract.live import Counter, Live, Role
from probes.contract.probe import Target
from probes.samplers.blocked_samples import (
    LEAST_LAG_NS,
    BlockedSamplesProbe,
    kernel_stack_of,
    python_stack_of,
    state_of,
    syscall_of,
)

pytestmark = pytest.mark.alone

DEADLINE_S = 60.0


def rows(run, probe: BlockedSamplesProbe) -> list[dict]:
    probe.stop(now_ns())
    for writer in probe.writers:
        writer.close()
    return run.read_table("blocked_samples").table.to_pylist()


@pytest.fixture
def watch(run, new_live, occupy) -> Callable[..., tuple[BlockedSamplesProbe, Live]]:
    """``watch(pid, lag_ns)`` starts the probe on a process that is in a turn since so long."""

    def start(pid: int, lag_ns: int = NS_PER_S) -> tuple[BlockedSamplesProbe, Live]:
        live, _ = new_live(2)
        occupy(live, 1, Role.SERVER, pid)
        live.slot(1)[Counter.LOOP_ENTERED_NS] = now_ns() - lag_ns if lag_ns else 0
        probe = BlockedSamplesProbe()
        probe.check()
        probe.start(Target(run, {}, frozenset(), live))
        return probe, live

    return start


def sample_until(probe: BlockedSamplesProbe, done: Callable[[], bool]) -> None:
    end_s = time.monotonic() + DEADLINE_S
    while not done():
        assert time.monotonic() < end_s, "not seen in time"
        probe.sample(now_ns())
        time.sleep(0.02)


SLEEPS = "def report():\n    ready()\n    time.sleep(60)\nreport()\n"


@pytest.mark.privileged
def test_a_sleep_is_seen_with_its_call_and_both_stacks(run, watch, python_child):
    child, _ = python_child(SLEEPS)
    probe, _ = watch(child.pid)
    sample_until(probe, lambda: probe.child_cpu_ns > 0)
    found = rows(run, probe)
    assert {row["pid"] for row in found} == {child.pid}
    last = found[-1]
    assert (last["state"], last["syscall"]) == ("S", "clock_nanosleep")
    assert "nanosleep" in last["wait_channel"]
    assert last["kernel_stack"].endswith("_nanosleep_[k]")
    assert not last["kernel_stack"].startswith("do_syscall")
    assert last["lag_ns"] >= NS_PER_S
    stacks = [row["python_stack"] for row in found if row["python_stack"]]
    assert stacks
    assert "report (" in stacks[0].split(";")[-1]


@pytest.mark.privileged
def test_a_lock_is_a_futex(run, watch, python_child):
    child, _ = python_child("lock = threading.Lock()\nlock.acquire()\nready()\nlock.acquire()\n")
    probe, _ = watch(child.pid)
    sample_until(probe, lambda: probe.child_cpu_ns > 0)
    assert rows(run, probe)[-1]["syscall"] == "futex"


def test_a_stopped_process_is_blocked(run, watch, python_child):
    child, _ = python_child("ready()\nwhile True:\n    pass\n")
    child.send_signal(signal.SIGSTOP)
    os.waitpid(child.pid, os.WUNTRACED)
    probe, _ = watch(child.pid, 50 * NS_PER_MS)
    probe.sample(now_ns())
    assert [row["state"] for row in rows(run, probe)] == ["T"]


def test_a_sample_stands_for_the_time_since_the_look_before_as_far_as_its_turn_goes_back(
    run, watch, python_child
):
    child, _ = python_child(SLEEPS)
    end_s = time.monotonic() + DEADLINE_S
    while state_of(Path(f"/proc/{child.pid}/stat").read_text()) != "S":
        assert time.monotonic() < end_s, "it does not sleep"
        time.sleep(0.01)
    period_ns = NS_PER_S // 10
    probe, live = watch(child.pid, 3 * NS_PER_S)
    turn_ns = live.slot(1)[Counter.LOOP_ENTERED_NS]
    moments_ns = [turn_ns + after for after in (NS_PER_S, 3 * NS_PER_S, 10 * NS_PER_S)]
    for at_ns in moments_ns:
        probe.sample(at_ns)
    live.slot(1)[Counter.LOOP_ENTERED_NS] = moments_ns[-1] + NS_PER_S  # another turn
    probe.sample(moments_ns[-1] + 3 * NS_PER_S)
    found = sorted((row["at_ns"], row["period_ns"]) for row in rows(run, probe))
    assert [period for _, period in found] == [
        period_ns, 2 * NS_PER_S, 7 * NS_PER_S, 2 * NS_PER_S
    ]  # fmt: skip


@pytest.mark.privileged
def test_a_server_of_others_is_looked_at_from_outside(run, new_live, occupy, python_child):
    """It sleeps 50 ms again and again: no turn is long, and its loop stands still all the time."""
    child, _ = python_child("""
def ask():
    ready()
    while True:
        time.sleep(0.05)
ask()
""")
    live, _ = new_live(2)
    occupy(live, 0, Role.SERVER, child.pid)
    probe = BlockedSamplesProbe()
    probe.start(Target(run, {}, frozenset(), live, is_foreign=True))
    looked_at = [0]

    def has_stack() -> bool:  # one is taken a second, and dropped when the process ran meanwhile
        if probe.child_cpu_ns == looked_at[0]:
            return False
        looked_at[0] = probe.child_cpu_ns
        probe.writers[0].flush()
        written = run.read_table("blocked_samples").table.to_pylist()
        return any("ask (" in row["python_stack"] for row in written)

    sample_until(probe, has_stack)
    found = rows(run, probe)
    assert {row["pid"] for row in found} == {child.pid}
    assert {row["syscall"] for row in found} <= {"clock_nanosleep", ""}
    assert max(row["lag_ns"] for row in found) < NS_PER_S


def test_a_process_that_calculates_is_not(run, watch, python_child):
    child, _ = python_child("ready()\nwhile True:\n    pass\n")
    probe, _ = watch(child.pid)
    for _ in range(20):
        probe.sample(now_ns())
    assert rows(run, probe) == []


@pytest.mark.parametrize("lag_ns", [0, LEAST_LAG_NS // 100])
def test_waiting_for_events_and_short_turns_are_not(run, watch, python_child, lag_ns):
    child, _ = python_child(SLEEPS)
    probe, live = watch(child.pid, lag_ns)
    at_ns = live.slot(1)[Counter.LOOP_ENTERED_NS] + lag_ns if lag_ns else now_ns()
    probe.sample(at_ns)
    assert rows(run, probe) == []


def test_a_process_that_is_gone_is_passed_over(run, watch):
    probe, _ = watch(2**22 + 5)
    probe.sample(now_ns())
    assert rows(run, probe) == []


def test_foreign_servers_say_why_not(run):
    with pytest.raises(ProbeUnavailableError):
        BlockedSamplesProbe().start(Target(run, {}, frozenset(), None))


def test_the_state_follows_the_last_parenthesis():
    assert state_of("23 (a) S (b) D 1 2 3") == "D"


@pytest.mark.parametrize(
    ("text", "name"), [("230 0x0 0x1 0x2\n", "clock_nanosleep"), ("running\n", ""), ("", "")]
)
def test_syscalls_by_number(text, name):
    if name and os.uname().machine != "x86_64":
        pytest.skip("the number is that of x86-64")
    assert syscall_of(text) == name


def test_kernel_stacks_are_turned_and_shortened():
    text = "[<0>] hrtimer_nanosleep+0x74/0xf0\n[<0>] common_nsleep+0x30/0x60\n"
    text += "[<0>] do_syscall_64+0x71/0x280\n[<0>] entry_SYSCALL_64_after_hwframe+0x76/0x7e\n"
    assert kernel_stack_of(text) == "common_nsleep_[k];hrtimer_nanosleep_[k]"
    assert kernel_stack_of("") == ""


def test_python_stacks_are_of_the_thread_asked_for():
    frame = '{"name": "b", "filename": "/x/app/main.py", "line": 7}'
    dump = f'[{{"os_thread_id": 5, "frames": []}}, {{"os_thread_id": 23, "frames": [{frame}]}}]'
    assert python_stack_of(dump, 23) == "b (app/main.py:7)"
    assert python_stack_of(dump, 24) == ""
    with pytest.raises(ValueError, match="Expecting"):
        python_stack_of("", 23)
