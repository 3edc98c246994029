"""What is said of other people's servers: the tables that the document and the page share. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from bench.figures import Spread
from bench.peers.catalogue import PEERS, Peer
from bench.server_figures import ServerRun, ServerRuns
from reports.elements.tables import Cell, Heading, Table

COMMAND = "make bench-servers"
_PID = re.compile(r", pid \d+")
_FULL_PCT = 85.0
"""Of all cores: more is a ramp that the cores limit."""


class Figure(NamedTuple):
    """A figure of a table: field of ServerRun, label, unit, what a unit is, decimals."""

    field: str
    label: str
    unit: str
    per: str
    scale: float
    decimals: int

    def text(self, value: float) -> str:
        """A value of the field, in the unit of the column."""
        return f"{value * self.scale:,.{self.decimals}f}"


SERVER_CPU = Figure("server_cpu_us", "Server CPU", "µs", "a connection", 1.0, 1)
CLIENT_CPU = Figure("client_cpu_us", "Clients' CPU", "µs", "a connection", 1.0, 1)
SERVER_MEMORY = Figure("server_pss_bytes", "Server memory", "kB", "a connection", 1e-3, 1)
KERNEL_MEMORY = Figure("slab_bytes", "Kernel memory", "kB", "a connection", 1e-3, 1)
BASE_MEMORY = Figure("base_pss_bytes", "Memory", "MB", "before the first", 1e-6, 0)
RAMP = Figure("ramp_s", "Time", "s", "to the last one", 1.0, 2)
BUSY = Figure("ramp_busy_pct", "Cores busy", "%", "in the ramp", 1.0, 0)
DROPS = Figure("listen_drop_count", "Dropped", "", "at a full accept queue", 1.0, 0)

_COST = (SERVER_CPU, SERVER_MEMORY, KERNEL_MEMORY, RAMP, CLIENT_CPU, BUSY, BASE_MEMORY)
_WAY = (RAMP, SERVER_CPU, CLIENT_CPU, BUSY, DROPS)

METHOD = (
    "Every server is an echo server as its documentation shows it, compression and pings off, with "
    "the backlog that it has by itself, and the hard RLIMIT_NOFILE of this host. It has a network "
    "namespace of its own, and all its processes are up and idle before the first connection.",
    "Runs alternate: one of each server, then the next of each, every second round backwards. "
    "Before each the bench waits for a quiet host. A run that began on another, or in whose ramp "
    "others took a quarter of the CPU, does not count where a quiet one is there.",
    "The clients are those of profile-run --target, at most 100 connects under way at once; they "
    "share the cores with the server, so times are those of both together.",
    "Cells are the median of the runs without probes, lowest and highest in brackets. The limit "
    "that was met, or is next, is from one more run with the default probes.",
    "CPU is the scheduler's run time of all processes of the server (of nginx: those behind it "
    "too) from the first attempt to the end of the last, divided by the connections that opened. "
    "It contains the system calls and the TCP work that loopback does in them. Cores busy is the "
    "time that all cores were not idle in the ramp: also the kernel's own work and what watches.",
    "Server memory is the growth of PSS of all its processes from before the first connection to "
    "the hold, per connection held. Runtimes with a garbage collector grow in steps.",
    "Kernel memory is the growth of Slab in /proc/meminfo: both ends of each connection, and both "
    "of the one behind a proxy. Idle sockets hold no buffers.",
    "Dropped is TcpExtListenOverflows of the server's namespace: each costs its client a second.",
    "Processes are those that serve, as many as the descriptor limit asks for, with a tenth to "
    "spare; four tenths where all accept from one listener, which fills them unevenly.",
)


def measured(runs: ServerRuns, size: int) -> list[Peer]:
    """The servers that have a run at this size, in the order of the catalogue."""
    return [peer for peer in PEERS if runs.of(peer.name, size)]


def spread_text(spread: Spread | None, figure: Figure) -> str:
    """Median and, where they look different, lowest and highest, without the unit."""
    if spread is None:
        return "-"
    median, low, high = map(figure.text, (spread.median, spread.low, spread.high))
    return median if low == high else f"{median} ({low} to {high})"


def _heading(figure: Figure) -> Heading:
    return Heading(figure.label, f"{figure.unit} {figure.per}".strip(), is_number=True)


def _cells(runs: ServerRuns, size: int, name: str, figures: Sequence[Figure]) -> list[Cell]:
    spreads = [(runs.spread(name, size, figure.field), figure) for figure in figures]
    return [
        Cell(spread_text(spread, figure), spread.median if spread else -1.0)
        for spread, figure in spreads
    ]


def _processes_cell(runs: ServerRuns, size: int, name: str) -> Cell:
    workers = runs.of(name, size)[-1].workers
    return Cell(str(workers), workers)


def _runs_cell(runs: ServerRuns, size: int, name: str) -> Cell:
    """How many runs count; said where none of them had a quiet host."""
    counted = runs.counted(name, size)
    is_quiet = all(run.was_quiet for run in counted)
    return Cell(
        str(len(counted)) if is_quiet else f"{len(counted)}, none quiet",
        len(counted),
        tone="" if is_quiet else "warn",
    )


_RUNS_HEADING = Heading("Runs", is_number=True)


def cost_table(runs: ServerRuns, size: int) -> Table:
    """What a connection costs each server, where all of them can hold that many."""
    rows = [
        [
            Cell(peer.title),
            *_cells(runs, size, peer.name, _COST),
            _runs_cell(runs, size, peer.name),
        ]
        for peer in measured(runs, size)
    ]
    headings = (Heading("Server"), *map(_heading, _COST), _RUNS_HEADING)
    return Table(f"cost-{size}", cost_title(size), headings, rows)


def cost_title(size: int) -> str:
    """Of the part about costs."""
    return f"What a connection costs, at {size:,}"


def way_table(runs: ServerRuns, size: int) -> Table:
    """How far each server comes, and how fast."""
    rows = []
    for peer in measured(runs, size):
        held = [run.held_count for run in runs.of(peer.name, size) if run.held_count is not None]
        most = max(held, default=0)
        tone = "" if all(count == size for count in held) else "bad"
        rows.append(
            [
                Cell(peer.title),
                Cell(_held_text(held), most, most / size, tone=tone),
                *_cells(runs, size, peer.name, _WAY),
                _processes_cell(runs, size, peer.name),
                _runs_cell(runs, size, peer.name),
            ]
        )
    headings = (
        Heading("Server"),
        Heading("Held", "connections", is_number=True),
        *map(_heading, _WAY),
        Heading("Processes", is_number=True),
        _RUNS_HEADING,
    )
    return Table(f"way-{size}", way_title(size), headings, rows, note=what_limits(runs, size))


def way_title(size: int) -> str:
    """Of the part about the way to many connections."""
    return f"The way to {size:,}"


def _held_text(held: Sequence[int]) -> str:
    if not held:
        return "-"
    low, high = min(held), max(held)
    return f"{high:,}" if low == high else f"{low:,} to {high:,}"


def what_limits(runs: ServerRuns, size: int) -> str:
    """Whose time the times are: the servers' is said of nobody, the clients', or waiting."""
    clients, waiting = [], []
    for peer in measured(runs, size):
        busy, client, server = (
            runs.spread(peer.name, size, field)
            for field in ("ramp_busy_pct", "client_cpu_us", "server_cpu_us")
        )
        if busy is None or client is None or server is None:
            continue
        workers = runs.of(peer.name, size)[-1].workers
        if busy.median < _FULL_PCT and workers > 1:  # one process fills one core only
            waiting.append(f"{peer.title} ({busy.median:.0f} %)")
        if server.median < client.median:
            part_pct = 100 * server.median / (server.median + client.median)
            clients.append(f"{peer.title} ({part_pct:.0f} %)")
    said = []
    if clients:
        said.append(
            "Of the CPU of both, less than half was the server's, so that the time is rather that "
            f"of the clients, and CPU tells more: {', '.join(clients)}."
        )
    if waiting:
        said.append(f"The cores were not full, connections waited: {', '.join(waiting)}.")
    return " ".join(said)


class Wall(NamedTuple):
    """The limit that a server met, or meets next."""

    server: str
    is_met: bool
    limit: str
    at_connections: int | None
    words: str


def walls(runs: ServerRuns, size: int) -> list[Wall]:
    """Who hits what first, of each server."""
    found = []
    for peer in measured(runs, size):
        run = runs.verdict(peer.name, size)
        if run is not None:
            found.append(_wall(peer, run))
    return found


def _wall(peer: Peer, run: ServerRun) -> Wall:
    """In words, without the pids of that run."""
    if run.cause not in ("", "reached"):
        words = _PID.sub("", run.sentence)
        return Wall(peer.title, True, run.cause, run.held_count, words)
    if not run.next_wall_connections:
        return Wall(peer.title, False, "-", None, "held all; this run cannot tell what is next")
    limit, _, who = _PID.sub("", run.next_wall).partition(" of ")
    at = f"at about {run.next_wall_connections:,}"
    words = f"held all; next: {limit.replace('_', ' ')} of {who}, {at}"
    return Wall(peer.title, False, limit, run.next_wall_connections, words)


def walls_table(runs: ServerRuns, size: int) -> Table:
    """The same as a table, the nearest wall first."""
    rows = [
        [
            Cell(wall.server),
            Cell(wall.limit, tone="bad" if wall.is_met else "", is_code=True),
            Cell(f"{wall.at_connections:,}" if wall.at_connections else "-",
                 wall.at_connections or -1.0),
            Cell(wall.words),
        ]
        for wall in sorted(walls(runs, size), key=lambda wall: wall.at_connections or 1 << 40)
    ]  # fmt: skip
    headings = (
        Heading("Server"),
        Heading("Limit"),
        Heading("At", "connections", is_number=True),
        Heading("In words"),
    )
    return Table(f"walls-{size}", "Who meets what first", headings, rows)


def versions(runs: ServerRuns) -> list[tuple[str, str]]:
    """Each server with the versions that its last run had."""
    found = []
    for peer in PEERS:
        mine = [run for run in runs.all if run.server == peer.name and run.versions]
        if mine:
            last = mine[-1].versions
            found.append((peer.title, ", ".join(f"{name} {last[name]}" for name in last)))
    return found


def remarks(runs: ServerRuns) -> list[str]:
    """What could not be measured, and what disturbed it."""
    said = [
        f"{run.server} at {run.target_connections:,}, probes {run.probes}: {run.error}"
        for run in runs.all
        if run.error
    ]
    disturbed = [run for run in runs.all if not run.error and not run.was_quiet]
    if disturbed:
        names = ", ".join(dict.fromkeys(run.server for run in disturbed))
        said.append(
            f"The host was not quiet in {len(disturbed)} of {len(runs.all)} runs, of {names}."
        )
    measured = {run.server for run in runs.all}
    said += [
        f"{peer.title}: {peer.remark}." for peer in PEERS if peer.remark and peer.name in measured
    ]
    return said


def sizes_of(runs: ServerRuns) -> tuple[list[int], list[int]]:
    """Sizes for the table of costs (every run of some server reached it) and for the way."""
    sizes = runs.sizes()
    return sizes[:1], sizes[-1:]
