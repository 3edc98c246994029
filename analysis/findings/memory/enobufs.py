"""``enobufs``: a system call returned ENOBUFS: the kernel could not get a buffer or an object.

Proof: the errno with its system call, process and kernel stack; what it means depends on the call.
Told apart: a full send buffer is EAGAIN, not this. Windows reports used-up local ports as
WSAENOBUFS (10055), which is ``ephemeral-ports-exhausted`` here. ``memory-exhausted`` goes before
where the host or the cgroup was out of memory at that moment.
"""

from __future__ import annotations

import pandas as pd

from analysis.causes import Cause
from analysis.evidence import Evidence, Finding, Fix, capitalised, times
from analysis.signs.memory import ENOBUFS, until_stop
from analysis.signs.signs import Signs

CAUSE = Cause(
    id="enobufs",
    line="the kernel could not get a buffer or object",
    follows_from=(
        "memory-exhausted",
        "neighbour-table-full",
    ),
    decide="profile-run --probes full: which allocation fails, by the stack of the call",
)

_SENDS = ("sendmsg", "sendmmsg", "sendto", "write", "writev")

_MEANINGS = {
    "connect": "connect returns it when no buffer can be had for the SYN (net/ipv4/tcp_output.c, "
    "tcp_connect), or when an eBPF program of the process's cgroup says so; it is neither a used-"
    "up local port (EADDRNOTAVAIL) nor a full buffer",
    "socket": "socket(AF_INET6) returns it when the socket's object cannot be allocated "
    "(net/ipv6/af_inet6.c, inet6_create); socket(AF_INET) says ENOMEM instead",
    "sendmsg": "sendmsg returns it when its control data are larger than net.core.optmem_max "
    "allows (net/socket.c, sock_kmalloc); the send buffer has no part in it",
    "setsockopt": "setsockopt returns it when options of the socket need more memory than "
    "net.core.optmem_max, e.g. for multicast memberships",
}
_ELSE = "here the kernel could not allocate what the call needed"

_FIXES = {
    "connect": Fix(
        "bpftool cgroup tree",
        "lists the eBPF programs that may refuse connect; without the one that does, the {count:,} "
        "failures go away, unless memory was short: free -m",
    ),
    "sendmsg": Fix(
        "sysctl -w net.core.optmem_max=1048576",
        "control data of up to 1 MiB pass, so the {count:,} failures go away; better: send less of "
        "it, most calls need none",
    ),
    "setsockopt": Fix("sysctl -w net.core.optmem_max=1048576", "the {count:,} failures go away"),
}
_MEMORY_FIX = Fix("free -m; slabtop -o", "shows what holds the memory; {count:,} failures go away")


def find(signs: Signs) -> list[Finding]:
    """One finding for each side and system call."""
    rows = signs.errors
    rows = rows[(rows["errno"] == ENOBUFS) & ~(rows["first_s"] >= signs.view.stop_s)]
    parts = rows.groupby(["side", "syscall"], sort=False)
    return [_finding(signs, str(call), part) for (_, call), part in parts]


def _finding(signs: Signs, syscall: str, rows: pd.DataFrame) -> Finding:
    view = signs.view
    first = rows.sort_values("first_s", kind="stable").iloc[0]
    first_s, last_s = float(first["first_s"]), float(rows["last_s"].max())
    subject = view.subject(int(first["pid"]))
    count, table = int(rows["event_count"].sum()), str(first["source"])
    memory = until_stop(view, "host_memory")
    evidence = [
        Evidence("enobufs_calls", count, table, first_s, of=syscall),
        Evidence("processes_affected", rows["pid"].nunique(), table),
    ]
    if len(memory):
        near = memory.iloc[int((memory["at_s"] - first_s).abs().to_numpy().argmin())]
        for evidence_id, column in (
            ("memory_available", "available_bytes"),
            ("slab", "slab_bytes"),
        ):
            value = float(near[column])
            evidence.append(Evidence(evidence_id, value, "host_memory", float(near["at_s"])))
    confidence, missing = signs.trust("failing_syscalls")
    stacks = view.frames["failure_stacks"]
    mine = stacks[(stacks["pid"] == subject.pid) & (stacks["errno"] == ENOBUFS)]
    stack = [f for f in str(mine["user_stack"].iloc[0]).split(";") if f] if len(mine) else []
    where = f" It was called by {' > '.join(stack[-4:])}." if stack else ""
    name = str(subject)
    name = capitalised(name)
    fix = _FIXES.get("sendmsg" if syscall == "sendmmsg" else syscall, _MEMORY_FIX)
    return Finding(
        cause=CAUSE.id,
        severity="warning",
        side=str(first["side"]),  # type: ignore[arg-type]  # of side_of_role
        subject=subject,
        first_s=first_s,
        last_s=max(first_s, last_s),
        evidence=tuple(evidence),
        explanation=(
            f"{syscall} returned ENOBUFS {times(count)}. On Linux that almost never means that a "
            f"send buffer is full (that is EAGAIN): {_MEANINGS.get(syscall, _ELSE)}. On Windows "
            f"the same name (WSAENOBUFS, 10055) is what used-up local ports look like.{where}"
        ),
        fix=(Fix(fix.command, fix.effect.format(count=count)),),
        at_connections=view.open_count_at(first_s),
        confidence=confidence,
        missing=missing,
        sentence=f"{name} got ENOBUFS from {syscall} {times(count)}",
        explained_count=count if view.is_attached else _explained(view.connections, syscall, count),
    )


def _explained(connections: pd.DataFrame, syscall: str, count: int) -> int:
    """What failed with it; for a send, what then ended without another errno."""
    own = connections["is_failed"] & (connections["errno"] == ENOBUFS)
    if not own.any() and syscall in _SENDS:
        ended = connections["close_kind"].isin(["rst", "eof"])
        own = (connections["is_failed"] | connections["is_lost"]) & ended
    return min(count, int(own.sum()))
