"""Where the clients connect and what they say there: URL, headers, TLS, messages. Pure parsing."""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from harness.websocket import handshake
from probes.contract.errors import UsageError

_ANY_SOURCE = "0.0.0.0"  # noqa: S104 - as a source: the kernel chooses
_WORD = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"  # RFC 9110 section 5.6.2
_SUBPROTOCOL = re.compile(_WORD)
_TEMPLATE_FIELD = re.compile(r"\{([^{}]*)\}")
MESSAGE_FIELDS = ("n", "connection", "client")


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A server's address and what its handshake needs.

    Attributes:
        url: As people write it, without a ``{port}``.
        address: IPv4 address to connect to.
        port: Its port.
        path: Request target, with its query.
        host: Value of the Host header.
        server_name: For TLS: the name that its certificate must have.
        tls: Whether the connection is encrypted.
    """

    url: str
    address: str
    port: int
    path: str
    host: str
    server_name: str
    tls: bool

    @property
    def is_loopback(self) -> bool:
        """The address is one of 127/8: the clients may connect from as many of them as needed."""
        return self.address.startswith("127.")

    @property
    def source_address(self) -> str:
        """What clients bind when it is no loopback address: whatever the route gives them."""
        return _ANY_SOURCE


def parse(url: str, *, default_port: int = 0) -> Endpoint:
    """Reads ``ws://127.0.0.1:9001/path`` or ``wss://localhost:{port}/path``.

    Args:
        url: The address; ``{port}`` in it becomes ``default_port``.
        default_port: For a URL without a port when it is not 0; else 80, or 443 for wss.

    Raises:
        UsageError: It is no such URL, or its host has no IPv4 address.
    """
    text = url.replace("{port}", str(default_port or 0))
    fix = "for example --target ws://127.0.0.1:9001/chat"
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise UsageError(f"--target {url!r}: {error}", fix=fix) from None
    if parts.scheme not in ("ws", "wss") or not parts.hostname:
        raise UsageError(f"--target {url!r} is not a ws:// or wss:// address", fix=fix)
    if parts.username is not None:
        raise UsageError(
            f"--target {url!r} has a user in it, which no WebSocket client sends",
            fix="--header 'Authorization: Basic ...'",
        )
    secure = parts.scheme == "wss"
    port = port if port is not None else default_port or (443 if secure else 80)
    if port < 1:
        raise UsageError(f"--target {url!r} has no port to connect to", fix=fix)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    address = _resolve(parts.hostname, url)
    host = parts.hostname if port == (443 if secure else 80) else f"{parts.hostname}:{port}"
    try:
        handshake.client_request(host, path, handshake.new_key())
    except ValueError as error:
        raise UsageError(f"--target {url!r}: {error}", fix=fix) from None
    return Endpoint(
        url=f"{parts.scheme}://{parts.hostname}:{port}{path}",
        address=address,
        port=port,
        path=path,
        host=host,
        server_name=parts.hostname,
        tls=secure,
    )


def _resolve(host: str, url: str) -> str:
    if host == "localhost":
        return "127.0.0.1"  # whatever the hosts file says of ::1
    try:
        found = socket.getaddrinfo(host, None, socket.AF_INET, socket.SOCK_STREAM)
    except OSError as error:
        raise UsageError(
            f"--target {url!r}: {host} has no IPv4 address ({error.args[-1]})",
            fix="use the IPv4 address, for example 127.0.0.1",
        ) from None
    return str(found[0][4][0])


def parse_header(text: str) -> tuple[str, str]:
    """``Name: value`` as a pair.

    Raises:
        ValueError: It would break out of its line, or is a header of the handshake itself.
    """
    name, colon, value = text.partition(":")
    name, value = name.strip(), value.strip()
    if not colon or not name:
        raise ValueError(f"{text!r} is not 'Name: value'")
    handshake.client_request("host", "/", handshake.new_key(), [(name, value)])
    return name, value


def request_headers(
    headers: list[tuple[str, str]], cookies: list[str], subprotocols: list[str]
) -> list[tuple[str, str]]:
    """All headers that a request has beside those of the handshake itself.

    Raises:
        UsageError: A cookie is no pair, a subprotocol no token (RFC 6455 section 4.1), or one
            would break out of its line.
    """
    for cookie in cookies:
        if not cookie.partition("=")[1] or cookie.startswith("="):
            raise UsageError(f"--cookie {cookie!r} is not NAME=VALUE", fix="--cookie name=value")
    for name in subprotocols:
        if _SUBPROTOCOL.fullmatch(name) is None:
            raise UsageError(
                f"--subprotocol {name!r} is not one word of the protocol's characters",
                fix=" ".join(f"--subprotocol {word}" for word in re.findall(_WORD, name))
                or "--subprotocol chat",
            )
    found = list(headers)
    if cookies:
        found.append(("Cookie", "; ".join(cookies)))
    if subprotocols:
        found.append(("Sec-WebSocket-Protocol", ", ".join(subprotocols)))
    try:
        handshake.client_request("host", "/", handshake.new_key(), found)
    except ValueError as error:
        raise UsageError(f"--cookie or --subprotocol: {error}", fix="--cookie name=value") from None
    return found


def check_template(text: str) -> None:
    """A message template may use the fields of ``MESSAGE_FIELDS`` in braces; ``{{`` is a brace.

    Raises:
        ValueError: It uses another one.
    """
    bare = text.replace("{{", "").replace("}}", "")
    for field in _TEMPLATE_FIELD.findall(bare):
        if field not in MESSAGE_FIELDS:
            known = ", ".join(f"{{{name}}}" for name in MESSAGE_FIELDS)
            raise ValueError(f"{{{field}}} is not known in a message; there are {known}")
    if "{" in _TEMPLATE_FIELD.sub("", bare) or "}" in _TEMPLATE_FIELD.sub("", bare):
        raise ValueError(f"{text!r} has a brace without its other half; write {{{{ for a brace")


def read_ca(path: Path | None) -> str:
    """The text of a file with certificates in PEM form, '' for none.

    Raises:
        UsageError: It cannot be read or holds none.
    """
    if path is None:
        return ""
    try:
        text = path.read_text(encoding="ascii", errors="replace")
    except OSError as error:
        raise UsageError(f"--ca {path}: {error.strerror}", fix=f"ls -l {path}") from None
    if "-----BEGIN CERTIFICATE-----" not in text:
        raise UsageError(f"--ca {path} holds no certificate in PEM form", fix="openssl x509 -in")
    return text
