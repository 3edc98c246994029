"""Words that no text for people has."""

from __future__ import annotations

import pytest

from lint.words import BANNED, banned_words


def found(tmp_path, code):
    path = tmp_path / "module.py"
    path.write_text(code)
    return list(banned_words(path))


@pytest.mark.parametrize(
    ("code", "instead"),
    [
        ('"keep the connections so long"', "for S seconds"),
        ('f"{name}: nobody listens there"', "no process"),
        ('"its last rows may miss"', "may be missing"),
        ('"a server that is not ours"', "external"),
    ],
)
def test_a_banned_word_is_found_with_what_to_write(tmp_path, code, instead):
    (line,) = found(tmp_path, f"text = {code}")
    assert instead in line


@pytest.mark.parametrize(
    "code",
    [
        '"""Nobody reads this but a programmer."""',
        'user = "nobody"',
        'name = "anew_table"',
        'text = "so long as it lasts"  # words: an idiom of English',
        'text = "no process listens there"',
    ],
)
def test_what_no_user_reads_or_what_is_english_is_not(tmp_path, code):
    assert found(tmp_path, code) == []


def test_each_has_something_better():
    assert all(BANNED.values())
