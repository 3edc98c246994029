"""Our server with Chromium's own WebSocket."""

from __future__ import annotations

import json
import shutil

import pytest

from harness.websocket.frames import Opcode, encode_frame
from harness.websocket.protocol import Close, Pong, TextMessage, Violation

pytestmark = [pytest.mark.browser, pytest.mark.node]


@pytest.mark.skipif(
    shutil.which("chromium") is None, reason="chromium is not installed (apt-get install chromium)"
)
def test_browser_against_our_server(echo_server, start_node, connect, deadline, tmp_path):
    node = start_node("chromium_client.cjs", str(echo_server.port), str(tmp_path))
    deadline(
        "its first message",
        lambda: node.poll() is not None or TextMessage(b"gate") in echo_server.events,
        seconds=60,
    )
    other = connect(echo_server.port)
    other.write(encode_frame(Opcode.TEXT, b"not masked"))
    assert other.event() == Close(1002, "frame of a client without mask")
    echo_server.gate.set()
    out, err = node.communicate(timeout=90)
    assert node.returncode == 0, err
    assert json.loads(out) == {
        "refusal": {"status": 426, "text": "this is a WebSocket server"},
        "gate": "gate open",
        "text": [0, 125, 126, 1_009, 70_000],
        "binary": [0, 125, 126, 1_009, 70_000],
        "fragments": "Grüße",
        "ping": "pong from-server",
        "closedByClient": {"code": 4001, "reason": "", "wasClean": True},
        "closedByServer": {"code": 4002, "reason": "over", "wasClean": True},
        "afterViolation": {"code": 1006, "reason": "", "wasClean": False},
        "bystander": "still here",
    }
    seen = echo_server.events
    assert {Close(4001, "done"), Close(4002, "over")} <= set(seen)
    assert {Pong(b"from-server"), Pong(b"between")} <= set(seen)
    assert [event.code for event in seen if isinstance(event, Violation)] == [1002]
