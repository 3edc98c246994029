"""What a verdict means, without its words: what a change of structure must leave as it was."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from analysis.document import document
from analysis.summary import Summary
from analysis.verdict.verdict import exit_code

_VERDICT = ("cause", "side", "at_connections", "at_s", "confidence")
_FINDING = (
    *("cause", "severity", "side", "subject", "first_s", "last_s", "at_connections"),
    *("confidence", "follows_from"),
)
_EVIDENCE = ("id", "of", "value", "unit", "table", "at_s")
_RUNG = (
    *("limit", "scope", "capacity", "used_at_peak", "unit", "per_connection", "fit_error_pct"),
    *("predicted_connections", "met"),
)
_RUN = (
    *("status", "target_connections", "peak_connections", "held_connections"),
    *("failed_connections", "lost_connections"),
)
_RELATIVE = 1e-6
"""Sums of floating point numbers may differ in their last digits between processors."""


def meaning(summary: Summary) -> dict[str, Any]:
    """The meaning of a run's verdict as plain JSON.

    Causes, sides, subjects, severities, origins, evidence by its id and qualifier with values,
    rungs with predictions, the exit code; no sentence, no explanation, no name for people.
    """
    whole = document(summary)
    said = whole["verdict"]
    return {
        "exit_code": int(exit_code(summary.verdict)),
        "run": {key: whole["run"][key] for key in _RUN},
        "verdict": {key: said[key] for key in _VERDICT}
        | {"alternatives": [[each["cause"], each["side"]] for each in said["alternatives"]]},
        "findings": [_finding(finding) for finding in whole["findings"]],
        "ladder": [{key: rung[key] for key in _RUNG} for rung in whole["ladder"]],
        "probes": {probe["name"]: probe["state"] for probe in whole["probes"]},
    }


def _finding(finding: Mapping[str, Any]) -> dict[str, Any]:
    evidence = [{key: each[key] for key in _EVIDENCE} for each in finding["evidence"]]
    evidence.sort(key=lambda each: (each["id"], each["of"], each["value"]))
    return {
        **{key: finding[key] for key in _FINDING},
        "has_fix": bool(finding["fix"]),
        "evidence": evidence,
    }


def differences(expected: Any, found: Any) -> list[str]:
    """Where two meanings differ, for people: a line each; empty when they are equal."""
    return list(_differences(expected, found, ""))


def _differences(expected: Any, found: Any, where: str) -> Iterator[str]:
    if isinstance(expected, Mapping) and isinstance(found, Mapping):
        for key in dict.fromkeys([*expected, *found]):
            path = f"{where}.{key}" if where else str(key)
            yield from _differences(expected.get(key, _ABSENT), found.get(key, _ABSENT), path)
    elif _is_list(expected) and _is_list(found):
        for index in range(max(len(expected), len(found))):
            left, right = (
                each[index] if index < len(each) else _ABSENT for each in (expected, found)
            )
            yield from _differences(left, right, f"{where}[{_name((left, right), index)}]")
    elif not _is_equal(expected, found):
        yield f"{where}: expected {expected!r}, found {found!r}"


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _name(pair: Sequence[Any], index: int) -> str:
    """An element by what it is, where it says so."""
    for each in pair:
        for key in ("cause", "limit", "id"):
            if isinstance(each, Mapping) and key in each:
                return f"{index} {each[key]}"
    return str(index)


def _is_equal(expected: Any, found: Any) -> bool:
    numbers = [isinstance(v, int | float) and not isinstance(v, bool) for v in (expected, found)]
    if all(numbers):
        return math.isclose(expected, found, rel_tol=_RELATIVE, abs_tol=2e-6)
    return bool(expected == found) and type(expected) is type(found)


class _Absent:
    """What is not there."""

    def __repr__(self) -> str:
        return "nothing"


_ABSENT = _Absent()
