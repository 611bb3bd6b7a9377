"""Events of own types in SQL: the common fields as columns, the whole event as JSON, and no failure of any query."""

import json
from pathlib import Path
from typing import Any

import duckdb
import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from custody.format import limits
from custody.format.layout import Log
from custody.query import tables
from tests.helpers.corpus import CASES, EVENTS, TIME, Case
from tests.helpers.own import SHAPES, own_event
from tests.helpers.querying import BATCH, WORK, ask, audit, row
from tests.helpers.sample import Growing, event

EVERYTHING = 'SELECT * FROM events ORDER BY "offset"'


def mixed(offset: int) -> bytes:
    """Return an event of an own type at odd offsets, of the six at even ones."""
    return own_event(offset // 2) if offset % 2 else event(offset)


@pytest.fixture
def growing(tmp_path: Path) -> Growing:
    """Give an archive of own types alone."""
    made = Growing(tmp_path)
    made.append(5, own_event)
    return made


def test_an_archive_of_own_types_alone(growing: Growing) -> None:
    """Without tables, with them, and with both, each event is there once, whole, with its own type."""
    before = ask(growing.folder, EVERYTHING)
    audit(growing.folder, growing.keyring)
    assert list((growing.folder / "tables").rglob("*.parquet"))
    assert ask(growing.folder, EVERYTHING) == before
    growing.append(1, own_event)
    rows = ask(growing.folder, 'SELECT "offset", event_type, time IS NOT NULL, event FROM events ORDER BY 1')
    assert len(rows) == 30
    for offset, kind, has_time, text in rows:
        shape = SHAPES[offset % len(SHAPES)]
        assert (kind, has_time) == (shape["event_type"], True)
        expected = json.loads(own_event(offset).replace(rb"\ud800", rb"\ufffd"))
        assert json.loads(text) == expected


def test_common_fields_are_columns_where_they_fit(growing: Growing) -> None:
    """A field of one of custody's names has its column if it is of that column's type, and is NULL if not."""
    columns = "client_ip, status, request_id, complexity, key_version, permission_granted, severity"
    rows = ask(growing.folder, f'SELECT {columns} FROM events WHERE "offset" < 3 ORDER BY "offset"')  # noqa: S608
    assert rows[0] == ("192.0.2.17", "success", None, None, None, None, None)
    assert rows[1] == rows[2] == (None,) * 7
    (details,) = ask(growing.folder, "SELECT details, changes FROM events WHERE event_type = 'everything else' LIMIT 1")
    assert [json.loads(value) for value in details] == ["text", [1]]


@pytest.mark.parametrize("tabled", [False, True])
def test_no_event_makes_a_query_fail(growing: Growing, tabled: bool) -> None:
    """JSON functions work over all events, whatever the fields of one are: half characters, huge numbers, clashes."""
    if tabled:
        audit(growing.folder, growing.keyring)
    sql = "SELECT event->>'$.user', event->>'amount', event->'half', event->>'big', json_type(event) FROM events"
    assert {user for user, *_ in ask(growing.folder, sql)} == {"ada", '{"name":"ada","id":9}', None}
    assert ask(growing.folder, "SELECT count(*) FROM events WHERE (event->>'number')::BIGINT = \"offset\"") == [(25,)]
    assert ask(growing.folder, "SELECT count(*) FROM events WHERE NOT json_valid(event)") == [(0,)]


@pytest.mark.parametrize("case", [case for case in CASES if case.is_event], ids=lambda case: case.name)
def test_every_event_is_json_to_duckdb(case: Case) -> None:
    """Whatever FORMAT.md calls an event can be read by DuckDB as JSON, also where its type's rules are broken."""
    text = row(case.line)["event"]
    assert (text is not None) or not case.own_type
    assert (text is None) or case.own_type or not case.writer_accepts
    if text is not None:
        assert duckdb.execute("SELECT json_valid($1), $1::JSON->>'event_type'", [text]).fetchone()[0]  # type: ignore[index]


def test_half_characters() -> None:
    """Half a character becomes the sign for an unknown one. Pairs, and what only looks like one, stay."""
    for given, kept in (
        (r"\ud83d\ude00", r"\ud83d\ude00"),
        (r"\ud800", r"\ufffd"),
        (r"\uDC00\uD800", r"\ufffd\ufffd"),
        (r"\\ud800", r"\\ud800"),
        (r"\\\ud800", r"\\\ufffd"),
        (r"\ud800\ud83d\ude00", r"\ufffd\ud83d\ude00"),
        (r"\n\u0041", r"\n\u0041"),
    ):
        text = row(b'{"event_type":"a","timestamp":"%b","x":"%b"}' % (TIME.encode(), given.encode()))["event"]
        assert text.partition('"x":')[2] == f'"{kept}"}}'
    details = {**EVENTS["security_event"], "details": {"x": "\ud800"}}
    assert row(json.dumps(details).encode())["details"] == r'{"x": "\ufffd"}'


def test_the_six_types_are_as_before(tmp_path: Path) -> None:
    """Among own types, events of the six have all their columns, and no copy of themselves."""
    growing = Growing(tmp_path)
    growing.append(6, mixed)
    audit(growing.folder, growing.keyring)
    six = 'SELECT * EXCLUDE (batch, sequence, "offset", day) FROM events WHERE "offset" % 2 = 0 ORDER BY "offset"'
    plain = Growing(tmp_path / "plain", begun=growing.begun)
    plain.append(6, event)
    assert ask(growing.folder, six) == ask(plain.folder, six)
    counted = "SELECT event IS NULL, count(*) FROM events GROUP BY ALL ORDER BY 1"
    assert ask(growing.folder, counted) == [(False, 15), (True, 15)]


def test_tables_without_the_column(growing: Growing, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables that were made before there was the column are read beside others: there it is NULL."""
    older = pa.schema([field for field in tables.SCHEMA if field.name != "event"])
    with monkeypatch.context() as patched:
        patched.setattr(tables, "SCHEMA", older)
        others = [name for name in tables._KINDS[tables._Other] if name != "event"]
        patched.setitem(tables._KINDS, tables._Other, others)
        audit(growing.folder, growing.keyring)
    growing.append(2, own_event)
    audit(growing.folder, growing.keyring)
    growing.append(1, own_event)
    sql = 'SELECT "offset" < 25, event IS NULL, count(*) FROM events GROUP BY ALL ORDER BY 1'
    assert ask(growing.folder, sql) == [(False, False, 15), (True, True, 25)]


@pytest.mark.parametrize("offset", ["17", 17], ids=["text", "number"])
def test_a_table_adds_no_column_and_changes_no_type(growing: Growing, offset: str | int) -> None:
    """Without keys a table that somebody else put there is read, if its columns have the view's types.

    If one has another type, the query fails, and names the table: nobody signed which rows are in it.
    """
    growing.keyring.unlink()
    described = "SELECT column_name, column_type FROM (DESCRIBE events)"
    before = ask(growing.folder, described)
    sql = 'SELECT "offset", batch, event_type FROM events ORDER BY 1'
    table = pa.table({"offset": [offset], "batch": [3], "evil": [1], "event_type": ["5"]})
    path = growing.folder / tables.table_key(Log("audit.grows", 0), "2026-03-01", 0, 1, 1, 1, b"")
    path.parent.mkdir(parents=True)
    pq.write_table(table, path)
    assert ask(growing.folder, described) == before
    if offset == 17:
        assert (17, 3, "5") in ask(growing.folder, sql)
    else:
        with pytest.raises(duckdb.Error, match=path.name):
            ask(growing.folder, sql)


def test_rows_are_bounded_by_bytes() -> None:
    """Large events ask for a row group before their number would, so memory does not grow with their size."""
    large = json.dumps({"event_type": "big", "timestamp": TIME, "x": "y" * (limits.EVENT_BYTES - 100)}).encode() + b"\n"
    rows = tables.Rows(Log("audit", 0))
    added = 0
    while not rows.full:
        rows.add(WORK, msgspec.structs.replace(BATCH, next_offset=11), large)
        added += 1
    assert added == rows.count == tables.ROW_BYTES // len(large) + 1
    assert rows.take().num_rows == added
    assert not rows.full


def test_lines_that_are_no_event_become_rows() -> None:
    """What only the holder of a key can have signed does not end the making of tables: it has no text."""
    for line in (b"[1]", b"null", b"{", b"\xff", b'"\xff"', b'{"event_type":1}', b'{"event_type":"a","x":"\xff"}'):
        made: dict[str, Any] = row(line)
        assert made["offset"] == 10
        assert made["event"] is None or line.startswith(b'{"')
