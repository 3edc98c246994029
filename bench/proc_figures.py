"""CPU time and memory of processes and of the host, read from /proc by somebody outside the run.

Sources: proc(5); kernel/sched/cputime.c, kernel/sched/fair.c (``sum_exec_runtime``),
fs/proc/stat.c.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
_UTIME, _CUTIME = 11, 13  # words of /proc/PID/stat behind the name: utime stime cutime cstime
_PPID = 1


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory of some processes, summed.

    Attributes:
        pss_bytes: Proportional set size: a page that n processes map counts 1/n for each.
        rss_bytes: Resident set size: shared pages count for every process.
    """

    pss_bytes: int = 0
    rss_bytes: int = 0


def _stat_words(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from ``state`` on; [] when the process is gone."""
    try:
        text = (_PROC / str(pid) / "stat").read_text(encoding="ascii", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return []
    return text.rpartition(")")[2].split()


def cpu_ns(pid: int) -> int:
    """User and system time of one process, 0 when it is gone.

    The scheduler's nanoseconds of all threads; the 10 ms ticks of ``stat`` where they say more,
    since they also have the threads that ended. What interrupts do while the process runs, eBPF
    programs and perf samples included, is in it unless the kernel has IRQ_TIME_ACCOUNTING.
    """
    words = _stat_words(pid)
    if not words:
        return 0
    ticks_ns = sum(int(word) for word in words[_UTIME : _UTIME + 2]) * _TICK_NS
    nanoseconds = 0
    try:
        for thread in (_PROC / str(pid) / "task").iterdir():
            nanoseconds += int((thread / "schedstat").read_text(encoding="ascii").split()[0])
    except (OSError, ValueError, IndexError):
        pass  # it ended meanwhile, or a kernel without SCHED_INFO
    return max(nanoseconds, ticks_ns)


def tree_cpu_ns(pids: Iterable[int]) -> int:
    """User and system time of processes and of those of their children that ended, in ticks."""
    words = (_stat_words(pid) for pid in pids)
    return sum(int(word) for each in words for word in each[_UTIME : _CUTIME + 2]) * _TICK_NS


def memory(pids: Iterable[int]) -> Memory:
    """Sum over processes; those that are gone or have no memory (zombies) add nothing."""
    pss_bytes = rss_bytes = 0
    for pid in pids:
        try:
            text = (_PROC / str(pid) / "smaps_rollup").read_text(encoding="ascii")
        except (FileNotFoundError, ProcessLookupError):
            continue
        for line in text.splitlines()[1:]:
            key, _, value = line.partition(":")
            if key == "Pss":
                pss_bytes += int(value.split()[0]) * 1024
            elif key == "Rss":
                rss_bytes += int(value.split()[0]) * 1024
    return Memory(pss_bytes, rss_bytes)


def parent_pid(pid: int) -> int:
    """Parent of a process, 0 when it is gone."""
    words = _stat_words(pid)
    return int(words[_PPID]) if words else 0


def is_running(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    words = _stat_words(pid)
    return bool(words) and words[0] not in ("Z", "X")


def command(pid: int) -> str:
    """Command line of a process, '' when it is gone."""
    try:
        raw = (_PROC / str(pid) / "cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return raw.replace(b"\0", b" ").decode(errors="replace").strip()


def descendants(pid: int) -> list[int]:
    """Children, their children and so on, without the process itself; one walk over /proc."""
    children: dict[int, list[int]] = {}
    for each in _pids():
        children.setdefault(parent_pid(each), []).append(each)
    found: list[int] = []
    waiting = [pid]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return sorted(found)


def _pids() -> Iterator[int]:
    return (int(entry.name) for entry in _PROC.iterdir() if entry.name.isdigit())


def host_busy_ns(stat_text: str | None = None, now_ns: int | None = None) -> int:
    """Time that all cores together were not idle, up to an unknown constant; take differences.

    The complement of idle and iowait, which the kernel measures when it enters and leaves idle
    (fs/proc/stat.c, get_idle_time), and not the sum of the busy columns, which are sampled by a
    tick and miss short work. Time stolen by the hypervisor is nobody's.

    Args:
        stat_text: Contents of /proc/stat; read when None.
        now_ns: When it was read.
    """
    if stat_text is None:
        stat_text = (_PROC / "stat").read_text(encoding="ascii")
    if now_ns is None:
        now_ns = time.monotonic_ns()
    cores = 0
    not_ours = 0
    for line in stat_text.splitlines():
        words = line.split()
        if words[0] == "cpu":
            not_ours = int(words[4]) + int(words[5]) + (int(words[8]) if len(words) > 8 else 0)
        elif words[0].startswith("cpu"):
            cores += 1
    return now_ns * cores - not_ours * _TICK_NS


def busy_pct(seconds: float) -> float:
    """How much of one core the whole host uses over a while; 100 is one core, 200 two.

    Args:
        seconds: How long to look; this call takes as long.
    """
    began_ns, before_ns = time.monotonic_ns(), host_busy_ns()
    time.sleep(seconds)
    used_ns = host_busy_ns() - before_ns
    return max(0.0, 100 * used_ns / (time.monotonic_ns() - began_ns))
