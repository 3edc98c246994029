"""No process of a run or a watch may do more than the table says, as the kernel has it."""

from __future__ import annotations

import json
import os
import pwd
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from harness.faults.burners import Burners
from harness.supervision import process_rights
from harness.supervision.process_rights import CALLER, OWN, TABLE, Rights, rights_of
from probes.bpf_loader.own_rights import parse_status
from probes.proc import process_tree
from probes.rights.own_user import FIRST_ID, LAST_ID
from probes.rights.privileges import bits_of, names_of

pytestmark = [pytest.mark.privileged, pytest.mark.shared]

DESIGN = Path(__file__).parents[2] / "docs" / "design" / "0016-who-may-do-what.md"
FOREIGN = Path(__file__).parents[1] / "harness" / "foreign"
DEADLINE_S = 150.0
NOBODY_UID = pwd.getpwnam("nobody").pw_uid
BY_MODULE = {
    "probes.collect.main": "probe process",
    "probes.bpf_loader.compile": "eBPF compiler",
    "probes.symbols.name_parser_main": "parser of names",
    "probes.rights.limited_start": "probe process",  # until it has become py-spy
    "harness.results.analysis_main": "analysis",
    "harness.faults.burners": "burner",
    "harness.faults.cgroup_guard": "guard of control groups",
    "harness.foreign.main": "launcher of a server command",
}
PYTHON = shlex.quote(os.path.realpath(sys.executable))  # which nobody may execute, too
SERVER = (
    (FOREIGN / "upgrade.py").read_text()
    + """
import socket, sys
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=512)
kept = []
while True:
    kept.append(listener.accept()[0])
    head = b""
    while b"\\r\\n\\r\\n" not in head:
        head += kept[-1].recv(4096)
    kept[-1].sendall(answer(head))
"""
)


def words_of(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")


def kind_of(pid: int, command: int) -> str:
    """What a process of a command's tree is, in the words of the table.

    Raises:
        OSError: It is gone.
    """
    words = words_of(pid)
    if pid == command or words == words_of(command):  # a child that has executed nothing yet
        return "supervisor"
    module = words[words.index("-m") + 1] if "-m" in words else ""
    stat = process_tree.read_stat(pid)
    if stat is None:
        raise ProcessLookupError(pid)
    if module in ("harness.server.main", "harness.client.main"):
        return (
            "parent of servers or clients" if stat.ppid == command else "worker, acceptor, client"
        )
    if module in BY_MODULE:
        return BY_MODULE[module]
    program = words[0].rpartition("/")[2]
    if program == "py-spy":
        return program
    above = stat.ppid
    while above not in (0, 1, command):
        over = words_of(above)
        if "harness.foreign.main" in over:
            is_root = process_tree.user_of(pid) == 0
            return "server command as root" if is_root else "server command"
        if "probes.collect.main" in over and program in ("setpriv", "sh"):
            return "probe process"  # until it has become py-spy
        above = getattr(process_tree.read_stat(above), "ppid", 0)
    raise AssertionError(f"nobody knows what it is: {words}")


def excess(pid: int, allowed: Rights) -> list[str]:
    """What a process or one of its threads may do beyond the table."""
    found: list[str] = []
    own = set(range(FIRST_ID, LAST_ID + 1))
    users = {OWN: own, CALLER: {NOBODY_UID}}.get(allowed.user, {0})
    for path in Path(f"/proc/{pid}/task").glob("*/status"):
        try:
            said = parse_status(path.read_text())
        except OSError:
            continue  # it has ended
        for name, most in (
            ("CapPrm", allowed.has),
            ("CapEff", allowed.has),
            ("CapAmb", ()),
            ("CapBnd", allowed.may_gain),
        ):
            if beyond := int(said[name], 16) & ~bits_of(most):
                if most == process_rights.ALL:
                    continue  # the kernel may know more of them
                found.append(f"{name} of {path.parent.name}: {names_of(beyond)}")
        if not set(map(int, said["Uid"].split())) <= users:
            found.append(f"Uid {said['Uid']}")
        if allowed.process == "parser of names" and allowed.user == OWN and said["Seccomp"] != "2":
            found.append(f"{path.parent.name} may call what it will")
        if allowed.gains_nothing and said["NoNewPrivs"] != "1":
            found.append(f"{path.parent.name} may gain privileges")
    return found


def look(command: int, phase: str = "load") -> dict[str, list[str]]:
    """The kinds of processes that are there now, and what each of them has too much."""
    found: dict[str, list[str]] = {}
    for pid in process_tree.tree_of(command):
        try:
            kind = kind_of(pid, command)
            beyond = excess(pid, rights_of(kind, phase))
        except (OSError, IndexError):
            continue  # it has ended
        found.setdefault(kind, []).extend(f"{kind} {pid}: {each}" for each in beyond)
    return found


class Looked:
    """What was seen of a command while one of its stages lasted."""

    def __init__(self, output: Path, process: subprocess.Popen[str]) -> None:
        self._output, self._process = output, process

    def stage(self) -> str:
        assert self._process.poll() is None, self._process.communicate()
        found = [json.loads(path.read_text()) for path in self._output.glob("2*/manifest.json")]
        stages = [each["stage"] for manifest in found for each in manifest["stages"]]
        return stages[-1] if stages else ""

    def in_stage(self, deadline: Callable[..., Any], stage: str, wanted: set[str]) -> None:
        """Looks until all kinds that are wanted were there in a stage; none has too much."""
        seen: set[str] = set()

        def are_there() -> bool:
            if self.stage() != stage:
                return False
            found = look(self._process.pid)
            if self.stage() != stage:
                return False
            assert [each for beyond in found.values() for each in beyond] == []
            seen.update(found)
            return wanted <= seen

        deadline(f"{wanted} in {stage}", are_there, seconds=DEADLINE_S)


@contextmanager
def running(command: list[str], output: Path, **environment: str) -> Iterator[Looked]:
    """A command that is ended by Ctrl-C when the block ends."""
    with subprocess.Popen(
        [sys.executable, "-P", "-m", *command, "--quiet", "--no-report", "--output", str(output)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        cwd="/",
        env={**os.environ, **environment},
    ) as process:
        try:
            yield Looked(output, process)
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=DEADLINE_S)
        finally:
            process.kill()
            process.communicate()


FLEET = {
    *("supervisor", "probe process", "parser of names"),
    *("parent of servers or clients", "worker, acceptor, client"),
}


def test_a_run_has_no_more_rights_than_the_table_says(tmp_path, deadline):
    command = [
        *("harness.commands.run", "--connections", "300", "--ramp", "20", "--hold", "600"),
        *("--workers", "2", "--clients", "2", "--accept", "handoff", "--memory-max", "2g"),
    ]
    with running(command, tmp_path) as looked:
        wanted = FLEET | {"guard of control groups", "py-spy"}
        looked.in_stage(deadline, "ramp", wanted)
        looked.in_stage(deadline, "hold", wanted)


@pytest.mark.parametrize(
    ("caller", "kind"), [("nobody", "server command"), ("", "server command as root")]
)
def test_nor_has_one_with_a_server_command(tmp_path, deadline, caller, kind):
    server = f"{PYTHON} -c {shlex.quote(SERVER)} {{port}}"
    command = [
        "harness.commands.run",
        "--connections",
        "40",
        "--hold",
        "600",
        "--server-cmd",
        server,
    ]
    behind = {"SUDO_USER": caller, "DOAS_USER": "", "PKEXEC_UID": ""}
    with running(command, tmp_path, **behind) as looked:
        wanted = FLEET | {"launcher of a server command", kind}
        looked.in_stage(deadline, "hold", wanted)


def test_nor_has_a_watch(tmp_path, deadline):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with subprocess.Popen([sys.executable, "-c", SERVER, str(port)]) as server:
        try:

            def listens() -> bool:
                with socket.socket() as probe:
                    return probe.connect_ex(("127.0.0.1", port)) == 0

            deadline("the server listens", listens)
            with running(["harness.commands.attach", "--port", str(port)], tmp_path) as looked:
                looked.in_stage(
                    deadline, "watch", {"supervisor", "probe process", "parser of names", "py-spy"}
                )
        finally:
            server.kill()


def test_nor_has_a_burner(deadline):
    burners = Burners(["burn:1:60"])
    burners.start()
    try:
        (pid,) = burners.pids
        allowed = rights_of("burner", "load")
        deadline("it has given up what it may", lambda: excess(pid, allowed) == [])
    finally:
        burners.stop()


def test_the_table_of_the_document_is_that_of_the_code():
    assert process_rights.as_markdown() in DESIGN.read_text(encoding="utf-8")
    kinds = {each.process for each in TABLE}
    assert {"py-spy", "server command", "server command as root", *FLEET} <= kinds
    assert set(BY_MODULE.values()) <= kinds


def test_a_process_that_has_too_much_is_found():
    with subprocess.Popen(["sleep", "60"]) as child:
        try:
            found = excess(child.pid, rights_of("worker, acceptor, client", "load"))
        finally:
            child.kill()
    said = " ".join(found)
    assert "sys_admin" in said
    assert "Uid 0" in said
    assert "may gain privileges" in said
