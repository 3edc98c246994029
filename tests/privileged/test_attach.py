"""profile-attach on servers that run already: what it names, and that it leaves nothing behind."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from harness.fleet import netns
from probes.contract.rundir import open_run_dir
from probes.proc import process_tree
from probes.rights import network_namespace
from probes.symbols.elf import ElfFile, symbol_table
from tests import warm_start

pytestmark = [pytest.mark.privileged, pytest.mark.shared]

FOREIGN = Path(__file__).parents[1] / "harness" / "foreign"
COMMAND = [sys.executable, "-P", "-m", "harness.commands.attach"]
DEADLINE_S = 150


class World:
    """Servers, clients and attaches of one test; all end with it."""

    def __init__(self, path: Path, deadline: Callable[..., Any]) -> None:
        assert os.geteuid() == 0, "these tests need root: sudo make test"
        self.path = path
        self.deadline = deadline
        self.namespace_fd = -1
        self._stack = ExitStack()
        with socket.create_server(("127.0.0.1", 0)) as taken:
            self.port: int = taken.getsockname()[1]

    def start(self, words: list[str], *, nofile: int = 0, **options: Any) -> subprocess.Popen[str]:
        """A child in a session of its own, in the test's namespace where it has one."""

        def before() -> None:
            if self.namespace_fd >= 0:
                network_namespace.enter(self.namespace_fd)
            if nofile:
                resource.setrlimit(resource.RLIMIT_NOFILE, (nofile, nofile))

        if nofile or self.namespace_fd >= 0:
            options["preexec_fn"] = before
        child: Any = warm_start.start(words, start_new_session=True, **options)
        self._stack.callback(self._end, child)
        return child

    def _end(self, child: subprocess.Popen[str]) -> None:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        for stream in (child.stdin, child.stdout, child.stderr):
            if stream is not None:
                stream.close()

    def own_namespace(self, **sysctls: str) -> None:
        """From now on servers and clients are in a namespace of their own."""
        named = {f"net/ipv4/{name}": value for name, value in sysctls.items()}
        self.namespace_fd = netns.create(named)
        self._stack.callback(os.close, self.namespace_fd)

    def serve(self, *words: str, nofile: int = 0) -> subprocess.Popen[str]:
        """Starts a server and waits until it listens."""
        log = (self.path / "server.log").open("w")
        self._stack.callback(log.close)
        server = self.start(list(words), nofile=nofile, stdout=log, stderr=log)

        def listens() -> bool:
            table = Path(f"/proc/{server.pid}/net/tcp").read_text()
            return f":{self.port:04X} 00000000:0000 0A" in table

        self.deadline("the server listens", listens)
        return server

    def plain(self, workers: int = 0, *, nofile: int = 0) -> subprocess.Popen[str]:
        words = [sys.executable, str(FOREIGN / "plain_server.py"), str(self.port)]
        return self.serve(*words, *([str(workers)] if workers else []), nofile=nofile)

    def clients(self) -> Clients:
        child = self.start(
            [sys.executable, str(FOREIGN / "plain_clients.py"), str(self.port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        return Clients(child)

    def attach(self, *arguments: str) -> Attach:
        inside, self.namespace_fd = self.namespace_fd, -1  # from outside, as from a host
        with (self.path / "attach.log").open("w") as log:
            child = self.start(
                [*COMMAND, *arguments, "--output", str(self.path / "runs")],
                stdout=subprocess.PIPE,
                stderr=log,
            )
        self.namespace_fd = inside
        return Attach(self, child)

    def close(self) -> None:
        self._stack.close()


class Clients:
    """The clients' process."""

    def __init__(self, child: subprocess.Popen[str]) -> None:
        self._child = child

    def ask(self, count: int, path: str = "/") -> None:
        assert self._child.stdin is not None
        self._child.stdin.write(f"{count} {path}\n")
        self._child.stdin.flush()

    def told(self) -> tuple[int, int]:
        assert self._child.stdout is not None
        kept, failed = self._child.stdout.readline().split()
        return int(kept), int(failed)

    def open(self, count: int, path: str = "/") -> tuple[int, int]:
        """Opens so many more; how many are open then, and how many of these failed."""
        self.ask(count, path)
        return self.told()


class Attach:
    """A profile-attach that watches."""

    def __init__(self, world: World, child: subprocess.Popen[str]) -> None:
        self.child = child
        self._world = world
        self.verdict: dict[str, Any] = {}

    @property
    def said(self) -> str:
        return (self._world.path / "attach.log").read_text()

    def watches(self) -> None:
        """Waits until probes run and the watch has begun."""
        self._world.deadline(
            f"the watch begins: {self.said}", lambda: "| watch " in self.said, seconds=90
        )

    def end(self, number: int = signal.SIGINT) -> int:
        self.child.send_signal(number)
        return self.ended()

    def ended(self) -> int:
        out, _ = self.child.communicate(timeout=DEADLINE_S)
        assert "Traceback" not in self.said, self.said
        self.verdict = json.loads((self.run / "verdict.json").read_text())
        assert (self.run / "report.html").stat().st_size > 10_000
        assert f"report   {self.run}/report.html" in out
        return self.child.returncode

    @property
    def run(self) -> Path:
        return (self._world.path / "runs" / "latest").resolve()

    @property
    def cause(self) -> str:
        return str(self.verdict["verdict"]["cause"])

    def finding(self, cause: str) -> dict[str, Any]:
        causes = [f["cause"] for f in self.verdict["findings"]]
        assert cause in causes, f"{cause} is not among {causes}: {self.verdict['verdict']}"
        found: dict[str, Any] = self.verdict["findings"][causes.index(cause)]
        return found


@pytest.fixture
def world(tmp_path: Path, deadline: Callable[..., Any]) -> Iterator[World]:
    made = World(tmp_path, deadline)
    try:
        yield made
    finally:
        made.close()


def sample_until(
    world: World, attach: Attach, what: str, *, periods: int = 3, table: str = "live_samples"
) -> None:
    """Waits until the probes have taken so many more samples."""
    health = attach.run / "raw" / table

    def size() -> int:
        return sum(path.stat().st_size for path in health.glob("*.arrows"))

    for _ in range(periods):
        before = size()
        world.deadline(what, lambda before=before: size() > before)


def test_a_healthy_server_meets_no_limit_and_ctrl_c_writes_the_report(world):
    server = world.plain()
    clients = world.clients()
    assert clients.open(30) == (30, 0)
    before = Path(f"/proc/{server.pid}/limits").read_text()
    attach = world.attach("--port", str(world.port))
    attach.watches()
    watching = [attach.child.pid, *process_tree.children_of(attach.child.pid)]
    assert len(watching) > 1
    # when memory runs out they go first, never the server
    scores = {Path(f"/proc/{pid}/oom_score_adj").read_text().strip() for pid in watching}
    assert scores == {"1000"}
    assert Path(f"/proc/{server.pid}/oom_score_adj").read_text().strip() != "1000"
    assert clients.open(13) == (43, 0)
    sample_until(world, attach, "samples of 43", periods=2)
    code = attach.end()
    causes = {f["cause"] for f in attach.verdict["findings"]}
    # a host that others keep busy is told as such; nothing else is
    assert causes <= {"no-limit-met", "host-cpu-saturated"}
    if attach.cause == "no-limit-met":
        assert code == 0
        assert "43 connections in 1 process" in attach.verdict["verdict"]["sentence"]
    assert attach.verdict["run"]["peak_connections"] == 43
    assert attach.verdict["run"]["held_connections"] == 43
    manifest = open_run_dir(attach.run).read_manifest()
    assert manifest["status"] == "finished"
    assert manifest["server"]["ports"] == [world.port]
    assert server.poll() is None
    assert Path(f"/proc/{server.pid}/limits").read_text() == before
    page = (attach.run / "report.html").read_text()
    assert page.count("The clients are elsewhere") >= 3
    assert "ramp began" not in page
    assert re.search(r"43 open .* CPU", attach.said)


def test_asyncio_at_its_descriptor_limit_is_named_and_the_duration_ends_it(world):
    server = world.plain(nofile=200)
    clients = world.clients()
    assert clients.open(75) == (75, 0)
    assert clients.open(75) == (150, 0)
    attach = world.attach("--pid", str(server.pid), "--duration", "3")
    attach.watches()
    kept, failed = clients.open(60)
    assert kept + failed == 210
    assert failed
    assert attach.ended() == 3
    assert attach.cause == "fd-limit-process"
    limit = attach.finding("fd-limit-process")
    assert limit["side"] == "server"
    assert limit["subject"]["pid"] == server.pid
    values = {e["id"]: e["value"] for e in limit["evidence"]}
    assert values["descriptor_limit"] == 200
    assert values["emfile_calls"] >= 1
    assert values["connections_open"] == pytest.approx(kept, abs=2)
    assert f"prlimit --pid {server.pid} --nofile=65535" in [f["command"] for f in limit["fix"]]
    assert re.search(r"server EMFILE \d", attach.said)


@pytest.mark.node
@pytest.mark.parametrize("scheduling", ["rr", pytest.param("none", marks=pytest.mark.variant)])
def test_a_node_cluster_at_its_limit_is_named_by_its_worker(world, scheduling):
    words = ["node", str(FOREIGN / "cluster.cjs"), str(world.port), "2", scheduling]
    assert shutil.which("node")
    server = world.serve(*words, nofile=100)
    world.deadline("both workers", lambda: len(process_tree.children_of(server.pid)) == 2)
    clients = world.clients()
    # One of the two has 35 at least and so half of its descriptors in use: its calls are watched.
    assert sum(clients.open(70)) == 70
    attach = world.attach("--port", str(world.port))
    attach.watches()
    clients.open(200)
    sample_until(world, attach, "samples of full workers", periods=2)
    assert attach.end() == 3
    limit = attach.finding("fd-limit-process")
    workers = process_tree.children_of(server.pid)
    assert limit["subject"]["pid"] in {*workers, server.pid}
    assert limit["subject"]["command"] == "node cluster.cjs"
    assert limit["severity"] in ("binding", "contributing")
    assert attach.cause in ("fd-limit-process", "full-worker-on-shared-listener")
    if scheduling == "none":
        attach.finding("server-resets-when-full")


def test_a_server_that_is_killed_in_another_namespace_is_a_crash_and_its_recording_kept(world):
    world.own_namespace()
    server = world.plain()
    clients = world.clients()
    assert clients.open(60) == (60, 0)
    attach = world.attach("--port", str(world.port))
    attach.watches()
    sample_until(world, attach, "samples of 60", periods=1)
    server.kill()
    assert attach.ended() == 3
    crash = attach.finding("worker-crash")
    assert attach.cause == "worker-crash"
    assert crash["subject"]["pid"] == server.pid
    assert "SIGKILL" in crash["explanation"]
    assert {e["id"]: e["value"] for e in crash["evidence"]}["process_connections"] == 60
    assert "the server ended while it was watched" in attach.said
    tables = {path.name for path in (attach.run / "raw").iterdir()}
    assert {"live_samples", "process_samples", "tcp_states", "listeners"} <= tables
    sysctls = open_run_dir(attach.run).read_manifest()["host"]["sysctls"]
    for name in ("net.core.netdev_max_backlog", "net.ipv4.tcp_max_orphans"):
        shown = Path("/proc/sys", *name.split("."))  # by the first namespace alone
        assert sysctls[name] == (int(shown.read_text()) if shown.exists() else None)


def test_workers_that_die_and_come_anew_are_followed(world):
    server = world.plain(workers=2)
    world.deadline("both workers", lambda: len(process_tree.children_of(server.pid)) == 2)
    clients = world.clients()
    assert clients.open(20) == (20, 0)
    before = set(process_tree.children_of(server.pid))
    attach = world.attach("--pid", str(server.pid))
    attach.watches()
    clients.ask(1, "/exit/9")
    world.deadline("a new worker", lambda: set(process_tree.children_of(server.pid)) - before)
    fresh = (set(process_tree.children_of(server.pid)) - before).pop()
    manifest = attach.run / "manifest.json"
    world.deadline("it is followed", lambda: f'"pid": {fresh},' in manifest.read_text())
    assert attach.end() == 3
    crash = attach.finding("worker-crash")
    assert crash["subject"]["pid"] in before
    assert "exit status 9" in crash["explanation"]


@pytest.mark.parametrize(
    ("path", "cause", "words"),
    [
        ("/block/4", "worker-blocked", "clock_nanosleep"),
        pytest.param("/spin/4.5", "hot-worker-code", "calculate", marks=pytest.mark.alone),
    ],
)
def test_an_event_loop_that_stands_still_or_burns_is_named(world, path, cause, words):
    server = world.plain()
    clients = world.clients()
    assert clients.open(10) == (10, 0)
    attach = world.attach("--port", str(world.port))
    attach.watches()
    sample_until(world, attach, "samples of a loop at work", periods=1)
    assert clients.open(1, path) == (11, 0)
    # The loop is busy with one thing: first it does not answer, then it does again.
    world.deadline("the loop is away", lambda: clients.open(1)[1] == 1)
    world.deadline("the loop answers again", lambda: clients.open(1)[1] == 0)
    sample_until(world, attach, "samples after it", periods=1)
    assert attach.end() == 3
    found = attach.finding(cause)
    assert found["subject"]["pid"] == server.pid
    # a hot worker's first second has few stacks: then its function is on the page alone
    assert words in found["explanation"] + (attach.run / "report.html").read_text()


@pytest.mark.node
@pytest.mark.alone
@pytest.mark.variant
def test_node_at_the_end_of_its_heap_is_told_from_hot_code(world):
    node = shutil.which("node")
    assert node
    program = [str(FOREIGN / "collects.cjs"), str(world.port), "60"]
    server = world.serve("node", "--max-old-space-size=90", *program)
    clients = world.clients()
    assert clients.open(10) == (10, 0)
    attach = world.attach("--pid", str(server.pid))
    attach.watches()
    clients.ask(1, "/collect")
    sample_until(world, attach, "stacks of the collector", periods=2, table="cpu_stacks")
    assert attach.end() == 3
    if symbol_table(ElfFile(os.open(Path(node).resolve(), os.O_RDONLY))) is None:
        pytest.skip("this node names no function of V8")
    found = attach.finding("garbage-collection")
    assert (found["side"], found["subject"]["pid"]) == ("server", server.pid)
    values = {each["id"]: each["value"] for each in found["evidence"]}
    assert values["collector_samples"] >= 40
    assert found["fix"][0]["command"].startswith("node --max-")  # of the old or the young space
    causes = {each["cause"] for each in attach.verdict["findings"]}
    # its threads and others may fill all cores, and what is full behind it may be told as well
    assert causes <= {"garbage-collection", "runtime-heap-limit", "host-cpu-saturated"}


def test_with_allow_pauses_stacks_are_exact_and_the_server_goes_on(world):
    server = world.plain()
    clients = world.clients()
    assert clients.open(10) == (10, 0)
    attach = world.attach("--port", str(world.port), "--allow-pauses")
    attach.watches()
    deep = ["main", "run", "run_until_complete", "run_forever", "_run_once", "serve", "calculate"]
    assert clients.open(1, "/spin/2.5") == (11, 0)
    records = [words for words in commands_of(attach.child.pid) if "record" in words]
    assert records
    assert not [words for words in records if "--nonblocking" in words]
    world.deadline("the loop is away", lambda: clients.open(1)[1] == 1)
    world.deadline("the loop answers again", lambda: clients.open(1)[1] == 0)
    attach.end()
    stacks = open_run_dir(attach.run).read_table("python_stacks").table.to_pylist()
    seen = [row["stack"] for row in stacks if "calculate" in row["stack"]]
    assert seen
    for stack in seen:  # each is whole and in order
        names = [frame.split(" ")[0].rpartition(".")[2] for frame in stack.split(";")]
        assert [n for n in dict.fromkeys(names) if n in deep] == deep, stack
    assert server.poll() is None
    status = Path(f"/proc/{server.pid}/status").read_text()
    assert re.search(r"^State:\s+[SR]", status, re.MULTILINE), status
    assert re.search(r"^TracerPid:\s+0$", status, re.MULTILINE), status


def commands_of(root: int) -> list[list[str]]:
    found = []
    for pid in process_tree.tree_of(root):
        with suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            found.append([word.decode() for word in words])
    return found


@pytest.mark.variant
def test_the_calls_of_a_32_bit_server_are_named_by_its_own_table(world):
    if os.uname().machine != "x86_64":
        pytest.skip("a 32-bit program for x86")
    world.own_namespace()
    world.port = 9001
    program = world.path / "program_32"
    writer = [sys.executable, str(FOREIGN / "program_32.py"), str(program)]
    subprocess.run(writer, check=True, timeout=DEADLINE_S)
    server = world.serve(str(program), nofile=64)
    attach = world.attach("--pid", str(server.pid), "--probes", "full")
    attach.watches()
    clients = world.clients()
    clients.open(100)  # it answers none of them
    sample_until(world, attach, "samples of a full server", periods=4)
    assert attach.end() == 3
    assert "32-bit program" in attach.said
    limit = attach.finding("fd-limit-process")
    assert limit["subject"]["pid"] == server.pid
    values = {e["id"]: e["value"] for e in limit["evidence"]}
    assert values["emfile_calls"] >= 1
    run = open_run_dir(attach.run)
    failing = run.read_table("failing_syscalls").table.to_pylist()
    mine = {(row["syscall"], row["errno_name"]) for row in failing if row["pid"] == server.pid}
    assert mine == {("close", "EBADF"), ("accept4", "EMFILE")}  # 6 and 364; 6 is lstat of x86-64
    mix = run.read_table("syscall_mix").table.to_pylist()
    assert {row["syscall"] for row in mix if row["pid"] == server.pid} == {
        "close",
        "accept4",
        "nanosleep",  # 162, which is sync of x86-64
    }


def test_a_proxy_without_local_ports_is_told_from_outside(world):
    world.own_namespace(ip_local_port_range="40000 40049")
    behind = world.port + 1 if world.port < 65_000 else world.port - 1
    world.start([sys.executable, str(FOREIGN / "plain_server.py"), str(behind)])
    server = world.plain()
    clients = world.clients()
    assert clients.open(10) == (10, 0)
    attach = world.attach("--pid", str(server.pid), "--probes", "full")
    attach.watches()
    assert clients.open(20, f"/dial/{behind}/3") == (30, 0)  # 60 of its own, and 50 ports
    sample_until(world, attach, "samples after it", periods=2)
    assert attach.end() == 3
    ports = attach.finding("ephemeral-ports-exhausted")
    assert attach.cause == "ephemeral-ports-exhausted"
    assert (ports["side"], ports["subject"]["pid"]) == ("server", server.pid)
    values = {e["id"]: e["value"] for e in ports["evidence"]}
    assert values["eaddrnotavail_calls"] == 10
    assert values["port_range_size"] == 50
    assert not [fix for fix in ports["fix"] if "profile-run" in fix["command"]]


def test_a_watch_whose_probes_died_does_not_say_that_all_is_well(world):
    world.plain()
    attach = world.attach("--port", str(world.port), "--probes", "light")
    attach.watches()
    (probes,) = [
        pid
        for pid in process_tree.tree_of(attach.child.pid)
        if b"probes.collect.main" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]
    os.kill(probes, signal.SIGKILL)
    assert attach.end() == 6, attach.said
    verdict = json.loads((attach.run / "verdict.json").read_text())["verdict"]
    assert (verdict["cause"], verdict["confidence"]) == ("no-limit-met", "medium")
    assert verdict["unseen"]
    assert verdict["unseen"][0] in verdict["sentence"]


def test_a_killed_attach_leaves_no_process_and_no_program(world):
    server = world.plain()
    attach = world.attach("--port", str(world.port))
    attach.watches()
    tree = process_tree.tree_of(attach.child.pid)
    assert len(tree) >= 2
    programs = programs_of(tree)
    assert programs
    # meanwhile it takes only what others leave
    world.deadline("it stands back", lambda: os.getpriority(os.PRIO_PROCESS, tree[1]) == 19)
    assert os.sched_getscheduler(tree[1]) == os.SCHED_BATCH
    attach.child.kill()
    world.deadline(
        "all of it ends",
        lambda: not any((s := process_tree.read_stat(p)) and s.is_alive for p in tree[1:]),
    )
    world.deadline("its programs go", lambda: not programs & all_programs())
    assert server.poll() is None
    # what it recorded is still a run
    done = subprocess.run(
        [sys.executable, "-P", "-m", "harness.commands.report", str(attach.run)],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert done.returncode == 0, done.stderr
    assert (attach.run / "report.html").stat().st_size > 10_000


def programs_of(pids: list[int]) -> set[int]:
    """Ids of the eBPF programs whose descriptors those processes have (fdinfo of bpf(2))."""
    found: set[int] = set()
    for pid in pids:
        for path in Path(f"/proc/{pid}/fdinfo").glob("*"):
            with suppress(OSError):
                found.update(int(n) for n in re.findall(r"prog_id:\s+(\d+)", path.read_text()))
    return found


def all_programs() -> set[int]:
    done = subprocess.run(
        ["bpftool", "-j", "prog", "show"], capture_output=True, text=True, timeout=60
    )
    return {int(each["id"]) for each in json.loads(done.stdout)}
