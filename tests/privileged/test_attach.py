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

from harness import netns
from probes import process_tree
from probes.rundir import open_run_dir

pytestmark = [pytest.mark.privileged, pytest.mark.shared]

FOREIGN = Path(__file__).parents[1] / "harness" / "foreign"
COMMAND = [sys.executable, "-P", "-m", "harness.cli_attach"]
DEADLINE_S = 60


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
                netns.enter(self.namespace_fd)
            if nofile:
                resource.setrlimit(resource.RLIMIT_NOFILE, (nofile, nofile))

        child = subprocess.Popen(
            words,
            text=True,
            start_new_session=True,
            preexec_fn=before,  # noqa: PLW1509 - one thread
            **options,
        )
        self._stack.callback(self._end, child)
        return child

    def _end(self, child: subprocess.Popen[str]) -> None:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        for stream in (child.stdin, child.stdout, child.stderr):
            if stream is not None:
                stream.close()

    def own_namespace(self) -> None:
        """From now on servers and clients are in a namespace of their own."""
        self.namespace_fd = netns.create({})
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
            f"the watch begins: {self.said}", lambda: "| watch " in self.said, seconds=40
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


def sample_until(world: World, attach: Attach, what: str, *, periods: int = 3) -> None:
    """Waits until the probes have taken so many more samples."""
    health = attach.run / "raw" / "live_samples"

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
    values = {e["name"]: e["value"] for e in limit["evidence"]}
    assert values["soft limit (RLIMIT_NOFILE)"] == 200
    assert values["accept4 calls that returned EMFILE"] >= 1
    assert values["connections of all then"] == pytest.approx(kept, abs=2)
    assert f"prlimit --pid {server.pid} --nofile=65535" in [f["command"] for f in limit["fix"]]
    assert re.search(r"server EMFILE \d", attach.said)


@pytest.mark.node
@pytest.mark.parametrize("scheduling", ["rr", "none"])
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
    assert {e["name"]: e["value"] for e in crash["evidence"]}["connections it held"] == 60
    assert "the server ended while it was watched" in attach.said
    tables = {path.name for path in (attach.run / "raw").iterdir()}
    assert {"live_samples", "process_samples", "tcp_states", "listeners"} <= tables


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
        ("/block/2.5", "worker-blocked", "clock_nanosleep"),
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
        [sys.executable, "-P", "-m", "harness.cli_report", str(attach.run)],
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
        ["bpftool", "-j", "prog", "show"], capture_output=True, text=True, timeout=20
    )
    return {int(each["id"]) for each in json.loads(done.stdout)}
