"""Reads frames and handshakes that nobody should send, on both sides of the protocol.

``python -m bench.fuzz_protocol --count 1000000 --seed 1``: so many frames, and so many handshakes,
half of each for a server and half for a client. wsproto reads the same frames, h11 and wsproto the
same handshakes. Judged is this:

* Frames: messages, controls and close code are those that wsproto reads, and any split of the bytes
  gives the same.
* Requests: what we switch, h11 reads as one request and wsproto takes for a WebSocket's. What we
  refuse is answered with a reply that h11 reads.
* Replies: what we accept, wsproto accepts.
* What one of the two takes and the other does not is counted with its reason. We may refuse more.
  We may take more where RFC 9110 says so: Connection and Upgrade on several lines or as a list
  (wsproto looks at the last line, and at one word), a Content-Length beside 101 (which has no
  body), bytes beyond ASCII in offers that we do not take up, an empty list of extensions.
* Nothing raises anything else.

What differs is printed with its number: ``--only N`` reads that again. Exit code: 0 when nothing
differed, 1 otherwise.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence

import h11
from wsproto import events as oracle_events
from wsproto.connection import Connection as OracleConnection
from wsproto.connection import ConnectionType
from wsproto.handshake import H11Handshake
from wsproto.utilities import ProtocolError

from harness.websocket.frames import encode_frame
from harness.websocket.handshake import (
    HandshakeCache,
    HandshakeError,
    accept_key,
    check_response,
    server_response,
)
from harness.websocket.protocol import (
    BinaryMessage,
    Close,
    Connection,
    Ping,
    Pong,
    Role,
    TextMessage,
    Violation,
)

_MASK = b"\x01\x02\x03\x04"
_KEY = b"dGhlIHNhbXBsZSBub25jZQ=="
_FRAMES_A_STREAM = 4
_PAYLOADS = (
    *(b"", b"a", b"text", "äöü€".encode(), b"\xc3", b"\xa9", b"\xff", b"\xed\xa0\x80"),
    *(b"\x03\xe8", b"\x03\xe8bye", b"\x03\xed", b"\x03\xee", b"\x0b\xb8", b"\x03", b"\x13\x88"),
    *(bytes(125), bytes(126), bytes(127), bytes(65_535), bytes(65_536)),
)
_REST = bytes((1 << 20) + 16)  # the end of any frame that is not too large for us
_BITS = (0x80,) * 8 + (0x00,) * 4 + (0xC0, 0xA0, 0x90, 0x40)
_OPCODES = (0, 0, 1, 1, 1, 2, 2, 8, 9, 9, 10, 3, 7, 11, 15)

_BREAKS = (ProtocolError, ValueError, IndexError)
"""What wsproto raises, and what Python does in it: bytes of a host that are no domain's."""

Seen = tuple[object, object]


def wild_stream(draw: random.Random, role: Role) -> tuple[bytes, int]:
    """Bytes of some frames, most of which break a rule, and how many there are."""
    pieces = []
    count = draw.randint(1, _FRAMES_A_STREAM)
    for _ in range(count):
        payload = draw.choice(_PAYLOADS)
        if draw.random() < 0.2:
            payload = draw.randbytes(draw.randint(0, 130))
        is_masked = (role is Role.SERVER) is (draw.random() < 0.95)
        data = encode_frame(0, payload, mask=_MASK if is_masked else None)
        data = bytes([draw.choice(_BITS) | draw.choice(_OPCODES)]) + data[1:]
        if len(payload) < 126 and draw.random() < 0.05:
            width = draw.choice((2, 8))
            head = bytes([data[0], is_masked << 7 | (126 if width == 2 else 127)])
            data = head + len(payload).to_bytes(width, "big") + data[2:]
        if draw.random() < 0.05:
            at = draw.randrange(len(data))
            data = data[:at] + bytes([data[at] ^ 1 << draw.randrange(8)]) + data[at + 1 :]
        pieces.append(data)
    stream = b"".join(pieces)
    return (stream[: draw.randint(0, len(stream))] if draw.random() < 0.05 else stream), count


def our_frames(role: Role, pieces: Sequence[bytes]) -> list[Seen]:
    """What we read, in the words of ``oracle_frames``."""
    connection = Connection(role)
    seen: list[Seen] = []
    for piece in pieces:
        for event in connection.receive(piece):
            match event:
                case TextMessage(payload):
                    seen.append(("text", payload))
                case BinaryMessage(payload):
                    seen.append(("binary", payload))
                case Close(code, _) | Violation(code, _):
                    seen.append(("close", int(code)))
                case Ping(payload) | Pong(payload):
                    seen.append((type(event).__name__, payload))
    return seen


def oracle_frames(role: Role, data: bytes) -> list[Seen]:
    """What wsproto reads, fragments joined."""
    kind = ConnectionType.SERVER if role is Role.SERVER else ConnectionType.CLIENT
    oracle = OracleConnection(kind)
    oracle.receive_data(data)
    seen: list[Seen] = []
    parts: list[bytes] = []
    for event in oracle.events():
        if isinstance(event, oracle_events.Message):
            is_text = isinstance(event, oracle_events.TextMessage)
            parts.append(str(event.data).encode() if is_text else bytes(event.data))
            if event.message_finished:
                seen.append(("text" if is_text else "binary", b"".join(parts)))
                parts = []
        elif isinstance(event, oracle_events.CloseConnection):
            seen.append(("close", int(event.code)))
        elif isinstance(event, oracle_events.Ping | oracle_events.Pong):
            seen.append((type(event).__name__, bytes(event.payload)))
    return seen


def frames_differ(draw: random.Random, role: Role) -> tuple[str, int]:
    """Reads one stream twice; '' or what differs, and how many frames it has."""
    stream, count = wild_stream(draw, role)
    cuts = sorted(draw.randint(0, len(stream)) for _ in range(draw.randint(0, 3)))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    ours, theirs = our_frames(role, pieces), oracle_frames(role, stream)
    if ours != theirs:
        # A frame that is not whole: we judge by its header, wsproto by each byte of a text. Here is
        # its end. A message that is too large for us is of any size to wsproto, which waits for it,
        # or finds that it is no text.
        ours, theirs = (
            our_frames(role, [*pieces, _REST]),
            oracle_frames(role, stream + _REST),
        )
    is_too_large = ours[-1:] == [("close", 1009)] and ours[:-1] in (theirs, theirs[:-1])
    is_same = ours == theirs or is_too_large
    return ("" if is_same else f"{ours} and {theirs} of {stream[:200]!r}"), count


_NAMES = (
    *("Host", "Upgrade", "Connection", "Sec-WebSocket-Key", "Sec-WebSocket-Version", "Origin"),
    *("Sec-WebSocket-Protocol", "Sec-WebSocket-Extensions", "Content-Length", "X-A", "X A", ""),
)
_VALUES = (
    *("websocket", "WebSocket", "keep-alive, Upgrade", "upgrade", "close", "13", "12", "13, 13"),
    *(_KEY.decode(), "a.b:80", "[::1]:9", "a b", "", "0", "5", "\tx", "x\t", "ä", "\x7f", "\0"),
)
_LINES = (
    *(b"GET / HTTP/1.1", b"GET /a?b=c HTTP/1.1", b"get / HTTP/1.1", b"POST / HTTP/1.1"),
    *(b"GET / HTTP/1.0", b"GET  / HTTP/1.1", b"GET / HTTP/2.0", b"GET http://a/ HTTP/1.1"),
    *(b"GET * HTTP/1.1", b"GET / HTTP/1.1 ", b"\x16\x03\x01", b"HTTP/1.1 101 x", b""),
)
_STATUS_LINES = (
    *(b"HTTP/1.1 101 Switching Protocols", b"HTTP/1.1 101 ", b"HTTP/1.1 101", b"HTTP/1.0 101 x"),
    *(b"HTTP/1.1 200 OK", b"HTTP/1.1 503 no", b"HTTP/1.1 99 x", b"HTTP/1.1 1011 x", b"x", b""),
)


def wild_head(draw: random.Random, lines: Sequence[bytes], fields: list[tuple[str, str]]) -> bytes:
    """A head of which something is changed, as a rule."""
    fields = list(fields)
    line = lines[0] if draw.random() < 0.8 else draw.choice(lines)
    for _ in range(draw.choice((0, 0, 1, 1, 2, 3))):
        at = draw.randrange(len(fields)) if fields else 0
        match draw.randrange(6):
            case 0 if fields:
                del fields[at]
            case 1 if fields:
                fields.append(fields[at])
            case 2 if fields:
                fields[at] = fields[at][0], draw.choice(_VALUES)
            case 3:
                fields.insert(at, (draw.choice(_NAMES), draw.choice(_VALUES)))
            case 4 if fields:
                fields[at] = fields[at][0].swapcase(), f"  {fields[at][1]}  "
            case _:
                draw.shuffle(fields)
    text = [line, *(f"{name}: {value}".encode("latin-1", "replace") for name, value in fields)]
    head = b"\r\n".join([*text, b"", b""])
    if draw.random() < 0.2 and head:
        at = draw.randrange(len(head))
        match draw.randrange(4):
            case 0:
                head = head[:at] + bytes([draw.randrange(256)]) + head[at + 1 :]
            case 1:
                head = head[:at] + draw.choice((b"\r\n ", b"\n", b"\r", b"\0", b":")) + head[at:]
            case 2:
                head = head[:at]
            case _:
                head = head[:at] + head[at + draw.randint(1, 8) :]
    return head


_REQUEST = [
    *(("Host", "a.b:80"), ("Upgrade", "websocket"), ("Connection", "Upgrade")),
    *(("Sec-WebSocket-Key", _KEY.decode()), ("Sec-WebSocket-Version", "13")),
]
_REPLY = [
    *(("Upgrade", "websocket"), ("Connection", "Upgrade")),
    ("Sec-WebSocket-Accept", accept_key(_KEY).decode()),
]
_cache = HandshakeCache()


def request_differs(draw: random.Random, stricter: Counter[str], looser: Counter[str]) -> str:
    """Reads one request twice; '' or what differs."""
    head = wild_head(draw, _LINES, _REQUEST)
    try:
        ours = server_response(head)
        if _cache.server_response(head) != ours:
            return f"the cache answers otherwise to {head!r}"
    except HandshakeError as error:
        if _takes_request(head):
            stricter[error.reason] += 1
        return "" if _is_reply(error) else f"no reply to {head!r}: {error.response!r}"
    if ours is not None and not _takes_request(head[: ours[1]]):
        return (
            "" if not _looser(head, looser) else f"switched, and h11 or wsproto would not: {head!r}"
        )
    return ""


def _looser(head: bytes, looser: Counter[str]) -> bool:
    """Whether nothing in RFC 9110 says why we take what the others do not; else it is counted."""
    lines = [line.partition(b":") for line in head.lower().split(b"\r\n")[1:]]
    names = Counter(name for name, _, _ in lines)
    values = {name: value.strip() for name, _, value in lines}
    is_reply = head.startswith(b"HTTP/")
    offers = (b"sec-websocket-protocol", b"sec-websocket-extensions")
    unread = [value.strip() for name, _, value in lines if name in offers]
    if names[b"connection"] > 1 or names[b"upgrade"] > 1 or b"," in values.get(b"upgrade", b""):
        looser["Connection or Upgrade on several lines, or a list (5.3, 7.8)"] += 1
    elif is_reply and b"content-length" in values:
        looser["Content-Length of a 101 (8.6)"] += 1
    elif not is_reply and any(not value.isascii() for value in unread):
        looser["other bytes than ASCII in an offer that we do not take up (5.5)"] += 1
    elif not values.get(b"connection", b"").isascii():
        looser["other bytes than ASCII beside the Upgrade of Connection (5.5)"] += 1
    elif is_reply and b"" in unread:
        looser["a list of extensions with nothing in it (5.6.1)"] += 1
    else:
        return True
    return False


def _takes_request(head: bytes) -> bool:
    peer = H11Handshake(ConnectionType.SERVER)
    try:
        peer.receive_data(head)
        return any(isinstance(event, oracle_events.Request) for event in peer.events())
    except _BREAKS:
        return False


def _is_reply(error: HandshakeError) -> bool:
    """h11 reads the reply to its end, and the status is ours."""
    reader = h11.Connection(h11.CLIENT)
    reader.send(h11.Request(method="GET", target="/", headers=[("Host", "a")]))
    reader.send(h11.EndOfMessage())
    reader.receive_data(error.response)
    response = reader.next_event()
    is_ours = isinstance(response, h11.Response) and response.status_code == error.status
    while is_ours and not isinstance(event := reader.next_event(), h11.EndOfMessage):
        if not isinstance(event, h11.Data):
            return False
    return is_ours


def reply_differs(draw: random.Random, stricter: Counter[str], looser: Counter[str]) -> str:
    """Reads one reply twice; '' or what differs."""
    head = wild_head(draw, _STATUS_LINES, _REPLY)
    try:
        ours = check_response(head, _KEY)
    except HandshakeError as error:
        if _takes_reply(head):
            stricter[error.reason] += 1
        return ""
    if ours is not None and not _takes_reply(head[:ours]) and _looser(head, looser):
        return f"accepted, and wsproto would not: {head!r}"
    return ""


def _takes_reply(head: bytes) -> bool:
    peer = H11Handshake(ConnectionType.CLIENT)
    peer.send(oracle_events.Request(host="a", target="/"))
    peer._nonce = _KEY  # it has drawn its own
    try:
        peer.receive_data(head)
        return any(isinstance(event, oracle_events.AcceptConnection) for event in peer.events())
    except _BREAKS:
        return False


def draws(seed: int, only: int | None) -> Iterator[tuple[int, random.Random]]:
    """Number and source of each that is to be read; each is made of seed and number alone."""
    number = 0 if only is None else only
    while only is None or number == only:
        yield number, random.Random(f"{seed} {number}")
        number += 1


def fuzz_frames(
    count: int, seed: int, only: int | None = None
) -> tuple[dict[Role, int], list[str]]:
    """Reads frames until each side has had half of so many; how many, and what differed."""
    done, differing = dict.fromkeys(Role, 0), []
    for number, draw in draws(seed, only):
        if min(done.values()) >= count // 2:
            break
        role = Role.SERVER if number % 2 else Role.CLIENT
        said, frames_count = frames_differ(draw, role)
        done[role] += frames_count
        if said:
            differing.append(f"frames {number}: {said}")
    return done, differing


def fuzz_handshakes(
    count: int, seed: int, only: int | None = None
) -> tuple[dict[Role, int], list[str], Counter[str], Counter[str]]:
    """Likewise of handshakes; and why we alone refuse, and alone take, how many."""
    done, differing = dict.fromkeys(Role, 0), []
    stricter: Counter[str] = Counter()
    looser: Counter[str] = Counter()
    for number, draw in draws(seed, only):
        if only is None and number >= count:
            break
        role = Role.SERVER if number % 2 else Role.CLIENT
        judge = request_differs if role is Role.SERVER else reply_differs
        if said := judge(draw, stricter, looser):
            differing.append(f"handshake {number}: {said}")
        done[role] += 1
    return done, differing, stricter, looser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="bench.fuzz_protocol",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--count", type=int, default=1_000_000, help="frames, and handshakes")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int, help="this stream and this handshake alone")
    options = parser.parse_args(argv)
    begun_s = time.monotonic()
    frames, differing = fuzz_frames(options.count, options.seed, options.only)
    handshakes, more, stricter, looser = fuzz_handshakes(options.count, options.seed, options.only)
    differing += more
    for said in differing[:20]:
        print(said)
    for what, reasons in (("refused", stricter), ("taken", looser)):
        for reason, times in reasons.most_common():
            print(f"{what} by us alone {times:>8,}  {reason}")
    for name, done in (("frames", frames), ("handshakes", handshakes)):
        print(f"{done[Role.SERVER]:,} {name} for a server, {done[Role.CLIENT]:,} for a client")
    print(f"{len(differing)} differ, in {time.monotonic() - begun_s:.0f} s")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
