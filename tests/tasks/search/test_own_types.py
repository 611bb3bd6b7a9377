"""Events of own types in a real Elasticsearch: whole in one flattened field, and compared like any other."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from flows.operate import cli as operate
from tasks.search import documents as made
from tasks.search.client import Search
from tasks.search.documents import ORIGIN, OWN, properties
from tasks.search.index import index_logs
from tasks.settings import Settings
from tests.helpers.corpus import CASES, EVENTS, Case
from tests.helpers.own import SHAPES
from tests.helpers.sample import Growing
from tests.helpers.search import (
    LOG,
    compare,
    document_id,
    documents,
    matching_offsets,
    now_event,
    now_own,
)


def now_mixed(offset: int) -> bytes:
    """Return an event of an own type at odd offsets, of the six at even ones."""
    return now_own(offset) if offset % 2 else now_event(offset)


def test_an_archive_of_own_types_alone(growing: Growing, given: Settings) -> None:
    """Types that contradict each other in every field, and custody's own mapping, are all indexed and found."""
    growing.append(3, now_own)
    (result,) = index_logs(given)
    assert (result.created, result.rejected, result.problem) == (15, 0, None)
    kept = documents(given)
    for offset in range(15):
        document, shape = kept[document_id(LOG, offset)], SHAPES[offset % len(SHAPES)]
        assert (document["event_type"], document[OWN]["number"]) == (shape["event_type"], offset)
        assert {name: document[OWN][name] for name in shape} == json.loads(json.dumps(shape))
        assert set(document) - {"_index"} <= set(properties())
    search = Search(given.search)
    (index,) = search.client.indices.get(index=f"{search.prefix}-2*").body.values()
    search.close()
    assert set(index["mappings"]["properties"]) == set(properties())


def test_fields_are_found(growing: Growing, given: Settings) -> None:
    """A field of an own type is found below `own`, and a common one beside it where it fits."""
    growing.append(2, now_own)
    index_logs(given)
    assert matching_offsets(given, {"term": {"own.user": "ada"}}) == [0, 5]
    assert matching_offsets(given, {"term": {"own.user.name": "ada"}}) == [1, 6]
    assert matching_offsets(given, {"term": {"own.amount": "7"}}) == [0, 5]
    assert matching_offsets(given, {"term": {"own": "much"}}) == [2, 7]
    assert matching_offsets(given, {"term": {"client_ip": "192.0.2.0/24"}}) == [0, 5]
    assert matching_offsets(given, {"term": {"status": "success"}}) == [0, 5]
    assert matching_offsets(given, {"exists": {"field": "complexity"}}) == []
    assert matching_offsets(given, {"term": {"event_type": "order.placed"}}) == [1, 6]


def test_the_six_types_beside_own_ones(growing: Growing, given: Settings) -> None:
    """In one batch with own types, an event of the six is the document that it always was."""
    growing.append(4, now_mixed)
    (result,) = index_logs(given)
    assert (result.created, result.rejected) == (20, 0)
    for document in documents(given).values():
        offset = document[ORIGIN]["offset"]
        if offset % 2:
            assert document[OWN]["number"] == offset
        else:
            assert set(document) - {ORIGIN, "_index"} == set(EVENTS[document["event_type"]])
    assert compare(given, growing) == []


def test_differences_are_found(growing: Growing, given: Settings) -> None:
    """An edited, an added and a deleted document of an own type are findings, as for the six."""
    growing.append(3, now_own)
    index_logs(given)
    assert compare(given, growing) == []
    kept = documents(given)
    search = Search(given.search)
    edited, beside, copied, deleted = (dict(kept[document_id(LOG, offset)]) for offset in (2, 5, 6, 12))
    index = edited.pop("_index")
    edited[OWN] = {**edited[OWN], "complexity": "little"}
    beside["client_ip"] = "192.0.2.99"
    for document in (beside, copied):
        document.pop("_index")
    write = search.client.index
    write(index=index, id=document_id(LOG, 2), document=edited)
    write(index=index, id=document_id(LOG, 5), document=beside)
    write(index=index, id="a copy", document=copied)
    search.client.delete(index=deleted["_index"], id=document_id(LOG, 12), refresh=True)
    search.close()
    assert compare(given, growing) == [
        ("index-edited", 2), ("index-extra", 6), ("index-edited", 5), ("index-missing", 12),
    ]  # fmt: skip
    # What was missing is there again, as it was.
    assert documents(given)[document_id(LOG, 12)] == deleted


def test_deep_large_and_odd_events(growing: Growing, given: Settings) -> None:
    """What the format allows is indexed or rejected with a reason, and hinders no other event."""

    def content(offset: int) -> bytes:
        deep: Any = "end"
        for _ in range(63):
            deep = {"a": deep}
        shapes: list[dict[str, Any]] = [
            {"deep": deep["a"]},
            {f"field {number}": number for number in range(30_000)},
            {"text": "x" * 900_000},
            {"text": "\u20ac" * 8191},
            {"k" * 40_000: "v"},
            {"zero\x00": 1},
            {"": {"": 1}, ".": 1, "a..b": 2, "@custody": {"offset": 99}, "@custody.offset": 98},
            {"details": {"k" * 40_000: "v"}},
            {"request_id": "x" * 200_000, "details": {"x": "y" * 100_000}},
            {"fine": True},
        ]
        now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        return json.dumps({"event_type": "odd", "timestamp": now, **shapes[offset % len(shapes)]}).encode()

    growing.append(2, content)
    (result,) = index_logs(given)
    assert result.problem is None
    assert result.created + result.rejected == 10
    indexed = {document[ORIGIN]["offset"] for document in documents(given).values()}
    assert {0, 1, 2, 3, 6, 8, 9} <= indexed
    assert len(indexed) == result.created
    assert matching_offsets(given, {"term": {f"{ORIGIN}.offset": 99}}) == []
    assert compare(given, growing) == []


@pytest.mark.parametrize("case", [case for case in CASES if case.is_event], ids=lambda case: case.name)
def test_every_event_has_a_document(case: Case) -> None:
    """Whatever FORMAT.md calls an event becomes a document, with its own bytes in it, and has a day."""
    (fields,) = made._decode(made._fields, case.line)
    document = made._own_document(case.line.rstrip(), fields) + b"}"
    read = json.loads(document, parse_int=str, parse_float=str)
    assert read[OWN] == json.loads(case.line, parse_int=str, parse_float=str)
    assert read["event_type"] == read[OWN]["event_type"]
    assert set(read) <= set(properties())
    (time,) = made._decode(made._times, case.line)
    assert made.date_of(time.timestamp) is not None


def test_command(growing: Growing, given: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """`custody index` brings an archive of own types alone up to date."""
    growing.append(2, now_own)
    monkeypatch.setenv("CUSTODY_ARCHIVE", given.archive)
    monkeypatch.setenv("CUSTODY_KEYS", given.keys)
    monkeypatch.setenv("CUSTODY_SEARCH__URL", str(given.search.url))
    monkeypatch.setenv("CUSTODY_SEARCH__PREFIX", given.search.prefix)
    monkeypatch.setenv("CUSTODY_SEARCH__REPLICAS", "0")
    operate.index()
    assert len(documents(given)) == 10
