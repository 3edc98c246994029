"""What may be asked of recordings, and how it is answered: by name and content, nothing is written.

Who answers is decided by ``harness.results.conclusion``. The modules that read what strangers wrote
are imported when they answer.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.results.results import Result
from probes.contract.rundir import RunDir

RESULTS, TEXT, TABLES = "results", "text", "tables"
COMPARISON, MATRIX_PAGE, BUNDLE = "comparison", "matrix_page", "bundle"
JSON, PAGE, FACTS = "json", "page", "facts"
"""Names of answers, beside those."""


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked.

    Attributes:
        what: One of the above.
        about: What has to be understood, for people.
        again: The command that asks once more, for people.
        with_page: A page is drawn, so matplotlib is wanted.
        options: As the one that answers takes them, of types that JSON has.
    """

    what: str
    about: str
    again: str
    with_page: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {"what": self.what, "with_page": self.with_page, "options": dict(self.options)}


def answers(
    what: str, runs: Sequence[RunDir], options: Mapping[str, Any], *, with_page: bool
) -> Iterator[Result]:
    """The files, or texts, that were asked for, as they are made.

    Args:
        what: See ``Request``.
        runs: The recordings.
        options: See ``Request``.
        with_page: See ``Request``.

    Raises:
        ToolkitError: A recording cannot be read, or has not what is asked for.
    """
    match what:
        case "results":
            from harness.results.pipeline import results

            yield from results(runs[0], with_page=with_page, **options)
        case "text":
            from harness.results.export import Choice, export_text

            choice = Choice(**options["choice"])
            yield TEXT, export_text(runs[0], options["form"], choice).encode()
        case "tables":
            from harness.results.export import export_tables

            yield from export_tables(runs[0], options["form"])
        case "comparison":
            from harness.results.comparison_texts import comparison_texts

            yield from comparison_texts(runs, with_page=with_page, **options)
        case "matrix_page":
            from harness.matrix.loop import page_text
            from harness.matrix.store import from_dict

            yield PAGE, page_text(from_dict(Path(options["path"]), options["matrix"])).encode()
        case "bundle":
            from harness.results.bundle import bundle_content

            content, facts = bundle_content(runs[0], **options)
            yield FACTS, json.dumps(facts).encode()
            yield BUNDLE, content
        case _:
            raise ValueError(what)
