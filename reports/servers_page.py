"""Writes the page about other people's servers, in the look of report.html. Computes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from reports.page import render_page
from reports.tables import Table


@dataclass(frozen=True, slots=True)
class ServersPart:
    """One table with its title.

    Attributes:
        id: Unique in the page.
        short: For the navigation.
        title: The question that it answers.
        lead: What its columns mean.
        table: The numbers.
    """

    id: str
    short: str
    title: str
    lead: str
    table: Table


@dataclass(frozen=True, slots=True)
class ServersFacts:
    """Everything that the page says.

    Attributes:
        headline: What was measured.
        lead: One line for people.
        about: Kernel, processor, versions of what measures.
        parts: The tables.
        method: One sentence each.
        remarks: What went wrong or disturbed.
        command: That measures it anew.
    """

    headline: str
    lead: str
    about: Sequence[tuple[str, str]]
    parts: Sequence[ServersPart]
    method: Sequence[str]
    remarks: Sequence[str]
    command: str


def render(facts: ServersFacts) -> str:
    """The whole page as HTML."""
    return render_page(
        "servers.html.j2", {"facts": facts, "figure_css": ""}, ("page.css",), ("page.js",)
    )
