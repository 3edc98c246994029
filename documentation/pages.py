"""Which pages are made, by kind."""

from __future__ import annotations

from collections.abc import Callable

from documentation.man_pages import man_pages
from documentation.probes_page import probes_page
from documentation.reference import (
    causes_page,
    commands_page,
    evidence_page,
    exit_codes_page,
    limits_page,
    tables_page,
)
from documentation.verdict_file import verdict_page


def reference() -> dict[str, str]:
    """Path to text of the pages in Markdown."""
    return {
        "docs/reference/commands.md": commands_page(),
        "docs/reference/exit-codes.md": exit_codes_page(),
        "docs/reference/tables.md": tables_page(),
        "docs/reference/causes.md": causes_page(),
        "docs/reference/evidence.md": evidence_page(),
        "docs/reference/limits.md": limits_page(),
        "docs/reference/verdict.md": verdict_page(),
        "docs/explanation/probes.md": probes_page(),
    }


KINDS: dict[str, Callable[[], dict[str, str]]] = {"man": man_pages, "reference": reference}
