"""The opening handshake of RFC 6455 for both sides, without I/O.

The functions take the bytes that have arrived so far and return what to send, or ``None`` while the
head is incomplete. Anything wrong is a ``HandshakeError``, which on the server side carries the
complete HTTP reply. No byte of a request ever reaches a reply, except through SHA-1 and base64.
"""

from __future__ import annotations

import os
import re
from binascii import b2a_base64
from collections.abc import Iterable

from harness.websocket.reply_excerpt import body_of, excerpt

try:
    # hashlib maps OpenSSL's libcrypto: 3.4 MB resident in every worker, for 0.2 us a handshake.
    from _sha1 import sha1  # type: ignore[import-not-found,unused-ignore]  # typeshed has no stub
except ImportError:
    from hashlib import sha1

HEAD_LIMIT_BYTES = 16_384
"""Largest request or response head, its final empty line included."""

_TELLING_HEADERS = {
    **dict.fromkeys((301, 302, 303, 307, 308), ("Location",)),
    401: ("WWW-Authenticate",),
    407: ("Proxy-Authenticate",),
    400: ("Sec-WebSocket-Version",),
    426: ("Sec-WebSocket-Version", "Upgrade"),
    429: ("Retry-After",),
    503: ("Retry-After",),
}
"""RFC 9110 sections 10.2.2, 10.2.3, 11.6.1, 15.5.22; RFC 6455 section 4.4."""

SUPPORTED_VERSION = b"13"
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 section 1.3
_RESPONSE_START = (
    b"HTTP/1.1 101 Switching Protocols\r\n"
    b"Upgrade: websocket\r\n"
    b"Connection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: "
)
_RESPONSE_BYTES = len(_RESPONSE_START) + 28 + 4
_KEY_HEADER = b"\r\nSec-WebSocket-Key: "
_KEY_BYTES = 24

_KEY = re.compile(rb"[A-Za-z0-9+/]{22}==")  # base64 of 16 bytes: RFC 6455 section 4.1, item 7
_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"  # RFC 9110 section 5.6.2
_REQUEST_LINE = re.compile(rb"(" + _TOKEN + rb") ([\x21-\x7e]+) HTTP/([0-9])\.([0-9])")
_STATUS_LINE = re.compile(rb"HTTP/([0-9])\.([0-9]) ([0-9]{3})(?: [^\x00-\x08\x0a-\x1f\x7f]*)?")
_TARGET = re.compile(rb"(?:/|(?i:https?|wss?)://)[\x21-\x7e]*")
_HOST = re.compile(rb"[A-Za-z0-9._~!$&'()*+,;=:%\[\]-]+")  # reg-name, IP literal, port: RFC 3986
_FIELD = re.compile(rb"(" + _TOKEN + rb"):[ \t]*+([^\x00-\x08\x0a-\x1f\x7f]*)")
_FOLD = re.compile(rb"\r\n[ \t]+")  # obs-fold: RFC 9112 section 5.2
_BARE_LINE_FEED = re.compile(rb"(?<!\r)\n")
_CONTROL_TEXT = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")

_OWN_HEADERS = frozenset(
    ["host", "upgrade", "connection", "sec-websocket-key", "sec-websocket-version"]
)
_REASON_PHRASES = {
    400: b"Bad Request",
    405: b"Method Not Allowed",
    426: b"Upgrade Required",
    431: b"Request Header Fields Too Large",
    505: b"HTTP Version Not Supported",
}


class HandshakeError(Exception):
    """The peer's half of the handshake is wrong.

    Attributes:
        status: Server side: the HTTP status to answer with. Client side: the status that came, or 0
            when what came is no HTTP response.
        reason: What was wrong, in our own words; holds no byte of the peer's.
        response: Server side: the whole HTTP reply to send before closing; client side: empty.
        body_excerpt: Client side: the start of a refusal's body in printable characters.
        header_excerpt: Client side: the header that says where to go or what is missing, likewise.
    """

    def __init__(
        self,
        status: int,
        reason: str,
        *,
        response: bytes = b"",
        body_excerpt: str = "",
        header_excerpt: str = "",
    ) -> None:
        super().__init__(f"{status}: {reason}")
        self.status = status
        self.reason = reason
        self.response = response
        self.body_excerpt = body_excerpt
        self.header_excerpt = header_excerpt


def new_key() -> bytes:
    """Return a fresh Sec-WebSocket-Key: base64 of 16 random bytes, 24 bytes long."""
    return b2a_base64(os.urandom(16), newline=False)


def accept_key(key: bytes) -> bytes:
    """Return the Sec-WebSocket-Accept value for ``key`` (RFC 6455 section 4.2.2, item 5.4)."""
    digest = sha1(key + _GUID).digest()  # noqa: S324 - the RFC's choice, nothing rests on it
    return b2a_base64(digest, newline=False)


def switching_protocols(key: bytes) -> bytes:
    """Return the complete 101 response for a key that has been checked."""
    return _RESPONSE_START + accept_key(key) + b"\r\n\r\n"


def server_response(request: bytes) -> tuple[bytes, int] | None:
    """Check a client's opening handshake (RFC 6455 section 4.2.1) and build the answer.

    Args:
        request: Everything received so far on the connection.

    Returns:
        The 101 response and the length of the request's head in bytes (what follows it is frames
        that came along), or None while the head is incomplete.

    Raises:
        HandshakeError: The request is not a valid handshake; ``response`` is the reply.
    """
    # RFC 9112 section 2.2: one empty line before the request line is to be ignored.
    start = 2 if request.startswith(b"\r\n") else 0
    head_bytes = _head_bytes(request, start)
    if head_bytes is None:
        if request and _BARE_LINE_FEED.search(request):
            raise _refusal(400, "lines must end in CRLF")
        if request[start : start + 1] and not re.match(rb"[A-Za-z\r]", request[start : start + 1]):
            raise _refusal(400, "not an HTTP request")
        if len(request) >= HEAD_LIMIT_BYTES:
            raise _refusal(431, f"the request head is larger than {HEAD_LIMIT_BYTES} bytes")
        return None
    if head_bytes > HEAD_LIMIT_BYTES:
        raise _refusal(431, f"the request head is larger than {HEAD_LIMIT_BYTES} bytes")
    line, _, block = request[start : head_bytes - 4].partition(b"\r\n")
    _check_request_line(line)
    try:
        fields = _parse_fields(block)
    except ValueError as error:
        raise _refusal(400, str(error)) from None
    return switching_protocols(_check_request_fields(fields)), head_bytes


class HandshakeCache:
    """Answers handshakes that differ from an earlier one in nothing but the key.

    A fleet of clients sends one request over and over with a new key; once such a request has
    passed ``server_response``, the same bytes around another well-formed key need no parsing.

    Args:
        shapes_max_count: How many different requests to remember; further ones are always parsed,
            so that hostile variety costs time but no memory.
    """

    __slots__ = ("_shapes", "_shapes_max_count")

    def __init__(self, shapes_max_count: int = 64) -> None:
        self._shapes: set[tuple[bytes, bytes]] = set()
        self._shapes_max_count = shapes_max_count

    def server_response(self, request: bytes) -> tuple[bytes, int] | None:
        """Do what the function ``server_response`` does, with the same results and errors."""
        at = request.find(_KEY_HEADER) + len(_KEY_HEADER)
        key = request[at : at + _KEY_BYTES]
        shape = (request[:at], request[at + _KEY_BYTES :])
        if shape in self._shapes and _KEY.fullmatch(key):
            return switching_protocols(key), len(request)
        answer = server_response(request)
        if (
            answer is not None
            and len(self._shapes) < self._shapes_max_count
            and answer[1] == len(request)  # nothing behind the head
            and answer[0] == switching_protocols(key)  # the key was found where we looked
        ):
            self._shapes.add(shape)
        return answer


def client_request(
    host: str, path: str, key: bytes, extra_headers: Iterable[tuple[str, str]] = ()
) -> bytes:
    """Build a client's opening handshake (RFC 6455 section 4.1).

    Args:
        host: Value of the Host header, with the port when it is not 80.
        path: Request target, starting with ``/``.
        key: 24 bytes from ``new_key``.
        extra_headers: Further (name, value) pairs, such as Origin or Authorization.

    Raises:
        ValueError: A value would break out of its line.
    """
    if not _TARGET.fullmatch(path.encode("utf-8")):
        raise ValueError("path must start with / and hold visible ASCII only")
    if not _HOST.fullmatch(host.encode("utf-8")):
        raise ValueError("host must be a host name or address with an optional port")
    if not _KEY.fullmatch(key):
        raise ValueError("key must be base64 of 16 bytes")
    lines = [
        f"GET {path} HTTP/1.1",
        f"Host: {host}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Key: {key.decode('ascii')}",
        "Sec-WebSocket-Version: 13",
    ]
    for name, value in extra_headers:
        if not re.fullmatch(_TOKEN, name.encode("utf-8")) or _CONTROL_TEXT.search(value):
            raise ValueError("an extra header must be a token and a value without line breaks")
        if name.lower() in _OWN_HEADERS:
            raise ValueError(f"{name} is a header of the handshake itself")
        lines.append(f"{name}: {value}")
    return "\r\n".join([*lines, "", ""]).encode("utf-8")


def check_response(
    response: bytes, key: bytes, *, subprotocols: Iterable[bytes] = ()
) -> int | None:
    """Check a server's answer to our handshake (RFC 6455 section 4.1, second half).

    Args:
        response: Everything received so far on the connection.
        key: The key that our request carried.
        subprotocols: The subprotocols that our request offered.

    Returns:
        Offset of the first byte after the head, or None while the head is incomplete.

    Raises:
        HandshakeError: The server refused, or answered wrongly.
    """
    if (  # exactly what our own server sends
        response.startswith(_RESPONSE_START)
        and response[len(_RESPONSE_START) : _RESPONSE_BYTES] == accept_key(key) + b"\r\n\r\n"
    ):
        return _RESPONSE_BYTES
    head_bytes = _head_bytes(response, 0)
    if head_bytes is None:
        if not b"HTTP/".startswith(response[:5]):
            raise _not_http(response)
        if len(response) >= HEAD_LIMIT_BYTES:
            raise HandshakeError(0, f"the reply's head is larger than {HEAD_LIMIT_BYTES} bytes")
        return None
    if head_bytes > HEAD_LIMIT_BYTES:
        raise HandshakeError(0, f"the reply's head is larger than {HEAD_LIMIT_BYTES} bytes")
    line, _, block = response[: head_bytes - 4].partition(b"\r\n")
    match = _STATUS_LINE.fullmatch(line)
    if match is None:
        raise _not_http(response)
    status = int(match[3])
    if status != 101:
        raise HandshakeError(
            status,
            f"the server answered {status} instead of 101",
            body_excerpt=excerpt(body_of(block, response[head_bytes:])),
            header_excerpt=_telling_header(status, block),
        )
    if match[1] != b"1" or match[2] == b"0":
        raise HandshakeError(status, "the reply is not HTTP/1.1")
    try:
        fields = _parse_fields(block)
    except ValueError as error:
        raise HandshakeError(status, str(error)) from None
    _check_response_fields(status, fields, key, subprotocols)
    return head_bytes


def _head_bytes(data: bytes, start: int) -> int | None:
    end = data.find(b"\r\n\r\n", start)
    return None if end < 0 else end + 4


def _parse_fields(block: bytes) -> dict[bytes, list[bytes]]:
    """Split a header block into lower-case names and their values in order.

    Folded lines are joined by one space before anything is looked at (RFC 9112 section 5.2), so a
    folded value can neither hide a header nor be cut short. A line break that is not CRLF, white
    space before the colon or control characters make the block invalid.

    Raises:
        ValueError: The block does not follow RFC 9112 section 5.
    """
    fields: dict[bytes, list[bytes]] = {}
    if not block:
        return fields
    if block[0] in b" \t":
        raise ValueError("white space before the first header")
    if b"\r\n " in block or b"\r\n\t" in block:
        *folded, last = _FOLD.split(block)
        # Not by the pattern: white space without a line break would be tried at each place.
        block = b" ".join([*(line.rstrip(b" \t") for line in folded), last])
    for line in block.split(b"\r\n"):
        match = _FIELD.fullmatch(line)
        if match is None:
            raise ValueError("malformed header line")
        name = match[1].lower()
        value = match[2].rstrip(b" \t")
        if name in fields:
            fields[name].append(value)
        else:
            fields[name] = [value]
    return fields


def _tokens(fields: dict[bytes, list[bytes]], name: bytes) -> list[bytes]:
    """Return the comma-separated elements of a header in lower case, over all its lines."""
    values = b",".join(fields.get(name, ())).lower()
    return [token for part in values.split(b",") if (token := part.strip(b" \t"))]


def _check_request_line(line: bytes) -> None:
    match = _REQUEST_LINE.fullmatch(line)
    if match is None:
        raise _refusal(400, "malformed request line")
    if match[3] != b"1" or match[4] == b"0":
        raise _refusal(505, "a WebSocket handshake needs HTTP/1.1")
    if match[1] != b"GET":
        raise _refusal(405, "a WebSocket handshake uses GET", b"Allow: GET\r\n")
    if not _TARGET.fullmatch(match[2]):
        raise _refusal(400, "malformed request target")


def _check_request_fields(fields: dict[bytes, list[bytes]]) -> bytes:
    """Check the headers of RFC 6455 section 4.2.1 and return the key."""
    host = fields.get(b"host", ())
    if len(host) != 1 or not _HOST.fullmatch(host[0]):
        raise _refusal(400, "exactly one valid Host header is required")
    upgrade = _tokens(fields, b"upgrade")
    if not upgrade:
        # RFC 9110 section 15.5.22: a 426 names the protocol that is required.
        raise _refusal(426, "this is a WebSocket server", b"Upgrade: websocket\r\n")
    if b"websocket" not in upgrade:
        raise _refusal(400, "the Upgrade header must name websocket")
    if b"upgrade" not in _tokens(fields, b"connection"):
        raise _refusal(400, "the Connection header must name Upgrade")
    version = b",".join(fields.get(b"sec-websocket-version", ()))
    if version != SUPPORTED_VERSION:
        header = b"Sec-WebSocket-Version: " + SUPPORTED_VERSION + b"\r\n"
        if not version:
            raise _refusal(400, "the Sec-WebSocket-Version header is missing", header)
        header += b"Upgrade: websocket\r\n"
        raise _refusal(426, "Sec-WebSocket-Version must be 13", header)  # section 4.4
    keys = fields.get(b"sec-websocket-key", ())
    if len(keys) != 1 or not _KEY.fullmatch(keys[0]):
        raise _refusal(400, "Sec-WebSocket-Key must be one base64 value of 16 bytes")
    if b"transfer-encoding" in fields or fields.get(b"content-length", [b"0"]) != [b"0"]:
        # A body would be read as frames.
        raise _refusal(400, "a WebSocket handshake has no body")
    return keys[0]


def _check_response_fields(
    status: int, fields: dict[bytes, list[bytes]], key: bytes, subprotocols: Iterable[bytes]
) -> None:
    if _tokens(fields, b"upgrade") != [b"websocket"]:
        raise HandshakeError(status, "the reply's Upgrade header must be websocket")
    if b"upgrade" not in _tokens(fields, b"connection"):
        raise HandshakeError(status, "the reply's Connection header must name Upgrade")
    if fields.get(b"sec-websocket-accept", ()) != [accept_key(key)]:
        raise HandshakeError(status, "the reply's Sec-WebSocket-Accept does not match the key")
    if _tokens(fields, b"sec-websocket-extensions"):
        raise HandshakeError(status, "the reply names an extension that was not offered")
    chosen = fields.get(b"sec-websocket-protocol", [])
    if chosen and (len(chosen) > 1 or chosen[0] not in subprotocols):
        raise HandshakeError(
            status,
            "the reply names a subprotocol that was not offered",
            header_excerpt=f"Sec-WebSocket-Protocol: {excerpt(chosen[0])}",
        )


def _refusal(status: int, reason: str, headers: bytes = b"") -> HandshakeError:
    body = reason.encode("ascii") + b"\n"
    upgrade_token = b", Upgrade" if b"Upgrade:" in headers else b""  # RFC 9110 section 7.8
    response = (
        b"HTTP/1.1 %d %b\r\nConnection: close%b\r\n%bContent-Type: text/plain; charset=utf-8\r\n"
        b"Content-Length: %d\r\n\r\n%b"
        % (status, _REASON_PHRASES[status], upgrade_token, headers, len(body), body)
    )
    return HandshakeError(status, reason, response=response)


def _not_http(response: bytes) -> HandshakeError:
    """What a server of another protocol says first."""
    if response[:2] == b"\x15\x03":  # an alert: RFC 8446 section 5.1
        return HandshakeError(0, "the reply is TLS")
    if response[3:4] in (b"\x04", b"\x07") and response[5:9] == bytes(4):
        return HandshakeError(0, "the reply is HTTP/2")  # SETTINGS, GOAWAY: RFC 9113 section 6
    return HandshakeError(0, "the reply is not HTTP", body_excerpt=excerpt(response))


def _telling_header(status: int, block: bytes) -> str:
    """The header of a refusal in which the server says what it wants, '' for none."""
    try:
        fields = _parse_fields(block)
    except ValueError:
        return ""
    for name in _TELLING_HEADERS.get(status, ()):
        values = fields.get(name.lower().encode())
        if values:
            return f"{name}: {excerpt(values[0])}"
    return ""
