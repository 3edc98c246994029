import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from probes.contract import schema
from probes.contract.errors import RunDirError, UsageError
from probes.contract.rundir import (
    MANIFEST,
    RunDir,
    arrow_schema,
    create_run_dir,
    open_run_dir,
    write_atomically,
)

EVENTS = [(number * 1_009, f"event-{number}", number, "x" * number) for number in range(23)]


def write_events(run: RunDir, batch_rows: int = 5) -> Path:
    """23 rows in batches of a few, as one closed stream."""
    writer = run.writer("events", "test")
    for number, row in enumerate(EVENTS, start=1):
        writer.append(*row)
        if number % batch_rows == 0:
            writer.flush()
    writer.close()
    assert writer.row_count == 23
    (path,) = run.table_dir("events").glob("*.arrows")
    return path


def rows_of(run: RunDir, table: str = "events") -> list[tuple]:
    return [tuple(row.values()) for row in run.read_table(table).table.to_pylist()]


def test_rows_come_back_as_written(run):
    path = write_events(run)
    assert path.name == f"test-{os.getpid()}.arrows"
    assert rows_of(run) == EVENTS
    assert run.read_table("events").cut_files == []


def test_a_stream_cut_at_any_byte_loses_only_a_suffix(run):
    path = write_events(run)
    whole = path.read_bytes()
    counts = set()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        read = run.read_table("events")
        rows = [tuple(row.values()) for row in read.table.to_pylist()]
        assert rows == EVENTS[: len(rows)]
        assert read.cut_files == [path]
        counts.add(len(rows))
    assert counts == {0, 5, 10, 15, 20, 23}


def test_a_writer_that_never_closed_is_read(run):
    writer = run.writer("events", "test")
    writer.append(*EVENTS[0])
    writer.flush()
    writer.append(*EVENTS[1])  # never flushed: lost with its writer
    read = run.read_table("events")
    assert read.table.num_rows == 1
    assert len(read.cut_files) == 1
    writer.close()


def test_streams_of_several_producers_are_one_table(run):
    for producer in ("a", "b", "c"):
        writer = run.writer("events", producer)
        writer.append(1, producer, 0, "")
        writer.close()
    assert [row[1] for row in rows_of(run)] == ["a", "b", "c"]


@pytest.mark.parametrize("name", schema.TABLES)
def test_an_absent_table_has_its_columns_and_no_rows(run, name: str):
    read = run.read_table(name)
    assert read.table.num_rows == 0
    assert read.table.schema.equals(arrow_schema(name))
    assert tuple(read.table.column_names) == schema.TABLES[name].column_names


def test_columns_are_written_from_arrays(run):
    writer = run.writer("slab_caches", "test")
    numbers = np.arange(1_009, dtype=np.int64)
    writer.write_columns(
        {
            "at_ns": numbers,
            "cache": ["TCP"] * 1_009,
            "active_objects_count": numbers,
            "object_size_bytes": numbers,
            "total_bytes": numbers * 2,
        }
    )
    writer.close()
    assert writer.row_count == 1_009
    assert rows_of(run, "slab_caches")[-1] == (1_008, "TCP", 1_008, 1_008, 2_016)


def test_a_row_of_the_wrong_length_is_refused(run):
    writer = run.writer("events", "test")
    writer.append(1, "too short")
    with pytest.raises(ValueError, match="zip"):
        writer.flush()
    writer.close()


def test_a_stream_with_other_columns_is_refused(run):
    path = write_events(run)
    other = run.table_dir("host_cpu")
    other.mkdir()
    path.rename(other / path.name)
    with pytest.raises(RunDirError, match="other columns"):
        run.read_table("host_cpu")


def without(table: str, name: str) -> schema.Table:
    """The table as it was before it got that column."""
    whole = schema.TABLES[table]
    return dataclasses.replace(whole, columns=tuple(c for c in whole.columns if c.name != name))


@pytest.mark.parametrize(
    ("name", "is_read"), [("run_queue_wait_ns_total", True), ("wait_channel", False)]
)
def test_a_column_that_came_later_is_not_known_in_older_recordings(
    run, monkeypatch, name: str, is_read: bool
):
    row = [f"text {c.name}" if c.type == schema.TEXT else 23
           for c in schema.TABLES["process_samples"].columns if c.name != name]  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setitem(schema.TABLES, "process_samples", without("process_samples", name))
        older = run.writer("process_samples", "older")
        older.append(*row)
        older.close()
    if not is_read:
        with pytest.raises(RunDirError, match="other columns"):
            run.read_table("process_samples")
        return
    newer = run.writer("process_samples", "newer")
    newer.append(*row, 1_009)
    newer.close()
    table = run.read_table("process_samples").table
    assert table.schema.equals(arrow_schema("process_samples"))
    assert sorted(table[name].to_pylist()) == [-1, 1_009]
    assert table["wait_channel"].to_pylist() == ["text wait_channel"] * 2


LIMITED = """
import json, resource, sys
from pathlib import Path
from probes.contract.rundir import RunDir
run = RunDir(Path(sys.argv[1]))
writer = run.writer("events", "limited")
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
for number in range(1_009):
    writer.append(number, "event", 0, "x" * 100)
    writer.flush()
writer.close()
print(json.dumps([writer.row_count, writer.lost_rows_count, writer.last_error]))
"""


def test_a_write_that_fails_is_counted_and_the_rest_is_readable(run):
    done = subprocess.run(
        [sys.executable, "-P", "-c", LIMITED, run.path, "20009"],
        capture_output=True,
        text=True,
        check=True,
    )
    written, lost, error = json.loads(done.stdout)
    assert done.stderr == ""
    assert written + lost == 1_009
    assert written > 0
    assert lost > 0
    assert "File too large" in error
    read = run.read_table("events")
    assert read.table["at_ns"].to_pylist() == list(range(written))
    assert len(read.cut_files) == 1


@pytest.mark.privileged
def test_a_full_disk_is_counted(tmp_path):
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", tmp_path], check=True)
    try:
        run = create_run_dir(tmp_path, "full")
        writer = run.writer("events", "test")
        for number in range(1_009):
            writer.append(number, "event", 0, "x" * 200)
            writer.flush()
        writer.close()
        assert writer.row_count + writer.lost_rows_count == 1_009
        assert writer.lost_rows_count > 0
        assert "No space left" in writer.last_error
        assert run.read_table("events").table.num_rows == writer.row_count
        with pytest.raises(RunDirError, match="No space left") as refusal:
            run.write_manifest({"filler": "x" * 200_000})
        assert "df -h" in refusal.value.fix
        assert list(run.path.glob(f".{MANIFEST}*")) == []
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_a_manifest_is_replaced_in_one_step(run):
    run.write_manifest({"status": "running"})
    first = (run.path / MANIFEST).stat().st_ino
    run.write_manifest({"status": "finished"})
    assert run.read_manifest() == {"status": "finished"}
    assert (run.path / MANIFEST).stat().st_ino != first
    assert [p.name for p in run.path.iterdir() if p.is_file()] == [MANIFEST]


def test_the_old_file_stays_when_the_new_one_cannot_be_written(tmp_path):
    path = tmp_path / "kept.txt"
    path.write_text("old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "\ud800")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["kept.txt"]


def test_a_run_of_another_schema_version_is_refused(run):
    run.write_manifest({"schema_version": schema.SCHEMA_VERSION + 1, "tool_version": "9.9"})
    with pytest.raises(RunDirError, match="schema version") as refusal:
        open_run_dir(run.path)
    assert "9.9" in refusal.value.fix


def test_a_run_of_this_schema_version_is_opened(run):
    run.write_manifest({"schema_version": schema.SCHEMA_VERSION})
    assert open_run_dir(run.path).run_id == run.path.name


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "not a run directory"), ("{", "not JSON"), ("[]", "no object")],
)
def test_a_broken_manifest_is_explained(run, text: str | None, message: str):
    if text is not None:
        (run.path / MANIFEST).write_text(text)
    with pytest.raises(RunDirError, match=message):
        open_run_dir(run.path)


def test_latest_points_to_the_newest(tmp_path):
    first = create_run_dir(tmp_path, "a")
    second = create_run_dir(tmp_path, "a")
    assert first.path != second.path
    assert (tmp_path / "latest").resolve() == second.path.resolve()
    assert {p.name for p in second.path.iterdir()} == {"raw", "logs", "derived"}


def test_a_directory_named_latest_is_left_alone(tmp_path):
    (tmp_path / "latest" / "mine").mkdir(parents=True)
    run = create_run_dir(tmp_path, "a")
    assert run.path.is_dir()
    assert (tmp_path / "latest" / "mine").is_dir()
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([run.path.name, "latest"])


@pytest.mark.parametrize("name", ["", "a/b", "..", "-x", "a b", "x" * 65, "a\n"])
def test_a_name_that_is_no_file_name_is_refused(tmp_path, name: str):
    with pytest.raises(UsageError, match="--name"):
        create_run_dir(tmp_path, name)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_explained(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirError, match="cannot make") as refusal:
        create_run_dir(tmp_path / "file", "a")
    assert "--output" in refusal.value.fix


def moments_of(run, name="host_pressure"):
    return [row["at_ns"] for row in run.read_table(name).table.to_pylist()]


def test_batches_are_merged_into_one_and_rows_stay_in_order(tmp_path):
    run = create_run_dir(tmp_path, "merged")
    writer = run.writer("host_pressure", "host_counters")
    at_ns = 0
    for _ in range(3):
        for _ in range(60):
            at_ns += 1
            writer.append(at_ns, "cpu", at_ns, 0)
            writer.flush()
        before = writer.size_bytes
        writer.merge()
        assert writer.size_bytes < before / 3
        assert moments_of(run) == list(range(1, at_ns + 1))  # also while it is written
    writer.append(at_ns + 1, "cpu", 7, 0)
    writer.close()
    assert moments_of(run) == list(range(1, at_ns + 2))
    assert run.read_table("host_pressure").cut_files == []
    assert writer.row_count == at_ns + 1
    paths = sorted(run.table_dir("host_pressure").iterdir())
    assert len(paths) == 4
    assert writer.size_bytes == sum(path.stat().st_size for path in paths)


def test_nothing_to_merge_makes_no_file(tmp_path):
    run = create_run_dir(tmp_path, "merged")
    writer = run.writer("host_pressure", "host_counters")
    writer.merge()
    writer.append(1, "cpu", 1, 0)
    writer.merge()
    assert len(list(run.table_dir("host_pressure").iterdir())) == 1
    writer.close()
    assert moments_of(run) == [1]


def test_a_merge_that_fails_loses_nothing(tmp_path):
    run = create_run_dir(tmp_path, "merged")
    writer = run.writer("host_pressure", "host_counters")
    in_the_way = writer._path.with_name(f".{writer._path.name}")
    in_the_way.mkdir()
    for at_ns in range(1, 4):
        writer.append(at_ns, "cpu", 1, 0)
        writer.flush()
    writer.merge()
    assert "exists" in writer.last_error
    writer.append(4, "cpu", 1, 0)
    writer.close()
    assert moments_of(run) == [1, 2, 3, 4]
    assert writer.lost_rows_count == 0
