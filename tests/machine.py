"""Whose turn it is on the cores, among tests that judge what their neighbours change.

Locks are files (flock(2)), the same for all test processes of a session.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from probes.contract.rundir import MANIFEST
from tests import warm_start
from tests.warm_start import WarmProcess

POLL_S = 0.02
CALM_CORES = 0.5
"""What a run takes that mostly waits."""
ANALYSIS_NICE = 10
"""What comes after a recording takes what the recording of others leaves."""
_CORES_OF_A_SLOT = 0.5
_SLOTS_COUNT = int((os.cpu_count() or 1) / _CORES_OF_A_SLOT)


def in_turn(case: str, cores: float, *, is_variant: bool = False) -> Any:
    """A parameter that asks for its cores by itself, and may be a variant of another one.

    Args:
        case: The parameter.
        cores: How many its runs take, 0 for all.
        is_variant: See CONTRIBUTING.md, "Tests".
    """
    marks = [pytest.mark.in_turn(cores=cores)]
    return pytest.param(case, marks=marks + [pytest.mark.variant] * is_variant)


class Machine:
    """The cores, of which a test takes as many as it needs, or all.

    Who comes first gets them first. A run of profile-run or profile-attach has its cores until it
    is recorded: its analysis and its page need no quiet, and go on beside the start of the next.

    Args:
        folder: For the locks; None when there is only one test process.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Nothing else of this part of the suite runs meanwhile."""
        with self._turn(_SLOTS_COUNT), self._lock("analysis", fcntl.LOCK_EX):
            yield

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Others may run meanwhile, as far as there are cores, and nobody who needs all."""
        with self._turn(_slots(CALM_CORES)):
            yield

    def record(
        self,
        command: Sequence[str],
        output: Path,
        *,
        timeout_s: float,
        cores: float = 0.0,
        **options: Any,
    ) -> subprocess.CompletedProcess[str]:
        """A run that has the machine alone, or a part of it, until it is recorded.

        Args:
            command: With ``--output``.
            output: That folder.
            timeout_s: For all of it.
            cores: That it takes, 0 for all.
            options: Of Popen.
        """
        with self.until_recorded(cores=cores) as release:
            before = _latest(output)
            end_s = time.monotonic() + timeout_s
            child = warm_start.start(
                command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options
            )
            try:
                self.wait_for_recording(child, output, before=before, end_s=end_s)
                release()
                stdout, stderr = child.communicate(timeout=max(1.0, end_s - time.monotonic()))
            except BaseException:
                child.kill()
                child.communicate()
                raise
        return subprocess.CompletedProcess(command, child.returncode, stdout, stderr)

    @contextmanager
    def until_recorded(self, *, cores: float = 0.0) -> Iterator[Callable[[], None]]:
        """The machine until the function that it gives is called: then the run is recorded.

        Its analysis may go on beside the start of the next run, but not beside ``alone``.

        Args:
            cores: That it takes, 0 for all.
        """
        with ExitStack() as analysis, ExitStack() as turn:
            turn.enter_context(self._turn(_slots(cores)))
            analysis.enter_context(self._lock("analysis", fcntl.LOCK_SH))
            yield turn.close

    @staticmethod
    def wait_for_recording(
        child: subprocess.Popen[str] | WarmProcess,
        output: Path,
        *,
        before: Path | None = None,
        end_s: float,
    ) -> None:
        """Waits until a run is recorded, its process ends, or it is too late.

        Args:
            child: Makes the run. What it does from now on, it does as ``ANALYSIS_NICE``.
            output: The folder of its runs.
            before: The newest run there until now.
            end_s: When it is too late, of time.monotonic().
        """
        while child.poll() is None and time.monotonic() < end_s:
            run = _latest(output)
            if run not in (None, before) and _is_recorded(run):
                with suppress(ProcessLookupError, PermissionError):
                    os.setpriority(os.PRIO_PROCESS, child.pid, ANALYSIS_NICE)
                return
            time.sleep(POLL_S)

    @contextmanager
    def _turn(self, slots_count: int) -> Iterator[None]:
        with ExitStack() as taken:
            with self._lock("queue", fcntl.LOCK_EX):  # who waits for a turn lets nobody pass
                self._take(taken, slots_count)
            yield

    def _take(self, taken: ExitStack, slots_count: int) -> None:
        """Waits until so many slots are free; nobody else takes any meanwhile."""
        if self._folder is None:
            return
        free = [self._folder / f"slot-{number}.lock" for number in range(_SLOTS_COUNT)]
        while slots_count:
            for path in free:
                stream = path.open("w")
                try:
                    fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    stream.close()
                    continue
                taken.enter_context(stream)  # closing it gives it back
                free.remove(path)
                slots_count -= 1
                break
            else:
                time.sleep(POLL_S)

    @contextmanager
    def _lock(self, name: str, how: int) -> Iterator[None]:
        if self._folder is None:
            yield
            return
        with (self._folder / f"{name}.lock").open("w") as stream:
            fcntl.flock(stream, how)
            yield


def _slots(cores: float) -> int:
    """How many slots that is, 0 for all; at least one, and no more than there are."""
    if not cores:
        return _SLOTS_COUNT
    return min(_SLOTS_COUNT, max(1, round(cores / _CORES_OF_A_SLOT)))


def _latest(output: Path) -> Path | None:
    path = output / "latest"
    return path.resolve() if path.is_symlink() else None


def _is_recorded(run: Path | None) -> bool:
    try:
        text = (run / MANIFEST).read_text() if run else ""
    except FileNotFoundError:
        return False
    return '"status": "running"' not in text
