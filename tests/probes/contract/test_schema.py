import pytest

from probes.contract import schema
from probes.contract.schema import BOOL, F64, I64, TABLES, TEXT, Column

COLUMNS = [
    pytest.param(table.name, column, id=f"{table.name}.{column.name}")
    for table in TABLES.values()
    for column in table.columns
]
SUFFIXES = {
    "ns": ("_ns", "_ns_total"),
    "bytes": ("_bytes", "_bytes_total"),
    "pages": ("_pages",),
    "count": ("_count", "_total"),
    "pct": ("_pct",),
    "1/s": ("_per_s",),
}


def unit_of(name: str) -> str:
    """The unit that a name promises, '' for none; the longest suffix wins."""
    found = [
        (len(suffix), unit)
        for unit, suffixes in SUFFIXES.items()
        for suffix in suffixes
        if name.endswith(suffix)
    ]
    return max(found)[1] if found else ""


@pytest.mark.parametrize(("table", "column"), COLUMNS)
def test_a_column_says_its_unit_in_its_name(table: str, column: Column):
    assert column.unit == unit_of(column.name)


@pytest.mark.parametrize(("table", "column"), COLUMNS)
def test_a_column_is_typed_and_explained(table: str, column: Column):
    assert column.type in (I64, F64, TEXT, BOOL)
    assert column.meaning
    assert column.type in (I64, F64) or column.unit == ""


@pytest.mark.parametrize(("table", "column"), COLUMNS)
def test_only_a_number_can_be_not_known(table: str, column: Column):
    assert column.absent in (None, -1)
    assert column.absent is None or column.type == I64


@pytest.mark.parametrize("table", TABLES.values(), ids=lambda t: t.name)
def test_a_table_names_its_rows_volume_and_source(table: schema.Table):
    assert all((table.row, table.volume, table.source, table.producer))
    names = table.column_names
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("table", TABLES.values(), ids=lambda t: t.name)
def test_moments_come_first_and_are_int64(table: schema.Table):
    if "at_ns" in table.column_names:
        assert table.column_names[0] == "at_ns"
    for column in table.columns:
        if column.unit == "ns":
            assert column.type == I64


def test_tables_are_keyed_by_their_names():
    assert all(name == table.name for name, table in TABLES.items())
    assert isinstance(schema.SCHEMA_VERSION, int)
