"""``keepalive-storm``: pings to all connections fill a core.

Proof: messages per second times CPU per message of the worker, in the hold phase, where nothing
else happens; and that the core (or the host) is full while they go out, or that pings fall behind
their interval. The same cost per message, at the rate that is due, gives the ceiling in
connections, in proportion to the interval.
Told apart from ``hot-worker-code`` and ``accept-spin``: those burn without messages.
Of a server that is only watched (``analysis.signs.watched_keepalive``): what its sockets carry is
as small as pings, answered one by one, with no connection that is new, while a worker's core is
full.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis.causes import Cause, Effect
from analysis.evidence import Evidence, Finding, Fix, capitalised
from analysis.frames.cpu import cpu_between
from analysis.frames.keepalive import PingWork, fleet_cpu_pct, ping_work
from analysis.frames.run_view import Phase, RunView
from analysis.signs.signs import MOST_MESSAGE_CPU_US, Signs
from analysis.signs.watched_keepalive import WatchedKeepalives, watched_keepalives
from analysis.stats.thresholds import LATE_CPU_S, OTHERS_SHARE, STEADY_CORE_PCT
from probes.contract.schema import SERVER_ROLES

CAUSE = Cause(
    id="keepalive-storm",
    line="pings to all connections fill a core",
    effect=Effect.SLOWS_ACCEPT,
    fills_a_core=True,
    decide="profile-run --keepalive off: what is left is not keep-alives",
)

_LEAST_DUTY = 0.25
_BEHIND = 0.8
_FLEET_SHARE = 0.6
_FULL_PCT = 90.0


def find(signs: Signs) -> list[Finding]:
    """One finding about the worker that spends most on keep-alives, or none."""
    if signs.view.is_attached:
        watched = watched_keepalives(signs)
        return [_of_watched(signs, watched)] if watched else []
    work = ping_work(signs.view)
    if not work or work[0].cpu_us >= MOST_MESSAGE_CPU_US:
        return []
    full = _fullness(signs, work)
    return [_finding(signs, work, full)] if full else []


def _fullness(signs: Signs, work: list[PingWork]) -> list[Evidence]:
    """Evidence that a core, or the host, is full of it; empty when it is not."""
    view = signs.view
    found = []
    cpu = signs.worker_cpu
    from_s, until_s = view.hold.start_s + 0.5, view.hold.end_s
    mine = cpu[cpu["at_s"].between(from_s, until_s) & (cpu["pid"] == work[0].pid)]["cpu_pct"]
    duty = float((mine >= STEADY_CORE_PCT).mean()) if len(mine) else 0.0
    if duty >= _LEAST_DUTY:
        found.append(Evidence("core_full_time", 100 * duty, "process_samples"))
    due_per_s, sent_per_s = sum(w.due_per_s for w in work), sum(w.pings_per_s for w in work)
    is_behind = work[0].is_long_enough and sent_per_s < _BEHIND * due_per_s
    if is_behind and _would_fill(view, work, due_per_s / max(sent_per_s, 1.0)):
        found.append(Evidence("due_rate", due_per_s, "live_samples", of="pings"))
    host = signs.host_cpu
    host = host[(host["core"] == -1) & host["at_s"].between(from_s, until_s)]
    host_duty = float((host["busy_pct"] >= _FULL_PCT).mean()) if len(host) else 0.0
    if host_duty >= _LEAST_DUTY and _is_full_of_fleet(view, host):
        found.append(Evidence("host_full_time", 100 * host_duty, "host_cpu"))
    return found


def _is_full_of_fleet(view: RunView, host: pd.DataFrame) -> bool:
    """While no core was free the fleet had most of them, and without others one would have been.

    Pings go out in bursts: what counts is who had the cores from the first sample that was full to
    the last one.
    """
    is_full = host["busy_pct"] >= _FULL_PCT
    full_s = host["at_s"][is_full]
    span = Phase("full", float(full_s.min()) - LATE_CPU_S, float(full_s.max()))
    taken = cpu_between(view, span)
    fleet_pct = float(taken["cpu_pct"][taken["role"].isin([*SERVER_ROLES, "client"])].sum())
    capacity_pct = 100 * view.core_count
    inside = host["at_s"].between(span.start_s, span.end_s)
    busy_pct = capacity_pct * float(host["busy_pct"][inside].mean()) / 100
    others_pct = busy_pct - float(taken["cpu_pct"].sum())
    share = float(is_full[inside].mean())
    is_most = fleet_pct >= _FLEET_SHARE * capacity_pct * share
    return is_most and others_pct < OTHERS_SHARE * capacity_pct


def _would_fill(view: RunView, work: list[PingWork], behind: float) -> bool:
    """Pings at the rate that is due take a core, or most of the host.

    Where others have the cores, a few pings fall behind as well, and are not what fills them.
    """
    fleet_pct = fleet_cpu_pct(view) * behind
    return (
        work[0].wanted_cpu_pct >= STEADY_CORE_PCT
        or fleet_pct >= 100 * view.core_count * _FLEET_SHARE
    )


def ceiling_connections(signs: Signs, work: list[PingWork]) -> float:
    """Connections of the run at which keep-alives of this interval fill a core, or the host."""
    view = signs.view
    held = max(1, view.held_count)
    worst_pct = max(w.wanted_cpu_pct for w in work)
    by_worker = held * 100 / max(worst_pct, 0.1)
    behind = max(w.wanted_cpu_pct / max(w.cpu_pct, 0.1) for w in work)
    by_host = held * 100 * view.core_count / max(fleet_cpu_pct(view) * behind, 0.1)
    return min(by_worker, by_host)


def _finding(signs: Signs, work: list[PingWork], full: list[Evidence]) -> Finding:
    view = signs.view
    worst = work[0]
    subject = view.subject(worst.pid)
    interval_s = worst.interval_s
    ceiling = ceiling_connections(signs, work)
    longer_s = _longer(interval_s)
    factor = longer_s / interval_s
    sent_per_s = sum(w.pings_per_s for w in work)
    evidence = (
        Evidence("keepalive_rate", worst.messages_per_s, "live_samples"),
        Evidence("cpu_per_message", worst.cpu_us, "process_samples"),
        Evidence("process_cpu", worst.cpu_pct, "process_samples"),
        Evidence("keepalive_interval", interval_s, "manifest"),
        Evidence("sent_rate", sent_per_s, "live_samples", of="pings"),
        *full,
    )
    confidence, missing = signs.trust("live_samples", "process_samples")
    name = str(subject)
    lost = view.connections["is_lost"] & (view.connections["closed_s"] >= view.hold.start_s)
    behind = ""
    if any(e.id == "due_rate" for e in full):
        due_per_s = sum(w.due_per_s for w in work)
        behind = f" It falls behind: {sent_per_s:,.0f} of the {due_per_s:,.0f} due a second go out."
    return Finding(
        cause=CAUSE.id,
        severity="warning",
        side="server",
        subject=subject,
        first_s=_began_s(signs, worst.pid),
        last_s=view.hold.end_s,
        evidence=evidence,
        explanation=(
            f"With a ping to every connection each {interval_s:g} s, {name} handles "
            f"{worst.messages_per_s:,.0f} messages a second at {worst.cpu_us:.1f} us of CPU each: "
            f"{worst.cpu_pct:.0f} % of a core for keep-alives alone.{behind} By the same cost the "
            f"ceiling is about {ceiling:,.0f} connections at {interval_s:g} s and "
            f"{ceiling * factor:,.0f} at {longer_s:g} s."
        ),
        fix=(
            Fix(
                f"profile-run --keepalive {longer_s:g}",
                f"CPU of this worker falls to about {worst.wanted_cpu_pct / factor:.0f} %; the "
                f"ceiling moves from about {ceiling:,.0f} to {ceiling * factor:,.0f} connections",
            ),
        ),
        at_connections=view.open_count_at(view.hold.start_s),
        confidence=confidence,
        missing=missing,
        sentence=f"{capitalised(name)} spends {worst.cpu_pct:.0f} % of a core on "
        f"{worst.messages_per_s:,.0f} keep-alive messages a second",
        explained_count=int(lost.sum()),
    )


def storming_pids(signs: Signs) -> set[int]:
    """The worker of a server that is only watched whose core goes to keep-alives."""
    watched = watched_keepalives(signs)
    return {watched.pid} if watched else set()


def _of_watched(signs: Signs, watched: WatchedKeepalives) -> Finding:
    view = signs.view
    subject = view.subject(watched.pid)
    name = capitalised(str(subject))
    since_s, longer_s = watched.since_s, _longer(watched.interval_s)
    factor = longer_s / watched.interval_s
    _, missing = signs.trust("process_samples", "live_samples")
    evidence = (
        Evidence("process_cpu", watched.cpu_pct, "process_samples", since_s),
        Evidence("span_length", watched.until_s - since_s, "process_samples", since_s),
        Evidence("message_rate", watched.messages_per_s, "socket_traffic", since_s),
        Evidence("mean_sent_size", watched.tx_bytes, "socket_traffic"),
        Evidence("mean_received_size", watched.rx_bytes, "socket_traffic"),
        Evidence("cpu_per_message", watched.cpu_us, "process_samples"),
        Evidence("connections_open", watched.socket_count, "socket_traffic"),
        Evidence("message_interval", watched.interval_s, "socket_traffic"),
    )
    return Finding(
        cause=CAUSE.id,
        severity="warning",
        side="server",
        subject=subject,
        first_s=since_s,
        last_s=watched.until_s,
        evidence=evidence,
        explanation=(
            f"{name} was at {watched.cpu_pct:.0f} % of a core for {watched.until_s - since_s:.1f} "
            f"s while the server's {watched.socket_count:,} connections exchanged "
            f"{watched.messages_per_s:,.0f} messages a second, at {watched.cpu_us:.0f} us of CPU "
            f"each. They are as small as pings and pongs ({watched.tx_bytes:.0f} bytes sent, "
            f"{watched.rx_bytes:.0f} received), each is answered, and hardly a connection was new: "
            f"a keep-alive to each connection every {watched.interval_s:.2g} s."
        ),
        fix=(
            Fix(
                f"raise the interval of the server's pings (of WebSocket, or of its protocol) from "
                f"{watched.interval_s:.2g} to {longer_s:g} s",
                f"CPU of this worker falls from {watched.cpu_pct:.0f} % to about "
                f"{watched.cpu_pct / factor:.0f} %",
            ),
        ),
        at_connections=view.open_count_at(since_s),
        confidence="medium",
        missing=(*missing, "what the messages say: they are known by their size alone"),
        sentence=f"{name} spends {watched.cpu_pct:.0f} % of a core on "
        f"{watched.messages_per_s:,.0f} messages a second that are as small as keep-alives",
    )


def _longer(interval_s: float) -> float:
    """The next usual interval that is at least five times as long."""
    usual = [0.5, 1, 2, 5, 10, 25, 60, 120, 300]
    return next((u for u in usual if u >= 5 * interval_s), 5 * interval_s)


def _began_s(signs: Signs, pid: int) -> float:
    """The first moment in the hold phase at which the worker had sent pings."""
    view = signs.view
    live = view.frames["live_samples"]
    mine = live[(live["pid"] == pid) & (live["tx_pings_total"] + live["rx_pings_total"] > 0)]
    at_s = view.seconds_of(mine["at_ns"])
    later = at_s[at_s >= view.hold.start_s]
    began = float(later[0]) if len(later) else view.hold.start_s
    return float(np.clip(began, view.hold.start_s, view.hold.end_s))
