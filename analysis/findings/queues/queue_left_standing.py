"""``queue-left-standing``: connections stand in the accept queue of a server that sleeps.

Proof: connections that had stood in the queue for a second and more at two looks (sock_diag
and struct tcp_info), while the process that owns the listener waited for events, had CPU to spare,
and took others; or its epoll says that it is told of them only once (EPOLLET, /proc/PID/fdinfo),
and nobody came who would have told it again.
Told apart from ``own-limit``: there it takes nobody, although some come. From
``accept-queue-overflow``: there the queue fills since the process is busy or blocked. From
``worker-blocked``: there its loop stands in another call.
"""

from __future__ import annotations

from analysis.causes import Cause, Effect
from analysis.evidence import Evidence, Finding, Fix, capitalised
from analysis.server import fates
from analysis.signs.left_queues import LeftQueue, left_queues
from analysis.signs.room_left import unserved_count
from analysis.signs.signs import Signs

CAUSE = Cause(
    id="queue-left-standing",
    line="connections stand in the accept queue of a server that sleeps",
    effect=Effect.STOPS_SERVING,
)


def find(signs: Signs) -> list[Finding]:
    """One finding for each process of the deepest tier that leaves some in its queue."""
    queues = {queue.pid: queue for queue in left_queues(signs)}
    return [_finding(signs, queues[pid]) for pid in fates.deepest(signs.view, queues)]


def _finding(signs: Signs, queue: LeftQueue) -> Finding:
    view = signs.view
    subject = view.subject(queue.pid)
    name = capitalised(str(subject))
    place = f"port {queue.port}"
    evidence = [
        Evidence("standing_queue", queue.count, "open_fates", queue.first_s, of=place),
        Evidence("quiet_in_queue", queue.quiet_count, "open_fates", queue.first_s),
        Evidence("asleep_looks", queue.looks_count, "thread_waits", queue.first_s),
        Evidence("taken_meanwhile", queue.taken_count, "live_samples", queue.first_s),
    ]
    if queue.is_told_once:
        evidence.append(Evidence("told_once", 1, "listener_watches"))
    cpu_pct = signs.cpu_pct_of(queue.pid, queue.first_s, queue.last_s)
    used = ""
    if cpu_pct is not None:
        evidence.append(Evidence("process_cpu", cpu_pct, "process_samples", queue.first_s))
        used = f", at {cpu_pct:.0f} % of a core"
    confidence, missing = signs.trust("open_fates", "thread_waits", "listener_watches")
    if not queue.is_told_once and confidence == "high":
        confidence = "medium"
        missing += ("why it does not take them: its epoll does not say so",)
    sentence = (
        f"{name} waited for events while {queue.count:,} connections stood in the queue of "
        f"{place}, {_part(queue)} for a second and more{used}: {_why(queue)}"
    )
    return Finding(
        cause=CAUSE.id,
        severity="warning",
        side="server",
        subject=subject,
        first_s=queue.first_s,
        last_s=queue.last_s,
        evidence=tuple(evidence),
        explanation=f"{sentence}. Neither a longer queue nor a faster host helps.",
        fix=_fixes(queue),
        at_connections=view.open_count_at(queue.first_s),
        confidence=confidence,
        missing=missing,
        sentence=sentence,
        explained_count=queue.count if view.is_attached else unserved_count(signs),
    )


def _part(queue: LeftQueue) -> str:
    return "all" if queue.quiet_count >= queue.count else f"{queue.quiet_count:,} of them"


def _why(queue: LeftQueue) -> str:
    took = f"it took {queue.taken_count:,} meanwhile" if queue.taken_count else "it took none"
    if queue.is_told_once:
        return (
            "it watches its listener with EPOLLET, which tells it once of several that come "
            f"together, and does not take all of them ({took})"
        )
    return f"{took}, and had time to take them all"


def _fixes(queue: LeftQueue) -> tuple[Fix, ...]:
    if queue.is_told_once:
        return (
            Fix(
                "accept in a loop until EAGAIN at each event of the listener",
                "none stays in the queue while the server waits for events",
            ),
            Fix(
                "or watch the listener without EPOLLET",
                "it is told as long as a connection waits",
            ),
        )
    return (
        Fix(
            "accept until EAGAIN at each event of the listener  # no pause, timer or rate limit "
            "between two accepts",
            "connections are taken as fast as they come",
        ),
    )
