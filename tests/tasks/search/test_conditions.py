"""A condition of the cluster stops the indexing, is reported, and passes. Events are never blamed for it."""

from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from custody.archive.reader import read_archive
from custody.errors import SearchError
from custody.format.events import reason
from custody.store.open import open_store
from tasks.search import bulk, client
from tasks.search.client import Search
from tasks.search.documents import index_name, template
from tasks.search.index import IndexResult, index_logs
from tasks.search.indices import _set_by_others, read_cursor
from tasks.settings import Settings
from tests.helpers.sample import Growing
from tests.helpers.search import LOG, daily_indices, delete_indices, documents, now_event, search_settings
from tests.servers.elasticsearch import ElasticsearchServer, ElasticsearchUnavailableError
from tests.servers.require import unavailable

Change = Callable[[Search], object]


def cluster_setting(name: str, value: object) -> Change:
    return lambda search: search.client.cluster.put_settings(persistent={name: value})


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
    "no shards left": (
        cluster_setting("cluster.max_shards_per_node", 2),
        cluster_setting("cluster.max_shards_per_node", None),
        "validation_exception",
    ),
    "no automatic indices": (
        cluster_setting("action.auto_create_index", "false"),
        cluster_setting("action.auto_create_index", None),
        "index_not_found_exception",
    ),
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


@pytest.fixture(scope="module")
def own() -> Iterator[ElasticsearchServer]:
    """A node of this module's own, because the tests change the settings of its cluster."""
    server = ElasticsearchServer("384m")
    try:
        server.start()
        yield server
    except ElasticsearchUnavailableError as error:
        unavailable(str(error))
    finally:
        server.__exit__()


@pytest.mark.parametrize("name", CONDITIONS)
def test_a_condition_of_the_cluster(
    name: str, tmp_path: Path, own: ElasticsearchServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is reported with its reason, rejects no event and moves no cursor; once it is gone, all is indexed."""
    monkeypatch.setattr(bulk, "PATIENCE_SECONDS", 1)
    make, undo, reason = CONDITIONS[name]
    growing = Growing(tmp_path)
    growing.append(2, now_event)
    given = search_settings(growing, own.url, own.unused_prefix())
    archive = read_archive(open_store(given.archive)).id
    with closing(Search(given.search)) as search:
        try:
            make(search)
            assert reason in problem(given)
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
