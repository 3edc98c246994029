"""``client-is-the-limit``: one client process, not the server, is what the run waits for.

Proof: attempts of that client that were never made, waited in vain, or came much later than those
of its siblings, while its event loop never waited for events (it is at a full core, or blocked off
the CPU) and the server's workers were idle.
Told apart from a client at a limit with a name (descriptors, ports, addresses): those return an
errno, and their own cause is named, with side client. From ``port-search-cost``, which slows
whichever client is behind when the pool is half full. From a slow server: there the workers are
busy, or the clients' loops wait. From ``host-cpu-saturated``: there is a core free for it.

Where the target is reached all the same, only late, the verdict stays ``reached`` and this is a
warning: the server was measured by a generator that was slower than it.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.causes import Cause
from analysis.evidence import Evidence, Finding, Fix, capitalised
from analysis.findings.ports import port_search_cost
from analysis.frames.cpu import wants_full_core
from analysis.frames.run_view import RunView
from analysis.signs.signs import (
    EADDRINUSE,
    EADDRNOTAVAIL,
    EMFILE,
    ENFILE,
    ENOBUFS,
    ETIMEDOUT,
    Signs,
)
from analysis.stats.thresholds import FULL_CORE_PCT

CAUSE = Cause(
    id="client-is-the-limit",
    line="the load generator, not the server, is out",
    decide="profile-run with twice the --clients: what is left is the server",
)

_NAMED_ERRNOS = (EMFILE, ENFILE, EADDRINUSE, EADDRNOTAVAIL, ENOBUFS, errno.ENOMEM)
"""Of these each has a cause of its own."""

_LEAST_LATE_S = 1.0
_LATE_RATIO = 2.0
"""Clients of a healthy run on crowded cores finish within 1.5 times of each other."""
_BLOCKED_CPU_PCT = 50.0
_IDLE_SERVER_PCT = 50.0
_FULL_HOST_PCT, _WAITS_PCT = 90.0, 20.0
_WANTS_NOTHING_PCT = 10.0
_LEAST_CROWDED_PCT = 20.0


@dataclass(frozen=True, slots=True)
class _Client:
    """One client: how far it came and when it was done; ``unmet`` is what it owes the target."""

    pid: int
    number: int
    attempts: int
    unmet: int
    done_s: float
    attempts_per_s: float


def find(signs: Signs) -> list[Finding]:
    """One finding about the client that is furthest behind, or none."""
    clients = _clients(signs)
    if any(not c.unmet for c in clients) and port_search_cost.find(signs):
        clients = [c for c in clients if c.unmet]
    late = sorted(clients, key=lambda c: (-c.unmet, -c.done_s, c.number))
    for client in late:
        siblings = [c for c in clients if c.pid != client.pid]
        if _is_behind(client, siblings) and not _is_named(signs, client.pid):
            found = _finding(signs, client, siblings)
            if found is not None:
                return [found]
    return []


def _clients(signs: Signs) -> list[_Client]:
    view = signs.view
    shares = view.plan.get("client_shares") or []
    connections = view.connections
    timed_out = connections["is_failed"] & (
        (connections["close_kind"] == "timeout") | (connections["errno"] == ETIMEDOUT)
    )
    owed = connections["is_waiting"] | timed_out
    ended = connections["established_s"].fillna(connections["closed_s"])
    found = []
    rows = view.who[view.who["role"] == "client"]
    for pid, number in zip(rows["pid"], rows["worker"], strict=True):
        mine = connections["client"] == number
        attempts = int(mine.sum())
        share = int(shares[number]) if 0 <= number < len(shares) else attempts
        unmet = max(0, share - attempts) + int(owed[mine].sum())
        ends = ended[mine].dropna()
        done_s = view.stop_s if unmet else float(ends.max()) if len(ends) else 0.0
        begun_s = connections["start_s"][mine]
        span_s = max(1e-3, float(begun_s.max()) - view.ramp.start_s) if attempts else 1e-3
        if share > attempts:
            span_s = max(span_s, view.ramp.duration_s)
        found.append(_Client(int(pid), int(number), attempts, unmet, done_s, attempts / span_s))
    return found


def _is_behind(client: _Client, siblings: list[_Client]) -> bool:
    """It owes connections that its siblings do not, or was done much later than they."""
    if client.unmet:
        return not any(2 * c.unmet >= client.unmet for c in siblings)
    if not siblings:
        return False
    theirs_s = float(np.median([c.done_s for c in siblings]))
    late_s = client.done_s - theirs_s
    return late_s >= _LEAST_LATE_S and client.done_s >= _LATE_RATIO * theirs_s


def _is_named(signs: Signs, pid: int) -> bool:
    """It met a limit that has a name."""
    rows = signs.errors
    hit = rows[(rows["pid"] == pid) & rows["errno"].isin(_NAMED_ERRNOS)]
    return bool((~(hit["first_s"] >= signs.view.stop_s)).any())


def _busy_loop(view: RunView, pid: int, from_s: float, until_s: float) -> tuple[float, float]:
    """Share of the span in which the event loop was in a turn, and its longest turn in seconds."""
    live = view.frames["live_samples"]
    at_s = view.seconds_of(live["at_ns"])
    mine = live[(live["pid"] == pid) & (at_s >= from_s - 0.3) & (at_s <= until_s + 0.3)]
    if len(mine) < 2:
        return 0.0, 0.0
    # the turn in progress counts as busy from its beginning; it is added when it ends
    busy_ns = (mine["loop_busy_ns_total"] + mine["loop_lag_ns"]).to_numpy(dtype=np.float64)
    span_ns = float(mine["at_ns"].iloc[-1] - mine["at_ns"].iloc[0])
    share_pct = 100 * (busy_ns[-1] - busy_ns[0]) / span_ns if span_ns > 0 else 0.0
    longest = mine[["loop_lag_ns", "loop_max_lag_ns"]].to_numpy().max()
    return float(np.clip(share_pct, 0.0, 100.0)), float(longest) / 1e9


def _servers_pct(signs: Signs, from_s: float, until_s: float) -> pd.Series[float]:
    """Mean CPU of every server process in a span."""
    cpu = signs.worker_cpu
    inside = (cpu["at_s"] > from_s) & (cpu["at_s"] <= until_s + 0.5) & (cpu["side"] == "server")
    means: pd.Series[float] = cpu[inside].groupby("pid")["cpu_pct"].mean()
    return means


def _finding(signs: Signs, client: _Client, siblings: list[_Client]) -> Finding | None:
    view = signs.view
    theirs_s = float(np.median([c.done_s for c in siblings])) if siblings else view.ramp.start_s
    from_s = min(theirs_s, client.done_s)
    if from_s >= view.stop_s - 0.5:  # they are late as well: look at the ramp as a whole
        from_s = view.ramp.start_s
    until_s = client.done_s
    busy_pct, longest_s = _busy_loop(view, client.pid, from_s, until_s)
    cpu_pct = signs.cpu_pct_of(client.pid, from_s, until_s)
    servers = _servers_pct(signs, from_s, until_s)
    if cpu_pct is None or servers.empty or busy_pct < FULL_CORE_PCT:
        return None
    if float(servers.max()) > _IDLE_SERVER_PCT:
        return None
    wait_pct = signs.wait_pct_of(client.pid, from_s, until_s)
    is_hot = bool(wants_full_core(cpu_pct, wait_pct or 0.0))
    host_pct = signs.host_busy_pct(from_s, until_s)
    if wait_pct is not None:  # whoever fills the host: it hardly waited
        has_core = wait_pct < _WAITS_PCT
    else:
        has_core = host_pct is None or host_pct < _FULL_HOST_PCT
    is_blocked = cpu_pct <= _BLOCKED_CPU_PCT and has_core
    # On a full host it gets what is left. That it is this client and not the host is said by its
    # siblings, which were done, and by workers that want next to nothing of the same cores.
    is_starved = not has_core and not is_hot and cpu_pct >= _LEAST_CROWDED_PCT
    is_crowded = is_starved and bool(siblings) and float(servers.max()) <= _WANTS_NOTHING_PCT
    if not (is_hot or is_blocked or is_crowded):
        return None
    subject = view.subject(client.pid)
    idle_pct = 100 - float(servers.mean())
    own_rate = client.attempts_per_s
    rates = [c.attempts_per_s for c in siblings]
    evidence = [
        Evidence("process_cpu", cpu_pct, "process_samples", from_s),
        Evidence("loop_busy", busy_pct, "live_samples", from_s),
        Evidence("longest_loop_turn", 1e3 * longest_s, "live_samples"),
        Evidence("attempt_rate", own_rate, "connections"),
        Evidence("servers_idle", idle_pct, "process_samples", from_s),
        Evidence("unmet_attempts", client.unmet, "connections"),
    ]
    if rates:
        evidence.append(
            Evidence("siblings_attempt_rate", float(np.median(rates)), "connections")
        )  # fmt: skip
        evidence.append(Evidence("later_than_siblings", until_s - theirs_s, "connections"))
    confidence, missing = signs.trust("process_samples", "live_samples")
    if is_crowded:
        confidence = "medium"
        missing += (
            "the host's cores were full as well: run-queue latency (--probes full) says how long "
            "this client waited for one",
        )
    name = str(subject)
    name = capitalised(name)
    state = "blocked off the CPU" if is_blocked else f"at {cpu_pct:.0f} % of a core"
    if client.unmet:
        harm = f"{client.unmet:,} of its connections were never made"
    else:
        harm = f"its connections came {until_s - theirs_s:.1f} s after those of its siblings"
    return Finding(
        cause=CAUSE.id,
        severity="warning",
        side="client",
        subject=subject,
        first_s=from_s,
        last_s=max(from_s, until_s),
        evidence=tuple(evidence),
        explanation=(
            f"{name} was {state}: its event loop was in a turn {busy_pct:.0f} % of the time, the "
            f"longest for {longest_s:.1f} s, and {harm}. Meanwhile the server's workers were idle "
            f"{idle_pct:.0f} % of the time: this run measured its load generator, not the server."
        ),
        fix=_fixes(client, rates, len(siblings) + 1, is_hot=not is_blocked),
        at_connections=view.open_count_at(from_s),
        confidence=confidence,
        missing=missing,
        sentence=f"{name} was {state} while the server's workers were idle {idle_pct:.0f} % of "
        f"the time: {harm}",
        explained_count=client.unmet,
    )


def _fixes(client: _Client, rates: list[float], count: int, *, is_hot: bool) -> tuple[Fix, ...]:
    share = client.attempts + client.unmet
    look = "py-spy top --pid PID" if is_hot else "cat /proc/PID/wchan /proc/PID/stack"
    usual_per_s = float(np.median(rates)) if rates else max(1.0, 2 * client.attempts_per_s)
    at_their_rate_s = share / max(1.0, usual_per_s)
    return (
        Fix(
            f"{look}  # of client {client.number} while it runs: what keeps it",
            f"at {usual_per_s:,.0f} attempts a second its {share:,} connections take "
            f"{at_their_rate_s:.2g} s",
        ),
        Fix(
            f"profile-run --clients {2 * count}",
            f"half of the connections ({-(-share // 2):,}) wait for this process",
        ),
    )
