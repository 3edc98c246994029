"""``handshake-cost``: handshakes take the whole core of the thread that makes them.

Proof: a server process is at a full core from the first attempts on, handshakes come out of it all
that time, and each costs so much CPU that their rate times this is the core; attempts wait for it.
Where others keep the host busy the process never rests, and a whole core would not have made the
handshakes that were begun either. Stacks name the function: a password hash, TLS, the check of a
token. Of a server that is only watched, most of the samples must be in such a function.
Told apart from ``hot-worker-code``: there the core is taken by something else than handshakes,
which come out seldom or not at all, or it began when connections were held. From
``worker-blocked``: that thread waits, off the CPU. From ``cpu-quota`` and ``host-cpu-saturated``:
there it is enough that the process gets a whole core.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.causes import Cause, Effect
from analysis.evidence import Evidence, Finding, Fix, capitalised, connections_text, side_of_role
from analysis.findings.cpu import keepalive_storm
from analysis.findings.descriptors import accept_spin
from analysis.findings.memory import garbage_collection
from analysis.frames.cpu import never_rested
from analysis.server import fates
from analysis.signs.full_processes import is_server_full
from analysis.signs.signs import Signs
from analysis.stacks.handshake_work import (
    PASSWORD_HASH,
    TLS_HANDSHAKE,
    names_hash,
    program_function,
    work_of,
)
from analysis.stacks.hot_function import own_function
from analysis.stats.remembered import remembered
from analysis.stats.spans import runs_of
from analysis.stats.thresholds import FULL_CORE_PCT, LATE_CPU_S, LATE_EVENT_S

CAUSE = Cause(
    id="handshake-cost",
    line="handshakes take the whole core of the thread that makes them",
    effect=Effect.SLOWS_ACCEPT,
    follows_from=("cpu-quota",),
    fills_a_core=True,
    decide="profile-run --ramp at the rate that it makes: what is left is another limit",
)

_LEAST_S = 0.9
_LATE_SHARE = 0.1
_WATCHED_LEAST_S = 3.0
_LEAST_COST_US = 1_000.0
"""Ours cost 100 to 300 us, and those of other people's servers without TLS less than this."""
_WATCHED_LEAST_COST_US = 5_000.0
_LEAST_COUNT = 3
_LONGEST_GAP_S = 1.0
_STARTS_WITHIN_S = 1.6
"""CPU is sampled twice a second; the first attempts may wait for the first handshake."""
_LONG_WAIT_S = 1.0
_MORE_THAN_A_CORE = 1.25
"""What a crowded host adds to the CPU of a handshake, cold caches, is less than this."""
_IDLE_BEFORE_PCT = 50.0


@dataclass(frozen=True, slots=True)
class _Span:
    """A process at a full core while handshakes came out of it.

    Attributes:
        pid: The process.
        since_s: Its begin.
        until_s: The last handshake.
        hot_until_s: How long it went on at a full core, for clients that had left.
        cpu_pct: CPU until ``until_s``.
        count: Handshakes; where nearly none was made, those that it worked at together.
        wait_ms: Median time that a client waited for its handshake, NaN when not known.
        is_unmade: They were given up before they were made: each costs more than was spent.
    """

    pid: int
    since_s: float
    until_s: float
    hot_until_s: float
    cpu_pct: float
    count: int
    wait_ms: float
    is_unmade: bool = False

    @property
    def cost_us(self) -> float:
        """CPU for one."""
        return self.cpu_pct * 1e4 * (self.until_s - self.since_s) / self.count


def find(signs: Signs) -> list[Finding]:
    """One finding about the process that spent most, or none."""
    spans = _spans(signs)
    if not spans:
        return []
    return [
        _finding(signs, max(spans, key=lambda span: (span.hot_until_s - span.since_s, -span.pid)))
    ]


def costly_pids(signs: Signs) -> set[int]:
    """Every server process whose core goes to handshakes."""
    return {span.pid for span in _spans(signs)}


@remembered
def _spans(signs: Signs) -> list[_Span]:
    rows = signs.worker_cpu
    rows = rows[(rows["role"] == "server") & (rows["at_s"] <= signs.view.stop_s + LATE_EVENT_S)]
    found = []
    for pid, mine in rows.groupby("pid", sort=True):
        span = _span(signs, int(str(pid)), mine)
        if span is not None and not _is_named_otherwise(signs, span):
            found.append(span)
    return found


def _span(signs: Signs, pid: int, cpu: pd.DataFrame) -> _Span | None:
    view = signs.view
    at_s = cpu["at_s"].to_numpy()
    before = cpu["cpu_pct"][at_s <= view.ramp.start_s]
    if len(before) and float(before.iloc[-1]) >= _IDLE_BEFORE_PCT and not view.is_attached:
        return None
    had_pct, waited_pct = cpu["cpu_pct"].to_numpy(), cpu["wait_pct"].to_numpy()
    wants = had_pct >= FULL_CORE_PCT if view.is_attached else never_rested(had_pct, waited_pct)
    hot = [
        (float(at_s[start - 1]) if start else float(at_s[start]) - 0.5, float(at_s[stop - 1]))
        for start, stop in runs_of(wants & (at_s > view.ramp.start_s))
    ]
    if view.is_attached:
        return _watched(signs, pid, hot)
    if not hot:
        return None
    since_s, hot_until_s = max(view.ramp.start_s, hot[0][0]), hot[0][1]
    connections = view.connections
    begun_s = float(connections["start_s"].min()) if len(connections) else 0.0
    if since_s > begun_s + _STARTS_WITHIN_S:
        return None
    opened = connections[connections["established_s"].between(since_s, hot_until_s)]
    if hot_until_s - since_s < _LEAST_S:
        return None
    if len(opened) < _LEAST_COUNT:
        return _unmade(signs, pid, since_s, hot_until_s)
    moments = np.sort(np.append(opened["established_s"].to_numpy(), since_s))
    until_s = float(moments[-1])
    span = _Span(
        pid,
        since_s,
        until_s,
        hot_until_s,
        float(cpu["cpu_pct"][(at_s > since_s) & (at_s <= until_s + LATE_CPU_S)].mean()),
        _served_by(signs, pid, len(opened)),
        1e3 * float((opened["established_s"] - opened["connected_s"]).median()),
    )
    longest_gap_s = float(np.diff(moments).max())
    is_steady = longest_gap_s <= max(_LONGEST_GAP_S, 5e-6 * span.cost_us)
    is_long = span.until_s - span.since_s >= min(_LEAST_S, hot_until_s - since_s)
    is_dear = span.cost_us >= _LEAST_COST_US
    waits = signs.stalled_count > 0 or span.wait_ms >= 1e3 * _LONG_WAIT_S
    # Who goes on for longer than those take who left before theirs was made is at something else.
    left_s = _MORE_THAN_A_CORE * view.failed_count * span.cost_us / 1e6
    goes_on = span.hot_until_s - span.until_s > _LONGEST_GAP_S + left_s
    if goes_on or not (is_steady and is_long and is_dear and waits):
        return None
    if _is_past_its_own(signs, span):
        return None
    return span if span.cpu_pct >= FULL_CORE_PCT or _exceeds_a_core(signs, span) else None


def _is_past_its_own(signs: Signs, span: _Span) -> bool:
    """Of several that serve, the others made what was made in the second half of the span."""
    peaks = fates.peak_counts(signs.view, "server")
    if (peaks > 0).sum() < 2:
        return False
    middle_s = (span.since_s + span.until_s) / 2
    late = signs.established_between(span.pid, middle_s, span.until_s)
    return late is not None and late < _LATE_SHARE * span.count


def _unmade(signs: Signs, pid: int, since_s: float, hot_until_s: float) -> _Span | None:
    """One that works at all of them together, and whose clients leave before any is made.

    So do threads and goroutines that share a core. Only where stacks say what they compute.
    """
    connections = signs.view.connections
    tried = connections[connections["start_s"] <= hot_until_s]
    gave_up = tried["closed_s"][tried["is_failed"] & (tried["close_kind"] == "timeout")]
    cpu_pct = signs.cpu_pct_of(pid, since_s, hot_until_s)
    if len(gave_up) < _LEAST_COUNT or cpu_pct is None:
        return None
    until_s = min(hot_until_s, max(float(gave_up.min()), since_s + _LEAST_S))
    count = int((tried["start_s"] <= until_s).sum())
    span = _Span(pid, since_s, until_s, hot_until_s, cpu_pct, count, float("nan"), is_unmade=True)
    is_dear = span.cost_us >= _WATCHED_LEAST_COST_US
    return span if is_dear and _has_known_work(signs, span) else None


def _exceeds_a_core(signs: Signs, span: _Span) -> bool:
    """A whole core would not have made the handshakes that were begun, whoever had the others."""
    connections = signs.view.connections
    begun = connections[connections["start_s"] <= span.hot_until_s]
    # it may go on for clients that have left: what they wanted, they wanted until then
    left_s = begun["established_s"].fillna(begun["closed_s"]).fillna(span.hot_until_s)
    until_s = min(span.hot_until_s, max(span.until_s, float(left_s.max())))
    of_a_core = 1e6 * (until_s - span.since_s) / span.cost_us
    return len(begun) >= _MORE_THAN_A_CORE * of_a_core


def _served_by(signs: Signs, pid: int, count: int) -> int:
    """Of the handshakes of a span the part of one process, by what each held at most."""
    peaks = fates.peak_counts(signs.view, "server")
    total, mine = int(peaks.sum()), int(peaks.get(pid, 0))
    return max(1, round(count * mine / total)) if total and mine else max(1, count)


def _watched(signs: Signs, pid: int, hot: list[tuple[float, float]]) -> _Span | None:
    """Of a server with its own clients: how many it took, and what most of its samples are in."""
    for since_s, until_s in hot:
        if until_s - since_s < _WATCHED_LEAST_S:
            continue
        count = signs.established_between(pid, since_s, until_s) or 0
        cpu_pct = signs.cpu_pct_of(pid, since_s, until_s)
        if count < _LEAST_COUNT or cpu_pct is None:
            continue
        span = _Span(pid, since_s, until_s, until_s, cpu_pct, count, float("nan"))
        if span.cost_us >= _WATCHED_LEAST_COST_US and _has_known_work(signs, span):
            return span
    return None


def _is_named_otherwise(signs: Signs, span: _Span) -> bool:
    others = accept_spin.spinning_pids(signs) | garbage_collection.collecting_pids(signs)
    others |= keepalive_storm.storming_pids(signs)
    return span.pid in others or signs.messages_explain_cpu_of(span.pid, span.since_s, span.until_s)


def _has_known_work(signs: Signs, span: _Span) -> bool:
    """Stacks say what the handshakes cost CPU for."""
    return bool(work_of(signs.view, span.pid, (span.since_s, span.hot_until_s + LATE_CPU_S))[0])


def _finding(signs: Signs, span: _Span) -> Finding:
    view = signs.view
    subject = view.subject(span.pid)
    window_s = (span.since_s, span.hot_until_s + LATE_CPU_S)
    where = own_function(view, span.pid, subject.role, window_s)
    work, work_pct = work_of(view, span.pid, window_s)
    if where.kind == "native" and work == PASSWORD_HASH and not names_hash(where.function):
        name, share_pct = program_function(view, span.pid, window_s)
        where = where._replace(function=name, share_pct=share_pct) if name else where
    cost_ms, per_s = span.cost_us / 1e3, span.count / (span.until_s - span.since_s)
    stalled = signs.stalled_count if signs.first_stalled_s >= span.since_s - _STARTS_WITHIN_S else 0
    if is_server_full(signs):
        stalled = 0  # a full worker strands connections whatever a handshake costs
    made_per_s = 0.0 if span.is_unmade else per_s
    evidence = [
        Evidence("process_cpu", span.cpu_pct, "process_samples", span.since_s),
        Evidence("handshake_cpu", span.cost_us, "process_samples", span.since_s),
        Evidence("handshake_rate", made_per_s, "connections", span.since_s),
        Evidence("span_length", span.hot_until_s - span.since_s, "process_samples", span.since_s),
    ]
    if np.isfinite(span.wait_ms):
        evidence.append(Evidence("handshake_wait_median", span.wait_ms, "connections"))
    if stalled:
        evidence.append(Evidence("stalled_attempts", stalled, "connections", signs.first_stalled_s))
    table = "python_stacks" if where.kind == "python" else "cpu_stacks"
    if where.function:
        evidence.append(
            Evidence("function_samples", where.share_pct, table, span.since_s, of=where.function)
        )
    if work:
        evidence.append(Evidence("work_samples", work_pct, table, span.since_s, of=work))
    confidence, missing = signs.trust("process_samples")
    if not where.function and not work:
        confidence = "medium"
        missing += ("the function that it goes to: no stacks name one",)
    name = capitalised(str(subject))
    rate = f"{per_s:,.0f} a second were all that a core makes"
    starved = ""
    if span.cpu_pct < FULL_CORE_PCT:  # others had the rest of the core
        rate = f"a whole core makes {1e6 / span.cost_us:,.0f} a second"
        starved = (
            f" Others on this host left it {span.cpu_pct:.0f} % of a core; a whole one would make "
            f"{1e6 / span.cost_us:,.0f} a second, too few as well."
        )
        wait_pct = signs.wait_pct_of(span.pid, span.since_s, span.hot_until_s)
        if wait_pct is not None:
            evidence.append(
                Evidence("core_wait", wait_pct, "process_samples", span.since_s, of=str(subject))
            )
    place = f" in {where.function}" if where.function else ""
    kind = f" ({work})" if work else ""
    gone = span.hot_until_s - span.until_s
    after = (
        f" For {gone:.1f} s more it went on with those whose clients had left."
        if gone >= _LEAST_S
        else ""
    )
    spent = f"spent {cost_ms:,.1f} ms of CPU on each handshake{place}{kind}"
    how = f"made {per_s:,.0f} a second: {span.cpu_pct:.0f} % of a core. One thread makes one after "
    how += "the other, and all others wait meanwhile, open connections too"
    if span.is_unmade:
        spent = (
            f"spent more than {cost_ms:,.1f} ms of CPU on each of {span.count:,} handshakes at the "
            f"same time{place}{kind}"
        )
        rate = "their clients left before one was made"
        how = f"made none before their clients left, at {span.cpu_pct:.0f} % of a core"
    return Finding(
        cause=CAUSE.id,
        severity="warning",
        side=side_of_role(subject.role),
        subject=subject,
        first_s=span.since_s,
        last_s=span.hot_until_s,
        evidence=tuple(evidence),
        explanation=(f"{name} {spent} and {how}.{starved}{after}"),
        fix=_fixes(signs, span, work, where.function, subject.command),
        at_connections=view.open_count_at(span.since_s),
        confidence=confidence,
        missing=missing,
        sentence=f"{name} {spent}: {rate}",
        explained_count=stalled,
    )


def _fixes(signs: Signs, span: _Span, work: str, function: str, command: str) -> tuple[Fix, ...]:
    per_s = 1e6 / span.cost_us  # of a whole core
    what = function or work or "the work of the handshake"
    found = []
    if work == PASSWORD_HASH:
        found.append(
            Fix(
                "hash in a thread pool"
                + (" (crypto.pbkdf2 instead of pbkdf2Sync)" if "node" in command else "")
                + ", and only once: give the client a token that is cheap to check",
                f"takes {span.cost_us / 1e3:,.1f} ms of each handshake off the event loop",
            )
        )
    elif work == TLS_HANDSHAKE:
        found.append(
            Fix(
                "an ECDSA P-256 certificate instead of RSA, session tickets, or TLS in a proxy "
                "with a worker for each core",
                f"takes most of the {span.cost_us / 1e3:,.1f} ms off each handshake",
            )
        )
    else:
        found.append(
            Fix(
                f"move {what} off the event loop, into threads or processes, or make it cheaper",
                f"takes up to {span.cost_us / 1e3:,.1f} ms off each handshake",
            )
        )
    if span.is_unmade:
        return (
            Fix(
                f"make {what} cheaper, give the server more cores, or let it make a few handshakes "
                "at a time",
                "the first are made while the others wait, and not all too late",
            ),
        )
    target = signs.view.target_count
    if not signs.view.is_attached and target:
        rate = max(1, int(0.9 * per_s))
        found.append(
            Fix(
                f"profile-run --ramp {rate}",
                f"as many as it makes: {connections_text(target)} then take "
                f"{target / rate:,.0f} s, and show what else limits it",
            )
        )
    return tuple(found)
