"""Somebody's server command as the supervisor holds it: its launcher, what it reports, its end.

The launcher (``harness.foreign.main``) adopts what the command leaves behind, and ends it. When it
is killed itself, its descendants become children of this process (PR_SET_CHILD_SUBREAPER,
prctl(2)), which ends them: also those that went to the background, and also where there is no
control group for them (``harness.foreign.server_group``).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.foreign import descendants
from harness.foreign.main import Launch
from harness.foreign.server_group import ServerGroup
from probes.contract.private_file import open_new
from probes.proc import process_tree
from probes.rights.own_process import start_module

STOP_GRACE_S = 5.0
_HURRIED_STOP_S = 2.0
_KILL_DEADLINE_S = 5.0
_POLL_S = 0.01
_REAP_S = 0.5


@dataclass(frozen=True, slots=True)
class LauncherEnd:
    """The launcher was ended by somebody else while the run went on, and the server with it."""

    pid: int
    alive_ns: int
    """When it was last seen alive."""
    at_ns: int
    status: int
    signal: int

    def __str__(self) -> str:
        if self.signal:
            return f"signal {signal.Signals(self.signal).name}"
        return f"status {self.status}"


class ServerLauncher:
    """Starts the command and ends it.

    Args:
        launch: What to start; ``supervisor_pid``, ``report_fd`` and ``group`` are filled in here.
        log_path: Where the command's output goes.

    Attributes:
        pid: The launcher's, 0 before ``start``.
        end: It was ended from outside; None as long as it was not.
    """

    def __init__(self, launch: Launch, log_path: Path) -> None:
        self.pid = 0
        self.end: LauncherEnd | None = None
        self._parent: subprocess.Popen[bytes] | None = None
        self._group: ServerGroup | None = None
        self._report_fd = -1
        self._unread = b""
        self._is_stopping = False
        self._alive_ns = time.monotonic_ns()
        self._spared = set(process_tree.children_of(os.getpid()))
        self._was_subreaper = descendants.adopt_orphans()
        try:
            self._start(launch, log_path)
        except BaseException:
            self.kill()
            self.close()
            raise

    def _start(self, launch: Launch, log_path: Path) -> None:
        self._group = ServerGroup.make()
        self._report_fd, write_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        os.set_blocking(write_fd, True)
        launch = launch._replace(
            supervisor_pid=os.getpid(),
            report_fd=write_fd,
            group=str(self._group.folder) if self._group else "",
        )
        namespaces = [launch.namespace_fd] if launch.namespace_fd >= 0 else []
        try:
            with (
                open_new(log_path) as log,
                os.fdopen(os.memfd_create("launch", os.MFD_CLOEXEC), "w+b") as told,
            ):
                # Not in its command line, which everybody may read: it has our environment.
                told.write(json.dumps(launch).encode())
                told.seek(0)
                self._parent = start_module(
                    "harness.foreign.main",
                    pass_fds=[write_fd, *namespaces],
                    stdin=told,
                    stdout=log,
                    stderr=log,
                )
        finally:
            os.close(write_fd)
        self.pid = self._parent.pid

    def spare(self, *pids: int) -> None:
        """Names children of this process that are not the server's, whatever becomes of it."""
        self._spared.update(pids)

    @property
    def has_processes(self) -> bool:
        """Whether anything of the command lives; it may have gone to the background."""
        return bool(descendants.below(self.pid))

    def read_report(self) -> list[dict[str, Any]]:
        """What the launcher has told since the last call; see ``harness.foreign.main``.

        ``end`` is set when it was ended from outside: all of the server is ended then, too.
        """
        if self._report_fd < 0 or self._parent is None:
            return []
        code = self._parent.poll()  # before its last words are read
        at_ns = time.monotonic_ns()
        with suppress(BlockingIOError):
            while data := os.read(self._report_fd, 65_536):
                self._unread += data
        *lines, self._unread = self._unread.split(b"\n")
        told = [json.loads(line) for line in lines]
        asked = [each["asked"] for each in told if "asked" in each]
        has_failed = any("failed" in each for each in told)
        if self.end is None and not self._is_stopping and not has_failed:
            if code or asked:
                status, number = (max(-1, code), max(0, -code)) if code else (-1, asked[0])
                self.end = LauncherEnd(self.pid, self._alive_ns, at_ns, status, number)
                self._end_processes()
            self._alive_ns = at_ns
        return [each for each in told if "asked" not in each]

    def stop(self, *, hurried: bool) -> bool:
        """Asks the command to end (SIGTERM) and kills what does not.

        Args:
            hurried: Give it less time.

        Returns:
            Whether all of it ended by itself.
        """
        self._is_stopping = True
        if self._parent is None or self._parent.poll() is not None:
            return True
        self._parent.send_signal(signal.SIGTERM)
        try:
            self._parent.wait(_HURRIED_STOP_S if hurried else STOP_GRACE_S)
        except subprocess.TimeoutExpired:
            self._end_processes()
            return False
        return True

    def kill(self) -> None:
        """Ends whatever is left, the launcher too; what it reported last is still to be read."""
        self._is_stopping = True
        self._end_processes()
        if self._group is not None:
            self._group.remove()
        if not self._was_subreaper:
            descendants.adopt_orphans(is_one=False)

    def close(self) -> None:
        """No more reports."""
        if self._report_fd >= 0:
            os.close(self._report_fd)
            self._report_fd = -1

    def _end_processes(self) -> None:
        if self._group is not None:
            self._group.kill()
        if self._parent is None:
            return
        end_s = time.monotonic() + _KILL_DEADLINE_S
        # While the launcher lives it reaps them, and tells how they ended.
        while self._parent.poll() is None and time.monotonic() < end_s:
            if not descendants.signal_below(self.pid, signal.SIGKILL):
                break
            time.sleep(_POLL_S)
        with suppress(subprocess.TimeoutExpired):
            self._parent.wait(_REAP_S)  # it ends when it has reaped the last one
        if self._parent.poll() is None:
            self._parent.kill()
        if self._parent.wait() == 0:
            return
        while time.monotonic() < end_s and self._reap():
            descendants.signal_below(os.getpid(), signal.SIGKILL, spared=self._spared)
            time.sleep(_POLL_S)

    def _reap(self) -> bool:
        """Takes the ends of what came to this process; whether anything is left."""
        left = [pid for pid in process_tree.children_of(os.getpid()) if pid not in self._spared]
        for pid in left:
            with suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        return bool(left)
