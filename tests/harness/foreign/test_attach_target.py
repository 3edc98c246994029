"""What profile-attach watches: found by pid, port, unit and container, and refused in two lines."""

from __future__ import annotations

import json
import os
import pwd
import resource
import shutil
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from harness.commands.attach import main
from harness.fleet import netns
from harness.foreign import cgroup_members
from harness.foreign.attach_target import find_target
from harness.supervision.probe_process import ProbeProcess
from probes.contract.errors import ExitCode, HostError, UsageError
from probes.proc import descriptor_count, process_tree
from probes.rights.network_namespace import enter

FOREIGN = Path(__file__).parent
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

LISTENS = (
    "import socket, sys, time\n"
    "k = [socket.create_server(('127.0.0.1', int(p))) for p in sys.argv[1:]]\n"
    "print('up', flush=True); time.sleep(60)"
)
LISTENS_ON = (
    "import socket, sys, time\n"
    "s = socket.create_server((sys.argv[1], int(sys.argv[2])))\n"
    "print('up', flush=True); time.sleep(60)"
)


def end_group(leader_pid: int) -> None:
    """With what it has started itself."""
    with suppress(ProcessLookupError):
        os.killpg(leader_pid, signal.SIGKILL)


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a child that says a line when it is there; all end with the test."""
    with ExitStack() as stack:

        def begin(*words: str, **options: Any) -> subprocess.Popen[str]:
            child = subprocess.Popen(
                words, stdout=subprocess.PIPE, text=True, start_new_session=True, **options
            )
            stack.callback(child.__exit__, None, None, None)
            stack.callback(end_group, child.pid)
            assert child.stdout is not None
            assert child.stdout.readline()
            return child

        yield begin


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number: int = taken.getsockname()[1]
    return number


def python(code: str, *words: object) -> tuple[str, ...]:
    return (sys.executable, "-c", code, *map(str, words))


def refused(capsys: pytest.CaptureFixture[str], code: int, *arguments: object) -> str:
    """The complaint of a command that must fail: one line, one fix, that exit code, no run."""
    assert main([*map(str, arguments), "--output", "/nonexistent/never-made"]) == code
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2, lines
    assert lines[0].startswith("error: ")
    assert lines[1].startswith("fix: ")
    return lines[0].removeprefix("error: ")


# -- what is found --------------------------------------------------------------------------------


def test_a_pid_gives_its_ports_and_a_port_gives_its_pid(start, port):
    server = start(*python(LISTENS, port))
    target = find_target(pid=server.pid)
    assert (target.roots, target.ports) == ((server.pid,), (port,))
    assert target.listens_on == (f"127.0.0.1:{port}",)
    by_port = find_target(port=port)
    assert (by_port.pid, by_port.roots, by_port.ports) == (server.pid, (server.pid,), (port,))
    assert by_port.look_again is not None
    assert by_port.look_again() == [server.pid]
    assert by_port.open_namespace() == -1


def test_all_ports_of_a_pid_are_watched_unless_one_is_named(start, port, deadline):
    other = port + 1 if port < 65_000 else port - 1
    server = start(*python(LISTENS, port, other))
    assert find_target(pid=server.pid).ports == tuple(sorted((port, other)))
    assert find_target(pid=server.pid, port=other).ports == (other,)


def test_workers_on_one_listener_are_one_server_with_their_parent_as_root(start, port):
    code = (
        "import os, socket, sys, time\n"
        "s = socket.create_server(('127.0.0.1', int(sys.argv[1])))\n"
        "[os.fork() or time.sleep(60) for _ in range(3)]\n"
        "print('up', flush=True); time.sleep(60)"
    )
    server = start(*python(code, port))
    target = find_target(port=port)
    assert target.roots == (server.pid,)
    for child in process_tree.children_of(server.pid):
        os.kill(child, 9)


def test_workers_with_a_listener_each_have_their_common_parent_as_root_too(start, port):
    code = (
        "import os, socket, sys, time\n"
        "for _ in range(2):\n"
        "    if not os.fork():\n"
        "        s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)\n"
        "        s.bind(('127.0.0.1', int(sys.argv[1]))); s.listen()\n"
        "        print('up', flush=True); time.sleep(60)\n"
        "os.wait()"
    )
    server = start(*python(code, port))
    assert server.stdout is not None
    assert server.stdout.readline()  # both
    children = process_tree.children_of(server.pid)
    assert set(find_target(port=port).roots) == {server.pid, *children}
    for child in children:
        os.kill(child, 9)


@needs_root
def test_a_server_in_another_network_namespace_is_found_by_its_port(start, port):
    namespace_fd = netns.create({})
    try:
        server = start(*python(LISTENS, port), preexec_fn=lambda: enter(namespace_fd))
        target = find_target(port=port)
        assert target.pid == server.pid
        fd = target.open_namespace()
        assert os.fstat(fd).st_ino == os.fstat(namespace_fd).st_ino
        os.close(fd)
        other_fd = netns.create({})
        try:
            start(*python(LISTENS, port), preexec_fn=lambda: enter(other_fd))
            with pytest.raises(UsageError, match="in 2 network namespaces") as error:
                find_target(port=port)
            assert "--container" in error.value.fix
        finally:
            os.close(other_fd)
    finally:
        os.close(namespace_fd)


def test_units_and_containers_are_found_by_what_managers_call_their_groups(tmp_path):
    full = uuid.uuid4().hex * 2
    for folder in (
        "system.slice/chat.service",
        "unified/system.slice/chat.service/worker",
        f"docker/{full}",
        f"system.slice/docker-{full}.scope",
        "kubepods/pod1/cri-containerd-" + "ab" * 32 + ".scope",
        "machine.slice/libpod-" + "cd" * 32 + ".scope/container",
        "user.slice/abcd",
    ):
        path = tmp_path / folder
        path.mkdir(parents=True)
        (path / "cgroup.procs").write_text("7\n")
    (tmp_path / "system.slice/chat.service/cgroup.procs").write_text("12\n30\n")
    unit = cgroup_members.unit_folders("chat", tmp_path)
    assert unit == cgroup_members.unit_folders("chat.service", tmp_path)
    assert cgroup_members.identities(unit) == ["chat.service"]
    assert cgroup_members.members(unit) == [7, 12, 30]
    assert len(cgroup_members.container_folders(full[:12], tmp_path)) == 2
    assert cgroup_members.members(cgroup_members.container_folders("cdcd", tmp_path)) == [7]
    assert len(cgroup_members.container_folders("abab", tmp_path)) == 1
    assert not cgroup_members.container_folders("abcd", tmp_path)  # a name, no id


@needs_root
@pytest.mark.parametrize("kind", ["unit", "container"])
def test_a_server_in_a_control_group_is_found_by_the_groups_name(start, port, kind):
    name = uuid.uuid4().hex
    root = cgroup_members.CGROUP_ROOT
    base = next(p for p in (root / "pids", root) if (p / "cgroup.procs").exists())
    group = base / (f"connscope-{name}.service" if kind == "unit" else f"docker-{name * 2}.scope")
    group.mkdir()
    try:
        server = start(
            *python(LISTENS, port), preexec_fn=lambda: (group / "cgroup.procs").write_text("0")
        )
        chosen = {"unit": f"connscope-{name}"} if kind == "unit" else {"container": name[:12]}
        target = find_target(**chosen)
        assert (target.pid, target.ports) == (server.pid, (port,))
        assert target.look_again is not None
        assert target.look_again() == [server.pid]
        server.kill()
        server.wait()
        with pytest.raises(UsageError, match="does not run"):
            find_target(**chosen)
    finally:
        for _ in range(200):
            with suppress(OSError):
                group.rmdir()
                break


@pytest.mark.parametrize("kernel", ["as the kernel says", "before 6.2"])
def test_a_listener_of_a_process_with_many_descriptors_is_found_without_a_walk(
    start, port, monkeypatch, kernel
):
    if kernel == "before 6.2":
        monkeypatch.setattr(descriptor_count, "kernel_counts", lambda: False)
    code = (
        "import os, socket, sys, time\n"
        "s = socket.create_server(('127.0.0.1', int(sys.argv[1])))\n"
        "r, w = os.pipe(); k = [os.dup(r) for _ in range(4500)]\n"
        "print('up', flush=True); time.sleep(60)"
    )
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 5_000:
        pytest.skip("RLIMIT_NOFILE is below 5,000")
    limit = (5_000, hard)
    server = start(
        *python(code, port), preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, limit)
    )
    listed = []
    real = os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: listed.append(str(path)) or real(path))
    assert find_target(port=port).pid == server.pid
    assert f"/proc/{server.pid}/fd" not in listed
    assert descriptor_count.descriptor_count(server.pid) > 4_500


# -- bad input ------------------------------------------------------------------------------------


def test_a_pid_that_is_gone(capsys, start):
    child = start(*python("print('up')"))
    child.wait()
    message = refused(capsys, 2, "--pid", child.pid)
    assert message == f"--pid {child.pid}: there is no such process"


def test_a_kernel_thread(capsys):
    if not (stat := process_tree.read_stat(2)) or not stat.is_kernel_thread:
        pytest.skip("this pid namespace shows no kernel thread")
    assert refused(capsys, 2, "--pid", 2) == "--pid 2 is a kernel thread (kthreadd)"


def test_a_process_without_sockets(capsys, start):
    child = start(*python("import time; print('up', flush=True); time.sleep(60)"))
    message = refused(capsys, 2, "--pid", child.pid)
    assert "listen on no TCP socket: there is nothing to watch" in message


def test_an_ancestor_of_the_command_is_not_a_server(capsys):
    message = refused(capsys, 2, "--pid", os.getppid())
    assert "is an ancestor of this command" in message


def test_a_port_on_which_nobody_listens(capsys, port):
    assert f"--port {port}: no process listens there" in refused(capsys, 2, "--port", port)


def test_a_port_on_which_unrelated_servers_listen(capsys, start, port):
    first = start(*python(LISTENS_ON, "127.0.0.1", port))
    # the same parent and the same program would be workers of one server: a shell tells them apart
    start("sh", "-c", f'{sys.executable} -c "$0" 127.0.0.2 {port}; true', LISTENS_ON)
    message = refused(capsys, 2, "--port", port)
    assert "2 unrelated servers listen there" in message
    assert f"pid {first.pid}" in message
    assert f"127.0.0.2:{port}" in message


def test_the_wrong_port_of_a_pid(capsys, start, port):
    server = start(*python(LISTENS, port))
    message = refused(capsys, 2, "--pid", server.pid, "--port", 1)
    assert f"it listens on 127.0.0.1:{port}" in message


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "nothing to watch was named"),
        (("--pid", "1", "--unit", "a"), "--pid and --unit name two targets"),
        (("--pid", "x"), "'x' is not a process id"),
        (("--port", "0"), "'0' is not a port"),
        (("--container", "abc"), "is no container id"),
        (("--container", "zzzz"), "is no container id"),
        (("--container", "deadbeef0000"), "no control group of such a container is here"),
        (("--unit", "never-was-one"), "no control group of such a systemd unit is here"),
        (("--port", "1", "--duration", "0"), "'0' is not between"),
        (("--port", "1", "--probes", "all"), "--probes knows no 'all'"),
    ],
)
def test_what_makes_no_sense_is_usage(capsys, arguments, words):
    assert words in refused(capsys, 2, *arguments)


def test_another_users_process_needs_root(start, port, monkeypatch):
    server = start(*python(LISTENS, port))
    monkeypatch.setattr(os, "geteuid", lambda: 12_345)
    with pytest.raises(HostError, match="is another user's process") as error:
        find_target(pid=server.pid)
    assert error.value.fix == "run as root"
    assert error.value.exit_code == 4


def test_too_little_memory_is_a_refusal_not_a_risk(capsys, start, port, monkeypatch):
    server = start(*python(LISTENS, port))
    monkeypatch.setattr("harness.commands.attach._NEEDED_BYTES", 1 << 60)
    message = refused(capsys, 4, "--pid", server.pid)
    assert "must not take them from the server" in message


@needs_root
def test_without_root_it_watches_what_it_may_and_says_what_is_missing(start, port, tmp_path):
    nobody = pwd.getpwnam("nobody")
    tmp_path.chmod(0o777)
    for parent in tmp_path.parents[:3]:
        if parent.stat().st_uid == 0 and parent != Path("/tmp"):
            parent.chmod(0o755)
    as_nobody = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
    # it waits in its poll, as a server does: one that sleeps would be named for that
    polls = LISTENS.replace("time.sleep(60)", "import select; select.select(k, [], [], 240)")
    server = start(*python(polls, port), **as_nobody)
    done = subprocess.run(
        [
            *(sys.executable, "-P", "-m", "harness.commands.attach", "--port", str(port)),
            *("--duration", "1", "--no-report", "--output", str(tmp_path / "runs")),
        ],
        capture_output=True,
        text=True,
        timeout=150,
        **as_nobody,
    )
    # what could have seen a limit does not run, so that none was met is no answer
    assert done.returncode == ExitCode.NOT_SEEN, done.stderr
    assert "Traceback" not in done.stderr
    assert "note: failing_syscalls does not run" in done.stderr
    assert "No limit was met" in done.stdout
    assert server.poll() is None


# -- gone meanwhile -------------------------------------------------------------------------------


def test_a_server_that_dies_after_it_was_found_is_told_in_two_lines(
    start, port, tmp_path, monkeypatch, capsys
):
    server = start(*python(LISTENS, port))

    def found_and_gone(**named: Any) -> Any:
        target = find_target(**named)
        server.kill()
        server.wait()
        return target

    monkeypatch.setattr("harness.commands.attach.find_target", found_and_gone)
    monkeypatch.setattr(
        "harness.commands.attach.stand_back", lambda _: None
    )  # this is pytest's process
    words = ["--pid", str(server.pid), "--probes", "none", "--quiet", "--output", str(tmp_path)]
    assert main(words) == ExitCode.FAILED
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2, lines
    assert "the server ended before it could be watched" in lines[0]


def test_a_server_that_dies_while_its_probes_start_is_a_crash(start, port, tmp_path, monkeypatch):
    server = start(*python(LISTENS, port))

    class Killing(ProbeProcess):
        def __init__(self, *arguments: Any, **named: Any) -> None:
            server.kill()
            super().__init__(*arguments, **named)

    monkeypatch.setattr("harness.supervision.attach_watch.ProbeProcess", Killing)
    monkeypatch.setattr("harness.commands.attach.stand_back", lambda _: None)
    words = ["--pid", str(server.pid), "--probes", "none", "--quiet", "--no-report"]
    assert main([*words, "--output", str(tmp_path)]) == ExitCode.LIMIT_MET
    verdict = json.loads((tmp_path / "latest" / "verdict.json").read_text())
    assert verdict["verdict"]["cause"] == "worker-crash"
    assert verdict["findings"][0]["subject"]["pid"] == server.pid


# -- 32-bit and static ----------------------------------------------------------------------------

STATIC = """
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
int main(int argc, char **argv) {
  struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[1]))};
  a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  int s = socket(AF_INET, SOCK_STREAM, 0);
  if (bind(s, (struct sockaddr *)&a, sizeof a) || listen(s, 8)) return 1;
  puts("up"); fflush(stdout);
  for (;;) accept(s, 0, 0);
}
"""


def compiled(tmp_path: Path, *options: str) -> Path:
    source, program = tmp_path / "server.c", tmp_path / "server"
    source.write_text(STATIC)
    done = subprocess.run(
        ["gcc", *options, "-o", str(program), str(source)], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"gcc {' '.join(options)} cannot link here: {done.stderr[-200:]}")
    return program


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
def test_a_statically_linked_server_is_watched_like_any_other(start, port, tmp_path):
    server = start(str(compiled(tmp_path, "-static")), str(port))
    target = find_target(port=port)
    assert (target.pid, target.ports, target.notes) == (server.pid, (port,), ())


def test_a_32_bit_program_is_told_by_its_header_and_gets_a_note(start, port, tmp_path, monkeypatch):
    server = start(*python(LISTENS, port))
    assert not process_tree.is_32_bit(server.pid)
    real = open
    elf = tmp_path / "program"
    elf.write_bytes(b"\x7fELF\x01\x01\x01")
    monkeypatch.setattr(
        "builtins.open",
        lambda path, *rest, **more: real(
            elf if path == f"/proc/{server.pid}/exe" else path, *rest, **more
        ),
    )
    assert process_tree.is_32_bit(server.pid)
    (note,) = find_target(pid=server.pid).notes
    assert "32-bit" in note
