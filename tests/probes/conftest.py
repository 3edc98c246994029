"""A small fleet of Python processes and its shared memory, for the probes that need one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from probes.contract import live as live_memory
from probes.contract.live import Counter, Live, Role
from probes.contract.rundir import RunDir, create_run_dir

CHILD_PRELUDE = """
import ctypes, os, select, signal, sys, threading, time
ctypes.CDLL(None).prctl(1, 9)  # dies with the test, whatever happens
if os.getppid() != int(sys.argv[1]):
    sys.exit(1)
def ready(text="ready"):
    print(text, flush=True)
"""


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return create_run_dir(tmp_path, "probes")


@pytest.fixture
def new_live(tmp_path: Path) -> Iterator[Callable[..., tuple[Live, int]]]:
    """``new_live(slots, capacity, timed)`` makes a live.bin: its mapping and its descriptor."""
    made: list[tuple[Live, int]] = []

    def make(slots: int, capacity: int = 0, timed_clients: int = 0) -> tuple[Live, int]:
        path = tmp_path / f"live-{len(made)}.bin"
        fd = live_memory.create(path, slots, capacity, timed_clients)
        made.append((Live(fd), fd))
        return made[-1]

    yield make
    for live, fd in made:
        live.close()
        os.close(fd)


@pytest.fixture
def python_child() -> Iterator[Callable[..., tuple[subprocess.Popen[str], str]]]:
    """``python_child(code)`` runs it until it calls ``ready(text)``; gives the child and the text.

    The code may use os, select, signal, sys, threading and time.
    """
    children: list[subprocess.Popen[str]] = []

    def start(
        code: str, *, pass_fds: tuple[int, ...] = (), program: Path = Path(sys.executable)
    ) -> tuple[subprocess.Popen[str], str]:
        child = subprocess.Popen(
            [program, "-P", "-c", CHILD_PRELUDE + code, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            pass_fds=pass_fds,
        )
        children.append(child)
        assert child.stdout is not None
        line = child.stdout.readline().strip()
        assert line, "the child ended before it was ready"
        return child, line

    yield start
    for child in children:
        child.kill()
        child.wait()
        for stream in (child.stdin, child.stdout):
            if stream is not None:
                stream.close()


@pytest.fixture
def occupy() -> Callable[..., None]:
    """``occupy(live, slot, role, pid)`` writes what a ready process writes into its slot."""

    def write(live: Live, index: int, role: Role, pid: int, worker: int = 0) -> None:
        slot = live.slot(index)
        slot[Counter.ROLE] = role
        slot[Counter.WORKER] = worker
        slot[Counter.PID] = pid
        slot[Counter.READY_NS] = 1

    return write
