"""``keepalive-storm``: pings to all connections fill a core.

Proof: messages per second times CPU per message of the worker, in the hold phase, where nothing
else happens; and that the core (or the host) is full while they go out, or that pings fall behind
their interval. Ceiling by the same model: connections held over CPU share, in proportion to the
interval.
Told apart from ``hot-worker-code`` and ``accept-spin``: those burn without messages.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis.cpu import cpu_between
from analysis.evidence import Evidence, Finding, Fix, Subject, side_of_role
from analysis.signs import Signs

_FULL_PCT = 85.0
_LEAST_DUTY = 0.25
_BEHIND = 0.8
_FLEET_SHARE = 0.6


def find(signs: Signs) -> list[Finding]:
    """One finding about the worker that spends most on keep-alives, or none."""
    work = _ping_work(signs)
    interval_s = _interval_s(signs)
    if work.empty or not interval_s:
        return []
    row = work.sort_values("cpu_pct", ascending=False, kind="stable").iloc[0]
    signs_of_full = _fullness(signs, work, row, interval_s)
    if not signs_of_full:
        return []
    return [_finding(signs, work, row, interval_s, signs_of_full)]


def _interval_s(signs: Signs) -> float:
    return float(signs.view.settings.get("keepalive_s") or 0)


def _ping_work(signs: Signs) -> pd.DataFrame:
    """Pings and CPU of each server worker in the hold phase.

    Returns:
        pid, cpu_pct, pings_per_s (sent), messages_per_s (all kinds, both ways), cpu_us (CPU per
        message in microseconds), open_count. Only workers whose messages are mostly pings and
        pongs.
    """
    view = signs.view
    if view.hold.duration_s < 1:
        return pd.DataFrame()
    live = view.frames["live_samples"]
    at_s = view.seconds_of(live["at_ns"])
    inside = live[
        (live["role"] == "server") & (at_s >= view.hold.start_s) & (at_s <= view.hold.end_s)
    ]
    mean = cpu_between(view, view.hold).set_index("pid")["cpu_pct"]
    rows = []
    for pid, part in inside.groupby("pid", sort=True):
        if len(part) < 2 or pid not in mean.index:
            continue
        first, last = part.iloc[0], part.iloc[-1]
        elapsed_s = float(last["at_ns"] - first["at_ns"]) / 1e9

        def grown(*names: str, first: pd.Series[int] = first, last: pd.Series[int] = last) -> float:
            return float(sum(int(last[name]) - int(first[name]) for name in names))

        sent = grown("tx_pings_total")
        kept = sent + grown("rx_pings_total", "rx_pongs_total")
        data = grown("rx_messages_total", "tx_messages_total")
        if kept < 100 or data > kept:
            continue
        per_s = (kept + data) / elapsed_s
        rows.append(
            {
                "pid": int(str(pid)),
                "cpu_pct": float(mean.loc[pid]),
                "pings_per_s": sent / elapsed_s,
                "messages_per_s": per_s,
                "cpu_us": float(mean.loc[pid]) * 1e4 / per_s,
                "open_count": int(last["open_count"]),
            }
        )
    return pd.DataFrame(rows)


def explains_cpu_of(signs: Signs, pid: int) -> bool:
    """The worker handles so many pings that they account for its CPU (under 1 ms each)."""
    work = _ping_work(signs)
    mine = work[work["pid"] == pid] if len(work) else work
    return len(mine) > 0 and float(mine["cpu_us"].iloc[0]) < 1000


def _fullness(
    signs: Signs, work: pd.DataFrame, row: pd.Series[float], interval_s: float
) -> list[Evidence]:
    """Evidence that a core, or the host, is full of it; empty when it is not.

    A worker that burns without messages (over 1 ms of CPU each) is somebody else's finding.
    """
    view = signs.view
    found = []
    if float(row["cpu_us"]) >= 1000:
        return []
    cpu = signs.worker_cpu
    in_hold = (cpu["at_s"] > view.hold.start_s + 0.5) & (cpu["at_s"] <= view.hold.end_s)
    mine = cpu[in_hold & (cpu["pid"] == row["pid"])]["cpu_pct"]
    duty = float((mine >= _FULL_PCT).mean()) if len(mine) else 0.0
    if duty >= _LEAST_DUTY:
        found.append(
            Evidence("time that its core is full", 100 * duty, "pct of hold", "process_samples")
        )
    due_per_s = float(work["open_count"].sum()) / interval_s
    sent_per_s = float(work["pings_per_s"].sum())
    is_long = view.hold.duration_s >= 3 * interval_s
    if is_long and sent_per_s < _BEHIND * due_per_s:
        found.append(Evidence("pings due, all workers", due_per_s, "per_s", "live_samples"))
        found.append(Evidence("pings sent, all workers", sent_per_s, "per_s", "live_samples"))
    host = signs.host_cpu
    all_cores = host[
        (host["core"] == -1) & host["at_s"].between(view.hold.start_s + 0.5, view.hold.end_s)
    ]
    host_duty = float((all_cores["busy_pct"] >= 90).mean()) if len(all_cores) else 0.0
    cores = int(view.host.get("cpu_count") or 1)
    if host_duty >= _LEAST_DUTY and _fleet_pct(signs) >= 100 * cores * _FLEET_SHARE * host_duty:
        found.append(
            Evidence("time that no core is free", 100 * host_duty, "pct of hold", "host_cpu")
        )
    return found


def _fleet_pct(signs: Signs) -> float:
    mean = cpu_between(signs.view, signs.view.hold)
    fleet = mean[mean["role"].isin(["server", "client", "acceptor"])]
    return float(fleet["cpu_pct"].sum())


def _finding(
    signs: Signs,
    work: pd.DataFrame,
    row: pd.Series[float],
    interval_s: float,
    full: list[Evidence],
) -> Finding:
    view = signs.view
    pid = int(row["pid"])
    subject = view.subject(pid) or Subject("server", pid)
    cpu_pct, per_s, cpu_us = (float(row[k]) for k in ("cpu_pct", "messages_per_s", "cpu_us"))
    held = max(1, view.held_count)
    ceiling = held * 100 / max(cpu_pct, 1.0)
    if any(e.table == "host_cpu" for e in full):
        cores = int(view.host.get("cpu_count") or 1)
        ceiling = min(ceiling, held * 100 * cores / max(_fleet_pct(signs), 1.0))
    longer_s = _longer(interval_s)
    factor = longer_s / interval_s
    evidence = (
        Evidence("messages of this worker (pings and pongs)", per_s, "per_s", "live_samples"),
        Evidence("CPU per message", cpu_us, "us", "process_samples"),
        Evidence("CPU of this worker in the hold phase", cpu_pct, "pct", "process_samples"),
        Evidence("keep-alive interval", interval_s, "s", "manifest"),
        Evidence(
            "pings sent, all workers", float(work["pings_per_s"].sum()), "per_s", "live_samples"
        ),
        *full,
    )
    confidence, missing = signs.trust("live_samples", "process_samples")
    name = str(subject)
    lost = int(
        (view.connections["is_lost"] & (view.connections["closed_s"] >= view.hold.start_s)).sum()
    )
    return Finding(
        cause="keepalive-storm",
        severity="warning",
        side=side_of_role(subject.role or "server"),
        subject=subject,
        first_s=_began_s(signs, pid),
        last_s=view.hold.end_s,
        evidence=evidence,
        explanation=(
            f"With a ping to every connection each {interval_s:g} s, {name} handles {per_s:,.0f} "
            f"messages a second at {cpu_us:.0f} us of CPU each: {cpu_pct:.0f} % of a core for "
            f"keep-alives alone. By the same cost the ceiling is about {ceiling:,.0f} connections "
            f"at {interval_s:g} s and {ceiling * factor:,.0f} at {longer_s:g} s."
        ),
        fix=(
            Fix(
                f"profile-run --keepalive {longer_s:g}",
                f"CPU of this worker falls from {cpu_pct:.0f} % to about {cpu_pct / factor:.0f} %; "
                f"the ceiling moves from about {ceiling:,.0f} to {ceiling * factor:,.0f} "
                "connections",
            ),
        ),
        at_connections=view.open_count_at(view.hold.start_s),
        confidence=confidence,
        missing=missing,
        sentence=f"{name[:1].upper() + name[1:]} spends {cpu_pct:.0f} % of a core on "
        f"{per_s:,.0f} keep-alive messages a second",
        explained_count=lost,
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
