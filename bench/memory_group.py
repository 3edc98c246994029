"""A control group that has no memory left, for one process of a run that is killed by it.

What the process had stays charged to the group that it came from (memory_cgroup_v2.rst, Memory
Ownership): it meets the limit with the next pages that it touches, and the kernel kills it.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from probes.proc.cgroup_memory import mounts

_LIMIT_BYTES = 65_536
_EMPTY_S = 10.0
_LOOK_S = 0.02


class MemoryGroup:
    """The group of one process, of version 1 or 2, whichever the host has.

    Args:
        pid: Who is put into it, and meets its limit.
    """

    def __init__(self, pid: int) -> None:
        found = mounts(Path("/proc/mounts").read_text())
        self._is_first_version = "memory" in found
        above = found["memory" if self._is_first_version else ""]
        if not self._is_first_version:
            (above / "cgroup.subtree_control").write_text("+memory")
        self._folder = above / f"kill-matrix-{os.getpid()}-{pid}"
        self._folder.mkdir()
        limit = "memory.limit_in_bytes" if self._is_first_version else "memory.max"
        (self._folder / limit).write_text(str(_LIMIT_BYTES))
        (self._folder / "cgroup.procs").write_text(str(pid))

    def kill_count(self) -> int:
        """How many processes of it the kernel has killed for memory."""
        file = "memory.oom_control" if self._is_first_version else "memory.events"
        lines = (self._folder / file).read_text().split("\n")
        counts = dict(line.split(" ", 1) for line in lines if line)
        return int(counts["oom_kill"])

    def remove(self) -> None:
        """Removes it as soon as it is empty.

        Raises:
            OSError: It still had a process after 10 s.
        """
        end_s = time.monotonic() + _EMPTY_S
        while True:
            try:
                return self._folder.rmdir()
            except OSError:
                if time.monotonic() > end_s:
                    raise
                time.sleep(_LOOK_S)
