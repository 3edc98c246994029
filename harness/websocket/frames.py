"""Frames of RFC 6455 section 5: their headers, masks and close payloads, without I/O or state."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple


class Opcode(IntEnum):
    """Opcodes that RFC 6455 section 5.2 defines; all others are reserved."""

    CONTINUATION = 0x0
    TEXT = 0x1
    BINARY = 0x2
    CLOSE = 0x8
    PING = 0x9
    PONG = 0xA


class CloseCode(IntEnum):
    """Status codes of RFC 6455 section 7.4.1 that this toolkit itself sends or reports."""

    NORMAL = 1000
    GOING_AWAY = 1001
    PROTOCOL_ERROR = 1002
    NO_STATUS = 1005
    INVALID_DATA = 1007
    MESSAGE_TOO_BIG = 1009
    INTERNAL_ERROR = 1011


CONTROL_PAYLOAD_MAX_BYTES = 125
"""Section 5.5."""

SERVER_PING = b"\x89\x00"
"""An empty ping as a server sends it."""
SERVER_PONG = b"\x8a\x00"
"""The answer of a server to an empty ping."""
SERVER_CLOSE_NORMAL = b"\x88\x02\x03\xe8"
"""Close 1000 as a server sends it."""
SERVER_CLOSE_GOING_AWAY = b"\x88\x02\x03\xe9"
"""Close 1001 as a server sends it."""

# Sent by peers: section 7.4.1, and 1012 to 1014 from the IANA registry that section 11.7 set up.
# 1005, 1006 and 1015 never travel; 3000 to 4999 belong to libraries and applications (7.4.2).
_DEFINED_CLOSE_CODES = frozenset(
    [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014]
)

# One table row for each byte of a mask: translate() at C speed for every fourth byte.
_XOR_ROWS = [bytes(value ^ mask for value in range(256)) for mask in range(256)]
# Measured: below this length one big integer is faster than four slices, above it slower.
_XOR_SLICES_FROM_BYTES = 800


class FrameError(Exception):
    """The peer broke the protocol.

    Attributes:
        code: The close code to answer with.
        reason: What was wrong; holds no byte of the peer's.
    """

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{code}: {reason}")
        self.code = code
        self.reason = reason


class FrameHeader(NamedTuple):
    """Header of one frame; offsets are absolute in the buffer it was read from."""

    fin: bool
    opcode: int
    payload_offset: int
    payload_bytes: int
    mask: bytes | None


def apply_mask(payload: bytes | bytearray, mask: bytes) -> bytes:
    """Mask or unmask a payload (section 5.3; the operation is its own inverse).

    Args:
        payload: Any length.
        mask: Four bytes.
    """
    length = len(payload)
    if length < _XOR_SLICES_FROM_BYTES:
        stream = (mask * ((length + 3) >> 2))[:length]
        return (int.from_bytes(payload, "little") ^ int.from_bytes(stream, "little")).to_bytes(
            length, "little"
        )
    masked = bytearray(payload)
    for position in range(4):
        masked[position::4] = masked[position::4].translate(_XOR_ROWS[mask[position]])
    return bytes(masked)


def encode_frame(
    opcode: int, payload: bytes, *, mask: bytes | None = None, fin: bool = True
) -> bytes:
    """Return one frame in the shortest form (section 5.2).

    Args:
        opcode: One of ``Opcode``.
        payload: Unmasked payload.
        mask: Four unpredictable bytes on the client side, None on the server side.
        fin: False when further fragments follow.

    Raises:
        ValueError: A control frame that is fragmented or above 125 bytes, or a mask of the wrong
            length.
    """
    length = len(payload)
    if opcode & 0x08 and (length > CONTROL_PAYLOAD_MAX_BYTES or not fin):
        raise ValueError("a control frame holds at most 125 bytes and is never fragmented")
    first = opcode | 0x80 if fin else opcode
    if mask is None:
        if length < 126:
            return bytes((first, length)) + payload
        if length < 65_536:
            return bytes((first, 126)) + length.to_bytes(2, "big") + payload
        return bytes((first, 127)) + length.to_bytes(8, "big") + payload
    if len(mask) != 4:
        raise ValueError("a mask is four bytes")
    masked = apply_mask(payload, mask)
    if length < 126:
        return bytes((first, 0x80 | length)) + mask + masked
    if length < 65_536:
        return bytes((first, 0xFE)) + length.to_bytes(2, "big") + mask + masked
    return bytes((first, 0xFF)) + length.to_bytes(8, "big") + mask + masked


def encode_close(code: int | None = None, reason: str = "", *, mask: bytes | None = None) -> bytes:
    """Return a close frame (section 5.5.1).

    Args:
        code: A code that may travel, or None for an empty payload.
        reason: Cut to 123 bytes of UTF-8 at a character's end.
        mask: As for ``encode_frame``.

    Raises:
        ValueError: The code must not be sent (section 7.4), or a reason came without a code.
    """
    if code is None:
        if reason:
            raise ValueError("a reason needs a code")
        return encode_frame(Opcode.CLOSE, b"", mask=mask)
    if not is_valid_close_code(code):
        raise ValueError(f"close code {code} must not be sent")
    text = reason.encode("utf-8")[: CONTROL_PAYLOAD_MAX_BYTES - 2]
    text = text.decode("utf-8", "ignore").encode("utf-8")  # drops a character cut in half
    return encode_frame(Opcode.CLOSE, code.to_bytes(2, "big") + text, mask=mask)


def is_valid_close_code(code: int) -> bool:
    """Tell whether a close code may appear in a frame (section 7.4)."""
    return 3000 <= code <= 4999 or code in _DEFINED_CLOSE_CODES


def parse_close_payload(payload: bytes) -> tuple[int, str]:
    """Return code and reason of a close frame; an empty payload is 1005 (section 7.1.5).

    Raises:
        FrameError: 1002 for one byte or a code that must not travel, 1007 for a reason that is not
            UTF-8.
    """
    if not payload:
        return CloseCode.NO_STATUS, ""
    if len(payload) == 1:
        raise FrameError(CloseCode.PROTOCOL_ERROR, "close payload of one byte")
    code = int.from_bytes(payload[:2], "big")
    if not is_valid_close_code(code):
        raise FrameError(CloseCode.PROTOCOL_ERROR, "close code that must not be sent")
    try:
        return code, payload[2:].decode("utf-8")
    except UnicodeDecodeError:
        raise FrameError(CloseCode.INVALID_DATA, "close reason is not UTF-8") from None


def parse_header(data: bytes | bytearray, offset: int, *, masked: bool) -> FrameHeader | None:
    """Read the frame header at ``offset`` (section 5.2).

    What the first two bytes rule out is reported without waiting for more, so the result does not
    depend on how the stream was cut.

    Args:
        data: Bytes received.
        offset: Where the frame starts.
        masked: Whether the peer must mask: True on the server side, False on the client side.

    Returns:
        The header, or None while it is incomplete.

    Raises:
        FrameError: 1002, the header breaks a rule.
    """
    available = len(data) - offset
    if available < 2:
        return None
    first = data[offset]
    second = data[offset + 1]
    opcode = first & 0x0F
    length = second & 0x7F
    if first & 0x70:
        raise FrameError(CloseCode.PROTOCOL_ERROR, "reserved bit set")
    if opcode > 0x02:
        if not 0x08 <= opcode <= 0x0A:
            raise FrameError(CloseCode.PROTOCOL_ERROR, "reserved opcode")
        if not first & 0x80:
            raise FrameError(CloseCode.PROTOCOL_ERROR, "fragmented control frame")
        if length > CONTROL_PAYLOAD_MAX_BYTES:
            raise FrameError(CloseCode.PROTOCOL_ERROR, "control frame above 125 bytes")
    if bool(second & 0x80) is not masked:
        raise FrameError(
            CloseCode.PROTOCOL_ERROR,
            "frame of a client without mask" if masked else "frame of a server with mask",
        )
    payload_offset = offset + 2
    if length == 126:
        if available < 4:
            return None
        payload_offset += 2
        length = int.from_bytes(data[offset + 2 : payload_offset], "big")
        if length < 126:
            raise FrameError(CloseCode.PROTOCOL_ERROR, "payload length is not in its shortest form")
    elif length == 127:
        if available < 10:
            return None
        payload_offset += 8
        length = int.from_bytes(data[offset + 2 : payload_offset], "big")
        if length < 65_536:
            raise FrameError(CloseCode.PROTOCOL_ERROR, "payload length is not in its shortest form")
        if length >> 63:
            raise FrameError(CloseCode.PROTOCOL_ERROR, "payload length above 63 bits")
    if not masked:
        return FrameHeader(bool(first & 0x80), opcode, payload_offset, length, None)
    payload_offset += 4
    if len(data) < payload_offset:
        return None
    mask = bytes(data[payload_offset - 4 : payload_offset])
    return FrameHeader(bool(first & 0x80), opcode, payload_offset, length, mask)


def parse_small_frame(
    data: bytes, offset: int = 0, *, masked: bool
) -> tuple[int, bytes, int] | None:
    """Read one whole unfragmented short frame: the everyday case, without any state.

    Args:
        data: Bytes received.
        offset: Where the frame starts.
        masked: True on the server side, False on the client side.

    Returns:
        Opcode (text, binary, ping or pong), payload and the offset behind the frame; None for
        anything else, which a ``Connection`` then judges: incomplete, longer than 125 bytes,
        fragmented, a close, text beyond ASCII, or a violation.
    """
    size = len(data)
    if size < offset + 2:
        return None
    first = data[offset]
    length = data[offset + 1]
    if first not in _EVERYDAY_FIRST_BYTES:
        return None
    if masked:
        length -= 0x80
        start = offset + 6
        end = start + length
        if not 0 <= length < 126 or size < end:
            return None
        stream = (data[offset + 2 : start] * 32)[:length]
        payload = (
            int.from_bytes(data[start:end], "little") ^ int.from_bytes(stream, "little")
        ).to_bytes(length, "little")
    else:
        start = offset + 2
        end = start + length
        if length > 125 or size < end:
            return None
        payload = data[start:end]
    if first == 0x81 and not payload.isascii():
        return None
    return first & 0x0F, payload, end


_EVERYDAY_FIRST_BYTES = frozenset([0x81, 0x82, 0x89, 0x8A])
