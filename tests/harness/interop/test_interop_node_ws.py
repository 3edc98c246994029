"""Both sides against Node's ``ws``."""

from __future__ import annotations

import json

import pytest

from harness.websocket.frames import Opcode, encode_frame
from harness.websocket.protocol import BinaryMessage, Close, Ping, Pong, TextMessage, Violation

pytestmark = pytest.mark.node


def test_client_against_our_server(echo_server, start_node, connect, deadline):
    node = start_node("node_ws_client.cjs", echo_server.url)
    deadline(
        "its first message",
        lambda: node.poll() is not None or TextMessage(b"gate") in echo_server.events,
    )
    other = connect(echo_server.port)
    other.write(encode_frame(Opcode.TEXT, b"not masked"))
    assert other.event() == Close(1002, "frame of a client without mask")
    echo_server.gate.set()
    out, err = node.communicate(timeout=60)
    assert node.returncode == 0, err
    results = json.loads(out)
    assert results == {
        "gate": "gate open",
        "text": [0, 125, 126, 1_009, 70_000],
        "binary": [0, 125, 126, 1_009, 70_000],
        "fragments": "Grüße",
        "ping": "pong from-server",
        "closedByClient": {"code": 4001, "reason": "", "wasClean": True},
        "closedByServer": {"code": 4002, "reason": "over", "wasClean": True},
        "afterViolation": {"code": 1006, "reason": "", "wasClean": False},
        "bystander": "still here",
        "frames": {
            "pong": "23",
            "fragments": "Grüße",
            "close": {"code": 1002, "reason": "frame of a client without mask"},
        },
    }
    seen = echo_server.events
    assert Close(4001, "done") in seen
    assert [event.code for event in seen if isinstance(event, Close)] == [4001, 4002, 1002, 1000]
    assert Pong(b"from-server") in seen
    assert Ping(b"between") in seen
    assert [event.code for event in seen if isinstance(event, Violation)] == [1002, 1002]


@pytest.fixture
def port(start_node):
    """Port of a ``ws`` server."""
    return int(start_node("node_ws_server.cjs").stdout.readline())


def test_server_with_our_client(port, connect):
    client = connect(port)
    for length in (0, 125, 126, 1_009, 70_000):
        client.send(Opcode.TEXT, b"a" * length)
        assert client.event() == TextMessage(b"a" * length)
        client.send(Opcode.BINARY, bytes(length))
        assert client.event() == BinaryMessage(bytes(length))
    client.send(Opcode.TEXT, b"Gr\xc3", fin=False)
    client.send(Opcode.CONTINUATION, b"\xbc\xc3\x9fe")
    assert client.event() == TextMessage("Grüße".encode())
    client.send(Opcode.PING, b"23")
    assert client.event() == Pong(b"23")
    client.send(Opcode.TEXT, b"ping")
    assert client.event() == Ping(b"from-server")
    assert client.event() == TextMessage(b"pong from-server")
    client.send(Opcode.TEXT, b"fragments")
    assert client.event() == Ping(b"between")
    assert client.event() == TextMessage("Grüße".encode())
    client.close(4001, "done")
    while not isinstance(event := client.event(), Close):
        assert event == TextMessage(b"pong between")
    assert event.code == 4001
    assert client.is_at_end()


def test_server_closes_us_with_its_code(port, connect):
    client = connect(port)
    client.send(Opcode.TEXT, b"close 4002 over")
    assert client.event() == Close(4002, "over")
    assert client.is_at_end()


def test_violations_on_either_side_end_only_their_connection(port, connect):
    good, ours, theirs = connect(port), connect(port), connect(port)
    ours.write(encode_frame(Opcode.TEXT, b"not masked"))
    event = ours.event()
    assert isinstance(event, Close)
    assert event.code == 1002
    theirs.send(Opcode.TEXT, b"violate")
    assert theirs.event() == Violation(1002, "frame of a server with mask")
    good.send(Opcode.TEXT, b"still here")
    assert good.event() == TextMessage(b"still here")
