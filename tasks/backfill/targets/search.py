"""Elasticsearch as a target."""

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from functools import partial

import msgspec
from elasticsearch import ApiError

from custody.format.layout import Log
from custody.format.manifest import Statement
from custody.format.times import format_time, parse_time
from tasks.backfill.targets.target import Content, Part, Target
from tasks.search.bulk import Bulk, Sent
from tasks.search.client import Search
from tasks.search.documents import (
    RESTORED_AT,
    Documents,
    index_name,
    is_restored,
    make_documents,
    out_of_range_name,
    restored_name,
)
from tasks.search.indices import prepare
from tasks.settings import Settings

_MARKED_EVERY = timedelta(hours=1)


class SearchTarget(Target):
    """Elasticsearch: each event becomes a document in the index of its day, as the indexer makes it, exactly once.

    The next roll would delete the index of an old day again. So events of days whose index was deleted go to an index
    with another name (`documents.restored_name`) behind the same alias, and stay for `search.restored_days`. The same
    holds for old out-of-range events. Before events are restored, the index is created and marked with the time. The
    roll counts the days from that mark.
    """

    def __init__(self, settings: Settings, search: Search) -> None:
        """Set the templates.

        Raises:
            SearchError: Elasticsearch does not answer, or refuses.
        """
        self._settings, self._search, self._bulk = settings.search, search, Bulk(search)
        self._oldest = datetime.now(UTC).date() - timedelta(days=settings.search.days)
        self._names: dict[date, str] = {}
        self._marked: dict[str, datetime] = {}
        prepare(search)

    def write(self, part: Part, contents: Iterator[Content], sent: Sent) -> None:
        """Create documents, about one bulk request at a time."""
        size = 0
        waiting: list[Documents] = []
        try:
            for content in contents:
                waiting.append(self._documents(part.log, content))
                size += len(content.payload)
                if size >= self._settings.bulk_bytes:
                    self._create(part.log, waiting, sent)
                    size = 0
        finally:
            # Events before a damaged batch are copied too.
            self._create(part.log, waiting, sent)

    def _documents(self, log: Log, content: Content) -> Documents:
        source = (self._search.prefix, self._settings.days, log, content.statement, content.batch, content.payload)
        naming = partial(self._name, content.statement)
        return make_documents(*source, among=() if content.whole else content.offsets, naming=naming)

    def _create(self, log: Log, waiting: list[Documents], total: Sent) -> None:
        if not waiting:
            return
        documents, waiting[:] = Documents.join(waiting), []
        for name in {msgspec.json.decode(action)["create"]["_index"] for action in documents.actions}:
            if is_restored(self._search.prefix, name):
                self._mark(name)
        self._bulk.create(log, documents).add_to(total)

    def _name(self, statement: Statement, day: date | None) -> str:
        if day is None:
            kept = parse_time(statement.sealed_at).date() >= self._oldest
            return out_of_range_name(self._search.prefix) if kept else restored_name(self._search.prefix, None)
        if day not in self._names:
            own = index_name(self._search.prefix, day)
            with self._search.errors(f"checking whether {own} exists"):
                kept = day >= self._oldest or bool(self._search.client.indices.exists(index=own))
            self._names[day] = own if kept else restored_name(self._search.prefix, day)
        return self._names[day]

    def _mark(self, name: str) -> None:
        """Mark an index of restored events with the present time, and create it if it does not exist."""
        now = datetime.now(UTC)
        # A long backfill repeats the mark, but not often: each one costs a new cluster state.
        if name in self._marked and now - self._marked[name] < _MARKED_EVERY:
            return
        indices = self._search.client.indices
        with self._search.errors(f"marking when events were restored to {name}"):
            try:
                indices.create(index=name)
            except ApiError as error:
                if error.error != "resource_already_exists_exception":
                    raise
            indices.put_mapping(index=name, meta={RESTORED_AT: format_time(now)})
        self._marked[name] = now
