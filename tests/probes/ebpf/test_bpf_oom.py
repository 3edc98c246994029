"""Whom the kernel killed: a process of the run, somebody in its group, or a stranger."""

from __future__ import annotations

import json
import mmap
import os
import signal
import subprocess
import sys

import pytest

from probes.bpf_loader.btf import Btf
from probes.bpf_loader.program import compose
from probes.contract.probe import ProcessRef, Target
from probes.ebpf import oom_kills as bpf_oom
from probes.ebpf import shared as bpf_shared
from probes.ebpf import sources as bpf_sources
from tests.neighbours.groups import memory_group
from tests.neighbours.program import beside

pytestmark = pytest.mark.privileged

_GREEDY = f"""
import mmap, sys
sys.stdin.readline()
memory = mmap.mmap(-1, 256 << 20)
for at in range(0, 256 << 20, {mmap.PAGESIZE}):
    memory[at] = 1
"""


_IN_A_CONTAINER = """
import json, subprocess, sys
from pathlib import Path
from probes.ebpf.oom_kills import OomKillsProbe
from probes.contract.probe import ProcessRef, Target
from probes.contract.rundir import RunDir

greedy = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdin=subprocess.PIPE)
Path(sys.argv[2], "cgroup.procs").write_text(str(greedy.pid))
run, probe = RunDir(Path(sys.argv[3])), OomKillsProbe()
watched = {greedy.pid: ProcessRef(greedy.pid, "server", 0, False)}
probe.start(Target(run, watched, frozenset(), None))
greedy.communicate(b"go")
probe.stop(7)
for writer in probe.writers:
    writer.close()
print(json.dumps([greedy.pid, run.read_table("oom_kills").table.to_pylist()]))
"""


class Greedy:
    """A process that takes more than its group may have as soon as it is told."""

    def __init__(self, folder):
        self.child = subprocess.Popen([sys.executable, "-c", _GREEDY], stdin=subprocess.PIPE)
        (folder / "cgroup.procs").write_text(str(self.child.pid))

    @property
    def pid(self):
        return self.child.pid

    def go(self):
        self.child.communicate(b"go\n")
        assert self.child.returncode == -signal.SIGKILL


@pytest.fixture
def watched(run):
    probes = []

    def start(*pids):
        target = Target(run, {pid: ProcessRef(pid, "server", 0, False) for pid in pids},
                        frozenset(), None)  # fmt: skip
        probe = bpf_oom.OomKillsProbe()
        probes.append(probe)
        probe.start(target)
        return probe

    yield start
    for probe in probes:
        probe.stop(10**9)
        for writer in probe.writers:
            writer.close()


def rows(run, probe):
    probe.sample(7)
    for writer in probe.writers:
        writer.flush()
    return run.read_table("oom_kills").table.to_pylist()


def knows_groups():
    return "OOM_MEMORY_CONTROLLER" in bpf_sources.oom_kills(Btf.of_kernel()).constants


def test_a_process_of_the_run_is_named_with_its_group(run, watched):
    with memory_group(32 << 20) as folder:
        greedy = Greedy(folder)
        own_id = folder.stat().st_ino
        probe = watched(greedy.pid)
        greedy.go()
        (row,) = rows(run, probe)
    assert row["at_ns"] > 10**6
    group = own_id if knows_groups() else -1
    assert (row["pid"], row["cgroup_id"], row["killed_count"]) == (greedy.pid, group, 1)


def test_one_that_came_later_is_known_too(run, watched):
    with memory_group(32 << 20) as folder:
        greedy = Greedy(folder)
        probe = watched(os.getpid())
        probe.add_process(ProcessRef(greedy.pid, "server", 1, False))
        greedy.go()
        (row,) = rows(run, probe)
    assert row["pid"] == greedy.pid


def test_one_whose_end_was_noticed_first_is_known_all_the_same(run, watched):
    with memory_group(32 << 20) as folder:
        greedy = Greedy(folder)
        probe = watched(greedy.pid)
        greedy.go()
        probe.remove_processes({greedy.pid})
        (row,) = rows(run, probe)
    assert row["pid"] == greedy.pid


def test_a_stranger_in_a_group_of_the_run_is_told_from_one_elsewhere(run, watched):
    if not knows_groups():
        pytest.skip("before Linux 6.8 the tracepoint does not say of which group the victim is")
    with memory_group(32 << 20) as folder:
        beside_it = subprocess.Popen(["sleep", "60"])
        try:
            (folder / "cgroup.procs").write_text(str(beside_it.pid))
            greedy = Greedy(folder)
            probe = watched(beside_it.pid)
            greedy.go()
            (row,) = rows(run, probe)
        finally:
            beside_it.kill()
            beside_it.wait()
    assert row["pid"] == greedy.pid
    assert greedy.pid != beside_it.pid


def test_a_process_has_the_number_that_its_pid_namespace_knows(tmp_path):
    if not knows_groups():
        pytest.skip(
            "before Linux 6.8 the tracepoint has the kernel's own number of the victim only"
        )
    with memory_group(32 << 20) as folder:
        words = [_IN_A_CONTAINER, _GREEDY, str(folder), str(tmp_path)]
        done = subprocess.run(
            ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-P", "-c", *words],
            stdout=subprocess.PIPE,
            check=True,
        )
    pid, (row,) = json.loads(done.stdout)
    assert pid < 100  # numbers begin anew in a namespace
    assert row["pid"] == pid


def test_strangers_are_counted_together(run, watched):
    probe = watched(os.getpid())
    with beside("oom", "--per-second", "20") as neighbour:
        pass
    (row,) = rows(run, probe)
    assert (row["at_ns"], row["pid"], row["cgroup_id"]) == (7, 0, -1)
    assert row["killed_count"] == neighbour.count
    assert probe.lost_count == 0


@pytest.mark.parametrize("arguments", [["int"], ["task_struct", "uid_t"]])
def test_the_source_follows_the_tracepoint_of_the_kernel(monkeypatch, arguments):
    btf = Btf.of_kernel()
    monkeypatch.setattr(btf, "tracepoint_arguments", lambda event: arguments)
    source = bpf_sources.oom_kills(btf)
    assert source.constants["OOM_TASK_ARG"] == (-1 if arguments == ["int"] else 0)
    text, _ = compose(btf, [source])
    assert ("struct task_struct {" in text) == (arguments != ["int"])
    loaded = bpf_shared.load([lambda _: source], btf)
    assert not loaded.refused
    loaded.close()
