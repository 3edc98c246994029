"""Servers of strangers that stop at a limit of their own, or wait for somebody: named for real."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from probes.contract.rundir import open_run_dir
from tests.privileged.test_attach import World

pytestmark = [pytest.mark.privileged, pytest.mark.in_turn(cores=0.5)]

SERVER = Path(__file__).parents[1] / "harness" / "foreign" / "limit_server.py"
WANTED, LET_IN = 120, 40


class Run:
    """One run of profile-run against a server command."""

    def __init__(self, made: dict[str, Any]) -> None:
        self.verdict = json.loads(made["stdout"])
        self.code = made["code"]

    @property
    def binding(self) -> dict[str, Any]:
        """The finding that stopped the run."""
        found = [f for f in self.verdict["findings"] if f["severity"] == "binding"]
        assert len(found) == 1, [(f["cause"], f["severity"]) for f in self.verdict["findings"]]
        return found[0]

    def value(self, evidence_id: str) -> float:
        """Of the binding finding."""
        (value,) = [e["value"] for e in self.binding["evidence"] if e["id"] == evidence_id]
        return value


@pytest.fixture(scope="session")
def ran(once: Callable[..., Any], machine: Any) -> Callable[..., Run]:
    """``ran(name, command)``: a run of that server, made once."""

    def get(name: str, command: str, *more: str) -> Run:
        def make(folder: Path) -> dict[str, Any]:
            words = [
                *(sys.executable, "-P", "-m", "harness.commands.run", "--json", "--quiet"),
                *("--no-report", "--output", str(folder), "--connections", str(WANTED)),
                *("--connect-timeout", "1.5", "--hold", "0.5", "--server-cmd", command, *more),
            ]
            done = machine.record(words, folder, timeout_s=150, cores=0.5)
            assert "Traceback" not in done.stderr, done.stderr
            return {"stdout": done.stdout, "code": done.returncode}

        return Run(once(f"wild-{name}", make))

    return get


def command(kind: str, count: int = LET_IN) -> str:
    return f"{sys.executable} -P {SERVER} {kind} {count} {{port}}"


@pytest.mark.parametrize(
    "kind",
    [
        "closes",
        "stops",
        *(pytest.param(each, marks=pytest.mark.variant) for each in ("silent", "refuses")),
    ],
)
def test_a_limit_of_the_server_itself_is_named_with_its_number(ran, kind):
    run = ran(kind, command(kind))
    assert run.binding["cause"] == "own-limit"
    assert run.binding["subject"]["role"] == "server"
    assert abs(run.value("let_in") - LET_IN) <= 1
    assert run.value("attempts_after_let_in") == 0
    assert run.value("descriptors_open") < run.value("descriptor_limit") / 10
    others = {f["cause"] for f in run.verdict["findings"] if f["severity"] != "binding"}
    assert others <= {"upgrade-refused"}
    assert run.code == 3


@pytest.mark.parametrize(
    ("kind", "threads"),
    [("threads", LET_IN), ("asks", 4), pytest.param("one", 1, marks=pytest.mark.variant)],
)
def test_connections_that_wait_for_a_thread_or_for_somebody_else_are_told(ran, kind, threads):
    run = ran(kind, command(kind, threads))
    assert run.binding["cause"] == "waits-for-slot"
    assert run.value("waiting_threads") == threads
    (where,) = [e["of"] for e in run.binding["evidence"] if e["id"] == "waiting_threads"]
    assert where.startswith(("recvfrom", "poll"))
    assert ("127.0.0.1:" in where) == (kind == "asks")
    assert {f["cause"] for f in run.verdict["findings"]} == {"waits-for-slot"}


def test_a_healthy_server_with_threads_that_wait_is_not_accused(ran):
    run = ran("healthy", command("healthy"))
    assert run.binding["cause"] == "reached"
    assert len(run.verdict["findings"]) == 1


def test_the_setting_is_named_where_its_value_stands(ran, tmp_path):
    script = tmp_path / "server.py"
    text = SERVER.read_text().replace("int(sys.argv[2])", "40", 1)
    script.write_text(text)
    run = ran("setting", f"{sys.executable} -P {script} stops x {{port}}")
    assert run.binding["cause"] == "own-limit"
    assert run.value("limit_setting") == LET_IN
    number = text.split("\n").index(next(x for x in text.split("\n") if "40, int(" in x)) + 1
    assert f"server.py:{number}" in run.binding["fix"][0]["command"]


@pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed")
@pytest.mark.parametrize(
    ("behind", "cause"),
    [
        ("stops", "own-limit"),
        pytest.param("threads", "waits-for-slot", marks=pytest.mark.variant),
    ],
)
def test_what_works_behind_a_proxy_is_named_and_not_the_proxy(ran, tmp_path, behind, cause):
    script = tmp_path / "run.py"
    script.write_text(PROXY.format(python=sys.executable, server=SERVER, kind=behind, count=LET_IN))
    run = ran(f"proxy-{behind}", f"{sys.executable} -P {script} {{port}}")
    assert run.binding["cause"] == cause
    assert run.binding["subject"]["role"] == "backend"
    assert "limit_server.py" in run.binding["subject"]["command"]


@pytest.fixture
def world(tmp_path: Path, deadline: Callable[..., Any]) -> Iterator[World]:
    made = World(tmp_path, deadline)
    try:
        yield made
    finally:
        made.close()


def test_attach_names_a_queue_that_its_owner_leaves_standing(world, machine):
    with machine.shared():
        words = [sys.executable, "-P", str(SERVER), "once", "0", str(world.port)]
        server = world.serve(*words)
        clients = world.clients()
        os.kill(server.pid, signal.SIGSTOP)  # so that all come before it looks
        assert clients.open(CAME) == (0, CAME)
        os.kill(server.pid, signal.SIGCONT)
        attach = world.attach("--port", str(world.port))
        attach.watches()

        def has_stood() -> bool:
            looks = open_run_dir(attach.run).read_table("open_fates").table.to_pylist()
            return sum(row["quiet_count"] == CAME - 1 for row in looks) >= 3

        world.deadline("three looks at the queue", has_stood, seconds=240)
        attach.end()
    assert attach.cause == "queue-left-standing", attach.verdict["verdict"]
    finding = attach.finding("queue-left-standing")
    assert finding["subject"]["pid"] == server.pid
    values = {e["id"]: e["value"] for e in finding["evidence"]}
    assert (values["told_once"], values["standing_queue"]) == (1, CAME - 1)


CAME = 40

PROXY = """
import pathlib, signal, subprocess, sys, tempfile, time, socket
port = int(sys.argv[1])
folder = tempfile.mkdtemp()
behind = subprocess.Popen(["{python}", "-P", "{server}", "{kind}", "{count}", str(port + 1)])
end_s = time.monotonic() + 60
while time.monotonic() < end_s:
    try:
        socket.create_connection(("127.0.0.1", port + 1)).close()
        break
    except OSError:
        time.sleep(0.02)
text = '''daemon off; pid {{folder}}/pid; error_log stderr; user root;
events {{{{ worker_connections 4096; }}}}
http {{{{ access_log off; client_body_temp_path {{folder}}/a; proxy_temp_path {{folder}}/b;
fastcgi_temp_path {{folder}}/c; uwsgi_temp_path {{folder}}/d; scgi_temp_path {{folder}}/e;
server {{{{ listen 127.0.0.1:{{port}}; location / {{{{ proxy_pass http://127.0.0.1:{{behind}};
proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade;
proxy_set_header Connection upgrade; }}}} }}}} }}}}'''.format(
    folder=folder, port=port, behind=port + 1)
path = pathlib.Path(folder, "nginx.conf")
path.write_text(text)
server = subprocess.Popen(["nginx", "-p", folder, "-e", "stderr", "-c", str(path)])
def end(*_):
    server.terminate()
    behind.kill()
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
server.wait()
"""
