"""Pages made from the code are current, whole, and well formed."""

from __future__ import annotations

import subprocess

import pytest

from analysis.causes import CAUSE_IDS
from documentation.man_pages import man_pages
from documentation.markdown import section
from documentation.page_commands import ROOT
from documentation.pages import KINDS
from documentation.probes_page import HEADINGS, probe_docstrings
from documentation.reference import finder_docstrings
from documentation.verdict_file import OBJECTS, verdict_page


@pytest.mark.parametrize("kind", KINDS)
def test_generated_pages_are_current(kind):
    for name, text in KINDS[kind]().items():
        assert (ROOT / name).read_text() == text, f"{name} is old: make {kind}"


def test_no_generated_page_is_left_over():
    made = {name for pages in KINDS.values() for name in pages()}
    there = {*(ROOT / "docs/man").iterdir(), *(ROOT / "docs/reference").iterdir()}
    assert {str(path.relative_to(ROOT)) for path in there} <= made


@pytest.mark.parametrize("name", man_pages())
def test_man_pages_are_well_formed(name):
    done = subprocess.run(
        ["mandoc", "-T", "lint", "-W", "warning", str(ROOT / name)], capture_output=True, text=True
    )
    complaints = [line for line in done.stdout.splitlines() if "missing date" not in line]
    assert complaints == [], "no date, so that a page changes with its command alone"
    shown = subprocess.run(
        ["mandoc", "-T", "ascii", str(ROOT / name)], capture_output=True, text=True, check=True
    ).stdout
    for head in ("NAME", "SYNOPSIS", "OPTIONS", "EXAMPLES", "EXIT STATUS", "SEE ALSO"):
        assert f"\n{''.join(c + chr(8) + c if c != ' ' else c for c in head)}\n" in f"\n{shown}"


def test_a_word_that_troff_would_take_is_escaped():
    from documentation.man_pages import _text

    assert _text(".hidden --x 'y' a\\b") == r"\&.hidden \-\-x \(aqy\(aq a\eb"


def test_every_cause_has_its_proof():
    docstrings = finder_docstrings()
    assert set(docstrings) == CAUSE_IDS
    for cause, text in docstrings.items():
        assert "Proof:" in text, cause


def test_every_probe_has_every_heading():
    for probe, text in probe_docstrings().items():
        for heading in HEADINGS:
            assert section(text, heading), f"{probe}: {heading}"


def test_every_key_of_verdict_json_is_described():
    page = verdict_page()
    assert "| `" in page
    for line in page.splitlines():
        assert not line.endswith("` |  |"), line
    for path, (what, _) in OBJECTS.items():
        assert what, path


def test_sections_of_docstrings_in_both_styles():
    text = "X.\n\nMeasures\n    a\n    b\nHook:\n    c\n\n    d\nCost\n    e"
    assert section(text, "Measures") == "a\nb"
    assert section(text, "Hook") == "c\n\nd"
    assert section(text, "Cost") == "e"
    assert section(text, "Misses") == ""
