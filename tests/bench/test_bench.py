"""The bench: arithmetic on known figures, /proc readers on real processes, one real call."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import bars, document, proc_figures
from bench.__main__ import schedule
from bench.figures import AUTO, NODE_NONE, NODE_RR, NONE, RunFigures, Runs, Spread, summarise

ROOT = Path(__file__).resolve().parents[2]


def pair(number: int, none_s: float, auto_s: float) -> list[RunFigures]:
    return [
        RunFigures(NONE, number, ramp_s=none_s),
        RunFigures(AUTO, number, ramp_s=auto_s),
    ]


# -- figures ---------------------------------------------------------------------------------------


def test_the_spread_leaves_out_what_is_missing():
    assert summarise([3.0, None, 1.0, 10.0]) == Spread(3.0, 1.0, 10.0, 3)
    assert summarise([None, None]) is None


@given(st.lists(st.floats(0, 1e9), min_size=1))
def test_the_median_lies_between_the_extremes(values):
    spread = summarise(values)
    assert spread is not None
    assert spread.low == min(values) <= spread.median <= max(values) == spread.high
    assert spread.count == len(values)


def test_what_probes_add_is_taken_within_a_pair_so_that_drift_cancels():
    # The second round is twice as slow for both: over all runs the medians would add 5 %, too, but
    # the highest and lowest pair show that every pair added the same.
    runs = Runs(100, [*pair(1, 4.0, 4.2), *pair(2, 8.0, 8.4)])
    added = runs.added_pct("ramp_s")
    assert added is not None
    assert (added.median, added.low, added.high) == pytest.approx((5.0, 5.0, 5.0))
    assert added.count == 2


def test_a_run_without_its_partner_adds_nothing():
    assert (
        Runs(100, [RunFigures(NONE, 1, ramp_s=4.0), RunFigures(AUTO, 2, ramp_s=5.0)]).added_pct(
            "ramp_s"
        )
        is None
    )


def test_ratios_are_of_medians_to_our_unprofiled_runs():
    runs = Runs(100, [*pair(1, 4.0, 9.0), RunFigures(NODE_RR, 1, ramp_s=14.0)])
    assert runs.ratio(NODE_RR, "ramp_s") == pytest.approx(3.5)
    assert runs.ratio(NODE_NONE, "ramp_s") is None


# -- bars ------------------------------------------------------------------------------------------


def good_run(subject: str, number: int, **changes: float) -> RunFigures:
    run = RunFigures(
        subject,
        number,
        ramp_s=5.0,
        fleet_cpu_us=60.0,
        host_cpu_us=80.0,
        established_count=100,
        failed_count=0,
        held_count=100,
        lost_count=0,
        server_pss_bytes=40_000_000,
        probe_pss_bytes=200_000_000,
        probe_cpu_pct=3.0,
        report_s=4.0,
        report_bytes=900_000,
        command_s=30.0,
    )
    for name, value in changes.items():
        setattr(run, name, value)
    return run


def verdicts(*runs: RunFigures) -> dict[str, str]:
    return {each.what: each.verdict for each in bars.judge(Runs(100, runs))}


def test_a_good_pair_meets_every_bar():
    assert set(verdicts(good_run(NONE, 1), good_run(AUTO, 1)).values()) == {"met"}


@pytest.mark.parametrize(
    ("subject", "figure", "on_the_bar", "verdict"),
    [
        (NONE, "ramp_s", 6.0, "met"),
        (AUTO, "command_s", 45.0, "not met"),
        (AUTO, "probe_pss_bytes", 300_000_000, "not met"),
        (AUTO, "probe_cpu_pct", 5.0, "not met"),
        (AUTO, "report_s", 10.0, "met"),
        (AUTO, "report_bytes", 5_000_000, "not met"),
        (NONE, "server_pss_bytes", 100_000_000, "not met"),
        (AUTO, "server_pss_bytes", 100_000_000, "not met"),
        (AUTO, "fleet_cpu_us", 63.1, "not met"),
        (AUTO, "host_cpu_us", 84.1, "not met"),
        (AUTO, "lost_count", 1, "not met"),
        (NONE, "failed_count", 1, "not met"),
        (NONE, "held_count", 99, "not met"),
    ],
)
def test_a_figure_on_or_just_over_its_bar(subject, figure, on_the_bar, verdict):
    runs = {each: good_run(each, 1) for each in (NONE, AUTO)}
    setattr(runs[subject], figure, on_the_bar)
    found = list(verdicts(*runs.values()).values())
    assert found.count("not met") == (1 if verdict == "not met" else 0)


def test_what_was_not_measured_is_not_met_in_silence():
    found = verdicts(RunFigures(NONE, 1, error="it broke"), RunFigures(AUTO, 1, error="it broke"))
    assert found.pop("held to the end, worst run") == "not met"
    assert set(found.values()) == {"not measured"}


# -- order and document ----------------------------------------------------------------------------


def test_runs_alternate_and_node_comes_in_the_first_rounds():
    order = list(schedule(5, with_node=True))
    ours = [subject for subject, _ in order if subject in (NONE, AUTO)]
    assert ours == [NONE, AUTO] * 5
    assert [each for each in order if each[0] == NODE_RR] == [(NODE_RR, n) for n in (1, 2, 3)]
    assert list(schedule(1, with_node=False)) == [(NONE, 1), (AUTO, 1)]


def test_every_table_of_the_document_is_well_formed():
    runs = Runs(
        100,
        [
            good_run(NONE, 1),
            good_run(AUTO, 1, ramp_s=5.5, background_pct=80.0),
            RunFigures(NODE_NONE, 1, error="node ended early"),
            RunFigures(NODE_RR, 1, ramp_s=15.0, primary_cpu_us=70.0),
        ],
    )
    text = document.render(runs, {"kernel": "Linux 6.18"})
    blocks = [block for block in text.split("\n\n") if block.startswith("|")]
    assert len(blocks) == 3
    for block in blocks:
        assert len({(line.count("|"), len(line)) for line in block.splitlines()}) == 1
    assert "10.0 %" in text  # 5.0 s to 5.5 s
    assert "node-none, round 1: node ended early" in text
    assert "others used up to 80 % of a core" in text
    assert "- kernel: Linux 6.18" in text


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (None, "s", "-"),
        (4.256, "s", "4.26 s"),
        (38_900_000, "bytes", "38.9 MB"),
        (120_000, "count", "120,000"),
        (0.0, "%", "0.0 %"),
    ],
)
def test_figures_carry_their_unit(value, unit, text):
    assert document.value_text(value, unit) == text


# -- /proc -----------------------------------------------------------------------------------------

_BURN = """
import sys, time
{before}
while time.process_time() < 0.3: pass
print("done", flush=True)
sys.stdin.read()
"""


def burn(before: str = "") -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-S", "-c", _BURN.format(before=before)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"done\n"
    return process


def end(process: subprocess.Popen[bytes]) -> None:
    process.communicate()
    assert process.returncode == 0


@pytest.mark.alone
@pytest.mark.parametrize(
    "before",
    ["", "import threading; threading.Thread(target=sys.stdin.read, daemon=True).start()"],
    ids=["one thread", "two threads"],
)
def test_cpu_time_is_what_the_kernel_bills_at_the_end(before):
    process = burn(before)
    used_ns = proc_figures.cpu_ns(process.pid)
    end_of = process.stdin
    assert end_of is not None
    end_of.close()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.stdout is not None
    process.stdout.close()
    # What it did after the reading, and ticks of 10 ms.
    assert used_ns / 1e9 == pytest.approx(usage.ru_utime + usage.ru_stime, abs=0.08)
    assert used_ns >= 0.25e9


@pytest.mark.alone
def test_a_child_that_ended_stays_in_the_cpu_of_its_tree():
    burnt = "import subprocess; subprocess.run([sys.executable, '-S', '-c', {!r}])".format(
        "import time\nwhile time.process_time() < 0.3: pass"
    )
    process = burn(burnt)
    try:
        assert proc_figures.tree_cpu_ns([process.pid]) >= 0.55e9
    finally:
        end(process)


def test_memory_and_descendants_of_real_processes():
    process = burn()
    try:
        used = proc_figures.memory([process.pid])
        assert 1_000_000 < used.pss_bytes <= used.rss_bytes
        assert process.pid in proc_figures.descendants(os.getpid())
        assert proc_figures.parent_pid(process.pid) == os.getpid()
        assert "process_time" in proc_figures.command(process.pid)
        assert proc_figures.is_running(process.pid)
    finally:
        end(process)
    assert not proc_figures.is_running(process.pid)
    assert proc_figures.memory([process.pid]) == proc_figures.Memory(0, 0)
    assert proc_figures.cpu_ns(process.pid) == 0


def test_busy_time_is_what_is_left_of_idle_iowait_and_steal():
    tick_ns = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
    text = "cpu  5 0 5 {} 20 0 0 7 0 0\ncpu0 0\ncpu1 0\nintr 9\n"
    before = proc_figures.host_busy_ns(text.format(100), 0)
    after = proc_figures.host_busy_ns(text.format(150), 100 * tick_ns)
    assert after - before == (2 * 100 - 50) * tick_ns


# -- all of it -------------------------------------------------------------------------------------


@pytest.mark.node
@pytest.mark.shared
def test_a_small_bench_measures_every_subject(tmp_path):
    result = tmp_path / "bench.json"
    command = [
        *(sys.executable, "-m", "bench", "--connections", "300", "--pairs", "1", "--hold", "3"),
        *("--warm-up", "0", "--settle", "0", "--json", str(result)),
    ]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=150, check=False
    )
    assert done.returncode == 0, done.stderr
    runs = {run["subject"]: run for run in json.loads(result.read_text())["runs"]}
    assert list(runs) == [NONE, AUTO, NODE_NONE, NODE_RR]
    for run in runs.values():
        assert (run["established_count"], run["failed_count"], run["lost_count"]) == (300, 0, 0)
        assert run["held_count"] == 300
        assert run["ramp_s"] > 0
        assert run["server_cpu_us"] > 0
        assert run["client_cpu_us"] > 0
        assert 0 < run["server_pss_bytes"] <= run["server_rss_bytes"]
    for subject in (NONE, AUTO):
        assert runs[subject]["report_bytes"] > 0
        assert 0 <= runs[subject]["report_s"] < runs[subject]["command_s"]
    assert runs[NONE]["probe_process_count"] is None
    assert runs[AUTO]["probe_process_count"] >= 1
    assert runs[AUTO]["probe_pss_bytes"] > 0
    assert runs[NODE_RR]["primary_cpu_us"] > 0
    assert 0 < runs[NODE_RR]["primary_pss_bytes"] < runs[NODE_RR]["server_pss_bytes"]
    assert "| figure" in done.stdout
