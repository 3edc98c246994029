"""``syn-backlog-overflow``: the queue of half-open connections is full.

Proof: TcpExtTCPReqQFullDrop, which the kernel counts when it drops a SYN because as many handshakes
are under way on that listener as its backlog allows and syncookies are off (net/ipv4/tcp_input.c,
tcp_syn_flood_action); or, where tcp_max_syn_backlog is smaller than the backlog, drops that no
other counter explains at a listener that was seen that full (tcp_conn_request). And attempts whose
SYN was not answered for a second or more, or ever.
Told apart from ``accept-queue-overflow``: there ListenOverflows moves; a full accept queue keeps
handshakes from ending, so both counters may move, and then that queue is the cause. From
``conntrack-full``: there no counter of the listener moves. In a network namespace that others use
as well the counters are also theirs: there a listener of the run must have dropped as many.
With syncookies (TCPReqQFullDoCookies) nothing is dropped and nothing is found.
"""

from __future__ import annotations

from dataclasses import replace

import pandas as pd

from analysis.causes import Cause
from analysis.evidence import Evidence, Finding, Fix
from analysis.signs.listen_queues import (
    Moved,
    Stalls,
    fuller_queue,
    is_told_by_clients_alone,
    moved_by_own,
    own_queues,
    stall_sentence,
    stalls,
    who_dropped,
)
from analysis.signs.signs import Signs

CAUSE = Cause(
    id="syn-backlog-overflow",
    line="the queue of half-open connections is full",
    decide="nstat -az TcpExtTCPReqQFullDrop: does it grow with the failures",
)

_OTHER_QUEUE = 10
"""See ``accept_queue_overflow``."""

_FULL_SHARE = 0.75
"""Without syncookies the last quarter of tcp_max_syn_backlog is kept for known peers."""

_LEAST_SYN_BACKLOG = 128
"""tcp_max_syn_backlog where it is not known: the least that a kernel begins with (tcp_sk_init)."""


def find(signs: Signs) -> list[Finding]:
    """One finding, about the listener that dropped most."""
    queues = own_queues(signs)
    if not signs.view.has_own_namespace:
        queues = queues[queues["dropped_count"] > 0]
    overflows = moved_by_own(signs, "TcpExtListenOverflows", queues)
    dropped, room = _dropped(signs, overflows, queues)
    if not signs.view.has_own_namespace and fuller_queue(queues) == "half-open":
        overflows = replace(overflows, change_count=0)  # they are of another server
    if dropped.change_count <= _OTHER_QUEUE * overflows.change_count:
        return []
    stalled = stalls(signs, connect_only=True)
    if stalled.is_unseen and is_told_by_clients_alone(signs):
        return []
    return [_finding(signs, dropped, room, stalled, queues)] if stalled.is_harm(dropped) else []


def _dropped(signs: Signs, overflows: Moved, queues: pd.DataFrame) -> tuple[Moved, int]:
    """SYNs dropped for a full queue of half-open connections, and its length (0: not known)."""
    counted = moved_by_own(signs, "TcpExtTCPReqQFullDrop", queues)
    if counted.change_count:
        return counted, int(queues["backlog_count"].max()) if len(queues) else 0
    drops = moved_by_own(signs, "TcpExtListenDrops", queues)
    others = drops.change_count - overflows.change_count
    asked = dict(signs.view.settings.get("sysctls") or {}).get("net.ipv4.tcp_max_syn_backlog", "")
    room = int(asked) if str(asked).isdigit() else 0
    longest = int(queues["syn_queue_count"].max()) if len(queues) else 0
    if others <= 0 or longest < _FULL_SHARE * (room or _LEAST_SYN_BACKLOG):
        return counted, 0
    return replace(drops, change_count=others), room


def _finding(
    signs: Signs, dropped: Moved, room: int, stalled: Stalls, queues: pd.DataFrame
) -> Finding:
    view = signs.view
    queues = queues.sort_values("syn_queue_count", ascending=False, kind="stable")
    subject = who_dropped(signs, queues)
    first_s = stalled.began_s(dropped)
    last_s = max(dropped.last_s, first_s)
    evidence = [
        Evidence(
            "syn_drops", dropped.change_count, "net_counters", dropped.first_s, of=dropped.name
        ),
        *stalled.evidence(),
    ]
    half_open = 0
    if len(queues):
        top = queues.iloc[0]
        half_open = int(top["syn_queue_count"])
        accept_queue = int(top["accept_queue_count"])
        evidence += [
            Evidence("half_open_connections", half_open, "listeners"),
            Evidence("listener_backlog", int(top["backlog_count"]), "listeners"),
            Evidence("longest_accept_queue", accept_queue, "listeners"),
        ]
    resent = view.frames["tcp_retransmits"]
    syns = resent[(resent["side"] == "client") & (resent["state"] == "SYN_SENT")]
    if len(syns):
        resent_count = int(syns["event_count"].sum())
        evidence.append(Evidence("syns_resent", resent_count, "tcp_retransmits"))
    confidence, missing = signs.trust("net_counters", "listeners")
    if is_told_by_clients_alone(signs):
        confidence = "low"
        missing += ("whose queue was full: other servers of the namespace count there too",)
    name = str(subject)
    full = f" ({half_open:,} of {room:,})" if room and half_open else ""
    wanted = 1 << max(room + dropped.change_count - 1, 1).bit_length()
    return Finding(
        cause=CAUSE.id,
        severity="warning",
        side="server",
        subject=subject,
        first_s=first_s,
        last_s=last_s,
        evidence=tuple(evidence),
        explanation=(
            f"The queue of half-open connections of {name} was full{full}: peers began a handshake "
            "and did not end it, by not answering or, with TCP_DEFER_ACCEPT, by not sending a "
            f"request. Syncookies are off, so the kernel dropped {dropped.change_count:,} SYNs of "
            f"others and no client is told: they are sent again after 1, 3 and 7 s. "
            f"{stall_sentence(stalled)}."
        ),
        fix=(
            Fix(
                "sysctl -w net.ipv4.tcp_syncookies=1",
                f"the {dropped.change_count:,} SYNs are answered with a cookie instead of dropped, "
                "however many are half open",
            ),
            Fix(
                (
                    f"sysctl -w net.ipv4.tcp_max_syn_backlog={wanted} net.core.somaxconn={wanted}  "
                    "# and listen with that backlog"
                )
                if view.is_foreign
                else f"profile-run --backlog {wanted} "
                f"--sysctl net.ipv4.tcp_max_syn_backlog={wanted}",
                f"room for {wanted:,} half-open connections of each listener",
            ),
        ),
        at_connections=view.open_count_at(first_s),
        confidence=confidence,
        missing=missing,
        sentence=f"The queue of half-open connections of {name} was full{full}: "
        f"{dropped.change_count:,} SYNs were dropped, {stall_sentence(stalled)}",
        explained_count=stalled.explained_count(dropped),
    )
