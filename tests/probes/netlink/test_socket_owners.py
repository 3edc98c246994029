"""Who owns a listener and its connections: sockets of this process and of a fork."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from probes.netlink import socket_owners


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("0100007F:2329", ("127.0.0.1", 9001)),
        ("00000000:0050", ("0.0.0.0", 80)),
        ("00000000000000000000000001000000:2329", ("::1", 9001)),
        ("0000000000000000FFFF00000100007F:2329", ("::ffff:127.0.0.1", 9001)),
    ],
)
def test_addresses_of_the_kernel_are_read(text, address):
    if sys.byteorder == "little":
        assert socket_owners.parse_address(text) == address


@pytest.mark.parametrize("by", ["netlink", "proc"])
@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_listener_owner_and_23_connections(family, by, monkeypatch):
    def refused(_: object) -> None:
        raise OSError

    unused = "_listeners_of_proc" if by == "netlink" else "_listeners_by_netlink"
    monkeypatch.setattr(socket_owners, unused, refused)
    host = "127.0.0.1" if family == socket.AF_INET else "::1"
    with socket.create_server((host, 0), family=family, backlog=64) as server:
        port = server.getsockname()[1]
        (found,) = socket_owners.listeners("self", port)
        assert found.takes("127.0.0.1") is (family == socket.AF_INET)
        assert socket_owners.owners([found.inode], [os.getpid(), 1 << 22]) == [os.getpid()]
        ours = [socket.create_connection((host, port)) for _ in range(23)]
        theirs = [server.accept()[0] for _ in range(23)]
        both = set(socket_owners.socket_inodes(os.getpid()))
        assert {os.fstat(sock.fileno()).st_ino for sock in ours + theirs} <= both
        for sock in ours + theirs:
            sock.close()
    assert socket_owners.listeners("self", port) == []


def test_an_inherited_listener_has_two_owners():
    with socket.create_server(("127.0.0.1", 0)) as server:
        fd = server.fileno()
        child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=[fd])
        (found,) = socket_owners.listeners("self", server.getsockname()[1])
        both = [os.getpid(), child.pid]
        assert socket_owners.owners([found.inode], both) == both
        child.communicate()


def test_a_process_that_is_gone():
    assert socket_owners.descriptor_count(1 << 22) == -1
    assert socket_owners.socket_inodes(1 << 22) == []
    assert socket_owners.network_namespace(1 << 22) == 0
    with pytest.raises(OSError, match="No such file"):
        socket_owners.listeners(1 << 22)
