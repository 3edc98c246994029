"""Appends the rows of one table to an Arrow IPC stream, also while the disk fills.

A batch is written as a whole or not at all: what a full disk took of it is cut off again, since
after half a batch nothing could be read. The rows are lost and counted, and the next ones go into
another file as soon as there is room.
"""

from __future__ import annotations

import contextlib
import io
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probes.contract import schema
from probes.contract.arrow_columns import arrow_column, arrow_type
from probes.contract.errors import RunDirError
from probes.contract.private_file import FILE_MODE, FOLDER_MODE

if TYPE_CHECKING:
    import pyarrow as pa

_TRY_AGAIN_S = 1.0
"""After a write that failed: a full disk stays full for a while."""


def arrow_schema(table: str) -> pa.Schema:
    """The Arrow schema of a table of ``schema.TABLES``."""
    import pyarrow as pa

    return pa.schema([(c.name, arrow_type(c.type)) for c in schema.TABLES[table].columns])


def batch_of(table: str, columns: Sequence[Any]) -> pa.RecordBatch:
    """One batch of a table, of its columns in the order of the schema."""
    import pyarrow as pa

    types = [column.type for column in schema.TABLES[table].columns]
    arrays = [arrow_column(*each) for each in zip(columns, types, strict=True)]
    return pa.record_batch(arrays, schema=arrow_schema(table))


class _WholeWrites(io.RawIOBase):
    """A file that takes all that it is given, or raises: write(2) on a full disk takes a part.

    Args:
        path: Created, private.
        flags: Of open(2), beside those.
    """

    def __init__(self, path: Path, flags: int) -> None:
        flags |= os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        self._fd = os.open(path, flags, FILE_MODE)
        self.size_bytes = os.fstat(self._fd).st_size

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        left = memoryview(data).cast("B")
        count = len(left)
        while left:
            taken = os.write(self._fd, left)
            self.size_bytes += taken
            left = left[taken:]
        return count

    def cut(self, size_bytes: int) -> None:
        """Takes back what came after that."""
        os.ftruncate(self._fd, size_bytes)
        self.size_bytes = size_bytes

    def close(self) -> None:
        if not self.closed:
            os.close(self._fd)
        super().close()


class TableWriter:
    """Appends rows to one Arrow stream; ``flush`` makes one batch of what came since.

    A write that fails (full disk) is counted in ``lost_rows_count`` and does not raise: the run
    goes on, the probe's health row says what is missing.

    Args:
        folder: Of the table; made when it is missing.
        table: Of the schema.
        producer: Part of the file's name.
        unwritten: Gets the batches that could not be written, which then are not lost; None to
            count them.

    Raises:
        RunDirError: The file cannot be opened, and ``unwritten`` is None.
    """

    def __init__(
        self, folder: Path, table: str, producer: str, unwritten: list[Any] | None = None
    ) -> None:
        self.table = table
        self.schema = arrow_schema(table)
        self.row_count = 0
        self.lost_rows_count = 0
        self.last_error = ""
        self._rows: list[Sequence[Any]] = []
        self._folder = folder
        self._name = f"{producer}-{os.getpid()}"
        self._path = self._folder / f"{self._name}.arrows"
        self._merged_bytes = self._merged_count = self._batch_count = 0
        self._try_again_s = 0.0
        self._unwritten = unwritten
        self._file: _WholeWrites | None = None
        self._stream: Any = None
        import pyarrow as pa

        try:
            self._folder.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
            self._file = _WholeWrites(self._path, 0)
            self._stream = pa.ipc.new_stream(self._file, self.schema)
        except OSError as error:
            if unwritten is None:
                raise RunDirError(
                    f"cannot write {self._path}: {error.strerror}",
                    fix=f"df -h {folder}; make room or choose another place with --output DIR",
                ) from error
            self.last_error = str(error)

    @property
    def size_bytes(self) -> int:
        """What is written so far."""
        return self._merged_bytes + (self._file.size_bytes if self._file is not None else 0)

    def append(self, *row: Any) -> None:
        """Adds one row, values in the order of the schema."""
        self._rows.append(row)

    def write_columns(self, columns: Mapping[str, Any]) -> None:
        """Writes many rows at once from arrays or lists, one per column name."""
        self._write_batch([columns[field.name] for field in self.schema])

    def flush(self) -> None:
        """Writes the appended rows as one batch."""
        if not self._rows:
            return
        rows, self._rows = self._rows, []
        self._write_batch(list(zip(*rows, strict=True)))

    def _write_batch(self, columns: Sequence[Any]) -> None:
        self._write(batch_of(self.table, columns))

    def _write(self, batch: Any) -> None:
        now_s = time.monotonic()
        if self._stream is None and now_s >= self._try_again_s:
            self._begin_next()
        if self._stream is None or self._file is None:
            self._lose(batch)
            return
        whole_bytes = self._file.size_bytes
        try:
            self._stream.write_batch(batch)
            self._batch_count += 1
            self.row_count += batch.num_rows
        except OSError as error:
            self.last_error = str(error)
            self._lose(batch)
            self._stream = None
            self._try_again_s = now_s + _TRY_AGAIN_S
            self._take_back(whole_bytes)

    def _take_back(self, whole_bytes: int) -> None:
        """Leaves what is whole, and no empty file for each time that it was tried again."""
        assert self._file is not None
        with contextlib.suppress(OSError):
            self._file.cut(whole_bytes)
            if not whole_bytes and self._merged_count:
                self._path.unlink()
                self._file.close()
                self._file = None
                self._merged_count -= 1

    def _lose(self, batch: Any) -> None:
        if self._unwritten is not None:
            self._unwritten.append(batch)
            self.row_count += batch.num_rows
        else:
            self.lost_rows_count += batch.num_rows

    def merge(self) -> None:
        """Makes one batch of all that came since the last merge, in a file of its own.

        A batch of two rows takes as much room as one of twenty, and reading a million of them takes
        a minute. The file is replaced in one step, so a reader sees its rows once, and who kills
        this process loses none of them. What fails leaves the batches as they are.
        """
        self.flush()
        if self._stream is None or self._batch_count < 2:
            return
        import pyarrow as pa

        temporary = self._path.with_name(f".{self._path.name}")
        try:
            self._end_file()
            with pa.OSFile(str(self._path)) as source, pa.ipc.open_stream(source) as stream:
                (batch,) = stream.read_all().combine_chunks().to_batches()
            with (
                contextlib.closing(_WholeWrites(temporary, os.O_EXCL)) as target,
                pa.ipc.new_stream(target, self.schema) as merged,
            ):
                merged.write_batch(batch)
            temporary.replace(self._path)
        except (OSError, pa.ArrowInvalid) as error:
            self.last_error = str(error)
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
        self._begin_next()

    def _end_file(self) -> None:
        """Ends the stream and closes its file.

        Raises:
            OSError: The end could not be written.
        """
        stream, self._stream = self._stream, None
        try:
            if stream is not None:
                stream.close()
        finally:
            if self._file is not None:
                self._file.close()

    def _begin_next(self) -> None:
        """Goes on in another file; what this one has is whole."""
        import pyarrow as pa

        self._stream = None
        try:
            if self._file is not None:
                self._file.close()
                self._file = None
                self._merged_bytes += self._path.stat().st_size  # another file after a merge
            self._merged_count += 1
            self._path = self._folder / f"{self._name}.{self._merged_count:05d}.arrows"
            self._folder.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
            self._file = _WholeWrites(self._path, os.O_EXCL)
            self._stream = pa.ipc.new_stream(self._file, self.schema)
        except OSError as error:
            self.last_error = str(error)
            self._try_again_s = time.monotonic() + _TRY_AGAIN_S
        self._batch_count = 0

    def close(self) -> None:
        """Flushes and ends the stream."""
        self._try_again_s = 0.0  # what comes last may find the room that was kept for it
        self.flush()
        try:
            self._end_file()
        except OSError as error:
            self.last_error = str(error)
