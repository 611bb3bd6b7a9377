"""The rows that an audit keeps of statements are those that the views show."""

import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import custody
from custody.archive.forms import statements_of
from custody.archive.reader import read_manifest
from custody.archive.rows import batches_of, row_of
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
    for content, digest_of in (
        (None, data),
        (data[:-1] + b"\0", data),
        (b"no", b"no"),
        *((forged, forged) for forged in (other.getvalue(), no_text, no_name)),
    ):
        store = MemoryStore({} if content is None else {ref.key: content})
        signed = ObjectRef(ref.key, len(digest_of), statements.file_ref("manifests", log, 0, 2, digest_of).sha256)
        with pytest.raises(FormatError, match="manifests"):
            statements.read_files(store, "manifests", [signed])
