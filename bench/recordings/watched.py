"""A server of a scenario's row, started without supervisor and probes, and who watches it.

Its clients wait for a word, so that the watch begins before they do. The tests of what can be named
from outside play rows so, and so do the recordings.
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

from harness.faults import conntrack_fill
from harness.faults import kinds as faults
from harness.faults.burners import Burners
from harness.faults.cgroups import RunCgroups
from harness.fleet import netns
from harness.matrix import scenario
from harness.options import run as run_options
from harness.planning.host import read_host
from harness.planning.plan import make_plan
from harness.supervision.fleet import Fleet
from probes.contract import live as live_memory
from probes.contract.live import Counter, Live, Phase
from probes.proc import stat_text
from probes.rights.own_user import own_user

DEADLINE_S = 60
HOLD_MOST_S = 4.0


def wait_until(what: str, condition: Callable[[], Any]) -> None:
    """Waits for a sign.

    Raises:
        TimeoutError: It did not come within ``DEADLINE_S``.
    """
    end_s = time.monotonic() + DEADLINE_S
    while not condition():
        if time.monotonic() > end_s:
            raise TimeoutError(f"waited {DEADLINE_S} s for: {what}")
        time.sleep(0.01)


class WaitingFleet:
    """The fleet of one row, its namespace and its control groups; the clients wait for a word.

    Args:
        path: An empty folder, readable for the user that the fleet becomes.
        row: Of a scenario; ``attached`` may give a ``hold`` of its own.
    """

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
        config = run_options.fleet_config(options, plan, own_user())
        self._hold_s = float(
            row.extra.get("attached", {}).get("hold", min(HOLD_MOST_S, options.hold))
        )
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
        for slot in range(config.first_client_slot()):
            # Clients are in the same control group: chance would say whom its limit ends.
            Path(f"/proc/{self.pid_of_slot(slot)}/oom_score_adj").write_text("500")

    def pid_of_slot(self, slot: int) -> int:
        """Of worker 0, 1, …, and of the acceptor after them."""
        return int(self._fleet.slots[slot][Counter.PID])

    @property
    def server_pid(self) -> int:
        """The parent of the server's processes."""
        stat = Path(f"/proc/{self.pid_of_slot(0)}/stat").read_bytes()
        return int(stat_text.fields_of(stat)[stat_text.PARENT])

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
        """Ends all of it; a second time does nothing."""
        self._stack.close()


class Attach:
    """profile-attach on the server of a row.

    Args:
        path: Where its run and its log go.
        row: ``attached`` may say with which ``probes``.
        server_pid: The server.

    Attributes:
        child: Its process.
        runs: The folder of its run directory.
    """

    def __init__(self, path: Path, row: scenario.Row, server_pid: int) -> None:
        attached = row.extra.get("attached", {})
        probes = ["--probes", attached["probes"]] if "probes" in attached else []
        self._log, self.runs = path / "attach.log", path / "runs"
        words = [
            *(sys.executable, "-P", "-m", "harness.commands.attach", "--pid", str(server_pid)),
            *(*probes, "--json", "--no-report", "--output", str(self.runs)),
        ]
        with self._log.open("w") as stream:
            self.child = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=stream, text=True)

    @property
    def has_begun(self) -> bool:
        """It watches, or has ended already."""
        return self.child.poll() is not None or "| watch " in self._log.read_text()

    def interrupt(self) -> None:
        """Ends the watch as Ctrl-C does."""
        self.child.send_signal(signal.SIGINT)

    def result(self) -> dict[str, Any]:
        """Its verdict and exit code.

        Raises:
            RuntimeError: It has none to give, or broke.
        """
        out, _ = self.child.communicate(timeout=DEADLINE_S)
        said = self._log.read_text()
        if "Traceback" in said or not out:
            raise RuntimeError(f"profile-attach ended with {self.child.returncode}: {said}")
        return {"verdict": json.loads(out), "exit_code": self.child.returncode}

    def close(self) -> None:
        """Kills it where it has not ended."""
        self.child.kill()
        self.child.wait()
