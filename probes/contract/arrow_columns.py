"""Columns of Arrow from lists and numpy arrays, made of their bytes.

``pyarrow.array`` imports pandas at its first conversion wherever pandas is installed: 55 MB and a
third of a second of CPU, in a process that has no use for it and is in the middle of a ramp.
numpy and pyarrow are imported with the first column, so that who opens no table stays lean.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from probes.contract import schema

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

_MOST_TEXT_BYTES = 2**31 - 1
"""Of one column of one batch: its offsets are 32 bits (Arrow columnar format, variable-size)."""
_KINDS = {schema.I64: "iub", schema.F64: "fiub", schema.BOOL: "b"}
"""What numpy calls the values that each column takes as they are."""


def arrow_type(column_type: str) -> pa.DataType:
    """The Arrow type of a column of ``probes.contract.schema``."""
    import pyarrow as pa

    return {
        schema.I64: pa.int64(),
        schema.F64: pa.float64(),
        schema.TEXT: pa.string(),
        schema.BOOL: pa.bool_(),
    }[column_type]


def arrow_column(values: Sequence[Any] | np.ndarray[Any, Any], column_type: str) -> pa.Array:
    """What ``pyarrow.array`` makes of them, which is left what is not plain (a missing value).

    Args:
        values: Whole numbers, numbers, bool or str, as the column's type says.
        column_type: As in ``probes.contract.schema``.

    Raises:
        pyarrow.ArrowInvalid, pyarrow.ArrowTypeError, OverflowError: They are no such column.
    """
    import pyarrow as pa

    found = _texts(values) if column_type == schema.TEXT else _numbers(values, column_type)
    if found is None:
        return pa.array(values, type=arrow_type(column_type))
    buffers = [None, *map(pa.py_buffer, found)]
    return pa.Array.from_buffers(arrow_type(column_type), len(values), buffers, null_count=0)


def _numbers(values: Sequence[Any] | np.ndarray[Any, Any], column_type: str) -> list[Any] | None:
    import numpy as np

    given = np.asarray(values) if len(values) else np.empty(0, bool)
    if given.dtype.kind not in _KINDS[column_type]:
        return None
    if column_type == schema.BOOL:
        return [np.packbits(given, bitorder="little")]
    if column_type == schema.F64:
        return [np.ascontiguousarray(given, dtype=np.float64)]
    if given.dtype.kind == "u" and given.max() >= 1 << 63:
        return None
    return [np.ascontiguousarray(given, dtype=np.int64)]


def _texts(values: Sequence[Any] | np.ndarray[Any, Any]) -> list[Any] | None:
    import numpy as np

    if not all(isinstance(value, str) for value in values):
        return None
    encoded = [value.encode() for value in values]
    ends = [0, *accumulate(map(len, encoded))]
    if ends[-1] > _MOST_TEXT_BYTES:
        return None
    return [np.array(ends, np.int32), b"".join(encoded)]
