"""Reads a run directory into typed frames: the only I/O of this package."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.frames.several_hosts import OF_ONE_HOST, HostPart, moved, parts_of
from probes.contract import schema
from probes.contract.errors import RunDirError
from probes.contract.live import Live, Role
from probes.contract.live_records import read_connections, read_slots
from probes.contract.rundir import LIVE, RunDir, TableRead, require_version
from probes.contract.several_hosts import HOST_NAME, hosts_of

# Tables have hundreds of rows and many small steps: Python's strings take a third less time for
# them than Arrow's, and no more for 120,000 rows.
pd.options.mode.string_storage = "python"

_DTYPES: dict[str, Any] = {
    schema.I64: "int64",
    schema.F64: "float64",
    schema.TEXT: "str",
    schema.BOOL: "bool",
}

_UNSEEN_NS = 1_200_000_000
"""Two sampling periods and a little: who is not seen for so long, while others are, has ended."""

_OF_CLIENT_HOST = (
    *("port_range", "port_range_by", "group_capacity_count", "group_limit_count"),
    *("source_addresses", "client_nofile_count", "client_capacity_count"),
)
"""What the plan of a run over several hosts says of one of them."""

Reader = Callable[[str], TableRead]


def empty_table(name: str) -> pd.DataFrame:
    """A frame with the columns and types of a schema table and no rows."""
    return _empty(name).copy(deep=False)


@cache
def _empty(name: str) -> pd.DataFrame:
    """Made once: most tables of most runs are empty, and their typed columns take a millisecond."""
    columns = schema.TABLES[name].columns
    return pd.DataFrame({c.name: pd.Series(dtype=_DTYPES[c.type]) for c in columns})


@dataclass(frozen=True, slots=True)
class RunFrames:
    """The tables of one run; each is read when first asked for and kept.

    Attributes:
        path: The run directory.
        manifest: ``manifest.json``.
        cut_files: Streams that ended inside a batch, so far as they were read.
        missing: What could not be read, for people.
        hosts: Of a run over several hosts each of them; empty for a run of one.
        host: Of ``of_host`` which it is, else ''.
    """

    path: Path
    manifest: dict[str, Any]
    _read: Reader
    hosts: tuple[HostPart, ...] = ()
    host: str = ""
    cut_files: list[Path] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    _cache: dict[str, pd.DataFrame] = field(default_factory=dict)
    _parts: dict[HostPart, RunFrames] = field(default_factory=dict)

    def __getitem__(self, name: str) -> pd.DataFrame:
        """A table of ``probes.contract.schema.TABLES``, empty with the right types when absent.

        The frame is shared: callers do not change it.
        """
        found = self._cache.get(name)
        if found is None:
            if self.hosts:
                self._cache[name] = found = self._of_hosts(name)
                return found
            read = self._read(name)
            for cut in read.cut_files:
                self.cut_files.append(cut)
                self.missing.append(
                    f"raw/{name}/{cut.name} ends inside a batch: its last rows are lost"
                )
            found = _to_frame(name, read)
            self._cache[name] = found
        return found

    def _of_hosts(self, name: str) -> pd.DataFrame:
        """The rows of all hosts, or of the one whose rows these are (``several_hosts``)."""
        of_one = name in OF_ONE_HOST
        wanted = self.host or self.hosts[0].name
        frames = [
            moved(name, part_frames[name], part)
            for part, part_frames in self._parts.items()
            if part.has_rows and (not of_one or part.name == wanted) and self._is_asked(part, name)
        ]
        frames = [frame for frame in frames if len(frame)]
        if not frames:
            return empty_table(name)
        found = pd.concat(frames, ignore_index=True)
        if "at_ns" in found.columns:
            found = found.sort_values("at_ns", kind="stable", ignore_index=True)
        return _typed(name, found)

    def _is_asked(self, part: HostPart, name: str) -> bool:
        """``of_host`` has that host and the one that serves: clients are judged beside it."""
        return self.host in ("", part.name) or part.number == 0

    def of_host(self, part: HostPart) -> RunFrames:
        """The run as it was for one client host: its rows, and those of the server.

        What is of a whole host is of that one.
        """
        mine = part.manifest
        plan = mine.get("plan") or {}
        manifest = {
            **self.manifest,
            "target_connections": part.share,
            "host": mine.get("host") or {},
            "plan": {
                **(self.manifest.get("plan") or {}),
                **{key: plan[key] for key in _OF_CLIENT_HOST if key in plan},
            },
        }
        found = RunFrames(self.path, manifest, self._read, self.hosts, part.name)
        found._parts.update(self._parts)
        return found

    def put(self, name: str, frame: pd.DataFrame) -> None:
        """Replaces a table by one that was derived from live.bin (``load`` only)."""
        self._cache[name] = _typed(name, frame)

    @property
    def is_cut_short(self) -> bool:
        """The supervisor died before it could finish: nobody changed the first status."""
        return bool(self.manifest.get("status", "running") == "running")


def _to_frame(name: str, read: TableRead) -> pd.DataFrame:
    if read.table.num_rows == 0:
        return empty_table(name)
    frame: pd.DataFrame = read.table.to_pandas()
    if "at_ns" in frame.columns and not frame["at_ns"].is_monotonic_increasing:
        frame = frame.sort_values("at_ns", kind="stable", ignore_index=True)
    return _typed(name, frame)


def _typed(name: str, frame: pd.DataFrame) -> pd.DataFrame:
    """Forces the schema's types; a null number becomes 0 and a null text ''."""
    types = dict(zip(frame.columns, frame.dtypes, strict=True))
    for column in schema.TABLES[name].columns:
        wanted = _DTYPES[column.type]
        if types[column.name] != wanted:
            filled = frame[column.name].fillna("" if column.type == schema.TEXT else 0)
            frame = frame.assign(**{column.name: filled.astype(wanted)})
        elif column.type == schema.TEXT and frame[column.name].hasnans:
            frame = frame.assign(**{column.name: frame[column.name].fillna("")})
    return frame


def load(run: RunDir) -> RunFrames:
    """Opens the tables of one run.

    Where the supervisor did not live to write ``connections`` and ``processes``, or the sampler
    to write ``live_samples``, they are made from live.bin, which outlives everybody.

    Args:
        run: From ``probes.contract.rundir.open_run_dir``, which has checked the schema version.

    Raises:
        RunDirError: The manifest cannot be read.
    """
    manifest = run.read_manifest()
    if hosts := hosts_of(manifest):
        return _load_hosts(run, manifest, hosts)
    frames = RunFrames(run.path, manifest, run.read_table)
    if (frames.manifest.get("server") or {}).get("foreign"):
        _take_roles_of_processes(frames)
    incomplete = [t for t in ("connections", "processes", "live_samples") if frames[t].empty]
    if frames.is_cut_short:
        frames.missing.append(
            "the run did not finish: its supervisor ended before it wrote the last status"
        )
    if incomplete or frames.is_cut_short:
        _fill_from_live(run, frames, incomplete)
    if frames.is_cut_short:
        _add_ends_by_samples(frames)
    return frames


def _load_hosts(
    run: RunDir, manifest: dict[str, Any], hosts: Sequence[Mapping[str, Any]]
) -> RunFrames:
    """Opens what each host of several recorded."""
    loaded: dict[str, RunFrames] = {}
    missing = []
    for each in hosts:
        name = str(each["name"])
        if not HOST_NAME.fullmatch(name):
            raise RunDirError(f"{run.path} names a host {name[:40]!r}", fix="copy it again")
        try:
            part_run = run.part(name)
            require_version(part_run)
            loaded[name] = load(part_run)
        except RunDirError as error:
            if not each.get("is_lost"):
                missing.append(f"host {name}: {error.message}")
    parts = parts_of(hosts, {name: frames.manifest for name, frames in loaded.items()})
    found = RunFrames(run.path, manifest, run.read_table, tuple(parts))
    found.missing.extend(missing)
    for part in parts:
        if part.name in loaded:
            found._parts[part] = loaded[part.name]
    if found.is_cut_short:
        found.missing.append(
            "the run did not finish: its command ended before it wrote the last status"
        )
    return found


def _take_roles_of_processes(frames: RunFrames) -> None:
    """Gives samples the roles of ``processes``: which process of a server that is not ours only
    accepts for the others is known when connections have come, and samples were taken before.
    """  # noqa: D205  # one sentence does not fit one line
    roles = frames["processes"].drop_duplicates("pid", keep="last").set_index("pid")["role"]
    for name in ("process_samples", "live_samples"):
        sampled = frames[name]
        frames.put(name, sampled.assign(role=sampled["pid"].map(roles).fillna(sampled["role"])))


def _fill_from_live(run: RunDir, frames: RunFrames, incomplete: list[str]) -> None:
    try:
        stream = run.open_file(LIVE)
    except OSError as error:
        if incomplete:
            frames.missing.append(f"no {', '.join(incomplete)}: {LIVE}: {error.strerror}")
        return
    try:
        live = Live(stream.fileno(), writable=False)
    except RunDirError as error:
        if incomplete:
            frames.missing.append(f"no {', '.join(incomplete)}: {error.message}")
        return
    finally:
        stream.close()
    try:
        connections = pd.DataFrame(read_connections(live))
        slots = read_slots(live)
    finally:
        live.close()
    if "connections" in incomplete and len(connections):
        frames.put("connections", connections)
    if slots and (frames.is_cut_short or "processes" in incomplete):
        _add_processes_of_slots(frames, slots)
    if slots and (frames.is_cut_short or "live_samples" in incomplete):
        last_ns = _last_moment_ns(connections, slots)
        tail = _samples_of_slots(slots, last_ns)
        sampled = frames["live_samples"]
        if sampled.empty or int(sampled["at_ns"].max()) < last_ns:
            frames.put("live_samples", pd.concat([sampled, tail], ignore_index=True))


def _role(word: int) -> str:
    try:
        return Role(word).name.lower()
    except ValueError:
        return "other"


def _add_processes_of_slots(frames: RunFrames, slots: list[dict[str, int]]) -> None:
    known = frames["processes"]
    told = set(zip(known["pid"], known["start_ns"], strict=True))
    rows = _processes_of_slots([s for s in slots if (s["pid"], s["started_ns"]) not in told])
    if len(rows):
        frames.put("processes", pd.concat([known, rows], ignore_index=True))


def _processes_of_slots(slots: list[dict[str, int]]) -> pd.DataFrame:
    rows = [
        {
            "pid": slot["pid"],
            "start_ns": slot["started_ns"],
            "role": _role(slot["role"]),
            "slot": slot["slot"],
            "worker": slot["worker"],
            "nofile_soft_count": slot["nofile_soft_count"],
            "own_fds_count": slot["own_fds_count"],
            "exited_ns": 0,
            "exit_status": -1,
            "exit_signal": 0,
        }
        for slot in slots
    ]
    return pd.DataFrame(rows)


def _add_ends_by_samples(frames: RunFrames) -> None:
    """Ends that the supervisor did not live to write: who was no longer sampled had ended.

    How is not known then. The moment is the middle between two samples.
    """
    processes, sampled = frames["processes"], frames["process_samples"]
    seen_ns = sampled.groupby("pid")["at_ns"].max()
    all_ns = np.unique(sampled["at_ns"])
    ends_ns = {
        int(str(pid)): (int(last_ns) + int(all_ns[all_ns > last_ns][0])) // 2
        for pid, last_ns in seen_ns.items()
        if int(all_ns[-1]) - int(last_ns) >= _UNSEEN_NS
    }
    exited_ns = processes["pid"].map(ends_ns).fillna(0).astype("int64")
    told = processes["exited_ns"] > 0
    frames.put(
        "processes", processes.assign(exited_ns=processes["exited_ns"].where(told, exited_ns))
    )


def _last_moment_ns(connections: pd.DataFrame, slots: list[dict[str, int]]) -> int:
    moments = [slot[key] for slot in slots for key in ("started_ns", "ready_ns", "stopped_ns")]
    if len(connections):
        columns = ("start_ns", "connected_ns", "established_ns", "closed_ns")
        moments += [int(connections[column].max()) for column in columns]
    return max(moments, default=0)


def _samples_of_slots(slots: list[dict[str, int]], at_ns: int) -> pd.DataFrame:
    columns = schema.TABLES["live_samples"].column_names
    rows = []
    for slot in slots:
        entered_ns = slot["loop_entered_ns"]
        derived = {
            "at_ns": at_ns,
            "role": _role(slot["role"]),
            "loop_lag_ns": max(0, at_ns - entered_ns) if entered_ns else 0,
        }
        rows.append({column: (slot | derived)[column] for column in columns})
    return pd.DataFrame(rows)
