"""Other people's servers at their descriptor limit: what each does there, named by the verdict.

Node that has lost its reserve descriptor is in ``test_foreign_stacks``.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from bench.peers import catalogue
from tests.machine import in_turn

pytestmark = [pytest.mark.privileged, pytest.mark.node, pytest.mark.in_turn(cores=0.5)]

DEADLINE_S = 150
NOFILE = 300
PORTS = "nginx without ports"
COMMANDS = {
    "asyncio-4096": f"{catalogue.BY_NAME['websockets'].command(1)} 4096",
}
COUNTS = "failing_syscalls,live_samples,process_samples"
STACKS = f"{COUNTS},host_counters,cpu_stacks,python_stacks"


class Expected(NamedTuple):
    """What a server does at its limit: ``consequence`` beside fd-limit-process, '' for none."""

    workers: int
    command: str
    consequence: str
    hangs: bool
    calls: tuple[str, ...] = ("accept4",)
    function: str = ""
    wait_s: float = 1.0
    descriptors_per_connection: int = 1


EXPECTED = {
    "node-none": Expected(2, "node node_cluster.cjs", "server-resets-when-full", False),
    # the primary accepts for all and keeps what no worker can take
    "node-rr": Expected(2, "node node_cluster.cjs", "", True, calls=()),
    "socketify": Expected(1, "python socketify_server.py", "", True),
    "websockets": Expected(1, "python websockets_server.py", "", True),
    # its loop tries as often as its backlog is long, and again every second for each of the tries
    "asyncio-4096": Expected(
        1, "python websockets_server.py", "accept-spin", True,
        function="_accept_connection (asyncio/selector_events.py)", wait_s=3.0,
    ),
    "picows": Expected(
        1, "python picows_server.py", "accept-spin", True,
        function="_accept_connection (aiofastnet/", wait_s=3.0,
    ),
    "aiohttp": Expected(1, "python aiohttp_server.py", "", True),
    "uvicorn": Expected(2, "python", "server-resets-when-full", False),
    # its workers take from one listener; each stops accepting for a second
    "hypercorn": Expected(2, "python multiprocessing", "", True),
    "go": Expected(1, "echo_server", "", True),
    "nginx": Expected(
        1, "nginx: worker process", "upgrade-refused", True, descriptors_per_connection=2,
        calls=("accept4", "socket"),  # whichever is first to find none left
    ),
    "java": Expected(
        1, "java EchoServer", "accept-spin", True, calls=("accept",), function="accept", wait_s=3.0
    ),
}  # fmt: skip
VARIANTS = {
    *("node-rr", "socketify", "websockets", "picows", "hypercorn", "aiohttp", "java", "uvicorn"),
    "go",
}
"""Of a runtime that another one of them has, or that says the same."""
SPINNING = [name for name, each in EXPECTED.items() if each.function]


def marked(name: str) -> Any:
    """A peer with its cores and, where it is one, as a variant."""
    return in_turn(name, 0.0 if name in SPINNING else 0.5, is_variant=name in VARIANTS)


class Run:
    """One run of profile-run that met a limit of the server: its verdict and its folder."""

    def __init__(self, made: dict[str, Any]) -> None:
        self.verdict: dict[str, Any] = made["verdict"]
        self.path = Path(made["path"])

    def finding(self, cause: str) -> dict[str, Any]:
        found = [f for f in self.verdict["findings"] if f["cause"] == cause]
        assert found, f"{cause} is not among {[f['cause'] for f in self.verdict['findings']]}"
        return found[0]

    def values(self, cause: str) -> dict[str, float]:
        return {e["id"]: e["value"] for e in self.finding(cause)["evidence"]}

    def qualified(self, cause: str, evidence_id: str) -> dict[str, float]:
        """Qualifier to value of one id."""
        evidence = self.finding(cause)["evidence"]
        return {e["of"]: e["value"] for e in evidence if e["id"] == evidence_id}


def record(machine: Any, path: Path, command: str, *arguments: str) -> dict[str, Any]:
    """One run; what is judged by the stacks of a server that spins has all cores."""
    words = [
        *(sys.executable, "-P", "-m", "harness.commands.run", "--json", "--quiet", "--no-report"),
        *("--server-cmd", command, "--hold", "0.2", "--output", str(path), *arguments),
    ]
    done = machine.record(
        words,
        path,
        timeout_s=DEADLINE_S,
        cores=0.0 if STACKS in arguments else 0.5,
        env=catalogue.environment(),
    )
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == 3, done.stderr
    return {"verdict": json.loads(done.stdout), "path": str(path)}


def run_into_limit(machine: Any, path: Path, name: str) -> dict[str, Any]:
    expected = EXPECTED[name]
    return record(
        machine,
        path,
        COMMANDS.get(name) or installed(name).command(expected.workers),
        *("--connections", str(NOFILE * (expected.workers + 2)), "--nofile", str(NOFILE)),
        *("--connect-timeout", str(expected.wait_s)),
        *("--probes", STACKS if expected.function else COUNTS),
    )


def run_out_of_ports(machine: Any, path: Path, _name: str) -> dict[str, Any]:
    return record(
        machine,
        path,
        installed("nginx").command(1),
        *("--connections", "400", "--port-range", "40000-40249", "--source-addresses", "2"),
        *("--probes", COUNTS),
    )


def installed(name: str) -> catalogue.Peer:
    peer = catalogue.BY_NAME[name]
    assert not peer.missing, f"{peer.missing}: bash .ci/setup peers"
    return peer


@pytest.fixture(scope="session")
def full(once: Callable[..., Any], machine: Any) -> Callable[[str], Run]:
    """Runs a server into its limit the first time that a test of the session asks for it."""
    assert os.geteuid() == 0, "these tests need root: sudo make test"

    def get(name: str) -> Run:
        run_into = run_out_of_ports if name == PORTS else run_into_limit
        return Run(once(f"peer {name}", lambda folder: run_into(machine, folder, name)))

    return get


@pytest.mark.parametrize("name", [marked(name) for name in EXPECTED])
def test_the_limit_and_what_follows_from_it_are_named(full, name):
    run, expected = full(name), EXPECTED[name]
    said = run.verdict["verdict"]
    assert (said["cause"], said["side"]) == ("fd-limit-process", "server")
    limit = run.finding("fd-limit-process")
    assert limit["subject"]["command"].startswith(expected.command)
    values = run.values("fd-limit-process")
    own = values["descriptors_own"]
    assert values["descriptor_limit"] == NOFILE
    assert values["descriptors_open"] == NOFILE
    calls = [
        of
        for of in run.qualified("fd-limit-process", "emfile_calls")
        if of.startswith(expected.calls)
    ]
    assert bool(calls) is bool(expected.calls)
    per = expected.descriptors_per_connection
    assert values.get("descriptors_per_connection", 1) == per
    held = run.verdict["run"]["peak_connections"]
    capacity = (NOFILE - own) / per
    # A full worker on a shared listener also takes, and resets, what its sibling has room for.
    assert capacity - 12 <= held <= expected.workers * capacity + 12
    named = {f["cause"] for f in run.verdict["findings"]} - {"fd-limit-process"}
    assert named == {expected.consequence} - {""}
    hanging = values.get("handshakes_unanswered", 0)
    assert (hanging > 0) is expected.hangs
    if expected.consequence:
        assert run.finding(expected.consequence)["follows_from"] == "fd-limit-process"


@pytest.mark.in_turn(cores=0.0)
@pytest.mark.parametrize("name", [marked(name) for name in SPINNING])
def test_a_worker_that_spins_is_explained_down_to_the_function(full, name):
    run, expected = full(name), EXPECTED[name]
    spin = run.finding("accept-spin")
    assert spin["subject"]["pid"] == run.finding("fd-limit-process")["subject"]["pid"]
    values = run.values("accept-spin")
    samples = run.qualified("accept-spin", "function_samples")
    in_function = [value for of, value in samples.items() if expected.function in of]
    # of samples that do not stop the process some are torn, more of them on a busy machine
    assert max(in_function) >= 5, samples
    assert f"{expected.calls[0]} fails with EMFILE" in spin["explanation"]
    assert values["handshakes_completed"] == 0


def test_a_refusal_of_a_full_proxy_is_told_with_its_status(full):
    values = full("nginx").values("upgrade-refused")
    assert values["http_status"] == 500
    assert "500 Internal Server Error" in full("nginx").verdict["verdict"]["sentence"]


def test_a_back_off_is_told_from_a_spin(full):
    # net/http sleeps 5 ms, 10 ms and so on up to a second between its tries (Server.Serve)
    values = full("go").values("fd-limit-process")
    assert 2 <= values["emfile_calls"] <= 20
    assert (
        "It keeps its listener and tries" in full("go").finding("fd-limit-process")["explanation"]
    )
    log = (full("go").path / "latest" / "logs" / "server.log").read_text()
    assert "too many open files; retrying in 5ms" in log


@pytest.mark.parametrize("name", [PORTS])
def test_a_proxy_that_runs_out_of_ports_is_named_with_its_pid(full, name):
    run = full(name)
    said = run.verdict["verdict"]
    assert (said["cause"], said["side"]) == ("ephemeral-ports-exhausted", "server")
    ports = run.finding("ephemeral-ports-exhausted")
    assert ports["subject"]["command"] == "nginx: worker process"
    values = run.values("ephemeral-ports-exhausted")
    # 150 found none; nginx may try once more, for a client that came back meanwhile
    assert 150 <= values["eaddrnotavail_calls"] <= 155
    assert values["port_range_size"] == 250
    refusal = run.finding("upgrade-refused")
    assert refusal["follows_from"] == "ephemeral-ports-exhausted"
    assert run.values("upgrade-refused")["http_status"] == 502
