"""Keeps the recording of a long watch within a size: decides how coarse quiet rows are. Pure.

A watch goes on for days, and nearly all of it is of a server at which nothing happens. While
something does, rows are as close as the budget of CPU time allows, and are paid from what was saved
up. While nothing does, they may take no more than ``bytes_per_s``: ``RowBudget`` is told how much
was written and answers with a factor for the periods.
"""

from __future__ import annotations

from dataclasses import dataclass

from probes.contract.clock import NS_PER_S

BURST_BYTES = 256 << 20
"""What may be written beyond the rate, in moments in which something happens."""

_BASE_BYTES_PER_S = 1_200
_BYTES_PER_S_AND_PROCESS, _BYTES_PER_S_AND_CORE = 6, 2
"""A row of live_samples and one of process_samples, and one of host_cpu, in ``LONGEST_ROWS_NS``."""

_PEAK_BYTES_PER_S = 20_000
_PEAK_BYTES_PER_S_AND_PROCESS, _PEAK_BYTES_PER_S_AND_CORE = 1_100, 75_000
"""While something happens: rows at their usual periods, and 49 stacks a second that all differ."""

FINEST_STRETCH, COARSEST_STRETCH = 4.0, 128.0
LONGEST_ROWS_NS = 60 * NS_PER_S
"""Rows of a quiet server are never further apart."""
_LEARN_NS = 300 * NS_PER_S
"""So long the rate is watched before the factor changes."""
_LOW_SHARE = 1 / 3
STACKS_MOST_COUNT = 48
"""Stacks of an interval that are rows of their own while the recording is kept small."""


def bytes_per_s(processes: int, cores: int) -> int:
    """What a watch may write in the long run."""
    return _BASE_BYTES_PER_S + _BYTES_PER_S_AND_PROCESS * processes + _BYTES_PER_S_AND_CORE * cores


def most_bytes(duration_s: float, processes: int, cores: int) -> int:
    """The size that the tables of a watch have at most."""
    peak = _PEAK_BYTES_PER_S
    peak += _PEAK_BYTES_PER_S_AND_PROCESS * processes + _PEAK_BYTES_PER_S_AND_CORE * cores
    rate = bytes_per_s(processes, cores)
    return round(min(BURST_BYTES, peak * duration_s) + rate * duration_s)


@dataclass(slots=True)
class RowBudget:
    """The budget of one watch.

    Attributes:
        rate_bytes_per_s: What may be written in the long run.
        balance_bytes: What is left of the burst; below zero too much was written.
        quiet_stretch: Factor for the periods while nothing happens.
    """

    rate_bytes_per_s: float
    balance_bytes: float = BURST_BYTES
    quiet_stretch: float = FINEST_STRETCH
    _at_ns: int = 0
    _written_bytes: int = 0
    _learns_from_ns: int = 0
    _learned_bytes: int = 0

    def wrote(self, at_ns: int, total_bytes: int, *, is_quiet: bool) -> None:
        """Takes a reading.

        Args:
            at_ns: When.
            total_bytes: Size of all tables of the watch.
            is_quiet: Nothing has happened for a while.
        """
        if not self._at_ns:
            self._at_ns, self._written_bytes = at_ns, total_bytes
        length_s = (at_ns - self._at_ns) / NS_PER_S
        spent = total_bytes - self._written_bytes
        earned = self.rate_bytes_per_s * length_s
        self.balance_bytes = min(BURST_BYTES, self.balance_bytes + earned - spent)
        self._at_ns, self._written_bytes = at_ns, total_bytes
        if not is_quiet and self.balance_bytes > 0:
            self._learns_from_ns = 0
            return
        if not self._learns_from_ns:
            self._learns_from_ns, self._learned_bytes = at_ns, total_bytes
        learned_ns = at_ns - self._learns_from_ns
        if learned_ns < _LEARN_NS:
            return
        rate = (total_bytes - self._learned_bytes) * NS_PER_S / learned_ns
        if rate > self.rate_bytes_per_s:
            self.quiet_stretch = min(COARSEST_STRETCH, 2 * self.quiet_stretch)
        elif rate < _LOW_SHARE * self.rate_bytes_per_s:
            self.quiet_stretch = max(FINEST_STRETCH, self.quiet_stretch / 2)
        self._learns_from_ns, self._learned_bytes = at_ns, total_bytes

    def stretch(self, *, is_quiet: bool, is_moving: bool = False) -> float:
        """The factor for the periods of what writes rows, at least 1.

        Args:
            is_quiet: Nothing has happened for a while.
            is_moving: Connections come or go all the same: rows are close for that until half of
                what was saved up is gone. The rest is for moments that matter.
        """
        if is_quiet and is_moving and self.balance_bytes > BURST_BYTES / 2:
            return FINEST_STRETCH
        return self.quiet_stretch if is_quiet or self.balance_bytes <= 0 else 1.0
