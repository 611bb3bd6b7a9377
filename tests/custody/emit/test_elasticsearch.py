"""Events in a real Elasticsearch: each once, whatever goes wrong on the way, and no credential in a message."""

import json
import logging
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from elasticsearch import Elasticsearch

from custody.emit.builders import AuditEvent, own
from custody.emit.elasticsearch import HELD_LINES, REQUEST_LINES, ElasticsearchSink, ElasticsearchWriter
from custody.emit.errors import AuditError
from custody.emit.quiet import QuietLog
from custody.emit.writer import Options
from tests.servers.elasticsearch import ElasticsearchServer
from tests.servers.proxy import Fault, FaultyProxy

PASSWORD = "hunter2-of-elastic"
SECONDS = 30.0


def ask(elastic: ElasticsearchServer, method: str, path: str, body: object = None) -> dict[str, Any]:
    with Elasticsearch(elastic.url) as client:
        headers = {"content-type": "application/json", "accept": "application/json"}
        answer: dict[str, Any] = client.perform_request(method, f"/{path}", headers=headers, body=body).body
    return answer


def documents(elastic: ElasticsearchServer, index: str) -> dict[str, dict[str, Any]]:
    """Return all documents of an index by their ids."""
    ask(elastic, "POST", f"{index}/_refresh")
    hits = ask(elastic, "GET", f"{index}/_search?size=10000")["hits"]["hits"]
    return {hit["_id"]: hit["_source"] for hit in hits}


def line(number: int, **fields: object) -> bytes:
    return json.dumps({"event_id": f"id-{number}", "event_type": "order.paid", "number": number, **fields}).encode()


@pytest.fixture
def index(elastic: ElasticsearchServer) -> str:
    """The name of an index of this test."""
    return f"{elastic.unused_prefix()}-events"


@pytest.fixture(scope="module")
def proxy(elastic: ElasticsearchServer) -> Iterator[FaultyProxy]:
    """A proxy before Elasticsearch that breaks what it is told to."""
    with FaultyProxy(elastic.url) as between:
        yield between


@pytest.fixture
def sink(proxy: FaultyProxy, index: str) -> Iterator["Used"]:
    """A sink behind the proxy."""
    proxy.reset()
    used = Used(ElasticsearchSink(index, {"hosts": proxy.endpoint_url}, QuietLog()))
    yield used
    used.sink.close(5)


class Used:
    """A sink, and what it reported of each line."""

    def __init__(self, sink: ElasticsearchSink) -> None:
        self.sink = sink
        self.outcomes: dict[bytes, list[str]] = {}

    def send(self, *lines: bytes) -> Mapping[bytes, str]:
        """Send lines, and return the outcome of each when all are known."""
        self.outcomes.clear()
        assert self.sink.send(lines, self.report) == len(lines)
        until = time.monotonic() + SECONDS
        while len(self.outcomes) < len(set(lines)) and time.monotonic() < until:
            self.sink.poll(0.1)
        assert all(len(outcomes) == 1 for outcomes in self.outcomes.values()), "each is reported once"
        return {sent: self.outcomes[sent][0] for sent in lines}

    def report(self, sent: bytes, outcome: str) -> None:
        self.outcomes.setdefault(sent, []).append(outcome)


def own_event(number: int) -> AuditEvent:
    return own("order.paid", number=number)


def test_events_arrive_as_they_are_and_once(elastic: ElasticsearchServer, index: str, tmp_path: Path) -> None:
    """Each document is the event with its number, under its `event_id`; a repeat changes nothing."""
    options = Options(service="shop", spool=tmp_path / "spool")
    events = [own_event(number) for number in range(2 * REQUEST_LINES + 1)]
    with ElasticsearchWriter(index, {"hosts": elastic.url}, options) as writer:
        for event in [*events, *events[:10]]:
            writer.write(event)
        assert writer.flush(SECONDS) == 0
        counters = writer.counters()
    assert (counters["delivered"], counters["refused"], counters["lost"]) == (len(events) + 11, 0, 0)
    stored = documents(elastic, index)
    # A search has no order of its own.
    marks = sorted((source["source_seq"], source["event_type"]) for source in stored.values())
    assert (marks[0], marks[-1]) == ((1, "emitter_started"), (len(events) + 12, "emitter_stopped"))
    for event in events:
        assert stored[event.fields["event_id"]].items() >= event.fields.items()
    assert Counter(source["source_seq"] for source in stored.values()) == Counter(
        {*range(1, len(events) + 13)} - {*range(len(events) + 2, len(events) + 12)}
    )
    assert not any("@custody" in source for source in stored.values())


def test_a_document_that_does_not_fit_is_refused_alone(elastic: ElasticsearchServer, index: str, sink: "Used") -> None:
    """What the mapping does not take is refused; the others of its request are delivered."""
    kinds = {"event_id": "keyword", "event_type": "keyword", "number": "integer"}
    fields = {name: {"type": kind} for name, kind in kinds.items()}
    ask(elastic, "PUT", index, {"mappings": {"dynamic": "strict", "properties": fields}})
    odd, wrong = line(2, colour="red"), json.dumps({"event_id": "id-3", "number": "many"}).encode()
    assert sink.send(line(1), odd, wrong, line(4)) == {
        line(1): "delivered",
        odd: "refused",
        wrong: "refused",
        line(4): "delivered",
    }
    assert set(documents(elastic, index)) == {"id-1", "id-4"}


def test_a_broken_index_refuses_nothing(elastic: ElasticsearchServer, index: str, sink: "Used") -> None:
    """An error of the index comes with the status of a bad document. Nothing is given up for it."""
    for name in ("a", "b"):
        ask(elastic, "PUT", f"{index}-{name}")
    ask(elastic, "POST", "_aliases", {"actions": [{"add": {"indices": [f"{index}-a", f"{index}-b"], "alias": index}}]})
    assert set(sink.send(line(1), line(2)).values()) == {"failed"}, "the alias has no write index"
    write = {"add": {"index": f"{index}-a", "alias": index, "is_write_index": True}}
    ask(elastic, "POST", "_aliases", {"actions": [write]})
    assert set(sink.send(line(1), line(2)).values()) == {"delivered"}
    ask(elastic, "POST", f"{index}-a/_close")
    assert set(sink.send(line(3)).values()) == {"failed"}, "it took others before, and does not now"
    ask(elastic, "POST", f"{index}-a/_open?wait_for_active_shards=1")
    assert set(sink.send(line(3)).values()) == {"delivered"}


def test_a_doubtful_document_is_refused_where_the_index_takes_others(
    elastic: ElasticsearchServer, index: str, sink: "Used"
) -> None:
    """An error that may be of the index or of the document is tried beside a document that the index has."""
    ask(elastic, "PUT", index, {"mappings": {"properties": {"word": {"type": "text", "analyzer": "keyword"}}}})
    immense = line(2, word="x" * 40_000)
    assert sink.send(immense) == {immense: "failed"}, "the index has taken nothing yet"
    assert sink.send(line(1)) == {line(1): "delivered"}
    assert sink.send(immense) == {immense: "refused"}
    assert set(documents(elastic, index)) == {"id-1"}


@pytest.mark.parametrize("effect", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("kind", ["reset", "garbage", "cut", "403", "429", "500", "503"])
def test_a_broken_request_fails_and_its_repeat_is_the_same_document(
    elastic: ElasticsearchServer, index: str, proxy: FaultyProxy, sink: "Used", kind: Any, effect: bool
) -> None:
    """Whatever happens to a request, whether it was carried out or not: failed, and sent again, it is there once."""
    proxy.reset({0: Fault(kind, effect=effect)})
    assert set(sink.send(line(1), line(2)).values()) == {"failed"}
    assert set(sink.send(line(1), line(2)).values()) == {"delivered"}
    assert set(documents(elastic, index)) == {"id-1", "id-2"}


def test_a_request_that_is_too_large_is_sent_in_halves(
    elastic: ElasticsearchServer, index: str, proxy: FaultyProxy, sink: "Used"
) -> None:
    """Halves are tried until a single document is too large: that one is refused."""
    # The whole, its left half, and that one's left half.
    proxy.reset({number: Fault("413", effect=False) for number in range(3)})
    outcomes = sink.send(*map(line, range(4)))
    assert list(outcomes.values()) == ["refused", "delivered", "delivered", "delivered"]
    assert set(documents(elastic, index)) == {"id-1", "id-2", "id-3"}


def test_what_is_on_its_way_is_bounded_and_reported_at_the_end(proxy: FaultyProxy, index: str) -> None:
    """A server that never answers holds so many documents, and `close` gives all of them back in its time."""
    proxy.reset(always=Fault("timeout", effect=False))
    used = Used(ElasticsearchSink(index, {"hosts": proxy.endpoint_url, "request_timeout": 20}, QuietLog()))
    lines = list(map(line, range(HELD_LINES + 100)))
    assert used.sink.send(lines, used.report) == HELD_LINES
    begun = time.monotonic()
    used.sink.close(0.2)
    assert time.monotonic() - begun < 10
    assert [used.outcomes[sent] for sent in lines[:HELD_LINES]] == [["failed"]] * HELD_LINES
    proxy.reset()


def test_a_server_that_is_away_fills_the_spool_and_the_next_process_sends_it(
    elastic: ElasticsearchServer, index: str, tmp_path: Path
) -> None:
    """Nothing is lost while nobody listens; what waits on disk is sent by the next writer."""
    options = Options(service="shop", spool=tmp_path / "spool", close_seconds=1)
    with FaultyProxy(elastic.url) as gone:
        nowhere = gone.endpoint_url
    events = [own_event(number) for number in range(500)]
    writer = ElasticsearchWriter(index, {"hosts": nowhere}, options)
    for event in events:
        writer.write(event)
    left = writer.close(1)
    assert (left.spooled, left.lost) == (len(events) + 2, 0)
    with ElasticsearchWriter(index, {"hosts": elastic.url}, options) as following:
        following.write(own_event(500))
        until = time.monotonic() + SECONDS
        while following.counters()["replayed"] < len(events) + 2 and time.monotonic() < until:
            time.sleep(0.02)
    assert len(documents(elastic, index)) == len(events) + 2 + 3


def test_no_credential_is_in_any_message(
    proxy: FaultyProxy, index: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither a wrong argument nor a refused request shows what the client was given; nor does an event's value."""
    options = Options(service="shop", spool=tmp_path / "spool")
    with pytest.raises(AuditError) as refused:
        ElasticsearchWriter(index, {"hosts": f"no-scheme:{PASSWORD}", "basic_auth": ("elastic", PASSWORD)}, options)
    assert (refused.value.kind, PASSWORD in repr(refused.value)) == ("Elasticsearch", False)
    assert not (tmp_path / "spool").exists()
    proxy.reset(always=Fault("403", effect=False))
    url = proxy.endpoint_url.replace("http://", f"http://elastic:{PASSWORD}@")
    with caplog.at_level(logging.DEBUG), ElasticsearchWriter(index, {"hosts": url}, options) as writer:
        writer.write(own("order.paid", note="a private note"))
        until = time.monotonic() + SECONDS
        while "status 403" not in caplog.text and time.monotonic() < until:
            time.sleep(0.02)
        assert writer.flush(0.5) == 2
        assert PASSWORD not in repr(writer)
        writer.close(0.5)
    proxy.reset()
    assert "status 403" in caplog.text
    assert PASSWORD not in caplog.text
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("custody")]
    assert ours
    assert not any("a private note" in message for message in ours)
