"""No false alarm: of drains at work, of drains that died, and of copies that were taken meanwhile."""

import random
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from custody.findings import Severity
from custody.keys.trust import open_trust
from custody.store.open import open_store
from custody.verify.report import Report
from custody.verify.run import verify
from tests.attacks.follower import follow
from tests.faults.child import Plan
from tests.faults.processes import start
from tests.faults.world import World, make_world
from tests.servers.kafka import KafkaServer

LOOKS = 100
SEED = 20261125
HARMLESS = {"orphan", "empty", "clock"}
_RUN_SECONDS = 280


@pytest.fixture
def world(kafka: KafkaServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """An archive in a folder, and a topic of two partitions."""
    monkeypatch.chdir(tmp_path)
    return make_world(kafka, tmp_path, more={"CUSTODY_DRAIN__FLUSH_SECONDS": "0.05"})


@contextmanager
def at_work(world: World) -> Iterator[None]:
    """Keep a drain following the topic, and records coming, while the block lasts."""
    done = threading.Event()

    def produce() -> None:
        while not done.wait(0.02):
            world.produce(5)

    process = start(world.folder, follow, world.environment, _RUN_SECONDS)
    producer = threading.Thread(target=produce)
    producer.start()
    try:
        wait_for_more(world)
        yield
        assert process.is_alive(), "the drain was at work all the time"
    finally:
        done.set()
        producer.join()
        process.terminate()
        process.join(30)
        process.kill()
        process.join()


def wait_for_more(world: World) -> None:
    """Return when the drain has written a statement more."""
    folder = world.folder / "archive" / "manifests"
    before, deadline = len(list(folder.glob("*/*/*.json"))), time.monotonic() + 30
    while len(list(folder.glob("*/*/*.json"))) == before:
        assert time.monotonic() < deadline, "the drain writes nothing"
        time.sleep(0.002)


def look(world: World, archive: Path, *, live: bool, state: Path | None = None) -> Report:
    store = open_store(str(archive))
    trust = open_trust([world.environment["CUSTODY_KEYS"]])
    return verify(store, trust, now=datetime.now(UTC), live=live, state=state, workers=0)


def assert_harmless(report: Report) -> None:
    assert {one.finding for one in report.findings} <= HARMLESS, [str(one) for one in report.findings]
    assert report.exit_code in {0, Severity.NOTICE}
    assert not any(report.beyond.values())


def size(report: Report) -> int:
    return sum(log.size for log in report.logs)


@pytest.mark.timeout(300)
def test_a_hundred_looks_at_a_live_drain(world: World, tmp_path: Path) -> None:
    """Verified a hundred times while a drain is writing, with its heads remembered: no alarm, and the archive grows."""
    archive, state = tmp_path / "archive", tmp_path / "state.json"
    sizes = []
    with at_work(world):
        for number in range(LOOKS):
            report = look(world, archive, live=bool(number % 4), state=state)
            assert_harmless(report)
            sizes.append(size(report))
            if number % 2:
                wait_for_more(world)
    assert sizes == sorted(sizes)
    assert len(set(sizes)) > LOOKS // 3, "it was written to between the looks"
    assert_harmless(look(world, archive, live=False, state=state))
    world.drain()
    world.judge()


@pytest.mark.timeout(200)
def test_copies_of_a_live_archive(world: World, tmp_path: Path) -> None:
    """A copy taken while a drain writes is good, if what says less of the rest is copied first; and so it remains."""
    archive = tmp_path / "archive"
    sizes = []
    with at_work(world):
        for number in range(10):
            copy = tmp_path / f"copy-{number}"
            for part in ("archive.json", "audits", "checkpoints", "manifests", "quarantine", "events"):
                wait_for_more(world)
                if (archive / part).is_dir():
                    shutil.copytree(archive / part, copy / part)
                elif (archive / part).exists():
                    copy.mkdir()
                    shutil.copy(archive / part, copy / part)
            for live in (False, True):
                report = look(world, copy, live=live)
                assert_harmless(report)
            sizes.append(size(report))
            shutil.rmtree(copy)
    assert len(set(sizes)) > 3


@pytest.mark.timeout(200)
def test_a_plain_copy_of_a_live_archive(world: World, tmp_path: Path) -> None:
    """Of a copy in any order verification says what is not in it, and nothing that is not so."""
    archive = tmp_path / "archive"
    with at_work(world):
        for number in range(10):
            wait_for_more(world)
            before = look(world, archive, live=True)
            copy = tmp_path / f"copy-{number}"
            shutil.copytree(archive, copy, ignore=shutil.ignore_patterns(".staging"))
            sizes = {log.log: log.size for log in before.logs}
            for one in look(world, copy, live=False).findings:
                if one.finding == "segment-missing":
                    assert one.key
                    assert not (copy / one.key).exists()
                    assert (archive / one.key).exists()
                elif one.finding == "sequence-gap":
                    assert one.sequence is not None
                    assert not (copy / f"manifests/{one.log}/{one.sequence:012}.json").exists()
                else:
                    assert one.finding in {*HARMLESS, "head-rollback"}, str(one)
                # What was there before the copy began is in it.
                assert one.sequence is None or one.sequence >= sizes.get(one.log or "", 0), str(one)
            shutil.rmtree(copy)


@pytest.mark.timeout(200)
def test_crashed_drains(world: World, tmp_path: Path) -> None:
    """What a drain leaves that is killed at any call gives notices at most, before the next one and after it."""
    archive, state = tmp_path / "archive", tmp_path / "state.json"
    world.produce(16)
    calls = world.drain(Plan())[1]["calls"]
    points = [at for at, call in enumerate(calls) if call == "store.create"]
    dice = random.Random(SEED)
    print(f"seed {SEED}")
    orphans = 0
    for at in dice.sample(points, min(8, len(points))):
        world.produce(16)
        code, _ = world.drain(Plan(at, dice.choice(["kill-before", "kill-after"])))
        assert code == -signal.SIGKILL
        for live in (False, True):
            report = look(world, archive, live=live, state=state)
            assert_harmless(report)
            orphans += sum(one.finding == "orphan" for one in report.findings)
    assert orphans, "some died between a segment and its manifest"
    assert world.drain()[0] == 0
    assert_harmless(look(world, archive, live=False, state=state))
    world.judge()
