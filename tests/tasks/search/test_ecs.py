"""Events are found by the names of ECS, on a real Elasticsearch; none is rejected because it has such a name itself."""

import json
import re
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tasks.search.client import Search
from tasks.search.documents import ECS, ORIGIN, OWN, index_name, properties
from tasks.search.index import index_logs
from tasks.search.indices import differing_indices, prepare
from tasks.settings import Settings
from tests.helpers.corpus import EVENTS
from tests.helpers.sample import Growing
from tests.helpers.search import (
    LOG,
    compare,
    document_id,
    documents,
    now_event,
    now_own,
)

PAGE = Path(__file__).resolve().parents[3] / "docs" / "search.md"


def test_events_are_found_by_the_names_of_ecs(growing: Growing, given: Settings) -> None:
    """A search by each name finds the events with that value, and no others; Kibana can sort and count by them."""
    growing.append(4, lambda offset: now_event(offset, event_id=f"e-{offset}", trace_id=f"t-{offset // 2}"))
    (result,) = index_logs(given)
    assert (result.created, result.rejected, result.problem) == (20, 0, None)
    everything = documents(given)
    for name, source in ECS.items():
        values = {document[source] for document in everything.values() if document.get(source) is not None}
        assert values
        # A date has milliseconds, so several events may be of one.
        for value in values if source != "timestamp" else ():
            wanted = {key for key, document in everything.items() if document.get(source) == value}
            assert set(documents(given, {"term": {name: value}})) == wanted
    today = datetime.now(UTC) - timedelta(hours=1)
    assert set(documents(given, {"range": {"@timestamp": {"gte": today.isoformat()}}})) == set(everything)
    assert set(documents(given, {"term": {"source.ip": "192.0.2.0/24"}})) == set(everything)
    with closing(Search(given.search)) as search:
        counted = search.client.search(
            index=search.prefix,
            size=1,
            sort="@timestamp:desc",
            aggs={"types": {"terms": {"field": "event.action"}}},
            fields=[{"field": "source.ip"}, {"field": "event.action"}],
        )
        buckets = counted["aggregations"]["types"]["buckets"]
        assert sum(bucket["doc_count"] for bucket in buckets) == 20
        (hit,) = counted["hits"]["hits"]
        assert hit["fields"]["source.ip"] == ["192.0.2.17"]
        types = search.client.field_caps(index=search.prefix, fields=list(ECS))["fields"]
        assert {name: set(types[name]) for name in ("@timestamp", "source.ip", "event.action")} == {
            "@timestamp": {"date"},
            "source.ip": {"ip"},
            "event.action": {"keyword"},
        }


VALUES: list[Any] = ["2026-01-01T00:00:00Z", "text", 5, None, ["a", {"id": "b"}], {"x": 1}, {}, [[]]]
FIELDS: list[dict[str, Any]] = [
    *({name: value} for name in (*ECS, OWN, "own.x", "event_id", "trace_id") for value in VALUES),
    *({name.partition(".")[0]: value} for name in ECS for value in VALUES),
    {"source": {"ip": "198.51.100.1", "port": 5}, "user": {"id": "alice"}, "event": {"id": "e-1", "action": "own"}},
    {"source": {"ip": "no address"}, "event": {"action": {"a": {"b": 1}}}, "trace": {"id": {"id": []}}},
]
"""Fields of an event that are, or look like, those of ECS."""


@pytest.mark.parametrize("make", [now_event, now_own], ids=["six types", "own types"])
def test_an_event_with_such_names_of_its_own_is_not_rejected(
    growing: Growing, given: Settings, make: Callable[..., bytes]
) -> None:
    """Whatever an event has under a name that we map, it is indexed, found by our value, and compared as it is."""
    growing.append(1, lambda offset: make(offset, client_ip="192.0.2.17", **FIELDS[offset]), each=len(FIELDS))
    (result,) = index_logs(given)
    assert (result.created, result.rejected, result.problem) == (len(FIELDS), 0, None)
    assert len(documents(given, {"term": {"source.ip": "192.0.2.17"}})) == len(FIELDS)
    own = document_id(LOG, len(FIELDS) - 2)
    for name, value in (("source.ip", "198.51.100.1"), ("user.id", "alice"), ("event.id", "e-1")):
        assert set(documents(given, {"term": {f"{OWN}.{name}": value}})) == {own}
    assert documents(given)[own][OWN]["source"] == {"ip": "198.51.100.1", "port": 5}
    assert compare(given, growing) == []


def test_a_name_of_its_own_hides_no_field(growing: Growing, given: Settings) -> None:
    """An event of the six types is found by each field of its type, with a name that we map beside them or without."""

    def event(offset: int) -> bytes:
        kind = list(EVENTS)[offset // 2]
        more = {"user": "x"} if offset % 2 else {}
        time = f"{datetime.now(UTC):%FT%TZ}"
        listed = {"permissions": ["admin", "read"]} if "permissions" in EVENTS[kind] else {}
        return json.dumps({**EVENTS[kind], **listed, "timestamp": time, **more}).encode()

    growing.append(1, event, each=2 * len(EVENTS))
    (result,) = index_logs(given)
    assert (result.created, result.rejected, result.problem) == (2 * len(EVENTS), 0, None)
    everything = documents(given)
    for at in range(len(EVENTS)):
        plain, diverted = (document_id(LOG, offset) for offset in (2 * at, 2 * at + 1))
        assert (OWN in everything[plain], OWN in everything[diverted]) == (False, True)
        names = set(everything[plain]) - {"timestamp", ORIGIN, "_index"}
        assert {name: everything[diverted][name] for name in names} == {name: everything[plain][name] for name in names}
    operation = list(EVENTS).index("api_key_operation")
    both = {document_id(LOG, 2 * operation), document_id(LOG, 2 * operation + 1)}
    assert set(documents(given, {"term": {"permissions": "admin"}})) == both
    assert compare(given, growing) == []


def test_an_origin_below_own_fakes_nothing(growing: Growing, given: Settings) -> None:
    """An event's own key `@custody` is indexed where it is below `own`, and rejected where it would shadow ours."""
    origins: list[dict[str, Any]] = [{ORIGIN: {"offset": 99}}, {f"{ORIGIN}.offset": 99}]

    def event(offset: int) -> bytes:
        make = now_own if offset >= 4 else now_event
        return make(offset, **origins[offset % 2], **({"user": "x"} if offset in {2, 3} else {}))

    growing.append(1, event, each=6)
    (result,) = index_logs(given)
    assert (result.created, result.rejected, result.problem) == (4, 2, None)
    assert set(documents(given)) == {document_id(LOG, offset) for offset in range(2, 6)}
    assert set(documents(given, {"term": {f"{ORIGIN}.offset": 99}})) == set()
    assert compare(given, growing) == []


def test_an_escaped_name_is_the_same_name(growing: Growing, given: Settings) -> None:
    """A name that is spelled with escapes is what Elasticsearch reads, so the event is not rejected either."""
    names = [
        '"\\u0073ource":"web"',
        '"source\\u002eip":5',
        '"\\u006fwn":1',
        '"event\\u005fid":{}',
        '"\\u0040timestamp":1',
    ]

    def event(offset: int) -> bytes:
        return now_event(offset)[:-1] + b"," + names[offset].encode() + b"}"

    growing.append(1, event, each=len(names))
    (result,) = index_logs(given)
    assert (result.created, result.rejected, result.problem) == (len(names), 0, None)
    assert all(OWN in document for document in documents(given).values())


def test_an_older_index_goes_on(growing: Growing, given: Settings) -> None:
    """An index that was made before the names of ECS takes events as before; they are found by custody's names."""
    with closing(Search(given.search)) as search:
        prepare(search)
        search.client.indices.delete_index_template(name=search.prefix)
        new = {name.partition(".")[0] for name in ECS} | {"event_id", "trace_id"}
        older = {name: field for name, field in properties().items() if name not in new}
        today = index_name(search.prefix, datetime.now(UTC).date())
        search.create_index(
            today,
            settings={"index": {"number_of_replicas": 0}},
            mappings={"dynamic": False, "date_detection": False, "properties": older},
        )
        search.client.indices.put_alias(index=today, name=search.prefix)
        growing.append(4, lambda offset: now_event(offset, timestamp=f"{datetime.now(UTC):%FT%TZ}"))
        (result,) = index_logs(given)
        assert (result.created, result.rejected, result.problem) == (20, 0, None)
        assert differing_indices(search) == {today: ("", False)}
    assert len(documents(given, {"term": {"client_ip": "192.0.2.17"}})) == 20
    assert len(documents(given, {"range": {f"{ORIGIN}.offset": {"gte": 10}}})) == 10
    assert set(documents(given, {"exists": {"field": "source.ip"}})) == set()


def test_the_page_has_the_names() -> None:
    """docs/search.md lists each name with the field that has its values."""
    rows = re.findall(r"^\| `([@a-z.]+)` \| `([a-z_]+)` \|", PAGE.read_text(), re.MULTILINE)
    assert dict(rows) == ECS
