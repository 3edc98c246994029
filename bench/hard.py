"""``python -m bench.hard``: runs the hard rows of ``bench/hard.toml``; ``bench.score`` scores them.

A run is kept in ``bench/hard.jsonl`` with the harm that was done to its clients, counted apart
from the verdict; where that is less than the row is to do, the score leaves the run out and says
so. What is kept stays: the same command goes on where it was ended. Needs root and ``make
install-peers``.

Exit code: 0 when each row has as many runs as asked for, 3 when some are left.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from fnmatch import fnmatch
from pathlib import Path

from analysis.frames.run_frames import load
from analysis.summary import summarise
from bench.command import end_on_sigterm, say
from bench.recordings import hard
from bench.recordings.examine import examine
from bench.recordings.hard import HardRow, HardRun
from bench.recordings.harm import harm_of_connections
from bench.recordings.play import play
from bench.recordings.scoring import complaints
from harness.commands.entry import run_command
from probes.contract.errors import ExitCode, ToolkitError, UsageError
from probes.contract.rundir import open_run_dir
from tests.neighbours.program import beside


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the command."""
    return run_command(_hard, argv)


def _hard(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.hard", description="Runs hard rows.")
    add = parser.add_argument
    add("--only", default="*", metavar="ID,ID", help="these; * and ? match")
    add("--repeats", type=int, default=1, metavar="N", help="runs of each row, default 1")
    add("--most-s", type=float, default=86_400.0, metavar="S", help="begin none after S seconds")
    add("--kept", type=Path, default=hard.KEPT, metavar="FILE", help="default: bench/hard.jsonl")
    add("--list", action="store_true", help="print the rows and stop")
    options = parser.parse_args(argv)
    end_on_sigterm()
    chosen = _chosen(hard.rows(), options.only)
    if options.list:
        for row in chosen:
            print(f"{row.id:<44} {row.recording.label.shows}")
        return 0
    end_s = time.monotonic() + options.most_s
    left = 0
    for repeat in range(1, options.repeats + 1):
        done = Counter(run.label.id for run in hard.read(options.kept))
        for row in chosen:
            if done[row.id] >= repeat:
                continue
            if time.monotonic() > end_s or not _try(row, options.kept):
                left += 1
    if left:
        say(f"{left} runs are left: the same command goes on")
    return int(ExitCode.LIMIT_MET if left else ExitCode.REACHED)


def _chosen(rows: Sequence[HardRow], only: str) -> list[HardRow]:
    patterns = [pattern.strip() for pattern in only.split(",")]
    found = [row for row in rows if any(fnmatch(row.id, f"*{each}*") for each in patterns)]
    if not found:
        raise UsageError(f"--only {only}: there is no such row", fix="--list")
    return found


def _try(row: HardRow, path: Path) -> bool:
    begun_s = time.monotonic()
    try:
        run = _run(row)
    except (ToolkitError, AssertionError) as error:
        say(f"{row.id}: {error}")
        return False
    with path.open("a", encoding="utf-8") as stream:
        stream.write(run.to_json() + "\n")
    wrong = complaints(run.label, run.found)
    said = f"no such harm ({', '.join(run.lacking)})" if run.lacking else "; ".join(wrong)
    say(f"{row.id}: {said or 'as labelled'} ({time.monotonic() - begun_s:.0f} s)")
    return True


def _run(row: HardRow) -> HardRun:
    with tempfile.TemporaryDirectory(prefix="connscope-hard-") as name:
        with ExitStack() as stack:
            neighbours = [stack.enter_context(beside(*each)) for each in row.beside]
            folder = play(row.recording, Path(name))
        without_effect = [each.name for each in neighbours if each.count < 1]
        assert not without_effect, f"{', '.join(without_effect)} had no effect"
        run = open_run_dir(folder)
        frames = load(run)
        summary = summarise(frames)
        harm = harm_of_connections(run, summary.run["target_connections"])
        found = hard.kept(examine(summary, frames))
    return HardRun(row.recording.label, row.harm, harm, found)


if __name__ == "__main__":
    sys.exit(main())
