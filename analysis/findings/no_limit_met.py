"""``no-limit-met``: a server was watched with its real clients, and no limit was met meanwhile.

Proof: the connections and the time that were watched, calls that failed for want of a resource (0)
and handshakes that full queues dropped (0). It says nothing about load that did not come: that is
the ladder. Every other finding that stands for itself goes before it (analysis/verdict/ranking.py).
"""

from __future__ import annotations

from analysis.causes import Cause
from analysis.evidence import Evidence, Finding, Subject
from analysis.server import fates
from analysis.server.closed_at_once import unclear_count
from analysis.server.fates import LEAST_COUNT
from analysis.signs.listen_queues import moved_by_own, own_queues
from analysis.signs.signs import EMFILE, ENFILE, Signs
from probes.contract.schema import SERVER_ROLES

CAUSE = Cause(
    id="no-limit-met",
    line="no limit was met while it was watched",
    is_harmless=True,
)

DECIDING_TABLES = ("failing_syscalls", "net_counters", "process_samples")
"""Where a limit that was met would have been seen: the verdict rests on nothing being there."""

_BRIEF_SHARE = 0.1
"""Of the connections that came: fewer that are gone at once are checks of health and the like."""


def find(signs: Signs) -> list[Finding]:
    """One finding for a run that only watched, none for any other."""
    view = signs.view
    if not view.is_attached:
        return []
    watched_s = view.hold.duration_s
    processes = len(view.who[view.who["role"].isin(SERVER_ROLES)])
    refused = signs.errors[signs.errors["errno"].isin([EMFILE, ENFILE])]
    dropped = moved_by_own(signs, "TcpExtListenOverflows", own_queues(signs)).change_count
    confidence, missing = signs.trust(*DECIDING_TABLES, is_by_absence=True)
    taken = taken_count(signs)
    doubts = [
        each
        for each in (
            _unwatched_refusals(signs, taken),
            _unclear_ends(signs),
            _standing_queue(signs),
        )
        if each
    ]
    if doubts:
        confidence, missing = "low", (*doubts, *missing)
    evidence = (
        Evidence("peak_connections", view.peak_count, "live_samples"),
        Evidence("connections_taken", taken, "live_samples"),
        Evidence("time_watched", watched_s, "manifest"),
        Evidence("processes_watched", processes, "processes"),
        Evidence("descriptor_refusals", int(refused["event_count"].sum()), "failing_syscalls"),
        Evidence("listen_overflows", dropped, "net_counters"),
    )
    plural = "es" if processes != 1 else ""
    sentence = (
        f"No limit was met in {watched_s:.0f} s of watching: up to {view.peak_count:,} "
        f"connections in {processes} process{plural}"
    )
    return [
        Finding(
            cause=CAUSE.id,
            severity="info",
            side="server",
            subject=Subject("server"),
            first_s=view.hold.start_s,
            last_s=max(view.hold.start_s, view.hold.end_s),
            evidence=evidence,
            explanation=(
                f"{sentence}. {taken:,} connections were taken meanwhile. What clients saw is not "
                "known here: they are elsewhere, and only the server's side was watched."
            ),
            at_connections=view.held_count,
            confidence=confidence,
            missing=missing,
            sentence=sentence,
        )
    ]


def taken_count(signs: Signs) -> int:
    """Connections that came while it was watched: growth of the totals of all processes."""
    totals = signs.view.watched_samples.groupby("pid")["established_total"]
    return int((totals.max() - totals.min()).sum())


def _unwatched_refusals(signs: Signs, taken: int) -> str:
    """What may have been missed, for people: connections ended as soon as they had come, and calls
    that fail were watched for a part of the time alone; '' where that cannot be.
    """  # noqa: D205  # one sentence does not fit one line
    view = signs.view
    health = view.frames["probe_health"]
    mine = health["probe"] == "failing_syscalls"
    unwatched_ns = health["unwatched_ns"][mine].clip(lower=0).sum()
    ended = ended_at_once_count(signs)
    if unwatched_ns <= 0 or ended < max(LEAST_COUNT, _BRIEF_SHARE * taken):
        return ""
    length_s = view.hold.duration_s
    watched_s = max(0.0, length_s - unwatched_ns / 1e9)
    return (
        f"{ended:,} of {taken:,} connections ended as soon as they had come, and why is not known: "
        f"calls that fail were watched {watched_s:.1f} of {length_s:.1f} s, to cost the server no "
        "more"
    )


def _unclear_ends(signs: Signs) -> str:
    """What a server that forks for each connection may have turned away, for people; '' for none.

    Some come and go with a child that is too short to be seen.
    """
    view = signs.view
    count = unclear_count(view)
    served = sum(fates.is_process_per_connection(view, pid) for pid in fates.servers(view))
    if count < max(LEAST_COUNT, _BRIEF_SHARE * served):
        return ""
    return (
        f"{count:,} connections were closed as soon as they had come, and whether a child of the "
        "server went on to serve them is not known"
    )


def _standing_queue(signs: Signs) -> str:
    """That connections stand in a queue of its own, and nothing says why, for people; '' for none.

    A queue that stands at the last two looks at it has kept somebody waiting.
    """
    looks = signs.view.frames["listeners"]
    looks = looks[looks["local_port"].isin(signs.view.server_ports)]
    last_two = sorted(set(looks["at_ns"]))[-2:]
    counts = [int(looks["accept_queue_count"][looks["at_ns"] == each].sum()) for each in last_two]
    if len(counts) < 2 or min(counts) < LEAST_COUNT:
        return ""
    return f"why {counts[-1]:,} connections stood in its accept queue at the last look"


def ended_at_once_count(signs: Signs) -> int:
    """Connections that came and ended between two samples, of those that did so by the handful."""
    samples = signs.view.watched_samples.sort_values("at_ns", kind="stable")
    grouped = samples.groupby("pid", sort=False)
    came = grouped["established_total"].diff()
    ended = (came - grouped["open_count"].diff()).clip(upper=came)
    return int(ended[ended >= LEAST_COUNT].sum())
