"""``ephemeral-ports-exhausted``: no local port is left for one destination.

Proof: EADDRNOTAVAIL from connect (net/ipv4/inet_hashtables.c, __inet_hash_connect), and ports in
use for that (source, destination, port) = size of the range.
A proxy is a client of what is behind it: there the same errno comes from a process of the server,
and each connection of the run costs it one port.
Told apart: ``source-address-missing`` is EADDRNOTAVAIL from bind, ``bind-ports-exhausted`` is
EADDRINUSE from bind. Windows reports this wall as WSAENOBUFS (10055).
"""

from __future__ import annotations

import pandas as pd

from analysis.causes import Cause
from analysis.evidence import Evidence, Finding, Fix, Subject, capitalised, times
from analysis.frames.ports import namespace_port_range
from analysis.signs.signs import EADDRNOTAVAIL, Signs
from analysis.stats.thresholds import FULL_SHARE
from probes.contract.schema import SERVER_ROLES

CAUSE = Cause(
    id="ephemeral-ports-exhausted",
    line="no local port is left for one destination",
    is_raised=True,
    decide="profile-run with twice the --source-addresses: what is left is not ports",
    decide_between={
        "bind-ports-exhausted": (
            "profile-run --bind late: EADDRINUSE at bind goes away, EADDRNOTAVAIL at connect stays"
        ),
    },
)


def find(signs: Signs) -> list[Finding]:
    """One finding a side: of the clients about the fullest group; the others are counted."""
    refused = signs.errors_of("connect", EADDRNOTAVAIL)
    is_server = refused["role"].isin(SERVER_ROLES)
    found = _of_clients(signs, refused[refused["role"].isin(["client", ""])])
    return found + _of_a_proxy(signs, refused[is_server])


def _of_clients(signs: Signs, refused: pd.DataFrame) -> list[Finding]:
    if refused.empty or signs.ports.empty:
        return []
    view = signs.view
    full = signs.ports[signs.ports["used_pct"] >= 100 * FULL_SHARE]
    refusing = signs.ports[signs.ports["refused_count"] > 0]
    group = (full if len(full) else refusing if len(refusing) else signs.ports).iloc[0]
    used, size = int(group["ports_used_count"]), int(group["range_count"])
    first = refused.sort_values("first_s", kind="stable").iloc[0]
    first_s, last_s = float(first["first_s"]), float(refused["last_s"].max())
    count = int(refused["event_count"].sum())
    pid = int(first["pid"])
    subject = view.subject(pid)
    at_connections = view.begun_count_at(first_s)
    source, table = str(group["source_address"]), str(group["source"])
    port = int(group["destination_port"])
    confidence, missing = signs.trust("failing_syscalls", "port_groups")
    if used < FULL_SHARE * size:
        confidence = "low"
        missing += (
            f"only {used:,} of {size:,} ports were seen in use for the fullest group: sockets "
            "of other programs, or explicit binds, may hold the rest (ss -tan | wc -l decides)",
        )
    evidence = (
        Evidence("eaddrnotavail_calls", count, str(first["source"]), first_s, of="connect"),
        Evidence("ports_used", used, table, first_s, of=source),
        Evidence("port_range_size", size, table),
        Evidence("full_port_groups", max(len(full), len(refusing)), table),
        Evidence("connections_begun", at_connections, "connections", first_s),
    )
    who = str(subject) if subject.role else "a client"
    return [
        Finding(
            cause=CAUSE.id,
            severity="warning",
            side="client",
            subject=subject if subject.role else Subject("client"),
            first_s=first_s,
            last_s=max(first_s, last_s),
            evidence=evidence,
            explanation=(
                f"Every TCP connection from {source} to port {port} needs a local port of its own; "
                f"{used:,} of the {size:,} in the range were taken, so connect failed with "
                f"EADDRNOTAVAIL {times(count)}. The server is not involved. Windows reports the "
                "same wall as WSAENOBUFS (10055), and bigger buffers do not help there either."
            ),
            fix=_fixes(signs, size),
            at_connections=at_connections,
            confidence=confidence,
            missing=missing,
            sentence=f"{capitalised(who)} had no local port left: {used:,} of {size:,} "
            f"were in use from {source} to port {port}, at {at_connections:,} connections",
            explained_count=_explained(view.connections),
        )
    ]


def _of_a_proxy(signs: Signs, refused: pd.DataFrame) -> list[Finding]:
    if refused.empty:
        return []
    view = signs.view
    first = refused.sort_values("first_s", kind="stable").iloc[0]
    first_s, last_s = float(first["first_s"]), float(refused["last_s"].max())
    count = int(refused["event_count"].sum())
    low, high = namespace_port_range(view)
    size = high - low + 1
    at_connections = view.open_count_at(first_s)
    subject = view.subject(int(first["pid"]))
    confidence, missing = signs.trust("failing_syscalls")
    who = str(subject)
    failed = view.connections["is_failed"] & (view.connections["stage"] == "handshake")
    after = failed & (view.connections["closed_s"] >= first_s)
    widest = 65_535 - 1_024 + 1
    fixes = [
        Fix(
            "let it connect from several addresses, or to several (nginx: proxy_bind, more than "
            "one server in its upstream)",
            f"{size:,} ports for each pair of addresses: this rung moves from {size:,} to "
            f"{2 * size:,} connections with two",
        ),
        Fix(
            'sysctl -w net.ipv4.ip_local_port_range="1024 65535"',
            f"this rung moves from {size:,} to {widest:,} connections",
        ),
    ]
    return [
        Finding(
            cause=CAUSE.id,
            severity="warning",
            side="server",
            subject=subject,
            first_s=first_s,
            last_s=max(first_s, last_s),
            evidence=(
                Evidence("eaddrnotavail_calls", count, str(first["source"]), first_s, of="connect"),
                Evidence("port_range_size", size, "manifest"),
                Evidence("connections_open", at_connections, "connections", first_s),
                Evidence("processes_affected", len(refused), str(first["source"])),
            ),
            explanation=(
                f"{capitalised(who)} opens a connection of its own for each one that it "
                f"takes, and had no local port left for that: connect failed with EADDRNOTAVAIL "
                f"{times(count)}, at {at_connections:,} connections of {size:,} ports in the "
                "range. What is behind it is not involved."
            ),
            fix=tuple(fixes if size < widest else fixes[:1]),
            at_connections=at_connections,
            confidence=confidence,
            missing=missing,
            sentence=f"{capitalised(who)} had no local port left for the connections that "
            f"it opens itself, at {at_connections:,} connections of {size:,} ports",
            explained_count=max(1, int(after.sum()) + view.waiting_count),
        )
    ]


def _explained(connections: pd.DataFrame) -> int:
    hit = connections["is_failed"] & (connections["errno"] == EADDRNOTAVAIL)
    return max(1, int((hit & (connections["stage"] == "connect")).sum()))


def _fixes(signs: Signs, size: int) -> tuple[Fix, ...]:
    groups = max(1, len(signs.ports))
    wanted = max(signs.view.target_count, 2 * signs.view.peak_count)
    addresses = max(groups + 1, -(-wanted // 10_000))
    widest = 65_535 - 1_024 + 1
    is_of_the_run = signs.view.plan.get("port_range_by") in ("namespace", "socket")
    fixes = [
        Fix(
            f"profile-run --source-addresses {addresses}",
            f"{size:,} ports for each address: this rung moves from {groups * size:,} to "
            f"{addresses * size:,} connections",
        ),
        Fix(
            "profile-run --port-range 1024-65535"
            if is_of_the_run
            else 'sysctl -w net.ipv4.ip_local_port_range="1024 65535"',
            f"{widest:,} ports a group instead of {size:,}: this rung moves from {groups * size:,} "
            f"to {groups * widest:,} connections",
        ),
    ]
    return tuple(fixes if size < widest else fixes[:1])
