"""The table of other people's servers, as Markdown and as a page. Pure."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence

from bench import document
from bench.figures import Spread
from bench.peers.catalogue import PEERS, Peer
from bench.server_figures import ServerRun, ServerRuns
from reports import servers_page
from reports.servers_page import ServersFacts, ServersPart
from reports.tables import Cell, Heading, Table

_QUIET_PCT = 10.0
_COMMAND = "make bench-servers"
_PID = re.compile(r", pid \d+")
_WIDTH = 100

_COST_HEAD = (
    Heading("Server"),
    Heading("Server CPU", "a connection", is_number=True),
    Heading("Server memory", "a connection", is_number=True),
    Heading("Kernel memory", "a connection", is_number=True),
    Heading("Time", "to the last one", is_number=True),
    Heading("Processes", "", is_number=True),
    Heading("Runs", "", is_number=True),
    Heading("Memory", "before the first", is_number=True),
)
_WAY_HEAD = (
    Heading("Server"),
    Heading("Held", "connections", is_number=True),
    Heading("Time", "to the last one", is_number=True),
    Heading("Server CPU", "a connection", is_number=True),
    Heading("Processes", "", is_number=True),
    Heading("Runs", "", is_number=True),
    Heading("What was met first, or comes next"),
)

METHOD = (
    "Every server is an echo server as its documentation shows it, compression and pings off, with "
    "the backlog that it has by itself, and the hard RLIMIT_NOFILE of this host. It has a network "
    "namespace of its own, and all its processes are up and idle before the first connection.",
    "The clients are those of profile-run --target, at most 100 connects under way at once; they "
    "share the cores with the server, so times are those of both together.",
    "Cells are the median of the runs without probes, lowest and highest in brackets. The verdict "
    "is that of one more run with the default probes.",
    "CPU is the scheduler's run time of all processes of the server (of nginx: those behind it "
    "too) from the first attempt to the end of the last, divided by the connections that opened. "
    "It contains the system calls and the TCP work that loopback does in them.",
    "Server memory is the growth of PSS of all its processes from before the first connection to "
    "the hold, per connection held. Runtimes with a garbage collector grow in steps.",
    "Kernel memory is the growth of Slab in /proc/meminfo: both ends of each connection, and both "
    "of the one behind a proxy. Idle sockets hold no buffers.",
    "Processes are those that serve, as many as the descriptor limit asks for, with a tenth to "
    "spare; four tenths where all accept from one listener, which fills them unevenly.",
)


def _cell(spread: Spread | None, unit: str, highest: float = 0.0) -> Cell:
    text = "-" if spread is None else _spread_text(spread, unit)
    share = spread.median / highest if spread and highest > 0 else None
    return Cell(text, spread.median if spread else -1.0, None if share is None else max(0.0, share))


def _spread_text(spread: Spread, unit: str) -> str:
    if unit != "kB":
        return document.spread_text(spread, unit)
    median, low, high = (f"{value / 1e3:.1f}" for value in (spread.median, spread.low, spread.high))
    return f"{median} kB" if low == high else f"{median} kB ({low} to {high})"


def _measured(runs: ServerRuns, size: int) -> list[Peer]:
    return [peer for peer in PEERS if runs.of(peer.name, size)]


def _highest(runs: ServerRuns, size: int, figure: str) -> float:
    spreads = [runs.spread(peer.name, size, figure) for peer in _measured(runs, size)]
    return max((spread.median for spread in spreads if spread), default=0.0)


def cost_table(runs: ServerRuns, size: int) -> Table:
    """What a connection costs each server, where all of them can hold that many."""
    rows = []
    for peer in _measured(runs, size):

        def cell(figure: str, unit: str, name: str = peer.name) -> Cell:
            spread = runs.spread(name, size, figure)
            return _cell(spread, unit, _highest(runs, size, figure))

        done = runs.of(peer.name, size, "none")
        rows.append(
            [
                Cell(peer.title),
                cell("server_cpu_us", "us"),
                cell("server_pss_bytes", "kB"),
                cell("slab_bytes", "kB"),
                cell("ramp_s", "s"),
                Cell(str(done[-1].workers if done else "-")),
                Cell(str(len(done))),
                _cell(runs.spread(peer.name, size, "base_pss_bytes"), "bytes"),
            ]
        )
    return Table(f"cost-{size}", _cost_title(size), _COST_HEAD, rows)


def _cost_title(size: int) -> str:
    return f"What a connection costs, at {size:,}"


def way_table(runs: ServerRuns, size: int) -> Table:
    """How far each server comes, how fast, and what it meets first."""
    rows = []
    for peer in _measured(runs, size):
        done = runs.of(peer.name, size, "none") or runs.of(peer.name, size)
        held = [run.held_count for run in runs.of(peer.name, size) if run.held_count is not None]
        verdict = runs.verdict(peer.name, size)
        is_reached = all(count == size for count in held)
        rows.append(
            [
                Cell(peer.title),
                Cell(_held_text(held), max(held, default=0), max(held, default=0) / size,
                     tone="" if is_reached else "bad"),
                _cell(runs.spread(peer.name, size, "ramp_s"), "s"),
                _cell(runs.spread(peer.name, size, "server_cpu_us"), "us"),
                Cell(str(done[-1].workers)),
                Cell(str(len(runs.of(peer.name, size, "none")))),
                Cell(_first_wall(verdict) if verdict else "-"),
            ]
        )  # fmt: skip
    return Table(f"way-{size}", _way_title(size), _WAY_HEAD, rows)


def _way_title(size: int) -> str:
    return f"The way to {size:,}"


def _held_text(held: Sequence[int]) -> str:
    if not held:
        return "-"
    low, high = min(held), max(held)
    return f"{high:,}" if low == high else f"{low:,} to {high:,}"


def _first_wall(run: ServerRun) -> str:
    """In words, without the pids of that run."""
    if run.cause != "reached":
        return f"{run.cause}: {_PID.sub('', run.sentence)}"
    if not run.next_wall_connections:
        return "held all; this run cannot tell what is next"
    limit, _, who = _PID.sub("", run.next_wall).partition(" of ")
    at = f"at about {run.next_wall_connections:,}"
    return f"held all; next: {limit.replace('_', ' ')} of {who}, {at}"


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
    busy = [run.background_pct for run in runs.all if (run.background_pct or 0) > _QUIET_PCT]
    if busy:
        most = max(value for value in busy if value is not None)
        said.append(
            f"The host was not quiet before {len(busy)} of {len(runs.all)} runs: others used up to "
            f"{most:.0f} % of a core."
        )
    return said


def _sizes(runs: ServerRuns) -> tuple[list[int], list[int]]:
    """Sizes for the table of costs (every run of some server reached it) and for the way."""
    sizes = runs.sizes()
    return sizes[:1], sizes[-1:]


def _bullets(sentences: Sequence[str]) -> str:
    return "\n".join(
        textwrap.fill(
            f"- {sentence}", _WIDTH, subsequent_indent="  ", break_long_words=False,
            break_on_hyphens=False,
        )
        for sentence in sentences
    )  # fmt: skip


def _plain(table: Table) -> str:
    head = [
        heading.label + (f" {heading.unit}" if heading.unit else "") for heading in table.headings
    ]
    return document.table(head, [[cell.text for cell in row] for row in table.rows])


def render(runs: ServerRuns) -> str:
    """The document as Markdown that also reads well in a terminal."""
    small, large = _sizes(runs)
    parts = [
        "# Other people's servers",
        f"Measured by `{_COMMAND}`; the same as a page: "
        "[benchmarks-servers.html](benchmarks-servers.html).",
    ]
    for size in small:
        parts += [f"## {_cost_title(size)}", _plain(cost_table(runs, size))]
    for size in large:
        table = way_table(runs, size)
        walls = [f"{row[0].text}: {row[-1].text}" for row in table.rows]
        short = Table(table.id, table.caption, table.headings[:-1], [r[:-1] for r in table.rows])
        parts += [f"## {_way_title(size)}", _plain(short)]
        parts += ["What was met first, or comes next:", _bullets(walls)]
    parts += ["## Versions", _bullets([f"{name}: {text}" for name, text in versions(runs)])]
    if said := remarks(runs):
        parts += ["## Remarks", _bullets(said)]
    parts += ["## Where", _bullets([f"{name}: {value}" for name, value in runs.about.items()])]
    parts += ["## How it is measured", _bullets(METHOD)]
    return "\n\n".join(parts) + "\n"


def page(runs: ServerRuns) -> str:
    """The same as one HTML file."""
    small, large = _sizes(runs)
    parts = [
        ServersPart(
            f"costs-{size}",
            "Cost",
            _cost_title(size),
            "Median of the runs, lowest and highest in brackets; bars against the highest.",
            cost_table(runs, size),
        )
        for size in small
    ]
    parts += [
        ServersPart(
            f"ways-{size}",
            "Ceiling",
            _way_title(size),
            "How many were held, in what time, and which limit stopped the rest or comes next.",
            way_table(runs, size),
        )
        for size in large
    ]
    rows = [[Cell(name), Cell(text)] for name, text in versions(runs)]
    table = Table("versions-table", "Versions", (Heading("Server"), Heading("Versions")), rows)
    parts.append(
        ServersPart("versions", "Versions", "Versions", "As each says them itself.", table)
    )
    count = len({run.server for run in runs.all})
    sizes = " and ".join(f"{size:,}" for size in dict.fromkeys([*small, *large]))
    return servers_page.render(
        ServersFacts(
            headline=f"{count} WebSocket servers at {sizes} connections",
            lead="What an idle connection costs on the server's side, how far each server comes "
            "on this machine, and which limit it meets first.",
            about=list(runs.about.items()),
            parts=parts,
            method=METHOD,
            remarks=remarks(runs),
            command=_COMMAND,
        )
    )
