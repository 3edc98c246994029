"""The first screen: what stopped the run, the fix to copy, the ladder."""

from __future__ import annotations

from typing import Any

import pandas as pd

from analysis.causes import GOOD_CAUSES
from analysis.evidence import Finding, Quote, sentence_of, times
from analysis.findings import CATALOGUE
from analysis.frames.run_words import RunWords
from analysis.ladder.ladder import Rung
from analysis.ladder.limit_words import limit_title, noun_of
from analysis.ladder.rung import HARDWARE, PLAN, SETTING
from analysis.verdict.not_explained import NotExplained
from reports.elements import formatting
from reports.elements.severity import severity_words
from reports.elements.tables import Cell, Heading, Table, table_of, text_column
from reports.sections.view import PART_OF_TABLE, View

_MOVED_BY = {
    PLAN: "the planner, for a larger target",
    SETTING: "a setting",
    HARDWARE: "more memory or cores",
}
NEAR_SHARE = 0.8


def verdict_section(view: View) -> dict[str, Any]:
    """The verdict, its facts, the fixes and all findings."""
    summary, verdict, run = view.summary, view.summary.verdict, view.summary.run
    named = next((f for f in summary.findings if f.cause == verdict.cause), None)
    status = str(run.get("status", ""))
    reached = verdict.cause in GOOD_CAUSES
    badge = "Target reached" if reached else "A limit was met"
    if verdict.cause == "no-limit-met":
        badge = "No limit was met while watching"
    if verdict.cause not in CATALOGUE:
        badge = "Target missed, cause not explained"
    fixes = [{"command": f.command, "effect": f.effect} for f in named.fix] if named else []
    facts: list[tuple[str, str]] = []
    if not reached:
        facts.append(("Cause", verdict.cause))
        facts.append(("Side", str(verdict.side)))
        if named is not None:
            facts.append(("Process", str(named.subject)))
        facts.append(("At", f"{verdict.at_connections:,} open connections"))
        facts.append(("When", f"{formatting.moment(verdict.at_s)} {view.words.after_it}"))
        if verdict.at_s is None:
            facts[-1] = ("When", "not known")
        facts.append(("Confidence", str(verdict.confidence)))
    return {
        "badge": badge,
        "tone": "good" if reached else "bad",
        "sentence": verdict.sentence,
        "headline": sentence_of((verdict.headline,)),  # what must be read in ten seconds
        "rest": verdict.rest,
        "next_rung": "" if verdict.said_wall else sentence_of((verdict.next_rung,)),
        "facts": facts,
        "fixes": fixes,
        "quotes": [quote_of(quote) for quote in verdict.quotes],
        "alternatives": [
            {"cause": a.cause, "side": a.side, "why": sentence_of((a.why,)), "decide": a.decide}
            for a in verdict.alternatives
        ],
        "warning": _status_warning(status),
        "unexplained": _unexplained(verdict.unexplained),
        "attempts": str((run.get("attempts") or {}).get("sentence") or ""),
        "missing": list(summary.missing),
        "figures": _key_figures(view),
        "findings": [
            _finding(finding, number, view.words) for number, finding in enumerate(summary.findings)
        ],
    }


def _unexplained(known: NotExplained | None) -> dict[str, Any] | None:
    """What is known of a run that nothing explains, each a list of lines."""
    if known is None:
        return None
    ended = known.ended
    return {
        "ended": [f"{count:,} {words}" for words, count in (*ended.ends, *ended.standing)]
        + ([f"{ended.never_count:,} were never tried"] if ended.never_count else [])
        + ([f"Connections were closed at once{ended.closed_by}"] if ended.closed_by else []),
        "left": [
            f"{formatting.percent(each.left_pct)} of "
            f"{limit_title(each.limit).lower()}: {each.subject} used "
            f"{formatting.quantity(each.used, each.unit)} of "
            f"{formatting.quantity(each.capacity, each.unit)}"
            for each in known.left
        ],
        "ruled_out": [
            {
                "cause": each.cause,
                "by": f"{each.by.name}: {formatting.quantity(each.by.value, each.by.unit)}",
            }
            for each in known.ruled_out
        ],
        "unwatched": [
            f"{each.probe} ({each.state.replace('_', ' ')}"
            + (f": {each.reason})" if each.reason else ")")
            for each in known.unwatched
        ],
        "decide": None
        if known.decide is None
        else {"command": known.decide.command, "effect": known.decide.effect},
    }


def _status_warning(status: str) -> str:
    return {
        "interrupted": "The run was interrupted. What was recorded until then is shown.",
        "running": "The run did not finish: its manifest is not final. What was recorded is shown.",
        "failed": "The run failed. What was recorded until then is shown.",
    }.get(status, "")


def _key_figures(view: View) -> list[dict[str, str]]:
    run, phases = view.summary.run, view.summary.phases
    if view.is_watched:
        return _watched_figures(view)
    ramp = phases[phases["phase"] == "ramp"]
    figures = [
        _figure(
            "Peak",
            formatting.count(run.get("peak_connections")),
            f"open at once, of {formatting.count(run.get('target_connections'))} asked for",
        ),
        _figure(
            "Held",
            formatting.count(run.get("held_connections")),
            "open at the end of the hold phase",
        ),
        _figure(
            "Failed or lost",
            formatting.count(
                float(run.get("failed_connections") or 0) + float(run.get("lost_connections") or 0)
            ),
            f"{formatting.count(run.get('failed_connections') or 0)} never established, "
            f"{formatting.count(run.get('lost_connections') or 0)} lost later",
        ),
    ]
    if not ramp.empty:
        row = ramp.iloc[0]
        figures.append(
            _figure(
                "Ramp",
                formatting.seconds(float(row["duration_s"])),
                f"{formatting.count(float(row['established_per_s']))} per second on average",
            )
        )
        if formatting.is_known(float(row["host_cpu_pct"])):
            figures.append(
                _figure(
                    "CPU in the ramp",
                    formatting.percent(float(row["host_cpu_pct"])),
                    "of all cores, mean over the ramp",
                )
            )
    return figures


def _watched_figures(view: View) -> list[dict[str, str]]:
    """Of a run that only watched: nothing was asked for, and who failed is not known."""
    run, phases = view.summary.run, view.summary.phases
    figures = [
        _figure("Peak", formatting.count(run.get("peak_connections")), "connections open at once"),
        _figure(
            "Open at the end",
            formatting.count(run.get("held_connections")),
            "when the watching ended",
        ),
        _figure("Failed or lost", "not known", "the clients are elsewhere"),
    ]
    watch = phases[phases["phase"] == "watch"]
    if not watch.empty:
        row = watch.iloc[0]
        figures.append(
            _figure(
                "Watched",
                formatting.seconds(float(row["duration_s"])),
                f"{formatting.count(float(row['established_count']))} connections taken meanwhile",
            )
        )
        if formatting.is_known(float(row["server_cpu_pct"])):
            cpu = formatting.percent(float(row["server_cpu_pct"]))
            figures.append(_figure("CPU of the server", cpu, "of a core, mean, all its processes"))
    return figures


def _figure(name: str, value: str, note: str) -> dict[str, str]:
    return {"name": name, "value": value, "note": note}


def _finding(finding: Finding, number: int, words: RunWords) -> dict[str, Any]:
    frame = pd.DataFrame(
        [evidence.record() for evidence in finding.evidence],
        dtype=object,  # values and None side by side, as they are
    )
    evidence = table_of(
        f"evidence-{number}",
        f"Evidence of {finding.cause}",
        frame,
        [
            text_column("Measured", "name"),
            (
                Heading("Value", is_number=True),
                lambda r: Cell(
                    formatting.quantity(float(r["value"]), str(r["unit"])), float(r["value"])
                ),
            ),
            (
                Heading("When", f"{words.after_it}; a count is from then on", is_number=True),
                _when_cell,
            ),
            (
                Heading("From table"),
                lambda r: Cell(
                    str(r["table"]),
                    href=f"#{PART_OF_TABLE.get(str(r['table']), 'method')}",
                    is_code=True,
                ),
            ),
        ],
    )
    return {
        "cause": finding.cause,
        "meaning": sentence_of((CATALOGUE[finding.cause].line,)),
        "severity": finding.severity,
        "tone": "good" if finding.cause in GOOD_CAUSES else finding.severity,
        "severity_words": severity_words(finding, words),
        "side": finding.side,
        "subject": str(finding.subject),
        "window": f"{formatting.moment(finding.first_s)} to {formatting.moment(finding.last_s)}",
        "explanation": finding.explanation,
        "confidence": finding.confidence,
        "follows_from": finding.follows_from,
        "not_measured": list(finding.missing),
        "fixes": [{"command": f.command, "effect": f.effect} for f in finding.fix],
        "evidence": evidence,
        "quotes": [quote_of(quote) for quote in finding.quotes],
    }


def quote_of(quote: Quote) -> dict[str, str]:
    """A line of the server's log as the page shows it: whose, when, and how often."""
    often = "" if quote.count == 1 else f", {times(quote.count)} with other numbers"
    return {
        "line": quote.line,
        "where": f"{quote.source} at {formatting.moment(quote.at_s)}{often}",
    }


def _when_cell(row: dict[str, Any]) -> Cell:
    at_s = row["at_s"]
    if at_s is None or not formatting.is_known(float(at_s)):
        return Cell("whole run", -1e300)
    return Cell(formatting.moment(float(at_s)), float(at_s))


def ladder_section(view: View) -> dict[str, Any]:
    """One bar per limit, next wall first, and every rung in a table."""
    rungs = view.summary.ladder
    peak = float(view.summary.run.get("peak_connections") or 0)
    first_of_limit: dict[str, Rung] = {}
    for rung in rungs:
        first_of_limit.setdefault(rung.limit, rung)
    steps = [_step(rung, peak, view.words) for rung in first_of_limit.values()]
    return {
        "steps": [s for s in steps if s["share"] is not None],
        "unmeasured": [s for s in steps if s["share"] is None],
        "table": _ladder_table(rungs) if len(rungs) > 0 else None,
        "empty": "" if rungs else "No limit could be fitted to this run: it has no samples.",
    }


def _step(rung: Rung, peak: float, words: RunWords) -> dict[str, Any]:
    share: float | None = None
    if rung.capacity and rung.used_at_peak is not None:
        share = min(1.0, max(0.0, rung.used_at_peak / rung.capacity))
    if rung.met:
        wall = words.met
    elif rung.predicted_connections is not None:
        ratio = formatting.significant(rung.predicted_connections / peak, 2) if peak else ""
        times = f", {ratio} times this run's peak" if peak else ""
        whose = " of this layout" if rung.moved_by == PLAN else ""
        wall = f"wall{whose} at {rung.predicted_connections:,} connections{times}"
    else:
        wall = "no prediction"
    is_near = share is not None and share >= NEAR_SHARE and rung.moved_by != PLAN
    tone = "bad" if rung.met else "warn" if is_near else "calm"
    return {
        "name": limit_title(rung.limit),
        "id": rung.limit,
        "subject": rung.subject,
        "share": share,
        "share_text": formatting.percent(share * 100) if share is not None else "",
        "used": _use_text(rung),
        "wall": wall,
        "tone": tone,
        "note": rung.note,
    }


def _use_text(rung: Rung) -> str:
    if rung.capacity is None:
        return "capacity not known"
    what = noun_of(rung.limit)
    unit = "count" if what else rung.unit
    capacity = f"{formatting.quantity(rung.capacity, unit)} {what}".rstrip()
    if rung.used_at_peak is None:
        return f"use not measured, capacity {capacity}"
    return f"{formatting.quantity(rung.used_at_peak, unit)} of {capacity} at the peak"


def _ladder_table(rungs: list[Rung]) -> Table:
    columns: tuple[str, ...] = (
        "limit",
        "subject",
        "capacity",
        "used_at_peak",
        "unit",
        "per_connection",
    )
    columns += ("fit_error_pct", "predicted_connections", "source", "note", "met", "moved_by")
    frame = pd.DataFrame([{c: getattr(r, c) for c in columns} for r in rungs], dtype=object)

    def amount(column: str) -> Any:
        def make(row: dict[str, Any]) -> Cell:
            value = row[column]
            if value is None:
                return Cell(formatting.NOT_MEASURED, -1e300)
            return Cell(formatting.quantity(float(value), str(row["unit"])), float(value))

        return make

    def wall(row: dict[str, Any]) -> Cell:
        value = row["predicted_connections"]
        if value is None:
            return Cell("no prediction", 1e300)
        return Cell(formatting.count(value), float(value), tone="bad" if row["met"] else "")

    def slope_error(row: dict[str, Any]) -> Cell:
        value = row["fit_error_pct"]
        if value is None:
            return Cell("exact or not fitted", -1.0)
        return Cell(f"±{formatting.percent(float(value))}", float(value))

    return table_of(
        "ladder-table",
        "Every limit that was looked at, next wall first",
        frame,
        [
            (
                Heading("Limit"),
                lambda r: Cell(limit_title(str(r["limit"]))),
            ),
            text_column("Of", "subject"),
            (Heading("Used", "at the peak", is_number=True), amount("used_at_peak")),
            (Heading("Capacity", is_number=True), amount("capacity")),
            (Heading("Per connection", is_number=True), amount("per_connection")),
            (Heading("Slope error", "standard error", is_number=True), slope_error),
            (Heading("Met at", "connections of the run", is_number=True), wall),
            (
                Heading("Moved by"),
                lambda r: Cell(_MOVED_BY.get(str(r["moved_by"]), str(r["moved_by"]))),
            ),
            text_column("From", "source"),
            text_column("Note", "note"),
        ],
    )
