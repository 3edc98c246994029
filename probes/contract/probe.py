"""What a probe is: the class that ``probes/collect/main.py`` drives, and the target it watches.

Life of a probe, all in one thread of the probe process, which is root where the run is::

    check() -> start(target) -> sample(at_ns) every period_s -> stop(at_ns)

Every other method of ``Probe`` is a capability that a probe may have; the collector asks for it and
not for the probe's name. Of a server in service (``Target.is_sparing``) the collector makes the
periods longer, except where the probe ``is_self_paced``.

``check`` and ``start`` raise ``ProbeUnavailableError`` when the probe cannot run here: that becomes
its row in ``probe_health`` and nothing else. ``sample`` reads what the kernel aggregated and
appends rows to the probe's own ``TableWriter``s; the collector flushes and closes them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

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


def never() -> bool:
    """Nobody waits for an end."""
    return False


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
        is_stop_asked: Whether somebody waits for the probes to stop: what takes seconds asks.
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
    is_stop_asked: Callable[[], bool] = never
    stop_slowness: float = 1.0
    row_stretch: float = 1.0
    is_coarse: bool = False


class AcceptFailures(NamedTuple):
    """What was counted since the start of a run.

    Attributes:
        count_by_pid: Accepts that returned an error, EAGAIN aside.
        watched_ns: For how long calls were counted.
    """

    count_by_pid: Mapping[int, int]
    watched_ns: int


class Probe:
    """One source of tables; what a probe does not say is as here.

    Attributes:
        name: Of the registry.
        period_s: Time between samples.
        stop_limit_s: How long its stop may take, None for the usual time.
        stop_order: Those with less are stopped first.
        is_sampled_at_hold: One more sample is taken when the hold phase begins.
        is_self_paced: It watches a target in service within a budget of its own.
        writes_rows: Each sample of it is rows, whatever happens.
        is_alarmed: Its last sample has seen what deserves close ones.
        lost_count: Events or samples that it saw and could not record.
        seen_count: All of them, those that it lost too; -1 where only rows can be lost.
        late_count: Samples of its own that came late.
        child_cpu_ns: CPU time of its own processes.
        bpf_run_ns: CPU time in its eBPF programs, -1 where that is not counted.
        missed_count: Runs of its programs that the kernel skipped.
        run_count: Runs of its programs, those skipped among them; -1 where they are not counted.
        writers: Of its tables, in order.
    """

    name: str = ""
    period_s: float = 1.0
    stop_limit_s: float | None = None
    stop_order: int = 0
    is_sampled_at_hold: bool = False
    is_self_paced: bool = False
    writes_rows: bool = False
    is_alarmed: bool = False
    lost_count: int = 0
    seen_count: int = -1
    late_count: int = 0
    child_cpu_ns: int = 0
    bpf_run_ns: int = -1
    missed_count: int = 0
    run_count: int = -1

    def __init__(self) -> None:
        self.writers: list[TableWriter] = []

    @property
    def note(self) -> str:
        """What it saw less of than it would elsewhere, for its row of ``probe_health``."""
        return ""

    @property
    def unwatched_ns(self) -> int:
        """How long it did not watch what it was started for."""
        return 0

    def check(self) -> None:
        """Says whether it can run here, cheaply and without side effects.

        Raises:
            ProbeUnavailableError: It cannot; message and fix say why and what would help.
        """

    def prepare(self) -> None:
        """Does what takes long and needs no target: compilers run before the fleet is ready.

        Raises:
            ProbeUnavailableError: The kernel or the machine cannot.
        """

    def start(self, target: Target) -> None:
        """Attaches to the target.

        Raises:
            ProbeUnavailableError: The kernel refused.
        """

    def add_process(self, ref: ProcessRef) -> None:
        """A process of a server that is not ours came later."""

    def remove_processes(self, pids: Collection[int]) -> None:
        """These have ended, and their numbers may be those of others soon."""

    def focus(self, pid: int) -> None:
        """This process is hot, 0: none is any more."""

    def watch(self, pids: set[int]) -> None:
        """Counts for these processes alone, where counting costs every call of theirs."""

    def accept_failures(self) -> AcceptFailures | None:
        """Failed accepts by process; None from a probe that counts none."""
        return None

    def sample(self, at_ns: int) -> None:
        """Reads what came since the last call and appends rows."""

    def request_stop(self) -> None:
        """Has its own processes begin to end, while other probes take their last samples."""

    def stop(self, at_ns: int) -> None:
        """Takes the last sample and detaches; must work after any failure of ``start``."""
