"""The rows that an audit keeps of statements are those that the views show."""

import io
import json
from collections.abc import Callable

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import custody
from custody.archive.forms import statements_of
from custody.archive.reader import read_manifest
from custody.archive.rows import batches_of, row_of
from custody.archive.time_spans import Span
from custody.errors import FormatError
from custody.format.audit import ObjectRef
from custody.format.layout import Log
from custody.query import parquet, statements
from custody.store.open import open_store
from tests.helpers.archives import Builder, good
from tests.helpers.memory import MemoryStore


@pytest.fixture(scope="module")
def builder(tmp_path_factory: pytest.TempPathFactory) -> Builder:
    return good(tmp_path_factory.mktemp("statements") / "archive")


def made(builder: Builder, name: statements.Name) -> pa.Table:
    """Return the rows of all statements of the archive."""
    store, log = open_store(str(builder.root)), Log(builder.log, builder.partition)
    assert statements_of(log).key(0) == builder.key(0)
    rows = statements.Rows(name)
    for sequence in range(len(builder.statements)):
        statement = read_manifest(store, log, sequence, lambda _entry, _sequence: True).statement
        if name == "manifests":
            rows.add(statements.file_row(row_of(str(log), statement)))
        else:
            for row in batches_of(str(log), statement):
                rows.add(row)
    return rows.table()


@pytest.mark.parametrize("name", ["manifests", "batches"])
def test_rows_are_those_of_the_view(builder: Builder, name: statements.Name) -> None:
    """Column by column and row by row, with the same types. The file of statements has their events by type besides."""
    connection = custody.connect(str(builder.root))
    shown = connection.table(name).order("sequence, first_offset").to_arrow_table()
    connection.close()
    table = made(builder, name)
    if name == "manifests":
        by_type = [json.loads(types) for types in table["types"].to_pylist()]
        assert by_type == [statement["types"] for statement in builder.statements]
        table = table.drop_columns(["types"])
    assert shown.schema.equals(table.schema)
    assert shown.to_pylist() == table.to_pylist()
    assert table.num_rows


@pytest.mark.parametrize("name", ["manifests", "batches"])
def test_a_file_gives_back_its_rows(builder: Builder, name: statements.Name) -> None:
    """Several files are read as one table."""
    table = made(builder, name)
    log, store, refs = Log("audit", 0), MemoryStore(), []
    for part in (table.slice(0, 2), table.slice(2)):
        data = parquet.encode(part)
        refs.append(statements.file_ref(name, log, 0, 2, data))
        store.objects[refs[-1].key] = data
    assert len({ref.key for ref in refs}) == 2
    assert statements.read_files(store, name, refs).equals(table)


def test_a_file_that_is_not_as_it_was_signed_is_refused(builder: Builder) -> None:
    """Missing, changed, no Parquet, or with other columns: each is an error of the format, which names the file."""
    log, table = Log("audit", 0), made(builder, "manifests")
    data, other, plain = parquet.encode(table), io.BytesIO(), io.BytesIO()
    pq.write_table(pa.table({"a": [1]}), other)
    pq.write_table(table, plain, compression="none", use_dictionary=False)
    no_text = plain.getvalue().replace(str(log).encode(), b"\x92" * len(str(log)))
    no_name = plain.getvalue().replace(b"quarantined", b"quarant\x92ned")
    ref = statements.file_ref("manifests", log, 0, 2, data)
    for content, digest_of, said in (
        (None, data, "is missing"),
        (data[:-1] + b"\0", data, "differs from the signed digest"),
        (b"no", b"no", "is no Parquet file"),
        (other.getvalue(), other.getvalue(), "has other columns"),
        (no_text, no_text, "is no Parquet file"),
        (no_name, no_name, "is no Parquet file"),
    ):
        store = MemoryStore({} if content is None else {ref.key: content})
        signed = ObjectRef(ref.key, len(digest_of), statements.file_ref("manifests", log, 0, 2, digest_of).sha256)
        with pytest.raises(FormatError, match=f"{ref.key} {said}"):
            statements.read_files(store, "manifests", [signed])


def spanned(span: Span, **tables: pa.Table) -> tuple[MemoryStore, Span]:
    """Return a store of a span's tables, and the span as it is with the digests of these."""
    store, refs = MemoryStore(), {}
    for name, table in tables.items():
        data = parquet.encode(table)
        refs[name] = statements.file_ref(name, Log("audit", 0), span.first, span.end, data)  # type: ignore[arg-type]
        store.objects[refs[name].key] = data
    return store, msgspec.structs.replace(span, **refs)


SPAN = Span(log="audit/0", first=0, end=99)


def test_a_span_gives_its_rows(builder: Builder) -> None:
    """Those of its statements and batches, as statements themselves give them; or columns of them."""
    table = made(builder, "manifests")
    store, span = spanned(SPAN, manifests=table, batches=made(builder, "batches"))
    read = [
        read_manifest(open_store(str(builder.root)), Log("audit", 0), each, lambda *_: True).statement
        for each in range(len(table))
    ]
    assert statements.span_rows(store, span) == [row_of("audit/0", each) for each in read]
    assert statements.span_batches(store, span) == {
        each.sequence: list(batches_of("audit/0", each)) for each in read if each.batches
    }
    keys = [each.quarantine.key if each.quarantine else None for each in read]
    assert any(keys)
    assert statements.span_columns(store, span, "quarantine") == {"quarantine": keys}
    assert statements.span_columns(store, span, "events", "log") == {
        "events": [sum(each.types.values()) for each in read],
        "log": ["audit/0"] * len(read),
    }


def test_a_span_of_no_rows(builder: Builder) -> None:
    """All its slots were passed over: it has no row, which is not the same as no file."""
    store, span = spanned(SPAN, manifests=made(builder, "manifests").slice(0, 0))
    assert statements.span_rows(store, span) == []
    assert statements.span_batches(store, span) == {}
    assert statements.span_columns(store, span, "events") == {"events": []}
    assert statements.span_rows(store, SPAN) is None
    assert statements.span_batches(store, SPAN) is None
    with pytest.raises(FormatError, match="statements 0 to 98 of audit/0 have no file of rows"):
        statements.span_columns(store, SPAN, "events")


FAR = pa.scalar(2**62, pa.timestamp("us"))
ODD: dict[str, tuple[str, pa.Scalar]] = {
    "no time": ("sealed_at", pa.scalar(None, pa.timestamp("us"))),
    "a time beyond the year 9999": ("sealed_at", FAR),
    "a time before the year 1": ("sealed_at", pa.scalar(-(2**62), pa.timestamp("us"))),
    "no sequence": ("sequence", pa.scalar(None, pa.int64())),
    "a sequence before the span": ("sequence", pa.scalar(-1, pa.int64())),
    "a sequence behind the span": ("sequence", pa.scalar(99, pa.int64())),
    "no log": ("log", pa.scalar(None, pa.string())),
    "another log": ("log", pa.scalar("audit/1", pa.string())),
}
"""Values that no audit writes, each with the column in which it stands."""
ONLY_ROWS: dict[str, tuple[str, pa.Scalar]] = {
    "no sum": ("events", pa.scalar(None, pa.int64())),
    "a far time of Kafka": ("kafka_time", FAR),
    "no types": ("types", pa.scalar(None, pa.string())),
    "types that are no JSON": ("types", pa.scalar("{", pa.string())),
    "types without end": ("types", pa.scalar("[" * 100_000, pa.string())),
    "types of text": ("types", pa.scalar('{"a":"1"}', pa.string())),
}
"""Values in columns that not everybody asks for."""


@pytest.mark.parametrize("odd", [*ODD, *ONLY_ROWS])
def test_a_row_that_no_audit_wrote(builder: Builder, odd: str) -> None:
    """Then the span's file does not count, whoever signed it: nothing else is raised, and no such row is given."""
    name, value = (ODD | ONLY_ROWS)[odd]
    table = made(builder, "manifests")
    column = pa.concat_arrays([table[name].slice(0, 1).combine_chunks(), pa.repeat(value, len(table) - 1)])
    store, span = spanned(SPAN, manifests=table.set_column(table.schema.get_field_index(name), name, column))
    assert statements.span_rows(store, span) is None
    asked = ("sequence", "sealed_at", "quarantine")
    if odd in ODD:
        assert span.manifests
        with pytest.raises(FormatError, match=span.manifests.key):
            statements.span_columns(store, span, *asked)
    else:
        assert list(statements.span_columns(store, span, *asked)) == list(asked)


def changed(table: pa.Table, name: str, value: pa.Scalar) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), name, pa.repeat(value, len(table)))


ORDERS: dict[str, Callable[[pa.Table], pa.Table]] = {
    "twice": lambda table: pa.concat_tables([table, table]),
    "one twice": lambda table: pa.concat_tables([table.slice(0, 1), table]),
    "the last one first": lambda table: table.take(list(reversed(range(len(table))))),
}


@pytest.mark.parametrize("order", ORDERS)
def test_rows_in_another_order_than_an_audit_writes(builder: Builder, order: str) -> None:
    """Then the file does not count: no statement is counted twice, or comes before an earlier one."""
    store, span = spanned(SPAN, manifests=ORDERS[order](made(builder, "manifests")))
    assert statements.span_rows(store, span) is None
    with pytest.raises(FormatError, match="rows of other statements, or in another order"):
        statements.span_columns(store, span, "quarantine")


@pytest.mark.parametrize(("name", "value"), [("sequence", pa.scalar(99, pa.int64())), ("log", pa.scalar("audit/1"))])
def test_batches_of_another_statement(builder: Builder, name: str, value: pa.Scalar) -> None:
    """Then the file of batches does not count."""
    batches = changed(made(builder, "batches"), name, value)
    store, span = spanned(SPAN, manifests=made(builder, "manifests"), batches=batches)
    assert statements.span_batches(store, span) is None


def test_a_batch_without_a_time(builder: Builder) -> None:
    """Then the file of batches does not count."""
    batches = changed(made(builder, "batches"), "min_time", pa.scalar(None, pa.timestamp("us")))
    store, span = spanned(SPAN, manifests=made(builder, "manifests"), batches=batches)
    assert statements.span_batches(store, span) is None
