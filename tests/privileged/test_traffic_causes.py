"""What servers of others do with what they send: run against clients of ours, and watched."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from probes.contract.rundir import open_run_dir
from tests.privileged.test_attach import World

pytestmark = [pytest.mark.privileged, pytest.mark.in_turn(cores=0.5)]

FOREIGN = Path(__file__).parents[1] / "harness" / "foreign"
BROADCASTS, CHAT = FOREIGN / "broadcasts.py", FOREIGN / "chat.py"
SIZE = 8_000
SILENT = 30
HOLD_S = "20"
TALKING, COST_US = 400, 80


@pytest.fixture
def profile_run(machine: Any, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """``profile_run(server, kind, value, argument...)``: the verdict of a run against it."""

    def run(server: Path, kind: str, value: int, *arguments: str, cores: float) -> dict[str, Any]:
        command = f"{sys.executable} {server} {{port}} {kind} {value}"
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
        done = machine.record(words, tmp_path / "runs", timeout_s=150, cores=cores)
        assert "Traceback" not in done.stderr, done.stderr
        assert done.stdout, done.stderr
        verdict: dict[str, Any] = json.loads(done.stdout)
        return verdict

    return run


@pytest.fixture
def broadcast(profile_run: Any) -> Callable[..., dict[str, Any]]:
    """``broadcast(kind, argument...)``: 60 clients of one that sends to all, read or not."""

    def run(kind: str, *arguments: str) -> dict[str, Any]:
        size = ("--clients", "2", "--connections", str(2 * SILENT), "--hold", HOLD_S)
        verdict: dict[str, Any] = profile_run(BROADCASTS, kind, SIZE, *size, *arguments, cores=0.5)
        return verdict

    return run


@pytest.fixture
def chat(profile_run: Any) -> Callable[[str], dict[str, Any]]:
    """``chat(kind)``: 400 clients that together send 30 messages a second."""

    def run(kind: str) -> dict[str, Any]:
        size = ("--clients", "1", "--connections", str(TALKING), "--hold", "8")
        talk = ("--message-rate", "30", "--payload", "60")
        verdict: dict[str, Any] = profile_run(CHAT, kind, COST_US, *size, *talk, cores=0)
        return verdict

    return run


@pytest.fixture
def world(tmp_path: Path, deadline: Callable[..., Any]) -> Iterator[World]:
    made = World(tmp_path, deadline)
    try:
        yield made
    finally:
        made.close()


def values_of(finding: dict[str, Any]) -> dict[str, float]:
    return {e["id"]: e["value"] for e in finding["evidence"]}


def found(verdict: dict[str, Any], cause: str) -> dict[str, Any]:
    causes = [f["cause"] for f in verdict["findings"]]
    assert cause in causes, f"{cause} is not among {causes}: {verdict['verdict']}"
    return next(f for f in verdict["findings"] if f["cause"] == cause)


def test_what_piles_up_for_clients_that_do_not_read_is_named_though_all_are_held(broadcast):
    verdict = broadcast("keep", "--inject", "no-read-client:1")
    finding = found(verdict, "slow-consumers")
    assert verdict["verdict"]["cause"] == "reached"
    assert finding["severity"] == "warning"
    assert finding["subject"]["role"] == "server"
    assert "broadcasts.py" in finding["subject"]["command"]
    values = values_of(finding)
    assert values["standing_connections"] == values["closed_window_peers"] == SILENT
    assert values["connections_open"] == 2 * SILENT
    assert values["memory_growth"] > 0
    assert values["time_to_wall"] > 0
    assert "get_write_buffer_size" in finding["fix"][0]["command"]
    followed = [f for f in verdict["findings"] if f["cause"] == "receive-buffer-full"]
    assert all(f["follows_from"] == "slow-consumers" for f in followed)


@pytest.mark.variant
def test_a_server_that_drops_what_they_do_not_take_is_not_accused(broadcast):
    verdict = broadcast("drop", "--inject", "no-read-client:1")
    assert verdict["verdict"]["cause"] == "reached"
    finding = found(verdict, "slow-consumers")
    assert finding["severity"] == "info"
    assert "time_to_wall" not in values_of(finding)


@pytest.mark.variant
def test_clients_that_all_read_are_no_slow_consumers(broadcast):
    verdict = broadcast("keep", "--hold", "10")
    assert verdict["verdict"]["cause"] == "reached"
    assert "slow-consumers" not in {f["cause"] for f in verdict["findings"]}


@pytest.mark.variant
def test_attach_names_clients_that_do_not_read(world, machine):
    with machine.shared():
        server = world.serve(sys.executable, str(BROADCASTS), str(world.port), "keep", str(SIZE))
        clients = world.clients()  # which read nothing after the upgrade
        assert clients.open(SILENT) == (SILENT, 0)
        attach = world.attach("--pid", str(server.pid))
        attach.watches()

        def has_grown() -> bool:
            run = open_run_dir(attach.run)
            looks = run.read_table("send_queues").table.to_pylist()
            stood = [row for row in looks if row["longest_standing_ns"] >= 5_000_000_000]
            samples = run.read_table("process_samples").table.to_pylist()
            mine = [r for r in samples if r["pid"] == server.pid]
            mine = [r for r in mine if stood and r["at_ns"] > looks[0]["at_ns"]]
            grown = mine[-1]["rss_bytes"] - mine[0]["rss_bytes"] if mine else 0
            spans_ns = mine[-1]["at_ns"] - mine[0]["at_ns"] if mine else 0
            return len(mine) >= 6 and grown >= 40 << 20 and spans_ns >= 8_000_000_000

        world.deadline("its memory has grown while they stood", has_grown, seconds=240)
        code = attach.end()
    finding = attach.finding("slow-consumers")
    assert attach.cause == "slow-consumers", attach.verdict["verdict"]
    assert code == 3
    assert finding["subject"]["pid"] == server.pid
    values = values_of(finding)
    assert values["standing_connections"] == SILENT
    assert values["time_to_wall"] > 0
    assert any(e["id"] == "peer_data" and e["of"].startswith("127.0.0.1:")
               for e in finding["evidence"])  # fmt: skip


@pytest.mark.in_turn
def test_messages_that_go_to_all_are_named_with_the_number_that_fills_the_core(chat):
    verdict = chat("all")
    finding = found(verdict, "message-amplification")
    assert finding["subject"]["role"] == "server"
    assert "chat.py" in finding["subject"]["command"]
    values = values_of(finding)
    assert values["connections_open"] == TALKING
    assert 8 <= values["messages_out_per_in"] <= 1.5 * TALKING
    assert values["cpu_wanted"] >= 85
    assert 20 <= values["full_at_connections"] <= 1.1 * TALKING
    assert finding["fix"]


@pytest.mark.in_turn
@pytest.mark.parametrize("kind", ["echo", "ticks"])
@pytest.mark.variant
def test_an_echo_and_what_a_server_says_by_itself_are_none(chat, kind):
    causes = {f["cause"] for f in chat(kind)["findings"]}
    assert "message-amplification" not in causes
