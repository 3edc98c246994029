"""How a process waits for its listeners, against epolls of this process."""

from __future__ import annotations

import os
import select
import socket

import pytest

from probes.proc.epoll_watch import watches


def inode(each: socket.socket) -> int:
    return os.fstat(each.fileno()).st_ino


@pytest.mark.parametrize(
    ("mask", "watch"),
    [
        (select.EPOLLIN, "level"),
        (select.EPOLLIN | select.EPOLLEXCLUSIVE, "level"),
        (select.EPOLLIN | select.EPOLLET, "edge"),
        (0, "off"),
        (None, "none"),
    ],
)
def test_a_listener_is_watched_as_its_epoll_says(mask, watch):
    with socket.create_server(("127.0.0.1", 0)) as server, select.epoll() as epoll:
        other = socket.create_server(("127.0.0.1", 0))
        epoll.register(other, select.EPOLLIN)
        if mask is not None:
            epoll.register(server, mask)
        found = watches(os.getpid(), [epoll.fileno()], [inode(server)])
        assert found == {inode(server): watch}
        other.close()


def test_of_two_epolls_the_one_that_tells_more_often_counts():
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        select.epoll() as first,
        select.epoll() as second,
    ):
        first.register(server, select.EPOLLIN)
        second.register(server, select.EPOLLIN | select.EPOLLET)
        found = watches(os.getpid(), [second.fileno(), first.fileno()], [inode(server)])
        assert found == {inode(server): "level"}


def test_of_a_process_whose_epoll_cannot_be_read_nothing_is_known():
    assert watches(os.getpid(), [], [7]) == {}
    assert watches(0, [3], [7]) == {}
