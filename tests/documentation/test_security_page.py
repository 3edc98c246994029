"""What docs/security.md names as defence and as its test is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "security.md").read_text()
NAMED = sorted(set(re.findall(r"`((?:harness|probes|analysis|reports|tests)/[\w/.]+\.py)`", PAGE)))


@pytest.mark.parametrize("path", NAMED)
def test_each_module_and_test_that_it_names_is_there(path):
    assert (ROOT / path).is_file()


def test_each_defence_has_a_module_and_a_test():
    table = PAGE.partition("## What is defended")[2].partition("## What is not")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 10
    for row in rows:
        _, _, by, test, _ = row.split("|")
        assert ".py`" in by, row
        assert "`tests/" in test, row


def test_each_finding_of_the_review_has_an_answer():
    table = PAGE.partition("## The review")[2]
    row = r"^\| [^|]+ \(([CHML]\d+)\) \| (\S[^|]+) \| (`tests/[\w/]+\.py`|none) \|$"
    rows = re.findall(row, table, re.MULTILINE)
    answers = [(number, answer) for number, answer, _ in rows]
    assert [number for number, _, test in rows if test == "none" and number[0] != "L"] == []
    wanted = ["C1"] + [f"{k}{n}" for k, most in (("H", 14), ("M", 17), ("L", 20))
                       for n in range(1, most + 1)]  # fmt: skip
    assert [number for number, _ in answers] == wanted
    assert not [answer for _, answer in answers if "PRIVILEGES" in answer]
