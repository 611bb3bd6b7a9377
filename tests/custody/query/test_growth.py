"""What a query reads depends on what it asks for, and not on the archive's age; and it gives the same rows."""

import json
import random
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pytest

import custody
import custody.query.connect
from custody.archive import time_merge
from custody.errors import TerminalStoreError
from custody.format import layout
from custody.format.layout import Log
from custody.format.times import EPOCH, format_time
from custody.keys.trust import open_trust
from custody.query import lazy
from custody.query.connect import open_archive
from custody.query.statements import span_rows
from custody.report.facts import gather
from custody.store.open import open_store
from custody.store.protocol import ObjectInfo, ObjectStatus, Store
from tests.helpers.aged import MOST
from tests.helpers.corpus import EVENTS
from tests.helpers.environment import clear_settings
from tests.helpers.querying import audit
from tests.helpers.sample import Growing

STATEMENTS = 20
"""Of the young archive: one an hour. The old one has ten times as many."""
PIECE = 4
PART = 3
"""Pieces of a part of the index by time: as in an archive of years, the old one has many parts, and levels of them."""
LATE = 13
"""How many hours before its statement the late event happened: the last event of the sixth statement from the end."""
NEW = 2
"""Statements that no audit has read."""
NOW = datetime(2026, 11, 28, 12, tzinfo=UTC)
ALL = {
    "events": 'SELECT * FROM events ORDER BY "offset"',
    "manifests": "SELECT * FROM manifests ORDER BY sequence",
    "batches": "SELECT * FROM batches ORDER BY batch",
    "quarantined": 'SELECT * FROM quarantined ORDER BY "offset"',
}


class Hourly(Growing):
    """A log of one statement an hour up to NOW, whose events happened in that hour, but for a late one."""

    def __init__(self, root: Path, statements: int) -> None:
        super().__init__(root, begun=NOW - timedelta(hours=statements - 1))
        self.late = 5 * (statements - 6) + 4
        self.append(statements - NEW, self.content)
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(time_merge, "MOST_SPANS", PART)
            patched.setattr(time_merge, "EACH_LOG", 1)
            patched.setattr(time_merge, "GATHERED", 2)
            audit(self.folder, self.keyring, pieces=PIECE)
        self.append(NEW, self.content)

    def sealed_at(self, sequence: int) -> datetime:
        return self.begun + timedelta(hours=sequence)

    def happened(self, offset: int) -> datetime:
        """When an event happened."""
        hour = self.sealed_at(offset // 5)
        return hour - timedelta(hours=LATE) if offset == self.late else hour - timedelta(minutes=50 - 10 * (offset % 5))

    def content(self, offset: int) -> bytes:
        if offset % 20 == 7:
            return b"no event"
        kind = list(EVENTS)[offset % len(EVENTS)]
        fields = {"timestamp": format_time(self.happened(offset)), "request_id": f"request-{offset}"}
        return json.dumps(EVENTS[kind] | fields).encode()

    def between(self, since: datetime, until: datetime) -> list[int]:
        """Return the offsets of the events that happened in a time."""
        return [at for at in range(self.events) if at % 20 != 7 and since <= self.happened(at) < until]


class Counting:
    """A store that counts requests by kind and folder, and reads of each object."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.requests: Counter[tuple[str, str]] = Counter()
        self.reads: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def read(self, key: str, **more: Any) -> bytes:
        self.requests["GET", key.partition("/")[0]] += 1
        self.reads[key] += 1
        return self._store.read(key, **more)

    def exists(self, key: str) -> bool:
        self.requests["HEAD", key.partition("/")[0]] += 1
        return self._store.exists(key)

    def status(self, key: str) -> ObjectStatus:
        self.requests["HEAD", key.partition("/")[0]] += 1
        return self._store.status(key)

    def level(self, prefix: str) -> Any:
        self.requests["LIST", prefix.partition("/")[0]] += 1
        return self._store.level(prefix)

    def list(self, prefix: str = "", **more: Any) -> Iterator[ObjectInfo]:
        self.requests["LIST", prefix.partition("/")[0]] += 1
        return self._store.list(prefix, **more)


@pytest.fixture(scope="module")
def young(tmp_path_factory: pytest.TempPathFactory) -> Hourly:
    return Hourly(tmp_path_factory.mktemp("young"), STATEMENTS)


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Hourly:
    return Hourly(tmp_path_factory.mktemp("old"), 10 * STATEMENTS)


@pytest.fixture(autouse=True)
def _settings(monkeypatch: pytest.MonkeyPatch) -> None:
    clear_settings(monkeypatch)


@contextmanager
def opened(made: Hourly, folder: Path | None = None, **period: Any) -> Iterator[tuple[Any, Counting]]:
    """Connect with the archive's keys, and count what that and all queries ask of its store."""
    store = Counting(open_store(str(folder or made.folder)))
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("CUSTODY_KEYS", f"file:{made.keyring}")
        patched.setattr(custody.query.connect, "open_store", lambda *_: store)
        with closing(custody.connect(str(folder or made.folder), **period)) as connection:
            yield connection, store


def rows(made: Hourly, sql: str, folder: Path | None = None, **period: datetime) -> list[Any]:
    with opened(made, folder, **period) as (connection, _):
        found: list[Any] = connection.execute(sql).fetchall()
        return found


def tables(made: Hourly, folder: Path | None = None, **period: datetime) -> dict[str, list[Any]]:
    """Return all rows of the tables."""
    with opened(made, folder, **period) as (connection, _):
        return {table: connection.execute(sql).fetchall() for table, sql in ALL.items()}


# --- requests


HOUR = timedelta(hours=1)
QUERIES: dict[str, tuple[str | None, dict[str, datetime]]] = {
    "connect": (None, {}),
    "select 1": ("SELECT 1", {}),
    "a day": ("SELECT count(*) FROM events WHERE day = '2026-11-28'", {}),
    "a time": (
        f"SELECT count(*) FROM events WHERE time BETWEEN '{NOW - 9 * HOUR:%F %T}' AND '{NOW - 8 * HOUR:%F %T}'",  # noqa: S608
        {},
    ),
    "a time by its day": ("SELECT count(*) FROM events WHERE time::DATE = '2026-11-28'", {}),
    "a day as OCSF": ("SELECT json FROM ocsf WHERE day = '2026-11-28'", {}),
    "a time as OCSF": (
        f"SELECT json FROM ocsf WHERE time_dt BETWEEN '{NOW - 9 * HOUR:%F %T}' AND '{NOW - 8 * HOUR:%F %T}'",  # noqa: S608
        {},
    ),
    "since and until": ("SELECT count(*) FROM events", {"since": NOW - 9 * HOUR, "until": NOW - 3 * HOUR}),
    "statements of a time": (f"SELECT * FROM manifests WHERE sealed_at >= '{NOW - 9 * HOUR:%F %T}'", {}),  # noqa: S608
    "batches of a statement": ("SELECT * FROM batches WHERE log = 'audit.grows/0' AND sequence = 9", {}),
    "quarantined since": ("SELECT * FROM quarantined", {"since": NOW - 9 * HOUR}),
    "warnings since": ("FROM warnings", {"since": NOW - 9 * HOUR}),
    "sources since": ("FROM sources", {"since": NOW - 9 * HOUR}),
}


@pytest.mark.parametrize("name", QUERIES)
def test_requests_do_not_grow_with_age(young: Hourly, old: Hourly, name: str) -> None:
    """Connecting, and a query of a day or of a time, take as many requests at ten times the age."""
    sql, period = QUERIES[name]
    counts = []
    for made in (young, old):
        with opened(made, None, **period) as (connection, store):
            if sql is not None:
                connection.execute(sql).fetchall()
            counts.append(store.requests)
    assert counts[1].total() <= MOST * counts[0].total(), counts


@pytest.mark.parametrize("name", ["connect", "select 1"])
def test_what_names_no_table_reads_none(young: Hourly, name: str) -> None:
    """Connecting reads `archive.json`, and nothing else."""
    with opened(young) as (connection, store):
        connection.execute(QUERIES[name][0] or "SELECT 1")
        assert dict(store.requests) == {("GET", "archive.json"): 1}


def test_each_file_is_read_once(young: Hourly) -> None:
    """A query of all events reads, and hashes, each table once."""
    with opened(young) as (connection, store):
        connection.execute("SELECT count(DISTINCT request_id), max(time), min(day) FROM events").fetchall()
        tables = {key: many for key, many in store.reads.items() if key.endswith(".parquet")}
        assert len(tables) >= (STATEMENTS - NEW) // PIECE
        assert set(tables.values()) == {1}


def test_the_report_of_a_night(young: Hourly, old: Hourly) -> None:
    """The report's figures of a night take as many requests at ten times the age."""
    counts = []
    for made in (young, old):
        store: Any = Counting(open_store(str(made.folder)))
        facts = gather(store, open_trust([f"file:{made.keyring}"]), NOW, since=NOW - 9 * HOUR, rows=span_rows)
        assert facts.figures.total.events > 0
        counts.append(store.requests)
    assert counts[1].total() <= MOST * counts[0].total(), counts


def test_a_time_needs_few_parts_of_the_index(old: Hourly) -> None:
    """A query of some hours reads the parts of the index whose events may be of these hours, and a loss says so once.

    What a lost part covered is read from the statements, whatever conditions there are.
    """
    parts = {str(path.relative_to(old.folder)) for path in parts_of(old.folder)}
    assert len(parts) > 10
    since, until = old.begun + 100 * HOUR, old.begun + 103 * HOUR
    asked = f"SELECT \"offset\" FROM events WHERE time >= '{since:%F %T}' AND time < '{until:%F %T}' ORDER BY 1"  # noqa: S608
    with opened(old) as (connection, store):
        assert [offset for (offset,) in connection.execute(asked).fetchall()] == old.between(since, until)
        read = parts & store.reads.keys()
        assert 1 <= len(read) <= 2
        segments = {key for key in store.reads if key.startswith("events/")}
    lost = old.folder / min(read)
    data = lost.read_bytes()
    lost.unlink()
    try:
        with opened(old) as (connection, store):
            for _ in range(2):
                assert [offset for (offset,) in connection.execute(asked).fetchall()] == old.between(since, until)
            assert parts & store.reads.keys() == read
            # Its tables are found by their names.
            assert {key for key in store.reads if key.startswith("events/")} == segments
            (warning,) = connection.execute("SELECT message FROM warnings WHERE kind = 'ignored'").fetchall()
            assert str(min(read)) in warning[0]
    finally:
        lost.write_bytes(data)


# --- rows


def test_late_events(old: Hourly) -> None:
    """An event that came late is found by its own time, and by the day on which it was archived."""
    happened = old.happened(old.late)
    since, until = happened - timedelta(minutes=1), happened + timedelta(minutes=1)
    within = f"time >= '{since:%F %T}' AND time < '{until:%F %T}'"
    asked = f'SELECT "offset" FROM events WHERE {within} ORDER BY 1'  # noqa: S608
    assert old.late in old.between(since, until)
    assert [offset for (offset,) in rows(old, asked)] == old.between(since, until)
    day = old.sealed_at(old.late // 5)
    asked = f"SELECT count(*) FROM events WHERE \"offset\" = {old.late} AND day = '{day:%F}'"  # noqa: S608
    assert rows(old, asked) == [(1,)]


@pytest.fixture(scope="module")
def variants(young: Hourly, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The young archive as it is, without parts of the index, without the index, and without all that is derived."""
    root = tmp_path_factory.mktemp("variants")
    made = [young.folder, *(root / name for name in ("not the first", "not the last", "no index", "nothing"))]
    for folder in made[1:]:
        shutil.copytree(young.folder, folder)
    _, not_first, not_last, no_index, nothing = made
    parts_of(not_first)[0].unlink()
    parts_of(not_last)[-1].unlink()
    for lost in (no_index / "reports/index", nothing / "reports/index", nothing / "tables"):
        shutil.rmtree(lost)
    return made


def parts_of(folder: Path) -> list[Path]:
    """Return the files of an archive's index by time that have spans."""
    files = sorted(folder.glob("reports/index/*.gz"))
    return [path for path in files if "-map-" not in path.name and "-upper-" not in path.name]


@pytest.fixture(scope="module")
def everything(young: Hourly) -> dict[str, list[Any]]:
    with pytest.MonkeyPatch.context() as patched:
        clear_settings(patched)
        return tables(young)


def test_all_rows_with_and_without_an_index(
    young: Hourly, variants: list[Path], everything: dict[str, list[Any]]
) -> None:
    """Each table has the same rows with the index, without it, and without tables."""
    assert all(everything.values())
    assert all(tables(young, folder) == everything for folder in variants[1:])


@pytest.mark.parametrize("group", [1, 2, 64])
def test_rows_of_a_time_with_and_without_an_index(
    young: Hourly, variants: list[Path], monkeypatch: pytest.MonkeyPatch, group: int
) -> None:
    """A condition gives the same rows, whatever the index lets out: times, days, statements, and what they join to.

    So it is with however many spans are looked at together, and lost ones among them.
    """
    monkeypatch.setattr(lazy, "_GROUP", group)
    chance = random.Random(17)
    conditions: list[str] = []
    for _ in range(12):
        low, high = sorted(chance.choices(range(-3, STATEMENTS * 60 + 180), k=2))
        since, until = (young.begun - HOUR + timedelta(minutes=minute) for minute in (low, high))
        first, last = sorted(chance.choices(range(STATEMENTS + 2), k=2))
        conditions += [
            f"time BETWEEN '{since:%F %T}' AND '{until:%F %T}'",
            f"time > '{since:%F %T}' OR sequence IN ({first}, {last})",
            f"NOT (time >= '{since:%F %T}' AND time < '{until:%F %T}')",
            f"sequence >= {first} AND sequence <= {last} AND day <> '{until:%F}'",
            f"log = 'audit.grows/0' AND date_trunc('hour', time) = '{since:%F %H}:00:00'",
        ]
    conditions += ["time IS NULL", "day IS NULL", "log <> 'audit.grows/0'", "event_type LIKE 'auth%'", "status = 'x'"]
    sealed = [each.replace("time", "sealed_at") for each in conditions if each.startswith("time BETWEEN")]
    found = []
    for folder in variants:
        with opened(young, folder) as (connection, _):
            events, manifests = connection.table("events"), connection.table("manifests")
            of_folder = [events.filter(each).select('"offset"').order("1").fetchall() for each in conditions]
            of_folder += [manifests.filter(each).select("sequence").order("1").fetchall() for each in sealed]
            found.append(of_folder)
    assert all(other == found[0] for other in found[1:])
    assert sum(map(bool, found[0])) > len(conditions) // 2


def test_a_period_with_and_without_an_index(young: Hourly, variants: list[Path]) -> None:
    """`since` and `until` choose the same statements, also where they cut a span."""
    chance = random.Random(29)
    for _ in range(3):
        low, high = sorted(chance.sample(range(STATEMENTS), 2))
        first, *others = (
            tables(young, folder, since=young.sealed_at(low), until=young.sealed_at(high)) for folder in variants
        )
        assert all(other == first for other in others), (low, high)
        assert [row[1] for row in first["manifests"]] == list(range(low, high))


DERIVED = {
    "the index": "reports/index/*.gz",
    "rows of statements": "reports/index/statements/*-manifests-*",
    "rows of batches": "reports/index/statements/*-batches-*",
    "lists of tables": "tables/signed/*",
    "tables": "tables/day=*/*",
}


@pytest.mark.parametrize("change", ["gone", "garbage", "exchanged"])
@pytest.mark.parametrize("kind", DERIVED)
def test_derived_files_that_are_not_as_signed(
    young: Hourly, everything: dict[str, list[Any]], tmp_path: Path, kind: str, change: str
) -> None:
    """Whatever happens to half of them, all rows are there once, and what is not as signed is a warning."""
    folder = tmp_path / "archive"
    shutil.copytree(young.folder, folder)
    paths = sorted(folder.glob(DERIVED[kind]))
    contents = [path.read_bytes() for path in paths]
    for number, path in enumerate(paths):
        if number % 2 == 0:
            path.unlink()
            if change != "gone":
                path.write_bytes(b"garbage" if change == "garbage" else contents[number - 1] + b"\0" * (len(paths) < 2))
    with opened(young, folder) as (connection, _):
        assert {table: connection.execute(sql).fetchall() for table, sql in ALL.items()} == everything
        kinds = {kind for (kind,) in connection.execute("SELECT kind FROM warnings").fetchall()}
        assert kinds == {"ignored"}


def test_statements_that_are_gone(young: Hourly, everything: dict[str, list[Any]], tmp_path: Path) -> None:
    """What a signed audit has read is shown whole, and a listing shows what has been deleted since."""
    folder = tmp_path / "archive"
    shutil.copytree(young.folder, folder)
    for sequence in (0, 6, 7):
        (folder / layout.manifest_key(Log("audit.grows", 0), sequence)).unlink()
    shown = tables(young, folder)
    # Records in quarantine have no table.
    assert {**everything, "quarantined": []} == {**shown, "quarantined": []}
    ((kind, log, message),) = rows(young, "FROM warnings", folder)
    assert (kind, log) == ("damaged", "audit.grows/0")
    assert "in the slots 0 to 0, 6 to 7;" in message


@pytest.mark.parametrize("read", [0, 2])
def test_a_query_that_ends_early(young: Hourly, read: int) -> None:
    """Whoever stops reading, or closes the connection, waits for no file."""
    with opened(young) as (connection, _):
        result = connection.execute("SELECT * FROM events")
        assert len(result.fetchmany(read)) == read
        assert connection.execute("SELECT request_id FROM events LIMIT 1").fetchone()
        connection.execute("SELECT * FROM events")


@pytest.mark.parametrize("part", ["manifests/", "tables/signed/", "tables/day=", "reports/index/", "audits/"])
def test_a_store_that_refuses(young: Hourly, monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    """A query whose rows the archive refuses fails, and says why: it shows no fewer rows. The next one works."""
    store: Any = Counting(open_store(str(young.folder)))
    monkeypatch.setattr(custody.query.connect, "open_store", lambda *_: store)
    monkeypatch.setenv("CUSTODY_KEYS", f"file:{young.keyring}")
    connection, reading = open_archive(str(young.folder))
    real = store.read

    def read(key: str, **more: Any) -> bytes:
        if key.startswith(part):
            raise TerminalStoreError(f"403 for {key}")
        return bytes(real(key, **more))

    with closing(connection):
        store.read = read
        with pytest.raises(duckdb.Error, match=f"403 for {part}"):
            connection.execute("SELECT * FROM events").fetchall()
        assert isinstance(reading.failure, TerminalStoreError)
        store.read = real
        assert len(connection.execute("SELECT * FROM events").fetchall()) == len(young.between(EPOCH, NOW))
        assert reading.failure is None
