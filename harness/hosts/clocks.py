"""One clock for all hosts: offset and drift of each, and how wrong they may be. Pure.

Of many pairs the one with the shortest way is the best: whatever delayed the others delayed them on
one way alone. The other's clock was read between question and answer, so the offset is wrong by at
most half of the time on the way (trace-cmd and PTP do the same).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

WINDOW_NS = 2_000_000_000
_LEAST_SPAN_NS = 1_000_000_000
_MOST_DRIFT_PPM = 500.0
"""What adjtimex(2) allows a clock to be slewed by: more is noise."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One comparison.

    Attributes:
        at_ns: When, by the reference's clock.
        offset_ns: The other clock less the reference's.
        bound_ns: How wrong that may be.
    """

    at_ns: int
    offset_ns: int
    bound_ns: int


@dataclass(frozen=True, slots=True)
class ClockLine:
    """How one host's clock runs beside the reference's.

    Attributes:
        at_ns: A moment by the reference's clock.
        offset_ns: The host's clock less the reference's, then.
        drift_ppm: By how much that grows, in ns a ms; 0 where it was read once.
        bound_ns: How wrong a moment of the run is at most, once it is moved.
        reading_count: Pairs that it is made of.
        round_trip_ns: The shortest.
    """

    at_ns: int = 0
    offset_ns: int = 0
    drift_ppm: float = 0.0
    bound_ns: int = 0
    reading_count: int = 0
    round_trip_ns: int = 0

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    def local_ns(self, reference_ns: int) -> int:
        """A moment of the reference's clock by the host's."""
        drift_ns = round((reference_ns - self.at_ns) * self.drift_ppm / 1e6)
        return reference_ns + self.offset_ns + drift_ns


def readings(pairs: Sequence[Sequence[int]]) -> list[Reading]:
    """What pairs of ``clock_echo.exchange`` say; those that run backwards are left out."""
    found = []
    for asked_ns, came_ns, went_ns, there_ns in pairs:
        way_ns = there_ns - asked_ns - (went_ns - came_ns)
        if way_ns < 0 or went_ns < came_ns:
            continue
        middle_ns = (asked_ns + there_ns) // 2
        found.append(Reading(middle_ns, (came_ns + went_ns) // 2 - middle_ns, way_ns // 2 + 1))
    return found


def fit(found: Sequence[Reading]) -> ClockLine | None:
    """The line through the best readings of the first and the last seconds, None without any."""
    if not found:
        return None
    in_order = sorted(found, key=lambda each: each.at_ns)
    first_ns, last_ns = in_order[0].at_ns, in_order[-1].at_ns
    first = min(
        (r for r in in_order if r.at_ns <= first_ns + WINDOW_NS), key=lambda each: each.bound_ns
    )
    last = min(
        (r for r in in_order if r.at_ns >= last_ns - WINDOW_NS), key=lambda each: each.bound_ns
    )
    span_ns = last.at_ns - first.at_ns
    drift_ppm = 1e6 * (last.offset_ns - first.offset_ns) / span_ns if span_ns else 0.0
    trip_ns = 2 * min(each.bound_ns for each in in_order)
    from_ns = min(each.at_ns - each.bound_ns for each in in_order)
    until_ns = max(each.at_ns + each.bound_ns for each in in_order)
    if span_ns < _LEAST_SPAN_NS or abs(drift_ppm) > _MOST_DRIFT_PPM:
        best = min(in_order, key=lambda each: each.bound_ns)
        away_ns = max(best.at_ns - from_ns, until_ns - best.at_ns)
        bound_ns = best.bound_ns + round(away_ns * _MOST_DRIFT_PPM / 1e6)
        return ClockLine(best.at_ns, best.offset_ns, 0.0, bound_ns, len(found), trip_ns)
    # A line that is wrong at two moments is more so before the first of them and after the last.
    bound_ns = max(
        round(
            (first.bound_ns * abs(last.at_ns - at_ns) + last.bound_ns * abs(at_ns - first.at_ns))
            / span_ns
        )
        for at_ns in (from_ns, first.at_ns, last.at_ns, until_ns)
    )
    line = ClockLine(first.at_ns, first.offset_ns, drift_ppm, bound_ns, len(found), trip_ns)
    # Between the ends a clock may have been slewed: what a reading proves against the line counts.
    missed = [
        abs(line.local_ns(each.at_ns) - each.at_ns - each.offset_ns) - each.bound_ns
        for each in in_order
    ]
    return ClockLine(
        *(line.at_ns, line.offset_ns, line.drift_ppm, bound_ns + max(0, *missed)),
        *(len(found), trip_ns),
    )
