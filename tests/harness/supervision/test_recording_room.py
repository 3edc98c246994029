"""What is said of the disk before a watch begins."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.supervision.recording_room import DAY_S, Room, room_at
from probes.contract.errors import HostError

GIB, MIB = 1 << 30, 1 << 20


def room(free_bytes: int, duration_s: float | None = None, processes: int = 3) -> Room:
    return Room(Path("/var/runs"), free_bytes, duration_s, processes, 4)


def test_a_watch_without_an_end_says_what_a_day_takes():
    said = room(100 * GIB).check()
    assert "at most 357 MiB" in said  # 256 that are saved up, and 101 a day
    assert "in the first day" in said
    assert "in each further one" in said
    assert "100 GiB are free" in said


def test_a_short_watch_with_room_says_nothing():
    assert room(100 * GIB, 60).check() == ""


def test_too_little_room_is_said_with_how_long_it_lasts():
    said = room(300 * MIB, 30 * DAY_S).check()
    assert "300 MiB are free at /var/runs" in said
    assert "hours at least" in said
    minutes = room(70 * MIB, DAY_S).check()
    assert "minutes at least" in minutes


def test_a_full_disk_is_refused():
    with pytest.raises(HostError, match="4 MiB are free") as caught:
        room(4 * MIB, DAY_S).check()
    assert "df -h /var/runs" in caught.value.fix
    assert room(63 * MIB, 10).check() == ""  # which takes a few


def test_the_nearest_folder_that_is_there_is_looked_at(tmp_path):
    found = room_at(tmp_path / "not" / "there", None, 3, 4)
    assert found.path == tmp_path
    assert found.free_bytes > 0
