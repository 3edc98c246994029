"""Which limit a process met that could have no further task or mapping. Pure.

The readings were taken when the call failed, or a moment later: a group's own counter of refusals
decides, else the one that was used up.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from analysis.evidence import Evidence
from analysis.frames.run_view import RunView
from analysis.stats.thresholds import FULL_SHARE

_TABLE = "limit_readings"
_KINDS = {True: ("limit_used_bytes", "limit_size_bytes"), False: ("limit_used", "limit_size")}
"""Evidence of use and size, in bytes or not."""
_MARGIN = 1.25
_BIG_PIECE_SHARE = 0.5
"""Of an address space: what is asked for at once may be large."""

TASKS = ("group_tasks_count", "user_tasks_count", "host_tasks_count", "host_pids_count")
MAPPINGS = ("mappings_count", "address_space_bytes", "data_bytes", "host_commit_bytes")

NAMES: Mapping[str, str] = {
    "group_tasks_count": "tasks of the control group (pids.max)",
    "user_tasks_count": "tasks of the user (RLIMIT_NPROC)",
    "host_tasks_count": "tasks of the host (kernel.threads-max)",
    "host_pids_count": "process ids of the host (kernel.pid_max)",
    "mappings_count": "mappings (vm.max_map_count)",
    "address_space_bytes": "address space (RLIMIT_AS)",
    "data_bytes": "data segment (RLIMIT_DATA)",
    "host_commit_bytes": "memory that the host promises (vm.overcommit_memory=2)",
}
"""What people call a limit, and the setting behind it."""


@dataclass(frozen=True, slots=True)
class MetLimit:
    """One limit that was met.

    Attributes:
        limit: Its name in ``limit_readings``.
        scope: Control group or user, '' for process or host.
        used: Most that was in use when it was read.
        capacity: The limit.
        hits_total: Refusals by the kernel's own count, -1 when it does not count them.
        threads: Threads of the process then, -1 when not known.
    """

    limit: str
    scope: str
    used: int
    capacity: int
    hits_total: int
    threads: int

    @property
    def name(self) -> str:
        """For people."""
        return NAMES[self.limit]

    @property
    def is_bytes(self) -> bool:
        """Its unit."""
        return self.limit.endswith("_bytes")

    def evidence(self, at_s: float) -> list[Evidence]:
        """Its numbers."""
        used, size = _KINDS[self.is_bytes]
        found = [
            Evidence(used, self.used, _TABLE, at_s, of=self.name),
            Evidence(size, self.capacity, _TABLE, of=self.name),
        ]
        if self.hits_total > 0:
            found.append(Evidence("limit_refusals", self.hits_total, _TABLE, of=self.name))
        if self.threads > 0:
            found.append(Evidence("process_threads", self.threads, _TABLE))
        return found


def met_limit(view: RunView, pid: int, limits: Sequence[str]) -> MetLimit | None:
    """The limit that refused a process, None when none of those that were read was met.

    Args:
        view: The run.
        pid: The process.
        limits: ``TASKS`` or ``MAPPINGS``.
    """
    rows = view.frames[_TABLE]
    mine = rows[(rows["pid"] == pid)]
    threads = mine[mine["limit"] == "threads_count"]["used"]
    known = mine[mine["limit"].isin(limits) & (mine["capacity"] >= 0) & (mine["used"] >= 0)]
    found = []
    for (limit, scope), part in known.groupby(["limit", "scope"], sort=False):
        last = part.iloc[-1]
        used, capacity = int(part["used"].max()), int(last["capacity"])
        found.append(
            MetLimit(
                str(limit),
                str(scope),
                used,
                capacity,
                int(part["hits_total"].max()),
                int(threads.max()) if len(threads) else -1,
            )
        )
    met = [each for each in found if _is_met(each)]
    return max(met, key=_how_near) if met else None


def _is_met(limit: MetLimit) -> bool:
    if limit.limit == "mappings_count":  # one may be over it for a moment: mm/mmap.c
        return limit.used >= limit.capacity - 1
    if limit.limit in ("address_space_bytes", "data_bytes"):
        return limit.used >= _BIG_PIECE_SHARE * limit.capacity
    return limit.used >= min(FULL_SHARE * limit.capacity, limit.capacity - 1)


def _how_near(limit: MetLimit) -> tuple[bool, float]:
    return limit.hits_total > 0, limit.used / max(1, limit.capacity)


def refused(
    errors: pd.DataFrame, calls: Sequence[str], errno: int, *, before_s: float
) -> pd.DataFrame:
    """Servers' calls that failed with one errno, one row a process, the first first.

    Args:
        errors: ``failures.df_errors``.
        calls: Names of system calls.
        errno: The error.
        before_s: When the run began to stop.

    Returns:
        pid, event_count (sum), first_s, last_s, syscall (of the most frequent one).
    """
    if (
        errno not in errors["errno"].to_numpy()
    ):  # of nearly every run, and asked for by several causes
        columns = ["pid", "event_count", "first_s", "last_s", "syscall"]
        return errors[columns].iloc[:0]
    rows = errors[errors["syscall"].isin(calls) & (errors["errno"] == errno)]
    rows = rows[(rows["side"] == "server") & ~(rows["first_s"] >= before_s)]
    rows = rows.sort_values("event_count", ascending=False, kind="stable")
    by_pid = rows.groupby("pid", as_index=False).agg(
        event_count=("event_count", "sum"),
        first_s=("first_s", "min"),
        last_s=("last_s", "max"),
        syscall=("syscall", "first"),
    )
    return by_pid.sort_values("first_s", kind="stable", ignore_index=True)


def wanted_count(used: int, capacity: int, target_count: int, at_connections: int) -> int:
    """A limit that is enough for the target, in proportion, and at least twice what it is."""
    share = target_count / at_connections if at_connections > 0 and target_count else 0.0
    return max(2 * capacity, math.ceil(_MARGIN * max(used, capacity) * min(share, 1_000.0)))
