"""Single frames: RFC 6455 sections 5.2, 5.3, 5.5 and 7.4."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wsproto.frame_protocol import FrameDecoder, FrameProtocol

from harness.websocket.frames import (
    SERVER_CLOSE_GOING_AWAY,
    SERVER_CLOSE_NORMAL,
    SERVER_PING,
    SERVER_PONG,
    CloseCode,
    FrameError,
    Opcode,
    apply_mask,
    encode_close,
    encode_frame,
    is_valid_close_code,
    parse_close_payload,
    parse_header,
    parse_small_frame,
)

MASK = b"\x37\xfa\x21\x3d"
masks = st.none() | st.binary(min_size=4, max_size=4)
# Every length form, both sides of each border, and both ways of masking.
LENGTHS = [0, 1, 2, 3, 4, 5, 124, 125, 126, 127, 799, 800, 801, 1_009, 65_535, 65_536, 70_000]


def code_of(function, *args, **kwargs):
    with pytest.raises(FrameError) as caught:
        function(*args, **kwargs)
    return caught.value.code


@pytest.mark.parametrize(
    ("frame", "wire"),
    [
        (encode_frame(Opcode.TEXT, b"Hello"), "810548656c6c6f"),
        (encode_frame(Opcode.TEXT, b"Hello", mask=MASK), "818537fa213d7f9f4d5158"),
        (encode_frame(Opcode.TEXT, b"Hel", fin=False), "010348656c"),
        (encode_frame(Opcode.CONTINUATION, b"lo"), "80026c6f"),
        (encode_frame(Opcode.PING, b"Hello"), "890548656c6c6f"),
        (encode_frame(Opcode.PONG, b"Hello", mask=MASK), "8a8537fa213d7f9f4d5158"),
        (encode_frame(Opcode.BINARY, bytes(256))[:4], "827e0100"),
        (encode_frame(Opcode.BINARY, bytes(65_536))[:10], "827f0000000000010000"),
    ],
)
def test_5_7_examples_of_the_rfc(frame, wire):
    assert frame == bytes.fromhex(wire)


def test_prepared_frames_equal_encoded_ones():
    assert encode_frame(Opcode.PING, b"") == SERVER_PING
    assert encode_frame(Opcode.PONG, b"") == SERVER_PONG
    assert encode_close(CloseCode.NORMAL) == SERVER_CLOSE_NORMAL
    assert encode_close(CloseCode.GOING_AWAY) == SERVER_CLOSE_GOING_AWAY


@pytest.mark.parametrize("length", LENGTHS)
def test_5_3_masking_xors_every_byte_with_its_mask_byte(length):
    payload = bytes(index * 31 % 256 for index in range(length))
    expected = bytes(byte ^ MASK[index % 4] for index, byte in enumerate(payload))
    assert apply_mask(payload, MASK) == expected
    assert apply_mask(bytearray(expected), MASK) == payload


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("mask", [None, MASK])
def test_5_2_length_forms_round_trip_and_are_shortest(length, mask):
    payload = bytes(length)
    frame = encode_frame(Opcode.BINARY, payload, mask=mask)
    extended = 0 if length < 126 else 2 if length < 65_536 else 8
    header = parse_header(b"xx" + frame, 2, masked=mask is not None)
    assert header == (True, Opcode.BINARY, 4 + extended + len(mask or b""), length, mask)
    assert len(frame) + 2 == header.payload_offset + length


@given(
    opcode=st.sampled_from([Opcode.TEXT, Opcode.BINARY]),
    length=st.sampled_from(LENGTHS),
    mask=masks,
    fin=st.booleans(),
)
def test_5_2_wsproto_reads_our_frames(opcode, length, mask, fin):
    payload = bytes(index % 251 for index in range(length))
    decoder = FrameDecoder(client=mask is None)
    decoder.receive_bytes(encode_frame(opcode, payload, mask=mask, fin=fin))
    frame = decoder.process_buffer()
    assert (int(frame.opcode), frame.payload) == (opcode, payload)
    assert (frame.frame_finished, frame.message_finished) == (True, fin)
    assert len(decoder.buffer) == 0


@given(length=st.sampled_from(LENGTHS), client=st.booleans(), fin=st.booleans())
def test_5_2_we_read_frames_of_wsproto(length, client, fin):
    payload = bytes(index % 251 for index in range(length))
    frame = bytes(FrameProtocol(client=client, extensions=[]).send_data(payload, fin))
    header = parse_header(frame, 0, masked=client)
    assert (header.fin, header.opcode, header.payload_bytes) == (fin, Opcode.BINARY, length)
    body = frame[header.payload_offset :]
    assert (apply_mask(body, header.mask) if header.mask else body) == payload


@given(length=st.sampled_from(LENGTHS), mask=masks)
def test_5_2_every_cut_inside_a_header_waits(length, mask):
    frame = encode_frame(Opcode.BINARY, bytes(length), mask=mask)
    masked = mask is not None
    header_bytes = parse_header(frame, 0, masked=masked).payload_offset
    assert all(parse_header(frame[:cut], 0, masked=masked) is None for cut in range(header_bytes))


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("bit", [0x40, 0x20, 0x10])
def test_5_2_reserved_bits_are_refused(bit, masked):
    assert code_of(parse_header, bytes([0x81 | bit, masked << 7]), 0, masked=masked) == 1002


@pytest.mark.parametrize("opcode", [3, 4, 5, 6, 7, 11, 12, 13, 14, 15])
def test_5_2_reserved_opcodes_are_refused(opcode):
    assert code_of(parse_header, bytes([0x80 | opcode, 0x80]), 0, masked=True) == 1002


def test_5_1_a_client_must_mask_and_a_server_must_not():
    assert code_of(parse_header, b"\x81\x00", 0, masked=True) == 1002
    assert code_of(parse_header, b"\x81\x80", 0, masked=False) == 1002


@pytest.mark.parametrize(
    "wire", ["827e007d", "827f000000000000ffff", "827f8000000000000000", "827fffffffffffffffff"]
)
def test_5_2_lengths_not_in_shortest_form_or_beyond_63_bits_are_refused(wire):
    assert code_of(parse_header, bytes.fromhex(wire), 0, masked=False) == 1002


@pytest.mark.parametrize("opcode", [Opcode.CLOSE, Opcode.PING, Opcode.PONG])
def test_5_5_control_frames_are_short_and_whole(opcode):
    assert code_of(parse_header, bytes([opcode, 0x80]), 0, masked=True) == 1002
    assert code_of(parse_header, bytes([0x80 | opcode, 0xFE]), 0, masked=True) == 1002
    assert len(encode_frame(opcode, bytes(125))) == 127
    with pytest.raises(ValueError, match="at most 125 bytes"):
        encode_frame(opcode, bytes(126))
    with pytest.raises(ValueError, match="never fragmented"):
        encode_frame(opcode, b"", fin=False)


@pytest.mark.parametrize("mask", [b"", b"abc", b"abcde"])
def test_5_3_a_mask_is_four_bytes(mask):
    with pytest.raises(ValueError, match="four bytes"):
        encode_frame(Opcode.TEXT, b"", mask=mask)


@pytest.mark.parametrize("code", [0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000])
def test_7_4_codes_that_must_not_travel(code):
    assert not is_valid_close_code(code)
    assert code_of(parse_close_payload, code.to_bytes(2, "big")) == 1002
    with pytest.raises(ValueError, match="must not be sent"):
        encode_close(code)


@pytest.mark.parametrize(
    "code", [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1014, 3000, 3999, 4999]
)
def test_7_4_codes_that_may_travel(code):
    assert parse_close_payload(encode_close(code, "gr\u00fcn")[2:]) == (code, "gr\u00fcn")


def test_5_5_1_close_payloads():
    assert encode_close() == b"\x88\x00"
    assert parse_close_payload(b"") == (1005, "")
    assert code_of(parse_close_payload, b"\x03") == 1002
    assert code_of(parse_close_payload, b"\x03\xe8\xff") == 1007
    with pytest.raises(ValueError, match="needs a code"):
        encode_close(None, "why")


@given(st.text(max_size=200))
def test_5_5_1_long_reasons_are_cut_between_characters(reason):
    code, kept = parse_close_payload(encode_close(1000, reason)[2:])
    assert code == 1000
    assert reason.startswith(kept)
    assert kept == reason or 120 <= len(kept.encode()) <= 123


@given(
    opcode=st.sampled_from([Opcode.TEXT, Opcode.BINARY, Opcode.PING, Opcode.PONG]),
    payload=st.binary(max_size=125),
    mask=masks,
    before=st.binary(max_size=3),
    after=st.binary(max_size=3),
)
def test_small_frame_path_reads_whole_everyday_frames(opcode, payload, mask, before, after):
    frame = encode_frame(opcode, payload, mask=mask)
    data = before + frame + after
    result = parse_small_frame(data, len(before), masked=mask is not None)
    if opcode == Opcode.TEXT and not payload.isascii():
        assert result is None
    else:
        assert result == (opcode, payload, len(before) + len(frame))
    for cut in range(len(frame)):
        cut_off = data[: len(before) + cut]
        assert parse_small_frame(cut_off, len(before), masked=mask is not None) is None


@given(data=st.binary(max_size=40), masked=st.booleans())
def test_small_frame_path_takes_nothing_that_the_full_parser_refuses(data, masked):
    result = parse_small_frame(data, masked=masked)
    if result is not None:
        header = parse_header(data, 0, masked=masked)
        assert header.fin
        assert header.opcode == result[0]
        assert header.payload_offset + header.payload_bytes == result[2]


@pytest.mark.parametrize("first", [0x01, 0x02, 0x80, 0x88, 0x83, 0xC1, 0x09, 0x8B])
def test_small_frame_path_leaves_the_rest_to_the_connection(first):
    assert parse_small_frame(bytes([first, 0x82]) + MASK + b"ab", masked=True) is None
    assert parse_small_frame(bytes([first, 2]) + b"ab", masked=False) is None
