from __future__ import annotations

import dataclasses
import json
import re

import pandas as pd
import pytest

from analysis import verdict
from analysis.summary import Summary, summarise


def documented_columns() -> dict[str, set[str]]:
    """Frame name to the column names that the docstring of Summary gives it."""
    text = Summary.__doc__ or ""
    entries = re.split(r"\n {8}(?=\w+: )", text[text.index("phases:") - 9 :])
    found = {}
    for entry in entries:
        name, _, body = entry.strip().partition(":")
        body = re.sub(r"\([^()]*(\([^()]*\))?[^()]*\)", "", body)
        found[name] = set(re.findall(r"\b[a-z][a-z0-9_]*\b", body))
    return found


FRAMES = [f.name for f in dataclasses.fields(Summary) if f.type == "pd.DataFrame"]


def test_an_empty_run_gives_every_frame_and_a_verdict(build):
    summary = summarise(build.frames())
    for name in FRAMES:
        assert isinstance(getattr(summary, name), pd.DataFrame), name
    assert summary.verdict.cause == "not-explained"
    assert "No connection was recorded" in summary.verdict.sentence
    assert summary.findings == []
    assert verdict.exit_code(summary.verdict) == 3
    json.dumps(verdict.document(summary), allow_nan=False)


@pytest.mark.parametrize("name", FRAMES)
def test_the_columns_are_the_documented_ones_with_and_without_rows(build, small_run, name):
    wanted = documented_columns()[name]
    for frame in (getattr(summarise(build.frames()), name), getattr(summarise(small_run), name)):
        assert set(frame.columns) <= wanted, name
        assert frame.columns.is_unique
