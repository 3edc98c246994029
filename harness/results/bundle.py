"""A run as one file for a bug report, and back: ``profile-report RUN --bundle FILE``.

In it: the manifest, every table, the verdict, the end of each log, ``live.bin`` where a table lacks
that is made of it. Its size is bounded: what takes most room is left out, and the manifest
says what (``bundle.left_out``). Redacted, its tables are written anew with stand-ins
(``harness.results.redaction``) and its verdict is that of what is in it.

A bundle is a stranger's file: see ``harness.results.archive``. Here it is only unpacked; its tables
are checked when they are read, as those of every recording.
"""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.results import conclusion
from harness.results.analysis_request import BUNDLE, FACTS, Request
from harness.results.archive import packed, read_members
from harness.results.redaction import Redaction
from harness.version import tool_version
from probes.contract import schema
from probes.contract.errors import RunDirError, UsageError
from probes.contract.live import Live
from probes.contract.private_file import FOLDER_MODE, open_new
from probes.contract.rundir import (
    LIVE,
    MANIFEST,
    MOST_LOGS,
    VERDICT,
    RunDir,
    manifest_text,
    open_files,
    open_run_dir,
)
from probes.contract.table_writer import arrow_schema, batch_of
from probes.contract.whole_file import replace_file

MOST_BYTES = 256 << 20
"""Unpacked."""
LOG_TAIL_BYTES = 65_536
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
    again = f"profile-report {run.path} --bundle {file}"
    request = Request(BUNDLE, str(run.path), again, options={"redact": redact})
    made = dict(conclusion.answers(request, [run]))
    facts = json.loads(made[FACTS])
    content = made[BUNDLE]
    replace_file(file, content, is_private=True)
    return Bundled(
        len(content),
        {str(name): int(size) for name, size in facts["left_out"].items()},
        int(facts["replaced_count"]),
        tuple(map(str, facts["changed"])),
    )


def bundle_content(run: RunDir, *, redact: bool) -> tuple[bytes, dict[str, Any]]:
    """The archive of a run, made in memory; and what is to be told of it.

    Only what ``probes.contract.rundir.open_files`` opens is packed: a link in a stranger's run
    directory would put a file of this host into what is sent.

    Raises:
        RunDirError: It cannot be read, or is too large without what may be left out.
    """
    from harness.results.pipeline import results  # pandas: a second to import

    with _held(run) as held:
        redaction = Redaction() if redact else None
        members, left_out = _members(held, redaction)
        with _in_memory(run.path, members) as copy:
            found = dict(results(copy, with_page=False, with_derived=False))
        changed: list[str] = []
        if redact:
            own = json.loads(dict(results(held, with_page=False, with_derived=False))[VERDICT])
            changed = sorted(set(_causes(json.loads(found[VERDICT]))) ^ set(_causes(own)))
    name = str(json.loads(members[MANIFEST]).get("run_id") or "")
    name = name if re.fullmatch(_FOLDER, name) else "run"
    # In this order, so that a reader has the manifest before what it is about.
    first = {MANIFEST: members.pop(MANIFEST), VERDICT: found[VERDICT]}
    content = packed((f"{name}/{member}", data) for member, data in (first | members).items())
    replaced_count = redaction.replaced_count if redaction is not None else 0
    return content, {"left_out": left_out, "replaced_count": replaced_count, "changed": changed}


@contextmanager
def _held(run: RunDir) -> Iterator[RunDir]:
    """The run with all that is packed held open; that of root is so already."""
    if run.is_held:
        yield run
        return
    files = open_files(run.path, with_logs=True)
    try:
        yield RunDir(run.path, files)
    finally:
        for fd in files.values():
            os.close(fd)


@contextmanager
def _in_memory(path: Path, members: dict[str, bytes]) -> Iterator[RunDir]:
    """A run of these files, which are nowhere else."""
    files: dict[str, int] = {}
    try:
        for name, content in members.items():
            files[name] = os.memfd_create("bundle", os.MFD_CLOEXEC)
            with os.fdopen(files[name], "wb", closefd=False) as stream:
                stream.write(content)
        yield RunDir(path, files)
    finally:
        for fd in files.values():
            os.close(fd)


def _causes(verdict: dict[str, Any]) -> list[str]:
    return [verdict["verdict"]["cause"], *(each["cause"] for each in verdict["findings"])]


def _members(run: RunDir, redaction: Redaction | None) -> tuple[dict[str, bytes], dict[str, int]]:
    """Manifest, live.bin, tables and logs of the bundle; and the tables that were left out."""
    streams = {name: run.held_sizes_bytes(f"raw/{name}/") for name in schema.TABLES}
    sizes = {name: sum(found.values()) for name, found in streams.items() if found}
    live = {} if "connections" in sizes else run.held_sizes_bytes(LIVE)
    room_bytes = MOST_BYTES - sum(live.values()) - MOST_LOGS * LOG_TAIL_BYTES - (8 << 20)
    left_out = _too_much(sizes, room_bytes)
    members = {name: _content(run, name) for name in live}
    if redaction is not None and live:
        members[LIVE] = _redacted_live(members[LIVE], redaction)
    cut = []
    for table in [each for each in sizes if each not in left_out]:
        if redaction is None:
            members |= {name: _content(run, name) for name in streams[table]}
            continue
        read = run.read_table(table)
        cut += [table] if read.cut_files else []
        columns = redaction.table(table, read.table)
        members[f"raw/{table}/bundle.arrows"] = _stream_of(table, columns)
    for name in run.held_sizes_bytes("logs/"):
        text = _tail(run, name)
        members[name] = (redaction.text(text) if redaction else text).encode()
    manifest = run.read_manifest()
    manifest = manifest if redaction is None else redaction.value(manifest)
    manifest["bundle"] = {
        "made_by": tool_version(),
        "is_redacted": redaction is not None,
        "left_out": left_out,
        "cut": cut,
    }
    members[MANIFEST] = manifest_text(manifest).encode()
    return members, left_out


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


def _redacted_live(content: bytes, redaction: Redaction) -> bytes:
    fd = os.memfd_create("live", os.MFD_CLOEXEC)
    try:
        with os.fdopen(fd, "r+b", closefd=False) as stream:
            stream.write(content)
            stream.flush()
            live = Live(fd)
            column = live.column("source_address")
            shown = {number: redaction.address(number) for number in set(column)}
            for record, number in enumerate(column):
                column[record] = shown[number]
            column.release()
            live.close()
            stream.seek(0)
            return stream.read()
    finally:
        os.close(fd)


def _stream_of(table: str, columns: dict[str, Any]) -> bytes:
    import pyarrow as pa

    wanted = arrow_schema(table)
    stream = io.BytesIO()
    with pa.ipc.new_stream(stream, wanted) as sink:
        sink.write_batch(batch_of(table, [columns[name] for name in wanted.names]))
    return stream.getvalue()


def _content(run: RunDir, name: str) -> bytes:
    with run.open_file(name) as stream:
        return stream.read(MOST_BYTES)


def _tail(run: RunDir, name: str) -> str:
    with run.open_file(name) as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(0, size - LOG_TAIL_BYTES))
        return stream.read(LOG_TAIL_BYTES).decode("utf-8", "replace")


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
    return open_run_dir(folder)


def _new_folder(folder: Path) -> Path:
    try:
        folder.mkdir(mode=FOLDER_MODE)
    except FileExistsError:
        raise UsageError(
            f"there is {folder} already, where the bundle would be unpacked",
            fix=f"profile-report {folder}, or move it away",
        ) from None
    return folder


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
