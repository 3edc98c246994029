"""A client process whose connections are encrypted (``wss://``).

The event loop, the records and the protocol are those of ``harness.client.client``; what is read
and written passes through one SSLObject a connection, with memory on both sides of it. That costs
about a millisecond of CPU and 50 kB for each connection, so a wall of the clients comes sooner than
without TLS. The plain client's path is not touched.
"""

from __future__ import annotations

import errno
import os
import ssl

from harness.client.client import Client
from harness.client.opening import READ_BYTES, Exchange
from harness.fleet.config import FleetConfig
from harness.websocket.handshake import HandshakeError
from probes.contract.live import CloseKind, Counter, Live


def make_context(config: FleetConfig) -> ssl.SSLContext:
    """What the clients demand of the server's certificate.

    Args:
        config: ``tls`` is verify or insecure; ``tls_ca`` replaces the system's authorities.
    """
    context = ssl.create_default_context(cadata=config.tls_ca or None)
    if config.tls == "insecure":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["http/1.1"])
    return context


class _Session:
    """TLS of one connection, between two buffers."""

    __slots__ = ("incoming", "is_open", "is_over", "outgoing", "tls", "unsent")

    def __init__(self, context: ssl.SSLContext, server_name: str) -> None:
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname=server_name)
        self.unsent = b""
        self.is_open = False
        self.is_over = False

    def shake_hands(self) -> bool:
        """Goes on with TLS's own handshake as far as what has come allows; True at its end.

        Raises:
            ssl.SSLError: The peer or its certificate is refused.
        """
        try:
            self.tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        self.is_open = True
        return True

    def plain(self) -> bytes:
        """Everything that can be decrypted now."""
        parts: list[bytes] = []
        while True:
            try:
                part = self.tls.read(READ_BYTES)
            except (ssl.SSLWantReadError, ssl.SSLZeroReturnError, ssl.SSLEOFError) as error:
                self.is_over = self.is_over or not isinstance(error, ssl.SSLWantReadError)
                return b"".join(parts)
            if not part:
                self.is_over = True
                return b"".join(parts)
            parts.append(part)


class TlsClient(Client):
    """``Client`` over TLS."""

    def __init__(
        self, config: FleetConfig, index: int, live: Live, record_base: int, report_fd: int = -1
    ) -> None:
        self._context = make_context(config)
        self._sessions: dict[int, _Session] = {}
        super().__init__(config, index, live, record_base, report_fd)

    def _request(self, fd: int, record: int, exchange: Exchange, *, is_registered: bool) -> None:
        """Sends TLS's first message, or waits for the connection."""
        session = self._sessions.get(fd)
        if session is None:
            session = _Session(self._context, self._config.tls_server_name)
            self._sessions[fd] = session
            session.shake_hands()
            session.unsent = session.outgoing.read()
        if self._send_first(fd, record, session.unsent, is_registered=is_registered):
            session.unsent = b""

    def _progress(self, fd: int, mask: int) -> None:
        """Goes on with TLS's handshake, then with ours."""
        record, exchange = self._record_by_fd[fd], self._in_flight[fd]
        if not self._connected_ns[record]:
            self._request(fd, record, exchange, is_registered=True)
            return
        session = self._sessions[fd]
        try:
            data = os.read(fd, READ_BYTES)
            session.incoming.write(data)
            if not session.is_open and session.shake_hands():
                session.tls.write(exchange.request)
            plain = session.plain() if session.is_open else b""
            self._flush(fd, session)
        except BlockingIOError:
            return
        except ssl.SSLError as error:
            self._refuse(fd, session, error)
            return
        except OSError as error:
            self._abandon(fd, error.errno or 0)
            return
        if plain:
            self._check(fd, record, exchange, plain)
        elif not data or session.is_over:
            self._abandon(fd, 0)

    def _refuse(self, fd: int, session: _Session, error: ssl.SSLError) -> None:
        """We do not accept the server, or it not us."""
        try:
            self._flush(fd, session)  # the alert that tells the server why
        except OSError:
            pass
        self._slot[Counter.PROTOCOL_ERROR_TOTAL] += 1
        self._refusals.tell(HandshakeError(0, f"TLS: {reason_of(error)}"))
        self._abandon(fd, 0, CloseKind.PROTOCOL)

    def _flush(self, fd: int, session: _Session) -> None:
        """Writes what TLS has to say.

        Raises:
            OSError: The connection is gone, or its buffer is full (EAGAIN).
        """
        data = session.outgoing.read()
        if data and os.write(fd, data) < len(data):
            raise OSError(errno.ENOBUFS, "the send buffer is full")

    def _read_more(self, fd: int) -> bytes:
        session = self._sessions[fd]
        session.incoming.write(os.read(fd, READ_BYTES))
        return session.plain()

    def _read(self, fd: int) -> None:
        if self._record_by_fd[fd] < 0:
            return
        session = self._sessions[fd]
        try:
            data = os.read(fd, READ_BYTES)
            session.incoming.write(data)
            plain = session.plain()
            self._flush(fd, session)
        except BlockingIOError:
            return
        except ssl.SSLError:
            self._lose(fd, 0, CloseKind.PROTOCOL)
            return
        except OSError as error:
            self._lose(fd, error.errno or 0, CloseKind.RST)
            return
        if plain:
            self._receive(fd, plain)
        if not data or session.is_over:
            self._lose(fd, 0, CloseKind.EOF)

    def _send(self, fd: int, data: bytes) -> None:
        if self._record_by_fd[fd] < 0:
            return
        session = self._sessions[fd]
        try:
            session.tls.write(data)
            self._flush(fd, session)
        except BlockingIOError:
            self._lose(fd, errno.EAGAIN, CloseKind.LOCAL)  # as in the plain client
        except OSError as error:
            self._lose(fd, error.errno or 0, CloseKind.RST)

    def _abandon(self, fd: int, number: int, kind: CloseKind | None = None) -> None:
        self._sessions.pop(fd, None)
        super()._abandon(fd, number, kind)

    def _lose(self, fd: int, number: int, kind: CloseKind) -> None:
        if self._record_by_fd[fd] >= 0:
            self._sessions.pop(fd, None)
        super()._lose(fd, number, kind)


def reason_of(error: ssl.SSLError) -> str:
    """In a person's words what TLS did not like."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the server's certificate was refused: {error.verify_message}"
    reason = (error.reason or str(error)).replace("_", " ").lower()
    if reason in ("wrong version number", "record layer failure", "http request"):
        return f"{reason}: the server speaks no TLS on this port"
    return reason
