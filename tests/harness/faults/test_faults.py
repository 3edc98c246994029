"""Faults on purpose: their form, and whom they hit."""

from __future__ import annotations

import os
import time
from types import SimpleNamespace

import pytest

from harness.client import faults as client_faults
from harness.faults import kinds as faults
from harness.faults.burners import Burners
from harness.fleet.config import GroupShare
from harness.options import run as run_options
from harness.server import faults as worker_faults
from harness.server.acceptor import slow_handoff_code
from probes.contract.errors import UsageError


@pytest.mark.parametrize("text", ["", "ghost:1", "hot-code", "hot-code:x", "hot-code:1:5"])
def test_what_is_no_fault_is_refused(text):
    with pytest.raises(ValueError, match=r"known|is not"):
        faults.parse(text)


def test_a_fault_hits_its_process_alone():
    inject = ["hot-code:1"]
    assert faults.faults_of(inject, "worker", 1) == [faults.Fault("hot-code", 1, 0.0)]
    assert faults.faults_of(inject, "worker", 0) == []
    assert faults.faults_of(inject, "client", 1) == []


def test_a_table_is_filled_in_the_namespace_of_the_run_alone():
    plain = ["--connections", "23", "--inject", "conntrack-full:9"]
    options = run_options.parse(plain)
    plan = SimpleNamespace(own_namespace=False)
    with pytest.raises(UsageError, match="namespace of the run's own"):
        run_options.check_faults(options, plan)
    plan.own_namespace = True
    run_options.check_faults(options, plan)


def test_every_fault_is_known_to_exactly_one_side():
    workers = set(worker_faults._CLASSES)
    clients = set(client_faults._CLASSES)
    for name in workers:
        assert faults.KINDS[name].role == "worker"
    for name in clients:
        assert faults.KINDS[name].role == "client"


def test_burning_processes_are_few_and_end_by_themselves():
    for text in ("burn:65", "burn:4:61", "burn:4:0"):
        options = run_options.parse(["--connections", "23", "--inject", text])
        with pytest.raises(UsageError, match="processes, for at most 60 s"):
            run_options.check_faults(options, SimpleNamespace(workers=1))


def test_burners_burn_and_are_gone_when_stopped():
    burners = Burners(["hot-code:1", "burn:2:20"])
    burners.start()
    pids = [process.pid for process in burners._processes]
    assert len(pids) == 2
    burners.stop()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_burners_fill_a_host_of_any_size():
    burners = Burners(["burn:0:20"])
    burners.start()
    try:
        assert len(burners._processes) == 4 * len(os.sched_getaffinity(0))
    finally:
        burners.stop()


def test_a_foreign_source_keeps_ports_and_counts():
    fault = client_faults.of_client(["foreign-source:1"], 1, memoryview(bytearray(8)))
    shares = [GroupShare("127.0.0.3", 9001, 23), GroupShare("127.0.1.9", 9002, 7)]
    assert fault is not None
    assert fault.shares(shares) == [
        GroupShare("198.18.0.3", 9001, 23),
        GroupShare("198.18.1.9", 9002, 7),
    ]


def test_code_for_a_connection_needs_its_cpu_time_however_many_want_the_core():
    before_ns = time.thread_time_ns()
    slow_handoff_code(3_000_000)
    assert time.thread_time_ns() - before_ns >= 3_000_000
