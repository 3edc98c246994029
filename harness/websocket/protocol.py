"""One WebSocket connection after its handshake, without I/O (RFC 6455 sections 5 to 8).

``Connection`` takes bytes and returns events; what has to be sent collects in ``data_to_send``. It
keeps state only while a frame or message is incomplete: as soon as ``is_idle`` is true the event
loop may drop the object and make a new one with the next bytes.
"""

from __future__ import annotations

import codecs
import os
from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

from harness.websocket.frames import (
    CloseCode,
    FrameError,
    Opcode,
    apply_mask,
    encode_close,
    encode_frame,
    parse_close_payload,
    parse_header,
)

MESSAGE_LIMIT_BYTES = 1_048_576
"""Default of the largest message accepted, over all its fragments."""


class Role(Enum):
    """Which end of the connection we are."""

    SERVER = "server"
    CLIENT = "client"


class State(Enum):
    """States of the closing handshake (section 7.1)."""

    OPEN = "open"
    CLOSING = "closing"  # our close frame went out first; the peer's has not come
    CLOSED = "closed"  # nothing more will be read; disconnect when everything is sent


@dataclass(frozen=True, slots=True)
class TextMessage:
    """A whole text message.

    Attributes:
        payload: Valid UTF-8, kept as bytes since an echo needs no str.
    """

    payload: bytes

    @property
    def text(self) -> str:
        """The payload decoded."""
        return self.payload.decode("utf-8")


@dataclass(frozen=True, slots=True)
class BinaryMessage:
    """A whole binary message."""

    payload: bytes


@dataclass(frozen=True, slots=True)
class Ping:
    """A ping; its pong is already in ``data_to_send``."""

    payload: bytes


@dataclass(frozen=True, slots=True)
class Pong:
    """A pong, solicited or not."""

    payload: bytes


@dataclass(frozen=True, slots=True)
class Close:
    """The peer's close frame; 1005 when it carried no code."""

    code: int
    reason: str


@dataclass(frozen=True, slots=True)
class Violation:
    """The peer broke the protocol: we close with ``code`` and read no further."""

    code: int
    reason: str


Event: TypeAlias = TextMessage | BinaryMessage | Ping | Pong | Close | Violation


class Connection:
    """State machine of one connection, from the handshake's end to the disconnect.

    Args:
        role: Which end we are; decides who masks.
        max_message_bytes: Larger messages are refused with 1009, judged by frame header before
            their payload has come.
    """

    __slots__ = (
        "_buffer",
        "_decoder",
        "_fragments",
        "_max_message_bytes",
        "_message_opcode",
        "_needed_bytes",
        "_outgoing",
        "_peer_masks",
        "_state",
    )

    def __init__(self, role: Role, *, max_message_bytes: int = MESSAGE_LIMIT_BYTES) -> None:
        self._peer_masks = role is Role.SERVER
        self._max_message_bytes = max_message_bytes
        self._state = State.OPEN
        self._buffer = bytearray()
        self._needed_bytes = 0  # below this length the buffer holds no whole frame
        self._message_opcode = 0  # of the message whose fragments are coming; 0: none
        self._fragments = bytearray()
        self._decoder: codecs.IncrementalDecoder | None = None
        self._outgoing: list[bytes] = []

    @property
    def state(self) -> State:
        """Where the closing handshake stands."""
        return self._state

    @property
    def is_idle(self) -> bool:
        """True when a fresh object would behave the same, so this one may be dropped."""
        return (
            self._state is State.OPEN
            and not self._buffer
            and not self._message_opcode
            and not self._outgoing
        )

    @property
    def must_disconnect(self) -> bool:
        """True once the transport is to be closed after ``data_to_send`` has been sent.

        A client leaves the closing of TCP to the server, with a deadline (section 7.1.1).
        """
        return self._state is State.CLOSED

    def data_to_send(self) -> bytes:
        """Take everything that waits to be sent; empty when nothing does."""
        if not self._outgoing:
            return b""
        data = b"".join(self._outgoing)
        self._outgoing.clear()
        return data

    def send(self, opcode: int, payload: bytes, *, fin: bool = True) -> None:
        """Queue one frame; text must be UTF-8 already.

        Raises:
            RuntimeError: A close frame has been sent (section 5.5.1).
            ValueError: As ``encode_frame``.
        """
        if self._state is not State.OPEN:
            raise RuntimeError(f"the connection is {self._state.value}")
        self._outgoing.append(encode_frame(opcode, payload, mask=self._mask(), fin=fin))

    def close(self, code: int | None = CloseCode.NORMAL, reason: str = "") -> None:
        """Queue our close frame and wait for the peer's; does nothing the second time.

        Raises:
            ValueError: As ``encode_close``.
        """
        if self._state is State.OPEN:
            self._outgoing.append(encode_close(code, reason, mask=self._mask()))
            self._state = State.CLOSING

    def receive(self, data: bytes) -> list[Event]:
        """Process bytes from the peer.

        Pongs, the answer to a close and the close frame after a violation go to ``data_to_send``.
        After a close or a violation everything further is ignored.

        Args:
            data: Any piece of the stream.

        Returns:
            What the bytes completed, in order; at most the last one is a Close or Violation.
        """
        events: list[Event] = []
        if self._state is State.CLOSED:
            return events
        stream: bytes | bytearray = data
        if self._buffer:
            self._buffer += data
            if len(self._buffer) < self._needed_bytes:
                return events
            stream = self._buffer
        try:
            consumed = self._parse(stream, events)
        except FrameError as error:
            events.append(Violation(error.code, error.reason))
            if self._state is State.OPEN:
                self._outgoing.append(encode_close(error.code, error.reason, mask=self._mask()))
            self._state = State.CLOSED
        if self._state is State.CLOSED:
            self._buffer = bytearray()
            self._drop_fragments()
        elif stream is data or consumed:
            self._buffer = bytearray(memoryview(stream)[consumed:])
        return events

    def _mask(self) -> bytes | None:
        # Section 5.3: unpredictable, new for every frame.
        return None if self._peer_masks else os.urandom(4)

    def _parse(self, stream: bytes | bytearray, events: list[Event]) -> int:
        """Process whole frames and return how many bytes they took."""
        offset = 0
        while self._state is not State.CLOSED:
            self._needed_bytes = 0
            header = parse_header(stream, offset, masked=self._peer_masks)
            if header is None:
                break
            fin, opcode, start, length, mask = header
            if opcode < 0x08:
                self._check_data_frame(opcode, length)
            end = start + length
            if len(stream) < end:
                self._needed_bytes = end - offset
                break
            payload = bytes(memoryview(stream)[start:end]) if length else b""
            if mask is not None:
                payload = apply_mask(payload, mask)
            offset = end
            if opcode >= 0x08:
                events.append(self._control_frame(opcode, payload))
            elif fin and opcode:
                if opcode == Opcode.BINARY:
                    events.append(BinaryMessage(payload))
                else:
                    _check_utf8(payload)
                    events.append(TextMessage(payload))
            else:
                message = self._fragment(fin, opcode, payload)
                if message is not None:
                    events.append(message)
        return offset

    def _check_data_frame(self, opcode: int, length: int) -> None:
        """Apply what the header of a data frame can break (section 5.4)."""
        if opcode and self._message_opcode:
            raise FrameError(CloseCode.PROTOCOL_ERROR, "new message inside a fragmented one")
        if not opcode and not self._message_opcode:
            raise FrameError(CloseCode.PROTOCOL_ERROR, "continuation of no message")
        if len(self._fragments) + length > self._max_message_bytes:
            raise FrameError(
                CloseCode.MESSAGE_TOO_BIG, f"message above {self._max_message_bytes} bytes"
            )

    def _fragment(self, fin: bool, opcode: int, payload: bytes) -> Event | None:
        if opcode:
            self._message_opcode = opcode
            if opcode == Opcode.TEXT:
                self._decoder = codecs.getincrementaldecoder("utf-8")()
        if self._decoder is not None:
            try:
                self._decoder.decode(payload, fin)
            except UnicodeDecodeError:
                raise FrameError(CloseCode.INVALID_DATA, "text is not UTF-8") from None
        self._fragments += payload
        if not fin:
            return None
        message = bytes(self._fragments)
        is_text = self._message_opcode == Opcode.TEXT
        self._drop_fragments()
        return TextMessage(message) if is_text else BinaryMessage(message)

    def _drop_fragments(self) -> None:
        self._message_opcode = 0
        self._fragments = bytearray()
        self._decoder = None

    def _control_frame(self, opcode: int, payload: bytes) -> Event:
        if opcode == Opcode.PING:
            if self._state is State.OPEN:  # after our close frame nothing more is sent
                self._outgoing.append(encode_frame(Opcode.PONG, payload, mask=self._mask()))
            return Ping(payload)
        if opcode == Opcode.PONG:
            return Pong(payload)
        code, reason = parse_close_payload(payload)
        if self._state is State.OPEN:
            # Section 5.5.1: the answer usually echoes the code.
            reply = None if code == CloseCode.NO_STATUS else code
            self._outgoing.append(encode_close(reply, mask=self._mask()))
        self._state = State.CLOSED
        return Close(code, reason)


def _check_utf8(payload: bytes) -> None:
    if not payload.isascii():
        try:
            payload.decode("utf-8")
        except UnicodeDecodeError:
            raise FrameError(CloseCode.INVALID_DATA, "text is not UTF-8") from None
