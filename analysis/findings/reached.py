"""``reached``: the target was established and held, without one failure.

Proof: connections open when the run began to stop, failed 0, lost 0. It says nothing about limits
that the run came close to: that is the ladder.
"""

from __future__ import annotations

from analysis.causes import Cause
from analysis.evidence import Evidence, Finding, Subject
from analysis.ladder.ladder import next_wall
from analysis.ladder.limit_words import limit_of
from analysis.signs.signs import Signs

CAUSE = Cause(
    id="reached",
    line="the target was reached",
)


def find(signs: Signs) -> list[Finding]:
    """One finding, or none when the target was missed or a connection failed."""
    view = signs.view
    if not view.is_reached:
        return []
    held = view.held_count
    evidence = [
        Evidence("connections_held", held, "connections", view.hold.end_s),
        Evidence("failed_connections", 0, "connections"),
        Evidence("lost_connections", 0, "connections"),
    ]
    took_s = float(view.connections["established_s"].max())
    evidence.append(Evidence("time_to_last_connection", took_s, "connections", took_s))
    wall = next_wall(signs.ladder)
    explanation = (
        f"All {held:,} connections were established in {took_s:.3g} s and held for "
        f"{_seconds(view.hold.duration_s)} s; none failed and none was lost."
    )
    if wall is not None and wall.predicted_connections is not None:
        explanation += (
            f" The next limit is {limit_of(wall.limit, wall.subject)}, "
            f"at about {wall.predicted_connections:,} connections."
        )
    return [
        Finding(
            cause=CAUSE.id,
            severity="info",
            side="server",
            subject=Subject("server"),
            first_s=view.ramp.start_s,
            last_s=max(view.ramp.start_s, view.hold.end_s),
            evidence=tuple(evidence),
            explanation=explanation,
            at_connections=held,
            sentence=f"All {held:,} connections were established and held "
            f"{_seconds(view.hold.duration_s)} s without a failure",
        )
    ]


def _seconds(duration_s: float) -> str:
    return f"{duration_s:.0f}" if duration_s >= 1 else f"{duration_s:.1g}"
