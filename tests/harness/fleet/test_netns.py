"""The run's own network namespace, and the connection tracking table that is filled in it."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from harness.faults import conntrack_fill
from harness.fleet import netns
from probes.contract.errors import HostError

pytestmark = pytest.mark.privileged

LOOPBACK = "127.0.0.1"


@pytest.fixture
def make():
    """Makes namespaces; all are gone after the test."""
    fds = []

    def create(sysctls=None):
        fds.append(netns.create(sysctls or {}))
        return fds[-1]

    yield create
    for fd in fds:
        os.close(fd)


def read(name):
    return Path("/proc/sys/net", name).read_text().split()


def test_settings_are_the_namespaces_alone(make):
    before = read("core/somaxconn")
    fd = make({"net/core/somaxconn": "1009"})
    with netns.inside(fd):
        assert read("core/somaxconn") == ["1009"]
    assert read("core/somaxconn") == before


def test_inside_comes_back_after_an_error(make):
    home = Path("/proc/thread-self/ns/net").stat().st_ino
    with pytest.raises(FileNotFoundError), netns.inside(make()):
        read("ipv4/no_such_setting")
    assert Path("/proc/thread-self/ns/net").stat().st_ino == home


@pytest.mark.parametrize("name", ["net/ipv4/tcp_no_such_setting", "net/ipv4/tcp_mem"])
def test_a_setting_that_no_namespace_has_is_refused(name):
    with pytest.raises(HostError, match=name.replace("/", ".")) as error:
        netns.create({name: "1"})
    assert name.replace("/", ".") in error.value.fix


def test_a_value_that_the_kernel_refuses_is_said(make):
    with pytest.raises(HostError, match="refused"):
        make({"net/core/somaxconn": "many"})


def test_the_full_table_takes_as_many_connections_as_it_was_told_and_the_host_has_its_own(make):
    fd = make()
    with netns.inside(fd):
        held = conntrack_fill.fill(free_count=23)
        assert held == int(conntrack_fill.MAX.read_text()) - 23
        with socket.create_server((LOOPBACK, 9000), backlog=100):
            clients = [socket.socket() for _ in range(24)]
            try:
                for client in clients[:23]:
                    client.settimeout(20)
                    client.connect((LOOPBACK, 9000))
                clients[23].settimeout(0.2)
                with pytest.raises(TimeoutError):
                    clients[23].connect((LOOPBACK, 9000))
            finally:
                for client in clients:
                    client.close()
    assert int(conntrack_fill.COUNT.read_text()) < held


def test_what_is_filled_already_is_not_filled_again(make):
    with netns.inside(make()):
        most = int(conntrack_fill.MAX.read_text())
        assert conntrack_fill.fill(free_count=most - 1009) == 1009
        assert conntrack_fill.fill(free_count=most - 1000) == 1009
