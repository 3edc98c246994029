"""The text of ``/proc/PID/stat`` (proc(5)): the one place that reads it.

The command's name, between parentheses, may hold anything, parentheses and spaces too; so the
fields are counted from the last one on. Numbers below are theirs in proc(5) less three.
"""

from __future__ import annotations

STATE, PARENT, FLAGS, USER_TICKS, SYSTEM_TICKS, START_TICKS, RESIDENT_PAGES = (
    0,
    1,
    6,
    11,
    12,
    19,
    21,
)
_ENDED = ("Z", "X", "x")


def fields_of(stat: bytes, most: int = -1) -> list[bytes]:
    """The fields behind the name, the state first; none of a text that is cut or no such text.

    Args:
        stat: The text.
        most: So many are told apart, all the others are one; -1 for all.
    """
    _, bracket, rest = stat.rpartition(b")")
    return rest.split(None, most) if bracket else []


def name_of(stat: bytes) -> str:
    """The command's name, at most 15 bytes; '' of no such text."""
    return stat.rpartition(b")")[0].partition(b" (")[2].decode("utf-8", "replace")


def state_of(stat: bytes) -> str:
    """The state's letter: R, S, D, T, Z (a zombie), X, ...; '' of no such text."""
    fields = fields_of(stat, 1)
    return fields[STATE].decode("ascii", "replace") if fields else ""


def is_alive(stat: bytes) -> bool:
    """It has not exited; a zombie has."""
    return state_of(stat) not in (*_ENDED, "")


def cpu_ticks(stat: bytes) -> int:
    """User and system time of all its threads, in clock ticks.

    Raises:
        ValueError: It is no such text.
    """
    fields = fields_of(stat, SYSTEM_TICKS + 1)
    if len(fields) <= SYSTEM_TICKS:
        raise ValueError("not the text of /proc/PID/stat")
    return int(fields[USER_TICKS]) + int(fields[SYSTEM_TICKS])
