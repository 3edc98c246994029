"""``accept-imbalance``: one worker has far more connections than its share.

Proof: connections by worker. SO_REUSEPORT hashes, so each worker's number is binomial with mean
N/k: named is only what lies at least six standard deviations above (once in 10^9 for each worker,
whatever N and k) and is three times what the others have on average (less is certain, but no harm).
Handed-off connections are even to within one, so they are judged by the same rule.
Told apart from ``full-worker-on-shared-listener`` and ``fd-limit-process``: where a worker was
full, its number is its limit. A worker that died, stood still, let its accept queue overflow, lost
some to calls that fail, or was busy otherwise got less than its share for that reason, and the
others more: then that is the cause.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd

from analysis.causes import Cause
from analysis.evidence import Evidence, Finding, Fix, capitalised
from analysis.findings.cpu import worker_blocked
from analysis.findings.descriptors import accept_spin
from analysis.findings.memory import enobufs
from analysis.findings.queues import accept_queue_overflow
from analysis.frames.run_view import RunView
from analysis.server import fates
from analysis.signs.signs import Signs

CAUSE = Cause(
    id="accept-imbalance",
    line="connections are unevenly spread over the workers",
    is_harmless=True,
)

_LEAST_SIGMAS = 6.0
_LEAST_TIMES_OTHERS = 3.0
"""On a shared listener under full load the first of four workers has about twice what the others
have (measured: 1.9 times); with EPOLLEXCLUSIVE at a quiet rate it has everything."""
_LEAST_MEAN_COUNT = 20
"""Of fewer connections no spread is worth a word."""

_TAKEN = ("established_total",)

_HOW = {
    "shared": "all workers wait on one listener, and the first to wake up takes what waits",
    "shared-exclusive": "all workers wait on one listener, and the kernel wakes the same one first "
    "each time; the next is woken only while that one is busy",
    "reuseport": "each worker has a listener of its own, and the kernel hashes addresses and ports",
    "handoff": "an acceptor passes connections on",
}


class Spread(NamedTuple):
    """How connections are spread over the workers.

    Attributes:
        counts: Connections by pid.
        pid: The worker with most.
        ratio: Its number over the mean.
        times_others: Its number over the mean of the others; infinite when they have none.
        sigmas: How many binomial standard deviations it is above the mean.
    """

    counts: dict[int, int]
    pid: int
    ratio: float
    times_others: float
    sigmas: float

    @property
    def mean_count(self) -> float:
        """What an even spread would give each."""
        return sum(self.counts.values()) / len(self.counts)


def spread_of(counts: dict[int, int]) -> Spread | None:
    """Compares the largest number with a binomial one; None for fewer than two workers or none."""
    total = sum(counts.values())
    if len(counts) < 2 or not total:
        return None
    share = 1 / len(counts)
    pid = max(counts, key=lambda each: (counts[each], -each))
    sigma = float(np.sqrt(total * share * (1 - share)))
    mean, most = total * share, counts[pid]
    others = (total - most) / (len(counts) - 1)
    times_others = most / others if others else float("inf")
    return Spread(counts, pid, most / mean, times_others, (most - mean) / sigma)


def is_uneven(spread: Spread) -> bool:
    """More than chance, and enough to matter."""
    return (
        spread.mean_count >= _LEAST_MEAN_COUNT
        and spread.sigmas >= _LEAST_SIGMAS
        and spread.times_others >= _LEAST_TIMES_OTHERS
    )


def find(signs: Signs) -> list[Finding]:
    """One finding about the worker with most, or none."""
    view = signs.view
    live = view.frames["live_samples"]
    live = live[live["role"] == "server"]
    workers = _workers(view)
    at_s = view.seconds_of(live["at_ns"])
    live = live.assign(at_s=at_s)[at_s <= view.stop_s + 0.3]
    # Of a server that was there before: what a worker holds, however it came to it; and what it got
    # must be uneven too, since one that loses connections holds fewer.
    spread = None
    for column in ("established_total", "open_count") if view.is_attached else _TAKEN:
        totals = live.groupby("pid")[column].max()
        spread = spread_of({int(pid): int(totals.get(pid, 0)) for pid in workers})
        if spread is None or not is_uneven(spread):
            return []
    if spread is None or _is_explained(signs, spread):
        return []
    return [_finding(signs, spread, live)]


def _workers(view: RunView) -> list[int]:
    """Processes that connections are spread over.

    A child that a foreign server forks for one of them has the listener until it executes another
    program: it is none unless it took one, or still had the listener when somebody looked.
    """
    pids = view.pids_of("server")
    owners = set(view.frames["listener_owners"]["pid"])
    if not view.is_foreign or not owners:
        return pids
    return [pid for pid in pids if pid in owners or fates.accepted_count(view, pid) > 0]


def _is_explained(signs: Signs, spread: Spread) -> bool:
    """Something else kept workers from taking their share."""
    view = signs.view
    servers = signs.descriptors[signs.descriptors["role"] == "server"]
    if bool((servers["peak_count"] >= servers["capacity_count"] - 1).any()):
        return True
    processes = view.frames["processes"]
    died = processes[(processes["exited_ns"] > 0) & (processes["role"] == "server")]
    if bool((view.seconds_of(died["exited_ns"]) < view.stop_s).any()):
        return True
    busy = worker_blocked.blocked_pids(signs) | accept_spin.spinning_pids(signs)
    failing = accept_queue_overflow.find(signs) + enobufs.find(signs)
    busy |= {finding.subject.pid for finding in failing}
    hot = signs.hot_worker
    if hot is not None:
        busy.add(int(hot["pid"]))
    return any(
        spread.counts.get(pid, 0) < spread.mean_count for pid in busy if pid in spread.counts
    )


def _finding(signs: Signs, spread: Spread, live: pd.DataFrame) -> Finding:
    view = signs.view
    subject = view.subject(spread.pid)
    name = capitalised(str(subject))
    accept = str(view.settings.get("accept") or "")
    most, least = spread.counts[spread.pid], min(spread.counts.values())
    total, count = sum(spread.counts.values()), len(spread.counts)
    wakeups = live.groupby("pid")["loop_iterations_total"].max()
    others = wakeups.drop(index=spread.pid, errors="ignore")
    first_s = _first_uneven_s(live, spread)
    evidence = [
        Evidence("worker_established", most, "live_samples"),
        Evidence("even_share", spread.mean_count, "live_samples"),
        Evidence("times_even_share", spread.ratio, "live_samples"),
        Evidence("sigmas_above_even_share", spread.sigmas, "live_samples"),
        Evidence("fewest_worker_established", least, "live_samples"),
        Evidence("loop_turns", int(wakeups[spread.pid]), "live_samples"),
    ]
    if len(others):
        evidence.append(Evidence("siblings_loop_turns", float(others.median()), "live_samples"))
    cpu_pct = signs.cpu_pct_of(spread.pid, first_s, view.stop_s)
    if cpu_pct is not None:
        evidence.append(Evidence("process_cpu", cpu_pct, "process_samples", first_s))
    confidence, missing = signs.trust("live_samples")
    how = _HOW.get(accept, "how they accept was not recorded")
    how = f"With --accept {accept or '?'} {how}"
    weights = view.settings.get("accept_weights")
    if weights:
        how = f"They take from one listener as --accept-weights {','.join(map(str, weights))} says"
    if view.is_foreign:
        how = "How they accept is their own: a shared listener wakes the same one first"
    other = "handoff" if accept == "reuseport" else "reuseport"
    noise_pct = 100 * 3 * np.sqrt((count - 1) / total)
    effect = (
        "each worker gets its share to within one"
        if other == "handoff"
        else f"each worker gets its share of {spread.mean_count:,.0f} to within {noise_pct:.0f} % "
        "(three standard deviations of the hash)"
    )
    return Finding(
        cause=CAUSE.id,
        severity="warning",
        side="server",
        subject=subject,
        first_s=first_s,
        last_s=max(first_s, view.stop_s),
        evidence=tuple(evidence),
        explanation=(
            f"{name} took {most:,} of {total:,} connections, {spread.ratio:.1f} times the even "
            f"share of {spread.mean_count:,.0f}; chance would give that once in 10^9 at most. "
            f"{how}. Its core and its descriptor limit are met at "
            f"{100 / spread.ratio:.0f} % of what {count} workers could hold."
        ),
        fix=(Fix(_command(other, is_foreign=view.is_foreign), effect),),
        at_connections=view.open_count_at(first_s),
        confidence=confidence,
        missing=missing,
        sentence=f"{name} has {most:,} of {total:,} connections, {spread.ratio:.1f} times its "
        f"share of {spread.mean_count:,.0f}",
    )


def _command(accept: str, *, is_foreign: bool) -> str:
    if not is_foreign:
        return f"profile-run --accept {accept}"
    return "give each worker a listener of its own (SO_REUSEPORT; in node: reusePort: true)"


def _first_uneven_s(live: pd.DataFrame, spread: Spread) -> float:
    """The first sample at which the same rule already held."""
    table = live.pivot_table(index="at_s", columns="pid", values="established_total").ffill()
    for at_s, row in zip(table.index, table.fillna(0).to_numpy(), strict=True):
        counts = dict.fromkeys(spread.counts, 0)
        counts.update({int(p): int(n) for p, n in zip(table.columns, row, strict=True)})
        then = spread_of(counts)
        if then is not None and is_uneven(then):
            return float(at_s)
    return float(table.index[-1])
