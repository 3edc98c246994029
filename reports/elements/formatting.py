"""Numbers as people read them: always with their unit, never with false precision."""

from __future__ import annotations

import math

_BINARY = ("B", "KiB", "MiB", "GiB", "TiB")

NOT_MEASURED = "not measured"


def is_known(value: float | None) -> bool:
    """Whether a number can be shown: neither None nor NaN nor infinite."""
    return value is not None and math.isfinite(value)


def count(value: float | None) -> str:
    """A whole number with thousands separators."""
    if value is None or not math.isfinite(value):
        return NOT_MEASURED
    return f"{value:,.0f}"


def significant(value: float | None, digits: int = 3) -> str:
    """A number with that many significant digits and thousands separators."""
    if value is None or not math.isfinite(value):
        return NOT_MEASURED
    if value == 0:
        return "0"
    magnitude = math.floor(math.log10(abs(value)))
    decimals = max(0, digits - 1 - magnitude)
    if decimals == 0 or float(value).is_integer():
        return f"{value:,.0f}"
    return f"{value:,.{min(decimals, 6)}f}".rstrip("0").rstrip(".")


def size(value_bytes: float | None) -> str:
    """Bytes with the binary prefix that keeps at most four digits before the point."""
    if value_bytes is None or not math.isfinite(value_bytes):
        return NOT_MEASURED
    if abs(value_bytes) < 1:
        return f"{round(value_bytes, 1) + 0.0:g} B"
    scaled, prefix = float(value_bytes), 0
    while abs(scaled) >= 1024 and prefix < len(_BINARY) - 1:
        scaled /= 1024
        prefix += 1
    return f"{significant(scaled)} {_BINARY[prefix]}"


def percent(value: float | None) -> str:
    """A percentage with one decimal below ten."""
    if value is None or not math.isfinite(value):
        return NOT_MEASURED
    return f"{value:.1f} %" if abs(value) < 10 and value != 0 else f"{value:,.0f} %"


def seconds(value_s: float | None) -> str:
    """A duration in the unit that people would say it in."""
    if value_s is None or not math.isfinite(value_s):
        return NOT_MEASURED
    magnitude_s = abs(value_s)
    if magnitude_s >= 120:
        minutes, rest_s = divmod(round(magnitude_s), 60)
        return f"{'-' if value_s < 0 else ''}{minutes} min {rest_s:02d} s"
    if magnitude_s >= 10:
        return f"{value_s:.1f} s"
    if value_s == 0:
        return "0 s"
    if magnitude_s >= 1:
        return f"{value_s:.2f} s"
    if magnitude_s >= 1e-3:
        return f"{significant(value_s * 1e3)} ms"
    return f"{significant(value_s * 1e6)} µs"


def moment(value_s: float | None) -> str:
    """A moment of the run, in seconds since the ramp began."""
    if value_s is None or not math.isfinite(value_s):
        return "at no known time"
    value_s = round(value_s, 2) + 0.0  # no -0.00
    return f"{value_s:.2f} s" if abs(value_s) < 1000 else f"{value_s:,.0f} s"


def quantity(value: float | None, unit: str) -> str:
    """A number with the unit as the tables of a run write it (bytes, ns, pages, pct, count)."""
    if value is None or not math.isfinite(value):
        return NOT_MEASURED
    if unit in ("bytes", "B"):
        return size(value)
    if unit == "bytes_per_s":
        return f"{size(value)} per s"
    if unit == "ns":
        return seconds(value / 1e9)
    if unit == "s":
        return seconds(value)
    if unit in ("pct", "%"):
        return percent(value)
    if unit == "pages":
        return f"{count(value)} pages"
    number = count(value) if abs(value) >= 1000 else significant(value)
    if unit in ("count", ""):
        return number
    return f"{number} {unit.replace('_per_s', ' per s').replace('per_s', 'per s')}"
