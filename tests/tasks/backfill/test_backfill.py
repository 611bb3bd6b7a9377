"""A backfill copies exactly the events asked for, each once, from whatever storage class; on real servers."""

import base64
import json
import os
import shutil
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from custody.archive.checkpoints import put_checkpoint
from custody.archive.forms import statements_of
from custody.archive.reader import read_archive
from custody.archive.trusted import Judge, find_trusted_tip
from custody.errors import ConfigurationError, CustodyError
from custody.format.layout import Log
from custody.format.times import format_time, parse_time
from custody.query import tables
from custody.query.connect import connect
from custody.query.tables import list_tables
from custody.store.open import open_store
from custody.store.protocol import Capabilities, S3Options, Store
from flows.summaries import plan_summary
from tasks.audit.tables import check_tables
from tasks.backfill import copy as copying
from tasks.backfill.copy import Progress, copy, restore
from tasks.backfill.plan import Part, Request, plan_backfill
from tasks.backfill.topic import _Positions
from tasks.roll.indices import roll_indices
from tasks.search.client import Search
from tasks.search.documents import ORIGIN, RESTORED_AT, index_day, is_restored, restored_name
from tasks.search.index import index_logs
from tasks.settings import KafkaSettings, SearchSettings, Settings
from tests.helpers.backfill import DAY, DAYS_OFFSETS, KINDS, NIGHT, Deep, hourly, lines_in, records
from tests.helpers.corpus import EVENTS
from tests.helpers.environment import clear_settings
from tests.helpers.own import SHAPES, own_event
from tests.helpers.sample import Growing
from tests.helpers.search import LOG, delete_indices, document_id, documents
from tests.servers.elasticsearch import ElasticsearchServer
from tests.servers.kafka import KafkaServer
from tests.servers.s3 import MotoServer


def of_the_day(**more: Any) -> Request:
    return Request(since=DAY, until=DAY + NIGHT, **more)


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Growing:
    """Three days of events, in fifteen statements of two batches each, which tests only read."""
    growing = Growing(tmp_path_factory.mktemp("backfill"))
    growing.begun = DAY - NIGHT
    growing.append(15, hourly)
    return growing


@pytest.fixture
def given(written: Growing) -> Settings:
    return Settings(archive=str(written.folder), keys=f"file:{written.keyring}")


def run(settings: Settings, request: Request, **more: Any) -> Progress:
    return copy(settings, plan_backfill(settings, request), **more)


def folder_of(path: Path, **more: Any) -> Request:
    return of_the_day(target="folder", folder=str(path), **more)


def state(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


# --- which events


def test_a_day_is_exactly_its_events(given: Settings, tmp_path: Path) -> None:
    """A range includes its first moment and excludes its end. The copied bytes are the archived ones."""
    done = run(given, folder_of(tmp_path))
    assert lines_in(tmp_path) == [hourly(offset) for offset in DAYS_OFFSETS]
    assert (done.created, done.rejected, done.problems, done.stopped) == (24, 0, [], False)
    assert done.share == 1
    assert done.remaining == 0


EDGES = {
    "2026-03-01T00:00:00.000001Z": True,
    "2026-03-01T00:00:00.0000019Z": True,
    "2026-03-01T00:00:00.0000009Z": False,
    "2026-03-01T02:00:00.000001+02:00": True,
    "2026-03-01T12:00:00Z": True,
    "2026-03-01T18:00:00.0000049999Z": True,
    "2026-03-01T18:00:00.000005Z": False,
    "2026-03-01T18:00:00.0000050001Z": False,
    "2026-03-01T18:00:00.000004+00:00": True,
    "2026-03-01T16:00:00.000005-02:00": False,
}


@pytest.mark.parametrize("one", EDGES)
def test_bounds_are_exact_to_the_last_digit(tmp_path: Path, one: str) -> None:
    """Events are chosen by their exact time, whatever its zone and number of digits."""
    growing = Growing(tmp_path / "archive")
    times = [one, "1999-01-01T00:00:00Z", "2100-01-01T00:00:00Z", "1999-01-01T00:00:00Z", "2100-01-01T00:00:00Z"]
    growing.append(
        1, lambda at: json.dumps({**EVENTS[KINDS[0]], "timestamp": times[at], "request_id": f"{at}"}).encode()
    )
    given = Settings(archive=str(growing.folder), keys=f"file:{growing.keyring}")
    begin, end = DAY + timedelta(microseconds=1), DAY + timedelta(hours=18, microseconds=5)
    run(given, Request(since=begin, until=end, target="folder", folder=str(tmp_path / "out")))
    assert [json.loads(line)["request_id"] for line in lines_in(tmp_path / "out")] == (["0"] if EDGES[one] else [])


def test_slots_that_were_passed_over(tmp_path: Path) -> None:
    """A slot that was passed over is no problem, and does not divide a table."""
    growing = Growing(tmp_path / "archive", begun=DAY)
    growing.append(2, hourly)
    slot = growing.folder / "manifests" / growing.log / f"{2:012}.json"
    slot.write_bytes(b"no manifest")
    growing.append(8, hourly)
    given = Settings(archive=str(growing.folder), keys=f"file:{growing.keyring}")
    plan = plan_backfill(given, folder_of(tmp_path / "out"))
    assert (plan.problems, plan.statements) == ((), 11)
    slot.unlink()
    wide = Request(since=DAY - 9 * NIGHT, until=DAY + 9 * NIGHT, target="tables")
    tabled = plan_backfill(given, wide)
    assert (tabled.problems, [(part.first, part.end) for part in tabled.parts]) == ((), [(0, 11)])
    run(given, wide)
    store, log = open_store(given.archive), Log("audit.grows", 0)
    listed, archive = list_tables(store), read_archive(store).id
    assert list(check_tables(store, listed, archive, log, 0, 11, given.own_trust())) == []


def test_types_are_chosen(given: Settings, tmp_path: Path) -> None:
    """Only events of the types asked for are copied."""
    wanted = (KINDS[1], KINDS[4])
    run(given, folder_of(tmp_path, types=wanted))
    expected = [hourly(offset) for offset in DAYS_OFFSETS if KINDS[offset % len(KINDS)] in wanted]
    assert lines_in(tmp_path) == expected


def test_own_types(tmp_path: Path) -> None:
    """An archive of own types alone is copied, all of it or the types asked for, and its tables are made."""
    growing = Growing(tmp_path / "archive")
    own = [
        json.dumps({**json.loads(own_event(at)), "timestamp": f"{DAY + NIGHT / 2:%FT%TZ}"}).encode() for at in range(20)
    ]
    growing.append(4, lambda at: own[at])
    given = Settings(archive=str(growing.folder), keys=f"file:{growing.keyring}")
    run(given, folder_of(tmp_path / "all"))
    assert lines_in(tmp_path / "all") == own
    run(given, folder_of(tmp_path / "some", types=("user_login", SHAPES[4]["event_type"])))
    assert lines_in(tmp_path / "some") == [line for at, line in enumerate(own) if at % 5 in {0, 4}]
    run(given, folder_of(tmp_path / "none", types=("query_executed",)))
    assert not (tmp_path / "none").exists() or lines_in(tmp_path / "none") == []
    done = run(given, Request(since=DAY, until=DAY + NIGHT, target="tables"))
    assert (done.looked_at, len(list((growing.folder / "tables").rglob("*.parquet")))) == (20, 1)


def test_lines_that_only_the_slow_path_reads(tmp_path: Path) -> None:
    """Events that the fast parser refuses are chosen by time and type too."""
    growing = Growing(tmp_path / "archive")
    odd = hourly(24)[:-1] + b', "more": ' + b"[" * 5 + b"1e999999999" + b"]" * 5 + b"}"
    growing.append(1, lambda at: odd if at == 1 else hourly(at))
    given = Settings(archive=str(growing.folder), keys=f"file:{growing.keyring}")
    run(given, folder_of(tmp_path / "out"))
    assert lines_in(tmp_path / "out") == [odd]


def test_logs_are_chosen(written: Growing, given: Settings, tmp_path: Path) -> None:
    """A log is named by topic, for all partitions, or with its partition. An unknown name is refused."""
    both = written.copy(tmp_path / "both")
    other = Growing(tmp_path / "both", partition=1)
    other.begun = DAY - NIGHT
    other.append(15, hourly)
    given = given.model_copy(update={"archive": str(both.folder)})
    counts = [
        len({one.log for one in plan_backfill(given, folder_of(tmp_path, logs=logs)).parts})
        for logs in ((), ("audit.grows",), ("audit.grows/1",))
    ]
    assert counts == [2, 2, 1]
    with pytest.raises(ConfigurationError, match=r"no log 'audit\.grows/2'"):
        plan_backfill(given, folder_of(tmp_path, logs=("audit.grows/2",)))


def test_late_days_leave_out_what_was_sealed_later(given: Settings, tmp_path: Path) -> None:
    """With `late_days`, only statements sealed near the range are searched. Here all were sealed a day before it."""
    assert plan_backfill(given, folder_of(tmp_path, late_days=0)).statements == 15
    later = Request(since=DAY + 3 * NIGHT, until=DAY + 4 * NIGHT, target="folder", folder=str(tmp_path), late_days=0)
    assert plan_backfill(given, later).statements == 0
    assert plan_backfill(given, folder_of(tmp_path)).statements == 15


WRONG: dict[str, dict[str, Any]] = {
    "must be later than --since": {"until": DAY},
    "time zone": {"since": datetime(2026, 3, 1)},  # noqa: DTZ001
    "cannot be an event type": {"types": ("",)},
    "event type: event_type has 256 bytes": {"types": ("x" * 256,)},
    "no statement that was searched has an event of type 'nonsense'": {"types": (KINDS[0], "nonsense")},
    "name the folder": {"folder": None},
    "remove one of them": {"topic": "both"},
    "late_days": {"late_days": -1},
    "types cannot be chosen": {"target": "tables", "types": (KINDS[0],), "folder": None},
    "search.url is not set": {"target": "elasticsearch", "folder": None},
}


@pytest.mark.parametrize("said", WRONG)
def test_what_makes_no_sense_is_refused(given: Settings, said: str) -> None:
    """A wrong request is refused before anything is read, and the message says what is wrong."""
    fields: dict[str, Any] = {"since": DAY, "until": DAY + NIGHT, "target": "folder", "folder": "somewhere"}
    with pytest.raises(ConfigurationError, match=said):
        plan_backfill(given, Request(**fields | WRONG[said]))


# --- what is read


class _Reads:
    """Counts what a store's objects are read for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ranges: list[tuple[str, int, int | None]] = []
        lock = threading.Lock()

        def opened(url: str, options: S3Options | None = None) -> Store:
            store = open_store(url, options)
            plain = store.read

            def read(key: str, *, limit: int, start: int = 0, size: int | None = None, restored: bool = False) -> bytes:
                if key.startswith("events/"):
                    with lock:
                        self.ranges.append((key, start, size))
                return plain(key, limit=limit, start=start, size=size, restored=restored)

            monkeypatch.setattr(store, "read", read)
            return store

        monkeypatch.setattr(copying, "open_store", opened)


def test_only_overlapping_batches_are_read(given: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only batches that overlap the range are read, each segment's at once. Other segments are not read."""
    reads = _Reads(monkeypatch)
    plan = plan_backfill(given, folder_of(tmp_path))
    assert reads.ranges == []
    copy(given, plan)
    # Statements 4 (events 20 to 24: batches of 3 and 2) to 9 (45 to 49): of the first its second batch, of the last
    # its first one.
    assert len(reads.ranges) == 6
    assert sum(size or 0 for _, _, size in reads.ranges) == plan.size
    assert [start > 0 for _, start, _ in sorted(reads.ranges)].count(True) == 1
    assert (plan.statements, plan.events, len(plan.segments)) == (15, 2 + 4 * 5 + 3, 6)


def test_batches_between_chosen_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A statement's chosen batches are read at once. A batch between them is not copied, not even checked."""
    growing = Growing(tmp_path / "archive")
    growing.append(1, lambda at: hourly(0 if 3 <= at < 6 else 24 + at), each=9)
    given = Settings(archive=str(growing.folder), keys=f"file:{growing.keyring}")
    (segment,) = (growing.folder / "events").rglob("*.gz")
    data = bytearray(segment.read_bytes())
    data[len(data) // 2] ^= 1
    segment.unlink()
    segment.write_bytes(bytes(data))
    reads = _Reads(monkeypatch)
    plan = plan_backfill(given, folder_of(tmp_path / "out"))
    assert (plan.events, copy(given, plan).problems, len(reads.ranges)) == (6, [], 1)
    assert lines_in(tmp_path / "out") == [hourly(24 + at) for at in (0, 1, 2, 6, 7, 8)]


def test_a_dry_run_changes_nothing(given: Settings, written: Growing, tmp_path: Path) -> None:
    """A plan says what would be read and how long it takes. It changes neither archive nor target."""
    before = state(written.folder)
    plan = plan_backfill(given, folder_of(tmp_path / "out"))
    assert plan_summary(plan).endswith("Estimate: 0 s to copy.")
    assert state(written.folder) == before
    assert not (tmp_path / "out").exists()


# --- folder


def test_again_leaves_files_alone(given: Settings, tmp_path: Path) -> None:
    """A second run reads and changes nothing. A file that was lost is made again, the same."""
    run(given, folder_of(tmp_path))
    before = state(tmp_path)
    assert all(name == "backfill.json" or name.startswith("audit.grows/0/") for name in before)
    again = run(given, folder_of(tmp_path))
    assert (again.created, again.read, again.share) == (0, 0, 1)
    assert state(tmp_path) == before
    lost = next(tmp_path.rglob("*.gz"))
    lost.unlink()
    assert run(given, folder_of(tmp_path)).created > 0
    assert {name: data for name, (data, _) in state(tmp_path).items()} == {
        name: data for name, (data, _) in before.items()
    }


def test_a_folder_of_something_else_is_refused(given: Settings, tmp_path: Path) -> None:
    """A folder with another choice of events, or with other files, is refused."""
    run(given, folder_of(tmp_path / "one"))
    with pytest.raises(ConfigurationError, match="another choice of events"):
        run(given, folder_of(tmp_path / "one", types=(KINDS[0],)))
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "letter.txt").write_text("dear all")
    with pytest.raises(ConfigurationError, match="other things"):
        run(given, folder_of(tmp_path / "two"))
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(ConfigurationError, match="cannot be written"):
        run(given, folder_of(tmp_path / "file"))


def test_stopped_in_the_middle(given: Settings, tmp_path: Path) -> None:
    """A stopped backfill leaves complete files. Started again, it copies only the rest."""
    copied = 0
    for _ in range(10):
        budget = iter((True, False))
        done = run(given, folder_of(tmp_path), go_on=lambda budget=budget: next(budget))
        assert list(tmp_path.rglob("*.partial")) == []
        copied += done.created
        if not done.stopped:
            break
    assert copied == 24
    assert lines_in(tmp_path) == [hourly(offset) for offset in DAYS_OFFSETS]


def test_two_at_once_into_a_folder(given: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that begins while another one writes a file does not remove that unfinished file."""
    sync = os.fsync
    others = iter(range(3))

    def meanwhile(descriptor: int) -> None:
        sync(descriptor)
        if next(others, None) is not None:
            run(given, folder_of(tmp_path))

    monkeypatch.setattr(os, "fsync", meanwhile)
    run(given, folder_of(tmp_path))
    assert list(others) == []
    assert list(tmp_path.rglob("*.partial")) == []
    assert lines_in(tmp_path) == [hourly(offset) for offset in DAYS_OFFSETS]


def test_damage_stops_nothing_else(written: Growing, given: Settings, tmp_path: Path) -> None:
    """Damaged or lost segments are reported and left out. Once they are repaired, the next run copies them."""
    broken = written.copy(tmp_path / "broken")
    given = given.model_copy(update={"archive": str(broken.folder)})
    plan = plan_backfill(given, folder_of(tmp_path / "out"))
    damaged, lost = (broken.folder / list(plan.segments)[index] for index in (1, 2))
    kept, data = lost.read_bytes(), damaged.read_bytes()
    damaged.chmod(0o600)
    damaged.write_bytes(data[:20] + bytes([data[20] ^ 1]) + data[21:])
    lost.unlink()
    done = run(given, folder_of(tmp_path / "out"))
    assert len(done.problems) == 2
    assert all("custody verify" in one for one in done.problems)
    assert lines_in(tmp_path / "out") == [hourly(offset) for offset in DAYS_OFFSETS if not 25 <= offset < 35]
    damaged.write_bytes(data)
    lost.write_bytes(kept)
    assert run(given, folder_of(tmp_path / "out")).problems == []
    assert lines_in(tmp_path / "out") == [hourly(offset) for offset in DAYS_OFFSETS]


@pytest.mark.parametrize("missing", [0, 3])
def test_a_damaged_log_is_no_empty_one(written: Growing, given: Settings, tmp_path: Path, missing: int) -> None:
    """A log that lacks a manifest is a problem of the backfill, wherever its end is found then."""
    broken = written.copy(tmp_path / "broken")
    given = given.model_copy(update={"archive": str(broken.folder)})
    (broken.folder / "manifests" / broken.log / f"{missing:012}.json").unlink()
    (problem, *_) = run(given, folder_of(tmp_path / "out")).problems
    assert f"{missing:012}.json" in problem
    assert "custody verify" in problem


def unsign(growing: Growing, *sequences: int) -> None:
    """Replace the signatures of statements by ones that no key made."""
    for sequence in sequences:
        path = growing.folder / "manifests" / growing.log / f"{sequence:012}.json"
        line, signed = path.read_bytes().split(b"\n", 1)
        made = json.loads(signed)
        for signature in made["signatures"]:
            size = len(base64.b64decode(signature["value"]))
            signature["value"] = base64.b64encode(bytes(size)).decode()
        path.unlink()
        path.write_bytes(line + b"\n" + json.dumps(made, separators=(",", ":")).encode() + b"\n")


@pytest.mark.parametrize("first", [14, 7, 0])
def test_what_nobody_signed_at_the_end_is_a_problem(
    written: Growing, given: Settings, tmp_path: Path, first: int
) -> None:
    """Statements at a log's end that no trusted key signed are not copied, and the backfill says so, by their slots."""
    broken = written.copy(tmp_path / "broken")
    unsign(broken, *range(first, 15))
    given = given.model_copy(update={"archive": str(broken.folder)})
    done = run(given, Request(since=DAY - NIGHT, until=DAY + 9 * NIGHT, target="folder", folder=str(tmp_path / "out")))
    assert done.problems == [
        f"{written.log}: no valid statement in the slots {first} to 14; run `custody verify`",
    ]
    assert len(lines_in(tmp_path / "out") if first else []) == 5 * first


def test_a_log_that_was_longer_is_a_problem(written: Growing, given: Settings, tmp_path: Path) -> None:
    """If the newest statements are gone, a signed checkpoint shows it, also if none is left."""
    broken = written.copy(tmp_path / "broken")
    given = given.model_copy(update={"archive": str(broken.folder)})
    store, log, trust = open_store(given.archive), Log("audit.grows", 0), given.own_trust()
    archive, signer = read_archive(store).id, given.signers(datetime.now(UTC)).ed25519()
    judge = Judge(store, log, statements_of(log), archive, trust)
    put_checkpoint(store, archive, log, find_trusted_tip(store, log, archive, trust).head, signer, judge)
    manifests = sorted((broken.folder / "manifests" / broken.log).iterdir())
    manifests[-1].unlink()
    (problem,) = run(given, folder_of(tmp_path / "out")).problems
    assert "it ends at size 14, but a checkpoint knows size 15" in problem
    shutil.rmtree(broken.folder / "manifests")
    (problem,) = run(given, folder_of(tmp_path / "none")).problems
    assert "it ends at size 0, but a checkpoint knows size 15" in problem


def test_without_keys_a_copy_is_unverified(
    written: Growing, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without keys no signature is checked, and a warning says so, in the words of a query."""
    clear_settings(monkeypatch)
    monkeypatch.chdir(tmp_path)
    broken = written.copy(tmp_path / "broken")
    unsign(broken, *range(15))
    given = Settings(archive=str(broken.folder))
    assert run(given, folder_of(tmp_path / "out")).created == 24
    assert [record.getMessage() for record in caplog.records] == [
        "unverified: no keys are at hand, so no signature was checked; set `keys`, or `trust`"
    ]
    caplog.clear()
    connect(str(broken.folder)).close()
    assert "unverified: no keys are at hand" in caplog.text


# --- tables


def test_tables_are_made_of_what_has_none(written: Growing, given: Settings, tmp_path: Path) -> None:
    """Whole statements become tables that SQL reads, each event once. A second run changes nothing."""
    copied = written.copy(tmp_path / "copy")
    given = given.model_copy(update={"archive": str(copied.folder)})
    assert run(given, of_the_day(target="tables")).created == 30
    store = open_store(str(copied.folder))
    ((files,),) = map(tables.whole_ranges, tables.list_tables(store).files.values())
    assert (files[0].first, files[0].end) == (4, 10)
    rows = connect(str(copied.folder)).execute('SELECT "offset" FROM events ORDER BY 1').fetchall()
    assert rows == [(offset,) for offset in range(75)]
    before = state(copied.folder)
    assert run(given, of_the_day(target="tables")).created == 0
    assert state(copied.folder) == before
    # A longer time: what is on either side of it.
    assert run(given, Request(since=DAY - NIGHT, until=DAY + 3 * NIGHT, target="tables")).created == 45
    rows = connect(str(copied.folder)).execute('SELECT "offset" FROM events ORDER BY 1').fetchall()
    assert rows == [(offset,) for offset in range(75)]


# --- Elasticsearch


@pytest.fixture
def searched(given: Settings, elastic: ElasticsearchServer) -> Iterator[Settings]:
    """Settings with an Elasticsearch that has nothing of ours."""
    made = given.model_copy(
        update={"search": SearchSettings(url=elastic.url, prefix=elastic.unused_prefix(), replicas=0)}
    )
    yield made
    delete_indices(made)


def test_a_day_comes_back_into_elasticsearch(searched: Settings) -> None:
    """Each event of the day becomes one document that names its evidence, in an index that the roll keeps."""
    assert run(searched, of_the_day()).created == 24
    found = documents(searched)
    assert set(found) == {document_id(LOG, offset) for offset in DAYS_OFFSETS}
    for offset in DAYS_OFFSETS:
        one = found[document_id(LOG, offset)]
        assert one["_index"] == restored_name(searched.search.prefix, DAY.date())
        assert index_day(searched.search.prefix, one["_index"]) is None
        assert one[ORIGIN]["offset"] == offset
        assert one["request_id"] == f"request-{offset}"
    again = run(searched, of_the_day())
    assert (again.created, again.there) == (0, 24)
    assert documents(searched) == found


def test_a_target_that_rejects_all(searched: Settings, tmp_path: Path) -> None:
    """A backfill of which Elasticsearch rejects each event has a problem."""

    def odd(offset: int) -> bytes:
        moment = json.loads(hourly(DAYS_OFFSETS[offset]))["timestamp"]
        event = {**EVENTS["api_key_operation"], "timestamp": moment, "permissions": [{"no": "keyword"}]}
        return json.dumps(event).encode()

    refused = Growing(tmp_path)
    refused.begun = DAY
    refused.append(1, odd)
    changed = {"archive": str(refused.folder), "keys": f"file:{refused.keyring}"}
    done = run(searched.model_copy(update=changed), of_the_day())
    assert (done.created, done.rejected) == (0, 5)
    assert [problem.partition(" events")[0] for problem in done.problems] == [
        "nothing was copied: the target rejected all 5"
    ]


def test_what_comes_back_stays_as_long_as_what_came_first(searched: Settings) -> None:
    """The `restored_days` of an index count from the last backfill into it, not from the first."""
    run(searched, of_the_day(types=KINDS[:1]))
    name = restored_name(searched.search.prefix, DAY.date())
    opened = Search(searched.search)
    # As if the index had been made 29 days ago: it goes by this alone, and not by when Elasticsearch made it.
    made = opened.client.indices.get_settings(index=name, flat_settings=True)[name]["settings"]["index.creation_date"]
    days = searched.search.restored_days
    later = datetime.fromtimestamp(int(made) / 1000, UTC) + timedelta(days=days, minutes=1)
    opened.client.indices.put_mapping(index=name, meta={RESTORED_AT: format_time(later - timedelta(days=1))})
    assert all(one.target != name for one in roll_indices(searched, later, dry_run=True))
    run(searched, of_the_day())
    brought = opened.client.indices.get_mapping(index=name)[name]["mappings"]["_meta"][RESTORED_AT]
    opened.close()
    assert abs(parse_time(brought) - datetime.now(UTC)) < timedelta(minutes=1)
    (due,) = (one for one in roll_indices(searched, later + timedelta(hours=1), dry_run=True) if one.target == name)
    assert (due.what, "is not verified by an audit yet" in due.why) == ("delete", True)


def test_outlying_events_come_back_where_they_stay(searched: Settings) -> None:
    """Old out-of-range events are restored to an index that the next roll does not clear."""
    assert run(searched, Request(since=DAY - NIGHT, until=DAY + 3 * NIGHT)).created == 75
    found = documents(searched)
    apart = {name for name, one in found.items() if one["_index"] == restored_name(searched.search.prefix, None)}
    # Their day is more than a day behind when they were sealed.
    assert apart == {document_id(LOG, offset) for offset in range(48, 75)}
    assert all(is_restored(searched.search.prefix, one["_index"]) for one in found.values())
    opened = Search(searched.search)
    mapping = opened.client.indices.get_mapping(index=restored_name(searched.search.prefix, None)).body
    opened.close()
    assert all(one["mappings"]["properties"]["client_ip"]["type"] == "ip" for one in mapping.values())


def test_a_day_that_is_kept_goes_into_its_own_index(searched: Settings) -> None:
    """Events of a day that still has its index are restored into that index, so no event is there twice."""
    kept = searched.model_copy(update={"search": searched.search.model_copy(update={"days": 36_500})})
    run(kept, of_the_day())
    index_logs(kept)
    assert len(documents(kept)) == 75
    assert all("restored" not in one["_index"] for one in documents(kept).values())


# --- Kafka


def in_kafka(given: Settings, kafka: KafkaServer) -> Settings:
    return given.model_copy(update={"kafka": KafkaSettings(bootstrap_servers=kafka.bootstrap)})


def test_a_topic_gets_each_event(given: Settings, kafka: KafkaServer) -> None:
    """A record's value is the event, and its headers name its origin. A stopped backfill continues.

    Once everything was sent, the same backfill sends it again; a double has the headers and key of the first.
    """
    topic = kafka.create_topic(kafka.unused_name("replay"), 2)
    settings = in_kafka(given, kafka)
    request = of_the_day(target="topic", topic=topic)
    budget = iter((True, True, True, False))
    first = run(settings, request, go_on=lambda: next(budget))
    assert first.stopped
    rest = run(settings, request)
    assert (first.created > 0, rest.created > 0, first.created + rest.created) == (True, True, 24)
    found = records(kafka, topic, 2)
    assert [value for _, value, _, _ in found] == [hourly(offset) for offset in DAYS_OFFSETS]
    assert [key for key, _, _, _ in found] == [f"audit.grows/0/{offset}".encode() for offset in DAYS_OFFSETS]
    assert found[0][2] == {"topic": b"audit.grows", "partition": b"0", "offset": b"24"}
    assert {partition for _, _, _, partition in found} == {0}
    assert run(settings, request).created == 24
    assert records(kafka, topic, 2) == [*found, *found]


def test_a_refused_request_is_not_the_fault_of_each_event(given: Settings, kafka: KafkaServer) -> None:
    """A topic that takes each event, but not a whole request of them, gets each event, and rejects none."""
    topic = kafka.create_topic(kafka.unused_name("narrow"), 1, max_message_bytes=420)
    done = run(in_kafka(given, kafka), of_the_day(target="topic", topic=topic))
    assert (done.created, done.rejected, done.problems) == (24, 0, [])
    found = records(kafka, topic, 1)
    assert sorted(value for _, value, _, _ in found) == sorted(hourly(offset) for offset in DAYS_OFFSETS)
    assert {key for key, _, _, _ in found} == {f"audit.grows/0/{offset}".encode() for offset in DAYS_OFFSETS}
    assert all(headers["partition"] == b"0" for _, _, headers, _ in found)


def test_nothing_copied_is_no_success(given: Settings, kafka: KafkaServer) -> None:
    """A run whose target rejects every event has a problem, and so ends as failed."""
    topic = kafka.create_topic(kafka.unused_name("tiny"), 1, max_message_bytes=90)
    for _ in range(2):
        done = run(in_kafka(given, kafka), of_the_day(target="topic", topic=topic))
        assert (done.created, done.rejected) == (0, 24)
        (problem,) = done.problems
        assert problem.startswith("nothing was copied: the target rejected all 24 events, ")


def test_another_choice_is_another_position(given: Settings, kafka: KafkaServer) -> None:
    """The position of one choice of events does not count for another choice."""
    topic = kafka.create_topic(kafka.unused_name("choices"), 1)
    settings = in_kafka(given, kafka)
    budget = iter((True, True, False))
    assert run(settings, of_the_day(target="topic", topic=topic), go_on=lambda: next(budget)).stopped
    for more in ({"types": (KINDS[0],)}, {"late_days": 3}):
        done = run(settings, of_the_day(target="topic", topic=topic, **more))
        assert done.created == (4 if "types" in more else 24)


@pytest.mark.parametrize("how", ["damaged", "missing"])
def test_what_could_not_be_read_is_sent_later(written: Growing, kafka: KafkaServer, tmp_path: Path, how: str) -> None:
    """Events of a damaged or missing segment are sent once the segment is repaired."""
    growing = written.copy(tmp_path / "copy")
    topic = kafka.create_topic(kafka.unused_name("later"), 1)
    settings = in_kafka(Settings(archive=str(growing.folder), keys=f"file:{growing.keyring}"), kafka)
    request = of_the_day(target="topic", topic=topic)
    segment = Path(growing.folder, list(plan_backfill(settings, request).segments)[2])
    whole = segment.read_bytes()
    segment.chmod(0o644)
    segment.unlink()
    if how == "damaged":
        segment.write_bytes(bytes(len(whole)))
    assert run(settings, request).problems
    segment.unlink(missing_ok=True)
    segment.write_bytes(whole)
    assert run(settings, request).problems == []
    assert {value for _, value, _, _ in records(kafka, topic, 1)} == {hourly(offset) for offset in DAYS_OFFSETS}


def test_more_logs_than_fit_into_a_position(given: Settings, kafka: KafkaServer) -> None:
    """If the positions of all logs do not fit into the broker's limit, those noted last are kept."""
    topic = kafka.create_topic(kafka.unused_name("many"), 1)
    parts = [Part(Log(f"audit.{number:0100}", 0), 0, 1, 0, 10) for number in range(100)]
    client = in_kafka(given, kafka).kafka.librdkafka()
    positions = _Positions(client, topic, topic)
    for part in parts:
        positions.note(part, whole=True)
    positions.close()
    again = _Positions(client, topic, topic)
    known = [again.has(part) for part in parts]
    assert known == sorted(known)
    assert 20 < sum(known) < 50
    again.clear()
    again.close()
    cleared = _Positions(client, topic, topic)
    assert not any(map(cleared.has, parts))
    cleared.close()


def test_topics_that_will_not_do(given: Settings, kafka: KafkaServer) -> None:
    """A topic that is archived itself, or does not exist, is refused. No topic is created."""
    settings = in_kafka(given, kafka)
    with pytest.raises(ConfigurationError, match="archived itself"):
        run(settings, of_the_day(target="topic", topic="audit.replay"))
    name = kafka.unused_name("missing")
    for _ in range(2):
        with pytest.raises(ConfigurationError, match="there is no topic"):
            run(settings, of_the_day(target="topic", topic=name))


# --- archived storage classes


@pytest.fixture
def deep(moto: MotoServer, written: Growing, monkeypatch: pytest.MonkeyPatch) -> Iterator[Deep]:
    moto.use(monkeypatch)
    made = Deep(moto, written)
    yield made
    made.client.close()


def test_a_day_from_deep_archive(searched: Settings, deep: Deep) -> None:
    """Only the segments of the day are restored from DEEP_ARCHIVE, and every event is then in Elasticsearch."""
    settings = searched.model_copy(update={"archive": deep.url, "s3": deep.options})
    plan = plan_backfill(settings, of_the_day())
    assert (len(plan.archived), len(plan.segments), deep.restored(settings)) == (6, 6, 0)
    assert plan_summary(plan).endswith("Estimate: up to 12 h for restores, then 0 s to copy.")
    with_problems = copy(settings, plan)
    assert (with_problems.created, len(with_problems.problems)) == (0, 6)
    assert restore(settings, plan) == 0
    assert deep.restored(settings) == 6
    done = copy(settings, plan)
    assert (done.created, done.problems) == (24, [])
    found = documents(settings)
    assert set(found) == {document_id(LOG, offset) for offset in DAYS_OFFSETS}
    for offset in DAYS_OFFSETS:
        document = found[document_id(LOG, offset)]
        del document["_index"], document[ORIGIN]
        assert document == json.loads(hourly(offset))
    assert plan_backfill(settings, of_the_day()).archived == {}


def test_a_restore_is_asked_for_once(given: Settings, deep: Deep, tmp_path: Path) -> None:
    """A restore is requested once, and nothing waits for it. The plan says how long restores take."""
    settings = given.model_copy(update={"archive": deep.url, "s3": deep.options})
    plan = plan_backfill(settings, folder_of(tmp_path, tier="bulk"))
    assert plan.restore_hours == 48
    asked: Counter[str] = Counter()
    store = open_store(settings.archive, settings.s3)
    under_way = set[str]()

    class Slow:
        """The store, as it is while copies are being made: moto makes them at once."""

        def __getattr__(self, name: str) -> Any:
            return getattr(store, name)

        @property
        def capabilities(self) -> Capabilities:
            return Capabilities(restores=self)

        def status(self, key: str) -> Any:
            return replace(store.status(key), restored=False, restoring=key in under_way)

        def restore(self, key: str, *, days: int, tier: str) -> None:
            assert (days, tier) == (copying.RESTORE_DAYS, "bulk")
            asked[key] += 1
            under_way.add(key)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(copying, "open_store", lambda *_: Slow())
        assert [restore(settings, plan) for _ in range(2)] == [6, 6]
    assert set(asked.values()) == {1}


def test_store_says_what_it_cannot_restore(deep: Deep) -> None:
    """Restoring twice is success. A missing or unarchived object is an error of ours."""
    store = open_store(deep.url, deep.options)
    restores = store.capabilities.restores
    assert restores is not None
    key = next(iter(store.list("events/"))).key
    for _ in range(2):
        restores.restore(key, days=1, tier="standard")
    assert store.status(key).restored
    with pytest.raises(CustodyError, match="no object"):
        restores.restore("events/none", days=1, tier="standard")
    with pytest.raises(CustodyError, match="no longer in an archive storage class"):
        restores.restore("archive.json", days=1, tier="standard")
