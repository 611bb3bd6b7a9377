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
    """With its types, in its order, from any number of row groups; and without a column that an older one lacks."""
    table = TABLE.slice(0, rows)
    assert parquet.decode("a.parquet", parquet.encode(table), TABLE.schema).equals(table)
    older = table.drop_columns(["text"])
    assert parquet.decode("a.parquet", written(older, row_group_size=100), TABLE.schema).equals(older)


OTHER: dict[str, pa.Table] = {
    "a column more": TABLE.append_column("more", TABLE["number"]),
    "a column twice": TABLE.append_column("number", TABLE["number"]),
    "text for a number": TABLE.set_column(0, "number", TABLE["text"]),
    "a number for text": TABLE.set_column(1, "text", TABLE["number"]),
    "lists": TABLE.set_column(0, "number", pa.array([[1]] * len(TABLE))),
    "objects": TABLE.set_column(0, "number", pa.array([{"a": 1}] * len(TABLE))),
    "nothing": TABLE.set_column(0, "number", pa.nulls(len(TABLE))),
    "bytes": TABLE.set_column(1, "text", pa.array([b"x"] * len(TABLE))),
}


@pytest.mark.parametrize("other", OTHER)
def test_other_columns_are_refused(other: str) -> None:
    """A column that nobody asked for is not decoded, whatever it holds."""
    with pytest.raises(FormatError, match=r"^a.parquet has other columns$") as refused:
        parquet.decode("a.parquet", written(OTHER[other]), TABLE.schema)
    assert not isinstance(refused.value, parquet.NotParquet)


def repeated(text: str, times: int) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.repeat(pa.scalar(0, pa.int32()), times), pa.array([text]))


BOMBS: dict[str, tuple[pa.Table, dict[str, Any]]] = {
    "a long text": (pa.table({"a": ["x" * 20_000_000]}), {"use_dictionary": False}),
    "a text many times": (pa.table({"a": repeated("x" * 1_000_000, 1_000)}), {"store_schema": False}),
    "texts in many groups": (
        pa.table({"a": repeated("x" * 10_000, 1_000)}),
        {"store_schema": False, "row_group_size": 100},
    ),
    "NULL many times": (pa.table({"a": pa.nulls(2_000_000, pa.int64())}), {}),
    "a number many times": (pa.table({"a": pa.repeat(7, 2_000_000)}), {}),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_small_file_of_a_large_table(monkeypatch: pytest.MonkeyPatch, bomb: str) -> None:
    """It is refused and named before it is decoded: how long its file is does not say how much memory it takes."""
    table, options = BOMBS[bomb]
    data = written(table, **options)
    schema = pa.schema([("a", pa.int64() if pa.types.is_integer(table["a"].type) else pa.string())])
    assert len(data) < 10_000
    monkeypatch.setattr(parquet, "TABLE_BYTES", 5_000_000)
    before, pool = pa.default_memory_pool(), pa.system_memory_pool()
    pa.set_memory_pool(pool)
    try:
        with pytest.raises(FormatError, match=r"^a.parquet is a table of more than 5,000,000 bytes"):
            parquet.decode("a.parquet", data, schema)
        assert pool.max_memory() < 4 * 5_000_000
    finally:
        pa.set_memory_pool(before)


@given(st.lists(st.text(max_size=30) | st.none(), max_size=50), st.integers(1, 50))
def test_the_size_of_a_table_is_the_same_for_who_writes_and_who_reads(texts: list[str | None], group: int) -> None:
    """Whether its texts are in dictionaries or not: what was within the bound is read again."""
    table = pa.table({"number": pa.array(range(len(texts)), pa.int64()), "text": pa.array(texts, pa.string())})
    size = parquet.size_of(table)
    assert size == len(texts) * 16 + sum(len(text.encode()) for text in texts if text is not None)
    in_dictionaries = table.set_column(1, "text", table["text"].dictionary_encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parquet, "TABLE_BYTES", max(size, 2_000))
        assert parquet.size_of(in_dictionaries) == size
        assert parquet.decode("a.parquet", written(table, row_group_size=group), table.schema).equals(table)
        patch.setattr(parquet, "TABLE_BYTES", size - 1)
        if texts:
            with pytest.raises(FormatError, match="is a table of more than"):
                parquet.decode("a.parquet", written(table, row_group_size=group), table.schema)


def test_one_long_text_among_many_short_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a writer takes for small enough is read again, however long one of its texts is, in each column."""
    texts = pa.array(["x" * 10_000, *["y"] * 9_999])
    table = pa.table({"a": texts, "b": texts, "c": pa.array(range(10_000), pa.int64())})
    size = parquet.size_of(table)
    assert size == 2 * 19_999 + 3 * 80_000
    monkeypatch.setattr(parquet, "TABLE_BYTES", size)
    for rows in (10_000, 3_000):
        assert parquet.decode("a.parquet", written(table, row_group_size=rows), table.schema).equals(table)


def test_too_little_memory_is_no_fault_of_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrow's error of it is none of the format."""

    def read(*_: object, **__: object) -> None:
        raise pa.ArrowMemoryError("malloc of size 64 failed")

    monkeypatch.setattr(pq.ParquetFile, "read", read)
    with pytest.raises(MemoryError):
        parquet.decode("a.parquet", written(TABLE), TABLE.schema)


@pytest.mark.parametrize("data", [b"", b"PAR1", b"PAR1" * 4, b"PAR1" + b"\xff" * 8 + b"PAR1"])
def test_what_is_no_file_is_named(data: bytes) -> None:
    """The error says so."""
    with pytest.raises(parquet.NotParquet, match=r"^a.parquet is no Parquet file: "):
        parquet.decode("a.parquet", data, TABLE.schema)


DATA = written(TABLE.slice(0, 50), use_dictionary=False)


@given(st.integers(0, len(DATA) - 1), st.binary(max_size=8), st.integers(0, 8))
def test_other_bytes_give_a_table_or_an_error_of_the_format(at: int, put: bytes, taken: int) -> None:
    """Whatever bytes stand in the place of some, nothing else is raised, and the text of a table is text."""
    table = None
    with contextlib.suppress(FormatError):
        table = parquet.decode("a.parquet", DATA[:at] + put + DATA[at + taken :], TABLE.schema)
    if table is not None:
        texts = [table[column.name].to_pylist() for column in table.schema if pa.types.is_string(column.type)]
        assert all(len(text) == len(table) for text in texts)
