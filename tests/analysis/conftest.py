"""Built run directories with known answers, written through the real writer."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from analysis.frames.run_frames import RunFrames, load
from probes.contract import live as live_module
from probes.contract import schema
from probes.contract.live import CloseKind, Counter, Live, Role, Stage
from probes.contract.rundir import RunDir, create_run_dir, open_run_dir

S = 1_000_000_000
ORIGIN_NS = 50 * S  # the ramp begins here in every built run


@cache
def _default_row(table: str) -> dict[str, Any]:
    blank = {schema.I64: 0, schema.F64: 0.0, schema.TEXT: "", schema.BOOL: False}
    columns = schema.TABLES[table].columns
    return {c.name: blank[c.type] if c.absent is None else c.absent for c in columns}


def default_row(table: str) -> dict[str, Any]:
    return dict(_default_row(table))


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

    def process(self, role: str, worker: int, **values: Any) -> int:
        """A fleet process with slot, limit 1,009 and 16 own descriptors; returns its pid."""
        pid = {"server": 800, "acceptor": 850, "client": 900}.get(role, 950) + worker
        blank = {"start_s": -0.9, "exit_status": -1, "nofile_soft_count": 1009, "own_fds_count": 16}
        row = {"pid": pid, "role": role, "worker": worker, "slot": worker, **blank, **values}
        self.add("processes", **row)
        return pid

    def connect(
        self,
        count: int,
        *,
        client: int = 0,
        from_s: float = 0.0,
        until_s: float = 1.0,
        closed_s: float | None = None,
        **values: Any,
    ) -> None:
        """``count`` connections, spread evenly; open unless ``stage`` says otherwise.

        A failed one (stage socket ... handshake) ends 1 ms after its start or at ``closed_s``.
        """
        names = schema.TABLES["connections"].column_names
        columns = self.connections or {name: [] for name in names}
        self.connections = columns
        stage = values.get("stage", "open")
        for i in range(count):
            start_s = from_s + (until_s - from_s) * i / count
            row = default_row("connections") | {
                "connection": len(columns["connection"]),
                "client": client,
                "start_ns": self.ns(start_s),
                "source_address": f"127.0.0.{client + 1}",
                "destination_port": 9000,
                "close_kind": "none",
                "stage": stage,
            }
            if stage in ("open", "closed"):
                row["connected_ns"] = self.ns(start_s + 0.0001)
                row["established_ns"] = self.ns(start_s + 0.0005)
            elif stage == "handshake":
                row["connected_ns"] = self.ns(start_s + 0.0001)
            if closed_s is not None:
                row["closed_ns"] = self.ns(closed_s)
            elif values.get("errno") or values.get("close_kind"):
                row["closed_ns"] = self.ns(start_s + 0.001)
            row |= values
            for name in names:
                columns[name].append(row[name])

    def cpu(
        self,
        pid: int,
        pct: float,
        *,
        from_s: float = 0.0,
        until_s: float = 1.0,
        user_share: float = 0.5,
        wait_pct: float | None = None,
        **values: Any,
    ) -> None:
        """Samples of a process twice a second, at a constant share of a core in between.

        ``wait_pct`` is the part of the time that it waited for one; None as in older recordings.
        """
        role, worker = self._role_of(pid)
        last = [r for r in self.rows.get("process_samples", []) if r["pid"] == pid]
        user = last[-1]["cpu_user_ns_total"] if last else 0
        system = last[-1]["cpu_system_ns_total"] if last else 0
        waited = max(0, last[-1]["run_queue_wait_ns_total"]) if last else 0
        steps = round((until_s - from_s) / 0.5)
        for i in range(0 if not last else 1, steps + 1):
            used = int(pct * 1e7 * 0.5) * i
            self.add(
                "process_samples",
                at_s=from_s + 0.5 * i,
                pid=pid,
                role=role,
                worker=worker,
                cpu_user_ns_total=user + int(used * user_share),
                cpu_system_ns_total=system + used - int(used * user_share),
                rss_bytes=20_000_000,
                fd_count=values.get("fd_count", -1),
                state="running",
                voluntary_switches_total=i,
                run_queue_wait_ns_total=(
                    -1 if wait_pct is None else waited + int(wait_pct * 1e7 * 0.5) * i
                ),
            )

    def live(self, pid: int, at_s: float, **values: Any) -> None:
        """One sample of a process's counters."""
        role, worker = self._role_of(pid)
        self.add("live_samples", at_s=at_s, pid=pid, role=role, worker=worker, **values)

    def _role_of(self, pid: int) -> tuple[str, int]:
        row = next(r for r in self.rows["processes"] if r["pid"] == pid)
        return row["role"], row["worker"]

    def host_cpu(
        self, busy_pct: float, *, from_s: float, until_s: float, steal_pct: float = 0.0
    ) -> None:
        """Both cores busy to this share, and taken by the hypervisor to that one."""
        previous = [r for r in self.rows.get("host_cpu", []) if r["core"] == 0]
        user = previous[-1]["user_ns_total"] if previous else 0
        idle = previous[-1]["idle_ns_total"] if previous else 0
        for i in range(0 if not previous else 1, round((until_s - from_s) / 0.5) + 1):
            for core in range(2):
                self.add(
                    "host_cpu",
                    at_s=from_s + 0.5 * i,
                    core=core,
                    user_ns_total=user + int(busy_pct / 100 * i * S / 2),
                    idle_ns_total=idle + int((1 - (busy_pct + steal_pct) / 100) * i * S / 2),
                    steal_ns_total=int(steal_pct / 100 * i * S / 2),
                )

    def health(self, *probes: str, **values: Any) -> None:
        """Health rows of probes that ran."""
        for probe in probes:
            row = {
                "state": "ran",
                "asked_for": True,
                "bpf_run_ns": -1,
                "seen_count": -1,
                "run_count": -1,
                **values,
            }
            self.add("probe_health", at_s=9.0, probe=probe, **row)

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


@pytest.fixture
def small_run(tmp_path: Path) -> RunFrames:
    """Two workers, two clients, 2 x 23 connections, a row in every table."""
    run = RunBuilder(tmp_path / "small")
    run.stages(ramp_s=1.0, hold_s=3.0)
    run.manifest["target_connections"] = 46
    for worker in range(2):
        for role in ("server", "client"):
            pid = run.process(role, worker)
            run.cpu(pid, 60.0, from_s=-0.5, until_s=1.0)
            run.cpu(pid, 5.0, from_s=1.0, until_s=4.0)
            for tenth in range(-2, 17):
                at_s = tenth / 4
                count = max(0, min(23, round(23 * at_s)))
                run.live(pid, at_s, open_count=count, established_total=count)
    run.host_cpu(80, from_s=-0.5, until_s=1.0)
    run.host_cpu(10, from_s=1.0, until_s=4.0)
    for client in range(2):
        run.connect(23, client=client)
    filled = set(run.rows) | {"connections"}
    for table in schema.TABLES:
        if table in filled:
            continue
        for i in range(12):
            row = {c.name: i for c in schema.TABLES[table].columns if c.type == schema.I64}
            row |= {"at_ns": run.ns(i / 3)}
            row |= {n: run.ns(0.1) for n in ("first_ns", "last_ns") if n in row}
            if "pid" in row:
                row["pid"] = 800
            # a run whose processes were killed, or stopped by a quota, is not healthy
            row |= {n: 0 for n in row if "oom" in n or "throttled" in n}
            if table == "oom_kills":
                row["pid"] = 0
            run.add(table, **row)
    return run.frames()
