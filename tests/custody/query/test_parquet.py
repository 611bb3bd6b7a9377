"""Parquet files of the archive: whoever may write into it may have made their bytes."""

import contextlib
import io
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from custody.errors import FormatError
from custody.query import parquet

TABLE = pa.table(
    {
        "number": pa.array([*range(2_999), None], pa.int64()),
        "text": pa.array(["é" * (at % 7) for at in range(3_000)]),
        "moment": pa.array([*range(3_000)], pa.timestamp("us")),
    }
)


def written(table: pa.Table, **more: Any) -> bytes:
    made = io.BytesIO()
    pq.write_table(table, made, compression="zstd", **more)
    return made.getvalue()


@pytest.mark.parametrize("rows", [0, 1, 1_024, 3_000])
def test_a_table_comes_back(rows: int) -> None:
    """With its types, in its order, from any number of row groups."""
    table = TABLE.slice(0, rows)
    assert parquet.decode("a.parquet", parquet.encode(table)).equals(table)
    assert parquet.decode("a.parquet", written(table, row_group_size=100)).equals(table)


BOMBS: dict[str, tuple[pa.Table, dict[str, Any]]] = {
    "a long text": (pa.table({"a": ["x" * 2_000_000]}), {"use_dictionary": False}),
    "one text many times": (
        pa.table({"a": pa.DictionaryArray.from_arrays(pa.array([0] * 20_000, pa.int32()), pa.array(["x" * 1_000]))}),
        {"store_schema": False},
    ),
    "NULL many times": (pa.table({"a": pa.nulls(2_000_000, pa.int64())}), {}),
    "a number many times": (pa.table({"a": pa.repeat(7, 2_000_000)}), {}),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_small_file_of_a_large_table(monkeypatch: pytest.MonkeyPatch, bomb: str) -> None:
    """It is refused, and named: how long its file is does not say how much memory it takes."""
    table, options = BOMBS[bomb]
    data = written(table, **options)
    assert len(data) < 10_000
    assert parquet.decode("a.parquet", data).num_rows == len(table)
    monkeypatch.setattr(parquet, "TABLE_BYTES", 1_000_000)
    with pytest.raises(FormatError, match=r"^a.parquet is a table of more than 1,000,000 bytes$"):
        parquet.decode("a.parquet", data)


@pytest.mark.parametrize("data", [b"", b"PAR1", b"PAR1" * 4, b"PAR1" + b"\xff" * 8 + b"PAR1"])
def test_what_is_no_file_is_named(data: bytes) -> None:
    """The error says so."""
    with pytest.raises(FormatError, match=r"^a.parquet is no Parquet file: "):
        parquet.decode("a.parquet", data)


DATA = written(TABLE.slice(0, 50), use_dictionary=False)


@given(st.integers(0, len(DATA) - 1), st.binary(max_size=8), st.integers(0, 8))
def test_other_bytes_give_a_table_or_an_error_of_the_format(at: int, put: bytes, taken: int) -> None:
    """Whatever bytes stand in the place of some, nothing else is raised, and the text of a table is text."""
    table = None
    with contextlib.suppress(FormatError):
        table = parquet.decode("a.parquet", DATA[:at] + put + DATA[at + taken :])
    if table is not None:
        texts = [table[column.name].to_pylist() for column in table.schema if pa.types.is_string(column.type)]
        assert all(len(text) == len(table) for text in texts)
