"""``source-address-missing``: a client binds an address that is not local to its host.

Proof: EADDRNOTAVAIL from bind, which Linux returns for nothing else there (net/ipv4/af_inet.c,
__inet_bind: the address is neither local nor allowed by ip_nonlocal_bind), and no connection from
that address once it began.
Told apart: ``ephemeral-ports-exhausted`` is EADDRNOTAVAIL as well, but from connect, with ports in
use; here the address holds none. ``bind-ports-exhausted`` is EADDRINUSE.
"""

from __future__ import annotations

import pandas as pd

from analysis.causes import Cause
from analysis.evidence import Evidence, Finding, Fix, Subject, capitalised, times
from analysis.signs.signs import EADDRNOTAVAIL, Signs

CAUSE = Cause(
    id="source-address-missing",
    line="a source address is not local to this host",
    decide="ip -brief address: is the address there",
)


def find(signs: Signs) -> list[Finding]:
    """One finding about the first client that met it."""
    refused = signs.errors_of("bind", EADDRNOTAVAIL)
    refused = refused[refused["role"].isin(["client", ""])]
    return [] if refused.empty else [_finding(signs, refused)]


def _finding(signs: Signs, refused: pd.DataFrame) -> Finding:
    view = signs.view
    connections = view.connections
    first = refused.sort_values("first_s", kind="stable").iloc[0]
    first_s, count = float(first["first_s"]), int(refused["event_count"].sum())
    subject = view.subject(int(first["pid"]))
    failed = connections[
        connections["is_failed"]
        & (connections["errno"] == EADDRNOTAVAIL)
        & (connections["stage"] == "bind")
    ]
    by_address = failed["source_address"].value_counts()
    address = str(by_address.index[0]) if len(by_address) else "an address of its own"
    opened = connections[connections["established_s"].notna()]
    from_it = int(opened["source_address"].isin(by_address.index).sum())
    elsewhere = len(opened) - from_it
    never_tried = max(0, view.target_count - len(connections))
    at_connections = view.open_count_at(first_s)
    confidence, missing = signs.trust("failing_syscalls")
    if from_it:
        missing += (f"{from_it:,} connections were open from it before: who took the address away",)
    evidence = (
        Evidence("eaddrnotavail_calls", count, str(first["source"]), first_s, of="bind"),
        Evidence("missing_addresses", len(by_address), "connections"),
        Evidence("connections_from_address", from_it, "connections", of=str(address)),
        Evidence("connections_from_others", elsewhere, "connections"),
    )
    who = str(subject) if subject.role else "a client"
    who = capitalised(who)
    others = f" and {len(by_address) - 1} more" if len(by_address) > 1 else ""
    lost = len(failed) + never_tried
    return Finding(
        cause=CAUSE.id,
        severity="warning",
        side="client",
        subject=subject if subject.role else Subject("client"),
        first_s=first_s,
        last_s=max(first_s, float(refused["last_s"].max())),
        evidence=evidence,
        explanation=(
            f"{who} binds {address}{others}, which no interface of its host (or of its network "
            f"namespace) has: bind failed with EADDRNOTAVAIL {times(count)}, before any packet was "
            f"sent. {elsewhere:,} connections from other addresses were established, so neither "
            "ports nor the server are the matter."
        ),
        fix=(
            Fix(
                f"ip address add {address}/32 dev lo  # or the interface it belongs to",
                f"bind succeeds: the {lost:,} connections that were planned from it can be made",
            ),
            Fix(
                "ip -brief address  # and give the client one of these",
                f"the same {lost:,} connections, from an address that is there",
            ),
        ),
        at_connections=at_connections,
        confidence=confidence,
        missing=missing,
        sentence=f"{who} bound {address}{others}, which is not local: bind failed with "
        f"EADDRNOTAVAIL {times(count)}, while others held {at_connections:,} connections",
        explained_count=max(1, lost),
    )
