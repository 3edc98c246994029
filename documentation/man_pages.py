"""Manual pages, section 1, from the parsers. Source: man(7), man-pages(7). Pure."""

from __future__ import annotations

import argparse
import tomllib
from pathlib import Path

from harness.commands.family import COMMANDS
from harness.options.parser import Parser

_ROOT = Path(__file__).resolve().parent.parent
_FILES = (
    ("runs/latest", "the newest run directory"),
    ("RUN/report.html", "the page"),
    ("RUN/verdict.json", "the same for programs"),
    ("RUN/raw/, RUN/live.bin", "what was recorded"),
    ("RUN/logs/", "what the processes of the run printed"),
)
_ENVIRONMENT = (
    ("NO_COLOR", "any value: no colour (no-color.org)"),
    ("CI", "any value but 0 and false: plain lines instead of the live view"),
    ("TERM", "dumb or unset: likewise"),
)


def man_pages() -> dict[str, str]:
    """Path to text of every page."""
    version = tomllib.loads((_ROOT / "pyproject.toml").read_text())["project"]["version"]
    return {
        f"docs/man/{command.name}.1": man_page(command.make_parser(), version)
        for command in COMMANDS
    }


def man_page(parser: Parser, version: str) -> str:
    """One page.

    Args:
        parser: Of the command.
        version: Of connscope.
    """
    description = parser.description or ""
    usage = (parser.usage or f"{parser.prog} [options]").splitlines()
    lines = [
        f'.TH {_text(parser.prog.upper())} 1 "" "connscope {version}" "User Commands"',
        ".SH NAME",
        f"{_text(parser.prog)} \\- {_text(description[:1].lower() + description[1:].rstrip('.'))}",
        ".SH SYNOPSIS",
        f".B {_text(parser.prog)}",
        _text(" ".join(" ".join(line.split()) for line in usage).removeprefix(parser.prog).strip()),
        ".SH DESCRIPTION",
        _text(description),
    ]
    if parser.remarks:
        lines += [".PP", _text(parser.remarks)]
    lines.append(".SH OPTIONS")
    for title, text, actions in parser.groups():
        if title not in ("options", "positional arguments"):
            lines.append(f".SS {_text(title[:1].upper() + title[1:])}")
        if text:
            lines.append(_text(text))
        for action in actions:
            lines += _option(action)
    lines.append(".SH EXAMPLES")
    for command, about in parser.examples:
        lines += [f"{_text(about[:1].upper() + about[1:])}:", ".PP", ".RS 4", ".nf"]
        lines += [_text(command), ".fi", ".RE", ".PP"]
    lines.pop()
    lines.append(".SH EXIT STATUS")
    for code, meaning in parser.exit_codes.items():
        lines += [".TP", f".B {code}", _text(meaning)]
    for head, entries in (("ENVIRONMENT", _ENVIRONMENT), ("FILES", _FILES)):
        lines.append(f".SH {head}")
        for name, meaning in entries:
            lines += [".TP", f".B {_text(name)}", _text(meaning)]
    others = [command.name for command in COMMANDS if command.name != parser.prog]
    lines += [".SH SEE ALSO", ", ".join(f"\\fB{_text(name)}\\fR(1)" for name in others)]
    return "\n".join(lines) + "\n"


def _option(action: argparse.Action) -> list[str]:
    value = "" if action.nargs == 0 else str(action.metavar or action.dest.upper())
    if action.choices is not None and action.metavar is None:
        value = "{" + ",".join(str(choice) for choice in action.choices) + "}"
    names = ", ".join(f"\\fB{_text(name)}\\fR" for name in action.option_strings)
    head = " ".join(part for part in (names, f"\\fI{_text(value)}\\fR" if value else "") if part)
    meaning = action.help or ""
    if action.choices is not None and action.metavar is not None:
        meaning += f" [{', '.join(str(choice) for choice in action.choices)}]"
    return [".TP", head, _text(meaning)]


def _text(text: str) -> str:
    """Escaped for troff: backslashes, hyphens that are typed, dots and quotes that begin a line."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq")
    escaped = escaped.replace("^", "\\(ha").replace("~", "\\(ti").replace("`", "\\(ga")
    return f"\\&{escaped}" if escaped[:1] in (".", "'") else escaped
