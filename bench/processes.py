"""Starts what a bench measures so that nothing of it is left behind, and stops it."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from harness.fleet import child
from probes.rights import network_namespace
from probes.rights.parent_death import die_with_parent

_TERMINATE_S = 10.0
_GONE_S = 20.0


class BenchError(Exception):
    """One run could not be measured; the bench goes on with the next."""


def start(
    command: Sequence[str],
    log: Path,
    *,
    namespace_fd: int = -1,
    nofile_count: int = 0,
    environment: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    """Starts a process that dies with this one, in a process group of its own.

    Args:
        command: Program and arguments.
        log: Takes its stdout and stderr.
        namespace_fd: Network namespace to run in, -1 for this one.
        nofile_count: Its soft RLIMIT_NOFILE, 0 to leave it.
        environment: Added to this process's.
        pass_fds: Descriptors that it inherits.
    """
    parent_pid = os.getpid()

    def prepare() -> None:
        die_with_parent(parent_pid)  # execve(2) keeps it, as no credentials change
        if namespace_fd >= 0:
            network_namespace.enter(namespace_fd)
        if nofile_count:
            child.limit_descriptors(nofile_count)

    with log.open("wb") as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, **(environment or {})},
            pass_fds=pass_fds,
            preexec_fn=prepare,  # noqa: PLW1509 - this process has one thread
        )


def stop(process: subprocess.Popen[bytes], *, terminate: bool) -> None:
    """Ends a process and its group; with ``terminate`` it may clean up first."""
    if terminate and process.poll() is None:
        process.terminate()
        try:
            process.wait(_TERMINATE_S)
        except subprocess.TimeoutExpired:
            pass
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


def wait_until_gone(pids: Sequence[int], is_running: Callable[[int], bool]) -> None:
    """Waits until processes that were killed have given back their sockets.

    Raises:
        BenchError: One is still there.
    """
    end_s = time.monotonic() + _GONE_S
    while left := [pid for pid in pids if is_running(pid)]:
        if time.monotonic() > end_s:
            raise BenchError(f"processes {left} were killed and are still there")
        time.sleep(0.02)


class Guard:
    """Ends a wait when its time is over or the process waited for is gone.

    Args:
        what: What runs, for the message.
        process: Must live while there is something to wait for.
        log: Its output; the last line goes into the message.
        limit_s: From now.
    """

    def __init__(
        self, what: str, process: subprocess.Popen[bytes], log: Path, limit_s: float
    ) -> None:
        self.end_s = time.monotonic() + limit_s
        self._what, self._process, self._log = what, process, log
        self._limit_s = limit_s

    def check(self) -> None:
        """Returns while waiting makes sense.

        Raises:
            BenchError: It does not any more.
        """
        if self._process.poll() is not None:
            raise BenchError(
                f"{self._what} ended early with {self._process.returncode}: {self.last_line()}"
            )
        if time.monotonic() > self.end_s:
            raise BenchError(f"{self._what} was not done after {self._limit_s:.0f} s")

    def last_line(self) -> str:
        """Last line of the output."""
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"
