"""What the benches have in common as commands: how they end, wait, speak and write."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path
from types import FrameType

from bench import proc_figures
from bench.figures import QUIET_PCT

_LOOK_S = 0.5


def end_on_sigterm() -> None:
    """SIGTERM ends a bench as Ctrl-C does: every run is stopped on its way out."""
    signal.signal(signal.SIGTERM, _as_interrupt)


def _as_interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def wait_until_quiet(most_s: float) -> float:
    """Waits until the host is idle, but not for ever.

    Args:
        most_s: It looks at least once.

    Returns:
        How busy it is at the end, 100 is one core; over ``QUIET_PCT`` when it did not get quiet.
    """
    end_s = time.monotonic() + most_s
    while True:
        busy_pct = proc_figures.busy_pct(_LOOK_S)
        if busy_pct < QUIET_PCT or time.monotonic() > end_s:
            return busy_pct


def write(path: Path, text: str) -> None:
    """Writes a document, and says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    say(f"wrote {path}")


def say(text: str) -> None:
    """A line of progress; the result is on stdout."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
