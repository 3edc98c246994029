"""Faults on purpose: their form, and whom they hit."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from harness import client_faults, faults, run_options, worker_faults
from probes.errors import UsageError


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
