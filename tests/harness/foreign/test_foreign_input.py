"""What people say of their server and what it says of itself: one line each, with the way out."""

from __future__ import annotations

import errno
import json
import os
import pwd
import select
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from harness.commands.attach import main as profile_attach
from harness.foreign import endpoint
from harness.foreign import main as foreign_main
from harness.foreign.listen_failure import never_listened
from harness.foreign.server import ForeignRequest, check_running
from harness.foreign.server_command import cannot_start, words
from harness.foreign.server_output import telling_lines
from harness.server.listeners import Admission
from harness.supervision.live_status import ProcessLabels
from probes.bpf_loader.own_rights import parse_status
from probes.contract.errors import UsageError
from probes.netlink import socket_owners
from probes.netlink.socket_owners import Listener
from probes.proc import process_tree

LOG = Path("runs/1/logs/server.log")

NODE = """node:internal/modules/cjs/loader:1210
  throw err;
  ^

Error: Cannot find module '/srv/app/server.js'
    at Module._resolveFilename (node:internal/modules/cjs/loader:1207:15)
    at node:internal/main/run_main_module:28:49 {
  code: 'MODULE_NOT_FOUND',
  requireStack: []
}

Node.js v20.20.2
"""
JAVA = """starting
Exception in thread "main" java.net.BindException: Address already in use
\tat java.base/sun.nio.ch.Net.bind0(Native Method)
\tat java.base/java.net.ServerSocket.bind(ServerSocket.java:388)
\t... 3 more
"""
PYTHON = """Traceback (most recent call last):
  File "/srv/app.py", line 3, in <module>
    import nothere
ModuleNotFoundError: No module named 'nothere'
"""
GO = """panic: assignment to entry in nil map

goroutine 1 [running]:
main.main()
\t/srv/main.go:2 +0x2e
exit status 2
"""


@pytest.mark.parametrize(
    ("printed", "first", "count"),
    [
        (NODE, "Error: Cannot find module '/srv/app/server.js'", 5),
        (JAVA, 'Exception in thread "main" java.net.BindException: Address already in use', 1),
        (PYTHON, "ModuleNotFoundError: No module named 'nothere'", 1),
        (GO, "panic: assignment to entry in nil map", 4),
        ("one\n\ntwo\x1b[31m\n", "one", 2),
        ("\n".join("abcdefgh"), "d", 5),
        ("", None, 0),
    ],
)
def test_the_lines_that_name_the_error_are_shown_instead_of_the_stack(printed, first, count):
    lines = telling_lines(printed)
    assert len(lines) == count
    assert (lines[0] if lines else None) == first
    assert all(line.isprintable() for line in lines)


def test_an_option_s_port_is_filled_in_and_quotes_hold():
    assert words("node 'a b.js' --port={port}", 9001) == ("node", "a b.js", "--port=9001")
    assert words("sh -c 'ulimit -n 9; exec node x {port}'", 1)[:2] == ("sh", "-c")


@pytest.mark.parametrize(
    ("command", "told", "first_words"),
    [
        ("cd /srv && node x.js {port}", "'cd' is for one", ("sh", "-c")),
        ("node x.js {port} > log", "'>' is for one", ("sh", "-c")),
        ("A=1 B=2 node x.js {port}", "begins with an assignment", ("env", "A=1", "B=2", "node")),
        ("cd \"$HOME\" && node 'x y.js'", "'cd' is for one", ("sh", "-c")),
    ],
)
def test_a_command_for_a_shell_is_told_with_the_one_that_works(command, told, first_words):
    with pytest.raises(UsageError, match="not given to a shell") as error:
        words(command, 9001)
    assert told in error.value.message
    _, pasted = shlex.split(error.value.fix)
    assert words(pasted, 9001)[: len(first_words)] == first_words
    if first_words[0] == "sh":  # the shell gets what was asked for
        assert words(pasted, 9001)[2] == command.replace("{port}", "9001")


def test_what_cannot_be_executed_is_told_by_kind(tmp_path):
    script = tmp_path / "server.js"
    script.write_text("")
    assert cannot_start("cannot execute nodde: ...", ["nodde"]).fix.startswith("command -v nodde")
    assert cannot_start("...", [str(script)]).fix.startswith(f"chmod +x {script}")
    assert cannot_start("...", [str(tmp_path / "gone")]).fix == f"ls -l {tmp_path}/gone"


@pytest.mark.parametrize(
    ("tcp", "unix", "told", "fix"),
    [
        ([Listener("::1", 9001, 1)], [], "where no IPv4 client arrives", "let it listen on 127.0."),
        ([Listener("127.0.0.1", 80, 1)], [], "it listens on 127.0.0.1 port 80", "ws://h:80/chat"),
        ([], ["/run/chat.sock"], "on the Unix socket /run/chat.sock", "let it listen on TCP"),
        ([], [], "; it printed nothing", "--server-timeout S"),
    ],
)
def test_where_a_server_listens_instead_is_told(tcp, unix, told, fix):
    where = endpoint.Endpoint(
        url="ws://h:9001/chat", address="127.0.0.1", port=9001, path="/chat", host="h:9001",
        server_name="h", tls=False,
    )  # fmt: skip
    said = never_listened(where, 2.0, tcp=tcp, unix=unix, said="; it printed nothing", log_path=LOG)
    assert told in said.message
    assert fix in said.fix


@contextmanager
def listening(address: str = "127.0.0.1") -> Iterator[int]:
    with socket.create_server((address, 0)) as server:
        yield server.getsockname()[1]


def running(port: int, pid: int = 0, address: str = "127.0.0.1") -> ForeignRequest:
    return check_running(
        ForeignRequest(endpoint=endpoint.parse(f"ws://{address}:{port}/"), pid=pid)
    )


def test_a_pid_that_does_not_hold_the_listener_is_told_with_the_one_that_does():
    code = (
        "import socket,time\ns=socket.create_server(('127.0.0.1',0))\n"
        "print(s.getsockname()[1],flush=True)\ntime.sleep(60)"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    with listening() as port, child:
        try:
            assert child.stdout is not None
            theirs = int(child.stdout.readline())
            assert running(theirs).pid == child.pid
            assert running(theirs, child.pid).pid == child.pid
            with pytest.raises(UsageError, match="and its children do not listen on") as error:
                running(port, child.pid)
            assert error.value.fix == f"--server-pid {os.getpid()}"
        finally:
            child.kill()


def test_workers_with_a_listener_each_are_all_of_the_running_server():
    """SO_REUSEPORT: none of them is in a tree that begins with another one."""
    code = (
        "import os, socket, sys, time\n"
        "s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)\n"
        "s.bind(('127.0.0.1', 0)); place = s.getsockname(); s.close()\n"
        "for _ in range(3):\n"
        "    if not os.fork():\n"
        "        s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)\n"
        "        s.bind(place); s.listen(); os.write(1, b'%d\\n' % place[1]); time.sleep(60)\n"
        "time.sleep(60)"
    )
    children: list[int] = []
    words = [sys.executable, "-c", code]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            (port,) = {int(server.stdout.readline()) for _ in range(3)}
            children = process_tree.children_of(server.pid)
            found = running(port)
            assert found.pid in children
            assert set(found.roots) == {server.pid, *children}
            assert not running(port, server.pid).roots  # who named one gets its tree
        finally:
            for pid in (*children, server.pid):
                os.kill(pid, signal.SIGKILL)


def test_a_shell_that_started_server_and_command_is_no_root():
    """Its tree has this command and its clients, too."""
    code = (
        "import socket, sys, time\n"
        "s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)\n"
        "s.bind(('127.0.0.1', int(sys.argv[1]))); s.listen()\n"
        "print(s.getsockname()[1], flush=True); time.sleep(60)"
    )
    with ExitStack() as stack:
        servers, port = [], 0
        for _ in range(2):
            command = [sys.executable, "-c", code, str(port)]
            server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            stack.enter_context(server)
            stack.callback(server.kill)
            servers.append(server)
            assert server.stdout is not None
            port = int(server.stdout.readline())
        assert set(running(port).roots) == {each.pid for each in servers}


def test_this_command_s_own_ancestors_are_no_server():
    with listening() as port, pytest.raises(UsageError, match="is an ancestor of this command"):
        running(port, os.getpid())


def test_clients_are_never_sent_to_another_host():
    """A listener on every address here takes no connection to an address of somebody else."""
    with listening("0.0.0.0") as port:
        with pytest.raises(UsageError, match=r"192\.0\.2\.254 is no address of this host"):
            running(port, address="192.0.2.254")
        assert running(port, address="127.0.0.77").pid == os.getpid()
    assert socket_owners.is_local_address("self", "127.8.8.8")
    assert socket_owners.is_local_address(0, "192.0.2.254")  # not known: not refused


def test_a_thread_is_told_with_its_process(capsys):
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    try:
        tid = thread.native_id
        assert tid is not None
        assert process_tree.thread_group_of(tid) == os.getpid()
        assert profile_attach(["--pid", str(tid), "--output", "/nonexistent"]) == 2
        message, fix = capsys.readouterr().err.splitlines()
        assert f"--pid {tid} is a thread of pid {os.getpid()}" in message
        assert fix == f"fix: --pid {os.getpid()}"
    finally:
        stop.set()
        thread.join()


def test_a_process_keeps_its_name_for_people_after_its_end():
    labels = ProcessLabels()
    child = subprocess.Popen(["sleep", "60"])
    try:
        name = labels.of(child.pid)
    finally:
        child.kill()
        child.wait()
    assert name == labels.of(child.pid) == f"sleep {child.pid}"


def test_unix_sockets_that_are_listened_on_are_found(tmp_path):
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as idle:
        idle.bind(str(tmp_path / "idle"))
        server.bind(path)
        server.listen()
        inode = os.fstat(server.fileno()).st_ino
        found = socket_owners.unix_listeners(os.getpid())
    assert (path, inode) in found
    assert not any(name.endswith("/idle") for name, _ in found)


def launched(command, report_fd, *, grace_s=20.0, user="", may_gain=False, **options):
    """The parent of a command, told what to start as the supervisor tells it."""
    launch = foreign_main.Launch(
        supervisor_pid=os.getpid(), report_fd=report_fd, namespace_fd=-1, user=user, nofile=0,
        may_gain=may_gain, grace_s=grace_s, folder="/", environment=dict(os.environ),
        command=command,
    )  # fmt: skip
    words = options.pop("words", ["-m", "harness.foreign.main"])
    parent = subprocess.Popen(
        [sys.executable, "-P", *words], pass_fds=[report_fd], stdin=subprocess.PIPE, **options
    )
    with parent.stdin as stdin:
        stdin.write(json.dumps(launch).encode())
    parent.stdin = None  # communicate() would write to it
    return parent


WATCHED = """
import os, sys
from harness.foreign import descendants
from harness.foreign import main as foreign_main
def told(group, number):
    print("group", group, flush=True)
def send(pid, number, is_meant):
    print("process", pid, flush=True)
    really(pid, number, is_meant)
os.killpg, really, descendants.send = told, descendants.send, send
sys.exit(foreign_main.main())
"""


def test_a_process_group_that_is_gone_is_not_signalled(tmp_path):
    """Its number is free when its leader was reaped, and may be somebody else's by then."""
    read_fd, write_fd = os.pipe()
    is_up = tmp_path / "up"
    script = f"setsid sh -c 'touch {is_up}; exec sleep 60' & exit 0"
    parent = launched(["sh", "-c", script], write_fd, grace_s=0.2, words=["-c", WATCHED],
                      stdout=subprocess.PIPE)  # fmt: skip
    try:
        told = b""
        while told.count(b"exited_ns") < 1:  # the leader was reaped
            told += os.read(read_fd, 4096)
        end_s = time.monotonic() + 30
        while not is_up.exists():
            assert time.monotonic() < end_s
            time.sleep(0.01)
        parent.terminate()
        out, _ = parent.communicate(timeout=30)
        assert parent.returncode == 0
        leader = next(each["started"] for line in told.splitlines()
                      if "started" in (each := json.loads(line)))  # fmt: skip
        assert b"group" not in out
        signalled = {int(word) for word in out.split() if word.isdigit()}
        assert signalled
        assert leader not in signalled
    finally:
        parent.kill()
        parent.communicate()
        os.close(read_fd)
        os.close(write_fd)


def test_a_command_does_not_get_the_pipe_that_its_end_is_reported_on():
    read_fd, write_fd = os.pipe()
    out_read, out_write = os.pipe()
    parent = launched(["sh", "-c", "ls -l /proc/self/fd"], write_fd, stdout=out_write)
    os.close(out_write)
    try:
        with os.fdopen(out_read, "rb") as stream:
            listed = stream.read()
        assert parent.wait(30) == 0
        assert f"pipe:[{os.fstat(write_fd).st_ino}]".encode() not in listed
        assert b"/dev/null" in listed  # its standard input
    finally:
        parent.kill()
        parent.wait()
        os.close(read_fd)
        os.close(write_fd)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root starts a command as somebody: needs root")
@pytest.mark.parametrize("user", ["", "nobody"])
@pytest.mark.parametrize("may_gain", [False, True])
def test_a_command_gains_no_right_unless_that_is_asked_for(user, may_gain):
    read_fd, write_fd = os.pipe()
    out_read, out_write = os.pipe()
    # the shell between them: who is a right's first heir is not its last
    command = ["sh", "-c", "cat /proc/self/status; :"]
    parent = launched(command, write_fd, user=user, may_gain=may_gain, stdout=out_write)
    os.close(out_write)
    try:
        with os.fdopen(out_read) as stream:
            said = parse_status(stream.read())
        assert parent.wait(30) == 0
    finally:
        parent.kill()
        parent.wait()
        os.close(read_fd)
        os.close(write_fd)
    own = parse_status(Path("/proc/self/status").read_text())
    assert said["NoNewPrivs"] == ("0" if may_gain else "1")
    if user:
        assert said["Uid"].split() == [str(pwd.getpwnam(user).pw_uid)] * 4
        assert int(said["CapEff"], 16) == int(said["CapPrm"], 16) == 0
        assert said["CapBnd"] == (own["CapBnd"] if may_gain else "0" * 16)
    else:  # root's server is as root's shell would start it
        assert (said["CapEff"], said["CapBnd"]) == (own["CapEff"], own["CapBnd"])


def test_what_went_to_the_background_is_asked_to_end_too(tmp_path):
    """It is in a session of its own, so the group's SIGTERM does not reach it."""
    says = tmp_path / "asked"
    daemon = (
        "import os,signal,sys,time\n"
        "if os.fork(): os._exit(0)\n"
        "os.setsid()\n"
        f"signal.signal(15, lambda *_: (open({str(says)!r},'w').close(), os._exit(0)))\n"
        "os.write(1, b'up'); time.sleep(60)\n"
    )
    read_fd, write_fd = os.pipe()
    out_read, out_write = os.pipe()
    parent = launched([sys.executable, "-c", daemon], write_fd, stdout=out_write)
    try:
        assert os.read(out_read, 2) == b"up"
        parent.terminate()
        assert parent.wait(10) == 0
        assert says.exists()
    finally:
        parent.kill()
        parent.wait()
        for fd in (read_fd, write_fd, out_read, out_write):
            os.close(fd)


class Failing:
    """A listener whose accept fails once, as it does when memory is short, and then has nobody."""

    def __init__(self, fd, number):
        self._fd, self._numbers = fd, [number, errno.EAGAIN]

    def fileno(self):
        return self._fd

    def _accept(self):
        number = self._numbers.pop(0)
        raise OSError(number, os.strerror(number))


@pytest.mark.parametrize("name", ["ENOBUFS", "ENOMEM", "EPROTO", "EPERM", "ENETDOWN"])
def test_an_accept_that_fails_for_one_connection_ends_no_worker(name):
    slot = memoryview(bytearray(1024)).cast("q")
    with socket.create_server(("127.0.0.1", 0)) as listener, select.epoll() as epoll:
        number = getattr(errno, name)
        failing = Failing(listener.fileno(), number)
        found = Admission([failing], epoll, slot, "pause", exclusive=False)
        assert found.accept(listener.fileno(), 10) == []
        assert not found.paused
