"""Thin socket pumps around ``harness.websocket``: just enough I/O to meet foreign endpoints."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness.websocket.frames import Opcode, encode_frame
from harness.websocket.handshake import (
    HandshakeError,
    check_response,
    client_request,
    new_key,
    server_response,
)
from harness.websocket.protocol import BinaryMessage, Connection, Event, Pong, Role, TextMessage

TIMEOUT_S = 20.0
MASKED_BY_A_SERVER = encode_frame(Opcode.TEXT, b"bad", mask=b"abcd")


class EchoServer:
    """Echoes, and does what these text messages say, one thread a connection.

    ``close 4001 reason``: closes so. ``ping``: pings with ``from-server`` and answers the pong with
    the text ``pong from-server``. ``fragments``: sends ``Grüße`` in three frames, cut inside a
    character, with a ping between them. ``violate``: sends a masked frame. ``gate``: waits until
    the test sets ``gate`` and answers ``gate open``.
    """

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.gate = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.url = f"ws://127.0.0.1:{self.port}/"
        self._sockets: set[socket.socket] = set()
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def stop(self) -> None:
        self.gate.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join()
        self._listener.close()
        for sock in list(self._sockets):
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # the peer was faster
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            sock.settimeout(TIMEOUT_S)
            self._sockets.add(sock)
            thread = threading.Thread(target=self._serve, args=(sock,))
            thread.start()
            self._threads.append(thread)

    def _serve(self, sock: socket.socket) -> None:
        try:
            data = self._shake_hands(sock)
            connection = Connection(Role.SERVER)
            while data is not None and not connection.must_disconnect:
                for event in connection.receive(data):
                    self.events.append(event)
                    self._react(sock, connection, event)
                sock.sendall(connection.data_to_send())
                if connection.is_idle:
                    connection = Connection(Role.SERVER)  # as the event loop does
                if not connection.must_disconnect:
                    data = sock.recv(65_536) or None
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(65_536):
                pass  # closing with unread bytes would reset the connection
        except OSError:
            pass  # the peer left, or stop() has shut the socket down
        finally:
            self._sockets.discard(sock)
            sock.close()

    def _shake_hands(self, sock: socket.socket) -> bytes | None:
        """Returns what came behind the request, or None when there is no connection."""
        request = b""
        try:
            while (answer := server_response(request)) is None:
                if not (data := sock.recv(65_536)):
                    return None
                request += data
        except HandshakeError as error:
            sock.sendall(error.response)
            return None
        sock.sendall(answer[0])
        return request[answer[1] :]

    def _react(self, sock: socket.socket, connection: Connection, event: Event) -> None:
        match event:
            case Pong(b"from-server"):
                connection.send(Opcode.TEXT, b"pong from-server")
            case TextMessage(b"ping"):
                connection.send(Opcode.PING, b"from-server")
            case TextMessage(b"fragments"):
                connection.send(Opcode.TEXT, b"Gr\xc3", fin=False)
                connection.send(Opcode.PING, b"between")
                connection.send(Opcode.CONTINUATION, b"\xbc\xc3", fin=False)
                connection.send(Opcode.CONTINUATION, b"\x9fe")
            case TextMessage(b"gate"):
                self.gate.wait(TIMEOUT_S)
                connection.send(Opcode.TEXT, b"gate open")
            case TextMessage(b"violate"):
                sock.sendall(MASKED_BY_A_SERVER)
            case TextMessage(payload) if payload.startswith(b"close "):
                _, code, reason = payload.decode().split(" ", 2)
                connection.close(int(code), reason)
            case TextMessage(payload):
                connection.send(Opcode.TEXT, payload)
            case BinaryMessage(payload):
                connection.send(Opcode.BINARY, payload)


class Client:
    """One connection of ours to a server on 127.0.0.1, blocking."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S)
        try:
            key, response = new_key(), b""
            self.write(client_request(f"127.0.0.1:{port}", "/", key))
            while (offset := check_response(response, key)) is None:
                response += self._read()
        except BaseException:
            self.disconnect()
            raise
        self._connection = Connection(Role.CLIENT)
        self._events: deque[Event] = deque(self._connection.receive(response[offset:]))

    def send(self, opcode: int, payload: bytes, *, fin: bool = True) -> None:
        self._connection.send(opcode, payload, fin=fin)
        self.write(self._connection.data_to_send())

    def close(self, code: int, reason: str = "") -> None:
        self._connection.close(code, reason)
        self.write(self._connection.data_to_send())

    def write(self, data: bytes) -> None:
        """Sends raw bytes."""
        self._socket.sendall(data)

    def event(self) -> Event:
        """The next event; pongs and close replies go out by themselves."""
        while not self._events:
            self._events.extend(self._connection.receive(self._read()))
            self.write(self._connection.data_to_send())
        return self._events.popleft()

    def is_at_end(self) -> bool:
        """Whether the server closed TCP after the closing handshake."""
        return self._socket.recv(1) == b""

    def disconnect(self) -> None:
        self._socket.close()

    def _read(self) -> bytes:
        data = self._socket.recv(65_536)
        assert data, "the server closed without a close frame"
        return data


@pytest.fixture
def echo_server() -> Iterator[EchoServer]:
    """Our server side on a port of its own."""
    server = EchoServer()
    yield server
    server.stop()


@pytest.fixture
def connect() -> Iterator[Callable[[int], Client]]:
    """``connect(port)`` opens a connection of our client side."""
    clients: list[Client] = []

    def start(port: int) -> Client:
        clients.append(Client(port))
        return clients[-1]

    yield start
    for client in clients:
        client.disconnect()


@pytest.fixture
def start_node() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """``start_node("script.cjs", arguments...)`` from this folder; gone after the test."""
    if shutil.which("node") is None:
        pytest.skip("node is not installed (apt-get install nodejs)")
    folder = Path(__file__).parent
    if not (folder.parents[1] / "node_modules" / "ws").is_dir():
        pytest.skip("the npm packages of the tests are not installed (cd tests && npm ci)")
    processes: list[subprocess.Popen[str]] = []

    def start(script: str, *arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            ["node", str(folder / script), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        try:
            os.killpg(process.pid, signal.SIGKILL)  # with the browser that it may have started
        except ProcessLookupError:
            pass
        process.communicate()
