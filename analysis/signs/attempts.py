"""Which attempts of a run were made, made again, and never made, and why they stopped. Pure.

From the object ``attempts`` of the manifest (harness/supervision/attempts.py). A recording from
before it existed says how many were never made, and not why.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from analysis.evidence import Evidence, Finding
from analysis.frames.run_view import RunView

_AFTER_WORDS = {
    "error": "an errno of the client's own",
    "timeout": "a time-out",
    "refused": "a refused connect",
    "rst": "a reset",
    "eof": "a close",
    "protocol": "another answer than the upgrade",
    "close": "a close frame",
    "local": "giving up by itself",
}


@dataclass(frozen=True, slots=True)
class GaveUp:
    """A client that stopped although attempts of it were left.

    Attributes:
        client: Its number.
        at_s: When, in seconds since the ramp began.
        failed_in_row_count: Attempts in a row that had failed by then.
        never_count: Of its share, connections that were never attempted.
    """

    client: int
    at_s: float
    failed_in_row_count: int
    never_count: int


@dataclass(frozen=True, slots=True)
class Attempts:
    """The attempts of a run.

    Attributes:
        begun_count: Connections that were attempted at least once.
        never_count: Connections of the target that were never attempted.
        again_count: Attempts after a connection's first (``--retry``).
        again_open_count: Of them, of connections that had been open before.
        again_after: How the attempt before them had ended: close kind to count.
        stall_s: How long a client goes on while every attempt fails, None when not known.
        gave_up: Clients that stopped for that.
        stopped_by: no_success or failures where all clients were stopped together, '' where not.
        stopped_s: When they were, None when they were not.
    """

    begun_count: int
    never_count: int
    again_count: int = 0
    again_open_count: int = 0
    again_after: tuple[tuple[str, int], ...] = ()
    stall_s: float | None = None
    gave_up: tuple[GaveUp, ...] = ()
    stopped_by: str = ""
    stopped_s: float | None = None

    @property
    def sentence(self) -> str:
        """What a reader has to know of it, '' when each attempt was made once and no more."""
        parts = [part for part in (self._stop_words(), self._again_words()) if part]
        return " ".join(parts)

    def _stop_words(self) -> str:
        if not self.never_count and not self.gave_up and not self.stopped_by:
            return ""
        whole_count = self.begun_count + self.never_count
        made = f"{self.begun_count:,} of {whole_count:,} connections were attempted"
        why = self._why_words()
        if self.never_count:
            made += f" and {self.never_count:,} never"
        return f"{made}: {why}." if why else f"{made}."

    def _why_words(self) -> str:
        when = f" {self.stopped_s:.1f} s after the ramp began" if self.stopped_s is not None else ""
        if self.stopped_by == "failures":
            return f"all clients stopped{when}, when --failures-max was reached"
        if self.stopped_by:
            return f"all clients were stopped{when}, since none got through any more"
        if not self.gave_up:
            return ""
        first, last = (pick(each.at_s for each in self.gave_up) for pick in (min, max))
        span = (
            f"{first:.1f} s" if f"{first:.1f}" == f"{last:.1f}" else f"{first:.1f} to {last:.1f} s"
        )
        one = len(self.gave_up) == 1
        who = f"client {self.gave_up[0].client}" if one else f"{len(self.gave_up)} clients"
        least_count = min(each.failed_in_row_count for each in self.gave_up)
        stall = f" for {self.stall_s:g} s (--stall)" if self.stall_s is not None else ""
        return (
            f"{who} stopped {span} after the ramp began, when {'its' if one else 'their'} last "
            f"{least_count:,} attempts had failed and none had got through{stall}"
        )

    def _again_words(self) -> str:
        if not self.again_count:
            return ""
        after = ", ".join(
            f"{count:,} after {_AFTER_WORDS.get(kind, kind)}" for kind, count in self.again_after
        )
        opened = f", {self.again_open_count:,} of them of connections that had been open"
        more = opened if self.again_open_count else ""
        return (
            f"{self.again_count:,} attempts were made again by --retry ({after}){more}; each "
            "connection counts as its last attempt ended."
        )

    def record(self) -> dict[str, Any]:
        """As ``verdict.json`` has it."""
        fields = asdict(self)
        return fields | {"again_after": dict(self.again_after), "sentence": self.sentence}


def attempts_of(view: RunView) -> Attempts:
    """The attempts of a run; those of one that only watched are nobody's."""
    told = view.manifest.get("attempts")
    if not isinstance(told, Mapping):
        tried = int(view.connections["start_s"].notna().sum())
        never = max(0, view.target_count - tried) if tried else 0
        return Attempts(begun_count=tried, never_count=never)
    stopped_ns = _count(told, "stopped_ns")
    after = told.get("again_after") or {}
    return Attempts(
        begun_count=_count(told, "begun_count"),
        never_count=_count(told, "never_count"),
        again_count=_count(told, "again_count"),
        again_open_count=_count(told, "again_open_count"),
        again_after=tuple(
            sorted(((str(k), int(n)) for k, n in after.items()), key=lambda each: -each[1])
        ),
        stall_s=None if told.get("stall_s") is None else float(told["stall_s"]),
        gave_up=tuple(
            GaveUp(
                client=_count(each, "client"),
                at_s=view.seconds(_count(each, "at_ns")),
                failed_in_row_count=_count(each, "failed_in_row_count"),
                never_count=_count(each, "never_count"),
            )
            for each in told.get("gave_up") or []
        ),
        stopped_by=str(told.get("stopped_by") or ""),
        stopped_s=view.seconds(stopped_ns) if stopped_ns else None,
    )


def _count(told: Mapping[str, Any], name: str) -> int:
    return int(told.get(name) or 0)


def with_attempts(findings: Sequence[Finding], view: RunView) -> list[Finding]:
    """The findings; the binding ones say what was never attempted for them, and made again.

    Args:
        findings: Ranked.
        view: The run; where its manifest says nothing of attempts the findings stay as they are.
    """
    if not view.manifest.get("attempts"):
        return list(findings)
    attempts = attempts_of(view)
    more = tuple(
        Evidence(kind, count, "manifest")
        for kind, count in (
            ("never_attempted", attempts.never_count),
            ("attempts_again", attempts.again_count),
        )
        if count
    )
    return [
        replace(finding, evidence=(*finding.evidence, *more))
        if finding.severity == "binding" or finding.cause == "reached"
        else finding
        for finding in findings
    ]
