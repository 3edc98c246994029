"""What is kept of a recording's verdict: its meaning, and what of its evidence is in its tables."""

from __future__ import annotations

from typing import Any

from analysis.document import document
from analysis.frames.run_frames import RunFrames
from analysis.summary import Summary
from bench.recordings.grounding import Tables
from bench.recordings.meaning import meaning

EXPECTED = ".expected.json"
"""What is expected of a recording stands beside it."""


def examine(summary: Summary, frames: RunFrames) -> dict[str, Any]:
    """The meaning of a verdict, and ``grounding``: how its evidence was found again.

    Args:
        summary: Of the run.
        frames: The run.
    """
    grounding = Tables(frames).grounding(document(summary)["findings"])
    return {**meaning(summary), "grounding": grounding}
