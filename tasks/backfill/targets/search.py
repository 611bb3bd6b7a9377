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
    BROUGHT,
    Documents,
    index_name,
    is_restored,
    make_documents,
    outlying_name,
    restored_name,
)
from tasks.search.indices import prepare
from tasks.settings import Settings

_MARKED_EVERY = timedelta(hours=1)


class SearchTarget(Target):
    """Elasticsearch: each event is a document of its day, as the indexer makes it, and is created once.

    The index of a day that has aged out, and is gone, would be deleted again by the next roll. So such days come back
    under another name (`documents.restored_name`), behind the same alias, and stay for `search.restored_days`; so do
    outlying events that were sealed so long ago. Such an index says when something was last brought there, and is made
    and marked before anything is: the roll counts from then on.
    """

    def __init__(self, settings: Settings, search: Search) -> None:
        """Set the templates.

        Raises:
            SearchError: Elasticsearch does not answer, or says no.
        """
        self._settings, self._search, self._bulk = settings.search, search, Bulk(search)
        self._oldest = datetime.now(UTC).date() - timedelta(days=settings.search.days)
        self._names: dict[date, str] = {}
        self._marked: dict[str, datetime] = {}
        prepare(search)

    def write(self, part: Part, contents: Iterator[Content], sent: Sent) -> None:
        """Create documents, about as many at a time as go into a request."""
        size = 0
        waiting: list[Documents] = []
        try:
            for one in contents:
                waiting.append(self._documents(part.log, one))
                size += len(one.payload)
                if size >= self._settings.bulk_bytes:
                    self._create(part.log, waiting, sent)
                    size = 0
        finally:
            # What was read before something was found damaged is copied all the same.
            self._create(part.log, waiting, sent)

    def _documents(self, log: Log, one: Content) -> Documents:
        where = (self._search.prefix, self._settings.days, log, one.statement, one.batch, one.payload)
        naming = partial(self._name, one.statement)
        return make_documents(*where, among=() if one.whole else one.offsets, naming=naming)

    def _create(self, log: Log, waiting: list[Documents], total: Sent) -> None:
        if not waiting:
            return
        found, waiting[:] = Documents.join(waiting), []
        for name in {msgspec.json.decode(action)["create"]["_index"] for action in found.actions}:
            if is_restored(self._search.prefix, name):
                self._mark(name)
        self._bulk.create(log, found).add_to(total)

    def _name(self, statement: Statement, day: date | None) -> str:
        if day is None:
            kept = parse_time(statement.sealed_at).date() >= self._oldest
            return outlying_name(self._search.prefix) if kept else restored_name(self._search.prefix, None)
        if day not in self._names:
            own = index_name(self._search.prefix, day)
            with self._search.errors(f"whether there is {own}"):
                kept = day >= self._oldest or bool(self._search.client.indices.exists(index=own))
            self._names[day] = own if kept else restored_name(self._search.prefix, day)
        return self._names[day]

    def _mark(self, name: str) -> None:
        """Note in an index of restored events that some are brought there now; make it if it is not there."""
        now = datetime.now(UTC)
        # A long backfill says it again; each time costs the cluster a new state.
        if name in self._marked and now - self._marked[name] < _MARKED_EVERY:
            return
        indices = self._search.client.indices
        with self._search.errors(f"when events were brought to {name}"):
            try:
                indices.create(index=name)
            except ApiError as error:
                if error.error != "resource_already_exists_exception":
                    raise
            indices.put_mapping(index=name, meta={BROUGHT: format_time(now)})
        self._marked[name] = now
