"""A condition of the cluster stops the indexing, is reported, and passes. Events are never blamed for it."""

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, cast

import pytest

from custody.archive.reader import read_archive
from custody.errors import SearchError
from custody.format.events import reason
from custody.store.open import open_store
from tasks.search import bulk, client
from tasks.search.client import Search
from tasks.search.documents import index_name, properties, template
from tasks.search.index import IndexResult, index_logs
from tasks.search.indices import _set_by_others, prepare, read_cursor
from tasks.settings import Settings
from tests.helpers.sample import Growing
from tests.helpers.search import (
    LOG,
    daily_indices,
    delete_indices,
    documents,
    now_event,
    now_event_but_refused,
    search_settings,
)
from tests.servers.elasticsearch import ElasticsearchServer
from tests.servers.proxy import Fault, FaultyProxy

Change = Callable[[Search], object]


def forbid_creation(search: Search) -> None:
    """Forbid the creation of this test's daily indices only: others use the server too."""
    search.client.cluster.put_settings(persistent={"action.auto_create_index": f"-{search.prefix}-2*,+*"})


def allow_creation(search: Search) -> None:
    search.client.cluster.put_settings(persistent={"action.auto_create_index": None})


def make_days(search: Search) -> None:
    """Create the indices of today and yesterday, in which the events belong."""
    search.client.indices.put_index_template(name=search.prefix, **template(search.prefix, 0))
    for name in daily_names(search):
        search.create_index(name)


def daily_names(search: Search) -> set[str]:
    today = datetime.now(UTC).date()
    return {index_name(search.prefix, today - timedelta(days=days)) for days in (0, 1)}


def block(name: str, value: bool | None) -> Change:
    def change(search: Search) -> None:
        if value:
            make_days(search)
        search.client.indices.put_settings(index=f"{search.prefix}-2*", settings={f"index.blocks.{name}": value})

    return change


def close_days(search: Search) -> None:
    make_days(search)
    search.client.indices.close(index=f"{search.prefix}-2*")


CONDITIONS: dict[str, tuple[Change, Change, str]] = {
    "no shards left": (prepare, lambda _: None, "validation_exception"),
    "no automatic indices": (forbid_creation, allow_creation, "index_not_found_exception"),
    "an index has the alias's name": (
        lambda search: search.client.indices.create(index=search.prefix),
        lambda search: search.client.indices.delete(index=search.prefix),
        "alias",
    ),
    "read-only": (block("read_only", True), block("read_only", None), "cluster_block_exception"),
    "disk full": (
        block("read_only_allow_delete", True),
        block("read_only_allow_delete", None),
        "too busy for 1 s (cluster_block_exception",
    ),
    "closed": (
        close_days,
        lambda search: search.client.indices.open(index=f"{search.prefix}-2*"),
        "index_closed_exception",
    ),
}


def with_replicas(given: Settings, replicas: int) -> Settings:
    return given.model_copy(update={"search": given.search.model_copy(update={"replicas": replicas})})


def problem(given: Settings, created: int = 0) -> str:
    """Index, and return what is wrong. Check how many events were indexed all the same, and that none is rejected."""
    try:
        (result,) = index_logs(given)
    except SearchError as error:
        # Even the template is refused.
        result = IndexResult("", problem=str(error))
    assert (result.created, result.rejected) == (created, 0)
    assert result.sequence == (0 if result.problem and not created else 2)
    return result.problem or ""


MANY_REPLICAS = 1200
"""An index of so many replicas has more shards than a node may have by default."""


@pytest.mark.parametrize("name", CONDITIONS)
def test_a_condition_of_the_cluster(
    name: str, tmp_path: Path, elastic: ElasticsearchServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is reported with its reason, rejects no event and moves no cursor; once it is gone, all is indexed."""
    monkeypatch.setattr(bulk, "PATIENCE_SECONDS", 1)
    make, undo, reason = CONDITIONS[name]
    growing = Growing(tmp_path)
    growing.append(2, now_event)
    given = search_settings(growing, elastic.url, elastic.unused_prefix())
    archive = read_archive(open_store(given.archive)).id
    with closing(Search(given.search)) as search:
        try:
            make(search)
            assert reason in problem(with_replicas(given, MANY_REPLICAS) if name == "no shards left" else given)
            assert read_cursor(search, archive, LOG) == 0
        finally:
            undo(search)
        (result,) = index_logs(given)
        assert (result.created, result.rejected, result.sequence, result.problem) == (10, 0, 2, None)
        assert len(documents(given)) == 10
        assert daily_indices(search)
        search.client.indices.refresh(index=search.rejected)
        assert search.client.count(index=search.rejected)["count"] == 0
    delete_indices(given)


def days_like(settings: dict[str, Any] | None = None, **mappings: Any) -> Change:
    """Return a change that makes the indices of today and yesterday as somebody else wants them."""

    def change(search: Search) -> None:
        prepare(search)
        for name in daily_names(search):
            search.create_index(name, settings=settings or {}, mappings=mappings)

    return change


FIELDS = len(properties()) + sum(len(field.get("properties", ())) for field in properties().values())
"""The number of fields that the template maps."""
OTHERS: dict[str, tuple[Change, str]] = {
    "no more fields": (days_like({"index.mapping.total_fields.limit": FIELDS}, dynamic=True), "setting `dynamic`"),
    "strict": (days_like(dynamic="strict"), "strict_dynamic_mapping_exception"),
    "one more field": (days_like(properties={"theirs": {"type": "long"}}), "mapping of the field theirs"),
    "another type": (days_like(properties={"complexity": {"type": "ip"}}), "mapping of the field complexity"),
    "another parameter": (
        days_like(properties={"request_id": {"type": "keyword", "ignore_above": 100_000}}),
        "mapping of the field request_id",
    ),
    "a pipeline that is missing": (days_like({"index.default_pipeline": "theirs"}), "pipeline with id [theirs]"),
    "a last pipeline that is missing": (days_like({"index.final_pipeline": "theirs"}), "pipeline with id [theirs]"),
}
"""What somebody else does to an index, so that it refuses all events or some of them."""


def only_some_are_taken(offset: int) -> bytes:
    """Return an event that an index as others want it may refuse; an index of ours takes it."""
    more = {"theirs": "x", f"new_{offset}": 1} if offset % 2 else {}
    return now_event(offset, **more, request_id="x" * 40_000 if offset == 3 else f"request-{offset}")


@pytest.mark.parametrize("name", OTHERS)
def test_what_others_made_of_an_index_rejects_no_event(name: str, tmp_path: Path, elastic: ElasticsearchServer) -> None:
    """Events that only an index as others want it refuses are not rejected: the indexing stops, and says why."""
    make, reason = OTHERS[name]
    growing = Growing(tmp_path)
    growing.append(2, only_some_are_taken)
    given = search_settings(growing, elastic.url, elastic.unused_prefix())
    with closing(Search(given.search)) as search:
        make(search)
        (result,) = index_logs(given)
        assert reason in str(result.problem)
        assert (result.rejected, result.sequence) == (0, 0)
        search.client.indices.refresh(index=search.rejected)
        assert search.client.count(index=search.rejected)["count"] == 0
        search.client.indices.delete(index=f"{search.prefix}-2*")
        (result,) = index_logs(given)
        assert (result.created, result.rejected, result.sequence, result.problem) == (10, 0, 2, None)
    delete_indices(given)


def test_a_rejected_event_beside_a_condition(tmp_path: Path, elastic: ElasticsearchServer) -> None:
    """While one index refuses all, an event that another index refuses for its own sake is rejected, and no other."""
    yesterday = f"{datetime.now(UTC) - timedelta(days=1):%FT%TZ}"

    def value(offset: int) -> bytes:
        return now_event(offset, timestamp=yesterday) if offset % 2 else now_event_but_refused(18)

    growing = Growing(tmp_path)
    growing.append(1, value)
    given = search_settings(growing, elastic.url, elastic.unused_prefix())
    with closing(Search(given.search)) as search:
        prepare(search)
        days_like()(search)
        closed = min(daily_names(search))
        search.client.indices.close(index=closed)
        (result,) = index_logs(given)
        assert "index_closed_exception" in str(result.problem)
        assert (result.created, result.rejected, result.sequence) == (0, 3, 0)
        search.client.indices.open(index=closed)
        (result,) = index_logs(given)
        assert (result.created, result.rejected, result.sequence, result.problem) == (2, 3, 1, None)
        # The plain event that was sent beside them is never stored.
        assert len(documents(given)) == 2
    delete_indices(given)


def test_a_shard_that_is_full_rejects_no_event(scripted: "Scripted") -> None:
    """A plain event does not get as far as the limit of documents, which no server can be brought to in a test."""
    full = {"type": "illegal_argument_exception", "reason": "Number of documents in shard [x][0] exceeds the limit"}
    result = scripted.index(lambda item: {"status": 400, "error": full} if "create" in item else None)
    assert "Number of documents in shard" in str(result.problem)
    assert (result.created, result.rejected, result.sequence) == (0, 0, 0)


def test_what_a_pipeline_drops_is_not_indexed(scripted: "Scripted") -> None:
    """A pipeline that drops events answers 200. The tests' server has no such pipelines."""
    result = scripted.index(lambda item: {"status": 200} if {"create", "index"} & set(item) else None)
    assert "it answers 200" in str(result.problem)
    assert (result.created, result.rejected, result.sequence) == (0, 0, 0)


def test_an_error_that_passes_rejects_no_event(scripted: "Scripted") -> None:
    """What is refused is sent once more beside a plain event: only what is refused then is rejected."""
    left = [3]

    def once(_: dict[str, Any]) -> dict[str, Any] | None:
        left[0] -= 1
        return {"status": 500, "error": {"type": "null_pointer_exception", "reason": "a"}} if left[0] >= 0 else None

    result = scripted.index(once)
    assert (result.problem, result.rejected, result.sequence) == (None, 0, 2)
    assert len(documents(scripted.given)) == 10


def test_an_unknown_error_of_a_document(scripted: "Scripted") -> None:
    """An error that nobody has seen does not stop a log for good, if it is of one document only."""
    unknown = {"status": 500, "error": {"type": "never_seen_exception", "reason": "oh"}}
    # The first document of the first request, and then of the request in which it comes again, beside a plain event.
    numbers = count()
    result = scripted.index(lambda _: unknown if next(numbers) in {0, 5} else None)
    assert (result.problem, result.created + result.there, result.rejected, result.sequence) == (None, 9, 1, 2)
    assert result.reasons == {"never_seen_exception: oh": 1}


@dataclass
class Scripted:
    """Two statements, and a proxy before Elasticsearch that changes answers to bulk requests."""

    given: Settings
    proxy: FaultyProxy

    def index(self, change: Callable[[dict[str, Any]], dict[str, Any] | None]) -> IndexResult:
        """Index while the outcome of each operation is replaced by what `change` returns, if it returns something."""

        def rewrite(path: str, body: bytes) -> bytes:
            if not path.startswith("/_bulk") or "reason" not in path:
                return body
            answer = json.loads(body)
            for item in answer["items"]:
                changed = change(item)
                for kind in item:
                    item[kind] = item[kind] if changed is None else changed
            return json.dumps(answer).encode()

        self.proxy.reset(rewrite=rewrite)
        (result,) = index_logs(self.given)
        return result


@pytest.fixture
def scripted(tmp_path: Path, elastic: ElasticsearchServer) -> Iterator[Scripted]:
    growing = Growing(tmp_path)
    growing.append(2, now_event)
    with FaultyProxy(elastic.url) as proxy:
        given = search_settings(growing, proxy.endpoint_url, elastic.unused_prefix())
        yield Scripted(given, proxy)
        proxy.reset()
        delete_indices(given)


@pytest.mark.parametrize("kind", ["403", "413"])
def test_a_proxy_that_refuses_every_request_rejects_no_event(scripted: Scripted, kind: Literal["403", "413"]) -> None:
    """What refuses whole requests is not Elasticsearch, and is never booked on the events in them."""
    scripted.proxy.reset(always=Fault(kind, effect=False), part="/_bulk")
    (result,) = index_logs(scripted.given)
    assert f"answers {kind}" in str(result.problem)
    assert (result.created, result.rejected, result.sequence) == (0, 0, 0)
    scripted.proxy.reset()
    (result,) = index_logs(scripted.given)
    assert (result.created, result.problem) == (10, None)


Items = list[dict[str, dict[str, Any]]]


@pytest.fixture
def refusing(scripted: Scripted, tmp_path: Path) -> Iterator[Callable[[Callable[[int, Items], Items]], IndexResult]]:
    """Return what indexes five events that are refused, while the items of each answer of a number are changed.

    The first request has the events, the second has a plain event too, and the third records them as rejected.
    """
    growing = Growing(tmp_path / "refusing")
    growing.append(1, lambda _: now_event_but_refused(18))
    prefix = f"{scripted.given.search.prefix}-refusing"
    given = search_settings(growing, scripted.proxy.endpoint_url, prefix)

    def index(change: Callable[[int, Items], Items]) -> IndexResult:
        numbers = count()

        def rewrite(path: str, body: bytes) -> bytes:
            if not path.startswith("/_bulk"):
                return body
            answer = json.loads(body)
            answer["items"] = change(next(numbers), answer["items"])
            return json.dumps(answer).encode()

        scripted.proxy.reset(rewrite=rewrite)
        (result,) = index_logs(given)
        return result

    yield index
    scripted.proxy.reset()
    delete_indices(given)


@pytest.mark.parametrize(("size", "fits"), [(20_000, True), (80_000, False)], ids=["in halves", "never"])
def test_an_answer_too_large_to_be_read(
    refusing: Callable[..., IndexResult], monkeypatch: pytest.MonkeyPatch, size: int, *, fits: bool
) -> None:
    """Reasons that are too much for one answer are read in several. Only one that is too large alone is an error."""
    monkeypatch.setattr(client, "ANSWER_BYTES", 64 * 1024)

    def change(_: int, items: Items) -> Items:
        for item in items:
            for outcome in item.values():
                if outcome["status"] == 400:
                    outcome["error"]["reason"] += "x" * size
        return items

    result = refusing(change)
    if fits:
        assert (result.problem, result.rejected, result.sequence) == (None, 5, 1)
    else:
        assert "AnswerTooLarge" in str(result.problem)
        assert (result.rejected, result.sequence) == (0, 0)


def test_rejected_events_are_recorded_in_parts(
    refusing: Callable[..., IndexResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many events are rejected, and however long the reasons, a request that records them stays small."""
    monkeypatch.setattr(bulk, "_RECORDED", 2)
    sizes: list[int] = []

    def change(_: int, items: Items) -> Items:
        sizes.append(len(items))
        return items

    result = refusing(change)
    assert (result.problem, result.rejected, result.sequence) == (None, 5, 1)
    assert sizes[2:] == [2, 2, 1]


@pytest.mark.parametrize("request_number", [0, 1, 2])
def test_an_answer_of_too_few_outcomes(refusing: Callable[..., IndexResult], request_number: int) -> None:
    """Whatever a bulk request is for, an answer to fewer operations than were sent is an error that says so."""
    result = refusing(lambda number, items: items[:-1] if number == request_number else items)
    assert "outcomes to" in str(result.problem)
    assert (result.rejected, result.sequence) == (0, 0)
    result = refusing(lambda _, items: items)
    assert (result.problem, result.rejected) == (None, 5)


@pytest.mark.parametrize(("status", "remedy"), [(429, "Elasticsearch is busy"), (403, "make that index writable")])
def test_rejected_events_that_cannot_be_recorded(
    refusing: Callable[..., IndexResult], status: int, remedy: str
) -> None:
    """Whether their index is busy or blocked, the error says which, and none is counted as rejected."""
    failed = {"create": {"status": status, "error": {"type": "some_exception", "reason": "why"}}}
    result = refusing(lambda number, items: [failed] * len(items) if number == 2 else items)
    assert f"(status {status}, some_exception: why): {remedy}" in str(result.problem)
    assert (result.rejected, result.sequence) == (0, 0)


def test_reasons_of_a_server_make_no_line() -> None:
    """A newline or a control character in a server's reason is a space in the error."""
    hostile = "no\x1b[2J\ncustody: 0 problems, all verified"
    for error in (hostile, {"reason": hostile}, {"reason": "first", "caused_by": {"reason": hostile}}):
        reason = client._reason({"error": error})
        assert reason.isprintable()
        assert "0 problems" in reason
    assert client._reason({"error": {"reason": "a", "caused_by": {"reason": "b"}}}) == "a: b"
    assert client._reason(None) == "no reason given"
    made = SimpleNamespace(_search=SimpleNamespace(settings=SimpleNamespace(url="http://127.0.0.1:9200")))
    condition = bulk.Bulk._condition(cast("bulk.Bulk", made), LOG, [bulk._Error(hostile, hostile)])
    assert str(condition).isprintable()


def put_template(name: str, priority: int) -> Change:
    def change(search: Search) -> None:
        search.client.indices.put_index_template(
            name=name.format(search.prefix), index_patterns=[f"{search.prefix}*"], priority=priority
        )

    return change


def template_of_this_month(search: Search) -> None:
    month = f"{datetime.now(UTC):%Y.%m}"
    patterns = [f"{search.prefix}-{month}.*"]
    search.client.indices.put_index_template(name=f"month-{search.prefix}", index_patterns=patterns, priority=501)


def alias_others(search: Search) -> None:
    search.client.indices.create(index=f"others-{search.prefix}")
    search.client.indices.put_alias(index=f"others-{search.prefix}", name=search.prefix)


def filter_alias(search: Search) -> None:
    make_days(search)
    search.client.indices.put_alias(
        index=f"{search.prefix}-2*", name=search.prefix, filter={"term": {"event_type": "query_executed"}}
    )


TAKEN_OVER: dict[str, tuple[Change, str, int]] = {
    "a template of higher priority": (put_template("logs-{}", 501), "the index template logs-", 0),
    "a template of this month's indices": (template_of_this_month, "the index template month-", 0),
    "a template of lower priority": (put_template("logs-{}", 499), "", 10),
    "a template of our name": (put_template("{}", 100), "was not made by custody, and is not overwritten", 0),
    "another index behind the alias": (alias_others, "the index others-", 10),
    "a filter on the alias": (filter_alias, "has a filter or a routing, which hides", 10),
}


@pytest.mark.parametrize("name", TAKEN_OVER)
def test_what_others_set_is_said_and_stays(name: str, tmp_path: Path, elastic: ElasticsearchServer) -> None:
    """What takes our indices or alias over is named at once and not overwritten; once it is gone, all is indexed."""
    take_over, said, created = TAKEN_OVER[name]
    growing = Growing(tmp_path)
    growing.append(2, now_event)
    given = search_settings(growing, elastic.url, elastic.unused_prefix())
    with closing(Search(given.search)) as search:
        client = search.client.indices
        take_over(search)
        before = templates(search)
        assert said in problem(given, created)
        if not created:
            assert templates(search) == before
        for template in before:
            client.delete_index_template(name=template)
        search.client.options(ignore_status=404).indices.delete(index=f"others-{search.prefix}")
        search.client.options(ignore_status=404).indices.put_alias(index=f"{search.prefix}-2*", name=search.prefix)
        assert problem(given, 10 - created) == ""
    delete_indices(given)


def test_a_pipeline_of_others_is_said() -> None:
    """An ingest pipeline of an index may change or drop events, so it is named."""
    for part in ("default_pipeline", "final_pipeline"):
        (problem,) = _set_by_others("p", {"p-2026.01.01": {"settings": {"index": {part: "theirs"}}}})
        assert "the ingest pipeline theirs" in problem
    assert not list(_set_by_others("p", {"p-2026.01.01": {"settings": {"index": {"final_pipeline": "_none"}}}}))


def templates(search: Search) -> dict[str, object]:
    """Return the templates of this test, by name."""
    found = search.client.options(ignore_status=404).indices.get_index_template(name=f"*{search.prefix}*")
    return {one["name"]: one["index_template"] for one in found["index_templates"]}


_SPOOFED = "Number of documents in: Limit of total fields, pipeline with id, index write (api)"
_FACE = "\U0001f600"
_DEEP = '{"a":' * 90 + "1" + "}" * 90
HOSTILE = (
    *(
        f'"{name}": {value}'
        for name in ("_id", "_index", "_source", "_routing", "_doc_count", "_ignored", "_field_names", "_seq_no", "_x")
        for value in ('"x"', "-1", '{"a": []}')
    ),
    *(
        f'"{name}": 1'
        for name in ("", " ", ".", "..", "a..b", ".a", "a.", "event_type.x", "timestamp.x", "\\u0000", "*")
    ),
    *(f'"permissions": {value}' for value in ('[{"a": 1}]', "[[[]]]", '"x"', "null", "[1.5, true]")),
    *(f'"client_ip": {value}' for value in ('"::1%eth0"', '["x"]', '{"a": 1}', '"\\ud800"')),
    *(f'"execution_time": {value}' for value in ("1e400", "-1e-400", "9" * 2000, '[1, "x"]', '{"a": 1}')),
    f'"permissions": [{{"{_SPOOFED}": "{_SPOOFED}"}}]',
    f'"{_SPOOFED}": "x"',
    f'"client_ip": ["::1", {{"a": "{_SPOOFED}"}}]',
    f'"details": {_DEEP}',
    f'"parameters": {_DEEP}',
    f'"details": {{"{"k" * 40_000}": 1}}',
    f'"details": {{"a": "{_FACE * 40_000}"}}',
    f'"user_id": "{_FACE * 8191}"',
    f'"user_id": "{"x" * 100_000}"',
    f'"{"k" * 70_000}": 1',
    f'"more": {"[" * 200}{"]" * 200}',
    '"details": {"a": 1, "a": {"b": 2}}',
    '"timestamp": {"a": 1}',
)
"""Members that a producer may add to an event, to get an error of a kind that nobody has seen."""


def test_no_event_stops_the_indexing(tmp_path: Path, elastic: ElasticsearchServer) -> None:
    """Whatever an event has in it, Elasticsearch's error is known to be the event's own, if there is one."""
    values = [now_event(offset)[:-1] + f", {member}}}".encode() for offset, member in enumerate(HOSTILE)]
    values = [value for value in values if reason(value) is None]
    assert len(values) > len(HOSTILE) // 2
    values += [now_event(0)] * (-len(values) % 5)
    growing = Growing(tmp_path)
    growing.append(len(values) // 5, values.__getitem__)
    given = search_settings(growing, elastic.url, elastic.unused_prefix())
    (result,) = index_logs(given)
    assert (result.problem, result.created + result.rejected) == (None, len(values))
    assert result.rejected
    delete_indices(given)


def test_a_lifecycle_policy_is_said() -> None:
    """A policy of Elasticsearch's that may delete our indices is named. The tests' server has no such policies."""
    made = {"audit-2026.01.01": {"aliases": {"audit": {}}, "settings": {"index": {"lifecycle": {"name": "30-days"}}}}}
    (problem,) = _set_by_others("audit", made)
    assert "audit-2026.01.01 has the lifecycle policy 30-days" in problem
