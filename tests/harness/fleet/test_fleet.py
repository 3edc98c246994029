"""The fleet on real sockets: known numbers of connections, each accept mode, each end."""

from __future__ import annotations

import errno
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from harness.client.client import Client
from harness.planning.limits import OWN_DESCRIPTORS_COUNT
from harness.server.worker import Worker
from probes.contract.live import CloseKind, Counter, Stage
from probes.contract.message_times import HEAD_WORDS, Head, bucket_of

ROOT = os.geteuid() == 0


@pytest.mark.parametrize("accept", ["reuseport", "shared", "shared-exclusive", "handoff"])
def test_every_accept_mode_establishes_all(small_fleet, accept):
    fleet = small_fleet(connections=600, accept=accept).ramp()
    assert fleet.clients_total(Counter.ESTABLISHED_TOTAL) == 600
    assert fleet.servers_total(Counter.ESTABLISHED_TOTAL) == 600
    assert fleet.clients_total(Counter.FAILED_TOTAL) == 0
    assert fleet.servers_total(Counter.OPEN_COUNT) == 600


def test_handoff_is_exactly_even(small_fleet):
    fleet = small_fleet(connections=601 // 7 * 7, clients=1, workers=7, accept="handoff").ramp()
    counts = [slot[Counter.OPEN_COUNT] for slot in fleet.fleet.server_slots]
    assert max(counts) - min(counts) <= 1, counts


def test_one_record_per_connection_with_ordered_times(small_fleet):
    fleet = small_fleet(connections=23, clients=1).ramp()
    live = fleet.live
    columns = {
        name: list(live.column(name))
        for name in ("start_ns", "connected_ns", "established_ns", "closed_ns", "stage", "errno")
    }
    assert all(
        start < connected <= established
        for start, connected, established in zip(
            columns["start_ns"], columns["connected_ns"], columns["established_ns"], strict=True
        )
    )
    assert columns["stage"] == [Stage.OPEN] * 23
    assert columns["closed_ns"] == columns["errno"] == [0] * 23
    assert set(live.column("source_address")) == {0x7F00000A}
    assert set(live.column("destination_port")) == {9001}


def test_keepalive_pings_every_connection_and_each_is_answered(small_fleet, until):
    fleet = small_fleet(connections=23, clients=1, workers=1, keepalive_s=0.1).ramp().hold()
    until("three pings each", lambda: fleet.servers_total(Counter.RX_PONGS_TOTAL) >= 69)
    assert fleet.clients_total(Counter.RX_PINGS_TOTAL) <= fleet.servers_total(
        Counter.TX_PINGS_TOTAL
    )
    assert fleet.clients_total(Counter.LOST_TOTAL) == 0


@pytest.mark.parametrize("payload_bytes", [0, 125, 126, 1_009, 70_000])
def test_echo_returns_every_message(small_fleet, until, payload_bytes):
    fleet = (
        small_fleet(
            connections=23, clients=1, message_rate_per_s=2_000, payload_bytes=payload_bytes
        )
        .ramp()
        .hold()
    )
    until("23 echoes", lambda: fleet.clients_total(Counter.RX_MESSAGES_TOTAL) >= 23)
    times = fleet.live.message_times(0)
    until("23 times", lambda: times[Head.COUNTED_TOTAL] >= 23)
    assert sum(times[HEAD_WORDS:]) <= fleet.clients_total(Counter.RX_MESSAGES_TOTAL)
    assert fleet.clients_total(Counter.PROTOCOL_ERROR_TOTAL) == 0
    assert fleet.clients_total(Counter.LOST_TOTAL) == 0


@pytest.mark.parametrize("side", ["server", "client"])
def test_what_was_due_while_one_side_stood_still_has_waited(small_fleet, until, side):
    """A client that cannot send does not hide it: 200 a second, half of a second of them late."""
    fleet = small_fleet(connections=23, clients=1, workers=1, message_rate_per_s=200).ramp().hold()
    times = fleet.live.message_times(0)
    until("the first answers", lambda: times[Head.COUNTED_TOTAL] >= 23)
    slots = fleet.fleet.server_slots if side == "server" else fleet.fleet.client_slots
    pid = slots[0][Counter.PID]
    os.kill(pid, signal.SIGSTOP)
    try:
        since_s = time.monotonic()
        until("a second", lambda: time.monotonic() - since_s >= 1.0)
    finally:
        os.kill(pid, signal.SIGCONT)
    late_from = HEAD_WORDS + bucket_of(500_000_000)
    until("late answers", lambda: sum(times[late_from:]) >= 80)
    assert times[Head.LONGEST_NS] >= 900_000_000
    assert fleet.clients_total(Counter.LOST_TOTAL) == 0


def test_clients_that_send_nothing_time_nothing(small_fleet):
    fleet = small_fleet(connections=23, clients=1).ramp()
    assert fleet.live.message_times(0) is None


def test_silent_server_reads_and_does_not_answer(small_fleet, until):
    fleet = (
        small_fleet(connections=23, clients=1, message_rate_per_s=500, server_mode="silent")
        .ramp()
        .hold()
    )
    until("23 messages", lambda: fleet.servers_total(Counter.RX_MESSAGES_TOTAL) >= 23)
    assert fleet.servers_total(Counter.TX_MESSAGES_TOTAL) == 0


FULL: dict[str, Any] = {"workers": 1, "worker_nofile_count": 200, "connect_timeout_s": 2.0}
"""A worker that takes no more, and clients that give up where the tests wait for it."""


class TestAtTheDescriptorLimit:
    def test_pause_holds_exactly_what_the_limit_leaves(self, small_fleet):
        fleet = small_fleet(**FULL, connections=400, clients=1).ramp()
        slot = fleet.fleet.server_slots[0]
        assert slot[Counter.OPEN_COUNT] == 200 - slot[Counter.OWN_FDS_COUNT]
        assert slot[Counter.ACCEPT_EMFILE_TOTAL] == slot[Counter.LISTENER_PAUSES_TOTAL] == 1
        assert fleet.clients_total(Counter.FAILED_TOTAL) >= 100
        late = [
            i for i, kind in enumerate(fleet.live.column("close_kind")) if kind == CloseKind.TIMEOUT
        ]
        assert {fleet.live.column("errno")[i] for i in late} == {errno.ETIMEDOUT}

    def test_spin_fails_to_accept_without_end(self, small_fleet, until):
        fleet = small_fleet(**FULL, connections=400, clients=1, at_fd_limit="spin").ramp()
        slot = fleet.fleet.server_slots[0]
        until("10,000 EMFILE", lambda: slot[Counter.ACCEPT_EMFILE_TOTAL] > 10_000)

    def test_reset_gives_clients_a_reset(self, small_fleet):
        fleet = small_fleet(
            connections=400, clients=1, workers=1, worker_nofile_count=200, at_fd_limit="reset"
        ).ramp()
        slot = fleet.fleet.server_slots[0]
        assert slot[Counter.ACCEPT_RESET_TOTAL] >= 100
        kinds = list(fleet.live.column("close_kind"))
        assert kinds.count(CloseKind.RST) >= 100
        record = kinds.index(CloseKind.RST)
        assert fleet.live.column("errno")[record] == errno.ECONNRESET
        assert fleet.live.column("stage")[record] == Stage.HANDSHAKE

    def test_crash_ends_the_worker_and_all_it_held(self, small_fleet, until):
        fleet = small_fleet(
            connections=400, clients=1, workers=1, worker_nofile_count=200, at_fd_limit="crash"
        ).ramp()
        until("the end is reported", lambda: fleet.fleet.read_ends() or fleet.fleet.ends)
        assert fleet.fleet.ends[0].status == 1
        until("all connections lost", lambda: fleet.clients_total(Counter.OPEN_COUNT) == 0)
        assert "too many open files" in (fleet.path / "logs" / "server.log").read_text()

    def test_a_full_worker_leaves_the_shared_listener_to_its_sibling(self, small_fleet):
        fleet = small_fleet(
            connections=370, clients=1, workers=2, worker_nofile_count=200, accept="shared"
        ).ramp()
        assert fleet.clients_total(Counter.ESTABLISHED_TOTAL) == 370
        assert fleet.servers_total(Counter.ACCEPT_EMFILE_TOTAL) == 0

    def test_room_that_comes_back_is_used(self, small_fleet, until):
        fleet = small_fleet(**FULL, connections=250, clients=2).ramp()
        slot = fleet.fleet.server_slots[0]
        assert slot[Counter.LISTENER_PAUSES_TOTAL] >= 1
        before = slot[Counter.ATTEMPTED_TOTAL]
        os.kill(fleet.fleet.client_slots[0][Counter.PID], signal.SIGKILL)
        # What waited in the accept queue (its clients have given up by now) is taken and dropped.
        until("accepting again", lambda: slot[Counter.ATTEMPTED_TOTAL] > before)


@pytest.mark.privileged
def test_a_port_range_of_24_gives_24_connections(small_fleet):
    assert ROOT, "needs root for its own namespace"
    # An even size: in a range of odd size connect finds the last port by luck (limits.py).
    fleet = small_fleet(
        connections=200, clients=1, sysctls={"net.ipv4.ip_local_port_range": "40000 40023"}
    ).ramp()
    assert fleet.clients_total(Counter.ESTABLISHED_TOTAL) == 24
    live = fleet.live
    failed = [i for i in range(200) if live.column("errno")[i]]
    assert {live.column("errno")[i] for i in failed} == {errno.EADDRNOTAVAIL}
    assert {live.column("stage")[i] for i in failed} == {Stage.CONNECT}


@pytest.mark.privileged
def test_socket_port_range_narrows_like_the_sysctl(small_fleet):
    fleet = small_fleet(connections=200, clients=1, socket_port_range=[40_000, 40_022]).ramp()
    assert fleet.clients_total(Counter.ESTABLISHED_TOTAL) == 23


@pytest.mark.privileged
def test_children_are_unprivileged_and_in_the_namespace(small_fleet):
    fleet = small_fleet(connections=2, clients=1).ready()
    for slot in fleet.fleet.slots:
        status = Path(f"/proc/{slot[Counter.PID]}/status").read_text()
        assert "Uid:\t65534\t65534\t65534\t65534" in status
        assert "CapEff:\t0000000000000000" in status
        assert os.readlink(f"/proc/{slot[Counter.PID]}/ns/net") != os.readlink("/proc/self/ns/net")


@pytest.mark.parametrize("accept", ["reuseport", "shared", "handoff"])
def test_own_descriptors_are_what_the_planner_counts_with(small_fleet, accept):
    fleet = small_fleet(connections=2, clients=1, accept=accept, at_fd_limit="reset").ready()
    for slot in (*fleet.fleet.server_slots, *fleet.fleet.client_slots):
        assert 3 < slot[Counter.OWN_FDS_COUNT] <= OWN_DESCRIPTORS_COUNT


def test_counters_and_records_outlive_a_killed_client(small_fleet, until):
    fleet = small_fleet(connections=100, clients=1).ramp()
    slot = fleet.fleet.client_slots[0]
    os.kill(slot[Counter.PID], signal.SIGKILL)
    until("the end is reported", lambda: fleet.fleet.read_ends() or fleet.fleet.ends)
    assert fleet.fleet.ends[0].signal == signal.SIGKILL
    assert slot[Counter.ESTABLISHED_TOTAL] == 100
    assert list(fleet.live.column("stage")) == [Stage.OPEN] * 100
    until("the server saw it", lambda: fleet.servers_total(Counter.OPEN_COUNT) == 0)


def test_ramp_rate_is_kept(small_fleet):
    fleet = small_fleet(connections=200, ramp_per_s=400.0).ramp()
    starts = sorted(fleet.live.column("start_ns"))
    # 200 connects at 400 per second begin over half a second. They may come late, on a busy
    # machine, but never early.
    assert starts[-1] - starts[0] >= 0.45e9


def test_the_loop_counts_its_turns_and_their_length(small_fleet, until):
    fleet = small_fleet(connections=2, clients=1, workers=2, inject=["hot-code:1"]).ramp()
    quiet, hot = fleet.fleet.server_slots
    until("ten hot turns", lambda: hot[Counter.LOOP_ITERATIONS_TOTAL] >= 10)
    assert hot[Counter.LOOP_BUSY_NS_TOTAL] / hot[Counter.LOOP_ITERATIONS_TOTAL] >= 20e6
    assert sum(fleet.live.lag_histogram(1)[25:]) >= 9  # turns of 2^24 ns and longer
    assert quiet[Counter.LOOP_BUSY_NS_TOTAL] < hot[Counter.LOOP_BUSY_NS_TOTAL]


def test_stop_ends_all_processes_by_themselves(small_fleet):
    fleet = small_fleet(connections=200).ramp()
    pids = [slot[Counter.PID] for slot in fleet.fleet.slots]
    assert fleet.fleet.stop(10.0)
    assert {end.status for end in fleet.fleet.ends} == {0}
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def test_killing_a_parent_takes_its_children(small_fleet, until):
    fleet = small_fleet(connections=20).ramp()
    pids = [slot[Counter.PID] for slot in fleet.fleet.slots]
    fleet.fleet.kill()
    until("children gone", lambda: not [p for p in pids if _is_alive(p)])


def _is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


@pytest.mark.parametrize("make", [Worker, Client], ids=["worker", "client"])
@pytest.mark.parametrize("knows_its_parent", [True, False])
def test_a_process_ends_whose_parent_ended_before_it_was_ready(small_fleet, make, knows_its_parent):
    """Killed in the set-up by whoever adopted it, it would stay for ever: nobody tells it."""
    fleet = small_fleet(workers=1, clients=1, connections=10, own_namespace=False)
    read_fd, write_fd = os.pipe()
    parent_pid = os.fork()
    if parent_pid == 0:
        try:
            parent_pid = os.getpid()
            if os.fork() == 0:
                while os.getppid() == parent_pid:
                    time.sleep(0.001)
                known_pid = parent_pid if knows_its_parent else os.getppid()
                config = fleet.config._replace(parent_pid=known_pid, destination_ports=[0])
                make(config, 0, fleet.live, *([0] if make is Client else []))
                os.write(write_fd, b"is there")
        finally:
            os._exit(0)
    os.close(write_fd)
    os.waitpid(parent_pid, 0)
    with os.fdopen(read_fd) as told:
        assert told.read() == ("" if knows_its_parent else "is there")
