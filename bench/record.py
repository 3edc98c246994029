"""``python -m bench.record``: makes the recordings of ``tests/recordings`` anew, one run each.

A recording is an archive of the run directory, a label (what was provoked) and an expectation (what
the verdict means now). What is there already is left alone, so that it may be ended and started
again at any time; ``--again`` makes anew what ``--only`` names. All are played before the first is
packed: playing wants a quiet machine, packing and understanding do not. ``--update`` only reads the
archives, and writes what is expected of each: a change of it is to be read, line by line, before
it is committed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from analysis.frames.run_frames import RunFrames, load
from analysis.summary import Summary, summarise
from bench.command import end_on_sigterm, say
from bench.recordings import archive, label
from bench.recordings.catalogue import ROOT, Recording, all_recordings
from bench.recordings.examine import EXPECTED, examine
from bench.recordings.label import Label, harm_of
from bench.recordings.meaning import differences, meaning
from bench.recordings.play import play
from bench.recordings.scoring import complaints
from harness.commands.entry import run_command
from probes.contract.errors import ExitCode, HostError, ToolkitError, UsageError
from probes.contract.rundir import open_run_dir, write_atomically

PLAYED = ROOT / "runs" / "recordings"
"""What was played waits here to be packed."""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the command."""
    return run_command(_record, argv)


def _record(argv: Sequence[str]) -> int:
    try:
        options = _parser().parse_args(argv)
    except argparse.ArgumentError as error:
        raise UsageError(str(error), fix="--help") from error
    end_on_sigterm()
    chosen = _chosen(all_recordings(), options.only)
    if options.list:
        for recording in chosen:
            print(f"{recording.id:<44} {recording.label.shows}")
        print(f"{len(chosen)} recordings")
        return 0
    if options.update:
        return _update(chosen)
    failed = 0
    wanted = [each for each in chosen if options.again or not each.file(archive.SUFFIX).exists()]
    if options.step != "pack":
        failed += _play_all(wanted, time.monotonic() + options.most_s, options.side_by_side)
    if options.step != "play":
        failed += sum(not _try(_pack, each) for each in wanted if _run_of(each) is not None)
    left = sum(not each.file(archive.SUFFIX).exists() for each in chosen)
    if left:
        say(f"{left} are left: the same command goes on")
    return int(ExitCode.LIMIT_MET if failed or left else ExitCode.REACHED)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.record",
        description="Records what tests/recordings holds.",
        exit_on_error=False,
    )
    add = parser.add_argument
    add("--only", metavar="ID,ID", help="these; * and ? match")
    add("--again", action="store_true", help="also what is recorded already")
    add("--update", action="store_true",
        help="record nothing; write what the verdicts of the recordings mean now")  # fmt: skip
    add("--step", choices=("all", "play", "pack"), default="all", help="default: all")
    add("--side-by-side", type=int, default=3, metavar="N",
        help="so many of those that mostly wait at a time, default 3")  # fmt: skip
    add("--most-s", type=float, default=86_400.0, metavar="S", help="play no more after S seconds")
    add("--list", action="store_true", help="print what there is and stop")
    return parser


def _chosen(recordings: Sequence[Recording], only: str | None) -> list[Recording]:
    if only is None:
        return list(recordings)
    patterns = [pattern.strip() for pattern in only.split(",")]
    for pattern in patterns:
        if not any(fnmatch(each.id, pattern) for each in recordings):
            raise UsageError(f"--only {pattern}: there is no such recording", fix="--list")
    return [r for r in recordings if any(fnmatch(r.id, pattern) for pattern in patterns)]


def _play_all(wanted: Sequence[Recording], end_s: float, side_by_side: int) -> int:
    """Plays what is not played yet, until it is too late; how many failed.

    Those that mostly wait come first, some side by side; each of the others is alone.
    """
    if os.geteuid() != 0:
        raise HostError("eBPF and network namespaces need root", fix="sudo make recordings")

    def play_one(recording: Recording) -> bool:
        if _run_of(recording) is not None or time.monotonic() > end_s:
            return True
        return _try(_play, recording)

    with ThreadPoolExecutor(side_by_side) as pool:
        done = [*pool.map(play_one, (each for each in wanted if each.is_calm))]
    done += [play_one(each) for each in wanted if not each.is_calm]
    return done.count(False)


def _try(step: Callable[[Recording], str], recording: Recording) -> bool:
    started_s = time.monotonic()
    try:
        done = step(recording)
    except ToolkitError as error:
        say(f"{recording.id}: {error.message}")
        return False
    say(f"{recording.id}: {done} ({time.monotonic() - started_s:.1f} s)")
    return True


def _play(recording: Recording) -> str:
    """Plays it into ``PLAYED``, where it waits to be packed; only a whole one gets its name."""
    PLAYED.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="connscope-recording-") as name:
        run = play(recording, Path(name))
        target = PLAYED / recording.id
        shutil.rmtree(target, ignore_errors=True)
        draft = target.with_name(f".{target.name}")
        shutil.rmtree(draft, ignore_errors=True)
        shutil.copytree(run, draft / "run")
        (draft / "folder").write_text(name, encoding="utf-8")
        draft.rename(target)
    return "played"


def _run_of(recording: Recording) -> Path | None:
    """The run directory of what was played and not packed yet."""
    run = PLAYED / recording.id / "run"
    return run if run.is_dir() else None


def _pack(recording: Recording) -> str:
    """Packs and labels what was played; says how large it is, and what is not as labelled.

    Raises:
        ToolkitError: It cannot be read, or packing changed its verdict.
    """
    played = PLAYED / recording.id
    run = played / "run"
    hidden = {
        str(ROOT): "/srv/connscope",
        (played / "folder").read_text(encoding="utf-8"): "/tmp/run",
    }
    stand_ins = archive.stand_ins(archive.control_groups(run) | hidden)
    draft = played / recording.file(archive.SUFFIX).name
    wrong = ["no label"]
    if recording.is_refused:
        archive.pack(run, draft, stand_ins, with_live=False)
    else:
        # What is written of it comes from what was packed: the names in it are stand-ins.
        summary, frames = _pack_whole(run, draft, stand_ins)
        its_label = replace(recording.label, harm=harm_of(summary.run))
        _write(recording, its_label, examine(summary, frames))
        wrong = complaints(its_label, meaning(summary))
    target = recording.file(archive.SUFFIX)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(draft, target)  # last: what is there is whole
    shutil.rmtree(played)
    return f"{target.stat().st_size / 1000:.0f} kB, {'; '.join(wrong) or 'as labelled'}"


def _pack_whole(run: Path, draft: Path, hidden: dict[bytes, bytes]) -> tuple[Summary, RunFrames]:
    """Packs what the verdict needs: ``live.bin`` only where tables are missing that it has.

    Returns:
        What was packed, read again.

    Raises:
        HostError: What is packed means something else than the run.
    """
    said = _with_stand_ins(meaning(summarise(load(open_run_dir(run)))), hidden)
    lost: list[str] = []
    for with_live in (False, True):
        archive.pack(run, draft, hidden, with_live=with_live)
        packed = _read(draft, draft.parent / f"{with_live:d}")
        lost = differences(said, meaning(packed[0]))
        if not lost:
            return packed
    raise HostError(
        f"packing changed the verdict: {lost[0]}", fix="see bench/recordings/archive.py"
    )


def _with_stand_ins(said: dict[str, Any], hidden: dict[bytes, bytes]) -> dict[str, Any]:
    """What the verdict means, with the names that the packed recording has."""
    text = json.dumps(said, ensure_ascii=False).encode()
    for secret, shown in hidden.items():
        text = text.replace(secret, shown)
    found: dict[str, Any] = json.loads(text)
    return found


def _read(source: Path, folder: Path) -> tuple[Summary, RunFrames]:
    frames = load(open_run_dir(archive.unpack(source, folder)))
    return summarise(frames), frames


def _update(chosen: Sequence[Recording]) -> int:
    """Writes labels and expectations of what is recorded anew, and says what changed."""
    for recording in chosen:
        source = recording.file(archive.SUFFIX)
        if recording.is_refused or not source.exists():
            continue
        with tempfile.TemporaryDirectory(prefix="connscope-recording-") as name:
            summary, frames = _read(source, Path(name))
            found = examine(summary, frames)
        file = recording.file(EXPECTED)
        before = json.loads(file.read_text(encoding="utf-8")) if file.exists() else found
        for line in differences(before, found):
            say(f"{recording.id}: {line}")
        _write(recording, replace(recording.label, harm=harm_of(summary.run)), found)
    return 0


def _write(recording: Recording, its_label: Label, found: dict[str, Any]) -> None:
    recording.file(label.SUFFIX).parent.mkdir(parents=True, exist_ok=True)
    write_atomically(recording.file(label.SUFFIX), its_label.to_json())
    text = json.dumps(found, indent=1, ensure_ascii=False) + "\n"
    write_atomically(recording.file(EXPECTED), text)


if __name__ == "__main__":
    sys.exit(main())
