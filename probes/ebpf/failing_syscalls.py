"""Every failing system call of the run, with the first few stacks of each kind.

Measures
    Calls that return an error to a watched process, by (pid, syscall, errno): count per interval,
    first and last time, and for the first four of each key the kernel and user stack. Of those
    that could have no task or no memory also the limits that can be why (``limit_readings``).
Hook
    Raw tracepoint ``sys_exit`` (kernel/entry/common.c, syscall_exit_work); probes/bpf/
    failing_syscalls.c.
Cost
    Every call of every process on the host passes the tracepoint; one that does not fail leaves
    after a count and three compares, one with EAGAIN after its number was read. A failing call
    costs two map updates on its own CPU. The kernel's own way to the tracepoint costs more: a
    server at 1.7 million calls a second got 10 % less done. So of a server in service
    (``Target.is_sparing``) it watches as long as the calls that pass cost no more than 0.1 % of a
    core: all the time at 6,600 calls a second, one part in 250 of it at 1.7 million, and in between
    a moment every ten seconds. Once a process has half of its descriptors in use it may also spend
    what was saved up for that, and when none is left it gets more (``KernelPurse``); so it does
    when connections end in a burst.
Misses
    EAGAIN, EINPROGRESS and EINTR, which are answers and not failures, and ERESTART*, which the
    caller never sees. Of clone, fork, vfork and connect EAGAIN is a limit and counted, but not that
    of a 32-bit program. An error that arrives otherwise than as a return value: SO_ERROR after a
    non-blocking connect, epoll's EPOLLERR. Calls of a 32-bit program are named by its own table
    (x86); a 64-bit program that makes 32-bit calls (int 0x80) is not told apart.
Checked against
    A process that counts its own failures: 23 refused connects, accept4 at RLIMIT_NOFILE.
"""

from __future__ import annotations

import errno
from collections.abc import Collection

import numpy as np

from probes.bpf_loader.program import BpfObject
from probes.budget.governor import KernelPurse
from probes.contract.clock import NS_PER_S, now_ns
from probes.contract.live import Counter
from probes.contract.probe import AcceptFailures, ProcessRef, Target
from probes.contract.schema import SERVER_ROLES
from probes.ebpf import shared as bpf_shared
from probes.ebpf import sources as bpf_sources
from probes.ebpf.base import BpfProbe
from probes.ebpf.sources import SourceBuilder
from probes.proc.limit_readings import MEMORY_CALLS, LimitReader, LimitReading, sizes_of
from probes.proc.syscall_names import CallNames
from probes.symbols.kernel import kernel_symbols
from probes.symbols.stacks import frames_of
from probes.symbols.symbols import user_symbols

_NEVER = np.iinfo(np.uint64).max
_FAULT = -errno.EFAULT  # get_stackid of a thread without that stack: not a loss

_WATCHING_PERIOD_S, _IDLE_PERIOD_S = 0.2, 0.4
"""How often it looks at what watching costs now, and whether it should begin."""
_READ_NS = NS_PER_S

NEAR_SHARE, FULL_SHARE = 0.5, 0.98
BURST_COUNT = 5
"""Connections that end between two looks: somebody is sent away, perhaps for want of something."""
_ACCEPT_CALLS = ("accept", "accept4")

_LIMITS_PERIOD_NS, _MOST_LIMIT_READS_COUNT = NS_PER_S, 20
"""How often limits are read again while a call goes on failing, and how often at all."""

Key = tuple[int, int, int]


def most_used_share(target: Target) -> float:
    """The largest part of its descriptors that a living process of the target has in use."""
    live = target.live
    if live is None:
        return 1.0
    most = 0.0
    for slot in live.followed_slots():
        limit = slot[Counter.NOFILE_SOFT_COUNT]
        used = slot[Counter.OPEN_COUNT] + slot[Counter.OWN_FDS_COUNT]
        if not slot[Counter.STOPPED_NS] and limit > 0:
            most = max(most, used / limit)
    return most


def ended_connections(target: Target) -> int:
    """Connections that ended so far, of those that living processes of the target had taken."""
    live = target.live
    if live is None:
        return 0
    slots = [slot for slot in live.followed_slots() if not slot[Counter.STOPPED_NS]]
    return sum(slot[Counter.ESTABLISHED_TOTAL] - slot[Counter.OPEN_COUNT] for slot in slots)


class FailingSyscallsProbe(BpfProbe):
    """Writes ``failing_syscalls``, ``failure_stacks`` and ``limit_readings``."""

    is_by_process = True
    name = "failing_syscalls"
    tables = ("failing_syscalls", "failure_stacks", "limit_readings")
    programs = ("failing_syscalls",)

    def __init__(self) -> None:
        super().__init__()
        self._kernel = kernel_symbols()
        self._user = user_symbols()
        self._counts: dict[Key, int] = {}
        self._recorded: set[tuple[Key, int]] = set()
        self._lost_stacks_count = 0
        self._stack_ids: set[int] = set()
        self._target: Target | None = None
        self._names = CallNames()
        self._limits = LimitReader()
        self._limits_read: dict[Key, tuple[int, int]] = {}  # when last, how often
        self._failing_accepts: dict[int, int] = {}
        self._unread_since_ns = 0
        self._counted_ns = 0
        self._purse = KernelPurse()
        self._sampled_ns = 0
        self._watched_ns = 0
        self._began_ns = 0
        self._read_due_ns = 0
        self._used_share = 0.0
        self._ended_total = 0
        self.is_self_paced = False

    def _source(self) -> SourceBuilder:
        return bpf_sources.failing_syscalls

    def _attach(self, loaded: BpfObject, target: Target) -> None:
        self._target = target if target.attached else None
        self.is_self_paced = target.is_sparing
        self._sampled_ns = self._began_ns = now_ns()
        self._ended_total = ended_connections(target)
        self._kernel.load()  # now, not in the ramp
        for ref in target.processes.values():
            self._user.add_process(ref.pid)
            self._know_limits(ref)
        self._begin(loaded)

    def _begin(self, loaded: BpfObject) -> None:
        self._links.append(loaded.attach_raw_tracepoint("failing_syscalls", "sys_exit"))
        self._unread_since_ns = now_ns()

    def add_process(self, ref: ProcessRef) -> None:
        """Watches a process that came later, and knows its limits."""
        super().add_process(ref)
        self._know_limits(ref)

    def accept_failures(self) -> AcceptFailures:
        """Accepts that failed until the last sample, and for how long they were watched."""
        return AcceptFailures(self._failing_accepts, self._counted_ns)

    def sample(self, at_ns: int) -> None:
        """Writes what came; of a server in service it then decides whether to go on."""
        if self._target is None or not self._target.is_sparing or self._object is None:
            super().sample(at_ns)
            return
        was_watching = bool(self._links)
        if was_watching:
            self._watched_ns += at_ns - self._sampled_ns
        self._purse.pay(at_ns, self._passed(self._object) if was_watching else 0)
        self._sampled_ns = at_ns
        used_share = most_used_share(self._target)
        ended_total = ended_connections(self._target)
        is_burst = ended_total - self._ended_total >= BURST_COUNT
        if used_share >= FULL_SHARE > self._used_share or is_burst:
            self._purse.grant(at_ns)
        self._used_share, self._ended_total = used_share, ended_total
        wanted = self._purse.affords(used_share >= NEAR_SHARE or is_burst, was_watching)
        if was_watching and (at_ns >= self._read_due_ns or not wanted):
            self._read_due_ns = at_ns + _READ_NS
            super().sample(at_ns)
        if wanted and not was_watching:
            self._begin(self._object)
        elif was_watching and not wanted:
            self._detach()
        self.period_s = _WATCHING_PERIOD_S if wanted else _IDLE_PERIOD_S

    @property
    def unwatched_ns(self) -> int:
        """Time in which it did not watch; 0 where that is next to nothing."""
        length_ns = self._sampled_ns - self._began_ns
        if not self.is_self_paced or self._watched_ns >= 0.99 * length_ns:
            return 0
        return length_ns - self._watched_ns

    @property
    def note(self) -> str:
        """What part of the time it did not watch, for the row of its health."""
        length_ns = self._sampled_ns - self._began_ns
        if not self.unwatched_ns:
            return ""
        return (
            f"watched {self._watched_ns / NS_PER_S:.1f} s of {length_ns / NS_PER_S:.1f} s, to keep "
            f"the cost for the target below {100 * self._purse.share:g} % of a core"
        )

    def _runs(self, loaded: BpfObject) -> int:
        return self._passed(loaded)

    @staticmethod
    def _passed(loaded: BpfObject) -> int:
        values = loaded.maps["calls_passed"].get(0)
        return int(values.sum()) if values is not None else 0

    def _read(self, loaded: BpfObject, at_ns: int) -> None:
        keys, values = loaded.maps["failures"].items()
        if self._links:  # else nothing was counted since it was detached
            self._counted_ns += at_ns - self._unread_since_ns
            self._unread_since_ns = at_ns
        totals = values["count"].sum(axis=1)
        # a CPU that did not see the first one has no first time, one that saw none has no last
        first_ns = np.where(values["first_ns"] == 0, _NEVER, values["first_ns"])
        counts = self.writers[0]
        news = False
        for key, total, first, last, sizes in zip(
            keys.tolist(),
            totals.tolist(),
            first_ns.min(axis=1, initial=_NEVER).tolist(),
            values["last_ns"].max(axis=1, initial=0).tolist(),
            zip(
                values["mappings"].max(axis=1, initial=0).tolist(),
                values["address_space_pages"].max(axis=1, initial=0).tolist(),
                values["threads"].max(axis=1, initial=0).tolist(),
                strict=True,
            ),
            strict=True,
        ):
            before = self._counts.get(key, 0)
            if total == before:
                continue
            news = news or before < bpf_sources.STACKS_PER_KEY
            self._counts[key] = total
            self._recorded_count += total - before
            pid, number, code = key
            label = errno.errorcode.get(code, str(code))
            name = self._names.name(pid, number)
            if name in _ACCEPT_CALLS:
                self._failing_accepts[pid] = self._failing_accepts.get(pid, 0) + total - before
                if code == errno.EMFILE and self._target is not None:
                    self._count_emfile(pid, total - before)
            counts.append(at_ns, pid, name, code, label, total - before, first, last)
            if code in (errno.EAGAIN, errno.ENOMEM):
                self._read_limits(key, name, sizes)
        if news:
            self._write_stacks(loaded)
        without_stack_count = bpf_shared.lost(loaded, "failure_stacks") + self._lost_stacks_count
        lost_count = bpf_shared.lost(loaded, "failures")
        self._count_losses(lost_count, without_stack_count=without_stack_count)

    def _forget(self, loaded: BpfObject, pids: Collection[int]) -> None:
        for name in ("failures", "failure_records"):
            bpf_shared.delete_of_pids(loaded, name, pids)
        _, kept = loaded.maps["failure_records"].items()
        in_use = {*kept["kernel_stack"].ravel().tolist(), *kept["user_stack"].ravel().tolist()}
        for stack_id in [each for each in self._stack_ids if each not in in_use]:
            loaded.maps["failure_traces"].delete(stack_id)
            self._stack_ids.discard(stack_id)
        for key in [key for key in self._counts if key[0] in pids]:
            del self._counts[key]
        self._recorded = {each for each in self._recorded if each[0][0] not in pids}
        for pid in pids:
            self._failing_accepts.pop(pid, None)
        for key in [key for key in self._limits_read if key[0] in pids]:
            del self._limits_read[key]
        self._limits.remove(pids)
        self._names.remove(pids)

    def _count_emfile(self, pid: int, count: int) -> None:
        """Into the slot of a watched process, which does not count for itself: the live view."""
        live = self._target.live if self._target is not None else None
        for slot in live.followed_slots() if live is not None else ():
            if slot[Counter.PID] == pid:
                slot[Counter.ACCEPT_EMFILE_TOTAL] += count

    def _know_limits(self, ref: ProcessRef) -> None:
        if ref.role in SERVER_ROLES:
            self._limits.add_process(ref.pid)

    def _read_limits(self, key: Key, name: str, sizes: tuple[int, int, int]) -> None:
        """Why a task or a mapping was refused, before the picture changes."""
        pid, _, code = key
        is_memory = code == errno.ENOMEM
        if name not in (MEMORY_CALLS if is_memory else bpf_sources.TASK_CALLS):
            return
        at_ns = now_ns()
        read_ns, times_count = self._limits_read.get(key, (0, 0))
        if at_ns - read_ns < _LIMITS_PERIOD_NS or times_count >= _MOST_LIMIT_READS_COUNT:
            return
        self._limits_read[key] = at_ns, times_count + 1
        of = self._limits.of_memory if is_memory else self._limits.of_tasks
        for reading in of(pid, sizes_of(*sizes)):
            self._append_limit(at_ns, pid, reading)

    def _append_limit(self, at_ns: int, pid: int, reading: LimitReading) -> None:
        self.writers[2].append(
            at_ns,
            pid,
            reading.limit,
            reading.scope,
            reading.used,
            reading.capacity,
            reading.hits_total,
        )

    def _write_stacks(self, loaded: BpfObject) -> None:
        keys, values = loaded.maps["failure_records"].items()
        stacks = self.writers[1]
        for (key, ordinal), (at_ns, tid, kernel_id, user_id, _) in zip(
            keys.tolist(), values[:, 0].tolist(), strict=True
        ):
            if (key, ordinal) in self._recorded:
                continue
            self._recorded.add((key, ordinal))
            pid, number, code = key
            kernel = self._kernel.stack(self._frames(loaded, kernel_id))
            user = self._user.stack(pid, self._frames(loaded, user_id))
            stacks.append(at_ns, pid, tid, self._names.name(pid, number), code, kernel, user)

    def _frames(self, loaded: BpfObject, stack_id: int) -> list[int]:
        if stack_id < 0:
            self._lost_stacks_count += stack_id != _FAULT
            return []
        self._stack_ids.add(stack_id)
        found = loaded.maps["failure_traces"].get(stack_id)
        return frames_of(found[0]["frames"]) if found is not None else []
