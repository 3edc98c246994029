"""Limits on tasks and mappings, against processes that meet them."""

import errno
import json
import resource
from pathlib import Path

import pytest

from probes.contract.clock import now_ns
from probes.contract.probe import ProcessRef, Target
from probes.ebpf.failing_syscalls import FailingSyscallsProbe
from probes.proc.limit_readings import LimitReader, parse_limits, sizes_of
from tests.control_groups import control_group

NONE = sizes_of(0, 0, 0)

LIMITS = """Limit                     Soft Limit           Hard Limit           Units
Max cpu time              unlimited            unlimited            seconds
Max data size             unlimited            unlimited            bytes
Max stack size            8388608              unlimited            bytes
Max processes             95884                95884                processes
Max open files            1024                 524288               files
Max address space         1009000000           unlimited            bytes
"""


def test_soft_limits_are_read_by_name():
    assert parse_limits(LIMITS) == {
        "data_bytes": -1,
        "stack_bytes": 8_388_608,
        "user_tasks_count": 95_884,
        "address_space_bytes": 1_009_000_000,
    }
    assert parse_limits("") == {}


def test_a_process_that_is_gone_has_no_limits_of_its_own():
    reader = LimitReader()
    reader.add_process(2**22 + 1)
    names = {reading.limit for reading in reader.of_memory(2**22 + 1, NONE)}
    assert "address_space_bytes" not in names
    assert "mappings_count" in names  # the host's, which holds for all
    assert "group_tasks_count" not in {r.limit for r in reader.of_tasks(2**22 + 1, NONE)}


def test_the_hosts_numbers_are_those_of_proc():
    reader = LimitReader()
    tasks = {reading.limit: reading for reading in reader.of_tasks(1, NONE)}
    threads_max = int(Path("/proc/sys/kernel/threads-max").read_text())
    assert tasks["host_tasks_count"].capacity == threads_max
    assert 1 <= tasks["host_tasks_count"].used < threads_max
    (mappings, *_) = reader.of_memory(1, sizes_of(1_009, 23, 5))
    assert (mappings.used, mappings.capacity) == (
        1_009,
        int(Path("/proc/sys/vm/max_map_count").read_text()),
    )


def watched(run, child, go, call):
    """Readings of a child, after a call of it failed, and its failing calls."""
    ref = ProcessRef(child.pid, "server", 0, is_python=True)
    probe = FailingSyscallsProbe()
    probe.check()
    probe.start(Target(run, {child.pid: ref}, frozenset(), None))
    try:
        said = go()
    finally:
        probe.stop(now_ns())
        for writer in probe.writers:
            writer.close()
    assert probe.lost_count == 0
    rows = run.read_table("failing_syscalls").table.to_pylist()
    failed = {(row["syscall"], row["errno"]) for row in rows}
    assert failed & {(name, code) for name in call[0] for code in [call[1]]}, failed
    readings = run.read_table("limit_readings").table.to_pylist()
    assert {row["pid"] for row in readings} == {child.pid}
    return {row["limit"]: row for row in readings}, said


def asked(child):
    def go():
        child.stdin.write("go\n")
        child.stdin.flush()
        return json.loads(child.stdout.readline())

    return go


THREADS = """
import json
ready()
sys.stdin.readline()
made = 0
stop = threading.Event()
try:
    for _ in range(200):
        threading.Thread(target=stop.wait, daemon=True).start()
        made += 1
except RuntimeError:
    pass
print(json.dumps(made), flush=True)
sys.stdin.readline()
"""


@pytest.mark.privileged
def test_the_task_limit_of_a_group_is_read_when_it_refuses(run, python_child):
    with control_group("pids", {"pids.max": "7"}) as above, control_group("pids", {}, above) as own:
        child, _ = python_child(THREADS)
        (own / "cgroup.procs").write_text(str(child.pid))
        limits, made = watched(run, child, asked(child), (("clone", "clone3"), errno.EAGAIN))
        assert made == 6
        child.kill()
        child.wait()
    row = limits["group_tasks_count"]
    assert row["scope"] == str(above)
    assert (row["used"], row["capacity"]) == (7, 7)
    assert row["hits_total"] >= 1
    assert limits["threads_count"]["used"] == 7


@pytest.mark.privileged
def test_the_task_limit_of_a_user_is_read_when_it_refuses(run, python_child):
    user = 23_017  # nobody else's
    child, _ = python_child(
        f"import resource\nresource.setrlimit(resource.RLIMIT_NPROC, (5, 5))\n"
        f"os.setuid({user})\n" + THREADS
    )
    limits, made = watched(run, child, asked(child), (("clone", "clone3"), errno.EAGAIN))
    assert made == 4
    row = limits["user_tasks_count"]
    assert (row["scope"], row["used"], row["capacity"]) == (f"uid {user}", 5, 5)


MAPPINGS = """
import json, mmap
ready()
sys.stdin.readline()
made = []
try:
    for index in range({most}):
        prot = mmap.PROT_READ | (mmap.PROT_WRITE if index % 2 else 0)
        made.append(mmap.mmap(-1, {size}, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=prot))
except OSError:
    pass
print(json.dumps(len(made)), flush=True)
sys.stdin.readline()
"""


@pytest.mark.privileged
def test_the_mappings_are_those_of_the_moment_when_one_was_refused(run, python_child):
    most = int(Path("/proc/sys/vm/max_map_count").read_text())
    child, _ = python_child(MAPPINGS.format(most=most + 9, size=4096))
    limits, made = watched(run, child, asked(child), (("mmap",), errno.ENOMEM))
    assert 0 < made < most
    row = limits["mappings_count"]
    assert row["capacity"] == most
    assert most <= row["used"] <= most + 1


@pytest.mark.privileged
def test_the_address_space_is_read_when_it_refuses(run, python_child):
    limit_bytes = 300 << 20
    child, _ = python_child(
        f"import resource\nresource.setrlimit(resource.RLIMIT_AS, ({limit_bytes},) * 2)\n"
        + MAPPINGS.format(most=100, size=16 << 20)
    )
    assert resource.prlimit(child.pid, resource.RLIMIT_AS)[0] == limit_bytes
    limits, made = watched(run, child, asked(child), (("mmap",), errno.ENOMEM))
    assert 0 < made < 100
    row = limits["address_space_bytes"]
    assert row["capacity"] == limit_bytes
    assert limit_bytes - (17 << 20) < row["used"] <= limit_bytes
    assert limits["mappings_count"]["used"] < 10_000
