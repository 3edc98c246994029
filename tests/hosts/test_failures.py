"""What ends badly over several hosts: it is noticed, named, and nothing is left anywhere."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from probes.contract.rundir import RunDir
from tests.hosts.lab import lab

pytestmark = [pytest.mark.privileged, pytest.mark.shared]

DEADLINE_S = 60.0
END_S = 20.0
"""Five seconds on a quiet machine; a crowded one is four times slower."""


def until(what, condition, deadline_s=DEADLINE_S):
    end_s = time.monotonic() + deadline_s
    while not (found := condition()):
        assert time.monotonic() < end_s, f"waited {deadline_s:.0f} s for: {what}"
        time.sleep(0.05)
    return found


class Started:
    """A run over the hosts of a laboratory that goes on."""

    def __init__(self, hosts, output, *words, extra=None):
        self.hosts, self.output = hosts, Path(output)
        self.log = self.output / "stderr.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                hosts.command(
                    *("profile-run", "--hosts", str(hosts.hosts_file(extra)), "--json"),
                    *("--output", str(output), "--no-report", "--probes", "process_samples"),
                    *words,
                ),
                stdout=subprocess.PIPE,
                stderr=log,
            )

    def until_phase(self, phase):
        until(phase, lambda: self.said(f"| {phase}"))

    def said(self, text):
        assert self.process.poll() is None, self.log.read_text()
        return text in self.log.read_text()

    def ended(self):
        """(exit code, verdict.json) of it."""
        out, _ = self.process.communicate(timeout=DEADLINE_S)
        text = out.decode()
        return self.process.returncode, json.loads(text) if text.startswith("{") else {}

    def agent(self, name):
        """The process of a host's agent."""
        for pid in self.hosts.pids(name):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if b"harness.hosts.agent_main" in words and b"python" in words[0]:
                return pid
        raise AssertionError(f"no agent on {name}")

    def manifest(self):
        return RunDir(self.output / "latest").read_manifest()


def require_nothing_left(hosts):
    for name in hosts.names:
        until(f"no process on {name}", lambda name=name: not hosts.pids(name), END_S)
        assert list((hosts.folder / name).iterdir()) == []


def test_a_host_that_is_cut_off_is_lost_and_the_others_go_on(tmp_path):
    with lab(2) as hosts:
        run = Started(hosts, tmp_path, "--connections", "600", "--hold", "9")
        run.until_phase("hold")
        hosts.cut("client2")
        code, verdict = run.ended()
        require_nothing_left(hosts)
    assert code == 3
    assert verdict["verdict"]["cause"] == "host-lost"
    assert verdict["verdict"]["host"] == "client2"
    assert verdict["run"]["held_connections"] == 300
    lost = {each["name"]: each["is_lost"] for each in run.manifest()["hosts"]}
    assert lost == {"server": False, "client1": False, "client2": True}


@pytest.mark.variant
def test_an_agent_that_is_killed_leaves_nothing(tmp_path):
    with lab(2) as hosts:
        run = Started(hosts, tmp_path, "--connections", "600", "--hold", "6")
        run.until_phase("hold")
        os.kill(run.agent("client1"), signal.SIGKILL)
        code, verdict = run.ended()
        require_nothing_left(hosts)
    assert code == 3
    assert (verdict["verdict"]["cause"], verdict["verdict"]["host"]) == ("host-lost", "client1")
    assert verdict["run"]["held_connections"] == 300


@pytest.mark.variant
def test_a_server_host_that_is_killed_ends_the_run(tmp_path):
    with lab(2) as hosts:
        run = Started(hosts, tmp_path, "--connections", "600", "--hold", "300")
        run.until_phase("hold")
        os.kill(run.agent("server"), signal.SIGKILL)
        code, verdict = run.ended()
        require_nothing_left(hosts)
    assert code == 3
    assert (verdict["verdict"]["cause"], verdict["verdict"]["host"]) == ("host-lost", "server")


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGINT, 130),
        pytest.param(signal.SIGKILL, -9, marks=pytest.mark.variant),
    ],
)
def test_who_ends_the_command_ends_all_of_it(tmp_path, number, code):
    with lab(2) as hosts:
        run = Started(hosts, tmp_path, "--connections", "600", "--hold", "300")
        run.until_phase("hold")
        run.process.send_signal(number)
        for name in hosts.names:
            until(f"no process on {name}", lambda name=name: not hosts.pids(name), END_S)
        found, verdict = run.ended()
        require_nothing_left(hosts)
    assert found == code
    if number == signal.SIGINT:
        assert verdict["run"]["held_connections"] == 600
        assert verdict["run"]["status"] == "interrupted"


OTHER_VERSION = """
import runpy, sys
import harness.version
harness.version.tool_version = lambda: "0.0.9"
sys.argv = [sys.argv[0]]
runpy.run_module("harness.hosts.agent_main", run_name="__main__")
"""


def test_another_version_is_refused_with_both(tmp_path):
    with lab(1) as hosts:
        script = hosts.folder / "other.py"
        script.write_text(OTHER_VERSION)
        start = [*hosts.prefix("client1"), sys.executable, "-P", str(script)]
        extra = {"client1": [f"start = {json.dumps(start)}"]}
        run = Started(hosts, tmp_path, "--connections", "100", extra=extra)
        code, _ = run.ended()
        require_nothing_left(hosts)
    said = run.log.read_text()
    assert code == 4, said
    assert "host client1 has connscope 0.0.9, and this host has" in said


@pytest.mark.variant  # clocks that differ by milliseconds are in every run over hosts
def test_a_clock_that_is_off_by_an_hour_changes_nothing(tmp_path):
    with lab(2) as hosts:
        hour = ["unshare", "--time", "--monotonic", "3600", "--fork", "--kill-child"]
        extra = {"client2": [f"start = {json.dumps([*hosts.prefix('client2'), *hour])}"]}
        run = Started(hosts, tmp_path, "--connections", "600", "--hold", "2", extra=extra)
        code, verdict = run.ended()
        require_nothing_left(hosts)
    assert code == 0, run.log.read_text()
    assert verdict["run"]["held_connections"] == 600
    clocks = {each["name"]: each["clock"] for each in run.manifest()["hosts"]}
    off_ns = clocks["client2"]["offset_ns"] - clocks["client1"]["offset_ns"]
    bound_ns = clocks["client2"]["bound_ns"] + clocks["client1"]["bound_ns"]
    assert abs(off_ns - 3_600 * 10**9) <= bound_ns + 1_000
    # no connection was accepted before its SYN was sent, on one clock
    from analysis.frames.run_frames import load

    frames = load(RunDir(run.output / "latest"))
    begun_ns = frames["connections"].groupby("client")["start_ns"].min()
    assert abs(begun_ns[1] - begun_ns[0]) < 5 * 10**9
