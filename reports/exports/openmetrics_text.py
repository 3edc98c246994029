"""OpenMetrics 1.0 text: families in, exposition out. Standard library only.

Source: OpenMetrics 1.0 (prometheus/OpenMetrics, specification/OpenMetrics.md). Only gauges and
counters are written, which the Prometheus text format (node_exporter's textfile collector) knows
as well.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

CONTENT_TYPE = "application/openmetrics-text; version=1.0.0; charset=utf-8"


@dataclass(slots=True)
class Family:
    """One metric with its samples.

    Attributes:
        name: Without ``_total``; ends in the unit when there is one.
        kind: A gauge is a value of now, a counter only grows (its samples end in ``_total``).
        unit: Base unit (seconds, bytes, ratio, pages), '' for none.
        help_text: One sentence.
    """

    name: str
    kind: Literal["gauge", "counter"]
    unit: str
    help_text: str
    _samples: dict[tuple[tuple[str, str], ...], float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.unit and not self.name.endswith(f"_{self.unit}"):
            raise ValueError(f"{self.name} does not end in its unit {self.unit}")

    def add(self, value: float | None, labels: Mapping[str, object] | None = None) -> None:
        """Adds a sample; one that is unknown (None, NaN) is left out.

        Counters with equal labels are added up, of gauges the last one stays: a set of labels may
        appear once only.
        """
        if value is None or math.isnan(value):
            return
        key = tuple((name, str(text)) for name, text in (labels or {}).items())
        before = self._samples.get(key, 0.0) if self.kind == "counter" else 0.0
        self._samples[key] = before + value

    def lines(self) -> list[str]:
        """The family's part of the exposition; nothing when it has no sample."""
        if not self._samples:
            return []
        head = [f"# TYPE {self.name} {self.kind}"]
        if self.unit:
            head.append(f"# UNIT {self.name} {self.unit}")
        head.append(f"# HELP {self.name} {_escaped(self.help_text)}")
        suffix = "_total" if self.kind == "counter" else ""
        return head + [
            f"{self.name}{suffix}{_labels(key)} {_number(value)}"
            for key, value in self._samples.items()
        ]


def exposition(families: Iterable[Family]) -> str:
    """The whole text, with the ``# EOF`` that says it is complete."""
    lines = [line for family in families for line in family.lines()]
    return "\n".join([*lines, "# EOF"]) + "\n"


def _labels(key: tuple[tuple[str, str], ...]) -> str:
    if not key:
        return ""
    return "{" + ",".join(f'{name}="{_escaped(text)}"' for name, text in key) + "}"


def _escaped(text: str) -> str:
    """Escapes of a quoted string; NUL and half surrogate pairs cannot be written at all."""
    sendable = (
        text.encode("utf-8", "replace").decode("utf-8").replace("\0", "\N{REPLACEMENT CHARACTER}")
    )
    # A carriage return is legal, but readers that split on lines of any kind break at it.
    one_line = "".join(" " if c in "\r\v\f\x1c\x1d\x1e\x85\u2028\u2029" else c for c in sendable)
    return one_line.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _number(value: float) -> str:
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return (
        str(int(value)) if float(value).is_integer() and abs(value) < 2**63 else repr(float(value))
    )
