"""Whom the kernel killed for memory: a process of the run, or somebody else's.

Measures
    Each process that was chosen, with its memory cgroup and the time. Those that are neither of the
    run nor in a cgroup of it are counted together: they are no sign of the run's memory.
Hook
    Raw tracepoint mark_victim (mm/oom_kill.c, mark_oom_victim); probes/bpf/oom_kills.c.
Cost
    Nothing but where the kernel kills, which costs it milliseconds each time.
Misses
    Before Linux 6.8 the tracepoint gives the number of a thread and no cgroup: a process of the run
    is known by it as long as its first thread lives, and in a container without the host's pid
    namespace only where it asked for the memory itself. A process that was exiting anyway when
    memory ran out counts as killed. What a daemon of user space kills (systemd-oomd, earlyoom) is a
    plain SIGKILL.
Checked against
    A process in a cgroup of 16 MiB that takes 64 MiB: its pid, its group, its exit signal.
"""

from __future__ import annotations

from collections.abc import Collection

from probes.bpf_loader.program import BpfObject
from probes.contract.probe import ProcessRef, Target
from probes.ebpf import shared as bpf_shared
from probes.ebpf import sources as bpf_sources
from probes.ebpf.base import BpfProbe
from probes.ebpf.sources import SourceBuilder
from probes.proc.cgroup_memory import MemoryGroups


class OomKillsProbe(BpfProbe):
    """Writes ``oom_kills``."""

    is_by_process = True
    name = "oom_kills"
    tables = ("oom_kills",)
    programs = ("oom_victim",)

    def __init__(self) -> None:
        super().__init__()
        self._groups = MemoryGroups()
        self._pids: set[int] = set()

    def _source(self) -> SourceBuilder:
        return bpf_sources.oom_kills

    def _attach(self, loaded: BpfObject, target: Target) -> None:
        for pid in target.processes:
            self._know(pid)
        self._links.append(loaded.attach_raw_tracepoint("oom_victim", "mark_victim"))

    def add_process(self, ref: ProcessRef) -> None:
        """A process that came later is one of the run from now on."""
        super().add_process(ref)
        self._know(ref.pid)

    def _know(self, pid: int) -> None:
        self._pids.add(pid)
        self._groups.add(pid)

    def _forget(self, loaded: BpfObject, pids: Collection[int]) -> None:
        self._pids.difference_update(pids)

    def _read(self, loaded: BpfObject, at_ns: int) -> None:
        _, values = loaded.maps["oom_kills"].items(delete=True)
        others_count = 0
        for killed_ns, cgroup_id, count, pid in values[:, 0].tolist():
            self._recorded_count += count
            if pid in self._pids or cgroup_id in self._groups.own_ids:
                self.writers[0].append(killed_ns, pid, cgroup_id or -1, count)
            else:
                others_count += count
        if others_count:
            self.writers[0].append(at_ns, 0, -1, others_count)
        self._count_losses(bpf_shared.lost(loaded, "oom_kills"))
