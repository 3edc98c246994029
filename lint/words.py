"""Words that no text for people has: translated idioms, and words that have a better one here.

The glossary in CONTRIBUTING.md says which word stands for what. Looked at are string literals,
which people read as help, errors, verdicts and pages; docstrings are for those who change the code.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

BANNED: dict[str, str] = {
    r"anew": "again",
    r"how to fix what not": "how to fix the rest",
    r"(?<!user )nobody": "no process, no client, none",
    r"somebody": "a process, another program, the user",
    r"whoever": "the process that",
    r"(?:is|are) not ours": "external",
    r"may miss": "may be missing",
    r"so long": "for S seconds, for that time",
    r"stands? back": "lowers its priority",
    r"\w+ the kernel takes a breath": "EAGAIN",
    r"dear(?:er|est)?": "expensive",
}
"""Pattern to what is written instead."""
_PATTERN = re.compile("|".join(rf"\b(?:{word})\b" for word in BANNED), re.IGNORECASE)
ALLOWED = "words:"
"""A comment with this word and the reason, on the line itself, allows it."""


def banned_words(path: Path) -> Iterator[str]:
    """Each place of a file where a text for people has such a word: ``file:line: what``."""
    source = path.read_text(encoding="utf-8")
    lines, tree = source.splitlines(), ast.parse(source)
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Constant) or not isinstance(node.value, str):
            continue
        if id(node) in docstrings or " " not in node.value or ALLOWED in lines[node.lineno - 1]:
            continue
        for found in _PATTERN.finditer(node.value):
            yield f"{path}:{node.lineno}: {found[0]!r}; write {_instead(found[0])}"


def _instead(word: str) -> str:
    return next(
        other for pattern, other in BANNED.items() if re.search(rf"\b(?:{pattern})\b", word, re.I)
    )
