"""Puts a server under connections: plans, starts, ramps, holds, stops."""

import sys
from types import TracebackType


def _end_quietly(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Ctrl-C while the modules of a command are still being imported is no fault to trace."""
    if issubclass(kind, KeyboardInterrupt):
        sys.stderr.write("error: interrupted before anything began\nfix: run it again\n")
    else:
        sys.__excepthook__(kind, error, trace)


sys.excepthook = _end_quietly
