"""The comparison in words and as the document of ``profile-compare --json``."""

from __future__ import annotations

from typing import Any

from analysis.comparison.comparison import Against, Comparison, FigureRow, RungRow
from analysis.document import json_safe
from analysis.stats.spread import Spread

SCHEMA_VERSION = 1

RULE = (
    "Noise is the range between the repeats of a variant. A difference is claimed when the ranges "
    "of two variants are apart by more than the wider of them (2 + 3 repeats: twice, 2 + 2: five "
    "times; one variant without repeats: five times with 3 repeats of the other, three times with "
    "4, twice with 5 or 6) and by more than the errors of both measurements."
)
RULE_WITHOUT_REPEATS = (
    "With three runs or fewer of two variants together the noise is not known. Then only a fitted "
    "figure (memory, the ladder) is called different, when it is apart by five times both fit "
    "errors and one value is twice the other, or a limit whose capacity was changed."
)


_OUTCOME_WORDS = {"reached": "the target reached", "not-explained": "no explanation"}
_RECORD_MORE = (
    "The noise between repeats is not known: record each variant three times to tell the rest."
)


def headline(comparison: Comparison) -> str:
    """The answer in one or two sentences."""
    variants = comparison.variants
    if len(variants) == 1:
        return f"All {variants[0].run_count} runs repeat one variant: what they differ by is noise."
    return f"{_verdicts_sentence(comparison)} {_differences_sentence(comparison)}"


def _verdicts_sentence(comparison: Comparison) -> str:
    outcomes = [
        " or ".join(_OUTCOME_WORDS.get(cause, cause) for cause in variant.causes)
        for variant in comparison.variants
    ]
    if len(set(outcomes)) == 1:
        return f"Every variant ends with {outcomes[0]}."
    by_outcome: dict[str, list[str]] = {}
    for variant, outcome in zip(comparison.variants, outcomes, strict=True):
        by_outcome.setdefault(outcome, []).append(variant.letter)
    named = [f"{_and(letters)} with {outcome}" for outcome, letters in by_outcome.items()]
    return f"The variants end differently: {', '.join(named)}."


def _and(words: list[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _differences_sentence(comparison: Comparison) -> str:
    rows = [row for row in comparison.figures if row.is_measured]
    claimed = [row for row in rows if row.is_claimed]
    moved = [row for row in comparison.ladder if row.is_claimed]
    if claimed or moved:
        text = (
            f"{len(claimed)} of {len(rows)} key figures and {len(moved)} of "
            f"{sum(row.is_predicted for row in comparison.ladder)} limits differ by more than the "
            "noise."
        )
        return text if comparison.is_noise_known else f"{text} {_RECORD_MORE}"
    if not comparison.is_noise_known:
        return (
            "The noise between repeats is not known, so no difference is claimed; record each "
            "variant three times."
        )
    return "No difference is larger than the noise between repeats."


def noise_note(comparison: Comparison) -> str:
    """The rule that was applied, in words."""
    return RULE if comparison.is_noise_known else f"{RULE} {RULE_WITHOUT_REPEATS}"


def document(comparison: Comparison) -> dict[str, Any]:
    """The comparison as plain JSON values; what was not measured is null.

    Returns:
        schema_version, headline, rule, cautions, variants (letter, label, runs), changes, figures
        and ladder. Lists of values are in the order of ``variants``; ``against_base`` has one
        entry for each variant but the first.
    """
    variants = comparison.variants
    plain = {
        "schema_version": SCHEMA_VERSION,
        "headline": headline(comparison),
        "rule": noise_note(comparison),
        "noise_known": comparison.is_noise_known,
        "cautions": comparison.cautions,
        "variants": [
            {
                "letter": variant.letter,
                "label": variant.label,
                "causes": variant.causes,
                "runs": [
                    {
                        "id": verdict.run_id,
                        "cause": verdict.cause,
                        "side": verdict.side,
                        "at_connections": verdict.at_connections,
                        "target_connections": verdict.target_connections,
                        "sentence": verdict.sentence,
                        "confidence": verdict.confidence,
                        "also": verdict.also,
                    }
                    for verdict in variant.verdicts
                ],
            }
            for variant in variants
        ],
        "changes": [
            {"area": change.area, "name": change.name, "values": change.values}
            for change in comparison.changes
        ],
        "figures": [_figure(row) for row in comparison.figures],
        "ladder": [_rung(row) for row in comparison.ladder],
    }
    result = json_safe(plain)
    assert isinstance(result, dict)
    return result


def _figure(row: FigureRow) -> dict[str, Any]:
    return {
        "name": row.name,
        "label": row.label,
        "unit": row.unit,
        "better": row.better,
        "values": [_spread(spread) for spread in row.spreads],
        "repeats": row.values,
        "against_base": [_against(one) for one in row.against],
    }


def _rung(row: RungRow) -> dict[str, Any]:
    return {
        "limit": row.limit,
        "side": row.side,
        "unit": row.unit,
        "predicted_connections": [_spread(spread) for spread in row.predicted],
        "capacity": [_spread(spread) for spread in row.capacity],
        "met_count": row.met_counts,
        "notes": row.notes,
        "against_base": [_against(one) for one in row.against],
    }


def _spread(spread: Spread) -> dict[str, Any]:
    return {
        "median": spread.median,
        "low": spread.low,
        "high": spread.high,
        "count": spread.count,
        "fit_error": spread.error,
        "resolution": spread.resolution,
    }


def _against(one: Against) -> dict[str, Any]:
    return {
        "difference": one.difference.value,
        "change": one.change,
        "change_pct": one.change_pct,
        "is_better": one.is_better,
    }
