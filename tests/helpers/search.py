"""What tests of Elasticsearch share: events of today, settings of an indexed archive, and what lies in the indices."""

import json
from collections import Counter
from datetime import UTC, datetime
from typing import Any

from custody.archive.reader import read_archive
from custody.format.layout import Log
from custody.store.open import open_store
from tasks.search.client import Search
from tasks.search.documents import ORIGIN
from tasks.search.reconcile import reconcile
from tasks.settings import SearchSettings, Settings
from tests.helpers.corpus import EVENTS
from tests.helpers.own import own_event
from tests.helpers.sample import Growing

LOG = Log("audit.grows", 0)
"""The log of a `Growing`."""


def now_event(offset: int, **fields: Any) -> bytes:
    """Return an event of today."""
    kind = list(EVENTS)[offset % len(EVENTS)]
    time = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    return json.dumps({**EVENTS[kind], "timestamp": time, "request_id": f"request-{offset}", **fields}).encode()


def now_own(offset: int, **more: Any) -> bytes:
    """Return an event of an own type, of today."""
    now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    return json.dumps({**json.loads(own_event(offset)), "timestamp": now, **more}).encode()


def now_event_but_refused(offset: int) -> bytes:
    """Return an event of today, which Elasticsearch refuses where its offset is 18."""
    more = {**EVENTS["api_key_operation"], "permissions": [{"no": "keyword"}]} if offset == 18 else {}
    return json.dumps({**json.loads(now_event(offset)), **more, "timestamp": f"{datetime.now(UTC):%FT%TZ}"}).encode()


def document_id(log: Log, offset: int) -> str:
    """Return the id of an event's document: doing it again changes nothing."""
    return f"{log.name}-{log.partition}-{offset}"


def search_settings(growing: Growing, url: str, prefix: str, **more: Any) -> Settings:
    """Return the settings of an archive that is indexed under a prefix."""
    return Settings(
        archive=str(growing.folder),
        keys=f"file:{growing.keyring}",
        search=SearchSettings(url=url, prefix=prefix, replicas=0, **more),
    )


def documents(given: Settings, query: dict[str, Any] | None = None) -> dict[str, dict[str, Any]]:
    """Return the documents behind the alias that match, by id, with their index; no id is there twice."""
    opened = Search(given.search)
    try:
        opened.client.indices.refresh(index=f"{given.search.prefix}*")
        answer = opened.client.search(index=given.search.prefix, query=query, size=10_000)
        hits = answer["hits"]["hits"]
        assert answer["hits"]["total"]["value"] == len(hits)
        assert len({hit["_id"] for hit in hits}) == len(hits)
        return {hit["_id"]: {"_index": hit["_index"], **hit["_source"]} for hit in hits}
    finally:
        opened.close()


def matching_offsets(given: Settings, query: dict[str, Any]) -> list[int]:
    """Return the offsets of the events that match."""
    return sorted(document[ORIGIN]["offset"] for document in documents(given, query).values())


def compare(given: Settings, growing: Growing) -> list[tuple[str, int | None]]:
    """Compare each document with the archive, and return name and offset of each finding."""
    store, search = open_store(given.archive), Search(given.search)
    try:
        archive = read_archive(store).id
        sequences = range(len(list((growing.folder / "manifests" / growing.log).iterdir())))
        found = reconcile(
            search, store, archive, LOG, sequences, datetime.now(UTC),
            marked=0, content=True, counts=Counter(), holds=lambda _, __: True,
        )  # fmt: skip
        return [(one.finding, one.to_dict().get("offset")) for one in found]
    finally:
        search.close()


def daily_indices(search: Search) -> set[str]:
    """Return the names of the indices of a day."""
    return set(search.client.indices.get(index=f"{search.prefix}-2*"))


def delete_indices(given: Settings) -> None:
    """Delete all indices of a prefix, and their template: tests share the server."""
    opened = Search(given.search)
    opened.client.options(ignore_status=404).indices.delete(index=f"{opened.prefix}*")
    opened.client.options(ignore_status=404).indices.delete_index_template(name=opened.prefix)
    opened.close()
