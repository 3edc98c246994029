"""Sockets by netlink, against sockets of this process with known queues and bytes."""

from __future__ import annotations

import os
import socket

from probes.netlink import socket_dump


def inode(connection: socket.socket) -> int:
    return os.fstat(connection.fileno()).st_ino


def test_queues_inodes_and_bytes_of_both_ends_are_those_of_the_sockets():
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        port = server.getsockname()[1]
        ours = [socket.create_connection(("127.0.0.1", port)) for _ in range(7)]
        theirs = [server.accept()[0] for _ in range(4)]
        ours[0].sendall(b"x" * 1009)
        theirs[1].sendall(b"y" * 23)
        found = socket_dump.tcp_sockets(local_port=port)
        by_inode = {each.inode: each for each in found}
        listener = by_inode[inode(server)]
        assert listener.state == socket_dump.LISTEN
        assert (listener.receive_queue_bytes, listener.send_queue_bytes) == (3, 64)
        first, second = by_inode[inode(theirs[0])], by_inode[inode(theirs[1])]
        assert (first.receive_queue_bytes, first.bytes_received, first.bytes_sent) == (
            1009,
            1009,
            0,
        )
        assert (second.bytes_sent, second.bytes_received) == (23, 0)
        assert first.remote_port == ours[0].getsockname()[1]
        assert first.remote_address == "127.0.0.1"
        # those that nobody accepted belong to no process
        waiting = [e for e in found if e.state == socket_dump.ESTABLISHED and not e.inode]
        assert len(waiting) == 3
        for each in (*ours, *theirs):
            each.close()


def test_a_peer_that_does_not_read_leaves_data_unsent():
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        mine = server.accept()[0]
        mine.setblocking(False)
        try:
            while True:
                mine.send(b"z" * 65536)
        except BlockingIOError:
            pass
        (seen,) = [e for e in socket_dump.tcp_sockets() if e.inode == inode(mine)]
        assert seen.not_sent_bytes > 0
        assert seen.send_queue_bytes >= seen.not_sent_bytes
        client.close()
        mine.close()


def test_unix_sockets_have_their_path_their_peer_and_the_queue(tmp_path):
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen(5)
        clients = [socket.socket(socket.AF_UNIX) for _ in range(3)]
        for each in clients:
            each.connect(path)
        taken = server.accept()[0]
        by_inode = {each.inode: each for each in socket_dump.unix_sockets()}
        listener = by_inode[inode(server)]
        assert (listener.path, listener.queue_count, listener.backlog_count) == (path, 2, 5)
        assert by_inode[inode(taken)].peer_inode == inode(clients[0])
        assert by_inode[inode(taken)].path == path
        for each in (*clients, taken):
            each.close()
