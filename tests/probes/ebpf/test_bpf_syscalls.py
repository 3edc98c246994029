"""Failing system calls, against processes that count their own failures."""

import errno
import json
import os
import subprocess
import sys

import pytest

from probes.contract import live as live_memory
from probes.contract.clock import now_ns
from probes.contract.live import Counter, Live
from probes.contract.probe import ProcessRef, Target
from probes.contract.rundir import RunDir
from probes.ebpf.failing_syscalls import FailingSyscallsProbe
from probes.proc.syscall_names import syscall_name

pytestmark = pytest.mark.privileged

CHILD = """
import errno, json, os, resource, socket, sys
sys.stdin.readline()
refused = socket.socket()
for _ in range(23):
    try:
        refused.connect(("127.0.0.1", 1))
    except ConnectionRefusedError:
        pass
listener = socket.create_server(("127.0.0.1", 0), backlog=16)
clients = []
for _ in range(5):
    clients.append(socket.create_connection(listener.getsockname()))
resource.setrlimit(resource.RLIMIT_NOFILE, (os.dup(0) + 1,) * 2)
failed = 0
for _ in range(7):
    try:
        listener.accept()
    except OSError as error:
        failed += error.errno == errno.EMFILE
for _ in range(9):
    try:
        os.open("/dev/null", os.O_RDONLY)
    except OSError:
        pass
for _ in range(11):
    try:
        os.read(clients[0].fileno(), 0)
        clients[0].setblocking(False)
        clients[0].recv(1)
    except BlockingIOError:
        pass
print(json.dumps({"emfile": failed}), flush=True)
sys.stdin.readline()
"""


def started(code):
    return subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    run = RunDir(tmp_path_factory.mktemp("run"))
    live_fd = live_memory.create(run.path / "live.bin", 1, 1)
    live = Live(live_fd)
    watched, bystander = started(CHILD), started(CHILD)
    probe = FailingSyscallsProbe()
    ref = ProcessRef(watched.pid, "client", 0, is_python=True)
    live.slot(0)[Counter.PID] = watched.pid
    target = Target(run, {watched.pid: ref}, frozenset({9000}), live, attached=True)
    probe.check()
    probe.start(target)
    begin_ns = now_ns()
    try:
        said = []
        for child in (watched, bystander):
            child.stdin.write("go\n")
            child.stdin.flush()
            said.append(json.loads(child.stdout.readline()))
        probe.sample(now_ns())
        for child in (watched, bystander):
            child.communicate("end\n")
    finally:
        watched.kill()
        bystander.kill()
        probe.stop(now_ns())
        for writer in probe.writers:
            writer.close()
    tables = {
        name: run.read_table(name).table.to_pylist()
        for name in ("failing_syscalls", "failure_stacks")
    }
    said[0]["counted_emfile"] = live.slot(0)[Counter.ACCEPT_EMFILE_TOTAL]
    live.close()
    os.close(live_fd)
    return watched.pid, said[0], tables, probe, begin_ns


def counts(tables, pid):
    found = {}
    for row in tables["failing_syscalls"]:
        if row["pid"] == pid:
            key = (row["syscall"], row["errno_name"])
            found[key] = found.get(key, 0) + row["event_count"]
    return found


def test_refused_connects_are_counted_exactly(recorded):
    pid, _, tables, _, _ = recorded
    assert counts(tables, pid)["connect", "ECONNREFUSED"] == 23


def test_accepts_at_the_descriptor_limit_are_counted_exactly(recorded):
    pid, said, tables, _, _ = recorded
    assert said["emfile"] == 7
    assert counts(tables, pid)["accept4", "EMFILE"] == 7


def test_a_watched_process_is_told_its_failing_accepts_and_no_other_calls(recorded):
    pid, said, tables, probe, begin_ns = recorded
    assert counts(tables, pid)["openat", "EMFILE"] >= 9
    assert said["counted_emfile"] == 7
    counted = probe.accept_failures()
    assert counted.count_by_pid == {pid: 7}
    assert 0 < counted.watched_ns < now_ns() - begin_ns + 10**9


def test_calls_that_only_say_not_yet_are_no_failures(recorded):
    pid, _, tables, _, _ = recorded
    assert {name for _, name in counts(tables, pid)}.isdisjoint({"EAGAIN", "EINPROGRESS", "EINTR"})


def test_other_processes_are_not_recorded(recorded):
    pid, _, tables, _, _ = recorded
    assert {row["pid"] for row in tables["failing_syscalls"]} == {pid}


def test_times_of_first_and_last_are_in_order_and_of_this_run(recorded):
    _, _, tables, _, begin_ns = recorded
    for row in tables["failing_syscalls"]:
        assert begin_ns <= row["first_ns"] <= row["last_ns"] <= row["at_ns"]


def test_the_first_four_of_a_key_carry_both_stacks(recorded):
    pid, _, tables, probe, _ = recorded
    rows = [
        row
        for row in tables["failure_stacks"]
        if row["pid"] == pid and (row["syscall"], row["errno"]) == ("connect", errno.ECONNREFUSED)
    ]
    assert len(rows) == 4
    for row in rows:
        frames = row["kernel_stack"].split(";")
        assert all(frame.endswith("_[k]") for frame in frames)
        assert any("sys_exit" in frame or "syscall" in frame for frame in frames)
        assert "connect" in row["user_stack"].split(";")[-1]
        assert row["tid"] == pid
    assert probe.lost_count == 0
    assert probe.seen_count == sum(row["event_count"] for row in tables["failing_syscalls"])


def test_nothing_stays_open(recorded):
    links = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if fd_is(fd)]
    assert not [link for link in links if "bpf" in link]


def fd_is(fd):
    return os.path.lexists(f"/proc/self/fd/{fd}")


@pytest.mark.parametrize(
    ("number", "name"),
    [(6, "close"), (54, "ioctl"), (162, "nanosleep"), (256, "epoll_wait"), (364, "accept4"),
     (422, "futex_time64"), (425, "io_uring_setup"), (222, "compat_syscall_222")],
)  # fmt: skip
def test_calls_of_a_32_bit_program_have_names_of_their_own(monkeypatch, number, name):
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    assert syscall_name(number, is_32_bit=True) == name
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    if number < 424:
        assert syscall_name(number, is_32_bit=True) == f"compat_syscall_{number}"


REPEATED = """
import os, sys
for line in sys.stdin:
    for _ in range(7):
        try:
            os.rmdir("/proc/self")
        except OSError:
            pass
    print("done", flush=True)
"""


def test_a_pid_that_is_free_again_is_anybodys(tmp_path):
    """After its process ended, what another one of the same number does is not counted."""
    run = RunDir(tmp_path)
    stays, ends = started(REPEATED), started(REPEATED)
    refs = {c.pid: ProcessRef(c.pid, "server", 0, is_python=True) for c in (stays, ends)}
    probe = FailingSyscallsProbe()
    probe.check()
    probe.start(Target(run, refs, frozenset({9000}), None))

    def fail() -> None:
        for child in (stays, ends):
            child.stdin.write("go\n")
            child.stdin.flush()
            assert child.stdout.readline() == "done\n"

    try:
        fail()
        probe.remove_processes({ends.pid})  # with its last rows
        fail()  # one of that number is another process now
        probe.sample(now_ns())
        loaded = probe._object
        assert loaded is not None
        for name in ("failures", "failure_records"):
            keys, _ = loaded.maps[name].items()
            own = keys["pid"] if name == "failures" else keys["key"]["pid"]
            assert set(own.tolist()) == {stays.pid}
        assert {key[0] for key in probe._counts} == {stays.pid}
        probe.add_process(refs[ends.pid])
        fail()
    finally:
        for child in (stays, ends):
            child.kill()
            child.communicate()
        probe.stop(now_ns())
        for writer in probe.writers:
            writer.close()
    rows = run.read_table("failing_syscalls").table.to_pylist()
    tables = {"failing_syscalls": [row for row in rows if row["syscall"] == "rmdir"]}
    assert sum(counts(tables, stays.pid).values()) == 21
    assert sum(counts(tables, ends.pid).values()) == 14
