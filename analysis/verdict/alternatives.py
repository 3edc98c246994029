"""Which other findings explain the same connections, and what would decide between them. Pure.

A binding finding is the earliest of those that explain something. Where another one that does not
follow from it began as early as the tables can tell, time does not decide; where the binding one
is believed little, time is not enough. Then the verdict names both, and the measurement that
would tell them apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from analysis.evidence import Finding, Side
from analysis.findings import CATALOGUE

_EXACT_S = 0.001
_PERIOD_S = {
    "failing_syscalls": _EXACT_S,
    "connections": _EXACT_S,
    "events": _EXACT_S,
    "processes": _EXACT_S,
    "tcp_resets": _EXACT_S,
    "live_samples": 0.25,
    "process_samples": 0.5,
    "host_cpu": 0.5,
    "sockstat": 0.5,
}
"""How late a table can see what began: tables of events know the moment, samples their period."""
_LONGEST_PERIOD_S = 0.6


@dataclass(frozen=True, slots=True)
class Alternative:
    """Another explanation that this run cannot rule out.

    Attributes:
        cause: Its id.
        side: Whose limit it is.
        why: Why it cannot be ruled out, one clause with numbers.
        decide: The measurement or command that would decide.
    """

    cause: str
    side: Side
    why: str
    decide: str


def alternatives(findings: Sequence[Finding]) -> tuple[Alternative, ...]:
    """The explanations beside the binding one, the likeliest first.

    Args:
        findings: Ranked.
    """
    binding = next((f for f in findings if f.severity == "binding"), None)
    if binding is None or binding.cause == "reached":
        return ()
    rivals = [
        finding
        for finding in findings
        if finding is not binding
        and finding.explained_count > 0
        and not finding.follows_from
        and (finding.cause, finding.side) != (binding.cause, binding.side)
        and (binding.confidence == "low" or _is_as_early(finding, binding))
    ]
    rivals.sort(key=lambda f: (-f.explained_count, f.first_s, f.cause))
    return tuple(
        Alternative(f.cause, f.side, _why(f, binding), how_to_decide(binding.cause, f.cause))
        for f in rivals
    )


def tolerance_s(finding: Finding) -> float:
    """How much earlier than ``first_s`` it may have begun, by the table that saw it begin."""
    seen = [
        _PERIOD_S.get(evidence.table, _LONGEST_PERIOD_S)
        for evidence in finding.evidence
        if evidence.at_s == finding.first_s
    ]
    return min(seen, default=_LONGEST_PERIOD_S)


def _is_as_early(rival: Finding, binding: Finding) -> bool:
    return rival.first_s - binding.first_s <= max(tolerance_s(rival), tolerance_s(binding))


def _why(rival: Finding, binding: Finding) -> str:
    explained = f"it explains {rival.explained_count:,} connections"
    if _is_as_early(rival, binding):
        apart_s = abs(rival.first_s - binding.first_s)
        limit_s = max(tolerance_s(rival), tolerance_s(binding))
        return f"{explained} and began {apart_s:.3f} s apart, where {limit_s:g} s can be told apart"
    return f"{explained}, and the confidence in {binding.cause} is low"


def how_to_decide(one: str, other: str) -> str:
    """What tells two causes apart: of the pair, else of either."""
    first, second = CATALOGUE[one], CATALOGUE[other]
    pair = first.decide_between.get(other) or second.decide_between.get(one)
    return pair or second.decide or first.decide or _REPEAT


_REPEAT = "repeat the run with the first fix alone: what then stops it is the other one"
