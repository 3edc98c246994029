"""A connection's state: RFC 6455 sections 5.4 to 8.1, with wsproto as oracle."""

from __future__ import annotations

import os

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from wsproto import events as oracle_events
from wsproto.connection import Connection as OracleConnection
from wsproto.connection import ConnectionType

from harness.websocket.frames import (
    Opcode,
    encode_close,
    encode_frame,
    parse_close_payload,
    parse_header,
)
from harness.websocket.protocol import (
    BinaryMessage,
    Close,
    Connection,
    Ping,
    Pong,
    Role,
    State,
    TextMessage,
    Violation,
)

MASK = b"\x01\x02\x03\x04"
ROLES = [Role.SERVER, Role.CLIENT]
both_roles = pytest.mark.parametrize("role", ROLES)


def peer_mask(role: Role) -> bytes | None:
    """The mask with which the peer of ``role`` sends."""
    return MASK if role is Role.SERVER else None


def sent_by(connection: Connection, role: Role) -> list[tuple[int, bytes]]:
    """Opcode and payload of all frames that wait to be sent, read by our own parser."""
    data, frames, offset = connection.data_to_send(), [], 0
    while offset < len(data):
        header = parse_header(data, offset, masked=role is Role.CLIENT)
        assert header is not None
        offset = header.payload_offset + header.payload_bytes
        payload = data[header.payload_offset : offset]
        if header.mask:
            payload = bytes(byte ^ header.mask[i % 4] for i, byte in enumerate(payload))
        frames.append((header.opcode, payload))
    return frames


def violation_code(role: Role, *frames: bytes, **limits: int) -> int:
    """Feeds the frames; the last one must be a violation that is answered with its code."""
    connection = Connection(role, **limits)
    for frame in frames[:-1]:
        assert not any(isinstance(event, Violation) for event in connection.receive(frame))
    connection.data_to_send()
    (event,) = connection.receive(frames[-1])
    assert isinstance(event, Violation)
    ((opcode, payload),) = sent_by(connection, role)
    assert opcode == Opcode.CLOSE
    assert parse_close_payload(payload) == (event.code, event.reason)
    assert connection.must_disconnect
    assert connection.receive(encode_frame(Opcode.PING, b"", mask=peer_mask(role))) == []
    assert connection.data_to_send() == b""
    return event.code


@both_roles
@pytest.mark.parametrize("length", [0, 1, 125, 126, 1_009, 65_535, 65_536, 70_000])
def test_5_6_whole_messages(role, length):
    connection = Connection(role)
    mask = peer_mask(role)
    assert connection.receive(encode_frame(Opcode.TEXT, b"a" * length, mask=mask)) == [
        TextMessage(b"a" * length)
    ]
    assert connection.receive(encode_frame(Opcode.BINARY, bytes(length), mask=mask)) == [
        BinaryMessage(bytes(length))
    ]
    assert connection.is_idle


@both_roles
def test_5_4_fragments_make_one_message_with_controls_between(role):
    connection = Connection(role)
    mask = peer_mask(role)
    assert connection.receive(encode_frame(1, b"Gr\xc3", mask=mask, fin=False)) == []
    assert not connection.is_idle
    assert connection.receive(encode_frame(Opcode.PING, b"p", mask=mask)) == [Ping(b"p")]
    assert connection.receive(encode_frame(0, b"", mask=mask, fin=False)) == []
    assert connection.receive(encode_frame(0, b"\xbc\xc3\x9f", mask=mask)) == [
        TextMessage("Grüß".encode())
    ]
    assert sent_by(connection, role) == [(Opcode.PONG, b"p")]
    assert connection.is_idle
    assert TextMessage("Grüß".encode()).text == "Grüß"


@both_roles
def test_5_4_fragment_rules(role):
    mask = peer_mask(role)
    first = encode_frame(Opcode.TEXT, b"a", mask=mask, fin=False)
    assert violation_code(role, encode_frame(0, b"a", mask=mask)) == 1002
    assert violation_code(role, first, encode_frame(Opcode.TEXT, b"", mask=mask)) == 1002
    assert violation_code(role, first, encode_frame(Opcode.BINARY, b"", mask=mask)) == 1002
    last = encode_frame(0, b"", mask=mask)
    assert violation_code(role, first, last, last) == 1002


@both_roles
def test_5_1_wrong_masking(role):
    wrong = None if role is Role.SERVER else MASK
    assert violation_code(role, encode_frame(Opcode.TEXT, b"a", mask=wrong)) == 1002


@both_roles
@pytest.mark.parametrize("payload", [b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xf4\x90\x80\x80"])
def test_8_1_text_that_is_not_utf_8(role, payload):
    mask = peer_mask(role)
    assert violation_code(role, encode_frame(Opcode.TEXT, payload, mask=mask)) == 1007
    first = encode_frame(Opcode.TEXT, b"ok", mask=mask, fin=False)
    assert violation_code(role, first, encode_frame(0, payload, mask=mask)) == 1007
    assert Connection(role).receive(encode_frame(Opcode.BINARY, payload, mask=mask)) == [
        BinaryMessage(payload)
    ]


@both_roles
def test_8_1_bad_utf_8_fails_at_its_fragment_and_not_at_the_end(role):
    first = encode_frame(Opcode.TEXT, b"\xce\xba\xe1", mask=peer_mask(role), fin=False)
    second = encode_frame(0, b"\xce", mask=peer_mask(role), fin=False)
    assert violation_code(role, first, second) == 1007


@both_roles
def test_7_4_1_message_too_big_is_refused_by_its_header_alone(role):
    mask = peer_mask(role)
    limits = {"max_message_bytes": 1_009}
    assert Connection(role, **limits).receive(encode_frame(2, bytes(1_009), mask=mask))
    header_bytes = 8 if mask else 4
    header = encode_frame(2, bytes(1_010), mask=mask)[:header_bytes]
    assert violation_code(role, header, **limits) == 1009
    first = encode_frame(2, bytes(1_000), mask=mask, fin=False)
    assert Connection(role, **limits).receive(first + encode_frame(0, bytes(9), mask=mask))
    assert violation_code(role, first, encode_frame(0, bytes(10), mask=mask), **limits) == 1009


@both_roles
def test_7_4_1_the_size_limit_does_not_add_up_over_messages(role):
    connection = Connection(role, max_message_bytes=1_009)
    frame = encode_frame(2, bytes(1_009), mask=peer_mask(role))
    assert len(connection.receive(frame * 23)) == 23


@both_roles
def test_5_5_2_a_ping_is_answered_with_its_payload(role):
    connection = Connection(role)
    payloads = [b"", b"a", bytes(125)]
    mask = peer_mask(role)
    data = b"".join(encode_frame(Opcode.PING, payload, mask=mask) for payload in payloads)
    assert connection.receive(data) == [Ping(payload) for payload in payloads]
    assert not connection.is_idle
    assert sent_by(connection, role) == [(Opcode.PONG, payload) for payload in payloads]
    assert connection.is_idle


@both_roles
def test_5_5_3_an_unsolicited_pong_is_reported_and_not_answered(role):
    connection = Connection(role)
    assert connection.receive(encode_frame(Opcode.PONG, b"x", mask=peer_mask(role))) == [Pong(b"x")]
    assert connection.data_to_send() == b""


@both_roles
@pytest.mark.parametrize(
    ("payload", "event", "answer"),
    [
        (b"\x03\xe8", Close(1000, ""), b"\x03\xe8"),
        (b"\x0f\xa0bye", Close(4000, "bye"), b"\x0f\xa0"),
        (b"", Close(1005, ""), b""),
    ],
)
def test_5_5_1_a_close_is_answered_with_its_code(role, payload, event, answer):
    connection = Connection(role)
    close = encode_frame(Opcode.CLOSE, payload, mask=peer_mask(role))
    ping = encode_frame(Opcode.PING, b"", mask=peer_mask(role))
    assert connection.receive(close + ping) == [event]  # section 1.4: no data after a close
    assert sent_by(connection, role) == [(Opcode.CLOSE, answer)]
    assert connection.must_disconnect
    assert not connection.is_idle
    with pytest.raises(RuntimeError, match="closed"):
        connection.send(Opcode.TEXT, b"late")


@both_roles
def test_5_5_1_bad_close_payloads(role):
    for payload, code in ((b"\x03", 1002), (b"\x03\xed", 1002), (b"\x03\xe8\xff", 1007)):
        frame = encode_frame(Opcode.CLOSE, payload, mask=peer_mask(role))
        assert violation_code(role, frame) == code


@both_roles
def test_7_1_2_closing_from_our_side(role):
    connection = Connection(role)
    mask = peer_mask(role)
    connection.close(4001, "done")
    connection.close(4002, "twice")
    assert sent_by(connection, role) == [(Opcode.CLOSE, b"\x0f\xa1done")]
    assert connection.state is State.CLOSING
    assert not connection.must_disconnect
    with pytest.raises(RuntimeError, match="closing"):
        connection.send(Opcode.TEXT, b"late")
    # What was under way still arrives; a pong after our close would be a frame too many.
    late = encode_frame(Opcode.TEXT, b"late", mask=mask) + encode_frame(9, b"", mask=mask)
    assert connection.receive(late) == [TextMessage(b"late"), Ping(b"")]
    assert connection.receive(encode_close(4001, mask=mask)) == [Close(4001, "")]
    assert connection.data_to_send() == b""
    assert connection.must_disconnect


@both_roles
def test_7_1_2_a_violation_after_our_close_sends_no_second_close(role):
    connection = Connection(role)
    connection.close()
    connection.data_to_send()
    (event,) = connection.receive(b"\xff\xff")
    assert isinstance(event, Violation)
    assert connection.data_to_send() == b""
    assert connection.must_disconnect


@both_roles
def test_what_came_before_a_violation_is_kept(role):
    mask = peer_mask(role)
    connection = Connection(role)
    data = encode_frame(1, b"a", mask=mask) + encode_frame(9, b"b", mask=mask) + b"\xff\xff"
    kinds = [type(event) for event in connection.receive(data)]
    assert kinds == [TextMessage, Ping, Violation]
    assert [opcode for opcode, _ in sent_by(connection, role)] == [Opcode.PONG, Opcode.CLOSE]


def test_5_3_a_client_masks_every_frame_anew(monkeypatch):
    fresh = iter([b"aaaa", b"bbbb", b"cccc"])
    monkeypatch.setattr(os, "urandom", lambda length: next(fresh))
    connection = Connection(Role.CLIENT)
    connection.send(Opcode.TEXT, b"x")
    connection.receive(encode_frame(Opcode.PING, b"x"))
    connection.close(1000)
    wanted = [(1, b"x", b"aaaa"), (10, b"x", b"bbbb"), (8, b"\x03\xe8", b"cccc")]
    assert connection.data_to_send() == b"".join(
        encode_frame(opcode, payload, mask=mask) for opcode, payload, mask in wanted
    )


def test_an_idle_connection_holds_nothing_of_what_passed():
    connection = Connection(Role.SERVER)
    frame = encode_frame(Opcode.BINARY, bytes(70_000), mask=MASK)
    for cut in range(0, len(frame), 1_009):
        connection.receive(frame[cut : cut + 1_009])
    assert connection.is_idle
    assert len(connection._buffer) == len(connection._fragments) == 0


@pytest.mark.parametrize("end", [b"\xff\xff", encode_close(1000, mask=MASK)])
def test_a_closed_connection_holds_nothing_of_an_unfinished_message(end):
    connection = Connection(Role.SERVER)
    connection.receive(encode_frame(Opcode.TEXT, bytes(1_009), mask=MASK, fin=False))
    connection.receive(end + bytes(1_009))
    assert len(connection._buffer) == len(connection._fragments) == 0


# --- properties -------------------------------------------------------------------------------

messages = st.tuples(st.just(Opcode.TEXT), st.text(max_size=200).map(str.encode)) | st.tuples(
    st.just(Opcode.BINARY), st.binary(max_size=200) | st.sampled_from([bytes(1_009), bytes(70_000)])
)
controls = st.tuples(st.sampled_from([Opcode.PING, Opcode.PONG]), st.binary(max_size=125))


@st.composite
def conversations(draw: st.DrawFn) -> list[tuple[bool, int, bytes]]:
    """Valid frames (fin, opcode, payload): fragmented messages with control frames in between."""
    frames = []
    for opcode, payload in draw(st.lists(messages, max_size=5)):
        cuts = sorted(draw(st.lists(st.integers(0, len(payload)), max_size=3)))
        bounds = [0, *cuts, len(payload)]
        for index in range(len(bounds) - 1):
            frames += [(True, *control) for control in draw(st.lists(controls, max_size=1))]
            piece = payload[bounds[index] : bounds[index + 1]]
            frames.append((index == len(bounds) - 2, 0 if index else opcode, piece))
    if draw(st.booleans()):
        code = draw(st.sampled_from([1000, 1001, 1011, 3000, 4999]))
        close = code.to_bytes(2, "big") + draw(st.text(max_size=20)).encode()
        frames.append((True, Opcode.CLOSE, draw(st.sampled_from([b"", close]))))
    return frames


# Any frame at all, each whole: most break a rule.
wild_frames = st.tuples(
    st.sampled_from([0x80, 0x80, 0x80, 0x00, 0xC0, 0x90]),  # fin and reserved bits
    st.sampled_from([0, 1, 1, 2, 8, 9, 10]) | st.integers(0, 15),
    st.binary(max_size=8)
    | st.text(max_size=8).map(str.encode)
    | st.sampled_from([b"\x03\xe8", b"\x03\xed", b"\x0b\xb8", b"\x03", bytes(126), bytes(65_536)]),
    st.sampled_from([None, None, None, 2, 8]),  # bytes of the length, where not the shortest
    st.sampled_from([True] * 7 + [False]),  # masked as it must be
)


def wild_bytes(frame: tuple[int, int, bytes, int | None, bool], role: Role) -> bytes:
    bits, opcode, payload, length_bytes, is_masking_right = frame
    masked = is_masking_right is (role is Role.SERVER)
    data = encode_frame(0, payload, mask=MASK if masked else None)
    if length_bytes and len(payload) < 126:
        long_form = bytes([masked << 7 | (126 if length_bytes == 2 else 127)])
        data = data[:1] + long_form + len(payload).to_bytes(length_bytes, "big") + data[2:]
    return bytes([bits | opcode]) + data[1:]


def oracle_read(role: Role, data: bytes) -> list[tuple]:
    """wsproto's view of the bytes, fragments joined."""
    kind = ConnectionType.SERVER if role is Role.SERVER else ConnectionType.CLIENT
    oracle = OracleConnection(kind)
    oracle.receive_data(data)
    seen: list[tuple] = []
    parts: list = []
    for event in oracle.events():
        if isinstance(event, oracle_events.Message):
            parts.append(event.data)
            if event.message_finished:
                text = isinstance(event, oracle_events.TextMessage)
                seen.append((text, "".join(parts).encode() if text else b"".join(parts)))
                parts = []
        elif isinstance(event, oracle_events.CloseConnection):
            seen.append(("close", int(event.code)))
        else:
            seen.append((type(event).__name__, bytes(event.payload)))
    return seen


def our_read(connection: Connection, data: bytes) -> list[tuple]:
    seen: list[tuple] = []
    for event in connection.receive(data):
        match event:
            case TextMessage(payload):
                seen.append((True, payload))
            case BinaryMessage(payload):
                seen.append((False, payload))
            case Close(code, _) | Violation(code, _):
                seen.append(("close", code))
            case _:
                seen.append((type(event).__name__, event.payload))
    return seen


def pieces(data: bytes, sizes: list[int]) -> list[bytes]:
    """Cuts data into pieces of these sizes, over and over."""
    found, offset, index = [], 0, 0
    while offset < len(data):
        size = sizes[index % len(sizes)] if sizes else len(data)
        found.append(data[offset : offset + size])
        offset, index = offset + size, index + 1
    return found


split_sizes = st.lists(st.sampled_from([1, 2, 3, 5, 7, 126, 1_009, 70_000]), max_size=5).map(
    lambda sizes: [*sizes, 997] if sizes else sizes
)


@given(role=st.sampled_from(ROLES), frames=conversations())
def test_valid_streams_read_as_wsproto_reads_them(role, frames):
    data = b"".join(
        encode_frame(opcode, payload, mask=peer_mask(role), fin=fin)
        for fin, opcode, payload in frames
    )
    assert our_read(Connection(role), data) == oracle_read(role, data)


@given(role=st.sampled_from(ROLES), sent=st.lists(messages | controls, max_size=5))
def test_wsproto_reads_what_we_send(role, sent):
    connection = Connection(role)
    for opcode, payload in sent:
        connection.send(opcode, payload)
    connection.close(4000, "bye")
    other = Role.CLIENT if role is Role.SERVER else Role.SERVER
    names = {Opcode.TEXT: True, Opcode.BINARY: False, Opcode.PING: "Ping", Opcode.PONG: "Pong"}
    expected = [(names[opcode], payload) for opcode, payload in sent]
    assert oracle_read(other, connection.data_to_send()) == [*expected, ("close", 4000)]


@settings(max_examples=1_000)
@given(role=st.sampled_from(ROLES), frames=st.lists(wild_frames, min_size=1, max_size=4))
@example(role=Role.SERVER, frames=[(0x00, 1, b"\xc3", None, True), (0x80, 0, b"\xc3", None, True)])
def test_7_1_7_wild_frames_end_with_the_close_code_of_wsproto(role, frames):
    data = b"".join(wild_bytes(frame, role) for frame in frames)
    assert our_read(Connection(role), data) == oracle_read(role, data)


@given(role=st.sampled_from(ROLES), frames=st.lists(wild_frames, max_size=4), sizes=split_sizes)
def test_any_split_of_wild_streams_gives_the_same_events_and_answers(role, frames, sizes):
    data = b"".join(wild_bytes(frame, role) for frame in frames)
    whole, split = Connection(role), Connection(role)
    events = whole.receive(data)
    assert [event for piece in pieces(data, sizes) for event in split.receive(piece)] == events
    assert sent_by(whole, role) == sent_by(split, role)
    assert whole.is_idle is split.is_idle


@given(frames=conversations(), sizes=split_sizes)
def test_any_split_of_valid_streams_gives_the_same_events_even_when_idle_ones_are_dropped(
    frames, sizes
):
    data = b"".join(
        encode_frame(opcode, payload, mask=MASK, fin=fin) for fin, opcode, payload in frames
    )
    whole = Connection(Role.SERVER)
    events = whole.receive(data)
    connection, seen, answers = Connection(Role.SERVER), [], b""
    for piece in pieces(data, sizes):
        seen += connection.receive(piece)
        answers += connection.data_to_send()
        if connection.is_idle:
            connection = Connection(Role.SERVER)
    assert seen == events
    assert answers == whole.data_to_send()


@given(role=st.sampled_from(ROLES), data=st.binary(max_size=200))
def test_random_bytes_never_raise_and_violations_are_always_answered(role, data):
    connection = Connection(role)
    events = connection.receive(data)
    if connection.state is State.CLOSED:
        assert isinstance(events[-1], Close | Violation)
        assert sent_by(connection, role)[-1][0] == Opcode.CLOSE
    else:
        assert not any(isinstance(event, Close | Violation) for event in events)
