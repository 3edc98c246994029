"""Who works behind a server: its own listeners, and whom it is connected to."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from harness import backends

CODE = """
import socket, sys
server = socket.create_server(("127.0.0.1", 0), backlog=64)
path = sys.argv[1]
unix = socket.socket(socket.AF_UNIX)
unix.bind(path)
unix.listen(8)
print(server.getsockname()[1], flush=True)
taken = [server.accept()[0], unix.accept()[0]]
print("taken", flush=True)
sys.stdin.readline()
"""


@pytest.mark.privileged
def test_a_process_is_found_by_the_connections_to_it(tmp_path):
    path = str(tmp_path / "s")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", CODE, path], text=True, **pipes) as child:
        try:
            port = int(child.stdout.readline())
            with (
                socket.create_connection(("127.0.0.1", port)),
                socket.socket(socket.AF_UNIX) as client,
            ):
                client.connect(path)
                assert child.stdout.readline() == "taken\n"
                found = backends.by_connections([os.getpid()], [])
                again = backends.by_connections([os.getpid()], [child.pid])
        finally:
            child.kill()
    (mine,) = [each for each in found if each.pid == child.pid]
    assert mine.front_pid == os.getpid()
    assert mine.listens_on in (f"127.0.0.1:{port}", path)
    assert mine.connection_count == 1
    assert child.pid not in [each.pid for each in again]


def test_a_process_of_the_tree_counts_by_its_other_listeners():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert [each.pid for each in backends.in_tree([os.getpid()], [])] == [os.getpid()]
        listening = backends.in_tree([os.getpid()], [port])
        assert all(not each.listens_on.endswith(f":{port}") for each in listening)
