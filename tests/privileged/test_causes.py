"""Every cause that the verdict names in this version, provoked for real, with the real probes."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.privileged

DEADLINE_S = 90
# What says how a connection ended or what else was seen; never a wrong cause by itself.
ALWAYS_FINE = {"reached"}


class Scenario:
    """One run of profile-run and its verdict."""

    def __init__(self, path: Path, arguments: list[str], **options: Any) -> None:
        assert os.geteuid() == 0, "these tests need root: sudo make test"
        self.done = subprocess.run(
            [
                *(sys.executable, "-P", "-m", "harness.cli_run"),
                *(*arguments, "--json", "--output", str(path)),
            ],
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            **options,
        )
        assert "Traceback" not in self.done.stderr, self.done.stderr
        assert self.done.stdout, self.done.stderr
        self.verdict = json.loads(self.done.stdout)
        self.run = (path / "latest").resolve()

    @property
    def binding(self) -> list[dict[str, Any]]:
        return [f for f in self.verdict["findings"] if f["severity"] == "binding"]

    @property
    def causes(self) -> set[str]:
        return {
            f["cause"]
            for f in self.verdict["findings"]
            if f["severity"] in ("binding", "contributing")
        }

    def finding(self, cause: str) -> dict[str, Any]:
        found = [f for f in self.verdict["findings"] if f["cause"] == cause]
        assert found, f"{cause} is not among {[f['cause'] for f in self.verdict['findings']]}"
        return found[0]

    def check_probes(self) -> None:
        """Every probe of the default set really ran and lost nothing."""
        probes = {p["name"]: p for p in self.verdict["probes"]}
        assert len(probes) >= 7, probes
        for name, probe in probes.items():
            if name in ("syscall_mix", "runq_latency", "skb_allocs"):
                continue  # on demand, or of the full set
            assert probe["state"] == "ran", probe


def test_a_healthy_run_names_nothing_but_its_target(tmp_path):
    run = Scenario(tmp_path, ["--connections", "5000", "--hold", "3", "--keepalive", "1"])
    assert run.done.returncode == 0
    assert run.verdict["verdict"]["cause"] == "reached"
    assert run.causes == {"reached"}
    assert not [f for f in run.verdict["findings"] if f["severity"] == "warning"]
    assert run.verdict["run"]["held_connections"] == 5000
    assert run.verdict["ladder"][0]["predicted_connections"] > 5000
    run.check_probes()


def test_fd_limit_of_the_server(tmp_path):
    run = Scenario(
        tmp_path,
        [
            *("--connections", "1500", "--workers", "2", "--nofile", "400", "--hold", "2"),
            *("--connect-timeout", "1"),
        ],
    )
    assert run.done.returncode == 3
    verdict = run.verdict["verdict"]
    assert (verdict["cause"], verdict["side"]) == ("fd-limit-process", "server")
    assert run.causes <= {"fd-limit-process"}, run.causes
    finding = run.finding("fd-limit-process")
    values = {e["value"] for e in finding["evidence"]}
    assert 400 in values, finding["evidence"]
    assert finding["subject"]["role"] == "server"
    run.check_probes()


def test_fd_limit_of_a_client(tmp_path):
    def few_descriptors() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (600, 600))

    run = Scenario(
        tmp_path,
        ["--connections", "1500", "--workers", "4", "--clients", "1", "--hold", "2"],
        preexec_fn=few_descriptors,
    )
    assert run.done.returncode == 3
    verdict = run.verdict["verdict"]
    assert (verdict["cause"], verdict["side"]) == ("fd-limit-process", "client")
    assert run.finding("fd-limit-process")["subject"]["role"] == "client"


def test_ephemeral_ports_exhausted(tmp_path):
    run = Scenario(
        tmp_path,
        [
            *("--connections", "2000", "--source-addresses", "1", "--hold", "2"),
            *("--port-range", "40000-40999"),
        ],
    )
    assert run.done.returncode == 3
    verdict = run.verdict["verdict"]
    assert (verdict["cause"], verdict["side"]) == ("ephemeral-ports-exhausted", "client")
    assert verdict["at_connections"] == pytest.approx(1000, abs=5)
    assert run.causes == {"ephemeral-ports-exhausted"}
    values = {e["value"] for e in run.finding("ephemeral-ports-exhausted")["evidence"]}
    assert 1000 in values


def test_accept_spin(tmp_path):
    run = Scenario(
        tmp_path,
        [
            *("--connections", "1500", "--workers", "2", "--nofile", "400", "--hold", "4"),
            *("--at-fd-limit", "spin", "--connect-timeout", "1"),
        ],
    )
    assert run.done.returncode == 3
    finding = run.finding("accept-spin")
    assert finding["side"] == "server"
    assert finding["severity"] in ("binding", "contributing")
    assert run.verdict["verdict"]["cause"] in ("fd-limit-process", "accept-spin")
    assert run.causes == {"fd-limit-process", "accept-spin"}
    rates = [e["value"] for e in finding["evidence"] if e["unit"] == "per_s"]
    assert max(rates) >= 10_000


def test_hot_worker_code(tmp_path):
    run = Scenario(
        tmp_path,
        [
            *("--connections", "2000", "--workers", "2", "--hold", "8"),
            *("--inject", "hot-code:1"),
        ],
    )
    finding = run.finding("hot-worker-code")
    assert finding["side"] == "server"
    assert finding["subject"]["worker"] == 1
    assert "hot_application_code" in json.dumps(finding)
    assert not run.causes & {"accept-spin", "keepalive-storm", "fd-limit-process"}
    # The profiler that was turned on this worker names the function as well.
    assert "hot_application_code" in (run.run / "report.html").read_text()


def test_keepalive_storm(tmp_path):
    run = Scenario(
        tmp_path,
        [
            *("--connections", "6000", "--workers", "1", "--hold", "8"),
            *("--keepalive", "0.05"),
        ],
    )
    finding = run.finding("keepalive-storm")
    assert finding["side"] == "server"
    assert not run.causes & {"accept-spin", "hot-worker-code", "fd-limit-process"}
    assert [e for e in finding["evidence"] if e["unit"] == "per_s" and e["value"] > 1_000]


def test_server_resets_when_full(tmp_path):
    run = Scenario(
        tmp_path,
        [
            *("--connections", "1500", "--workers", "2", "--nofile", "400", "--hold", "2"),
            *("--at-fd-limit", "reset"),
        ],
    )
    assert run.done.returncode == 3
    assert run.verdict["verdict"]["cause"] == "fd-limit-process"
    assert run.causes == {"fd-limit-process", "server-resets-when-full"}
    assert run.finding("server-resets-when-full")["side"] == "server"


def test_worker_crash_at_the_limit(tmp_path):
    run = Scenario(
        tmp_path,
        [
            *("--connections", "1500", "--workers", "2", "--nofile", "400", "--hold", "2"),
            *("--at-fd-limit", "crash", "--connect-timeout", "1"),
        ],
    )
    assert run.done.returncode == 3
    finding = run.finding("worker-crash")
    assert finding["side"] == "server"
    assert finding["severity"] in ("binding", "contributing")
    assert not run.causes & {"accept-spin", "keepalive-storm", "ephemeral-ports-exhausted"}
