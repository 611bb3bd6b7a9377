"""Emitted events in a real Elasticsearch: found by their source and number, and compared like any other."""

import json
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from typing import Any

from hypothesis import given as examples
from hypothesis import strategies as st

from tasks.search.client import Search
from tasks.search.documents import OWN, index_name, properties
from tasks.search.emitted import opened_line, without_tail
from tasks.search.index import index_logs
from tasks.search.indices import differing_indices, prepare
from tasks.settings import Settings
from tests.helpers.corpus import EVENTS
from tests.helpers.emitted import SOURCE, emitted
from tests.helpers.sample import Growing
from tests.helpers.search import LOG, compare, document_id, documents, now_event

KINDS = ["emitter_started", *EVENTS, "order.placed", "emitter_stopped"]
LIKE_ONE: list[bytes] = [
    b',"source":"web"',
    b',"source":"web","source_seq":5,"last":1',
    b',"source_seq":5,"source":"web"',
    b',"source":"web","source_seq":-5',
    b',"source":"web","source_seq":5.5',
    b',"source":"web","source_seq":"5"',
    b',"source":"web","source_seq":null',
    b',"source":"web","source_seq":{"a":1}',
    b',"source":"web", "source_seq":5',
    b',"source":{"ip":"198.51.100.1"},"source_seq":5',
    b',"source":null,"source_seq":[5]',
    b',"source.ip":5,"source":"web","source_seq":5',
    b',"event_id":{"a":1},"source":"web","source_seq":6',
    b',"\\u0073ource":7,"details2":",\\"source\\":\\"x\\",\\"source_seq\\":7"',
    b',"source_seq":true',
    b',"source_seq":99999999999999999999',
    b',"source":"web","source_seq":9999999999999999999',
    b',"nested":{"a":1,"source":"web","source_seq":5}',
    b',"text":"\\\\","source":"a\\"b\\\\","source_seq":8',
    b',"source":"' + b"x" * 9000 + b'","source_seq":9',
]
"""Ends of events that are, or look like, those of emitted ones."""


def found(given: Settings, query: dict[str, Any]) -> set[str]:
    """Return the ids of the documents that a search finds."""
    with closing(Search(given.search)) as search:
        search.client.indices.refresh(index=f"{search.prefix}*")
        answer = search.client.search(index=search.prefix, query=query, size=1000)
        return {hit["_id"] for hit in answer["hits"]["hits"]}


def ending(end: bytes) -> Callable[[int], bytes]:
    return lambda offset: now_event(offset)[:-1] + end + b"}"


def test_emitted_events_are_found_by_their_source(growing: Growing, given: Settings) -> None:
    """Events of the six types are documents as others are; all are found by `source.id`, `source_seq`, `source.ip`."""
    growing.append(1, lambda offset: emitted(offset + 1, kind=KINDS[offset]), each=len(KINDS))
    growing.append(1, lambda offset: now_event(offset, client_ip="203.0.113.9"), each=3)
    (result,) = index_logs(given)
    assert (result.created, result.rejected, result.problem) == (len(KINDS) + 3, 0, None)
    every = {document_id(LOG, offset) for offset in range(len(KINDS))}
    assert found(given, {"term": {"source.id": SOURCE}}) == every
    assert found(given, {"prefix": {"source.id": "shop/web-1/"}}) == every
    assert found(given, {"range": {"source_seq": {"gte": 3, "lte": 4}}}) == {document_id(LOG, 2), document_id(LOG, 3)}
    assert found(given, {"term": {"event.id": f"id-{SOURCE}-1"}}) == {document_id(LOG, 0)}
    by_address = found(given, {"term": {"source.ip": "192.0.2.17"}})
    assert {document_id(LOG, at) for at, kind in enumerate(KINDS) if kind in EVENTS} == by_address
    kept = documents(given)
    for at, kind in enumerate(KINDS):
        document = kept[document_id(LOG, at)]
        assert (document["source"], document["source_seq"]) == ({"id": SOURCE}, at + 1)
        assert (OWN in document) == (kind not in EVENTS)
        assert document.get(OWN, {"source": SOURCE})["source"] == SOURCE
    assert compare(given, growing) == []


def test_what_looks_like_one_is_not_rejected(growing: Growing, given: Settings) -> None:
    """Whatever stands under these names, the event is indexed, is found by its address, and is compared as it is."""
    growing.append(1, lambda offset: ending(LIKE_ONE[offset])(offset), each=len(LIKE_ONE))
    (result,) = index_logs(given)
    assert (result.created, result.rejected, result.problem) == (len(LIKE_ONE), 0, None)
    assert len(found(given, {"term": {"source.ip": "192.0.2.17"}})) == len(LIKE_ONE)
    assert found(given, {"term": {"own.source.ip": "198.51.100.1"}}) == {document_id(LOG, 9)}
    assert found(given, {"term": {"source.id": "web"}}) == {document_id(LOG, at) for at in (11, 12, 16)}
    assert found(given, {"term": {"source.id": 'a"b\\'}}) == {document_id(LOG, 18)}
    assert found(given, {"term": {"source_seq": 9}}) == {document_id(LOG, 19)}
    assert compare(given, growing) == []


def test_an_index_without_the_fields_goes_on(growing: Growing, given: Settings) -> None:
    """An index that was made before there was `source.id` takes emitted events, and is no other mapping."""
    with closing(Search(given.search)) as search:
        prepare(search)
        search.client.indices.delete_index_template(name=search.prefix)
        older = {name: field for name, field in properties().items() if name != "source_seq"}
        older["source"] = {"properties": {"ip": older["source"]["properties"]["ip"]}}
        today = index_name(search.prefix, datetime.now(UTC).date())
        search.create_index(
            today,
            settings={"index": {"number_of_replicas": 0}},
            mappings={"dynamic": False, "date_detection": False, "properties": older},
        )
        search.client.indices.put_alias(index=today, name=search.prefix)
        growing.append(1, lambda offset: emitted(offset + 1))
        (result,) = index_logs(given)
        assert (result.created, result.rejected, result.problem) == (5, 0, None)
        assert differing_indices(search) == {today: ("", False)}
    assert found(given, {"exists": {"field": "source.id"}}) == set()
    assert len(found(given, {"term": {"source.ip": "192.0.2.17"}})) == 5


@examples(st.text(), st.integers(1, 10**19 - 1), st.dictionaries(st.text(), st.text(), max_size=3))
def test_the_end_of_a_line_is_a_member(source: str, number: int, more: dict[str, str]) -> None:
    """Whatever the strings of an emitted event are, its source and number alone move."""
    event = {"event_type": "x", **more}
    event.pop("source", None)
    event.pop("source_seq", None)
    line = json.dumps(event, separators=(",", ":"))[:-1] + f',"source":{json.dumps(source)},"source_seq":{number}}}'
    document = json.loads(opened_line(line.encode()) + b"}")
    assert document == {**event, "source": {"id": source}, "source_seq": number}
    assert json.loads(without_tail(line.encode())) == event
