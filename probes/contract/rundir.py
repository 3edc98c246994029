"""The run directory: the file format between recording and understanding.

::

    runs/<utc>-<name>-<4 hex>/
      manifest.json     written by temp file and rename, first with status "running"
      live.bin          shared memory of the fleet (probes/contract/live.py)
      raw/<table>/<producer>-<pid>.arrows     append-only Arrow IPC stream, one writer a file;
                        of a long watch <producer>-<pid>.<number>.arrows follow, one an hour
      logs/<child>.log
      derived/*.parquet  verdict.json  report.html
      hosts/<name>/     of a run over several hosts: manifest, raw and logs of each, as it made them
    runs/latest -> the newest

An Arrow stream cut at any byte loses only a suffix: ``read_table`` returns what is whole and says
what was cut. pyarrow is imported when a table is opened, so that listing runs stays quick.
"""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from probes.contract import arrow_stream, schema
from probes.contract.errors import RunDirError, UsageError
from probes.contract.private_file import FOLDER_MODE, give_folder, make_folder, open_new
from probes.contract.table_writer import TableWriter, arrow_schema
from probes.contract.whole_file import DeviceKeptError, replace_file

if TYPE_CHECKING:
    import pyarrow as pa

MANIFEST = "manifest.json"
VERDICT = "verdict.json"
REPORT = "report.html"
LIVE = "live.bin"
HOSTS = "hosts"
MOST_LOGS = 16
"""Of a run, in a bundle."""
_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC  # a pipe waits for nobody
_ROOM = ".room"
_ROOM_BYTES = 4 << 20
"""Health of probes, events, processes, manifest, verdict and page of a run of any size."""


def create_run_dir(parent: Path, name: str) -> RunDir:
    """Makes a new run directory under ``parent`` and points ``latest`` at it.

    Args:
        parent: Usually ``runs``; made when missing.
        name: Part of the directory's name; letters, digits, ``.``, ``_`` and ``-``.

    Raises:
        UsageError: The name has other characters.
        RunDirError: The directory cannot be made.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
        raise UsageError(
            f"--name {name!r} cannot be part of a directory name",
            fix="use letters, digits, '.', '_' and '-', at most 64",
        )
    utc = datetime.now(tz=UTC).strftime("%Y%m%dT%H%M%SZ")
    path = parent / f"{utc}-{name}-{secrets.token_hex(2)}"
    try:
        make_folder(path)
        for part in ("raw", "logs", "derived"):
            (path / part).mkdir(mode=FOLDER_MODE)
    except OSError as error:
        raise RunDirError(
            f"cannot make the run directory {path}: {error.strerror}",
            fix="choose a writable place with --output DIR",
        ) from error
    link, fresh = parent / "latest", parent / f".latest-{secrets.token_hex(4)}"
    try:
        fresh.symlink_to(path.name)
        give_folder(fresh)
        fresh.replace(link)
    except OSError:
        fresh.unlink(
            missing_ok=True
        )  # a directory named latest, or no symlinks: a convenience only
    return RunDir(path)


def open_run_dir(path: Path) -> RunDir:
    """Opens an existing run directory for reading.

    Raises:
        RunDirError: No run there, an unreadable manifest, or another schema version.
    """
    run = RunDir(path)
    require_version(run)
    return run


def require_version(run: RunDir) -> None:
    """Refuses a recording of another schema version.

    Raises:
        RunDirError: It is one, or its manifest cannot be read.
    """
    manifest = run.read_manifest()
    version = manifest.get("schema_version")
    if version != schema.SCHEMA_VERSION:
        raise RunDirError(
            f"{run.path} has schema version {version!r:.20}, "
            f"this connscope reads {schema.SCHEMA_VERSION}",
            fix=f"read it with {_tool_of(manifest)}",
        )


def _tool_of(manifest: Mapping[str, Any]) -> str:
    """The connscope that made a recording, which may be a stranger's: bounded, and printable."""
    version, commit = (
        "".join(each for each in str(manifest.get(name) or "")[:40] if each.isprintable())
        for name in ("tool_version", "tool_commit")
    )
    return f"connscope {version or 'of that time'}" + (f", commit {commit}" if commit else "")


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except DeviceKeptError as error:
        raise RunDirError(
            f"cannot write {path}: {error.strerror}", fix="name a file with --output FILE"
        ) from error
    except OSError as error:
        raise RunDirError(
            f"cannot write {path}: {error.strerror}",
            fix=f"df -h {path.parent}; make room or choose another place with --output DIR",
        ) from error


def write_atomically(path: Path, text: str, *, is_private: bool = False) -> None:
    """Writes a whole file by temp file and rename: a reader sees the old or the new one.

    Args:
        path: Where; its folder exists.
        text: All of it.
        is_private: Nobody else may read it; so it is for what is part of a run.

    Raises:
        RunDirError: No room or no permission.
    """
    with _writing(path):
        replace_file(path, text.encode(), is_private=is_private)


@dataclass(slots=True)
class TableRead:
    """What could be read of one table.

    Attributes:
        table: All whole rows, columns as in the schema.
        cut_files: Files that ended in the middle of a batch, by path.
    """

    table: pa.Table
    cut_files: list[Path] = field(default_factory=list)


class RunDir:
    """Paths and files of one run.

    Args:
        path: The directory.
        held: Its files as ``open_files`` opened them: they are all that there is. None to open them
            when they are read.

    Attributes:
        path: The directory.
        live_path: Where this process opens the memory that the fleet shares.
        unwritten_manifest: The manifest that a full disk did not take; who recorded the run
            understands it all the same.
        unwritten_batches: Rows of tables that it did not take, where they were to be kept.
    """

    def __init__(self, path: Path, held: Mapping[str, int] | None = None) -> None:
        self.path = path
        self.live_path = path / LIVE
        self._held = held
        self.unwritten_manifest: Mapping[str, Any] | None = None
        self.unwritten_batches: dict[str, list[Any]] = {}

    @property
    def run_id(self) -> str:
        """The directory's name."""
        return self.path.resolve().name

    def read_manifest(self) -> dict[str, Any]:
        """The manifest as it is.

        Raises:
            RunDirError: Missing or not JSON.
        """
        if self.unwritten_manifest is not None:
            unwritten: dict[str, Any] = json.loads(manifest_text(self.unwritten_manifest))
            return unwritten
        path = self.path / MANIFEST
        try:
            with self.open_file(MANIFEST) as stream:
                loaded = json.loads(stream.read().decode("utf-8"))
        except OSError as error:
            raise RunDirError(
                f"{self.path} is not a run directory: {MANIFEST}: {error.strerror}",
                fix="name a directory below runs/, for example runs/latest",
            ) from error
        except ValueError as error:
            raise RunDirError(
                f"{path} is not JSON: {error}",
                fix="the copy was cut short; copy the run directory again",
            ) from error
        if not isinstance(loaded, dict):
            raise RunDirError(f"{path} holds no object", fix="copy the run directory again")
        return loaded

    def write_manifest(self, manifest: Mapping[str, Any]) -> None:
        """Replaces the manifest in one step.

        Raises:
            RunDirError: No room or no permission.
        """
        write_atomically(self.path / MANIFEST, manifest_text(manifest), is_private=True)
        self.unwritten_manifest = None

    def reserve_room(self) -> None:
        """Takes room on the disk for what is written last; without it the run goes on."""
        path = self.path / _ROOM
        try:
            with open_new(path) as stream:
                os.posix_fallocate(stream.fileno(), 0, _ROOM_BYTES)
        except OSError:
            path.unlink(missing_ok=True)

    def release_room(self) -> None:
        """Gives it back: now the health of probes, the last tables and the verdict are written."""
        with suppress(OSError):
            (self.path / _ROOM).unlink(missing_ok=True)

    def unwritten_files(self) -> dict[str, int]:
        """What a full disk did not take of the tables, as files in memory, by name, open."""
        found: dict[str, int] = {}
        if not any(self.unwritten_batches.values()):
            return found
        import pyarrow as pa

        for table, batches in self.unwritten_batches.items():
            if batches:
                name = f"raw/{table}/~unwritten.arrows"  # sorted behind those that were written
                found[name] = os.memfd_create(table, os.MFD_CLOEXEC)
                with (
                    os.fdopen(found[name], "wb", closefd=False) as stream,
                    pa.ipc.new_stream(stream, batches[0].schema) as sink,
                ):
                    for batch in batches:
                        sink.write_batch(batch)
        return found

    def open_file(self, name: str) -> BinaryIO:
        """A file of it, to be read.

        Raises:
            OSError: There is none.
        """
        if self._held is None:
            return os.fdopen(os.open(self.path / name, _READ), "rb")
        if name not in self._held:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
        os.lseek(self._held[name], 0, os.SEEK_SET)
        return os.fdopen(self._held[name], "rb", closefd=False)

    def part(self, host: str) -> RunDir:
        """What one host of several recorded: a run directory in this one.

        Args:
            host: Its name.
        """
        start = f"{HOSTS}/{host}/"
        held = None
        if self._held is not None:
            held = {n[len(start) :]: fd for n, fd in self._held.items() if n.startswith(start)}
        return RunDir(self.path / HOSTS / host, held)

    @property
    def is_held(self) -> bool:
        """Whether its files are held open."""
        return self._held is not None

    def held_sizes_bytes(self, start: str) -> dict[str, int]:
        """Size of each file that is held open and whose name begins so, in the order of names."""
        held = self._held or {}
        names = sorted(name for name in held if name.startswith(start))
        return {name: os.fstat(held[name]).st_size for name in names}

    def _streams_of(self, table: str) -> list[tuple[Path, Path | int]]:
        """Path and what to read of each stream of a table, in order."""
        folder = self.table_dir(table)
        if self._held is not None:
            start = f"raw/{table}/"
            found: list[tuple[Path, Path | int]] = [
                (self.path / name, fd)
                for name, fd in self._held.items()
                if name.startswith(start) and name.endswith(".arrows")
            ]
        else:
            found = [(each, each) for each in folder.glob("*.arrows")] if folder.is_dir() else []
        return sorted(found, key=lambda each: _in_order(each[0]))

    def table_dir(self, table: str) -> Path:
        """Where the streams of one table are."""
        return self.path / "raw" / table

    def writer(self, table: str, producer: str, *, keeps_unwritten: bool = False) -> TableWriter:
        """Opens a stream of one table for appending by this process.

        Args:
            table: Of the schema.
            producer: Part of the file's name.
            keeps_unwritten: What the disk does not take stays in memory, where ``read_table`` of
                this object finds it.

        Raises:
            RunDirError: It cannot be opened, and what it is given would not be kept.
        """
        kept = self.unwritten_batches.setdefault(table, []) if keeps_unwritten else None
        return TableWriter(self.table_dir(table), table, producer, kept)

    def read_table(self, name: str) -> TableRead:
        """Reads all streams of a table; an absent table has no rows.

        Never raises for a stream that was cut: its whole batches are returned.
        """
        import pyarrow as pa

        wanted = arrow_schema(name)
        batches: list[Any] = []
        cut: list[Path] = []
        for path, file in self._streams_of(name):
            if os.stat(file).st_size == 0:  # noqa: PTH116 - or a descriptor
                cut.append(path)
                continue
            try:
                found = arrow_stream.read_schema(file)
                lacking = _lacking(found, name)
                if lacking is None:
                    raise RunDirError(
                        f"{path} has other columns than schema {schema.SCHEMA_VERSION}",
                        fix="read the run with the connscope version in its manifest.json",
                    )
                for batch in arrow_stream.batches(file, found):
                    batches.append(_completed(batch, lacking, wanted))  # noqa: PERF401 - kept when cut
                if not _ends_whole(file):
                    cut.append(path)
            except (pa.ArrowException, ValueError, OSError, EOFError):
                cut.append(path)
        batches += self.unwritten_batches.get(name, [])
        return TableRead(pa.Table.from_batches(batches, schema=wanted), cut)


def open_files(path: Path, *, with_logs: bool = False) -> dict[str, int]:
    """Opens all that is read of a run, by name; what is no regular file is not there.

    Who has the descriptors may read the run without having rights in its folder: ``RunDir.held``.

    Args:
        path: The run directory.
        with_logs: The first ``MOST_LOGS`` of its logs among them.
    """
    found: dict[str, int] = {}
    streams = (f"raw/{each.parent.name}/{each.name}" for each in path.glob("raw/*/*.arrows"))
    logs = sorted(path.glob("logs/*.log"))[:MOST_LOGS] if with_logs else []
    of_hosts = [
        str(each.relative_to(path))
        for form in (f"{HOSTS}/*/{MANIFEST}", f"{HOSTS}/*/raw/*/*.arrows")
        for each in path.glob(form)
    ]
    for name in (MANIFEST, LIVE, *streams, *(f"logs/{each.name}" for each in logs), *of_hosts):
        try:
            fd = os.open(path / name, _READ | os.O_NOFOLLOW)
        except OSError:
            continue
        if stat.S_ISREG(os.fstat(fd).st_mode):
            found[name] = fd
        else:
            os.close(fd)
    return found


def manifest_text(manifest: Mapping[str, Any]) -> str:
    """What is written of a manifest."""
    return json.dumps(manifest, indent=2, sort_keys=False, default=str) + "\n"


def _in_order(path: Path) -> tuple[str, str]:
    """Producer and number of a stream: a writer's first file has no number."""
    producer, _, number = path.name.removesuffix(".arrows").partition(".")
    return producer, number


def _lacking(found: pa.Schema, table: str) -> dict[str, int] | None:
    """Columns that an older recording lacks, with what to take for them; None for another table."""
    import pyarrow as pa

    lacking = {
        column.name: column.absent
        for column in schema.TABLES[table].columns
        if column.absent is not None and column.name not in found.names
    }
    kept = [field for field in arrow_schema(table) if field.name not in lacking]
    return lacking if found == pa.schema(kept) else None  # its byte order counts, too


def _completed(batch: pa.RecordBatch, lacking: Mapping[str, int], wanted: pa.Schema) -> Any:
    if not lacking:
        return batch
    import pyarrow as pa

    columns = [
        pa.array([lacking[name]] * batch.num_rows, type=wanted.field(name).type)
        if name in lacking
        else batch.column(name)
        for name in wanted.names
    ]
    return pa.record_batch(columns, schema=wanted)


_END_OF_STREAM = b"\xff\xff\xff\xff\x00\x00\x00\x00"


def _ends_whole(file: Path | int) -> bool:
    with open(file, "rb", closefd=not isinstance(file, int)) as stream:
        stream.seek(-min(8, os.fstat(stream.fileno()).st_size), os.SEEK_END)
        return stream.read() == _END_OF_STREAM
