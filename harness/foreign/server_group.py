"""A control group of its own for what a server command starts, so that all of it ends as one.

It is made below the group of this process in the tree of version 2, and no controller is handed on
to it: whatever limits this process (cpu.max, memory.max, of version 1 too) goes on to limit the
server. Both who made it and the launcher of the command know it, so whichever of them is left can
end it: with ``cgroup.kill`` (Linux 5.14), else frozen and one by one. Where none can be made the
tree of processes is what is ended (``harness.foreign.descendants``).

Source: Documentation/admin-guide/cgroup-v2.rst; cgroups(7).
"""

from __future__ import annotations

import os
import secrets
import signal
import time
from contextlib import suppress
from pathlib import Path

from harness.faults.cgroup_folders import below, remove_stale, remove_tree, remove_when_empty
from harness.foreign import descendants
from harness.foreign.cgroup_members import members
from probes.proc.cgroup_memory import mounts, paths_of

_NAME = "connscope-{pid}-server-{token}"
_EMPTY_DEADLINE_S = 3.0
_POLL_S = 0.01


class ServerGroup:
    """One group, as one of the processes that know it.

    Args:
        folder: Where it is; a name that nobody else has had.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def make(cls) -> ServerGroup | None:
        """Makes one; None where that cannot be done.

        Nor is it done where the group of this process hands controllers on: the server would
        compete as a group of its own then, and be measured as that.
        """
        try:
            points = mounts(Path("/proc/mounts").read_text(encoding="utf-8", errors="replace"))
            mine = paths_of(Path("/proc/self/cgroup").read_text(encoding="utf-8", errors="replace"))
        except (OSError, ValueError):
            return None
        if "" not in points or "" not in mine:
            return None
        parent = below(points[""], mine[""])
        if _text(parent / "cgroup.subtree_control").split():
            return None
        remove_stale(parent)
        folder = parent / _NAME.format(pid=os.getpid(), token=secrets.token_hex(4))
        try:
            folder.mkdir()
        except OSError:
            return None
        if _text(folder / "cgroup.type").strip() != "domain":  # the parent is threaded
            remove_tree(folder)
            return None
        return cls(folder)

    def join(self) -> None:
        """Moves this process into it, as far as the kernel lets it."""
        with suppress(OSError):
            _write(self.folder / "cgroup.procs", "0")

    def kill(self) -> None:
        """Ends all that is in it and below, and waits until that is so, for some seconds at most.

        Who is in it is what the command started: nothing else was ever moved there.
        """
        end_s = time.monotonic() + _EMPTY_DEADLINE_S
        while "populated 1" in _text(self.folder / "cgroup.events"):
            try:
                _write(self.folder / "cgroup.kill", "1")
            except OSError:  # before Linux 5.14
                self._kill_each()
            if time.monotonic() > end_s:
                return
            time.sleep(_POLL_S)

    def _kill_each(self) -> None:
        with suppress(OSError):  # nobody forks meanwhile; SIGKILL ends the frozen, too
            _write(self.folder / "cgroup.freeze", "1")
        for pid in members([self.folder]):
            descendants.send(pid, signal.SIGKILL, lambda each: each in members([self.folder]))

    def remove(self) -> None:
        """Removes it, when it is empty at last; may be called by each that knows it, and twice."""
        remove_when_empty([self.folder], _EMPTY_DEADLINE_S)


def _write(path: Path, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)  # never made: it is there or it is not ours
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
