"""What a cause is to the verdict, and the ids that there are. The ids are part of the interface.

A cause is one module below ``analysis/findings/``, named as its id: its ``CAUSE`` says what the
verdict, the page and the documentation have to know of it, its ``find`` when it is named.
``analysis.findings.CATALOGUE`` has all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path


class Effect(Enum):
    """What a cause does to a server, so that others may follow from it by the mechanism."""

    FILLS_DESCRIPTORS = "no further descriptor can be opened"
    STOPS_SERVING = "who is let in is not served"
    SLOWS_ACCEPT = "the loop that accepts and answers comes around late"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """One entry of the catalogue.

    Attributes:
        id: The module's name with hyphens.
        line: What happens, in one plain line.
        effect: What it does to a server that others follow from, None for nothing of that kind.
        follows_from: What can bring it about, by the mechanism: ids, or an effect for all causes
            with it. The first that the run also shows is the origin.
        grows_into_it: It is there before what it follows from: a collector works more and more
            until a heap is full.
        is_harmless: It says how a run went, and stops none.
        fills_a_core: A worker at a full core can be explained by it.
        is_raised: Its fix raises a limit.
        decide: What tells it from any other cause, '' for nothing better than its fix alone.
        decide_between: The same for one other cause, by the other's id.
    """

    id: str
    line: str
    effect: Effect | None = None
    follows_from: tuple[str | Effect, ...] = ()
    grows_into_it: bool = False
    is_harmless: bool = False
    fills_a_core: bool = False
    is_raised: bool = False
    decide: str = ""
    decide_between: Mapping[str, str] = field(default_factory=dict)


CAUSE_IDS = frozenset(
    path.stem.replace("_", "-") for path in (Path(__file__).parent / "findings").rglob("[a-z]*.py")
)
"""Every id that a finding may name: of the modules themselves, without importing one."""

GOOD_CAUSES = ("reached", "no-limit-met")
"""Verdicts of a run that nothing stopped: of one that loaded a server, of one that only watched."""

NOT_EXPLAINED = "not-explained"
"""The verdict's cause when the target was missed and no finding explains it. Never a finding."""

INTERRUPTED = "interrupted"
"""The verdict's cause when somebody stopped the run before a limit did. Never a finding."""
