"""What somebody replaced since a signed audit is never shown as verified, to an auditor with public keys alone."""

import io
import json
import re
import shutil
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import duckdb
import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import custody
import tasks.audit.tables
from custody.archive import reader
from custody.errors import ObjectArchived
from custody.format import manifest
from custody.format.envelope import seal
from custody.format.layout import manifest_key, parse_log_text
from custody.format.members import pack
from custody.keys.key import HmacKey
from custody.keys.open import open_signers
from custody.keys.secret import Secret
from custody.keys.trust import Trust, TrustedKey, open_trust
from custody.query import statements, tables
from custody.query.connect import open_archive
from custody.query.statements import STATEMENTS
from custody.store.folder import FolderStore
from custody.store.open import open_store
from tests.helpers.corpus import EVENTS
from tests.helpers.environment import clear_settings
from tests.helpers.leafy import write_trust
from tests.helpers.querying import ask, audit
from tests.helpers.sample import Growing, event

SIZE, PIECE = 6, 3
ALL = {
    "events": 'SELECT * FROM events ORDER BY "offset"',
    "manifests": "SELECT * FROM manifests ORDER BY sequence",
    "batches": "SELECT * FROM batches ORDER BY batch",
    "quarantined": 'SELECT * FROM quarantined ORDER BY "offset"',
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Growing:
    growing = Growing(tmp_path_factory.mktemp("replaced"))
    growing.append(SIZE, lambda offset: b"no event" if offset % 5 == 1 else event(offset))
    audit(growing.folder, growing.keyring, pieces=PIECE)
    return growing


@pytest.fixture
def folder(made: Growing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    clear_settings(monkeypatch)
    return Path(shutil.copytree(made.folder, tmp_path / "archive"))


def public(made: Growing, path: Path) -> Path:
    """Write what an auditor trusts: public keys, and the ids of the others."""
    own = open_trust([f"file:{made.keyring}"]).keys.values()
    keys = {key.id: TrustedKey(key.id, key.algorithm, key.from_, key.to, material=key.public) for key in own}
    return write_trust(path, Trust(reader.read_archive(open_store(str(made.folder))).pin, keys))


def forge(made: Growing, folder: Path, sequence: int) -> None:
    """Replace a statement, its last batch and its quarantine, as somebody without any key can."""
    log = parse_log_text(made.log)
    assert log is not None
    statement = reader.read_manifest(open_store(str(folder)), log, sequence, lambda *_: True).statement
    segment, quarantine = statement.segment, statement.quarantine
    assert segment is not None
    assert quarantine is not None
    last = statement.batches[-1]
    line = json.dumps(EVENTS["auth_attempt"] | {"reason": "forged"}).encode() + b"\n"
    member, kept = pack(line * last.events), folder / quarantine.key
    before = (folder / segment.key).read_bytes()[: last.start]
    batch = msgspec.structs.replace(
        last, size=len(member.data), inflated=member.inflated, sha256=member.sha256, leaves=None
    )
    bad = pack(b'{"value":"Zm9yZ2Vk","timestamp":0,"offset":%d,"error":"forged"}\n' % (5 * sequence + 1))
    contents = {segment.key: before + member.data, quarantine.key: bad.data}
    forged = msgspec.structs.replace(
        statement,
        batches=[*statement.batches[:-1], batch],
        segment=msgspec.structs.replace(
            segment,
            size=len(contents[segment.key]),
            sha256=sha256(contents[segment.key]).hexdigest(),
        ),
        quarantine=msgspec.structs.replace(
            quarantine, size=len(bad.data), inflated=bad.inflated, sha256=sha256(bad.data).hexdigest()
        ),
    )
    known = open_signers(f"file:{made.keyring}", datetime.now(UTC)).hmac()
    signer = HmacKey(known.key_id, Secret(bytes(32)))
    contents[manifest_key(log, sequence)] = seal(manifest.encode(forged), manifest.FORMAT, [signer])
    assert kept.exists()
    for key, data in contents.items():
        (folder / key).unlink()
        (folder / key).write_bytes(data)


@pytest.mark.parametrize("removed", ["nothing", "tables", "lists", "all"])
@pytest.mark.parametrize("name", ALL)
def test_a_forged_statement(made: Growing, folder: Path, tmp_path: Path, name: str, removed: str) -> None:
    """With or without the tables that an audit signed: other rows come with a warning, or there are none."""
    trust = public(made, tmp_path / "trust.json")
    with closing(custody.connect(str(folder), trust=trust)) as connection:
        rows = connection.execute(ALL[name]).fetchall()
        assert connection.execute("FROM warnings").fetchall() == []
    patterns = {"nothing": [], "tables": ["tables/day=*/*"], "lists": ["tables/signed/*"]}
    patterns["all"] = [*patterns["tables"], *patterns["lists"], "reports/index/statements/*"]
    for pattern in patterns[removed]:
        for path in folder.glob(pattern):
            path.unlink()
    with closing(custody.connect(str(folder), trust=trust)) as connection:
        # The statements are those that the audit read: they are verified again, by its head.
        assert connection.execute(ALL[name]).fetchall() == rows
        kinds = {kind for kind, *_ in connection.execute("FROM warnings").fetchall()}
        assert kinds <= {"ignored"}
    forge(made, folder, 1)
    with closing(custody.connect(str(folder), trust=trust)) as connection:
        shown = connection.execute(ALL[name]).fetchall()
        kinds = {kind for kind, *_ in connection.execute("FROM warnings").fetchall()}
    assert shown == rows or "unverified" in kinds
    if removed == "all":
        assert {"unverified", "ignored"} <= kinds | ({"ignored"} if name == "quarantined" else set())


@pytest.mark.parametrize("trusted", [True, False])
@pytest.mark.parametrize("name", ["events", "quarantined"])
def test_another_object_of_a_statement(
    made: Growing, folder: Path, tmp_path: Path, name: str, *, trusted: bool
) -> None:
    """None of its rows is shown, and a warning names the statement: whoever put the object needs no key for that."""
    trust = public(made, tmp_path / "trust.json") if trusted else None
    shutil.rmtree(folder / "tables")
    with closing(custody.connect(str(folder), trust=trust)) as connection:
        rows = connection.execute(ALL[name]).fetchall()
    first, second, *_ = sorted((folder / {"quarantined": "quarantine"}.get(name, name)).rglob("*.gz"))
    data = second.read_bytes()
    assert len(data) != len(first.read_bytes()) or data != first.read_bytes()
    first.unlink()
    first.write_bytes(data)
    with closing(custody.connect(str(folder), trust=trust)) as connection:
        shown = connection.execute(ALL[name]).fetchall()
        said = [message for kind, _, message in connection.execute("FROM warnings").fetchall() if kind == "damaged"]
    assert [row for row in rows if row not in shown]
    assert shown == [row for row in rows if row in shown]
    assert len(said) == 1
    assert f"{made.log}/0: " in said[0]


def test_a_slot_passed_over_at_the_end_of_a_span(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no damage: the statement that passes over it is the first one of the next span."""
    clear_settings(monkeypatch)
    growing = Growing(tmp_path)
    growing.append(PIECE - 1)
    log = parse_log_text(growing.log)
    assert log is not None
    (growing.folder / manifest_key(log, PIECE - 1)).write_bytes(b"garbage")
    growing.append(PIECE)
    audit(growing.folder, growing.keyring, pieces=PIECE)
    queries = ("SELECT count(*) FROM events", "FROM warnings")
    with closing(custody.connect(str(growing.folder), trust=public(growing, tmp_path / "trust.json"))) as connection:
        assert [connection.execute(sql).fetchall() for sql in queries] == [[(growing.events,)], []]
    monkeypatch.setenv("CUSTODY_KEYS", f"file:{growing.keyring}")
    assert [ask(growing.folder, sql) for sql in queries] == [[(growing.events,)], []]
    (growing.folder / manifest_key(log, 1)).unlink()
    ((kind, _, message),) = ask(growing.folder, "FROM warnings")
    assert kind == "damaged"
    assert "in the slots 1 to 1;" in message


@pytest.mark.parametrize("table", ["events", "manifests"])
def test_a_log_that_is_cut_off(
    made: Growing, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, table: str
) -> None:
    """Rows of what an audit read are all there, and a query of them says that the log ends too early, once."""
    monkeypatch.setenv("CUSTODY_KEYS", f"file:{made.keyring}")
    log = parse_log_text(made.log)
    assert log is not None
    for sequence in range(2, SIZE):
        (folder / manifest_key(log, sequence)).unlink()
    with closing(custody.connect(str(folder))) as connection:
        ((many,),) = connection.execute(f"SELECT count(DISTINCT sequence) FROM {table}").fetchall()  # noqa: S608
        assert many == SIZE
        said = f"it ends at size 2, but audit 0 knows size {SIZE}"
        assert caplog.text.count(said) == 1
        ((kind, _, message),) = connection.execute("FROM warnings").fetchall()
    assert (kind, message.partition(";")[0]) == ("damaged", said)
    assert caplog.text.count(said) == 1


def test_rows_that_are_in_an_archive_storage_class(
    made: Growing, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A span that a period cuts is read from its statements, if the rows that an audit made cannot be read."""
    monkeypatch.setenv("CUSTODY_KEYS", f"file:{made.keyring}")
    connection, _ = open_archive(str(folder), since=made.sealed_at(1))
    with closing(connection):
        rows = connection.execute(ALL["events"]).fetchall()
    real = FolderStore.read

    def read(store: FolderStore, key: str, **more: Any) -> bytes:
        if key.startswith(STATEMENTS):
            raise ObjectArchived(f"{key} is archived")
        return real(store, key, **more)

    monkeypatch.setattr(FolderStore, "read", read)
    connection, _ = open_archive(str(folder), since=made.sealed_at(1))
    with closing(connection):
        assert connection.execute(ALL["events"]).fetchall() == rows
        assert "ignored" in {kind for kind, *_ in connection.execute("FROM warnings").fetchall()}


@pytest.mark.parametrize("value", [None, 2**62, -(2**62)])
def test_rows_of_statements_that_no_audit_wrote(
    made: Growing, folder: Path, monkeypatch: pytest.MonkeyPatch, value: int | None
) -> None:
    """The statements are read in their place, where a period cuts a span and for records in quarantine."""
    monkeypatch.setenv("CUSTODY_KEYS", f"file:{made.keyring}")
    shutil.rmtree(folder / "tables")

    def rows() -> list[list[tuple[Any, ...]]]:
        connection, _ = open_archive(str(folder), since=made.sealed_at(1))
        with closing(connection):
            return [connection.execute(ALL[name]).fetchall() for name in ("events", "quarantined")]

    wanted, real = rows(), statements.read_files

    def read(*given: Any) -> pa.Table:
        table, asked = real(*given), ("sealed_at", "sequence")
        for at, column in enumerate(table.schema):
            if column.name in asked:
                table = table.set_column(at, column, pa.repeat(pa.scalar(value, column.type), len(table)))
        return table

    monkeypatch.setattr(statements, "read_files", read)
    assert rows() == wanted
    assert all(wanted)


def written(table: pa.Table, name: str, column: pa.Array) -> bytes:
    """Return a table as a file, with a column in the place of the one of that name, or beside the others."""
    at, made = table.schema.get_field_index(name), io.BytesIO()
    pq.write_table(table.append_column(name, column) if at < 0 else table.set_column(at, name, column), made)
    return made.getvalue()


def renamed(table: pa.Table, name: str) -> bytes:
    return written(table, "abcdef", table[name].combine_chunks()).replace(b"abcdef", b"ab\x92def")


def twice(table: pa.Table, name: str) -> bytes:
    made = io.BytesIO()
    pq.write_table(table.append_column(name, table[name]), made)
    return made.getvalue()


FORGED: dict[str, Callable[[pa.Table], bytes]] = {
    "nothing": lambda _: b"",
    "garbage": lambda _: b"PAR1garbagePAR1",
    "a name that is no text": lambda table: renamed(table, "offset"),
    "a name twice": lambda table: twice(table, "offset"),
    "text for a time": lambda table: written(table, "time", pa.array(["x"] * len(table))),
    "text for numbers": lambda table: written(table, "offset", pa.array(["x"] * len(table))),
    "few texts for numbers": lambda table: written(table, "offset", pa.array(["x"] * len(table)).dictionary_encode()),
    "objects for numbers": lambda table: written(table, "offset", pa.array([{"a": 1}] * len(table))),
    "lists for text": lambda table: written(table, "event_type", pa.array([["x"]] * len(table))),
}
"""Tables that anybody can write who may write into the archive."""


@pytest.mark.parametrize("forged", FORGED)
def test_a_forged_table_without_keys(folder: Path, forged: str) -> None:
    """It is named, and its rows are those of the statements."""
    rows = ask(folder, ALL["events"])
    path = min(folder.glob("tables/day=*/*"))
    data = FORGED[forged](pq.ParquetFile(path).read())
    path.unlink()
    path.write_bytes(data)
    with closing(custody.connect(str(folder))) as connection:
        assert connection.execute(ALL["events"]).fetchall() == rows
        (message,) = [
            message for kind, _, message in connection.execute("FROM warnings").fetchall() if kind == "ignored"
        ]
    assert message.startswith(str(path.relative_to(folder)))
    assert "delete it, and find out who modified it" in message


PAGES: dict[str, Callable[[pa.Table], bytes]] = {
    "text that is none": lambda table: written(
        table, "event_type", pa.array([b"\xff"] * len(table)).view(pa.binary()).view(pa.string())
    ),
    "no page": lambda table: zeroed(written(table, "batch", table["batch"].combine_chunks())),
}


def zeroed(data: bytes) -> bytes:
    """Return a file whose columns are zeros, with the names and places that it had."""
    end = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    return data[:4] + bytes(end - 4) + data[end:]


@pytest.mark.parametrize("forged", PAGES)
def test_a_table_with_damaged_pages_without_keys(folder: Path, forged: str) -> None:
    """A query that reads them fails, and names the file: some of its rows may have been shown."""
    path = min(folder.glob("tables/day=*/*"))
    data = PAGES[forged](pq.ParquetFile(path).read())
    path.unlink()
    path.write_bytes(data)
    with pytest.raises(duckdb.Error, match=re.escape(str(path.relative_to(folder)))):
        ask(folder, ALL["events"])


@pytest.fixture
def of_a_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Growing:
    """Give an archive with some tables of one day."""
    clear_settings(monkeypatch)
    monkeypatch.setattr(tables, "ROW_GROUP", 4)
    monkeypatch.setattr(tasks.audit.tables, "_FILE_BYTES", 1)
    growing = Growing(tmp_path, begun=datetime(2026, 11, 28, 12, tzinfo=UTC))
    growing.append(SIZE)
    audit(growing.folder, growing.keyring, pieces=SIZE)
    return growing


@pytest.mark.parametrize("damaged", [0, 2])
@pytest.mark.parametrize("sql", ["SELECT count(*) FROM events", "SELECT count(event_type) FROM events"])
def test_a_missing_table_beside_a_damaged_one_without_keys(of_a_day: Growing, damaged: int, sql: str) -> None:
    """Which rows the missing one had cannot be known: the query fails and names the damaged one, whatever it reads."""
    paths = sorted(of_a_day.folder.glob("tables/day=*/*"))
    assert len(paths) > 2
    table = pq.ParquetFile(paths[damaged]).read()
    paths[damaged].write_bytes(zeroed(written(table, "batch", table["batch"].combine_chunks())))
    paths[1].unlink()
    with pytest.raises(duckdb.Error, match=re.escape(paths[damaged].name)):
        ask(of_a_day.folder, sql)


@pytest.mark.parametrize("keys", [True, False])
def test_tables_of_a_day_of_which_some_differ_or_are_missing(
    of_a_day: Growing, monkeypatch: pytest.MonkeyPatch, *, keys: bool
) -> None:
    """All rows are there once: what the other tables of the day have is that which is read of them."""
    if keys:
        monkeypatch.setenv("CUSTODY_KEYS", f"file:{of_a_day.keyring}")
    rows = ask(of_a_day.folder, ALL["events"])
    assert len(rows) == of_a_day.events
    first, second, *rest = sorted(of_a_day.folder.glob("tables/day=*/*"))
    assert len(rest) > 1
    pq.write_table(pq.ParquetFile(first).read(), first.with_suffix(".other"), compression="none")
    first.with_suffix(".other").replace(first)
    for changed, forge in ((second, None), (rest[0], None), (rest[1], FORGED["text for numbers"])):
        data = forge(pq.ParquetFile(changed).read()) if forge else b""
        changed.unlink()
        if forge:
            changed.write_bytes(data)
        with closing(custody.connect(str(of_a_day.folder))) as connection:
            assert connection.execute(ALL["events"]).fetchall() == rows
            assert "ignored" in {kind for kind, *_ in connection.execute("FROM warnings").fetchall()}
