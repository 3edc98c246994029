"""Control groups with a limit for the time of a test, of version 1 or 2, whichever the host has."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from probes.proc.cgroup_memory import mounts

_EMPTY_S = 10.0
_NUMBERS = itertools.count()


@contextmanager
def control_group(
    controller: str, limits: Mapping[str, str], parent: Path | None = None
) -> Iterator[Path]:
    """A group that is removed when the block ends, and must be empty soon after.

    Args:
        controller: cpu, pids.
        limits: By the names of the files of version 2.
        parent: Below this group; None for below the root of the controller's tree.
    """
    found = mounts(Path("/proc/mounts").read_text())
    is_first = controller in found
    above = parent or found[controller if is_first else ""]
    subtree = above / "cgroup.subtree_control"
    if not is_first and controller not in subtree.read_text():
        subtree.write_text(f"+{controller}")
    folder = above / f"test-{os.getpid()}-{next(_NUMBERS)}"
    folder.mkdir()
    try:
        for name, value in limits.items():
            for file, text in files_of(name, value, is_first_version=is_first):
                (folder / file).write_text(text)
        yield folder
    finally:
        end_s = time.monotonic() + _EMPTY_S
        while True:
            try:
                folder.rmdir()
                break
            except OSError:
                if time.monotonic() > end_s:
                    raise
                time.sleep(0.01)


def files_of(name: str, value: str, *, is_first_version: bool) -> list[tuple[str, str]]:
    """What to write into which files of a group for a limit in the words of version 2.

    Args:
        name: The file of version 2.
        value: What would be written there.
        is_first_version: The group is one of version 1.
    """
    if not is_first_version:
        return [(name, value)]
    if name == "cpu.max":
        quota, period = value.split()
        return [("cpu.cfs_period_us", period), ("cpu.cfs_quota_us", quota)]
    return [("memory.limit_in_bytes" if name == "memory.max" else name, value)]
