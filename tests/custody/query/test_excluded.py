"""A period that leaves out very many statements of files gives the right rows, and costs no more than they are many."""

from contextlib import closing
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import custody
from custody.archive.time_spans import Span
from custody.format.audit import ObjectRef
from custody.format.layout import Log
from custody.query import lazy, reading
from custody.query.excluded import Excluded
from custody.query.files import Source, scan
from custody.query.recent import Recent
from custody.store.open import open_store
from tests.helpers.environment import clear_settings
from tests.helpers.growth import check_growth
from tests.helpers.querying import audit
from tests.helpers.sample import Growing

LOG = Log("audit.grows", 0)
MANY = 100_000
"""Ranges: ten times as many as Arrow once died of."""


def test_a_period_with_very_many_ranges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left out of other files, and of other logs, costs a scan nothing; what the period cuts is left out."""
    growing = Growing(tmp_path)
    growing.append(9)
    audit(growing.folder, growing.keyring, pieces=3)

    class Cut(Recent):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            for log in (LOG, Log("audit.other", 0)):
                self.excluded += [(log, number, number + 1) for number in range(1_000, 1_000 + MANY, 2)]

    clear_settings(monkeypatch)
    monkeypatch.setenv("CUSTODY_KEYS", f"file:{growing.keyring}")
    monkeypatch.setattr(reading, "Recent", Cut)
    period: dict[str, Any] = {"since": growing.sealed_at(1), "until": growing.sealed_at(8)}
    with closing(custody.connect(str(growing.folder), **period)) as connection:
        for table in ("events", "manifests", "batches"):
            sql = f"SELECT DISTINCT sequence FROM {table} ORDER BY 1"  # noqa: S608 - the names above
            assert connection.execute(sql).fetchall() == [(number,) for number in range(1, 8)], table


def test_a_file_with_very_many_ranges(tmp_path: Path) -> None:
    """Each second statement of a file is left out: no row is wrong, and time grows as the statements do."""
    store = open_store(str(tmp_path))
    schema = lazy.schema_of("manifests")
    path = tmp_path / "rows.parquet"
    columns = {column.name: pa.nulls(MANY, column.type) for column in schema}
    columns |= {"log": pa.array([str(LOG)] * MANY), "sequence": pa.array(range(MANY), pa.int64())}
    pq.write_table(pa.table(columns, schema=schema), path)
    ref = ObjectRef(key=path.name, sha256=sha256(path.read_bytes()).hexdigest(), size=0)
    errors: list[BaseException] = []

    def check(data: bytes) -> None:
        count = len(data) // 4
        rest = Excluded(
            [(LOG, number, number + 1) for number in range(0, count, 2)],
            [Span(log=str(LOG), first=0, end=count, manifests=ref)],
        ).rest
        scanned = scan(store, [(Source(ref.key, ref), None)], schema, ["sequence"], None, rest, errors.append)
        assert scanned.to_reader().read_all()["sequence"].to_pylist() == list(range(1, MANY, 2))[: count // 2] + list(
            range(count, MANY)
        )

    check_growth(check, bytes)
    assert not errors


def test_only_files_of_spans_that_are_cut_have_a_condition() -> None:
    """A file is compared with what is left out of its own statements."""
    refs = [ObjectRef(key=f"{name}.parquet", sha256="", size=0) for name in ("cut", "whole", "other")]
    spans = [
        Span(log=log, first=first, end=first + 10, manifests=ref)
        for ref, (log, first) in zip(refs, [("a/0", 0), ("a/0", 10), ("b/0", 0)], strict=True)
    ]
    excluded = Excluded([(Log("a", 0), 8, 10), (Log("a", 0), 3, 4)], spans)
    assert [excluded.rest(ref.key) is not None for ref in refs] == [True, False, False]
    assert excluded.rest(None) is None
    assert excluded.rest("something else") is None
