"""``bind-ports-exhausted``: no local port is left at bind.

Proof: EADDRINUSE from bind of a client (net/ipv4/inet_connection_sock.c, inet_csk_get_port with
port 0), and ports bound from that source = size of the range, over all destinations together. A
port that bind takes is taken for every destination; with IP_BIND_ADDRESS_NO_PORT (ip(7)) connect
takes it, for one destination alone.
Told apart: ``ephemeral-ports-exhausted`` is EADDRNOTAVAIL from connect, with one (source,
destination, port) group full; ``source-address-missing`` is EADDRNOTAVAIL from bind. EADDRINUSE
from a server's bind is a port that somebody else listens on, and no client's matter.
"""

from __future__ import annotations

import pandas as pd

from analysis.causes import Cause
from analysis.evidence import Evidence, Finding, Fix, Subject, capitalised, times
from analysis.frames.ports import by_source
from analysis.signs.signs import EADDRINUSE, Signs
from analysis.stats.thresholds import FULL_SHARE

CAUSE = Cause(
    id="bind-ports-exhausted",
    line="no local port is left at bind",
    is_raised=True,
    decide="profile-run --bind late: what is left is not the ports of bind",
)


def find(signs: Signs) -> list[Finding]:
    """One finding about the source address with most ports taken."""
    refused = signs.errors_of("bind", EADDRINUSE)
    refused = refused[refused["role"].isin(["client", ""])]
    if refused.empty or signs.ports.empty:
        return []
    return [_finding(signs, refused)]


def _finding(signs: Signs, refused: pd.DataFrame) -> Finding:
    view = signs.view
    sources = by_source(signs.ports)
    top = sources.iloc[0]
    source, table = str(top["source_address"]), str(top["source"])
    bound, size = int(top["ports_used_count"]), int(top["range_count"])
    groups = signs.ports[signs.ports["source_address"] == source]
    fullest, destinations = int(groups["ports_used_count"].max()), len(groups)
    first = refused.sort_values("first_s", kind="stable").iloc[0]
    first_s, count = float(first["first_s"]), int(refused["event_count"].sum())
    subject = view.subject(int(first["pid"]))
    at_connections = view.begun_count_at(first_s)
    confidence, missing = signs.trust("failing_syscalls", "port_groups")
    if bound < FULL_SHARE * size:
        confidence = "low"
        missing += (
            f"only {bound:,} of {size:,} ports were seen in use from {source}: sockets of "
            "other programs may hold the rest (ss -tan | wc -l decides)",
        )
    evidence = (
        Evidence("eaddrinuse_calls", count, str(first["source"]), first_s, of="bind"),
        Evidence("ports_used", bound, table, first_s, of=source),
        Evidence("port_range_size", size, table),
        Evidence("destinations", destinations, table),
        Evidence("fullest_destination_ports", fullest, table),
        Evidence("connections_begun", at_connections, "connections", first_s),
    )
    who = str(subject) if subject.role else "a client"
    who = capitalised(who)
    room = ""
    if destinations > 1:
        room = (
            f" Towards the fullest of its {destinations} destinations it used {fullest:,}: each of "
            f"them had room for {size - fullest:,} more, had connect chosen the port."
        )
    return Finding(
        cause=CAUSE.id,
        severity="warning",
        side="client",
        subject=subject if subject.role else Subject("client"),
        first_s=first_s,
        last_s=max(first_s, float(refused["last_s"].max())),
        evidence=evidence,
        explanation=(
            f"{who} binds before it connects, so every local port is taken for all destinations: "
            f"{bound:,} of the {size:,} in the range were bound from {source}, and bind failed "
            f"with EADDRINUSE {times(count)}.{room} The server is not involved."
        ),
        fix=_fixes(signs, size, len(sources), destinations),
        at_connections=at_connections,
        confidence=confidence,
        missing=missing,
        sentence=f"{who} found no local port to bind: {bound:,} of {size:,} were bound from "
        f"{source} for all {destinations} destinations together, at {at_connections:,} connections",
        explained_count=_explained(signs),
    )


def _explained(signs: Signs) -> int:
    connections = signs.view.connections
    hit = connections["is_failed"] & (connections["errno"] == EADDRINUSE)
    never_tried = max(0, signs.view.target_count - len(connections))
    return max(1, int((hit & (connections["stage"] == "bind")).sum()) + never_tried)


def _fixes(signs: Signs, size: int, sources: int, destinations: int) -> tuple[Fix, ...]:
    wanted = max(signs.view.target_count, 2 * signs.view.peak_count)
    now = sources * size
    late = Fix(
        "setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1) before bind  "
        "# profile-run --bind late",
        f"connect takes the port, for one destination alone: this rung moves from {now:,} to "
        f"{now * destinations:,} connections ({destinations} destinations)",
    )
    addresses = max(sources + 1, -(-wanted // size))
    more = Fix(
        f"profile-run --source-addresses {addresses}",
        f"{size:,} ports for each address: this rung moves from {now:,} to "
        f"{addresses * size:,} connections",
    )
    return (late, more) if destinations > 1 else (more, late)
