"""A matrix's comparison as plain values: what ``matrix.json`` holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from analysis.matrix.matrix import Move, RowResult
from analysis.stats.spread import Spread


def document(results: Sequence[RowResult]) -> list[dict[str, Any]]:
    """The comparison as plain values for ``matrix.json``."""
    return [
        {
            "row": result.spec.id,
            "log_row": result.spec.log_row or None,
            "log": result.spec.log or None,
            "binding_cause": result.cause or None,
            "causes": dict(result.causes),
            "ceiling": _spread(result.ceiling),
            "reached_target": result.has_reached,
            "what_happened": result.shown.verdict.get("sentence") if result.shown else None,
            "move": None if result.move is None else _move_document(result.move),
            "complaints": list(result.complaints),
            "expectation_held": result.held,
        }
        for result in results
    ]


def _move_document(move: Move) -> dict[str, Any]:
    return {**asdict(move), "delta_count": move.delta_count, "delta_pct": move.delta_pct}


def _spread(spread: Spread) -> dict[str, float | int] | None:
    if not spread.count:
        return None
    return {
        "median": spread.median, "low": spread.low, "high": spread.high, "runs": spread.count
    }  # fmt: skip
