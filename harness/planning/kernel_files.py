"""Small files of /proc and /sys: what is absent or not permitted reads as empty."""

from __future__ import annotations

from pathlib import Path


def text_of(path: Path) -> str:
    """All of it."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def ints_of(path: Path) -> list[int]:
    """Its words as numbers; none where one is no number."""
    try:
        return [int(word) for word in text_of(path).split()]
    except ValueError:
        return []


def first_int(path: Path) -> int | None:
    """The first of its numbers."""
    values = ints_of(path)
    return values[0] if values else None


def key_values(path: Path) -> dict[str, str]:
    """Its lines ``KEY: VALUE``."""
    pairs = (line.partition(":") for line in text_of(path).splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}
