"""Turns on the cores, by real locks."""

from __future__ import annotations

import sys
import threading
from contextlib import ExitStack

import pytest

from tests import machine as machine_module
from tests.machine import Machine


@pytest.fixture
def machine(tmp_path, monkeypatch) -> Machine:
    """Two cores, which are four slots."""
    monkeypatch.setattr(machine_module, "_SLOTS_COUNT", 4)
    return Machine(tmp_path)


def begins(machine: Machine, cores: float) -> threading.Event:
    """Whether who wants so many cores has had them; for a moment only."""
    had = threading.Event()

    def take() -> None:
        with machine.until_recorded(cores=cores):
            had.set()

    threading.Thread(target=take, daemon=True).start()
    return had


def test_as_many_run_as_there_are_cores(machine):
    with ExitStack() as taken:
        for _ in range(2):
            taken.enter_context(machine.shared())
        taken.enter_context(machine.until_recorded(cores=1.0))
        waits = begins(machine, 0.5)
        assert not waits.wait(0.2)
    assert waits.wait(10)


def test_who_wants_all_is_passed_by_nobody(machine):
    with machine.shared():
        first = begins(machine, 0)
        assert not first.wait(0.2)
        second = begins(machine, 0.5)
        assert not second.wait(0.2), "three slots are free, and somebody waits for all"
    assert first.wait(10)
    assert second.wait(10)


def test_alone_waits_for_what_comes_after_a_recording_and_other_runs_do_not(machine):
    got = threading.Event()

    def be_alone() -> None:
        with machine.alone():
            got.set()

    with machine.until_recorded() as release:
        release()
        assert begins(machine, 0).wait(10)
        threading.Thread(target=be_alone, daemon=True).start()
        assert not got.wait(0.2)
    assert got.wait(10)


def test_more_cores_than_there_are_is_all_of_them(machine):
    assert begins(machine, 64.0).wait(10)


def test_a_recorded_run_goes_on_with_less_priority(tmp_path, monkeypatch):
    monkeypatch.setattr(machine_module, "ANALYSIS_NICE", 15)
    run = tmp_path / "runs" / "one"
    code = (
        f"import os, pathlib, time; run = pathlib.Path({str(run)!r}); run.mkdir(parents=True)\n"
        "(run / 'manifest.json').write_text('{\"status\": \"finished\"}')\n"
        "(run.parent / 'latest').symlink_to('one')\n"
        "while os.getpriority(os.PRIO_PROCESS, 0) != 15: time.sleep(0.01)\n"
        "print('less')"
    )
    done = Machine(None).record([sys.executable, "-c", code], tmp_path / "runs", timeout_s=60)
    assert done.stdout == "less\n"
