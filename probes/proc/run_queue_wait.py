"""How long a process was ready to run and had no core.

``/proc/PID/task/TID/schedstat`` (Documentation/scheduler/sched-stats.rst) has three figures of one
thread: time on a core, time on a run queue (both ns), turns on a core; ``/proc/PID/schedstat`` has
those of the main thread. A wait is counted when it ends (kernel/sched/stats.h, sched_info_arrive),
and waiting for the quota of a control group counts like waiting for a core.

Of several threads counts the one that waited longest since the last reading: a pool of many, each
of which waits now and then, is no thread that waits all the time.
"""

from __future__ import annotations

import os

MOST_THREADS_COUNT = 128
"""Of a process with more threads nothing is read: each costs 2.3 us."""


def parse_wait_ns(schedstat: bytes) -> int:
    """Time one thread waited for a core, from its ``schedstat``.

    Returns:
        ns; -1 when not known: nothing was read, or the kernel does not count (all figures are 0).
    """
    fields = schedstat.split()
    return int(fields[1]) if len(fields) > 2 and fields[2] != b"0" else -1


class RunQueueWait:
    """Adds up, from reading to reading, how long the thread waited that waited longest.

    Args:
        pid: The process.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._task_folder = f"/proc/{pid}/task"
        self._total_ns = 0
        self._last_ns: dict[int, int] | None = {}
        try:
            self._fd = os.open(f"/proc/{pid}/schedstat", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._fd = -1

    def total_ns(self, thread_count: int) -> int:
        """Time that it waited so far.

        Args:
            thread_count: Its threads now; one costs one read of a file that is open.

        Returns:
            ns, never less than before; -1 when not known: a kernel without the figures, or more
            than ``MOST_THREADS_COUNT`` threads.
        """
        now_ns = self._read(thread_count) if thread_count <= MOST_THREADS_COUNT else {}
        before_ns, self._last_ns = self._last_ns, now_ns or None
        if not now_ns:
            return -1
        if before_ns is not None:  # else nobody knows how much of it is new
            grown_ns = (wait_ns - before_ns.get(tid, 0) for tid, wait_ns in now_ns.items())
            self._total_ns += max(0, *grown_ns)
        return self._total_ns

    def _read(self, thread_count: int) -> dict[int, int]:
        """Waits by thread; empty when the main thread's is not known."""
        try:
            main_ns = parse_wait_ns(os.pread(self._fd, 128, 0)) if self._fd >= 0 else -1
            if main_ns < 0:
                return {}
            found = {self._pid: main_ns}
            if thread_count > 1:
                for name in os.listdir(self._task_folder):  # noqa: PTH208  # no Path for each
                    if int(name) != self._pid:
                        found[int(name)] = max(0, parse_wait_ns(self._read_thread(name)))
        except OSError:  # it ended meanwhile
            return {}
        return found

    def _read_thread(self, name: str) -> bytes:
        try:
            fd = os.open(f"{self._task_folder}/{name}/schedstat", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:  # it ended since it was listed
            return b""
        try:
            return os.read(fd, 128)
        except OSError:
            return b""
        finally:
            os.close(fd)

    def close(self) -> None:
        """Closes the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
