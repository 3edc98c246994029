"""The parser that every command of the family has: help of one screen, errors of two lines.

``--help`` fits 24 lines of 80 columns. A command with more options than that names its ``common``
ones; ``--help-all`` then has every option by groups, and all examples. Help, manual pages, shell
completion and the reference in ``docs/`` are all made from these parsers; ``harness/commands.py``
lists them.
"""

from __future__ import annotations

import argparse
import difflib
import re
import sys
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, NoReturn

from probes.errors import UsageError

SHELLS = ("bash", "zsh", "fish")
"""Those that ``harness/completion.py`` writes for."""

HELP_COLUMNS = 80
HELP_LINES = 24
_HELP_AT = 25
_ABOUT_AT = 50


class Example(NamedTuple):
    """A command that works as it stands, and what it does."""

    command: str
    about: str


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose complaints are ToolkitErrors: two lines, exit code 2.

    Args:
        prog: The command.
        description: What it does, one sentence.
        examples: Worked examples; a test runs them.
        exit_codes: Exit code to its meaning for this command.
        common: Options that ``--help`` shows when it cannot show all; empty when it can.
        remarks: A paragraph for readers of all the help, '' for none.
        usage: As argparse's.
        epilog: Text for the end of the help, for what the above cannot say.
    """

    def __init__(
        self,
        *,
        prog: str,
        description: str,
        examples: Sequence[Example] = (),
        exit_codes: dict[int, str] | None = None,
        common: Sequence[str] = (),
        remarks: str = "",
        usage: str | None = None,
        epilog: str | None = None,
        **_ignored: Any,
    ) -> None:
        super().__init__(
            prog=prog,
            description=description,
            usage=usage,
            epilog=epilog,
            formatter_class=_Formatter,
            allow_abbrev=False,
        )
        self.examples = tuple(examples)
        self.exit_codes = dict(exit_codes or {})
        self.common = tuple(common)
        self.remarks = remarks
        if common:
            self.add_argument(
                "--help-all", action=_HelpAll, nargs=0, help="show every option and exit"
            )

    def format_help(self) -> str:
        """The help of one screen."""
        if not self.common:
            return self._help(self._all_groups())
        first = [action for name in self.common for action in self._named(name)]
        rest = f"{self.prog} --help-all and man {self.prog} have every option."
        return self._help([("common options", "", first)], rest=rest)

    def format_help_all(self) -> str:
        """Every option, by groups."""
        return self._help(self._all_groups(), remarks=self.remarks, lines_most=1_000)

    def groups(self) -> list[tuple[str, str, list[argparse.Action]]]:
        """Title, description and options of each group that has some."""
        return [
            (group.title or "", group.description or "", list(group._group_actions))
            for group in self._action_groups
            if group._group_actions
        ]

    def error(self, message: str) -> NoReturn:
        """Raises instead of printing the usage and leaving.

        Raises:
            UsageError: Always.
        """
        raise UsageError(message, fix=self._fix_of(message))

    def _all_groups(self) -> list[tuple[str, str, list[argparse.Action]]]:
        """As ``groups``; what argparse calls positional arguments stands with the options."""
        groups = self.groups()
        if len(groups) > 1 and groups[0][0] == "positional arguments":
            (_, _, named), (_, text, options) = groups[:2]
            groups[:2] = [("options", text, named + options)]
        return groups

    def _named(self, name: str) -> Iterable[argparse.Action]:
        return (a for a in self._actions if name in (*a.option_strings, a.dest))

    def _help(
        self,
        groups: Sequence[tuple[str, str, list[argparse.Action]]],
        *,
        rest: str = "",
        remarks: str = "",
        lines_most: int = HELP_LINES,
    ) -> str:
        """Text of the help, with as many of the examples as ``lines_most`` leave room for."""
        for kept in range(len(self.examples), -1, -1):
            text = self._help_with(groups, self.examples[:kept], rest, remarks)
            if text.count("\n") <= lines_most:
                break
        return text

    def _help_with(
        self,
        groups: Iterable[tuple[str, str, list[argparse.Action]]],
        examples: Sequence[Example],
        rest: str,
        remarks: str,
    ) -> str:
        formatter = self._get_formatter()
        formatter.add_usage(self.usage, self._actions, self._mutually_exclusive_groups)
        formatter.add_text(self.description)
        for title, text, actions in groups:
            formatter.start_section(title)
            formatter.add_text(text or None)
            formatter.add_arguments(actions)
            formatter.end_section()
        formatter.add_text(textwrap.fill(remarks, HELP_COLUMNS) or None)
        if examples:
            formatter.add_text("\n".join(["examples:", *_example_lines(examples)]))
        formatter.add_text("\n".join(part for part in (self._exit_text(), rest) if part) or None)
        formatter.add_text(self.epilog)
        return formatter.format_help()

    def _exit_text(self) -> str:
        codes = ", ".join(f"{code} {meaning}" for code, meaning in self.exit_codes.items())
        return textwrap.fill(f"exit codes: {codes}", HELP_COLUMNS, subsequent_indent="  ") * bool(
            codes
        )

    def _fix_of(self, message: str) -> str:
        """The command that makes a complaint of argparse go away."""
        whole = f"{self.prog} {'--help-all' if self.common else '--help'}"
        if match := re.match(r"unrecognized arguments: (-[^\s=]+)", message):
            known = [name for action in self._actions for name in action.option_strings]
            near = difflib.get_close_matches(match[1], known, n=1, cutoff=0.6)
            return f"{self.prog} {self._usage_of(near[0])}" if near else whole
        if match := re.match(r"the following arguments are required: ([^,\s]+)", message):
            return f"{self.prog} {self._usage_of(match[1])}"
        if match := re.match(r"argument ([^\s:]+): ", message):
            name = match[1].split("/")[-1]
            for action in self._named(name):
                if action.choices is not None and "invalid choice" in message:
                    return self._nearest_choice(action, name, message)
            return f"{self.prog} {self._usage_of(name)}"
        return whole

    def _nearest_choice(self, action: argparse.Action, name: str, message: str) -> str:
        choices = [str(choice) for choice in action.choices or ()]
        value = re.search(r"invalid choice: '([^']*)'", message)
        near = difflib.get_close_matches(value[1] if value else "", choices, n=1, cutoff=0.5)
        return f"{self.prog} {name} {(near or choices)[0]}"

    def _usage_of(self, name: str) -> str:
        """An option with its metavar and what it is, e.g. ``--nofile N (RLIMIT_NOFILE ...)``."""
        for action in self._named(name):
            metavar = "" if action.nargs == 0 else f" {action.metavar or action.dest.upper()}"
            help_text = f" ({action.help})" if action.help else ""
            return f"{name if action.option_strings else ''}{metavar}{help_text}".strip()
        return name


class _HelpAll(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        """Prints all the help and leaves."""
        assert isinstance(parser, Parser)
        sys.stdout.write(parser.format_help_all())
        parser.exit()


class _Formatter(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str, **_: Any) -> None:
        super().__init__(prog, max_help_position=_HELP_AT, width=HELP_COLUMNS)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        """``-o, --output PATH``, as Python 3.13 has it, on every Python."""
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        value = self._format_args(action, action.dest.upper())
        return f"{', '.join(action.option_strings)} {value}"


def _example_lines(examples: Iterable[Example]) -> Iterable[str]:
    for command, about in examples:
        if len(command) + 4 <= _ABOUT_AT and len(about) + _ABOUT_AT <= HELP_COLUMNS:
            yield f"  {command}".ljust(_ABOUT_AT) + about
        else:
            yield f"  {command}"
            yield f"      {about}"
