"""Where the connections of a server stand, against one that leaves known numbers in each place."""

from __future__ import annotations

import os
import select
import socket

import pytest

from probes.budget.trouble import (
    LEFT_LEAST_COUNT,
    STALLED_NS,
    ClientTrouble,
    LeftTrouble,
    OutsideTrouble,
    PendingTrouble,
)
from probes.contract import live as live_memory
from probes.contract.live import Counter, Live, Phase, Role
from probes.contract.probe import ProcessRef, Target
from probes.netlink import socket_dump
from probes.netlink.socket_dump import InetSocket
from probes.samplers import open_fates
from probes.samplers.open_fates import OpenFatesProbe, count_fates, endpoints, fate_of


def stand(server: socket.socket) -> list[socket.socket]:
    """13 answered, 11 read and unanswered, 7 unread, 5 in the queue."""
    ours = [socket.create_connection(server.getsockname()) for _ in range(13 + 11 + 7)]
    theirs = [server.accept()[0] for _ in ours]
    for number, (client, mine) in enumerate(zip(ours, theirs, strict=True)):
        client.sendall(b"hello")
        if number < 13 + 11:
            assert mine.recv(5) == b"hello"
        if number < 13:
            mine.sendall(b"101")
    return [*ours, *theirs, *(socket.create_connection(server.getsockname()) for _ in range(5))]


def test_connections_are_counted_by_where_they_stand(run):
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        port = server.getsockname()[1]
        kept = stand(server)
        ref = ProcessRef(os.getpid(), "server", 0, is_python=True)
        target = Target(run, {ref.pid: ref}, frozenset({port}), None, is_foreign=True)
        probe = OpenFatesProbe()
        probe.check()
        probe.start(target)
        probe.sample(1)
        probe.sample(2)  # five stand in its queue, and did a moment ago
        probe.stop(10_000_000_001)
        for writer in probe.writers:
            writer.close()
        rows = run.read_table("open_fates").table.to_pylist()
        found = {(r["pid"], r["fate"]): r["socket_count"] for r in rows if r["local_port"] == port}
        me = os.getpid()
        assert found == {
            (0, "unaccepted"): 5,
            (me, "answered"): 13,
            (me, "unanswered"): 11,
            (me, "unread"): 7,
        }
        for each in kept:
            each.close()


@pytest.mark.parametrize(("socket_count", "looks"), [(20_000, 1), (240_000, 0)])
def test_the_last_look_is_left_out_where_it_would_delay_the_end(
    run, monkeypatch, socket_count, looks
):
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        port = server.getsockname()[1]
        ref = ProcessRef(os.getpid(), "server", 0, is_python=True)
        live = Live(live_memory.create(run.path / "live.bin", 1, 1))
        probe = OpenFatesProbe()
        probe.start(Target(run, {ref.pid: ref}, frozenset({port}), live, is_foreign=True))
        monkeypatch.setattr(open_fates, "tcp_sockets_in_use", lambda: socket_count)
        probe.stop(1)
        for writer in probe.writers:
            writer.close()
        assert probe.seen_count == looks


def test_servers_of_our_own_are_not_looked_at(run):
    ref = ProcessRef(os.getpid(), "server", 0, is_python=True)
    probe = OpenFatesProbe()
    probe.start(Target(run, {ref.pid: ref}, frozenset({9001}), None))
    probe.sample(1)
    probe.stop(2)
    for writer in probe.writers:
        writer.close()
        assert writer.row_count == 0


def test_the_only_process_has_what_no_owner_is_known_of():
    each = InetSocket(socket_dump.ESTABLISHED, 80, 5000, "127.0.0.1", 77, 9, 0, 0, 9, 0)
    assert count_fates([each], frozenset({80}), {}, [12])[0][:3] == (12, 80, "unread")
    assert count_fates([each], frozenset({80}), {}, [12, 13])[0][:3] == (0, 80, "unread")
    assert count_fates([each], frozenset({81}), {}, [12]) == []


def test_who_has_been_quiet_and_who_has_left_are_counted():
    sockets = [
        InetSocket(socket_dump.ESTABLISHED, 80, 5000, "", 0, 0, 0, quiet_ms=quiet_ms)
        for quiet_ms in (-1, 0, 999, 1_000, 70_000)
    ]
    sockets += [InetSocket(socket_dump.CLOSE_WAIT, 80, 5000, "", 7, 0, 0, 9, 9)] * 3
    rows = {row[2]: row for row in count_fates(sockets, frozenset({80}), {7: 12}, [12, 13])}
    assert rows["unaccepted"][3:] == (5, 0, 0, 2, 0)
    assert rows["answered"][3:] == (3, 0, 0, 0, 3)


def test_sockets_that_their_clients_have_left_are_trouble_when_they_stay():
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        watch = LeftTrouble({server.getsockname()[1]})
        pairs = []
        for _ in range(LEFT_LEAST_COUNT):
            client = socket.create_connection(server.getsockname())
            pairs.append((client, server.accept()[0]))
        assert not watch.is_seen(0)
        assert not watch.is_seen(3_000_000_000)
        for client, _ in pairs:
            client.close()
        assert not watch.is_seen(6_000_000_000)  # it may close them in a moment
        assert not watch.is_seen(7_000_000_000)  # looked at every three seconds
        assert watch.is_seen(9_000_000_000)
        pairs[0][1].close()
        assert not watch.is_seen(12_000_000_000)
        for _, mine in pairs[1:]:
            mine.close()


def test_how_its_owner_waits_for_a_listener_whose_queue_stands_is_looked_at(run):
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server, select.epoll() as epoll:
        epoll.register(server, select.EPOLLIN | select.EPOLLET)
        port = server.getsockname()[1]
        client = socket.create_connection(server.getsockname())
        ref = ProcessRef(os.getpid(), "server", 0, is_python=True)
        probe = OpenFatesProbe()
        probe.start(Target(run, {ref.pid: ref}, frozenset({port}), None, is_foreign=True))
        for look in range(1, 10):
            probe.sample(look * 10_000_000_000)
        probe.stop(100_000_000_000)
        for writer in probe.writers:
            writer.close()
        rows = run.read_table("listener_watches").table.to_pylist()
        inode = os.fstat(server.fileno()).st_ino
        mine = [row for row in rows if row["socket_inode"] == inode]
        assert {(r["pid"], r["local_port"], r["watch"]) for r in mine} == {
            (os.getpid(), port, "edge")
        }
        assert len(mine) == 4  # and not at every look: its owner's events wait meanwhile
        client.close()


def test_a_socket_to_port_53_is_a_name_server():
    name = InetSocket(socket_dump.ESTABLISHED, 4000, 53, "192.0.2.1", 5, 0, 0)
    own = InetSocket(socket_dump.ESTABLISHED, 80, 4001, "127.0.0.1", 6, 0, 0)
    found = endpoints([name, own], [], frozenset({80}))
    assert (found[5].kind, found[5].address) == ("name_server", "192.0.2.1:53")
    assert found[6].kind == "own_connection"


def test_trouble_is_a_failure_or_a_standstill_of_our_clients(new_live, occupy):
    live, _ = new_live(1)
    occupy(live, 0, Role.CLIENT, 4711)
    slot = live.slot(0)
    from probes.contract.live import Header

    live.header[Header.PHASE] = Phase.RAMP
    watch = ClientTrouble(live)
    assert not watch.is_seen(1)
    slot[Counter.IN_FLIGHT_COUNT] = 3
    assert not watch.is_seen(STALLED_NS)
    assert watch.is_seen(1 + STALLED_NS)
    slot[Counter.ESTABLISHED_TOTAL] = 1
    assert not watch.is_seen(2 + STALLED_NS)
    slot[Counter.FAILED_TOTAL] = 1
    assert watch.is_seen(3 + STALLED_NS)


def test_trouble_from_outside_is_a_queue_that_stands():
    with socket.create_server(("127.0.0.1", 0), backlog=8) as server:
        watch = OutsideTrouble({server.getsockname()[1]})
        assert not watch.is_seen(0)
        client = socket.create_connection(server.getsockname())
        assert not watch.is_seen(1)  # it may be accepted in a moment
        assert watch.is_seen(2)
        server.accept()[0].close()
        assert not watch.is_seen(3)
        client.close()


@pytest.mark.parametrize("role", ["backend", "server"])
def test_a_queue_of_who_works_behind_the_server_is_trouble_too(run, role):
    """A proxy that ends TLS takes whoever comes, and has answered each: it has no queue itself."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        port = server.getsockname()[1]
        ref = ProcessRef(os.getpid(), role, 0, is_python=True)
        probe = OpenFatesProbe()
        probe.start(Target(run, {ref.pid: ref}, frozenset({1}), None, is_foreign=True))
        clients = [socket.create_connection(server.getsockname()) for _ in range(3)]
        for second in range(4):
            probe.sample(second * 10**9)
        for writer in probe.writers:
            writer.close()
        rows = run.read_table("open_fates").table.to_pylist()
        waiting = [r["socket_count"] for r in rows if r["local_port"] == port]
        assert (3 in waiting) is (role == "backend")
        for client in clients:
            client.close()


def test_requests_without_an_answer_are_trouble_when_they_stay(run):
    """Beside a server with its own clients, whose queue is empty: it takes all and answers some."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        port = server.getsockname()[1]
        ours = [socket.create_connection(server.getsockname()) for _ in range(20)]
        theirs = [server.accept()[0] for _ in ours]
        watch = PendingTrouble({port}, lambda each: fate_of(each) in ("unread", "unanswered"))
        assert not watch.is_seen(0)
        for client in ours:
            client.sendall(b"hello")
        at_ns, far_ns = 0, 10**12
        assert not watch.is_seen(at_ns := at_ns + far_ns)  # they may have their answers in a moment
        assert watch.is_seen(at_ns := at_ns + far_ns)
        assert watch.is_seen(at_ns + 1), "what it found stands until it looks again"
        ref = ProcessRef(os.getpid(), "server", 0, is_python=True)
        probe = OpenFatesProbe()
        probe.start(Target(run, {ref.pid: ref}, frozenset({port}), None, is_foreign=True))
        probe.sample(1)
        probe.sample(1 + far_ns)
        for writer in probe.writers:
            writer.close()
        rows = run.read_table("open_fates").table.to_pylist()
        assert sum(r["socket_count"] for r in rows if r["local_port"] == port) == 20
        for mine in theirs:
            mine.sendall(b"101")
        assert not watch.is_seen(at_ns + far_ns)
        for each in (*ours, *theirs):
            each.close()


def test_the_end_of_a_peer_that_gave_up_is_no_request_that_lies_unread():
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        mine = server.accept()[0]
        client.sendall(b"hello")
        assert mine.recv(5) == b"hello"
        client.close()
        while mine.recv(1, socket.MSG_PEEK):
            pass  # until its FIN is there
        (row,) = [
            each
            for each in socket_dump.tcp_sockets(local_port=server.getsockname()[1])
            if each.state == socket_dump.CLOSE_WAIT
        ]
        assert row.receive_queue_bytes == 1, "the kernel counts it"
        assert fate_of(row) == "unanswered"
        mine.close()
