"""CPU samples of a process that spins in one known function."""

import subprocess
import sys
import time

import pytest

from probes import bpf_cpu
from probes.bpf_cpu import CpuStacksProbe
from probes.clock import now_ns
from probes.probe import ProcessRef, Target
from probes.rundir import RunDir

pytestmark = [pytest.mark.privileged, pytest.mark.alone]

SPIN = """
import zlib
block = bytes(8 << 20)
print("spinning", flush=True)
while True:
    zlib.adler32(block)
"""
IDLE = "import sys; print('idle', flush=True); sys.stdin.read()"
WANTED_SAMPLES = 40


def started(code):
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    child.stdout.readline()
    return child


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    run = RunDir(tmp_path_factory.mktemp("run"))
    children = [started(SPIN), started(IDLE), started(SPIN)]
    spinning, idle, bystander = (child.pid for child in children)
    refs = {pid: ProcessRef(pid, "server", 0, is_python=True) for pid in (spinning, idle)}
    probe = CpuStacksProbe()
    probe.start(Target(run, refs, frozenset({9000}), None))
    begin_ns = now_ns()
    try:
        deadline = time.monotonic() + 20
        while True:
            time.sleep(0.2)
            probe.sample(now_ns())
            probe.writers[0].flush()
            rows = run.read_table("cpu_stacks").table.to_pylist()
            if sum(row["sample_count"] for row in rows) >= WANTED_SAMPLES:
                break
            assert time.monotonic() < deadline, "no samples"
        assert probe._object is not None
        probe._clear(probe._object, now_ns())  # what happens when the map fills
        time.sleep(0.2)
    finally:
        for child in children:
            child.kill()
            child.communicate()
        probe.stop(now_ns())
        probe.writers[0].close()
    rows = run.read_table("cpu_stacks").table.to_pylist()
    return (spinning, bystander), rows, probe, now_ns() - begin_ns


def test_the_spinning_process_has_the_samples(recorded):
    (spinning, _), rows, _, _ = recorded
    total = sum(row["sample_count"] for row in rows)
    own = sum(row["sample_count"] for row in rows if row["pid"] == spinning)
    assert own > 0.9 * total
    assert {row["tid"] for row in rows if row["pid"] == spinning} == {spinning}
    assert all(row["thread"].startswith("python") for row in rows)


def test_its_function_is_named(recorded):
    (spinning, _), rows, _, _ = recorded
    named = sum(
        row["sample_count"]
        for row in rows
        if row["pid"] == spinning and row["user_stack"].split(";")[-1].startswith("adler32")
    )
    assert named > 0.9 * sum(row["sample_count"] for row in rows if row["pid"] == spinning)


def test_samples_stand_for_no_more_time_than_passed(recorded):
    _, rows, _, lasted_ns = recorded
    sampled_ns = sum(row["sample_count"] * row["period_ns"] for row in rows)
    assert {row["period_ns"] for row in rows} == {1_000_000_000 // bpf_cpu.FREQUENCY_HZ}
    assert sampled_ns < 1.2 * lasted_ns


def test_a_cleared_map_loses_nothing_that_is_not_counted(recorded):
    _, _, probe, _ = recorded
    assert not probe._links
    assert probe.lost_count <= 2  # samples inside the pause


def test_another_spinning_process_is_not_sampled(recorded):
    (_, bystander), rows, _, _ = recorded
    assert bystander not in {row["pid"] for row in rows}
