"""The first screen names the explanations that the run could not rule out, and only then."""

from __future__ import annotations

from dataclasses import replace

import pytest

from analysis.evidence import Evidence
from analysis.verdict.alternatives import Alternative
from analysis.verdict.deciding import Deciding
from analysis.verdict.not_explained import NotExplained
from analysis.verdict.ruled_out import Left, RuledOut, Unwatched
from analysis.verdict.unexplained import Unexplained
from reports.page.page import render
from reports.terminal.terminal import end_lines

_OTHER = Alternative("worker-blocked", "server", "it explains 23 <b>", "py-spy dump --pid PID")


@pytest.mark.usefixtures("without_figures")
def test_what_it_may_be_as_well_is_on_the_first_screen(make_summary):
    summary = make_summary(spin=True)
    assert "What it may be as well" not in render(summary)
    verdict = replace(summary.verdict, alternatives=(_OTHER,))
    page = render(replace(summary, verdict=verdict))
    first_screen = page[page.index("What it may be as well") : page.index('<dl class="tiles">')]
    assert "<code>worker-blocked</code>, server side" in first_screen
    assert "It explains 23 &lt;b&gt;. To decide: py-spy dump --pid PID." in first_screen


_EVIDENCE = Evidence("descriptor_refusals", 0, "failing_syscalls")
_KNOWN = NotExplained(
    ended=Unexplained("server", (("were refused at connect", 502),), (), 3_308, " by worker <0>"),
    left=(Left("accept_queue", "127.0.0.1:9001", 81, 1024, "count"),),
    ruled_out=(RuledOut("fd-limit-process", _EVIDENCE),),
    unwatched=(Unwatched("cpu_stacks", "unavailable", "no <BTF>"),),
    decide=Deciding("profile-run --stall 30", "it comes back"),
)


@pytest.mark.usefixtures("without_figures")
def test_what_is_known_of_a_run_that_nothing_explains_is_on_the_first_screen(make_summary):
    summary = make_summary(spin=True)
    assert "What would decide" not in render(summary)
    verdict = replace(summary.verdict, cause="not-explained", unexplained=_KNOWN)
    page = render(replace(summary, verdict=verdict))
    first_screen = page[page.index("What would decide") : page.index('<dl class="tiles">')]
    for text in (
        "profile-run --stall 30",
        "502 were refused at connect",
        "3,308 were never tried",
        "closed at once by worker &lt;0&gt;",
        "92 % of accept queue: 127.0.0.1:9001 used",
        "<code>fd-limit-process</code>: calls that failed for want of a descriptor: 0",
        "cpu_stacks (unavailable: no &lt;BTF&gt;)",
    ):
        assert text in first_screen, text


def test_the_terminal_has_the_command_on_a_line_of_its_own():
    verdict = {
        "verdict": {"sentence": "Nothing explains it.", "unexplained": _KNOWN.record()},
        "run": {"attempts": {"sentence": "692 of 4,000 connections were attempted."}},
    }
    assert end_lines(verdict, None, 80) == [
        "verdict  Nothing explains it.",
        "tried    692 of 4,000 connections were attempted.",
        "left     92 % of accept_queue, 127.0.0.1:9001",
        "not      fd-limit-process (by which numbers: see the report)",
        "decide   profile-run --stall 30",
        "         it comes back",
    ]


@pytest.mark.usefixtures("without_figures")
def test_a_page_of_a_watch_changes_no_word_of_the_server_that_was_watched(make_summary):
    words = "node after-the ramp began-in the hold phase.js"
    summary = make_summary(hostile=words)
    assert "What the run shows" in render(summary)
    server = {**(summary.manifest.get("server") or {}), "attached": True}
    page = render(replace(summary, manifest={**summary.manifest, "server": server}))
    assert words in page
    assert "What watching shows" in page
    assert "after watching began" in page
    assert "What the run shows" not in page
    assert "CPU in the hold" not in page


@pytest.mark.usefixtures("without_figures")
def test_a_reason_keeps_its_dots(make_summary):
    summary = make_summary(bpf=False)
    health = summary.probe_health.assign(reason="../lib is missing...")
    page = render(replace(summary, probe_health=health))
    assert "../lib is missing... " in page
