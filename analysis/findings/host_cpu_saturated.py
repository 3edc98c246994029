"""``host-cpu-saturated``: no core is free, and something was harmed by it.

A ramp on loopback fills every core by design, so a full host alone is no finding.
Proof: three things in one span, all cores busy, tasks that wait for one (CPU pressure, run-queue
latency), and harm: messages or pings that fall behind their rate while connections are held, an
event loop that stands still in most workers, or attempts that timed out.
Told apart from ``hot-worker-code``, ``accept-spin`` and ``keepalive-storm``: those name one process
or one kind of work that fills the cores, and are named instead while the fleet itself takes the
CPU. Where processes beside the fleet take it, they are the cause whatever the fleet does.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.cpu import cpu_between, df_host_pressure
from analysis.evidence import Evidence, Finding, Fix, Subject
from analysis.findings import accept_spin, fd_limit_process, hot_worker_code, keepalive_storm
from analysis.hot_worker import runs_of
from analysis.keepalive import ping_work
from analysis.run_view import Phase
from analysis.signs import ETIMEDOUT, Signs

_BUSY_PCT = 95.0
"""The mean of all cores: clock ticks of 10 ms hide the last few per cent."""
_COVERED = 0.6
_LEAST_S = 1.0
_BEHIND = 0.8
_STALLED_LOOP_S = 0.5
_LEAST_PRESSURE_PCT = 30.0
"""Cores that are just full, with nobody waiting, show next to no pressure."""
_OTHERS_SHARE = 0.25
_WATCHED_PRESSURE_PCT = 60.0
_WATCHED_LEAST_S = 3.0
_WATCHED_LEAST_SHARE = 0.1
"""A server that wants a core gets its fair part of one, also where others fill all of them."""


@dataclass(frozen=True, slots=True)
class _Harm:
    """What was harmed while no core was free: when, in words, with numbers."""

    from_s: float
    until_s: float
    words: str
    evidence: tuple[Evidence, ...]
    explained_count: int = 0
    sustained_per_s: float = 0.0
    due_per_s: float = 0.0


@dataclass(frozen=True, slots=True)
class _Shares:
    """Who took the CPU, in per cent of one core; ``others`` are processes beside the run."""

    servers: float
    clients: float
    probes: float
    others: float
    capacity: float

    @property
    def fleet(self) -> float:
        return self.servers + self.clients

    def words(self) -> str:
        """For people, most first."""
        parts = {
            "the servers": self.servers,
            "the clients": self.clients,
            "connscope's own watching": self.probes,
            "processes beside the run": self.others,
        }
        ordered = sorted(parts.items(), key=lambda part: -part[1])
        ordered = [part for part in ordered if part[1] > 0]
        return ", ".join(f"{name} {100 * pct / self.capacity:.0f} %" for name, pct in ordered)


def find(signs: Signs) -> list[Finding]:
    """One finding about the host, or none."""
    if signs.view.is_attached:
        harms = [_waiting_tasks(signs)]
    else:
        harms = [_behind(signs), _stalled_loops(signs), _stalled_attempts(signs)]
    for harm in harms:
        if harm is None or not _is_full(signs, harm):
            continue
        shares = _shares(signs, harm)
        wanted = shares.servers >= _WATCHED_LEAST_SHARE * shares.capacity
        if signs.view.is_attached and not wanted:
            continue  # others wait for each other; an idle server waits for nobody
        foreign = shares.others >= _OTHERS_SHARE * shares.capacity
        if foreign or not _is_named_otherwise(signs):
            return [_finding(signs, harm, shares, foreign=foreign)]
    return []


def _is_full(signs: Signs, harm: _Harm) -> bool:
    busy_pct = _busy_pct(signs, harm)
    if busy_pct is None or busy_pct < _BUSY_PCT or harm.until_s - harm.from_s < _LEAST_S:
        return False
    pressure = _pressure_pct(signs, harm)
    return pressure is None or pressure >= _LEAST_PRESSURE_PCT


def _busy_pct(signs: Signs, harm: _Harm) -> float | None:
    """Busy share of all cores, None when the samples do not cover most of the span.

    From totals: on a full host the samples themselves come late, down to one in several seconds.
    """
    raw = signs.view.frames["host_cpu"]
    raw = raw[(raw["core"] == -1) == bool((raw["core"] == -1).any())]
    totals = raw.drop(columns="core").groupby("at_ns").sum()
    at_s = signs.view.seconds_of(totals.index)
    inside = np.flatnonzero((at_s >= harm.from_s - 0.6) & (at_s <= harm.until_s + 0.6))
    if len(inside) < 2:
        return None
    first, last = inside[0], inside[-1]
    if at_s[last] - at_s[first] < _COVERED * (harm.until_s - harm.from_s):
        return None
    grown = totals.iloc[last] - totals.iloc[first]
    free = grown["idle_ns_total"] + grown["steal_ns_total"]
    return float(100 * (1 - free / grown.sum())) if grown.sum() > 0 else None


def _pressure_pct(signs: Signs, harm: _Harm) -> float | None:
    """Share of the time that some task waited for a core; None when not recorded."""
    rows = df_host_pressure(signs.view)
    rows = rows[rows["resource"] == "cpu"]
    inside = rows["some_pct"][(rows["at_s"] > harm.from_s) & (rows["at_s"] <= harm.until_s + 1.0)]
    return float(inside.mean()) if len(inside) else None


def _shares(signs: Signs, harm: _Harm) -> _Shares:
    means = cpu_between(signs.view, Phase("harm", harm.from_s, harm.until_s))
    by_role = means.groupby("role")["cpu_pct"].sum()

    def taken(*roles: str) -> float:
        return float(sum(by_role.get(role, 0.0) for role in roles))

    capacity = 100.0 * signs.view.core_count
    busy_pct = _busy_pct(signs, harm) or 0.0
    known = taken("server", "acceptor", "client", "probe", "supervisor")
    return _Shares(
        servers=taken("server", "acceptor"),
        clients=taken("client"),
        probes=taken("probe", "supervisor"),
        others=max(0.0, capacity * busy_pct / 100 - known),
        capacity=capacity,
    )


def _is_named_otherwise(signs: Signs) -> bool:
    """A cause that says more than "full" explains who takes the CPU."""
    named = keepalive_storm.find(signs) or hot_worker_code.find(signs)
    return bool(named or accept_spin.spinning_pids(signs))


# -- harm -------------------------------------------------------------------------------------


def _behind(signs: Signs) -> _Harm | None:
    """Messages or pings that went out at less than their rate in the hold phase."""
    view = signs.view
    if view.hold.duration_s < _LEAST_S:
        return None
    live = view.frames["live_samples"]
    at_s = view.seconds_of(live["at_ns"])
    inside = live[(at_s >= view.hold.start_s) & (at_s <= view.hold.end_s)]
    due_per_s = float(view.settings.get("message_rate_per_s") or 0)
    if due_per_s and view.held_count:
        sent_per_s = _per_s(inside[inside["role"] == "client"], "tx_messages_total")
        if sent_per_s is not None and sent_per_s < _BEHIND * due_per_s:
            return _rate_harm(signs, "messages", sent_per_s, due_per_s)
    work = [w for w in ping_work(view) if w.is_long_enough]
    due_per_s = sum(w.due_per_s for w in work)
    sent_per_s = sum(w.pings_per_s for w in work)
    if work and sent_per_s < _BEHIND * due_per_s:
        return _rate_harm(signs, "pings", sent_per_s, due_per_s)
    return None


def _per_s(rows: pd.DataFrame, column: str) -> float | None:
    """Growth of a total over all processes, per second; None without two samples of one."""
    rates = [
        (part[column].iloc[-1] - part[column].iloc[0])
        / max(1e-9, float(part["at_ns"].iloc[-1] - part["at_ns"].iloc[0]) / 1e9)
        for _, part in rows.groupby("pid", sort=False)
        if len(part) >= 2
    ]
    return float(sum(rates)) if rates else None


def _rate_harm(signs: Signs, what: str, sent_per_s: float, due_per_s: float) -> _Harm:
    hold = signs.view.hold
    return _Harm(
        hold.start_s,
        hold.end_s,
        f"{sent_per_s:,.0f} of the {due_per_s:,.0f} {what} due a second went out",
        (
            Evidence(f"{what} sent", sent_per_s, "per_s", "live_samples", hold.start_s),
            Evidence(f"{what} due", due_per_s, "per_s", "manifest"),
        ),
        sustained_per_s=sent_per_s,
        due_per_s=due_per_s,
    )


def _stalled_loops(signs: Signs) -> _Harm | None:
    """Turns of half a second and more in most workers while connections are only held."""
    view = signs.view
    live = view.frames["live_samples"]
    at_s = view.seconds_of(live["at_ns"])
    # a sample's longest turn may reach back into the ramp
    from_s = view.hold.start_s + _STALLED_LOOP_S
    rows = live[(live["role"] == "server") & (at_s > from_s) & (at_s <= view.hold.end_s)]
    longest_s = rows.groupby("pid")["loop_max_lag_ns"].quantile(0.75) / 1e9
    if longest_s.empty or float(longest_s.median()) < _STALLED_LOOP_S:
        return None
    typical_s = float(longest_s.median())
    return _Harm(
        view.hold.start_s,
        view.hold.end_s,
        f"a turn of the workers' event loops lasted {typical_s:.1f} s",
        (Evidence("turn of a worker's event loop", typical_s, "s", "live_samples"),),
    )


def _stalled_attempts(signs: Signs) -> _Harm | None:
    """Attempts that waited in vain, unless full servers explain them."""
    view = signs.view
    if not signs.stalled_count or any(f.side == "server" for f in fd_limit_process.find(signs)):
        return None
    connections = view.connections
    late = connections["is_failed"] & (
        (connections["close_kind"] == "timeout") | (connections["errno"] == ETIMEDOUT)
    )
    ended = connections["closed_s"][late]
    until_s = view.stop_s if view.waiting_count or ended.empty else float(ended.max())
    return _Harm(
        signs.first_stalled_s,
        until_s,
        f"{signs.stalled_count:,} attempts waited in vain",
        (
            Evidence(
                "attempts that timed out or waited to the end",
                signs.stalled_count,
                "count",
                "connections",
                signs.first_stalled_s,
            ),
        ),
        explained_count=signs.stalled_count,
    )


def _waiting_tasks(signs: Signs) -> _Harm | None:
    """The longest time in which tasks waited for a core all along, of a run that only watched.

    What clients or event loops missed by it is not seen from outside: it takes longer to be told.
    """
    rows = df_host_pressure(signs.view)
    rows = rows[(rows["resource"] == "cpu") & (rows["at_s"] <= signs.view.stop_s)]
    at_s = rows["at_s"].to_numpy()
    best: tuple[float, float] | None = None
    for start, stop in runs_of(rows["some_pct"].to_numpy() >= _WATCHED_PRESSURE_PCT):
        since_s = float(at_s[start - 1]) if start else 0.0
        until_s = float(at_s[stop - 1])
        if until_s - since_s >= _WATCHED_LEAST_S and (
            best is None or until_s - since_s > best[1] - best[0]
        ):
            best = since_s, until_s
    if best is None:
        return None
    mean = float(rows["some_pct"][(at_s > best[0]) & (at_s <= best[1])].mean())
    evidence = Evidence("time that tasks waited for a core", mean, "pct", "host_pressure", best[0])
    words = f"tasks waited for a core {mean:.0f} % of {best[1] - best[0]:.1f} s"
    return _Harm(*best, words, (evidence,))


# -- what is said -----------------------------------------------------------------------------


def _waits_ms(signs: Signs, harm: _Harm) -> tuple[float, float] | None:
    """Median and 99th percentile of the run's waits for a core; None without the full set."""
    view = signs.view
    rows = view.frames["runq_latency"]
    at_s = view.seconds_of(rows["at_ns"])
    inside = rows[(at_s > harm.from_s) & (at_s <= harm.until_s + 1.0)]
    if inside.empty:
        return None
    counts = inside.groupby("bucket_low_ns")["event_count"].sum().sort_index()
    ranks = counts.cumsum() / counts.sum()
    buckets = counts.index.to_numpy(dtype=np.float64)
    last = len(buckets) - 1
    median, high = (
        float(buckets[min(last, int(np.searchsorted(ranks.to_numpy(), q)))]) for q in (0.5, 0.99)
    )
    return median / 1e6, high / 1e6


def _finding(signs: Signs, harm: _Harm, shares: _Shares, *, foreign: bool) -> Finding:
    view = signs.view
    busy_pct = _busy_pct(signs, harm) or 0.0
    evidence = [
        Evidence("all cores busy", busy_pct, "pct", "host_cpu", harm.from_s),
        *harm.evidence,
    ]
    for name, pct in (
        ("servers", shares.servers),
        ("clients", shares.clients),
        ("connscope's own watching", shares.probes),
    ):
        share_pct = 100 * pct / shares.capacity
        if name == "clients" and view.is_attached:
            continue
        evidence.append(Evidence(f"of all cores: {name}", share_pct, "pct", "process_samples"))
    others_pct = 100 * shares.others / shares.capacity
    evidence.append(Evidence("of all cores: processes beside the run", others_pct, "pct",
                             "host_cpu"))  # fmt: skip
    pressure = _pressure_pct(signs, harm)
    if pressure is not None:
        evidence.append(
            Evidence("time that some task waited for a core", pressure, "pct", "host_pressure")
        )
    waits = _waits_ms(signs, harm)
    if waits is not None:
        evidence.append(Evidence("wait for a core, median", waits[0], "ms", "runq_latency"))
        evidence.append(
            Evidence("wait for a core, 99th percentile", waits[1], "ms", "runq_latency")
        )
    confidence, missing = signs.trust("host_cpu", "process_samples")
    if pressure is None and waits is None:
        confidence = "medium"
        missing += ("nobody measured who waits for a core (host_pressure, --probes full)",)
    together = "the servers" if view.is_attached else "servers and clients together"
    most = "processes beside the run" if foreign else together
    most_pct = others_pct if foreign else 100 * shares.fleet / shares.capacity
    return Finding(
        cause="host-cpu-saturated",
        severity="warning",
        side="host",
        subject=Subject(),
        first_s=harm.from_s,
        last_s=harm.until_s,
        evidence=tuple(evidence),
        explanation=(
            f"All {view.core_count} cores were busy to {busy_pct:.0f} % for "
            f"{harm.until_s - harm.from_s:.1f} s while {harm.words}. Who took them: "
            f"{shares.words()}. The run had less than it wanted; nothing in it is at a limit of "
            "its own."
        ),
        fix=_fixes(harm, shares, foreign=foreign),
        at_connections=view.open_count_at(harm.from_s),
        confidence=confidence,
        missing=missing,
        sentence=f"The host had no core free: {most} took {most_pct:.0f} % of "
        f"{view.core_count} cores, and {harm.words}",
        explained_count=harm.explained_count,
    )


def _fixes(harm: _Harm, shares: _Shares, *, foreign: bool) -> tuple[Fix, ...]:
    fixes = []
    if foreign:
        fixes.append(
            Fix(
                "top -o %CPU  # and end, or move away, what does not belong to the run",
                f"gives the run up to {shares.others / 100:.1f} more cores; it had "
                f"{(shares.fleet + shares.probes) / 100:.1f}",
            )
        )
    if harm.sustained_per_s and harm.due_per_s and not foreign:
        cores = int(np.ceil(shares.capacity / 100 * harm.due_per_s / harm.sustained_per_s * 1.1))
        fixes.append(
            Fix(
                f"nproc  # choose a host where this prints {cores} or more",
                f"at the CPU that each cost here, {harm.due_per_s:,.0f} a second need {cores} "
                f"cores; {shares.capacity / 100:.0f} carried {harm.sustained_per_s:,.0f}",
            )
        )
    if not fixes:
        cores = int(2 * shares.capacity / 100)
        fixes.append(
            Fix(
                f"nproc  # choose a host where this prints {cores} or more",
                f"the clients alone took {100 * shares.clients / shares.capacity:.0f} % of the "
                f"{shares.capacity / 100:.0f} cores",
            )
        )
    return tuple(fixes)
