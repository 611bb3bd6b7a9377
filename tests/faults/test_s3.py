"""Faults of the archive's S3 server, and deaths of the server and of the drain: nothing is lost or doubled."""

import random
import signal
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from custody.errors import StoreError
from custody.store import s3, s3_client
from custody.store.protocol import S3Options
from tasks.drain import appends, loop, resume
from tasks.drain.run import drain_logs
from tests.faults.child import Plan
from tests.faults.sweep import swept
from tests.faults.world import World, make_world
from tests.helpers.reading import read_bucket
from tests.servers.kafka import KafkaServer
from tests.servers.proxy import FAULTS, Fault, FaultyProxy, Kind
from tests.servers.s3 import SeaweedServer

SEED = 20261124


def s3_world(
    kafka: KafkaServer,
    seaweed: SeaweedServer,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    endpoint_url: str,
    partitions: int = 2,
) -> World:
    """Return a world whose archive is in a bucket of its own, reached by an endpoint."""
    folder.mkdir(exist_ok=True)
    monkeypatch.chdir(folder)
    seaweed.use(monkeypatch)
    bucket = seaweed.make_bucket()

    def fetch() -> Mapping[str, bytes]:
        client = seaweed.client()
        try:
            return read_bucket(client, bucket, "audit/")
        finally:
            client.close()

    return make_world(
        kafka,
        folder,
        archive=f"s3://{bucket}/audit",
        s3=S3Options(endpoint_url=endpoint_url),
        fetch=fetch,
        more={**seaweed.environment(), "CUSTODY_S3__ENDPOINT_URL": endpoint_url},
        partitions=partitions,
    )


@pytest.fixture
def proxied(
    kafka: KafkaServer, seaweed: SeaweedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[World, FaultyProxy]]:
    """A world whose archive is behind a proxy that can break any call."""
    monkeypatch.setattr(resume, "OPENERS", 1)
    monkeypatch.setattr(appends, "UPLOADERS", 1)
    monkeypatch.setattr(loop, "READ_RECORDS", 8)
    # What a call without an answer costs, and how long is waited between tries: real ones would take an hour.
    monkeypatch.setattr(s3_client, "_READ_SECONDS", 1)
    monkeypatch.setattr(s3, "_BACKOFF_SECONDS", (0.01, 0.05))
    with FaultyProxy(seaweed.endpoint_url) as proxy:
        yield s3_world(kafka, seaweed, tmp_path, monkeypatch, proxy.endpoint_url, partitions=1), proxy


ALTERNATE = {"500": 0, "503": 1, "409": 0, "412": 1, "reset": 0, "timeout": 1}
"""Faults that a client takes alike share the calls: each fails by a server's error, a conflict and a lost answer."""


@pytest.mark.timeout(400)
@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_every_call_fails_in_turn(proxied: tuple[World, FaultyProxy], fault: Fault) -> None:
    """Whichever call of a drain fails once, and however: the drain or the next one archives everything, once."""
    world, proxy = proxied
    world.produce(9)
    assert {result.outcome for result in drain_logs(world.settings(), once=True)} == {"drained"}
    world.produce(9)
    proxy.reset()
    drain_logs(world.settings(), once=True)
    calls = list(proxy.calls)
    assert sum(call.startswith("PUT") for call in calls) >= 5
    for at in swept(range(len(calls))):
        call = calls[at]
        if fault.effect and not call.startswith("PUT"):
            continue  # a read has no effect: after is the same as before
        if at % 2 == ALTERNATE.get(fault.kind):
            continue
        world.produce(9)
        proxy.reset({at: fault})
        try:
            results = drain_logs(world.settings(), once=True)
        except StoreError:
            results = []
        assert all(result.outcome == "drained" or result.problem for result in results)
        proxy.reset()
        healed = drain_logs(world.settings(), once=True)
        assert {result.outcome for result in healed} == {"drained"}, (at, call, healed)
    world.judge()


@pytest.mark.timeout(200)
@pytest.mark.parametrize("kind", ["500", "503", "reset"])
def test_the_store_is_down_for_a_whole_run(proxied: tuple[World, FaultyProxy], kind: Kind) -> None:
    """While the archive cannot be written nothing moves on; the next run archives everything."""
    world, proxy = proxied
    world.produce(9)
    drain_logs(world.settings(), once=True)
    before = world.fetch()
    world.produce(9)
    proxy.reset(always=Fault(kind, effect=False))
    with pytest.raises(StoreError):
        drain_logs(world.settings(), once=True)
    proxy.reset()
    assert world.fetch() == before
    assert {result.outcome for result in drain_logs(world.settings(), once=True)} == {"drained"}
    world.judge()


@pytest.mark.timeout(300)
def test_server_killed_in_the_middle(kafka: KafkaServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real S3 server that dies with -9 in the middle of a drain, and comes back on its disk, has lost nothing."""
    dice = random.Random(SEED)
    with SeaweedServer(tmp_path / "seaweed") as seaweed:
        world = s3_world(kafka, seaweed, tmp_path / "world", monkeypatch, seaweed.endpoint_url)
        for _ in range(3):
            world.produce(400)
            started = world.start()
            pause = dice.uniform(0.1, 0.8)
            print(f"the server is killed after {pause:.2f} s")
            time.sleep(pause)
            seaweed.kill()
            time.sleep(0.2)
            seaweed.start()
            world.finish(started)
            code, report = world.drain()
            assert code == 0, report
            assert {result["outcome"] for result in report["results"]} == {"drained"}
            world.judge()


@pytest.mark.timeout(300)
def test_drain_killed_in_the_middle(
    kafka: KafkaServer, seaweed: SeaweedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A drain into a real S3 server that dies with -9 at any call, and is started again, loses and doubles nothing."""
    world = s3_world(kafka, seaweed, tmp_path / "world", monkeypatch, seaweed.endpoint_url)
    world.produce(16)
    assert world.drain()[0] == 0
    world.produce(16)
    number = len(world.drain(Plan())[1]["calls"])
    points = sorted(random.Random(SEED).sample(range(number), 8))
    print(f"killed at calls {points} of {number}")
    died = 0
    for at in points:
        world.produce(16)
        died += world.drain(Plan(at, "kill-before"))[0] == -signal.SIGKILL
        assert world.drain()[0] == 0
        world.judge()
    assert died >= len(points) - 2
