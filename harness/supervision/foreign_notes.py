"""What a run against a server that is not ours says beside its verdict: one sentence each."""

from __future__ import annotations

from harness.foreign.server import ForeignServer
from harness.supervision.fleet import Fleet
from probes.contract.live import Counter

_WORDS = {
    "upgrade_refused": "the server refused the upgrade",
    "connection_closed": "the server closed open connections",
}
_ANSWERED_SHARE = 0.95
"""Replies that are still under way when the run stops are no sign."""


def foreign_notes(foreign: ForeignServer, fleet: Fleet, *, echoes: bool) -> list[str]:
    """Sentences for people.

    Args:
        foreign: The server, not stopped yet.
        fleet: The clients.
        echoes: Every message is expected to come back (``--server-mode echo``).
    """
    notes: list[str] = []
    notes += dict.fromkeys(f"{_WORDS[refusal.event]}: {refusal}" for refusal in fleet.refusals)
    sent = fleet.total(Counter.TX_MESSAGES_TOTAL)
    came = fleet.total(Counter.RX_MESSAGES_TOTAL)
    if echoes and sent and came < _ANSWERED_SHARE * sent:
        notes.append(
            f"{came:,} messages came back of {sent:,} that were sent; "
            "--server-mode silent where no echo is expected"
        )
    if foreign.has_ended:
        said = foreign.last_lines()
        notes.append(
            f"the server command ended with {foreign.how_it_ended()} while the run went on"
            + (": " + " | ".join(said) if said else "")
        )
    return notes
