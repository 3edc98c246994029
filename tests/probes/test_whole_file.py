"""A file is written as a whole, and nobody's links are followed on the way."""

from __future__ import annotations

import os

import pandas as pd
import pytest

from harness import pipeline
from probes.errors import RunDirError
from probes.rundir import RunDir, write_atomically
from probes.whole_file import replace_file


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


class Derived:
    """What ``write_derived`` writes of a summary."""

    __dataclass_fields__ = pipeline.Summary.__dataclass_fields__

    def __getattr__(self, name):
        return pd.DataFrame({"a": [1]})


def test_the_tables_of_a_strangers_run_directory_overwrite_nothing(tmp_path, victim):
    run = tmp_path / "run"
    (run / "derived").mkdir(parents=True)
    names = [f"{name}.parquet" for name in Derived.__dataclass_fields__]
    for name in names:
        (run / "derived" / f".{name}").symlink_to(victim)
        (run / "derived" / name).symlink_to(victim)
    pipeline.write_derived(RunDir(run), Derived())
    assert victim.read_text() == "precious"
    assert not any((run / "derived" / name).is_symlink() for name in names)

    other = tmp_path / "other"
    other.mkdir()
    (other / "derived").symlink_to(tmp_path)
    with pytest.raises(RunDirError, match="cannot write"):
        pipeline.write_derived(RunDir(other), Derived())
