"""``memory-exhausted``: the host, or a control group of the run's processes, is out of memory.

Proof: the kernel killed a process of the run for memory (mark_victim has its pid), or somebody in a
group of the run at that group's own limit, and the run lost something by it; or a call returned
ENOMEM while a group of that process met its limit, or the host had next to nothing available.
Kernel memory counts: sockets are slab.
Told apart: processes of others that were killed, and what a group above counts of other groups
below it, prove nothing here, however many they are. A limit that was only met, and where reclaim
helped, is no finding. A SIGKILL that was none of the kernel's for memory is ``worker-crash``.
ENOMEM while memory is plentiful is a limit of the process, as vm.max_map_count or RLIMIT_AS. ENFILE
with few open files is a socket's inode that could not be allocated, so memory.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from analysis.causes import Cause
from analysis.evidence import Evidence, Finding, Fix, Subject, times
from analysis.findings.memory import mapping_limit
from analysis.signs.memory import ENOMEM, rise, until_stop
from analysis.signs.oom_victims import (
    Group,
    Victim,
    Victims,
    group_at_limit,
    groups_above,
    harmed,
    is_short,
    victims,
)
from analysis.signs.signs import ENFILE, Signs

CAUSE = Cause(
    id="memory-exhausted",
    line="the host or its cgroup is out of memory",
    follows_from=("slow-consumers",),
    decide="dmesg | grep -i oom, and memory.events of the cgroup",
)

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
_UNIT_NAME = re.compile(r"[A-Za-z0-9:_.@-]+\.(?:service|scope|slice)")


@dataclass(frozen=True)
class _Shortage:
    """What ran out, and what it did to the run.

    Attributes:
        killed: Processes that were killed for it.
        refused: Rows of ``errors``: calls that failed for it.
        group: Whose limit was met; None for the host's memory.
        is_seen: A limit or the host was seen to be out of it; else only the kill says so.
        found: All kills, with where they are from.
    """

    killed: Sequence[Victim]
    refused: pd.DataFrame
    group: Group | None
    is_seen: bool
    found: Victims


def find(signs: Signs) -> list[Finding]:
    """One finding, about the group where its limit was met, else about the host."""
    view = signs.view
    found = victims(view)
    groups = {victim: _group_of(signs, victim) for victim in (*found.own, *found.beside)}
    killed = [
        *found.own,
        *(each for each in found.beside if groups[each] is not None and harmed(view, each.at_s)),
    ]
    refused, refusing = _refused(signs)
    if not killed and refused.empty:
        return []
    limited = [groups[each] for each in killed] + refusing
    group = next((each for each in limited if each is not None), None)
    is_seen = group is not None or len(refused) > 0
    is_seen = is_seen or any(is_short(view, (each.at_s, each.at_s)) for each in killed)
    return [_finding(signs, _Shortage(killed, refused, group, is_seen, found))]


def _group_of(signs: Signs, victim: Victim) -> Group | None:
    """The group at whose limit it was killed; of one that is not of the run by its own group."""
    span = (victim.at_s, victim.at_s)
    if groups_above(signs.view, victim.pid):
        return group_at_limit(signs.view, victim.pid, span)
    known = signs.view.frames["cgroups"]
    own = known[(known["level"] == 0) & (known["cgroup_id"] == victim.cgroup_id)]
    return group_at_limit(signs.view, int(own["pid"].iloc[0]), span) if len(own) else None


def _refused(signs: Signs) -> tuple[pd.DataFrame, list[Group | None]]:
    """Calls that failed while memory was short, and the group that was short of each."""
    rows = signs.errors
    if not rows["errno"].isin([ENOMEM, ENFILE]).any():
        return rows.iloc[:0], []
    rows = rows[~(rows["first_s"] >= signs.view.stop_s) & rows["role"].ne("")]
    none_left = (rows["errno"] == ENOMEM) & rows["syscall"].isin(_NETWORK)
    none_left &= ~rows["pid"].isin(mapping_limit.limited_pids(signs))
    files = until_stop(signs.view, "sockstat")
    files = files[files["file_max_count"] > 0]
    has_room = len(files) > 0 and bool(
        (files["file_nr_count"] < _FULL_FILE_TABLE * files["file_max_count"]).all()
    )
    rows = rows[none_left | ((rows["errno"] == ENFILE) & has_room)]
    kept: list[int] = []
    groups: list[Group | None] = []
    for index, pid, first_s, last_s in zip(
        rows.index, rows["pid"], rows["first_s"], rows["last_s"], strict=True
    ):
        span = (float(first_s), float(last_s))
        group = group_at_limit(signs.view, int(pid), span)
        if group is not None or is_short(signs.view, span):
            kept.append(index)
            groups.append(group)
    return rows.loc[kept], groups


def _finding(signs: Signs, shortage: _Shortage) -> Finding:
    view = signs.view
    killed, refused, group = shortage.killed, shortage.refused, shortage.group
    moments = [each.at_s for each in killed]
    moments += [*refused["first_s"], *refused["last_s"]]
    first_s, last_s = float(min(moments)), float(max(moments))
    host = until_stop(view, "host_memory")
    evidence = []
    if killed:
        evidence.append(Evidence("oom_kills", len(killed), shortage.found.table, first_s))
    for (errno, syscall), rows in refused.groupby(["errno", "syscall"], sort=False):
        evidence_id = "enfile_calls" if errno == ENFILE else "enomem_calls"
        count, source = int(rows["event_count"].sum()), str(rows["source"].iloc[0])
        since_s = float(rows["first_s"].min())
        evidence.append(Evidence(evidence_id, count, source, since_s, of=str(syscall)))
    if group is not None:
        samples = group.samples
        peak = max(int(samples["peak_bytes"].iloc[-1]), int(samples["used_bytes"].max()))
        evidence += [
            Evidence("cgroup_memory_limit", group.limit_bytes, "cgroup_memory"),
            Evidence("cgroup_memory_peak", peak, "cgroup_memory"),
            Evidence("cgroup_limit_hits", rise(samples, "limit_hits_total")[0], "cgroup_memory"),
        ]
    if len(host):
        grown = max(0, int(host["slab_bytes"].max() - host["slab_bytes"].iloc[0]))
        least = int(host["available_bytes"].min())
        evidence += [
            Evidence("least_memory_available", least, "host_memory"),
            Evidence("slab_growth", grown, "host_memory"),
        ]
    at_connections = view.open_count_at(first_s - 0.01)
    whose = _whose(shortage)
    plural = "es" if len(killed) != 1 else ""
    happened = f"the kernel killed {len(killed)} process{plural}" if killed else ""
    if len(refused):
        calls = f"calls were refused {times(int(refused['event_count'].sum()))}"
        happened = f"{happened} and {calls}" if happened else calls
    limit_bytes = group.limit_bytes if group is not None else 0
    tables = ["cgroup_memory" if group is not None else "host_memory"]
    tables += ["oom_kills"] if killed else []
    tables += ["failing_syscalls"] if len(refused) else []
    confidence, missing = signs.trust(*tables)
    if killed and not shortage.found.is_exact:
        confidence = "medium"
        missing += ("whom the kernel killed was told by counts of control groups and exit signals",)
    if not shortage.is_seen:
        confidence = "medium"
        missing += (
            "what was short: no limit of a control group that is seen here was met, and the host "
            "had memory available",
        )
    return Finding(
        cause=CAUSE.id,
        severity="warning",
        side="host",
        subject=Subject(),
        first_s=first_s,
        last_s=last_s,
        evidence=tuple(evidence),
        explanation=(
            f"At {at_connections:,} connections {whose} used "
            f"up: {happened}. Sockets, their files and epoll entries are kernel memory, which "
            "counts like any other; an idle connection takes a few kB of it on each side."
        ),
        fix=_fixes(shortage, _wanted(view.target_count, at_connections, limit_bytes)),
        at_connections=at_connections,
        confidence=confidence,
        missing=missing,
        sentence=f"Memory ran out at {at_connections:,} connections: {whose} used up, and "
        f"{happened}",
        explained_count=_explained(signs, first_s, len(killed), refused),
    )


def _whose(shortage: _Shortage) -> str:
    """Subject and auxiliary verb, for people."""
    group = shortage.group
    if group is not None:
        path = "" if group.path in ("", "/") else f" {group.path}"
        return f"the {group.limit_bytes:,} bytes of the cgroup{path} were"
    if shortage.is_seen:
        return "the host's memory was"
    return "memory that the server may have was"


def _explained(signs: Signs, first_s: float, kills: int, refused: pd.DataFrame) -> int:
    """Connections that failed, or were lost, since memory was short."""
    connections = signs.view.connections
    if signs.view.is_attached:  # each kill and each refused call took a connection, at least one
        return kills + int(refused["event_count"].sum())
    ended = connections["is_failed"] | connections["is_lost"]
    return int((ended & ~(connections["closed_s"] < first_s - 0.3)).sum())


def _wanted(target_count: int, at_connections: int, limit_bytes: int) -> int:
    """A limit for the target, in proportion, with a quarter more."""
    return int(1.25 * limit_bytes * max(1.0, target_count / max(1, at_connections)))


def _fixes(shortage: _Shortage, wanted_bytes: int) -> tuple[Fix, ...]:
    group = shortage.group
    if group is None and not shortage.is_seen:
        look = "dmesg | grep oom-kill:  # constraint= says which limit it was"
        return (Fix(look, "names the group, the cpuset or the node that was out: raise that one"),)
    if group is None:
        return (Fix("free -m; slabtop -o", "shows what holds the memory: add some, or hold less"),)
    wanted_mib = (wanted_bytes >> 20) + 1
    last = group.path.rpartition("/")[2]
    unit = last if _UNIT_NAME.fullmatch(last) else "NAME.service"
    return (
        Fix(
            f"systemctl edit {unit}  # [Service] MemoryMax={wanted_mib}M",
            f"the limit moves from {group.limit_bytes >> 20:,} to {wanted_mib:,} MiB, enough for "
            "the target by what a connection cost until then",
        ),
    )
