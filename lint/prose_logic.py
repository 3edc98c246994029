"""No code reads a sentence that other code wrote: facts are fields, prose is made at the end.

A better sentence must not break the program. Found are comparisons, cuts and replacements of what
is named as prose, of a rendered page, and patterns that are searched in it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

PROSE = frozenset(
    {
        "consequence", "consequences", "doubt", "effect", "explanation", "explanations",
        "headline", "html", "note", "notes", "page", "remedy", "sentence", "sentences",
    }
)  # fmt: skip
"""Last word of a name, an attribute or a key that holds text for people."""

_CUTS = frozenset(
    {
        "count", "endswith", "find", "index", "partition", "removeprefix", "removesuffix",
        "replace", "rfind", "rindex", "rpartition", "rsplit", "split", "startswith",
    }
)  # fmt: skip
_SEARCHES = frozenset({"findall", "finditer", "fullmatch", "match", "search", "split", "sub"})
ALLOWED = "prose:"
"""A comment with this word and the reason, on the line itself, allows it."""


def prose_logic(path: Path) -> Iterator[str]:
    """Each place of a file that branches on wording: ``file:line: what``."""
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    for node in ast.walk(ast.parse(text)):
        found = _cut(node) or _compared(node)
        if found and ALLOWED not in lines[node.lineno - 1]:  # type: ignore[attr-defined]  # expressions have a line
            yield f"{path}:{node.lineno}: {found}; make it a field"  # type: ignore[attr-defined]  # likewise


def _cut(node: ast.AST) -> str:
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
        return ""
    method, of = node.func.attr, node.func.value
    if method in _CUTS and _is_prose(of):
        return f"{ast.unparse(of)} is read by .{method}()"
    if method in _SEARCHES and any(_is_prose(each) for each in node.args):
        return f"{ast.unparse(node.func)}() searches prose"
    return ""


def _compared(node: ast.AST) -> str:
    if not isinstance(node, ast.Compare):
        return ""
    sides = [node.left, *node.comparators]
    has_words = any(
        isinstance(each, ast.Constant) and isinstance(each.value, str) and each.value
        for each in sides
    )
    prose = next((each for each in sides if _is_prose(each)), None)
    is_one_of = isinstance(prose, ast.Name) and prose.id in ("notes", "consequences")
    if has_words and prose is not None and not is_one_of:
        return f"{ast.unparse(prose)} is compared with words"
    return ""


def _is_prose(node: ast.expr) -> bool:
    """Whether an expression is named as prose: by its name, its attribute or its key."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "str":
        return bool(node.args) and _is_prose(node.args[0])
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        return node.func.attr == "get" and bool(node.args) and _is_word(node.args[0])
    if isinstance(node, ast.Subscript):
        return _is_word(node.slice)
    name = node.id if isinstance(node, ast.Name) else getattr(node, "attr", "")
    return name.rpartition("_")[2] in PROSE


def _is_word(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value in PROSE
