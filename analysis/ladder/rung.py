"""One rung of the limit ladder, the order of rungs, and where a line meets a capacity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from analysis.stats import slopes

PLAN, SETTING, HARDWARE = "plan", "setting", "hardware"
"""What moves a limit: ``Rung.moved_by``."""
_NO_LIMIT = 10**12
"""A capacity beyond this is "unlimited" written as a number (fs.file-max is 2^63 - 1 today)."""


@dataclass(frozen=True, slots=True)
class Rung:
    """One limit of this run. Sorted by ``predicted_connections``, the first is the next wall.

    Attributes:
        limit: A name of ``probes.contract.limits.LIMITS``.
        scope: process, port_group, host or listener.
        subject: What it is about, e.g. ``worker 3 (pid 812, server)``.
        capacity: Where the limit is, in ``unit``; None when it could not be read.
        used_at_peak: Use when most connections were open, in ``unit``; None when not measured.
        unit: count, pages, bytes, pct, ...
        per_connection: Use per connection of the whole run (not of this process), in ``unit``.
        fit_error_pct: Error of the slope in percent of the slope (``analysis.stats.slopes``); None
            when the slope was not fitted.
        predicted_connections: Connections of the whole run at which this limit is met; None when
            this run cannot tell: ``note`` says why.
        source: Where capacity and use come from.
        note: For people: what raises it, or why there is no prediction.
        met: The run was at this limit.
        moved_by: ``plan`` where the planner laid it out so, and lays it out otherwise for a larger
            target; ``setting`` where somebody has to set it; ``hardware`` where only more memory or
            cores move it.
    """

    limit: str
    scope: str
    subject: str
    capacity: float | None
    used_at_peak: float | None
    unit: str
    per_connection: float | None
    fit_error_pct: float | None
    predicted_connections: int | None
    source: str
    note: str = ""
    met: bool = False
    moved_by: str = SETTING


def ordered(rungs: Sequence[Rung]) -> list[Rung]:
    """Next wall first. Met ones lead at equal counts; those without a prediction are last,
    fullest first.
    """  # noqa: D205  # one sentence does not fit one line

    def key(rung: Rung) -> tuple[float, bool, float, str, str]:
        used = (rung.used_at_peak or 0.0) / rung.capacity if rung.capacity else 0.0
        predicted = rung.predicted_connections
        where = float("inf") if predicted is None else float(predicted)
        return where, not rung.met, -used, rung.limit, rung.subject

    return sorted(rungs, key=key)


def next_wall(rungs: Sequence[Rung]) -> Rung | None:
    """The nearest limit that the run did not meet, None when no rung has a prediction.

    One that the next plan moves by itself is a wall only where no other is known.
    """
    open_rungs = _open(rungs)
    lasting = [rung for rung in open_rungs if rung.moved_by != PLAN]
    return next(iter(lasting or open_rungs), None)


def layout_wall(rungs: Sequence[Rung]) -> Rung | None:
    """The limit of this layout that is met before the next wall, None where there is none."""
    first, wall = next(iter(_open(rungs)), None), next_wall(rungs)
    return first if first is not wall else None


def _open(rungs: Sequence[Rung]) -> list[Rung]:
    return [rung for rung in rungs if not rung.met and rung.predicted_connections is not None]


_FEW_COUNT = 50
"""Of fewer connections the use of a whole host says nothing: others move it more than they do."""


class NoPrediction(Enum):
    """Why a line says nothing of where a limit of the whole host is met."""

    UNLIMITED = "that is no limit in practice"
    FEW_SAMPLES = "too few samples over the ramp to fit a slope"
    FEW_CONNECTIONS = "too few connections to tell their part of it"
    DID_NOT_GROW = "its use did not grow with the connections of this run"
    GROWS_SLOWLY = "its use grows too slowly for this run to see where it ends"
    FAR_AWAY = "more than 1,000 times the connections of this run"


def predict(
    capacity: float, line: slopes.Slope | None, peak_count: int, used: float
) -> int | NoPrediction:
    """Where a line meets a capacity of the whole host, or why that cannot be said.

    Args:
        capacity: The limit.
        line: Use by connections.
        peak_count: Most connections of the run.
        used: Most use of the run, whoever's.

    Returns:
        Connections, or the reason.
    """
    if capacity >= _NO_LIMIT:
        return NoPrediction.UNLIMITED
    if line is None:
        return NoPrediction.FEW_SAMPLES
    if peak_count < _FEW_COUNT:
        return NoPrediction.FEW_CONNECTIONS
    if not line.is_usable or line.per_x * peak_count > _MOST_SHARE * used:
        return NoPrediction.DID_NOT_GROW
    connections = (capacity - line.intercept) / line.per_x
    if connections > _NO_LIMIT:
        return NoPrediction.GROWS_SLOWLY
    if connections > 1000 * max(1, peak_count):
        return NoPrediction.FAR_AWAY
    return int(connections)


_MOST_SHARE = 2.0
"""A slope by which the connections had twice as much as all that was used is not theirs."""


def blind(limit: str, scope: str, unit: str, why: str, source: str) -> Rung:
    """A rung that this run cannot see, and says so."""
    return Rung(limit, scope, "the host", None, None, unit, None, None, None, source, why)
