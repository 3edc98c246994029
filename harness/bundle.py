"""A run as one file for a bug report, and back: ``profile-report RUN --bundle FILE``.

In it: the manifest, every table, the verdict, the end of each log, ``live.bin`` where a table lacks
that is made of it. Its size is bounded: what takes most room is left out, and the manifest
says what (``bundle.left_out``). Redacted, its tables are written anew with stand-ins
(``harness.run_redaction``) and its verdict is that of what is in it.

A bundle is a stranger's file: see ``harness.run_archive``; its tables are checked before anything
is computed from them.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.run_archive import packed, read_members
from harness.run_redaction import Redaction
from harness.run_results import write_results
from harness.version import tool_version
from probes import schema
from probes.errors import RunDirError, UsageError
from probes.live import Live
from probes.private_file import FOLDER_MODE, open_new
from probes.rundir import LIVE, MANIFEST, VERDICT, RunDir, open_run_dir
from probes.whole_file import replace_file

MOST_BYTES = 256 << 20
"""Unpacked."""
LOG_TAIL_BYTES = 65_536
MOST_LOGS = 16
_ADVICE = "make it with profile-report RUN --bundle FILE.tar.xz"
_FOLDER = r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
_MEMBER = re.compile(
    rf"{_FOLDER}/(?:manifest\.json|verdict\.json|live\.bin|logs/[A-Za-z0-9_.-]{{1,64}}\.log"
    r"|raw/[a-z0-9_]{1,64}/[A-Za-z0-9_-][A-Za-z0-9_.-]{0,127}\.arrows)"
)
_ESSENTIAL = frozenset({"connections", "processes", "events", "live_samples", "probe_health"})


@dataclass(slots=True)
class Bundled:
    """What was made.

    Attributes:
        size_bytes: Of the file.
        left_out: Tables for which there was no room, with their bytes.
        replaced_count: Names and addresses with a stand-in, 0 when not redacted.
        changed: Causes that the verdict of the redacted run has and the run's own has not, or the
            other way round; it should be empty.
    """

    size_bytes: int
    left_out: dict[str, int] = field(default_factory=dict)
    replaced_count: int = 0
    changed: tuple[str, ...] = ()


def make_bundle(run: RunDir, file: Path, *, redact: bool) -> Bundled:
    """Packs a run.

    Args:
        run: The recording.
        file: Where to; replaced when it is there.
        redact: Names and addresses become stand-ins.

    Raises:
        RunDirError: It cannot be read, or is too large without what may be left out.
        OSError: The file cannot be written.
    """
    from harness.pipeline import results  # pandas: a second to import

    with tempfile.TemporaryDirectory(prefix="connscope-bundle-") as folder:
        copy = RunDir(Path(folder) / "run")
        redaction = Redaction() if redact else None
        left_out = _copy(run, copy, redaction)
        verdict = write_results(copy, results(copy, with_page=False))
        changed: tuple[str, ...] = ()
        if redact:
            changed = tuple(sorted(set(_causes(verdict)) ^ set(_causes(_verdict_of(run)))))
        name = str(copy.read_manifest().get("run_id") or "")
        name = name if re.fullmatch(_FOLDER, name) else "run"
        content = packed((f"{name}/{member}", data) for member, data in _files(copy.path))
    replace_file(file, content, is_private=True)
    return Bundled(
        len(content), left_out, redaction.replaced_count if redaction is not None else 0, changed
    )


def _verdict_of(run: RunDir) -> dict[str, Any]:
    """The run's verdict as this version makes it; nothing is written."""
    from analysis.run_frames import load
    from analysis.summary import summarise
    from analysis.verdict_document import document

    return document(summarise(load(run)))


def _causes(verdict: dict[str, Any]) -> list[str]:
    return [verdict["verdict"]["cause"], *(each["cause"] for each in verdict["findings"])]


def _copy(run: RunDir, copy: RunDir, redaction: Redaction | None) -> dict[str, int]:
    """Makes a run directory of what goes into the bundle; gives the tables that were left out."""
    (copy.path / "raw").mkdir(parents=True)
    (copy.path / "logs").mkdir()
    names = [name for name in schema.TABLES if any(run.table_dir(name).glob("*.arrows"))]
    has_live = "connections" not in names and (run.path / LIVE).is_file()
    sizes = {
        name: sum(each.stat().st_size for each in run.table_dir(name).glob("*.arrows"))
        for name in names
    }
    live_bytes = (run.path / LIVE).stat().st_size if has_live else 0
    left_out = _too_much(sizes, MOST_BYTES - live_bytes - MOST_LOGS * LOG_TAIL_BYTES - (8 << 20))
    cut = []
    for name in [each for each in names if each not in left_out]:
        if redaction is None:
            shutil.copytree(run.table_dir(name), copy.table_dir(name))
            continue
        read = run.read_table(name)
        cut += [name] if read.cut_files else []
        writer = copy.writer(name, "bundle")
        writer.write_columns(redaction.table(name, read.table))
        writer.close()
        if writer.lost_rows_count:
            raise RunDirError(f"cannot write {copy.path}: {writer.last_error}", fix="df -h /tmp")
    if has_live:
        shutil.copyfile(run.path / LIVE, copy.path / LIVE)
        if redaction is not None:
            _redact_live(copy.path / LIVE, redaction)
    for log in sorted((run.path / "logs").glob("*.log"))[:MOST_LOGS]:
        text = _tail(log)
        (copy.path / "logs" / log.name).write_text(redaction.text(text) if redaction else text)
    manifest = run.read_manifest()
    manifest = manifest if redaction is None else redaction.value(manifest)
    manifest["bundle"] = {
        "made_by": tool_version(),
        "is_redacted": redaction is not None,
        "left_out": left_out,
        "cut": cut,
    }
    copy.write_manifest(manifest)
    return left_out


def _too_much(sizes: dict[str, int], room_bytes: int) -> dict[str, int]:
    """The tables to leave out, the largest first, so that the others have room."""
    left_out: dict[str, int] = {}
    over_bytes = sum(sizes.values()) - room_bytes
    for name in sorted(set(sizes) - _ESSENTIAL, key=lambda each: -sizes[each]):
        if over_bytes <= 0:
            break
        left_out[name] = sizes[name]
        over_bytes -= sizes[name]
    if over_bytes > 0:
        raise RunDirError(
            f"the run is larger than the {MOST_BYTES >> 20} MiB of a bundle",
            fix="run it again with fewer connections; the verdict alone: --format json",
        )
    return left_out


def _redact_live(path: Path, redaction: Redaction) -> None:
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        live = Live(fd)
        column = live.column("source_address")
        shown = {number: redaction.address(number) for number in set(column)}
        for record, number in enumerate(column):
            column[record] = shown[number]
        column.release()
        live.close()
    finally:
        os.close(fd)


def _tail(log: Path) -> str:
    with log.open("rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(0, size - LOG_TAIL_BYTES))
        return stream.read(LOG_TAIL_BYTES).decode("utf-8", "replace")


def _files(path: Path) -> Iterator[tuple[str, bytes]]:
    names = [MANIFEST, VERDICT, LIVE]
    for part in ("raw/*/*.arrows", "logs/*.log"):
        names += [str(each.relative_to(path)) for each in sorted(path.glob(part))]
    for name in names:
        if (path / name).is_file():
            yield name, (path / name).read_bytes()


def open_bundle(file: Path) -> RunDir:
    """Unpacks a bundle into a folder beside it, named as the run in it.

    Raises:
        UsageError: There is such a folder.
        RunDirError: It is no bundle, or no run of this version is in it.
    """
    members = read_members(
        file, _MEMBER, most_bytes=MOST_BYTES, what="a bundle of a run", advice=_ADVICE
    )
    folder: Path | None = None
    for name, content in members:
        top, _, inner = name.partition("/")
        if folder is None:
            folder = _new_folder(file.parent / top)
        if top != folder.name:
            raise _not_ours(file, folder, "it holds more than one run")
        for part in reversed(Path(inner).parents):
            (folder / part).mkdir(mode=FOLDER_MODE, exist_ok=True)
        with open_new(folder / inner) as stream:
            stream.write(content)
    if folder is None:
        raise RunDirError(f"{file} is empty", fix=_ADVICE)
    run = open_run_dir(folder)
    _check_tables(file, run)
    return run


def _new_folder(folder: Path) -> Path:
    try:
        folder.mkdir(mode=FOLDER_MODE)
    except FileExistsError:
        raise UsageError(
            f"there is {folder} already, where the bundle would be unpacked",
            fix=f"profile-report {folder}, or move it away",
        ) from None
    return folder


def _check_tables(file: Path, run: RunDir) -> None:
    """Reads all of them once: what crashes here does so before anything is made of it."""
    import pyarrow as pa

    for name in schema.TABLES:
        try:
            run.read_table(name)  # leaves out what lies about itself, as what is cut
        except (pa.ArrowException, MemoryError) as error:
            raise _not_ours(file, run.path, f"table {name}: {error}") from error


def _not_ours(file: Path, folder: Path, why: str) -> RunDirError:
    return RunDirError(f"{file} is not a bundle of a run: {why}", fix=f"rm -r {folder}; {_ADVICE}")


def summary_line(file: Path, bundled: Bundled) -> str:
    """What the person is told about a bundle that was made."""
    text = f"{file}: {bundled.size_bytes:,} bytes"
    if bundled.replaced_count:
        text += f", {bundled.replaced_count:,} names and addresses replaced; numbers are kept"
    if bundled.left_out:
        text += f"; left out for want of room: {', '.join(bundled.left_out)}"
    return text


def verdict_note(bundled: Bundled) -> str:
    """A warning when what was redacted is understood differently, '' when it is not."""
    if not bundled.changed:
        return ""
    return f"the redacted run is understood differently: {', '.join(bundled.changed)}"
