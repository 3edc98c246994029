"""Which finding stopped the run, which followed from it. Why so: docs/design/0004-binding.md.

No list of priorities: consequences are taken out first, because a consequence cannot have stopped
what its cause had stopped already; of the rest, those that explain no missing connection are ruled
out; the earliest of what remains is binding.
"""

from __future__ import annotations

from collections.abc import Sequence

from analysis.causes import Effect
from analysis.evidence import SEVERITIES, Finding, Severity
from analysis.findings import CATALOGUE, no_limit_met, origins_of
from analysis.findings.cpu import host_cpu_saturated, worker_blocked
from analysis.findings.descriptors import full_worker_on_shared_listener
from analysis.findings.memory import slow_consumers
from analysis.frames.descriptors import server_capacity_count
from analysis.signs.oom_victims import victims
from analysis.signs.signs import EMFILE, Signs

_SLOW = slow_consumers.CAUSE.id
_SHARED = full_worker_on_shared_listener.CAUSE.id
_NO_LIMIT = no_limit_met.CAUSE.id
_OF_OTHERS = (6, 9, 15)
"""Signals that a watchdog, a supervisor or an orchestrator sends: ABRT, KILL, TERM."""
_BY_THE_WAY_SHARE = 0.1

_DIES_WITHIN_S = 2.0
"""What a runtime does between the refusal and its end: it writes a report."""
_TOLERANCE_S = 0.6
"""Live counters come four times, descriptor counts twice a second: earlier is not sharper."""
_UNTIL_IT_IS_SAID_S = 3.0
"""A collector is seen by the second; a runtime without a core says late that its heap is full."""
_BETWEEN_LOOKS_S = 5.0
"""Queues that stand are seen to do so at the second look at them."""


def rank(signs: Signs, findings: Sequence[Finding]) -> list[Finding]:
    """Gives every finding its severity; binding first, then by severity and time.

    Args:
        signs: From the run.
        findings: From ``analysis.findings.find_all``.
    """
    ranked = []
    origins = {id(f): origin_of(signs, f, findings) for f in findings}
    binding = find_binding(signs, findings)
    if binding is not None and binding.cause != _NO_LIMIT:
        findings = [finding for finding in findings if finding.cause != _NO_LIMIT]
    for finding in findings:
        origin = origins[id(finding)]
        if finding is binding:
            ranked.append(finding.with_severity("binding"))
        elif origin is not None:
            severity: Severity = "contributing" if binding is not None else "warning"
            ranked.append(finding.with_severity(severity, follows_from=origin.cause))
        elif binding is not None and _is_likewise(finding, binding):
            ranked.append(finding.with_severity("contributing"))
        else:
            ranked.append(finding)
    return sorted(ranked, key=lambda f: (SEVERITIES.index(f.severity), f.first_s, f.cause))


def _is_likewise(finding: Finding, binding: Finding) -> bool:
    """What stopped the run came about in another process as well, and turned clients away there."""
    is_other = finding.subject.pid != binding.subject.pid
    turned_away = finding.severity == "warning" and finding.explained_count > 0
    return finding.cause == binding.cause and is_other and turned_away


def find_binding(signs: Signs, findings: Sequence[Finding]) -> Finding | None:
    """What stopped the run first; ``reached`` when nothing did; None when nothing explains it."""
    if signs.view.is_attached:
        return _first_met(signs, findings)
    reached = [f for f in findings if f.cause == "reached"]
    if reached:
        return reached[0]
    own = [f for f in findings if origin_of(signs, f, findings) is None]
    explaining = [f for f in own if f.explained_count > 0]
    if not explaining and (signs.unmet_count > 0 or signs.view.is_client_gone):
        # e.g. a worker that spins while nothing recorded why it is full
        explaining = [f for f in own if f.first_s < signs.view.stop_s and f.severity != "info"]
    most = max((f.explained_count for f in explaining), default=0)
    explaining = [f for f in explaining if not _is_by_the_way(f, most)]
    return _earliest(signs, explaining)


def _earliest(signs: Signs, findings: Sequence[Finding]) -> Finding | None:
    """The first; of several that two clocks cannot tell apart the one that explains most."""
    first = min(findings, key=lambda f: (f.first_s, -f.explained_count), default=None)
    if first is None:
        return None
    bound_s = max((part.bound_ns for part in signs.view.frames.hosts), default=0) / 1e9
    together = [
        finding
        for finding in findings
        if finding.first_s <= first.first_s + bound_s and finding.subject.host != first.subject.host
    ]
    return max((first, *together), key=lambda f: f.explained_count)


def _is_by_the_way(finding: Finding, most_count: int) -> bool:
    """A full host, which is so for whatever runs beside it, explains next to nothing."""
    is_host = finding.cause == host_cpu_saturated.CAUSE.id
    return is_host and finding.explained_count < _BY_THE_WAY_SHARE * most_count


def _first_met(signs: Signs, findings: Sequence[Finding]) -> Finding | None:
    """Of a run that only watched: the first limit that turned clients away, else that did harm.

    There is no target to miss and no client's record. docs/design/0007-watching.md has the reasons.
    """
    own = [f for f in findings if origin_of(signs, f, findings) is None]
    harming = [f for f in own if not CATALOGUE[f.cause].is_harmless and f.severity != "info"]
    hitting = [f for f in harming if f.explained_count > 0]
    nothing = [f for f in findings if f.cause == _NO_LIMIT]
    candidates = hitting or harming or nothing
    return min(candidates, key=lambda f: (f.first_s, -f.explained_count), default=None)


def origin_of(signs: Signs, finding: Finding, findings: Sequence[Finding]) -> Finding | None:
    """The finding that this one follows from, None when it stands for itself."""
    grows = CATALOGUE[finding.cause].grows_into_it
    for cause in origins_of(CATALOGUE[finding.cause]):
        for other in findings:
            since_s = finding.last_s if grows else finding.first_s
            late_s = _UNTIL_IT_IS_SAID_S if grows else _TOLERANCE_S
            late_s = _BETWEEN_LOOKS_S if cause == _SLOW else late_s
            is_earlier = other.first_s <= since_s + late_s
            # what the host lacks, both sides lack
            is_near = other.side in (finding.side, "host") and _may_share_host(finding, other)
            is_near = is_near or _SLOW in (cause, finding.cause)  # between the two sides
            if other.cause == cause and is_near and is_earlier:
                if cause == _SLOW and (other.severity == "info" or not _is_same(finding, other)):
                    continue
                if finding.cause == "worker-crash" and not _died_of(signs, finding, other):
                    continue
                if cause == "runtime-heap-limit" and not _is_same(finding, other):
                    continue
                if finding.cause == "upgrade-refused" and not (
                    _is_server_error(finding) or _is_refusal_of(finding, other)
                ):
                    continue
                is_own = CATALOGUE[cause].effect is Effect.SLOWS_ACCEPT
                is_own = is_own or finding.cause == "worker-blocked"
                if is_own and not _is_same(finding, other):
                    continue
                if _SHARED in (finding.cause, cause):
                    # One of the two is the root: the spread where the limits had been enough for
                    # the target, the limit where they had not.
                    had_room = _had_room(signs)
                    if had_room is not (cause == _SHARED):
                        continue
                return other
    return None


def _had_room(signs: Signs) -> bool:
    """All workers together could have held what was wanted.

    How much is wanted of a server that is only watched, nobody said: it had room as long as not
    all of its workers were full.
    """
    capacity = server_capacity_count(signs.descriptors)
    if not signs.view.is_attached:
        return capacity >= signs.view.target_count
    workers = signs.descriptors[signs.descriptors["role"] == "server"]
    return bool((workers["peak_count"] < workers["capacity_count"] - 1).any())


def _may_share_host(finding: Finding, other: Finding) -> bool:
    """What a host lacks, the processes of another one do not."""
    hosts = finding.subject.host, other.subject.host
    return other.side != "host" or "" in hosts or hosts[0] == hosts[1]


def _is_same(finding: Finding, other: Finding) -> bool:
    """Both are about one process, or this one's could not be told."""
    return finding.subject.pid in (0, other.subject.pid)


def _is_server_error(refusal: Finding) -> bool:
    """A status of 500 to 599 (RFC 9110, section 15.6): the server is willing, and cannot."""
    return 500 <= (refusal.value_of("http_status") or 0) <= 599


def _is_refusal_of(refusal: Finding, other: Finding) -> bool:
    """The other finding is about the same answers, whatever their status."""
    counted = other.value_of("handshakes_refused")
    return counted is not None and counted == refusal.value_of("handshakes_refused")


def _died_of(signs: Signs, crash: Finding, other: Finding) -> bool:
    """That very process was killed for memory, met EMFILE, or was refused what it needed."""
    if other.cause == "memory-exhausted":
        return _was_killed_for_memory(signs, crash)
    if CATALOGUE[other.cause].effect is Effect.FILLS_DESCRIPTORS:
        return _was_at_limit(signs, crash)
    is_soon = crash.first_s <= other.last_s + _DIES_WITHIN_S
    is_it = is_soon and crash.subject.pid == other.subject.pid
    if other.cause == worker_blocked.CAUSE.id:
        # who sleeps ends itself by nothing: somebody lost patience with it
        is_it = is_it and crash.value_of("exit_signal") in _OF_OTHERS and other.severity != "info"
    return is_it


def _was_killed_for_memory(signs: Signs, crash: Finding) -> bool:
    """The process that died was killed by the kernel, which was out of memory then."""
    return crash.subject.pid in victims(signs.view).pids


def _was_at_limit(signs: Signs, crash: Finding) -> bool:
    """The process that died had met EMFILE within the second before."""
    emfile = signs.errors
    mine = emfile[(emfile["pid"] == crash.subject.pid) & (emfile["errno"] == EMFILE)]
    return bool((mine["last_s"] >= crash.first_s - 1.0).any())
