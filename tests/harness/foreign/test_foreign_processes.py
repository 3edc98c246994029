"""Following processes that are not ours, with a real one whose descriptors are known."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
import time

import pytest

from harness.foreign.processes import YOUNG_S, ForeignProcesses
from probes.contract import live as live_memory
from probes.contract.live import Counter, Header, Live, Role
from probes.netlink import connection_dump
from probes.proc import descriptor_count

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
    before_ns = time.monotonic_ns()
    with subprocess.Popen(
        [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        process.begun_between_ns = before_ns, time.monotonic_ns()
        yield process
        process.kill()


def test_a_limit_that_a_young_process_sets_itself_is_taken(live, server):
    """As one does that a socket activator has just executed."""
    assert server.stdout.readline() == "has a file\n"
    server.stdin.write("\n")
    server.stdin.flush()
    port = int(server.stdout.readline())
    moments_s = [100.0]
    followed = ForeignProcesses(live, 4, port, clock_ns=lambda: int(moments_s[-1] * 1e9))
    followed.watch_tree([server.pid])
    followed.follow()
    (held,) = followed.held
    assert held.slot[Counter.NOFILE_SOFT_COUNT] != 77
    for limit, at_s in ((77, 101.0), (66, 100.0 + 2 * YOUNG_S)):
        moments_s.append(at_s)
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (limit, 77))
        followed.follow()
        assert held.slot[Counter.NOFILE_SOFT_COUNT] == 77  # not of one that is settled
    followed.close()


@pytest.mark.parametrize("kernel", ["as the kernel says", "before 6.2"])
def test_a_listener_in_the_place_of_a_closed_file_is_seen(
    live, server, deadline, kernel, monkeypatch
):
    if kernel == "before 6.2":
        monkeypatch.setattr(descriptor_count, "kernel_counts", lambda: False)
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
    # it began before anybody looked; a clock tick has 10 ms
    earliest_ns, latest_ns = server.begun_between_ns
    assert earliest_ns - 20_000_000 <= slot[Counter.STARTED_NS] <= latest_ns
    assert slot[Counter.READY_NS] > latest_ns
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
    read = connection_dump.look_at

    def counted(*arguments, **options):
        reads.append(arguments)
        return read(*arguments, **options)

    monkeypatch.setattr(connection_dump, "look_at", counted)
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


# A parent that has a listener for its workers, and starts another one for each line it reads.
REPLACES = """
import os, select, socket, sys
server = socket.create_server(('127.0.0.1', 0), backlog=64)
print(server.getsockname()[1], flush=True)
def worker():
    child = os.fork()
    if not child:
        while select.select([server], [], []):
            server.accept()
    return child
children = [worker() for _ in range(3)]
print(*children, flush=True)
for line in sys.stdin:
    oldest = children.pop(0)
    os.kill(oldest, 15)
    os.waitpid(oldest, 0)
    children.append(worker())
    print(children[-1], flush=True)
"""


class Clock:
    """CLOCK_MONOTONIC that passes as the test says."""

    def __init__(self) -> None:
        self.at_ns = 1_000_000_000

    def __call__(self) -> int:
        return self.at_ns

    def pass_s(self, seconds: float) -> None:
        self.at_ns += int(seconds * 1e9)


@pytest.fixture
def replacing():
    with subprocess.Popen(
        [sys.executable, "-c", REPLACES],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as parent:
        yield parent
        os.killpg(parent.pid, signal.SIGKILL)


def replaced(parent) -> int:
    parent.stdin.write("next\n")
    parent.stdin.flush()
    return int(parent.stdout.readline())


@pytest.mark.parametrize("pause_s", [1.0, 60.0])
def test_workers_that_are_replaced_all_day_are_followed_in_a_few_slots(
    tmp_path, replacing, deadline, pause_s
):
    fd = live_memory.create(tmp_path / "live.bin", slot_count=6, capacity=1)
    live, clock = Live(fd), Clock()
    port = int(replacing.stdout.readline())
    first = [int(word) for word in replacing.stdout.readline().split()]
    processes = ForeignProcesses(live, 6, port, clock_ns=clock)
    processes.watch_tree([replacing.pid])
    news = processes.begin_watch()
    assert set(processes.pids) == {replacing.pid, *first}
    departed = []
    alive = set(first)
    seen = list(first)

    def look() -> list[tuple[str, int, str]]:
        clock.pass_s(pause_s)
        return processes.follow()

    try:
        for _ in range(40):
            alive.discard(seen[-3])
            seen.append(replaced(replacing))
            alive.add(seen[-1])

            def are_followed() -> bool:
                news.extend(look())
                departed.extend(processes.take_departed())
                return set(processes.pids) == {replacing.pid, *alive}

            deadline("the new one is followed and the old one has ended", are_followed)
        assert not processes.are_left_out
        assert [event for event, _, _ in news].count("server_process") == 44
        assert [event for event, _, _ in news].count("process_exited") == 40
        # Every one of them is told once, with how it ended; nobody keeps them in memory.
        ended = [departure.words[Counter.PID] for departure, _ in departed]
        ended += [end.pid for end in processes.ends]
        assert sorted(ended) == sorted(seen[:-3])
        assert {end.signal for _, end in departed if end is not None} <= {0, signal.SIGTERM}
        assert len(processes.held) <= 6
        assert len({departure.words[Counter.WORKER] for departure, _ in departed}) == len(departed)
        assert live.header[Header.ENDED_COUNT] == len(departed)
        slots = list(live.followed_slots())
        assert {slot[Counter.PID] for slot in slots} >= {replacing.pid, *alive}
    finally:
        processes.close()
        live.close()
        os.close(fd)


def test_more_processes_than_slots_are_said_once_and_are_no_end(tmp_path, replacing):
    fd = live_memory.create(tmp_path / "live.bin", slot_count=2, capacity=1)
    live, clock = Live(fd), Clock()
    port = int(replacing.stdout.readline())
    processes = ForeignProcesses(live, 2, port, clock_ns=clock)
    processes.watch_tree([replacing.pid])
    try:
        news = processes.begin_watch()
        for _ in range(3):
            clock.pass_s(10)
            news += processes.follow()
        assert len(processes.pids) == 2
        assert processes.are_left_out
        assert [event for event, _, _ in news].count("too_many_processes") == 1
    finally:
        processes.close()
        live.close()
        os.close(fd)


# A parent keeps the listener, as the primary of node's cluster does. Its first child has a
# connection; the second begins when it is told to and has none, nor the listener.
ROLLING = """
import os, signal, socket, sys
listener = socket.create_server(('127.0.0.1', 0))
ready, told = os.pipe()
first = os.fork()
if first == 0:
    kept = listener.accept()
    listener.close()
    os.write(told, b'x')
    signal.pause()
print(listener.getsockname()[1], flush=True)
os.read(ready, 1)
print(first, flush=True)
sys.stdin.readline()
second = os.fork()
if second == 0:
    listener.close()
    signal.pause()
print(second, flush=True)
sys.stdin.readline()
os.kill(first, signal.SIGTERM)
os.waitpid(first, 0)
sys.stdin.readline()
"""


def test_who_takes_the_place_of_a_worker_is_followed_before_it_has_a_connection(live, deadline):
    with subprocess.Popen(
        [sys.executable, "-c", ROLLING],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as parent:

        def say():
            parent.stdin.write("\n")
            parent.stdin.flush()

        try:
            port = int(parent.stdout.readline())
            follows = ForeignProcesses(live, 4, port)
            follows.watch_tree([parent.pid])
            follows.begin_load()
            with socket.create_connection(("127.0.0.1", port)):
                first = int(parent.stdout.readline())
                deadline("the worker is held", lambda: follows.follow() or first in follows.pids)
                say()
                second = int(parent.stdout.readline())
                follows.follow()
                say()
                deadline("the next one is", lambda: follows.follow() or second in follows.pids)
                assert first not in follows.pids
                slots = {live.slot(i)[Counter.PID]: live.slot(i) for i in range(3)}
                assert slots[second][Counter.STARTED_NS] > slots[first][Counter.STARTED_NS]
            follows.close()
        finally:
            os.killpg(parent.pid, signal.SIGKILL)


def test_a_process_is_called_by_the_title_that_it_writes_after_it_was_found(live, deadline):
    """As nginx's workers, which have their master's until they wrote their own."""
    named = "read _; exec -a 'web: worker process' bash -c 'read _'"
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        subprocess.Popen(
            ["bash", "-c", named],
            stdin=subprocess.PIPE,
            text=True,
            pass_fds=[listener.fileno()],
        ) as process,
    ):
        follows = ForeignProcesses(live, 4, listener.getsockname()[1])
        follows.watch_tree([process.pid])
        deadline("it is held", lambda: follows.follow() or follows.pids == [process.pid])
        assert [each["command"] for each in follows.describe()] == ["bash"]
        process.stdin.write("\n")
        process.stdin.flush()

        def is_called_so():
            news = follows.follow()
            assert not news, "it is the same program"
            return follows.describe()[0]["command"] == "web: worker process"

        deadline("its title is read", is_called_so)
        process.kill()
        follows.close()
