"""What every neighbour has in common: its life as a program, and as a context manager of tests.

A neighbour is a program that does one thing to the host beside a run that is not concerned by it.
``python -m tests.neighbours.NAME`` prints ``ready`` when its effect is there, and goes on until
SIGTERM, SIGINT or the end of its time. Then it takes back what it made and prints ``done COUNT``:
how often it had its effect. It ends with its parent. In tests::

    with beside("oom") as neighbour:
        ...
    assert neighbour.count > 0
"""

from __future__ import annotations

import argparse
import ctypes
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from harness.fleet import netns
from probes.rights import network_namespace

ROOT = Path(__file__).parents[2]
NOISY = (
    ("burner", "--share", "0.34"),
    ("disk",),
    ("oom",),
    ("conntrack",),
)
"""What the suite has to be green beside: one takes a core for a third of the time, one writes to
the disk, one control group is out of memory again and again, and one has a full connection tracking
table of its own."""
READY_S = 60.0
END_S = 20.0
_LONGEST_S = 1800.0
_PR_SET_PDEATHSIG = 1


class Ending(BaseException):
    """SIGTERM or SIGINT came."""


def parser(text: str) -> argparse.ArgumentParser:
    """With what all have: how long it goes on when nobody ends it."""
    made = argparse.ArgumentParser(description=text)
    made.add_argument("--seconds", type=float, default=_LONGEST_S, help="end after so long")
    return made


def namespace_parser(text: str) -> argparse.ArgumentParser:
    """The same of one whose effect is on a network namespace."""
    made = parser(text)
    made.add_argument("--here", action="store_true", help="in the parent's network namespace")
    return made


def enter_namespace(options: argparse.Namespace, sysctls: Mapping[str, str] | None = None) -> None:
    """Goes into a network namespace of its own, unless it is wanted in that of its parent.

    Args:
        options: Of ``namespace_parser``.
        sysctls: What the new one is to have, by its path below ``/proc/sys``.
    """
    if options.here:
        return
    namespace_fd = netns.create(dict(sysctls or {}))
    network_namespace.enter(namespace_fd)
    os.close(namespace_fd)


class Life:
    """Time and signals of one program, and how often it had its effect.

    Args:
        seconds: When it ends by itself.
    """

    def __init__(self, seconds: float) -> None:
        self.count = 0
        self._end_s = time.monotonic() + seconds
        parent_pid = os.getppid()
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._end)
        if os.getppid() != parent_pid:
            sys.exit(1)

    @staticmethod
    def _end(*_: object) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):  # what is taken back must not be cut short
            signal.signal(number, signal.SIG_IGN)
        raise Ending

    @contextmanager
    def lived(self) -> Iterator[None]:
        """Takes the end as such, and says how often it had its effect."""
        try:
            yield
        except Ending:
            pass
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_IGN)
        print(f"done {self.count}", flush=True)

    @staticmethod
    def ready() -> None:
        """Its effect is there."""
        print("ready", flush=True)

    def beats(self, period_s: float) -> Iterator[None]:
        """One turn each period, until the end."""
        while time.monotonic() < self._end_s:
            yield
            time.sleep(max(0.0, min(period_s, self._end_s - time.monotonic())))


def counted(group: str, name: str, file: str = "netstat") -> int:
    """A counter of this process's network namespace (/proc/net/netstat or snmp)."""
    lines = [line.split() for line in Path("/proc/self/net", file).read_text().splitlines()]
    names, values = (line for line in lines if line[0] == f"{group}:")
    return int(values[names.index(name)])


@dataclass
class Neighbour:
    """One that runs; ``count`` is known when it has ended."""

    name: str
    pid: int
    count: int = -1


@contextmanager
def beside(name: str, *words: str, namespace_fd: int = -1) -> Iterator[Neighbour]:
    """A neighbour that has its effect while the block runs.

    Args:
        name: ``oom``, ``conntrack``, ``burner``, ...: the module.
        words: Its arguments.
        namespace_fd: The network namespace that it starts in, -1 for the caller's.
    """
    command = [sys.executable, "-m", f"tests.neighbours.{name}", *words]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "cwd": ROOT, "text": True}
    if namespace_fd >= 0:
        with netns.inside(namespace_fd):
            child = subprocess.Popen(command, start_new_session=True, **options)
    else:
        child = subprocess.Popen(command, start_new_session=True, **options)
    neighbour = Neighbour(name, child.pid)
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(child.stdout, selectors.EVENT_READ)
            assert selector.select(READY_S), f"{name} was not ready within {READY_S:.0f} s"
        line = child.stdout.readline()
        assert line == "ready\n", f"{name}: {line!r} {child.stderr.read() if not line else ''}"
        yield neighbour
    finally:
        child.terminate()
        try:
            said, errors = child.communicate(timeout=END_S)
        except subprocess.TimeoutExpired:
            child.kill()
            said, errors = child.communicate()
        word, _, count = said.strip().rpartition("\n")[2].partition(" ")
        neighbour.count = int(count) if word == "done" else -1
    assert neighbour.count >= 0, f"{name} ended otherwise: {said!r} {errors!r}"


@contextmanager
def beside_noisy(seconds: float = _LONGEST_S) -> Iterator[list[Neighbour]]:
    """All of ``NOISY`` while the block runs.

    Args:
        seconds: They end by themselves after so long.
    """
    with ExitStack() as stack:
        words = ("--seconds", str(seconds))
        yield [stack.enter_context(beside(*each, *words)) for each in NOISY]
