"""Shared memory where the file system keeps what was reserved, and where it does not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from probes.contract import live_file
from probes.contract.errors import RunDirError
from probes.contract.live import Header, Live
from probes.contract.live_file import LiveFile, keeps_reserved_room
from probes.contract.rundir import LIVE, RunDir


@pytest.fixture
def elsewhere(monkeypatch):
    monkeypatch.setattr(live_file, "keeps_reserved_room", lambda folder: False)


def stop_ns_of(path: Path) -> int:
    fd = os.open(path, os.O_RDONLY)
    try:
        live = Live(fd, writable=False)
        try:
            return live.header[Header.PHASE_STOP_NS]
        finally:
            live.close()
    finally:
        os.close(fd)


def test_file_systems_are_told_apart_by_what_they_do_with_reserved_blocks():
    assert keeps_reserved_room(Path("/dev/shm"))
    assert not keeps_reserved_room(Path("/proc"))
    assert not keeps_reserved_room(Path("/no/such/folder"))


def test_where_blocks_stay_the_file_itself_is_shared(tmp_path, monkeypatch):
    monkeypatch.setattr(live_file, "keeps_reserved_room", lambda folder: True)
    run = RunDir(tmp_path)
    shared = LiveFile(run, 2, 1009)
    live = Live(shared.fd)
    live.header[Header.PHASE_STOP_NS] = 23
    assert stop_ns_of(run.live_path) == 23
    assert run.live_path == tmp_path / LIVE
    live.close()
    shared.close()


def test_elsewhere_memory_is_shared_and_copied(tmp_path, elsewhere):
    run = RunDir(tmp_path)
    shared = LiveFile(run, 2, 1009)
    live = Live(shared.fd)
    assert (live.slot_count, live.capacity) == (2, 1009)
    live.header[Header.PHASE_STOP_NS] = 1
    assert stop_ns_of(tmp_path / LIVE) == 0
    assert stop_ns_of(run.live_path) == 1, "a reader in this process sees the memory itself"
    shared.keep_now_and_then()
    assert stop_ns_of(tmp_path / LIVE) == 1
    live.header[Header.PHASE_STOP_NS] = 2
    shared.keep_now_and_then()
    assert stop_ns_of(tmp_path / LIVE) == 1, "a second copy is not due yet"
    live.column("closed_ns")[1008] = 1009
    shared.close()
    assert stop_ns_of(tmp_path / LIVE) == 2
    with (tmp_path / LIVE).open("rb") as stream:
        kept = Live(stream.fileno(), writable=False)
        assert kept.column("closed_ns")[1008] == 1009
        kept.close()
    live.close()


def test_a_copy_without_room_harms_nobody(tmp_path, elsewhere):
    run = RunDir(tmp_path)
    shared = LiveFile(run, 1, 1)
    os.dup2(os.open("/dev/full", os.O_WRONLY), shared._copy_fd)
    shared.keep_now_and_then()
    shared.close()
    assert stop_ns_of(tmp_path / LIVE) == 0


def test_a_second_run_in_the_same_place_is_refused(tmp_path, elsewhere):
    LiveFile(RunDir(tmp_path), 1, 1).close()
    with pytest.raises(RunDirError, match="File exists"):
        LiveFile(RunDir(tmp_path), 1, 1)
