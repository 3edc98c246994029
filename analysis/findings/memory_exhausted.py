"""``memory-exhausted``: the host, or the control group of the servers, is out of memory.

Proof: the kernel killed a process for memory (oom_kill of the group, or of the host), or a call
returned ENOMEM, with the use against the limit. Kernel memory counts: sockets are slab.
Told apart: a limit that was only met, and where reclaim helped, is no finding; a SIGKILL while
nobody counted an OOM kill is ``worker-crash``; ENFILE with few open files is a socket's inode that
could not be allocated, so memory.
"""

from __future__ import annotations

import pandas as pd

from analysis.evidence import Evidence, Finding, Fix, Side, Subject, times
from analysis.memory_signs import ENOMEM, SIGKILL, rise, until_stop
from analysis.signs import ENFILE, Signs

_NETWORK = (
    "accept4",
    "accept",
    "socket",
    "connect",
    "epoll_ctl",
    "sendmsg",
    "write",
    "mmap",
    "brk",
)
_FULL_FILE_TABLE = 0.9


def find(signs: Signs) -> list[Finding]:
    """One finding, about the group where it was limited, else about the host."""
    view = signs.view
    group, host = until_stop(view, "cgroup_memory"), until_stop(view, "host_memory")
    group = group[group["max_bytes"] > 0]
    kills, first_kill_s, last_kill_s = rise(group, "oom_kills_total")
    table = "cgroup_memory"
    # Without a limited group, a kill is ours only if one of our processes died of it: others of
    # the host may have met limits of their own.
    killed = _killed(signs)
    if not kills and group.empty and len(killed):
        kills, first_kill_s, last_kill_s = rise(host, "oom_kills_total")
        table = "host_memory"
    refused = _refused(signs)
    if not kills and refused.empty:
        return []
    moments = [*refused["first_s"], *refused["last_s"]]
    if kills:
        deaths = killed[killed.between(first_kill_s - 1.0, last_kill_s + 0.3)]
        # A sample comes after the kill, the death itself is exact.
        moments += [first_kill_s, last_kill_s, *deaths]
    first_s, last_s = float(min(moments)), float(max(moments))
    return [_finding(signs, (first_s, last_s), kills, table, refused, group, host)]


def _killed(signs: Signs) -> pd.Series[float]:
    """When processes of the fleet died of SIGKILL before the stop."""
    processes = signs.view.frames["processes"]
    died_s = pd.Series(signs.view.seconds_of(processes["exited_ns"]), index=processes.index)
    return died_s[(processes["exit_signal"] == SIGKILL) & (died_s < signs.view.stop_s)]


def _refused(signs: Signs) -> pd.DataFrame:
    rows = signs.errors
    rows = rows[~(rows["first_s"] >= signs.view.stop_s) & rows["role"].ne("")]
    none_left = (rows["errno"] == ENOMEM) & rows["syscall"].isin(_NETWORK)
    files = until_stop(signs.view, "sockstat")
    files = files[files["file_max_count"] > 0]
    has_room = len(files) > 0 and bool(
        (files["file_nr_count"] < _FULL_FILE_TABLE * files["file_max_count"]).all()
    )
    return rows[none_left | ((rows["errno"] == ENFILE) & has_room)]


def _finding(
    signs: Signs,
    span_s: tuple[float, float],
    kills: int,
    table: str,
    refused: pd.DataFrame,
    group: pd.DataFrame,
    host: pd.DataFrame,
) -> Finding:
    view = signs.view
    first_s, last_s = span_s
    evidence = []
    if kills:
        evidence.append(Evidence("oom_kills", kills, table, first_s))
    for (errno, syscall), rows in refused.groupby(["errno", "syscall"], sort=False):
        evidence_id = "enfile_calls" if errno == ENFILE else "enomem_calls"
        count, source = int(rows["event_count"].sum()), str(rows["source"].iloc[0])
        since_s = float(rows["first_s"].min())
        evidence.append(Evidence(evidence_id, count, source, since_s, of=str(syscall)))
    limit_bytes = 0
    if len(group):
        last = group.iloc[-1]
        limit_bytes = int(last["max_bytes"])
        peak = max(int(last["peak_bytes"]), int(group["used_bytes"].max()))
        evidence += [
            Evidence("cgroup_memory_limit", limit_bytes, "cgroup_memory"),
            Evidence("cgroup_memory_peak", peak, "cgroup_memory"),
            Evidence("cgroup_limit_hits", rise(group, "limit_hits_total")[0], "cgroup_memory"),
        ]
    grown = 0
    if len(host):
        grown = max(0, int(host["slab_bytes"].max() - host["slab_bytes"].iloc[0]))
        least = int(host["available_bytes"].min())
        evidence += [
            Evidence("least_memory_available", least, "host_memory"),
            Evidence("slab_growth", grown, "host_memory"),
        ]
    at_connections = view.open_count_at(first_s - 0.01)
    side: Side = "host"
    whose = "the host's memory"
    if limit_bytes:
        whose = f"the {limit_bytes:,} bytes of the cgroup"
    happened = f"the kernel killed {kills} process{'es' if kills != 1 else ''}" if kills else ""
    if len(refused):
        calls = f"calls were refused {times(int(refused['event_count'].sum()))}"
        happened = f"{happened} and {calls}" if happened else calls
    wanted = _wanted(view.target_count, at_connections, limit_bytes)
    confidence, missing = signs.trust("host_memory", "failing_syscalls")
    connections = view.connections
    explained = int((connections["is_failed"] | connections["is_lost"]).sum())
    if view.is_attached:  # each kill and each refused call took a connection, at least one
        explained = kills + int(refused["event_count"].sum())
    return Finding(
        cause="memory-exhausted",
        severity="warning",
        side=side,
        subject=Subject(),
        first_s=first_s,
        last_s=last_s,
        evidence=tuple(evidence),
        explanation=(
            f"At {at_connections:,} connections {whose} {'were' if limit_bytes else 'was'} used "
            f"up: {happened}. Sockets, their files and epoll entries are kernel memory, which "
            "counts like any other; an idle connection takes a few kB of it on each side."
        ),
        fix=_fixes(limit_bytes, wanted),
        at_connections=at_connections,
        confidence=confidence,
        missing=missing,
        sentence=f"Memory ran out at {at_connections:,} connections: {whose} "
        f"{'were' if limit_bytes else 'was'} used up, and {happened}",
        explained_count=explained,
    )


def _wanted(target_count: int, at_connections: int, limit_bytes: int) -> int:
    """A limit for the target, in proportion, with a quarter more."""
    return int(1.25 * limit_bytes * max(1.0, target_count / max(1, at_connections)))


def _fixes(limit_bytes: int, wanted_bytes: int) -> tuple[Fix, ...]:
    if not limit_bytes:
        return (Fix("free -m; slabtop -o", "shows what holds the memory: add some, or hold less"),)
    wanted_mib = (wanted_bytes >> 20) + 1
    return (
        Fix(
            f"systemctl edit NAME.service  # [Service] MemoryMax={wanted_mib}M",
            f"the limit moves from {limit_bytes >> 20:,} to {wanted_mib:,} MiB, enough for the "
            "target by what a connection cost until then",
        ),
    )
