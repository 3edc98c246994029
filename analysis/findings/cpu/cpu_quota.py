"""``cpu-quota``: the CPU quota of a control group stops the server in most of its periods.

Proof: ``cpu.stat`` of the server's group or of one above it counts periods in which the quota
(``cpu.max``, or ``cpu.cfs_quota_us``) was used up and the group was stopped, in a quarter and more
of the periods of a span, as long as attempts waited.
Told apart from ``host-cpu-saturated``: the cores may be idle, and nobody took them; to the server
both are a wait for a core. From ``hot-worker-code``: that process gets its core and uses it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.causes import Cause, Effect
from analysis.evidence import Evidence, Finding, Fix, Subject, capitalised
from analysis.findings.descriptors import accept_spin
from analysis.server.control_group import cpu_quota_command, owner_of
from analysis.signs.memory import until_stop
from analysis.signs.signs import Signs
from analysis.stats.spans import runs_of

CAUSE = Cause(
    id="cpu-quota",
    line="the CPU quota of a control group stops the server",
    effect=Effect.SLOWS_ACCEPT,
    decide="cat cpu.stat of its control group while it stalls: does nr_throttled grow",
)

_LEAST_SHARE = 0.25
_LEAST_S = 0.9
_WATCHED_LEAST_S = 3.0
"""Of a server that is only watched nobody knows who waits: a burst of work is no harm."""
_EXPLAINS_WAITING_SHARE = 0.5
_TABLE = "cgroup_cpu"


@dataclass(frozen=True, slots=True)
class Throttling:
    """A span in which one group was stopped again and again.

    Attributes:
        cgroup: Its folder.
        version: Of its files.
        pid: A process in it.
        since_s: Its begin.
        until_s: Its end.
        quota_cores: CPU time that it may use per time.
        period_ns: Length of a period.
        share: Part of the periods in which it was stopped, 0 to 1.
        periods_count: Periods in which it was stopped.
        stopped_s: How long, all cores together.
    """

    cgroup: str
    version: int
    pid: int
    since_s: float
    until_s: float
    quota_cores: float
    period_ns: int
    share: float
    periods_count: int
    stopped_s: float


def find(signs: Signs) -> list[Finding]:
    """One finding about the group that was stopped most, or none.

    A worker that spins takes whatever it is given: then the quota is no reason.
    """
    if accept_spin.spinning_pids(signs):
        return []
    found = throttlings(signs)
    least_s = _WATCHED_LEAST_S if signs.view.is_attached else _LEAST_S
    found = [each for each in found if each.until_s - each.since_s >= least_s]
    # Of a group and the one above it the tighter one stops both: it has more periods of its own.
    worst = max(found, key=lambda each: each.share * (each.until_s - each.since_s), default=None)
    return [_finding(signs, worst)] if worst is not None else []


def throttlings(signs: Signs) -> list[Throttling]:
    """The longest span of each group in which its quota stopped it in a quarter of the periods."""
    rows = until_stop(signs.view, _TABLE)
    found = []
    for _, part in rows.groupby("cgroup", sort=True):
        span = _longest(part, signs.view.ramp.start_s)
        if span is not None:
            found.append(span)
    return found


def explains_waiting(signs: Signs, since_s: float, until_s: float) -> bool:
    """A quota, and no neighbour, is why the server waited for a core in that span."""
    return any(
        each.share >= _EXPLAINS_WAITING_SHARE
        and each.since_s < until_s
        and each.until_s > since_s
        and min(each.until_s, until_s) - max(each.since_s, since_s) >= (until_s - since_s) / 2
        for each in throttlings(signs)
    )


def _longest(rows: pd.DataFrame, start_s: float) -> Throttling | None:
    periods = rows["periods_total"].diff().to_numpy()
    stopped = rows["throttled_periods_total"].diff().to_numpy()
    at_s = rows["at_s"].to_numpy()
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(periods > 0, stopped / periods, 0.0)
    spans = runs_of((share >= _LEAST_SHARE) & (at_s > start_s))
    if not spans:
        return None
    start, stop = max(spans, key=lambda span: at_s[span[1] - 1] - at_s[span[0] - 1])
    first, last = rows.iloc[start - 1], rows.iloc[stop - 1]
    count = int(last["throttled_periods_total"] - first["throttled_periods_total"])
    return Throttling(
        cgroup=str(last["cgroup"]),
        version=int(last["version"]),
        pid=int(last["pid"]),
        since_s=max(start_s, float(first["at_s"])),
        until_s=float(last["at_s"]),
        quota_cores=float(last["quota_ns"] / last["period_ns"]),
        period_ns=int(last["period_ns"]),
        share=count / int(last["periods_total"] - first["periods_total"]),
        periods_count=count,
        stopped_s=float(last["throttled_ns_total"] - first["throttled_ns_total"]) / 1e9,
    )


def _finding(signs: Signs, span: Throttling) -> Finding:
    view = signs.view
    since_s, until_s = span.since_s, span.until_s
    subject, used_pct = _busiest(signs, span)
    host_pct = signs.host_busy_pct(since_s, until_s)
    stalled = signs.stalled_count if signs.first_stalled_s >= since_s - 0.6 else 0
    evidence = [
        Evidence("cpu_quota", 100 * span.quota_cores, _TABLE),
        Evidence("throttled_share", 100 * span.share, _TABLE, since_s),
        Evidence("throttled_periods", span.periods_count, _TABLE),
        Evidence("throttled_time", span.stopped_s, _TABLE),
        Evidence("group_cpu", used_pct, "process_samples", since_s),
    ]
    if host_pct is not None:
        evidence.append(Evidence("host_busy", host_pct, "host_cpu", since_s))
    if stalled:
        evidence.append(Evidence("stalled_attempts", stalled, "connections", since_s))
    confidence, missing = signs.trust(_TABLE)
    owner = owner_of(span.cgroup)
    quota = f"{span.quota_cores:g} core" + ("" if span.quota_cores == 1 else "s")
    share = f"{100 * span.share:.0f} % of its periods"
    wanted = _wanted_cores(span, view.core_count)
    idle = "" if host_pct is None else f", while the host's cores were busy to {host_pct:.0f} %"
    name = str(subject)
    return Finding(
        cause=CAUSE.id,
        severity="warning",
        side="server",
        subject=subject,
        first_s=since_s,
        last_s=until_s,
        evidence=tuple(evidence),
        explanation=(
            f"The CPU quota of {owner} is {quota}: it was used up in {share}, and then the kernel "
            f"stopped {name} until the next one began{idle}. A period lasts "
            f"{span.period_ns / 1e6:g} ms, so whatever it has to answer waits up to that long each "
            "time."
        ),
        fix=(
            Fix(
                cpu_quota_command(span.cgroup, span.version, wanted, span.period_ns // 1_000),
                f"the quota moves from {span.quota_cores:g} to {wanted:g} cores; "
                f"it used {used_pct / 100:.2f}, and was stopped in {share}",
            ),
            Fix(
                "give the runtime no more threads than the quota has cores (GOMAXPROCS, "
                "-XX:ActiveProcessorCount, UV_THREADPOOL_SIZE, --workers)",
                "threads that run at once use the quota up earlier in each period",
            ),
        ),
        at_connections=view.open_count_at(since_s),
        confidence=confidence,
        missing=missing,
        sentence=f"{capitalised(name)} was stopped in {share} by the CPU quota of {owner}, {quota}",
        explained_count=stalled,
    )


def _busiest(signs: Signs, span: Throttling) -> tuple[Subject, float]:
    """The server process that used most meanwhile, and what all of them used together."""
    rows = signs.worker_cpu
    inside = (rows["at_s"] > span.since_s) & (rows["at_s"] <= span.until_s + 0.5)
    mean = rows[inside & (rows["side"] == "server")].groupby("pid")["cpu_pct"].mean()
    if mean.empty:
        return signs.view.subject(span.pid), 0.0
    return signs.view.subject(int(str(mean.idxmax()))), float(mean.sum())


def _wanted_cores(span: Throttling, core_count: int) -> float:
    """More than it has: in proportion to how often it was stopped, a whole core at least."""
    factor = 1 / max(0.1, 1 - span.share)
    wanted = min(core_count, max(1, int(np.ceil(span.quota_cores * factor))))
    return float(wanted if wanted > span.quota_cores else np.ceil(span.quota_cores + 1))
