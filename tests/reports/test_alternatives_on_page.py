"""The first screen names the explanations that the run could not rule out, and only then."""

from __future__ import annotations

from dataclasses import replace

from analysis.alternatives import Alternative
from reports.page import render

_OTHER = Alternative("worker-blocked", "server", "it explains 23 <b>", "py-spy dump --pid PID")


def test_what_it_may_be_as_well_is_on_the_first_screen(make_summary):
    summary = make_summary(spin=True)
    assert "What it may be as well" not in render(summary)
    verdict = replace(summary.verdict, alternatives=(_OTHER,))
    page = render(replace(summary, verdict=verdict))
    first_screen = page[page.index("What it may be as well") : page.index('<dl class="tiles">')]
    assert "<code>worker-blocked</code>, server side" in first_screen
    assert "It explains 23 &lt;b&gt;. To decide: py-spy dump --pid PID." in first_screen
