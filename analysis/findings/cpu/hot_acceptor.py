"""``hot-acceptor``: one process accepts for all and passes on, and its core is full.

Proof: CPU of the acceptor at 90 % of a core or more for a second, descriptors passed per second
(SCM_RIGHTS), workers at less than half of that CPU, and clients that wait for it: half of those
that got in meanwhile had waited 0.1 s. Of a server that is only watched: it alone has the
listener, the connections a second that its workers got, and its accept queue, which at that rate is
a wait of 0.1 s (Little's law), or dropped handshakes.
Told apart from ``hot-worker-code``: it is the process through which every connection goes, and what
it does it does for each of them. From ``accept-spin``: it makes progress. A hand-off that keeps up
is busy too, but nobody waits for it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from analysis.causes import Cause, Effect
from analysis.evidence import Evidence, Finding, Fix, capitalised
from analysis.findings.descriptors import accept_spin
from analysis.findings.queues import accept_queue_overflow
from analysis.frames.cpu import wants_full_core
from analysis.signs.signs import Signs
from analysis.stats.spans import runs_of
from analysis.stats.thresholds import LATE_CPU_S, LATE_EVENT_S, LATE_LIVE_S

CAUSE = Cause(
    id="hot-acceptor",
    line="one process accepts for all and is full",
    effect=Effect.SLOWS_ACCEPT,
    fills_a_core=True,
    decide="profile-run --accept reuseport: what is left is not the acceptor",
)

"""As for a hot worker (``analysis.signs.hot_worker``): what shares a core never has all of it, and
its workers' idleness tells whether that is a wall."""
_LEAST_S = 0.9  # two samples of half a second, which come a little early or late
_NEAR_S = 2.0
_WAIT_S = 0.1
"""On loopback a handshake takes under 10 ms; a tenth of a second is a queue."""


class _Hot(NamedTuple):
    """An acceptor that is full.

    Attributes:
        pid: Its pid.
        since_s: Begin of the span.
        until_s: Its end.
        cpu_pct: Its CPU there.
        workers_pct: Median CPU of the workers there.
        handoffs_per_s: Descriptors passed a second.
        wait_s: Median wait of clients that were established there, NaN when none was; of a server
            that is only watched, what its queue says.
        stalled_count: Attempts that waited in vain, or handshakes that were dropped.
    """

    pid: int
    since_s: float
    until_s: float
    cpu_pct: float
    workers_pct: float
    handoffs_per_s: float
    wait_s: float
    stalled_count: int


def find(signs: Signs) -> list[Finding]:
    """One finding about the acceptor, or none."""
    hot = _hot(signs)
    return [_finding(signs, hot)] if hot is not None else []


def hot_acceptor_pids(signs: Signs) -> set[int]:
    """The acceptor's pid when it is full, else nothing."""
    hot = _hot(signs)
    return {hot.pid} if hot is not None else set()


def _hot(signs: Signs) -> _Hot | None:
    view = signs.view
    if view.connections.empty and not view.is_attached:
        return None
    acceptors = view.who[view.who["role"] == "acceptor"]["pid"]
    found = (_hot_one(signs, int(pid)) for pid in acceptors)
    return next((hot for hot in found if hot is not None), None)


def _hot_one(signs: Signs, pid: int) -> _Hot | None:
    view = signs.view
    cpu = signs.worker_cpu
    mine = cpu[(cpu["pid"] == pid) & (cpu["at_s"] <= view.stop_s + LATE_EVENT_S)]
    at_s = mine["at_s"].to_numpy()
    best: tuple[float, float] | None = None
    for start, stop in runs_of(wants_full_core(mine["cpu_pct"], mine["wait_pct"])):
        since_s = float(at_s[start - 1]) if start else float(at_s[start]) - 0.5
        until_s = float(at_s[stop - 1])
        length_s = until_s - since_s
        if length_s >= _LEAST_S and (best is None or length_s > best[1] - best[0]):
            best = since_s, until_s
    if best is None or pid in accept_spin.spinning_pids(signs):
        return None
    since_s, until_s = best
    inside = cpu["at_s"].between(since_s + 0.01, until_s + 0.01)
    cpu_pct = float(cpu["cpu_pct"][inside & (cpu["pid"] == pid)].mean())
    workers = cpu[inside & cpu["pid"].isin(view.pids_of("server"))].groupby("pid")["cpu_pct"].mean()
    workers_pct = float(workers.median()) if len(workers) else 0.0
    per_s = _handoffs_per_s(signs, pid, since_s, until_s)
    if per_s <= 0 or workers_pct > cpu_pct / 2 or not _accepts_alone(signs, pid):
        return None
    wait_s, stalled = _waits(signs, since_s, until_s, per_s)
    if not wait_s >= _WAIT_S and not (stalled or signs.stalled_count):
        return None
    return _Hot(pid, since_s, until_s, cpu_pct, workers_pct, per_s, wait_s, stalled)


def _accepts_alone(signs: Signs, pid: int) -> bool:
    """No worker has the listener: else a parent that kept it may be hot for its own reasons."""
    if not signs.view.is_foreign:
        return True
    known = (signs.view.manifest.get("server") or {}).get("processes") or []
    owners = {int(each["pid"]) for each in known if each.get("owns_listener")}
    return pid in owners and owners.isdisjoint(signs.view.pids_of("server"))


def _waits(signs: Signs, since_s: float, until_s: float, per_s: float) -> tuple[float, int]:
    """Median wait of clients, NaN when none is known, and how many waited in vain."""
    view = signs.view
    if view.is_attached:
        queue = _longest_queue_count(signs, since_s, until_s)
        dropped = sum(found.explained_count for found in accept_queue_overflow.find(signs))
        return (queue / per_s if queue else float("nan")), dropped
    connections = view.connections
    done = connections[connections["established_s"].between(since_s, until_s)]
    waits = (done["established_s"] - done["start_s"]).to_numpy()
    wait_s = float(np.median(waits)) if len(waits) else float("nan")
    return wait_s, signs.stalled_count if signs.first_stalled_s >= since_s - 2.0 else 0


def _handoffs_per_s(signs: Signs, pid: int, since_s: float, until_s: float) -> float:
    """By its own counter; of one that is not ours by the connections that its workers got."""
    if signs.view.is_foreign:
        servers = signs.view.pids_of("server")
        return sum(_per_s(signs, each, "established_total", since_s, until_s) for each in servers)
    return _per_s(signs, pid, "tx_messages_total", since_s, until_s)


def _per_s(signs: Signs, pid: int, total: str, since_s: float, until_s: float) -> float:
    live = signs.view.frames["live_samples"]
    mine = live[live["pid"] == pid]
    at_s = signs.view.seconds_of(mine["at_ns"])
    inside = (at_s >= since_s) & (at_s <= until_s + LATE_LIVE_S)
    sent, at_s = mine[total].to_numpy()[inside], at_s[inside]
    return float(sent[-1] - sent[0]) / float(at_s[-1] - at_s[0]) if len(sent) >= 2 else 0.0


def _finding(signs: Signs, hot: _Hot) -> Finding:
    view = signs.view
    subject = view.subject(hot.pid)
    name = capitalised(str(subject))
    since_s = hot.since_s
    cost_us = hot.cpu_pct * 1e4 / hot.handoffs_per_s
    evidence = [
        Evidence("process_cpu", hot.cpu_pct, "process_samples", since_s),
        Evidence("span_length", hot.until_s - since_s, "process_samples", since_s),
        Evidence("workers_cpu_median", hot.workers_pct, "process_samples", since_s),
        Evidence("handoff_rate", hot.handoffs_per_s, "live_samples", since_s),
        Evidence("cpu_per_connection", cost_us, "process_samples"),
    ]
    waited = _waited(signs, hot, evidence)
    queue = _longest_queue_count(signs, hot.since_s, hot.until_s)
    if queue:
        evidence.append(Evidence("longest_accept_queue", queue, "listeners"))
    stalled = hot.stalled_count
    if stalled:
        evidence_id, table = _STALLED[view.is_attached]
        evidence.append(Evidence(evidence_id, stalled, table))
    confidence, missing = signs.trust("process_samples", "live_samples")
    workers = len(view.who[view.who["role"] == "server"])
    return Finding(
        cause=CAUSE.id,
        severity="warning",
        side="server",
        subject=subject,
        first_s=max(since_s, view.ramp.start_s),
        last_s=hot.until_s,
        evidence=tuple(evidence),
        explanation=(
            f"{name} accepts for all {workers} workers and passes each descriptor on. It used "
            f"{hot.cpu_pct:.0f} % of a core for {hot.until_s - since_s:.1f} s, {cost_us:,.0f} us a "
            f"connection, so no more than {hot.handoffs_per_s:,.0f} a second got through, while "
            f"its workers were at {hot.workers_pct:.0f} %.{waited}"
        ),
        fix=(
            Fix(
                (
                    "give each worker a listener of its own (SO_REUSEPORT; in node: "
                    "cluster.schedulingPolicy = cluster.SCHED_NONE, or reusePort: true)"
                )
                if view.is_foreign
                else "profile-run --accept reuseport  # in node: cluster.schedulingPolicy = "
                "cluster.SCHED_NONE, or a listener with reusePort in each worker",
                f"each of {workers} workers accepts for itself: the ceiling of "
                f"{hot.handoffs_per_s:,.0f} connections a second and the {cost_us:,.0f} us each "
                "go away",
            ),
            Fix(
                "do less for each connection before it is passed on",
                f"half of the {cost_us:,.0f} us gives twice the {hot.handoffs_per_s:,.0f} "
                "connections a second",
            ),
        ),
        at_connections=view.open_count_at(since_s),
        confidence=confidence,
        missing=missing,
        sentence=f"{name} was at {hot.cpu_pct:.0f} % of a core passing on "
        f"{hot.handoffs_per_s:,.0f} connections a second while its workers were at "
        f"{hot.workers_pct:.0f} %",
        explained_count=stalled,
    )


_STALLED = {
    False: ("stalled_attempts", "connections"),
    True: ("listen_overflows", "net_counters"),
}


def _waited(signs: Signs, hot: _Hot, evidence: list[Evidence]) -> str:
    """How long clients wait for it, for people; the number is added to the evidence."""
    if not np.isfinite(hot.wait_s):
        return ""
    wait_ms = 1e3 * hot.wait_s
    if signs.view.is_attached:
        evidence.append(Evidence("accept_queue_wait", wait_ms, "listeners"))
        return f" Who connected meanwhile waited up to {wait_ms:,.0f} ms in its accept queue."
    evidence.append(Evidence("handshake_wait_median", wait_ms, "connections"))
    return f" Half of the clients that got in had waited {wait_ms:,.0f} ms or more."


def _longest_queue_count(signs: Signs, since_s: float, until_s: float) -> int:
    view = signs.view
    listeners = view.frames["listeners"]
    at_s = view.seconds_of(listeners["at_ns"])
    inside = (at_s >= since_s) & (at_s <= until_s + LATE_CPU_S)
    if view.is_attached:
        # Snapshots are seconds apart, and one is taken when a process turns hot, which is a little
        # before its core is full; the namespace may have listeners of others.
        inside = (at_s >= since_s - _NEAR_S) & (at_s <= until_s + _NEAR_S)
        inside &= listeners["local_port"].isin(view.server_ports)
    queue = listeners["accept_queue_count"][inside]
    return int(queue.max()) if len(queue) else 0
