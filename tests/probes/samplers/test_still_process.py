"""Event loops that stand still, told from outside; and who is near its descriptor limit."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from probes.collect import registry
from probes.contract import live as live_memory
from probes.contract.live import Counter, Live
from probes.contract.probe import Target
from probes.ebpf.failing_syscalls import NEAR_SHARE, most_used_share
from probes.samplers.still_process import (
    POLL_CHANNELS,
    SleepWatch,
    StillWatch,
    threads_share_the_loop,
    turns_of,
)

pytestmark = pytest.mark.alone


@pytest.mark.parametrize(
    ("looks", "expected"),
    [
        ([("S", "ep_poll"), ("S", "hrtimer_nanosleep"), ("S", "hrtimer_nanosleep")], [0, 0, 2]),
        ([("S", "ep_poll"), ("S", "futex_wait"), ("R", ""), ("S", "futex_wait")], [0, 0, 0, 0]),
        ([("S", "ep_poll"), ("D", "jbd2"), ("S", "ep_poll"), ("D", "jbd2")], [0, 0, 0, 0]),
        ([("S", "do_wait"), ("T", "do_signal_stop"), ("T", "do_signal_stop")], [0, 0, 2]),
        ([("S", "ep_poll"), ("S", ""), ("S", "")], [0, 0, 0]),  # not to be known
        # a blocking client with a timeout waits in poll, and the loop is one of epoll
        ([("S", "ep_poll"), ("S", "do_sys_poll"), ("S", "do_sys_poll")], [0, 0, 2]),
        ([("S", "do_sys_poll"), ("S", "do_sys_poll"), ("S", "do_sys_poll")], [0, 0, 0]),
        # a loop of epoll that started a child and waits for its end; a parent does nothing else
        ([("S", "ep_poll"), ("S", "do_wait"), ("S", "do_wait")], [0, 0, 2]),
        ([("S", "do_wait"), ("S", "do_wait"), ("S", "do_wait")], [0, 0, 0]),
    ],
)
def test_two_looks_outside_of_the_poll_are_a_loop_that_stands_still(looks, expected):
    watch = StillWatch()
    found = [watch.since_ns(i, os.getpid(), *look) for i, look in enumerate(looks, start=1)]
    assert found == expected
    if found[-1]:
        assert watch.is_same(os.getpid(), found[-1])


def test_a_sleep_is_as_long_as_the_thread_did_not_run_and_ends_when_it_did():
    sleeps = SleepWatch()
    assert sleeps.look(1, 23, 7, 1, 5) == (1, False)
    assert sleeps.look(2, 23, 7, 2, 5) == (1, False)
    assert sleeps.look(3, 23, 8, 3, 5) == (3, False)  # it ran meanwhile
    sleeps.remove([23])
    assert sleeps.look(4, 23, 8, 4, 5) == (4, False)


def test_who_takes_connections_in_its_sleep_serves_them_with_another_thread():
    sleeps, second = SleepWatch(), 10**9
    assert sleeps.look(1, 23, 7, 0, 5) == (1, False)
    # a busy host counts late: what came with that count was taken before the sleep
    assert sleeps.look(2 * second, 23, 7, 0, 5) == (1, False)
    assert sleeps.look(3 * second, 23, 7, 2 * second, 9) == (1, False)
    assert sleeps.look(4 * second, 23, 7, 3 * second, 9) == (1, False)
    assert sleeps.look(5 * second, 23, 7, 4 * second, 12) == (1, True)
    watch, pid = StillWatch(), os.getpid()
    watch.leave_alone(pid)
    looks = [("S", "ep_poll"), ("S", "futex_wait"), ("S", "futex_wait")]
    assert [watch.since_ns(i, pid, *look) for i, look in enumerate(looks, start=1)] == [0, 0, 0]


def test_turns_on_a_core_are_the_third_figure():
    assert turns_of("1009 23 5\n") == 5
    assert turns_of("0 0 0\n") == -1  # a kernel that does not count
    assert turns_of("") == -1


def test_a_process_whose_loop_is_in_another_thread_is_left_alone():
    polling = threading.Event()
    read_fd, write_fd = os.pipe()

    def poll() -> None:
        import select

        epoll = select.epoll()
        epoll.register(read_fd)
        polling.set()
        epoll.poll(20)
        epoll.close()

    thread = threading.Thread(target=poll)
    thread.start()
    polling.wait(10)
    try:
        watch = StillWatch()
        pid = os.getpid()
        while not any("ep" in _channel(t) for t in os.listdir(f"/proc/{pid}/task")):
            pass
        assert [watch.since_ns(at, pid, "S", "futex_wait") for at in (1, 2)] == [0, 0]
    finally:
        os.write(write_fd, b"x")
        thread.join(20)
        os.close(read_fd)
        os.close(write_fd)


@pytest.mark.node
def test_of_a_go_program_whose_main_thread_rests_on_a_lock_nothing_is_said():
    program = Path(__file__).parents[2] / "node_modules" / "go1.26" / "bin" / "esbuild"
    if not program.is_file():
        pytest.skip("the npm packages of the tests are not installed (cd tests && npm ci)")
    with subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        watch = StillWatch()
        looks = [("S", "ep_poll"), ("S", "futex_do_wait"), ("S", "futex_do_wait")]
        found = [watch.since_ns(at, child.pid, *look) for at, look in enumerate(looks, start=1)]
        child.communicate(b"let a", timeout=20)
    assert found == [0, 0, 0]
    assert not threads_share_the_loop(os.getpid())


PARENT = """
import subprocess, sys
print("up", flush=True)
sys.stdin.readline()
polls = "import select; print('up', flush=True); select.select([0], [], [], 20)"
worker = subprocess.Popen([sys.executable, "-c", polls], stdin=subprocess.PIPE, stdout=-1)
worker.stdout.readline()
print(worker.pid, flush=True)
sys.stdin.readline()
worker.communicate()
"""


def test_a_parent_that_sleeps_while_its_workers_poll_is_left_alone():
    """A prefork master in sleep or pause is at its work; without a worker it is a loop that is."""
    looks = (1, "S", "hrtimer_nanosleep"), (2, "S", "hrtimer_nanosleep")
    command = [sys.executable, "-c", PARENT]
    with subprocess.Popen(command, stdin=-1, stdout=-1, text=True, bufsize=1) as parent:
        try:
            parent.stdout.readline()
            watch = StillWatch()
            assert [watch.since_ns(at, parent.pid, *look) for at, *look in looks] == [0, 1]
            parent.stdin.write("begin\n")
            worker = int(parent.stdout.readline())
            while not _channel(str(worker), worker).startswith(POLL_CHANNELS):
                assert parent.poll() is None
            watch = StillWatch()
            assert [watch.since_ns(at, parent.pid, *look) for at, *look in looks] == [0, 0]
            parent.stdin.write("end\n")
        finally:
            parent.kill()


def _channel(thread: str, pid: int | str = "self") -> str:
    with open(f"/proc/{pid}/task/{thread}/wchan") as stream:
        return stream.read()


@pytest.mark.parametrize(("open_count", "near"), [(100, False), (493, True), (984, True)])
def test_most_descriptors_in_use_are_near_the_limit(tmp_path, open_count, near):
    fd = live_memory.create(tmp_path / "live.bin", slot_count=3, capacity=1)
    live = Live(fd)
    slot = live.slot(0)
    slot[Counter.PID], slot[Counter.NOFILE_SOFT_COUNT], slot[Counter.OWN_FDS_COUNT] = 1, 1009, 16
    slot[Counter.OPEN_COUNT] = open_count
    target = Target(run=None, processes={}, server_ports=frozenset(), live=live)  # type: ignore[arg-type]  # not looked at
    assert (most_used_share(target) >= NEAR_SHARE) is near
    slot[Counter.STOPPED_NS] = 1
    assert not most_used_share(target) >= NEAR_SHARE
    live.close()
    os.close(fd)


def test_the_sparing_set_is_the_default_one_without_counts_of_every_call():
    assert set(registry.names_of_set("auto")) - set(registry.sparing()) == {"syscall_mix"}
