"""Which servers there are, how each is started, and which versions they have here."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.environment import package_version

_HERE = Path(__file__).resolve().parent
_ROOT = _HERE.parents[1]
_VENV = _ROOT / ".venv-peers"
_PYTHON = _VENV / "bin" / "python"
_NODE_MODULES = _ROOT / "tests" / "node_modules"


@dataclass(frozen=True, slots=True)
class Peer:
    """One server.

    Attributes:
        name: For ``--servers`` and the tests.
        title: For people.
        words: Makes its command from the number of workers; ``{port}`` stays in it.
        packages: Distributions in ``.venv-peers`` whose versions count.
        debian: The same of packages of the operating system: name for people, name of the package.
        programs: Programs whose versions count, with the arguments that print them.
        fds_per_connection: Descriptors of one of its workers for one connection.
        capacity_factor: Workers for a number of connections are multiplied by it: listeners that
            are shared, or that hash, fill unevenly.
        needs: Files without which it does not start.
        remark: What one must know to read its figures, a sentence.
    """

    name: str
    title: str
    words: Callable[[int], list[str]]
    packages: tuple[str, ...] = ()
    programs: tuple[tuple[str, ...], ...] = ()
    fds_per_connection: int = 1
    capacity_factor: float = 1.1
    needs: tuple[Path, ...] = ()
    debian: tuple[tuple[str, str], ...] = ()
    remark: str = ""

    def command(self, workers: int) -> str:
        """The command for ``profile-run --server-cmd``."""
        return " ".join(
            word if word == "{port}" else shlex.quote(word) for word in self.words(workers)
        )

    def started_by(self, workers: int) -> str:
        """The command as it reads in any copy of this repository."""
        return self.command(workers).replace(f"{_ROOT}/", "")

    def workers_for(self, connections: int, nofile_count: int, *, most: int = 64) -> int:
        """Workers with room for so many connections; each keeps 64 descriptors for itself."""
        room_count = max(1, (nofile_count - 64) // self.fds_per_connection)
        if connections <= room_count:
            return 1
        return min(most, -(-int(connections * self.capacity_factor) // room_count))

    @property
    def missing(self) -> list[str]:
        """What it needs and is not there."""
        programs = [words[0] for words in self.programs if shutil.which(words[0]) is None]
        return programs + [str(path) for path in self.needs if not path.exists()]

    def versions(self) -> dict[str, str]:
        """Versions by name, as its own programs and packages say them."""
        found = {name: _distribution(name) for name in self.packages}
        if self.packages:
            found |= {"Python": _program([str(_PYTHON), "--version"])}
        for words in self.programs:
            found[words[0]] = _program(list(words))
        found |= {name: package_version(package) for name, package in self.debian}
        if any(words[0] == "node" for words in self.programs):
            package = json.loads((_NODE_MODULES / "ws" / "package.json").read_text("utf-8"))
            found["ws"] = package["version"]
        return found


def environment() -> dict[str, str]:
    """What the commands need in their environment."""
    path = os.environ.get("PATH", "")
    return {**os.environ, "NODE_PATH": str(_NODE_MODULES), "PATH": f"{path}:/usr/sbin:/sbin"}


def _distribution(name: str) -> str:
    for path in _VENV.glob(f"lib/python*/site-packages/{name}-*.dist-info"):
        return path.name.removesuffix(".dist-info").partition("-")[2]
    return "not installed"


def _program(words: list[str]) -> str:
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=20)
    except OSError:
        return "not installed"
    found = re.search(r"\d+(\.\d+)+", done.stdout + done.stderr)
    return found[0] if found else "unknown"


def _node(scheduling: str) -> Callable[[int], list[str]]:
    script = str(_HERE / "node_cluster.cjs")
    return lambda workers: ["node", script, "{port}", str(workers), scheduling]


def _python(script: str) -> Callable[[int], list[str]]:
    return _several([str(_PYTHON), str(_HERE / script), "{port}"])


def _several(command: list[str]) -> Callable[[int], list[str]]:
    def words(workers: int) -> list[str]:
        if workers == 1:
            return command
        return [str(_PYTHON), str(_HERE / "several.py"), str(workers), *command]

    return words


def _uvicorn(workers: int) -> list[str]:
    options = ["--host", "127.0.0.1", "--port", "{port}", "--log-level", "warning"]
    options += ["--ws-per-message-deflate", "false", "--no-access-log"]
    options += ["--ws-ping-interval", "3600", "--workers", str(workers)]
    start = [str(_PYTHON), "-m", "uvicorn", "--app-dir", str(_HERE)]
    return [*start, *options, "asgi_application:application"]


def _hypercorn(workers: int) -> list[str]:
    options = ["--bind", "127.0.0.1:{port}", "--log-level", "warning", "--workers", str(workers)]
    start = [str(_PYTHON), "-m", "hypercorn", *options]
    return [*start, f"asgi:{_HERE / 'asgi_application.py'}:application"]


def _nginx(workers: int) -> list[str]:
    behind = max(1, -(-workers // 2))
    return [str(_PYTHON), str(_HERE / "nginx_proxy.py"), "{port}", str(workers), str(behind)]


_NODE = (("node", "--version"),)
_IN_VENV = (_PYTHON,)
_GO_SERVER = _VENV / "go" / "echo_server"

PEERS = (
    Peer("node-none", "Node ws, cluster SCHED_NONE", _node("none"), (), _NODE,
         capacity_factor=1.4, needs=(_NODE_MODULES / "ws",)),
    Peer("node-rr", "Node ws, cluster round robin", _node("rr"), (), _NODE,
         needs=(_NODE_MODULES / "ws",)),
    Peer("socketify", "socketify (uWebSockets)", _python("socketify_server.py"), ("socketify",),
         needs=_IN_VENV,
         remark="after 5 s without work its loop looks at its sockets every 10 ms only "
                "(idle_relaxation_time), and seven processes have too little work each to leave "
                "that mode; started right before the clients they take 120,000 in 3.7 s"),
    Peer("websockets", "websockets on asyncio", _python("websockets_server.py"), ("websockets",),
         needs=_IN_VENV),
    Peer("picows", "picows on uvloop", _python("picows_server.py"),
         ("picows", "aiofastnet", "uvloop"), needs=_IN_VENV),
    Peer("aiohttp", "aiohttp on asyncio", _python("aiohttp_server.py"), ("aiohttp",),
         needs=_IN_VENV),
    Peer("uvicorn", "uvicorn on uvloop", _uvicorn,
         ("uvicorn", "websockets", "uvloop"), capacity_factor=1.4, needs=_IN_VENV),
    Peer("hypercorn", "hypercorn on asyncio", _hypercorn,
         ("hypercorn", "wsproto"), capacity_factor=1.4, needs=_IN_VENV),
    Peer("nginx", "nginx in front of websockets", _nginx, ("websockets",), (("nginx", "-v"),),
         fds_per_connection=2, needs=_IN_VENV),
    Peer("java", "Java NIO, one selector",
         _several(["java", "-cp", str(_VENV / "java"), "EchoServer", "{port}"]), (),
         (("java", "-version"),), needs=(_VENV / "java" / "EchoServer.class",)),
    Peer("go", "Go gorilla/websocket", _several([str(_GO_SERVER), "{port}"]),
         programs=(("go", "version"),), needs=(_GO_SERVER,),
         debian=(("gorilla/websocket", "golang-github-gorilla-websocket-dev"),)),
)  # fmt: skip

BY_NAME = {peer.name: peer for peer in PEERS}
