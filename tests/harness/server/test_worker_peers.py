"""Our real worker process against a client library that we did not write, and against raw bytes."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from websockets.sync.client import ClientConnection, connect

from probes.contract.live import Counter

TIMEOUT_S = 10


@pytest.fixture
def worker(small_fleet) -> Iterator[tuple[str, int, memoryview]]:
    """Address, port and counters of one worker on this host's loopback."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    fleet = small_fleet(
        connections=1,
        clients=1,
        workers=1,
        destination_ports=[port],
        own_namespace=False,
    ).ready()
    return "127.0.0.1", port, fleet.fleet.server_slots[0]


@pytest.fixture
def peer(worker) -> Iterator[ClientConnection]:
    host, port, _ = worker
    with connect(f"ws://{host}:{port}/", compression=None, close_timeout=TIMEOUT_S) as connection:
        yield connection


@pytest.mark.parametrize("size_bytes", [0, 1, 125, 126, 1_009, 70_000])
def test_echo_of_text_and_binary(peer, size_bytes):
    peer.send("\u00e9" * (size_bytes // 2))
    assert peer.recv(TIMEOUT_S) == "\u00e9" * (size_bytes // 2)
    peer.send(b"\x00\xff" * size_bytes)
    assert peer.recv(TIMEOUT_S) == b"\x00\xff" * size_bytes


def test_fragments_come_back_whole(peer):
    peer.send([b"1", b"00", b"9"])
    assert peer.recv(TIMEOUT_S) == b"1009"


def test_ping_is_answered(peer):
    assert peer.ping().wait(TIMEOUT_S)


def test_many_messages_at_once_to_a_slow_reader_all_come_back(worker):
    """More than the socket buffers hold: the worker must stop reading, not grow or drop."""
    host, port, slot = worker
    payload = b"x" * 100_000
    with connect(f"ws://{host}:{port}/", compression=None, max_queue=2) as peer:
        for _ in range(23):
            peer.send(payload)
            assert slot[Counter.WRITE_BUFFERED_BYTES] <= 2 * len(payload) + 65_536
        assert [len(peer.recv(TIMEOUT_S)) for _ in range(23)] == [100_000] * 23


def test_closing_is_answered_with_the_code(worker, deadline):
    host, port, slot = worker
    with connect(f"ws://{host}:{port}/", compression=None) as peer:
        peer.close(4009, "enough")
    assert peer.protocol.close_code == 4009
    deadline("the worker forgot it", lambda: slot[Counter.OPEN_COUNT] == 0)


def test_a_violation_closes_only_its_own_connection(worker, peer):
    host, port, slot = worker
    with connect(f"ws://{host}:{port}/", compression=None) as bad:
        bad.socket.sendall(b"\x81\x01x")  # unmasked: RFC 6455, 5.1
        with pytest.raises(Exception, match="1002"):
            bad.recv(TIMEOUT_S)
    assert slot[Counter.PROTOCOL_ERROR_TOTAL] == 1
    peer.send("still here")
    assert peer.recv(TIMEOUT_S) == "still here"


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"426"),
        (b"POST / HTTP/1.1\r\nHost: a\r\n\r\n", b"405"),
        (b"nonsense\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nX: " + b"a" * 100_000 + b"\r\n\r\n", b"431"),
    ],
)
def test_a_refused_handshake_says_why(worker, deadline, request_bytes, status):
    host, port, slot = worker
    with socket.create_connection((host, port), TIMEOUT_S) as raw:
        raw.sendall(request_bytes)
        assert raw.recv(65_536).split(b" ")[1] == status
    deadline("the worker forgot it", lambda: slot[Counter.OPEN_COUNT] == 0)


def test_a_request_in_pieces_is_put_together(worker):
    host, port, slot = worker
    request = (
        f"GET / HTTP/1.1\r\nHost: {host}:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    ).encode()
    with socket.create_connection((host, port), TIMEOUT_S) as raw:
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for at in range(0, len(request), 20):
            raw.sendall(request[at : at + 20])
        assert b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in raw.recv(65_536)  # RFC 6455, 1.3
    assert slot[Counter.PROTOCOL_ERROR_TOTAL] == 0
