"""Built run directories with known answers, written through the real writer."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from analysis.run_frames import RunFrames, load
from probes import live as live_module
from probes import schema
from probes.live import CloseKind, Counter, Live, Role, Stage
from probes.rundir import RunDir, create_run_dir, open_run_dir

S = 1_000_000_000
ORIGIN_NS = 50 * S  # the ramp begins here in every built run


def default_row(table: str) -> dict[str, Any]:
    blank = {schema.I64: 0, schema.F64: 0.0, schema.TEXT: "", schema.BOOL: False}
    return {c.name: blank[c.type] for c in schema.TABLES[table].columns}


class RunBuilder:
    """Collects rows and writes them; times in seconds since the ramp began."""

    def __init__(self, parent: Path) -> None:
        self.run: RunDir = create_run_dir(parent, "built")
        self.rows: dict[str, list[dict[str, Any]]] = {}
        self.connections: dict[str, list[Any]] = {}
        self.manifest: dict[str, Any] = {
            "schema_version": schema.SCHEMA_VERSION,
            "tool_version": "0.1.0",
            "run_id": self.run.run_id,
            "name": "built",
            "argv": ["profile-run"],
            "status": "finished",
            "target_connections": 0,
            "settings": {"accept": "reuseport", "at_fd_limit": "pause", "keepalive_s": None},
            "plan": {},
            "host": {"cpu_count": 2, "memory_total_bytes": 24 << 30, "sysctls": {}},
            "stages": [],
        }

    @staticmethod
    def ns(at_s: float) -> int:
        return ORIGIN_NS + round(at_s * S)

    def add(self, table: str, **values: Any) -> None:
        row = default_row(table)
        for key, value in values.items():
            in_ns = key[:-2] + "_ns"
            if key not in row and in_ns in row:
                row[in_ns] = self.ns(value)
            else:
                assert key in row, (table, key)
                row[key] = value
        self.rows.setdefault(table, []).append(row)

    def stages(self, ramp_s: float, hold_s: float, stop_s: float = 0.5) -> None:
        moments = [("setup", -1.0, 0.0), ("ramp", 0.0, ramp_s), ("hold", ramp_s, ramp_s + hold_s)]
        moments.append(("stop", ramp_s + hold_s, ramp_s + hold_s + stop_s))
        self.manifest["stages"] = [
            {"stage": name, "start_ns": self.ns(a), "end_ns": self.ns(b)} for name, a, b in moments
        ]
        self.add("events", at_s=0.0, event="phase_ramp")
        self.add("events", at_s=ramp_s, event="phase_hold")
        self.add("events", at_s=ramp_s + hold_s, event="phase_stop")

    def write(self) -> RunDir:
        for table, rows in self.rows.items():
            writer = self.run.writer(table, "built")
            names = schema.TABLES[table].column_names
            writer.write_columns({n: [r[n] for r in rows] for n in names})
            writer.close()
        if self.connections:
            writer = self.run.writer("connections", "built-bulk")
            writer.write_columns(self.connections)
            writer.close()
        self.run.write_manifest(self.manifest)
        return open_run_dir(self.run.path)

    def frames(self) -> RunFrames:
        return load(self.write())


@pytest.fixture
def build(tmp_path: Path) -> RunBuilder:
    return RunBuilder(tmp_path)


@pytest.fixture
def second() -> int:
    return S


@pytest.fixture
def origin_ns() -> int:
    return ORIGIN_NS


@pytest.fixture
def make_live(tmp_path: Path) -> Iterator[Callable[..., Live]]:
    """Makes live.bin with 2 clients of 23 connections each and 1 server, in a given folder."""
    opened: list[tuple[int, Live]] = []

    def make(folder: Path | None = None) -> Live:
        path = (folder or tmp_path) / "live.bin"
        fd = live_module.create(path, slot_count=4, capacity=64)
        live = Live(fd)
        opened.append((fd, live))
        for index, (role, worker) in enumerate(
            [(Role.SERVER, 0), (Role.CLIENT, 0), (Role.CLIENT, 1)]
        ):
            slot = live.slot(index)
            slot[Counter.ROLE], slot[Counter.WORKER] = role, worker
            slot[Counter.PID] = 1000 + index
            slot[Counter.STARTED_NS] = ORIGIN_NS - S
            slot[Counter.NOFILE_SOFT_COUNT] = 1009
            slot[Counter.OWN_FDS_COUNT] = 16
            if role == Role.CLIENT:
                slot[Counter.RECORD_BASE], slot[Counter.RECORD_COUNT] = 32 * worker, 23
        for client in range(2):
            for j in range(23):
                i = 32 * client + j
                live.column("start_ns")[i] = ORIGIN_NS + i
                live.column("connected_ns")[i] = ORIGIN_NS + i + 1000
                live.column("established_ns")[i] = ORIGIN_NS + i + 2000
                live.column("source_address")[i] = 0x7F000001 + client
                live.column("destination_port")[i] = 9000
                live.column("stage")[i] = Stage.OPEN
        last = 32 + 22
        live.column("established_ns")[last] = 0
        live.column("closed_ns")[last] = ORIGIN_NS + 5000
        live.column("errno")[last] = 104
        live.column("stage")[last] = Stage.HANDSHAKE
        live.column("close_kind")[last] = CloseKind.RST
        return live

    yield make
    for fd, live in opened:
        live.close()
        os.close(fd)
