"""What a probe is: the protocol that ``probes/collect/main.py`` drives, and the target it watches.

Life of a probe, all in one thread of the probe process, which is root where the run is::

    check() -> start(target) -> sample(at_ns) every period_s -> stop(at_ns)

A probe may have ``add_process(ref)``: a process of a server that is not ours came later; and
``remove_processes(pids)``: these have ended, and their numbers may be those of others soon. Of a
server in service (``Target.is_sparing``) the collector makes the periods longer, except where the
probe ``is_self_paced``; of one that ``writes_rows`` at each sample they also go by the size of
the recording; one that ``is_alarmed`` after a sample has seen what deserves close ones.

``check`` and ``start`` raise ``ProbeUnavailableError`` when the probe cannot run here: that becomes
its row in ``probe_health`` and nothing else. ``sample`` reads what the kernel aggregated and
appends rows to the probe's own ``TableWriter``s; the collector flushes and closes them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from probes.contract.live import Live
from probes.contract.rundir import RunDir
from probes.contract.table_writer import TableWriter


@dataclass(frozen=True, slots=True)
class ProcessRef:
    """One process to watch.

    Attributes:
        pid: Its kernel tgid.
        role: server, acceptor, client, supervisor or probe.
        worker: Number within its role, -1 for none.
        is_python: py-spy can read it.
    """

    pid: int
    role: str
    worker: int
    is_python: bool


@dataclass(slots=True)
class Target:
    """What the probes watch. The processes are complete when ``start`` is called.

    Attributes:
        run: Where tables go.
        processes: By pid; servers, acceptor and clients.
        server_ports: Ports the server listens on; a socket with such a local port is server side,
            with such a remote port client side.
        live: The fleet's shared memory, None where no fleet of ours runs.
        notes: What the probe that starts sees less of here than elsewhere, for people.
        attached: The target is watched with its real clients and knows nothing of it: its slots of
            the shared memory are filled by those who watch.
        is_foreign: The servers are not ours, and do not count for themselves.
        is_sparing: Probes whose cost falls on the target watch it a part of the time.
        allow_pauses: The user allows probes to stop the target for a moment.
        stretch: How much longer than usual the periods are now, for the sake of the target.
        stop_by_ns: By when every probe has to have stopped, 0 as long as nobody asked.
        stop_slowness: How many times longer than usual that may take on this host: 1 or more.
        row_stretch: The same for what writes rows, for the sake of the recording's size.
        is_coarse: Rows are few now, to keep the recording small.
    """

    run: RunDir
    processes: dict[int, ProcessRef]
    server_ports: frozenset[int]
    live: Live | None
    notes: list[str] = field(default_factory=list)
    attached: bool = False
    is_foreign: bool = False
    is_sparing: bool = False
    allow_pauses: bool = False
    stretch: float = 1.0
    stop_by_ns: int = 0
    stop_slowness: float = 1.0
    row_stretch: float = 1.0
    is_coarse: bool = False


class Probe(Protocol):
    """One source of tables.

    Attributes:
        name: Of the registry.
        period_s: Time between samples.
        lost_count: Events or samples that it saw and could not record.
        seen_count: All of them, those that it lost too; -1 where only rows can be lost.
        late_count: Samples of its own that came late.
        writers: Of its tables, in order.
    """

    name: str
    period_s: float
    lost_count: int
    seen_count: int
    late_count: int
    writers: list[TableWriter]

    def check(self) -> None:
        """Says whether it can run here, cheaply and without side effects.

        Raises:
            ProbeUnavailableError: It cannot; message and fix say why and what would help.
        """

    def start(self, target: Target) -> None:
        """Attaches to the target.

        Raises:
            ProbeUnavailableError: The kernel refused.
        """

    def sample(self, at_ns: int) -> None:
        """Reads what came since the last call and appends rows."""

    def stop(self, at_ns: int) -> None:
        """Takes the last sample and detaches; must work after any failure of ``start``."""
