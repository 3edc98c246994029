"""Nothing outlives the tests: what they leave behind is named, ended, and makes the session fail.

A server that spins for ever because its test was killed makes the next tests red. Processes that
lose their parent come to the process that runs the session (PR_SET_CHILD_SUBREAPER, prctl(2)), also
those of a test process of pytest-xdist that crashed, timed out or was ended by Ctrl-C. Where the
tests run in that process itself, its own children are looked after, and orphans are init's: nobody
could tell one from a child that a test is going to wait for.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from harness.foreign.descendants import adopt_orphans
from probes.proc import process_tree

ENDING_S = 3.0
_REAP_S = 0.05
_MOST_CHARACTERS = 160


def living(roots: set[int]) -> list[int]:
    """Those processes and all below them, as far as they have not ended."""
    return [pid for root in roots for pid in process_tree.tree_of(root)]


def command_of(pid: int) -> str:
    """For people; '' when it has ended."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return ""
    return words.replace(b"\0", b" ").decode(errors="replace").strip()[:_MOST_CHARACTERS]


class Orphans:
    """Looks after the children that are not this process's own test processes."""

    def __init__(self) -> None:
        self._own = self._children()
        self.left: list[str] = []
        self._reaper: threading.Thread | None = None

    def _reap(self) -> None:
        """Who waits for a process to be gone waits for ever for one that nobody reaps."""
        while True:
            for pid in self._children() - self._own:
                stat = process_tree.read_stat(pid)
                if stat is not None and not stat.is_alive:
                    with suppress(ChildProcessError):
                        os.waitpid(pid, os.WNOHANG)
            time.sleep(_REAP_S)

    @staticmethod
    def _children() -> set[int]:
        return set(process_tree.children_of(os.getpid()))

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodeready(self, node: Any) -> None:
        """A test process is there, and no test of it has begun."""
        del node
        self._own |= self._children()
        if self._reaper is None:  # the tests' own children are children of other processes
            adopt_orphans()
            self._reaper = threading.Thread(target=self._reap, daemon=True)
            self._reaper.start()

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any, error: Any) -> None:
        """A test process has ended: what it had started comes here, unless it ends with it."""
        del node
        if error:
            self._end(within_s=1.0)

    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> Any:
        """When all test processes have come to their end, and before the summary is written."""
        try:
            return (yield)
        finally:
            self._end(within_s=ENDING_S)
            if self.left and session.exitstatus == pytest.ExitCode.OK:
                session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Names them."""
        for words in self.left:
            terminalreporter.write_line(f"LEFT BEHIND and ended: {words}", red=True)

    def _end(self, *, within_s: float) -> None:
        end_s = time.monotonic() + within_s
        while (pids := self._orphans()) and time.monotonic() < end_s:
            time.sleep(0.05)
        while pids:
            for pid in pids:
                if words := command_of(pid):
                    self.left.append(words)
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
            pids = self._orphans()

    def _orphans(self) -> list[int]:
        return living(self._children() - self._own)
