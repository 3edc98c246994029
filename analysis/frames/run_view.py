"""One run on the scale of people: seconds since the ramp, phases, counts, who is who.

Everything that findings and timelines share is computed here once and kept.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from analysis.evidence import Side, Subject, side_of_role
from analysis.frames.host_facts import allowed_cpus, of_allowed_cpus
from analysis.frames.run_frames import RunFrames
from analysis.frames.run_words import RunWords, is_watched, words_of
from analysis.stats.remembered import remembered
from probes.contract.several_hosts import host_number

Floats = npt.NDArray[np.float64]

PHASES = ("setup", "ramp", "hold", "watch", "stop", "collect")
"""``watch`` stands alone: a server that was there before is only looked at, nobody loads it."""

_PROXY_LEAST_COUNT = 20
"""Below it, files that a server opened meanwhile are a visible part of its descriptors."""
_EMFILE, _ENFILE = 24, 23
_OWN_END_S, _WATCHED_END_S = 0.3, 1.5
FAILURE_LEAD_S = 0.5
"""How long before the first failure its window begins."""
_FAILED_STAGES = ("socket", "bind", "connect", "handshake")


@dataclass(frozen=True, slots=True)
class Phase:
    """One phase of the run, seconds since the ramp began."""

    name: str
    start_s: float
    end_s: float

    @property
    def duration_s(self) -> float:
        """Its length."""
        return self.end_s - self.start_s

    def holds(self, at_s: float) -> bool:
        """The moment lies in it."""
        return self.start_s <= at_s < self.end_s


def run_directory(manifest: Mapping[str, Any]) -> str:
    """Where the run was written to, as its command line named it: for commands to copy."""
    argv = [str(word) for word in manifest.get("argv") or []]
    parent = "runs"
    for position, word in enumerate(argv):
        if word == "--output" and position + 1 < len(argv):
            parent = argv[position + 1]
        elif word.startswith("--output="):
            parent = word.partition("=")[2]
    return f"{parent.rstrip('/')}/{manifest.get('run_id') or 'latest'}"


def server_cmd(manifest: Mapping[str, Any]) -> str:
    """What ``--server-cmd`` was, as it was given, with its ``{port}``; '' where there was none."""
    argv = [str(word) for word in manifest.get("argv") or []]
    for position, word in enumerate(argv):
        if word == "--server-cmd" and position + 1 < len(argv):
            return argv[position + 1]
        if word.startswith("--server-cmd="):
            return word.partition("=")[2]
    return ""


class RunView:
    """A run, with times in seconds since the ramp began and processes by pid.

    Args:
        frames: The tables; they are not changed.
    """

    def __init__(self, frames: RunFrames) -> None:
        self.frames = frames
        self.manifest = frames.manifest
        self.settings: Mapping[str, Any] = frames.manifest.get("settings") or {}
        self.plan: Mapping[str, Any] = frames.manifest.get("plan") or {}
        self.host: Mapping[str, Any] = frames.manifest.get("host") or {}
        self.target_count = int(frames.manifest.get("target_connections") or 0)
        self.origin_ns = self._origin_ns()
        self.phases = self._phases()

    # -- time ---------------------------------------------------------------------------------

    def _stages(self) -> dict[str, tuple[int, int]]:
        found = {}
        for stage in self.manifest.get("stages") or []:
            start_ns = int(stage.get("start_ns") or 0)
            if start_ns:
                found[str(stage.get("stage"))] = (start_ns, int(stage.get("end_ns") or 0))
        return found

    def _event_ns(self, event: str) -> int:
        return self._first_events_ns.get(event, 0)

    @cached_property
    def _first_events_ns(self) -> dict[str, int]:
        events = self.frames["events"][["event", "at_ns"]].drop_duplicates("event")
        return dict(zip(events["event"], events["at_ns"].tolist(), strict=True))

    def _origin_ns(self) -> int:
        stages = self._stages()
        begun = stages.get("ramp") or stages.get("watch")
        if begun:
            return begun[0]
        begun_ns = self._event_ns("phase_ramp")
        if begun_ns:
            return begun_ns
        connections = self.frames["connections"]
        if len(connections):
            return int(connections["start_ns"].min())
        samples = self.frames["live_samples"]
        return int(samples["at_ns"].min()) if len(samples) else 0

    @cached_property
    def last_s(self) -> float:
        """The last moment that any table of the run knows of."""
        last_ns = self.origin_ns
        for table in ("events", "live_samples", "process_samples"):
            frame = self.frames[table]
            if len(frame):
                last_ns = max(last_ns, int(frame["at_ns"].max()))
        connections = self.frames["connections"]
        for column in ("established_ns", "closed_ns", "start_ns"):
            if len(connections):
                last_ns = max(last_ns, int(connections[column].max()))
        return self.seconds(last_ns)

    def _phases(self) -> dict[str, Phase]:
        stages = self._stages()
        for name in ("ramp", "hold", "stop"):
            begun_ns = self._event_ns(f"phase_{name}")
            if name not in stages and begun_ns:
                stages[name] = (begun_ns, 0)
        if not {"ramp", "watch"} & set(stages) and self.origin_ns:
            stages["watch" if self.is_attached else "ramp"] = (self.origin_ns, 0)
        starts = sorted((start, end, name) for name, (start, end) in stages.items())
        phases = {}
        for index, (start_ns, end_ns, name) in enumerate(starts):
            next_ns = starts[index + 1][0] if index + 1 < len(starts) else 0
            start_s = self.seconds(start_ns)
            over_ns = end_ns or next_ns
            end_s = self.seconds(over_ns) if over_ns else max(start_s, self.last_s)
            phases[name] = Phase(name, start_s, max(start_s, end_s))
        return phases

    def seconds(self, at_ns: float) -> float:
        """A moment of CLOCK_MONOTONIC in seconds since the ramp began."""
        return (at_ns - self.origin_ns) / 1e9

    def seconds_of(self, at_ns: Any) -> Floats:
        """Likewise for a column; 0 (never) becomes NaN."""
        values = np.asarray(at_ns, dtype=np.float64)
        result: Floats = np.where(values == 0, np.nan, (values - self.origin_ns) / 1e9)
        return result

    @property
    def ramp(self) -> Phase:
        """The ramp, of no length when nothing was recorded, or where the run only watched."""
        if self.is_attached:
            return Phase("ramp", 0.0, 0.0)
        return self.phases.get("ramp") or Phase("ramp", 0.0, max(0.0, self.last_s))

    @property
    def hold(self) -> Phase:
        """The hold phase, of no length when the run never held; the whole of watching."""
        if self.is_attached and "watch" in self.phases:
            return self.phases["watch"]
        end_s = self.ramp.end_s
        return self.phases.get("hold") or Phase("hold", end_s, end_s)

    @property
    def stop_s(self) -> float:
        """When the run began to stop by itself: what closes later was closed on purpose."""
        ends = [self.phases[name].start_s for name in ("stop", "collect") if name in self.phases]
        ends = [end_s for end_s in ends if end_s >= self.ramp.start_s]
        if ends:
            return min(ends)
        return max(self.hold.end_s, self.last_s) + 1e-6

    @property
    def last_sample_s(self) -> float:
        """When the last samples of the run were taken: a moment after it began to stop.

        Of a server in service they are seconds apart, and the last may be the only one that tells.
        Its clients go on, so that nothing in it is of the stop itself, however long the probes
        took to end on a busy host.
        """
        if not self.is_attached:
            return self.stop_s + _OWN_END_S
        collect = self.phases.get("collect")
        return max(self.stop_s + _WATCHED_END_S, collect.end_s if collect is not None else 0.0)

    # -- connections --------------------------------------------------------------------------

    @cached_property
    def connections(self) -> pd.DataFrame:
        """The records with their times in seconds and what became of them.

        Adds start_s, connected_s, established_s, closed_s (NaN: never), is_failed (never
        established and over), is_lost (established and gone before the stop), is_waiting
        (neither established nor over when the run stopped).
        """
        raw = self.frames["connections"]
        times = {
            f"{name}_s": self.seconds_of(raw[f"{name}_ns"])
            for name in ("start", "connected", "established", "closed")
        }
        established, closed = times["established_s"], times["closed_s"]
        before_stop = closed < self.stop_s  # NaN compares false
        local = (raw["close_kind"] == "local").to_numpy()
        has_errno = (raw["errno"] != 0).to_numpy()
        never = np.isnan(established)
        is_failed = never & (before_stop | has_errno) & ~(local & ~has_errno)
        return raw.assign(
            **times,
            is_failed=is_failed,
            # a client that could not send a whole frame closes by itself, with the errno
            is_lost=~never & before_stop & ~(local & ~has_errno),
            is_waiting=never & ~is_failed,
        )

    @cached_property
    def ended_connections(self) -> pd.DataFrame:
        """Rows of ``connections`` that failed or were lost."""
        connections = self.connections
        return connections[(connections["is_failed"] | connections["is_lost"]).to_numpy()]

    @cached_property
    def _open_curve(self) -> tuple[Floats, npt.NDArray[np.int64]]:
        if self.is_attached:
            return self._watched_curve()
        connections = self.connections
        opened = connections["established_s"].to_numpy()
        closed = connections["closed_s"].to_numpy()
        opened_known = ~np.isnan(opened)
        ends = closed[opened_known & ~np.isnan(closed)]
        times = np.concatenate([opened[opened_known], ends])
        steps = np.concatenate([np.ones(int(opened_known.sum())), -np.ones(len(ends))])
        order = np.argsort(times, kind="stable")
        return times[order], np.cumsum(steps[order]).astype(np.int64)

    def _watched_curve(self) -> tuple[Floats, npt.NDArray[np.int64]]:
        """Connections that the watched processes held, sampled: the clients are elsewhere."""
        samples = self.watched_samples
        held = samples.groupby("at_ns")["open_count"].sum()
        return self.seconds_of(held.index), held.to_numpy(dtype=np.int64)

    @cached_property
    def watched_samples(self) -> pd.DataFrame:
        """Rows of ``live_samples`` of servers; none holds a connection after its end.

        The counters outlive their process, so those rows are still there, with 0.
        """
        samples = self.frames["live_samples"]
        samples = samples[samples["role"].isin(["server", "acceptor"])]
        processes = self.frames["processes"]
        ended = processes[processes["exited_ns"] > 0]
        if ended.empty:
            return samples
        # Not by pid alone: in a watch of days another worker may have it later.
        who = ["pid", "worker"]
        over_ns = samples[who].merge(
            ended.drop_duplicates(who)[[*who, "exited_ns"]], on=who, how="left"
        )["exited_ns"]
        is_over = samples["at_ns"] >= over_ns.fillna(np.inf).to_numpy()
        return samples.assign(open_count=samples["open_count"].where(~is_over, 0))

    def open_at(self, at_s: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Connections open (as the clients saw it) at each moment."""
        times, counts = self._open_curve
        moments = np.asarray(at_s, dtype=np.float64)
        index = np.searchsorted(times, moments, side="right") - 1
        if not len(counts):
            return np.zeros(np.shape(index), dtype=np.int64)
        if self.is_attached:
            return _between_samples(times, counts, moments, index)
        result: npt.NDArray[np.int64] = np.where(index >= 0, counts[np.maximum(index, 0)], 0)
        return result

    def begun_count_at(self, at_s: float) -> int:
        """Connections open or under way at one moment: each holds a descriptor and a port."""
        connections = self.connections
        # An attempt that got neither descriptor nor port holds none while it fails.
        stillborn = (connections["close_kind"] == "error") & connections["stage"].isin(
            ["socket", "bind", "connect"]
        )
        connections = connections[~stillborn]
        ended = (connections["closed_s"] <= at_s).sum()
        return int((connections["start_s"] <= at_s).sum() - ended)

    def open_count_at(self, at_s: float) -> int:
        """Connections open at one moment."""
        return int(self.open_at([at_s])[0])

    @cached_property
    def peak_count(self) -> int:
        """Most connections open at once; from the counters when there are no records.

        The record of a connection is of its last attempt, so that one which was lost and made again
        (``--retry``) has left no trace of when it was open before; then the counters have a say.
        """
        counts = self._open_curve[1]
        recorded = max(0, int(counts.max())) if len(counts) else 0
        if len(counts) and not (self.manifest.get("attempts") or {}).get("again_open_count"):
            return recorded
        samples = self.frames["live_samples"]
        clients = samples[samples["role"] == "client"]
        if clients.empty:
            return recorded
        return max(recorded, int(clients.groupby("at_ns")["open_count"].sum().max()))

    @cached_property
    def peak_s(self) -> float:
        """When the peak was first reached."""
        times, counts = self._open_curve
        return float(times[int(counts.argmax())]) if len(counts) else 0.0

    @cached_property
    def held_count(self) -> int:
        """Connections open when the run began to stop."""
        return self.open_count_at(np.nextafter(self.stop_s, -np.inf))

    @cached_property
    def failed_count(self) -> int:
        """Attempts that failed before the stop."""
        return int(self.connections["is_failed"].sum())

    @cached_property
    def lost_count(self) -> int:
        """Established connections that ended before the stop."""
        return int(self.connections["is_lost"].sum())

    @cached_property
    def waiting_count(self) -> int:
        """Attempts that were neither established nor over when the run stopped."""
        return int(self.connections["is_waiting"].sum())

    @property
    def is_attached(self) -> bool:
        """The server was there before and has clients of its own: there are no client records."""
        return is_watched(self.manifest)

    @property
    def words(self) -> RunWords:
        """What the parts of this run are called."""
        return words_of(self.manifest)

    @property
    def has_own_namespace(self) -> bool:
        """The network namespace is the run's: counters of it are of nobody else."""
        return not self.is_attached and self.host.get("network_namespace") in (None, "own")

    def host_sysctl(self, name: str) -> int | None:
        """A limit of the host as it was read before the run; None where it could not be."""
        value = (self.host.get("sysctls") or {}).get(name)
        return value if isinstance(value, int) else None

    @property
    def counting_period_s(self) -> float:
        """The longest interval that a row of failing calls stands for.

        Those of a server in service are watched now and then, and read once a second while they
        are; otherwise all the time, and how far apart the rows are says it.
        """
        return 1.0 if self.is_attached else float("inf")

    @property
    def is_reached(self) -> bool:
        """The target was established and held without a failure."""
        enough = self.target_count > 0 and self.held_count >= self.target_count
        is_whole = self.failed_count == 0 and self.lost_count == 0
        return enough and is_whole and not self.is_client_gone

    @cached_property
    def is_client_gone(self) -> bool:
        """A client ended before the run did, so nobody wrote that its connections ended."""
        processes = self.frames["processes"]
        ended_s = self.seconds_of(processes["exited_ns"])
        is_gone = (processes["role"] == "client") & (processes["exited_ns"] > 0)
        return bool((is_gone & (ended_s < self.stop_s)).any())

    @cached_property
    def first_failure_s(self) -> float | None:
        """When the first connection failed or was lost, None when none did."""
        moments = self.ended_connections["closed_s"].dropna()
        return float(moments.min()) if len(moments) else None

    @cached_property
    def failure_window_s(self) -> tuple[float, float] | None:
        """Around the first failures: from 0.5 s before the first to 2 s after it."""
        candidates = [self.first_failure_s] if self.first_failure_s is not None else []
        emfile = self.frames["failing_syscalls"]
        emfile = emfile[(emfile["errno"] == errno.EMFILE) & (emfile["first_ns"] > 0)]
        candidates += [float(self.seconds(emfile["first_ns"].min()))] if len(emfile) else []
        if not candidates:
            return None
        first_s = min(candidates)
        return first_s - FAILURE_LEAD_S, first_s + 2.0

    # -- processes ----------------------------------------------------------------------------

    @cached_property
    def who(self) -> pd.DataFrame:
        """pid, role, worker of every process any table knows, one row a pid.

        Of two processes that had a pid one after the other it is the later one.
        """
        processes = self.frames["processes"].sort_values("start_ns", ascending=False, kind="stable")
        others = [self.frames[name] for name in ("live_samples", "process_samples")]
        parts = [each[["pid", "role", "worker"]] for each in (processes, *others)]
        known = pd.concat(parts, ignore_index=True)
        return known[known["pid"] > 0].drop_duplicates("pid", ignore_index=True)

    @cached_property
    def _subjects(self) -> dict[int, Subject]:
        rows = zip(self.who["pid"], self.who["role"], self.who["worker"], strict=True)
        names = self._commands
        hosts = {part.number: part.name for part in self.frames.hosts}
        return {
            int(p): Subject(
                *(str(r), int(p), int(w), names.get(int(p), "")),
                host=hosts.get(host_number(int(p)), ""),
            )
            for p, r, w in rows
        }

    @property
    def is_foreign(self) -> bool:
        """The server is not ours: what it is called, and its options, are its own."""
        return bool((self.manifest.get("server") or {}).get("foreign"))

    @property
    def server_ports(self) -> list[int]:
        """Ports that the server listens on."""
        return [int(p) for p in (self.manifest.get("server") or {}).get("ports") or []]

    @property
    def server_command(self) -> list[str]:
        """The command that started a server that is not ours, empty when it ran already."""
        return [str(w) for w in (self.manifest.get("server") or {}).get("command") or []]

    @cached_property
    def _commands(self) -> dict[int, str]:
        known = (self.manifest.get("server") or {}).get("processes") or []
        return {int(each["pid"]): str(each["command"]) for each in known}

    def process_facts(self, pid: int) -> Mapping[str, Any]:
        """What the manifest says of a process of a server that is not ours; empty for others."""
        known = (self.manifest.get("server") or {}).get("processes") or []
        return next((each for each in reversed(known) if int(each["pid"]) == pid), {})

    def subject(self, pid: int) -> Subject:
        """The process of that pid, as far as known."""
        return self._subjects.get(int(pid)) or Subject("", int(pid), -1)

    def side(self, pid: int) -> Side:
        """The side of that process."""
        return side_of_role(self.subject(pid).role)

    def pids_of(self, *roles: str) -> list[int]:
        """Every process of some roles, in the order of the table."""
        return [each.pid for each in self._subjects.values() if each.role in roles and each.pid]

    def pid_of(self, role: str, worker: int) -> int:
        """The pid of a numbered process, 0 when not known."""
        found = ((each.role, each.worker, each.pid) for each in self._subjects.values())
        return next((pid or 0 for its, number, pid in found if (its, number) == (role, worker)), 0)

    @remembered
    def descriptors_per_connection(self, role: str) -> int:
        """Descriptors that all processes of a role together need for one connection of the run.

        1 but for a proxy that is not ours, whose processes have one to each side.
        """
        if role != "server" or not self.is_foreign or self.peak_count < _PROXY_LEAST_COUNT:
            return 1
        live = self.frames["live_samples"]
        live = live[live["role"] == role]
        processes = self.frames["processes"]
        gone = processes[processes["exited_ns"] > 0].groupby("pid")["exited_ns"].max()
        # the counters outlive their writer
        live = live[~(live["at_ns"] > live["pid"].map(gone).fillna(np.inf))]
        held = live.groupby("at_ns")["open_count"].sum()
        reached = max(self.peak_count, self._reached_most_count)
        return max(1, round(int(held.max()) / reached)) if len(held) else 1

    @cached_property
    def _full_since_s(self) -> float:
        """When a call of the server first failed for want of a descriptor, infinite for never."""
        rows = self.frames["failing_syscalls"]
        servers = self.who["pid"][self.who["role"].isin(["server", "acceptor"])]
        rows = rows[rows["errno"].isin([_EMFILE, _ENFILE]) & rows["pid"].isin(servers)]
        return float(self.seconds_of(rows["first_ns"]).min()) if len(rows) else float("inf")

    @cached_property
    def _reached_most_count(self) -> int:
        """Most connections at once that the server may have had, by the clients' records.

        One that waits is open there, and one that its client gave up until the server reads that
        (CLOSE_WAIT). Of one that was refused a proxy has one side at most, and one that came when
        the server had no descriptor left waits in its queue.
        """
        all_of = self.connections
        waits = all_of["is_waiting"] | (all_of["close_kind"] == "timeout")
        waits &= ~(all_of["connected_s"] > self._full_since_s)
        kept = all_of["established_s"].notna() | waits
        reached = all_of[kept & all_of["connected_s"].notna()]
        ended = reached["closed_s"][reached["close_kind"] != "timeout"].dropna()
        begun = np.sort(reached["connected_s"].to_numpy())
        before = np.searchsorted(np.sort(ended.to_numpy()), begun, side="right")
        counts = np.arange(1, len(begun) + 1) - before
        return int(counts.max()) if len(counts) else 0

    def with_who(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Adds role and worker by pid to a frame that lacks them."""
        others = frame.drop(columns=["role", "worker"], errors="ignore").reset_index(drop=True)
        whose = [self.subject(pid) for pid in others["pid"].tolist()]
        return others.assign(
            role=pd.Series([each.role for each in whose], dtype="str"),
            worker=np.array([each.worker for each in whose], dtype=np.int64),
        )

    # -- trust --------------------------------------------------------------------------------

    def lost_events_count(self, probe: str) -> int:
        """Events that a probe saw and did not record; names are matched by their start."""
        health = self.frames["probe_health"]
        rows = health[health["probe"].str.startswith(probe)]
        return int(rows["lost_count"].sum())

    @cached_property
    def host_cpu(self) -> pd.DataFrame:
        """Rows of ``host_cpu`` of the cores that the run may use, -1 for those together."""
        return of_allowed_cpus(self.frames["host_cpu"], allowed_cpus(self.host))

    @property
    def core_count(self) -> int:
        """Cores of the host that the run may use, at least 1; a quota does not make them fewer."""
        allowed = allowed_cpus(self.host)
        return max(1, len(allowed) or int(self.host.get("cpu_count") or 1))

    def sysctl(self, name: str) -> str:
        """A sysctl of the run's host as recorded, '' when it was not."""
        return str((self.host.get("sysctls") or {}).get(name, ""))


def _between_samples(
    times: Floats, counts: npt.NDArray[np.int64], moments: Floats, index: npt.NDArray[np.intp]
) -> npt.NDArray[np.int64]:
    """Connections between two samples of a watch, which on a crowded host are seconds apart.

    Those that came meanwhile did so evenly, as far as anybody knows; those that ended were there
    until the sample that lacks them. Before the first sample there were as many as that found.

    Args:
        times: Of the samples, in s.
        counts: Connections at each.
        moments: When to know it.
        index: Of the last sample before each moment, -1 for none.
    """
    before = np.maximum(index, 0)
    came = np.interp(moments, times, counts).astype(np.int64)
    result: npt.NDArray[np.int64] = np.maximum(came, counts[before])
    return result
