"""``worker-replaced``: a worker ended in good order, and took its connections along.

Proof: exit status 0, or the signal that asks a process to end; a process of the same program that
started while it was there or soon after; and the connections that were lost between the two. So
ends a reload, a rolling restart, or a worker that served its number of requests.
Told apart from ``worker-crash``: there the status or the signal says that something went wrong, or
nobody took its place. From ``closed-by-server``: the process that closes lives on.
"""

from __future__ import annotations

import re
import signal

from analysis.causes import Cause
from analysis.evidence import Evidence, Finding, Fix, capitalised, connections_text, side_of_role
from analysis.frames.run_view import RunView
from analysis.server.process_ends import ProcessEnd
from analysis.signs.signs import Signs

CAUSE = Cause(
    id="worker-replaced",
    line="a worker ended in good order and took its connections along",
    decide="the run again without a reload: what is left is not the replacement",
)


def find(signs: Signs) -> list[Finding]:
    """One finding for each worker that was replaced at the cost of connections, first first."""
    return [
        _finding(signs, end)
        for end in signs.process_ends
        if end.is_orderly and end.successor_pid and end.lost_count > 0
    ]


def _finding(signs: Signs, end: ProcessEnd) -> Finding:
    view = signs.view
    subject, successor = view.subject(end.pid), view.subject(end.successor_pid)
    evidence = [
        Evidence("exit_signal", end.signal, "processes", end.ended_s)
        if end.signal
        else Evidence("exit_status", end.status, "processes", end.ended_s),
        Evidence("process_connections", end.held_count, "live_samples", end.first_lost_s),
        Evidence("successor_age", end.ended_s - end.successor_s, "processes", end.ended_s),
    ]
    if not view.is_attached:
        evidence.insert(1, Evidence("lost_with_it", end.lost_count, "connections", end.ended_s))
    how = signal.Signals(end.signal).name if end.signal else f"exit status {end.status}"
    age_s = end.ended_s - end.successor_s
    took = (
        f"had been there for {age_s:.1f} s" if age_s > 0 else f"took its place {-age_s:.1f} s later"
    )
    name, lost = capitalised(str(subject)), connections_text(end.lost_count)
    confidence, missing = signs.trust("live_samples")
    return Finding(
        cause=CAUSE.id,
        severity="warning",
        side=side_of_role(subject.role),
        subject=subject,
        first_s=end.first_lost_s,
        last_s=max(end.first_lost_s, end.ended_s),
        evidence=tuple(evidence),
        explanation=(
            f"{name} ended in good order ({how}) and closed what it still held, {lost}; its "
            f"successor, {successor}, {took}. So ends a reload, a rolling restart or a worker that "
            "has served its number of requests: new connections go to the successor, and those "
            "that are open go with the old one."
        ),
        fix=_fixes(view, end, subject.command),
        at_connections=view.open_count_at(end.first_lost_s - 0.001),
        confidence=confidence,
        missing=missing,
        sentence=f"{name} was replaced by {successor}, ended in good order ({how}) and took "
        f"{lost} with it",
        explained_count=end.lost_count,
    )


def _fixes(view: RunView, end: ProcessEnd, command: str) -> tuple[Fix, ...]:
    lost = connections_text(end.lost_count)
    drained_s = end.ended_s - end.successor_s
    program = re.split(r"[: ]", command, maxsplit=1)[0]
    found = []
    if program == "nginx" and drained_s > 0:
        found.append(
            Fix(
                "worker_shutdown_timeout 4h;  # in nginx.conf, main context",
                f"the old worker keeps its {lost} for that time; it kept them {drained_s:.1f} s",
            )
        )
    elif program == "haproxy":
        found.append(
            Fix("hard-stop-after 4h  # in the section global", f"the old one keeps its {lost}")
        )
    elif "gunicorn" in command:
        found.append(
            Fix(
                "gunicorn --max-requests 0 --graceful-timeout 300",
                "no worker is replaced for having served its number, and a reload waits longer",
            )
        )
    elif "uvicorn" in command:
        found.append(
            Fix(
                "uvicorn without --limit-max-requests, --timeout-graceful-shutdown 300",
                "no worker is replaced for having served its number, and a reload waits longer",
            )
        )
    found.append(
        Fix(
            "before it ends, have the old worker close its connections a few at a time with code "
            "1012, and clients connect again after a random delay",
            f"{lost} then move to the successor one after the other",
        )
    )
    return tuple(found)
