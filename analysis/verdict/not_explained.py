"""All that is known of a run that missed its target and that no finding explains. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from analysis.ladder.rung import Rung
from analysis.server import fates
from analysis.server.closed_at_once import closed_at_once
from analysis.signs.signs import Signs
from analysis.verdict.deciding import Deciding, deciding
from analysis.verdict.ruled_out import Left, RuledOut, Unwatched, left, ruled_out, unwatched
from analysis.verdict.unexplained import Unexplained, unexplained


@dataclass(frozen=True, slots=True)
class NotExplained:
    """What the verdict ``not-explained`` comes with.

    Attributes:
        ended: How the attempts ended, where, and in which process.
        left: What each limit had left, the fullest first.
        ruled_out: Causes that a number of this run rules out.
        unwatched: Probes that did not see the run.
        decide: The command that would tell more, None when none would.
    """

    ended: Unexplained
    left: tuple[Left, ...]
    ruled_out: tuple[RuledOut, ...]
    unwatched: tuple[Unwatched, ...]
    decide: Deciding | None

    def record(self) -> dict[str, Any]:
        """As ``verdict.json`` has it."""
        ended = self.ended
        return {
            "ends": [{"count": count, "how": words} for words, count in ended.ends],
            "standing": [{"count": count, "how": words} for words, count in ended.standing],
            "never_count": ended.never_count,
            "left": [asdict(each) | {"left_pct": each.left_pct} for each in self.left],
            "ruled_out": [{"cause": each.cause, "by": each.by.record()} for each in self.ruled_out],
            "unwatched": [asdict(each) for each in self.unwatched],
            "decide": asdict(self.decide) if self.decide else None,
        }


def not_explained(signs: Signs, ladder: Sequence[Rung]) -> NotExplained:
    """What is known of it."""
    view = signs.view
    ended = unexplained(view)
    connections = view.connections
    bad = connections[connections["is_failed"] | connections["is_lost"]]
    counts = bad.groupby(["close_kind", "stage"]).size().sort_values(ascending=False)
    kind, stage = (str(each) for each in counts.index[0]) if len(counts) else ("", "")
    stuck = fates.stuck(view)
    stuck_count = sum(each.count for each in stuck)
    waits = max(stuck_count, view.waiting_count) > len(bad) or (
        kind == "timeout" and stage == "handshake"
    )
    blind = unwatched(signs)
    return NotExplained(
        ended=ended,
        left=left(ladder),
        ruled_out=ruled_out(signs),
        unwatched=blind,
        decide=deciding(
            view,
            kind,
            stage,
            blind,
            waits=waits,
            pid=stuck[0].pid if stuck and waits else _closer(signs),
        )
        if len(bad) or view.waiting_count or view.is_attached
        else None,
    )


def _closer(signs: Signs) -> int:
    """The process of the server that ended most connections, or its only one; 0 when not known."""
    closed = closed_at_once(signs.view)
    if closed:
        return closed[0].pid
    servers = signs.view.pids_of("server")
    return servers[0] if len(servers) == 1 else 0
