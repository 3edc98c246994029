"""``accept-queue-overflow``: the application accepts too slowly for its backlog.

Proof: TcpExtListenOverflows, which the kernel counts for nothing else than a handshake dropped
because the accept queue was full (net/ipv4/tcp_input.c, tcp_conn_request; net/ipv4/tcp_ipv4.c,
tcp_v4_syn_recv_sock); attempts that stalled for a second or more, or in vain, as the retransmits of
what was dropped make them; and the listener whose queue and drops say that it was it. An overflow
that delayed nobody by a second is no harm and no finding.
Told apart from ``syn-backlog-overflow``: there TCPReqQFullDrop moves and the accept queue is empty.
From ``conntrack-full``: there no counter of the listener moves. A worker at its descriptor limit
leaves its queue to overflow too; then the limit is named and this is not. In a network namespace
that others use as well the counter is also theirs: there a listener of the run must have dropped
as many.
What made the acceptor slow (``worker-blocked``, ``hot-worker-code``, ...) is a finding of its own
where it is seen, and this one follows from it.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis.causes import Cause, Effect
from analysis.evidence import Evidence, Finding, Fix, Subject
from analysis.signs.listen_queues import (
    Moved,
    Stalls,
    full_pids,
    fuller_queue,
    is_told_by_clients_alone,
    moved_by_own,
    own_queues,
    stall_sentence,
    stalls,
    stands_alone,
    who_dropped,
)
from analysis.signs.signs import Signs

CAUSE = Cause(
    id="accept-queue-overflow",
    line="the application accepts too slowly for its backlog",
    follows_from=(
        Effect.STOPS_SERVING,
        Effect.FILLS_DESCRIPTORS,
        Effect.SLOWS_ACCEPT,
    ),
    decide="nstat -az TcpExtListenOverflows: does it grow with the failures",
    decide_between={
        "syn-backlog-overflow": (
            "nstat -az TcpExtListenOverflows TcpExtTCPReqQFullDrop: which of them grows"
        ),
        "conntrack-full": (
            "nstat -az TcpExtListenOverflows; conntrack -S: which of the two counts the lost SYNs"
        ),
    },
)

_OTHER_QUEUE = 10
"""So many times more drops by the other queue say that this one filled in passing: half-open
connections that end all at once go through it."""

_IDLE_PCT = 50.0
_UNKNOWN_PER_S = -1.0


def find(signs: Signs) -> list[Finding]:
    """One finding, about the listener that dropped most."""
    queues = own_queues(signs)
    if not signs.view.has_own_namespace:
        queues = queues[queues["dropped_count"] > 0]
    overflows = moved_by_own(signs, "TcpExtListenOverflows", queues)
    half_open = moved_by_own(signs, "TcpExtTCPReqQFullDrop", queues)
    if half_open.change_count > _OTHER_QUEUE * overflows.change_count:
        return []
    if not signs.view.has_own_namespace and fuller_queue(queues) == "half-open":
        return []  # the overflows are of another server
    stalled = stalls(signs)
    if not stalled.is_harm(overflows):
        return []
    if stalled.is_unseen and is_told_by_clients_alone(signs):
        return []
    full = full_pids(signs)
    if full:
        # what is not known to belong to another worker overflowed because of the limit
        is_other = [bool(pids) and not full.issuperset(pids) for pids in queues["pids"]]
        queues = queues[np.array(is_other, dtype=bool) & (queues["dropped_count"] > 0)]
        if queues.empty:
            return []
    return [_finding(signs, overflows, stalled, queues)]


def _finding(signs: Signs, overflows: Moved, stalled: Stalls, queues: pd.DataFrame) -> Finding:
    view = signs.view
    subject = who_dropped(signs, queues)
    first_s = stalled.began_s(overflows)
    evidence = [
        Evidence("listen_overflows", overflows.change_count, "net_counters", overflows.first_s),
        *stalled.evidence(),
    ]
    if stalled.late_count:
        evidence.append(Evidence("longest_stall", stalled.longest_s, "connections"))
    backlog = 0
    if len(queues):
        top = queues.iloc[0]
        backlog, waiting = int(top["backlog_count"]), int(top["accept_queue_count"])
        evidence += [
            Evidence("listener_backlog", backlog, "listeners"),
            Evidence("longest_accept_queue", waiting, "listeners", top["at_s"]),
            Evidence("listener_drops", int(top["dropped_count"]), "listeners"),
        ]
    resent = view.frames["tcp_retransmits"]
    resent_count = int(resent["event_count"][resent["side"] == "client"].sum())
    if resent_count:
        evidence.append(Evidence("client_segments_resent", resent_count, "tcp_retransmits"))
    last_s = max(overflows.last_s, first_s)
    why, rate_per_s, is_idle = _why_slow(signs, subject, first_s, last_s, evidence)
    confidence, missing = signs.trust("net_counters", "listeners")
    if is_told_by_clients_alone(signs):
        confidence = "low"
        missing += ("whose queue overflowed: other servers of the namespace count there too",)
    name = str(subject)
    its = f"of {name}" + (f" (backlog {backlog:,})" if backlog else "")
    also = ""
    if subject.pid and stands_alone(queues):
        others = int((queues["dropped_count"] > 0).sum()) - 1
        if others > 0:
            also = f", and those of {others:,} other{'s' if others > 1 else ''} for a while"
    return Finding(
        cause=CAUSE.id,
        severity="warning",
        side="server",
        subject=subject,
        first_s=first_s,
        last_s=last_s,
        evidence=tuple(evidence),
        explanation=(
            f"Connections came faster than they were accepted until the accept queue {its} "
            f"was full{also}. From then on the kernel dropped handshakes, "
            f"{overflows.change_count:,} times, and no client is told: clients send again after "
            f"1, 3 and 7 s. {stall_sentence(stalled)}.{why}"
        ),
        fix=_fixes(
            signs,
            backlog,
            stalled,
            overflows.change_count,
            rate_per_s,
            pid=subject.pid,
            is_idle=is_idle,
        ),
        at_connections=view.open_count_at(first_s),
        confidence=confidence,
        missing=missing,
        sentence=f"The accept queue {its} was full{also}: {overflows.change_count:,} handshakes "
        f"were dropped, {stall_sentence(stalled)}",
        explained_count=stalled.explained_count(overflows),
    )


def _why_slow(
    signs: Signs, subject: Subject, first_s: float, last_s: float, evidence: list[Evidence]
) -> tuple[str, float, bool]:
    """What the acceptor did meanwhile, for people; accepted a second (-1: unknown); it had time.

    Adds to the evidence.
    """
    view = signs.view
    if not subject.pid:
        return "", _UNKNOWN_PER_S, False
    live = view.frames["live_samples"]
    at_s = view.seconds_of(live["at_ns"])
    mine = live[(live["pid"] == subject.pid) & (at_s >= first_s) & (at_s <= last_s)]
    text, rate_per_s, is_idle = "", _UNKNOWN_PER_S, False
    if len(mine) >= 2:
        span_s = float(mine["at_ns"].iloc[-1] - mine["at_ns"].iloc[0]) / 1e9
        totals = mine["attempted_total"]
        rate_per_s = float(totals.iloc[-1] - totals.iloc[0]) / span_s
        evidence.append(Evidence("accept_rate", rate_per_s, "live_samples"))
        text = f" It accepted {rate_per_s:,.0f} a second meanwhile"
    cpu_pct = signs.cpu_pct_of(subject.pid, first_s, last_s)
    if cpu_pct is not None:
        evidence.append(Evidence("process_cpu", cpu_pct, "process_samples"))
        text += (" and" if text else " It") + f" used {cpu_pct:.0f} % of a core"
        waited_pct = signs.wait_pct_of(subject.pid, first_s, last_s) or 0.0
        is_idle = cpu_pct + waited_pct < _IDLE_PCT
        if is_idle:
            text += ": it had time and did not come to accept"
    return (f"{text}." if text else ""), rate_per_s, is_idle


def _fixes(
    signs: Signs,
    backlog: int,
    stalled: Stalls,
    dropped_count: int,
    rate_per_s: float,
    *,
    pid: int,
    is_idle: bool,
) -> tuple[Fix, ...]:
    waited = stalled.failed_count + stalled.late_count
    if stalled.is_unseen:
        waited = dropped_count
    wanted = 1 << max(backlog + waited - 1, 1).bit_length()
    drain = f", the last of them after {waited / rate_per_s:,.0f} s" if rate_per_s > 0 else ""
    holds = f"the queue holds all {waited:,} that were dropped instead of {backlog:,}{drain}"
    more = 2 * max(1, len(signs.view.who[signs.view.who["role"] == "server"]))
    if signs.view.is_foreign:
        longer = Fix(_longer_queue(signs, wanted), holds)
        if is_idle and rate_per_s == 0:  # who waits in a longer queue waits as well
            why = (
                f"strace -f -p {pid} -e trace=accept,accept4,epoll_wait,futex  # why it takes "
                "none: it has time"
            )
            return (Fix(why, "a longer queue only holds more who wait in vain"),)
        if not is_idle or rate_per_s <= 0:
            return (longer,)
        oftener = (
            f"accept in a loop in which nothing waits  # it took {rate_per_s:,.0f} a second and "
            "had time: what it does between two accepts goes into a thread or the event loop"
        )
        return Fix(oftener, "connections are taken as fast as they come"), longer
    return (
        Fix(f"profile-run --backlog {wanted}", holds),
        Fix(f"profile-run --workers {more}", "twice as many accept: the queues fill half as fast"),
    )


def _longer_queue(signs: Signs, wanted: int) -> str:
    """How the queue gets room: net.core.somaxconn bounds what a program asks for in listen(2)."""
    text = signs.view.sysctl("net.core.somaxconn")
    most = int(text) if text.isdigit() else 0
    if most >= wanted:
        return f"listen with a backlog of {wanted}  # net.core.somaxconn is {most:,}: it allows it"
    return f"sysctl -w net.core.somaxconn={wanted}  # and listen with that backlog"
