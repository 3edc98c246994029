"""``unix-queue-full``: the accept queue of a Unix socket behind the server is full.

Proof: the queue of that listener at its limit (sock_diag), or connects of the server that returned
EAGAIN, which of a Unix socket means just that (connect(2)).
Told apart from ``accept-queue-overflow``: that is of TCP, whose clients wait; here the proxy gets
its EAGAIN at once and answers with an error.
"""

from __future__ import annotations

from analysis.causes import Cause, Effect
from analysis.evidence import Evidence, Finding, Fix, capitalised
from analysis.server import fates
from analysis.server.fates import StandingQueue
from analysis.signs.signs import Signs
from probes.contract.schema import SERVER_ROLES

CAUSE = Cause(
    id="unix-queue-full",
    line="the accept queue of a Unix socket behind the server is full",
    follows_from=(
        Effect.STOPS_SERVING,
        Effect.FILLS_DESCRIPTORS,
        Effect.SLOWS_ACCEPT,
    ),
)

_EAGAIN = 11


def find(signs: Signs) -> list[Finding]:
    """One finding for each Unix socket of the server whose queue was full."""
    view = signs.view
    if not view.is_foreign:
        return []
    queues = [each for each in fates.standing_queues(view) if each.is_unix and each.is_full]
    return [_finding(signs, each) for each in queues]


def _finding(signs: Signs, queue: StandingQueue) -> Finding:
    view = signs.view
    subject = view.subject(queue.pid)
    name = str(subject)
    refused = signs.errors_of("connect", _EAGAIN)
    refused = refused[refused["role"].isin(SERVER_ROLES)]
    count = int(refused["event_count"].sum())
    first_s = min([queue.first_s, *(float(at_s) for at_s in refused["first_s"])])
    evidence = [
        Evidence("standing_queue", queue.count, "unix_listeners", queue.first_s, of=queue.place),
        Evidence("queue_limit", queue.backlog_count, "unix_listeners", of=queue.place),
    ]
    said = ""
    if count:
        evidence.append(Evidence("queue_full_refusals", count, "failing_syscalls", first_s))
        said = f", and {count:,} connects to it were refused"
    confidence, missing = signs.trust("unix_listeners")
    wanted = 8 * max(queue.backlog_count, 128)
    return Finding(
        cause=CAUSE.id,
        severity="warning",
        side="server",
        subject=subject,
        first_s=first_s,
        last_s=max(first_s, queue.last_s),
        evidence=tuple(evidence),
        explanation=(
            f"{queue.count:,} connections waited in the queue of {queue.place}, which takes "
            f"{queue.backlog_count:,}{said}. {capitalised(name)} listens there and accepted "
            f"{'too few' if queue.is_moving else 'none'} "
            "in that time."
        ),
        fix=(
            Fix(
                f"listen(fd, {wanted}) in {subject.command or name}  # and sysctl -w "
                f"net.core.somaxconn={max(wanted, 4096)} where it is lower",
                f"up to {wanted:,} may wait; it helps only when they are accepted in the end",
            ),
        ),
        at_connections=view.open_count_at(first_s),
        confidence=confidence,
        missing=missing,
        sentence=f"The queue of {queue.place} ({name}) was full with {queue.count:,} connections"
        f"{said}",
        explained_count=count or (view.failed_count if not view.is_attached else 0),
    )
