"""SQL over an archive: each event once, with its position. Nothing but the archive is read."""

import copy
import json
import re
import shutil
import socket
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import msgspec
import pytest
from typer.testing import CliRunner

import custody
import custody.query.reading
from custody.archive.writer import Entry
from custody.cli.main import app
from custody.errors import CustodyError, NoArchive
from custody.findings import finding
from custody.format.layout import Log
from custody.format.limits import INT_MAX
from custody.format.manifest import KafkaTime, Unreadable
from custody.query import files, tables
from custody.query.rows import left_out
from custody.store.open import open_store
from custody.store.protocol import S3Options
from tests.helpers.archives import Builder, Edit, append_quarantine
from tests.helpers.corpus import CASES, Case
from tests.helpers.querying import ask, audit, row
from tests.helpers.sample import Growing, Sample, make_archive
from tests.servers.s3 import SeaweedServer


@pytest.fixture
def sample(tmp_path: Path) -> Sample:
    return make_archive(tmp_path)


def test_events_without_tables(sample: Sample) -> None:
    """Before there is any table, every event is there once, with its fields and its position."""
    found = ask(sample.folder, 'SELECT "offset", request_id, event_type, log, topic, partition FROM events ORDER BY 1')
    wanted = {offset: json.loads(value) for offset, value in sample.events.items()}
    assert [one[0] for one in found] == sorted(wanted)
    for offset, request, kind, log, topic, partition in found:
        assert (request, kind) == (wanted[offset]["request_id"], wanted[offset]["event_type"])
        assert (log, topic, partition) == ("audit.events/0", "audit.events", 0)


def test_counting_events_decodes_no_column(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A count, of all events or of some, asks the tables for no column but `day`, and those of its conditions."""
    growing = Growing(tmp_path)
    growing.append(2)
    audit(growing.folder, growing.keyring)
    asked: list[Sequence[str]] = []

    def scan(*given: Any) -> Any:
        asked.append(given[3])
        return files.scan(*given)

    monkeypatch.setattr(custody.query.reading, "scan", scan)
    assert ask(growing.folder, "SELECT count(*) FROM events") == [(10,)]
    assert ask(growing.folder, 'SELECT count(*) FROM events WHERE "offset" < 7') == [(7,)]
    assert asked == [["day"], ["day"]]


def test_tables_and_the_rest(tmp_path: Path) -> None:
    """Events with and without a table appear once each, as the same rows."""
    growing = Growing(tmp_path)
    growing.append(5)
    columns = 'SELECT * EXCLUDE (day) FROM events ORDER BY log, "offset"'
    before = ask(growing.folder, columns)
    audit(growing.folder, growing.keyring)
    assert len(list((growing.folder / "tables").rglob("*.parquet"))) == 3
    assert ask(growing.folder, columns) == before
    growing.append(4)
    assert ask(growing.folder, 'SELECT count(*), count(DISTINCT "offset") FROM events') == [(45, 45)]


@pytest.mark.parametrize("parent", ["topic=foo", "event_type=audit", "day=2020-01-01", "env=prod/day=x", "a%20?*[1]"])
def test_names_above_the_archive_are_no_columns(tmp_path: Path, parent: str) -> None:
    """Wherever an archive lies, its events are the same rows: with tables, without, and with both."""
    growing = Growing(tmp_path)
    folder = tmp_path / parent / "archive"
    folder.parent.mkdir(parents=True)
    everything = 'SELECT *, typeof(day) FROM events ORDER BY log, "offset"'
    audited = False
    for _ in range(3):
        growing.append(4)
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(growing.folder, folder)
        assert ask(folder, everything) == ask(growing.folder, everything)
        if not audited:
            audit(growing.folder, growing.keyring)
            audited = True
    days = "SELECT DISTINCT e.day = m.sealed_at::DATE FROM events e JOIN manifests m USING (log, sequence)"
    assert ask(folder, days) == [(True,)]


def test_a_range_that_is_there_in_part_or_twice(tmp_path: Path) -> None:
    """If a file of a range is missing, or ranges overlap, no event is counted twice or lost."""
    growing = Growing(tmp_path)
    growing.append(4)
    audit(growing.folder, growing.keyring, pieces=2)
    first, second = sorted((growing.folder / "tables").rglob("*.parquet"))
    first.rename(first.with_name(first.name.replace("1of1", "1of2")))
    overlapping = second.name.replace("-000000000002-000000000004-", "-000000000003-000000000004-")
    second.with_name(overlapping).write_bytes(second.read_bytes())
    assert ask(growing.folder, 'SELECT count(*), count(DISTINCT "offset") FROM events') == [(20, 20)]


def test_the_other_tables(sample: Sample) -> None:
    """Statements, batches, quarantined records, audits and findings can be queried."""
    audit(sample.folder, sample.keyring)
    assert ask(sample.folder, "SELECT count(*), sum(events), sum(quarantined) FROM manifests") == [(4, 148, 1)]
    assert ask(sample.folder, "SELECT sum(events) FROM batches") == [(148,)]
    ((offset, error),) = ask(sample.folder, 'SELECT "offset", error FROM quarantined')
    assert offset == sample.quarantined
    assert "not JSON" in error
    assert ask(sample.folder, "SELECT verdict, events, rejected FROM audits") == [("verified", 148, None)]
    assert ask(sample.folder, "SELECT count(*) FROM findings") == [(0,)]


def test_what_no_client_could_read(tmp_path: Path) -> None:
    """Unreadable offsets and slots without a statement are counted in the statement's row."""

    def bad(entry: Entry) -> Entry:
        end = entry.next_offset + 3
        return replace(entry, next_offset=end, unreadable=[Unreadable(entry.next_offset, end, "bad compression")])

    growing = Growing(tmp_path)
    growing.append(1, edit=bad)
    (growing.folder / "manifests" / growing.log / f"{1:012}.json").write_bytes(b"no manifest")
    growing.append(1)
    assert ask(growing.folder, "SELECT sequence, unreadable, passed_over FROM manifests ORDER BY 1") == [
        (0, 3, 0),
        (2, 0, 1),
    ]
    assert ask(growing.folder, "SELECT count(*) FROM events") == [(10,)]


def test_a_producers_clock(tmp_path: Path) -> None:
    """A Kafka time beyond a column's range becomes NULL; the statement keeps its row."""

    def late(entry: Entry) -> Entry:
        time = KafkaTime("create", 2**62, 2**62)
        return replace(entry, batches=[msgspec.structs.replace(one, kafka_time=time) for one in entry.batches])

    growing = Growing(tmp_path)
    growing.append(1, edit=late)
    growing.append(1)
    found = ask(growing.folder, "SELECT sequence, kafka_time IS NULL FROM manifests ORDER BY 1")
    assert found == [(0, True), (1, False)]


def test_a_value_too_large_to_be_kept(sample: Sample) -> None:
    """The row of a quarantined record has the size of its value, kept or left out."""
    kept = ask(sample.folder, "SELECT bytes FROM quarantined")
    assert kept == [(len(b"no event"),)]
    omitted = {"key": None, "value": {"size": 9_000_000, "sha256": "00" * 32}, "headers": None}
    assert left_out({"omitted": omitted}) == 9_000_000
    for odd in (None, {}, {"value": None}, {"value": {"size": 2**64}}, {"value": {"size": "9"}}):
        assert left_out({"omitted": odd}) == 0


def _wrong(**fields: Any) -> Edit:
    def edit(statement: dict[str, Any]) -> None:
        statement["quarantine"].update(fields.pop("quarantine", {}))
        statement.update(fields)

    return edit


@pytest.mark.parametrize(
    "fields",
    [{"quarantine": {"size": INT_MAX}}, {"types": {"a": INT_MAX, "b": INT_MAX}}],
    ids=str,
)
def test_sums_beyond_64_bits(tmp_path: Path, fields: dict[str, Any]) -> None:
    """Numbers of a wrong statement that no column can hold are NULL; `custody verify` says what is wrong with it."""
    builder = Builder(tmp_path).init()
    builder.append(3)
    builder.append(6, quarantine=[1], edit=_wrong(**copy.deepcopy(fields)))
    assert ask(tmp_path, "SELECT count(*) FROM manifests") == [(2,)]
    assert ask(tmp_path, "SELECT sequence, writer IS NULL FROM manifests ORDER BY 1") == [(0, False), (1, False)]


def test_lines_without_an_offset(tmp_path: Path) -> None:
    """Lines that a wrong statement leaves no offset of 64 bits are no events: here the last offset is left to one."""
    builder = Builder(tmp_path).init()
    builder.append(3)
    builder.append(6, edit=lambda statement: statement.update(lost=[0, INT_MAX]))
    assert ask(tmp_path, "SELECT count(*) FROM events") == [(3 + 1,)]


@pytest.mark.parametrize(("offset", "rows"), [('"1"', 1), ("null", 1), ("[]", 1), ("1e3", 1), (str(2**70), 2)])
def test_a_quarantined_record_of_no_offset(tmp_path: Path, offset: str, rows: int) -> None:
    """A line of a quarantine object whose offset is none ends its rows, and one that no column can hold is NULL."""
    builder = Builder(tmp_path).init()

    def change(lines: list[bytes]) -> None:
        lines[1] = re.sub(rb'"offset":\d+', f'"offset":{offset}'.encode(), lines[1])

    append_quarantine(builder, change)
    assert ask(tmp_path, "SELECT count(*) FROM manifests") == [(1,)]
    assert ask(tmp_path, 'SELECT count("offset") FROM quarantined') == [(rows,)]


def test_findings_of_audits(sample: Sample) -> None:
    """The findings of audits can be queried."""
    path = next((sample.folder / "events").rglob("*.gz"))
    data = bytearray(path.read_bytes())
    data[50] ^= 1
    path.unlink()
    path.write_bytes(bytes(data))
    audit(sample.folder, sample.keyring)
    assert ask(sample.folder, "SELECT audit, finding, severity FROM findings") == [(0, "segment-hash", "tampered")]


def test_findings_that_are_none(sample: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an audit calls a finding, and is none, is a warning. The others are rows."""
    odd: list[dict[str, Any]] = [
        {"finding": ["x"]},
        {"finding": "foreign", "sequence": -1},
        finding("foreign", "a fault", key="x").to_dict(),
    ]
    monkeypatch.setattr("tasks.audit.conclude._merged", lambda *_: odd)
    for each in odd:
        each.setdefault("severity", "policy")
    audit(sample.folder, sample.keyring)
    assert ask(sample.folder, "SELECT audit, finding, severity, key FROM findings") == [(0, "foreign", "policy", "x")]
    warnings = ask(sample.folder, "SELECT message FROM warnings WHERE kind = 'damaged'")
    assert warnings == [("2 of 3 findings of audit 0 are not well formed, and not shown",)]


def test_empty_archive(tmp_path: Path) -> None:
    """An archive without events has tables without rows."""
    growing = Growing(tmp_path)
    growing.append(0)
    for table in ("events", "batches", "manifests", "quarantined", "audits", "findings"):
        assert ask(growing.folder, f"SELECT count(*) FROM {table}") == [(0,)]  # noqa: S608


def test_since_and_until(tmp_path: Path) -> None:
    """`since` and `until` select statements by their sealing time."""
    growing = Growing(tmp_path)
    growing.append(6)
    audit(growing.folder, growing.keyring)
    connection = custody.connect(str(growing.folder), since=growing.sealed_at(1), until=growing.sealed_at(4))
    assert connection.execute("SELECT min(sequence), max(sequence), count(*) FROM events").fetchall() == [(1, 3, 15)]
    connection.close()


def test_no_archive(tmp_path: Path) -> None:
    """A missing archive raises NoArchive."""
    with pytest.raises(NoArchive):
        custody.connect(str(tmp_path))


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse every connection but to this machine."""
    original = socket.socket.connect

    def connect(self: socket.socket, address: Any) -> None:
        assert not isinstance(address, tuple) or address[0] in {"127.0.0.1", "localhost", "::1"}, address
        original(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect)


@pytest.mark.usefixtures("offline")
def test_no_extension_is_asked_for(sample: Sample) -> None:
    """DuckDB downloads no extension. A query that needs one fails."""
    connection = custody.connect(str(sample.folder))
    loaded = "SELECT extension_name FROM duckdb_extensions() WHERE loaded AND install_mode <> 'STATICALLY_LINKED'"
    assert connection.execute(loaded).fetchall() == []
    with pytest.raises(duckdb.Error):
        connection.execute("SELECT * FROM read_parquet('s3://bucket/a.parquet')")
    connection.close()


@pytest.mark.usefixtures("offline")
def test_s3(seaweed: SeaweedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An archive in S3 is read through its store alone, tables and segments."""
    growing = Growing(tmp_path)
    growing.append(5)
    seaweed.use(monkeypatch)
    monkeypatch.setenv("CUSTODY_S3__ENDPOINT_URL", seaweed.endpoint_url)
    url = f"s3://{seaweed.make_bucket()}/archive"
    store = open_store(url, S3Options(endpoint_url=seaweed.endpoint_url))
    local = open_store(str(growing.folder))
    for info in local.list():
        store.create(info.key, local.read(info.key, limit=10**7))
    audit(url, growing.keyring, pieces=3)
    sql = 'SELECT count(*), count(DISTINCT "offset"), count(DISTINCT request_id) FROM events'
    assert ask(url, sql) == [(25, 25, 25)]
    # With keys, tables are hashed, and a forged one is ignored.
    monkeypatch.setenv("CUSTODY_KEYS", f"file:{growing.keyring}")
    path = tmp_path / "none.parquet"
    tables.open_file(str(path)).close()
    data = path.read_bytes()
    store.create(tables.table_key(Log("audit.grows", 0), "2026-03-01", 0, 9, 1, 1, data), data)
    assert ask(url, sql) == [(25, 25, 25)]
    assert ask(url, "SELECT kind FROM warnings") == [("ignored",)]


@pytest.mark.parametrize("case", [case for case in CASES if case.is_event], ids=lambda case: case.name)
def test_every_event_becomes_a_row(case: Case) -> None:
    """Each event that the verifier accepts becomes a row; a value that does not fit its column is null."""
    found = row(case.line)
    assert found["offset"] == 10
    assert found["time"] is not None


def test_fields_of_other_types_are_null() -> None:
    """A foreign writer's event keeps what fits."""
    found = row(b'{"event_type":"query_executed","timestamp":"2026-01-01T00:00:00Z","request_id":7,"complexity":"x"}')
    assert (found["event_type"], found["request_id"], found["complexity"]) == ("query_executed", None, None)
    found = row(b'{"event_type":"tea","timestamp":"2026-01-01T00:00:00.1234567Z","severity":"low","details":{"a":[1]}}')
    assert (found["event_type"], found["severity"], json.loads(found["details"])) == ("tea", "low", {"a": [1]})
    assert found["time"].microsecond == 123456


@pytest.mark.parametrize("number", ["1e999", "-1e999", "1" + "0" * 400, "1" + "0" * 400 + ".5", "NaN"])
@pytest.mark.parametrize("kind", ["tea", "query_executed"])
def test_a_number_that_is_not_finite_is_null(kind: str, number: str) -> None:
    """No double holds such a number: its column is NULL, and the event keeps it as it was sent."""
    line = f'{{"event_type":"{kind}","timestamp":"2026-01-01T00:00:00Z","execution_time":{number}}}'
    kept = row(line.encode())
    assert (kept["event_type"], kept["execution_time"]) == (kind, None)
    assert number in kept["event"]


def test_an_average_stays_finite(tmp_path: Path) -> None:
    """One event of an own type with a number beyond all doubles changes no sum and no average."""

    def event(offset: int) -> bytes:
        number = "1e999" if offset == 0 else "2.5"
        return f'{{"event_type":"tea","timestamp":"2026-01-01T00:00:00Z","execution_time":{number}}}'.encode()

    growing = Growing(tmp_path)
    growing.append(1, event)
    assert ask(growing.folder, "SELECT avg(execution_time), max(execution_time) FROM events") == [(2.5, 2.5)]


def test_command(sample: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    """`custody query` prints a table, JSON or CSV; a wrong query is an error of ours."""
    monkeypatch.setenv("CUSTODY_ARCHIVE", str(sample.folder))
    sql = "SELECT count(*) AS n, max(time) AS t, NULL AS nothing FROM events"
    monkeypatch.setenv("CUSTODY_KEYS", f"file:{sample.keyring}")
    shown = CliRunner().invoke(app, ["query", sql, "--json"])
    assert json.loads(shown.output) == {"n": 148, "t": "2026-03-01T12:34:56.789012Z", "nothing": None}
    shown = CliRunner().invoke(app, ["query", sql, "--csv"])
    assert shown.output.splitlines() == ["n,t,nothing", "148,2026-03-01T12:34:56.789012Z,"]
    assert "148" in CliRunner().invoke(app, ["query", sql]).output
    refused = CliRunner().invoke(app, ["query", "SELEKT 1"])
    assert isinstance(refused.exception, CustodyError)
    assert "SELEKT" in str(refused.exception)


def test_a_wrong_query_is_explained_line_by_line(sample: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each line of DuckDB's reason is an argument of the error, and so a line of its own on the terminal."""
    monkeypatch.setenv("CUSTODY_ARCHIVE", str(sample.folder))
    refused = CliRunner().invoke(app, ["query", "SELECT nope FROM events"])
    assert isinstance(refused.exception, CustodyError)
    assert len(refused.exception.args) > 1
    assert not any("\n" in line for line in refused.exception.args)
