"""Who works behind a server: by what connections lead to, pure and with real sockets."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from contextlib import ExitStack

import pytest

from harness.foreign import backends
from probes.netlink import connection_dump
from probes.netlink.connection_dump import Ends
from probes.netlink.socket_dump import UnixSocket
from probes.netlink.socket_owners import Listener

FRONT, OTHER = 41, 42


def test_a_connection_leads_to_the_listener_of_its_remote_port():
    listeners = [Listener("0.0.0.0", 80, 1), Listener("127.0.0.1", 9002, 2)]
    ends = {
        10: Ends(50_000, "127.0.0.1", 9002),  # to what is behind
        11: Ends(80, "192.0.2.7", 40_000),  # of a client
        12: Ends(50_001, "192.0.2.9", 9_999),  # to another host
        13: Ends(50_002, "127.0.0.1", 80),  # to itself
    }
    found = backends.tcp_behind({1: FRONT, **dict.fromkeys(ends, FRONT)}, listeners, ends)
    assert found == {2: (FRONT, "127.0.0.1", 9002)}


def test_a_unix_socket_leads_to_the_listener_of_its_peers_name():
    listening, open_ = 10, 1
    sockets = [
        UnixSocket(listening, 2, "/run/app.sock", 0, 0, 128),
        UnixSocket(open_, 3, "/run/app.sock", 20, 0, 0),
        UnixSocket(open_, 4, "/run/app.sock", 21, 0, 0),
        UnixSocket(open_, 20, "", 3, 0, 0),
        UnixSocket(open_, 21, "", 4, 0, 0),
    ]
    assert backends.unix_behind({20: FRONT, 21: OTHER}, sockets) == {2: (OTHER, "/run/app.sock", 2)}
    assert backends.unix_behind({20: FRONT, 2: FRONT}, sockets) == {}  # its own


SERVER = """
import socket, sys
server = socket.create_server(("127.0.0.1", 0), backlog=64)
print(server.getsockname()[1], flush=True)
kept = [server.accept() for _ in range(int(sys.argv[1]))]
print("all", flush=True)
sys.stdin.read()
"""
PROXY = """
import socket, sys
port, count = int(sys.argv[1]), int(sys.argv[2])
kept = [socket.create_connection(("127.0.0.1", port)) for _ in range(count)]
print("all", flush=True)
sys.stdin.read()
"""


@pytest.mark.privileged
def test_the_process_behind_a_proxy_is_found_with_its_connections():
    with ExitStack() as started:

        def start(code: str, *words: str) -> subprocess.Popen[str]:
            child = subprocess.Popen(
                [sys.executable, "-c", code, *words],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            started.callback(child.communicate)
            return child

        behind = start(SERVER, "7")
        port = behind.stdout.readline().strip()
        front = start(PROXY, port, "7")
        assert front.stdout.readline() == behind.stdout.readline() == "all\n"
        (found,) = backends.by_connections([front.pid], [])
        assert (found.pid, found.front_pid) == (behind.pid, front.pid)
        assert (found.listens_on, found.connection_count) == (f"127.0.0.1:{port}", 7)
        assert backends.by_connections([front.pid], [behind.pid]) == []


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_both_ends_of_some_connections_are_told(host):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with ExitStack() as opened:
        server = opened.enter_context(socket.create_server((host, 0), family=family, backlog=64))
        port = server.getsockname()[1]
        ours = [opened.enter_context(socket.create_connection((host, port))) for _ in range(5)]
        theirs = [opened.enter_context(server.accept()[0]) for _ in range(4)]
        inodes = {os.fstat(each.fileno()).st_ino: each for each in (server, *ours[:3])}
        found = connection_dump.ends_of("self", inodes)
        wanted = {
            inode: Ends(each.getsockname()[1], host, port)
            for inode, each in inodes.items()
            if each is not server
        }
        assert found == wanted
        # one of five waits for accept: nobody has it
        assert connection_dump.accepted_counts("self", [port, 1]) == {port: len(theirs), 1: 0}


def test_an_ipv4_end_of_a_dual_socket_is_an_ipv4_address():
    with ExitStack() as opened:
        server = opened.enter_context(
            socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
        )
        port = server.getsockname()[1]
        client = opened.enter_context(socket.create_connection(("127.0.0.1", port)))
        accepted = opened.enter_context(server.accept()[0])
        inode = os.fstat(accepted.fileno()).st_ino
        (end,) = connection_dump.ends_of("self", [inode]).values()
        assert end == Ends(port, "127.0.0.1", client.getsockname()[1])


def test_a_process_of_the_tree_counts_by_its_other_listeners():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert [each.pid for each in backends.in_tree([os.getpid()], [])] == [os.getpid()]
        listening = backends.in_tree([os.getpid()], [port])
        assert all(not each.listens_on.endswith(f":{port}") for each in listening)
