"""``conntrack-full``: the connection tracking table has no room for a new flow.

Proof: nf_conntrack_count at nf_conntrack_max, packets that were dropped because an entry could not
be made (``drop`` of /proc/net/stat/nf_conntrack; net/netfilter/nf_conntrack_core.c,
nf_conntrack_in), and attempts whose SYN was not answered for a second or more, or ever. The errno
says nothing: at most ETIMEDOUT.
Told apart from ``accept-queue-overflow`` and ``syn-backlog-overflow``: here the SYN never arrives,
so no counter of the listener moves; the table's own does. Of a server that is only watched nobody
knows who waited: there segments of the server itself must be among what netfilter dropped, since
others of its network namespace fill the table and are refused by it, too.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from analysis.causes import Cause
from analysis.evidence import Evidence, Finding, Fix, Subject
from analysis.frames.failures import drops_of_run
from analysis.frames.run_view import RunView
from analysis.signs.listen_queues import Moved, Stalls, moved, stall_sentence, stalls
from analysis.signs.signs import Signs
from analysis.stats.thresholds import FULL_TABLE_SHARE

CAUSE = Cause(
    id="conntrack-full",
    line="the connection tracking table has no room for a new flow",
    decide="conntrack -C against net.netfilter.nf_conntrack_max while SYNs are lost",
)


def find(signs: Signs) -> list[Finding]:
    """One finding about the host, or none."""
    view = signs.view
    table = view.frames["sockstat"]
    at_s = view.seconds_of(table["at_ns"])
    table = table.assign(at_s=at_s)[(at_s <= view.stop_s) & (table["conntrack_max_count"] > 0)]
    full = table[table["conntrack_count"] >= FULL_TABLE_SHARE * table["conntrack_max_count"]]
    dropped = moved(signs, "ConntrackDrop")
    stalled = stalls(signs, connect_only=True)
    if full.empty or not stalled.is_harm(dropped):
        return []
    if stalled.is_unseen:  # whose packets they were is not seen in a client's wait
        refused_count = _refused_to_server(view)
        if not refused_count:
            return []
        dropped = replace(dropped, change_count=min(dropped.change_count, refused_count))
    top = full.sort_values("conntrack_count", kind="stable").iloc[-1]
    return [
        _finding(
            signs,
            dropped,
            stalled,
            (int(top["conntrack_count"]), int(top["conntrack_max_count"]), float(top["at_s"])),
        )
    ]


def _refused_to_server(view: RunView) -> int:
    """Segments to the server, or from it, that netfilter dropped.

    The table and what it drops are of everybody in the namespace; these are the server's own.
    """
    drops = drops_of_run(view)
    # before Linux 5.17 a drop has no reason, and only one function to be dropped in
    by_filter = (drops["reason"] == "NETFILTER_DROP") | (drops["location"] == "nf_hook_slow")
    return int(drops["event_count"][by_filter & (drops["of_server"] != 0)].sum())


def _finding(
    signs: Signs, dropped: Moved, stalled: Stalls, peak: tuple[int, int, float]
) -> Finding:
    view = signs.view
    count, most, at_s = peak
    first_s = stalled.began_s(dropped)
    at_connections = view.open_count_at(first_s)
    evidence = [
        Evidence("conntrack_entries", count, "sockstat", at_s),
        Evidence("conntrack_max", most, "sockstat"),
        Evidence("conntrack_drops", dropped.change_count, "net_counters", dropped.first_s),
        *stalled.evidence(),
        Evidence(
            "connections_open",
            at_connections,
            "live_samples" if view.is_attached else "connections",
            first_s,
        ),
    ]
    early = moved(signs, "ConntrackEarlyDrop")
    if early.change_count:
        evidence.append(Evidence("conntrack_early_drops", early.change_count, "net_counters"))
    resent = view.frames["tcp_retransmits"]
    syns = resent[(resent["side"] == "client") & (resent["state"] == "SYN_SENT")]
    if len(syns):
        resent_count = int(syns["event_count"].sum())
        evidence.append(Evidence("syns_resent", resent_count, "tcp_retransmits"))
    by_filter = _refused_to_server(view)
    if by_filter:
        evidence.append(Evidence("netfilter_drops", by_filter, "skb_drops"))
    confidence, missing = signs.trust("sockstat", "net_counters")
    wanted = 1 << int(np.ceil(np.log2(max(2 * most, most + view.target_count))))
    ports = [int(port) for port in (view.manifest.get("server") or {}).get("ports") or []]
    port = ports[0] if ports else "PORT"
    return Finding(
        cause=CAUSE.id,
        severity="warning",
        side="host",
        subject=Subject(),
        first_s=first_s,
        last_s=max(dropped.last_s, first_s),
        evidence=tuple(evidence),
        explanation=(
            f"The connection tracking table held {count:,} of {most:,} entries, and each new "
            f"connection needs one. {dropped.change_count:,} packets were dropped for want of it, "
            "SYNs among them, before they reached the listener. No client gets an error: clients "
            f"send again after 1, 3 and 7 s and time out. {stall_sentence(stalled)}. "
            f"{at_connections:,} connections of the run were open then; the other entries are of "
            "other flows, also of some that ended and are still remembered."
        ),
        fix=(
            Fix(
                f"sysctl -w net.netfilter.nf_conntrack_max={wanted}",
                f"moves this rung from {at_connections:,} connections to about "
                f"{wanted - most + at_connections:,}, at one entry each (about 0.3 kB)",
            ),
            Fix(
                f"nft add rule inet raw prerouting tcp dport {port} notrack  # and output, sport",
                f"connections to port {port} need no entry at all",
            ),
        ),
        at_connections=at_connections,
        confidence=confidence,
        missing=missing,
        sentence=f"The connection tracking table was full ({count:,} of {most:,} entries) at "
        f"{at_connections:,} connections: {stall_sentence(stalled)}",
        explained_count=stalled.explained_count(dropped),
    )
