"""Compares Elasticsearch with the archive: by counts for each log and hour, and document by document where needed.

Missing events are reported and indexed again. Extra or changed documents are reported and left as they are, as
evidence. Events that are older than the index's retention are not compared.

Whoever can write to Elasticsearch can also change its cursors, so cursors must not hide anything:

1. Documents are compared whatever the cursor says.
2. Events before the cursor that are not in Elasticsearch are missing. So a cursor that was set ahead is found out.
3. Events after the cursor that are not in Elasticsearch, but before the end that an audit has found indexed (by the
   cursor or the last document), are indexed again, with a notice. Elasticsearch was lost, or restored from an older
   snapshot, or somebody set the cursor back.
4. Events after both are late; indexing will catch up. A cursor that is far behind is a notice.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import groupby
from typing import Any

from elasticsearch import NotFoundError

from custody.archive.reader import (
    Holds,
    read_manifest,
)
from custody.findings import Finding, Severity, finding
from custody.format.layout import Log
from custody.format.manifest import Manifest, Statement
from custody.format.times import parse_time
from custody.store.protocol import Store
from tasks.search.bulk import Bulk
from tasks.search.client import Search
from tasks.search.compare import skip_damaged
from tasks.search.cursors import read_cursor
from tasks.search.documents import (
    OFFSET,
    ORIGIN,
    Documents,
    date_of,
    index_day,
    index_name,
    out_of_range_name,
    read_documents,
    restored_name,
)
from tasks.search.indices import prepare
from tasks.search.queries import count_in_ranges, of_log, refused_of

_PAGE = 1000
_SPARE = 10_000
"""Documents are compared up to twice the number of a statement's events plus this number."""
_SHOWN = 5


class _TooMany(Exception):
    """Far more documents claim a statement's offsets than it has events."""


@dataclass(frozen=True, slots=True)
class _Document:
    """A document as Elasticsearch has it."""

    index: str
    offset: int
    source: Mapping[str, Any]


def reconcile(
    search: Search,
    store: Store,
    archive: str,
    log: Log,
    statements: range,
    now: datetime,
    *,
    marked: int,
    content: bool,
    counts: Counter[str],
    holds: Holds[Manifest],
) -> Iterator[Finding]:
    """Compare the documents of some of a log's statements with the archive.

    A statement or segment that cannot be read is skipped: verification reports what is wrong with it.

    Args:
        search: Elasticsearch.
        store: the archive.
        archive: its id.
        log: the log.
        statements: their sequences.
        now: the time, timezone-aware.
        marked: how many statements audits have found indexed.
        content: compare each document, not only the counts.
        counts: the number of these statements' events that Elasticsearch rejected is added to its `rejected`.
        holds: returns whether a statement is valid in its slot.

    Raises:
        SearchError: Elasticsearch does not answer.
        TransientStoreError: the archive does not answer.
    """
    cursor = read_cursor(search, archive, log)
    oldest = now - timedelta(days=search.settings.days)
    wanted = []
    for sequence in statements:
        with skip_damaged():
            statement = read_manifest(store, log, sequence, holds).statement
            if parse_time(statement.sealed_at) >= oldest:
                wanted.append(statement)
    if not wanted:
        return
    with search.errors("a refresh"), suppress(NotFoundError):
        search.refresh(f"{search.prefix},{search.rejected}")
    hours = [list(group) for _, group in groupby(wanted, lambda statement: statement.sealed_at[:13])]
    ranges = [(hour[0].first_offset, hour[-1].next_offset) for hour in hours]
    found = count_in_ranges(search, search.prefix, of_log(log), OFFSET, ranges)
    rejected = count_in_ranges(search, search.rejected, refused_of(log), "offset", ranges)
    counts["rejected"] += sum(rejected)
    looked = _Comparison(search, store, log, oldest, cursor.sequence if cursor else 0, marked)
    for hour, count, refused in zip(hours, found, rejected, strict=True):
        if not count and hour[0].sequence >= looked.promised:
            continue
        expected = sum(batch.events for one in hour for batch in one.batches)
        if content or count + refused != expected:
            for statement in hour:
                yield from looked.compare(statement)
    yield from looked.restored()


@dataclass(slots=True)
class _Seen:
    """How the documents of a statement compare with its events.

    Attributes:
        edited: offsets and documents whose content differs.
        moved: offsets and documents that are not in the index of their day.
        lacking: events without a document, by their indexes in a batch.
        doubted: events without a document that are listed as rejected.
        whole: whether all events were read.
    """

    edited: list[tuple[int, _Document]] = field(default_factory=list)
    moved: list[tuple[int, _Document]] = field(default_factory=list)
    lacking: list[tuple[Documents, list[int]]] = field(default_factory=list)
    doubted: list[tuple[Documents, list[int]]] = field(default_factory=list)
    whole: bool = False

    def changed(self, where: Mapping[str, Any]) -> Iterator[Finding]:
        """Yield findings for documents that were changed or moved."""
        if self.edited:
            what = (
                f"{len(self.edited)} documents differ from the archived events"
                f" ({_some([offset for offset, _ in self.edited])}); the first is in {self.edited[0][1].index[:100]}"
            )
            yield finding("index-edited", what, offset=self.edited[0][0], **where)
        if self.moved:
            what = (
                f"{len(self.moved)} documents are as archived ({_some([offset for offset, _ in self.moved])}), but not"
                f" in the index of their day; the first is in {self.moved[0][1].index[:100]}: they were restored under"
                " another name, or somebody moved them, and they are not deleted with their day"
            )
            yield finding("index-edited", what, severity=Severity.NOTICE, offset=self.moved[0][0], **where)


@dataclass(slots=True)
class _Comparison:
    """Compares the documents of a log with its events, statement by statement."""

    search: Search
    store: Store
    log: Log
    oldest: datetime
    indexed: int
    """Number of statements that are indexed by Elasticsearch's cursor."""
    marked: int
    """Number of statements that audits have found indexed."""
    _restored: list[tuple[Statement, int]] = field(default_factory=list)
    """Statements between the two with missing events, and the number of these events."""
    _bulk: Bulk = field(init=False)

    def __post_init__(self) -> None:
        self._bulk = Bulk(self.search)

    @property
    def promised(self) -> int:
        """Number of statements that must be fully indexed; later ones may still be catching up."""
        return max(self.indexed, self.marked)

    def compare(self, statement: Statement) -> Iterator[Finding]:
        """Compare each document of a statement with its event."""
        try:
            yield from self._compare(statement)
        except _TooMany as error:
            where: dict[str, Any] = {"sequence": statement.sequence, "offset": statement.first_offset}
            yield finding("index-extra", str(error), log=str(self.log), **where)

    def _compare(self, statement: Statement) -> Iterator[Finding]:
        there: dict[int, list[_Document]] = {}
        for document in _documents(self.search, self.search.prefix, of_log(self.log), OFFSET, statement):
            there.setdefault(document.offset, []).append(document)
        promised = statement.sequence < self.promised
        if not there and not promised:
            return
        seen = self._look(statement, there, promised=promised)
        where: dict[str, Any] = {"log": str(self.log), "sequence": statement.sequence}
        # If the segment could not be read to its end, documents that were not compared are not extra.
        extra = sorted(offset for offset, left in there.items() for _ in left) if seen.whole else []
        if extra:
            what = f"{len(extra)} documents belong to no event, or are duplicates ({_some(extra)})"
            yield finding("index-extra", what, offset=extra[0], **where)
        yield from seen.changed(where)
        yield from self._fill(statement, seen, where)

    def _look(self, statement: Statement, there: dict[int, list[_Document]], *, promised: bool) -> "_Seen":
        """Compare documents, by their offsets, with a statement's events, and remove those from `there`."""
        refused = {
            document.offset
            for document in _documents(self.search, self.search.rejected, refused_of(self.log), "offset", statement)
        }
        seen = _Seen()
        with skip_damaged():
            for expected in self._expected(statement):
                missing: list[int] = []
                doubtful: list[int] = []
                for place, offset in enumerate(expected.offsets):
                    index = json.loads(expected.actions[place])["create"]["_index"]
                    if documents := there.get(offset, []):
                        one, as_archived = self._take(documents, index, expected.sources[place])
                        if not as_archived:
                            seen.edited.append((offset, one))
                        elif one.index != index and not self._may_lie(one, index):
                            seen.moved.append((offset, one))
                    elif promised and self._is_kept(index):
                        known = offset in refused or offset in expected.forged
                        (doubtful if known else missing).append(place)
                seen.lacking += [(expected, missing)] if missing else []
                seen.doubted += [(expected, doubtful)] if doubtful else []
            seen.whole = True
        return seen

    def _is_kept(self, index: str) -> bool:
        """Return whether an index must still exist, by its day."""
        day = index_day(self.search.prefix, index)
        return day is None or day > self.oldest.date()

    def _fill(self, statement: Statement, seen: "_Seen", where: Mapping[str, Any]) -> Iterator[Finding]:
        """Index events again that are missing, or are listed as rejected."""
        if seen.lacking:
            offsets = [expected.offsets[place] for expected, places in seen.lacking for place in places]
            created = self._create(seen.lacking)
            if statement.sequence < self.indexed:
                what = (
                    f"{len(offsets)} events were not in Elasticsearch ({_some(offsets)}); {created} were indexed again"
                )
                yield finding("index-missing", what, offset=offsets[0], **where)
            else:
                self._restored.append((statement, len(offsets)))
        # Otherwise somebody could delete a document and list it as rejected.
        taken = self._create(seen.doubted) if seen.doubted else 0
        if taken:
            what = (
                f"{taken} events that {self.search.rejected} lists as rejected were not in Elasticsearch, which accepts"
                " them: they were indexed now"
            )
            yield finding("index-missing", what, **where)

    def restored(self) -> Iterator[Finding]:
        """Report events that were indexed again because Elasticsearch lost them and set its cursor back."""
        if self._restored:
            what = (
                f"{sum(count for _, count in self._restored):,} events were not in Elasticsearch, and were indexed"
                " again. They are after its cursor, but an audit has found them, or later ones, there: Elasticsearch"
                " was lost or restored, somebody set the cursor back, or a backfill wrote later events before the"
                " indexing reached them"
            )
            (first, _), (last, _) = self._restored[0], self._restored[-1]
            where: dict[str, Any] = {"log": str(self.log), "sequence": first.sequence, "through": last.sequence}
            yield finding("index-missing", what, severity=Severity.NOTICE, offset=first.first_offset, **where)

    def _expected(self, statement: Statement) -> Iterator[Documents]:
        return read_documents(self.store, self.search.prefix, self.search.settings.days, self.log, statement)

    def _take(self, found: list[_Document], index: str, source: bytes) -> tuple[_Document, bool]:
        """Remove an event's document from those that claim its offset, and return it, and whether it is as archived."""
        # If several claim an offset, the one in the expected index is taken for the event.
        one = found.pop(next((number for number, it in enumerate(found) if it.index == index), 0))
        # Compared as text: in Python 0 == False and 1.0 == 1, but in a search they differ.
        return one, _text(one.source) == _text(json.loads(source))

    def _may_lie(self, one: _Document, index: str) -> bool:
        """Return whether an event may be in another index than the one where it would be put today.

        If `search.days` was changed, an event that is out of range now may be in its day's index, or the other way
        round. A backfill restores both to indices with other names.
        """
        prefix = self.search.prefix
        if one.index in {out_of_range_name(prefix), restored_name(prefix, None)}:
            return True
        day = index_day(prefix, index) or date_of(one.source["timestamp"])
        return day is not None and one.index in {index_name(prefix, day), restored_name(prefix, day)}

    def _create(self, lacking: Sequence[tuple[Documents, Sequence[int]]]) -> int:
        # An Elasticsearch that was lost has no templates either, and would guess the fields' types.
        prepare(self.search)
        return self._bulk.create(self.log, Documents.join([one.at(places) for one, places in lacking])).created


def _text(document: Mapping[str, Any]) -> str:
    return json.dumps(document, sort_keys=True)


def _documents(
    search: Search, index: str, query: list[dict[str, Any]], field: str, statement: Statement
) -> Iterator[_Document]:
    """Yield the documents of a statement's offsets, in order.

    Raises:
        _TooMany: they are far more than the statement has events.
    """
    within = {"range": {field: {"gte": statement.first_offset, "lt": statement.next_offset}}}
    events = sum(batch.events for batch in statement.batches)
    after: Sequence[Any] | None = None
    while True:
        with search.errors(f"documents of {index}"):
            try:
                answer = search.find(
                    index=index,
                    size=_PAGE,
                    query={"bool": {"filter": [*query, within]}},
                    # Any number of documents may claim one offset.
                    sort=[{field: "asc"}, {"_index": "asc"}, {"_seq_no": "asc"}],
                    search_after=after,
                    track_total_hits=True,
                )
            except NotFoundError:
                return
            hits, total = answer["hits"]["hits"], answer["hits"]["total"]["value"]
        if total > 2 * events + _SPARE:
            raise _TooMany(
                f"{total:,} documents of {index} claim the offsets of {events:,} events, too many to be compared: find"
                " out who wrote them, delete those that belong to no event, and run `custody audit --full`"
            )
        for hit in hits:
            yield _Document(hit["_index"], _offset(hit), hit["_source"])
        if len(hits) < _PAGE:
            return
        after = hits[-1]["sort"]


def _offset(hit: Mapping[str, Any]) -> int:
    """Return the offset that a document claims. If it claims several, the one in `@custody` counts."""
    origin = hit["_source"].get(ORIGIN)
    claimed = origin.get("offset") if isinstance(origin, Mapping) else None
    return claimed if type(claimed) is int else int(hit["sort"][0])


def _some(offsets: Sequence[int]) -> str:
    shown = ", ".join(map(str, offsets[:_SHOWN]))
    return f"offset{'s' if len(offsets) > 1 else ''} {shown}{', …' if len(offsets) > _SHOWN else ''}"
