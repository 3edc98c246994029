"""Peers that read, that never read and that begin to read: what is said of their connections."""

from __future__ import annotations

import fcntl
import os
import select
import socket
import struct
import sys
import termios
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from probes.contract.probe import ProcessRef, Target
from probes.netlink import inet_diag
from probes.samplers import send_queues
from probes.samplers.send_queues import (
    Progress,
    Queue,
    SendQueuesProbe,
    is_standing,
    parse_progress,
)

S = 1_000_000_000
SILENT, READING = 7, 5


def fill(connection: socket.socket) -> int:
    """Writes until the kernel takes no more, of a peer that reads nothing, and all stands."""
    connection.setblocking(False)
    total = 0
    while select.select([], [connection], [], 0.2)[1]:
        try:
            total += connection.send(bytes(65_536))
        except BlockingIOError:
            break
    # on a crowded host the kernel still moves what the peer's buffer has room for
    end_s, unchanged_count, left = time.monotonic() + 20, 0, -1
    while unchanged_count < 10:
        assert time.monotonic() < end_s, f"{left} bytes still move"
        time.sleep(0.03)
        before, left = left, _unacknowledged_bytes(connection)
        unchanged_count = unchanged_count + 1 if left == before else 0
    return total


def _unacknowledged_bytes(connection: socket.socket) -> int:
    answer = fcntl.ioctl(connection, termios.TIOCOUTQ, bytes(4))  # SIOCOUTQ, tcp(7)
    return int.from_bytes(answer, sys.byteorder)


class Watch:
    """A probe that is sampled by hand, once a second of its own clock."""

    def __init__(self, run, port, *, role="server", is_foreign=True) -> None:
        ref = ProcessRef(os.getpid(), role, 0, is_python=True)
        ports = frozenset({port} if role == "server" else {1})
        self.target = Target(run, {ref.pid: ref}, ports, None, is_foreign=is_foreign)
        self.run = run
        self.probe = SendQueuesProbe()
        self.probe.check()
        self.probe.start(self.target)
        self.at_ns = 0

    def look(self, count: int = 1) -> None:
        for _ in range(count):
            self.at_ns += 100 * S
            self.probe.sample(self.at_ns)
            while self.probe._look is not None:
                self.probe.sample(self.at_ns)

    def rows(self, table: str) -> list[dict[str, object]]:
        self.probe.stop(self.at_ns + 1)
        for writer in self.probe.writers:
            writer.close()
        return self.run.read_table(table).table.to_pylist()


@pytest.fixture
def stack():
    with ExitStack() as opened:
        yield opened


def pair(stack, host="127.0.0.1", family=socket.AF_INET):
    server = stack.enter_context(socket.create_server((host, 0), family=family, backlog=64))
    return server, server.getsockname()[1]


def connect(stack, server):
    client = stack.enter_context(socket.create_connection(server.getsockname()[:2]))
    return client, stack.enter_context(server.accept()[0])


@pytest.mark.parametrize(
    ("host", "family"), [("127.0.0.1", socket.AF_INET), ("::1", socket.AF_INET6)]
)
def test_connections_whose_peer_never_reads_are_counted_and_named(run, stack, host, family):
    server, port = pair(stack, host, family)
    silent = [connect(stack, server) for _ in range(SILENT)]
    reading = [connect(stack, server) for _ in range(READING)]
    for _, mine in silent:
        fill(mine)
    watch = Watch(run, port)
    held = {}
    for _ in range(6):
        for client, mine in reading:
            mine.sendall(bytes(1_000))
            assert client.recv(1_000, socket.MSG_WAITALL)
        watch.look()
    held = {c.getsockname()[1]: m for c, m in silent}
    rows = watch.rows("send_queues")
    last = rows[-1]
    assert (last["pid"], last["local_port"]) == (os.getpid(), port)
    assert last["standing_count"] == last["closed_window_count"] == SILENT
    assert last["standing_bytes"] > SILENT * 16_384
    assert last["longest_standing_ns"] >= 100 * S
    named = [r for r in run.read_table("standing_sockets").table.to_pylist()
             if r["at_ns"] == last["at_ns"]]  # fmt: skip
    assert {r["remote_port"] for r in named} == set(held)
    assert {r["remote_address"] for r in named} == {host}
    for row in named:
        queued = outq(held[row["remote_port"]])
        assert row["send_queue_bytes"] == queued
        assert 0 < row["not_sent_bytes"] <= queued


def outq(connection: socket.socket) -> int:
    """SIOCOUTQ of tcp(7): bytes that the peer has not acknowledged."""
    import fcntl

    return int(struct.unpack("i", fcntl.ioctl(connection, 0x5411, b"\0" * 4))[0])


def test_a_peer_that_begins_to_read_stands_no_more(run, stack):
    server, port = pair(stack)
    client, mine = connect(stack, server)
    fill(mine)
    watch = Watch(run, port)
    watch.look(5)
    client.setblocking(False)
    end_s = time.monotonic() + 20
    while outq(mine) and time.monotonic() < end_s:
        select.select([client], [], [], 0.5)
        try:
            client.recv(1 << 20)
        except BlockingIOError:
            continue
    assert outq(mine) == 0
    kept = connect(stack, server)
    fill(kept[1])  # so that there is something to look at
    watch.look(1)
    rows = watch.rows("send_queues")
    assert [r["standing_count"] for r in rows][-2:] == [1, 0]


def test_nothing_is_written_of_peers_that_read(run, stack):
    server, port = pair(stack)
    reading = [connect(stack, server) for _ in range(READING)]
    other, _ = pair(stack)
    fill(connect(stack, other)[1])  # data of somebody else
    watch = Watch(run, port)
    for _ in range(5):
        for client, mine in reading:
            mine.sendall(bytes(30_000))
            assert client.recv(30_000, socket.MSG_WAITALL)
        watch.look()
    assert watch.rows("send_queues") == []


def test_servers_of_our_own_are_not_looked_at(run, stack):
    server, port = pair(stack)
    fill(connect(stack, server)[1])
    watch = Watch(run, port, is_foreign=False)
    watch.look(5)
    assert watch.rows("send_queues") == []
    assert watch.probe.seen_count == 0


def test_the_ports_of_what_works_behind_are_found(run, stack):
    server, port = pair(stack)
    fill(connect(stack, server)[1])
    watch = Watch(run, port, role="backend")
    watch.look(5)
    assert watch.rows("send_queues")[-1]["local_port"] == port


def test_nothing_is_looked_at_while_tcp_holds_no_data(run, stack, monkeypatch):
    monkeypatch.setattr(send_queues, "tcp_pages", lambda: 3)
    monkeypatch.setattr(send_queues, "resident_bytes", lambda _: 1)
    server, port = pair(stack)
    fill(connect(stack, server)[1])
    watch = Watch(run, port)
    watch.look(5)
    assert watch.probe.seen_count == 0
    assert watch.rows("send_queues") == []


def test_a_process_that_grows_is_looked_at_all_the_same(run, stack, monkeypatch):
    """The kernel keeps a part of its count by core, where it is not seen."""
    monkeypatch.setattr(send_queues, "tcp_pages", lambda: 0)
    server, port = pair(stack)
    fill(connect(stack, server)[1])
    watch = Watch(run, port)
    grown = iter(range(0, 100 << 20, 5 << 20))
    monkeypatch.setattr(send_queues, "resident_bytes", lambda _: next(grown))
    # so far apart that none is left out for what others' sockets made the last one cost
    for second in range(1, 2000, 400):
        watch.probe.sample(second * S)
        while watch.probe._look is not None:
            watch.probe.sample(second * S)
    assert watch.rows("send_queues")[-1]["standing_count"] == 1


def test_the_resident_set_is_what_the_kernel_says():
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    said_kib = int(fields["VmRSS"].split()[0])
    assert abs(send_queues.resident_bytes(os.getpid()) / 1024 - said_kib) < 4096
    assert send_queues.resident_bytes(2**30) == 0


def test_a_look_is_taken_in_slices(run, stack, monkeypatch):
    monkeypatch.setattr(send_queues, "_SLICE_NS", 0)
    server, port = pair(stack)
    fill(connect(stack, server)[1])
    watch = Watch(run, port)
    watch.probe.sample(S)
    assert watch.probe._look is not None
    assert watch.probe.period_s < 1
    watch.look(6)
    assert watch.probe._look is None
    assert watch.rows("send_queues")[-1]["standing_count"] == 1


def test_more_queues_than_are_asked_about_are_counted(run, stack, monkeypatch):
    monkeypatch.setattr(send_queues, "_ASKED_MOST_COUNT", 3)
    server, port = pair(stack)
    for _ in range(SILENT):
        fill(connect(stack, server)[1])
    watch = Watch(run, port)
    watch.look(6)
    last = watch.rows("send_queues")[-1]
    assert (last["standing_count"], last["unlooked_count"]) == (3, SILENT - 3)
    assert last["queued_count"] == SILENT


def test_tcp_info_of_a_socket_that_is_gone_is_empty(stack):
    server, port = pair(stack)
    client, mine = connect(stack, server)
    with inet_diag.socket_in("self") as channel:
        messages = []
        for halves, _ in inet_diag.dump(channel, socket.AF_INET, 1 << 1, port):
            messages.append(bytes(halves.cast("B")[: inet_diag.MESSAGE_BYTES]))
        (message,) = messages
        inode = memoryview(message).cast("I")[inet_diag.INODE_WORD]
        assert inode == os.fstat(mine.fileno()).st_ino
        mine.sendall(b"hello")
        assert client.recv(5, socket.MSG_WAITALL) == b"hello"
        progress = parse_progress(inet_diag.tcp_info(channel, message), 5)
        assert progress is not None
        assert progress.since_ns == 5
        mine.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        mine.close()
        assert inet_diag.tcp_info(channel, message) == b""


def queue(timer: int = 0) -> Queue:
    message = bytearray(inet_diag.MESSAGE_BYTES)
    message[inet_diag.TIMER_AT] = timer
    return Queue(bytes(message), 1, 6)


def test_what_is_only_on_its_way_does_not_stand():
    assert not is_standing(queue(), Progress(9, 0, 65_535, 1), 2)
    assert is_standing(queue(), Progress(9, 1, 65_535, 1), 2)
    assert is_standing(queue(4), Progress(9, -1, -1, 1), 2)
    assert not is_standing(queue(4), Progress(9, 6, 0, 2), 2)  # seen for the first time


@pytest.mark.parametrize("length", [0, 120, 127])
def test_a_kernel_that_says_too_little_says_nothing(length):
    assert parse_progress(bytes(length), 1) is None
    assert parse_progress(bytes(128), 1) == Progress(0, -1, -1, 1)
