"""A stranger's Arrow stream: offsets that lead out of it, bodies that unpack to gigabytes."""

from __future__ import annotations

from contextlib import suppress

import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from probes.contract import arrow_stream
from probes.contract.errors import RunDirError
from probes.contract.rundir import RunDir
from probes.contract.table_writer import arrow_schema

TABLE = "events"


def stream(path, table, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        pa.OSFile(str(path), "wb") as sink,
        pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer,
    ):
        writer.write_table(table)


def rows(count, detail="x"):
    schema = arrow_schema(TABLE)
    values = {
        field.name: [detail if pa.types.is_string(field.type) else 1] * count for field in schema
    }
    return pa.table(values, schema=schema)


@pytest.fixture
def run(tmp_path):
    return RunDir(tmp_path)


@pytest.fixture
def place(run):
    return run.table_dir(TABLE) / "a-1.arrows"


def test_what_was_written_is_read(run, place):
    stream(place, rows(3))
    read = run.read_table(TABLE)
    assert (read.table.num_rows, read.cut_files) == (3, [])


@pytest.mark.parametrize("codec", ["zstd", "lz4"])
def test_a_compressed_body_is_not_unpacked(run, place, codec):
    table = rows(200_000)
    stream(place, table, compression=codec)
    assert place.stat().st_size < table.nbytes / 3
    before = pa.total_allocated_bytes()
    read = run.read_table(TABLE)
    assert (read.table.num_rows, read.cut_files) == (0, [place])
    assert pa.total_allocated_bytes() - before < 1_000_000


def test_an_offset_that_leads_out_of_the_buffer_is_not_followed(run, place):
    stream(place, rows(64, "s" * 16))
    whole = place.read_bytes()
    # the offsets of a string column: 0, 16, 32, …
    offsets = b"".join((16 * n).to_bytes(4, "little") for n in range(65))
    at = whole.index(offsets)
    place.write_bytes(whole[: at + 4] + (1 << 30).to_bytes(4, "little") + whole[at + 8 :])
    read = run.read_table(TABLE)
    assert (read.table.num_rows, read.cut_files) == (0, [place])


def test_compression_is_seen_in_the_message(tmp_path):
    for options, expected in (({}, False), ({"compression": "zstd"}, True)):
        path = tmp_path / f"{expected}.arrows"
        stream(path, rows(100), **options)
        with pa.OSFile(str(path)) as source:
            messages = pa.ipc.MessageReader.open_stream(source)
            messages.read_next_message()
            metadata = messages.read_next_message().metadata.to_pybytes()
        assert arrow_stream.is_compressed(metadata) is expected


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_none(data):
    with suppress(ValueError):
        arrow_stream.is_compressed(data)


@given(st.integers(0, 10_000), st.integers(0, 255))
@example(40, 4)  # another byte order
def test_a_changed_byte_is_no_crash(tmp_path_factory, at, value):
    run = RunDir(tmp_path_factory.mktemp("run"))
    place = run.table_dir(TABLE) / "a-1.arrows"
    stream(place, rows(20))
    whole = bytearray(place.read_bytes())
    whole[at % len(whole)] = value
    place.write_bytes(whole)
    with suppress(RunDirError):
        run.read_table(TABLE)
