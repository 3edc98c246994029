"""The pages of ``docs/reference/`` from parsers, schema, causes and exit codes. Pure."""

from __future__ import annotations

import importlib
import inspect
import pkgutil

from analysis import findings
from analysis.causes import INTERRUPTED, NOT_EXPLAINED
from analysis.evidence import sentence_of
from analysis.evidence_kinds import EVIDENCE_KINDS
from analysis.findings import CATALOGUE, origins_of
from documentation.markdown import code_marks, table
from harness.commands.family import COMMANDS
from harness.faults import kinds as faults
from harness.matrix import scenario
from harness.options.parser import Parser
from probes.contract.errors import ExitCode
from probes.contract.limits import LIMITS
from probes.contract.schema import SCHEMA_VERSION, TABLES

MADE = "<!-- Made by `make reference` from the code; changes here are lost. -->\n"


def commands_page() -> str:
    """Every command with all of its help."""
    parts = [MADE, "# Commands\n", "`--help` of a command fits a screen; this is all of it.\n"]
    for command in COMMANDS:
        parser = command.make_parser()
        parts += [f"## {command.name}\n", f"{parser.description}\n"]
        if parser.remarks:
            parts.append(f"{parser.remarks}\n")
        parts += ["```", parser.usage or parser.prog, "```\n"]
        for title, _, actions in parser.groups():
            if title not in ("options", "positional arguments"):
                parts.append(f"### {command.name}: {title}\n")
            rows = []
            for action in actions:
                value = "" if action.nargs == 0 else str(action.metavar or "")
                if action.choices is not None and not action.metavar:
                    value = "{" + ",".join(str(choice) for choice in action.choices) + "}"
                names = ", ".join(action.option_strings)
                meaning = action.help or ""
                if action.choices is not None and action.metavar:
                    meaning += f" [{', '.join(str(choice) for choice in action.choices)}]"
                rows.append((f"`{f'{names} {value}'.strip()}`", meaning))
            parts.append(table(("option", "is"), rows))
        parts += ["Examples:\n", _examples(parser)]
    parts += ["## Faults of --inject\n", "`NAME:NUMBER[:VALUE]`, the number within its role.\n"]
    kinds = [
        (f"`{name}`", kind.role, f"{kind.default:g} {kind.unit}" if kind.unit else "", kind.meaning)
        for name, kind in faults.KINDS.items()
    ]
    parts.append(table(("name", "whose number", "value, default", "does"), kinds))
    return "\n".join(parts)


def _examples(parser: Parser) -> str:
    rows = [(f"`{example.command}`", example.about) for example in parser.examples]
    return table(("command", "for"), rows)


def exit_codes_page() -> str:
    """Exit codes by command."""
    parsers = {command.name: command.make_parser() for command in COMMANDS}
    heads = ("code", "means", *parsers)
    rows = [
        (
            str(int(code)),
            code.name.lower().replace("_", " "),
            *(parser.exit_codes.get(int(code), "") for parser in parsers.values()),
        )
        for code in ExitCode
    ]
    return "\n".join(
        [
            MADE,
            "# Exit codes\n",
            "The same number means the same for every command. Any command may also end with 5\n"
            "(the disk is full, say) or with 130 (Ctrl-C).\n",
            table(heads, rows),
            "Errors are two lines on stderr: `error:` with what happened and the value, `fix:`\n"
            "with the command that makes it go away.\n",
        ]
    )


def tables_page() -> str:
    """Every table of the run directory."""
    doc = inspect.getdoc(importlib.import_module("probes.contract.schema")) or ""
    rules = doc.partition("\n\n")[2].partition("\n\n")[2]
    parts = [
        MADE,
        "# Tables of a run directory\n",
        f"Schema version {SCHEMA_VERSION}. Raw tables are Arrow IPC streams in `raw/TABLE/`;\n"
        "`profile-report RUN --format csv` or `parquet` writes them with the same columns.\n",
        code_marks(rules) + "\n",
        table(
            ("table", "one row is", "rows"),
            ((f"[{t.name}](#{t.name})", t.row, t.volume) for t in TABLES.values()),
        ),
    ]
    for one in TABLES.values():
        rows = ((f"`{c.name}`", c.type, c.unit, c.meaning) for c in one.columns)
        parts += [
            f"## {one.name}\n",
            f"One row: {one.row}. Rows: {one.volume}. Written by `{one.producer}`, from "
            f"{one.source}.\n",
            table(("column", "type", "unit", "meaning"), rows),
        ]
    return "\n".join(parts)


def causes_page() -> str:
    """Every cause: what proves it, what it is told apart from, how to see it."""
    rows_by_cause = _provoking_rows()
    parts = [
        MADE,
        "# Causes\n",
        "What `verdict.json` may name as `cause`. Each is named with evidence of that run, or not "
        "at\nall. `profile-matrix every-cause --only ROW` provokes it for real.\n",
        table(
            ("cause", "what happens"),
            ((f"[{cause.id}](#{cause.id})", cause.line) for cause in CATALOGUE.values()),
        ),
    ]
    docstrings = finder_docstrings()
    for cause in CATALOGUE.values():
        body = docstrings[cause.id].partition("\n\n")[2]
        parts += [f"## {cause.id}\n", f"{sentence_of((cause.line,))}\n", _paragraphs(body)]
        if origins := origins_of(cause):
            parts.append(f"It may follow from {', '.join(f'[{c}](#{c})' for c in origins)}.\n")
        if cause.decide:
            parts.append(f"What decides: `{cause.decide}`.\n")
        if rows := rows_by_cause.get(cause.id):
            named = ", ".join(f"`{row}`" for row in rows)
            parts.append(f"See it with `profile-matrix every-cause --only ROW`: {named}.\n")
    parts += [
        f"## {NOT_EXPLAINED}\n",
        "The target was missed and nothing that was measured explains it. Never a guess: the\n"
        "verdict has the counts and low confidence.\n",
        f"## {INTERRUPTED}\n",
        "Somebody stopped the run before a limit did.\n",
    ]
    return "\n".join(parts)


def limits_page() -> str:
    """Every limit: where it is read, what a connection takes of it, what raises it."""
    rows = [
        (f"`{limit.name}`", limit.title, limit.unit, limit.source, limit.cost, limit.raised_by)
        for limit in LIMITS.values()
    ]
    bounds = [(f"`{limit.name}`", limit.bound.value) for limit in LIMITS.values()]
    return "\n".join(
        [
            MADE,
            "# Limits\n",
            "What plan, doctor, ladder, verdict and page know of each limit. `unit` is that of "
            "capacity\nand use in all of them.\n",
            table(("limit", "is", "unit", "read from", "a connection takes", "raised by"), rows),
            "What happens to the next connection where it is met:\n",
            table(("limit", "then"), bounds),
        ]
    )


def evidence_page() -> str:
    """Every kind of evidence: its id, its unit, its words."""
    rows = []
    for evidence_id, kind in EVIDENCE_KINDS.items():
        words = " / ".join(filter(None, (kind.alone, kind.qualified.replace("{of}", "OF"))))
        rows.append((f"`{evidence_id}`", kind.unit, words))
    return "\n".join(
        [
            MADE,
            "# Evidence\n",
            "What a finding may rest on: `findings[].evidence[]` of [verdict.json](verdict.md).\n"
            "`id` and `of` are unique in a finding. Ids stay; the words may change. OF in them is\n"
            "the qualifier `of`: a call, a process, a function, an address.\n",
            table(("id", "unit", "words"), rows),
        ]
    )


def _paragraphs(body: str) -> str:
    """A docstring's text, with a paragraph for each of its leading words."""
    text = code_marks(body)
    for lead in ("Proof: ", "Told apart: ", "Told apart from "):
        text = text.replace(f"\n{lead}", f"\n\n**{lead.strip()}** ")
        if text.startswith(lead):
            text = f"**{lead.strip()}** {text.removeprefix(lead)}"
    return text.strip() + "\n"


def finder_docstrings() -> dict[str, str]:
    """Cause to the docstring of the module that finds it."""
    found = {}
    for module in pkgutil.walk_packages(findings.__path__, f"{findings.__name__}."):
        doc = inspect.getdoc(importlib.import_module(module.name)) or ""
        cause = doc.partition("``:")[0].removeprefix("``")
        if cause in CATALOGUE:
            found[cause] = doc
    return found


def _provoking_rows() -> dict[str, list[str]]:
    rows: dict[str, list[str]] = {}
    for row in scenario.load("every-cause").rows:
        rows.setdefault(row.expect.named or row.expect.cause, []).append(row.id)
    return rows
