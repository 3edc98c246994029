"""What the control group of this process allows: memory and CPU, up to the root (cgroups(7))."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from harness.planning.kernel_files import first_int, text_of
from probes.proc.cgroup_memory import UNLIMITED_BYTES, paths_of


@dataclass(frozen=True, slots=True)
class Cgroup:
    """The memory and CPU this process's control group allows.

    Attributes:
        version: 2, 1, or 0 when none was found.
        path: Path of the group that has the memory controller, '' for none.
        memory_limit_bytes: The tightest limit from the group up to the root; None for no limit.
        memory_used_bytes: Charged to the group with that limit, without inactive file cache,
            which the kernel gives back first; None for no limit.
        cpu_quota_cores: Cores that the quota pays for; None for no quota.
    """

    version: int = 0
    path: str = ""
    memory_limit_bytes: int | None = None
    memory_used_bytes: int | None = None
    cpu_quota_cores: float | None = None


def read_cgroup(root: Path) -> Cgroup:
    """The group of this process below ``root``."""
    memberships = paths_of(text_of(root / "proc/self/cgroup"))
    mounts = _cgroup_mounts(root)
    if "memory" in memberships and "memory" in mounts:
        folders = _folders(root, mounts["memory"], memberships["memory"])
        limit, used = _tightest(
            folders, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
        )
        cpu = mounts.get("cpu")
        quota = None
        for folder in _folders(root, cpu, memberships.get("cpu", "/")) if cpu else []:
            quota = _smaller(
                quota,
                _ratio(
                    first_int(folder / "cpu.cfs_quota_us"),
                    first_int(folder / "cpu.cfs_period_us"),
                ),
            )
        return Cgroup(1, memberships["memory"], limit, used, quota)
    if "" in memberships and "" in mounts:
        folders = _folders(root, mounts[""], memberships[""])
        limit, used = _tightest(folders, "memory.max", "memory.current", "inactive_file")
        quota = None
        for folder in folders:
            words = text_of(folder / "cpu.max").split()
            if len(words) == 2 and words[0].isdigit() and words[1].isdigit():
                quota = _smaller(quota, _ratio(int(words[0]), int(words[1])))
        return Cgroup(2, memberships[""], limit, used, quota)
    return Cgroup()


def _cgroup_mounts(root: Path) -> dict[str, tuple[str, str]]:
    """Controller ('' for version 2) to (root of the mount in its hierarchy, mount point)."""
    mounts: dict[str, tuple[str, str]] = {}
    for line in text_of(root / "proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        fields, kinds = before.split(), after.split()
        if len(fields) < 5 or len(kinds) < 3:
            continue
        if kinds[0] == "cgroup2":
            mounts.setdefault("", (fields[3], fields[4]))
        elif kinds[0] == "cgroup":
            for controller in kinds[2].split(","):
                mounts.setdefault(controller, (fields[3], fields[4]))
    return mounts


def _folders(root: Path, mount: tuple[str, str], membership: str) -> list[Path]:
    """The group's folder and its ancestors up to the mount point, as far as they are visible."""
    mount_root, mount_point = mount
    try:
        relative = PurePosixPath(membership).relative_to(mount_root)
    except ValueError:
        relative = PurePosixPath()  # a container that sees its own group as the mount point
    if ".." in relative.parts:
        relative = PurePosixPath()  # a group outside this cgroup namespace (cgroup_namespaces(7))
    top = root / mount_point.lstrip("/")
    levels = [relative, *relative.parents]
    return [top / level for level in levels if (top / level).is_dir()]


def _tightest(
    folders: list[Path], limit_name: str, used_name: str, cache_key: str
) -> tuple[int | None, int | None]:
    limit: int | None = None
    used: int | None = None
    for folder in folders:
        here = first_int(folder / limit_name)
        if here is None or here >= UNLIMITED_BYTES or (limit is not None and here >= limit):
            continue
        limit = here
        lines = (line.split() for line in text_of(folder / "memory.stat").splitlines())
        cache = next((int(words[1]) for words in lines if words[:1] == [cache_key]), 0)
        used = max(0, (first_int(folder / used_name) or 0) - cache)
    return limit, used


def _ratio(quota: int | None, period: int | None) -> float | None:
    return quota / period if quota is not None and quota > 0 and period else None


def _smaller(first: float | None, second: float | None) -> float | None:
    if first is None or second is None:
        return second if first is None else first
    return min(first, second)
