"""Both sides against the ``websockets`` package."""

from __future__ import annotations

import threading

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect as websockets_connect
from websockets.sync.server import serve

from harness.websocket.frames import Opcode, encode_frame
from harness.websocket.protocol import BinaryMessage, Close, Ping, Pong, TextMessage, Violation

LENGTHS = [0, 125, 126, 1_009, 70_000]


@pytest.fixture
def foreign_client(echo_server):
    with websockets_connect(echo_server.url) as client:
        yield client


@pytest.fixture
def foreign_server():
    """Port of a ``websockets`` server that understands the words of our own."""

    def handle(peer):
        try:
            for message in peer:
                if message == "ping":
                    assert peer.ping(b"from-server").wait(20)
                    peer.send("pong from-server")
                elif message == "fragments":
                    peer.send(["Gr", "ü", "ße"])
                elif isinstance(message, str) and message.startswith("close "):
                    peer.close(int(message.split()[1]), message.split()[2])
                else:
                    peer.send(message)
        except ConnectionClosed:
            pass  # the violation test

    with serve(handle, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.socket.getsockname()[1]
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("length", LENGTHS)
def test_client_gets_text_and_binary_back(foreign_client, length):
    for message in ("é" * (length // 2), bytes(length)):
        foreign_client.send(message)
        assert foreign_client.recv(timeout=20) == message


def test_client_fragments_reach_us_as_one_message(foreign_client):
    foreign_client.send(["Gr", "ü", "ße"])
    assert foreign_client.recv(timeout=20) == "Grüße"
    foreign_client.send([bytes(1_009), b"", bytes(70_000)])
    assert foreign_client.recv(timeout=20) == bytes(71_009)


def test_client_reads_our_fragments(foreign_client):
    foreign_client.send("fragments")
    assert b"".join(foreign_client.recv_streaming(decode=False)) == "Grüße".encode()


def test_client_and_we_ping_each_other(foreign_client):
    assert foreign_client.ping(b"23").wait(20)
    foreign_client.send("ping")
    assert foreign_client.recv(timeout=20) == "pong from-server"


def test_client_closes_with_its_code(foreign_client, echo_server, deadline):
    foreign_client.close(4001, "done")
    assert foreign_client.close_code == 4001
    deadline("the close", lambda: Close(4001, "done") in echo_server.events)


def test_we_close_the_client_with_our_code(foreign_client, echo_server, deadline):
    foreign_client.send("close 4002 over")
    with pytest.raises(ConnectionClosed) as caught:
        foreign_client.recv(timeout=20)
    assert (caught.value.rcvd.code, caught.value.rcvd.reason) == (4002, "over")
    deadline("the answer", lambda: Close(4002, "over") in echo_server.events)


def test_a_violation_ends_only_its_own_connection(foreign_client, echo_server, connect):
    other = connect(echo_server.port)
    other.write(encode_frame(Opcode.TEXT, b"not masked"))
    assert other.event() == Close(1002, "frame of a client without mask")
    assert other.is_at_end()
    foreign_client.send("still here")
    assert foreign_client.recv(timeout=20) == "still here"
    assert [event for event in echo_server.events if isinstance(event, Violation)] == [
        Violation(1002, "frame of a client without mask")
    ]


def test_client_reports_a_violation_of_ours_and_others_go_on(foreign_client, echo_server, deadline):
    with websockets_connect(echo_server.url) as other:
        foreign_client.send("violate")
        deadline(
            "its close with 1002",
            lambda: [e for e in echo_server.events if isinstance(e, Close) and e.code == 1002],
        )
        other.send("still here")
        assert other.recv(timeout=20) == "still here"


def test_client_sees_our_http_status(echo_server):
    with pytest.raises(InvalidStatus) as caught:
        websockets_connect(echo_server.url, additional_headers={"Content-Length": "5"})
    assert caught.value.response.status_code == 400


@pytest.mark.parametrize("length", LENGTHS)
def test_server_gives_text_and_binary_back(foreign_server, connect, length):
    client = connect(foreign_server)
    client.send(Opcode.TEXT, b"a" * length)
    assert client.event() == TextMessage(b"a" * length)
    client.send(Opcode.BINARY, bytes(length))
    assert client.event() == BinaryMessage(bytes(length))


def test_server_reads_our_fragments_and_we_its(foreign_server, connect):
    client = connect(foreign_server)
    client.send(Opcode.TEXT, b"Gr\xc3", fin=False)
    client.send(Opcode.PING, b"between")
    client.send(Opcode.CONTINUATION, b"\xbc\xc3\x9fe")
    assert {client.event(), client.event()} == {Pong(b"between"), TextMessage("Grüße".encode())}
    client.send(Opcode.TEXT, b"fragments")
    assert client.event() == TextMessage("Grüße".encode())


def test_server_and_we_ping_each_other(foreign_server, connect):
    client = connect(foreign_server)
    client.send(Opcode.PING, b"23")
    assert client.event() == Pong(b"23")
    client.send(Opcode.TEXT, b"ping")
    assert client.event() == Ping(b"from-server")
    assert client.event() == TextMessage(b"pong from-server")


def test_server_and_we_close_with_codes(foreign_server, connect):
    client = connect(foreign_server)
    client.close(4001, "done")
    assert client.event() == Close(4001, "done")
    assert client.is_at_end()
    client = connect(foreign_server)
    client.send(Opcode.TEXT, b"close 4002 over")
    assert client.event() == Close(4002, "over")
    assert client.is_at_end()


def test_server_refuses_our_violation_and_others_go_on(foreign_server, connect):
    good, bad = connect(foreign_server), connect(foreign_server)
    bad.write(encode_frame(Opcode.TEXT, b"not masked"))
    event = bad.event()
    assert isinstance(event, Close)
    assert event.code == 1002
    good.send(Opcode.TEXT, b"still here")
    assert good.event() == TextMessage(b"still here")
