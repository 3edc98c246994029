"""The memory control group of the watched processes: its use, limit, and what the limit did.

Read for ``host_counters``, from files of cgroup version 1 or 2. A parent's limit binds its
children, so the tightest group from the process's own up to the root is the one that counts.

Source: Documentation/admin-guide/cgroup-v1/memory.rst, cgroup-v2.rst; cgroups(7).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

UNLIMITED_BYTES = 1 << 62
"""Version 1 writes the largest page multiple for "no limit"."""

_CGROUP_ROOT = Path("/sys/fs/cgroup")
_LIMITS = (
    ("memory.max", "memory.current"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes"),
)
_TCP_LIMITS = (("memory.kmem.tcp.limit_in_bytes", "memory.kmem.tcp.usage_in_bytes"),)


def mounts(mounts_text: str) -> dict[str, Path]:
    """Mount points by controller of version 1, '' for version 2.

    Args:
        mounts_text: /proc/mounts (proc(5)).
    """
    found: dict[str, Path] = {}
    for line in mounts_text.splitlines():
        _, point, kind, options, *_ = line.split(" ")
        if kind == "cgroup2":
            found.setdefault("", Path(point))
        elif kind == "cgroup":
            for option in options.split(","):
                found.setdefault(option, Path(point))
    return found


def paths_of(cgroup_text: str) -> dict[str, str]:
    """A process's groups by controller of version 1, '' for version 2.

    Args:
        cgroup_text: /proc/PID/cgroup (cgroups(7)): lines ``hierarchy:controllers:path``.
    """
    found: dict[str, str] = {}
    for line in cgroup_text.splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            found[controller] = path
    return found


def cgroup_memory_folders(cgroup_text: str, root: Path = _CGROUP_ROOT) -> list[Path]:
    """Folders from the process's memory cgroup up to the root, version 2 or 1.

    Args:
        cgroup_text: /proc/self/cgroup (cgroups(7)): lines ``hierarchy:controllers:path``.
        root: Where cgroups are mounted.
    """
    paths = paths_of(cgroup_text)
    if "memory" in paths:
        return _up_from(root / "memory", paths["memory"])
    return _up_from(root, paths[""]) if "" in paths else []


def _up_from(base: Path, path: str) -> list[Path]:
    parts = PurePosixPath(path.lstrip("/")).parts
    return [base.joinpath(*parts[:length]) for length in range(len(parts), -1, -1)]


def tightest_memory_cgroup(folders: list[Path]) -> tuple[Path, int] | None:
    """The file with the use, and the limit in bytes, of the tightest cgroup; None when unlimited.

    A parent's limit binds its children, so all of ``folders`` are looked at.
    """
    return _tightest(folders, _LIMITS)


def _tightest(folders: list[Path], names: tuple[tuple[str, str], ...]) -> tuple[Path, int] | None:
    best: tuple[Path, int] | None = None
    for folder in folders:
        for limit_name, use_name in names:
            text = _text(folder / limit_name).strip()
            if not text.isdigit() or int(text) >= UNLIMITED_BYTES:
                continue
            if best is None or int(text) < best[1]:
                best = (folder / use_name, int(text))
    return best


@dataclass(frozen=True, slots=True)
class CgroupUse:
    """One reading; -1 where there is no limit or no such file.

    Attributes:
        peak_bytes: Most that was charged so far (memory.peak of Linux 5.19, or max_usage).
        limit_hits_total: Allocations that met the limit (memory.failcnt, or max of memory.events).
        oom_kills_total: Processes of the group that the kernel killed for memory.
        tcp_used_bytes: Socket buffers of TCP that are charged to the group.
        tcp_max_bytes: Their own limit, which only version 1 has.
    """

    used_bytes: int
    peak_bytes: int
    max_bytes: int
    limit_hits_total: int
    oom_kills_total: int
    tcp_used_bytes: int
    tcp_max_bytes: int


class CgroupMemory:
    """The limited group of one process.

    Args:
        cgroup_text: /proc/PID/cgroup of a watched process.
        root: Where cgroups are mounted.
    """

    def __init__(self, cgroup_text: str, root: Path = _CGROUP_ROOT) -> None:
        folders = cgroup_memory_folders(cgroup_text, root)
        self.limit = tightest_memory_cgroup(folders)
        self._tcp = _tightest(folders, _TCP_LIMITS)

    @property
    def is_limited(self) -> bool:
        """Some limit binds the process."""
        return self.limit is not None or self._tcp is not None

    def read(self) -> CgroupUse:
        """What it says now."""
        used, peak, most, hits, kills, tcp_used, tcp_most = (-1,) * 7
        if self.limit is not None:
            use_path, most = self.limit
            folder = use_path.parent
            used = _number(use_path)
            if use_path.name == "memory.current":
                events = _pairs(folder / "memory.events")
                hits, kills = events.get("max", -1), events.get("oom_kill", -1)
                peak = _number(folder / "memory.peak")
                tcp_used = _pairs(folder / "memory.stat").get("sock", -1)
            else:
                peak = _number(folder / "memory.max_usage_in_bytes")
                hits = _number(folder / "memory.failcnt")
                kills = _pairs(folder / "memory.oom_control").get("oom_kill", -1)
        if self._tcp is not None:
            tcp_used, tcp_most = _number(self._tcp[0]), self._tcp[1]
        return CgroupUse(used, peak, most, hits, kills, tcp_used, tcp_most)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""


def _number(path: Path) -> int:
    text = _text(path).strip()
    return int(text) if text.isdigit() else -1


def _pairs(path: Path) -> dict[str, int]:
    words = (line.split() for line in _text(path).splitlines())
    return {pair[0]: int(pair[1]) for pair in words if len(pair) == 2 and pair[1].isdigit()}
