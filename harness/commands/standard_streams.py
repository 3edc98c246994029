"""Standard streams that nobody has to read: a reader that goes away never costs a recording.

Progress goes to stderr while a run goes on. ``2>&1 | tee log`` ends with the first Ctrl-C, a
terminal with its connection, a log with its disk: what is written after that is for nobody, and is
no reason to lose what was measured.
"""

from __future__ import annotations

import io
import os
import sys
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class _Forgiving(io.FileIO):
    """A descriptor that becomes /dev/null when a write to it fails."""

    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return super().write(data)
        except OSError:
            discard(self)
            return memoryview(data).nbytes


def discard(stream: TextIO | io.FileIO) -> None:
    """Points the descriptor of a stream at /dev/null: Python flushes it again at its exit."""
    null_fd = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    os.dup2(null_fd, stream.fileno())
    os.close(null_fd)


def forgive() -> None:
    """Makes stderr forgiving, and gives a stream that was closed by the caller (``>&-``) an end.

    A stream that somebody has put there instead (a test, a notebook) is left alone.
    """
    if sys.stdout is None:
        sys.stdout = _null()
    real = sys.__stderr__
    if sys.stderr is None:
        sys.stderr = _null()
    elif real is not None and sys.stderr is real:
        sys.stderr = io.TextIOWrapper(
            io.BufferedWriter(_Forgiving(real.fileno(), "wb", closefd=False)),
            encoding=real.encoding,
            errors="backslashreplace",
            line_buffering=True,
        )


def _null() -> TextIO:
    return open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123 - for as long as the process lives
