"""The commands of the family: the one list from which help, man pages and completion are made."""

from __future__ import annotations

import importlib
from dataclasses import dataclass

from harness.options.parser import Parser


@dataclass(frozen=True, slots=True)
class Command:
    """One command.

    Attributes:
        name: As in ``[project.scripts]`` of pyproject.toml.
        parser: ``module:function``, called without arguments.
    """

    name: str
    parser: str

    def make_parser(self) -> Parser:
        """Imports the module and makes the parser."""
        module, _, function = self.parser.partition(":")
        made = getattr(importlib.import_module(module), function)()
        assert isinstance(made, Parser)
        return made


COMMANDS: tuple[Command, ...] = (
    Command("profile-run", "harness.options.run:parser"),
    Command("profile-attach", "harness.commands.attach:parser"),
    Command("profile-doctor", "harness.commands.doctor:parser"),
    Command("profile-report", "harness.commands.report:parser"),
    Command("profile-matrix", "harness.commands.matrix:parser"),
    Command("profile-compare", "harness.commands.compare:parser"),
)
"""In the order in which a newcomer meets them."""
