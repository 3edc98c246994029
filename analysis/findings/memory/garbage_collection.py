"""``garbage-collection``: the runtime's collector takes a worker's core.

Proof: two fifths of the time in the collector for a second or more, by its own clock
(``gc.callbacks`` in our workers), or as collector frames in the samples of its CPU (V8, Go, JVM,
CPython with symbols); with the length of the pauses.
Told apart from ``hot-worker-code``: the functions that py-spy shows then are only those that
happened to allocate when a collection was due; this finding replaces that one for its worker.
"""

from __future__ import annotations

import math

from analysis.causes import Cause, Effect
from analysis.evidence import Evidence, Finding, Fix, capitalised, side_of_role
from analysis.frames.cpu import df_flame
from analysis.signs.full_processes import is_server_full
from analysis.signs.signs import Signs
from analysis.stacks.collector import CollectorTime, collector_time
from analysis.stacks.collector_frames import Collecting, describe_collecting
from analysis.stacks.runtime_frames import naming_advice, node_script
from analysis.stats.remembered import remembered
from probes.contract.schema import SERVER_ROLES

CAUSE = Cause(
    id="garbage-collection",
    line="the runtime's collector takes the core",
    effect=Effect.SLOWS_ACCEPT,
    follows_from=(
        "runtime-heap-limit",
        "slow-consumers",
    ),
    grows_into_it=True,
    fills_a_core=True,
    decide="profile-run --gc off: what is left is not the collector",
)

_LEAST_SHARE = 0.4
"""Python's own collector takes under 0.1 % of a healthy worker, V8's and Go's 5 to 25 % by design
(GOGC=100 bounds it near a quarter): two fifths is more than any of them means to take."""
_LEAST_CPU_PCT = 40.0
_GROWTH = 1.5


def find(signs: Signs) -> list[Finding]:
    """One finding for each server process whose collector takes the core."""
    return [_finding(signs, pid, time) for pid, time in _found(signs)]


def collecting_pids(signs: Signs) -> set[int]:
    """Every server process whose collector takes the core."""
    return {pid for pid, _ in _found(signs)}


@remembered
def _found(signs: Signs) -> list[tuple[int, CollectorTime]]:
    who = signs.view.who
    found = []
    for pid in who[who["role"].isin(SERVER_ROLES)]["pid"]:
        time = collector_time(signs.view, int(pid), _LEAST_SHARE)
        if time is None:
            continue
        cpu_pct = signs.cpu_pct_of(int(pid), time.since_s, time.until_s)
        wants = signs.is_busy(int(pid), time.since_s, time.until_s)  # also where others have it
        if cpu_pct is None or cpu_pct >= _LEAST_CPU_PCT or wants:
            found.append((int(pid), time))
    return found


def _finding(signs: Signs, pid: int, time: CollectorTime) -> Finding:
    view = signs.view
    subject = view.subject(pid)
    name = capitalised(str(subject))
    since_s, until_s, table = time.since_s, time.until_s, time.table
    share_id = "collector_time" if table == "live_samples" else "collector_samples"
    evidence = [
        Evidence(share_id, time.share_pct, table, since_s),
        Evidence("span_length", until_s - since_s, table, since_s),
    ]
    cpu_pct = signs.cpu_pct_of(pid, since_s, until_s)
    if cpu_pct is not None:
        evidence.append(Evidence("process_cpu", cpu_pct, "process_samples", since_s))
    pauses = ""
    if math.isfinite(time.longest_ms):
        evidence += [
            Evidence("collection_rate", time.collections_per_s, table, since_s),
            Evidence("longest_pause", time.longest_ms, table, until_s),
            Evidence("longest_early_pause", time.longest_before_ms, table),
        ]
        pauses = f" Its longest pause was {time.longest_ms:.0f} ms."
    first, last = view.open_count_at(since_s), view.open_count_at(until_s)
    grows = time.longest_ms >= _GROWTH * time.longest_before_ms and last >= _GROWTH * first
    if grows:
        pauses = (
            f" Its longest pause grew from {time.longest_before_ms:.0f} ms to "
            f"{time.longest_ms:.0f} ms while the connections grew from {first:,} to {last:,}."
        )
    confidence, missing = signs.trust(table)
    seen = _NOTHING_SEEN
    commands: tuple[str, ...] = ()
    if table == "cpu_stacks":
        confidence = "medium"
        missing += ("the length of the pauses: only the collector's frames were seen",)
        seen = describe_collecting(view, pid, (since_s, until_s))
        evidence += _evidence_of(seen, since_s)
        native = df_flame(view, pid=pid, kind="native", window_s=(since_s, until_s))
        sampled = zip(native["stack"], native["sample_count"], strict=True)
        advice = naming_advice(sampled, command=subject.command)
        if advice is not None and seen.runtime == "node":  # a JVM collects on other threads
            commands = advice.commands
            missing += (f"which function allocates: {advice.sentence}",)
    stalled = signs.stalled_count if signs.first_stalled_s >= since_s - 0.5 else 0
    if is_server_full(signs):
        stalled = 0  # a full worker strands connections whether this one collects or not
    spent_s = time.share_pct / 100 * (until_s - since_s)
    of = "" if table == "live_samples" else "its CPU time in "
    spent = f"{time.share_pct:.0f} % of {of}{until_s - since_s:.1f} s"
    return Finding(
        cause=CAUSE.id,
        severity="warning",
        side=side_of_role(subject.role),
        subject=subject,
        first_s=since_s,
        last_s=until_s,
        evidence=tuple(evidence),
        explanation=(
            f"{name} spent {spent} in its garbage collector.{pauses}{_on_threads(seen)} "
            f"{_WHILE.get(seen.runtime, _WHILE[''])}, none of its connections is served. Each full "
            "collection looks at every object that lives, so pauses grow with what is kept for "
            "each connection."
        ),
        fix=(
            Fix(
                _heap_command(seen, subject.command, _rss_mib(signs, pid, until_s)),
                f"{'young' if seen.is_young else 'full'} collections become rarer; up to "
                f"{spent_s:.1f} s of {until_s - since_s:.1f} s come back, paid for with memory",
            ),
            Fix(
                _LESS_GARBAGE.get(seen.runtime, _LESS_GARBAGE[""])
                + (f"; begin in {seen.allocator}" if seen.allocator else ""),
                f"the CPU of this worker falls from {cpu_pct or 100:.0f} % to about "
                f"{max(0.0, (cpu_pct or 100) * (1 - time.share_pct / 100)):.0f} %",
            ),
            *(Fix(each, "the next run names the function that allocates") for each in commands),
        ),
        at_connections=first,
        confidence=confidence,
        missing=missing,
        sentence=f"{name} spent {spent} in its garbage collector"
        + (f", {time.longest_ms:.0f} ms at once" if math.isfinite(time.longest_ms) else ""),
        explained_count=stalled,
    )


_NOTHING_SEEN = Collecting("", False, float("nan"), 0, 0.0, "")
_WHILE = {
    "": "While it collects",
    "node": "While its event loop collects",
    "java": "While its threads are stopped for that",
    "go": "While its threads help or wait",
}
_LESS_GARBAGE = {
    "": "make no reference cycles for a connection, and keep less of it in objects",
    "node": "keep fewer objects that live long (a Buffer is outside of the heap)",
    "java": "keep fewer objects for a connection, and reuse its buffers",
    "go": "keep fewer pointers for a connection, and reuse its buffers (sync.Pool)",
}


def _heap_command(seen: Collecting, command: str, rss_mib: int) -> str:
    """What makes collections rarer in that runtime, with a heap twice as large as its memory."""
    if seen.runtime == "node":
        option = (
            "--max-semi-space-size=64" if seen.is_young else f"--max-old-space-size={2 * rss_mib}"
        )
        return f"node {option} {node_script(command)}"
    if seen.runtime == "java":
        return f"export JAVA_TOOL_OPTIONS=-Xmx{2 * rss_mib}m  # and start the server again"
    if seen.runtime == "go":
        return "export GOGC=400  # and start the server again"
    return "gc.freeze() after start-up and gc.set_threshold(50_000, 50, 50) in the worker"


def _rss_mib(signs: Signs, pid: int, until_s: float) -> int:
    """Memory of a process up to then, at its most, in MiB, in steps of 64."""
    rows = signs.worker_cpu
    mine = rows[(rows["pid"] == pid) & (rows["at_s"] <= until_s)]["rss_bytes"]
    return max(1, math.ceil((float(mine.max()) if len(mine) else 0.0) / (64 << 20))) * 64


def _evidence_of(seen: Collecting, since_s: float) -> list[Evidence]:
    found = []
    if math.isfinite(seen.loop_pct):
        found.append(Evidence("loop_collector_samples", seen.loop_pct, "cpu_stacks", since_s))
    if seen.helper_count:
        found.append(Evidence("helper_collector_samples", seen.helper_pct, "cpu_stacks", since_s))
    return found


def _threads(count: int) -> str:
    return f"{count} thread{'s' if count > 1 else ''}"


def _on_threads(seen: Collecting) -> str:
    """Sentences about who collects, '' where nothing is known of it."""
    said = ""
    if math.isfinite(seen.loop_pct):
        said = f" The collector has {seen.loop_pct:.0f} % of the samples of its event loop"
        if seen.helper_count:
            said += (
                f", and runs on {_threads(seen.helper_count)} of the runtime beside it, which have "
                f"{seen.helper_pct:.0f} % of its samples"
            )
        said += "."
    elif seen.helper_count:
        said = f" The runtime collects on {_threads(seen.helper_count)} of its own."
    if seen.allocator:
        said += f" Most collections began in {seen.allocator}, which allocates."
    return said
