"""The table of other people's servers as a page: drawings first, every number below. Pure."""

from __future__ import annotations

from dataclasses import replace

from bench import server_tables
from bench.server_figures import ServerRuns
from bench.server_tables import RAMP, SERVER_CPU, SERVER_MEMORY, Figure
from reports.elements.tables import Cell, Heading, Table
from reports.page import servers as servers_page
from reports.page.servers import Bar, Bars, ServersFacts, ServersPart, Tile


def page(runs: ServerRuns) -> str:
    """One HTML file."""
    small, large = server_tables.sizes_of(runs)
    parts = [
        ServersPart(
            f"costs-{size}",
            "Cost",
            server_tables.cost_title(size),
            "Every dot is a run, the bar ends at their median. In the table: the median, lowest "
            "and highest in brackets.",
            _breaking(server_tables.cost_table(runs, size)),
            [bars(runs, size, figure) for figure in (SERVER_CPU, SERVER_MEMORY)],
        )
        for size in small
    ]
    for size in large:
        parts += [
            ServersPart(
                f"ways-{size}",
                "Ceiling",
                server_tables.way_title(size),
                "How many were held, in what time, and whose time that was. Drawn are those that "
                "held all.",
                _breaking(server_tables.way_table(runs, size)),
                [bars(runs, size, figure, of_reached=True) for figure in (RAMP, SERVER_CPU)],
            ),
            ServersPart(
                f"limits-{size}",
                "Limits",
                "Who meets what first",
                "The limit that stopped the run, or the next of its ladder, on the server's side.",
                server_tables.walls_table(runs, size),
            ),
        ]
    rows = [[Cell(name), Cell(text)] for name, text in server_tables.versions(runs)]
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
            tiles=tiles(runs),
            parts=parts,
            method=server_tables.METHOD,
            remarks=server_tables.remarks(runs),
            command=server_tables.COMMAND,
        )
    )


def _breaking(table: Table) -> Table:
    """The same with numbers that break before their bracket only, where there is no room."""
    rows = [[replace(cell, text=cell.text.replace(" to ", "\u00a0to\u00a0")) for cell in row]
            for row in table.rows]  # fmt: skip
    return replace(table, rows=rows)


def bars(runs: ServerRuns, size: int, figure: Figure, *, of_reached: bool = False) -> Bars:
    """One figure of every server, or of those that held all; the lowest first."""
    found = []
    for peer in server_tables.measured(runs, size):
        spread = runs.spread(peer.name, size, figure.field)
        if spread is None or (of_reached and not _is_reached(runs, peer.name, size)):
            continue
        values = [getattr(run, figure.field) for run in runs.counted(peer.name, size)]
        found.append(
            Bar(
                peer.title,
                [value * figure.scale for value in values if value is not None],
                spread.median * figure.scale,
                f"{figure.text(spread.median)} {figure.unit}",
            )
        )
    found.sort(key=lambda bar: bar.median)
    name = f"{figure.field.replace('_', '-')}-{size}"
    window = f"{figure.per}, at {size:,} connections; less is better"
    return Bars(name, figure.label, window, figure.unit, found)


def _is_reached(runs: ServerRuns, name: str, size: int) -> bool:
    return any(run.is_reached for run in runs.of(name, size, "none"))


def tiles(runs: ServerRuns) -> list[Tile]:
    """The answers that people look for first."""
    small, large = server_tables.sizes_of(runs)
    asked = [(size, "Least server CPU", SERVER_CPU) for size in small]
    asked += [(size, "Least server memory", SERVER_MEMORY) for size in small]
    asked += [(size, f"First at {size:,}", RAMP) for size in large]
    found = []
    for size, label, figure in asked:
        drawn = bars(runs, size, figure, of_reached=True).bars
        if drawn:
            found.append(Tile(label, drawn[0].text, drawn[0].name))
    for size in large:
        peers = server_tables.measured(runs, size)
        held = [peer for peer in peers if _is_reached(runs, peer.name, size)]
        found.append(Tile(f"Held {size:,}", f"{len(held)} of {len(peers)}", "servers"))
    return found
