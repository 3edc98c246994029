"""From docstrings to Markdown: inline code, tables, the sections of a docstring. Pure."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Sequence
from typing import Any


def code_marks(text: str) -> str:
    """Double backticks of reStructuredText as Markdown's single ones."""
    return text.replace("``", "`")


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; a cell is one line, and a bar in it is escaped."""
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for row in rows:
        cells = (code_marks(" ".join(cell.split())).replace("|", r"\|") for cell in row)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def attributes(thing: Any) -> dict[str, str]:
    """Name to meaning, from the section Attributes of a class's docstring."""
    return _items(section(inspect.getdoc(thing) or "", "Attributes"))


def section(docstring: str, title: str) -> str:
    """The text below a line ``Title:`` or ``Title``, dedented, up to the next title; '' if none."""
    lines = docstring.splitlines()
    wanted = (title, f"{title}:")
    start = next((n for n, line in enumerate(lines) if line in wanted), None)
    if start is None:
        return ""
    kept: list[str] = []
    for line in lines[start + 1 :]:
        if line and not line.startswith(" "):
            break
        kept.append(line)
    return inspect.cleandoc("\n".join(kept))


def _items(text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    name = ""
    for line in text.splitlines():
        if match := re.match(r"(\w+): (.*)", line):
            name = match[1]
            found[name] = match[2]
        elif name and line.strip():
            found[name] += " " + line.strip()
    return found
