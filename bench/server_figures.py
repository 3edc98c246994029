"""What was measured of other people's servers, kept as JSON so that pieces add up."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.figures import QUIET_PCT, Spread, summarise

_OTHERS_MOST_SHARE = 0.25
"""Of the CPU of a ramp: the kernel's own threads and what watches take up to about a sixth."""


@dataclass(slots=True)
class ServerRun:
    """One run of one server; None where something could not be measured.

    Attributes:
        server: Name in ``bench.peers.catalogue``.
        target_connections: Asked for.
        probes: ``none`` for figures, ``auto`` where the verdict is wanted.
        workers: Processes that it was told to start.
        command: That started it, without the folder of this repository.
        error: Why the run has no or not all figures, '' for none.
        ramp_s: From the first attempt to the last connection established.
        established_count: Connections that opened.
        failed_count: Attempts that failed.
        held_count: Open in the hold.
        server_cpu_us: User and system time of all its processes in the ramp, per connection.
        client_cpu_us: The same of our clients.
        host_cpu_us: Time that all cores were busy in the ramp, per connection.
        ramp_busy_pct: The same as a share of all cores, 100 is all of them.
        listen_drop_count: Connection attempts that the kernel dropped at a full accept queue
            (TcpExt ListenOverflows); each costs its client a second.
        server_pss_bytes: PSS of all its processes in the hold, less that before the first
            connection, per connection.
        base_pss_bytes: PSS of all its processes before the first connection.
        slab_bytes: Growth of the kernel's slab per connection, both ends of it together.
        cause: Of the verdict.
        sentence: Of the verdict, without its fix.
        next_wall: The first limit of the ladder that was not met, in words.
        next_wall_connections: Where it would be met.
        background_pct: What the host used just before, 100 is one core.
        took_s: The whole run, from the server's start until all of it was gone.
        versions: Of the server and what it runs on.
        measured: Day, ISO 8601.
    """

    server: str
    target_connections: int
    probes: str
    workers: int = 1
    command: str = ""
    error: str = ""
    ramp_s: float | None = None
    established_count: int | None = None
    failed_count: int | None = None
    held_count: int | None = None
    server_cpu_us: float | None = None
    client_cpu_us: float | None = None
    host_cpu_us: float | None = None
    ramp_busy_pct: float | None = None
    listen_drop_count: int | None = None
    server_pss_bytes: float | None = None
    base_pss_bytes: int | None = None
    slab_bytes: float | None = None
    cause: str = ""
    sentence: str = ""
    next_wall: str = ""
    next_wall_connections: int | None = None
    background_pct: float | None = None
    took_s: float | None = None
    versions: dict[str, str] = field(default_factory=dict)
    measured: str = ""

    @property
    def is_reached(self) -> bool:
        """Every connection of the target was held."""
        return self.held_count == self.target_connections

    @property
    def was_quiet(self) -> bool:
        """Nobody else used the host just before it, nor much of it in the ramp."""
        if self.background_pct is None or self.background_pct >= QUIET_PCT:
            return False
        if not self.host_cpu_us or self.server_cpu_us is None or self.client_cpu_us is None:
            return True
        others_us = self.host_cpu_us - self.server_cpu_us - self.client_cpu_us
        return others_us < _OTHERS_MOST_SHARE * self.host_cpu_us


class ServerRuns:
    """All runs, by server, size and probe set.

    Args:
        runs: In the order in which they were made.
        about: Kernel, processor and so on, as of the last piece.
    """

    def __init__(self, runs: Iterable[ServerRun] = (), about: dict[str, str] | None = None) -> None:
        self.all = list(runs)
        self.about = dict(about or {})

    def of(self, server: str, connections: int, probes: str = "") -> list[ServerRun]:
        """The measured runs of a server, without those that failed."""
        return [
            run
            for run in self.all
            if run.server == server
            and run.target_connections == connections
            and probes in ("", run.probes)
            and not run.error
        ]

    def spread(self, server: str, connections: int, figure: str) -> Spread | None:
        """Median and extremes of a figure over the runs that count."""
        return summarise(getattr(run, figure) for run in self.counted(server, connections))

    def counted(self, server: str, connections: int) -> list[ServerRun]:
        """The runs without probes: those on a quiet host, where there are some; else all."""
        runs = self.of(server, connections, "none")
        return [run for run in runs if run.was_quiet] or runs

    def verdict(self, server: str, connections: int) -> ServerRun | None:
        """The run whose verdict counts: the last with probes, else the last."""
        runs = self.of(server, connections, "auto") or self.of(server, connections)
        return runs[-1] if runs else None

    def sizes(self) -> list[int]:
        """Targets that were measured, smallest first."""
        return sorted({run.target_connections for run in self.all})

    def without(self, servers: Sequence[str]) -> ServerRuns:
        """The same without some servers, which are to be measured anew."""
        return ServerRuns((run for run in self.all if run.server not in servers), self.about)

    def current(self, is_current: Callable[[ServerRun], bool]) -> ServerRuns:
        """The same without what was measured of another version, or started in another way."""
        return ServerRuns(filter(is_current, self.all), self.about)

    def expected_s(self, wanted: ServerRun) -> float | None:
        """How long a run will take, by those of the same kind; None when there is none."""
        took = summarise(
            run.took_s for run in self.of(wanted.server, wanted.target_connections, wanted.probes)
        )
        return took.median if took else None


def load(path: Path) -> ServerRuns:
    """Runs of earlier pieces; none when the file is not there."""
    try:
        stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return ServerRuns()
    return ServerRuns((ServerRun(**run) for run in stored["runs"]), stored["about"])


def save(runs: ServerRuns, path: Path) -> None:
    """Writes all runs; a piece that is cut off leaves the file whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".new")
    stored = {"about": runs.about, "runs": [asdict(run) for run in runs.all]}
    beside.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")
    beside.replace(path)
