"""No credential leaves the process: planted in every field of every type, it is nowhere behind the builders.

One way from an application to the last page: a spool while the broker is away, then Kafka, the archive, Elasticsearch,
the report, what Prefect's pages show, what commands print, log lines and errors. Each of them must have the events, so
that what is missing is the secret alone.
"""

import base64
import gzip
import json
import logging
import pickle
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, TopicPartition

from custody.emit.builders import own
from custody.emit.entries import Entries
from custody.emit.errors import AuditError
from custody.emit.kafka import KafkaWriter
from custody.emit.writer import Options
from custody.format.times import format_time
from flows import drain as flow
from flows.summaries import audit_details, audit_summary, findings_markdown
from tasks.audit.report import make_report
from tasks.drain.run import drain_and_index
from tasks.settings import Settings
from tests.helpers.audit import audit
from tests.helpers.commands import Command
from tests.helpers.corpus import EVENTS
from tests.helpers.search import documents
from tests.servers.elasticsearch import ElasticsearchServer
from tests.servers.kafka import KafkaServer

SECRET = "hunter2planted"
HIDDEN = (SECRET, base64.b64encode(f"ada:{SECRET}".encode()).decode())
"""How the secret would look like in a place that has it."""
KEPT = "kept-number"
"""The beginning of a harmless text in each event: a place where it is missing has not been looked at."""

TEXTS = (
    f"login failed: password={SECRET}",
    f"https://ada:{SECRET}@db.example/x?y=1",
    f"GET /x?api_key={SECRET}&b=1",
    f"Host: x\r\nAuthorization: Bearer {SECRET}\r\nCookie: sid={SECRET}",
    f"Basic {HIDDEN[1]}",
    json.dumps({"user": "ada", "token": SECRET}),
    f"key sk_live_{SECRET}0123456789 was used",
)
VALUES: tuple[Any, ...] = (
    {"password": SECRET},
    {"headers": [["Authorization", SECRET], ["Accept", "*/*"]], "deep": [{"a": {"clientSecret": SECRET}}]},
    {"setting": "smtp_pass", "old": SECRET, "new": SECRET},
    ["--token", SECRET],
    [("x-api-key", SECRET.encode())],
    {f"sk_live_{SECRET}0123456789": 1},
)
SHOWN = {"password": SECRET, "api_key": SECRET.encode(), "x-auth-token": SECRET}
"""Fields of an application's own whose names say what they are."""


def planted() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield a type, and fields of which one has the secret, for each field of each type and each form of a secret."""
    now = now_text()
    shapes = {**EVENTS, "mine": {"request_id": "r", "amount": 1}}
    for kind, shape in shapes.items():
        fields = {name: value for name, value in shape.items() if name not in {"event_type", "event_id"}}
        for name in (*fields, "timestamp", "event_id", "of_my_own"):
            for form in (*TEXTS, *VALUES):
                yield kind, {**fields, "timestamp": now, name: form}
        for name, value in SHOWN.items():
            yield kind, {**fields, "timestamp": now, name: value}
    for form in TEXTS:
        yield form, {"timestamp": now}


def now_text() -> str:
    return format_time(datetime.now(UTC))


def entries() -> Iterator[dict[str, Any]]:
    """Yield what another server posts, with the secret in each field that has a text."""
    entry = {
        "timestamp": now_text(),
        "operation": "query",
        "query": f'{{ login(name: "ada", password: "{SECRET}") {{ id }} }}',
        "variables": {"name": SECRET},
        "error": f"no user {SECRET}",
        "level": "ERROR",
        "user_id": 1,
        "tenant_id": 2,
        "ip_address": "192.0.2.1",
        "user_agent": "x",
        "id": 7,
    }
    for name in entry:
        for form in TEXTS if name != "variables" else ():
            yield {**entry, "id": f"{KEPT}-{name}", name: form}


def check(place: str, content: str | bytes) -> None:
    """Check that a place does not have the secret."""
    text = content.decode("utf-8", "replace") if isinstance(content, bytes) else content
    for secret in HIDDEN:
        at = text.find(secret)
        assert at < 0, f"{place}: {text[max(0, at - 60) : at + 40]}"


def write_all(write: Callable[[Any], None]) -> int:
    """Write all planted events, check the errors of those that are refused, and return how many were taken."""
    taken = 0
    mapped = Entries()
    makers: list[Callable[[], Any]] = [
        lambda kind=kind, fields=fields, at=at: own(kind, kept=f"{KEPT}-{at}", **fields)  # type: ignore[misc]
        for at, (kind, fields) in enumerate(planted())
    ]
    makers += [lambda entry=entry: mapped.event(entry) for entry in entries()]  # type: ignore[misc]
    for make in makers:
        try:
            event = make()
            check("the event's repr", repr(event))
            write(event)
            taken += 1
        except AuditError as error:
            # Its own frames have the event: a traceback of an error tracker shows them, and is the application's.
            check("an error", "".join(traceback.format_exception(error)) + repr(error) + str(pickle.dumps(error)))
    return taken


def read_topic(kafka: KafkaServer, topic: str, count: int) -> list[Any]:
    """Wait for so many records of a topic, and return all of them."""
    consumer = Consumer({"bootstrap.servers": kafka.bootstrap, "group.id": topic, "enable.auto.commit": False})
    consumer.assign([TopicPartition(topic, 0, 0)])
    records: list[Any] = []
    deadline = time.monotonic() + 60
    try:
        while len(records) < count:
            assert time.monotonic() < deadline, f"{len(records)} of {count} records"
            for message in consumer.consume(count, 0.5):
                assert message.error() is None
                records.append(message)
    finally:
        consumer.close()
    return records


@pytest.mark.timeout(120)
def test_a_secret_in_any_field_is_nowhere(
    kafka: KafkaServer,
    elastic: ElasticsearchServer,
    custody: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Planted in every field, nested, in URLs and free text, it is on no wire, on no disk, and on no page."""
    caplog.set_level(logging.DEBUG)
    topic, prefix = kafka.create_topic(kafka.unused_name("audit.plaintext")), elastic.unused_prefix()
    spool = tmp_path / "spool"
    options = Options(service="shop", spool=spool, close_seconds=0.5)

    away = KafkaWriter(topic, {"bootstrap.servers": "127.0.0.1:9"}, options)
    taken = write_all(away.write)
    assert taken > 400
    assert away.close().lost == 0
    spooled = [path.read_bytes() for path in spool.rglob("*") if path.is_file()]
    assert sum(content.count(KEPT.encode()) for content in spooled) >= taken - len(TEXTS)
    for content in spooled:
        check("the spool", content)

    with KafkaWriter(topic, {"bootstrap.servers": kafka.bootstrap}, options) as writer:
        writer.write(own("after", password=SECRET))
        sent = read_topic(kafka, topic, taken + 4)
        check("counters", repr(writer.counters()))
    for message in sent:
        check("Kafka", repr((message.key(), message.value(), message.headers())))

    for name, value in {
        "KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap,
        "KAFKA__TOPICS": topic,
        "KAFKA__GROUP": topic,
        "SEARCH__URL": elastic.url,
        "SEARCH__PREFIX": prefix,
        "SEARCH__REPLICAS": "0",
    }.items():
        monkeypatch.setenv(f"CUSTODY_{name}", value)
    assert custody("init").code == 0
    given = Settings()
    results, indexed = drain_and_index(given, once=True, seconds=None)
    (result,), (index,) = results, indexed
    assert (result.quarantined, result.events) == (0, taken + 5)
    check(
        "the drain", repr(results) + repr(indexed) + json.dumps([flow._row(result, index), asdict(result)], default=str)
    )
    archived = b""
    for path in Path(tmp_path / "custody-data" / "archive").rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            content = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
            check(str(path), content)
            archived += content
    assert archived.count(KEPT.encode()) >= taken - len(TEXTS)

    indexed_too = json.dumps(documents(given))
    assert indexed_too.count(KEPT) >= taken - len(TEXTS)
    check("Elasticsearch", indexed_too)

    outcome = audit(given)
    check("Prefect's pages", audit_summary(outcome) + audit_details(outcome) + findings_markdown(outcome))
    report = make_report(given, outcome.sequence)
    assert topic.encode() in report
    check("the report", report)
    for arguments in (("verify",), ("status",), ("query", "SELECT * FROM events"), ("show", f"{topic}/0")):
        printed = custody(*arguments)
        assert printed.out
        check(f"custody {arguments[0]}", printed.out + printed.err)
    check("the log", caplog.text + "".join(repr(record.__dict__) for record in caplog.records))
