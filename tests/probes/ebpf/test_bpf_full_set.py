"""The probes of the full set: syscall mix, run-queue latency, skb allocations."""

import os
import socket
import subprocess
import sys

import pytest

from probes.contract.clock import now_ns
from probes.contract.probe import ProcessRef, Target
from probes.contract.rundir import RunDir
from probes.ebpf.runq_latency import RunqLatencyProbe
from probes.ebpf.skb_allocs import SkbAllocsProbe
from probes.ebpf.syscall_mix import SyscallMixProbe

pytestmark = [pytest.mark.privileged, pytest.mark.alone]

CALLS = 1009

CALLER = """
import os, sys
for line in sys.stdin:
    for _ in range(int(line)):
        os.getppid()
    for _ in range(int(line)):
        try:
            os.close(-1)
        except OSError:
            pass
    print("done", flush=True)
"""
SLEEPER = """
import os, resource, sys, time
def switches():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_nvcsw + usage.ru_nivcsw
os.sched_setaffinity(0, {0})
sys.stdin.readline()
before = switches()
for _ in range(50):
    time.sleep(0.001)
print(switches() - before, flush=True)
sys.stdin.read()
"""
SPINNER = """
import os, sys, time
os.sched_setaffinity(0, {0})
sys.stdin.readline()
end = time.process_time() + 0.1
while time.process_time() < end:
    pass
print("done", flush=True)
sys.stdin.read()
"""


class Child:
    """A process that does its work when told and says when it is done."""

    def __init__(self, code):
        self.process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.pid = self.process.pid

    def tell(self, line):
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def wait(self):
        assert self.process.stdout.readline() == "done\n"

    def end(self):
        self.process.kill()
        self.process.communicate()


def target_of(tmp_path, *children):
    refs = {child.pid: ProcessRef(child.pid, "server", 0, is_python=True) for child in children}
    return Target(RunDir(tmp_path), refs, frozenset({9000}), None)


def finish(probe, target):
    probe.stop(now_ns())
    for writer in probe.writers:
        writer.close()
    return target.run.read_table(probe.tables[0]).table.to_pylist()


@pytest.fixture(scope="module")
def mix(tmp_path_factory):
    """One process is watched for its second batch of calls only, another never."""
    children = [Child(CALLER), Child(CALLER)]
    probe = SyscallMixProbe()
    target = target_of(tmp_path_factory.mktemp("run"), *children)
    probe.prepare()
    probe.start(target)
    attached = []
    try:
        for watched in ((), (children[0].pid,), ()):
            probe.watch(watched)
            attached.append(bool(probe._links))
            for child in children:
                child.tell(CALLS)
            for child in children:
                child.wait()
            probe.sample(now_ns())
        probe.watch({children[1].pid})
        probe.focus(children[1].pid)
        probe.focus(0)
        attached.append(bool(probe._links))
    finally:
        for child in children:
            child.end()
        rows = finish(probe, target)
    return children[0].pid, rows, attached, probe


def test_calls_of_the_watched_process_are_counted_exactly(mix):
    pid, rows, _, probe = mix
    found = {row["syscall"]: row for row in rows if row["pid"] == pid}
    assert (found["getppid"]["event_count"], found["getppid"]["failed_count"]) == (CALLS, 0)
    assert (found["close"]["event_count"], found["close"]["failed_count"]) == (CALLS, CALLS)
    assert probe.lost_count == 0
    assert probe.seen_count == sum(row["event_count"] for row in rows)


def test_nobody_else_is_counted(mix):
    pid, rows, _, _ = mix
    assert {row["pid"] for row in rows} == {pid}


def test_the_program_is_attached_only_while_it_has_something_to_watch(mix):
    _, _, attached, _ = mix
    assert attached == [False, True, False, False]


@pytest.fixture(scope="module")
def waits(tmp_path_factory):
    sleeper, first, second = Child(SLEEPER), Child(SPINNER), Child(SPINNER)
    probe = RunqLatencyProbe()
    target = target_of(tmp_path_factory.mktemp("run"), sleeper, first)  # second is a bystander
    probe.prepare()
    probe.start(target)
    try:
        sleeper.tell("go")
        switches = int(sleeper.process.stdout.readline())
        first.tell("go")
        second.tell("go")
        first.wait()
        second.wait()
    finally:
        for child in (sleeper, first, second):
            child.end()
        rows = finish(probe, target)
    return sleeper.pid, first.pid, rows, (switches, probe)


def test_every_time_it_left_the_cpu_it_waited_to_get_it_back(waits):
    sleeper, _, rows, (switches, probe) = waits
    assert switches > 0
    assert sum(row["event_count"] for row in rows if row["pid"] == sleeper) >= switches
    assert probe.lost_count == 0
    assert probe.seen_count == sum(row["event_count"] for row in rows)


def test_buckets_are_powers_of_two(waits):
    _, _, rows, _ = waits
    lows = {row["bucket_low_ns"] for row in rows}
    assert all(low > 0 and low & (low - 1) == 0 for low in lows)


def test_sharing_a_core_makes_long_waits(waits):
    _, first, rows, _ = waits
    # 100 ms of work beside another 100 ms on the same core: it waits a slice (ms) at a time
    longest_ns = max(row["bucket_low_ns"] for row in rows if row["pid"] == first)
    assert longest_ns >= 1 << 19


def test_bystanders_have_no_waits(waits):
    sleeper, first, rows, _ = waits
    assert {row["pid"] for row in rows} == {sleeper, first}


@pytest.fixture(scope="module")
def allocations(tmp_path_factory):
    probe = SkbAllocsProbe()
    target = target_of(tmp_path_factory.mktemp("run"))
    probe.prepare()
    probe.start(target)
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        for _ in range(CALLS):
            left.send(b"x")
            right.recv(1)
    finally:
        left.close()
        right.close()
        rows = finish(probe, target)
    return rows, probe


def test_every_datagram_takes_a_head(allocations):
    rows, probe = allocations
    heads = [row for row in rows if row["cache"] == "skbuff_head_cache"]
    assert sum(row["event_count"] for row in heads) >= CALLS
    assert "alloc_skb" in max(heads, key=lambda row: row["event_count"])["location"]
    assert probe.lost_count == 0
    assert probe.seen_count == sum(row["event_count"] for row in rows)


def test_only_skb_caches_and_whole_objects(allocations):
    rows, _ = allocations
    for row in rows:
        assert row["cache"].startswith("skbuff_")
        size_bytes, rest = divmod(row["allocated_bytes"], row["event_count"])
        assert rest == 0
        assert size_bytes >= 64


def test_all_descriptors_are_given_back(mix, waits, allocations):
    del mix, waits, allocations
    links = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            links.append(os.readlink(f"/proc/self/fd/{fd}"))
        except FileNotFoundError:
            continue  # the directory that is being listed
    assert not [link for link in links if "bpf" in link or "perf" in link]
