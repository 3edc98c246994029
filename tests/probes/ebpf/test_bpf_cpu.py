"""CPU samples of processes that spin in known functions."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from probes.budget.row_budget import STACKS_MOST_COUNT
from probes.contract.clock import now_ns
from probes.contract.probe import ProcessRef, Target
from probes.contract.rundir import RunDir
from probes.ebpf import sources as bpf_sources
from probes.ebpf.cpu_stacks import OTHERS, CpuStacksProbe

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
PROGRAMS = Path(__file__).parents[1] / "programs"
LINKS = {32: ["-m", "elf_i386"], 64: ["-static", "-pie", "--no-dynamic-linker"]}


class Recorded(NamedTuple):
    spinning: int
    bystander: int
    rows: list[dict[str, Any]]
    of_programs: dict[int, list[dict[str, Any]]]
    probe: CpuStacksProbe
    lasted_ns: int


def started(code):
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    child.stdout.readline()
    return child


def started_program(folder, bits):
    """A program without any library: a 32-bit one, or a position-independent static one."""
    made, program = folder / f"turns_{bits}.o", folder / f"turns_{bits}"
    subprocess.run(["as", f"--{bits}", PROGRAMS / f"turns_{bits}.s", "-o", made], check=True)
    subprocess.run(["ld", *LINKS[bits], made, "-o", program], check=True)
    return subprocess.Popen([program], stdin=subprocess.PIPE)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    run = RunDir(tmp_path_factory.mktemp("run"))
    children = [started(SPIN), started(IDLE), started(SPIN)]
    spinning, idle, bystander = (child.pid for child in children)
    refs = {pid: ProcessRef(pid, "server", 0, is_python=True) for pid in (spinning, idle)}
    programs = {bits: started_program(tmp_path_factory.mktemp("programs"), bits) for bits in LINKS}
    children += programs.values()
    for child in programs.values():
        refs[child.pid] = ProcessRef(child.pid, "server", 0, is_python=False)
    probe = CpuStacksProbe()
    probe.start(Target(run, refs, frozenset({9000}), None))
    begin_ns = now_ns()
    try:
        deadline = time.monotonic() + 60
        while True:
            time.sleep(0.2)
            probe.sample(now_ns())
            probe.writers[0].flush()
            rows = run.read_table("cpu_stacks").table.to_pylist()
            counts = dict.fromkeys(refs.keys() - {idle}, 0)
            for row in rows:
                counts[row["pid"]] = counts.get(row["pid"], 0) + row["sample_count"]
            if counts[spinning] >= WANTED_SAMPLES and min(counts.values()) >= 10:
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
    every = run.read_table("cpu_stacks").table.to_pylist()
    of_programs = {
        bits: [row for row in every if row["pid"] == child.pid] for bits, child in programs.items()
    }
    rows = [row for row in every if row["pid"] in (spinning, idle, bystander)]
    return Recorded(spinning, bystander, rows, of_programs, probe, now_ns() - begin_ns)


def test_the_spinning_process_has_the_samples(recorded):
    spinning, rows = recorded.spinning, recorded.rows
    total = sum(row["sample_count"] for row in rows)
    own = sum(row["sample_count"] for row in rows if row["pid"] == spinning)
    assert own > 0.9 * total
    assert {row["tid"] for row in rows if row["pid"] == spinning} == {spinning}
    assert all(row["thread"].startswith("python") for row in rows)


def test_its_function_is_named(recorded):
    spinning, rows = recorded.spinning, recorded.rows
    named = sum(
        row["sample_count"]
        for row in rows
        if row["pid"] == spinning and row["user_stack"].split(";")[-1].startswith("adler32")
    )
    assert named > 0.9 * sum(row["sample_count"] for row in rows if row["pid"] == spinning)


def test_samples_stand_for_no_more_time_than_passed(recorded):
    rows, lasted_ns = recorded.rows, recorded.lasted_ns
    sampled_ns = sum(row["sample_count"] * row["period_ns"] for row in rows)
    assert {row["period_ns"] for row in rows} == {1_000_000_000 // bpf_sources.CPU_FREQUENCY_HZ}
    assert sampled_ns < 1.2 * lasted_ns


def test_a_cleared_map_loses_nothing_that_is_not_counted(recorded):
    assert not recorded.probe._links
    assert recorded.probe.lost_count <= 2  # samples inside the pause
    every = [recorded.rows, *recorded.of_programs.values()]
    in_rows_count = sum(row["sample_count"] for rows in every for row in rows)
    seen_count = recorded.probe.seen_count
    assert in_rows_count <= seen_count <= in_rows_count + recorded.probe.lost_count


def test_another_spinning_process_is_not_sampled(recorded):
    assert recorded.bystander not in {row["pid"] for row in recorded.rows}


@pytest.mark.parametrize("bits", LINKS)
def test_functions_of_a_32_bit_and_of_a_static_program_are_named_down_from_the_entry(
    recorded, bits
):
    counts = {}
    for row in recorded.of_programs[bits]:
        counts[row["user_stack"]] = counts.get(row["user_stack"], 0) + row["sample_count"]
    total = sum(counts.values())
    assert total >= 10
    # a sample right after a call is not on its frame yet
    assert counts.get("_start;turns_outer;turns_inner", 0) > 0.9 * total, counts


def test_where_the_recording_is_kept_small_the_rest_of_the_samples_is_one_row_a_thread(tmp_path):
    run = RunDir(tmp_path)
    probe = CpuStacksProbe()
    probe.writers = [run.writer("cpu_stacks", "cpu_stacks")]
    rows = [((10, 10 + at % 2, at, at), (100 - at, b"node")) for at in range(60)]
    kept = probe._largest(rows, 7)
    assert kept == rows[:STACKS_MOST_COUNT]
    assert probe._largest(rows[:5], 7) == rows[:5]
    probe.writers[0].close()
    written = run.read_table("cpu_stacks").table.to_pylist()
    assert {row["user_stack"] for row in written} == {OTHERS}
    counts = {row["tid"]: row["sample_count"] for row in written}
    rest = rows[STACKS_MOST_COUNT:]
    assert counts == {tid: sum(r[1][0] for r in rest if r[0][1] == tid) for tid in (10, 11)}
