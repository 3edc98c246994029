"""``closed-by-server``: the server closes connections that were open.

Proof: connections that had been upgraded and that the server ended before the run did, and the code
and reason of its close frame (event ``connection_closed``); or the rule of the protocol that one of
its frames broke, for which the clients must close. Without a close frame the ends alone: less
confidence, and only where the server's processes live.
Told apart from ``upgrade-refused``: there no connection was ever open. From ``worker-crash``: the
process lives. From ``server-resets-when-full``: those never got their upgrade.
"""

from __future__ import annotations

import re
from urllib.parse import urlsplit

import pandas as pd

from analysis.causes import Cause, Effect
from analysis.evidence import Evidence, Finding, Fix, capitalised
from analysis.findings.server import worker_crash
from analysis.frames.run_view import RunView
from analysis.server import fates
from analysis.server.own_timeouts import NamedTimeout, name_timeout
from analysis.signs.signs import Signs

CAUSE = Cause(
    id="closed-by-server",
    line="the server closes connections that were open",
    follows_from=(
        Effect.FILLS_DESCRIPTORS,
        "own-limit",
        "worker-crash",
        "worker-replaced",
        "runtime-heap-limit",
        "slow-consumers",
        "memory-exhausted",
        "tcp-memory-pressure",
        "keepalive-storm",
        Effect.SLOWS_ACCEPT,
    ),
)

_CODE = re.compile(r"code (\d{4})")
_LEAST_SHARE = 0.01
"""Of the established: a client or two that a server in service drops are no limit."""

_LATE_S = 1.0
_LIKE_HTTP_STATUS = (4401, 4403)
"""Many applications add 4,000 to the status that would say it: 401 and 403."""
_SAYS_WHO = "profile-run --header 'Authorization: Bearer TOKEN'  # or --cookie, or --message: what"
_SAYS_WHO += " it wants to hear"
_HELP = {
    1003: "profile-run --message TEXT --message-rate RATE  # --binary, or without it",
    1007: "profile-run --message TEXT --message-rate RATE  # text that it can read, or --binary",
    1008: _SAYS_WHO,
    1009: "profile-run --payload BYTES  # at most what the server takes, or raise its limit",
    1012: "profile-run --ramp RATE  # or raise the server's own limit of connections",
    1013: "profile-run --ramp RATE  # or raise the server's own limit of connections",
}
"""By the codes of RFC 6455 section 7.4.1 and of the IANA registry."""


def find(signs: Signs) -> list[Finding]:
    """One finding about the most telling way to close, or none."""
    view = signs.view
    if not view.is_foreign or view.is_attached:
        return []
    lost = view.connections[view.connections["is_lost"]]
    events = view.frames["events"]
    told = [str(detail) for detail in events[events["event"] == "connection_closed"]["detail"]]
    closed = lost[lost["close_kind"].isin(["close", "protocol"])]
    established = int(view.connections["established_s"].notna().sum())
    few = _LEAST_SHARE * established
    if len(closed) <= few and not signs.is_server_process_gone:
        closed, told = lost[lost["close_kind"].isin(["eof", "rst"])], []
    if len(closed) <= few:
        return []
    return [_finding(signs, closed, established, told)]


def _finding(signs: Signs, closed: pd.DataFrame, established: int, told: list[str]) -> Finding:
    view = signs.view
    first_s = float(closed["closed_s"].min())
    open_s = float((closed["closed_s"] - closed["established_s"]).median())
    said = told[0].rstrip(".") if told else ""
    match = _CODE.match(said)
    code = int(match[1]) if match else 0
    subject = view.subject(fates.closer_of(view, len(closed)))
    name = str(subject) if subject.pid else "the server"
    name = capitalised(name)
    evidence = [
        Evidence("connections_closed", len(closed), "connections", first_s),
        Evidence("connections_established", established, "connections", view.stop_s),
        Evidence("time_open_median", open_s, "connections", first_s),
    ]
    if code:
        evidence.append(Evidence("close_code", code, "events", first_s))
    waited = None if code else _timeout(view, subject.pid, open_s)
    if waited is not None:
        evidence.append(
            Evidence("own_timeout", waited.value_s, "manifest", of=f"{waited.where}: {waited.text}")
        )
    how = f"with {said}" if code else "without a close frame"
    many = f"{len(closed):,} open connection" + ("s" if len(closed) != 1 else "")
    after = f"{open_s:.1f} s after" if open_s >= 0.1 else "right after"
    others = f" Also: {'; '.join(told[1:4])}." if len(told) > 1 else ""
    sentence = f"{name} closed {many} {how}, {after} the upgrade"
    if waited is not None:
        sentence += f": a time of its own, {waited}"
    if said and not code:
        sentence = f"{name} broke the protocol on {many}, {after} the upgrade: {said}"
    return Finding(
        cause=CAUSE.id,
        severity="warning",
        side="server",
        subject=subject,
        first_s=first_s,
        last_s=float(closed["closed_s"].max()),
        evidence=tuple(evidence),
        explanation=f"{sentence}; {established:,} had been established in all.{others}",
        fix=tuple(
            Fix(command, f"the {len(closed):,} connections stay open until the run ends them")
            for command in (
                *([waited.fix()] if waited is not None else []),
                *_help(view, subject.pid, code, said, open_s),
            )
        ),
        at_connections=view.open_count_at(first_s),
        confidence="high" if told else "medium",
        missing=() if told else ("what the server meant: no close frame came",),
        sentence=sentence,
        explained_count=len(closed),
    )


def _timeout(view: RunView, pid: int, open_s: float) -> NamedTimeout | None:
    """The setting whose time the connections were open; nothing where they ended right away."""
    if open_s < _LATE_S:
        return None
    pids = [pid] if pid else fates.servers(view)
    path = urlsplit(str((view.manifest.get("server") or {}).get("url") or "")).path
    for each in pids:
        facts = [view.process_facts(each), view.manifest.get("server") or {}]
        found = name_timeout(view.subject(each).command, facts, open_s, path)
        if found is not None:
            return found
    return None


def _help(view: RunView, pid: int, code: int, said: str, open_s: float) -> tuple[str, ...]:
    """What stops it: by the code, by how long it waited, else where the server says why."""
    if code in _HELP:
        return (_HELP[code],)
    talk = _talk(view, open_s)
    if 3000 <= code <= 4999:  # the application's own (RFC 6455 section 7.4.2)
        return (_SAYS_WHO, *talk) if code in _LIKE_HTTP_STATUS else (*talk, _SAYS_WHO)
    if said and not code and "reserved bit" in said:
        return ("turn compression off in the server  # it was not offered",)
    if said and not code:
        return ("correct what the server sends  # RFC 6455 section 5.2",)
    return talk or (worker_crash.log_command(view, "server", pid),)


def _talk(view: RunView, open_s: float) -> tuple[str, ...]:
    """What a server wants that closes the silent after so long; nothing where they were not."""
    if open_s < _LATE_S or view.settings.get("message_rate_per_s"):
        return ()
    rate = max(1, round(2 * view.peak_count / open_s))
    return (
        f"profile-run --message-rate {rate}  # if it closes the silent: 2 messages in "
        f"{open_s:.0f} s from each",
    )
