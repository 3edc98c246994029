"""What the terminal shows while the fleet runs, read from shared memory and /proc/PID/stat."""

from __future__ import annotations

import errno
import os
import time
from collections import Counter as Tally

from harness.planning.layout import Plan
from harness.supervision.fleet import Fleet
from probes.contract.live import Counter, Header
from probes.proc import process_tree, stat_text
from reports.terminal.terminal import Status

_CPU_PERIOD_S = 0.5
_ERRNO_SHARE = 0.01
"""Most of the time that counting errnos may take: the next count waits 100 times as long."""
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class ProcessLabels:
    """What people call a process that is not ours: its command's name and pid."""

    def __init__(self) -> None:
        self._known: dict[int, str] = {}

    def of(self, pid: int) -> str:
        """At most 20 characters of the name; read once, so that it outlives the process."""
        if pid not in self._known:
            self._known[pid] = f"{process_tree.command_name(pid)[:20]} {pid}"
        return self._known[pid]


class CpuUse:
    """CPU of processes in per cent of a core, read every half second.

    Attributes:
        pct: By pid; a process is in it from its second reading on.
    """

    def __init__(self) -> None:
        self.pct: dict[int, float] = {}
        self._at_s = 0.0
        self._ticks: dict[int, int] = {}

    def read(self, pids: list[int], now_s: float) -> None:
        """Reads again when it is time."""
        passed_s = now_s - self._at_s
        if passed_s < _CPU_PERIOD_S:
            return
        for pid in pids:
            ticks = _cpu_ticks(pid)
            if pid in self._ticks and ticks >= 0:
                self.pct[pid] = 100 * (ticks - self._ticks[pid]) / _TICKS_PER_S / passed_s
            self._ticks[pid] = ticks
        self._at_s = now_s


class LiveStatus:
    """Builds a Status from the fleet's counters."""

    def __init__(self, fleet: Fleet, plan: Plan) -> None:
        self._fleet = fleet
        self._plan = plan
        self._rate_from = (time.monotonic(), 0)
        self._rate_per_s = 0.0
        self._cpu = CpuUse()
        self._labels = ProcessLabels()
        self._errno_column = fleet.live.column("errno")
        self._errno_counts: Tally[int] = Tally()
        self._errno_of_failures = 0
        self._errno_next_s = 0.0

    def read(self, phase: str, *, time_left_s: float | None = None, note: str = "") -> Status:
        """The state of now."""
        fleet = self._fleet
        is_own = not fleet.config.is_foreign
        now_s = time.monotonic()
        established = fleet.total(Counter.ESTABLISHED_TOTAL)
        since_s, before = self._rate_from
        if now_s - since_s >= 1.0:
            self._rate_per_s = (established - before) / (now_s - since_s)
            self._rate_from = (now_s, established)
        ramp_ns = fleet.live.header[Header.PHASE_RAMP_NS]
        # What was made again counts by its last attempt.
        again_open = fleet.total(Counter.RETRIED_OPEN_TOTAL)
        failed = fleet.total(Counter.FAILED_TOTAL) + again_open - fleet.total(Counter.RETRIED_TOTAL)
        lost = fleet.total(Counter.LOST_TOTAL) - again_open
        self._cpu.read(
            [slot[Counter.PID] for slot in fleet.server_slots if slot[Counter.PID]], now_s
        )
        return Status(
            elapsed_s=(time.monotonic_ns() - ramp_ns) / 1e9 if ramp_ns else 0.0,
            phase=phase,
            established=established - again_open,
            open_count=fleet.total(Counter.OPEN_COUNT),
            rate_per_s=self._rate_per_s,
            failed=failed + lost,
            errors=self._errors(failed + lost, now_s),
            workers=[
                (
                    f"worker {index}" if is_own else self._labels.of(slot[Counter.PID]),
                    slot[Counter.OPEN_COUNT],
                    slot[Counter.TARGET_COUNT],
                    self._cpu.pct.get(slot[Counter.PID], -1.0),
                )
                for index, slot in enumerate(fleet.server_slots)
                if is_own or (slot[Counter.PID] and not slot[Counter.STOPPED_NS])
            ],
            time_left_s=time_left_s,
            note=note,
        )

    def _errors(self, failures: int, now_s: float) -> list[tuple[str, str, int]]:
        """Failures by side and errno, most frequent first.

        The clients' errnos are counted in the records of all connections (4 ms for 120,000).
        """
        if failures != self._errno_of_failures and now_s >= self._errno_next_s:
            self._errno_counts = Tally(self._errno_column)
            self._errno_of_failures = failures
            self._errno_next_s = now_s + (time.monotonic() - now_s) / _ERRNO_SHARE
        fleet = self._fleet
        errors = [
            ("client", errno.errorcode.get(number, f"errno {number}"), count)
            for number, count in self._errno_counts.items()
            if number
        ]
        errors.append(("server", "EMFILE", fleet.total(Counter.ACCEPT_EMFILE_TOTAL, clients=False)))
        errors.append(("client", "closed by server", fleet.total(Counter.EOF_TOTAL)))
        return sorted((e for e in errors if e[2]), key=lambda e: -e[2])

    def wall_note(self) -> str:
        """Which clients get nothing through now, '' when there are none."""
        walls = [
            (index, slot[Counter.WALL_SINCE_NS])
            for index, slot in enumerate(self._fleet.client_slots)
            if slot[Counter.WALL_SINCE_NS] and not slot[Counter.ATTEMPTS_DONE_NS]
        ]
        if not walls:
            return ""
        since_s = (time.monotonic_ns() - min(since_ns for _, since_ns in walls)) / 1e9
        who = f"client {walls[0][0]}" if len(walls) == 1 else f"{len(walls)} clients"
        return (
            f"every attempt of {who} has failed for {since_s:.1f} s: trying on slowly, "
            f"up to {self._fleet.config.stall_s:g} s (--stall)"
        )

    def ramp_left_s(self, hold_s: float) -> float | None:
        """Seconds until the end of the hold at the rate of the last second, None when not known."""
        if self._rate_per_s <= 0:
            return None
        missing = self._plan.target_connections - self._fleet.total(Counter.ATTEMPTED_TOTAL)
        return max(0, missing) / self._rate_per_s + hold_s


def waiting(note: str) -> Status:
    """The state before there is a fleet."""
    return Status(
        elapsed_s=0.0,
        phase="setup",
        established=0,
        open_count=0,
        rate_per_s=0.0,
        failed=0,
        note=note,
    )


def _cpu_ticks(pid: int) -> int:
    """Utime + stime of proc(5), -1 when the process is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stream:  # noqa: PTH123 - twice a second each
            return stat_text.cpu_ticks(stream.read())
    except OSError:
        return -1
