"""The rule that no code reads a sentence that other code wrote."""

from __future__ import annotations

import pytest

from lint.prose_logic import prose_logic


def found(tmp_path, code):
    path = tmp_path / "module.py"
    path.write_text(code)
    return list(prose_logic(path))


@pytest.mark.parametrize(
    "code",
    [
        'page = page.replace("the ramp began", "watching began")',
        'headline, _, rest = verdict.sentence.partition("; ")',
        'first = finding.explanation.split(". ")[0]',
        'kept = [note for note in notes if "server processes" not in note]',
        'is_idle = "grow" in rung.note',
        'text = str(result["sentence"]).removesuffix(".")',
        'is_new = verdict.get("sentence") == "nothing"',
        "match = PATTERN.search(finding.explanation)",
        'early = plan_note.startswith("More")',
    ],
)
def test_what_branches_on_wording_is_found(tmp_path, code):
    (line,) = found(tmp_path, code)
    assert line.startswith(f"{tmp_path / 'module.py'}:1: ")


@pytest.mark.parametrize(
    "code",
    [
        'text = f"{verdict.headline}; {verdict.remedy}"',
        "is_said = bool(finding.sentence)",
        'words = row["unit"].replace("_per_s", " per s")',
        "missing = [note for note in notes if note]",
        'is_told = "verdict" in sections',
        'cut = page.replace("a", "b")  # prose: a test of the rule itself',
    ],
)
def test_what_only_shows_prose_is_not(tmp_path, code):
    assert found(tmp_path, code) == []
