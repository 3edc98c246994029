"""Values, limits and differences of a comparison as people read them."""

from __future__ import annotations

from analysis.comparison.comparison import Against, RungRow
from analysis.ladder.limit_words import limit_title
from analysis.stats.spread import Spread
from reports.elements import formatting

_SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6}


def value_text(value: float | None, unit: str) -> str:
    """A figure with its unit."""
    if value is None or not formatting.is_known(value):
        return formatting.NOT_MEASURED
    if unit in _SECONDS:
        return formatting.seconds(value * _SECONDS[unit])
    return formatting.quantity(value, unit)


def range_text(spread: Spread, unit: str) -> str:
    """From the lowest to the highest repeat, '' when there is none or they are all the same."""
    if spread.count < 2 or spread.low == spread.high:
        return ""
    low, high = value_text(spread.low, unit), value_text(spread.high, unit)
    return f"{low} to {high}" if low != high else ""


def noise_text(spread: Spread) -> str:
    """The range of the repeats in percent of their median, '' when there is none."""
    if spread.count < 2 or not spread.median:
        return ""
    share_pct = 100 * spread.width / abs(spread.median)
    if share_pct == 0:
        return "~0 %"
    return f"~{share_pct:.0f} %" if share_pct >= 1 else f"~{max(share_pct, 0.1):.1f} %"


def change_text(against: Against, unit: str) -> str:
    """How much the median changed: in percent, or in the unit where the base is zero."""
    if against.change is None:
        return ""
    if against.change == 0:
        return "0"
    if against.change_pct is None:
        return f"{'+' if against.change > 0 else '-'}{value_text(abs(against.change), unit)}"
    share_pct = against.change_pct
    if abs(share_pct) >= 300:
        return f"\N{MULTIPLICATION SIGN}{formatting.significant(share_pct / 100 + 1)}"
    if abs(share_pct) < 0.5:
        return "<1 %"
    return f"{'+' if share_pct > 0 else '-'}{abs(share_pct):.0f} %"


def says_text(against: Against) -> str:
    """What can be said: better, worse, or why nothing can."""
    if against.change == 0:
        return "the same"
    if not against.difference.is_claimed or against.is_better is None:
        return str(against.difference.value)
    return f"{against.difference.value}, {'better' if against.is_better else 'worse'}"


def tone(against: Against) -> str:
    """Good, bad or no tone."""
    if not against.difference.is_claimed or against.is_better is None:
        return ""
    return "good" if against.is_better else "bad"


def limit_name(row: RungRow) -> str:
    """The limit, and the side whose it is."""
    name = limit_title(row.limit)
    return f"{name}, {row.side}" if row.side else name
