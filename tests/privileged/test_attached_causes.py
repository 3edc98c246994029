"""What profile-attach names of a server that it watches from outside while the cause comes about.

The rows are those of ``harness/matrix/scenarios/every-cause.toml`` that have ``attached``: what
must be named from outside. Their fleet is started without a supervisor and without probes, its
server is watched by its pid, and the clients begin when the watch has. Other causes are in
``test_attach``; docs/explanation/attached.md has the table of all, and of those that cannot be seen
from outside.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from bench.recordings.watched import DEADLINE_S, Attach, WaitingFleet, wait_until
from harness.matrix import scenario
from tests.machine import in_turn

pytestmark = pytest.mark.privileged

BUSY = scenario.Row(
    id="busy-and-healthy",
    shows="one worker with real traffic that takes much of a core, and keeps up",
    options={"connections": 500, "workers": 1, "clients": 1, "hold": 4, "message_rate": 40000,
             "payload": 100},
    expect=scenario.Expectation(cause="reached"),
    extra={"attached": {"cause": "no-limit-met"}},
)  # fmt: skip
IDLE = scenario.Row(
    id="idle-on-a-full-host",
    shows="connections that are only held, beside the row that others starve of the cores",
    options={"connections": 500, "workers": 1, "clients": 1, "hold": 4},
    expect=scenario.Expectation(cause="reached"),
    extra={"attached": {"cause": "no-limit-met", "hold": 0}},
)
BESIDE = {"host-cpu": IDLE}
"""Rows that are played and watched beside another one."""
ROWS = {
    row.id: row for row in (*scenario.load("every-cause").rows, BUSY) if row.extra.get("attached")
}
CORES = {
    row.id: row.extra["attached"].get("cores", row.extra.get("cores", 0)) for row in ROWS.values()
}
"""How many a row and its watch take, 0 for all."""
VARIANTS = {
    *("syn-backlog", "full-worker-shared", "tcp-memory-pressure", "receive-buffer-full"),
    *("hot-acceptor", "accept-queue", "conntrack", "accept-imbalance", "enobufs-sendmsg"),
    *("memory-exhausted", "keepalive-storm", "busy-and-healthy"),
}
"""Rows that are told from outside by the same tables as in a run of their own."""


def watch(machine: Any, path: Path, row: scenario.Row) -> dict[str, Any]:
    """Has profile-attach watch the server of a row: its verdict, exit code, and the pid to name.

    ``beside`` is the same of the row that is played beside it.
    """
    assert os.geteuid() == 0, "these tests need root: sudo make test"
    with machine.until_recorded(cores=CORES[row.id]) as release, ExitStack() as stack:
        played = []
        for each in (row, *([BESIDE[row.id]] if row.id in BESIDE else [])):
            folder = path if each is row else path / "beside"
            folder.mkdir(exist_ok=True)
            fleet = WaitingFleet(folder, each)
            stack.callback(fleet.close)
            attach = Attach(folder, each, fleet.server_pid)
            stack.callback(attach.close)
            played.append((fleet, attach))
        for _, attach in played:
            wait_until("the watch begins", lambda attach=attach: attach.has_begun)
        for fleet, _ in reversed(played):
            fleet.play()
        attached = row.extra["attached"]
        pid = played[0][0].pid_of_slot(attached["slot"]) if "slot" in attached else 0
        for fleet, attach in played:
            attach.interrupt()
            fleet.end_burning()
        for fleet, attach in played:
            end_s = time.monotonic() + DEADLINE_S
            machine.wait_for_recording(attach.child, attach.runs, end_s=end_s)
            fleet.close()
        release()
        made, *beside = [attach.result() for _, attach in played]
    return {**made, "pid": pid, "beside": beside}


class Watched:
    """One row's server as it was watched.

    Args:
        row: Which.
        made: What ``watch`` made of it.
    """

    def __init__(self, row: scenario.Row, made: dict[str, Any]) -> None:
        self.verdict: dict[str, Any] = made["verdict"]
        self.exit_code: int = made["exit_code"]
        self.pid: int = made["pid"]
        self.beside: list[dict[str, Any]] = made["beside"]
        wanted = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in row.extra["attached"].items()
            if key not in ("cores", "hold", "probes", "slot")
        }
        self.expect = scenario.Expectation(**wanted)

    def finding(self, cause: str) -> dict[str, Any]:
        """The finding of that cause, which the test has found to be there."""
        return next(f for f in self.verdict["findings"] if f["cause"] == cause)


@pytest.fixture(scope="session")
def watched(once: Callable[..., Any], machine: Any) -> Callable[[str], Watched]:
    """Watches a row the first time it is asked for; rows that mostly wait side by side."""

    def get(row_id: str) -> Watched:
        row = ROWS[row_id]
        return Watched(row, once(f"attached {row_id}", lambda folder: watch(machine, folder, row)))

    return get


@pytest.mark.parametrize(
    "row_id",
    [in_turn(row_id, CORES[row_id], is_variant=row_id in VARIANTS) for row_id in ROWS],
)
def test_the_cause_is_named_from_outside_with_its_process_and_a_fix_for_its_owner(
    watched, beside_others, row_id
):
    seen = watched(row_id)
    findings = seen.verdict["findings"]
    expect = beside_others(seen.expect, findings)
    everything = json.dumps({"verdict": seen.verdict["verdict"], "findings": findings}, indent=1)
    assert expect.complaints(seen.verdict) == [], everything
    is_good = seen.verdict["verdict"]["cause"] == "no-limit-met"
    assert seen.exit_code == (0 if is_good else 3)
    named = seen.finding(seen.expect.named or seen.expect.cause)
    if seen.pid:
        assert named["subject"]["pid"] == seen.pid, everything
    assert is_good or named["fix"], everything
    for finding in findings:
        for fix in finding["fix"]:
            assert "profile-run" not in fix["command"], fix


@pytest.mark.in_turn
def test_a_starved_server_is_told_by_what_it_waited_and_got(watched):
    starved = watched("host-cpu").finding("host-cpu-saturated")
    values = {(e["id"], e["of"]): e["value"] for e in starved["evidence"]}
    ((who, wait_pct),) = [(of, pct) for (what, of), pct in values.items() if what == "core_wait"]
    assert wait_pct > values["process_cpu", who]
    assert values["host_share", "processes beside the run"] > 50
    assert starved["confidence"] == "high"


@pytest.mark.in_turn
@pytest.mark.variant
def test_an_idle_server_on_the_same_full_host_is_not_named(watched):
    ((verdict, exit_code),) = [made.values() for made in watched("host-cpu").beside]
    assert [each["cause"] for each in verdict["findings"]] == ["no-limit-met"], verdict
    assert exit_code == 0
