"""The document ``verdict.json``: verdict, findings and ladder as plain values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from analysis.evidence import Finding, Quote
from analysis.ladder.rung import Rung
from analysis.summary import Summary

SCHEMA_VERSION = 2
"""Of ``verdict.json``. 2: evidence has ``id`` and ``of``; 1 told it apart by ``name`` alone."""


def document(summary: Summary) -> dict[str, Any]:
    """``verdict.json`` as plain JSON values; numbers that are not finite become null."""
    verdict = summary.verdict
    health = summary.probe_health
    plain = {
        "schema_version": SCHEMA_VERSION,
        "run": summary.run,
        "verdict": {
            "cause": verdict.cause,
            "side": verdict.side,
            **({"host": verdict.host} if verdict.host else {}),
            "sentence": verdict.sentence,
            "at_connections": verdict.at_connections,
            "at_s": verdict.at_s,
            "confidence": verdict.confidence,
            "next_rung": verdict.next_rung,
            "alternatives": [
                {"cause": a.cause, "side": a.side, "why": a.why, "decide": a.decide}
                for a in verdict.alternatives
            ],
            "quotes": [_quote(quote) for quote in verdict.quotes],
            "unexplained": verdict.unexplained.record() if verdict.unexplained else None,
            "unseen": list(verdict.unseen),
            "headline": verdict.headline,
            "consequences": list(verdict.consequences),
            "remedy": verdict.remedy,
            "doubt": verdict.doubt,
        },
        "findings": [finding_document(finding) for finding in summary.findings],
        "ladder": [rung_document(rung) for rung in summary.ladder],
        "probes": [
            {
                "name": row["probe"],
                "state": row["state"],
                "reason": row["reason"],
                "lost": row["lost_count"],
                "seen": row["seen_count"] if row["seen_count"] >= 0 else None,
                "cpu_s": row["cpu_s"],
            }
            for row in health.to_dict("records")
        ],
    }
    result = json_safe(plain)
    assert isinstance(result, dict)
    return result


def finding_document(finding: Finding) -> dict[str, Any]:
    """One object of ``findings``."""
    subject = finding.subject
    return {
        "cause": finding.cause,
        "severity": finding.severity,
        "side": finding.side,
        "subject": {"role": subject.role, "pid": subject.own_pid, "worker": subject.worker}
        | ({"command": subject.command} if subject.command else {})
        | ({"host": subject.host} if subject.host else {}),
        "first_s": finding.first_s,
        "last_s": finding.last_s,
        "evidence": [evidence.record() for evidence in finding.evidence],
        "explanation": finding.explanation,
        "fix": [{"command": fix.command, "effect": fix.effect} for fix in finding.fix],
        "at_connections": finding.at_connections,
        "confidence": finding.confidence,
        "missing": list(finding.missing),
        "follows_from": finding.follows_from,
        "quotes": [_quote(quote) for quote in finding.quotes],
    }


def _quote(quote: Quote) -> dict[str, Any]:
    return {"at_s": quote.at_s, "source": quote.source, "line": quote.line, "count": quote.count}


def rung_document(rung: Rung) -> dict[str, Any]:
    """One object of ``ladder``."""
    return {
        "limit": rung.limit,
        "scope": rung.scope,
        "subject": rung.subject,
        "capacity": rung.capacity,
        "used_at_peak": rung.used_at_peak,
        "unit": rung.unit,
        "per_connection": rung.per_connection,
        "fit_error_pct": rung.fit_error_pct,
        "predicted_connections": rung.predicted_connections,
        "source": rung.source,
        "note": rung.note,
        "met": rung.met,
        "moved_by": rung.moved_by,
    }


def json_safe(value: Any) -> Any:
    """Turns numpy values into plain ones, and what JSON cannot say (NaN, infinity) into null."""
    if isinstance(value, Mapping):
        return {str(key): json_safe(item) for key, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [json_safe(item) for item in value]
    if value is None or isinstance(value, bool | np.bool_):
        return None if value is None else bool(value)
    if isinstance(value, int | np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        number = float(value)
        if not math.isfinite(number):
            return None
        return int(number) if number.is_integer() and abs(number) < 2**53 else round(number, 6)
    return str(value)
