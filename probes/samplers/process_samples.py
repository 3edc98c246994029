"""CPU, memory, descriptors and waiting of every process of the run.

Measures:
    Per process: user and system time, resident set, open descriptors, context switches, state and
    wait channel, and the time that it was ready to run and had no core (table ``process_samples``).
    Fleet, supervisor, the probe process and its children (py-spy), so that the probes' own cost is
    in the same table as what they measure.
Hook:
    psutil in ``oneshot`` (one read each of /proc/PID/stat, statm, status), /proc/PID/wchan,
    ``st_size`` of /proc/PID/fd and what stands for it before Linux 6.2
    (``probes/proc/descriptor_count.py``), and /proc/PID/schedstat, of a process with several
    threads also /proc/PID/task/TID/schedstat (``probes/proc/run_queue_wait.py``).
Cost:
    About 60 us a process and sample: 17 processes at 2 Hz take 0.2 % of a core. Of a process with
    several threads 2.3 us for each: 25 us of a node with 11. Before Linux 6.2 counting descriptors
    takes up to 0.4 ms a process, and of all together 1 % of a core: of many processes it is done
    less often, and the last number stands until then.
Misses:
    A long /proc/PID/fd is never listed: for a process with 20,000 sockets that would add 1-2 kB of
    slab a connection to what is being measured. CPU times have the resolution of the scheduler's
    tick accounting (10 ms); processes that live shorter than half a second. The waits of a process
    with more than 128 threads (-1), and a wait until it ends. A process that its control group's
    quota stops looks like one that waits for a core.
Checked against:
    A child with a known number of descriptors and a known CPU use, and children that share one core
    (tests/probes/samplers/test_process_sampler.py).
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection

import psutil

from probes.contract.clock import NS_PER_S
from probes.contract.probe import Probe, ProcessRef, Target
from probes.proc.descriptor_count import descriptor_count
from probes.proc.process_tree import own_children
from probes.proc.run_queue_wait import RunQueueWait

_COUNT_REST_FACTOR = 100
"""Counting the descriptors of all processes takes at most this part of a core."""


class _Watched:
    """One process: psutil's handle, the open files and what does not change."""

    def __init__(self, pid: int, role: str, worker: int) -> None:
        self.pid = pid
        self.role = role
        self.worker = worker
        self.process = psutil.Process(pid)
        self.run_queue_wait = RunQueueWait(pid)
        self._fd_count = -1
        self._count_due_ns = 0
        try:
            self.wchan_fd = os.open(f"/proc/{pid}/wchan", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self.wchan_fd = -1

    def wait_channel(self) -> str:
        """Kernel function it sleeps in, '' when running or not readable."""
        if self.wchan_fd < 0:
            return ""
        try:
            name = os.pread(self.wchan_fd, 128, 0)
        except OSError:
            return ""
        return "" if name == b"0" else name.decode("ascii", "replace")

    def fd_count(self, at_ns: int, processes_count: int) -> int:
        """Its open descriptors, -1 when that may not be known.

        Args:
            at_ns: Now.
            processes_count: Processes that are counted in turn.
        """
        if at_ns >= self._count_due_ns:
            began_ns = time.thread_time_ns()
            self._fd_count = descriptor_count(self.pid)
            cost_ns = time.thread_time_ns() - began_ns
            self._count_due_ns = at_ns + _COUNT_REST_FACTOR * processes_count * cost_ns
        return self._fd_count

    def close(self) -> None:
        """Closes what is open."""
        if self.wchan_fd >= 0:
            os.close(self.wchan_fd)
            self.wchan_fd = -1
        self.run_queue_wait.close()


class ProcessSamplesProbe(Probe):
    """Appends one row per process to ``process_samples``."""

    name = "process_samples"
    writes_rows = True
    period_s = 0.5

    def __init__(self) -> None:
        super().__init__()
        self._watched: dict[int, _Watched] = {}
        self._children: set[int] = set()

    def check(self) -> None:
        """Always possible: /proc of own processes needs no privilege."""

    def start(self, target: Target) -> None:
        """Opens the table and a handle of every process; one that is gone already is left out."""
        self.writers = [target.run.writer("process_samples", self.name)]
        for ref in target.processes.values():
            self._watch(ref.pid, ref.role, ref.worker)
        self._watch(os.getpid(), "probe", -1)
        if os.getppid() > 1:
            self._watch(os.getppid(), "supervisor", -1)

    def add_process(self, ref: ProcessRef) -> None:
        """Watches a process that came later, from its next sample on."""
        self._watch(ref.pid, ref.role, ref.worker)

    def remove_processes(self, pids: Collection[int]) -> None:
        """Closes what is open of processes that ended: their numbers may be others' already."""
        for pid in pids:
            if pid in self._watched:
                self._watched.pop(pid).close()

    def _watch(self, pid: int, role: str, worker: int) -> None:
        if pid in self._watched:
            return
        try:
            self._watched[pid] = _Watched(pid, role, worker)
        except psutil.Error:
            return

    def _watch_children(self) -> None:
        present = set(own_children())
        self.remove_processes(self._children - present)
        for pid in present - self._children:
            self._watch(pid, "probe", -1)
        self._children = present

    def sample(self, at_ns: int) -> None:
        """Appends a row for every process that is still there."""
        self._watch_children()
        for pid, watched in list(self._watched.items()):
            try:
                self._append(at_ns, watched)
            except (psutil.Error, OSError):  # it is gone; psutil says NoSuchProcess, procfs ESRCH
                watched.close()
                del self._watched[pid]

    def _append(self, at_ns: int, watched: _Watched) -> None:
        process = watched.process
        with process.oneshot():
            cpu = process.cpu_times()
            rss_bytes = process.memory_info().rss
            switches = process.num_ctx_switches()
            thread_count = process.num_threads()
            state = process.status()
        self.writers[0].append(
            at_ns,
            watched.pid,
            watched.role,
            watched.worker,
            round(cpu.user * NS_PER_S),
            round(cpu.system * NS_PER_S),
            rss_bytes,
            watched.fd_count(at_ns, len(self._watched)),
            switches.voluntary,
            switches.involuntary,
            str(state),
            watched.wait_channel(),
            watched.run_queue_wait.total_ns(thread_count),
        )

    def stop(self, at_ns: int) -> None:
        """Takes the last rows and closes the handles."""
        if self.writers:
            self.sample(at_ns)
        for watched in self._watched.values():
            watched.close()
        self._watched.clear()
