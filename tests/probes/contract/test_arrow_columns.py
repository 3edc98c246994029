"""Columns are those that pyarrow itself makes, without what it imports for that."""

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from probes.contract import schema
from probes.contract.arrow_columns import arrow_column, arrow_type

WHOLE = st.integers(-(2**63), 2**63 - 1)
NUMBERS = st.floats(allow_nan=False) | st.integers(-(2**53), 2**53)
TEXT = st.text(st.characters(exclude_categories=("Cs",)))


def same(values, column_type):
    made = arrow_column(values, column_type)
    made.validate(full=True)
    assert made.equals(pa.array(list(values), type=arrow_type(column_type)))
    assert made.null_count == 0


@pytest.mark.parametrize(
    ("value", "column_type"),
    [(WHOLE, schema.I64), (NUMBERS, schema.F64), (st.booleans(), schema.BOOL), (TEXT, schema.TEXT)],
)
def test_a_column_is_what_pyarrow_makes_of_it(value, column_type):
    @given(st.lists(value))
    def check(values):
        same(values, column_type)
        same(tuple(values), column_type)

    check()


@pytest.mark.parametrize("kind", ["i1", "u2", "i4", "u4", "i8", "u8", ">i8"])
def test_whole_numbers_of_numpy_are_taken_in_each_width(kind):
    same(np.array([0, 1, 100], dtype=kind), schema.I64)
    same(np.arange(40, dtype=kind)[::3], schema.I64)
    same([np.int64(7), 8, np.uint32(9)], schema.I64)


def test_not_a_number_stays_one():
    made = arrow_column([1.0, float("nan")], schema.F64)
    assert np.isnan(made.to_numpy()[1])
    assert made.null_count == 0


@pytest.mark.parametrize("column_type", [schema.I64, schema.F64, schema.TEXT, schema.BOOL])
def test_what_is_not_plain_is_as_pyarrow_has_it(column_type):
    value = {schema.I64: 1, schema.F64: 1.5, schema.TEXT: "a", schema.BOOL: True}[column_type]
    assert arrow_column([value, None], column_type).to_pylist() == [value, None]
    assert arrow_column([1.0], schema.I64).to_pylist() == [1]


@pytest.mark.parametrize(
    ("value", "column_type"),
    [("1", schema.I64), (2**63, schema.I64), (2**70, schema.I64),
     (1, schema.TEXT), ("\ud800", schema.TEXT), ("", schema.BOOL)],
)  # fmt: skip
def test_what_does_not_fit_is_refused(value, column_type):
    with pytest.raises((pa.ArrowException, OverflowError, UnicodeEncodeError)):
        arrow_column([value], column_type)


def test_who_writes_tables_does_not_import_pandas(tmp_path):
    program = """
import sys
from pathlib import Path
from probes.contract.rundir import RunDir
run = RunDir(Path(sys.argv[1]))
writer = run.writer("events", "test")
writer.append(1, "began", 2, "")
writer.close()
print(len(list((run.path / "raw" / "events").iterdir())), "pandas" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout == "1 False\n"
