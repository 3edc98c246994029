"""Where the run's processes spend CPU time: sampled kernel and user stacks.

Measures
    Samples of watched processes by (pid, tid, kernel stack, user stack), 49 times a second a core.
    On loopback the sender's thread runs the receiver's TCP as well: a sample says whose CPU time
    it was, not on whose behalf.
Hook
    Perf event PERF_COUNT_SW_CPU_CLOCK on every core (perf_event_open(2)), frequency mode;
    probes/bpf/cpu_stacks.c. 49 and not 50, so that it does not beat with timers of 10 ms.
Cost
    A few us a sample in the kernel; a map read once a second and one lookup per stack that was not
    seen before.
Misses
    Time with interrupts off is billed to the instruction that turns them on. User stacks follow
    frame pointers: code built without them (most distributions' libraries) shows its own function
    and not always its callers. Functions that a runtime compiled have names only where it writes a
    perf map (Node --perf-basic-prof, Python -X perf with frame pointers, Java); code that it moves
    within the second between two readings can get the name of what was there before. Other
    interpreted frames are py-spy's business.
Checked against
    Processes that spin in one known function, a 32-bit and a static one among them; Node, Java and
    Python 3.15 with their maps (tests/privileged).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy.typing as npt

from probes.bpf_loader.program import BpfObject
from probes.budget.row_budget import STACKS_MOST_COUNT
from probes.contract.clock import NS_PER_S
from probes.contract.probe import ProcessRef, Target
from probes.ebpf import shared as bpf_shared
from probes.ebpf import sources as bpf_sources
from probes.ebpf.base import BpfProbe
from probes.ebpf.sources import CPU_FREQUENCY_HZ, SourceBuilder
from probes.symbols.kernel import kernel_symbols
from probes.symbols.stacks import frames_of
from probes.symbols.symbols import user_symbols

OTHERS = "[stacks with few samples]"
"""The frame of what was not kept apart, to keep the recording of a long watch small."""

Row = tuple[tuple[int, int, int, int], tuple[int, bytes]]
"""pid, tid and both stacks; samples and name of the thread."""

_FAULT = -14  # bpf_get_stackid: the task has no such stack
_FULL_SHARE = 8  # the stack map is cleared when one in so many of its buckets is taken


class CpuStacksProbe(BpfProbe):
    """Writes ``cpu_stacks``."""

    is_by_process = True
    name = "cpu_stacks"
    writes_rows = True
    tables = ("cpu_stacks",)
    programs = ("cpu_sample",)

    def __init__(self) -> None:
        super().__init__()
        self._kernel = kernel_symbols()
        self._user = user_symbols()
        # A stack id names the same stack until the map is cleared: each is read and named once.
        self._frames: dict[int, list[int]] = {}
        self._kernel_names: dict[int, str] = {}
        self._user_names: dict[tuple[int, int], tuple[int, str]] = {}  # with the names' version
        self._target: Target | None = None
        self._lost_stacks_count = 0

    def _source(self) -> SourceBuilder:
        return bpf_sources.cpu_stacks

    def _attach(self, loaded: BpfObject, target: Target) -> None:
        self._target = target
        self._kernel.load()
        for pid in target.processes:
            self._user.add_process(pid)
        self._links = loaded.attach_cpu_clock("cpu_sample", CPU_FREQUENCY_HZ)

    def add_process(self, ref: ProcessRef) -> None:
        """Watches a process that came later; its mappings are read now, it may not live long."""
        super().add_process(ref)
        self._user.add_process(ref.pid)

    def _forget(self, loaded: BpfObject, pids: Collection[int]) -> None:
        del loaded  # its samples were taken out when they were read
        for key in [key for key in self._user_names if key[0] in pids]:
            del self._user_names[key]

    @property
    def note(self) -> str:
        """Why frames have no names, for the row of its health."""
        return "; ".join(self._user.troubles)

    def _read(self, loaded: BpfObject, at_ns: int) -> None:
        self._write(loaded, at_ns, *loaded.maps["cpu_samples"].items(delete=True))
        if len(self._frames) > loaded.maps["cpu_traces"].max_entries // _FULL_SHARE:
            self._clear(loaded, at_ns)
        lost = bpf_shared.lost(loaded, "cpu_samples", "cpu_paused")
        self._count_losses(lost, without_stack_count=self._lost_stacks_count)

    def _write(
        self, loaded: BpfObject, at_ns: int, keys: npt.NDArray[Any], values: npt.NDArray[Any]
    ) -> None:
        (writer,) = self.writers
        period_ns = NS_PER_S // CPU_FREQUENCY_HZ
        # What a runtime has compiled anew since the last reading makes its names new.
        versions = {pid: self._user.version(pid) for pid in {key[0] for key in keys.tolist()}}
        rows = list(zip(keys.tolist(), values[:, 0].tolist(), strict=True))
        self._recorded_count += sum(count for _, (count, _) in rows)
        if self._target is not None and self._target.is_coarse:
            rows = self._largest(rows, at_ns)
        self._name_user_stacks(loaded, {(key[0], key[3]) for key, _ in rows}, versions)
        for (pid, tid, kernel_id, user_id), (count, comm) in rows:
            if any(each < 0 and each != _FAULT for each in (kernel_id, user_id)):
                self._lost_stacks_count += count
            if kernel_id not in self._kernel_names:
                self._kernel_names[kernel_id] = self._kernel.stack(self._stack(loaded, kernel_id))
            writer.append(
                at_ns,
                pid,
                tid,
                comm.decode(errors="replace"),
                self._kernel_names[kernel_id],
                self._user_names[pid, user_id][1],
                count,
                period_ns,
            )

    def _name_user_stacks(
        self, loaded: BpfObject, wanted: set[tuple[int, int]], versions: dict[int, int]
    ) -> None:
        """Names those that are new, or whose names are out of date, all of a process at once."""
        by_pid: dict[int, list[int]] = {}
        for pid, user_id in wanted:
            if self._user_names.get((pid, user_id), (-1, ""))[0] != versions[pid]:
                by_pid.setdefault(pid, []).append(user_id)
        for pid, ids in by_pid.items():
            stacks = self._user.stacks(pid, [self._stack(loaded, each) for each in ids])
            for user_id, stack in zip(ids, stacks, strict=True):
                self._user_names[pid, user_id] = versions[pid], stack

    def _largest(self, rows: list[Row], at_ns: int) -> list[Row]:
        """The stacks with most samples; of the others one row a thread says how many there were."""
        if len(rows) <= STACKS_MOST_COUNT:
            return rows
        rows = sorted(rows, key=lambda row: row[1][0], reverse=True)
        others: dict[tuple[int, int], tuple[int, bytes]] = {}
        for (pid, tid, _, _), (count, comm) in rows[STACKS_MOST_COUNT:]:
            before = others.get((pid, tid), (0, comm))
            others[pid, tid] = before[0] + count, comm
        for (pid, tid), (count, comm) in others.items():
            thread = comm.decode(errors="replace")
            period_ns = NS_PER_S // CPU_FREQUENCY_HZ
            self.writers[0].append(at_ns, pid, tid, thread, "", OTHERS, count, period_ns)
        return rows[:STACKS_MOST_COUNT]

    def _stack(self, loaded: BpfObject, stack_id: int) -> list[int]:
        if stack_id < 0:
            return []
        if stack_id not in self._frames:
            found = loaded.maps["cpu_traces"].get(stack_id)
            self._frames[stack_id] = frames_of(found[0]["frames"]) if found is not None else []
        return self._frames[stack_id]

    def _clear(self, loaded: BpfObject, at_ns: int) -> None:
        """Empties the stack map; samples of the millisecond that it takes are counted as lost."""
        assert self._target is not None
        loaded.maps["config"].put(0, bpf_shared.run_config(self._target, paused=True)[0])
        self._write(loaded, at_ns, *loaded.maps["cpu_samples"].items(delete=True))
        for stack_id in self._frames:
            loaded.maps["cpu_traces"].delete(stack_id)
        self._frames.clear()
        self._kernel_names.clear()
        self._user_names.clear()
        loaded.maps["config"].put(0, bpf_shared.run_config(self._target)[0])
