"""Clients that do not give up too soon, and that make a connection again: real fleets and servers.

The server of the hiccup closes its listener for 0.7 s: every attempt is refused meanwhile. Where a
test must not depend on how fast the machine is, the clients have long to wait (``--stall 60``).
"""

from __future__ import annotations

import json
import os
import random
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.client.load_shape import Pace
from harness.client.opening import WALL_FAILURES
from harness.client.retries import Retries
from harness.supervision.attempts import StopReason, attempts_record
from probes.contract.live import CloseKind, Counter, Header, Stage

COMMAND = [sys.executable, "-P", "-m", "harness.commands.run"]
SERVER = Path(__file__).parents[1] / "foreign" / "hiccup_server.py"
NO_PORTS: dict[str, Any] = {
    "sysctls": {"net.ipv4.ip_local_port_range": "40000 40023"},
    "clients": 1,
}
"""24 connections and no more: the others fail at once, without an end."""

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="a namespace of its own needs root")


def hiccup(count: int, seconds: float) -> str:
    """The command of the server that refuses for so long after so many connections."""
    return shlex.join([sys.executable, str(SERVER), str(count), str(seconds)]) + " {port}"


@pytest.fixture
def profile_run(tmp_path):
    def run(*arguments: str) -> tuple[dict[str, Any], dict[str, Any], str]:
        done = subprocess.run(
            [*COMMAND, *arguments, "--json", "--quiet", "--no-report", "--probes", "none",
             "--output", str(tmp_path / "runs")],
            capture_output=True, text=True, timeout=240, cwd=tmp_path,
        )  # fmt: skip
        assert done.stdout, done.stderr
        assert "Traceback" not in done.stderr, done.stderr
        manifest = json.loads((tmp_path / "runs" / "latest" / "manifest.json").read_text())
        return json.loads(done.stdout), manifest, done.stderr

    return run


@pytest.mark.shared
def test_after_a_hiccup_of_the_server_every_attempt_is_made(profile_run):
    verdict, manifest, _ = profile_run(
        *("--server-cmd", hiccup(100, 0.7), "--connections", "800", "--clients", "2"),
        *("--stall", "60", "--hold", "0.2"),
    )
    run = verdict["run"]
    assert (run["attempts"]["begun_count"], run["attempts"]["never_count"]) == (800, 0)
    assert manifest["attempts"]["begun_count"] == 800
    assert run["failed_connections"] >= 1
    assert run["held_connections"] + run["failed_connections"] == 800
    assert run["attempts"]["gave_up"] == []
    assert run["attempts"]["sentence"] == ""


@pytest.mark.shared
def test_with_retry_the_run_reaches_its_target_all_the_same(profile_run):
    verdict, manifest, stderr = profile_run(
        *("--server-cmd", hiccup(100, 0.7), "--connections", "800", "--clients", "2"),
        *("--stall", "60", "--hold", "0.2", "--retry", "200", "--retry-wait", "0.2-1"),
    )
    run = verdict["run"]
    assert (verdict["verdict"]["cause"], run["held_connections"]) == ("reached", 800)
    assert run["failed_connections"] == run["lost_connections"] == 0
    again = manifest["attempts"]["again_count"]
    assert again >= 1
    assert set(manifest["attempts"]["again_after"]) <= {"refused", "rst", "eof", "timeout"}
    assert sum(manifest["attempts"]["again_after"].values()) == again
    (finding,) = [f for f in verdict["findings"] if f["cause"] == "reached"]
    assert {"id": "attempts_again", "value": again} in [
        {"id": each["id"], "value": each["value"]} for each in finding["evidence"]
    ]
    assert f"tried    {again:,} attempts were made again by --retry" in stderr


@pytest.mark.shared
def test_a_server_that_never_comes_back_ends_the_run_and_the_terminal_says_so(profile_run):
    verdict, manifest, stderr = profile_run(
        *("--server-cmd", hiccup(100, 600), "--connections", "40000", "--clients", "2"),
        *("--stall", "0.5", "--hold", "0"),
    )
    attempts = verdict["run"]["attempts"]
    assert attempts["never_count"] > 0
    assert attempts["begun_count"] + attempts["never_count"] == 40_000
    assert {each["client"] for each in attempts["gave_up"]} == {0, 1}
    assert all(each["failed_in_row_count"] >= WALL_FAILURES for each in attempts["gave_up"])
    assert manifest["attempts"]["stall_s"] == attempts["stall_s"] == 0.5
    assert manifest["settings"]["stall_s"] == 0.5
    assert f"and {attempts['never_count']:,} never: 2 clients stopped" in " ".join(stderr.split())


@pytest.mark.shared
def test_a_stated_number_of_failures_ends_the_run(profile_run):
    verdict, manifest, stderr = profile_run(
        *("--server-cmd", hiccup(100, 600), "--connections", "40000", "--clients", "2"),
        *("--stall", "600", "--failures-max", "230", "--hold", "0"),
    )
    attempts = verdict["run"]["attempts"]
    assert (attempts["stopped_by"], attempts["gave_up"]) == ("failures", [])
    assert verdict["run"]["failed_connections"] >= 230
    assert attempts["never_count"] > 0
    assert manifest["settings"]["failures_max"] == 230
    assert "when --failures-max was reached" in " ".join(stderr.split())


@needs_root
@pytest.mark.privileged
def test_at_a_wall_a_client_goes_on_at_a_bounded_rate(small_fleet):
    fleet = small_fleet(**NO_PORTS, connections=20_000, stall_s=1.0).ramp()
    slot = fleet.fleet.client_slots[0]
    assert slot[Counter.ESTABLISHED_TOTAL] == 24
    assert slot[Counter.GAVE_UP_NS] > 0
    # since the last success: 100 at full speed, 64 a turn at most, then one each 10 ms for a second
    in_row_count = slot[Counter.GAVE_UP_FAILED_COUNT]
    assert WALL_FAILURES <= in_row_count <= WALL_FAILURES + 64 + 101
    record = attempts_record(
        fleet.config, [slot], failures_max_count=0, reason=StopReason.NONE, stopped_ns=0
    )
    assert record["never_count"] == 20_000 - 24 - slot[Counter.FAILED_TOTAL]
    assert [each["never_count"] for each in record["gave_up"]] == [record["never_count"]]


@needs_root
@pytest.mark.privileged
def test_a_connection_is_made_again_so_often_and_no_more(small_fleet):
    fleet = small_fleet(
        **NO_PORTS, connections=60, retry_count=3, retry_first_s=0.02, retry_longest_s=0.05,
        stall_s=60.0,
    ).ramp()  # fmt: skip
    slot = fleet.fleet.client_slots[0]
    assert slot[Counter.ATTEMPTED_TOTAL] == 60
    assert slot[Counter.ESTABLISHED_TOTAL] == 24
    assert slot[Counter.RETRIED_TOTAL] == 3 * 36
    assert slot[Counter.FAILED_TOTAL] == 4 * 36
    assert slot[Counter.RETRIED_AFTER_BASE + CloseKind.ERROR] == 3 * 36
    assert slot[Counter.GAVE_UP_NS] == 0
    assert list(fleet.live.column("stage")).count(Stage.CONNECT) == 36


@needs_root
@pytest.mark.privileged
def test_connections_that_were_lost_come_back_to_the_other_worker(small_fleet, until):
    fleet = small_fleet(
        connections=100, clients=1, workers=2, accept="shared", retry_count=50,
        retry_first_s=0.02, retry_longest_s=0.1, stall_s=60.0,
    ).ramp()  # fmt: skip
    slot = fleet.fleet.client_slots[0]
    victim = max(fleet.fleet.server_slots, key=lambda each: each[Counter.OPEN_COUNT])
    held_count = victim[Counter.OPEN_COUNT]
    os.kill(victim[Counter.PID], signal.SIGKILL)
    until("all open again", lambda: slot[Counter.LOST_TOTAL] == held_count
          and slot[Counter.OPEN_COUNT] == 100)  # fmt: skip
    assert slot[Counter.RETRIED_OPEN_TOTAL] == held_count
    assert slot[Counter.ESTABLISHED_TOTAL] - slot[Counter.RETRIED_OPEN_TOTAL] == 100
    assert list(fleet.live.column("stage")) == [Stage.OPEN] * 100
    assert not any(fleet.live.column("errno"))


@needs_root
@pytest.mark.privileged
def test_a_stopped_fleet_makes_nothing_again(small_fleet, until):
    fleet = small_fleet(
        **NO_PORTS, connections=60, retry_count=1000, retry_first_s=0.02, retry_longest_s=0.05,
        stall_s=600.0,
    ).ready()  # fmt: skip
    fleet.fleet.set_phase(1)
    slot = fleet.fleet.client_slots[0]
    until("some made again", lambda: slot[Counter.RETRIED_TOTAL] > 36)
    fleet.live.header[Header.STOP_REASON] = StopReason.FAILURES
    until("it ends its attempts", lambda: slot[Counter.ATTEMPTS_DONE_NS])
    assert slot[Counter.RETRIED_TOTAL] < 36 * 1000


@given(st.integers(1, 20), st.floats(0.01, 5), st.floats(1, 10), st.integers(0, 2**32), st.data())
def test_waits_double_up_to_the_longest_and_scatter_by_half(count, first_s, factor, seed, data):
    retries = Retries(count, first_s, first_s * factor, random.Random(seed))
    now_ns = 0
    for made_count in range(count):
        assert retries.plan(7, now_ns)
        wait_s = retries.wait_s(now_ns, 1e9)
        middle_s = min(first_s * factor, first_s * 2**made_count)
        assert 0.5 * middle_s - 1e-6 <= wait_s <= 1.5 * middle_s + 1e-6
        assert retries.take(now_ns + int(wait_s * 1e9) - 2, 9) == []
        now_ns += int(wait_s * 1e9) + 2
        assert retries.take(now_ns, 9) == [7]
    assert not retries.plan(7, now_ns)
    assert len(retries) == 0


def test_those_who_failed_together_do_not_come_together_and_no_more_than_asked_for():
    retries = Retries(1, 1.0, 10.0, random.Random(1))
    for record in range(1000):
        retries.plan(record, 0)
    assert retries.take(499_999_999, 1000) == []
    half = retries.take(1_000_000_000, 1000)
    assert 300 <= len(half) <= 700
    assert len(retries.take(2_000_000_000, 64)) == 64
    retries.forget()
    assert retries.take(2_000_000_000, 1000) == []
    assert retries.wait_s(0, 0.1) == 0.1


def test_a_pace_that_forgoes_makes_no_burst():
    pace = Pace(100, 1, 0)
    pace.begin(0)
    assert pace.allowed(0, 64) == 1
    pace.forgo(5_000_000_000)
    assert pace.allowed(5_000_000_000, 64) == 1
    assert pace.allowed(5_100_000_000, 64) == 10
