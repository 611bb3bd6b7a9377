"""`custody verify --kafka`: read again what the broker still has, and hold it against what the archive says of it.

Two things only the broker can tell: that a record was there at an offset that a statement calls skipped, and, by the
group's committed offset, how far a log was. What retention has taken cannot be read again, and is no finding.
"""

from collections.abc import Iterator

from confluent_kafka import KafkaError

from custody import layout
from custody.archive import Head, find_head, first_sequence, list_logs, read_archive, read_manifest
from custody.errors import CustodyError, FormatError, ObjectMissing, SourceError
from custody.findings import Finding, finding, loss_digest
from custody.layout import Log
from custody.manifest import Range
from custody.settings import Settings
from custody.store import Store
from tasks.kafka import Broker, Feed, map_error

_RECORDS = 1000
_POLL_SECONDS = 1.0
_SILENT_POLLS = 30
"""Polls without an answer after which a partition is taken to be silent."""


def recheck(settings: Settings, store: Store) -> Iterator[Finding]:
    """Yield what the broker tells of an archive.

    Raises:
        SourceError: Kafka does not answer.
        StoreError: the archive's storage does not answer.
    """
    archive = read_archive(store).archive
    newest: dict[tuple[str, int], Log] = {}
    for log in list_logs(store):
        newest[log.topic, log.partition] = max(newest.get((log.topic, log.partition), log), log)
    with Broker(settings.kafka.librdkafka(), settings.kafka.group) as broker:
        cluster = broker.cluster()
        for log in newest.values():
            try:
                head = find_head(store, log)
            except (FormatError, ObjectMissing):
                # What is wrong with the log is a finding of the verification.
                continue
            if head.newest is None or head.newest.statement.log.cluster != cluster:
                continue
            try:
                yield from _went_back(broker, archive, log, head)
                yield from _skipped(settings, broker, store, log, head)
            except SourceError as error:
                yield finding("unreadable", f"the broker does not give what it has: {error}", log=str(log))


def _went_back(broker: Broker, archive: str, log: Log, head: Head) -> Iterator[Finding]:
    remembered = broker.remembered(log.topic, [log.partition], archive).get(log.partition)
    if remembered is None or remembered[0] != log:
        return
    seen = remembered[1]
    expected, found = f"size {seen.size}, root {seen.root}", f"size {head.size}, root {head.root}"
    if seen.size > head.size:
        what = f"the log went back: {seen.where} remembers more statements than there are"
        yield finding(
            "head-rollback",
            what,
            log=str(log),
            sequence=head.size,
            through=seen.size - 1,
            expected=expected,
            found=found,
            sha256=loss_digest(log, expected, found),
        )
    elif seen.size == head.size and seen.root != head.root:
        what = f"another history: {seen.where} remembers another root at this size"
        yield finding(
            "head-fork",
            what,
            log=str(log),
            sequence=head.size - 1,
            expected=expected,
            found=found,
            sha256=loss_digest(log, expected, found),
        )


def _skipped(settings: Settings, broker: Broker, store: Store, log: Log, head: Head) -> Iterator[Finding]:
    """Yield a finding for each offset that is called skipped and has a record."""
    start = broker.bounds(log.topic, log.partition).start
    ranges = _skipped_ranges(store, log, head.size, start)
    sequence, (first, end) = next(ranges, (0, (0, 0)))
    if first == end:
        return
    stop = head.next_offset or 0
    place = {(log.topic, log.partition): max(first, start)}
    silent = 0
    with Feed(settings.kafka.librdkafka(), settings.kafka.group, place) as feed:
        while silent < _SILENT_POLLS:
            received = feed.read(_RECORDS, _POLL_SECONDS)
            silent = 0 if received else silent + 1
            for message in received:
                error = message.error()
                if error is not None:
                    if error.code() == KafkaError._PARTITION_EOF:  # noqa: SLF001 - its public name
                        return
                    raise map_error(error, f"{log}: cannot be read again")
                offset = message.offset()
                while offset >= end:
                    sequence, (first, end) = next(ranges, (0, (0, 0)))
                    if first == end:
                        return
                if offset >= stop:
                    return
                if offset >= first:
                    what = "the broker has a committed record where the statement says that there is none"
                    key = layout.manifest_key(log, sequence)
                    yield finding("skipped-record", what, log=str(log), sequence=sequence, offset=offset, key=key)
    raise SourceError(f"{log}: the broker gave nothing for {_SILENT_POLLS * _POLL_SECONDS:.0f} s")


def _skipped_ranges(store: Store, log: Log, size: int, start: int) -> Iterator[tuple[int, Range]]:
    """Yield, in order, the sequence and offsets of what statements call skipped, from an offset on."""
    for sequence in range(first_sequence(store, log, size, lambda one: one.next_offset > start), size):
        try:
            skipped = read_manifest(store, log, sequence).statement.skipped
        except CustodyError:
            continue
        for first, end in skipped:
            if end > start:
                yield sequence, (first, end)
