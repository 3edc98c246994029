"""How long a run waits for its probes: as long as they work on it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

from harness.supervision import probe_process, start_patience
from harness.supervision.probe_process import ProbeProcess
from harness.supervision.start_patience import (
    LEAST_CPU_NS,
    LONGEST_START_S,
    STILL_S,
    StartPatience,
    wanted_cpu_ns,
)
from probes.budget.own_cost import process_cpu_ns
from probes.collect.driven import LONGEST_STOP_S, USUAL_STOP_S, stop_limit_s
from probes.contract import live as live_memory
from probes.contract.rundir import create_run_dir


def test_who_works_is_waited_for():
    patience = StartPatience(100.0)
    assert not patience.is_exhausted(100.0 + STILL_S, {7: 0})
    for step in range(1, 10):  # a compiler that comes and goes, on a slow host
        wanted_ns = {7: 0, 70 + step: LEAST_CPU_NS}
        assert not patience.is_exhausted(100.0 + STILL_S * step, wanted_ns)
    assert not patience.is_exhausted(100.0 + STILL_S * 10, {7: 0})
    assert patience.is_exhausted(101.0 + STILL_S * 10, {7: LEAST_CPU_NS - 1})


def test_who_works_for_ever_is_not():
    patience = StartPatience(0.0)
    busy_s = range(0, int(LONGEST_START_S) + 1, 10)
    assert not any(patience.is_exhausted(s, {1: s * 10**9}) for s in busy_s)
    assert patience.is_exhausted(LONGEST_START_S + 1, {1: 10**15})


def test_who_waits_for_a_core_wants_it():
    spinning = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
    core = min(os.sched_getaffinity(0))
    try:
        for each in spinning:  # one core between them: each waits as long as the other runs
            os.sched_setaffinity(each.pid, {core})
        end_s = time.monotonic() + 60
        while time.monotonic() < end_s:
            both = [(wanted_cpu_ns(each.pid), process_cpu_ns(each.pid)) for each in spinning]
            if all(wanted - used > 10**8 for wanted, used in both):
                break
            time.sleep(0.05)
        assert all(wanted - used > 10**8 for wanted, used in both)
    finally:
        for each in spinning:
            each.kill()
            each.wait()
    assert wanted_cpu_ns(spinning[0].pid) == 0


def test_the_last_samples_leave_time_for_what_has_to_be_written():
    for told_s in (0.5, 1.5, USUAL_STOP_S, 20.0, LONGEST_STOP_S):
        assert stop_limit_s(told_s) < told_s
    assert stop_limit_s(20.0) > stop_limit_s(USUAL_STOP_S)


def test_a_probe_process_that_stands_still_is_late(tmp_path, monkeypatch):
    monkeypatch.setattr(start_patience, "STILL_S", 0.2)
    monkeypatch.setattr(probe_process, "_LOOK_PERIOD_S", 0.05)
    run = create_run_dir(tmp_path, "late")
    (run.path / "logs").mkdir(exist_ok=True)
    live_fd = live_memory.create(run.path / "live.bin", slot_count=1, capacity=1)
    probes = ProbeProcess(run.path, ["process_samples"], live_fd, -1, (9001,))
    try:
        os.kill(probes.pid, signal.SIGSTOP)
        end_s = time.monotonic() + 60
        while not probes.is_late and time.monotonic() < end_s:
            time.sleep(0.02)
        assert probes.is_late
        assert probes.stop_deadline_s == USUAL_STOP_S
    finally:
        os.kill(probes.pid, signal.SIGCONT)
        probes.stop(0.1)
        os.close(live_fd)
