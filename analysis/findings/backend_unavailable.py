"""``backend-unavailable``: the proxy that holds the clients reaches nobody behind it.

Proof: it answers handshakes with 502, 503 or 504 (RFC 9110, section 15.6), and its own connects to
what is behind it fail, with their errno; or it tries none while it is at no limit of its own.
Told apart from ``upgrade-refused``: the answer is the proxy's, not the application's. Where a
process behind it is known to be at a limit, this follows from that (``analysis.ranking``).
"""

from __future__ import annotations

import re

from analysis.evidence import Evidence, Finding, Fix, capitalised
from analysis.signs import Signs

_STATUS = re.compile(r"HTTP (50[234])\b")
_HARMFUL = {111: "ECONNREFUSED", 110: "ETIMEDOUT", 2: "ENOENT", 113: "EHOSTUNREACH", 11: "EAGAIN"}


def find(signs: Signs) -> list[Finding]:
    """One finding about the proxy, or none."""
    view = signs.view
    events = view.frames["events"]
    told = [str(d) for d in events[events["event"] == "upgrade_refused"]["detail"]]
    statuses = [int(match[1]) for text in told if (match := _STATUS.match(text))]
    if not view.is_foreign or not statuses:
        return []
    errors = signs.errors
    failed = errors[(errors["syscall"] == "connect") & errors["errno"].isin(_HARMFUL)]
    failed = failed[failed["role"].isin(["server", "acceptor"])]
    failed = failed[~(failed["first_s"] >= view.stop_s)]
    if failed.empty:
        return []
    by_pid = failed.groupby("pid")["event_count"].sum()
    pid = int(str(by_pid.idxmax()))
    mine = failed[failed["pid"] == pid]
    subject = view.subject(pid)
    name = capitalised(str(subject))
    first_s, last_s = float(mine["first_s"].min()), float(mine["last_s"].max())
    evidence = [Evidence("http_status", statuses[0], "events", first_s)]
    parts = []
    for code, rows in mine.groupby("errno"):
        count = int(rows["event_count"].sum())
        label = _HARMFUL[int(str(code))]
        evidence.append(Evidence("refused_connects", count, "failing_syscalls", first_s, of=label))
        parts.append(f"{count:,} connects returned {label}")
    connections = view.connections
    refused = connections["is_failed"] & (connections["close_kind"] == "protocol")
    confidence, missing = signs.trust("failing_syscalls")
    said = " and ".join(parts)
    return [
        Finding(
            cause="backend-unavailable",
            severity="warning",
            side="server",
            subject=subject,
            first_s=first_s,
            last_s=max(first_s, last_s),
            evidence=tuple(evidence),
            explanation=(
                f"{name} reached nobody behind it: {said}. It answered the handshakes itself, with "
                f"HTTP {statuses[0]}."
            ),
            fix=(
                Fix(
                    "ss -ltnpx  # does what is behind it listen, where the proxy looks for it?",
                    "the handshakes reach the application",
                ),
            ),
            at_connections=view.open_count_at(first_s),
            confidence=confidence,
            missing=missing,
            sentence=f"{name} reached nobody behind it ({said}) and answered HTTP {statuses[0]}",
            explained_count=int(refused.sum()),
        )
    ]
