"""The comparison as a page and as text: what it says, that it is inert, what Chromium sees."""

from __future__ import annotations

import copy
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.comparison.comparison import Against, Comparison, compare, digest
from analysis.stats.spread import Difference, Spread
from reports.comparison.page import NAVIGATION, render_comparison, write_comparison
from reports.comparison.text import comparison_text
from reports.comparison.words import change_text, noise_text, range_text, says_text, value_text
from reports.figures.ranges import NARROW_PT, RangeRow, plot_ranges

HERE = Path(__file__).parent
HOSTILE = "<img src=https://stranger.example/x onerror='pwned=1'></script>\"' {{ 7*7 }} $x$ \x1b[2J"


@pytest.fixture(scope="module")
def make_comparison(make_summary):
    """Three variants of three repeats: the base, a faster one, one that meets a limit."""
    summaries = {False: make_summary(), True: make_summary(spin=True)}

    def make(repeats: int = 3, variants: int = 3, accept: str = "handoff") -> Comparison:
        random = np.random.default_rng(1009)
        runs = []
        for variant in range(variants):
            for repeat in range(repeats):
                one = digest(summaries[variant == 2])
                manifest: dict[str, Any] = copy.deepcopy(dict(one.manifest))
                manifest["run_id"] = f"run-{variant}-{repeat}"
                mode = (
                    ("reuseport", accept, "shared")[variant] if variant < 3 else f"mode-{variant}"
                )
                manifest["settings"] = {"accept": mode, "nofile": 20_000}
                figures = {
                    name: replace(
                        figure,
                        value=None
                        if figure.value is None
                        else figure.value
                        * (1.0 if variant != 1 else 0.7)
                        * (1 + 0.02 * random.random() * (figure.unit != "count")),
                    )
                    for name, figure in one.figures.items()
                }
                runs.append(replace(one, manifest=manifest, figures=figures))
        return compare(runs)

    return make


@pytest.fixture(scope="module")
def html(make_comparison) -> str:
    return render_comparison(make_comparison(), {"run-0-0": ["profile-run", "--accept", "x y"]})


# -- words ------------------------------------------------------------------------------------


def against(difference: Difference, change: float | None, pct: float | None, better=None):
    return Against(difference, change, pct, better)


def test_values_have_the_unit_that_people_would_say():
    assert value_text(0.0252, "ms") == "25.2 µs"
    assert value_text(30.1, "us") == "30.1 µs"
    assert value_text(28032.6, "per_s") == "28,033 per s"
    assert value_text(9692.1, "bytes") == "9.46 KiB"
    assert value_text(None, "count") == "not measured"


def test_noise_and_ranges():
    assert noise_text(Spread(100, 95, 105, 3)) == "~10 %"
    assert noise_text(Spread(1000, 999, 1001, 3)) == "~0.2 %"
    assert noise_text(Spread(100, 100, 100, 3)) == "~0 %"
    assert noise_text(Spread(100, 100, 100, 1)) == ""
    assert range_text(Spread(100, 95, 105, 3), "count") == "95 to 105"
    assert range_text(Spread(100, 100, 100, 3), "count") == ""


@pytest.mark.parametrize(
    ("one", "change", "says"),
    [
        (against(Difference.HIGHER, 50, 50, True), "+50 %", "higher, better"),
        (against(Difference.LOWER, -50, -50, True), "-50 %", "lower, better"),
        (against(Difference.HIGHER, 400, 400, False), "\N{MULTIPLICATION SIGN}5", "higher, worse"),
        (against(Difference.HIGHER, 7, None), "+7", "higher"),
        (against(Difference.WITHIN_NOISE, 0, 0), "0", "the same"),
        (against(Difference.WITHIN_NOISE, 1, 0.1), "<1 %", "within the noise"),
        (against(Difference.NOT_MEASURED, None, None), "", "not measured"),
    ],
)
def test_changes_in_words(one, change, says):
    assert change_text(one, "count") == change
    assert says_text(one) == says


@given(
    st.floats(allow_nan=True, allow_infinity=True), st.sampled_from(["ms", "bytes", "count", "pct"])
)
def test_every_number_can_be_said(value, unit):
    assert value_text(value, unit)


# -- the page ---------------------------------------------------------------------------------


def test_the_page_has_every_section_and_no_network(html):
    for section, _ in NAVIGATION:
        assert f'<section id="{section}"' in html
    assert not re.search(r"(?:src|href)=[\"'](?:https?:)?//", html)
    assert "default-src &#39;none&#39;" in html
    assert "{{" not in html
    assert "profile-run --accept &#39;x y&#39;" in html


def test_every_measured_figure_is_in_a_table_and_varying_ones_have_a_chart(html, make_comparison):
    comparison = make_comparison()
    for row in comparison.figures:
        varies = len({value for values in row.values for value in values}) > 1
        has_chart = f'id="chart-{row.name.replace("_", "-")}"' in html
        assert has_chart == (row.is_measured and varies), row.name
        if row.is_measured:
            assert f">{row.label}</th>" in html, row.name
        else:
            assert "Not measured in any run: " in html


def test_charts_speak_their_values_and_the_difference(html):
    labels = re.findall(r'aria-label="(established per second:[^"]*)"', html)
    assert len(labels) == 2, "wide and narrow"
    assert "A accept=reuseport" in labels[0]
    assert "B accept=handoff" in labels[0]
    assert "lower, worse" in labels[0]


def test_what_differs_is_on_the_first_screen(html):
    first = html[html.index('id="answer"') : html.index('id="changed"')]
    assert "established per second" in first
    assert "-30 %" in first
    assert 'class="short bad"' in first or 'class="number bad short"' in first


def test_the_same_comparison_gives_the_same_bytes(make_comparison, html):
    commands = {"run-0-0": ["profile-run", "--accept", "x y"]}
    assert render_comparison(make_comparison(), commands) == html


def test_without_repeats_nothing_is_called_different(make_comparison):
    page = render_comparison(make_comparison(repeats=1), {})
    first = page[page.index('id="answer"') : page.index('id="changed"')]
    assert "noise between repeats is not known" in first
    assert "established per second" not in first


def test_one_variant_alone_has_a_page(make_comparison):
    page = render_comparison(make_comparison(variants=1), {})
    assert "All 3 runs repeat one variant" in page
    assert "so they are repeats of each other" in page


def test_a_chart_row_without_a_value_draws_no_dot():
    rows = [
        RangeRow("A", (3.0, 4.0), 3.5, "3.5", "#000105"),
        RangeRow("B", (), float("nan"), "not measured", "#000102"),
    ]
    figure = plot_ranges(rows, unit="s", width_pt=NARROW_PT)
    (axes,) = figure.axes
    assert axes.get_xlim()[0] == 0, "the axis begins at zero"
    dots = [line for line in axes.get_lines() if line.get_marker() == "o"]
    assert [list(line.get_xdata()) for line in dots] == [[3.0, 4.0]]


def test_write_comparison_writes_the_page(make_comparison, tmp_path):
    path = tmp_path / "c.html"
    write_comparison(path, make_comparison(variants=1), {})
    assert path.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert [p.name for p in tmp_path.iterdir()] == ["c.html"], "no temporary file stays"


# -- the text ---------------------------------------------------------------------------------


def test_the_text_has_what_the_page_has(make_comparison):
    comparison = make_comparison()
    text = comparison_text(comparison, 200)
    for row in comparison.figures:
        assert (row.label in text) == row.is_measured
    assert "LOWER, WORSE" in text
    assert "accept-spin" in text
    assert "rule: " in text
    assert "handoff" in text


def test_a_narrow_terminal_gets_one_table_a_variant(make_comparison):
    wide = comparison_text(make_comparison(), 400)
    narrow = comparison_text(make_comparison(), 80)
    assert wide.count("\nkey figure") == 1
    assert narrow.count("\nkey figure") == 2
    paragraphs = narrow[: narrow.index("variant ")]
    assert max(len(line) for line in paragraphs.splitlines()) <= 80


def test_text_of_strangers_moves_no_cursor(make_comparison):
    assert "\x1b" not in comparison_text(make_comparison(accept=HOSTILE), 120)


# -- in a browser -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def seen(make_comparison, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    kinds = {
        "three": make_comparison(),
        "alone": make_comparison(variants=1),
        "single_runs": make_comparison(repeats=1),
        "many": make_comparison(repeats=2, variants=9),
        "hostile": make_comparison(accept=HOSTILE),
    }
    paths = {}
    for kind, comparison in kinds.items():
        paths[kind] = folder / f"{kind}.html"
        commands = {v.run_id: ["profile-run", HOSTILE] for v in comparison.variants[0].verdicts}
        paths[kind].write_text(render_comparison(comparison, commands), encoding="utf-8")
    done = subprocess.run(
        ["node", str(HERE / "check_page.cjs"), *map(str, paths.values())],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    return {kind: results[str(path)] for kind, path in paths.items()}


in_browser = [
    pytest.mark.browser,
    pytest.mark.node,
    pytest.mark.skipif(
        not (shutil.which("node") and Path("/usr/bin/chromium").exists()),
        reason="needs Debian's chromium and node",
    ),
]


def browser_test(function):
    for mark in in_browser:
        function = mark(function)
    return function


@browser_test
def test_no_error_no_request_no_overflow(seen):
    for kind, page in seen.items():
        assert (page["console"], page["requests"], page["dialogs"]) == ([], [], []), kind
        assert set(page["overflow"].values()) == {0}, (kind, page["overflow"])


@browser_test
def test_axe_finds_no_fault(seen):
    assert len(seen["three"]["axe"]) == 4
    faults = {kind: page["axe"] for kind, page in seen.items() if any(page["axe"].values())}
    assert not faults


@browser_test
def test_sections_links_tables_and_figures_are_whole(seen):
    for kind, page in seen.items():
        look = page["look"]
        assert look["sections"] == [section for section, _ in NAVIGATION], kind
        assert (look["brokenLinks"], look["duplicateIds"], look["styleAttributes"]) == ([], [], [])
        assert look["emptyBare"] == 0
        assert all(table["caption"] for table in look["tables"])
        assert set(look["figuresShown"]) <= {1}, "one of the two widths is shown"
        assert set(page["narrowFigures"]) <= {1}
        assert all(len(label) > 30 for label in look["figures"])
    assert len(seen["three"]["look"]["figures"]) >= 2 * 8


@browser_test
def test_dark_differs_and_paper_is_light(seen):
    page = seen["three"]
    assert page["background"]["1400-light"] != page["background"]["1400-dark"]
    assert page["print"]["background"] == "rgb(255, 255, 255)"
    assert page["print"]["overflow"] == 0


@browser_test
def test_hostile_text_is_inert_and_shown(seen):
    look = seen["hostile"]["look"]
    assert not look["pwned"]
    assert look["strangers"] == 0
    assert look["scripts"] == seen["three"]["look"]["scripts"] == 1
    assert "onerror='pwned=1'" in look["text"]
    assert "{{ 7*7 }}" in look["text"]
