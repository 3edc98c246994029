"""What a process that was taken over can write to us: a pipe, a slot of shared memory, a head."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from harness.fleet.reports import ProcessEnd, Refusal
from harness.supervision import recording
from harness.supervision.fleet import _told
from harness.websocket import handshake
from probes.contract import live as live_memory
from probes.contract.live import Counter, Live
from probes.contract.rundir import create_run_dir

END = {"pid": 1, "slot": 0, "exited_ns": 5, "status": 0, "signal": 0}
REFUSAL = {"pid": 1, "at_ns": 5, "status": 503, "reason": "", "body": "busy"}


def line(told: object) -> bytes:
    return json.dumps(told).encode()


def test_what_ours_write_is_read():
    assert _told(line(END)) == ProcessEnd(**END)
    assert _told(line({"refusal": REFUSAL})) == Refusal(**REFUSAL)


@pytest.mark.parametrize(
    "hostile",
    [
        b"", b"x", b"[]", b"3", b"\xff", b"[" * 100_000, b'{"refusal": 3}',
        line(END | {"pid": "1"}), line(END | {"signal": 1.5}), line(END | {"pid": True}),
        line(END | {"exited_ns": 1 << 64}), line(END | {"more": 1}), line({"pid": 1}),
        line({"refusal": REFUSAL | {"body": "\x1b[2J"}}),
        line({"refusal": REFUSAL | {"body": "\ud800"}}),
        line({"refusal": REFUSAL | {"status": None}}),
    ],
)  # fmt: skip
def test_what_none_of_ours_writes_is_left_out(hostile):
    assert _told(hostile) is None


@pytest.mark.parametrize("word", [99, -1, (1 << 63) - 1])
def test_a_slot_with_a_role_that_there_is_not_ends_no_run(tmp_path, word):
    run = create_run_dir(tmp_path, "run")
    live = Live(live_memory.create(run.path / "live.bin", 1, 1))
    live.slot(0)[Counter.PID] = 4711
    live.slot(0)[Counter.ROLE] = word
    recording.write_processes(run, live, [], 0)
    assert run.read_table("processes").table.column("role").to_pylist() == ["other"]


def test_white_space_without_an_end_costs_no_more_than_its_length():
    """The time of the patterns before was its square: this would take days."""
    blanks = b" " * 4_000_000
    folded = b"A: b\r\n c" + blanks + b"\x01"
    with pytest.raises(ValueError, match="malformed"):
        handshake._parse_fields(folded)
    with pytest.raises(ValueError, match="malformed"):
        handshake._parse_fields(b"A:" + blanks + b"\x01")
    assert handshake._parse_fields(b"A: b\r\n c" + blanks + b"d") == {
        b"a": [b"b c" + blanks + b"d"]
    }


@pytest.mark.parametrize(
    ("block", "value"),
    [
        (b"A: b\r\n c", b"b c"),
        (b"A: b \t\r\n \t c", b"b c"),
        (b"A: b\r\n \r\n\tc", b"b  c"),
        (b"A:\r\n b", b"b"),
        (b"A: b \r\n ", b"b"),
    ],
)
def test_a_folded_value_is_one_as_before(block, value):
    assert handshake._parse_fields(block) == {b"a": [value]}


ROOT = Path(__file__).parents[3]
SCRIPTS = [ROOT / "Makefile", *sorted((ROOT / ".ci").iterdir())]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_no_script_that_root_runs_writes_to_a_name_that_others_can_guess(script):
    if script.is_file():
        assert not re.search(r">+\s*\"?(/var)?/tmp/[A-Za-z]", script.read_text())


def test_what_a_stranger_logged_is_shown_without_driving_the_terminal():
    """``cat`` would hand the escapes of a server's log to the terminal of root."""
    rooms = [ROOT / room for room in ("harness", "analysis", "probes")]
    for module in (each for room in rooms for each in room.rglob("*.py")):
        found = re.findall(r'"cat [^"]*(?:\.log|log_path)[^"]*"', module.read_text())
        assert all(each.startswith('"cat -v ') for each in found), (module, found)
