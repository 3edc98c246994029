"""What an agent does for a run: each function is called by name from ``harness.hosts.cluster``.

It starts this host's supervisor and passes lines to it and from it; it does no work of the run
itself. Nobody hearing from it for ``UNHEARD_S`` ends what it started: the host was cut off, or who
made the run is gone.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import platform
import shutil
import socket
import sys
import tempfile
import time
import zlib
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from harness.hosts.clock_echo import ClockEcho, exchange
from harness.planning.host import Host, read_host
from harness.version import tool_commit, tool_version
from probes.contract import schema
from probes.contract.errors import ToolkitError

UNHEARD_S = 4.0
CHUNK_BYTES = 4 << 20
_PACKAGES = ("distributed", "numpy", "pandas", "pyarrow")
_KEPT_VARIABLES = (
    *("PATH", "LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONHOME", "HOME", "LANG", "LC_ALL", "LC_CTYPE"),
    *("TZ", "TMPDIR", "XDG_CACHE_HOME", "PYTHONWARNINGS"),
)
_IP_MTU = 14
_MOST_LINE_BYTES = 1 << 20


@dataclass(slots=True)
class _Started:
    """One host's supervisor as its agent sees it."""

    process: asyncio.subprocess.Process
    folder: Path
    heard_s: float
    told: dict[str, Any] = field(default_factory=dict)
    state: str = "begun"
    run_folder: Path | None = None
    watchers: list[asyncio.Task[None]] = field(default_factory=list)


_started: dict[str, _Started] = {}
_echoes: dict[str, ClockEcho] = {}


def versions() -> dict[str, str]:
    """What has to be the same on all hosts of a run."""
    found = {
        "connscope": tool_version(),
        "commit": tool_commit(),
        "schema": str(schema.SCHEMA_VERSION),
        "Python": ".".join(platform.python_version_tuple()[:2]),
    }
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "none"
    return found


async def describe(run_id: str, address: str, key: str) -> tuple[dict[str, Any], Host | None]:
    """What this host is: versions, who the agent is, and its limits.

    Args:
        run_id: Of the run.
        address: Where clocks are compared with other hosts.
        key: Of this run: the echo answers nobody who has it not.
    """
    old = _echoes.pop(run_id, None)
    if old is not None:
        old.close()
    _echoes[run_id] = echo = await ClockEcho.listen(address, bytes.fromhex(key))
    facts = {
        "versions": versions(),
        "pid": os.getpid(),
        "hostname": platform.node(),
        "clock_port": echo.port,
        "boot_id": _text("/proc/sys/kernel/random/boot_id"),
        "wall_ns": time.time_ns(),
    }
    try:
        return facts, read_host()
    except ToolkitError as error:  # an exception would lose its fix on the way
        return facts | {"refusal": error.message, "fix": error.fix}, None


async def now_ns() -> int:
    """This host's monotonic clock."""
    return time.monotonic_ns()


async def compare_clocks(address: str, port: int, key: str, count: int) -> list[list[int]]:
    """Pairs of this host's clock and another's; see ``clock_echo.exchange``."""
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(None, exchange, address, port, bytes.fromhex(key), count)


async def mtu_bytes(address: str) -> int:
    """The largest packet on the way to a host, as far as this kernel knows it (ip(7), IP_MTU)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        asker.connect((address, 9))  # sends nothing
        return asker.getsockopt(socket.IPPROTO_IP, _IP_MTU)


async def start(run_id: str, shard: str) -> None:
    """Starts this host's supervisor.

    Raises:
        RuntimeError: It was started before.
    """
    if run_id in _started:
        raise RuntimeError(f"run {run_id} was started on this host before")
    folder = Path(tempfile.mkdtemp(prefix="connscope-shard-"))
    log_fd = os.open(folder / "supervisor.log", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "harness.hosts.shard_main", str(folder)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=log_fd,
            start_new_session=True,
            cwd="/",
            env={name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ},
            limit=_MOST_LINE_BYTES,
        )
    finally:
        os.close(log_fd)
    started = _started[run_id] = _Started(process, folder, time.monotonic())
    started.watchers = [
        asyncio.create_task(_listen(started)),
        asyncio.create_task(_end_unheard(started)),
    ]
    assert process.stdin is not None
    process.stdin.write(shard.encode() + b"\n")
    await process.stdin.drain()


async def _listen(started: _Started) -> None:
    assert started.process.stdout is not None
    while line := await started.process.stdout.readline():
        try:
            said = json.loads(line)
        except ValueError:
            continue
        started.state = said.get("state", started.state)
        started.told |= said
        if "folder" in said:
            started.run_folder = Path(said["folder"])
    code = await started.process.wait()
    if started.state not in ("recorded", "failed"):
        log = (started.folder / "supervisor.log").read_text(errors="replace").strip()
        last = log.splitlines()[-1] if log else f"it ended with {code}"
        started.state = "failed"
        started.told |= {"message": f"the supervisor ended: {last[:300]}", "fix": "try again"}


async def _end_unheard(started: _Started) -> None:
    while started.process.returncode is None:
        await asyncio.sleep(0.25)
        if time.monotonic() - started.heard_s > UNHEARD_S:
            _hang_up(started)
            return


def _hang_up(started: _Started) -> None:
    """Its supervisor ends as after a signal when its standard input does."""
    if started.process.stdin is not None:
        started.process.stdin.close()


async def hear(run_id: str) -> dict[str, Any]:
    """What this host's supervisor said last."""
    started = _started[run_id]
    started.heard_s = time.monotonic()
    own = time.process_time()
    told = {key: value for key, value in started.told.items() if key != "state"}
    return {**told, "state": started.state, "agent_cpu_s": own, "agent_rss_bytes": _rss_bytes()}


async def tell(run_id: str, said: dict[str, Any]) -> None:
    """Passes a line on to this host's supervisor."""
    stdin = _started[run_id].process.stdin
    if stdin is not None and not stdin.is_closing():
        stdin.write(json.dumps(said).encode() + b"\n")
        await stdin.drain()


async def files_of(run_id: str) -> list[tuple[str, int, str]]:
    """Name, size and digest (SHA-256) of each file of the run directory."""
    started = _started[run_id]
    folder = started.run_folder
    if folder is None:
        return []
    found = [folder / "manifest.json", *sorted(folder.glob("raw/*/*.arrows"))]
    found += sorted(folder.glob("logs/*.log"))

    def digest(path: Path) -> str:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()

    return [
        (str(each.relative_to(folder)), each.stat().st_size, digest(each))
        for each in found
        if each.is_file()
    ]


async def read(run_id: str, name: str, offset: int) -> bytes:
    """A piece of a file, compressed."""
    started = _started[run_id]
    started.heard_s = time.monotonic()
    assert started.run_folder is not None
    with (started.run_folder / name).open("rb") as stream:
        stream.seek(offset)
        return zlib.compress(stream.read(CHUNK_BYTES), 1)


async def forget(run_id: str) -> None:
    """Ends what is left of a run on this host and removes its folder."""
    echo = _echoes.pop(run_id, None)
    if echo is not None:
        echo.close()
    started = _started.pop(run_id, None)
    if started is None:
        return
    _hang_up(started)
    try:
        await asyncio.wait_for(started.process.wait(), UNHEARD_S + 1)
    except TimeoutError:
        started.process.kill()
        await started.process.wait()
    for task in started.watchers:
        task.cancel()
    shutil.rmtree(started.folder, ignore_errors=True)


async def forget_all() -> None:
    """The same for all runs: the agent ends."""
    await asyncio.gather(*(forget(run_id) for run_id in {*_started, *_echoes}))


def _rss_bytes() -> int:
    return int(_text("/proc/self/statm").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii").strip()
    except OSError:
        return ""
