"""`custody verify --kafka`: reads the records that the broker still has, and compares them with the archive.

For each log whose topic is still the one that it was made from:

1. The signed head in the group's committed offset must be a head of the log.
2. Each record that the broker has below the head must be the archive's record at that offset. An event must be equal
   byte for byte, except for newlines; a quarantined record must have the same key, value, headers and time. If a
   statement says that an offset has no record, the broker must have none.

Records that retention or compaction removed cannot be compared, which is no finding. If the topic was recreated or
truncated, nothing is compared: `topic-changed`. Parts of the archive that cannot be read are skipped here, because the
rest of the verification reports them.

One batch and one read from Kafka are in memory at a time.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from heapq import merge
from itertools import chain, groupby
from operator import attrgetter

from confluent_kafka import TopicPartition

from custody.archive.assemble import Record, quarantine_line
from custody.archive.forms import statements_of
from custody.archive.reader import Holds, find_tip, list_logs, manifests_from, read_archive, read_batch
from custody.archive.search import first_sequence
from custody.archive.trusted import Judge
from custody.errors import CustodyError, FormatError, ObjectMissing, SourceError, StoreError
from custody.findings import Finding, finding, loss_digest
from custody.format import layout
from custody.format.layout import Log
from custody.format.leaves import split
from custody.format.manifest import DIRECT, Manifest, Range, Statement
from custody.format.offsets import Measure, line_offsets, unlined_ranges
from custody.format.quarantine import QuarantinedRecord, parse_quarantined, quarantine_lines
from custody.keys.trust import Trust
from custody.store.pieces import read_pieces
from custody.store.protocol import Store
from custody.tlog.head import Head
from tasks.drain import kafka
from tasks.drain.change import find_change
from tasks.drain.committed_heads import check_committed_head
from tasks.drain.kafka import Broker, Feed, Received
from tasks.drain.kafka_errors import is_of_group, map_error, reading
from tasks.settings import Settings

_RECORDS = 1000
_POLL_SECONDS = 1.0
_SILENT_POLLS = 30
"""Polls without an answer after which the comparison of a partition fails."""


def recheck(settings: Settings, store: Store, trust: Trust) -> Iterator[Finding]:
    """Compare an archive with the broker, and yield findings. What cannot be compared is `unreadable`.

    Args:
        settings: the settings of Kafka.
        store: the archive.
        trust: keys that may have signed a head in a committed offset.
    """
    try:
        yield from _recheck(settings, store, trust)
    except CustodyError as error:
        # It runs after everything was read: an error here must not cost the verdict on the archive.
        yield finding("unreadable", f"the archive cannot be compared with the broker: {error}")


def _recheck(settings: Settings, store: Store, trust: Trust) -> Iterator[Finding]:
    archive = read_archive(store).id
    logs = list_logs(store)
    with Broker(settings.kafka.librdkafka(), settings.kafka.group) as broker:
        cluster = broker.cluster()
        topics = {topic.name: topic for topic in broker.topics(sorted({log.topic for log in logs}))}
        for _, epochs in groupby(logs, key=lambda log: (log.topic, log.partition)):
            ends = [end for log in epochs if (end := _find_end(store, log, archive, trust)) is not None]
            for end in ends:
                try:
                    is_newest = end is ends[-1]
                    if is_newest:
                        yield from _went_back(broker, archive, trust, end)
                except CustodyError as error:
                    message = f"the head in the group's committed offset cannot be read: {error}"
                    yield finding("unreadable", message, log=str(end.log))
                try:
                    changed = find_change(broker, cluster, topics.get(end.log.topic), end.log, end.newest)
                    if changed is None:
                        start = broker.bounds(end.log.topic, end.log.partition).start
                        records = _records(settings, broker, end.log, start, end.newest.next_offset)
                        yield from _differences(store, end.log, records, start, end.head.size, end.judge.stands)
                    elif is_newest:
                        yield changed
                except CustodyError as error:
                    message = f"the log cannot be compared with the broker: {error}"
                    yield finding("unreadable", message, log=str(end.log))


@dataclass(frozen=True, slots=True)
class _End:
    """Where a log with statements ends."""

    log: Log
    judge: Judge
    head: Head
    newest: Statement


def _find_end(store: Store, log: Log, archive: str, trust: Trust) -> _End | None:
    """Return where a log ends; None if it has no statement, or was never in Kafka."""
    judge = Judge(store, log, statements_of(log), archive, trust)
    try:
        tip = find_tip(store, log, partial(_stands, judge))
    except (FormatError, ObjectMissing):
        # The verification reports what is wrong with the log.
        return None
    if tip.newest is None or tip.newest.statement.log.cluster == DIRECT:
        return None
    return _End(log, judge, tip.head, tip.newest.statement)


def _stands(judge: Judge, entry: Manifest, sequence: int) -> bool:
    """Return whether an entry may be the log's end. Without keys, entries with unchecked signatures are accepted."""
    return judge.stands(entry, sequence) and not judge.verdict(entry, sequence).refused


def _went_back(broker: Broker, archive: str, trust: Trust, end: _End) -> Iterator[Finding]:
    log, head = end.log, end.head
    committed = next(iter(broker.remembered([(log.topic, log.partition)], archive)), None)
    if committed is None or committed.log != log:
        return
    known = check_committed_head(committed, trust, end.judge.proofs)
    if known is None or known.root is None:
        return
    expected = f"size {known.size}, root {known.root.hex()}"
    actual = f"size {head.size}, root {head.root.hex()}"
    differs = partial(finding, log=str(log), expected=expected, found=actual, sha256=loss_digest(log, expected, actual))
    if known.size > head.size:
        message = f"the log went back: {known.origin} has more statements than the log"
        yield differs("head-rollback", message, sequence=head.size, through=known.size - 1)
    elif known.size == head.size and known.root != head.root:
        message = f"another history: {known.origin} has another root at this size"
        yield differs("head-fork", message, sequence=head.size - 1)


def _records(settings: Settings, broker: Broker, log: Log, start: int, stop: int) -> Iterator[Received]:
    """Yield the committed records of a partition between two offsets, except those that retention deletes meanwhile.

    Raises:
        SourceError: the broker does not return them.
    """
    if start >= stop:
        return
    silent = 0
    where = [TopicPartition(log.topic, log.partition, start)]
    with Feed(settings.kafka.librdkafka(), settings.kafka.group, where) as feed:
        while silent < _SILENT_POLLS:
            received = feed.read(_RECORDS, _POLL_SECONDS)
            silent = 0 if received else silent + 1
            for message in received:
                error = message.error()
                if error is not None:
                    if is_of_group(error):
                        continue
                    if error.code() == kafka.PARTITION_EOF:
                        return
                    begin = broker.bounds(log.topic, log.partition).start
                    if error.code() == kafka.OFFSET_OUT_OF_RANGE and start < begin:
                        start = begin
                        feed.seek(TopicPartition(log.topic, log.partition, start))
                        continue
                    raise map_error(
                        error,
                        f"{log}: cannot be read again",
                        settings.kafka.librdkafka(),
                        reading(log.topic),
                    )
                if message.offset() >= stop:
                    return
                start = message.offset() + 1
                yield message
                if message.offset() == stop - 1:
                    return
    raise SourceError(f"{log}: the broker returned nothing for {_SILENT_POLLS * _POLL_SECONDS:.0f} s")


def _differences(
    store: Store, log: Log, records: Iterator[Record], start: int, size: int, holds: Holds[Manifest]
) -> Iterator[Finding]:
    """Yield differences between a log's records, given in order of offsets from `start` on, and the archive."""
    manifests = manifests_from(store, log, _first(store, log, start, size, holds), size, holds)
    statements = chain(
        ((sequence, _Archived(store, manifest.statement)) for sequence, manifest in manifests), [(size, None)]
    )

    def differing() -> Iterator[_Difference]:
        sequence, archived = next(statements)
        for record in records:
            while archived is not None and record.offset() >= archived.statement.next_offset:
                sequence, archived = next(statements)
            if archived is None or record.offset() < archived.statement.first_offset:
                yield _Difference(sequence, record.offset(), "offset-gap")
            elif (difference := archived.difference(record)) is not None:
                yield difference

    for sequence, differences in groupby(differing(), key=attrgetter("sequence")):
        yield from _findings(log, sequence, differences)


@dataclass(frozen=True, slots=True)
class _Difference:
    """A difference between a record of the broker and the archive. If the record was edited: key and both digests."""

    sequence: int
    offset: int
    finding: str
    key: str = ""
    expected: str = ""
    actual: str = ""


def _findings(log: Log, sequence: int, differences: Iterable[_Difference]) -> Iterator[Finding]:
    """Yield a statement's findings: one for each skipped record, one for all edited ones, one for all missing ones."""
    firsts: dict[str, _Difference] = {}
    counts: Counter[str] = Counter()
    digest, last = sha256(), 0
    for difference in differences:
        offset, kind = difference.offset, difference.finding
        if kind == "skipped-record":
            message = "the broker has a committed record at an offset that the statement calls skipped"
            key = layout.manifest_key(log, sequence)
            yield finding("skipped-record", message, log=str(log), sequence=sequence, offset=offset, key=key)
            continue
        firsts.setdefault(kind, difference)
        counts[kind] += 1
        if kind == "record-edited":
            digest.update(f"{offset}\n{difference.expected}\n{difference.actual}\n".encode())
        else:
            last = offset
    if edited := firsts.get("record-edited"):
        message = "the broker's record at this offset differs from the archive's"
        if edited.expected == edited.actual:
            message += ": the value is the same, but not the key, a header or the time"
        yield finding(
            "record-edited",
            message,
            log=str(log),
            sequence=sequence,
            offset=edited.offset,
            key=edited.key,
            expected=f"a value of SHA-256 {edited.expected}",
            found=edited.actual,
            sha256=digest.hexdigest(),
            count=counts["record-edited"],
        )
    if missing := firsts.get("offset-gap"):
        message = f"no statement accounts for {counts['offset-gap']} records of the broker, up to offset {last}"
        yield finding("offset-gap", message, log=str(log), sequence=sequence, offset=missing.offset)


def _first(store: Store, log: Log, start: int, size: int, holds: Holds[Manifest]) -> int:
    """Return the sequence of the statement that accounts for an offset, or one before it."""
    try:
        return first_sequence(store, log, size, lambda statement: statement.next_offset > start, holds)
    except (ObjectMissing, FormatError):
        # The search met a damaged statement: read all statements.
        return 0


def _digest(value: bytes | None) -> str:
    return sha256(value or b"").hexdigest()


_Content = bytes | QuarantinedRecord


class _Archived:
    """The contents of a statement by offset, asked for in order. One batch and one quarantined record are in memory."""

    def __init__(self, store: Store, statement: Statement) -> None:
        self.statement = statement
        self._store, self._skipped = store, Measure(statement.skipped)
        self._unknown: list[Range] = [(part.from_, part.to) for part in statement.unreadable]
        self._contents = merge(self._events(), self._quarantined(), key=lambda item: item[0])
        self._next: tuple[int, _Content] | None = (-1, b"")

    def difference(self, record: Record) -> _Difference | None:
        """Return how a record of the statement's range differs; None if it does not, or if that is not known."""
        statement, offset, value = self.statement, record.offset(), record.value()
        if self._skipped(offset, offset + 1):
            return _Difference(statement.sequence, offset, "skipped-record")
        content = self._at(offset)
        if content is None:
            unknown = any(first <= offset < end for first, end in self._unknown)
            return None if unknown else _Difference(statement.sequence, offset, "offset-gap")
        if isinstance(content, bytes):
            if value is not None and value.replace(b"\n", b" ") == content:
                return None
            key, expected = statement.segment.key if statement.segment else "", _digest(content)
        else:
            if parse_quarantined(quarantine_line(record, value, "")) == content:
                return None
            left_out = content.omitted.value if content.omitted else None
            key = statement.quarantine.key if statement.quarantine else ""
            expected = left_out.sha256 if left_out else _digest(content.value)
        return _Difference(statement.sequence, offset, "record-edited", key, expected, _digest(value))

    def _at(self, offset: int) -> _Content | None:
        """Return what is archived at an offset; None if nothing is, or if it cannot be read."""
        while self._next is not None and self._next[0] < offset:
            self._next = next(self._contents, None)
        return self._next[1] if self._next is not None and self._next[0] == offset else None

    def _events(self) -> Iterator[tuple[int, _Content]]:
        key = self.statement.segment.key if self.statement.segment else ""
        unlined = unlined_ranges(self.statement)
        for batch in self.statement.batches:
            try:
                lines = split(read_batch(self._store, key, batch)[0])
            except (StoreError, FormatError):
                # The verification reports that it cannot be read, or differs from the statement.
                self._unknown.append((batch.first_offset, batch.next_offset))
                continue
            yield from zip(line_offsets(batch, unlined), lines, strict=False)

    def _quarantined(self) -> Iterator[tuple[int, _Content]]:
        ref = self.statement.quarantine
        if ref is None:
            return
        last = self.statement.first_offset - 1
        try:
            pieces = read_pieces(self._store, ref.key, ref.size)
            for line in quarantine_lines(pieces, ref.size, ref.inflated):
                record = parse_quarantined(line)
                last = record.offset
                yield last, record
        except (StoreError, FormatError):
            self._unknown += [(max(first, last + 1), end) for first, end in ref.offsets if end > last + 1]
