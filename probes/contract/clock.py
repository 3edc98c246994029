"""One clock: int64 nanoseconds of CLOCK_MONOTONIC, the clock of ``bpf_ktime_get_ns``.

Wall time exists only as anchor pairs in the manifest; it is computed from them for display.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime

NS_PER_S = 1_000_000_000
NS_PER_MS = 1_000_000


def now_ns() -> int:
    """Nanoseconds of CLOCK_MONOTONIC now."""
    return time.monotonic_ns()


@dataclass(frozen=True, slots=True)
class Anchor:
    """The same moment on both clocks; ``uncertainty_ns`` is the width of the bracket around it."""

    monotonic_ns: int
    wall_ns: int
    uncertainty_ns: int

    @classmethod
    def take(cls, attempts_count: int = 5) -> Anchor:
        """Reads both clocks, keeping the tightest of a few brackets.

        Args:
            attempts_count: How many brackets to try, at least 1.
        """
        best: Anchor | None = None
        for _ in range(max(1, attempts_count)):
            before_ns = time.monotonic_ns()
            wall_ns = time.time_ns()
            after_ns = time.monotonic_ns()
            width_ns = after_ns - before_ns
            if best is None or width_ns < best.uncertainty_ns:
                best = cls(before_ns + width_ns // 2, wall_ns, width_ns)
        assert best is not None
        return best

    def wall_time(self, monotonic_ns: int) -> datetime:
        """The wall time (UTC) of a monotonic moment of the same boot."""
        return datetime.fromtimestamp(
            (self.wall_ns + monotonic_ns - self.monotonic_ns) / NS_PER_S, tz=UTC
        )
