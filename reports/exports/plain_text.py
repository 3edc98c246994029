"""Text from strangers (process names, paths, arguments) made safe to put into any format."""

from __future__ import annotations

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def one_line(text: str) -> str:
    """The text on one line, every run of white space one space, without control characters.

    What is not printable (escape sequences, direction overrides, half a surrogate pair) becomes
    U+FFFD, so the result can be encoded as UTF-8 and drives no terminal.
    """
    shown = " ".join(text.split())
    return "".join(c if c.isprintable() else _REPLACEMENT for c in shown)


def encodable(text: str) -> str:
    """The text with its line breaks, but no NUL or half surrogate pair: no reader takes those."""
    return text.encode("utf-8", "replace").decode("utf-8").replace("\0", _REPLACEMENT)
