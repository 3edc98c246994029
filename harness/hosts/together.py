"""The cue of a supervisor that is one of several: its agent tells it when, on its own clock.

Lines of JSON in both directions, over standard input and output. When the agent is gone its end of
the pipe is: the run then ends as after a signal, and what is left after ``_LAST_S`` is killed.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, BinaryIO

from harness.supervision.cue import Cue
from harness.supervision.supervisor import Interrupt
from reports.terminal.terminal import Status

_TICK_S = 0.005
_TELL_PERIOD_S = 0.15
_LAST_S = 4.5
_STOP_WAIT_S = 20.0


class Together(Cue):
    """Reads what the agent says in a thread of its own.

    Args:
        told: From the agent, behind the line that described the shard.
        interrupt: Set when the run is to end at once.
    """

    concludes = False

    def __init__(self, told: BinaryIO, interrupt: Interrupt) -> None:
        self._interrupt = interrupt
        self._ramp_ns = 0
        self._hold_until_ns = 0
        self._may_stop = False
        self._told_s = 0.0
        self._is_done = False
        threading.Thread(target=self._listen, args=(told,), name="agent", daemon=True).start()

    def _listen(self, told: BinaryIO) -> None:
        for line in told:
            try:
                said: dict[str, Any] = json.loads(line)
            except ValueError:
                continue
            self._ramp_ns = int(said.get("ramp_ns", self._ramp_ns))
            self._hold_until_ns = int(said.get("hold_until_ns", self._hold_until_ns))
            self._may_stop = self._may_stop or bool(said.get("stop"))
            if said.get("abort"):
                self._end()
        self._end()  # nobody takes what is recorded any more
        last = threading.Timer(_LAST_S, os._exit, (1,))
        last.daemon = True
        last.start()

    def _end(self) -> None:
        self._interrupt.signal_name = self._interrupt.signal_name or "SIGTERM"

    def wait_for_ramp(self, is_interrupted: Callable[[], bool]) -> bool:
        """Says that this host is ready, and waits for the moment at which all begin."""
        say({"state": "ready"})
        while not is_interrupted():
            left_s = (self._ramp_ns - time.monotonic_ns()) / 1e9 if self._ramp_ns else 1.0
            if left_s <= 0:
                say({"state": "ramp"})
                return True
            time.sleep(min(left_s, _TICK_S))
        return False

    def is_ramp_over(self, *, is_done: bool) -> bool:
        """When the agent says how long the hold lasts."""
        self._is_done = is_done
        return bool(self._hold_until_ns)

    def hold_end_s(self, hold_s: float) -> float:
        """As the agent said; ``hold_s`` from now where the ramp ended by itself."""
        return self._hold_until_ns / 1e9 if self._hold_until_ns else time.monotonic() + hold_s

    def wait_for_stop(self, is_interrupted: Callable[[], bool]) -> None:
        """Says that the last samples are taken; waits until this host may close connections."""
        say({"state": "held"})
        end_s = time.monotonic() + _STOP_WAIT_S
        while not self._may_stop and not is_interrupted() and time.monotonic() < end_s:
            time.sleep(_TICK_S)

    def tell(self, status: Status) -> None:
        """Passes on the counts, some times a second."""
        now_s = time.monotonic()
        if now_s - self._told_s < _TELL_PERIOD_S:
            return
        self._told_s = now_s
        say({
            "phase": status.phase,
            "elapsed_s": status.elapsed_s,
            "is_done": self._is_done,
            "established": status.established,
            "open_count": status.open_count,
            "rate_per_s": status.rate_per_s,
            "failed": status.failed,
            "errors": list(status.errors),
            "workers": list(status.workers),
            "note": status.note,
        })  # fmt: skip


def say(told: dict[str, Any]) -> None:
    """One line to the agent; a supervisor whose agent is gone goes on to its end."""
    try:
        sys.stdout.write(json.dumps(told) + "\n")
        sys.stdout.flush()
    except (OSError, ValueError):
        pass
