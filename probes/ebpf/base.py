"""What all eBPF probes share: acquire the object, attach, read, detach, release."""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import ClassVar

from probes.bpf_loader.program import BpfObject, check_bpf
from probes.contract.clock import now_ns
from probes.contract.probe import Probe, ProcessRef, Target
from probes.ebpf import shared as bpf_shared
from probes.ebpf.sources import SourceBuilder


class BpfProbe(Probe):
    """Base of the eBPF probes.

    A probe gives its source and tables and implements ``_attach`` and ``_read``.

    Attributes:
        shared: Its source is part of the object of the default probes; else it has its own.
        is_by_process: It counts by process, and forgets those that ended.
        bpf_run_ns: CPU time in its programs, known after ``stop``; -1 unless the sysctl
            ``kernel.bpf_stats_enabled`` is on (it is never changed here).
        missed_count: Runs of its programs that the kernel skipped, whosever event it was; 0 where
            their runs are not counted: then they are in ``lost_count``.
        run_count: Runs of its programs for the whole host, those skipped among them; -1 where they
            are not counted.
    """

    shared: ClassVar[bool] = True
    is_by_process: ClassVar[bool] = False
    name: str = ""
    period_s: float = 1.0
    tables: ClassVar[tuple[str, ...]] = ()
    programs: ClassVar[tuple[str, ...]] = ()

    def __init__(self) -> None:
        super().__init__()
        self.seen_count = 0
        self._recorded_count = 0
        self._lost_runs_count = 0
        self._links: list[int] = []
        self._object: BpfObject | None = None
        self._own: BpfObject | None = None

    def check(self) -> None:
        """Root, BTF and bcc are there.

        Raises:
            ProbeUnavailableError: One of them is not.
        """
        check_bpf()

    def prepare(self) -> None:
        """Compiles before the processes to watch are known; ``start`` does it otherwise.

        Raises:
            ProbeUnavailableError: The kernel or the machine cannot.
        """
        if self.shared:
            bpf_shared.prepare()
        elif self._own is None:
            self._own = bpf_shared.load([self._source()])

    def start(self, target: Target) -> None:
        """Compiles, or shares what is compiled already, and attaches.

        Raises:
            ProbeUnavailableError: The kernel lacks something or refused.
        """
        self._object = self._acquire(target)
        self.writers = [target.run.writer(table, self.name) for table in self.tables]
        self._attach(self._object, target)

    def add_process(self, ref: ProcessRef) -> None:
        """Watches a process that came later: its calls and samples count from now on."""
        if self._object is not None:
            bpf_shared.watch_pids(self._object, [ref.pid])

    def remove_processes(self, pids: Collection[int]) -> None:
        """Writes what is known of processes that ended, and watches their numbers no more."""
        if self._object is None:
            return
        bpf_shared.unwatch_pids(self._object, pids)
        if self.is_by_process:
            self._read(self._object, now_ns())
            self._forget(self._object, pids)

    def _forget(self, loaded: BpfObject, pids: Collection[int]) -> None:
        """Drops what is kept for processes that ended, here and in the maps."""

    def sample(self, at_ns: int) -> None:
        """Writes what came since the last sample."""
        if self._object is not None:
            self._read_all(self._object, at_ns)

    def _read_all(self, loaded: BpfObject, at_ns: int) -> None:
        self.lost_count -= self._lost_runs_count  # _read may set it anew or leave it
        self._read(loaded, at_ns)
        missed_count, runs_count = loaded.missed_count(self.programs), self._runs(loaded)
        if runs_count < 0:
            self._lost_runs_count = missed_count
            self.lost_count += missed_count
        else:
            self.missed_count, self.run_count = missed_count, runs_count + missed_count

    def _runs(self, loaded: BpfObject) -> int:
        """How often its programs ran, for the whole host; -1 where they do not count it."""
        return -1

    def stop(self, at_ns: int) -> None:
        """Detaches, takes the last sample and frees everything."""
        loaded, self._object = self._object, None
        self._detach()
        if self._own is not None:  # prepared and never started
            self._own.close()
            self._own = None
        if loaded is None:
            return
        try:
            if len(self.writers) == len(self.tables):  # else start did not get that far
                self._read_all(loaded, at_ns)
                self.bpf_run_ns = loaded.run_time_ns(self.programs)
        finally:
            self._close()
            bpf_shared.release(self, loaded)

    def _give_back(self) -> None:
        """Frees the object after a start that failed and is not to be the end of the probe."""
        loaded, self._object = self._object, None
        self._detach()
        if loaded is not None:
            bpf_shared.release(self, loaded)

    def _detach(self) -> None:
        while self._links:
            os.close(self._links.pop())

    def _source(self) -> SourceBuilder:
        raise NotImplementedError

    def _acquire(self, target: Target) -> BpfObject:
        if self.shared:
            return bpf_shared.acquire(self, target, self._source())
        self.prepare()
        own, self._own = self._own, None
        assert own is not None
        bpf_shared.aim(own, target, target.processes)
        return own

    def _attach(self, loaded: BpfObject, target: Target) -> None:
        raise NotImplementedError

    def _read(self, loaded: BpfObject, at_ns: int) -> None:
        raise NotImplementedError

    def _count_losses(self, lost_count: int, *, without_stack_count: int = 0) -> None:
        """Sets what was lost and of how many.

        Args:
            lost_count: Events that are in no row; those that are count into ``_recorded_count``.
            without_stack_count: Of those in rows, the ones whose stack could not be read.
        """
        self.lost_count = lost_count + without_stack_count
        self.seen_count = lost_count + self._recorded_count

    def _close(self) -> None:
        """Frees what the probe holds besides links and the object."""
