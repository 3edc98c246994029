"""eBPF in a pid namespace of its own, as in a container: counted is who it means, and nobody else.

Outside there is a process with the same number as the one that is watched inside.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from probes.bpf_loader import pid_namespace

pytestmark = pytest.mark.privileged

# Fails at rmdir as often as each line says, and burns CPU for a moment after it.
FAILS = """
import os, sys, time
print("ready", flush=True)
for line in sys.stdin:
    for _ in range(int(line)):
        try:
            os.rmdir("/proc/self")
        except OSError:
            pass
    end = time.process_time() + 0.3
    while time.process_time() < end:
        pass
    print("done", flush=True)
"""

INSIDE = """
import json, os, subprocess, sys
from pathlib import Path
from probes.bpf_loader import pid_namespace
from probes.ebpf.cpu_stacks import CpuStacksProbe
from probes.ebpf.failing_syscalls import FailingSyscallsProbe
from probes.contract.clock import now_ns
from probes.contract.probe import ProcessRef, Target
from probes.contract.rundir import RunDir

FAILS, folder, wanted_pid = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
assert not pid_namespace.is_first() and not pid_namespace.proc_is_of_another()

def started(*before):
    child = subprocess.Popen([*before, sys.executable, "-c", FAILS], stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "ready\\n"
    return child

def fail(child, count):
    child.stdin.write(f"{count}\\n")
    child.stdin.flush()
    assert child.stdout.readline() == "done\\n"

bystander = started()
Path("/proc/sys/kernel/ns_last_pid").write_text(str(wanted_pid - 1))
watched = started()
assert watched.pid == wanted_pid
# In a namespace below this one: unshare waits for its child, whose number here is the next one.
below = started("unshare", "--pid", "--fork", "--kill-child")
children = Path(f"/proc/{below.pid}/task/{below.pid}/children").read_text().split()
inner = int(children[0])
refs = {pid: ProcessRef(pid, "server", 0, is_python=True) for pid in (watched.pid, inner)}
run = RunDir(folder)
probes = [FailingSyscallsProbe(), CpuStacksProbe()]
target = Target(run, refs, frozenset(), None)
for probe in probes:
    probe.check()
    probe.start(target)
print("watching", flush=True)
sys.stdin.readline()
fail(watched, 23)
fail(below, 29)
fail(bystander, 31)
for probe in probes:
    probe.sample(now_ns())
for child in (watched, below, bystander):
    child.kill()
for probe in probes:
    probe.stop(now_ns())
    for writer in probe.writers:
        writer.close()
tables = {name: run.read_table(name).table.to_pylist()
          for name in ("failing_syscalls", "failure_stacks", "cpu_stacks")}
print(json.dumps({"watched": watched.pid, "inner": inner, **tables}), flush=True)
os._exit(0)
"""


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    outside = subprocess.Popen(
        [sys.executable, "-c", FAILS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    unshare = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
    words = [sys.executable, "-P", "-c", INSIDE, FAILS, str(folder), str(outside.pid)]
    inside = subprocess.Popen(
        [*unshare, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert outside.stdout.readline() == "ready\n"
        assert inside.stdout.readline() == "watching\n"
        outside.stdin.write("1009\n")
        outside.stdin.flush()
        assert outside.stdout.readline() == "done\n"
        told, _ = inside.communicate("go\n", timeout=60)
        assert inside.returncode == 0
        return json.loads(told)
    finally:
        for child in (inside, outside):
            child.kill()
            child.communicate()


def counts(seen, pid: int) -> int:
    rows = seen["failing_syscalls"]
    return sum(row["event_count"] for row in rows if (row["pid"], row["syscall"]) == (pid, "rmdir"))


def test_failing_calls_are_those_of_the_watched_process_and_of_nobody_with_its_number(seen):
    assert counts(seen, seen["watched"]) == 23


def test_a_process_of_a_namespace_below_is_known_by_its_number_here(seen):
    assert counts(seen, seen["inner"]) == 29


def test_nobody_else_is_counted(seen):
    for table in ("failing_syscalls", "failure_stacks", "cpu_stacks"):
        assert {row["pid"] for row in seen[table]} <= {seen["watched"], seen["inner"]}


def test_threads_have_their_own_numbers_here_too(seen):
    for table in ("failure_stacks", "cpu_stacks"):
        assert {row["tid"] for row in seen[table]} == {seen["watched"], seen["inner"]}


def test_cpu_samples_are_of_the_watched_process(seen):
    for name in ("watched", "inner"):
        samples = [row for row in seen["cpu_stacks"] if row["pid"] == seen[name]]
        assert 5 <= sum(row["sample_count"] for row in samples) <= 60  # of 0.3 s, at 49 a second
        assert all(row["thread"].startswith("python") for row in samples)


def test_this_process_is_in_the_namespace_that_proc_shows():
    assert not pid_namespace.proc_is_of_another()


@pytest.mark.parametrize(
    "code",
    [
        "from harness.commands.doctor import main; sys.exit(main(['--json']))",
        # the second process of the namespace is another one of the host
        "from harness.commands.attach import main; sys.exit(main(['--pid', '2']))",
        "from harness.commands.run import main; sys.exit(main(['--plan', '--connections', '9']))",
    ],
)
def test_a_proc_of_another_namespace_is_refused_with_the_fix(code):
    words = [sys.executable, "-P", "-c", f"import sys\n{code}"]
    done = subprocess.run(
        ["unshare", "--pid", "--fork", "--kill-child", *words],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (4, "")
    message, fix = done.stderr.splitlines()
    assert "another pid namespace" in message
    assert "mount -t proc" in fix
