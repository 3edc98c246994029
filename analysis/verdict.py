"""The verdict: one cause, one sentence, and the document ``verdict.json``."""

from __future__ import annotations

from dataclasses import dataclass

from analysis.evidence import Side


@dataclass(frozen=True, slots=True)
class Verdict:
    """What stopped the run, or that nothing did.

    Attributes:
        cause: Id of the binding finding; ``reached``; ``not-explained`` when the target was
            missed and nothing measured explains it.
        side: server, client or host.
        sentence: One plain sentence that names side, process and number.
        at_connections: Open connections when it was met; the held count for ``reached``.
        at_s: Seconds since the ramp began, None when not known.
        confidence: high, medium or low.
        next_rung: One sentence about the next wall, '' when no rung could be fitted.
    """

    cause: str
    side: Side
    sentence: str
    at_connections: int
    at_s: float | None
    confidence: str = "high"
    next_rung: str = ""
