"""``neighbour-table-full``: the kernel's table of neighbours has no room for one more address.

Proof: entries that the kernel refused (``table_fulls`` of the table; net/core/neighbour.c,
neigh_alloc) while it held ``gc_thresh3`` of them, and segments of the server, or calls of the run,
that ended for want of one (NEIGH_CREATEFAIL of kfree_skb, ENOBUFS). One table serves all network
namespaces of the host, so that others fill it: whom they harmed tells their own packets alone.
Told apart from ``enobufs``: that errno with a full table is this. From ``conntrack-full``: there
netfilter drops. From a neighbour that does not answer (EHOSTUNREACH): its entry was made.
"""

from __future__ import annotations

from typing import NamedTuple

from analysis.causes import Cause
from analysis.evidence import Evidence, Finding, Fix, Subject
from analysis.signs.listen_queues import Moved, Stalls, moved, server_drops, stall_sentence, stalls
from analysis.signs.memory import ENOBUFS
from analysis.signs.signs import Signs

CAUSE = Cause(
    id="neighbour-table-full",
    line="the kernel's table of neighbours has no room for a new address",
    decide="ip -s ntable show: does table_fulls grow while connects wait",
)

_REASON = "NEIGH_CREATEFAIL"
_FUNCTIONS = ("ip_finish_output2", "ip6_finish_output2")
"""Where it is dropped, before Linux 5.17 told why."""
_FULL_SHARE = 0.9
"""From ``gc_thresh3`` on each new entry first throws out old ones, so that a sample may find it a
little below."""


class _Table(NamedTuple):
    """One of the two tables, as a user knows it."""

    name: str
    counter: str
    sysctl: str
    show: str


_TABLES = (
    _Table("arp", "ArpTableFulls", "net.ipv4.neigh.default.gc_thresh", "ip -4 neigh"),
    _Table("ndisc", "NdiscTableFulls", "net.ipv6.neigh.default.gc_thresh", "ip -6 neigh"),
)


def find(signs: Signs) -> list[Finding]:
    """One finding about the host for each table that was full, or none."""
    own = server_drops(signs, _REASON, _FUNCTIONS)
    errors = signs.errors
    errors = errors[(errors["errno"] == ENOBUFS) & ~(errors["first_s"] >= signs.view.stop_s)]
    refused_count = int(errors["event_count"].sum())
    stalled = stalls(signs, connect_only=True)
    if not (refused_count or stalled.is_harm(own)):
        return []
    found = []
    for table in _TABLES:
        fulls = moved(signs, table.counter)
        used, most, at_s = _peak(signs, table.name)
        if fulls.change_count and used >= _FULL_SHARE * most > 0:
            found.append(
                _finding(signs, table, fulls, (used, most, at_s), own, refused_count, stalled)
            )
    return found


def _peak(signs: Signs, name: str) -> tuple[int, int, float]:
    """Most entries, the limit then, and when; zeros where the table is not known."""
    view = signs.view
    rows = view.frames["sockstat"]
    at_s = view.seconds_of(rows["at_ns"])
    rows = rows.assign(at_s=at_s)[(at_s <= view.last_sample_s) & (rows[f"{name}_max_count"] > 0)]
    if rows.empty:
        return 0, 0, 0.0
    top = rows.sort_values(f"{name}_entries_count", kind="stable").iloc[-1]
    return int(top[f"{name}_entries_count"]), int(top[f"{name}_max_count"]), float(top["at_s"])


def _finding(
    signs: Signs,
    table: _Table,
    fulls: Moved,
    peak: tuple[int, int, float],
    own: Moved,
    refused_count: int,
    stalled: Stalls,
) -> Finding:
    view = signs.view
    used, most, at_s = peak
    is_harm = stalled.is_harm(own)
    first_s = min(stalled.began_s(own), own.first_s) if own.change_count else fulls.first_s
    evidence = [
        Evidence("limit_used", used, "sockstat", at_s, of=f"{table.sysctl}3"),
        Evidence("limit_size", most, "sockstat", of=f"{table.sysctl}3"),
        Evidence("neighbours_refused", fulls.change_count, "net_counters", fulls.first_s),
    ]
    harm = []
    if own.change_count:
        evidence.append(Evidence("neighbour_drops", own.change_count, "skb_drops", own.first_s))
        harm.append(f"{own.change_count:,} segments of the server's connections were not sent")
    if refused_count:
        evidence.append(Evidence("enobufs_calls", refused_count, "failing_syscalls"))
        harm.append(f"{refused_count:,} calls of the run returned ENOBUFS")
    if is_harm:
        evidence += stalled.evidence()
        harm.append(stall_sentence(stalled))
    confidence, missing = signs.trust("sockstat", "net_counters", "skb_drops")
    wanted = 1 << (4 * most - 1).bit_length()
    at_connections = view.open_count_at(first_s)
    return Finding(
        cause=CAUSE.id,
        severity="warning",
        side="host",
        subject=Subject(),
        first_s=first_s,
        last_s=max(first_s, fulls.last_s, own.last_s if own.change_count else first_s),
        evidence=tuple(evidence),
        explanation=(
            f"The kernel keeps one entry for each address on its own links, in one table for the "
            f"whole host and its containers; it held {used:,} of {most:,}, none of which could be "
            f"given up, and refused {fulls.change_count:,} more. What goes to a new address is "
            f"dropped where it would be sent, and TCP sends it again after 1, 3 and 7 s: "
            f"{'; '.join(harm)}. The entries are of any process and container of this host."
        ),
        fix=(
            Fix(
                f"sysctl -w {table.sysctl}3={wanted} {table.sysctl}2={wanted // 2}  # on the host "
                "itself: a container does not have it",
                f"room for {wanted:,} neighbours instead of {most:,}, at about 0.4 kB each",
            ),
            Fix(
                f"{table.show} show nud all | awk '{{print $3, $NF}}' | sort | uniq -c",
                f"shows which device the {used:,} neighbours are of, and how many do not answer "
                "(FAILED, INCOMPLETE): a scan, or a network that is too large for one link",
            ),
        ),
        at_connections=at_connections,
        confidence=confidence,
        missing=missing,
        sentence=f"The table of neighbours was full ({used:,} of {most:,}, {table.sysctl}3): "
        + " and ".join(harm),
        explained_count=stalled.explained_count(own) if is_harm else 0,
    )
