"""What watching costs by itself, and how the watching processes stand back for the others.

``OwnCost`` adds up the CPU clocks of this process, of the one that started it and of its children
(py-spy): one clock_gettime(2) each (clock ids of other processes: kernel/time/posix-cpu-timers.c).

``stand_back`` makes this process one that only takes what others leave: SCHED_BATCH does not
interrupt who runs when it wakes up, nice 19 has 15 of the 1,024 weights of a normal task, so 1.5 %
of a core that others want whole (sched(7), kernel/sched/core.c sched_prio_to_weight). Since Linux
6.6 who runs may end its slice first, also where one of more weight wakes up (kernel/sched/fair.c,
RUN_TO_PARITY): 1.4 ms on two cores, which every message of that moment waits. So the slice is
``SLICE_NS`` (sched_setattr(2), sched_runtime; Linux 6.12 and later, others ignore it). Where the
scheduler groups tasks by session (sched(7), autogroup), the group gets the same value: else nice
would count among the tasks of this session only. Between control groups nice does not count at all:
there the budget of ``probes.budget.governor`` is what bounds the cost. A timer of it may go off
``TIMER_SLACK_NS`` late (prctl(2), PR_SET_TIMERSLACK), with another one of the same core: that is
one interrupt less. What it starts inherits that.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import struct
import time
from pathlib import Path

from probes.contract.clock import NS_PER_MS, NS_PER_S
from probes.proc.process_tree import own_children

START_NICE, WATCH_NICE, END_NICE = 5, 19, 5
"""The end of a run is short and somebody waits for it; so is the start, which compiles."""

OOM_SCORE_ADJ = 1000
"""The most that there is (proc(5)); it may be raised without a right."""

TIMER_SLACK_NS = 10 * NS_PER_MS
SLICE_NS = NS_PER_MS // 10
"""The shortest that the kernel takes."""

_SYS_SCHED_SETATTR = {"x86_64": 314, "aarch64": 274, "riscv64": 274}
_SCHED_ATTR = struct.Struct("=IIQiIQQQ")
"""size, policy, flags, nice, priority, runtime, deadline, period (sched_setattr(2))."""

_CPUCLOCK_SCHED = 2


def process_cpu_ns(pid: int) -> int:
    """CPU time of all threads of a process, -1 when it is gone.

    Its children are not in it.
    """
    try:
        return time.clock_gettime_ns(~pid << 3 | _CPUCLOCK_SCHED)
    except OSError:
        return -1


def core_wait_ns(pid: int) -> int:
    """How long the first thread of a process was runnable and had no core; 0 when it is gone.

    Source: Documentation/scheduler/sched-stats.rst, /proc/PID/schedstat.
    """
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):  # gone, or a kernel without CONFIG_SCHED_INFO
        return 0


class OwnCost:
    """Adds up what this process, its parent and its children use.

    Args:
        parent_pid: The process that started this one and waits for it, 0 for none.
    """

    def __init__(self, parent_pid: int) -> None:
        self._parent_pid = parent_pid

    def total_ns(self) -> int:
        """CPU time of all of them since they started; grows only.

        A child's time moves to ``RUSAGE_CHILDREN`` when it is reaped, which is this thread's work.
        """
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        total_ns = time.process_time_ns() + round((ended.ru_utime + ended.ru_stime) * NS_PER_S)
        pids = [self._parent_pid] if self._parent_pid else []
        pids += own_children()
        return total_ns + sum(max(0, process_cpu_ns(pid)) for pid in pids)


def go_first_without_memory() -> None:
    """Lets the kernel choose this process and its children before the server that they watch.

    Who takes most memory is killed first (oom_badness(), mm/oom_kill.c), and names of a large
    server's functions take some.
    """
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE_ADJ), encoding="ascii")


def stand_back(nice: int, pid: int = 0) -> None:
    """Lets a process take only what others leave; what the kernel refuses is left as it is.

    Args:
        nice: ``START_NICE``, ``WATCH_NICE`` or ``END_NICE``; below the present one needs root.
        pid: A process that is alone in its session with what it starts, 0 for this one.
    """
    with contextlib.suppress(OSError):
        os.sched_setscheduler(pid, os.SCHED_BATCH, os.sched_param(0))
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, pid, nice)
    _set_slice(nice, pid)
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid or 'self'}/timerslack_ns").write_text(f"{TIMER_SLACK_NS}\n", "ascii")
    with contextlib.suppress(OSError):
        if os.getsid(pid) == (pid or os.getpid()):  # else others are in the session: not ours
            Path(f"/proc/{pid or 'self'}/autogroup").write_text(f"{nice}\n", encoding="ascii")


def _set_slice(nice: int, pid: int) -> None:
    number = _SYS_SCHED_SETATTR.get(os.uname().machine)
    if number is None:
        return
    attr = _SCHED_ATTR.pack(_SCHED_ATTR.size, os.SCHED_BATCH, 0, nice, 0, SLICE_NS, 0, 0)
    ctypes.CDLL(None).syscall(number, pid, attr, 0)  # refused, it has the usual slice
