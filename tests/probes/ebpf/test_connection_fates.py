"""What becomes of accepted connections, against a server that does known things with them."""

from __future__ import annotations

import subprocess
import sys

import pytest

from probes.contract.clock import now_ns
from probes.contract.probe import ProcessRef, Target
from probes.ebpf.connection_fates import ConnectionFatesProbe

pytestmark = pytest.mark.privileged

SERVER = """
import socket, sys
listener = socket.create_server(("127.0.0.1", 0), backlog=256)
sys.stdin.readline()
clients, kept = [], []
def take():
    clients.append(socket.create_connection(listener.getsockname()))
    return listener.accept()[0]
for _ in range(23):  # answered, then left by the peer
    mine = take()
    clients[-1].sendall(b"x")
    mine.recv(1)
    mine.sendall(b"y")
    clients[-1].recv(1)
    clients[-1].close()
    while mine.recv(9):
        pass
    mine.close()
for _ in range(11):
    take().close()
for _ in range(7):
    mine = take()
    clients[-1].sendall(b"x")
    mine.recv(1)
    mine.close()
for _ in range(3):
    mine = take()
    clients[-1].sendall(b"x")
    mine.recv(1)
    mine.sendall(b"y")
    mine.close()
for _ in range(5):
    kept.append(take())
print("done", flush=True)
sys.stdin.readline()
"""


def test_each_way_to_end_is_counted(run):
    child = subprocess.Popen(
        [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    probe = ConnectionFatesProbe()
    try:
        ref = ProcessRef(child.pid, "server", 0, is_python=True)
        probe.check()
        probe.start(Target(run, {child.pid: ref}, frozenset({1}), None, is_foreign=True))
        child.stdin.write("go\n")
        child.stdin.flush()
        assert child.stdout.readline() == "done\n"
    finally:
        probe.stop(now_ns())
        for writer in probe.writers:
            writer.close()
        child.kill()
        child.wait()
        child.stdin.close()
        child.stdout.close()
    rows = run.read_table("connection_fates").table.to_pylist()
    totals = {row["fate"]: row["connection_total"] for row in rows if row["pid"] == child.pid}
    assert totals == {
        "accepted": 49,
        "closed_after_peer": 23,
        "closed_unread": 11,
        "closed_unanswered": 7,
        "closed_answered": 3,
    }
    assert probe.lost_count == 0
