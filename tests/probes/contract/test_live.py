import os
import signal
import subprocess

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from probes.contract import live as live_memory
from probes.contract.errors import RunDirError
from probes.contract.live import (
    HEADER_BYTES,
    LAG_BUCKETS,
    RECORD_COLUMNS,
    SLOT_BYTES,
    Counter,
    Header,
    Live,
    Phase,
    Role,
)

NUMPY_TYPES = {"q": "<i8", "I": "<u4", "H": "<u2", "B": "u1"}


def column_offsets(slots: int, capacity: int) -> dict[str, int]:
    """Where the columns lie, worked out from the layout in the module's docstring."""
    offset, found = HEADER_BYTES + slots * SLOT_BYTES, {}
    for name, _, size in RECORD_COLUMNS:
        found[name] = offset
        offset += -(-size * capacity // 64) * 64
    return found


def test_counters_lie_where_numpy_expects_them(new_live):
    live, fd = new_live(3, 5)
    for index in range(3):
        for counter in Counter:
            live.slot(index)[counter] = index * 1_000 + counter
        live.lag_histogram(index)[LAG_BUCKETS - 1] = -index
    raw = np.frombuffer(os.pread(fd, os.fstat(fd).st_size, 0), dtype=np.uint8)
    for index in range(3):
        slot = raw[HEADER_BYTES + index * SLOT_BYTES :][:SLOT_BYTES].view("<i8")
        assert all(slot[counter] == index * 1_000 + counter for counter in Counter)
        assert slot[live_memory.COUNTER_WORDS + LAG_BUCKETS - 1] == -index
    header = raw[:HEADER_BYTES].view("<i8")
    assert (header[Header.SLOT_COUNT], header[Header.CAPACITY]) == (3, 5)
    assert raw[:8].tobytes() == b"CNNLIVE1"


@pytest.mark.parametrize("taken_count", [0, 2, 3])
def test_the_slots_of_a_followed_server_end_with_the_first_free_one(new_live, taken_count: int):
    live, _ = new_live(3, 1)
    for index in range(taken_count):
        live.slot(index)[Counter.PID] = 100 + index
    assert [slot[Counter.PID] for slot in live.followed_slots()] == [100, 101, 102][:taken_count]


@pytest.mark.parametrize("capacity", [1, 7, 64, 1_009])
def test_records_lie_where_numpy_expects_them(new_live, capacity: int):
    live, fd = new_live(2, capacity)
    for number, (name, _, size) in enumerate(RECORD_COLUMNS):
        view = live.column(name)
        assert len(view) == capacity
        for row in range(capacity):
            view[row] = (row * 31 + number) % (1 << min(8 * size, 63))
    raw = os.pread(fd, os.fstat(fd).st_size, 0)
    for number, (name, code, size) in enumerate(RECORD_COLUMNS):
        offset = column_offsets(2, capacity)[name]
        found = np.frombuffer(raw, NUMPY_TYPES[code], capacity, offset)
        wanted = [(row * 31 + number) % (1 << min(8 * size, 63)) for row in range(capacity)]
        assert found.tolist() == wanted


@given(st.integers(0, 200), st.integers(0, 200_000))
def test_every_part_is_aligned_and_fits(slots: int, capacity: int):
    offsets = column_offsets(slots, capacity)
    for name, _, size in RECORD_COLUMNS:
        assert offsets[name] % size == 0
    last, _, size = RECORD_COLUMNS[-1]
    assert offsets[last] + size * capacity <= live_memory.file_bytes(slots, capacity)


def test_an_unknown_column_is_no_column(new_live):
    live, _ = new_live(1, 1)
    with pytest.raises(KeyError):
        live.column("nonsense")


WRITER = """
from probes.contract.live import Counter, Live
live = Live(FD)
slot = live.slot(1)
for count in range(1, 24):
    slot[Counter.ESTABLISHED_TOTAL] = count
slot[Counter.PID] = os.getpid()
ready()
time.sleep(60)
"""


def test_two_processes_share_it_and_sigkill_keeps_the_counts(new_live, python_child):
    live, fd = new_live(2, 1)
    live.slot(0)[Counter.ESTABLISHED_TOTAL] = 7
    child, _ = python_child(WRITER.replace("FD", str(fd)), pass_fds=(fd,))
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert live.slot(1)[Counter.ESTABLISHED_TOTAL] == 23
    assert live.slot(1)[Counter.PID] == child.pid
    assert live.slot(0)[Counter.ESTABLISHED_TOTAL] == 7


def test_the_phase_is_seen_by_a_reader(new_live):
    live, fd = new_live(1)
    reader = Live(fd, writable=False)
    assert reader.phase == Phase.START
    live.header[Header.PHASE] = Phase.HOLD
    assert reader.phase == Phase.HOLD
    reader.close()


def test_a_reader_cannot_write(new_live):
    _, fd = new_live(1)
    reader = Live(fd, writable=False)
    with pytest.raises(TypeError):
        reader.slot(0)[Counter.ROLE] = Role.SERVER
    reader.close()


def test_all_blocks_are_reserved(new_live):
    _, fd = new_live(4, 10_000)
    status = os.fstat(fd)
    assert status.st_blocks * 512 >= status.st_size == live_memory.file_bytes(4, 10_000)


@pytest.mark.parametrize("size", [0, 8, HEADER_BYTES - 1, HEADER_BYTES, HEADER_BYTES + SLOT_BYTES])
def test_a_cut_file_is_refused(new_live, size: int):
    _, fd = new_live(3, 10)
    os.ftruncate(fd, size)
    with pytest.raises(RunDirError, match=r"bytes"):
        Live(fd)


@pytest.mark.parametrize("word", [Header.MAGIC, Header.VERSION])
def test_another_layout_is_refused(new_live, word: Header):
    live, fd = new_live(1)
    live.header[word] += 1
    with pytest.raises(RunDirError, match="layout") as refusal:
        Live(fd)
    assert "manifest" in refusal.value.fix


def test_an_existing_file_is_not_overwritten(tmp_path):
    path = tmp_path / "live.bin"
    path.write_bytes(b"precious")
    with pytest.raises(RunDirError, match="exists"):
        live_memory.create(path, 1, 1)
    assert path.read_bytes() == b"precious"


@pytest.mark.privileged
def test_a_full_disk_shows_when_the_file_is_made(tmp_path):
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", tmp_path], check=True)
    try:
        with pytest.raises(RunDirError, match="No space left") as refusal:
            live_memory.create(tmp_path / "live.bin", 14, 120_000)
        assert "df -h" in refusal.value.fix
    finally:
        subprocess.run(["umount", tmp_path], check=True)
