"""The text of /proc/PID/stat, whatever a process calls itself."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probes.proc import stat_text

FIELDS = b" S 1 2 2 0 -1 4194560 1 2 3 4 50 60 7 8 20 0 1 0 99 1000 321 0"


@given(name=st.binary(max_size=15))
def test_a_name_moves_no_field(name):
    stat = b"812 (" + name + b")" + FIELDS
    assert stat_text.state_of(stat) == "S"
    assert stat_text.cpu_ticks(stat) == 110
    fields = stat_text.fields_of(stat)
    assert fields[stat_text.PARENT] == b"1"
    assert fields[stat_text.START_TICKS] == b"99"
    assert fields[stat_text.RESIDENT_PAGES] == b"321"
    assert stat_text.name_of(stat) == name.decode("utf-8", "replace")


@pytest.mark.parametrize("text", [b"", b"812", b"812 (x", b"812 (x)"])
def test_a_text_that_is_cut_is_no_process(text):
    assert stat_text.state_of(text) == ""
    assert not stat_text.is_alive(text)
    with pytest.raises(ValueError, match="not the text"):
        stat_text.cpu_ticks(text)


def test_the_fields_are_those_of_the_kernel():
    stat = Path("/proc/self/stat").read_bytes()
    assert int(stat_text.fields_of(stat)[stat_text.PARENT]) == os.getppid()
    assert stat_text.is_alive(stat)
    assert not stat_text.is_alive(stat.replace(b") R ", b") Z ", 1).replace(b") S ", b") Z ", 1))
