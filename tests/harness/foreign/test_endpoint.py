"""Addresses, headers and message templates of servers that are not ours."""

from __future__ import annotations

import pytest

from harness.foreign import endpoint
from probes.contract.errors import UsageError


@pytest.mark.parametrize(
    ("url", "port", "path", "host", "tls"),
    [
        ("ws://127.0.0.1:9001/chat?x=1", 9001, "/chat?x=1", "127.0.0.1:9001", False),
        ("ws://localhost", 80, "/", "localhost", False),
        ("wss://localhost/a", 443, "/a", "localhost", True),
        ("wss://localhost:{port}/a", 7, "/a", "localhost:7", True),
    ],
)
def test_an_address_is_taken_apart(url, port, path, host, tls):
    found = endpoint.parse(url, default_port=7 if "{port}" in url else 0)
    assert (found.port, found.path, found.host, found.tls) == (port, path, host, tls)
    assert found.address == "127.0.0.1"
    assert found.is_loopback


@pytest.mark.parametrize(
    "url",
    [
        *("", "http://x/", "ws://", "ws://127.0.0.1:99999/", "ws://u:p@127.0.0.1/"),
        *("ws://127.0.0.1:0/", "ws://127.0.0.1/a b", "ws://[::1]:80/"),
    ],
)
def test_what_is_no_address_is_refused(url):
    with pytest.raises(UsageError):
        endpoint.parse(url)


def test_a_header_cannot_break_out_of_its_line():
    assert endpoint.parse_header("Name:  a: b ") == ("Name", "a: b")
    for text in ("Name", ": x", "Na me: x", "Name: a\r\nB: c", "Upgrade: x"):
        with pytest.raises(ValueError, match=r".+"):
            endpoint.parse_header(text)


def test_templates_have_known_fields_alone():
    for text in ("hello {n}", "{connection} {client}", "{{n}}", "plain"):
        endpoint.check_template(text)
        text.format(n=1, connection=2, client=3)
    for text in ("{m}", "{n.__class__}", "{", "}", "{n", "{n!r}", "{n:>9999999}", "{}"):
        with pytest.raises(ValueError, match=r".+"):
            endpoint.check_template(text)
