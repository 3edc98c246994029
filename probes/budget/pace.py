"""How often the probes look at a server in service: close when something happens.

The signs are in the shared memory, which whoever follows the processes fills: a process that came
or ended, EMFILE, descriptors that run out. The collector adds a hot worker and a loop that stands
still. ``probes/budget/governor.py`` makes one factor of them and of what watching has cost so far.
"""

from __future__ import annotations

import os

from probes.budget.governor import Governor, aligned_ns
from probes.budget.own_cost import START_NICE, WATCH_NICE, OwnCost, core_wait_ns
from probes.budget.row_budget import FINEST_STRETCH, LONGEST_ROWS_NS, RowBudget
from probes.contract.clock import NS_PER_S
from probes.contract.live import Counter, Header, Live

FLUSH_NS, CALM_FLUSH_NS = 2 * NS_PER_S, 4 * NS_PER_S
"""How long rows wait to be written: a batch costs the same whether it holds two rows or four."""

_LOOK_NS, _QUIET_LOOK_NS = NS_PER_S // 5, 2 * NS_PER_S // 5
_LONGEST_FLUSH_NS = 60 * NS_PER_S
_SPEND_NS = NS_PER_S
_FULL_SHARE = 0.9
_MOVING_SHARE, _MOVING_LEAST_COUNT = 0.02, 32
_MOVING_NS = 10 * NS_PER_S
"""Connections that come or go are no sign by themselves: rows are close for so long."""


def signs_of(live: Live) -> tuple[int, int, int, int]:
    """What the followed processes say of moments that matter: a change is a sign.

    Returns:
        Processes seen, ended, with nearly all of their descriptors in use; EMFILE so far.
    """
    seen = ended = live.header[Header.ENDED_COUNT]
    full, emfile = 0, live.header[Header.ENDED_EMFILE_TOTAL]
    for slot in live.followed_slots():
        seen += 1
        emfile += slot[Counter.ACCEPT_EMFILE_TOTAL]
        if slot[Counter.STOPPED_NS]:
            ended += 1
            continue
        used = slot[Counter.OPEN_COUNT] + slot[Counter.OWN_FDS_COUNT]
        full += used >= _FULL_SHARE * slot[Counter.NOFILE_SOFT_COUNT] > 0
    return seen, ended, full, emfile


def notes(note: str, put_off_count: int) -> str:
    """The note of a probe's health row, with what the budget took from it."""
    if not put_off_count:
        return note
    put_off = f"{put_off_count} samples were not taken, to keep the cost within the budget"
    return f"{note}; {put_off}" if note else put_off


def connections_of(live: Live) -> tuple[int, int]:
    """Connections that the followed processes hold, and how many they can hold."""
    held = most = 0
    for slot in live.followed_slots():
        if not slot[Counter.STOPPED_NS]:
            held += slot[Counter.OPEN_COUNT]
            most += slot[Counter.TARGET_COUNT]
    return held, most


class AttachedPace:
    """Reads the signs and clocks for a ``Governor``.

    Args:
        live: Shared memory of the run.
        governor: Its budget; the default one when None.
        rows: The budget of what is written; None for a run whose rows are all kept.

    Attributes:
        row_stretch: How much longer than usual the periods are of what writes rows.
    """

    def __init__(
        self, live: Live, governor: Governor | None = None, rows: RowBudget | None = None
    ) -> None:
        self.row_stretch = 1.0
        self._rows = rows
        self._connections = 0
        self._moving_until_ns = 0
        self._live = live
        self._governor = governor if governor is not None else Governor()
        self._cost = OwnCost(os.getppid())
        self._spend_due_ns = 0
        self._waited_ns = core_wait_ns(os.getpid())
        self._signs: tuple[int, ...] | None = None

    def alert(self, at_ns: int) -> None:
        """Something happens that deserves close samples."""
        self._governor.alert(at_ns)

    def look_due_ns(self, at_ns: int) -> int:
        """When to look for signs next."""
        is_quiet = self._governor.is_quiet(at_ns)
        return aligned_ns(at_ns, _QUIET_LOOK_NS if is_quiet else _LOOK_NS)

    def nice(self, at_ns: int) -> int:
        """How far to stand back (nice(2))."""
        return START_NICE if self._governor.is_starved(at_ns) else WATCH_NICE

    def flush_due_ns(self, at_ns: int) -> int:
        """When to write rows next: the further apart they are, the longer they may wait."""
        if self._governor.is_alert(at_ns):
            return aligned_ns(at_ns, FLUSH_NS)
        longest_ns = min(_LONGEST_FLUSH_NS, int(self.row_stretch * NS_PER_S))
        return aligned_ns(at_ns, max(CALM_FLUSH_NS, longest_ns))

    def wrote(self, at_ns: int, total_bytes: int) -> None:
        """Takes the size of all that is written."""
        if self._rows is not None:
            self._rows.wrote(at_ns, total_bytes, is_quiet=self._governor.is_quiet(at_ns))

    def look(self, at_ns: int, *, is_hot: bool) -> float:
        """Looks for signs, and at the clocks once a second.

        Args:
            at_ns: When.
            is_hot: Some worker is hot.

        Returns:
            How much longer than usual the periods are from now on.
        """
        # One that stays hot is sampled by those probes that look at it; the others need not hurry.
        signs = *signs_of(self._live), int(is_hot)
        if self._signs is not None and signs != self._signs:
            self._governor.alert(at_ns)
        self._signs = signs
        if at_ns >= self._spend_due_ns:
            self._spend_due_ns = at_ns + _SPEND_NS
            waited_ns = core_wait_ns(os.getpid())
            self._governor.wait(at_ns, waited_ns - self._waited_ns)
            self._waited_ns = waited_ns
            self._governor.spend(at_ns, self._cost.total_ns())
        self._look_at_rows(at_ns)
        return self._governor.stretch(at_ns)

    def _look_at_rows(self, at_ns: int) -> None:
        if self._rows is None:
            return
        held, most = connections_of(self._live)
        if abs(held - self._connections) >= max(_MOVING_LEAST_COUNT, _MOVING_SHARE * most):
            self._connections = held
            self._moving_until_ns = at_ns + _MOVING_NS
        self.row_stretch = self._rows.stretch(
            is_quiet=self._governor.is_quiet(at_ns), is_moving=at_ns < self._moving_until_ns
        )

    @property
    def is_coarse(self) -> bool:
        """Whether rows are further apart than the cost alone would have it, to keep them few."""
        return self.row_stretch > FINEST_STRETCH

    def next_due_ns(
        self, at_ns: int, period_ns: int, is_self_paced: bool, *, writes_rows: bool = False
    ) -> tuple[int, int]:
        """When a probe is due next.

        Args:
            at_ns: When it was sampled.
            period_ns: Its own period.
            is_self_paced: It keeps that period, having a budget of its own.
            writes_rows: Each sample of it is rows, whatever happens.

        Returns:
            The moment, and how many samples fewer there are until then than without a look at the
            budget, since that is overdrawn.
        """
        if is_self_paced:
            return aligned_ns(at_ns, period_ns), 0
        longer_ns = self._governor.period_ns(at_ns, period_ns)
        usual_ns = self._governor.pace(at_ns) * period_ns
        put_off_count = max(0, round(longer_ns / usual_ns) - 1)
        if writes_rows:
            rows_ns = min(round(period_ns * self.row_stretch), LONGEST_ROWS_NS)
            longer_ns = max(longer_ns, rows_ns)
        return aligned_ns(at_ns, longer_ns), put_off_count
