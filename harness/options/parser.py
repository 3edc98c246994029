"""The parser that every command of the family has: help of one screen, errors of two lines.

``--help`` fits 24 lines of 80 columns. A command with more options than that names its ``common``
ones; ``--help-all`` then has every option by groups, and all examples. Help, manual pages, shell
completion and the reference in ``docs/`` are all made from these parsers;
``harness/commands/family.py`` lists them.
"""

from __future__ import annotations

import argparse
import difflib
import re
import shlex
import sys
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, NoReturn

from probes.contract.errors import UsageError

SHELLS = ("bash", "zsh", "fish")
"""Those that ``harness/commands/completion.py`` writes for."""

HELP_COLUMNS = 80
HELP_LINES = 24
_HELP_AT = 25
_HELP_IN_FIX = 70
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
            exit_on_error=False,
        )
        self.examples = tuple(examples)
        self.exit_codes = dict(exit_codes or {})
        self.common = tuple(common)
        self.remarks = remarks
        self._given: list[str] = []
        self._unknown: list[str] = []
        self._refused = ""
        if common:
            self.add_argument(
                "--help-all", action=_HelpAll, nargs=0, help="show every option and exit"
            )

    def parse_known_args(  # type: ignore[override]  # argparse has it as two overloads
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """As argparse's; keeps what a complaint needs to say the words corrected.

        Raises:
            UsageError: An option lacks its value or has a wrong one, or one is missing.
        """
        self._given = list(sys.argv[1:] if args is None else args)
        self._unknown, self._refused = [], ""
        try:
            return super().parse_known_args(args, namespace)
        except argparse.ArgumentError as error:
            self._refused = (error.argument_name or "").rpartition("/")[2]
            self.error(str(error))

    def parse_args(  # type: ignore[override]  # likewise
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> argparse.Namespace:
        """As argparse's.

        Raises:
            UsageError: Likewise, or there is a word that no option takes.
        """
        known, self._unknown = self.parse_known_args(args, namespace)
        if self._unknown:
            self.error(f"unrecognized arguments: {' '.join(self._unknown)}")
        return known

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
        raise UsageError(message, fix=self._fix())

    def _all_groups(self) -> list[tuple[str, str, list[argparse.Action]]]:
        """As ``groups``; what argparse calls positional arguments stands with the options."""
        groups = self.groups()
        if len(groups) > 1 and groups[0][0] == "positional arguments":
            (_, _, named), (_, text, options) = groups[:2]
            groups[:2] = [("options", text, named + options)]
        return groups

    def _named(self, name: str) -> Iterable[argparse.Action]:
        return (a for a in self._actions if name in (*a.option_strings, a.dest, a.metavar))

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

    def _fix(self) -> str:
        """The command that makes a complaint of argparse go away; its words are not looked at."""
        if self._refused:
            for action in self._named(self._refused):
                if wrong := self._no_choice(action):
                    return self._with_near_choice(action, self._refused, wrong)
            return f"{self.prog} {self._gap()}{self._usage_of(self._refused)}"
        given = [word.partition("=")[0] for word in self._given if word.startswith("-")]
        if unknown := [word for word in given if word not in self._option_string_actions]:
            return self._with_near_option(unknown[0])
        missing = None if self._unknown else self._missing(given)
        if missing is not None:
            return f"{self.prog} {self._usage_of(missing)}"
        return f"{self.prog} {'--help-all' if self.common else '--help'}"

    def _no_choice(self, action: argparse.Action) -> str:
        """The value that was given and that the option does not take, '' for none."""
        if action.choices is None:
            return ""
        values = [word.partition("=")[2] or word for word in self._given_to(action)]
        choices = {str(choice) for choice in action.choices}
        return next((value for value in values if value not in choices), "")

    def _given_to(self, action: argparse.Action) -> list[str]:
        """Words that may be the value of an option: those behind it, or of one without a name."""
        if not action.option_strings:
            return [word for word in self._given if not word.startswith("-")]
        pairs = zip(["", *self._given], self._given, strict=False)
        return [
            word
            for before, word in pairs
            if before in action.option_strings or word.partition("=")[0] in action.option_strings
            if word not in action.option_strings
        ]

    def _missing(self, given: Sequence[str]) -> str | None:
        """The first option, or argument without a name, that is required and was not given."""
        for action in self._actions:
            if action.required and not set(action.option_strings) & set(given):
                return (action.option_strings or [str(action.metavar or action.dest)])[-1]
        return None

    def _with_near_option(self, given: str) -> str:
        """The command line again with the option that was meant, or where all of them stand."""
        near = difflib.get_close_matches(given, self._option_string_actions, n=1, cutoff=0.6)
        if not near:
            return f"{self.prog} {'--help-all' if self.common else '--help'}"
        words = [re.sub(rf"^{re.escape(given)}(?==|$)", near[0], word) for word in self._given]
        return shlex.join([self.prog, *words])

    def _with_near_choice(self, action: argparse.Action, name: str, value: str) -> str:
        """The command line again with the nearest value that the option takes."""
        choices = [str(choice) for choice in action.choices or ()]
        near = (difflib.get_close_matches(value, choices, n=1, cutoff=0.5) or choices)[0]
        words = [near if word == value else word for word in self._given]
        words = [f"{name}={near}" if word == f"{name}={value}" else word for word in words]
        return shlex.join([self.prog, *words])

    def _gap(self) -> str:
        """Three dots where the command needs more than the one option to be complete."""
        needs = any(action.required for action in self._actions if action.option_strings)
        return "... " if needs else ""

    def _usage_of(self, name: str) -> str:
        """An option with its metavar and, when it is short, what it is."""
        for action in self._named(name):
            metavar = "" if action.nargs == 0 else str(action.metavar or action.dest.upper())
            option = name if action.option_strings else ""
            usage = f"{option} {metavar}".strip()
            is_short = action.help and len(action.help) <= _HELP_IN_FIX
            return f"{usage}  # {action.help}" if is_short else usage
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
