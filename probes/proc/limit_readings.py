"""The limits that can have refused a task or a mapping: what was used of each, and how much it is.

Measures:
    When clone, fork or vfork returned EAGAIN: tasks of the process's control groups, of its user
    and of the host. When an allocation returned ENOMEM: its mappings, address space, data segment,
    and what the host has promised. Rows of ``limit_readings``.
Hook:
    prlimit(2) or /proc/PID/limits of each server when it is first seen; pids.max, pids.current,
    pids.events; /proc/sys; at a failure only.
Cost:
    30 us a process at the start, 100 us a failing kind of call and second, and for a user with a
    limit on tasks 20 us for each process of the host, at most 0.2 s.
Misses:
    A user's tasks are counted after the failure. What a security module or seccomp refused.
Checked against:
    Processes that meet each of them (tests/probes/proc/test_limit_readings.py).

Source: kernel/fork.c (copy_process), kernel/cgroup/pids.c, mm/mmap.c (do_mmap,
may_expand_vm), mm/util.c (__vm_enough_memory); getrlimit(2), proc(5).
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from probes.proc.cgroup_cpu import shown
from probes.proc.cgroup_memory import mounts, paths_of

MEMORY_CALLS = (
    "mmap",
    "mmap2",
    "mprotect",
    "mremap",
    "munmap",
    "brk",
    "clone",
    "clone3",
    "madvise",
)
"""Calls that need a mapping or memory for one: of these ENOMEM is looked into."""
_MOST_PROCESSES_COUNT = 10_000
_MOST_GROUPS_COUNT = 16
_LIMIT_LINES = {
    "Max address space": "address_space_bytes",
    "Max data size": "data_bytes",
    "Max stack size": "stack_bytes",
    "Max processes": "user_tasks_count",
}
_LIMIT_LINE = re.compile(r"^(Max [a-z ]+?) {2,}(\d+|unlimited)\s", re.MULTILINE)
_STATUS_LINE = re.compile(r"^(\w+):\s+(\d+)", re.MULTILINE)
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class LimitReading:
    """One limit; the unit is the end of its name.

    Attributes:
        limit: ``mappings_count``, ``group_tasks_count``, ...
        scope: The control group or the user that it is of, '' for the process or the host.
        used: What was used, -1 when not known.
        capacity: The limit, -1 for none.
        hits_total: How often it refused, as the kernel counts it; -1 when it does not.
    """

    limit: str
    scope: str
    used: int
    capacity: int
    hits_total: int = -1


@dataclass(frozen=True, slots=True)
class Sizes:
    """What a process had when its call failed; the most, over all failures; 0 when not known."""

    mappings_count: int
    address_space_bytes: int
    threads_count: int


def parse_limits(text: str) -> dict[str, int]:
    """The soft limits that matter here, by the name of their reading; -1 for unlimited.

    Args:
        text: /proc/PID/limits.
    """
    found = {}
    for name, value in _LIMIT_LINE.findall(text):
        if name in _LIMIT_LINES:
            found[_LIMIT_LINES[name]] = -1 if value == "unlimited" else int(value)
    return found


class LimitReader:
    """Knows the limits of processes that may be gone when one of them matters."""

    def __init__(self) -> None:
        self._limits: dict[int, dict[str, int]] = {}
        self._users: dict[int, int] = {}
        self._groups: dict[int, list[tuple[str, Path]]] = {}

    def add_process(self, pid: int) -> None:
        """Reads what holds for a process; one that is gone has no limits."""
        self._limits[pid] = parse_limits(_text(f"/proc/{pid}/limits"))
        self._users[pid] = _status(pid).get("Uid", -1)
        self._groups[pid] = _pid_groups(_text(f"/proc/{pid}/cgroup"), mounts(_text("/proc/mounts")))

    def remove(self, pids: Collection[int]) -> None:
        """Forgets processes that ended."""
        for pid in pids:
            self._limits.pop(pid, None)
            self._users.pop(pid, None)
            self._groups.pop(pid, None)

    def of_tasks(self, pid: int, sizes: Sizes) -> list[LimitReading]:
        """All that can have refused it a task (kernel/fork.c, copy_process)."""
        found = [LimitReading("threads_count", "", sizes.threads_count or -1, -1)]
        hits = -1  # version 1 counts in the group of the process, not in the one with the limit
        for name, folder in self._groups.get(pid, []):
            most = _number(folder / "pids.max")
            hits = max(hits, _pairs(_text(folder / "pids.events")).get("max", -1))
            if most >= 0:
                used = _number(folder / "pids.current")
                found.append(LimitReading("group_tasks_count", name, used, most, hits))
        user, most = self._users.get(pid, -1), self._limits.get(pid, {}).get("user_tasks_count", -1)
        if user > 0 and most >= 0:  # root of the host is exempt
            found.append(LimitReading("user_tasks_count", f"uid {user}", _tasks_of(user), most))
        tasks = _text("/proc/loadavg").split(" ")[3:4]
        used = int(tasks[0].partition("/")[2]) if tasks else -1
        for name, file in (("host_tasks_count", "threads-max"), ("host_pids_count", "pid_max")):
            found.append(LimitReading(name, "", used, _number(Path("/proc/sys/kernel", file))))
        return found

    def of_memory(self, pid: int, sizes: Sizes) -> list[LimitReading]:
        """All that can have refused it a mapping while memory is free."""
        limits = self._limits.get(pid, {})
        most = _number(Path("/proc/sys/vm/max_map_count"))
        found = [
            LimitReading("mappings_count", "", sizes.mappings_count or -1, most),
            LimitReading("threads_count", "", sizes.threads_count or -1, -1),
        ]
        data_bytes = _status(pid).get("VmData", -1)
        used = {
            "address_space_bytes": sizes.address_space_bytes or -1,
            "data_bytes": data_bytes << 10 if data_bytes >= 0 else -1,
            "stack_bytes": -1,
        }
        for name, used_bytes in used.items():
            if limits.get(name, -1) >= 0:
                found.append(LimitReading(name, "", used_bytes, limits[name]))
        if _number(Path("/proc/sys/vm/overcommit_memory")) == 2:
            host = dict(_STATUS_LINE.findall(_text("/proc/meminfo")))
            promised, most = (int(host.get(n, -1)) << 10 for n in ("Committed_AS", "CommitLimit"))
            found.append(LimitReading("host_commit_bytes", "", promised, most))
        return found


def sizes_of(mappings_count: int, address_space_pages: int, threads_count: int) -> Sizes:
    """From the kernel's numbers."""
    return Sizes(mappings_count, address_space_pages * _PAGE_BYTES, threads_count)


def _pid_groups(cgroup_text: str, points: dict[str, Path]) -> list[tuple[str, Path]]:
    """The groups whose pids.max binds a process, its own first: name and folder."""
    paths = paths_of(cgroup_text)
    controller = "pids" if "pids" in points and "pids" in paths else ""
    if controller not in paths or controller not in points:
        return []
    parts = PurePosixPath(paths[controller].lstrip("/")).parts
    found = []
    for length in range(len(parts), -1, -1):
        folder = points[controller].joinpath(*parts[:length])
        found.append((shown(folder), folder))
    return found[:_MOST_GROUPS_COUNT]


def _tasks_of(user: int) -> int:
    """Threads of all processes of a user (the real one, which RLIMIT_NPROC counts)."""
    count = 0
    for pid in _pids():
        status = _status(pid)
        if status.get("Uid") == user:
            count += status.get("Threads", 0)
    return count


def _pids() -> Iterator[int]:
    names = (name for name in os.listdir("/proc") if name.isdigit())  # noqa: PTH208 - names only
    for _, name in zip(range(_MOST_PROCESSES_COUNT), names, strict=False):
        yield int(name)


def _status(pid: int) -> dict[str, int]:
    """The first number of each line of /proc/PID/status: of Uid the real one, sizes in kB."""
    return {name: int(n) for name, n in _STATUS_LINE.findall(_text(f"/proc/{pid}/status"))}


def _text(path: Path | str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _number(path: Path) -> int:
    text = _text(path).strip()
    return int(text) if text.isdigit() else -1


def _pairs(text: str) -> dict[str, int]:
    words = (line.split() for line in text.splitlines())
    return {pair[0]: int(pair[1]) for pair in words if len(pair) == 2 and pair[1].isdigit()}
