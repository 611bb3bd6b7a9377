"""The template of the daily indices, and custody's own two indices: cursors and rejected events.

`<prefix>-cursors` stores how far each log is indexed. So a server that was lost, or restored from an old snapshot,
shows by itself what it lacks. The position is not derived from the documents:

- Some statements have no document, for example if their segment is in an archive storage class. Each run of the drain
  would read such statements again, and a long row of them would take longer than a run. Indexing would never pass them.
- A backfill and an audit can index later events before earlier ones. The events between would be skipped.
- A search for a log's last document costs more, the more documents there are. Reading a cursor does not.

`<prefix>-rejected` has the reason for each event that Elasticsearch rejected, for as long as the event would have been
kept (`tasks.roll`).
"""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from fnmatch import fnmatchcase
from typing import Any

import msgspec
from elasticsearch import NotFoundError

from custody.errors import SearchError
from custody.format.envelope import Int
from custody.format.layout import Log
from custody.format.times import format_time
from tasks.search import documents
from tasks.search.client import AnswerTooLarge, Search
from tasks.search.documents import ORIGIN, index_name, restored_name

_UUID = "*.settings.index.uuid"
_TEMPLATES = ",".join(
    f"index_templates.{part}"
    for part in ("name", *(f"index_template.{part}" for part in ("index_patterns", "priority", "_meta")))
)
_PIPELINES = ("default_pipeline", "final_pipeline")
_OTHERS = ",".join(("*.aliases", *(f"*.settings.index.{part}" for part in ("lifecycle.name", *_PIPELINES))))
_MAPPED = ",".join(
    (
        *(f"*.mappings.{part}" for part in ("_source", "runtime", f"properties.{ORIGIN}")),
        *(f"*.settings.index.{part}" for part in ("uuid", "mode", "mapping", "verified_before_close", "blocks.read")),
    )
)
_CHANGED = ",".join(
    (
        *(f"*.mappings.{part}" for part in ("dynamic", "properties")),
        # The last one is there for each index, so that none is missing in the answer.
        *(f"*.settings.index.{part}" for part in (*_PIPELINES, "uuid")),
    )
)
_WAITED = 408
_INTEGERS = frozenset({"long", "integer", "short", "byte"})


class _Cursor(msgspec.Struct):
    sequence: Int


class _Hit(msgspec.Struct, rename="_{}".format):
    id: str
    source: _Cursor


def prepare(search: Search) -> list[str]:
    """Set the template, and create custody's own indices. Doing it again changes nothing.

    Returns:
        What somebody else set that changes what searches find. It does not keep events from being indexed.

    Raises:
        SearchError: Elasticsearch does not answer, or refuses. Or somebody else's template would be used instead.
    """
    settings = {"index": {"number_of_replicas": search.settings.replicas, **documents.ON_HOT_NODES}}
    own = {
        search.cursors: {"log": {"type": "keyword"}},
        search.rejected: {
            "log": {"type": "keyword"},
            "offset": {"type": "long"},
            "index": {"type": "keyword"},
            "type": {"type": "keyword"},
            "reason": {"type": "text", "index": False},
            "at": {"type": "date"},
        },
    }
    body = documents.template(search.prefix, search.settings.replicas)
    check_templates(search)
    with search.errors("the index templates"):
        search.client.indices.put_index_template(name=search.prefix, **body)
        for name, properties in own.items():
            # Not `exists`: an answer to HEAD has no body, so a refusal would not say what was refused.
            if not search.client.indices.get(index=name, ignore_unavailable=True, filter_path=_UUID).body:
                search.create_index(name, settings=settings, mappings={"dynamic": False, "properties": properties})
        made = search.client.indices.get(
            index=f"{search.prefix},{search.prefix}-*", ignore_unavailable=True, filter_path=_OTHERS
        ).body
        return list(_set_by_others(search.prefix, made))


def check_templates(search: Search) -> None:
    """Check that no template of somebody else would be used for our indices. Changes nothing.

    Raises:
        SearchError: Elasticsearch does not answer, or refuses. Or one would be used.
    """
    body = documents.template(search.prefix, search.settings.replicas)
    with search.errors("the index templates"):
        present = search.client.indices.get_index_template(filter_path=_TEMPLATES).body.get("index_templates", [])
        for other in present:
            _check_template(search.prefix, body, other["name"], other["index_template"])


def _check_template(prefix: str, ours: Mapping[str, Any], name: str, other: Mapping[str, Any]) -> None:
    """Check that a template is ours, or is not used for our indices.

    Raises:
        SearchError: it has our name, or would be used instead of ours. It is never overwritten.
    """
    if name == prefix:
        if other.get("_meta") != ours["_meta"]:
            raise SearchError(
                f"the index template {name} was not made by custody, and is not overwritten: delete it, or set another"
                " search.prefix"
            )
        return
    today = datetime.now(UTC).date()
    days = [date(2026, 1, 1), *(today + timedelta(days=number) for number in (-1, 0, 1)), None]
    names = [made(prefix, day) for day in days for made in (index_name, restored_name)]
    names += [f"{prefix}-rejected", f"{prefix}-cursors"]
    patterns = other.get("index_patterns", [])
    if other.get("priority", 0) > ours["priority"] and any(
        fnmatchcase(index, pattern) for index in names for pattern in patterns
    ):
        raise SearchError(
            f"the index template {name[:200]} (priority {other['priority']}, patterns {', '.join(patterns)[:200]})"
            f" would be used instead of {prefix}, which has priority {ours['priority']}: change its patterns or"
            " priority, or set another search.prefix"
        )


def _set_by_others(prefix: str, made: Mapping[str, Any]) -> Iterator[str]:
    """Yield what others set on our indices, or on our alias."""
    for name, index in sorted(made.items()):
        alias = index.get("aliases", {}).get(prefix)
        if alias is not None and not name.startswith(f"{prefix}-"):
            yield f"the index {name[:200]} has the alias {prefix}, and is not custody's: remove the alias from it"
        if alias and {"filter", "search_routing"} & set(alias):
            yield (
                f"the alias {prefix} of the index {name[:200]} has a filter or a routing, which hides documents:"
                " remove it"
            )
        settings = index.get("settings", {}).get("index", {})
        for pipeline in (settings[part] for part in _PIPELINES if settings.get(part, "_none") != "_none"):
            yield (
                f"the index {name[:200]} has the ingest pipeline {pipeline[:200]}, which may change or drop events:"
                " remove the pipeline from its settings"
            )
        if policy := settings.get("lifecycle", {}).get("name"):
            yield (
                f"the index {name[:200]} has the lifecycle policy {policy[:200]}, which may delete events too early:"
                " remove the policy; custody's own roll deletes indices"
            )


def changed_by_others(search: Search, names: Collection[str]) -> dict[str, str]:
    """Return what others changed on some indices that makes them refuse events, with what to do, by the index's name.

    The template says `dynamic: false` and maps known fields only. So under its mapping an unknown field is no reason to
    refuse an event, and there is no limit of fields to reach.

    Raises:
        SearchError: Elasticsearch does not answer, or refuses.
    """
    changed: dict[str, str] = {}
    for name in sorted(names):
        with search.errors(f"the mapping of {name}"):
            # The name may be an alias of several indices.
            made = search.client.indices.get(index=name, filter_path=_CHANGED).body
        for index in made.values():
            if change := _change(index):
                changed[name] = f"on the index {name[:200]} somebody changed {change[:200]}: set it back"
    return changed


def _change(index: Mapping[str, Any]) -> str:
    mappings, settings = index.get("mappings", {}), index.get("settings", {}).get("index", {})
    if str(mappings.get("dynamic", True)).lower() != "false":
        return "the setting `dynamic` of its mapping"
    wanted = documents.properties()
    for name, field in mappings.get("properties", {}).items():
        if not _is_like(field, wanted.get(name)):
            return f"the mapping of the field {name}"
    for pipeline in _PIPELINES:
        if settings.get(pipeline, "_none") != "_none":
            return f"its {pipeline}"
    return ""


def _is_like(field: Any, wanted: Any) -> bool:
    """Return whether a field is mapped as wanted. Elasticsearch may show more of it than was set."""
    if isinstance(wanted, Mapping) and isinstance(field, Mapping):
        return all(_is_like(field.get(name), value) for name, value in wanted.items())
    return str(field).lower() == str(wanted).lower()


def differing_indices(search: Search, index: str | None = None) -> dict[str, tuple[str, bool]]:
    """Return how each index is not as the template makes it, and whether to leave it out of searches.

    Searches may not find the documents of such an index, may get no source to compare, or may fail for all indices.

    Args:
        search: Elasticsearch.
        index: the indices; by default all behind the alias.

    Raises:
        SearchError: Elasticsearch does not answer, or refuses.
    """
    with search.errors("the mappings of its indices"):
        try:
            # Also closed and hidden indices.
            made = search.client.indices.get(
                index=index or search.prefix, filter_path=_MAPPED, expand_wildcards="all"
            ).body
        except NotFoundError:
            return {}
        return {name: _difference(index) for name, index in sorted(made.items())}


def unassigned_indices(search: Search, index: str | None = None) -> frozenset[str]:
    """Return the indices with a primary shard on no node. Searches of them fail, and requests to change them wait.

    Args:
        search: Elasticsearch.
        index: the indices; by default all behind the alias.

    Raises:
        SearchError: Elasticsearch does not answer, or refuses.
    """
    with search.errors("reading the health of its indices"):
        # A new index is red for a moment. 408 is the answer if one stays so.
        health = search.client.options(ignore_status=_WAITED).cluster.health(
            index=index or search.prefix,
            level="indices",
            filter_path="indices.*.status",
            expand_wildcards="all",
            wait_for_status="yellow",
            timeout="2s",
        )
        return frozenset(name for name, made in health.body.get("indices", {}).items() if made["status"] == "red")


def unlike_indices(search: Search) -> dict[str, tuple[str, bool]]:
    """Return `differing_indices`, and those that no node holds (`Search.unassigned`), which are left out too.

    Raises:
        SearchError: Elasticsearch does not answer, or refuses.
    """
    indices = differing_indices(search)
    lost = dict.fromkeys(search.unassigned, ("it has a shard on no node: see its allocation settings", True))
    return {name: lost.get(name, unlike) if not unlike[1] else unlike for name, unlike in indices.items()}


def _difference(index: Mapping[str, Any]) -> tuple[str, bool]:
    mappings, settings = index.get("mappings", {}), index["settings"]["index"]
    source = {**mappings.get("_source", {}), **settings.get("mapping", {}).get("source", {})}
    # A search of the alias would fail for all of its indices.
    if settings.get("verified_before_close") == "true":
        return "it is closed", True
    if settings.get("blocks", {}).get("read") == "true":
        return "it has the block index.blocks.read", True
    mode = settings.get("mode", "standard")
    if mode != "standard" or source not in ({}, {"enabled": True}, {"mode": "stored"}):
        return f"it does not store documents as they are (mode {mode}, source {json.dumps(source)})", True
    if shadows := [name for name in mappings.get("runtime", {}) if name.startswith(ORIGIN)]:
        return f"a runtime field hides {shadows[0]}", True
    wanted = documents.properties()[ORIGIN]["properties"]
    origin = mappings.get("properties", {}).get(ORIGIN, {}).get("properties", {})
    types = {name: origin.get(name, {}).get("type", "no field") for name in wanted}
    for name, field in wanted.items():
        if types[name] != field["type"]:
            # A search of several indices cannot sort integers together with other types.
            left_out = types["offset"] not in _INTEGERS
            return f"{ORIGIN}.{name} is mapped as {types[name]}, not as {field['type']}", left_out
    return "", False


def read_cursor(search: Search, archive: str, log: Log) -> int | None:
    """Return how many statements of a log are indexed, by its cursor. Whoever can write to Elasticsearch can change it.

    Returns:
        The number; 0 if there is no cursor; None if the document is not a cursor.

    Raises:
        SearchError: Elasticsearch does not answer, or refuses.
    """
    with search.errors(f"the cursor of {log}"):
        try:
            hit = search.client.get(index=search.cursors, id=_cursor_id(archive, log), source_includes="sequence")
            document = hit.get("_source")
        except NotFoundError:
            return 0
        except (RecursionError, AnswerTooLarge):
            return None
    try:
        return msgspec.convert(document, _Cursor).sequence
    except msgspec.ValidationError:
        return None


def read_cursors(search: Search, archive: str, logs: Iterable[Log]) -> dict[Log, int]:
    """Return how many statements of several logs are indexed, by those of their cursors that are there and are cursors.

    It is one request. `read_cursor` says more about a log that is left out.

    Raises:
        SearchError: Elasticsearch does not answer, or refuses.
    """
    ids = {_cursor_id(archive, log): log for log in logs}
    cursors: dict[Log, int] = {}
    with search.errors("the cursors"):
        for document in search.client.mget(index=search.cursors, ids=list(ids), source_includes="sequence")["docs"]:
            with suppress(msgspec.ValidationError):
                hit = msgspec.convert(document, _Hit)
                cursors[ids[hit.id]] = hit.source.sequence
    return cursors


def put_cursor(search: Search, archive: str, log: Log, sequence: int) -> None:
    """Store how many statements of a log are indexed.

    With two indexers at once the last write wins: indexing statements again does no harm.

    Raises:
        SearchError: Elasticsearch does not accept it.
    """
    document = {"archive": archive, "log": str(log), "sequence": sequence, "at": format_time(datetime.now(UTC))}
    with search.errors(f"the cursor of {log}"):
        search.client.index(index=search.cursors, id=_cursor_id(archive, log), document=document)


def _cursor_id(archive: str, log: Log) -> str:
    return f"{archive}-{log.name}-{log.partition}"
