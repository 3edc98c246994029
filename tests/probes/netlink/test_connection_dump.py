"""All connections of a namespace by netlink, against /proc/net/tcp and what this test opened."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probes.netlink import connection_dump, inet_diag
from probes.netlink.connection_dump import Connections

HOSTS = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}


def inode_of(opened: socket.socket) -> int:
    return os.fstat(opened.fileno()).st_ino


@pytest.fixture(params=["netlink", "proc"])
def look_at(request, monkeypatch):
    def refused(*_: object) -> None:
        raise OSError

    unused = {"netlink": "_by_proc", "proc": "_by_netlink"}[request.param]
    monkeypatch.setattr(connection_dump, unused, refused)
    return connection_dump.look_at


@pytest.mark.parametrize("family", HOSTS)
def test_23_connections_are_told_from_their_other_ends(look_at, family):
    with ExitStack() as opened:
        server = opened.enter_context(
            socket.create_server((HOSTS[family], 0), family=family, backlog=64)
        )
        address = server.getsockname()[:2]
        ours = [opened.enter_context(socket.create_connection(address)) for _ in range(25)]
        theirs = [opened.enter_context(server.accept()[0]) for _ in range(23)]
        wanted = {inode_of(each) for each in (server, *ours, *theirs)}
        found = look_at(["self"], wanted, [address[1]])
        assert found.count == 23  # two wait for accept, and the listener is none
        assert found.inodes == {inode_of(each) for each in theirs}
        assert found.outward_inodes == {inode_of(each) for each in ours}
        several = look_at(["self"], wanted, [1, address[1]])
        assert several == found
        nobody = look_at(["self"], {inode_of(ours[0])}, [address[1]])
        assert (nobody.inodes, nobody.outward_inodes) == (set(), {inode_of(ours[0])})


def test_both_ways_say_the_same_of_hundreds(monkeypatch):
    with ExitStack() as opened:
        server = opened.enter_context(socket.create_server(("127.0.0.1", 0), backlog=512))
        port = server.getsockname()[1]
        ours = [
            opened.enter_context(socket.create_connection(server.getsockname())) for _ in range(400)
        ]
        theirs = [opened.enter_context(server.accept()[0]) for _ in range(400)]
        wanted = {inode_of(each) for each in (*ours, *theirs)}
        by_netlink = connection_dump.look_at(["self"], wanted, [port])
        assert by_netlink.count == len(by_netlink.inodes) == len(by_netlink.outward_inodes) == 400

        def refused(*_: object) -> None:
            raise OSError

        monkeypatch.setattr(connection_dump, "_by_netlink", refused)
        assert connection_dump.look_at(["self"], wanted, [port]) == by_netlink


@pytest.mark.privileged
def test_a_namespace_of_another_process_is_entered_and_left():
    code = (
        "import socket, sys, fcntl, struct\n"
        "with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:\n"
        "    fcntl.ioctl(control, 0x8914, struct.pack('16sh14x', b'lo', 0x41))\n"
        "server = socket.create_server(('127.0.0.1', 9001), backlog=64)\n"
        "kept = [socket.create_connection(server.getsockname()) for _ in range(7)]\n"
        "kept += [server.accept() for _ in range(7)]\n"
        "print('ready', flush=True); sys.stdin.read()\n"
    )
    words = ["unshare", "--net", sys.executable, "-c", code]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout.readline() == "ready\n"
        before = os.stat("/proc/self/ns/net").st_ino
        assert connection_dump.look_at([child.pid], (), [9001]).count == 7
        assert connection_dump.look_at(["self"], (), [9001]).count != 7
        assert os.stat("/proc/self/ns/net").st_ino == before
        child.communicate("")
    assert connection_dump.look_at([child.pid], (), [9001]) == Connections()  # it is gone


def message(kind: int, length: int, filler: int) -> bytes:
    return struct.pack("=IHHII", length, kind, 2, 1, 0) + bytes([filler]) * (length - 16)


@given(st.lists(st.tuples(st.sampled_from([20, 3]), st.sampled_from([20, 88, 96, 104]),
                          st.integers(0, 255)), max_size=30))  # fmt: skip
def test_runs_of_like_messages_are_all_of_them_in_order(parts):
    text = bytearray(b"".join(message(*each) for each in parts))
    runs = list(inet_diag.equal_messages(text, len(text)))
    assert [end for _, _, end in runs[:-1]] == [start for _, start, _ in runs[1:]]
    assert sum(end - start for _, start, end in runs) == len(text)
    lengths = [length for length, start, end in runs for _ in range((end - start) // length)]
    assert lengths == [length for _, length, _ in parts]


@given(st.binary(max_size=200))
def test_a_message_that_is_cut_ends_the_look(data):
    for length, start, end in inet_diag.equal_messages(bytearray(data), len(data)):
        assert length >= 16
        assert 0 <= start < end <= len(data)
