"""What is known of a run that missed its target and that no finding explains. Pure.

Which side the attempts ended on, how they ended, where those stand that neither ended nor came
through, and how many were never made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from analysis.evidence import Side
from analysis.frames.run_view import RunView
from analysis.server import fates
from analysis.server.closed_at_once import closed_at_once
from analysis.signs.attempts import attempts_of

_OWN_STAGES = ("socket", "bind")
_HOW = {
    "rst": "were reset",
    "eof": "were closed",
    "timeout": "timed out",
    "refused": "were refused",
    "protocol": "got another answer than the upgrade",
    "close": "were closed with a close frame",
    "error": "failed with an errno",
    "local": "were given up by the client",
}
_NAMED_MOST = 4


@dataclass(frozen=True, slots=True)
class Unexplained:
    """How the attempts of a run ended.

    Attributes:
        side: Where most of them ended: client when it got no socket or port, server when it was
            reached and did not serve them, host when the packets got no answer, or nothing is
            known.
        ends: How many ended how, the most frequent first: (words, count).
        standing: Where those of the server stand that wait: (words, count).
        never_count: Attempts of the target that were never made.
        closed_by: `` by`` the process of the server that was seen to close connections at once,
            '' when none was, or when several were.
    """

    side: Side
    ends: tuple[tuple[str, int], ...]
    standing: tuple[tuple[str, int], ...]
    never_count: int
    closed_by: str = ""

    @property
    def words(self) -> str:
        """The same in one clause, '' when nothing ended or waits."""
        parts = [f"{count:,} {words}" for words, count in (*self.ends, *self.standing)]
        if self.closed_by:
            parts.append(f"connections were closed at once{self.closed_by}")
        if self.never_count:
            parts.append(f"{self.never_count:,} were never tried")
        return ", ".join(parts)


def unexplained(view: RunView) -> Unexplained:
    """What is known of how a run's attempts ended."""
    connections = view.connections
    bad = connections[connections["is_failed"] | connections["is_lost"]]
    counts: dict[str, int] = {}
    for kind, stage, count in (
        (str(kind), str(stage), len(rows))
        for (kind, stage), rows in bad.groupby(["close_kind", "stage"])
    ):
        how = f"{_HOW.get(kind, kind)} {_where(stage)}"
        counts[how] = counts.get(how, 0) + count
    ends = sorted(counts.items(), key=lambda item: -item[1])[:_NAMED_MOST]
    stuck = fates.stuck(view)
    standing = [
        (words + _by(view, [each.pid for each in stuck if getattr(each, name)]), count)
        for name, words in (
            ("unaccepted_count", "stood in the accept queue"),
            ("unread_count", "were accepted and never read"),
            ("unanswered_count", "were read and never answered"),
        )
        if (count := sum(getattr(each, name) for each in stuck))
    ]
    closers = [each.pid for each in closed_at_once(view)]
    return Unexplained(
        side=_side(view),
        ends=tuple(ends),
        standing=tuple(standing),
        closed_by=_by(view, closers),
        never_count=attempts_of(view).never_count,
    )


def _by(view: RunView, pids: Sequence[int]) -> str:
    known = [pid for pid in pids if pid]
    return f" by {view.subject(known[0])}" if len(known) == len(pids) == 1 else ""


def _where(stage: str) -> str:
    if stage in ("open", "closed"):
        return "once open"
    return "in the handshake" if stage == "handshake" else f"at {stage}"


def _side(view: RunView) -> Side:
    connections = view.connections
    bad = connections[connections["is_failed"] | connections["is_lost"] | connections["is_waiting"]]
    if bad.empty:
        return "host"
    at_client = int(bad["stage"].isin(_OWN_STAGES).sum())
    reached = int((bad["connected_s"].notna() | (bad["close_kind"] == "refused")).sum())
    if at_client > len(bad) / 2:
        return "client"
    return "server" if reached > len(bad) / 2 else "host"
