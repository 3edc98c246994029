"""Limits of process, user, group and runtime, met by small servers of others: run and attach."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from probes.proc import process_tree
from tests.control_groups import control_group
from tests.machine import CALM_CORES
from tests.privileged.test_attach import World, sample_until

pytestmark = [pytest.mark.privileged, pytest.mark.in_turn(cores=CALM_CORES)]

FOREIGN = Path(__file__).parents[1] / "harness" / "foreign"
SERVER = [sys.executable, str(FOREIGN / "limited_server.py")]
DEADLINE_S = 150
CROWDED = "host-cpu-saturated"
PATIENCE = ("--connect-timeout", "1", "--hold", "0.5")


@pytest.fixture
def profile_run(machine: Any, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """``profile_run(command, argument...)``: the verdict of a run against a server."""

    def run(command: str, *arguments: str, cores: float = CALM_CORES) -> dict[str, Any]:
        words = [
            *(
                sys.executable,
                "-P",
                "-m",
                "harness.commands.run",
                "--json",
                "--quiet",
                "--no-report",
            ),
            *("--server-cmd", command, "--output", str(tmp_path / "runs"), *arguments),
        ]
        done = machine.record(words, tmp_path / "runs", timeout_s=DEADLINE_S, cores=cores)
        assert "Traceback" not in done.stderr, done.stderr
        assert done.stdout, done.stderr
        verdict: dict[str, Any] = json.loads(done.stdout)
        return verdict

    return run


@pytest.fixture
def world(tmp_path: Path, deadline: Callable[..., Any]) -> Iterator[World]:
    made = World(tmp_path, deadline)
    try:
        yield made
    finally:
        made.close()


def server(kind: str, number: int = 0) -> str:
    return shlex.join([*SERVER, "{port}", kind, str(number)])


def joined(procs: Path, command: str) -> str:
    """The command in a control group."""
    return f"sh -c {shlex.quote(f'echo 0 > {procs}/cgroup.procs; exec {command}')}"


def finding_of(verdict: dict[str, Any], cause: str) -> dict[str, Any]:
    found = [f for f in verdict["findings"] if f["cause"] == cause]
    assert found, f"{cause} is not among {[f['cause'] for f in verdict['findings']]}"
    first: dict[str, Any] = found[0]
    return first


def values_of(finding: dict[str, Any]) -> dict[str, float]:
    return {e["id"]: e["value"] for e in finding["evidence"]}


def named(verdict: dict[str, Any], cause: str) -> dict[str, Any]:
    """The finding, which must be the one that stopped the run, in a process of the server.

    But for a host that others keep busy: where that did harm, it may come first.
    """
    finding = finding_of(verdict, cause)
    if verdict["verdict"]["cause"] != CROWDED:
        assert verdict["verdict"]["cause"] == cause, verdict["verdict"]
        assert finding["severity"] == "binding"
    assert finding["side"] == "server"
    assert finding["subject"]["pid"] > 0
    return finding


# -- runs --------------------------------------------------------------------------------------


def test_a_task_limit_of_its_group_is_named_with_the_group(profile_run):
    with control_group("pids", {"pids.max": "40"}) as group:
        # So slowly that a thread runs before the next is made: on a busy core 36 can be made
        # while 4 have answered.
        ramp = ("--connections", "120", "--ramp", "60")
        verdict = profile_run(joined(group, server("threads")), *ramp, *PATIENCE)
        finding = named(verdict, "task-limit")
        values = values_of(finding)
        assert values["limit_size"] == 40
        assert values["limit_used"] == 40
        assert values["eagain_calls"] >= 1
        assert 5 <= finding["at_connections"] <= 40
        command = finding["fix"][0]["command"]
        assert command.endswith(f"> {group}/pids.max")
        assert int(command.split()[1]) >= 120
        assert any("can't start new thread" in quote["line"] for quote in finding["quotes"])


def test_mappings_that_are_used_up_are_named_and_no_memory(profile_run):
    most = int(Path("/proc/sys/vm/max_map_count").read_text())
    each = most // 100
    verdict = profile_run(server("mappings", each), "--connections", "160", *PATIENCE)
    finding = named(verdict, "mapping-limit")
    values = values_of(finding)
    assert values["limit_size"] == most
    assert most - 1 <= values["limit_used"] <= most + 1
    assert 50 <= finding["at_connections"] <= 103
    command = finding["fix"][0]["command"]
    assert command.startswith("sysctl -w vm.max_map_count=")
    assert int(command.rpartition("=")[2]) > 1.6 * most
    assert "memory-exhausted" not in [f["cause"] for f in verdict["findings"]]


def test_a_quota_of_a_group_above_is_named_with_that_group(profile_run):
    with (
        control_group("cpu", {"cpu.max": "5000 100000"}) as above,
        control_group("cpu", {}, above) as group,
    ):
        verdict = profile_run(
            joined(group, server("hash", 20_000)), "--connections", "150", *PATIENCE
        )
        finding = named(verdict, "cpu-quota")
        values = values_of(finding)
        assert values["cpu_quota"] == pytest.approx(5)
        assert values["throttled_share"] > 50
        assert above.name in finding["fix"][0]["command"]
        assert group.name not in finding["fix"][0]["command"]


@pytest.mark.in_turn
def test_a_hash_in_each_handshake_is_named_also_by_a_short_run(profile_run):
    verdict = profile_run(
        server("hash", 150_000),
        *("--connections", "200", "--connect-timeout", "2", "--hold", "0.2"),
        cores=0.0,
    )
    finding = named(verdict, "handshake-cost")
    values = values_of(finding)
    assert finding["first_s"] < 1.6
    assert values["handshake_cpu"] > 10_000
    # what all of them cost is the CPU that it had: a core, or what neighbours left of one
    spent_us = values["handshake_cpu"] * values["handshake_rate"]
    assert spent_us == pytest.approx(1e4 * values["process_cpu"], rel=0.3)
    assert "hot-worker-code" not in [f["cause"] for f in verdict["findings"]]
    assert "thread pool" in finding["fix"][0]["command"]
    assert finding["fix"][1]["command"].startswith("profile-run --ramp ")


def test_a_blocking_call_in_each_handshake_is_named_with_its_function(profile_run):
    verdict = profile_run(
        server("asks", 150), "--connections", "100", "--connect-timeout", "3", "--hold", "0.2"
    )
    finding = named(verdict, "worker-blocked")
    seen = {(e["id"], e["of"]) for e in finding["evidence"]}
    assert ("blocked_syscall_samples", "recvfrom") in seen
    assert "check_token" in finding["fix"][0]["command"]
    # 150 ms each: many short turns are no long one
    assert values_of(finding)["longest_blocked_turn"] < 1_000


def test_a_worker_that_is_replaced_takes_its_connections_along_once(profile_run):
    verdict = profile_run(
        server("replaces", 60), "--connections", "60", "--connect-timeout", "3", "--hold", "4"
    )
    finding = named(verdict, "worker-replaced")
    values = values_of(finding)
    assert values["exit_status"] == 0
    assert values["lost_with_it"] == 60
    assert values["process_connections"] == 60
    assert values["successor_age"] == pytest.approx(0.6, abs=0.4)
    assert "worker-crash" not in [f["cause"] for f in verdict["findings"]]


@pytest.mark.node
def test_a_full_heap_of_v8_is_the_cause_and_the_crash_follows(profile_run):
    node = shutil.which("node")
    command = f"{node} --max-old-space-size=32 {FOREIGN / 'full_heap.cjs'} {{port}} 200000"
    verdict = profile_run(command, "--connections", "600", "--ramp", "200", *PATIENCE)
    finding = named(verdict, "runtime-heap-limit")
    values = values_of(finding)
    assert values["limit_size_bytes"] == 32 << 20
    if "exit_signal" in values:  # else the collector still struggled when the run was over
        assert values["exit_signal"] == signal.SIGABRT
        assert finding_of(verdict, "worker-crash")["follows_from"] == "runtime-heap-limit"
    command = finding["fix"][0]["command"]
    assert command.startswith("profile-run --server-cmd ")
    assert "{port}" in command
    assert int(command.partition("size=")[2].split()[0]) > 60


# -- attach ------------------------------------------------------------------------------------


def come_until_refusals_are_seen(world, attach, clients):
    """60 clients, and some more after each look, as they come to a server in service.

    On a crowded machine failing calls are watched for a part of the time alone, to cost no more;
    what was used up is read after the first that is seen.
    """

    def size():
        readings = (attach.run / "raw" / "limit_readings").glob("*.arrows")
        return sum(path.stat().st_size for path in readings)

    def are_seen():
        clients.open(4)
        sample_until(world, attach, "one more sample", periods=1)
        return size() > before

    before = size()
    clients.open(60)
    world.deadline("a refusal is seen, and what was used up", are_seen)
    sample_until(world, attach, "samples of the refusal", periods=2)


@pytest.mark.variant
def test_attach_names_the_task_limit_of_a_server_in_service(world, machine):
    with machine.shared(), control_group("pids", {"pids.max": "40"}) as group:
        watched = world.serve(*SERVER, str(world.port), "threads")
        (group / "cgroup.procs").write_text(str(watched.pid))
        clients = world.clients()
        assert clients.open(20) == (20, 0)
        attach = world.attach("--pid", str(watched.pid))
        attach.watches()
        come_until_refusals_are_seen(world, attach, clients)
        attach.end()
        finding = attach.finding("task-limit")
        assert attach.cause == "task-limit"
        assert finding["subject"]["pid"] == watched.pid
        assert str(group) in finding["fix"][0]["command"]
        watched.kill()
        watched.wait()


@pytest.mark.variant
def test_attach_names_used_up_mappings(world, machine):
    most = int(Path("/proc/sys/vm/max_map_count").read_text())
    with machine.shared():
        watched = world.serve(*SERVER, str(world.port), "mappings", str(most // 50))
        clients = world.clients()
        assert clients.open(20) == (20, 0)
        attach = world.attach("--pid", str(watched.pid))
        attach.watches()
        come_until_refusals_are_seen(world, attach, clients)
        attach.end()
    assert attach.cause == "mapping-limit"
    assert attach.finding("mapping-limit")["subject"]["pid"] == watched.pid


@pytest.mark.variant
def test_attach_names_a_quota_that_stops_the_server(world, machine):
    with machine.shared(), control_group("cpu", {"cpu.max": "5000 100000"}) as group:
        watched = world.serve(*SERVER, str(world.port), "hash", "400000")
        (group / "cgroup.procs").write_text(str(watched.pid))
        clients = world.clients()
        attach = world.attach("--pid", str(watched.pid), "--duration", "6")
        attach.watches()
        clients.ask(100)
        attach.ended()
        finding = attach.finding("cpu-quota")
        assert attach.cause == "cpu-quota"
        assert str(group) in finding["fix"][0]["command"]
        watched.kill()
        watched.wait()


@pytest.mark.variant
def test_attach_names_a_worker_that_is_replaced(world, machine):
    with machine.shared():
        watched = world.serve(*SERVER, str(world.port), "replaces", "60")
        clients = world.clients()
        assert clients.open(30) == (30, 0)
        attach = world.attach("--pid", str(watched.pid))
        attach.watches()
        first = min(process_tree.children_of(watched.pid))
        clients.open(30)
        world.deadline("the first worker has ended", lambda: not Path(f"/proc/{first}").exists())
        sample_until(world, attach, "samples of the end", periods=2)
        attach.end()
    finding = attach.finding("worker-replaced")
    assert attach.cause == "worker-replaced"
    assert values_of(finding)["process_connections"] == 60
    assert os.getpid() != finding["subject"]["pid"] != watched.pid
