"""``docs/explanation/probes.md``: how each probe works and what it costs, from its module."""

from __future__ import annotations

import importlib
import inspect

from documentation.markdown import code_marks, section, table
from documentation.reference import MADE
from probes.collect.registry import PROBES, SETS

HEADINGS = ("Measures", "Hook", "Cost", "Misses", "Checked against")


def probe_docstrings() -> dict[str, str]:
    """Probe to the docstring of its module; what a library keeps from loading is no reason."""
    return {
        name: inspect.getdoc(importlib.import_module(entry.factory.partition(":")[0])) or ""
        for name, entry in PROBES.items()
    }


def probes_page() -> str:
    """The page."""
    docstrings = probe_docstrings()
    rows = [
        (f"[{name}](#{name})", docstrings[name].splitlines()[0], ", ".join(entry.sets))
        for name, entry in PROBES.items()
    ]
    parts = [
        MADE,
        "# How each probe works, and what it costs\n",
        f"A set is chosen with `--probes {'`, `'.join(SETS)}`; `auto` is the default. What the\n"
        "whole default set costs is measured in [Benchmarks](../benchmarks.md); what it cost in a\n"
        "run, and what it lost there, stands in the last section of that run's report.\n",
        table(("probe", "answers", "sets"), rows),
    ]
    for name, doc in docstrings.items():
        parts += [f"## {name}\n", f"{code_marks(doc.splitlines()[0])}\n"]
        for heading in HEADINGS:
            parts.append(f"**{heading}.** {code_marks(section(doc, heading))}\n")
    return "\n".join(parts)
