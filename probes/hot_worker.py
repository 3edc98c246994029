"""Which fleet process is hot: the rule that decides where the costly probes look.

Reads ``/proc/PID/stat`` (proc(5), utime and stime) of each fleet process once a second: 4 us a
process. The rule itself is ``choose_hot``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from probes.clock import NS_PER_S
from probes.live import Counter, Live, Phase
from probes.probe import ProcessRef

HOT_SHARE = 0.85
COOL_SHARE = 0.5
SIBLING_FACTOR = 2.0
_NS_PER_TICK = NS_PER_S // os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Use:
    """What one process did in the last window.

    Attributes:
        pid: The process.
        role: server, acceptor or client.
        cpu_share: CPU time over wall time; 1.0 is one core.
        established_count: Connections it established in the window.
    """

    pid: int
    role: str
    cpu_share: float
    established_count: int


def choose_hot(uses: list[Use], phase: int, current_pid: int = 0) -> int:
    """The pid to look at closely, 0 for none.

    In the hold phase every process should be near idle, so one that takes most of a core is hot.
    In the ramp all of them are busy by design: hot is one that is busy and establishes nothing, or
    that takes at least twice what its busiest sibling takes.

    Args:
        uses: One per fleet process.
        phase: Of ``probes.live.Phase``.
        current_pid: The process that is hot now; it stays so until it cools, so that the probes do
            not hop between two.

    Returns:
        A pid of ``uses``, or 0.
    """
    by_pid = {use.pid: use for use in uses}
    if current_pid in by_pid and by_pid[current_pid].cpu_share >= COOL_SHARE:
        return current_pid
    hot = [use for use in uses if use.cpu_share >= HOT_SHARE and _is_odd(use, uses, phase)]
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
        other.cpu_share for other in uses if other.role == use.role and other.pid != use.pid
    ]
    return bool(siblings) and use.cpu_share >= SIBLING_FACTOR * max(siblings)


def parse_cpu_ns(stat: bytes) -> int:
    """User plus system time from the text of ``/proc/PID/stat``.

    The command name may hold spaces and parentheses, so the fields are counted from the last ``)``.
    """
    fields = stat[stat.rindex(b")") + 2 :].split(b" ", 14)
    return (int(fields[11]) + int(fields[12])) * _NS_PER_TICK


class HotWorkerWatch:
    """Keeps the descriptors and last readings that the rule needs.

    Args:
        processes: The fleet, by pid.
        live: For phase and established counts, None for foreign servers (then no ramp is known and
            the hold rule applies).
    """

    def __init__(self, processes: Mapping[int, ProcessRef], live: Live | None) -> None:
        self.pid = 0
        self.cpu_share = 0.0
        self._live = live
        self._roles = {pid: ref.role for pid, ref in processes.items()}
        self._fds: dict[int, int] = {}
        self._last: dict[int, tuple[int, int, int]] = {}
        self._slots: dict[int, memoryview[int]] = {}
        for pid in processes:
            try:
                self._fds[pid] = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                continue  # gone already; the supervisor reports deaths
        if live is not None:
            for index in range(live.slot_count):
                slot = live.slot(index)
                if slot[Counter.PID] in self._fds:
                    self._slots[slot[Counter.PID]] = slot

    def sample(self, at_ns: int) -> bool:
        """Reads all processes and applies the rule.

        Returns:
            Whether ``pid`` changed.
        """
        uses = []
        for pid, fd in list(self._fds.items()):
            try:
                cpu_ns = parse_cpu_ns(os.pread(fd, 1024, 0))
            except (OSError, ValueError):
                os.close(fd)
                del self._fds[pid]
                continue
            slot = self._slots.get(pid)
            established = slot[Counter.ESTABLISHED_TOTAL] if slot is not None else 0
            before = self._last.get(pid)
            self._last[pid] = (at_ns, cpu_ns, established)
            if before is not None and at_ns > before[0]:
                share = (cpu_ns - before[1]) / (at_ns - before[0])
                uses.append(Use(pid, self._roles[pid], share, established - before[2]))
        phase = self._live.phase if self._live is not None else Phase.HOLD
        chosen = choose_hot(uses, phase, self.pid)
        self.cpu_share = next((use.cpu_share for use in uses if use.pid == chosen), 0.0)
        changed = chosen != self.pid
        self.pid = chosen
        return changed

    def close(self) -> None:
        """Closes the descriptors."""
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()
        self._slots.clear()
