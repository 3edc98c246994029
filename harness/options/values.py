"""The values that options of several commands take, each read in one way."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable

DAY_S = 86_400.0


def count(text: str) -> int:
    """A whole number; ``120_000``, ``120,000`` and ``120k`` are taken too."""
    match = re.fullmatch(r"([0-9][0-9_,]*)(k|m)?", text.strip().lower())
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(re.sub("[_,]", "", match[1])) * {"k": 1_000, "m": 1_000_000}.get(match[2], 1)


def number(text: str) -> int:
    """A whole number as a process or a worker has it, in digits."""
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


def moment(text: str) -> float:
    """Seconds of a run, which may lie before its ramp."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return value


def seconds(most_s: float = DAY_S, *, is_zero_taken: bool = True) -> Callable[[str], float]:
    """The reader of a span of time.

    Args:
        most_s: The longest that is taken.
        is_zero_taken: So is none at all.
    """

    def read(text: str) -> float:
        value = moment(text)
        if not 0 <= value <= most_s or (value == 0 and not is_zero_taken):
            raise argparse.ArgumentTypeError(f"{text!r} is not between 0 and {most_s:.0f} seconds")
        return value

    return read


def pid(text: str) -> int:
    """A process id, without the ones that kill(2) takes for groups."""
    if not (text.isascii() and text.isdigit()) or not 0 < int(text) < 1 << 31:
        raise argparse.ArgumentTypeError(f"{text!r} is not a process id")
    return int(text)


def port(text: str) -> int:
    """A TCP port that can be listened on."""
    if not (text.isascii() and text.isdigit()) or not 0 < int(text) < 65_536:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port from 1 to 65535")
    return int(text)
