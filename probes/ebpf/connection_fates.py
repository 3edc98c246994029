"""What a server that is not ours does with the connections that it accepts.

Measures
    By process: connections accepted, and those that it closed: without having read anything, after
    it read and never answered, after it answered, and after its peer had left; how many of each
    within 50 ms of their accept.
Hook
    Raw tracepoint ``sys_exit`` with the calls that name a connection's descriptor (accept, read,
    write, close and their kin); probes/bpf/connection_fates.c. Of a server under clients of ours
    from the begin of the run, of one in service from the first sign of trouble
    (probes/budget/trouble.py), for 2 s in 20. Servers of our own count for themselves.
Cost
    Every call of every process passes the tracepoint, as for ``failing_syscalls``; one of the
    server takes three look-ups of a map more.
Misses
    Connections that are handed to another process (SCM_RIGHTS, fork): the one that closes its copy
    counts as the one that closed. io_uring, close_range, and copies of a descriptor (dup). Calls of
    32-bit programs. Connections beyond 65,536 open ones push out the oldest.
Checked against
    A server that answers 23 connections, closes 11 at once, 7 after their request and keeps 5.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from probes.bpf_loader.program import BpfObject
from probes.budget.trouble import OutsideTrouble
from probes.contract.clock import NS_PER_S
from probes.contract.probe import ProcessRef, Target
from probes.contract.schema import SERVER_ROLES
from probes.ebpf import shared as bpf_shared
from probes.ebpf import sources as bpf_sources
from probes.ebpf.base import BpfProbe
from probes.ebpf.sources import SourceBuilder
from probes.proc.syscall_names import syscall_names

FATES = (
    "accepted",
    "closed_unread",
    "closed_unanswered",
    "closed_answered",
    "closed_after_peer",
)
"""In the order of enum fate of the C file."""

CALL_KINDS: dict[str, int] = {
    **dict.fromkeys(("accept", "accept4"), 1),
    **dict.fromkeys(("read", "readv", "recvfrom", "recvmsg", "recvmmsg", "splice"), 2),
    **dict.fromkeys(("write", "writev", "sendto", "sendmsg", "sendmmsg", "sendfile"), 3),
    "close": 4,
}
"""Number in enum call_kind of the C file."""

_NEVER = np.iinfo(np.uint64).max
_OUTSIDE_PERIOD_S = 1.0
_LOOK_NS, _REST_NS = 2 * NS_PER_S, 18 * NS_PER_S


class ConnectionFatesProbe(BpfProbe):
    """Writes ``connection_fates``."""

    name = "connection_fates"
    period_s = 0.5
    tables = ("connection_fates",)
    is_by_process = True
    programs = ("connection_fates",)

    def __init__(self) -> None:
        super().__init__()
        self._counts: dict[tuple[int, int], int] = {}
        self._trouble: OutsideTrouble | None = None
        self._is_foreign = False
        self._until_ns = 0
        self._rest_until_ns = 0

    def _source(self) -> SourceBuilder:
        return bpf_sources.connection_fates

    def _attach(self, loaded: BpfObject, target: Target) -> None:
        loaded.program("connection_fates")  # a refused program is told now
        self._is_foreign = target.is_foreign
        if not target.is_foreign:
            return
        kinds = loaded.maps["call_kinds"]
        for number, name in syscall_names().items():
            if name in CALL_KINDS:
                kinds.put(number, CALL_KINDS[name])
        for ref in target.processes.values():
            self._add(loaded, ref)
        if target.attached:
            self._trouble = OutsideTrouble(target.server_ports)
            self.period_s = _OUTSIDE_PERIOD_S
        else:
            self._begin(loaded)

    def _begin(self, loaded: BpfObject) -> None:
        self._links.append(loaded.attach_raw_tracepoint("connection_fates", "sys_exit"))

    def _add(self, loaded: BpfObject, ref: ProcessRef) -> None:
        if ref.role in SERVER_ROLES:
            loaded.maps["fate_pids"].put(ref.pid, 1)

    def add_process(self, ref: ProcessRef) -> None:
        """Watches a process that came later."""
        if self._object is not None and self._is_foreign:
            self._add(self._object, ref)

    def _forget(self, loaded: BpfObject, pids: Collection[int]) -> None:
        for pid in pids:
            loaded.maps["fate_pids"].delete(pid)
        for pid, fate in [key for key in self._counts if key[0] in pids]:
            loaded.maps["fate_counts"].delete((pid, fate))
            del self._counts[pid, fate]

    def sample(self, at_ns: int) -> None:
        """Writes what came; of a server in service it then decides whether to go on."""
        if not self._is_foreign:
            return
        super().sample(at_ns)
        if self._trouble is None or self._object is None:
            return
        if self._links and at_ns >= self._until_ns:
            self._detach()
            self._rest_until_ns = at_ns + _REST_NS
        is_seen = self._trouble.is_seen(at_ns)
        if is_seen and not self._links and at_ns >= self._rest_until_ns:
            self._until_ns = at_ns + _LOOK_NS
            self._begin(self._object)

    def _read(self, loaded: BpfObject, at_ns: int) -> None:
        if not self._is_foreign:
            return
        keys, values = loaded.maps["fate_counts"].items()
        first_ns = np.where(values["first_ns"] == 0, _NEVER, values["first_ns"])
        rows = zip(
            keys.tolist(),
            values["count"].sum(axis=1).tolist(),
            values["at_once"].sum(axis=1).tolist(),
            first_ns.min(axis=1, initial=_NEVER).tolist(),
            values["last_ns"].max(axis=1, initial=0).tolist(),
            strict=True,
        )
        for key, total, at_once, first, last in rows:
            if total == self._counts.get(key, 0):
                continue
            self._recorded_count += total - self._counts.get(key, 0)
            self._counts[key] = total
            pid, fate = key
            self.writers[0].append(at_ns, pid, FATES[fate], total, at_once, first, last)
        self._count_losses(bpf_shared.lost(loaded, "fates"))
