"""Watches a fleet from outside through its shared memory: when the ramp ends, what it took.

Nothing is read but a few words of shared memory while the ramp is under way, so that the watching
costs each run the same few milliseconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from bench import proc_figures
from bench.figures import RunFigures
from probes.contract.live import Counter, Header, Live, Phase, Role

TICK_S = 0.02


@dataclass(frozen=True, slots=True)
class _CpuReading:
    server_ns: int
    primary_ns: int
    client_ns: int
    host_ns: int


class FleetWatch:
    """Follows one fleet through the phases.

    Args:
        live: Its shared memory.
        check: Called on each turn of a wait; raises when waiting makes no sense any more.
        server_pids: The server's processes where they are not ours; None takes them from the
            shared memory.
        primary_pid: The one of them that distributes connections, 0 for none.
    """

    def __init__(
        self,
        live: Live,
        check: Callable[[], None],
        server_pids: list[int] | None = None,
        primary_pid: int = 0,
    ) -> None:
        self._live = live
        self._check = check
        self._foreign_pids = server_pids
        self._primary_pid = primary_pid
        self._slots = [live.slot(index) for index in range(live.slot_count)]
        self._before: _CpuReading | None = None
        self._after: _CpuReading | None = None

    @property
    def is_ready(self) -> bool:
        """Whether every process of the fleet has reported for work."""
        return all(slot[Counter.READY_NS] for slot in self._slots)

    def server_pids(self) -> list[int]:
        """The server's processes."""
        if self._foreign_pids is not None:
            return self._foreign_pids
        return self._pids(Role.SERVER) + self._pids(Role.ACCEPTOR)

    def wait_until_ready(self) -> None:
        """Waits for every process of the fleet, then reads the CPU counters."""
        while not self.is_ready:
            self._check()
            time.sleep(TICK_S)
        self._before = self._read()

    def wait_for_phase(self, phase: Phase) -> None:
        """Waits until somebody else declares a phase.

        Until the ramp begins the CPU counters are read anew on each turn: what the fleet and the
        probes did before it is not its cost.
        """
        while self._live.phase < phase:
            self._check()
            if self._live.phase == Phase.START:
                self._before = self._read()
            time.sleep(TICK_S)

    def wait_for_ramp_end(self) -> None:
        """Waits until no client has anything left to try, then reads the CPU counters."""
        clients = self._of_role(Role.CLIENT)
        while self._live.phase <= Phase.RAMP:
            if all(slot[Counter.ATTEMPTS_DONE_NS] for slot in clients):
                break
            self._check()
            time.sleep(TICK_S)
        self._after = self._read()

    def fill_hold(self, figures: RunFigures) -> None:
        """Held and lost connections and the server's memory, as they are now."""
        clients = self._of_role(Role.CLIENT)
        figures.held_count = sum(slot[Counter.OPEN_COUNT] for slot in clients)
        figures.lost_count = sum(slot[Counter.LOST_TOTAL] for slot in clients)
        pids = self.server_pids()
        if self._foreign_pids is None and pids:
            pids = [*pids, proc_figures.parent_pid(pids[0])]
        used = proc_figures.memory(pids)
        figures.server_pss_bytes, figures.server_rss_bytes = used.pss_bytes, used.rss_bytes
        if self._primary_pid:
            figures.primary_pss_bytes = proc_figures.memory([self._primary_pid]).pss_bytes

    def fill_ramp(self, figures: RunFigures) -> None:
        """Time and CPU of the ramp; call when the hold is over, it reads every record."""
        clients = self._of_role(Role.CLIENT)
        established = sum(slot[Counter.ESTABLISHED_TOTAL] for slot in clients)
        figures.established_count = established
        figures.failed_count = sum(slot[Counter.FAILED_TOTAL] for slot in clients)
        if not established:
            return
        last_ns = max(self._live.column("established_ns"))
        figures.ramp_s = (last_ns - self._live.header[Header.PHASE_RAMP_NS]) / 1e9
        if self._before is None or self._after is None:
            return
        before, after = self._before, self._after
        per_connection = 1e-3 / established
        figures.server_cpu_us = (after.server_ns - before.server_ns) * per_connection
        figures.client_cpu_us = (after.client_ns - before.client_ns) * per_connection
        figures.fleet_cpu_us = figures.server_cpu_us + figures.client_cpu_us
        figures.host_cpu_us = (after.host_ns - before.host_ns) * per_connection
        if self._primary_pid:
            figures.primary_cpu_us = (after.primary_ns - before.primary_ns) * per_connection

    def _of_role(self, role: Role) -> list[memoryview[int]]:
        return [slot for slot in self._slots if slot[Counter.ROLE] == role]

    def _pids(self, role: Role) -> list[int]:
        return [slot[Counter.PID] for slot in self._of_role(role) if slot[Counter.PID]]

    def _read(self) -> _CpuReading:
        return _CpuReading(
            server_ns=sum(map(proc_figures.cpu_ns, self.server_pids())),
            primary_ns=proc_figures.cpu_ns(self._primary_pid) if self._primary_pid else 0,
            client_ns=sum(map(proc_figures.cpu_ns, self._pids(Role.CLIENT))),
            host_ns=proc_figures.host_busy_ns(),
        )
