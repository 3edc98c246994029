"""A memory control group of a neighbour's own, of version 1 or 2, below the root of its tree."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from probes.proc.cgroup_memory import mounts

_NAME = re.compile(r"neighbour-(\d+)")
_EMPTY_S = 10.0


@contextmanager
def memory_group(max_bytes: int = 0, *, tcp_max_bytes: int = 0) -> Iterator[Path]:
    """A group with limits (0: none); it is removed when the block ends, and is empty by then.

    Args:
        max_bytes: Of all memory.
        tcp_max_bytes: Of TCP's buffers alone, which only version 1 has.
    """
    found = mounts(Path("/proc/mounts").read_text())
    is_first = "memory" in found
    top = found["memory"] if is_first else found[""]
    for stale in top.glob("neighbour-*"):
        match = _NAME.fullmatch(stale.name)
        if match and not Path("/proc", match[1]).exists():
            with suppress(OSError):
                stale.rmdir()
    if not is_first and "memory" not in (top / "cgroup.subtree_control").read_text():
        (top / "cgroup.subtree_control").write_text("+memory")
    folder = top / f"neighbour-{os.getpid()}"
    folder.mkdir()
    try:
        if max_bytes:
            name = "memory.limit_in_bytes" if is_first else "memory.max"
            (folder / name).write_text(str(max_bytes))
            with suppress(OSError):  # a kernel without accounting of swap
                swap = "memory.memsw.limit_in_bytes" if is_first else "memory.swap.max"
                (folder / swap).write_text(str(max_bytes if is_first else 0))
        if tcp_max_bytes:
            (folder / "memory.kmem.tcp.limit_in_bytes").write_text(str(tcp_max_bytes))
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


def join(folder: Path) -> None:
    """Moves the calling process into the group."""
    (folder / "cgroup.procs").write_text("0")
