"""The CPU quota of the watched processes' control groups, and how often it stopped them.

Read for ``host_counters``, from files of cgroup version 1 or 2. A group is stopped when it, or any
group above it, has used up its quota before the period is over: all of them are read. In a
container only the groups that are mounted there can be seen.

Source: Documentation/scheduler/sched-bwc.rst; Documentation/admin-guide/cgroup-v2.rst (cpu.max,
cpu.stat); cgroups(7). The kernel counts a period only where somebody in the group wanted to run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from probes.proc.cgroup_memory import mounts, paths_of

MOST_GROUPS_COUNT = 32
"""Groups that are read at each sample; a container in a pod in a slice is five deep."""
_NAME_CHARACTERS = 200
_NS_PER_US = 1_000


@dataclass(frozen=True, slots=True)
class CpuGroup:
    """One control group of a watched process, or one above it.

    Attributes:
        folder: Where its files are.
        pid: A process in it, the first that was seen.
        is_v2: Its files are those of cgroup version 2.
    """

    folder: Path
    pid: int
    is_v2: bool

    @property
    def name(self) -> str:
        """Its folder as text for people: in one line, and short."""
        return shown(self.folder)


@dataclass(frozen=True, slots=True)
class CpuQuota:
    """One reading of a group that has a quota.

    Attributes:
        quota_ns: CPU time that it may use in a period.
        period_ns: Length of the period.
        periods_total: Periods in which it wanted to run.
        throttled_periods_total: Of those, periods in which it was stopped.
        throttled_ns_total: How long, summed over the cores that it was stopped on.
    """

    quota_ns: int
    period_ns: int
    periods_total: int
    throttled_periods_total: int
    throttled_ns_total: int


def cpu_groups(pid: int, cgroup_text: str, mounts_text: str) -> list[CpuGroup]:
    """The groups whose CPU quota binds a process, its own first.

    Args:
        pid: The process.
        cgroup_text: /proc/PID/cgroup.
        mounts_text: /proc/mounts.
    """
    paths, points = paths_of(cgroup_text), mounts(mounts_text)
    is_v2 = "cpu" not in points or "cpu" not in paths
    controller = "" if is_v2 else "cpu"
    if controller not in paths or controller not in points:
        return []
    parts = PurePosixPath(paths[controller].lstrip("/")).parts
    found = []
    for length in range(len(parts), -1, -1):
        folder = points[controller].joinpath(*parts[:length])
        found.append(CpuGroup(folder, pid, is_v2))
    return found


def shown(folder: Path) -> str:
    """A folder whose name is a stranger's, in one line and short."""
    return "".join(c if c.isprintable() else "?" for c in str(folder))[:_NAME_CHARACTERS]


def parse_cpu_max(text: str) -> tuple[int, int] | None:
    """Quota and period in ns of ``cpu.max``; None for no quota.

    Args:
        text: ``max 100000`` or ``20000 100000``, in microseconds.
    """
    words = text.split()
    if len(words) != 2 or not all(word.isdigit() and int(word) for word in words):
        return None
    return int(words[0]) * _NS_PER_US, int(words[1]) * _NS_PER_US


def parse_cfs_quota(quota_text: str, period_text: str) -> tuple[int, int] | None:
    """The same of ``cpu.cfs_quota_us`` (-1 for none) and ``cpu.cfs_period_us``."""
    return parse_cpu_max(f"{quota_text.strip()} {period_text.strip()}")


def parse_cpu_stat(text: str) -> tuple[int, int, int]:
    """Periods, throttled periods and throttled ns of ``cpu.stat``, version 1 or 2.

    Version 1 has ``throttled_time`` in ns, version 2 ``throttled_usec``; what is not there is 0.
    """
    words = (line.split() for line in text.splitlines())
    values = {pair[0]: int(pair[1]) for pair in words if len(pair) == 2 and pair[1].isdigit()}
    throttled_ns = values.get("throttled_time", values.get("throttled_usec", 0) * _NS_PER_US)
    return values.get("nr_periods", 0), values.get("nr_throttled", 0), throttled_ns


class CpuQuotas:
    """The groups of all watched servers.

    Args:
        read: Reads a file, '' when it is not there.
    """

    def __init__(self, read: Callable[[str], str]) -> None:
        self._read = read
        self._groups: dict[Path, CpuGroup] = {}

    def add_process(self, pid: int) -> None:
        """Reads also the groups of this process from now on."""
        try:
            cgroup_text = Path(f"/proc/{pid}/cgroup").read_text(encoding="utf-8", errors="replace")
            mounts_text = Path("/proc/mounts").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return  # it is gone, or a kernel without control groups
        self.add_groups(cpu_groups(pid, cgroup_text, mounts_text))

    def add_groups(self, groups: list[CpuGroup]) -> None:
        """Reads also these, as far as there is room for more."""
        for group in groups:
            if len(self._groups) < MOST_GROUPS_COUNT:
                self._groups.setdefault(group.folder, group)

    def sample(self) -> list[tuple[CpuGroup, CpuQuota]]:
        """Those that have a quota now."""
        found = []
        for group in self._groups.values():
            limit = self._limit(group)
            if limit is not None:
                stat = parse_cpu_stat(self._read(f"{group.folder}/cpu.stat"))
                found.append((group, CpuQuota(*limit, *stat)))
        return found

    def _limit(self, group: CpuGroup) -> tuple[int, int] | None:
        if group.is_v2:
            return parse_cpu_max(self._read(f"{group.folder}/cpu.max"))
        quota = self._read(f"{group.folder}/cpu.cfs_quota_us")
        if not quota or quota.startswith("-"):
            return None
        return parse_cfs_quota(quota, self._read(f"{group.folder}/cpu.cfs_period_us"))
