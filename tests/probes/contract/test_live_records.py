from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from probes.contract import live as live_module
from probes.contract import schema
from probes.contract.live import CloseKind, Counter, Live, Role, Stage
from probes.contract.live_records import read_connections, read_slots
from probes.contract.rundir import create_run_dir


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Live]:
    fd = live_module.create(tmp_path / "live.bin", slot_count=3, capacity=64)
    mapped = Live(fd)
    for index, (role, worker) in enumerate([(Role.SERVER, 4), (Role.CLIENT, 7)]):
        slot = mapped.slot(index)
        slot[Counter.ROLE], slot[Counter.WORKER], slot[Counter.PID] = role, worker, 100 + index
    slot[Counter.RECORD_BASE], slot[Counter.RECORD_COUNT] = 10, 23
    for i in range(10, 33):
        mapped.column("start_ns")[i] = 1009 + i
        mapped.column("source_address")[i] = 0x7F000001 + i % 2
        mapped.column("destination_port")[i] = 65535
        mapped.column("stage")[i] = Stage.OPEN
    mapped.column("stage")[40] = Stage.HANDSHAKE  # no slot claims it
    mapped.column("close_kind")[40] = 250  # of a later version
    mapped.column("errno")[40] = 104
    yield mapped
    mapped.close()
    os.close(fd)


def test_all_begun_records_become_rows_of_the_schema(live: Live) -> None:
    columns = read_connections(live)
    assert tuple(columns) == schema.TABLES["connections"].column_names
    assert {len(values) for values in columns.values()} == {24}
    assert columns["connection"].tolist() == [*range(10, 33), 40]
    assert columns["client"].tolist() == [7] * 23 + [-1]
    assert columns["start_ns"][:2].tolist() == [1019, 1020]
    assert columns["source_address"][:2].tolist() == ["127.0.0.1", "127.0.0.2"]
    assert set(columns["destination_port"][:23]) == {65535}
    assert columns["stage"].tolist() == ["open"] * 23 + ["handshake"]
    assert columns["close_kind"].tolist() == ["none"] * 23 + ["error"]
    assert columns["errno"][-1] == 104
    assert columns["source_address"][-1] == ""


def test_the_real_writer_takes_the_columns(live: Live, tmp_path: Path) -> None:
    run = create_run_dir(tmp_path / "runs", "x")
    writer = run.writer("connections", "supervisor")
    writer.write_columns(read_connections(live))
    writer.close()
    assert run.read_table("connections").table.num_rows == 24


def test_no_record_begun_gives_no_rows(tmp_path: Path) -> None:
    fd = live_module.create(tmp_path / "empty.bin", slot_count=1, capacity=8)
    mapped = Live(fd)
    assert {len(v) for v in read_connections(mapped).values()} == {0}
    assert read_slots(mapped) == []
    mapped.close()
    os.close(fd)


def test_names_cover_every_stage_and_close_kind(live: Live) -> None:
    for i, stage in enumerate(Stage):
        live.column("stage")[i] = stage
    for i, kind in enumerate(CloseKind):
        live.column("close_kind")[i] = kind
    columns = read_connections(live)
    by_index = dict(zip(columns["connection"].tolist(), columns["stage"].tolist(), strict=True))
    assert [by_index[int(s)] for s in Stage if s] == [s.name.lower() for s in Stage if s]


def test_slots_have_every_counter_by_name(live: Live) -> None:
    rows = read_slots(live)
    assert [(r["slot"], r["pid"], r["worker"]) for r in rows] == [(0, 100, 4), (1, 101, 7)]
    assert set(rows[0]) == {"slot"} | {c.name.lower() for c in Counter}
