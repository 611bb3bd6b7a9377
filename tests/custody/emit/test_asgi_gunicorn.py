"""The audit middleware in gunicorn's workers, with a real broker that dies and comes back."""

import collections
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from confluent_kafka import Consumer, TopicPartition

from tests.servers.kafka import KafkaServer
from tests.servers.ports import free_ports

ROOT = Path(__file__).resolve().parents[3]
TOPIC = "emitted"
SECRET = "a-key-that-must-be-nowhere-0815"
QUERY = {"query": f'mutation {{ login(user: "ada", password: "{SECRET}") }}'}
HEADERS = {"authorization": f"Bearer {SECRET}"}


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[KafkaServer]:
    """A broker of this test's own: it is killed."""
    with KafkaServer(tmp_path / "kafka") as server:
        server.create_topic(TOPIC)
        yield server


@pytest.fixture
def url(broker: KafkaServer, tmp_path: Path) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    """Gunicorn with two workers of uvicorn's, which are replaced after some requests."""
    (port,) = free_ports(1)
    settings = {
        "EMIT_TOPIC": TOPIC,
        "EMIT_BOOTSTRAP": broker.bootstrap,
        "EMIT_SPOOL": str(tmp_path / "spool"),
        "HOME": str(tmp_path),
    }
    command = ["-m", "gunicorn", "-k", "uvicorn.workers.UvicornWorker", "-w", "2", "--preload", "--max-requests", "25"]
    command += ["--no-control-socket"]
    with (tmp_path / "gunicorn.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, *command, "-b", f"127.0.0.1:{port}", "tests.helpers.emitting_app:app"],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), **settings},
            stderr=log,
        )
    try:
        yield f"http://127.0.0.1:{port}/graphql", process
    finally:
        process.kill()
        process.wait(10)


def ask(url: str, count: int) -> set[str]:
    """Send queries, and return the ids of the answers. A worker that is replaced may close a connection."""
    ids: set[str] = set()
    deadline = time.monotonic() + 60
    while len(ids) < count:
        assert time.monotonic() < deadline, f"{len(ids)} of {count} answers"
        try:
            answer = httpx.post(url, json=QUERY, headers=HEADERS, timeout=5)
        except httpx.TransportError:
            time.sleep(0.05)
            continue
        assert answer.status_code == 200
        ids.add(answer.headers["x-request-id"])
    return ids


def wait_for_spool(root: Path) -> bytes:
    """Wait until a query is in the spool, and return what is there."""
    deadline = time.monotonic() + 30
    while b"query_executed" not in (spooled := b"".join(path.read_bytes() for path in root.rglob("*.segment"))):
        assert time.monotonic() < deadline, "nothing was spooled"
        time.sleep(0.05)
    return spooled


def archived(broker: KafkaServer) -> list[dict[str, Any]]:
    """Return all events of the topic."""
    consumer = Consumer({"bootstrap.servers": broker.bootstrap, "group.id": "test", "enable.auto.commit": False})
    try:
        _, end = broker.watermarks(TOPIC)
        consumer.assign([TopicPartition(TOPIC, 0, 0)])
        events: list[dict[str, Any]] = []
        while len(events) < end:
            message = consumer.poll(20)
            assert message is not None
            assert message.error() is None, message.error()
            events.append(json.loads(message.value() or b""))
        return events
    finally:
        consumer.close()


def test_no_event_is_lost_while_the_broker_is_away(
    broker: KafkaServer, url: tuple[str, "subprocess.Popen[bytes]"], tmp_path: Path
) -> None:
    """Each request that was answered has its event, and each source its numbers without a hole.

    Neither spool, topic nor log has the key or the password of the requests.
    Longer than 5 seconds, because a real broker dies and comes back while workers are replaced.
    """
    address, gunicorn = url
    ids = ask(address, 20)
    broker.kill()
    ids |= ask(address, 40)
    spooled = wait_for_spool(tmp_path / "spool")
    broker.start()
    ids |= ask(address, 20)
    gunicorn.send_signal(signal.SIGTERM)
    assert gunicorn.wait(30) == 0

    events = archived(broker)
    log = (tmp_path / "gunicorn.log").read_text()
    assert SECRET not in log + json.dumps(events) + spooled.decode("latin-1")
    by_id = {event["event_id"]: event for event in events}
    queries = {e["request_id"] for e in by_id.values() if e["event_type"] == "query_executed"}
    assert ids <= queries
    numbers = collections.defaultdict(set)
    kinds = collections.defaultdict(set)
    for event in by_id.values():
        numbers[event["source"]].add(event["source_seq"])
        kinds[event["source"]].add(event["event_type"])
    assert len(numbers) >= 4, "no worker was replaced"
    for source, seen in numbers.items():
        assert seen == set(range(1, len(seen) + 1)), source
        assert {"emitter_started", "emitter_stopped"} <= kinds[source], source
