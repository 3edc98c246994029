"""Following processes that are not ours, with a real one whose descriptors are known."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys

import pytest

from harness.foreign_processes import YOUNG_S, ForeignProcesses
from probes import live as live_memory
from probes import socket_owners
from probes.live import Counter, Live, Role

# Reads a file, closes it and listens: as many descriptors as before, and another one among them.
# It polls before it accepts, since a blocked accept4 has a descriptor reserved (net/socket.c).
SERVER = """
import select, socket, sys
file = open('/dev/null')
print('has a file', flush=True); sys.stdin.readline()
file.close()
server = socket.create_server(('127.0.0.1', 0), backlog=64)
print(server.getsockname()[1], flush=True)
kept = []
while select.select([server], [], []):
    kept.append(server.accept())
"""


@pytest.fixture
def live(tmp_path):
    fd = live_memory.create(tmp_path / "live.bin", slot_count=4, capacity=1)
    mapped = Live(fd)
    yield mapped
    mapped.close()
    os.close(fd)


@pytest.fixture
def server():
    with subprocess.Popen(
        [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        process.kill()


def test_a_listener_in_the_place_of_a_closed_file_is_seen(live, server, deadline):
    assert server.stdout.readline() == "has a file\n"
    resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (100, 100))
    # The port is the kernel's choice, so the watch begins with one that nobody has.
    before = ForeignProcesses(live, 4, 1)
    before.watch_tree([server.pid])
    before.follow()
    assert before.pids == []
    server.stdin.write("\n")
    server.stdin.flush()
    port = int(server.stdout.readline())
    before._ports = (port,)

    def is_followed():
        before.follow()
        return before.pids == [server.pid]

    deadline("the listener is seen", is_followed)
    slot = live.slot(0)
    assert (slot[Counter.ROLE], slot[Counter.PID]) == (Role.SERVER, server.pid)
    before.begin_load()

    ours = [socket.create_connection(("127.0.0.1", port)) for _ in range(23)]
    moved = []

    def has_23():
        before.follow()
        moved.append(before.are_moving)
        return slot[Counter.OPEN_COUNT] == 23

    deadline("23 connections are counted", has_23)
    assert slot[Counter.ESTABLISHED_TOTAL] == 23
    assert any(moved)
    deadline("nothing moves", lambda: before.follow() or not before.are_moving)
    for sock in ours:
        sock.close()
    server.kill()
    deadline("its end is seen", lambda: before.follow() or before.ends)
    (end,) = before.ends
    assert (end.pid, end.slot) == (server.pid, 0)
    before.close()


# Takes connections, and opens one of its own for each, to a listener that never accepts.
PROXY = """
import socket
behind = socket.create_server(('127.0.0.1', 0), backlog=128)
front = socket.create_server(('127.0.0.1', 0), backlog=128)
print(front.getsockname()[1], flush=True)
front.settimeout(60)
kept = []
while True:
    kept.append(front.accept())
    kept.append(socket.create_connection(behind.getsockname()))
"""


@pytest.fixture
def proxy():
    with subprocess.Popen(
        [sys.executable, "-c", PROXY], stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        process.kill()


def test_the_second_socket_of_a_proxy_counts_with_the_connection(live, proxy, deadline):
    port = int(proxy.stdout.readline())
    processes = ForeignProcesses(live, 4, port)
    processes.watch_tree([proxy.pid])
    slot = live.slot(0)

    def follow():
        processes._tree_due_s = processes._count_due_s = 0.0  # now, not in half a second
        processes.follow()

    def is_followed():
        follow()
        return processes.pids == [proxy.pid]

    deadline("the listener is seen", is_followed)
    processes.begin_load()
    own = slot[Counter.OWN_FDS_COUNT]
    ours = [socket.create_connection(("127.0.0.1", port)) for _ in range(30)]

    def has_both():
        follow()  # it is young: what is its own is looked at again each time
        return slot[Counter.OPEN_COUNT] == 60

    try:
        deadline("two descriptors for each of 30 connections", has_both)
        assert slot[Counter.OWN_FDS_COUNT] == own
    finally:
        for sock in ours:
            sock.close()
        processes.close()


# A parent that has a socket, which is no connection, and a child that serves.
PARENT = """
import os, select, socket
other = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
other.bind(('127.0.0.1', 0))
server = socket.create_server(('127.0.0.1', 0), backlog=64)
if child := os.fork():
    port = server.getsockname()[1]
    server.close()
    print(port, flush=True)
    os.waitpid(child, 0)
kept = []
while select.select([server], [], []):
    kept.append(server.accept())
"""


def test_all_sockets_are_not_read_again_for_a_process_with_nothing_new(live, deadline, monkeypatch):
    reads = []
    read = socket_owners.connection_inodes

    def counted(*arguments, **options):
        reads.append(arguments)
        return read(*arguments, **options)

    monkeypatch.setattr(socket_owners, "connection_inodes", counted)
    with subprocess.Popen(
        [sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as parent:
        port = int(parent.stdout.readline())
        processes = ForeignProcesses(live, 4, port)
        processes.watch_tree([parent.pid])

        def look():
            processes._tree_due_s = processes._count_due_s = processes._rest_until_s = 0.0
            processes.follow()

        try:
            deadline("the child is followed", lambda: look() or processes.pids)
            (worker,) = processes.held
            processes.begin_load()
            worker.since_s -= YOUNG_S  # as if it were old: for a young one they are read
            look()
            assert reads
            reads.clear()
            ours = [socket.create_connection(("127.0.0.1", port)) for _ in range(23)]
            deadline("23 of them", lambda: look() or worker.slot[Counter.OPEN_COUNT] == 23)
            assert processes.pids == [worker.pid]
            assert not reads
            for sock in ours:
                sock.close()
        finally:
            processes.close()
            os.killpg(parent.pid, signal.SIGKILL)
