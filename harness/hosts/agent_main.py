"""An agent: ``python -P -m harness.hosts.agent_main``, started on each host by ``profile-run``.

What it needs comes on standard input, one line of JSON: where the scheduler is, and the run's
certificate and key. It ends when standard input does, and ends before what it started.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from harness.hosts import agent
from harness.hosts.dask_settings import turn_off
from harness.hosts.shard import AGENT_FOLDER

_END_S = 6.0


def main() -> int:
    """Reads what it is told, works until nobody is there."""
    told = json.loads(sys.stdin.buffer.readline())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    turn_off()
    sweep()
    with (
        tempfile.TemporaryDirectory(prefix=f"{AGENT_FOLDER}{os.getpid()}-") as folder,
        suppress(KeyboardInterrupt, asyncio.CancelledError),
    ):
        tempfile.tempdir = folder  # of its supervisors, too
        asyncio.run(_work(told, folder))
    return 0


def sweep() -> None:
    """Removes the folders of agents of this user that were killed."""
    for path in Path(tempfile.gettempdir()).glob(f"{AGENT_FOLDER}*-*"):
        pid = path.name.removeprefix(AGENT_FOLDER).partition("-")[0]
        is_gone = pid.isdigit() and not Path(f"/proc/{pid}").exists()
        with suppress(OSError):
            if is_gone and path.lstat().st_uid == os.geteuid() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)


async def _work(told: dict[str, Any], folder: str) -> None:
    # Dask would import it, for nothing that goes through an agent: 13 MB beside what is measured.
    sys.modules.setdefault("numpy", None)  # type: ignore[arg-type]
    from distributed import Security, Worker

    over = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, over.set)
    loop.add_reader(sys.stdin.fileno(), lambda: _read_on(over))
    security = Security(
        require_encryption=True,
        tls_ca_file=told["certificate"],
        tls_worker_cert=told["certificate"],
        tls_worker_key=told["key"],
    )
    worker = Worker(
        told["scheduler"],
        name=told["name"],
        host=told["address"],
        nthreads=1,
        memory_limit=0,
        local_directory=folder,
        dashboard=False,
        dashboard_address="127.0.0.1:0",
        security=security,
        death_timeout=30,
        heartbeat_interval="2s",
    )
    try:
        await worker
        waits = [asyncio.ensure_future(each) for each in (over.wait(), worker.finished())]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        with suppress(TimeoutError):
            await asyncio.wait_for(agent.forget_all(), _END_S)
        with suppress(Exception):
            await asyncio.wait_for(worker.close(nanny=False), 1.0)


def _read_on(over: asyncio.Event) -> None:
    if not os.read(sys.stdin.fileno(), 4096):
        asyncio.get_running_loop().remove_reader(sys.stdin.fileno())
        over.set()


if __name__ == "__main__":
    sys.exit(main())
