"""Who decides when the phases of a run begin: its supervisor alone, or somebody for several hosts.

Alone is what every run of one host is: each answer is the supervisor's own, at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from reports.terminal.terminal import Status


class Cue:
    """Alone: a phase begins when the one before is over.

    Attributes:
        concludes: Who records the run understands it as well.
    """

    concludes = True

    def wait_for_ramp(self, _is_interrupted: Callable[[], bool]) -> bool:
        """Processes and probes are ready; returns whether the ramp may begin now."""
        return True

    def is_ramp_over(self, *, is_done: bool) -> bool:
        """Whether the hold begins now.

        Args:
            is_done: The clients of this host have nothing left to try.
        """
        return is_done

    def hold_end_s(self, hold_s: float) -> float:
        """When the hold ends, on this host's monotonic clock."""
        return time.monotonic() + hold_s

    def wait_for_stop(self, _is_interrupted: Callable[[], bool]) -> None:
        """The probes have taken their last samples; returns when connections may be closed."""

    def tell(self, status: Status) -> None:
        """What the terminal is shown, a few times a second."""
