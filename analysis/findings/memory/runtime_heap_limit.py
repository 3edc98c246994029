"""``runtime-heap-limit``: the heap of the server's runtime is full, while the host has memory.

Proof: the runtime says so in its log (V8, JVM, PHP, BEAM, .NET); or its process aborted, or its
collector took much of its time, with as much memory resident as the limit that it was told
(--max-old-space-size, -Xmx, memory_limit, GOMEMLIMIT, DOTNET_GCHeapHardLimit).
Told apart from ``memory-exhausted``: the kernel killed nobody, and memory of host and control group
is free. From ``garbage-collection``: that collector takes its time well below the limit of its
heap. ``worker-crash`` follows from it.
"""

from __future__ import annotations

import math
import re
import shlex
import signal
from typing import NamedTuple

from analysis.causes import Cause
from analysis.evidence import Evidence, Finding, Fix, Subject, capitalised
from analysis.frames.run_view import RunView, server_cmd
from analysis.server.process_ends import ProcessEnd
from analysis.server.server_words import NODE_WORKER, Spoken
from analysis.signs.memory import until_stop
from analysis.signs.signs import Signs
from analysis.stacks.collector import CollectorTime, collector_time
from probes.contract.schema import SERVER_ROLES

CAUSE = Cause(
    id="runtime-heap-limit",
    line="the heap of the server's runtime is full",
    follows_from=(
        "slow-consumers",
        "mapping-limit",
        "memory-exhausted",
    ),
    decide="the run again with twice the heap: what is left is not the heap",
)

_ABORTS = (signal.SIGABRT, signal.SIGTRAP, signal.SIGILL)
_ABORT_STATUSES = (134, 133, 132, 3)
"""128 and the signal, as a shell passes it on; 3 is -XX:+ExitOnOutOfMemoryError."""
_NEAR_ABORT = 0.7
_NEAR_COLLECTING = 0.85
_COLLECTOR_SHARE = 0.3
_FILLED_SHARE = 0.95
_BUSY_PCT = 40.0
_NEVER_RESTED_PCT = 80.0
_FREE_SHARE = 0.05
_MARGIN = 1.5
_LINES_BEFORE_END_S = 2.0


class _Heap(NamedTuple):
    """A limit that a runtime was told: its name in ``runtime_limits``, the option, and bytes."""

    limit: str
    option: str
    capacity_bytes: int


class _Sign(NamedTuple):
    """One process whose heap is full.

    Attributes:
        pid: The process.
        heap: Its limit, None when nobody told.
        first_s: First moment.
        last_s: Last moment.
        said: What its log says of it.
        end: How it ended, None when it lives.
        collector_pct: Time or samples of its collector before, 0 when not known.
    """

    pid: int
    heap: _Heap | None
    first_s: float
    last_s: float
    said: list[Spoken]
    end: ProcessEnd | None
    collector_pct: float


def find(signs: Signs) -> list[Finding]:
    """One finding for each process, the first first."""
    found = [_finding(signs, sign) for sign in _signs(signs)]
    return sorted(found, key=lambda finding: finding.first_s)


def _signs(signs: Signs) -> list[_Sign]:
    view = signs.view
    servers = [int(p) for p in view.who[view.who["role"].isin(SERVER_ROLES)]["pid"]]
    ends = {end.pid: end for end in signs.process_ends}
    said = signs.words_of("runtime-heap-limit")
    speaker = _speaker(signs, said, servers)
    found = []
    for pid in servers:
        words = [each for each in said if each.pid == pid or (not each.pid and pid == speaker)]
        sign = _sign(signs, pid, ends.get(pid), words)
        if sign is not None:
            found.append(sign)
    return found


def _speaker(signs: Signs, said: list[Spoken], servers: list[int]) -> int:
    """Whose words they are, when one log is of all: of one that aborted then, else of the largest.

    0 when there is nobody.
    """
    if not said or not servers:
        return 0
    aborted = [
        end for end in signs.process_ends if _is_abort(end) and end.ended_s >= said[0].first_s - 1.0
    ]
    if aborted:
        return aborted[0].pid
    return max(servers, key=lambda pid: _peak_bytes(signs.view, pid))


def _is_abort(end: ProcessEnd) -> bool:
    return end.signal in _ABORTS or end.status in (*_ABORT_STATUSES, 1, 255)


def _is_busy(signs: Signs, pid: int, spent: CollectorTime) -> bool:
    """The process had much of a core while it collected, or never rested; or nobody knows."""
    cpu_pct = signs.cpu_pct_of(pid, spent.since_s, spent.until_s)
    wait_pct = signs.wait_pct_of(pid, spent.since_s, spent.until_s) or 0.0
    return cpu_pct is None or cpu_pct >= _BUSY_PCT or cpu_pct + wait_pct >= _NEVER_RESTED_PCT


def _sign(signs: Signs, pid: int, end: ProcessEnd | None, said: list[Spoken]) -> _Sign | None:
    view = signs.view
    heap, peak = _heap(view, pid), _peak_bytes(view, pid)
    if said and said[0].program == NODE_WORKER:
        heap = None  # what the process was told is not what its thread was given
    if not said and heap is None:
        return None
    spent = collector_time(view, pid, _COLLECTOR_SHARE)
    if spent is not None and not _is_busy(signs, pid, spent):
        spent = None
    aborted = end is not None and (end.signal in _ABORTS or end.status in _ABORT_STATUSES)
    moments: list[float] = [each.first_s for each in said]
    if heap is not None and not said:
        filled = peak / heap.capacity_bytes
        is_full = (aborted and filled >= _NEAR_ABORT) or (
            spent is not None and filled >= _NEAR_COLLECTING
        )
        if not is_full or not _memory_is_free(view):
            return None
    if end is not None and (aborted or said):
        moments.append(end.first_lost_s)
    collector_pct = 0.0
    if spent is not None and (not moments or spent.until_s >= min(moments) - _LINES_BEFORE_END_S):
        moments.append(max(spent.since_s, _filled_s(view, pid)) if not moments else spent.since_s)
        collector_pct = spent.share_pct
        if not said and end is None:  # it lives on, and gets no further
            moments.append(max(moments[-1], spent.until_s))
    last_s = max([*moments, *(each.last_s for each in said)])
    return _Sign(pid, heap, min(moments), last_s, said, end if aborted or said else None,
                 collector_pct)  # fmt: skip


def _heap(view: RunView, pid: int) -> _Heap | None:
    rows = view.frames["runtime_limits"]
    mine = rows[(rows["pid"] == pid) & rows["limit"].isin(_OPTIONS) & (rows["size_bytes"] > 0)]
    if mine.empty:
        return None
    first = mine.iloc[0]
    return _Heap(str(first["limit"]), str(first["option"]), int(first["size_bytes"]))


def _peak_bytes(view: RunView, pid: int) -> int:
    sampled = view.frames["process_samples"]
    rss_bytes = sampled["rss_bytes"][sampled["pid"] == pid]
    return int(rss_bytes.max()) if len(rss_bytes) else 0


def _filled_s(view: RunView, pid: int) -> float:
    """When a process first had nearly the most memory that it ever had."""
    sampled = view.frames["process_samples"]
    mine = sampled[sampled["pid"] == pid]
    full = mine["at_ns"][mine["rss_bytes"] >= _FILLED_SHARE * mine["rss_bytes"].max()]
    return view.seconds(int(full.min())) if len(full) else 0.0


def _memory_is_free(view: RunView) -> bool:
    """Neither the host nor a control group of the server was short of memory."""
    host, group = until_stop(view, "host_memory"), until_stop(view, "cgroup_memory")
    total = int(view.host.get("memory_total_bytes") or 0)
    is_free = host.empty or int(host["available_bytes"].min()) >= _FREE_SHARE * total
    limited = group[group["max_bytes"] > 0]
    room = limited["used_bytes"] < (1 - _FREE_SHARE) * limited["max_bytes"]
    return is_free and bool(room.all())


def _finding(signs: Signs, sign: _Sign) -> Finding:
    view = signs.view
    subject = view.subject(sign.pid)
    peak = _peak_bytes(view, sign.pid)
    until_s = sign.end.first_lost_s - 0.001 if sign.end is not None else sign.last_s
    at_connections = max(view.open_count_at(sign.first_s), view.open_count_at(until_s))
    evidence = []
    if sign.said:
        count = sum(each.count for each in sign.said)
        evidence.append(Evidence("log_lines", count, "server_words", sign.said[0].first_s))
    if sign.heap is not None:
        size = Evidence("limit_size_bytes", sign.heap.capacity_bytes, "runtime_limits",
                        of=_heap_words(sign.heap))  # fmt: skip
        evidence.append(size)
    if peak:
        evidence.append(Evidence("resident_peak", peak, "process_samples"))
    if sign.collector_pct:
        evidence.append(Evidence("collector_time", sign.collector_pct, "cpu_stacks", sign.first_s))
    if sign.end is not None:
        kind, value = ("exit_signal", sign.end.signal) if sign.end.signal else (
            "exit_status", sign.end.status)  # fmt: skip
        evidence.append(Evidence(kind, value, "processes", sign.end.ended_s))
    host = until_stop(view, "host_memory")
    free = ""
    if len(host):
        least = int(host["available_bytes"].min())
        evidence.append(Evidence("least_memory_available", least, "host_memory"))
        free = f", while {least / 1e9:,.1f} GB of the host's memory were free"
    evidence.append(Evidence("connections_open", at_connections, "connections", sign.first_s))
    heap = "its heap"
    if sign.said and sign.said[0].program == NODE_WORKER:
        heap = "the heap of a worker thread"
    if sign.heap is not None:
        heap = f"its heap of {sign.heap.capacity_bytes / 2**20:,.0f} MiB ({sign.heap.option})"
    ended = ""
    if sign.end is not None and sign.end.signal:
        ended = f", and it ended by {signal.Signals(sign.end.signal).name}"
    elif sign.end is not None and sign.end.status >= 0:
        ended = f", and it ended with status {sign.end.status}"
    name = capitalised(str(subject))
    confidence, missing = signs.trust("server_words")
    if not sign.said:
        confidence = "medium"
        missing += ("its log, or words of its runtime in it",)
    return Finding(
        cause=CAUSE.id,
        severity="warning",
        side="server",
        subject=subject,
        first_s=sign.first_s,
        last_s=sign.last_s,
        evidence=tuple(evidence),
        explanation=(
            f"{name} had {heap} full at {at_connections:,} connections{ended}{free}. The limit is "
            "the runtime's own: it was told so, or takes it by default, and no memory of the host "
            "moves it."
        ),
        fix=_fixes(view, sign, subject, at_connections, peak),
        at_connections=at_connections,
        confidence=confidence,
        missing=missing,
        sentence=f"{name} had {heap} full at {at_connections:,} connections{ended}{free}",
        explained_count=_explained(signs, sign),
    )


def _explained(signs: Signs, sign: _Sign) -> int:
    if signs.view.is_attached:
        return sign.end.held_count if sign.end is not None else 0
    return signs.harmed_since(sign.first_s)


_OPTIONS = {
    "v8_worker": "resourceLimits: {{ maxOldGenerationSizeMb: {mib} }}",
    "v8_old_space": "--max-old-space-size={mib}",
    "jvm_heap": "-Xmx{mib}m",
    "jvm_direct_memory": "-XX:MaxDirectMemorySize={mib}m",
    "php_memory": "-d memory_limit={mib}M",
    "go_memory": "GOMEMLIMIT={mib}MiB",
    "dotnet_heap": "DOTNET_GCHeapHardLimit=0x{hex}",
    "beam_process": "+hmax {words}",
}
"""How each runtime is told another size."""
_NAMES = {
    "v8_worker": "heap of a worker thread",
    "v8_old_space": "old space of V8",
    "jvm_heap": "heap of the JVM",
    "jvm_direct_memory": "direct memory of the JVM",
    "php_memory": "memory of PHP",
    "go_memory": "memory of the Go runtime",
    "dotnet_heap": "heap of .NET",
    "beam_process": "heap of one process of the BEAM",
}
_OF_PROGRAM = (
    ("node", "v8_old_space"),
    ("java", "jvm_heap"),
    ("php", "php_memory"),
    ("beam", "beam_process"),
    ("dotnet", "dotnet_heap"),
)
_SPELLINGS = {
    "v8_old_space": re.compile(r"--max[-_]old[-_]space[-_]size=\d+"),
    "jvm_heap": re.compile(r"-Xmx\d+[kmgtKMGT]?"),
    "jvm_direct_memory": re.compile(r"-XX:MaxDirectMemorySize=\d+[kmgtKMGT]?"),
    "php_memory": re.compile(r"memory_limit=\d+[kmgKMG]?"),
}


def _heap_words(heap: _Heap) -> str:
    return _NAMES[heap.limit]


def _fixes(
    view: RunView, sign: _Sign, subject: Subject, at_connections: int, peak_bytes: int
) -> tuple[Fix, ...]:
    heap = sign.heap
    by_program = (name for program, name in _OF_PROGRAM if program in subject.command)
    limit = heap.limit if heap else next(by_program, "")
    if sign.said and sign.said[0].program == NODE_WORKER:
        limit = "v8_worker"
    used = max(heap.capacity_bytes if heap else 0, peak_bytes)
    share = view.target_count / at_connections if at_connections and view.target_count else 0.0
    wanted = max(2 * used, math.ceil(_MARGIN * used * min(share, 1_000.0)))
    least = until_stop(view, "host_memory")["available_bytes"]
    has_room = least.empty or wanted <= int(least.min())
    each = f"{used / at_connections / 1024:,.0f} kB" if at_connections else "what it kept"
    less = Fix(
        "keep less for each connection, or spread them over more processes",
        f"each took {each} of the heap until it was full",
    )
    if not limit:
        return (less,)
    mib = (wanted >> 20) + 1
    option = _OPTIONS[limit].format(mib=mib, hex=f"{wanted:x}", words=wanted // 8)
    before = f"from {heap.capacity_bytes / 2**20:,.0f} " if heap else ""
    effect = f"the heap may grow {before}to {mib:,} MiB, enough for the target by what it took"
    raise_it = Fix(_command(view, limit, option), effect)
    return (raise_it, less) if has_room else (less, raise_it)


def _command(view: RunView, limit: str, option: str) -> str:
    """The run's own command with another size, where the size stands in it."""
    spelling, text = _SPELLINGS.get(limit), server_cmd(view.manifest)
    if spelling is not None and spelling.search(text):
        changed = spelling.sub(option.removeprefix("-d "), text)
        return f"profile-run --server-cmd {shlex.quote(changed)}"
    if limit == "v8_worker":
        return f"{option}  # of new Worker() in the program"
    if limit == "v8_old_space":
        return f"NODE_OPTIONS={option}  # in the environment of the server"
    if limit.startswith("jvm"):
        return f"JAVA_TOOL_OPTIONS={option}  # in the environment of the server"
    return f"{option}  # where the server is started"
