"""``port-search-cost``: connect slows as the port pool of one destination fills.

connect tries the ports of one parity first (net/ipv4/inet_hashtables.c, __inet_hash_connect), so
that a pool over half full makes it walk a whole half of the range before it finds one.
Proof: the same call, in the same run, against the same server, costs several times as much once
its pool is over half full, and the clients' kernel stacks are in the search. Without stacks, that
the clients' CPU per connect grows as much: the time is spent inside connect(2), on their side.
Told apart from a slow server, where the time passes between SYN and SYN-ACK and costs the client
no CPU; and from a host that is slow in general, which is so whatever the pool.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.causes import Cause
from analysis.evidence import Evidence, Finding, Fix, Subject, capitalised
from analysis.frames.ports import by_source
from analysis.frames.run_view import RunView
from analysis.signs.signs import Signs

CAUSE = Cause(
    id="port-search-cost",
    line="connect slows as the port pool fills",
    fills_a_core=True,
)

_SEARCH = "__inet_hash_connect|__inet6?_check_established|inet_csk_find_open_port"
"""Functions of the search, at connect and (``--bind early``) at bind."""

_LOW_SHARE, _HIGH_SHARE = 0.45, 0.55
"""Both parities have room below the one; one parity is full above the other, skew included."""

_LOW, _HIGH = "filled to 45 %", "over 55 % full"
"""Qualifiers of what was measured of a pool in each of the two."""

_LEAST_CONNECTS = 100
_LEAST_RATIO = 3.0
"""Preemption on crowded cores moves a median by less; a full parity here by a factor of 30."""
_LEAST_ADDED_US = 100.0
"""Below that a range is so small that its search is no matter."""
_LEAST_LOST_S = 0.5
"""What all of it cost the clients: below, the search of a small range between other work."""
_LEAST_STACK_PCT = 25.0
_LEAST_CPU_RATIO = 2.0
_LEAST_SAMPLES = 10
_SURE_SAMPLES = 20
_LEAST_CPU_SPAN_S = 1.0
"""CPU comes twice a second: over less, two samples say nothing about the span between them."""
_BEST_GROUP_COUNT = 10_000


@dataclass(frozen=True, slots=True)
class _Part:
    """Connects of one pool while its use was in one range: when, how many, how long, how dear."""

    from_s: float
    until_s: float
    connects: int
    median_us: float
    cpu_us: float | None
    search_pct: float | None
    samples: int


def find(signs: Signs) -> list[Finding]:
    """One finding about the fullest pool, or none."""
    view = signs.view
    is_early = view.plan.get("bind") == "early"
    pools = by_source(signs.ports) if is_early and len(signs.ports) else signs.ports
    pools = pools[pools["used_pct"] > 100 * _HIGH_SHARE]
    if pools.empty:
        return []
    pool = pools.to_dict("records")[0]
    begun = _begun(view, pool, is_early=is_early)
    use = np.arange(len(begun)) / int(pool["range_count"])
    low = _part(view, begun[use < _LOW_SHARE])
    high = _part(view, begun[use > _HIGH_SHARE])
    if low is None or high is None or not _is_search(low, high):
        return []
    return [_finding(signs, pool, low, high, half_s=float(begun["start_s"][use >= 0.5].iloc[0]))]


def _begun(view: RunView, pool: Mapping[Hashable, Any], *, is_early: bool) -> pd.DataFrame:
    """Connections of the pool in the order in which they took their port, with begin_us."""
    connections = view.connections
    mine = connections["source_address"] == pool["source_address"]
    if not is_early:
        mine &= connections["destination_port"] == pool["destination_port"]
    # On loopback connect(2) returns when the handshake is done: nearly all of it is that call.
    begin_us = (connections["connected_s"] - connections["start_s"]) * 1e6
    begun: pd.DataFrame = connections.assign(begin_us=begin_us)[mine & begin_us.notna()]
    return begun.sort_values("start_s", kind="stable", ignore_index=True)


def _part(view: RunView, begun: pd.DataFrame) -> _Part | None:
    if len(begun) < _LEAST_CONNECTS:
        return None
    from_s, until_s = float(begun["start_s"].iloc[0]), float(begun["start_s"].iloc[-1])
    clients = view.who[view.who["role"] == "client"]["pid"]
    search_pct, samples = _search_pct(view, clients, from_s, until_s)
    return _Part(
        from_s=from_s,
        until_s=until_s,
        connects=len(begun),
        median_us=float(begun["begin_us"].median()),
        cpu_us=_cpu_us(view, clients, from_s, until_s),
        search_pct=search_pct,
        samples=samples,
    )


def _search_pct(
    view: RunView, clients: pd.Series[int], from_s: float, until_s: float
) -> tuple[float | None, int]:
    """Share of the clients' CPU samples that were in the search, and how many there were."""
    stacks = view.frames["cpu_stacks"]
    at_s = view.seconds_of(stacks["at_ns"])
    inside = stacks[
        (at_s > from_s) & (at_s <= max(until_s, from_s + 1.0)) & stacks["pid"].isin(clients)
    ]
    samples = int(inside["sample_count"].sum())
    if not samples:
        return None, 0
    in_search = inside["kernel_stack"].str.contains(_SEARCH, regex=True)
    return 100 * float(inside["sample_count"][in_search].sum()) / samples, samples


def _cpu_us(view: RunView, clients: pd.Series[int], from_s: float, until_s: float) -> float | None:
    """CPU of all clients for each connect of the run in a span, from their totals around it."""
    samples = view.frames["process_samples"]
    connects = int(view.connections["start_s"].between(from_s, until_s).sum())
    spent_ns = 0.0
    known = 0
    for _, part in samples[samples["pid"].isin(clients)].groupby("pid", sort=False):
        if len(part) < 2:
            continue
        at_s = view.seconds_of(part["at_ns"])
        total = (part["cpu_user_ns_total"] + part["cpu_system_ns_total"]).to_numpy()
        spent_ns += float(np.interp(until_s, at_s, total) - np.interp(from_s, at_s, total))
        known += 1
    return spent_ns / 1e3 / connects if known and connects else None


def _is_search(low: _Part, high: _Part) -> bool:
    added_us = high.median_us - low.median_us
    if high.median_us < _LEAST_RATIO * low.median_us or added_us < _LEAST_ADDED_US:
        return False
    if added_us * high.connects / 1e6 < _LEAST_LOST_S:
        return False
    if high.search_pct is not None:  # stacks that do not show it outweigh what CPU may suggest
        return high.samples >= _LEAST_SAMPLES and high.search_pct >= _LEAST_STACK_PCT
    if high.until_s - high.from_s < _LEAST_CPU_SPAN_S:
        return False
    if high.cpu_us is None or low.cpu_us is None:
        return False
    return high.cpu_us >= _LEAST_CPU_RATIO * low.cpu_us and high.cpu_us >= added_us / 2


def _finding(
    signs: Signs, pool: Mapping[Hashable, Any], low: _Part, high: _Part, half_s: float
) -> Finding:
    view = signs.view
    used, size = int(pool["ports_used_count"]), int(pool["range_count"])
    source, port = str(pool["source_address"]), int(pool["destination_port"])
    added_us = high.median_us - low.median_us
    lost_s = added_us * high.connects / 1e6
    parts = ((_LOW, low), (_HIGH, high))
    evidence = [
        Evidence("connect_median", low.median_us, "connections", of=_LOW),
        Evidence("connect_median", high.median_us, "connections", high.from_s, of=_HIGH),
        Evidence("ports_used", used, str(pool["source"]), of=source),
        Evidence("port_range_size", size, str(pool["source"])),
        Evidence("search_time_lost", lost_s, "connections"),
    ]
    for pool_use, part in parts:
        if part.cpu_us is not None:
            evidence.append(
                Evidence(
                    "cpu_per_connect", part.cpu_us, "process_samples", part.from_s, of=pool_use
                )
            )
        if part.search_pct is not None:
            evidence.append(
                Evidence(
                    "port_search_samples", part.search_pct, "cpu_stacks", part.from_s, of=pool_use
                )
            )
    confidence, missing = signs.trust("cpu_stacks", "process_samples")
    if high.samples < _SURE_SAMPLES and not missing:
        confidence = "medium"
        missing = (f"only {high.samples} CPU samples of clients fell into that time",)
    subject = _busiest_client(view, pool)
    name = str(subject)
    groups = max(1, len(signs.ports))
    total = max(1, int(signs.ports["ports_used_count"].sum()))
    best = min(_BEST_GROUP_COUNT, size // 2)
    addresses = max(groups + 1, -(-total // best))
    return Finding(
        cause=CAUSE.id,
        severity="warning",
        side="client",
        subject=subject,
        first_s=half_s,
        last_s=high.until_s,
        evidence=tuple(evidence),
        explanation=(
            f"With over half of the {size:,} local ports from {source} to port {port} taken, "
            f"connect walks a whole half of the range before it finds a free one: "
            f"{high.median_us:,.0f} us a connect instead of {low.median_us:,.0f}, on the client's "
            f"CPU and inside connect(2). That cost the clients {lost_s:.1f} s. The server is not "
            "involved."
        ),
        fix=(
            Fix(
                f"profile-run --source-addresses {addresses}",
                f"{-(-total // addresses):,} ports a group instead of {used:,}: connect falls from "
                f"{high.median_us:,.0f} to about {low.median_us:,.0f} us, and the clients get "
                f"{lost_s:.1f} s back",
            ),
        ),
        at_connections=view.open_count_at(half_s),
        confidence=confidence,
        missing=missing,
        sentence=f"{capitalised(name)} searched {high.median_us:,.0f} us for each local "
        f"port instead of {low.median_us:,.0f}, with {used:,} of {size:,} in use from {source}",
    )


def _busiest_client(view: RunView, pool: Mapping[Hashable, Any]) -> Subject:
    connections = view.connections
    mine = connections[connections["source_address"] == pool["source_address"]]
    client = int(mine["client"].mode().iloc[0])
    return view.subject(view.pid_of("client", client)) if len(mine) else Subject("client")
