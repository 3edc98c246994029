"""What of a server's reply is shown to the person who reads the report."""

from __future__ import annotations

import re

BODY_EXCERPT_BYTES = 200
"""How much of a refusal's body is kept for the person who reads the report."""

_CHUNK_SIZE = re.compile(rb"[0-9A-Fa-f]{1,8}")
_HTML = re.compile(r"\s*<(?:!doctype|html)", re.IGNORECASE)
_TITLE = re.compile(r"<title>.*?</title>", re.IGNORECASE)
_TAG = re.compile(r"<[^>]*>?")


def body_of(block: bytes, data: bytes) -> bytes:
    """The body without the frame of its chunks (RFC 9112 section 7.1), as far as it is there."""
    if b"\r\ntransfer-encoding: chunked" not in b"\r\n" + block.lower():
        return data
    found = b""
    while data and len(found) < BODY_EXCERPT_BYTES:
        size, _, data = data.partition(b"\r\n")
        match = _CHUNK_SIZE.match(size)
        if match is None or not int(match[0], 16):
            break
        found += data[: int(match[0], 16)]
        data = data[int(match[0], 16) + 2 :]
    return found


def printable(text: str) -> str:
    """A stranger's text in one line that a terminal shows as it is."""
    # isprintable() also stops line separators and marks that turn the direction of writing.
    return "".join(c if c.isprintable() else " " for c in text).strip()


def excerpt(body: bytes) -> str:
    """Its start in printable characters; of a page of HTML what people read."""
    text = printable(body[:BODY_EXCERPT_BYTES].decode("utf-8", "replace"))
    if _HTML.match(text):  # what people read of a page
        shown = _TAG.sub(" ", _TITLE.sub("", text)).split()
        return " ".join(shown or _TAG.sub(" ", text).split())
    return text
