"""A part of what ``bench.fuzz_protocol`` reads in full, and that it would notice a difference."""

from __future__ import annotations

import random

from bench import fuzz_protocol
from harness.websocket.frames import FrameError
from harness.websocket.protocol import Connection, Role


def test_frames_and_handshakes_are_read_as_others_read_them():
    frames, differing = fuzz_protocol.fuzz_frames(3_000, seed=7)
    assert differing == []
    assert min(frames.values()) >= 1_500
    handshakes, differing, _, _ = fuzz_protocol.fuzz_handshakes(3_000, seed=7)
    assert differing == []
    assert set(handshakes.values()) == {1_500}


def test_a_number_is_read_again_as_it_was():
    one, again = (
        fuzz_protocol.wild_stream(next(fuzz_protocol.draws(3, 41))[1], Role.CLIENT)
        for _ in range(2)
    )
    assert one == again
    assert [number for number, _ in fuzz_protocol.draws(3, 41)] == [41]


def test_a_difference_in_frames_is_noticed(monkeypatch):
    real = Connection._check_data_frame

    def lenient(self, opcode, length):
        try:
            real(self, opcode, length)
        except FrameError:
            self._message_opcode = 0

    monkeypatch.setattr(Connection, "_check_data_frame", lenient)
    _, differing = fuzz_protocol.fuzz_frames(400, seed=7)
    assert differing


def test_a_difference_in_handshakes_is_noticed(monkeypatch):
    monkeypatch.setattr(fuzz_protocol, "check_response", lambda head, _: len(head))
    _, differing, _, _ = fuzz_protocol.fuzz_handshakes(400, seed=7)
    assert differing
    assert {said.partition(": ")[2].partition(",")[0] for said in differing} == {"accepted"}


def test_most_of_what_is_drawn_breaks_a_rule():
    draw = random.Random(5)
    broken = 0
    for _ in range(300):
        stream, _ = fuzz_protocol.wild_stream(draw, Role.SERVER)
        broken += ("close", 1002) in fuzz_protocol.our_frames(Role.SERVER, [stream])
    assert 60 < broken < 290
