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
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from hashlib import sha256
from itertools import groupby
from typing import Any

from elasticsearch import NotFoundError

from custody.archive.reader import Holds, read_manifest
from custody.errors import (
    CustodyError,
    FormatError,
    SearchError,
    StoreError,
    TransientSearchError,
    TransientStoreError,
    counted,
)
from custody.findings import Finding, Severity, finding
from custody.format.layout import Log
from custody.format.manifest import Manifest, Statement
from custody.format.times import parse_time
from custody.store.protocol import Store
from tasks.search.bulk import Bulk, Sent
from tasks.search.client import AnswerTooLarge, Search, Unreachable
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
from tasks.search.indices import prepare, read_cursor, unassigned_indices, unlike_indices
from tasks.search.queries import count_in_ranges, of_log, refused_of
from tasks.settings import Settings

logger = logging.getLogger(__name__)

_PAGE = 1000
_SPARE = 10_000
"""Documents are compared up to twice the number of a statement's events plus this number."""
_SHOWN = 5


class _TooMany(Exception):
    """Far more documents claim a statement's offsets than it has events."""


@dataclass(frozen=True, slots=True)
class _Document:
    """A document as Elasticsearch has it.

    Attributes:
        index: its index.
        offset: the offset that it claims.
        digest: of its source; None if that is not read, or larger than any event. So large documents take no memory.
    """

    index: str
    offset: int
    digest: bytes | None


def compare_with_search(settings: Settings, look: Callable[[Search], Iterator[Finding]]) -> list[dict[str, Any]]:
    """Return the findings of a comparison with Elasticsearch.

    That nothing answers in its place is only a notice. If Elasticsearch answers, but not what is asked, the documents
    could not be verified: whoever can write to it can make searches fail every night. Indices that must be left out
    (`unlike_indices`) hide no others.
    """
    findings: list[dict[str, Any]] = []
    message = "Elasticsearch was not compared with the archive: "
    try:
        with closing(Search(settings.search)) as search:
            search.unassigned, search.skipped = unassigned_indices(search), set()
            indices = unlike_indices(search)
            if any(left_out for _, left_out in indices.values()):
                search.chosen = [name for name, (_, left_out) in indices.items() if not left_out]
            findings += (difference.to_dict() for difference in look(search))
            # The survey reports those that are not as the template makes them.
            for name in sorted(search.skipped - {name for name, (difference, _) in indices.items() if difference}):
                message = f"the index {name[:100]} did not answer every search; its documents were compared in part"
                findings.append(finding("unreadable", message).to_dict())
    except (Unreachable, TransientStoreError) as error:
        findings.append(finding("unreadable", f"{message}{error}", severity=Severity.NOTICE).to_dict())
    except (FormatError, StoreError):
        # Problems with a statement or segment are reported separately.
        pass
    except CustodyError as error:
        findings.append(finding("unreadable", f"{message}{error}").to_dict())
    except Exception as error:
        logger.exception("unexpected error while comparing with Elasticsearch")
        findings.append(finding("unreadable", f"{message}unexpected error ({type(error).__name__})").to_dict())
    return findings


@contextmanager
def skip_damaged() -> Iterator[None]:
    """Skip what cannot be compared because an object of the archive is damaged or missing."""
    try:
        yield
    except (FormatError, StoreError) as error:
        # Verification reads the same object, and reports the problem.
        if isinstance(error, TransientStoreError):
            raise


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
    indexed = read_cursor(search, archive, log) or 0
    oldest = now - timedelta(days=search.settings.days)
    wanted = []
    for sequence in statements:
        with skip_damaged():
            statement = read_manifest(store, log, sequence, holds).statement
            if parse_time(statement.sealed_at) >= oldest:
                wanted.append(statement)
    if not wanted:
        return
    for name in (search.prefix, search.rejected):
        with search.errors("a refresh"), suppress(NotFoundError):
            search.refresh(name)
    hours = [list(group) for _, group in groupby(wanted, lambda statement: statement.sealed_at[:13])]
    ranges = [(hour[0].first_offset, hour[-1].next_offset) for hour in hours]
    present = count_in_ranges(search, search.prefix, of_log(log), OFFSET, ranges)
    rejected = count_in_ranges(search, search.rejected, refused_of(log), "offset", ranges)
    comparison = _Comparison(search, store, log, oldest, indexed, max(indexed, marked), counts)
    for hour, count, refused in zip(hours, present, rejected, strict=True):
        if not count and hour[0].sequence >= comparison.promised:
            continue
        expected = sum(batch.events for statement in hour for batch in statement.batches)
        if content or count + refused != expected:
            for statement in hour:
                yield from comparison.compare(statement)
        else:
            counts["rejected"] += refused
    yield from comparison.restored()


@dataclass(slots=True)
class _Differences:
    """How the documents of a statement differ from its events.

    Attributes:
        extra: offsets of documents that belong to no event, or are duplicates.
        edited: offsets and documents whose content differs.
        moved: offsets and documents that are not in the index of their day.
        missing: events without a document.
        doubtful: events without a document that are listed as rejected.
    """

    extra: list[int] = field(default_factory=list)
    edited: list[tuple[int, _Document]] = field(default_factory=list)
    moved: list[tuple[int, _Document]] = field(default_factory=list)
    missing: list[Documents] = field(default_factory=list)
    doubtful: list[Documents] = field(default_factory=list)


@dataclass(slots=True)
class _Comparison:
    """Compares the documents of a log with its events, statement by statement."""

    search: Search
    store: Store
    log: Log
    oldest: datetime
    indexed: int
    """Number of statements that are indexed by Elasticsearch's cursor."""
    promised: int
    """Number of statements that the cursor or audits say are indexed; later ones may still be catching up."""
    counts: Counter[str]
    """Events that are listed as rejected, and not there, are added to its `rejected`."""
    _restored: list[tuple[Statement, int]] = field(default_factory=list)
    """Statements between the two with missing events, and the number of these events."""

    def compare(self, statement: Statement) -> Iterator[Finding]:
        """Compare each document of a statement with its event."""
        where: dict[str, Any] = {"log": str(self.log), "sequence": statement.sequence}
        try:
            # Whoever can write to Elasticsearch chooses what parsers get to see here.
            with self.search.errors("its documents"):
                differences = self._differences(statement)
        except TransientSearchError:
            raise
        except SearchError as error:
            message = f"the documents of this statement were not compared with its events: {error}"
            yield finding("unreadable", message, offset=statement.first_offset, **where)
            return
        except _TooMany as error:
            yield finding("index-extra", str(error), offset=statement.first_offset, **where)
            return
        if extra := differences.extra:
            many = counted(len(extra), "document belongs", "documents belong")
            message = (
                f"{many} to no event, or {'is a duplicate' if len(extra) == 1 else 'are duplicates'} ({_some(extra)})"
            )
            yield finding("index-extra", message, offset=extra[0], **where)
        if edited := differences.edited:
            message = (
                f"{counted(len(edited), 'document differs', 'documents differ')} from the archived event"
                f" ({_some([offset for offset, _ in edited])});"
                f" the first is in {edited[0][1].index[:100]}"
            )
            yield finding("index-edited", message, offset=edited[0][0], **where)
        if moved := differences.moved:
            message = (
                f"{counted(len(moved), 'document is', 'documents are')} as archived"
                f" ({_some([offset for offset, _ in moved])}), but not in the index of the event's day; the first is in"
                f" {moved[0][1].index[:100]}: it was restored under another name, or somebody moved it, and it is not"
                " deleted with that day"
            )
            yield finding("index-edited", message, severity=Severity.NOTICE, offset=moved[0][0], **where)
        if differences.missing:
            offsets, created, problem = self._create(differences.missing)
            if statement.sequence < self.indexed:
                message = (
                    f"{counted(len(offsets), 'event was', 'events were')} not in Elasticsearch ({_some(offsets)});"
                    f" indexed again: {created:,}{problem}"
                )
                yield finding("index-missing", message, offset=offsets[0], **where)
            else:
                self._restored.append((statement, len(offsets)))
        # Otherwise somebody could delete a document and list it as rejected.
        if not differences.doubtful:
            return
        offsets, accepted, problem = self._create(differences.doubtful)
        if problem:
            message = f"whether {counted(len(offsets), 'event is', 'events are')} still rejected is not known{problem}"
            yield finding("unreadable", message, offset=offsets[0], **where)
        if accepted:
            message = (
                f"{counted(accepted, 'event')} that {self.search.rejected} lists as rejected, Elasticsearch lacked but"
                f" accepts: {'it was' if accepted == 1 else 'they were'} indexed now"
            )
            yield finding("index-missing", message, **where)

    def restored(self) -> Iterator[Finding]:
        """Report events that were indexed again because Elasticsearch lost them and set its cursor back."""
        if self._restored:
            many = counted(sum(count for _, count in self._restored), "event was", "events were")
            message = (
                f"{many} not in Elasticsearch after its cursor, and indexed again, although an audit has seen that"
                " part of the log there: Elasticsearch was lost or restored, somebody set the cursor back, or a"
                " backfill wrote later events before the indexing came so far"
            )
            (first, _), (last, _) = self._restored[0], self._restored[-1]
            where: dict[str, Any] = {"log": str(self.log), "sequence": first.sequence, "through": last.sequence}
            yield finding("index-missing", message, severity=Severity.NOTICE, offset=first.first_offset, **where)

    def _differences(self, statement: Statement) -> _Differences:
        differences = _Differences()
        unmatched: dict[int, list[_Document]] = {}
        for document in _documents(self.search, self.search.prefix, of_log(self.log), OFFSET, statement):
            unmatched.setdefault(document.offset, []).append(document)
        promised = statement.sequence < self.promised
        if not unmatched and not promised:
            return differences
        name, query = self.search.rejected, refused_of(self.log)
        rejected = _documents(self.search, name, query, "offset", statement, content=False)
        refused = {document.offset for document in rejected}
        prefix, days = self.search.prefix, self.search.settings.days
        with skip_damaged():
            for expected in read_documents(self.store, prefix, days, self.log, statement):
                missing: set[int] = set()
                doubtful: set[int] = set()
                for position, offset in enumerate(expected.offsets):
                    index = expected.action(position)["_index"]
                    if documents := unmatched.get(offset, []):
                        # If several claim an offset, the one in the expected index is taken for the event.
                        taken = next((number for number, it in enumerate(documents) if it.index == index), 0)
                        document = documents.pop(taken)
                        event = json.loads(expected.sources[position])
                        if document.digest != _digest(event):
                            differences.edited.append((offset, document))
                        elif document.index != index and not self._may_hold(document.index, index, event):
                            differences.moved.append((offset, document))
                    elif promised:
                        known = offset in refused or offset in expected.forged
                        self.counts["rejected"] += known
                        if self._is_kept(index):
                            (doubtful if known else missing).add(offset)
                differences.missing += [expected.only(missing)] if missing else []
                differences.doubtful += [expected.only(doubtful)] if doubtful else []
            # If the segment cannot be read to its end, documents that were not compared are not extra.
            differences.extra = sorted(offset for offset, left in unmatched.items() for _ in left)
        return differences

    def _is_kept(self, index: str) -> bool:
        """Return whether an index must still exist, by its day, and can be searched for its events."""
        if index in self.search.unassigned:
            return False
        day = index_day(self.search.prefix, index)
        return day is None or day > self.oldest.date()

    def _may_hold(self, holding: str, index: str, event: Mapping[str, Any]) -> bool:
        """Return whether the index that holds an event may do so. Today the event would be put into the second one.

        If `search.days` was changed, an event that is out of range now may be in its day's index, or the other way
        round. A backfill restores both to indices with other names.
        """
        prefix = self.search.prefix
        if holding in {out_of_range_name(prefix), restored_name(prefix, None)}:
            return True
        day = index_day(prefix, index) or date_of(event["timestamp"])
        return day is not None and holding in {index_name(prefix, day), restored_name(prefix, day)}

    def _create(self, parts: Sequence[Documents]) -> tuple[Sequence[int], int, str]:
        """Index documents, and return their offsets, how many were created, and why the others were not."""
        documents, sent, problem = Documents.join(parts), Sent(), ""
        try:
            # An Elasticsearch that was lost has no templates either, and would guess the fields' types.
            prepare(self.search)
            Bulk(self.search).send(self.log, [documents], sent)
        except SearchError as error:
            problem = f": {error}"
        return documents.offsets, sent.created, problem


def _digest(document: Mapping[str, Any]) -> bytes:
    """Return the digest of a document as text: in Python 0 == False and 1.0 == 1, but in a search they differ."""
    return sha256(json.dumps(document, sort_keys=True).encode()).digest()


def _documents(
    search: Search,
    index: str,
    query: list[dict[str, Any]],
    field: str,
    statement: Statement,
    *,
    content: bool = True,
) -> Iterator[_Document]:
    """Yield the documents of a statement's offsets, in order.

    An answer that is too large is asked for again in halves. What is too large alone is no event, so it is not read.

    Raises:
        _TooMany: they are far more than the statement has events.
    """
    within = {"range": {field: {"gte": statement.first_offset, "lt": statement.next_offset}}}
    events = sum(batch.events for batch in statement.batches)
    after: Sequence[Any] | None = None
    size, source = _PAGE, content
    while True:
        with search.errors(f"documents of {index}"):
            try:
                answer = search.find(
                    index=index,
                    size=size,
                    source=source,
                    query={"bool": {"filter": [*query, within]}},
                    # Any number of documents may claim one offset.
                    sort=[{field: "asc"}, {"_index": "asc"}, {"_seq_no": "asc"}],
                    search_after=after,
                    track_total_hits=True,
                )
            except NotFoundError:
                return
            except AnswerTooLarge:
                if not source:
                    raise
                size, source = max(size // 2, 1), size > 1
                continue
            hits, total = answer["hits"]["hits"], answer["hits"]["total"]["value"]
        if total > 2 * events + _SPARE:
            raise _TooMany(
                f"{counted(total, 'document')} of {index} claim the offsets of {counted(events, 'event')}, too many to"
                " be compared: find"
                " out who wrote them, delete those that belong to no event, and run `custody audit --full`"
            )
        for hit in hits:
            yield _Document(hit["_index"], _offset(hit), _digest(hit["_source"]) if source else None)
        if len(hits) < size:
            return
        after = hits[-1]["sort"]
        size, source = min(2 * size, _PAGE), content
        # Not held while the next answer is parsed.
        del answer, hits, hit


def _offset(hit: Mapping[str, Any]) -> int:
    """Return the offset that a document claims. If it claims several, the one in `@custody` counts."""
    origin = hit.get("_source", {}).get(ORIGIN)
    claimed = origin.get("offset") if isinstance(origin, Mapping) else None
    return claimed if type(claimed) is int else int(hit["sort"][0])


def _some(offsets: Sequence[int]) -> str:
    shown = ", ".join(map(str, offsets[:_SHOWN]))
    return f"offset{'s' if len(offsets) > 1 else ''} {shown}{', …' if len(offsets) > _SHOWN else ''}"
