"""``host-cpu-saturated``: no core is free, and something was harmed by it.

A ramp on loopback fills every core by design, so a full host alone is no finding.
Proof: three things in one span, all cores busy, a process of the run that waited for one (its time
on the run queue; of older recordings the host's CPU pressure), and harm: messages or pings that
fall behind their rate while connections are held, an event loop that stands still in most workers,
or attempts that timed out. Of a server that is only watched: for 3 s or more one of its processes
waited a fifth of the time and longer than it had a core, or two fifths.
Told apart from ``hot-worker-code``, ``garbage-collection``, ``accept-spin`` and
``keepalive-storm``: those name one process or one kind of work that fills the cores, and are named
instead while the fleet itself takes the CPU. From ``cpu-quota``: there it is the server's own group
that has no more, and its processes wait also on an idle host. Where processes beside the fleet take
it, they are the cause whatever the fleet does, but for what stops the server on an idle host too: a
full heap of its runtime, or handshakes that need more than a core.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analysis.causes import Cause
from analysis.evidence import Evidence, Finding, Fix, Subject
from analysis.evidence_kinds import BESIDE_THE_RUN
from analysis.findings.cpu import (
    cpu_quota,
    handshake_cost,
    hot_worker_code,
    keepalive_storm,
    message_amplification,
)
from analysis.findings.descriptors import accept_spin
from analysis.findings.memory import garbage_collection, runtime_heap_limit
from analysis.findings.server import own_limit, waits_for_slot
from analysis.frames.cpu import cpu_between, df_host_pressure
from analysis.frames.run_view import Floats, Phase
from analysis.signs.full_host_harm import BUSY_PCT, LEAST_S, Harm, harms_of, host_busy_between
from analysis.signs.signs import Signs
from analysis.stats.thresholds import FULL_CORE_PCT, OTHERS_SHARE
from probes.contract.schema import SERVER_ROLES

CAUSE = Cause(
    id="host-cpu-saturated",
    line="no core is free",
    decide="the same run on more cores, or with clients on another machine",
    decide_between={
        "client-is-the-limit": (
            "profile-run --probes full: a client that waits for a core has run-queue latency"
        ),
    },
)

_COVERED = 0.6
_TOLD_STEAL_PCT = 1.0
_LEAST_WAIT_PCT = 30.0
"""Where cores are just full, every process of the run gets one soon."""
_OF_THE_RUN = (*SERVER_ROLES, "client")
_WANTED_SHARE = 0.1
"""Where nobody knows who waits: a server that takes less of the cores may be one that is idle."""

_WATCHING, _BESIDE = "connscope's own watching", BESIDE_THE_RUN
_STOLEN = "other machines of the hypervisor"
"""What shares of the cores are called where no role says it."""


@dataclass(frozen=True, slots=True)
class _Shares:
    """Who took the CPU, in per cent of one core.

    ``others`` are processes beside the run; ``stolen`` is what the hypervisor gave to somebody else
    while this host had work (steal, proc_stat(5)).
    """

    servers: float
    clients: float
    probes: float
    others: float
    stolen: float
    capacity: float

    @property
    def fleet(self) -> float:
        return self.servers + self.clients

    def words(self) -> str:
        """For people, most first."""
        parts = {
            "the servers": self.servers,
            "the clients": self.clients,
            _WATCHING: self.probes,
            _BESIDE: self.others,
            _STOLEN: self.stolen,
        }
        ordered = sorted(parts.items(), key=lambda part: -part[1])
        ordered = [part for part in ordered if part[1] > 0]
        return ", ".join(f"{name} {100 * pct / self.capacity:.0f} %" for name, pct in ordered)


def _keeping_out(signs: Signs) -> list[Finding]:
    return [*own_limit.find(signs), *waits_for_slot.find(signs)]


def find(signs: Signs) -> list[Finding]:
    """One finding about the host, or none."""
    for harm in harms_of(signs, _keeping_out):
        if not _is_full(signs, harm):
            continue
        # to the kernel a group that its quota stops waits for a core, whoever has them
        if cpu_quota.explains_waiting(signs, harm.from_s, harm.until_s):
            continue
        shares = _shares(signs, harm)
        if harm.is_of_any_task and shares.servers < _WANTED_SHARE * shares.capacity:
            continue
        foreign = shares.others + shares.stolen >= OTHERS_SHARE * shares.capacity
        if foreign or not _is_named_otherwise(signs):
            is_limited = _stops_on_an_idle_host(signs)
            return [_finding(signs, harm, shares, foreign=foreign, is_limited=is_limited)]
    return []


def _stops_on_an_idle_host(signs: Signs) -> bool:
    """The server has a limit that a whole core of its own would not move."""
    if signs.view.is_attached:
        return False
    return bool(handshake_cost.find(signs) or runtime_heap_limit.find(signs))


def _is_full(signs: Signs, harm: Harm) -> bool:
    if signs.view.is_attached and not harm.is_of_any_task:
        return True  # it waited because of that
    busy_pct = _busy_pct(signs, harm)
    if busy_pct is None or busy_pct < BUSY_PCT or harm.until_s - harm.from_s < LEAST_S:
        return False
    waiting = _longest_waiting(signs, harm)
    wait_pct = waiting[1] if waiting else _pressure_pct(signs, harm)
    return wait_pct is None or wait_pct >= _LEAST_WAIT_PCT


def _longest_waiting(signs: Signs, harm: Harm) -> tuple[Subject, float] | None:
    """The process of the run that waited longest for a core, and how long, in per cent."""
    means = cpu_between(signs.view, Phase("harm", harm.from_s, harm.until_s))
    means = means[means["role"].isin(_OF_THE_RUN) & means["wait_pct"].notna()]
    if means.empty:
        return None
    most = means.sort_values("wait_pct", kind="stable").iloc[-1]
    return signs.view.subject(int(most["pid"])), float(most["wait_pct"])


def _of_cores(signs: Signs, harm: Harm) -> tuple[Floats, Floats, Floats]:
    return host_busy_between(signs.view, np.array([harm.from_s]), np.array([harm.until_s]))


def _busy_pct(signs: Signs, harm: Harm) -> float | None:
    """Busy share of all cores, None when the samples do not cover most of the span."""
    (busy_pct,), _, (covered_s,) = _of_cores(signs, harm)
    if np.isnan(busy_pct) or covered_s < _COVERED * (harm.until_s - harm.from_s):
        return None
    return float(busy_pct)


def _pressure_pct(signs: Signs, harm: Harm) -> float | None:
    """Share of the time that some task waited for a core; None when not recorded."""
    rows = df_host_pressure(signs.view)
    rows = rows[rows["resource"] == "cpu"]
    inside = rows["some_pct"][(rows["at_s"] > harm.from_s) & (rows["at_s"] <= harm.until_s + 1.0)]
    return float(inside.mean()) if len(inside) else None


def _shares(signs: Signs, harm: Harm) -> _Shares:
    means = cpu_between(signs.view, Phase("harm", harm.from_s, harm.until_s))
    by_role = means.groupby("role")["cpu_pct"].sum()

    def taken(*roles: str) -> float:
        return float(sum(by_role.get(role, 0.0) for role in roles))

    capacity = 100.0 * signs.view.core_count
    busy_pct = _busy_pct(signs, harm) or 0.0
    _, (stolen_pct,), _ = _of_cores(signs, harm)
    stolen = capacity * float(np.nan_to_num(stolen_pct)) / 100
    known = taken(*SERVER_ROLES, "client", "probe", "supervisor")
    return _Shares(
        servers=taken(*SERVER_ROLES),
        clients=taken("client"),
        probes=taken("probe", "supervisor"),
        others=max(0.0, capacity * busy_pct / 100 - stolen - known),
        stolen=stolen,
        capacity=capacity,
    )


def _is_named_otherwise(signs: Signs) -> bool:
    """A cause that says more than "full" explains who takes the CPU."""
    # One that wanted a core and had less of it says nothing about who has the others.
    hot = [f for f in hot_worker_code.find(signs) if _had_a_core(signs, f)]
    named = keepalive_storm.find(signs) or hot or handshake_cost.find(signs)
    collecting = garbage_collection.collecting_pids(signs)
    named = named or message_amplification.find(signs)
    return bool(named or collecting or accept_spin.spinning_pids(signs))


def _had_a_core(signs: Signs, hot: Finding) -> bool:
    cpu_pct = signs.cpu_pct_of(hot.subject.pid, hot.first_s, hot.last_s)
    return cpu_pct is None or cpu_pct >= FULL_CORE_PCT


# -- what is said -----------------------------------------------------------------------------


def _waits_ms(signs: Signs, harm: Harm) -> tuple[float, float] | None:
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


def _finding(
    signs: Signs, harm: Harm, shares: _Shares, *, foreign: bool, is_limited: bool
) -> Finding:
    view = signs.view
    busy_pct = _busy_pct(signs, harm) or 0.0
    evidence = [
        Evidence("host_busy", busy_pct, "host_cpu", harm.from_s),
        *harm.evidence,
    ]
    for name, pct in (
        ("servers", shares.servers),
        ("clients", shares.clients),
        (_WATCHING, shares.probes),
    ):
        share_pct = 100 * pct / shares.capacity
        if name == "clients" and view.is_attached:
            continue
        evidence.append(Evidence("host_share", share_pct, "process_samples", of=name))
    others_pct = 100 * shares.others / shares.capacity
    evidence.append(Evidence("host_share", others_pct, "host_cpu", of=_BESIDE))
    stolen_pct = 100 * shares.stolen / shares.capacity
    if stolen_pct >= _TOLD_STEAL_PCT:
        evidence.append(Evidence("host_share", stolen_pct, "host_cpu", of=_STOLEN))
    waiting = _longest_waiting(signs, harm)
    if waiting is not None and not view.is_attached:  # there it is the harm
        evidence.append(
            Evidence("core_wait", waiting[1], "process_samples", harm.from_s, of=str(waiting[0]))
        )
    pressure = _pressure_pct(signs, harm)
    if pressure is not None and not harm.is_of_any_task:  # there it is the harm
        evidence.append(Evidence("core_pressure", pressure, "host_pressure"))
    waits = _waits_ms(signs, harm)
    if waits is not None:
        evidence.append(Evidence("runq_wait_median", waits[0], "runq_latency"))
        evidence.append(Evidence("runq_wait_p99", waits[1], "runq_latency"))
    confidence, missing = signs.trust("host_cpu", "process_samples")
    if waiting is None and pressure is None and waits is None:
        confidence = "medium"
        missing += ("waiting for a core was not measured (process_samples, host_pressure)",)
    together = "the servers" if view.is_attached else "servers and clients together"
    most, most_pct = together, 100 * shares.fleet / shares.capacity
    if foreign:
        most, most_pct = max((_BESIDE, others_pct), (_STOLEN, stolen_pct), key=lambda of: of[1])
    return Finding(
        cause=CAUSE.id,
        severity="warning",
        side="host",
        subject=Subject(),
        first_s=harm.from_s,
        last_s=harm.until_s,
        evidence=tuple(evidence),
        explanation=(
            f"All {view.core_count} cores were busy to {busy_pct:.0f} % for "
            f"{harm.until_s - harm.from_s:.1f} s while {harm.words}. Who took them: "
            f"{shares.words()}. The {'server' if view.is_attached else 'run'} had less than it "
            f"wanted; {_BESIDE_A_LIMIT if is_limited else _WITHOUT_A_LIMIT}."
        ),
        fix=_fixes(harm, shares, foreign=foreign, attached=view.is_attached),
        at_connections=view.open_count_at(harm.from_s),
        confidence=confidence,
        missing=missing,
        sentence=f"The host had no core free: {most} took {most_pct:.0f} % of "
        f"{view.core_count} cores, and {harm.words}",
        # what an idle host would not have let in either, a full one did not keep out
        explained_count=0 if is_limited else harm.explained_count,
    )


_WITHOUT_A_LIMIT = "nothing in it is at a limit of its own"
_BESIDE_A_LIMIT = "what stopped it would have done so on an idle host too, later"


def _fixes(harm: Harm, shares: _Shares, *, foreign: bool, attached: bool) -> tuple[Fix, ...]:
    fixes = []
    whom = "server" if attached else "run"
    if foreign and shares.stolen > shares.others:
        fixes.append(
            Fix(
                "vmstat 1  # st: choose a machine type or a host where it stays near 0",
                f"gives the {whom} the {shares.stolen / 100:.1f} cores that the hypervisor gave to "
                f"other machines; no setting in this one does",
            )
        )
    elif foreign:
        fixes.append(
            Fix(
                f"top -o %CPU  # and end, or move away, what does not belong to the {whom}",
                f"gives the {whom} up to {shares.others / 100:.1f} more cores; it had "
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
        who, pct = ("server", shares.servers) if attached else ("clients", shares.clients)
        fixes.append(
            Fix(
                f"nproc  # choose a host where this prints {cores} or more",
                f"the {who} alone took {100 * pct / shares.capacity:.0f} % of the "
                f"{shares.capacity / 100:.0f} cores",
            )
        )
    return tuple(fixes)
