"""A stranger's name of a function, made inert: without control characters, and not too long."""

from __future__ import annotations

import re

MAX_NAME_CHARACTERS = 300

_UNPRINTABLE = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]"
)
_SUFFIXES = re.compile(r"(?:_\[[a-z]\])+$")


def clean_name(name: str) -> str:
    """A name without what a terminal or a text direction would obey, and of bounded length."""
    name = _UNPRINTABLE.sub("?", name)
    if len(name) > MAX_NAME_CHARACTERS:
        name = name[: MAX_NAME_CHARACTERS - 1] + "…"
    # only we say what is a kernel's or a runtime's frame
    return _SUFFIXES.sub("", name) or "?"
