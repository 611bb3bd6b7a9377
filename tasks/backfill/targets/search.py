"""Elasticsearch as a target."""

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from functools import partial

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
        """Create documents, about one bulk request at a time. Events before a damaged batch are copied too."""
        self._bulk.send(part.log, (self._documents(part.log, content) for content in contents), sent)

    def _documents(self, log: Log, content: Content) -> Documents:
        naming = partial(self._name, content.statement)
        documents = make_documents(self._settings.days, log, content.statement, content.batch, content.payload, naming)
        chosen = documents if content.whole else documents.only(set(content.offsets))
        for name in {chosen.action(position)["_index"] for position in range(len(chosen.offsets))}:
            if is_restored(self._search.prefix, name):
                self._mark(name)
        return chosen

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
        with self._search.errors(f"marking when events were restored to {name}"):
            self._search.create_index(name)
            self._search.client.indices.put_mapping(index=name, meta={RESTORED_AT: format_time(now)})
        self._marked[name] = now
