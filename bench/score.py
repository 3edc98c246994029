"""``python -m bench.score``: how good the verdict is, on the recordings of ``tests/recordings``.

Every recording is understood anew and held against its label, which says what was provoked; so is,
apart, what ``python -m bench.hard`` kept of its runs. What is counted, and in whose terms:
``bench.recordings.scoring``. ``--markdown`` writes the page of the documentation.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from analysis.frames.run_frames import load
from analysis.summary import summarise
from bench.command import write
from bench.recordings import archive, hard, label
from bench.recordings.catalogue import FOLDER
from bench.recordings.examine import EXPECTED, examine
from bench.recordings.score_document import markdown, text
from bench.recordings.scoring import Case
from harness.commands.entry import run_command
from probes.contract.errors import UsageError
from probes.contract.rundir import open_run_dir


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the command."""
    return run_command(_score, argv)


def _score(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.score", description="Scores the verdicts of the recordings."
    )
    add = parser.add_argument
    add("--recordings", type=Path, default=FOLDER, metavar="DIR", help=f"default: {FOLDER.name}")
    add("--expected", action="store_true",
        help="what is expected of them, instead of what the verdict says now: quick")  # fmt: skip
    add("--hard", type=Path, default=hard.KEPT, metavar="FILE",
        help="runs of hard rows that are kept, default: bench/hard.jsonl")  # fmt: skip
    add("--markdown", type=Path, metavar="FILE", help="write the page of the documentation")
    options = parser.parse_args(argv)
    read = expected_cases if options.expected else cases
    scored = read(options.recordings)
    if not scored:
        raise UsageError(
            f"{options.recordings} holds no recordings", fix="make recordings, or another DIR"
        )
    print(text(scored))
    runs = hard.read(options.hard)
    hard_cases, left_out = hard.cases(runs), hard.left_out(runs)
    if hard_cases:
        print("\n" + text(hard_cases, "runs of hard rows"))
    if options.markdown is not None:
        write(options.markdown, markdown(scored, hard_cases, left_out))
    return 0


def cases(folder: Path) -> list[Case]:
    """Every recording of a folder, understood anew.

    Raises:
        RunDirError: One cannot be read.
    """
    found = []
    for source in _sources(folder):
        with tempfile.TemporaryDirectory(prefix="connscope-recording-") as name:
            frames = load(open_run_dir(archive.unpack(source, Path(name))))
            found.append(_case(source, examine(summarise(frames), frames)))
    return _in_order(found)


def expected_cases(folder: Path) -> list[Case]:
    """The same from what is expected of each, which the tests hold against what is said."""
    found = []
    for source in _sources(folder):
        expected = _beside(source, EXPECTED)
        found.append(_case(source, json.loads(expected.read_text(encoding="utf-8"))))
    return _in_order(found)


def _sources(folder: Path) -> list[Path]:
    """The archives that have a label: those of versions that are not read any more have none."""
    labels = sorted(folder.glob(f"*/*{label.SUFFIX}"))
    return [
        path.with_name(path.name.removesuffix(label.SUFFIX) + archive.SUFFIX) for path in labels
    ]


def _case(source: Path, found: dict[str, Any]) -> Case:
    return Case(label.read(_beside(source, label.SUFFIX)), found)


def _beside(source: Path, suffix: str) -> Path:
    return source.with_name(source.name.removesuffix(archive.SUFFIX) + suffix)


def _in_order(found: list[Case]) -> list[Case]:
    return sorted(found, key=lambda case: label.GROUPS.index(case.label.group))


if __name__ == "__main__":
    sys.exit(main())
