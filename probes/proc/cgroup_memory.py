"""The memory control groups of the watched processes: their use, limits, and what the limits did.

Read for ``host_counters`` and ``oom_kills``, from files of cgroup version 1 or 2. A parent's limit
binds its children, so every group from a process's own up to the root may be the one that counts.
What a group counts of itself is told from what it counts of all below it: a parent of many
containers is no sign of any one of them.

Source: Documentation/admin-guide/cgroup-v1/memory.rst, cgroup-v2.rst; cgroups(7).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

UNLIMITED_BYTES = 1 << 62
"""Version 1 writes the largest page multiple for "no limit"."""

_CGROUP_ROOT = Path("/sys/fs/cgroup")
_PROC = Path("/proc")
_LIMITS = (
    ("memory.max", "memory.current"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes"),
)
_TCP_LIMIT, _TCP_USED = "memory.kmem.tcp.limit_in_bytes", "memory.kmem.tcp.usage_in_bytes"
_PATH_MOST_CHARACTERS = 256
_GROUPS_MOST_COUNT = 32


def mounts(mounts_text: str) -> dict[str, Path]:
    """Mount points by controller of version 1, '' for version 2.

    Args:
        mounts_text: /proc/mounts (proc(5)).
    """
    found: dict[str, Path] = {}
    for line in filter(None, mounts_text.split("\n")):
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
    for line in filter(
        None, cgroup_text.split("\n")
    ):  # a name may hold what splitlines() splits at
        parts = line.split(":", 2)
        for controller in parts[1].split(",") if len(parts) == 3 else ():
            found[controller] = parts[2]
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
    if ".." in parts:  # it is outside of our cgroup namespace (cgroup_namespaces(7))
        return []
    return [base.joinpath(*parts[:length]) for length in range(len(parts), -1, -1)]


@dataclass(frozen=True, slots=True)
class CgroupUse:
    """One reading; -1 where there is no limit or no such file.

    Attributes:
        used_bytes: Memory charged to it.
        peak_bytes: Most that was charged so far (memory.peak of Linux 5.19, or max_usage).
        max_bytes: Its limit.
        limit_hits_total: Allocations that met its own limit (memory.failcnt, or max of
            memory.events.local; before Linux 5.2 memory.events, which has those below it too).
        oom_kills_total: Processes that the kernel killed for memory, as ``cgroup_memory`` has it.
        tcp_used_bytes: Socket buffers of TCP that are charged to the group.
        tcp_max_bytes: Their own limit, which only version 1 has.
        own_oom_kills_total: Of them those of this very group.
        own_ooms_total: Allocations that failed at its own limit; only version 2 counts them.
    """

    used_bytes: int = -1
    peak_bytes: int = -1
    max_bytes: int = -1
    limit_hits_total: int = -1
    oom_kills_total: int = -1
    tcp_used_bytes: int = -1
    tcp_max_bytes: int = -1
    own_oom_kills_total: int = -1
    own_ooms_total: int = -1


@dataclass(frozen=True, slots=True)
class MemoryGroup:
    """One folder of the memory controller.

    Attributes:
        folder: Where its files are.
        cgroup_id: Inode of the folder: the kernel's number of the group (kernfs).
        path: Below the mount, for people: bounded, and what does not print is replaced.
    """

    folder: Path
    cgroup_id: int
    path: str

    @property
    def is_limited(self) -> bool:
        """It has a limit of its own."""
        names = [limit for limit, _ in _LIMITS]
        return any(_limit(self.folder / name) >= 0 for name in (*names, _TCP_LIMIT))

    def read(self) -> CgroupUse:
        """What it says now."""
        if (self.folder / "memory.oom_control").exists():
            return self._read_first_version()
        events, own = _pairs(self.folder / "memory.events"), self._own_events()
        return CgroupUse(
            used_bytes=_number(self.folder / "memory.current"),
            peak_bytes=_number(self.folder / "memory.peak"),
            max_bytes=_limit(self.folder / "memory.max"),
            limit_hits_total=(own or events).get("max", -1),
            oom_kills_total=events.get("oom_kill", -1),
            tcp_used_bytes=_pairs(self.folder / "memory.stat").get("sock", -1),
            own_oom_kills_total=own.get("oom_kill", -1),
            own_ooms_total=own.get("oom", -1),
        )

    def _own_events(self) -> dict[str, int]:
        return _pairs(self.folder / "memory.events.local")

    def _read_first_version(self) -> CgroupUse:
        # mm/memcontrol.c, memcg_memory_event: only version 2 counts for the parents as well.
        kills = _pairs(self.folder / "memory.oom_control").get("oom_kill", -1)
        tcp_max = _limit(self.folder / _TCP_LIMIT)
        return CgroupUse(
            used_bytes=_number(self.folder / "memory.usage_in_bytes"),
            peak_bytes=_number(self.folder / "memory.max_usage_in_bytes"),
            max_bytes=_limit(self.folder / "memory.limit_in_bytes"),
            limit_hits_total=_number(self.folder / "memory.failcnt"),
            oom_kills_total=kills,
            tcp_used_bytes=_number(self.folder / _TCP_USED),
            tcp_max_bytes=tcp_max,
            own_oom_kills_total=kills,
        )


def groups_of(
    pid: int | str, *, proc: Path = _PROC, root: Path = _CGROUP_ROOT
) -> list[MemoryGroup]:
    """The memory groups that bind a process, its own first, then what is above it.

    The root of version 2 counts nothing of its own and is none of them. Empty when the process is
    gone, without the controller, or outside of this cgroup namespace.

    Args:
        pid: Or ``self``.
        proc: Where /proc is.
        root: Where cgroups are mounted.
    """
    try:
        text = (proc / str(pid) / "cgroup").read_bytes().decode("utf-8", "surrogateescape")
    except OSError:
        return []
    folders = cgroup_memory_folders(text, root)
    return list(_existing(folders))


def _existing(folders: list[Path]) -> Iterator[MemoryGroup]:
    top = folders[-1] if folders else None
    for folder in folders:
        try:
            cgroup_id = folder.stat().st_ino
        except OSError:  # a container sees its own group as the root, and the path from outside
            continue
        if any((folder / use).exists() for _, use in _LIMITS):
            assert top is not None
            yield MemoryGroup(folder, cgroup_id, _printable(f"/{folder.relative_to(top)}"))


def _printable(path: str) -> str:
    """Names are given by whoever may make a group: any byte but a slash and a newline."""
    shown = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in path)
    return "/" if shown == "/." else shown[-_PATH_MOST_CHARACTERS:]


class MemoryGroups:
    """The groups of all watched processes: which of them are read, and whose they are.

    Args:
        proc: Where /proc is.
        root: Where cgroups are mounted.

    Attributes:
        own_ids: Groups that some process is in itself.
        left_out_count: Groups beyond those that are read.
    """

    def __init__(self, proc: Path = _PROC, root: Path = _CGROUP_ROOT) -> None:
        self._proc, self._root = proc, root
        self._read: dict[int, MemoryGroup] = {}
        self.own_ids: set[int] = set()
        self.left_out_count = 0

    def add(self, pid: int) -> list[MemoryGroup]:
        """Looks up a process; returns its groups, its own first.

        Read from now on are its own group, which counts who was killed, and those with a limit.
        """
        found = groups_of(pid, proc=self._proc, root=self._root)
        for level, group in enumerate(found):
            if level == 0:
                self.own_ids.add(group.cgroup_id)
            if group.cgroup_id in self._read or (level and not group.is_limited):
                continue
            if len(self._read) < _GROUPS_MOST_COUNT:
                self._read[group.cgroup_id] = group
            else:
                self.left_out_count += 1
        return found

    def read(self) -> list[tuple[int, CgroupUse]]:
        """What every group that counts says now, by its number; one that is gone is left out."""
        found = [(cgroup_id, group.read()) for cgroup_id, group in self._read.items()]
        return [(cgroup_id, use) for cgroup_id, use in found if use.used_bytes >= 0]


def tightest(uses: list[CgroupUse]) -> CgroupUse | None:
    """The one with a limit and the least room below it, None without a limit."""
    limited = [use for use in uses if use.max_bytes >= 0]
    return min(limited, key=lambda use: use.max_bytes - use.used_bytes, default=None)


def _limit(path: Path) -> int:
    """A limit in bytes, -1 for none."""
    value = _number(path)
    return value if value < UNLIMITED_BYTES else -1


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
