"""A healthy run, or a healthy server that is watched, beside neighbours that are not so.

Each neighbour does for real what a finding looks for (``tests/neighbours``), and nothing of it may
be named. Those in another network namespace move what is the host's; those in the same one move its
counters as well.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from harness.faults import conntrack_fill
from harness.fleet import netns
from tests import warm_start
from tests.neighbours.program import beside

pytestmark = [pytest.mark.privileged, pytest.mark.shared]

FOREIGN = Path(__file__).parents[1] / "harness" / "foreign"
RUN = [sys.executable, "-P", "-m", "harness.commands.run"]
ATTACH = [sys.executable, "-P", "-m", "harness.commands.attach"]
DEADLINE_S = 90
PORT = 9001
CONNECTIONS = 300
CROWDED = "host-cpu-saturated"
HEALTHY = ["--connections", "300", "--workers", "2", "--clients", "2", "--hold", "2"]

ELSEWHERE = [
    ("oom",),
    ("conntrack",),
    pytest.param(("listener",), marks=pytest.mark.variant),
    pytest.param(("listener", "--queue", "half-open"), marks=pytest.mark.variant),
    pytest.param(("files",), marks=pytest.mark.variant),
    pytest.param(("tcp_memory",), marks=pytest.mark.variant),
    pytest.param(("tcp_memory", "--limit", "2000000"), marks=pytest.mark.variant),
    pytest.param(("drops",), marks=pytest.mark.variant),
    ("burner",),
    pytest.param(("disk",), marks=pytest.mark.variant),
]
SAME_NAMESPACE = [
    ("listener", "--here"),
    pytest.param(("listener", "--here", "--queue", "half-open"), marks=pytest.mark.variant),
    pytest.param(("tcp_memory", "--here"), marks=pytest.mark.variant),
    pytest.param(("tcp_memory", "--here", "--limit", "2000000"), marks=pytest.mark.variant),
    pytest.param(("drops", "--here"), marks=pytest.mark.variant),
    pytest.param(("time_wait", "--here"), marks=pytest.mark.variant),
]
SYSCTLS = {"net/ipv4/tcp_syncookies": "0"}  # with them nothing of a half-open queue is dropped


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    assert os.geteuid() == 0, "these tests need root: sudo make test"
    with ExitStack() as made:
        yield made


@pytest.fixture
def namespace_fd(stack: ExitStack) -> int:
    """A network namespace, which a run may then take for the host's."""
    made = netns.create(SYSCTLS)
    stack.callback(os.close, made)
    return made


def start(stack: ExitStack, words: list[str], namespace_fd: int = -1, **options: Any) -> Any:
    """A process in a session of its own, ended with the test."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options}
    if namespace_fd >= 0:
        with netns.inside(namespace_fd):
            child = subprocess.Popen(words, start_new_session=True, **options)
    else:
        child = warm_start.start(words, start_new_session=True, **options)

    def end() -> None:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.communicate()

    stack.callback(end)
    return child


def recorded(stack: ExitStack, path: Path, *more: str, namespace_fd: int = -1) -> dict[str, Any]:
    """The verdict of a run."""
    words = [*RUN, *more, "--json", "--quiet", "--no-report", "--output", str(path)]
    stdout, stderr = start(stack, words, namespace_fd).communicate(timeout=DEADLINE_S)
    assert stdout, stderr
    found: dict[str, Any] = json.loads(stdout)
    return found


def causes(verdict: dict[str, Any]) -> list[str]:
    """What is named, the binding one first, but for a host that is really full of other tests."""
    found = [finding["cause"] for finding in verdict["findings"]]
    return [cause for cause in found if cause != CROWDED]


def assert_healthy(verdict: dict[str, Any], good: str) -> None:
    assert verdict["verdict"]["cause"] in (good, CROWDED)
    assert causes(verdict) in ([], [good])


class Served:
    """A server of somebody else with clients that stay, and profile-attach that watches it."""

    def __init__(
        self, stack: ExitStack, path: Path, deadline: Callable[..., Any], namespace_fd: int
    ) -> None:
        self._stack, self._path, self._deadline = stack, path, deadline
        words = [sys.executable, str(FOREIGN / "plain_server.py"), str(PORT)]
        self.server = start(stack, words, namespace_fd, stdout=subprocess.DEVNULL,
                            stderr=subprocess.DEVNULL)  # fmt: skip
        table = Path(f"/proc/{self.server.pid}/net/tcp")
        listens = f":{PORT:04X} 00000000:0000 0A"
        deadline("the server listens", lambda: listens in table.read_text())
        # all are answered, however long others keep the cores
        clients = [sys.executable, str(FOREIGN / "plain_clients.py"), str(PORT), "30"]
        self._clients = start(stack, clients, namespace_fd, stdin=subprocess.PIPE)
        self.open(CONNECTIONS)

    def open(self, count: int) -> None:
        """So many more connections, all of them kept."""
        self._clients.stdin.write(f"{count} /\n")
        self._clients.stdin.flush()
        kept, failed = map(int, self._clients.stdout.readline().split())
        assert (kept >= count, failed) == (True, 0)

    def watch(self, meanwhile: Callable[[], None]) -> dict[str, Any]:
        """The verdict of a watch."""
        log = self._path / "attach.log"
        with log.open("w") as stream:
            words = [*ATTACH, "--pid", str(self.server.pid), "--json", "--no-report"]
            attach = start(
                self._stack, [*words, "--output", str(self._path / "runs")], stderr=stream
            )
        self._deadline("the watch begins", lambda: "| watch " in log.read_text(), seconds=60)
        meanwhile()
        attach.send_signal(signal.SIGINT)
        stdout, _ = attach.communicate(timeout=DEADLINE_S)
        assert stdout, log.read_text()
        found: dict[str, Any] = json.loads(stdout)
        return found


@pytest.fixture
def served(
    stack: ExitStack, tmp_path: Path, deadline: Callable[..., Any], namespace_fd: int
) -> Served:
    return Served(stack, tmp_path, deadline, namespace_fd)


@pytest.mark.parametrize("words", ELSEWHERE, ids=" ".join)
def test_a_healthy_run_is_reached_beside_it(stack, tmp_path, words):
    with beside(*words) as neighbour:
        verdict = recorded(stack, tmp_path, *HEALTHY)
    assert neighbour.count > 0
    assert_healthy(verdict, "reached")


@pytest.mark.parametrize("words", SAME_NAMESPACE, ids=" ".join)
def test_a_healthy_run_in_the_hosts_namespace_is_reached_beside_it(
    stack, tmp_path, namespace_fd, words
):
    with beside(*words, namespace_fd=namespace_fd) as neighbour:
        options = [*HEALTHY, "--host-network"]
        verdict = recorded(stack, tmp_path, *options, namespace_fd=namespace_fd)
    assert neighbour.count > 0
    assert_healthy(verdict, "reached")


@pytest.mark.parametrize(
    "words",
    [
        *(("oom",), ("listener", "--here")),
        *(
            pytest.param(words, marks=pytest.mark.variant)
            for words in (
                ("files",),
                ("listener", "--here", "--queue", "half-open"),
                ("tcp_memory", "--here"),
                ("tcp_memory", "--here", "--limit", "2000000"),
                ("drops", "--here"),
                ("time_wait", "--here"),
            )
        ),
    ],
    ids=" ".join,
)
def test_a_healthy_server_that_is_watched_beside_it_meets_no_limit(served, namespace_fd, words):
    def look() -> None:
        with beside(*words, namespace_fd=namespace_fd) as neighbour:
            served.open(20)
            time_to_be_seen()
        assert neighbour.count > 0

    assert_healthy(served.watch(look), "no-limit-met")


def test_a_table_that_a_neighbour_fills_is_not_named_of_a_server_that_lost_nothing(
    stack, tmp_path, deadline, namespace_fd
):
    with netns.inside(namespace_fd):  # tracked from the beginning, so that its flows are known
        conntrack_fill.fill(int(conntrack_fill.MAX.read_text()))
    served = Served(stack, tmp_path, deadline, namespace_fd)

    def look() -> None:
        with beside("conntrack", "--here", namespace_fd=namespace_fd) as neighbour:
            time_to_be_seen()
        assert neighbour.count > 0

    assert_healthy(served.watch(look), "no-limit-met")


def time_to_be_seen() -> None:
    """So long that counters are sampled at least twice, also of a quiet server (every 2 s)."""
    time.sleep(4.5)  # the length of the workload


@pytest.mark.parametrize(
    "attempt", [0, *(pytest.param(again, marks=pytest.mark.variant) for again in range(1, 5))]
)
def test_a_crash_beside_a_group_that_is_killed_again_and_again_is_a_crash_alone(
    stack, tmp_path, attempt
):
    options = ["--connections", "1500", "--workers", "2", "--hold", "2"]
    with beside("oom", "--per-second", "10") as neighbour:
        verdict = recorded(stack, tmp_path, *options, "--inject", "crash:1:400")
    assert neighbour.count > 0
    assert causes(verdict) == ["worker-crash"]
    (crash,) = [f for f in verdict["findings"] if f["cause"] != CROWDED]
    assert crash["severity"] == "binding"
    assert (crash["side"], crash["subject"]["worker"]) == ("server", 1)
