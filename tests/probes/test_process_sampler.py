import os

import pytest

from probes.clock import now_ns
from probes.probe import ProcessRef, Target
from probes.process_sampler import ProcessSamplesProbe, fd_count_from_size


def sampled(run, pids: list[int], samples: int = 1) -> list[dict]:
    processes = {pid: ProcessRef(pid, "server", index, True) for index, pid in enumerate(pids)}
    probe = ProcessSamplesProbe()
    probe.check()
    probe.start(Target(run, processes, frozenset(), None))
    for _ in range(samples):
        probe.sample(now_ns())
    probe.stop(now_ns())
    for writer in probe.writers:
        writer.close()
    return run.read_table("process_samples").table.to_pylist()


@pytest.mark.parametrize(
    ("size", "release", "count"),
    [
        (23, "6.18.44-fc", 23),
        (0, "6.18.44-fc", 0),
        (0, "6.2.0", 0),
        (0, "6.1.0-40-amd64", -1),
        (0, "5.15.0-113-generic", -1),
        (0, "10.0-rc1", 0),
        (0, "strange", -1),
        (0, "6", -1),
    ],
)
def test_descriptors_are_counted_by_the_kernel_since_6_2(size: int, release: str, count: int):
    assert fd_count_from_size(size, release) == count


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
