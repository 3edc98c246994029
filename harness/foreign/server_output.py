"""Which of the lines that a server printed tell why it ended. Pure."""

from __future__ import annotations

import re

from harness.websocket.reply_excerpt import printable

LINES_MOST_COUNT = 5
LINE_CHARACTERS = 300

_FRAME = re.compile(r"\s*(?:at .+|\.{3} \d+ more|File \".+\", line \d+.*|\^+|goroutine \d+ \[.*)")
"""A line of a stack trace: V8 and the JVM say "at", Python "File", Go begins with a goroutine."""

_ERROR = re.compile(
    r"(?:[\w.$]*(?:Error|Exception)\b|Exception in thread|panic:|fatal|FATAL|Traceback)"
)


def telling_lines(text: str) -> list[str]:
    """The lines in which a runtime says what went wrong, else the last ones.

    Node puts the error before its stack, the JVM too, and both print more behind it; Python's is
    the last line. So it is the last line that names an error and what follows it, without the
    frames of the stack.

    Args:
        text: The end of what was printed.

    Returns:
        At most ``LINES_MOST_COUNT`` lines without control characters.
    """
    shown = [
        printable(line)[:LINE_CHARACTERS]
        for line in text.splitlines()
        if not _FRAME.fullmatch(line)
    ]
    lines = [line for line in shown if line]
    last = max((at for at, line in enumerate(lines) if _ERROR.match(line)), default=-1)
    if last < 0:
        return lines[-LINES_MOST_COUNT:]
    return lines[last : last + LINES_MOST_COUNT]
