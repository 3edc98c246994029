"""``backend-unavailable``: the proxy that holds the clients reaches nobody behind it.

Proof: it answers handshakes with 502, 503 or 504 (RFC 9110, section 15.6), and its own connects to
what is behind it fail: with their errno; or later than the call, which a proxy asks of the socket
(SO_ERROR), by the resets that came instead of an answer and by its own words.
Told apart from ``upgrade-refused``: the answer is the proxy's, not the application's. Where a
process behind it is known to be at a limit, this follows from that (``analysis.ranking``).
"""

from __future__ import annotations

import re

from analysis.evidence import Evidence, Finding, Fix, capitalised
from analysis.fates import LEAST_COUNT
from analysis.signs import Signs

_STATUS = re.compile(r"HTTP (50[234])\b")
_NOT_REACHED = re.compile(
    r"connect\(\)|while connecting to upstream|no server available|no healthy upstream"
)
"""Of the lines that mean this cause, those of connects: others speak of one who was reached."""
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
    connections = view.connections
    refused = connections["is_failed"] & (connections["close_kind"] == "protocol")
    if failed.empty:
        late = _told_late(signs, int(refused.sum()))
        if late is None:
            return []
        pid, table, first_s, last_s, count = late
        parts = [f"{count:,} connects were refused"]
        proof = [Evidence("refused_connects", count, table, first_s, of=_HARMFUL[111])]
    else:
        table = "failing_syscalls"
        by_pid = failed.groupby("pid")["event_count"].sum()
        pid = int(str(by_pid.idxmax()))
        mine = failed[failed["pid"] == pid]
        first_s, last_s = float(mine["first_s"].min()), float(mine["last_s"].max())
        parts, proof = [], []
        for code, rows in mine.groupby("errno"):
            count = int(rows["event_count"].sum())
            label = _HARMFUL[int(str(code))]
            proof.append(Evidence("refused_connects", count, table, first_s, of=label))
            parts.append(f"{count:,} connects returned {label}")
    evidence = [Evidence("http_status", statuses[0], "events", first_s), *proof]
    subject = view.subject(pid)
    name = capitalised(str(subject))
    confidence, missing = signs.trust(table)
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


def _told_late(signs: Signs, refused_count: int) -> tuple[int, str, float, float, int] | None:
    """Connects whose failure came after the call: who, table, first and last moment, how many.

    A connect that does not wait returns EINPROGRESS and fails later, always where what is behind
    is on another host. In a network namespace of the run's own, whose connects those are is known:
    they are not the clients'. Elsewhere the proxy's own words must say it.
    """
    view = signs.view
    servers = view.who[view.who["role"] == "server"]["pid"]
    pid = int(servers.iloc[0]) if len(servers) else 0
    if view.has_own_namespace:
        resets = view.frames["tcp_resets"]
        mine = resets[
            (resets["direction"] == "rx")
            & (resets["state"] == "SYN_SENT")
            & (resets["side"] == "other")
        ]
        count = int(mine["event_count"].sum())
        if count >= max(LEAST_COUNT, refused_count // 2):
            first_s = view.seconds(int(mine["first_ns"].min()))
            last_s = min(view.stop_s, view.seconds(int(mine["at_ns"].max())))
            return pid, "tcp_resets", first_s, last_s, count
    said = [
        each
        for each in signs.words_of("backend-unavailable")
        if each.first_s < view.stop_s and _NOT_REACHED.search(each.line)
    ]
    count = sum(each.count for each in said)
    if count < LEAST_COUNT:
        return None
    speaker = next((each.pid for each in said if each.pid), pid)
    return (
        speaker,
        "server_words",
        min(each.first_s for each in said),
        max(each.last_s for each in said),
        count,
    )
