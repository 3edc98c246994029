"""Names out of a run directory are texts: neither rules of the page nor formulas."""

from __future__ import annotations

import io

import pandas as pd
import pyarrow as pa
import pyarrow.csv as pa_csv
import pytest
from matplotlib.figure import Figure

from reports.elements.style import common_style
from reports.elements.svg import StyleSheet, inline_svg
from reports.exports.tables import _without_formulas

TEXTS = (
    ' style="}body{visibility:hidden}.z{"',
    ' id="x" style="a"',
    "url(#clip)",
    'href="#p0"',
    '<g style="}a{"><!-- -->',
)


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_of_a_figure_cannot_become_a_rule_or_an_attribute(text):
    sheet = StyleSheet()
    with common_style():
        figure = Figure()
        figure.subplots().set_title(text)
        drawn = str(inline_svg(figure, "f", "a figure", sheet))
    assert "visibility" not in sheet.css
    assert "}" not in sheet.css.replace("}.m", "").removesuffix("}")
    escaped = text.replace("<", "&lt;").replace(">", "&gt;")
    assert escaped in drawn or escaped.replace('"', "&quot;") in drawn


FORMULAS = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "\uff1d1", "\uff0b1", "\uff20a"]


@pytest.mark.parametrize("text", FORMULAS)
def test_no_cell_is_a_formula(text):
    frame = pd.DataFrame({"thread": [text, "a=1", ""], "number": [-1, 2, 3]})
    stream = io.BytesIO()
    pa_csv.write_csv(_without_formulas(pa.Table.from_pandas(frame, preserve_index=False)), stream)
    options = pa_csv.ParseOptions(newlines_in_values=True)
    read = pa_csv.read_csv(io.BytesIO(stream.getvalue()), parse_options=options)
    assert read.column("thread").to_pylist() == [f"'{text}", "a=1", ""]
    assert read.column("number").to_pylist() == [-1, 2, 3]  # a number is none
