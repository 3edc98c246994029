import os
import time

import pytest

from probes.contract.clock import now_ns
from probes.contract.probe import ProcessRef, Target
from probes.proc.run_queue_wait import MOST_THREADS_COUNT, RunQueueWait, parse_wait_ns
from probes.samplers.process_samples import ProcessSamplesProbe


def sampled(run, pids: list[int], samples: int = 1, period_s: float = 0.0) -> list[dict]:
    processes = {pid: ProcessRef(pid, "server", index, True) for index, pid in enumerate(pids)}
    probe = ProcessSamplesProbe()
    probe.check()
    probe.start(Target(run, processes, frozenset(), None))
    for _ in range(samples):
        probe.sample(now_ns())
        time.sleep(period_s)
    probe.stop(now_ns())
    for writer in probe.writers:
        writer.close()
    return run.read_table("process_samples").table.to_pylist()


def test_descriptors_of_a_process_are_counted(run, python_child):
    child, _ = python_child("kept = [os.dup(0) for _ in range(23)]\nready(); time.sleep(60)")
    wanted = len(os.listdir(f"/proc/{child.pid}/fd"))
    assert wanted >= 23 + 3
    row = next(row for row in sampled(run, [child.pid]) if row["pid"] == child.pid)
    assert row["fd_count"] == wanted


def test_a_sleeping_process_says_where_it_sleeps(run, python_child, deadline):
    child, _ = python_child("ready(); time.sleep(60)")

    def channel() -> str:
        with open(f"/proc/{child.pid}/wchan") as stream:
            return stream.read().strip("0")

    wanted = deadline("the child sleeps", channel)
    row = next(row for row in sampled(run, [child.pid]) if row["pid"] == child.pid)
    assert (row["state"], row["wait_channel"]) == ("sleeping", wanted)
    assert row["role"] == "server"
    assert row["worker"] == 0


def test_cpu_time_is_what_the_process_says_itself(run, python_child):
    code = """
while time.process_time() < 0.3:
    pass
usage = os.times()
ready(f"{usage.user} {usage.system}")
select.select([0], [], [])
"""
    child, line = python_child(code)
    user_s, system_s = (float(word) for word in line.split())
    row = next(row for row in sampled(run, [child.pid]) if row["pid"] == child.pid)
    tick_s = 1 / os.sysconf("SC_CLK_TCK")
    total_s = (row["cpu_user_ns_total"] + row["cpu_system_ns_total"]) / 1e9
    # After its own reading the child only prints a line; the clock has a resolution of a tick.
    assert user_s + system_s - tick_s <= total_s <= user_s + system_s + 5 * tick_s
    assert row["cpu_user_ns_total"] > 0


def test_switches_and_memory_are_those_of_proc(run, python_child, deadline):
    child, _ = python_child("block = b'x' * (50 << 20)\nready(); select.select([0], [], [])")

    def proc_status():
        with open(f"/proc/{child.pid}/status") as stream:
            return dict(line.split(":", 1) for line in stream)

    deadline("the child waits in select", lambda: proc_status()["State"].split()[0] == "S")
    before = proc_status()
    row = next(row for row in sampled(run, [child.pid]) if row["pid"] == child.pid)
    status = proc_status()
    for column, name in [
        ("voluntary_switches_total", "voluntary_ctxt_switches"),
        ("involuntary_switches_total", "nonvoluntary_ctxt_switches"),
    ]:
        assert int(before[name]) <= row[column] <= int(status[name])
    assert row["voluntary_switches_total"] > 0
    assert row["rss_bytes"] > 50 << 20
    assert abs(row["rss_bytes"] - int(status["VmRSS"].split()[0]) * 1024) < 1 << 20


SPIN = """
def spin(seconds):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass
"""
CROWD = (
    SPIN
    + """
os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])  # all of them share one core
if os.fork() == 0:
    ctypes.CDLL(None).prctl(1, 9)
    spin(30)
"""
)


def schedstat(path: str) -> list[int]:
    with open(f"/proc/{path}/schedstat") as stream:
        return [int(word) for word in stream.read().split()]


@pytest.mark.parametrize(
    ("text", "wait_ns"), [(b"59920 1009 23\n", 1_009), (b"", -1), (b"0 0 0\n", -1)]
)
def test_the_time_on_the_run_queue_is_the_second_figure(text: bytes, wait_ns: int):
    assert parse_wait_ns(text) == wait_ns


def test_a_process_that_never_sleeps_waits_whenever_it_does_not_run(run, python_child):
    child, _ = python_child(CROWD + "ready(); spin(30)")
    before, begun_ns = schedstat(str(child.pid)), time.monotonic_ns()
    (first, *_, last) = (
        row for row in sampled(run, [child.pid], samples=3, period_s=0.4) if row["pid"] == child.pid
    )
    elapsed_ns, after = time.monotonic_ns() - begun_ns, schedstat(str(child.pid))
    waited_ns = last["run_queue_wait_ns_total"] - first["run_queue_wait_ns_total"]
    assert 0 < waited_ns <= after[1] - before[1]
    # two want the core all the time: what one does not run it waits, but for what goes on
    assert after[0] - before[0] + after[1] - before[1] > elapsed_ns / 2


def test_of_several_threads_the_one_that_waited_longest_counts(run, python_child):
    code = (
        CROWD
        + """
threading.Thread(target=spin, args=(30,), daemon=True).start()
ready(); time.sleep(60)
"""
    )
    child, _ = python_child(code)
    before_ns = schedstat(str(child.pid))[1]
    (first, *_, last) = (
        row for row in sampled(run, [child.pid], samples=3, period_s=0.4) if row["pid"] == child.pid
    )
    threads = [name for name in os.listdir(f"/proc/{child.pid}/task") if int(name) != child.pid]
    assert len(threads) == 1
    waited_ns = last["run_queue_wait_ns_total"] - first["run_queue_wait_ns_total"]
    assert 0 < waited_ns <= schedstat(f"{child.pid}/task/{threads[0]}")[1]
    assert waited_ns > schedstat(str(child.pid))[1] - before_ns  # the main thread sleeps


def test_waits_only_grow_whatever_becomes_of_the_threads(monkeypatch):
    wait = RunQueueWait(os.getpid())
    readings = [
        ({1: 100, 2: 50}, 2, 100),
        ({1: 110, 2: 80}, 2, 130),  # thread 2 waited longest since
        ({1: 115}, 1, 135),  # and ended
        ({1: 115, 3: 20}, 2, 155),  # a new one
        ({1: 900}, MOST_THREADS_COUNT + 1, -1),  # not read
        ({1: 950, 3: 20}, 2, 155),  # nobody knows how much of it is new
        ({}, 1, -1),  # it ended
        ({1: 960, 3: 21}, MOST_THREADS_COUNT, 155),
        ({1: 965, 3: 22}, MOST_THREADS_COUNT, 160),
    ]
    for by_thread, count, total_ns in readings:
        monkeypatch.setattr(wait, "_read", lambda _count, found=by_thread: found)
        assert wait.total_ns(count) == total_ns
    wait.close()


def test_a_process_that_is_gone_has_no_known_wait(python_child):
    child, _ = python_child("ready(); time.sleep(60)")
    wait = RunQueueWait(child.pid)
    child.kill()
    child.wait()
    assert wait.total_ns(1) == -1
    assert RunQueueWait(child.pid).total_ns(2) == -1
    wait.close()


def test_the_probe_process_its_children_and_the_supervisor_are_sampled(run, python_child):
    child, _ = python_child("ready(); time.sleep(60)")  # a child of this process, like a py-spy
    roles = {row["pid"]: row["role"] for row in sampled(run, [])}
    assert roles[os.getpid()] == "probe"
    assert roles[child.pid] == "probe"
    assert roles[os.getppid()] == "supervisor"


def test_a_process_that_ends_has_no_more_rows(run, python_child):
    stays, _ = python_child("ready(); time.sleep(60)")
    goes, _ = python_child("ready(); time.sleep(60)")
    processes = {p.pid: ProcessRef(p.pid, "server", 0, True) for p in (stays, goes)}
    probe = ProcessSamplesProbe()
    probe.start(Target(run, processes, frozenset(), None))
    probe.sample(1)
    goes.kill()
    goes.wait()
    probe.sample(2)
    probe.stop(3)
    probe.writers[0].close()
    rows = run.read_table("process_samples").table.to_pylist()
    assert [row["at_ns"] for row in rows if row["pid"] == goes.pid] == [1]
    assert [row["at_ns"] for row in rows if row["pid"] == stays.pid] == [1, 2, 3]


def test_a_process_that_is_gone_at_the_start_is_left_out(run, python_child):
    child, _ = python_child("ready(); time.sleep(60)")
    child.kill()
    child.wait()
    assert child.pid not in {row["pid"] for row in sampled(run, [child.pid])}


def test_no_descriptor_stays_open(run, python_child):
    child, _ = python_child("ready(); time.sleep(60)")
    before = os.listdir("/proc/self/fd")
    sampled(run, [child.pid], samples=5)
    assert os.listdir("/proc/self/fd") == before
