"""A backfill that is killed, or of which any call to the outside fails, leaves nothing that the next run does not mend.

On a real Elasticsearch, in folders, in the archive's tables, and from archived classes: in the end every event of the
range is there, once; and a run that says that it is done has copied everything.
"""

import contextlib
import errno
import gzip
import json
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from custody.errors import CustodyError
from custody.keys.trust import open_trust
from custody.query.connect import connect
from custody.store.open import open_store
from custody.store.protocol import S3Options
from custody.verify.run import verify
from tasks.backfill.copy import Progress, copy, restore
from tasks.backfill.plan import Request, plan_backfill
from tasks.search import bulk
from tasks.search.client import Search
from tasks.settings import SearchSettings, Settings
from tests.faults.backfill_child import run
from tests.faults.child import Plan, finish
from tests.faults.processes import start
from tests.faults.sweep import swept
from tests.helpers.backfill import Deep, lines_in, records
from tests.helpers.corpus import EVENTS
from tests.helpers.sample import Growing
from tests.helpers.search import LOG, document_id, documents
from tests.servers.elasticsearch import ElasticsearchServer
from tests.servers.kafka import KafkaServer
from tests.servers.proxy import Fault, FaultyProxy
from tests.servers.s3 import MotoServer

NOW = datetime.now(UTC)
OLD = NOW - timedelta(days=150)
"""A day that has aged out of Elasticsearch."""
STATEMENTS, AGED = 5, 3
"""How many there are, and how many of them were sealed on that day."""
WANTED = list(range(5, 22))
"""Offsets of the events that are asked for: of the last statement that has any, the first two."""
LIMIT_SECONDS = 60


def content(offset: int) -> bytes:
    """Return an event of long before, then some of an old day, some of today, and some of tomorrow."""
    if offset in WANTED:
        moment = (OLD if offset < AGED * 5 else NOW - timedelta(hours=1)) + timedelta(seconds=offset)
    else:
        moment = OLD - timedelta(days=50) if offset < WANTED[0] else NOW + timedelta(days=1)
    fields = {"timestamp": moment.isoformat().replace("+00:00", "Z"), "request_id": f"request-{offset}"}
    return json.dumps({**EVENTS[list(EVENTS)[offset % len(EVENTS)]], **fields}).encode()


LINES = [content(offset) for offset in WANTED]


def wanted(**more: Any) -> Request:
    return Request(since=OLD - timedelta(days=1), until=NOW, **more)


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Growing:
    """An archive that tests read, and copy where they write."""
    growing = Growing(tmp_path_factory.mktemp("backfill-faults"), begun=OLD)
    growing.append(AGED, content)
    growing.begun = NOW - timedelta(minutes=30)
    growing.append(STATEMENTS - AGED, content)
    return growing


@dataclass
class World:
    """What backfills run on, in processes of their own."""

    environment: dict[str, str]
    report: Path

    def run(self, request: Request, plan: Plan | None = None) -> tuple[int | None, dict[str, Any]]:
        """Run one to its end, or to where the plan ends it; return its exit code, and its report if it lived."""
        self.report.unlink(missing_ok=True)
        process = start(self.report.parent, run, self.environment, request, plan or Plan(), self.report)
        return finish(process, self.report, LIMIT_SECONDS, f"a backfill at {plan}")

    def calls(self, request: Request, *, steps: bool = False) -> list[str]:
        """Run one of which nothing breaks, and return its calls in order."""
        code, report = self.run(request, Plan(steps=steps))
        assert code == 0
        assert done(report)
        found: list[str] = report["calls"]
        return found

    def heal(self, request: Request) -> None:
        """Run it once more, with nothing broken: then it is done."""
        code, report = self.run(request)
        assert (code, done(report)) == (0, True), report


def world(growing: Growing, folder: Path, **more: str) -> World:
    named = {"CUSTODY_ARCHIVE": str(growing.folder), "CUSTODY_KEYS": f"file:{growing.keyring}"}
    return World({**named, **more}, folder / "report.json")


def done(report: dict[str, Any]) -> bool:
    """Return whether a run reports that it has copied everything."""
    return bool(report["error"] is None and report["done"] and not report["done"]["problems"])


# --- Elasticsearch


@pytest.fixture
def searched(written: Growing, elastic: ElasticsearchServer) -> Iterator[Settings]:
    """Settings with an Elasticsearch that has nothing of ours."""
    made = Settings(
        archive=str(written.folder),
        keys=f"file:{written.keyring}",
        # So small that each statement is a request of its own.
        search=SearchSettings(url=elastic.url, prefix=elastic.unused_prefix(), replicas=0, bulk_bytes=1024),
    )
    yield made
    empty(made)


def empty(settings: Settings) -> None:
    """Remove every index of ours."""
    with contextlib.closing(Search(settings.search)) as opened:
        opened.client.options(ignore_status=404).indices.delete(index=f"{settings.search.prefix}*")


def assert_found(settings: Settings) -> None:
    """Every event asked for is found, once, as it was archived, and no other."""
    found = documents(settings)
    assert set(found) == {document_id(LOG, offset) for offset in WANTED}
    for offset in WANTED:
        one = found[document_id(LOG, offset)]
        assert json.loads(content(offset)).items() <= one.items()
        assert ("restored" in one["_index"]) == (offset < AGED * 5)


@pytest.mark.timeout(600)
def test_killed_at_every_call_into_elasticsearch(searched: Settings, written: Growing, tmp_path: Path) -> None:
    """Killed before any call to store or Elasticsearch and run again, every event is found, once."""
    given = {"URL": str(searched.search.url), "PREFIX": searched.search.prefix, "REPLICAS": "0", "BULK_BYTES": "1024"}
    made = world(written, tmp_path, **{f"CUSTODY_SEARCH__{name}": value for name, value in given.items()})
    calls = made.calls(wanted())
    assert {"store.read", "store.status", "store.level", "search"} <= set(calls)
    assert calls.count("search") >= 8
    assert_found(searched)
    for at in swept(range(len(calls))):
        # What comes before the first request leaves nothing there: one such run is like another.
        if "search" in calls[:at]:
            empty(searched)
        assert made.run(wanted(), Plan(at, "kill-before"))[0] == -signal.SIGKILL
        made.heal(wanted())
        assert_found(searched)


FAULTS = [Fault("reset", effect=False), Fault("reset", effect=True), Fault("429", effect=False)]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_a_fault_at_each_request(searched: Settings, fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever request fails, before or after its effect, a run ends in one of our errors, and the next one heals."""
    monkeypatch.setattr(bulk, "PATIENCE_SECONDS", 1)
    with FaultyProxy(str(searched.search.url)) as proxy:
        through = searched.model_copy(update={"search": searched.search.model_copy(update={"url": proxy.endpoint_url})})
        backfilled(through)
        calls = len(proxy.calls)
        assert calls >= 8
        for number in swept(range(calls)):
            empty(searched)
            proxy.reset({number: fault})
            with contextlib.suppress(CustodyError):
                if not backfilled(through).problems:
                    assert_found(searched)
            proxy.reset()
            assert backfilled(through).problems == []
            assert_found(searched)


def backfilled(settings: Settings, request: Request | None = None) -> Progress:
    """Plan, restore and copy here."""
    plan = plan_backfill(settings, request or wanted())
    assert restore(settings, plan) == 0
    return copy(settings, plan)


# --- a folder


def assert_copied(folder: Path) -> None:
    """Every event asked for is in whole files, once, and nothing else is there."""
    for path in folder.rglob("*"):
        assert path.name == "backfill.json" or path.name.endswith(".jsonl.gz") or path.is_dir()
    for path in folder.rglob("*.jsonl.gz"):
        gzip.decompress(path.read_bytes())
    assert lines_in(folder) == LINES


def test_killed_at_every_call_into_a_folder(written: Growing, tmp_path: Path) -> None:
    """Killed before any call to the store or change of the folder and run again, every event is there, once."""
    made, out = world(written, tmp_path), tmp_path / "out"
    request = wanted(target="folder", folder=str(out))
    calls = made.calls(request)
    assert {"store.read", "os.mkdir", "os.fsync", "os.fchmod", "os.replace"} <= set(calls)
    assert_copied(out)
    for at in swept(range(len(calls))):
        if out.exists():
            shutil.rmtree(out)
        assert made.run(request, Plan(at, "kill-before"))[0] == -signal.SIGKILL
        made.heal(request)
        assert_copied(out)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EACCES], ids=errno.errorcode.get)
def test_every_step_fails_into_a_folder(written: Growing, tmp_path: Path, number: int) -> None:
    """A disk that is full, broken or closed, of archive or folder, is said as an error of ours; the next run heals."""
    made, out = world(written, tmp_path), tmp_path / "out"
    request = wanted(target="folder", folder=str(out))
    total = len(made.calls(request, steps=True))
    for at in swept(range(total)):
        if out.exists():
            shutil.rmtree(out)
        code, report = made.run(request, Plan(at, "fail", number, steps=True))
        assert code == 0, f"a {errno.errorcode[number]} at step {at} ended the process"
        if done(report):
            assert_copied(out)
        made.heal(request)
        assert_copied(out)


# --- tables


def test_killed_at_every_call_into_tables(written: Growing, tmp_path: Path) -> None:
    """Killed before a call to the store and run again, SQL sees each event once, and the archive verifies."""
    copies = (written.copy(tmp_path / f"copy-{number}") for number in range(1000))
    request = wanted(target="tables")
    calls = world(next(copies), tmp_path).calls(request)
    assert {"store.read", "store.create", "store.list"} <= set(calls)
    for at in sorted({*range(0, len(calls), 3), *(at for at, call in enumerate(calls) if call == "store.create")}):
        growing = next(copies)
        made = world(growing, tmp_path)
        assert made.run(request, Plan(at, "kill-before"))[0] == -signal.SIGKILL
        made.heal(request)
        rows = connect(str(growing.folder)).execute('SELECT "offset" FROM events ORDER BY 1').fetchall()
        assert rows == [(offset,) for offset in range(STATEMENTS * 5)]
        trust = open_trust([f"file:{growing.keyring}"])
        assert verify(open_store(str(growing.folder)), trust, now=NOW, workers=0).exit_code == 0


# --- a topic


def test_killed_on_the_way_into_a_topic(written: Growing, kafka: KafkaServer, tmp_path: Path) -> None:
    """Killed at any call, the next run goes on behind what is known to be there, and sends nothing before that again.

    Each event is there at least once, in order, and those that are doubled are of one statement.
    """
    made = world(written, tmp_path, CUSTODY_KAFKA__BOOTSTRAP_SERVERS=kafka.bootstrap)

    def fresh() -> str:
        return kafka.create_topic(kafka.unused_name("replay"), 1)

    calls = made.calls(wanted(target="topic", topic=fresh()))
    assert (calls.count("kafka._send"), calls.count("kafka.read")) == (len(WANTED), 1)
    flushes = [at for at, call in enumerate(calls) if call in {"kafka._flush", "kafka.commit"}]
    for at in sorted({*range(calls.index("kafka.read"), len(calls), 4), *flushes}):
        topic = fresh()
        request = wanted(target="topic", topic=topic)
        assert made.run(request, Plan(at, "kill-before"))[0] == -signal.SIGKILL
        made.heal(request)
        found = [(key, value) for key, value, _, _ in records(kafka, topic, 1)]
        assert list(dict.fromkeys(value for _, value in found)) == LINES
        assert len(set(found)) == len(LINES)
        # A statement has five events.
        assert len(found) <= len(LINES) + 5


# --- archived classes


@pytest.mark.timeout(600)
def test_killed_on_the_way_from_deep_archive(
    written: Growing, moto: MotoServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before any call of what asks for restores, or at some others, the next run copies every event, once."""
    moto.use(monkeypatch)
    deep, out = Deep(moto, written), tmp_path / "out"
    request = wanted(target="folder", folder=str(out))

    def there(url: str) -> World:
        more = {**moto.environment(), "CUSTODY_S3__ENDPOINT_URL": moto.endpoint_url, "CUSTODY_ARCHIVE": url}
        return world(written, tmp_path, **more)

    calls = there(deep.url).calls(request)
    assert calls.count("store.restore") == 4
    assert_copied(out)
    first, last = calls.index("store.restore"), len(calls) - calls[::-1].index("store.restore")
    for at in sorted({*range(0, len(calls), 20), *range(first - 1, last + 1)}):
        shutil.rmtree(out, ignore_errors=True)
        made = there(Deep(moto, written).url)
        assert made.run(request, Plan(at, "kill-before"))[0] == -signal.SIGKILL
        made.heal(request)
        assert_copied(out)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("effect", [False, True], ids=["before", "after"])
def test_a_fault_on_the_way_from_deep_archive(
    written: Growing, moto: MotoServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, effect: bool
) -> None:
    """Requests to S3 fail, before or after their effect: that is mended, or said, and the next run heals."""
    moto.use(monkeypatch)
    out = tmp_path / "out"
    request = wanted(target="folder", folder=str(out))
    with FaultyProxy(moto.endpoint_url) as proxy:

        def settings() -> Settings:
            found = Deep(moto, written)
            options = S3Options(endpoint_url=proxy.endpoint_url)
            return Settings(archive=found.url, s3=options, keys=f"file:{written.keyring}")

        backfilled(settings(), request)
        calls = list(proxy.calls)
        assert_copied(out)
        assert any(call.startswith("POST") for call in calls)
        for at in range(0, len(calls), 8):
            shutil.rmtree(out, ignore_errors=True)
            given = settings()
            proxy.reset({at: Fault("reset", effect)})
            with contextlib.suppress(CustodyError):
                if not backfilled(given, request).problems:
                    assert_copied(out)
            proxy.reset()
            assert backfilled(given, request).problems == []
            assert_copied(out)
