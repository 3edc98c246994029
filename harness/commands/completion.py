"""Shell completion of the whole family, made from the parsers by shtab.

What shtab cannot know from a parser is added here: which options take a file or a folder, and the
words of options whose values are no fixed choice.
"""

from __future__ import annotations

from pathlib import Path

import shtab

from harness.commands.family import COMMANDS
from harness.faults import kinds as faults
from harness.matrix import scenario
from harness.options.parser import Parser
from probes.collect import registry

_FOLDERS = ("DIR", "RUN")


def completion_script(shell: str) -> str:
    """The text to evaluate in that shell; it completes every command.

    Args:
        shell: One of ``command_parser.SHELLS``.
    """
    parts = []
    for command in COMMANDS:
        parser = command.make_parser()
        _tell_values(parser)
        parts.append(shtab.complete(parser, shell))
    return "\n".join(parts)


def _tell_values(parser: Parser) -> None:
    """Sets shtab's attribute ``complete`` on the options that need one."""
    words = {
        "--probes": (*registry.SETS, "none", *registry.PROBES),
        "--inject": tuple(f"{name}:" for name in faults.KINDS),
        "scenario": tuple(sorted(path.stem for path in scenario.FOLDER.glob("*.toml"))),
    }
    for _, _, actions in parser.groups():
        for action in actions:
            if isinstance(action.metavar, str):  # shtab writes it into zsh's colon-separated form
                action.metavar = action.metavar.replace(":", " ")
            name = action.option_strings[-1] if action.option_strings else action.dest
            if name in words:
                action.complete = _words(words[name])  # type: ignore[attr-defined] # shtab's
            elif action.type is Path:
                kind = shtab.DIRECTORY if action.metavar in _FOLDERS else shtab.FILE
                action.complete = kind  # type: ignore[attr-defined] # shtab's


def _words(words: tuple[str, ...]) -> dict[str, object]:
    name = "_connscope_" + "_".join(words[0].split("-")).rstrip(":")
    listed = " ".join(words)
    return {
        "bash": name,
        "zsh": "(" + " ".join(word.replace(":", r"\:") for word in words) + ")",
        "fish": listed,
        "preamble": {"bash": f'{name}() {{ compgen -W "{listed}" -- "$1"; }}\n'},
    }
