"""Control groups by the names that service managers and container runtimes give them.

A systemd unit is the folder ``NAME.service`` below the root, wherever its slice is. A container is
the folder whose name holds its id: ``docker-ID.scope`` or ``/docker/ID``, ``libpod-ID.scope``,
``crio-ID.scope``, ``cri-containerd-ID.scope``; systemd.unit(5), and what docker, podman, CRI-O and
containerd write. The files are read; nothing is asked of systemd or of a runtime, so it works
where neither runs.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

CGROUP_ROOT = Path("/sys/fs/cgroup")

LEAST_ID_CHARACTERS = 4
"""Of fewer characters an id says nothing: three of them are shared by one container in 4,096."""

_FULL_ID = re.compile(r"[0-9a-f]{64}|[0-9a-f]{32}")
_RUNTIMES = r"(?:docker|libpod|crio|cri-containerd|containerd|podman|nerdctl)"
_DEPTH_MOST = 12


def unit_folders(name: str, root: Path = CGROUP_ROOT) -> list[Path]:
    """Folders of a systemd unit, of every hierarchy that has it.

    Args:
        name: ``nginx.service``, or ``nginx`` for the same.
        root: Where control groups are mounted.
    """
    wanted = name if "." in name else f"{name}.service"
    return list(_folders(root, lambda folder: folder == wanted))


def container_folders(container_id: str, root: Path = CGROUP_ROOT) -> list[Path]:
    """Folders of a container, by its id or the beginning of it.

    Args:
        container_id: Hexadecimal digits, at least ``LEAST_ID_CHARACTERS``.
        root: Where control groups are mounted.
    """
    pattern = re.compile(rf"(?:{_RUNTIMES}-)?({re.escape(container_id)}[0-9a-f]*)(?:\.scope)?")

    def matches(folder: str) -> bool:
        match = pattern.fullmatch(folder)
        return bool(match) and (match is None or bool(_FULL_ID.fullmatch(match[1])))

    return list(_folders(root, matches))


def identities(folders: list[Path]) -> list[str]:
    """The different names among folders: one unit or container is in several hierarchies."""
    return sorted({folder.name for folder in folders})


def members(folders: list[Path]) -> list[int]:
    """Processes of the folders and of what is below them, sorted."""
    found: set[int] = set()
    for folder in folders:
        for path, _, files in os.walk(folder):
            if "cgroup.procs" in files:
                found.update(_pids(Path(path) / "cgroup.procs"))
    return sorted(found)


def _pids(path: Path) -> list[int]:
    try:
        return [int(word) for word in path.read_text(encoding="ascii").split() if word != "0"]
    except (OSError, ValueError):
        return []  # it is gone, or threaded: its processes are listed further up


def _folders(root: Path, matches: Callable[[str], bool]) -> Iterator[Path]:
    depth = len(root.parts)
    for path, folders, _ in os.walk(root):
        here = Path(path)
        for name in sorted(folders):
            if matches(name):
                yield here / name
        if len(here.parts) - depth >= _DEPTH_MOST:
            folders.clear()
