"""``orphans-or-time-wait``: too many TCP sockets are left that no process has any more.

Proof: the host's orphans at ``tcp_max_orphans`` (net/ipv4/tcp.c, tcp_too_many_orphans) and
connections that the kernel ended by a reset for that (TCPAbortOnMemory). The limit is of the whole
host, the counter of a network namespace: where that is not the run's alone, resets of the server
itself must say so (TCP_ABORT_ON_MEMORY, Linux 6.10).
Or TIME_WAIT of the namespace at ``tcp_max_tw_buckets`` and TCPTimeWaitOverflow
(net/ipv4/tcp_minisocks.c, tcp_time_wait); in a namespace of many as many closes of the server's
own sockets. That harms hardly anybody, since all data were acknowledged, so it is told as worth
knowing and explains nothing.
Told apart from ``tcp-memory-pressure``, which moves TCPAbortOnMemory too: there TCP's memory is at
its limit and the orphans are few. From ``ephemeral-ports-exhausted``: there ports are used up, by
TIME_WAIT also, on the side that connects.
"""

from __future__ import annotations

from dataclasses import replace

from analysis.causes import Cause
from analysis.evidence import Evidence, Finding, Fix, Subject
from analysis.signs.listen_queues import moved
from analysis.signs.memory import until_stop
from analysis.signs.signs import Signs

CAUSE = Cause(
    id="orphans-or-time-wait",
    line="too many closed sockets are left that no process has any more",
    decide="nstat -az TcpExtTCPAbortOnMemory; cat /proc/net/sockstat: orphan",
)

_ORPHANS, _TIME_WAIT = "net.ipv4.tcp_max_orphans", "net.ipv4.tcp_max_tw_buckets"
_FULL_SHARE = 0.95
_PENALTY = 4
"""One that has not been heard of for long counts up to four times (net/ipv4/tcp_timer.c,
tcp_out_of_resources)."""
_REASON = "TCP_ABORT_ON_MEMORY"
_LEAST_COUNT = 10
_OWN_SHARE = 0.5
_MOST_MEMORY_SHARE = 0.95


def find(signs: Signs) -> list[Finding]:
    """At most one finding for each of the two limits, about the host."""
    return [*_orphans(signs), *_time_wait(signs)]


def _orphans(signs: Signs) -> list[Finding]:
    view = signs.view
    aborted = moved(signs, "TcpExtTCPAbortOnMemory")
    stat = until_stop(view, "sockstat")
    most = int(view.host_sysctl(_ORPHANS) or 0)
    if aborted.change_count < _LEAST_COUNT or stat.empty or not most:
        return []
    limited = stat[stat["tcp_mem_max_pages"] > 0]
    if (limited["tcp_mem_pages"] >= _MOST_MEMORY_SHARE * limited["tcp_mem_max_pages"]).any():
        return []  # out of memory, whoever has the sockets
    top = stat.iloc[int(stat["tcp_orphan_count"].to_numpy().argmax())]
    used = int(top["tcp_orphan_count"])
    if used < _FULL_SHARE * most / _PENALTY:
        return []
    resets = until_stop(view, "tcp_resets")
    by_reason = (resets["reason"] == _REASON) & (resets["direction"] == "tx")
    own_count = int(resets["event_count"][by_reason & (resets["side"] != "other")].sum())
    if not view.has_own_namespace:
        if own_count < _LEAST_COUNT:
            return []
        aborted = replace(aborted, change_count=min(aborted.change_count, own_count))
    evidence = [
        Evidence("limit_used", used, "sockstat", float(top["at_s"]), of=_ORPHANS),
        Evidence("limit_size", most, "manifest", of=_ORPHANS),
        Evidence("tcp_memory_aborts", aborted.change_count, "net_counters", aborted.first_s),
    ]
    if own_count:
        evidence.append(Evidence("abort_resets", own_count, "tcp_resets"))
    confidence, missing = signs.trust("sockstat", "net_counters")
    wanted = 1 << (4 * max(most, used) - 1).bit_length()
    at_connections = view.open_count_at(aborted.first_s)
    lost = view.connections
    lost_count = int((lost["is_lost"] & (lost["close_kind"] == "rst")).sum())
    return [
        Finding(
            cause=CAUSE.id,
            severity="warning",
            side="host",
            subject=Subject(),
            first_s=aborted.first_s,
            last_s=max(aborted.first_s, aborted.last_s),
            evidence=tuple(evidence),
            explanation=(
                f"Sockets that were closed and still have something to send or to hear have no "
                f"process any more: {used:,} such orphans, of {most:,} that this host allows "
                f"(one that hears nothing for long counts up to {_PENALTY} times). Beyond that "
                f"the kernel gives them up: {aborted.change_count:,} connections ended by a reset, "
                "and what their clients had not read yet was lost."
            ),
            fix=(
                Fix(
                    f"sysctl -w {_ORPHANS}={wanted}",
                    f"room for {wanted:,} orphans instead of {most:,}, at 2 to 64 kB each",
                ),
                Fix(
                    "ss -tano state fin-wait-1 state last-ack | awk '{print $5}' | sort | uniq -c",
                    "shows whose peers do not answer any more: a deadline for the close of the "
                    "server's own (SO_LINGER, a close frame first) leaves fewer of them",
                ),
            ),
            at_connections=at_connections,
            confidence=confidence,
            missing=missing,
            sentence=f"Orphaned sockets were at their limit ({used:,} of {most:,}): "
            f"{aborted.change_count:,} connections that had been closed ended by a reset",
            explained_count=min(lost_count, aborted.change_count),
        )
    ]


def _time_wait(signs: Signs) -> list[Finding]:
    view = signs.view
    over = moved(signs, "TcpExtTCPTimeWaitOverflow")
    stat = until_stop(view, "sockstat")
    stat = stat[stat["tcp_timewait_max_count"] >= 0]
    if over.change_count < _LEAST_COUNT or stat.empty:
        return []
    top = stat.iloc[int(stat["tcp_timewait_count"].to_numpy().argmax())]
    used, most = int(top["tcp_timewait_count"]), int(top["tcp_timewait_max_count"])
    if used < _FULL_SHARE * most:
        return []
    own_count = _closed_first(signs)
    if not view.has_own_namespace and own_count < _OWN_SHARE * over.change_count:
        return []
    evidence = [
        Evidence("limit_used", used, "sockstat", float(top["at_s"]), of=_TIME_WAIT),
        Evidence("limit_size", most, "sockstat", of=_TIME_WAIT),
        Evidence("time_wait_overflows", over.change_count, "net_counters", over.first_s),
    ]
    if own_count:
        evidence.append(Evidence("closed_first", own_count, "tcp_state_transitions"))
    confidence, missing = signs.trust("sockstat", "net_counters")
    wanted = 1 << max(4 * most - 1, 2 * (used + over.change_count) - 1, 1).bit_length()
    return [
        Finding(
            cause=CAUSE.id,
            severity="info",
            side="host",
            subject=Subject(),
            first_s=over.first_s,
            last_s=max(over.first_s, over.last_s),
            evidence=tuple(evidence),
            explanation=(
                f"Who closes first keeps the connection in TIME_WAIT for a minute. Of those this "
                f"network namespace may have {most:,} and had {used:,}, so {over.change_count:,} "
                "were forgotten at once. All their data had been acknowledged: none is lost. "
                "What still comes for one of them is answered by a reset, and its port can be "
                "taken at once. The kernel logs 'time wait bucket table overflow' for it."
            ),
            fix=(
                Fix(
                    f"sysctl -w {_TIME_WAIT}={wanted}",
                    f"room for {wanted:,} instead of {most:,}, at about 0.3 kB each",
                ),
            ),
            at_connections=view.open_count_at(over.first_s),
            confidence=confidence,
            missing=missing,
            sentence=f"TIME_WAIT was at its limit ({used:,} of {most:,}): {over.change_count:,} "
            "closed connections were forgotten at once, which lost no data",
            explained_count=0,
        )
    ]


def _closed_first(signs: Signs) -> int:
    """Closes of the run's own sockets that end in TIME_WAIT where there is room for it."""
    rows = until_stop(signs.view, "tcp_state_transitions")
    ends = rows["old_state"].isin(["FIN_WAIT2", "CLOSING"]) & (rows["new_state"] == "CLOSE")
    return int(rows["event_count"][ends & (rows["side"] != "other")].sum())
