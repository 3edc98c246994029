"""What the limits of the ladder are called where people read of them; their ids stay in data."""

from __future__ import annotations

from probes.contract.limits import LIMITS

_COUNTED = ("count", "")


def limit_of(limit: str, subject: str) -> str:
    """``the descriptor limit of worker 0 (pid 812, server)``.

    Args:
        limit: ``Rung.limit``; one that this version does not know stays as it is.
        subject: Whose, '' where nobody is named.
    """
    words = LIMITS[limit].words if limit in LIMITS else limit
    return f"{words} of {subject}" if subject else words


def limit_title(limit: str) -> str:
    """The same as a heading: ``Open files of one process``."""
    return LIMITS[limit].title if limit in LIMITS else limit


def noun_of(limit: str) -> str:
    """What is counted, '' where the unit says it."""
    return LIMITS[limit].noun if limit in LIMITS else ""


def unit_words(unit: str) -> str:
    """A rung's unit behind a number: none where things are counted."""
    return {"pct": "%"}.get(unit, "" if unit in _COUNTED else unit)
