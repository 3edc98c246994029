"""How long the run's threads wait for a CPU after they could run.

Measures
    Waits by (pid, power of two): from wake-up, or from losing the CPU, to running.
Hook
    Raw tracepoints sched_wakeup, sched_wakeup_new, sched_switch; probes/bpf/runq_latency.c.
Cost
    Every context switch of the host passes the program: two reads of kernel memory and one map
    lookup, and for watched threads two updates. In the full set only.
Misses
    A thread that was runnable before the probe started, once. Waiting in a throttled cgroup looks
    like waiting for a CPU.
Checked against
    A process that sleeps 50 times, and two that share one core.
"""

from __future__ import annotations

from collections.abc import Collection

from probes.bpf_loader.program import BpfObject
from probes.contract.probe import Target
from probes.ebpf import shared as bpf_shared
from probes.ebpf import sources as bpf_sources
from probes.ebpf.base import BpfProbe
from probes.ebpf.sources import SourceBuilder

EVENTS = (
    ("runq_wakeup", "sched_wakeup"),
    ("runq_wakeup", "sched_wakeup_new"),
    ("runq_switch", "sched_switch"),
)


class RunqLatencyProbe(BpfProbe):
    """Writes ``runq_latency``."""

    shared = False
    is_by_process = True
    name = "runq_latency"
    tables = ("runq_latency",)
    programs = ("runq_wakeup", "runq_switch")

    def __init__(self) -> None:
        super().__init__()
        self._counts: dict[tuple[int, int], int] = {}

    def _source(self) -> SourceBuilder:
        return bpf_sources.runq_latency

    def _attach(self, loaded: BpfObject, target: Target) -> None:
        for program, event in EVENTS:
            self._links.append(loaded.attach_raw_tracepoint(program, event))

    def _read(self, loaded: BpfObject, at_ns: int) -> None:
        keys, values = loaded.maps["runq_counts"].items()
        for key, count in zip(keys.tolist(), values.sum(axis=1).tolist(), strict=True):
            news = count - self._counts.get(key, 0)
            if news:
                self._counts[key] = count
                self._recorded_count += news
                pid, bucket = key
                self.writers[0].append(at_ns, pid, 1 << bucket, news)
        self._count_losses(bpf_shared.lost(loaded, "runq"))

    def _forget(self, loaded: BpfObject, pids: Collection[int]) -> None:
        bpf_shared.delete_of_pids(loaded, "runq_counts", pids)
        for key in [key for key in self._counts if key[0] in pids]:
            del self._counts[key]
