"""Events straight into an archive: one log a process, each event once, and an archive that verifies."""

import json
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from custody.archive.reader import read_archive
from custody.archive.writer import Entry, LogWriter, create_archive
from custody.emit import sealing
from custody.emit import worker as worker_module
from custody.emit.archive import ArchiveWriter
from custody.emit.builders import own
from custody.emit.delivery import Delivery, Gather
from custody.emit.errors import AuditError
from custody.emit.identity import Source
from custody.emit.quiet import QuietLog
from custody.emit.sealing import NAME_BYTES, Sealer, log_name
from custody.emit.sink import Report, SteadySink
from custody.emit.spool import Spool
from custody.emit.writer import Options
from custody.errors import ConfigurationError, TransientStoreError
from custody.format.layout import check_topic
from custody.format.manifest import LogId
from custody.format.members import pack
from custody.keys.keyring import new_keyring, rotate_keyring
from custody.keys.trust import open_trust
from custody.settings import Settings
from custody.store import s3, s3_client
from custody.store.folder import FolderStore
from custody.store.open import open_store
from custody.store.protocol import S3Options, Store
from custody.verify.run import verify
from tests.helpers.reading import Log, read_archive_records, read_bucket
from tests.helpers.spooling import LIMIT, orphan, segment
from tests.servers.proxy import Fault, FaultyProxy
from tests.servers.s3 import SeaweedServer

SECONDS = 30.0
ROOT = Path(__file__).parents[3]


@dataclass
class Place:
    """An archive in a folder, its keys, and a spool."""

    folder: Path

    @property
    def settings(self) -> Settings:
        return Settings(archive=str(self.folder / "archive"), keys=self.keys)

    @property
    def keys(self) -> str:
        return f"file:{self.folder / 'keyring.json'}"

    @property
    def store(self) -> Store:
        return open_store(str(self.folder / "archive"))

    def options(self, **more: Any) -> Options:
        return Options(service="shop", instance="one", spool=self.folder / "spool", **more)

    def writer(self, seconds: float = 60.0, **more: Any) -> ArchiveWriter:
        return ArchiveWriter(self.settings, self.options(), seal_seconds=seconds, **more)

    def logs(self) -> dict[str, Log]:
        return read_archive_records(self.folder / "archive")

    def numbers(self) -> Counter[int]:
        """Return how often each event of the tests is there."""
        events = [json.loads(line) for log in self.logs().values() for _, line in log.events]
        return Counter(event["number"] for event in events if "number" in event)

    def check(self, *, live: bool = False) -> None:
        """Check that the verifier finds nothing."""
        report = verify(self.store, open_trust([self.keys]), now=datetime.now(UTC), workers=0, live=live)
        assert (report.exit_code, list(report.findings)) == (0, [])


def make(folder: Path, **options: Any) -> Place:
    ring = new_keyring(folder / "keyring.json", datetime.now(UTC))
    place = Place(folder)
    create_archive(place.store, ring.signers(datetime.now(UTC)).both, **options)
    return place


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.chdir(tmp_path)
    return make(tmp_path)


def wait(done: Callable[[], bool]) -> None:
    until = time.monotonic() + SECONDS
    while not done():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_process_has_a_log_that_names_it(place: Place) -> None:
    """The log is of the cluster `direct`, is named after the source, and counts from 0 without a hole."""
    with place.writer() as writer:
        for number in range(2_500):
            writer.write(own("order.paid", number=number))
        assert writer.flush(SECONDS) == 0, "who flushes does not wait for the minute"
        source = writer.source
    place.check()
    ((name, log),) = place.logs().items()
    assert name == f"{source.replace('/', '.')}/0"
    assert [offset for offset, _ in log.events] == list(range(2_502))
    assert [json.loads(line)["source_seq"] for _, line in log.events] == list(range(1, 2_503))
    manifest = min((place.folder / "archive" / "manifests").rglob("*.json"))
    statement = json.loads(manifest.read_text().split("\n")[0])
    assert statement["log"] == {"cluster": "direct", "topic": name[:-2], "topic_id": None, "partition": 0, "epoch": 1}


def test_events_gather(place: Place) -> None:
    """However they come, there is a statement for each time of gathering, and not for each event."""

    def statements() -> int:
        return len(list((place.folder / "archive" / "manifests").rglob("*.json")))

    begun, number = time.monotonic(), 0
    with place.writer(0.4) as writer:
        while (spent := time.monotonic() - begun) < 2 or statements() < 4:
            assert spent < SECONDS
            writer.write(own("order.paid", number=number))
            number += 1
            time.sleep(0.002)
        wait(lambda: writer.counters()["delivered"] > 0)
    # In two seconds one to begin, about five, and one at the end.
    assert statements() <= (time.monotonic() - begun) / 0.4 + 4
    assert place.numbers() == Counter(range(number))
    place.check()


def test_batches_are_dense(place: Place) -> None:
    """A process that emits has nothing to catch up with, so its batches take time for fewer bytes."""
    with place.writer() as writer:
        for number in range(100):
            writer.write(own("order.paid", number=number, note="the same words again and again"))
    (log,) = read_archive_records(place.folder / "archive").values()
    payload = b"".join(line + b"\n" for _, line in log.events)
    assert {batch["size"] for batch in log.batches if batch["events"] > 10} == {len(pack(payload, dense=True).data)}
    assert len(pack(payload).data) != len(pack(payload, dense=True).data)


def test_many_events_are_sealed_at_once(place: Place) -> None:
    """So many do not wait for the minute; fewer do."""
    with place.writer(seal_events=100) as writer:
        for number in range(99):
            writer.write(own("order.paid", number=number))
        wait(lambda: writer.counters()["delivered"] == 100)
        writer.write(own("order.paid", number=99))
        wait(lambda: writer.counters()["spool_events"] == 1)
    assert place.numbers() == Counter(range(100))


@pytest.mark.parametrize(
    ("at", "error"), [*((at, TransientStoreError) for at in range(6)), (2, RuntimeError), (3, RuntimeError)]
)
def test_a_put_whose_answer_is_lost_doubles_nothing(
    place: Place, at: int, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The put was carried out, and its answer did not come: what was archived is looked up, and not archived again."""
    create, calls = FolderStore.create, []

    def lossy(self: FolderStore, key: str, data: bytes) -> None:
        create(self, key, data)
        calls.append(key)
        if len(calls) == at + 1:
            raise error("the connection was cut")

    monkeypatch.setattr(FolderStore, "create", lossy)
    with place.writer() as writer:
        for number in range(10):
            writer.write(own("order.paid", number=number))
        assert writer.flush(SECONDS) == 0
        writer.write(own("order.paid", number=10))
        assert writer.flush(SECONDS) == 0
    assert len(calls) > at
    assert place.numbers() == Counter(range(11))
    assert len(place.logs()) == 1
    report = verify(place.store, open_trust([place.keys]), now=datetime.now(UTC), workers=0)
    # A segment that is put again has another time in its name.
    assert {finding.finding for finding in report.findings} <= {"orphan"}


def test_a_log_that_somebody_else_writes_is_given_up(place: Place) -> None:
    """With another writer in it, the log stays as it is, and the process goes on in a new one."""
    with place.writer() as writer:
        writer.write(own("order.paid", number=0))
        assert writer.flush(SECONDS) == 0
        topic = writer.source.replace("/", ".")
        settings, store = place.settings, place.store
        other = LogWriter(
            store,
            read_archive(store).id,
            LogId("direct", topic, None, 0, 1),
            signer=settings.signers(datetime.now(UTC)).hmac(),
            trust=settings.own_trust(),
            writer="another",
        )
        other.open()
        other.append(Entry(first_offset=other.next_offset or 0, next_offset=other.next_offset or 0))
        writer.write(own("order.paid", number=1))
        assert writer.flush(SECONDS) == 0
    logs = place.logs()
    assert len(logs) == 2
    assert place.numbers() == Counter([0, 1])
    report = verify(place.store, open_trust([place.keys]), now=datetime.now(UTC), workers=0)
    assert {finding.finding for finding in report.findings} <= {"orphan"}


def test_each_event_can_be_proven_alone(place: Place) -> None:
    """With leaves, a batch commits to each of its events, and the verifier recomputes that."""
    with place.writer(event_leaves=True) as writer:
        for number in range(1_500):
            writer.write(own("order.paid", number=number))
        assert writer.flush(SECONDS) == 0
    place.check()
    (log,) = place.logs().values()
    assert len(log.batches) >= 2
    assert all(batch["leaves"] for batch in log.batches)


def test_a_rotated_key_signs_on_for_nobody(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that runs for long opens its keys again, and signs with the newest."""
    monkeypatch.setattr(sealing, "RENEW_SECONDS", 0)
    with place.writer() as writer:
        for number in range(2):
            writer.write(own("order.paid", number=number))
            assert writer.flush(SECONDS) == 0
            rotate_keyring(place.folder / "keyring.json", overlap=timedelta(0))
    place.check()
    manifests = (place.folder / "archive" / "manifests").rglob("*.json")
    signers = {json.loads(path.read_bytes().splitlines()[1])["signatures"][0]["key"] for path in manifests}
    assert len(signers) == 3


def test_an_idle_log_has_heartbeats_and_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A log of a process that lives is never silent for twice the heartbeat, and each head gets its checkpoint."""
    monkeypatch.chdir(tmp_path)
    # A slow machine has nearly two seconds to write a heartbeat that is due.
    monkeypatch.setattr(worker_module, "_IDLE_SECONDS", 0.02)
    place = make(tmp_path, heartbeat=2, checkpoint=1)
    with place.writer() as writer:
        writer.write(own("order.paid", number=0))
        assert writer.flush(SECONDS) == 0
        statements = place.folder / "archive" / "manifests"
        wait(lambda: len(list(statements.rglob("*.json"))) >= 4)
        place.check(live=True)
        checkpoints = place.folder / "archive" / "checkpoints"
        wait(lambda: sum(path.is_file() for path in checkpoints.rglob("*")) >= 3)
    place.check(live=True)


def test_upkeep_that_fails_is_not_tried_at_once_again(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it raises: else a thread would do nothing but that."""
    sealer = Sealer(place.settings, "shop/one/1-1", QuietLog())
    sealer.upkeep_at = 0.0
    monkeypatch.setattr(sealer, "_open", Mock(side_effect=RuntimeError))
    with pytest.raises(RuntimeError):
        sealer.keep_up()
    assert sealer.upkeep_at > time.monotonic()


def test_without_an_archive_events_wait_in_the_spool(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    """They are said to wait, and why; once there is an archive the next process writes them."""
    (place.folder / "archive").rename(place.folder / "elsewhere")
    with place.writer() as writer:
        for number in range(10):
            writer.write(own("order.paid", number=number))
        assert writer.flush(1) == 11
        left = writer.close(0.2)
    assert (left.spooled, left.lost) == (12, 0)
    assert "events wait in the spool" in caplog.text
    assert "there is no archive" in caplog.text
    (place.folder / "elsewhere").rename(place.folder / "archive")
    with place.writer() as writer:
        writer.write(own("order.paid", number=10))
        wait(lambda: writer.counters()["delivered"] >= 12)
    assert place.numbers() == Counter(range(11))
    place.check()


def test_what_cannot_work_is_refused_at_once(place: Place) -> None:
    """No spool, no keyring, no archive's URL: the application learns it when it starts."""
    with pytest.raises(AuditError, match=r"set `Options\.spool`") as caught:
        ArchiveWriter(place.settings, Options(service="shop"))
    assert caught.value.kind == "Spool"
    with pytest.raises(ConfigurationError, match=r"other\.json"):
        ArchiveWriter(Settings(archive="archive", keys="file:other.json"), place.options())
    with pytest.raises(ConfigurationError, match="cannot be kept"):
        ArchiveWriter(Settings(archive="ftp://host/archive", keys=place.keys), place.options())
    assert not (place.folder / "spool").exists()


def test_a_process_that_ends_without_close_archives_its_events(place: Place) -> None:
    """The interpreter's exit seals what is there, and the archive is complete."""
    script = f"""
from pathlib import Path
from custody.emit.archive import ArchiveWriter
from custody.emit.builders import own
from custody.emit.writer import Options
from custody.settings import Settings
options = Options(service="shop", spool=Path("spool"))
writer = ArchiveWriter(Settings(archive="archive", keys={place.keys!r}), options)
for number in range(50):
    writer.write(own("order.paid", number=number))
"""
    run = subprocess.run(
        [sys.executable, "-c", script],
        cwd=place.folder,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert run.stderr == ""
    assert place.numbers() == Counter(range(50))
    place.check()


def test_a_store_that_is_away_costs_nothing(
    seaweed: SeaweedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """While a bucket answers with errors, whatever it did, events wait; then they are archived, in the same process."""
    monkeypatch.chdir(tmp_path)
    seaweed.use(monkeypatch)
    monkeypatch.setattr(s3_client, "_READ_SECONDS", 1)
    monkeypatch.setattr(s3, "_BACKOFF_SECONDS", (0.01, 0.05))
    ring, bucket = new_keyring(tmp_path / "keyring.json", datetime.now(UTC)), seaweed.make_bucket()
    with FaultyProxy(seaweed.endpoint_url) as proxy:
        options = S3Options(endpoint_url=proxy.endpoint_url)
        where, keys = f"s3://{bucket}/audit", f"file:{tmp_path / 'keyring.json'}"
        create_archive(open_store(where, options), ring.signers(datetime.now(UTC)).both)
        settings = Settings(archive=where, keys=keys, s3=options)
        with ArchiveWriter(settings, Options(service="shop", spool=tmp_path / "spool")) as writer:
            faults = [Fault("503", effect=True), Fault("reset", effect=False)]
            for number, fault in enumerate(faults):
                proxy.reset(always=fault)
                writer.write(own("order.paid", number=number))
                assert writer.flush(1) > 0
                proxy.reset()
                assert writer.flush(SECONDS) == 0
        report = verify(open_store(where, options), open_trust([keys]), now=datetime.now(UTC), workers=0)
    client = seaweed.client()
    logs = read_archive_records(read_bucket(client, bucket, "audit/"))
    client.close()
    events = [json.loads(line) for log in logs.values() for _, line in log.events]
    assert Counter(event["number"] for event in events if "number" in event) == Counter(range(len(faults)))
    assert {finding.finding for finding in report.findings} <= {"orphan"}
    assert "events wait in the spool" in caplog.text
    assert seaweed.environment()["AWS_SECRET_ACCESS_KEY"] not in caplog.text


def names() -> st.SearchStrategy[str]:
    return st.from_regex(re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,99}", re.ASCII), fullmatch=True)


@given(service=names(), instance=names())
def test_each_source_has_a_name_that_a_log_may_have(service: str, instance: str) -> None:
    """Whatever a service is called, its logs have names that FORMAT.md allows, and two sources have two."""
    first, second = str(Source(service, instance)), str(Source(service, instance))
    for name in (log_name(first), log_name(second)):
        check_topic(name)
        assert len(name) <= NAME_BYTES
        assert name.endswith(first.rpartition("/")[2].partition("-")[0] + "-" + name.rpartition("-")[2])
    assert log_name(first) != log_name(second)


class Taker:
    """A sink that delivers at once what it is given, and keeps it in the pieces in which it came."""

    def __init__(self) -> None:
        self.pieces: list[list[bytes]] = []

    def send(self, lines: Sequence[bytes], report: Report) -> int:
        self.pieces.append(list(lines))
        for line in lines:
            report(line, "delivered")
        return len(lines)

    def poll(self, seconds: float) -> None:
        time.sleep(min(seconds, 0.001))

    def close(self, seconds: float) -> None:
        pass


def gathering(sink: Taker, folder: Path, seconds: float) -> Delivery:
    quiet = QuietLog()
    return Delivery(SteadySink(lambda: sink, quiet), lambda: Spool(folder, LIMIT), quiet, gather=Gather(seconds, 1000))


def test_what_dead_processes_left_does_not_gather(tmp_path: Path) -> None:
    """Lines of others waited long enough. They are sent at once, and before this process's own."""
    orphan(tmp_path, segment([b"{}", b"[]"]))
    sink = Taker()
    delivery = gathering(sink, tmp_path, 60)
    delivery.deliver([b'{"own":1}'])
    for _ in range(100):
        delivery.step(0.001)
    assert sink.pieces == [[b"{}", b"[]"]]
    assert delivery.unsettled == 1
    delivery.urgent = True
    delivery.step(0)
    assert sink.pieces[1:] == [[b'{"own":1}']]
    assert not delivery.urgent, "it ends with what was to be sent"
    assert delivery.close(1) == 0


def test_only_what_has_gathered_is_sent(tmp_path: Path) -> None:
    """What comes while others are sent waits for the next time, so no statement is followed by a small one."""
    sink = Taker()
    delivery = gathering(sink, tmp_path, 0.2)
    begun, number = time.monotonic(), 0
    while (spent := time.monotonic() - begun) < 1.1 or len(sink.pieces) < 3:
        assert spent < SECONDS
        delivery.deliver([b'{"number":%d}' % number])
        delivery.step(0.001)
        number += 1
    assert len(sink.pieces) <= (time.monotonic() - begun) / 0.2 + 1
    delivery.close(1)
    assert [line for piece in sink.pieces for line in piece] == [b'{"number":%d}' % each for each in range(number)]
