"""The table of other people's servers as Markdown that also reads well in a terminal. Pure."""

from __future__ import annotations

from bench import document, server_tables
from bench.document import bullets
from bench.server_figures import ServerRuns
from reports.elements.tables import Table


def render(runs: ServerRuns) -> str:
    """The document."""
    small, large = server_tables.sizes_of(runs)
    parts = [
        "# Other people's servers",
        f"Measured by `{server_tables.COMMAND}`; the same as a page, with a drawing of every run: "
        "[benchmarks-servers.html](benchmarks-servers.html).",
    ]
    for size in small:
        table = server_tables.cost_table(runs, size)
        parts += [f"## {table.caption}", _plain(table)]
    for size in large:
        table = server_tables.way_table(runs, size)
        parts += [f"## {table.caption}", _plain(table)]
        if table.note:
            parts.append(bullets([table.note]).removeprefix("- ").replace("\n  ", "\n"))
        words = [f"{wall.server}: {wall.words}" for wall in server_tables.walls(runs, size)]
        parts += ["## Who meets what first", bullets(words)]
    versions = [f"{name}: {text}" for name, text in server_tables.versions(runs)]
    parts += ["## Versions", bullets(versions)]
    if said := server_tables.remarks(runs):
        parts += ["## Remarks", bullets(said)]
    parts += ["## Where", bullets([f"{name}: {value}" for name, value in runs.about.items()])]
    parts += ["## How it is measured", bullets(server_tables.METHOD)]
    return "\n\n".join(parts) + "\n"


def _plain(table: Table) -> str:
    head = [
        heading.label + (f", {heading.unit}" if heading.unit else "") for heading in table.headings
    ]
    return document.table(head, [[cell.text for cell in row] for row in table.rows])
