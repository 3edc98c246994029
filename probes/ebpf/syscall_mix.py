"""All system calls of chosen processes: of all in the full set, else of a hot one and its siblings.

Measures
    Calls by (pid, syscall), and how many of them returned an error, EAGAIN included.
Hook
    Raw tracepoint ``sys_exit``; probes/bpf/syscall_mix.c. Attached only while ``watch`` names
    processes.
Cost
    10 to 17 % of ramp time when every process is watched, which is why the default set watches
    only a hot one, with siblings that are idle and so make few calls.
Misses
    A call that is still running.
Checked against
    A process that makes 1,009 calls of one kind.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from probes.bpf_loader.program import BpfObject
from probes.contract.probe import Target
from probes.ebpf import shared as bpf_shared
from probes.ebpf import sources as bpf_sources
from probes.ebpf.base import BpfProbe
from probes.ebpf.sources import SourceBuilder
from probes.proc.syscall_names import CallNames


class SyscallMixProbe(BpfProbe):
    """Writes ``syscall_mix``; counts nothing until ``watch`` is called."""

    is_by_process = True
    name = "syscall_mix"
    tables = ("syscall_mix",)
    programs = ("syscall_mix",)

    def __init__(self) -> None:
        super().__init__()
        self._counts: dict[tuple[int, int], tuple[int, int]] = {}
        self._watched: set[int] = set()
        self._names = CallNames()
        self._follows_hot = False

    def _source(self) -> SourceBuilder:
        return bpf_sources.syscall_mix

    def _attach(self, loaded: BpfObject, target: Target) -> None:
        loaded.program("syscall_mix")  # refused programs are told now, not at the first watch

    def watch(self, pids: Iterable[int]) -> None:
        """Counts the calls of these processes from now on, and of no other.

        Args:
            pids: Process ids; none detaches the program.

        Raises:
            ProbeUnavailableError: The kernel refused.
        """
        if self._object is None:
            return
        wanted = set(pids)
        chosen = self._object.maps["mix_pids"]
        for pid in self._watched - wanted:
            chosen.delete(pid)
        for pid in wanted - self._watched:
            chosen.put(pid, 1)
        self._watched = wanted
        if wanted and not self._links:
            self._links.append(self._object.attach_raw_tracepoint("syscall_mix", "sys_exit"))
        elif not wanted:
            self._detach()

    def focus(self, pid: int) -> None:
        """Is told which worker is hot, 0 for none: ends a watch that followed the hot one.

        Args:
            pid: The hot worker; ``watch`` was called with it before when it is to be counted.
        """
        if pid:
            self._follows_hot = self._watched == {pid}
        elif self._follows_hot:
            self.watch(())

    def _read(self, loaded: BpfObject, at_ns: int) -> None:
        keys, values = loaded.maps["mix_counts"].items()
        totals = zip(
            values["count"].sum(axis=1).tolist(),
            values["failed"].sum(axis=1).tolist(),
            strict=True,
        )
        for key, total in zip(keys.tolist(), totals, strict=True):
            before = self._counts.get(key, (0, 0))
            if total[0] == before[0]:
                continue
            self._counts[key] = total
            pid, number = key
            news, failed = total[0] - before[0], total[1] - before[1]
            self._recorded_count += news
            self.writers[0].append(at_ns, pid, self._names.name(pid, number), news, failed)
        self._count_losses(bpf_shared.lost(loaded, "syscall_mix"))

    def _forget(self, loaded: BpfObject, pids: Collection[int]) -> None:
        for pid in self._watched.intersection(pids):
            loaded.maps["mix_pids"].delete(pid)
        self._watched = self._watched.difference(pids)
        bpf_shared.delete_of_pids(loaded, "mix_counts", pids)
        for key in [key for key in self._counts if key[0] in pids]:
            del self._counts[key]
        self._names.remove(pids)
