"""Figures in the page: ids that cannot clash, no style attributes, extremes kept when thinned."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reports.elements import formatting, style
from reports.elements.svg import StyleSheet, inline_svg
from reports.figures.story import plot_story
from reports.figures.time_axis import TimeFrame
from reports.page.page import content_security_policy, render


def _story(summary, width_pt):
    return plot_story(
        summary.connections_over_time,
        summary.errors_over_time,
        summary.worker_cpu,
        summary.host_cpu,
        summary.memory_over_time,
        target_connections=120_000,
        hot_pid=None,
        time=TimeFrame(
            [("ramp", 0.0, 5.0), ("hold", 5.0, 15.0)], (3.0, 5.0), 15.0, "the ramp began"
        ),
        marks=[(3.3, "1")],
        width_pt=width_pt,
    )


@pytest.mark.parametrize("width_pt", [style.WIDE_PT, style.NARROW_PT])
def test_svg_is_named_small_and_in_the_pages_colours(make_summary, width_pt):
    sheet = StyleSheet()
    with style.common_style():
        drawn = str(
            inline_svg(_story(make_summary(spin=True), width_pt), "one", 'a "b" <c>', sheet)
        )
    assert drawn.startswith(f'<svg viewBox="0 0 {width_pt:.0f} ')
    assert 'role="img" aria-label="a &#34;b&#34; &lt;c&gt;"' in drawn
    assert " style=" not in drawn
    assert "<style" not in drawn
    assert "<metadata" not in drawn
    ids = re.findall(r' id="([^"]+)"', drawn)
    assert ids
    assert all(name.startswith("one-") for name in ids)
    assert len(ids) == len(set(ids))
    referred = set(re.findall(r'(?:url\(#|href="#)([^")]+)', drawn))
    assert referred <= set(ids)
    assert "var(--orange)" in sheet.css
    assert not re.search(r"#0001?0[0-9a-f]", sheet.css + drawn), "a stand-in colour was left"
    assert "errors per second" in drawn, "text is text"
    assert len(drawn) < 100_000


def test_the_same_run_gives_the_same_page(make_summary):
    assert render(make_summary(spin=True)) == render(make_summary(spin=True))


@pytest.mark.parametrize(
    ("workers", "clients"), [(64, 64), pytest.param(256, 128, marks=pytest.mark.variant)]
)
def test_a_page_of_120_000_connections_and_many_workers_is_small(make_summary, workers, clients):
    page = render(make_summary(spin=True, workers=workers, clients=clients))
    assert len(page.encode()) < 5_000_000
    assert f"{workers - 1} other workers" in page, "the others have one name in a figure"
    assert f"{clients - 1} other clients" in page


@pytest.mark.usefixtures("without_figures")
def test_the_policy_forbids_the_network_and_names_what_runs(make_summary):
    page = render(make_summary())
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', page)
    css = re.search(r"<style>(.*?)</style>", page, re.DOTALL)
    script = re.search(r"<script>(.*?)</script>", page, re.DOTALL)
    assert policy is not None
    assert css is not None
    assert script is not None
    wanted = content_security_policy(css.group(1), script.group(1))
    assert policy.group(1).replace("&#39;", "'") == wanted
    assert wanted.startswith("default-src 'none'; ")
    assert "unsafe" not in wanted


@given(
    st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=3000),
    st.integers(4, 200),
)
def test_thinning_keeps_the_extremes(values, max_points):
    x, y = style.thin(np.arange(len(values)), values, max_points)
    assert len(x) == len(y) <= max(max_points, 4)
    assert y.max() == max(values)
    assert y.min() == min(values)
    assert (np.diff(x) > 0).all()


@given(st.lists(st.floats(0, 100), min_size=1, max_size=8))
def test_labels_are_moved_apart_and_stay_inside(positions):
    placed = style.spread(positions, 10.0, 0.0, 100.0)
    ordered = sorted(placed)
    assert all(b - a >= 10.0 - 1e-9 for a, b in itertools.pairwise(ordered))
    assert ordered[-1] <= 100.0
    assert ordered[0] >= 0.0 - 1e-9


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        (formatting.size(4608), "4.5 KiB"),
        (formatting.size(25_200_000_000), "23.5 GiB"),
        (formatting.percent(0.25), "0.2 %"),
        (formatting.percent(99.6), "100 %"),
        (formatting.seconds(0.0042), "4.2 ms"),
        (formatting.seconds(5.1), "5.10 s"),
        (formatting.seconds(3725), "62 min 05 s"),
        (formatting.moment(-0.001), "0.00 s"),
        (formatting.count(120_000), "120,000"),
        (formatting.count(float("nan")), "not measured"),
        (formatting.quantity(282, "pages"), "282 pages"),
        (formatting.quantity(0.143533, "count"), "0.144"),
        (formatting.quantity(5714.29, "count"), "5,714"),
        (formatting.quantity(96_696.4, "count_per_s"), "96,696 count per s"),
        (formatting.quantity(None, "count"), "not measured"),
        (formatting.significant(263.4, 2), "263"),
        (formatting.significant(1.1659, 2), "1.2"),
    ],
)
def test_numbers_read_well(shown, text):
    assert shown == text
