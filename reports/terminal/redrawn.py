"""A picture of some lines that is redrawn in place on a terminal, without flicker.

It has the terminal's alternate screen, as a pager has: whatever size the terminal takes meanwhile,
nothing of an old picture stays behind, and what the person saw before comes back at the end. Each
picture goes out in one write, over the one before: a line is overwritten and its rest erased, never
erased first, inside a synchronized update where the terminal knows those.

Source: ECMA-48 (CUP, EL, ED); xterm's control sequences (1049);
contour-terminal.org/vt-extensions/synchronized-output.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

_OPEN, _CLOSE = "\x1b[?1049h\x1b[?25l", "\x1b[H\x1b[J\x1b[?25h\x1b[?1049l"
# Emptied before it is left: a tmux that was resized meanwhile would show lines of it afterwards.
_BEGIN, _END = "\x1b[?2026h\x1b[H", "\x1b[J\x1b[?2026l"
_ERASE_LINE_REST = "\x1b[K"
_USUAL_SIZE = (80, 24)


class Redrawn:
    """The picture; ``close`` gives the terminal back.

    Args:
        stream: A terminal.
        colour: False draws without colour.
    """

    def __init__(self, stream: TextIO, *, colour: bool) -> None:
        self._stream = stream
        self._colour = colour
        self._console: Console | None = None
        write_text(stream, _OPEN)

    def size(self) -> tuple[int, int]:
        """Columns and lines of the terminal now."""
        try:
            found = os.get_terminal_size(self._stream.fileno())
        except (OSError, ValueError):
            return _USUAL_SIZE
        return (found.columns or _USUAL_SIZE[0], found.lines or _USUAL_SIZE[1])

    def draw(self, lines: Sequence[Text]) -> None:
        """Puts the lines in place of those before; cut to the terminal's width, the last to fit."""
        width, height = self.size()
        shown = [
            self._rendered(line, width) + _ERASE_LINE_REST for line in lines[-max(1, height - 1) :]
        ]
        write_text(self._stream, _BEGIN + "\n".join(shown) + _END)

    def close(self) -> None:
        """Takes the picture away and gives the terminal back as it was."""
        write_text(self._stream, _CLOSE)

    def _rendered(self, line: Text, width: int) -> str:
        if self._console is None:
            from rich.console import Console  # with the first picture, not before

            self._console = Console(
                file=self._stream, no_color=not self._colour, highlight=False, force_terminal=True
            )
        line.truncate(width, overflow="ellipsis")
        with self._console.capture() as captured:
            self._console.print(line, end="", width=width, no_wrap=True, crop=True)
        return captured.get()


def write_text(stream: TextIO, text: str) -> None:
    """Writes at once; characters that the stream's encoding lacks become ``?`` (LANG=C)."""
    try:
        stream.write(text)
        stream.flush()
    except UnicodeEncodeError:
        encoding = stream.encoding or "ascii"
        stream.write(text.encode(encoding, "replace").decode(encoding))
        stream.flush()
