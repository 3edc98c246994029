"""``upgrade-refused``: the server answers the WebSocket handshake with something else.

Proof: the HTTP status that came instead of 101 (event ``upgrade_refused``, with the start of its
body), or the reason for which TLS or the reply was no handshake; and the handshakes that ended so.
Where a server only closes, without a word, and no connection was ever established, that is it too;
likewise where it lives, and every connect was refused.
Told apart from ``server-resets-when-full``: no process of the server met EMFILE. From
``worker-crash``: the process lives. A status of 500 to 599 from a process that is at its descriptor
limit (a proxy that gets no socket to what is behind it) follows from that limit
(``analysis.verdict.ranking``).
"""

from __future__ import annotations

import re

import pandas as pd

from analysis.causes import Cause, Effect
from analysis.evidence import Evidence, Finding, Fix, capitalised
from analysis.findings.server.worker_crash import log_command
from analysis.server import fates
from analysis.server.refusal_help import refusal_help
from analysis.signs.signs import EMFILE, Signs

CAUSE = Cause(
    id="upgrade-refused",
    line="the server answers the handshake with something else",
    follows_from=(
        Effect.STOPS_SERVING,
        "unix-queue-full",
        Effect.SLOWS_ACCEPT,
        "backend-unavailable",
        "worker-crash",
        Effect.FILLS_DESCRIPTORS,
        "ephemeral-ports-exhausted",
    ),
)

_STATUS = re.compile(r"HTTP (\d{3})")
_NOT_CONNECTED = "ECONNREFUSED: it takes no connection at this address"


_SERVER_ERROR = 500
"""The server's own words say why, no header or path."""


def find(signs: Signs) -> list[Finding]:
    """One finding about the most telling refusal, or none."""
    view = signs.view
    ended = view.connections[
        view.connections["is_failed"] & (view.connections["stage"] == "handshake")
    ]
    refused = ended[ended["close_kind"] == "protocol"]
    told = fates.refusals_told(view)
    if refused.empty and view.is_foreign:
        refused = _closed_without_a_word(signs, ended)
        told = []
    if refused.empty and view.is_foreign:
        refused = _not_even_connected(signs)
        told = [_NOT_CONNECTED] if len(refused) else []
    if refused.empty:
        return []
    return [_finding(signs, refused, told)]


def _closed_without_a_word(signs: Signs, ended: pd.DataFrame) -> pd.DataFrame:
    """Handshakes that the server ended, where it never completed one and was not full."""
    closed = ended[ended["close_kind"].isin(["eof", "rst"])]
    is_full = len(signs.accept_errors(EMFILE)) > 0
    never = signs.view.connections["established_s"].isna().all()
    is_it = never and not is_full and not signs.is_server_process_gone
    return closed if is_it else closed.iloc[:0]


def _not_even_connected(signs: Signs) -> pd.DataFrame:
    """Connects that got a reset, where none was ever taken and the server lives."""
    connections = signs.view.connections
    if connections["connected_s"].notna().any() or signs.is_server_process_gone:
        return connections.iloc[:0]
    return connections[connections["is_failed"] & (connections["close_kind"] == "refused")]


def _finding(signs: Signs, refused: pd.DataFrame, told: list[str]) -> Finding:
    view = signs.view
    first_s, last_s = float(refused["closed_s"].min()), float(refused["closed_s"].max())
    said = told[0].rstrip(".") if told else ""
    match = _STATUS.match(said)
    status = int(match[1]) if match else 0
    evidence = [
        Evidence("handshakes_refused", len(refused), "connections", first_s),
        Evidence("connections_established", _established(signs), "connections", view.stop_s),
    ]
    if status:
        evidence.insert(1, Evidence("http_status", status, "events", first_s))
    subject = view.subject(fates.busiest_front(view))
    others = f" Also: {'; '.join(told[1:4])}." if len(told) > 1 else ""
    commands = refusal_help(
        status,
        said,
        str(view.manifest.get("server", {}).get("url", "")),
        late_s=float((refused["closed_s"] - refused["connected_s"]).median()),
        front=subject.command,
        is_proxy=bool(fates.backend_pids(view)),
    )
    if status == _SERVER_ERROR:
        commands = [log_command(view, "server", subject.pid)]
    effect = f"the {len(refused):,} refused handshakes are answered with 101"
    fixes = tuple(Fix(command, effect) for command in commands)
    name = str(subject) if subject.pid else "the server"
    name = capitalised(name)
    plural = "s" if len(refused) != 1 else ""
    handshakes = f"{len(refused):,} handshake{plural}"
    sentence = f"{name} closed {handshakes} without a word"
    if said:
        sentence = f"{name} refused {handshakes} with {said}"
    if said and not status:
        sentence = f"{name} upgraded none of {handshakes}: {said}"
    return Finding(
        cause=CAUSE.id,
        severity="warning",
        side="server",
        subject=subject,
        first_s=first_s,
        last_s=last_s,
        evidence=tuple(evidence),
        explanation=(
            f"The server took {len(refused):,} TCP connection{plural} and upgraded none of them to "
            f"WebSocket: {_how(status, said)}.{others}"
            if said != _NOT_CONNECTED
            else f"{sentence}; the port is listened on, so at another address or family of them."
        ),
        fix=fixes,
        at_connections=view.open_count_at(first_s),
        confidence="high" if told else "medium",
        missing=() if told else ("what the server meant: it sent no byte before it closed",),
        sentence=sentence,
        explained_count=len(refused),
    )


def _established(signs: Signs) -> int:
    return int(signs.view.connections["established_s"].notna().sum())


def _how(status: int, said: str) -> str:
    if status:
        return f"it answered each with {said}"
    return f"the clients gave each up, since {said}" if said else "it closed each without a word"
