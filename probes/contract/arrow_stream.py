"""Reads an Arrow IPC stream that may be a stranger's: nothing in it is believed.

Offsets that lead out of a buffer are found before they are followed, and a compressed body, of
which a kilobyte may become gigabytes, is refused: connscope writes none.
Source: Arrow's format/Message.fbs; FlatBuffers' internals (tables and their vtables).
"""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

_HEADER, _COMPRESSION = 2, 3  # fields of Message and of RecordBatch


def opened(file: Path | int) -> Any:
    """A stream of a path, or of a descriptor that stays open, from its begin."""
    import pyarrow as pa

    if isinstance(file, Path):
        return pa.OSFile(str(file))
    os.lseek(file, 0, os.SEEK_SET)
    return pa.PythonFile(io.FileIO(file, closefd=False), mode="r")


def read_schema(file: Path | int) -> pa.Schema:
    """The schema of a stream.

    Raises:
        pa.ArrowInvalid, OSError, EOFError: It has none.
    """
    import pyarrow as pa

    with opened(file) as source:
        return pa.ipc.read_schema(source)


def batches(file: Path | int, schema: pa.Schema) -> Iterator[Any]:
    """The record batches of a stream, each looked through before it is given.

    Args:
        file: Path or descriptor.
        schema: What ``read_schema`` said, without dictionaries.

    Raises:
        pa.ArrowInvalid: A batch is none, is compressed, or leads out of itself.
        OSError, EOFError: The stream is cut.
    """
    import pyarrow as pa

    with opened(file) as source:
        messages = pa.ipc.MessageReader.open_stream(source)
        messages.read_next_message()  # the schema
        while True:
            try:
                message = messages.read_next_message()
            except StopIteration:
                return
            if message.type != "record batch" or is_compressed(message.metadata.to_pybytes()):
                raise pa.ArrowInvalid(f"a {message.type} that connscope does not write")
            batch = pa.ipc.read_record_batch(message, schema)
            batch.validate(full=True)
            yield batch


def is_compressed(metadata: bytes) -> bool:
    """Whether the Message of a record batch says that its body is compressed.

    Raises:
        ValueError: It is no such message.
    """
    try:
        (root,) = struct.unpack_from("<I", metadata, 0)
        header = _field(metadata, root, _HEADER)
        if not header:
            raise ValueError("a message without a header")
        (offset,) = struct.unpack_from("<I", metadata, header)
        return bool(_field(metadata, header + offset, _COMPRESSION))
    except struct.error as error:
        raise ValueError(f"a message that is cut: {error}") from error


def _field(data: bytes, table: int, number: int) -> int:
    """Where a field of a table is, 0 when it has none."""
    (back,) = struct.unpack_from("<i", data, table)
    vtable = table - back
    if vtable < 0:
        raise ValueError("a table before its message")
    (size_bytes,) = struct.unpack_from("<H", data, vtable)
    place = 4 + 2 * number
    if place + 2 > size_bytes:
        return 0
    (offset,) = struct.unpack_from("<H", data, vtable + place)
    return table + offset if offset else 0
