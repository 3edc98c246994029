"""TCP events and snapshots in a network namespace of this test, where every number is known."""

import ctypes
import os
import select
import socket
import struct
import subprocess
import time
from collections import Counter

import numpy as np
import pytest

from probes.bpf_loader import syscalls as bpf_kernel
from probes.bpf_loader.program import BpfObject
from probes.contract.clock import NS_PER_S, now_ns
from probes.contract.errors import ProbeUnavailableError
from probes.contract.probe import ProcessRef, Target
from probes.contract.rundir import RunDir
from probes.ebpf import base as bpf_probe
from probes.ebpf import shared as bpf_shared
from probes.ebpf import sources as bpf_sources
from probes.ebpf import tcp_snapshot
from probes.ebpf.tcp_events import TcpEventsProbe, drop_reason, short_names
from probes.ebpf.tcp_iterator import TcpIterator
from probes.ebpf.tcp_snapshot import TcpSnapshotProbe, next_pause_ns
from probes.netlink import sock_diag
from probes.netlink.socket_snapshot import Snapshot, dotted

PORT, QUEUE_PORT, FULL_PORT, CLOSED_PORT, MUTE_PORT = 9000, 9001, 9002, 9003, 9004
CONNECTIONS, UNREAD_BYTES = 23, 1009
CLONE_NEWNET, SO_MEMINFO = 0x40000000, 55


def enter_namespace(fd=None):
    """Into the namespace of fd, or a new one."""
    libc = ctypes.CDLL(None, use_errno=True)
    done = libc.unshare(CLONE_NEWNET) if fd is None else libc.setns(fd, CLONE_NEWNET)
    assert done == 0, os.strerror(ctypes.get_errno())


def meminfo(sock):
    """rmem_alloc, rcvbuf, wmem_alloc, sndbuf, fwd_alloc, wmem_queued, optmem, backlog, drops."""
    raw = sock.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, 36)
    return struct.unpack("=9I", raw)


def connect_without_waiting(port):
    sock = socket.socket()
    sock.setblocking(False)
    sock.connect_ex(("127.0.0.1", port))
    return sock


@pytest.fixture(scope="module", params=["iterator", "helper", "sock_diag"])
def recorded(request, tmp_path_factory):
    host_fd = os.open("/proc/self/ns/net", os.O_RDONLY)
    enter_namespace()
    run = RunDir(tmp_path_factory.mktemp("run"))
    events, snapshot = TcpEventsProbe(), TcpSnapshotProbe()
    sockets = []
    if request.param == "sock_diag":
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(bpf_probe, "check_bpf", refuse_bpf)
            snapshot.check()
    patch = pytest.MonkeyPatch()
    if request.param == "helper":
        patch.setattr(BpfObject, "attach_iterator", refuse_once(BpfObject.attach_iterator))
    try:
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        open_halfway(sockets)  # before the events are watched
        ports = frozenset({PORT, QUEUE_PORT, FULL_PORT, CLOSED_PORT})
        own = ProcessRef(os.getpid(), "server", 0, is_python=True)
        target = Target(run, {own.pid: own}, ports, None)
        for probe in (events, snapshot):
            probe.prepare()
            probe.start(target)
        facts = provoke(snapshot, sockets, host_fd)
        facts["notes"] = target.notes
    finally:
        patch.undo()
        for probe in (snapshot, events):
            probe.stop(now_ns())
            for writer in probe.writers:
                writer.close()
        for sock in sockets:
            sock.close()
        enter_namespace(host_fd)
        os.close(host_fd)
    facts["tables"] = {
        name: run.read_table(name).table.to_pylist() for name in events.tables + snapshot.tables
    }
    facts["lost"] = (events.lost_count, snapshot.lost_count)
    facts["note"] = snapshot.note
    facts["source"] = request.param
    facts["seen"] = (events.seen_count, snapshot.seen_count)
    return facts


def refuse_once(real):
    refused = []

    def attach(self, name):
        if not refused:
            refused.append(name)
            raise ProbeUnavailableError("the kernel refused the program", fix="a newer kernel")
        return real(self, name)

    return attach


def refuse_bpf():
    raise ProbeUnavailableError("eBPF needs root", fix="run it with sudo")


def open_halfway(sockets):
    """With TCP_DEFER_ACCEPT, who connects and says nothing is half open (tcp_check_req)."""
    mute = socket.create_server(("127.0.0.1", MUTE_PORT), backlog=64)
    mute.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 60)
    sockets.append(mute)
    sockets += [socket.create_connection(("127.0.0.1", MUTE_PORT)) for _ in range(3)]


def provoke(snapshot, sockets, host_fd):
    facts = {}
    listener = socket.create_server(("127.0.0.1", PORT), backlog=64)
    queue = socket.create_server(("127.0.0.1", QUEUE_PORT), backlog=7)
    sockets += [listener, queue]
    facts["listener_inode"] = os.fstat(listener.fileno()).st_ino
    pairs = []
    for _ in range(CONNECTIONS):
        client = socket.create_connection(("127.0.0.1", PORT))
        pairs.append((client, listener.accept()[0]))
    sockets += [sock for pair in pairs for sock in pair]
    sockets += [socket.create_connection(("127.0.0.1", QUEUE_PORT)) for _ in range(5)]

    # the same in the host's namespace, which is not the run's
    own_fd = os.open("/proc/self/ns/net", os.O_RDONLY)
    enter_namespace(host_fd)
    with socket.create_server(("127.0.0.1", 0)) as foreign:
        for _ in range(3):
            socket.create_connection(foreign.getsockname()).close()
    enter_namespace(own_fd)
    os.close(own_fd)

    pairs[0][0].sendall(bytes(UNREAD_BYTES))
    poll = select.poll()
    poll.register(pairs[0][1], select.POLLIN)
    assert poll.poll(5000)
    snapshot.snapshot_now()
    facts["meminfo"] = {
        "server": [meminfo(server) for _, server in pairs],
        "client": [meminfo(client) for client, _ in pairs],
    }

    # a reset that the server sends
    client, server = pairs[-1]
    server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    server.close()
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", CLOSED_PORT))

    # a socket whose own receive buffer is full
    with open("/proc/sys/net/ipv4/ping_group_range", "w") as stream:  # of this namespace
        stream.write("0 0")
    ping = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP)
    sockets.append(ping)
    ping.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    for _ in range(200):
        ping.sendto(b"\x08" + bytes(1007), ("127.0.0.1", 0))  # echo request; replies queue up
    facts["drops"] = meminfo(ping)[8]

    # an accept queue that is full: the third SYN is dropped and sent again
    full = socket.create_server(("127.0.0.1", FULL_PORT), backlog=1)
    sockets.append(full)
    sockets += [connect_without_waiting(FULL_PORT) for _ in range(3)]
    deadline = time.monotonic() + 60
    while not retransmitted_segments():
        assert time.monotonic() < deadline, "no retransmit"
        time.sleep(0.05)
    return facts


def retransmitted_segments():
    """What the kernel counts in this namespace."""
    with open("/proc/thread-self/net/snmp") as stream:
        lines = [line.split() for line in stream if line.startswith("Tcp:")]
    return int(dict(zip(*lines, strict=True))["RetransSegs"])


def total(rows, value, **where):
    return sum(row[value] for row in rows if all(row[k] == v for k, v in where.items()))


@pytest.mark.privileged
def test_the_health_row_says_who_listed_the_sockets(recorded):
    expected = {
        "iterator": "",
        "helper": "the sockets were read by helper: the kernel refused the program",
        "sock_diag": "the sockets were listed by sock_diag: eBPF needs root",
    }
    assert recorded["note"] == expected[recorded["source"]]


def test_every_connection_made_its_transitions(recorded):
    rows = recorded["tables"]["tcp_state_transitions"]
    accepted = CONNECTIONS + 5
    opened = total(
        rows, "event_count", side="client", old_state="SYN_SENT", new_state="ESTABLISHED"
    )
    # two of the three connects to the full listener get through as well
    assert opened == accepted + 2
    taken = total(rows, "event_count", side="server", old_state="SYN_RECV", new_state="ESTABLISHED")
    assert taken == opened
    listening = total(rows, "event_count", side="server", old_state="CLOSE", new_state="LISTEN")
    assert listening == 3


@pytest.mark.privileged
def test_other_namespaces_do_not_count(recorded):
    rows = recorded["tables"]["tcp_state_transitions"]
    assert total(rows, "event_count", side="other") == 0


@pytest.mark.privileged
def test_a_reset_is_seen_from_both_ends_with_its_side(recorded):
    rows = recorded["tables"]["tcp_resets"]
    assert total(rows, "event_count", direction="rx", side="client", state="ESTABLISHED") == 1
    sent = [row for row in rows if row["direction"] == "tx" and row["side"] == "server"]
    assert sum(row["event_count"] for row in sent) == 2  # one by SO_LINGER, one by the closed port
    assert total(sent, "event_count", reason="NO_SOCKET", state="") == 1


@pytest.mark.privileged
def test_a_refused_connect_is_a_reset_in_syn_sent(recorded):
    rows = recorded["tables"]["tcp_resets"]
    assert total(rows, "event_count", direction="rx", side="client", state="SYN_SENT") == 1


@pytest.mark.privileged
def test_a_full_receive_buffer_is_counted_exactly(recorded):
    rows = recorded["tables"]["socket_pressure"]
    assert recorded["drops"] > 0
    assert total(rows, "event_count", kind="rcvqueue_full") == recorded["drops"]
    assert all(0 < row["first_ns"] <= row["at_ns"] for row in rows)
    drops = recorded["tables"]["skb_drops"]
    named = {"reason": "SOCKET_RCVBUFF", "namespace_known": 1, "of_server": 0}
    assert total(drops, "event_count", **named) == recorded["drops"]


@pytest.mark.privileged
def test_a_drop_names_reason_and_function(recorded):
    drops = recorded["tables"]["skb_drops"]
    named = {"reason": "NO_SOCKET", "location": "tcp_v4_rcv", "of_server": 1}
    assert total(drops, "event_count", **named) == 1


@pytest.mark.privileged
def test_a_syn_that_a_full_listener_drops_is_retransmitted(recorded):
    rows = recorded["tables"]["tcp_retransmits"]
    assert total(rows, "event_count", side="client", state="SYN_SENT") >= 1


@pytest.mark.privileged
def test_nothing_was_lost_and_every_tracepoint_is_there(recorded):
    assert recorded["lost"] == (0, 0)
    tables = recorded["tables"]
    counted = total(tables["tcp_resets"], "event_count") + total(tables["skb_drops"], "event_count")
    in_groups = sum(row["ports_used_count"] for row in tables["port_groups"])
    assert recorded["seen"] == (counted, in_groups)
    assert recorded["notes"] == []


def first_snapshot(rows):
    at_ns = min(row["at_ns"] for row in rows)
    return [row for row in rows if row["at_ns"] == at_ns]


@pytest.mark.privileged
def test_states_hold_every_socket(recorded):
    rows = first_snapshot(recorded["tables"]["tcp_states"])
    found = Counter({(row["side"], row["state"]): row["socket_count"] for row in rows})
    assert found["server", "ESTABLISHED"] == found["client", "ESTABLISHED"] == CONNECTIONS + 5
    assert found["server", "LISTEN"] == 2


@pytest.mark.privileged
def test_socket_memory_is_what_the_sockets_say_themselves(recorded):
    rows = first_snapshot(recorded["tables"]["socket_memory"])
    server = next(r for r in rows if (r["side"], r["state"]) == ("server", "ESTABLISHED"))
    info = recorded["meminfo"]["server"]
    assert server["rmem_alloc_bytes"] == sum(each[0] for each in info) >= UNREAD_BYTES
    assert server["rmem_alloc_max_bytes"] == max(each[0] for each in info)
    assert server["wmem_queued_bytes"] == sum(each[5] for each in info)
    assert server["wmem_alloc_bytes"] == sum(each[2] for each in info)
    # five more in the accept queue have no socket to ask: their limits are those of the others
    assert server["rcvbuf_bytes"] > sum(each[1] for each in info)
    client = next(r for r in rows if (r["side"], r["state"]) == ("client", "ESTABLISHED"))
    assert client["socket_count"] == CONNECTIONS + 5
    assert client["rmem_alloc_bytes"] == sum(each[0] for each in recorded["meminfo"]["client"])


@pytest.mark.privileged
def test_socket_traffic_is_what_was_sent(recorded):
    rows = {row["side"]: row for row in first_snapshot(recorded["tables"]["socket_traffic"])}
    assert rows["server"]["socket_count"] == CONNECTIONS + 5
    for side, way in (("client", "tx"), ("server", "rx")):
        assert rows[side][f"{way}_bytes_total"] == UNREAD_BYTES
        assert rows[side][f"{way}_segments_total"] == 1
    assert rows["server"]["tx_bytes_total"] == rows["client"]["rx_bytes_total"] == 0


@pytest.mark.privileged
def test_a_listener_shows_its_queue_and_backlog(recorded):
    rows = {row["local_port"]: row for row in first_snapshot(recorded["tables"]["listeners"])}
    waiting = rows[QUEUE_PORT]
    assert (waiting["accept_queue_count"], waiting["backlog_count"]) == (5, 7)
    assert waiting["local_address"] == "127.0.0.1"
    assert (rows[PORT]["accept_queue_count"], rows[PORT]["backlog_count"]) == (0, 64)
    assert rows[PORT]["socket_inode"] == recorded["listener_inode"]


@pytest.mark.privileged
def test_port_groups_count_the_ports_in_use(recorded):
    rows = first_snapshot(recorded["tables"]["port_groups"])
    low, high = map(int, tcp_snapshot.PORT_RANGE.read_text().split())
    (group,) = [row for row in rows if row["destination_port"] == PORT]
    assert group["ports_used_count"] == CONNECTIONS
    assert (group["source_address"], group["destination_address"]) == ("127.0.0.1", "127.0.0.1")
    assert (group["range_low_port"], group["range_high_port"]) == (low, high)


@pytest.mark.privileged
def test_the_last_snapshot_is_taken_at_stop(recorded):
    rows = recorded["tables"]["listeners"]
    last_ns = max(row["at_ns"] for row in rows)
    queue = {row["local_port"]: row for row in rows if row["at_ns"] == last_ns}[FULL_PORT]
    assert (queue["accept_queue_count"], queue["backlog_count"]) == (2, 1)
    assert queue["dropped_total"] >= 1  # the third SYN


@pytest.mark.privileged
def test_a_listener_counts_its_half_open_connections(recorded):
    rows = first_snapshot(recorded["tables"]["listeners"])
    half_open = {row["local_port"]: row["syn_queue_count"] for row in rows}
    assert half_open == {PORT: 0, QUEUE_PORT: 0, MUTE_PORT: 3}


@pytest.mark.privileged
def test_a_listener_names_its_owner(recorded):
    rows = recorded["tables"]["listener_owners"]
    assert recorded["listener_inode"] in {row["socket_inode"] for row in rows}
    assert {row["pid"] for row in rows} == {os.getpid()}
    assert len(rows) == 3  # of the listeners of the first snapshot, once


@pytest.mark.parametrize(
    ("cost_ns", "pause_ns"),
    [(0, 10**9), (10**7, 2 * 10**9), (10**8, 20 * 10**9), (10**10, 30 * 10**9)],
)
def test_snapshots_stay_under_half_a_percent_of_a_core(cost_ns, pause_ns):
    assert next_pause_ns(cost_ns) == pause_ns


@pytest.mark.parametrize(("stretch", "pause_ns"), [(1.0, 3 * 10**9), (4.0, 12 * 10**9)])
def test_snapshots_of_a_server_in_service_come_as_far_apart_as_all_else(stretch, pause_ns):
    assert next_pause_ns(3 * 10**6, is_sparing=True, stretch=stretch) == pause_ns


def test_addresses_of_both_families():
    words = struct.unpack("=4I", socket.inet_pton(socket.AF_INET6, "2001:db8::1"))
    assert dotted(words, socket.AF_INET6) == "2001:db8::1"
    words = struct.unpack("=4I", socket.inet_pton(socket.AF_INET, "127.0.0.7") + bytes(12))
    assert dotted(words, socket.AF_INET) == "127.0.0.7"


def test_drop_reasons_of_the_core_and_of_subsystems():
    names = short_names({"SKB_DROP_REASON_NOMEM": 81, "SKB_CONSUMED": 1}, "SKB_DROP_REASON_")
    assert drop_reason(names, 81) == "NOMEM"
    assert drop_reason(names, 5000) == "REASON_5000"
    assert drop_reason(names, 0x20003) == "SUBSYSTEM_2_3"


def test_the_walk_gives_the_core_away(monkeypatch):
    monkeypatch.setattr(bpf_sources, "BREATH_SOCKETS", 10)
    target = Target(None, {}, frozenset(), None)
    loaded = bpf_shared.load([bpf_sources.tcp_snapshot])
    reads = []
    real = os.read
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        address = listener.getsockname()
        pairs = [(socket.create_connection(address), listener.accept()[0]) for _ in range(23)]
        bpf_shared.aim(loaded, target, [])
        iterator = TcpIterator(loaded)
        try:
            monkeypatch.setattr(
                bpf_kernel.os, "read", lambda fd, size: reads.append(size) or real(fd, size)
            )
            seen = iterator.read()
        finally:
            monkeypatch.setattr(bpf_kernel.os, "read", real)
            iterator.close()
            loaded.close()
            for sock in (sock for pair in pairs for sock in pair):
                sock.close()
    sockets_count = int(seen.sums["sockets"].sum())
    assert sockets_count >= 47
    assert len(reads) == sockets_count // 10 + len(seen.listeners) + 1
    assert address[1] in {each.port for each in seen.listeners}


@pytest.fixture
def own_namespace():
    """A network namespace without a socket, for this test."""
    host_fd = os.open("/proc/self/ns/net", os.O_RDONLY)
    enter_namespace()
    try:
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        yield
    finally:
        enter_namespace(host_fd)
        os.close(host_fd)


@pytest.mark.parametrize(("kind", "asked_count"), [("iterator", 2), ("sock_diag", 1)])
@pytest.mark.usefixtures("own_namespace")
def test_a_walk_that_is_given_up_tells_nothing_and_the_next_one_all(kind, asked_count, monkeypatch):
    monkeypatch.setattr(bpf_sources, "BREATH_SOCKETS", 10)
    loaded = bpf_shared.load([bpf_sources.tcp_snapshot])
    bpf_shared.aim(loaded, Target(None, {}, frozenset(), None), [])
    reader = TcpIterator(loaded) if kind == "iterator" else sock_diag.SockDiag(())
    asked = []

    def is_enough():
        asked.append(True)
        return len(asked) == asked_count

    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        address = listener.getsockname()
        pairs = [(socket.create_connection(address), listener.accept()[0]) for _ in range(23)]
        try:
            assert reader.read(is_enough) is None
            seen = reader.read()
        finally:
            reader.close()
            loaded.close()
            for sock in (sock for pair in pairs for sock in pair):
                sock.close()
    assert seen is not None
    assert int(seen.sums["sockets"].sum()) == 47, "nothing is counted twice"
    assert [each.port for each in seen.listeners] == [address[1]]


class Walker:
    """A reader of sockets that takes as long as it is told, and ends when that is enough."""

    def __init__(self, clock):
        self.clock, self.walks, self.takes_ns = clock, [], 0

    def read(self, is_enough):
        is_ended = is_enough()
        self.walks.append("given up" if is_ended else "whole")
        self.clock[0] += self.takes_ns
        return None if is_ended else Snapshot(np.zeros((2, 0), dtype=np.int64), [], [], 0)

    def close(self):
        pass


@pytest.fixture
def walked(monkeypatch, tmp_path):
    """A probe that lists sockets by a ``Walker``, and its target."""
    clock = [NS_PER_S]
    monkeypatch.setattr(tcp_snapshot, "now_ns", lambda: clock[0])
    probe, target = TcpSnapshotProbe(), Target(RunDir(tmp_path), {}, frozenset(), None)
    (tmp_path / "raw").mkdir()
    walker = Walker(clock)
    monkeypatch.setattr(tcp_snapshot, "SockDiag", lambda ports: walker)
    probe._instead = "as a test wants it"
    probe.start(target)
    return probe, target, walker, clock


def test_a_walk_ends_when_somebody_waits_for_the_probes_to_stop(walked):
    probe, target, walker, clock = walked
    probe.sample(clock[0])
    target.is_stop_asked = lambda: True
    probe.snapshot_now()
    assert walker.walks == ["whole", "given up"]


@pytest.mark.parametrize(("takes_s", "is_left_out"), [(1, False), (15, True)])
def test_the_last_walk_is_left_out_where_it_would_take_what_others_need(
    walked, takes_s, is_left_out
):
    probe, target, walker, clock = walked
    walker.takes_ns = takes_s * NS_PER_S
    probe.snapshot_now()
    target.is_stop_asked = lambda: True
    target.stop_by_ns = clock[0] + 6 * NS_PER_S
    probe.stop(clock[0])
    assert walker.walks == (["whole"] if is_left_out else ["whole", "whole"])
    assert ("no last look at all sockets, which takes 15 s here" in probe.note) is is_left_out


def test_a_kernel_that_lists_no_sockets_says_what_would_help(monkeypatch):
    def fail(buffer, at):
        raise OSError(2, "No such file or directory")

    monkeypatch.setattr(sock_diag, "_is_last", fail)
    with pytest.raises(ProbeUnavailableError, match="sock_diag") as caught:
        sock_diag.SockDiag(())
    assert "tcp_diag" in caught.value.fix


def test_snapshots_of_a_million_sockets_of_a_server_in_service_are_minutes_apart():
    assert next_pause_ns(3 * 10**9, is_sparing=True) == 600 * 10**9
    assert next_pause_ns(10**8, is_sparing=True) == 100 * 10**9
