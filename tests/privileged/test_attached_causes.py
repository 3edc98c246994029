"""What profile-attach names of a server that it watches from outside while the cause comes about.

The rows are those of ``harness/scenarios/every-cause.toml`` that have ``attached``: what must be
named from outside. Their fleet is started without a supervisor and without probes, its server is
watched by its pid, and the clients begin when the watch has. Other causes are in ``test_attach``;
docs/explanation/attached.md has the table of all, and of those that cannot be seen from outside.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from harness import conntrack_fill, faults, netns, run_options, scenario
from harness.burners import Burners
from harness.fleet import Fleet
from harness.host import read_host
from harness.plan import make_plan
from harness.run_cgroups import RunCgroups
from probes import live as live_memory
from probes.live import Counter, Live, Phase

pytestmark = pytest.mark.privileged

DEADLINE_S = 60
HOLD_MOST_S = 4.0
BUSY = scenario.Row(
    id="busy-and-healthy",
    shows="one worker with real traffic that takes most of a core, and keeps up",
    options={"connections": 500, "workers": 1, "clients": 1, "hold": 4, "message_rate": 60000,
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
CALM = [
    row.id for row in ROWS.values() if row.extra.get("calm") or row.extra["attached"].get("calm")
]


def wait_until(what: str, condition: Callable[[], Any]) -> None:
    end_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end_s, f"waited {DEADLINE_S} s for: {what}"
        time.sleep(0.01)


class WaitingFleet:
    """The fleet of one row, its namespace and its control groups; the clients wait for a word."""

    def __init__(self, path: Path, row: scenario.Row) -> None:
        self._stack = ExitStack()
        try:
            self._start(path, row)
        except BaseException:
            self._stack.close()
            raise

    def _start(self, path: Path, row: scenario.Row) -> None:
        (path / "logs").mkdir()
        for part in (path, *path.parents[:-2]):  # the fleet gives up root
            part.chmod(part.stat().st_mode | 0o055)
        options = run_options.parse(row.arguments())
        host = run_options.limited(read_host(), options)
        plan = make_plan(run_options.plan_request(options, own_namespace=True), host)
        config = run_options.fleet_config(options, plan, give_up_root=True)
        self._hold_s = float(row.extra["attached"].get("hold", min(HOLD_MOST_S, options.hold)))
        live_fd = live_memory.create(path / "live.bin", config.slot_count, plan.target_connections)
        self._stack.callback(os.close, live_fd)
        namespace_fd = netns.create(plan.sysctls)
        self._stack.callback(os.close, namespace_fd)
        for fault in map(faults.parse, config.inject):
            if fault.name == "conntrack-full":
                with netns.inside(namespace_fd):
                    conntrack_fill.fill(fault.number)
        cgroups = RunCgroups(config, path / "logs" / "cgroups.log")
        self._stack.callback(cgroups.stop)
        self._burners = Burners(config.inject)
        self._stack.callback(self._burners.stop)
        self._fleet = Fleet(cgroups.start(), Live(live_fd), live_fd, path, namespace_fd)
        self._stack.callback(self._fleet.kill)
        wait_until("the fleet is ready", lambda: self._fleet.is_ready)

    def pid_of_slot(self, slot: int) -> int:
        """Of worker 0, 1, …, and of the acceptor after them."""
        return int(self._fleet.slots[slot][Counter.PID])

    @property
    def server_pid(self) -> int:
        """The parent of the server's processes."""
        stat = Path(f"/proc/{self.pid_of_slot(0)}/stat").read_text()
        return int(stat.rpartition(")")[2].split()[1])

    def play(self) -> None:
        """The ramp, and the hold as long as the row wants it."""
        self._burners.start()
        self._fleet.set_phase(Phase.RAMP)
        wait_until("all attempts are made", self._are_attempts_done)
        self._fleet.set_phase(Phase.HOLD)
        time.sleep(self._hold_s)  # the workload's own length

    def end_burning(self) -> None:
        """Gives the cores back, for who analyses what was watched."""
        self._burners.stop()

    def _are_attempts_done(self) -> bool:
        self._fleet.read_ends()
        return self._fleet.are_attempts_done

    def close(self) -> None:
        self._stack.close()


class Attach:
    """profile-attach on the server of a row.

    Args:
        path: Where its run and its log go.
        row: Says with which probes.
        server_pid: The server.
    """

    def __init__(self, path: Path, row: scenario.Row, server_pid: int) -> None:
        attached = row.extra["attached"]
        probes = ["--probes", attached["probes"]] if "probes" in attached else []
        self._log, self._runs = path / "attach.log", path / "runs"
        words = [
            *(sys.executable, "-P", "-m", "harness.cli_attach", "--pid", str(server_pid)),
            *(*probes, "--json", "--no-report", "--output", str(self._runs)),
        ]
        with self._log.open("w") as stream:
            self._child = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=stream, text=True)

    @property
    def has_begun(self) -> bool:
        return self._child.poll() is not None or "| watch " in self._log.read_text()

    def interrupt(self) -> None:
        self._child.send_signal(signal.SIGINT)

    def wait_for_recording(self, machine: Any) -> None:
        """Waits until it has written all that it saw; its analysis goes on."""
        end_s = time.monotonic() + DEADLINE_S
        machine.wait_for_recording(self._child, self._runs, end_s=end_s)

    def result(self) -> dict[str, Any]:
        """Its verdict and exit code."""
        out, _ = self._child.communicate(timeout=DEADLINE_S)
        said = self._log.read_text()
        assert "Traceback" not in said, said
        assert out, said
        return {"verdict": json.loads(out), "exit_code": self._child.returncode}

    def close(self) -> None:
        self._child.kill()
        self._child.wait()


def watch(machine: Any, path: Path, row: scenario.Row) -> dict[str, Any]:
    """Has profile-attach watch the server of a row: its verdict, exit code, and the pid to name.

    A row that is calm shares the machine. ``beside`` is the same of the row that is played beside
    it.
    """
    assert os.geteuid() == 0, "these tests need root: sudo make test"
    with machine.until_recorded(shares=row.id in CALM) as release, ExitStack() as stack:
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
            attach.wait_for_recording(machine)
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
            if key not in ("calm", "hold", "probes", "slot")
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
    [pytest.param(row_id, marks=pytest.mark.in_turn(shares=row_id in CALM)) for row_id in ROWS],
)
def test_the_cause_is_named_from_outside_with_its_process_and_a_fix_for_its_owner(
    watched, beside_others, row_id
):
    seen = watched(row_id)
    findings = seen.verdict["findings"]
    expect = beside_others(seen.expect, findings) if row_id in CALM else seen.expect
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
def test_an_idle_server_on_the_same_full_host_is_not_named(watched):
    ((verdict, exit_code),) = [made.values() for made in watched("host-cpu").beside]
    assert [each["cause"] for each in verdict["findings"]] == ["no-limit-met"], verdict
    assert exit_code == 0
