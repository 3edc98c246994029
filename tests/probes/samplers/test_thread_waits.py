"""What threads wait for, against a process whose threads wait for known things."""

from __future__ import annotations

import os
import socket

import pytest

from probes.samplers.thread_waits import Endpoint, waits_of

CODE = """
import socket
port = int({port})
mute = [socket.create_connection(("127.0.0.1", port)) for _ in range(5)]
lock = threading.Lock()
lock.acquire()
def poll(connection):
    waiting = select.poll()
    waiting.register(connection, select.POLLIN)
    waiting.poll()
for _ in range(3):
    threading.Thread(target=mute[0].recv, args=(1,), daemon=True).start()
for connection in mute[1:3]:
    threading.Thread(target=poll, args=(connection,), daemon=True).start()
for _ in range(4):
    threading.Thread(target=lock.acquire, daemon=True).start()
import tempfile
fifo = tempfile.mktemp()
os.mkfifo(fifo)
mine = os.open(fifo, os.O_RDWR)
os.unlink(fifo)
for _ in range(2):
    threading.Thread(target=os.read, args=(mine, 1), daemon=True).start()
threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
ready(" ".join(str(os.fstat(c.fileno()).st_ino) for c in mute))
select.epoll().poll()
"""


@pytest.mark.privileged
def test_threads_are_counted_by_what_they_wait_for(python_child, deadline):
    assert os.geteuid() == 0
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        port = server.getsockname()[1]
        child, inodes = python_child(CODE.replace("{port}", str(port)))
        known = [int(word) for word in inodes.split()]
        ends = {known[0]: Endpoint("remote", f"127.0.0.1:{port}")}
        ends |= {each: Endpoint("name_server", "192.0.2.1:53") for each in known[1:3]}

        def seen():
            found = {(w.kind, w.call): n for w, n in waits_of(child.pid, ends)}
            wanted = {
                ("remote", "recvfrom"): 3,
                ("name_server", "poll"): 2,
                ("lock", "futex"): 4,
                ("pipe", "read"): 2,
                ("sleep", "clock_nanosleep"): 1,
                ("event_loop", "epoll_wait"): 1,
            }
            return found == wanted

        deadline("all threads in their calls", seen)
        by_kind = {wait.kind: wait for wait, _ in waits_of(child.pid, ends)}
        assert by_kind["remote"].address == f"127.0.0.1:{port}"
        assert by_kind["event_loop"].is_main
        assert not by_kind["remote"].is_main


def test_a_process_that_is_gone_has_no_threads():
    assert waits_of(1 << 22, {}) == []
