"""``backend-unavailable``: the proxy that holds the clients reaches nobody behind it.

Proof: it answers handshakes with 502, 503 or 504 (RFC 9110, section 15.6), and its own connects to
what is behind it fail: with their errno; or later than the call, which a proxy asks of the socket
(SO_ERROR), by the resets that came instead of an answer and by its own words. A server that closes
its clients for that, without an answer, is told by as many. Or a process behind it has requests
that it read and did not answer before the proxy gave up.
Told apart from ``upgrade-refused``: the answer is the proxy's, not the application's. Where a
process behind it is known to be at a limit, this follows from that (``analysis.verdict.ranking``).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from analysis.causes import Cause, Effect
from analysis.evidence import Evidence, Finding, Fix, Subject, capitalised
from analysis.frames.run_view import RunView
from analysis.server import fates
from analysis.server.own_timeouts import name_timeout
from analysis.signs.limit_met import asks_nobody_more
from analysis.signs.signs import Signs

CAUSE = Cause(
    id="backend-unavailable",
    line="the proxy does not reach its backend",
    follows_from=(
        Effect.STOPS_SERVING,
        "unix-queue-full",
        Effect.SLOWS_ACCEPT,
        Effect.FILLS_DESCRIPTORS,
        "worker-crash",
    ),
)

_STATUS = re.compile(r"HTTP (50[234])\b")
_NOT_REACHED = re.compile(
    r"connect\(\)|while connecting to upstream|no server available|no healthy upstream"
    r"|attempt to connect to|proxy error: dial|handlers for .* are down"
    r"|connect E[A-Z]+|Connection refused|connection refused|Connect call failed"
)
"""Of the lines that mean this cause, those of connects: others speak of one who was reached."""
_STATE = re.compile(r"no server available|no healthy upstream|handlers for .* are down")
"""Lines that are said once, when it begins."""
_SAID_TO_CLIENTS = re.compile(
    r"No server is available to handle this request|no healthy upstream|no available server"
)
"""What a proxy answers when it asks nobody any more: haproxy, envoy, traefik."""
_HARMFUL = {111: "ECONNREFUSED", 110: "ETIMEDOUT", 2: "ENOENT", 113: "EHOSTUNREACH", 11: "EAGAIN"}
_EACH_SHARE = 0.5
_LISTENS = Fix(
    "ss -ltnpx  # does what is behind it listen, where the proxy looks for it?",
    "the handshakes reach the application",
)


@dataclass(frozen=True, slots=True)
class _Unreached:
    """How a proxy reached nobody.

    Attributes:
        subject: Whose fault it is, the proxy where it found nobody.
        said: What happened, for people.
        evidence: What proves it.
        first_s: When it began.
        last_s: When it was last seen.
        tables: What it rests on.
        fixes: What helps.
    """

    subject: Subject
    said: str
    evidence: tuple[Evidence, ...]
    first_s: float
    last_s: float
    tables: tuple[str, ...]
    fixes: tuple[Fix, ...] = (_LISTENS,)


def find(signs: Signs) -> list[Finding]:
    """One finding about the proxy, or none."""
    view = signs.view
    told = fates.refusals_told(view)
    statuses = [int(match[1]) for text in told if (match := _STATUS.match(text))]
    closed = view.connections[view.connections["close_kind"].isin(["eof", "rst"])]
    is_closed = int(closed["is_failed"].sum()) >= fates.LEAST_COUNT and not signs.process_ends
    if not view.is_foreign or not (statuses or is_closed):
        return []
    ways: tuple[Callable[[Signs], _Unreached | None], ...]
    ways = (_failed_connects, _refused_connects, _told, _told_to_clients, _silent_backend)
    if not statuses:  # it says nothing to its clients: as often as it closed them, and no other way
        ways = (_failed_for_each, _told_for_each)
    found = next((each for way in ways if (each := way(signs)) is not None), None)
    return [] if found is None else [_finding(signs, found, (*statuses, 0)[0])]


def _for_each(signs: Signs, found: _Unreached | None) -> _Unreached | None:
    """The same where it happened about once for each that was closed."""
    count = sum(e.value for e in found.evidence if e.id == "refused_connects") if found else 0
    connections = signs.view.connections
    gone = connections["is_failed"] & connections["close_kind"].isin(["eof", "rst"])
    return found if count >= _EACH_SHARE * int(gone.sum()) else None


def _failed_for_each(signs: Signs) -> _Unreached | None:
    return _for_each(signs, _failed_connects(signs) or _refused_connects(signs))


def _told_for_each(signs: Signs) -> _Unreached | None:
    return _for_each(signs, _told(signs))


def _failed_connects(signs: Signs) -> _Unreached | None:
    """Connects of the proxy that failed at once, with their errno."""
    view, errors = signs.view, signs.errors
    failed = errors[(errors["syscall"] == "connect") & errors["errno"].isin(_HARMFUL)]
    failed = failed[failed["role"].isin(["server", "acceptor"])]
    failed = failed[~(failed["first_s"] >= view.stop_s)]
    if failed.empty:
        return None
    by_pid = failed.groupby("pid")["event_count"].sum()
    pid = int(str(by_pid.idxmax()))
    mine = failed[failed["pid"] == pid]
    first_s, last_s = float(mine["first_s"].min()), float(mine["last_s"].max())
    evidence, parts = [], []
    for code, rows in mine.groupby("errno"):
        count = int(rows["event_count"].sum())
        label = _HARMFUL[int(str(code))]
        evidence.append(Evidence("refused_connects", count, "failing_syscalls", first_s, of=label))
        parts.append(f"{count:,} connect{'s' if count != 1 else ''} returned {label}")
    said = f"{capitalised(str(view.subject(pid)))} did not reach its backend: {' and '.join(parts)}"
    tables = ("failing_syscalls",)
    return _Unreached(view.subject(pid), said, tuple(evidence), first_s, last_s, tables)


def _silent_backend(signs: Signs) -> _Unreached | None:
    """A process behind the proxy that reads requests and answers none while the proxy waits."""
    view = signs.view
    behind = fates.backend_pids(view)
    waiting = [each for each in fates.stuck(view) if each.pid in behind]
    waiting = [each for each in waiting if each.unanswered_count >= fates.LEAST_COUNT]
    refused_s = _refused_after_s(view)
    if not waiting or not refused_s:
        return None
    most = waiting[0]
    who = view.subject(most.pid)
    front = view.subject(fates.busiest_front(view))
    evidence = [
        Evidence("unanswered_connections", most.unanswered_count, "open_fates", most.first_s),
        Evidence("time_to_answer_median", refused_s, "connections", most.first_s),
    ]
    said = f"{capitalised(str(who))} read {most.unanswered_count:,} requests and did not answer "
    said += f"them, until {front} gave up after {refused_s:.1f} s"
    fixes = [
        Fix(
            f"profile-attach --pid {most.pid} --duration 30  # while requests wait: what it does",
            "it answers in time",
        )
    ]
    waited = name_timeout(front.command, [view.process_facts(front.pid)], refused_s)
    if waited is not None:
        place = f"{waited.where}: {waited.text}"
        evidence.append(Evidence("own_timeout", waited.value_s, "manifest", of=place))
        said += f" ({waited.text}, {waited.where})"
        fixes.append(Fix(waited.fix(), "the proxy waits until it answers"))
    last_s = most.last_s
    tables = ("open_fates",)
    return _Unreached(who, said, tuple(evidence), most.first_s, last_s, tables, tuple(fixes))


def _refused_connects(signs: Signs) -> _Unreached | None:
    """Resets for connects that are no client's: a connect that does not wait returns no error."""
    view = signs.view
    if not view.has_own_namespace:
        return None  # other programs connect there as well
    resets = view.frames["tcp_resets"]
    is_refusal = (resets["direction"] == "rx") & (resets["state"] == "SYN_SENT")
    mine = resets[is_refusal & (resets["side"] == "other")]
    count = int(mine["event_count"].sum())
    if count < max(fates.LEAST_COUNT, len(fates.refused(view)) // 2):
        return None
    first_s = view.seconds(int(mine["first_ns"].min()))
    subject = view.subject(fates.busiest_front(view))
    said = f"{capitalised(str(subject))} did not reach its backend: {count:,} connects were refused"
    evidence = (Evidence("refused_connects", count, "tcp_resets", first_s, of=_HARMFUL[111]),)
    return _Unreached(subject, said, evidence, first_s, view.stop_s, ("tcp_resets",))


def _told(signs: Signs) -> _Unreached | None:
    """The proxy says it of its connects."""
    view = signs.view
    words = [
        each
        for each in signs.words_of("backend-unavailable")
        if each.first_s < view.stop_s and _NOT_REACHED.search(each.line)
    ]
    count = sum(each.count for each in words)
    if count < fates.LEAST_COUNT and not any(_STATE.search(each.line) for each in words):
        return None
    if asks_nobody_more(signs):
        return None
    pids = fates.servers(view)
    speaker = next((each.pid for each in words if each.pid in pids), 0)
    subject = view.subject(speaker or fates.busiest_front(view))
    first_s, last_s = min(e.first_s for e in words), max(e.last_s for e in words)
    if count < fates.LEAST_COUNT:
        return _asks_nobody(view, subject, max(0.0, first_s), last_s)
    evidence = (Evidence("refused_connects", count, "server_words", first_s, of=_HARMFUL[111]),)
    said = f"{capitalised(str(subject))} did not reach its backend: {count:,} connects were refused"
    return _Unreached(subject, said, evidence, first_s, last_s, ("server_words",))


def _told_to_clients(signs: Signs) -> _Unreached | None:
    """Its answer is the one that it has for when nobody behind it is up."""
    view = signs.view
    refused = fates.refused(view)
    told = fates.refusals_told(view)
    if refused.empty or not any(_SAID_TO_CLIENTS.search(text) for text in told):
        return None
    subject = view.subject(fates.busiest_front(view))
    return _asks_nobody(
        view, subject, float(refused["closed_s"].min()), float(refused["closed_s"].max())
    )


def _asks_nobody(view: RunView, subject: Subject, first_s: float, last_s: float) -> _Unreached:
    """A proxy that holds all that are behind it for down."""
    said = f"{capitalised(str(subject))} asked no backend: it holds them all for down"
    refused = Evidence("handshakes_refused", len(fates.refused(view)), "connections", first_s)
    return _Unreached(subject, said, (refused,), first_s, last_s, ("server_words",))


def _refused_after_s(view: RunView) -> float:
    """How long clients waited for the refusal, 0 for nobody."""
    refused = fates.refused(view)
    return float((refused["closed_s"] - refused["start_s"]).median()) if len(refused) else 0.0


def _finding(signs: Signs, found: _Unreached, status: int) -> Finding:
    view = signs.view
    first_s = found.first_s
    confidence, missing = signs.trust(*found.tables)
    refused = len(fates.refused(view))
    closed = view.connections[view.connections["close_kind"].isin(["eof", "rst"])]
    closed_count = int(closed["is_failed"].sum())
    who = "the proxy" if fates.backend_pids(view) else "it"
    does = f"answered HTTP {status}" if status else f"closed {closed_count:,} handshakes"
    how = f"answered {refused:,} handshakes itself, with HTTP {status}" if status else does
    evidence = Evidence("handshakes_refused", closed_count, "connections", first_s)
    if status:
        evidence = Evidence("http_status", status, "events", first_s)
    return Finding(
        cause=CAUSE.id,
        severity="warning",
        side="server",
        subject=found.subject,
        first_s=first_s,
        last_s=max(first_s, found.last_s),
        evidence=(evidence, *found.evidence),
        explanation=f"{found.said}. {capitalised(who)} {how}.",
        fix=found.fixes,
        at_connections=view.open_count_at(first_s),
        confidence=confidence,
        missing=missing,
        sentence=f"{found.said}; {who} {does}",
        explained_count=refused if status else closed_count,
    )
