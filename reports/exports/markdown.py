"""Markdown for an issue or a pull request: what limited the run, the fix, why to believe it.

GitHub-flavoured (tables). Text from the run is escaped, so that it forms no markup, loads nothing,
and mentions nobody.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from typing import Any

from analysis.causes import GOOD_CAUSES
from analysis.evidence import Finding, times
from analysis.findings import CATALOGUE
from analysis.frames.run_words import RunWords, is_watched, words_of
from analysis.ladder.ladder import Rung
from analysis.ladder.rung import PLAN
from analysis.summary import Summary
from reports.elements import formatting
from reports.elements.severity import severity_words
from reports.exports.plain_text import one_line

MAX_RUNGS_PER_LIMIT = 1
MAX_FINDINGS = 6
# An underscore inside a word (tcp_mem) is text already; a block can only begin at the start.
_MARKUP = re.compile(r"([\\`*\[\]<|~&$]|(?<![^\W_])_|_(?![^\W_])|^[-+>#=]|(?<=^\d)[.)])")
# GitHub turns these into mentions and links; a zero-width space in between stops it.
_MENTION = re.compile(r"(?<!\w)([@#])(?=\w)")


def to_markdown(summary: Summary) -> str:
    """The run as a few screens of Markdown.

    Args:
        summary: The run, understood.
    """
    return "\n".join(_lines(summary)) + "\n"


def _lines(summary: Summary) -> Iterator[str]:
    run, verdict = summary.run, summary.verdict
    reached = verdict.cause in GOOD_CAUSES
    title = CATALOGUE[verdict.cause].line if reached else escaped(verdict.cause)
    yield f"### connscope: {title}"
    yield ""
    yield f"**{escaped(verdict.sentence)}**"
    yield ""
    watched, words = is_watched(summary.manifest), words_of(summary.manifest)
    asked = f" of {formatting.count(run.get('target_connections'))}"
    clients = (
        f"failed {formatting.count(run.get('failed_connections') or 0)} · "
        f"lost {formatting.count(run.get('lost_connections') or 0)} · "
    )
    yield (
        f"Peak {formatting.count(run.get('peak_connections'))}{'' if watched else asked} "
        f"connections · held {formatting.count(run.get('held_connections'))} · "
        f"{'clients elsewhere, not watched · ' if watched else clients}"
        f"confidence {escaped(verdict.confidence)}"
    )
    tried = str((run.get("attempts") or {}).get("sentence") or "")
    if tried:
        yield from ("", escaped(tried))
    fixes = _fixes(summary.findings, verdict.cause)
    if fixes:
        yield from ("", "**Fix**", "")
        yield from fenced("\n".join(fixes), "sh")
    yield from ("", "#### How far each limit was used", "")
    yield from _ladder(summary.ladder, words)
    yield from ("", "#### Findings and their evidence", "")
    yield from _findings(summary.findings, words)
    if summary.missing:
        yield from ("", "#### What is missing", "")
        yield from (f"- {escaped(line)}" for line in summary.missing)
    yield from ("", "#### Host and command", "")
    yield from _host(summary)
    yield ""
    yield from fenced(shlex.join(one_line(str(word)) for word in run.get("argv") or []), "sh")


def _fixes(findings: Sequence[Finding], cause: str) -> list[str]:
    named = next((f for f in findings if f.cause == cause), None)
    if named is None:
        return []
    return [f"# {one_line(fix.effect)}\n{one_line(fix.command)}" for fix in named.fix]


def _ladder(rungs: Sequence[Rung], words: RunWords) -> Iterator[str]:
    if not rungs:
        yield "No limit could be fitted to this run."
        return
    shown: dict[str, int] = {}
    rows = []
    for rung in rungs:
        shown[rung.limit] = shown.get(rung.limit, 0) + 1
        if shown[rung.limit] <= MAX_RUNGS_PER_LIMIT:
            rows.append(_rung(rung, words))
    yield from table(["Limit", "Of", "Used at the peak", "Capacity", "Met at"], rows)
    left_out = len(rungs) - len(rows)
    if left_out:
        yield ""
        yield f"The nearest of each limit; {left_out:,} more of the same kinds are in the report."


def _rung(rung: Rung, words: RunWords) -> list[str]:
    used, capacity = rung.used_at_peak, rung.capacity
    used_text = formatting.quantity(used, rung.unit)
    if used is not None and capacity:
        used_text += f" ({formatting.percent(100 * used / capacity)})"
    if rung.met:
        wall = words.met
    elif rung.predicted_connections is not None:
        wall = f"about {rung.predicted_connections:,} connections"
        wall += ", which the planner moves for a larger target" if rung.moved_by == PLAN else ""
    else:
        wall = rung.note or "no prediction"
    return [rung.limit, rung.subject, used_text, formatting.quantity(capacity, rung.unit), wall]


def _findings(findings: Sequence[Finding], words: RunWords) -> Iterator[str]:
    if not findings:
        yield "Nothing that was measured explains this run."
        return
    for finding in findings[:MAX_FINDINGS]:
        severity = severity_words(finding, words)
        yield (
            f"- **{escaped(finding.cause)}** ({severity}): {escaped(str(finding.subject))}, "
            f"{formatting.moment(finding.first_s)} to {formatting.moment(finding.last_s)} "
            f"{words.after_it}. {escaped(finding.explanation)}"
        )
        yield ""
        rows = [
            [
                evidence.name,
                formatting.quantity(evidence.value, evidence.unit),
                "whole run" if evidence.at_s is None else formatting.moment(evidence.at_s),
                evidence.table,
            ]
            for evidence in finding.evidence
        ]
        yield from (f"  {line}" for line in table(["Measured", "Value", "When", "Table"], rows))
        yield ""
        for quote in finding.quotes:
            where = f"{quote.source}, {formatting.moment(quote.at_s)}, {times(quote.count)}"
            yield f"  > {escaped(quote.line)} ({escaped(where)})"
            yield ""
    if len(findings) > MAX_FINDINGS:
        yield f"{len(findings) - MAX_FINDINGS} more findings are in the report."


def _host(summary: Summary) -> Iterator[str]:
    manifest = summary.manifest
    host: dict[str, Any] = manifest.get("host") or {}
    facts = [
        ("Run", summary.run.get("id")),
        ("connscope", f"{manifest.get('tool_version', '?')} {manifest.get('tool_commit') or ''}"),
        ("Kernel", f"{host.get('kernel', '?')} {host.get('machine', '')}"),
        ("Processor", f"{host.get('cpu_count', '?')} cores, {host.get('cpu_model', '?')}"),
        ("Memory", formatting.size(host.get("memory_total_bytes"))),
        ("Python", host.get("python")),
        ("Network", f"{host.get('network_namespace', '?')} namespace"),
    ]
    sysctls = host.get("sysctls") or {}
    facts += [(str(name), value) for name, value in sysctls.items() if name in _SYSCTLS]
    yield from table(["", ""], [[name, str(value).strip()] for name, value in facts])


_SYSCTLS = (
    "fs.file-max",
    "fs.nr_open",
    "net.core.somaxconn",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_mem",
)


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """A table; cells are escaped."""
    yield "| " + " | ".join(escaped(head) for head in heads) + " |"
    yield "|" + "---|" * len(heads)
    for row in rows:
        yield "| " + " | ".join(escaped(cell) for cell in row) + " |"


def escaped(text: str) -> str:
    """The text on one line, as it is meant to be read: no markup, mentions or references."""
    plain = _MARKUP.sub(r"\\\1", one_line(text))
    return _MENTION.sub("\\1\N{ZERO WIDTH SPACE}", plain)


def fenced(text: str, language: str) -> Iterator[str]:
    """A code block whose fence is longer than any in the text."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    yield from (f"{fence}{language}", text, fence)
