"""Which fleet process is hot: the rule that decides where the costly probes look.

Reads ``/proc/PID/stat`` (proc(5), utime and stime) and ``/proc/PID/schedstat`` (time on a core and
time waiting for one, Documentation/scheduler/sched-stats.rst) of each fleet process once a second:
5 us a process. How many of its accepts failed comes from who counts them already: the probe of
failing calls, or the process itself. The rule itself is ``choose_hot``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from probes.contract.clock import NS_PER_MS, NS_PER_S
from probes.contract.live import Counter, Live, Phase
from probes.contract.probe import AcceptFailures, ProcessRef
from probes.proc import stat_text
from probes.proc.run_queue_wait import parse_wait_ns

HOT_SHARE = 0.85
COOL_SHARE = 0.5
SIBLING_FACTOR = 2.0
SPIN_SHARE = 0.15
"""A process whose accepts fail all the time is hot from here on: it may rest between its tries."""
SPIN_PER_CPU_S = 1_000
"""Failing accepts in a second of its CPU time: a logged one takes 50 to 500 us, a bare one 1."""
_LEAST_WATCHED_NS = 50 * NS_PER_MS
_KNOWN_FOR_NS = 30 * NS_PER_S
"""Of a server in service failing calls are watched a part of the time: so long is a count kept."""
_IDLE_SHARE = 0.3
_SIBLINGS_MOST = 2
_NS_PER_TICK = NS_PER_S // os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Use:
    """What one process did in the last window.

    Attributes:
        pid: The process.
        role: server, acceptor or client.
        cpu_share: CPU time over wall time; 1.0 is one core.
        demand_share: The same with the time that it waited for a core: on a crowded host a process
            that spins gets less than a core, but it always wants one.
        established_count: Connections it established in the window.
        failing_accepts_per_s: Accepts that returned an error, EAGAIN aside; 0 when not known.
    """

    pid: int
    role: str
    cpu_share: float
    demand_share: float
    established_count: int
    failing_accepts_per_s: float = 0.0

    @property
    def is_spinning(self) -> bool:
        """Its CPU time goes into accepts that fail, however much of a core it gets or wants."""
        if self.cpu_share < SPIN_SHARE:
            return False
        return self.failing_accepts_per_s >= SPIN_PER_CPU_S * self.cpu_share


def choose_hot(uses: list[Use], phase: int, current_pid: int = 0) -> int:
    """The pid to look at closely, 0 for none.

    In the hold phase every process should be near idle, so one that wants most of a core is hot.
    In the ramp all of them are busy by design: hot is one that is busy and establishes nothing, or
    that wants at least twice what its busiest sibling wants. In both, one whose accepts fail all
    the time is hot with less of a core, as long as nobody wants most of one.

    Args:
        uses: One per fleet process.
        phase: Of ``probes.contract.live.Phase``.
        current_pid: The process that is hot now; it stays so until it cools, so that the probes do
            not hop between two.

    Returns:
        A pid of ``uses``, or 0.
    """
    by_pid = {use.pid: use for use in uses}
    current = by_pid.get(current_pid)
    if current is not None and current.demand_share >= COOL_SHARE:
        return current_pid
    hot = [use for use in uses if use.demand_share >= HOT_SHARE and _is_odd(use, uses, phase)]
    if not hot and phase in (Phase.RAMP, Phase.HOLD):
        if current is not None and current.is_spinning:
            return current_pid
        hot = [use for use in uses if use.is_spinning]
    if not hot:
        return 0
    return max(hot, key=lambda use: (round(use.cpu_share, 1), use.role != "client", -use.pid)).pid


def _is_odd(use: Use, uses: list[Use], phase: int) -> bool:
    if phase == Phase.HOLD:
        return True
    if phase != Phase.RAMP:
        return False
    if use.established_count == 0:
        return True
    siblings = [
        other.demand_share for other in uses if other.role == use.role and other.pid != use.pid
    ]
    return bool(siblings) and use.demand_share >= SIBLING_FACTOR * max(siblings)


def parse_cpu_ns(stat: bytes) -> int:
    """User plus system time from the text of ``/proc/PID/stat``."""
    return stat_text.cpu_ticks(stat) * _NS_PER_TICK


def idle_siblings(uses: Sequence[Use], pid: int) -> tuple[int, ...]:
    """Processes of the same role that are not busy themselves, idlest first, two at most.

    What they do is what the hot one is held against; being idle, they cost little to look at.
    """
    role = next((use.role for use in uses if use.pid == pid), "")
    others = [u for u in uses if u.role == role and u.pid != pid and u.cpu_share < _IDLE_SHARE]
    others.sort(key=lambda use: (use.cpu_share, use.pid))
    return tuple(use.pid for use in others[:_SIBLINGS_MOST])


class HotWorkerWatch:
    """Keeps the descriptors and last readings that the rule needs.

    Args:
        processes: The fleet, by pid.
        live: For phase and established counts, None for foreign servers (then no ramp is known and
            the hold rule applies).
        accept_failures: Reads what the probe of failing calls counted; gives None where it does
            not run, and then the processes' own counters serve.
    """

    def __init__(
        self,
        processes: Mapping[int, ProcessRef],
        live: Live | None,
        accept_failures: Callable[[], AcceptFailures | None] = lambda: None,
    ) -> None:
        self.pid = 0
        self.use: Use | None = None
        self.siblings: tuple[int, ...] = ()
        self._live = live
        self._accept_failures = accept_failures
        self._failures: dict[int, tuple[bool, int, int]] = {}  # from the probe, when, count
        self._failing_per_s: dict[int, tuple[int, float]] = {}
        self._roles = {pid: ref.role for pid, ref in processes.items()}
        self._fds: dict[int, tuple[int, int]] = {}
        self._last: dict[int, tuple[int, int, int, int]] = {}
        self._slots: dict[int, memoryview[int]] = {}
        self._ended: list[int] = []
        for pid in processes:
            self._open_files(pid)
        if live is not None:
            for index in range(live.slot_count):
                slot = live.slot(index)
                if slot[Counter.PID] in self._fds:
                    self._slots[slot[Counter.PID]] = slot

    def add(self, ref: ProcessRef, slot: memoryview[int]) -> None:
        """Watches a process that came later, with its slot of the shared memory."""
        self.remove(ref.pid)
        self._roles[ref.pid] = ref.role
        self._open_files(ref.pid)
        if ref.pid in self._fds:
            self._slots[ref.pid] = slot

    def _open_files(self, pid: int) -> None:
        stat_fd = _open(f"/proc/{pid}/stat")
        if stat_fd < 0:  # it is gone already
            self._ended.append(pid)
            return
        self._fds[pid] = (stat_fd, _open(f"/proc/{pid}/schedstat"))

    def take_ended(self) -> list[int]:
        """Processes that were seen to be gone since the last call.

        An open file of /proc belongs to one process and not to its number (fs/proc/base.c,
        get_proc_task of a struct pid): who has the same pid later does not hide the end of this.
        """
        ended, self._ended = self._ended, []
        return ended

    def remove(self, pid: int) -> None:
        """Forgets a process that ended."""
        if pid in self._fds:
            self._forget(pid)
        self._roles.pop(pid, None)
        self._last.pop(pid, None)
        self._slots.pop(pid, None)

    def sample(self, at_ns: int) -> bool:
        """Reads all processes and applies the rule.

        Returns:
            Whether ``pid`` changed.
        """
        counted = self._accept_failures()
        for pid in list(self._fds):
            self._count_failures(pid, at_ns, counted)
        uses = [use for pid in list(self._fds) if (use := self._use(pid, at_ns)) is not None]
        phase = self._live.phase if self._live is not None else Phase.HOLD
        chosen = choose_hot(uses, phase, self.pid)
        self.use = next((use for use in uses if use.pid == chosen), None)
        changed = chosen != self.pid
        self.pid = chosen
        self.siblings = idle_siblings(uses, chosen)
        return changed

    def _count_failures(self, pid: int, at_ns: int, counted: AcceptFailures | None) -> None:
        """Notes how often its accepts fail, where they were watched since the last look."""
        slot = self._slots.get(pid)
        if counted is not None:
            now = (True, counted.watched_ns, counted.count_by_pid.get(pid, 0))
        elif slot is not None:
            now = (False, at_ns, slot[Counter.ACCEPT_EMFILE_TOTAL])
        else:
            return
        before = self._failures.setdefault(pid, now)
        watched_ns = now[1] - before[1]
        if now[0] != before[0]:  # the probe failed: the two counts do not follow each other
            self._failures[pid] = now
        elif watched_ns >= _LEAST_WATCHED_NS:
            self._failures[pid] = now
            self._failing_per_s[pid] = (at_ns, (now[2] - before[2]) * NS_PER_S / watched_ns)

    def _use(self, pid: int, at_ns: int) -> Use | None:
        """What the process did since the last reading, None at its first and after its end."""
        stat_fd, schedstat_fd = self._fds[pid]
        try:
            cpu_ns = parse_cpu_ns(os.pread(stat_fd, 1024, 0))
            waited = os.pread(schedstat_fd, 128, 0) if schedstat_fd >= 0 else b""
            waited_ns = max(0, parse_wait_ns(waited))
        except (OSError, ValueError):
            self._forget(pid)
            self._ended.append(pid)
            return None
        slot = self._slots.get(pid)
        established = slot[Counter.ESTABLISHED_TOTAL] if slot is not None else 0
        before = self._last.get(pid)
        self._last[pid] = (at_ns, cpu_ns, waited_ns, established)
        if before is None or at_ns <= before[0]:
            return None
        length_ns = at_ns - before[0]
        cpu_share = (cpu_ns - before[1]) / length_ns
        demand_share = cpu_share + (waited_ns - before[2]) / length_ns
        known_ns, per_s = self._failing_per_s.get(pid, (0, 0.0))
        if at_ns - known_ns > _KNOWN_FOR_NS:
            per_s = 0.0
        return Use(pid, self._roles[pid], cpu_share, demand_share, established - before[3], per_s)

    def _forget(self, pid: int) -> None:
        for fd in self._fds.pop(pid):
            if fd >= 0:
                os.close(fd)
        self._failures.pop(pid, None)
        self._failing_per_s.pop(pid, None)

    def close(self) -> None:
        """Closes the descriptors."""
        for pid in list(self._fds):
            self._forget(pid)
        self._slots.clear()


def _open(path: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return -1
