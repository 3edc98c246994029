"""What the parts of a run are called: of one that loaded a server, of one that only watched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class RunWords:
    """Words that sentences about a run are made with, so that none is changed afterwards.

    Attributes:
        began: What was at second 0, after "since" or "after".
        in_hold: When connections were held, as the end of a sentence.
        hold: The same, as its subject.
        hold_cpu: Heading of the CPU of that time.
        met: When a limit was met that was met.
        binding: What the first limit did.
        findings: Heading of all that was found.
        processes: Heading of all processes.
    """

    began: str
    in_hold: str
    hold: str
    hold_cpu: str
    met: str
    binding: str
    findings: str
    processes: str

    @property
    def after_it(self) -> str:
        """Behind a moment: ``after the ramp began``."""
        return f"after {self.began}"


LOADED = RunWords(
    began="the ramp began",
    in_hold="in the hold phase",
    hold="the hold phase",
    hold_cpu="CPU in the hold",
    met="met in this run",
    binding="stopped the run",
    findings="What the run shows",
    processes="Processes of the fleet",
)

WATCHED = RunWords(
    began="watching began",
    in_hold="while it was watched",
    hold="the time of watching",
    hold_cpu="CPU while watched",
    met="met while watched",
    binding="was met first",
    findings="What watching shows",
    processes="Processes that were watched, and those that watched",
)


def is_watched(manifest: Mapping[str, Any]) -> bool:
    """Whether the run watched a server that was there before, with clients of its own."""
    return bool((manifest.get("server") or {}).get("attached"))


def words_of(manifest: Mapping[str, Any]) -> RunWords:
    """The words for the run of this manifest."""
    return WATCHED if is_watched(manifest) else LOADED
