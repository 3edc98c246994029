"""A file is written as a whole, and nobody's links are followed on the way."""

from __future__ import annotations

import os
import stat

import pytest

from harness.results.results import write_results
from probes.contract import whole_file
from probes.contract.errors import RunDirError
from probes.contract.rundir import RunDir, write_atomically
from probes.contract.whole_file import DeviceKeptError, replace_file


@pytest.fixture
def victim(tmp_path):
    made = tmp_path / "victim"
    made.write_text("precious")
    return made


def test_a_link_is_replaced_and_what_it_leads_to_stays(tmp_path, victim):
    place = tmp_path / "verdict.json"
    place.symlink_to(victim)
    write_atomically(place, "{}")
    assert not place.is_symlink()
    assert (place.read_text(), victim.read_text()) == ("{}", "precious")


@pytest.fixture
def node(tmp_path):
    """A device node of this test's own, as root alone can make one."""

    def make(name, major, minor):
        path = tmp_path / name
        os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(major, minor))
        return path

    return make


@pytest.mark.privileged
def test_a_device_is_not_replaced(node):
    null, zero = node("null", 1, 3), node("zero", 1, 5)
    replace_file(null, b"gone")
    assert null.is_char_device()
    with pytest.raises(DeviceKeptError, match="A device is not replaced"):
        replace_file(zero, b"1")
    assert zero.is_char_device()
    assert sorted(os.listdir(null.parent)) == ["null", "zero"]


def test_nothing_in_dev_is_replaced_links_to_a_stream_neither(monkeypatch, tmp_path):
    monkeypatch.setattr(whole_file, "_DEVICES", tmp_path)
    stream = tmp_path / "stdout"
    stream.symlink_to("/proc/self/fd/1")
    with pytest.raises(DeviceKeptError, match="A device is not replaced"):
        replace_file(stream, b"1")
    assert stream.is_symlink()
    assert whole_file.is_kept(stream)
    assert not whole_file.is_kept(tmp_path / "new")
    with pytest.raises(RunDirError) as caught:
        write_atomically(stream, "1")
    assert caught.value.fix == "name a file with --output FILE"


def test_the_permissions_are_those_of_an_ordinary_file(tmp_path):
    before = os.umask(0o027)
    try:
        replace_file(tmp_path / "new", b"1")
    finally:
        os.umask(before)
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o640


def test_when_it_cannot_be_written_the_old_one_stays_and_nothing_else(tmp_path, monkeypatch):
    place = tmp_path / "file"
    replace_file(place, b"old")

    def full(*_args, **_options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        replace_file(place, b"new")
    assert place.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_no_folder_below_a_run_directory_may_be_a_link(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    run = tmp_path / "run"
    run.mkdir()
    (run / "derived").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(NotADirectoryError):
        replace_file(run / "derived" / "x", b"1", inside=run)
    assert os.listdir(tmp_path / "elsewhere") == []


def test_the_tables_of_a_strangers_run_directory_overwrite_nothing(tmp_path, victim):
    run = tmp_path / "run"
    (run / "derived").mkdir(parents=True)
    names = ["failures.parquet", "ladder.parquet"]
    for name in names:
        (run / "derived" / f".{name}").symlink_to(victim)
        (run / "derived" / name).symlink_to(victim)
    results = [(f"derived/{name}", b"PAR1") for name in names]
    write_results(RunDir(run), results)
    assert victim.read_text() == "precious"
    assert not any((run / "derived" / name).is_symlink() for name in names)

    other = tmp_path / "other"
    other.mkdir()
    (other / "derived").symlink_to(tmp_path)
    with pytest.raises(RunDirError, match="cannot write"):
        write_results(RunDir(other), results)
