"""``mapping-limit``: a limit on mappings or address space refuses memory that is free.

Proof: mmap, mprotect, brk or clone returned ENOMEM to a server, and at that moment it had as many
mappings as vm.max_map_count allows, or its address space or data segment was at the limit of the
process (RLIMIT_AS, RLIMIT_DATA), or the host promises no more (vm.overcommit_memory=2); how many
mappings it had comes from its ``mm_struct`` at the failing call.
Told apart from ``memory-exhausted``: the memory of host and control group is free, and nobody was
killed. An ENOMEM with none of these used up, as when a runtime asks at its start for more than the
host has to see whether it may, is neither. ``task-limit``: a thread is refused, with EAGAIN of
clone.
"""

from __future__ import annotations

from analysis.causes import Cause
from analysis.evidence import Evidence, Finding, Fix, Subject, capitalised, times
from analysis.server.nofile_setting import raised_in_the_shell
from analysis.signs.memory import ENOMEM, until_stop
from analysis.signs.met_limits import MAPPINGS, MetLimit, met_limit, refused, wanted_count
from analysis.signs.signs import Signs

CAUSE = Cause(
    id="mapping-limit",
    line="a limit on mappings or address space refuses memory that is free",
    decide="wc -l /proc/PID/maps of the worker against vm.max_map_count",
)

_CALLS = ("mmap", "mmap2", "mprotect", "mremap", "munmap", "brk", "clone", "clone3", "madvise")


def find(signs: Signs) -> list[Finding]:
    """One finding about the first server process that met such a limit, or none."""
    for row in refused(signs.errors, _CALLS, ENOMEM, before_s=signs.view.stop_s).to_dict("records"):
        limit = met_limit(signs.view, int(row["pid"]), MAPPINGS)
        if limit is not None:
            span_s = float(row["first_s"]), float(row["last_s"])
            refusal = str(row["syscall"]), int(row["event_count"])
            return [_finding(signs, int(row["pid"]), span_s, refusal, limit)]
    return []


def limited_pids(signs: Signs) -> set[int]:
    """Server processes whose ENOMEM says nothing of memory."""
    rows = refused(signs.errors, _CALLS, ENOMEM, before_s=signs.view.stop_s)
    return {int(p) for p in rows["pid"] if met_limit(signs.view, int(p), MAPPINGS) is not None}


def _finding(
    signs: Signs,
    pid: int,
    span_s: tuple[float, float],
    refusal: tuple[str, int],
    limit: MetLimit,
) -> Finding:
    view = signs.view
    subject = view.subject(pid)
    first_s, last_s = span_s
    call, count = refusal
    open_then = at_connections = view.open_count_at(first_s)
    if not view.is_attached and not at_connections:
        # those that it had taken were answered a moment later
        at_connections = view.peak_count
    evidence = [
        Evidence("enomem_calls", count, "failing_syscalls", first_s, of=call),
        *limit.evidence(first_s),
        Evidence("connections_open", open_then, "connections", first_s),
    ]
    free = ""
    host = until_stop(view, "host_memory")
    if len(host):
        least = int(host["available_bytes"].min())
        evidence.append(Evidence("least_memory_available", least, "host_memory"))
        free = f" while {least / 1e9:,.1f} GB of memory were free"
    sampled = view.frames["process_samples"]
    rss_bytes = sampled["rss_bytes"][sampled["pid"] == pid]
    if len(rss_bytes):
        evidence.append(Evidence("resident_peak", int(rss_bytes.max()), "process_samples"))
    size = f"{limit.capacity:,}" + (" bytes" if limit.is_bytes else "")
    confidence, missing = signs.trust("limit_readings")
    name = capitalised(str(subject))
    whose = f"the {size} of {limit.name}" if limit.is_bytes else f"the {size} {limit.name}"
    return Finding(
        cause=CAUSE.id,
        severity="warning",
        side="host" if limit.limit == "host_commit_bytes" else "server",
        subject=subject,
        first_s=first_s,
        last_s=max(first_s, last_s),
        evidence=tuple(evidence),
        explanation=(
            f"{name} was refused memory at {at_connections:,} connections{free}: {call} returned "
            f"ENOMEM {times(count)}, and {whose} were in use. Each stack of a thread or coroutine "
            "is a mapping, its guard page a second one; what is mapped counts against the address "
            "space whether it is used or not."
        ),
        fix=_fixes(signs, subject, limit, at_connections),
        at_connections=at_connections,
        confidence=confidence,
        missing=missing,
        sentence=f"{name} had {whose} in use at {at_connections:,} connections and was refused "
        f"memory ({call} returned ENOMEM {times(count)}){free}",
        explained_count=count if view.is_attached else signs.harmed_since(first_s),
    )


def _fixes(signs: Signs, subject: Subject, limit: MetLimit, at_connections: int) -> tuple[Fix, ...]:
    view = signs.view
    wanted = wanted_count(limit.used, limit.capacity, view.target_count, at_connections)
    each = limit.used / at_connections if at_connections else 0.0
    if limit.limit == "mappings_count":
        per = f", about {each:,.0f} for each connection" if each >= 1 else ""
        return (
            Fix(
                f"sysctl -w vm.max_map_count={wanted}",
                f"the limit moves from {limit.capacity:,} to {wanted:,} mappings{per}",
            ),
            Fix(
                "fewer stacks: serve connections without a thread or a coroutine stack of their "
                "own, or take the stacks from one large mapping",
                "then the number of mappings does not follow the number of connections",
            ),
        )
    if limit.limit == "host_commit_bytes":
        return (
            Fix(
                "sysctl -w vm.overcommit_memory=0",
                "the host then refuses only what cannot be had at all",
            ),
        )
    flag, option, unit = {
        "address_space_bytes": ("-v", "--as", "LimitAS"),
        "data_bytes": ("-d", "--data", "LimitDATA"),
    }[limit.limit]
    command = (
        f"prlimit --pid {subject.pid} {option}=unlimited"
        if view.is_attached
        else raised_in_the_shell(view, subject.pid, flag[1:], limit.capacity // 1024)
        or f"ulimit {flag} unlimited  # in the shell that starts the server"
    )
    return (
        Fix(command, f"the limit of {limit.capacity:,} bytes goes; {limit.used:,} were in use"),
        Fix(f"systemctl edit NAME.service  # [Service] {unit}=infinity", "the same for a service"),
        Fix(
            "ulimit -s 512  # smaller stacks, in KiB, for the threads of C, Java: -Xss512k",
            "each thread then takes less of the address space",
        ),
    )
