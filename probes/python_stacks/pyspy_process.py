"""A py-spy of our own as a process: where it is, how it dies with us, one window of samples."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from probes.contract.clock import NS_PER_S, now_ns
from probes.rights.privileges import kept_by_reader

_TRIAL_LIMIT_S = 10.0


def find_py_spy() -> Path | None:
    """The py-spy of this environment, else one on PATH; None when there is none."""
    for folder in (Path(sys.executable).parent, Path(sysconfig.get_path("scripts"))):
        if os.access(folder / "py-spy", os.X_OK):
            return folder / "py-spy"
    found = shutil.which("py-spy")
    return Path(found) if found else None


PY_SPY_KEEPS = ("dac_read_search", "sys_ptrace")
"""Capabilities of a py-spy: it reads the memory of others, and the files that they have mapped."""


def launcher(parent_pid: int) -> list[str]:
    """Words before a command that let it die with its parent, and have few rights.

    util-linux's setpriv asks the kernel for the signal (PR_SET_PDEATHSIG survives exec); the shell
    then looks whether the parent died before that. Nothing is interpolated into its script.

    Args:
        parent_pid: The process that starts the command.
    """
    setpriv = _setpriv()
    if not setpriv:
        limited = [sys.executable, "-P", "-m", "probes.rights.limited_start"]
        return [*limited, str(parent_pid), ",".join(kept_by_reader(PY_SPY_KEEPS))]
    script = 'test "$PPID" = "$0" && exec "$@"'
    return [*setpriv, "sh", "-c", script, str(parent_pid)]


@cache
def _setpriv() -> tuple[str, ...]:
    """A setpriv with its options, as tried once; empty where it is missing or lacks one."""
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        return ()
    words = [setpriv, "--pdeathsig", "KILL", "--no-new-privs"]
    kept = kept_by_reader(PY_SPY_KEEPS)
    if os.geteuid() == 0 and kept == PY_SPY_KEEPS:  # root executes with all of the bounding set
        words += ["--bounding-set", ",".join(["-all", *(f"+{name}" for name in kept)])]
    try:
        done = subprocess.run(
            [*words, "true"], capture_output=True, timeout=_TRIAL_LIMIT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return tuple(words) if done.returncode == 0 else ()


def end_words(returncode: int | None) -> str:
    """How a process ended, for people: ``was killed by SIGKILL``, ``ended with status 1``.

    Args:
        returncode: As Popen has it: negative for a signal; None while it runs.
    """
    if returncode is None:
        return "runs"
    if returncode >= 0:
        return f"ended with status {returncode}"
    try:
        return f"was killed by {signal.Signals(-returncode).name}"
    except ValueError:
        return f"was killed by signal {-returncode}"


@dataclass(slots=True)
class Window:
    """One running py-spy.

    Attributes:
        pid: The process it samples.
        rate_per_s: Samples a second.
        child: The py-spy process.
        output_fd: Anonymous file that it writes its trace to.
        error_fd: The same for its messages.
        started_ns: When it began.
        ends_ns: When it is to be asked to write.
        asked_ns: When SIGINT was sent first, 0 as long as it was not.
        given_up_ns: When it was killed because it did not end, 0 when it was not.
    """

    pid: int
    rate_per_s: int
    child: subprocess.Popen[bytes]
    output_fd: int
    error_fd: int
    started_ns: int
    ends_ns: int
    asked_ns: int = 0
    given_up_ns: int = 0

    @property
    def asked(self) -> bool:
        """SIGINT was sent."""
        return self.asked_ns > 0

    def ask_to_write(self) -> None:
        """SIGINT makes py-spy write what it has and exit.

        May be called again: one that came before py-spy installed its handler had no effect.
        """
        self.asked_ns = self.asked_ns or now_ns()
        self.signal(signal.SIGINT)

    def give_up(self) -> None:
        """Kills it: it was asked to write and did not end in time."""
        self.given_up_ns = now_ns()
        self.signal(signal.SIGKILL)

    def how_it_ended(self) -> str:
        """For people; known after ``ended``."""
        if self.given_up_ns:
            waited_s = (self.given_up_ns - (self.asked_ns or self.given_up_ns)) / NS_PER_S
            return f"did not write within {waited_s:.1f} s of being asked, and was killed"
        return end_words(self.child.returncode)

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal. Not through Popen, which would reap the child and lose its CPU time."""
        os.kill(self.child.pid, number)  # until ``ended`` reaps it, the pid is its own

    def ended(self) -> int:
        """Reaps it without waiting.

        Returns:
            Its CPU time in ns when it has ended, -1 while it runs.
        """
        pid, status, usage = os.wait4(self.child.pid, os.WNOHANG)
        if pid == 0:
            return -1
        self.child.returncode = os.waitstatus_to_exitcode(status)
        return round((usage.ru_utime + usage.ru_stime) * NS_PER_S)

    def close(self) -> tuple[str, str]:
        """Reads trace and messages and gives the memory back."""
        texts = []
        for fd in (self.output_fd, self.error_fd):
            size_bytes = os.fstat(fd).st_size
            texts.append(os.pread(fd, size_bytes, 0).decode("utf-8", "replace"))
            os.close(fd)
        return texts[0], texts[1]
