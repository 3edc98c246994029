"""When to go on without a probe process that is not ready: as soon as it does not work any more.

How long a start takes says little: compiling eBPF takes two seconds here and two minutes on an
emulated or crowded host. A start that hangs neither uses a core nor waits for one.
"""

from __future__ import annotations

from collections.abc import Mapping

from probes.budget.own_cost import core_wait_ns, process_cpu_ns

STILL_S = 30.0
"""Of a process that wants less than ``LEAST_CPU_NS`` in so long nothing more comes."""
LEAST_CPU_NS = 600_000_000
"""2 % of a core; waiting for the fleet (probes/collect/collector.py) is less."""
LONGEST_START_S = 600.0


def wanted_cpu_ns(pid: int) -> int:
    """CPU time of a process, and how long its first thread waited for a core; 0 when it is gone."""
    return max(0, process_cpu_ns(pid)) + core_wait_ns(pid)


class StartPatience:
    """Judges by the CPU time that a process and its descendants want.

    Args:
        begun_s: When it was started, by time.monotonic().
    """

    def __init__(self, begun_s: float) -> None:
        self._begun_s = self._worked_s = begun_s
        self._seen_ns: dict[int, int] = {}
        self._marked_ns = 0

    def is_exhausted(self, now_s: float, wanted_ns: Mapping[int, int]) -> bool:
        """Whether to wait no longer.

        Args:
            now_s: By time.monotonic().
            wanted_ns: ``wanted_cpu_ns`` by pid, of those that are alive; who is gone still counts.
        """
        for pid, own_ns in wanted_ns.items():
            self._seen_ns[pid] = max(own_ns, self._seen_ns.get(pid, 0))
        total_ns = sum(self._seen_ns.values())
        if total_ns - self._marked_ns >= LEAST_CPU_NS:
            self._marked_ns, self._worked_s = total_ns, now_s
        return now_s - self._worked_s > STILL_S or now_s - self._begun_s > LONGEST_START_S
