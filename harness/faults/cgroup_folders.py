"""Folders of the control groups that a run makes: where they go, and how they are removed.

Each has the supervisor's pid in its name, so that a later run knows which are stale.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path, PurePosixPath

_POLL_S = 0.01
_OURS = re.compile(r"connscope-(\d+)(-client\d+|-server-[0-9a-f]{8})?")


def below(mount: Path, membership: str | None) -> Path:
    """The folder of a group; in a container the mount itself is our own group.

    Args:
        mount: Where the tree is mounted.
        membership: The group's path as /proc/PID/cgroup has it.
    """
    folder = mount.joinpath(*PurePosixPath((membership or "/").lstrip("/")).parts)
    return folder if folder.is_dir() else mount


def remove_tree(folder: Path) -> None:
    """Removes a group and those that its members made below it, as far as they are empty."""
    for path, _, _ in os.walk(folder, topdown=False):
        with suppress(OSError):
            os.rmdir(path)  # noqa: PTH106 - a word of os.walk


def remove_when_empty(folders: Iterable[Path], most_s: float) -> None:
    """Removes groups as soon as nothing is in them; what is not empty by then stays.

    A process that has been reaped may be in its group for a moment more: on newer kernels it leaves
    when it is switched out for the last time (cgroup_task_dead).

    Args:
        folders: Those that are gone already are no error.
        most_s: To wait for all of them together.
    """
    end_s = time.monotonic() + most_s
    for folder in folders:
        remove_tree(folder)
        while folder.exists() and time.monotonic() < end_s:
            time.sleep(_POLL_S)
            remove_tree(folder)


def remove_stale(parent: Path) -> None:
    """Removes groups of runs whose supervisor is gone; those in use refuse it (EBUSY)."""
    for folder in parent.glob("connscope-*"):
        match = _OURS.fullmatch(folder.name)
        if match and not Path(f"/proc/{match[1]}").exists():
            remove_tree(folder)
