"""What a finding did, in words."""

from __future__ import annotations

from analysis.causes import GOOD_CAUSES
from analysis.evidence import Finding
from analysis.findings import CATALOGUE
from analysis.frames.run_words import RunWords

_WORDS = {
    "contributing": "contributed",
    "warning": "did harm",
    "info": "worth knowing",
}


def severity_words(finding: Finding, words: RunWords) -> str:
    """What it did to the run: ``stopped the run``, ``did harm``."""
    if finding.cause in GOOD_CAUSES:
        return CATALOGUE[finding.cause].line
    return words.binding if finding.severity == "binding" else _WORDS[finding.severity]
