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

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from heapq import merge
from itertools import groupby
from typing import Any

from confluent_kafka import TopicPartition

from custody.archive.forms import statements_of
from custody.archive.reader import Holds, find_tip, first_sequence, list_logs, manifests_from, read_archive, read_batch
from custody.archive.trusted import Judge
from custody.errors import FormatError, ObjectMissing, SourceError, StoreError
from custody.findings import Finding, finding, loss_digest
from custody.format import layout, limits
from custody.format.layout import Log
from custody.format.leaves import split
from custody.format.manifest import Batch, Manifest, Range, Statement
from custody.format.offsets import line_offsets, unlined_ranges
from custody.format.quarantine import QuarantinedRecord, parse_quarantined, quarantine_lines
from custody.keys.trust import Trust
from custody.store.pieces import read_pieces
from custody.store.protocol import Store
from custody.tlog.head import Head
from tasks.drain.assemble import Record, quarantine_line
from tasks.drain.committed_heads import check_committed_head
from tasks.drain.kafka import (
    OFFSET_OUT_OF_RANGE,
    PARTITION_EOF,
    Broker,
    Feed,
    Received,
    Topic,
    map_error,
)
from tasks.settings import Settings

DIRECT = "direct"
"""The cluster's name in logs that were never in Kafka."""
_RECORDS = 1000
_POLL_SECONDS = 1.0
_SILENT_POLLS = 30
"""Polls without an answer after which the comparison of a partition fails."""


def recheck(settings: Settings, store: Store, trust: Trust) -> Iterator[Finding]:
    """Compare an archive with the broker, and yield findings.

    Args:
        settings: the settings of Kafka.
        store: the archive.
        trust: keys that may have signed a head in a committed offset.

    Raises:
        SourceError: Kafka does not answer.
        StoreError: the archive's storage does not answer.
    """
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
                    changed = _change(broker, cluster, topics.get(end.log.topic), end)
                    if changed is None:
                        yield from _compare(settings, broker, store, end)
                    elif is_newest:
                        yield changed
                except (SourceError, StoreError) as error:
                    what = f"the log cannot be compared with the broker: {error}"
                    yield finding("unreadable", what, log=str(end.log))


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
    found = f"size {head.size}, root {head.root.hex()}"
    where: dict[str, Any] = {"log": str(log), "expected": expected, "found": found}
    where["sha256"] = loss_digest(log, expected, found)
    if known.size > head.size:
        what = f"the log went back: {known.origin} has more statements than the log"
        yield finding("head-rollback", what, sequence=head.size, through=known.size - 1, **where)
    elif known.size == head.size and known.root != head.root:
        what = f"another history: {known.origin} has another root at this size"
        yield finding("head-fork", what, sequence=head.size - 1, **where)


def _change(broker: Broker, cluster: str, topic: Topic | None, end: _End) -> Finding | None:
    """Return how a partition differs from the one that a log was made from; None if it continues the log."""
    log, newest = end.log, end.newest
    archived = newest.log
    where: dict[str, Any] = {"log": str(log), "sequence": newest.sequence}
    if archived.cluster != cluster:
        what = "the broker belongs to another cluster than the log"
        return finding("topic-changed", what, expected=archived.cluster, found=cluster, **where)
    if topic is None or log.partition >= topic.partitions:
        what = "the broker no longer has the partition, or this client may not see it"
        return finding("topic-changed", what, **where)
    if archived.topic_id != topic.id:
        what = "the topic was deleted and created again"
        expected, found = f"topic id {archived.topic_id}", f"topic id {topic.id}"
        return finding("topic-changed", what, expected=expected, found=found, **where)
    bounds = broker.bounds(log.topic, log.partition)
    if bounds.end < newest.next_offset:
        what = "the partition ends before the log: it was truncated"
        expected, found = f"offset {newest.next_offset}", f"offset {bounds.end}"
        return finding("topic-changed", what, offset=bounds.end, expected=expected, found=found, **where)
    last = newest.last_record
    if last is not None and last.offset >= bounds.start:
        problem = broker.disagreement(log.topic, log.partition, last)
        if problem is not None:
            what = f"the partition was truncated and has grown again: {problem}"
            return finding("topic-changed", what, offset=last.offset, **where)
    return None


def _compare(settings: Settings, broker: Broker, store: Store, end: _End) -> Iterator[Finding]:
    """Compare each record that the broker has below the head with the archive."""
    log, stop = end.log, end.newest.next_offset
    start = broker.bounds(log.topic, log.partition).start
    if start >= stop:
        return
    records = _records(settings, broker, log, start, stop)
    yield from _differences(store, log, records, start, end.head.size, end.judge.stands)


def _records(settings: Settings, broker: Broker, log: Log, start: int, stop: int) -> Iterator[Received]:
    """Yield the committed records of a partition between two offsets, except those that retention deletes meanwhile.

    Raises:
        SourceError: the broker does not return them.
    """
    silent = 0
    where = [TopicPartition(log.topic, log.partition, start)]
    with Feed(settings.kafka.librdkafka(), settings.kafka.group, where) as feed:
        while silent < _SILENT_POLLS:
            received = feed.read(_RECORDS, _POLL_SECONDS)
            silent = 0 if received else silent + 1
            for message in received:
                error = message.error()
                if error is not None:
                    if error.code() == PARTITION_EOF:
                        return
                    begin = broker.bounds(log.topic, log.partition).start
                    if error.code() == OFFSET_OUT_OF_RANGE and start < begin:
                        start = begin
                        feed.seek(TopicPartition(log.topic, log.partition, start))
                        continue
                    raise map_error(error, f"{log}: cannot be read again")
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
    record = next(records, None)
    for sequence, manifest in manifests_from(store, log, _first(store, log, start, size, holds), size, holds):
        statement = manifest.statement
        missing = _Missing()
        while record is not None and record.offset() < statement.first_offset:
            missing.note(record.offset())
            record = next(records, None)
        yield from missing.findings(log, sequence)
        archived, edited = _Archived(store, statement), _Edited()
        while record is not None and record.offset() < statement.next_offset:
            offset = record.offset()
            if any(first <= offset < end for first, end in _around(statement.skipped, offset)):
                what = "the broker has a committed record at an offset that the statement calls skipped"
                key = layout.manifest_key(log, sequence)
                yield finding("skipped-record", what, log=str(log), sequence=sequence, offset=offset, key=key)
            elif (content := archived.at(offset)) is not None:
                edited.compare(record, content, archived.key_of(content))
            elif not archived.is_unknown(offset):
                missing.note(offset)
            record = next(records, None)
        yield from edited.findings(log, sequence)
        yield from missing.findings(log, sequence)
        if record is None:
            return
    missing = _Missing()
    while record is not None:
        missing.note(record.offset())
        record = next(records, None)
    yield from missing.findings(log, size)


def _first(store: Store, log: Log, start: int, size: int, holds: Holds[Manifest]) -> int:
    """Return the sequence of the statement that accounts for an offset, or one before it."""
    try:
        return first_sequence(store, log, size, lambda statement: statement.next_offset > start, holds)
    except (ObjectMissing, FormatError):
        # The search met a damaged statement: read all statements.
        return 0


def _around(ranges: Sequence[Range], offset: int) -> Sequence[Range]:
    """Return the one range of many sorted ranges that may contain an offset, or none."""
    index = bisect_right(ranges, (offset, limits.INT_MAX))
    return ranges[max(index - 1, 0) : index]


@dataclass(slots=True)
class _Missing:
    """Records of the broker that the archive does not account for."""

    count: int = 0
    first: int = 0
    last: int = 0

    def note(self, offset: int) -> None:
        """Count a record."""
        self.first = self.first if self.count else offset
        self.last = offset
        self.count += 1

    def findings(self, log: Log, sequence: int) -> Iterator[Finding]:
        """Yield one finding if there are any, and reset the count."""
        if self.count:
            what = f"no statement accounts for {self.count} records of the broker, up to offset {self.last}"
            yield finding("offset-gap", what, log=str(log), sequence=sequence, offset=self.first)
        self.count = 0


@dataclass(slots=True)
class _Edited:
    """Records of one statement that differ on the broker: how many, and the first of them."""

    count: int = 0
    offset: int = 0
    key: str = ""
    expected: str = ""
    found: str = ""
    digest: Any = field(default_factory=sha256)

    def compare(self, record: Record, content: "_Content", key: str) -> None:
        """Count a record if it is not the archived one."""
        value = record.value()
        if isinstance(content, bytes):
            if value is not None and value.replace(b"\n", b" ") == content:
                return
            expected = _digest(content)
        else:
            if parse_quarantined(quarantine_line(record, value, "")) == content:
                return
            left_out = content.omitted.value if content.omitted else None
            expected = left_out.sha256 if left_out else _digest(content.value)
        found = _digest(value)
        if not self.count:
            self.offset, self.key, self.expected, self.found = record.offset(), key, expected, found
        self.count += 1
        self.digest.update(f"{record.offset()}\n{expected}\n{found}\n".encode())

    def findings(self, log: Log, sequence: int) -> Iterator[Finding]:
        """Yield one finding if there are any."""
        if not self.count:
            return
        what = "the broker's record at this offset differs from the archive's"
        if self.expected == self.found:
            what += ": the value is the same, but not the key, a header or the time"
        yield finding(
            "record-edited",
            what,
            log=str(log),
            sequence=sequence,
            offset=self.offset,
            key=self.key,
            expected=f"a value of SHA-256 {self.expected}",
            found=self.found,
            sha256=self.digest.hexdigest(),
            count=self.count,
        )


def _digest(value: bytes | None) -> str:
    return sha256(value or b"").hexdigest()


_Content = bytes | QuarantinedRecord


class _Archived:
    """The contents of a statement by offset, asked for in order. One batch and one quarantined record are in memory."""

    def __init__(self, store: Store, statement: Statement) -> None:
        self._store, self._statement = store, statement
        self._unknown: list[Range] = [(part.from_, part.to) for part in statement.unreadable]
        self._contents = merge(self._events(), self._quarantined(), key=lambda item: item[0])
        self._next: tuple[int, _Content] | None = next(self._contents, None)

    def at(self, offset: int) -> _Content | None:
        """Return what is archived at an offset; None if nothing is, or if it cannot be read."""
        while self._next is not None and self._next[0] < offset:
            self._next = next(self._contents, None)
        return self._next[1] if self._next is not None and self._next[0] == offset else None

    def is_unknown(self, offset: int) -> bool:
        """Return whether it is not known what is archived at an offset that was asked for."""
        return any(first <= offset < end for first, end in self._unknown)

    def key_of(self, content: _Content) -> str:
        """Return the key of the object that holds a content."""
        statement = self._statement
        ref = statement.segment if isinstance(content, bytes) else statement.quarantine
        return ref.key if ref else ""

    def _events(self) -> Iterator[tuple[int, _Content]]:
        segment = self._statement.segment
        unlined = unlined_ranges(self._statement)
        for batch in self._statement.batches:
            try:
                lines = self._lines(segment.key if segment else "", batch)
            except (StoreError, FormatError):
                # The verification reports that it cannot be read, or differs from the statement.
                self._unknown.append((batch.first_offset, batch.next_offset))
                continue
            yield from zip(line_offsets(batch, unlined), lines, strict=False)

    def _lines(self, key: str, batch: Batch) -> list[bytes]:
        return split(read_batch(self._store, key, batch)[0])

    def _quarantined(self) -> Iterator[tuple[int, _Content]]:
        ref = self._statement.quarantine
        if ref is None:
            return
        last = self._statement.first_offset - 1
        try:
            pieces = read_pieces(self._store, ref.key, ref.size)
            for line in quarantine_lines(pieces, ref.size, ref.inflated):
                record = parse_quarantined(line)
                last = record.offset
                yield last, record
        except (StoreError, FormatError):
            self._unknown += [(max(first, last + 1), end) for first, end in ref.offsets if end > last + 1]
