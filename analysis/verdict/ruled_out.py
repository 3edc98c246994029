"""What a run that nothing explains was not stopped by, what it had left, who did not look. Pure.

A cause is ruled out by a number of this run, and only where its probe saw all of it: 0 calls that
returned EMFILE rule out descriptors when failing calls were counted from beginning to end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from analysis.evidence import Evidence
from analysis.ladder.rung import Rung
from analysis.signs.listen_queues import moved_by_own, own_queues
from analysis.signs.signs import EADDRNOTAVAIL, EMFILE, ENFILE, ENOBUFS, Signs
from analysis.stats.thresholds import FULL_CORE_PCT, LATE_CPU_S


@dataclass(frozen=True, slots=True)
class RuledOut:
    """A cause that this run was not stopped by.

    Attributes:
        cause: Its id.
        by: The number that rules it out.
    """

    cause: str
    by: Evidence


@dataclass(frozen=True, slots=True)
class Left:
    """What of a limit was not used when most connections were open.

    Attributes:
        limit: As in the ladder.
        subject: Whose.
        used: Use at the peak, in ``unit``.
        capacity: Where the limit is.
        unit: count, pages, bytes, pct, ...
    """

    limit: str
    subject: str
    used: float
    capacity: float
    unit: str

    @property
    def left_pct(self) -> float:
        """Part of the capacity that was free, 0 to 100."""
        return 100 * min(1.0, max(0.0, 1 - self.used / self.capacity))


@dataclass(frozen=True, slots=True)
class Unwatched:
    """A probe that could have told more.

    Attributes:
        probe: Its name.
        state: unavailable, failed or not_asked.
        reason: Why.
    """

    probe: str
    state: str
    reason: str


_BUSIEST_CPU = {"server": "busiest_server_cpu", "client": "busiest_client_cpu"}


def ruled_out(signs: Signs) -> tuple[RuledOut, ...]:
    """Causes that a number of this run rules out, the frequent ones first."""
    found = []
    for cause, table, number in _TESTS:
        if signs.trust(table, is_by_absence=True)[1]:
            continue
        evidence = number(signs)
        if evidence is not None:
            found.append(RuledOut(cause, evidence))
    return tuple(found)


def _no_errno(*numbers: int) -> Callable[[Signs], Evidence | None]:
    def number(signs: Signs) -> Evidence | None:
        rows = signs.errors[signs.errors["errno"].isin(numbers)]
        if len(rows):
            return None
        return Evidence(_ERRNO_KINDS[numbers], 0, "failing_syscalls")

    return number


_ERRNO_KINDS = {
    (EMFILE, ENFILE): "descriptor_refusals",
    (EADDRNOTAVAIL,): "eaddrnotavail_calls",
    (ENOBUFS,): "enobufs_calls",
}


def _no_overflow(signs: Signs) -> Evidence | None:
    dropped = moved_by_own(signs, "TcpExtListenOverflows", own_queues(signs)).change_count
    return None if dropped else Evidence("listen_overflows", 0, "net_counters")


def _no_kill(signs: Signs) -> Evidence | None:
    return None if len(signs.view.frames["oom_kills"]) else Evidence("oom_kills", 0, "oom_kills")


def _no_end(signs: Signs) -> Evidence | None:
    if signs.is_server_process_gone or signs.view.frames["processes"].empty:
        return None
    return Evidence("server_processes_ended", 0, "processes")


def _calm_host(signs: Signs) -> Evidence | None:
    busy_pct = signs.host_busy_pct(signs.view.ramp.start_s, signs.view.ramp.end_s)
    if busy_pct is None or busy_pct >= FULL_CORE_PCT:
        return None
    return Evidence("host_busy", round(busy_pct, 1), "host_cpu")


def _calm_processes(side: str) -> Callable[[Signs], Evidence | None]:
    def number(signs: Signs) -> Evidence | None:
        ramp, rows = signs.view.ramp, signs.worker_cpu
        inside = (rows["at_s"] > ramp.start_s) & (rows["at_s"] <= ramp.end_s + LATE_CPU_S)
        mine = rows[inside & (rows["side"] == side)].groupby("pid")["cpu_pct"].mean()
        if mine.empty or float(mine.max()) >= FULL_CORE_PCT:
            return None
        return Evidence(_BUSIEST_CPU[side], round(float(mine.max()), 1), "process_samples")

    return number


_TESTS: tuple[tuple[str, str, Callable[[Signs], Evidence | None]], ...] = (
    ("fd-limit-process", "failing_syscalls", _no_errno(EMFILE, ENFILE)),
    ("ephemeral-ports-exhausted", "failing_syscalls", _no_errno(EADDRNOTAVAIL)),
    ("accept-queue-overflow", "net_counters", _no_overflow),
    ("enobufs", "failing_syscalls", _no_errno(ENOBUFS)),
    ("memory-exhausted", "oom_kills", _no_kill),
    ("worker-crash", "processes", _no_end),
    ("hot-worker-code", "process_samples", _calm_processes("server")),
    ("client-is-the-limit", "process_samples", _calm_processes("client")),
    ("host-cpu-saturated", "host_cpu", _calm_host),
)


def left(ladder: Sequence[Rung]) -> tuple[Left, ...]:
    """What was left of each limit: of several subjects the fullest, the fullest limit first."""
    fullest: dict[str, Left] = {}
    for rung in ladder:
        if not rung.capacity or rung.used_at_peak is None:
            continue
        each = Left(rung.limit, rung.subject, rung.used_at_peak, rung.capacity, rung.unit)
        known = fullest.get(rung.limit)
        if known is None or each.left_pct < known.left_pct:
            fullest[rung.limit] = each
    return tuple(sorted(fullest.values(), key=lambda each: each.left_pct))


def unwatched(signs: Signs) -> tuple[Unwatched, ...]:
    """Probes that did not see the run, those that were asked for first."""
    found = [
        Unwatched(record.probe, record.state, record.reason)
        for record in signs.probe_trust.records
        if record.state not in ("", "ran")
    ]
    return tuple(sorted(found, key=lambda each: each.state == "not_asked"))
