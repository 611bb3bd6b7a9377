"""One run of the drain: each log from the archive's head to the last stable offset, then following the topic.

The life of a record in a run, and what is left if the process dies there (nothing is lost: the next run asks the
archive):

1. fetched         nothing was written; it is fetched again
2. assembled       likewise: batches are checked and compressed in memory
3. segment put     an orphan that no manifest names; the record is fetched and put again
4. quarantine put  likewise
5. manifest put    the commit: the record is accounted for, and the next run starts after it
6. offset committed in the consumer group, for lag monitors; a run that dies before it leaves monitors behind, no more

While one segment is put, the next is assembled: one append a log is under way at a time, in order. Before each append
the topic's id is asked for again, after what is appended was fetched: ids never come back, so what was fetched under
the same id is of the same topic. A log that fails stops alone; the others go on.

Whether the partition is still the one that was archived is checked by its last record. A run begins to read at that
record again, and compares its leader epoch with the archive's; it does the same whenever it seeks. So a partition that
was truncated is noticed even if it has grown again. What this cannot show: where compaction took the record, a
truncation that the broker's own leader epochs do not show; and nothing where retention took it, or where the broker has
no leader epochs.
"""

import ctypes
import gc
import logging
import platform
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from custody.archive.forms import AUDITS, statements_of
from custody.archive.reader import Tip, find_audit_tip, list_logs, read_archive
from custody.archive.trusted import Judge, check_archive, find_trusted_tip
from custody.archive.writer import Entry, LogWriter, put_checkpoint, writer_name
from custody.errors import (
    ConfigurationError,
    CustodyError,
    Fenced,
    FormatError,
    LogChanged,
    ObjectMissing,
    SourceRefused,
    TransientSourceError,
)
from custody.format import layout
from custody.format.archive_file import ArchiveFile
from custody.format.layout import Log
from custody.format.leaves import LeafMaker
from custody.format.manifest import LastRecord, LogId, Manifest, PreviousEpoch, Range
from custody.format.times import parse_time
from custody.keys.keyring import Signers
from custody.keys.trust import Trust
from custody.store.open import open_store
from custody.store.protocol import Store
from custody.tlog.head import KnownHead
from tasks.drain.assemble import Assembler
from tasks.drain.kafka import (
    DAMAGED,
    LOG_TRUNCATION,
    OFFSET_OUT_OF_RANGE,
    PARTITION_EOF,
    Bounds,
    Broker,
    Feed,
    Position,
    Received,
    Topic,
    check_memory,
    contradiction,
    error_of,
    map_error,
    partition_of,
    says_truncated,
    truncated,
)
from tasks.settings import Settings

logger = logging.getLogger(__name__)

TopicPartition = tuple[str, int]
"""A topic, and the number of one of its partitions."""

READ_RECORDS = 500
"""Records in one read from librdkafka: so few that their objects stay in the cache, which makes a read 40 % cheaper."""
READ_SECONDS = 0.1
"""How long a read waits for them; also how soon a stop is noticed."""
HELD_BYTES = 64 * 1024 * 1024
"""Assembled, over all logs; beyond it the largest is cut. As much again may be on its way to the store."""
STALL_SECONDS = 30
"""A run that is to end when it has caught up gives up after so long without a record."""
_REREAD_OFFSETS = 10_000
"""Offsets behind the archive's last record that are read again, to see that they still hold nothing."""
_COLLECT_AFTER = 50_000
_KEEP_BYTES = 64 * 1024 * 1024
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""glibc's malloc.h."""
_OPENERS = 8
_UPLOADERS = 8

stopping = threading.Event()
"""Set it, and runs in this process finish the segments in hand and end."""


@contextmanager
def stopping_on_signals(*kinds: signal.Signals) -> Iterator[None]:
    """Let a signal, SIGTERM if none is named, end the runs in this process cleanly. Only the main thread can."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {kind: signal.signal(kind, lambda *_: stopping.set()) for kind in kinds or (signal.SIGTERM,)}
    try:
        yield
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)
        stopping.clear()


@dataclass(slots=True)
class LogResult:
    """What a run did to one log.

    Attributes:
        log: the log, `<topic>/<partition>`.
        outcome: `drained`; `fenced`, when another writer was first; `failed`, with the reason in `problem`.
        events: events archived.
        quarantined: records put aside.
        skipped: offsets without a record for a read-committed consumer.
        lost: offsets that the broker had deleted.
        segments: segments written.
        statements: statements written.
        bytes_in: bytes of JSONL.
        bytes_out: bytes of segments as stored.
        next_offset: the first offset that the archive does not account for.
        lag: offsets from there to the read-uncommitted end, None where the broker did not say.
        size: statements in the log.
        root: root of the tree over them, in hex.
        hanging: seconds for which a transaction has kept records back, if longer than the setting.
        problem: what went wrong, and what to do.
    """

    log: str
    outcome: Literal["drained", "fenced", "failed"] = "drained"
    events: int = 0
    quarantined: int = 0
    skipped: int = 0
    lost: int = 0
    segments: int = 0
    statements: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    next_offset: int | None = None
    lag: int | None = None
    size: int = 0
    root: str = ""
    hanging: float | None = None
    problem: str | None = None


@dataclass(slots=True)
class _Reread:
    """What a run reads again, to see that the partition is still the one that was archived.

    Attributes:
        last: the last record that the archive, or this run, has.
        skipped: offsets behind it that the archive calls skipped.
        suspect: what librdkafka says that contradicts it, None if it says nothing.
        agrees: whether that record has been read again.
    """

    last: LastRecord
    skipped: Sequence[Range] = ()
    suspect: str | None = None
    agrees: bool = False


@dataclass(slots=True)
class _Run:
    """One log in a run."""

    place: TopicPartition
    writer: LogWriter
    assembler: Assembler
    target: int
    result: LogResult
    begun: Tip[Manifest]
    """The tip that this run began from."""
    last: LastRecord | None = None
    """The last record that was read in this log."""
    reread: _Reread | None = None
    """What is to be read again before anything else counts."""
    since: float = 0.0
    caught_up: bool = False
    """Whether what there was at the run's start has been read."""
    append: Future[None] | None = None
    appending_bytes: int = 0
    stopped: bool = False


@dataclass(frozen=True, slots=True)
class _Context:
    """What all logs of a run share."""

    settings: Settings
    store: Store
    archive: ArchiveFile
    signers: Signers
    trust: Trust
    broker: Broker
    cluster: str
    writer: str
    audited: Mapping[str, KnownHead]
    """What the newest audit that counts says of heads."""


@dataclass(frozen=True, slots=True)
class EpochBegun:
    """A new epoch of a partition.

    Attributes:
        log: `<log>/<partition>`.
        earlier: the epoch that it follows.
        same_topic: whether it has the cluster and topic id of that epoch, as where a partition was truncated.
    """

    log: str
    earlier: str
    same_topic: bool


def find_places(settings: Settings) -> list[TopicPartition]:
    """Return the partitions that the settings name, as they are now; partition 0 of a named topic that is not there.

    Raises:
        SourceError: Kafka does not answer.
    """
    with Broker(settings.kafka.librdkafka(), settings.kafka.group) as broker:
        topics = broker.topics(settings.kafka.topics)
    there = {topic.name for topic in topics}
    # One that is missing is one failed log, and does not keep the others from being drained.
    missing = [name for name in settings.kafka.topics if not name.startswith("^") and name not in there]
    return [
        *((topic.name, partition) for topic in topics for partition in range(topic.partitions)),
        *((name, 0) for name in missing),
    ]


def drain_logs(
    settings: Settings,
    places: Sequence[TopicPartition] | None = None,
    *,
    once: bool = False,
    seconds: float | None = None,
    progress: Callable[[int], None] | None = None,
    sealed: Callable[[layout.Log], None] | None = None,
) -> list[LogResult]:
    """Drain partitions into the archive.

    Args:
        settings: the settings.
        places: the partitions; all that the settings name if None.
        once: end when each log has reached what was its last stable offset at the start.
        seconds: end after this time; the setting's if None, without limit if `once`.
        progress: is called with the number of records archived since the last call.
        sealed: is called with a log once it has a new statement.

    Returns:
        One result a log. A log that failed has its problem there; the others were drained.

    Raises:
        ConfigurationError: there is no archive, or settings or keys cannot be used.
        SourceError: Kafka does not answer at all.
        StoreError: the archive's storage does not answer at all.
    """
    if seconds is None and not once:
        seconds = settings.drain.seconds
    deadline = time.monotonic() + seconds if seconds is not None else float("inf")
    with ExitStack() as stack:
        context = _enter(settings, stack)
        runs, results = _open_logs(context, find_places(settings) if places is None else places)
        if runs:
            _Drain(context, runs, once=once, deadline=deadline, progress=progress, sealed=sealed).run()
            _put_checkpoints(context, runs, once=once)
        results.extend(run.result for run in runs)
    return sorted(results, key=lambda result: result.log)


def _put_checkpoints(context: _Context, runs: Sequence[_Run], *, once: bool) -> None:
    """Sign the heads of logs for which a checkpoint is due, as `archive.json` asks.

    What a checkpoint covers is in the archive already, so one that cannot be put is no failure of the drain.
    """
    now = datetime.now(UTC)
    signer = context.signers.checkpoints
    if signer is None:
        logger.warning("no checkpoints: no Ed25519 key is valid now; make one, or set `checkpoint_keys`")
        return

    def put(run: _Run) -> None:
        writer = run.writer
        try:
            if _is_due(context, run, now, once=once):
                put_checkpoint(context.store, context.archive.id, writer.log, writer.tip.head, signer, writer.judge)
        except CustodyError as error:
            logger.warning("no checkpoint of %s: %s", writer.log, error)

    with ThreadPoolExecutor(_UPLOADERS, "checkpoint") as pool:
        list(pool.map(put, (run for run in runs if run.result.outcome == "drained")))


def _is_due(context: _Context, run: _Run, now: datetime, *, once: bool) -> bool:
    """Return whether a log's head gets a checkpoint at the end of a run.

    Time is divided into slots of `checkpoint` seconds. A log that grew gets one if its earlier head is of another slot
    than now: only statements have to be looked at. A log that did not grow gets one if its head is of an earlier slot
    and has none, as where a run died before it wrote it. The first run of a log writes one, and so does `once` for
    every head that has none.
    """
    tip, seconds = run.writer.tip, context.archive.statement.checkpoint

    def slot(moment: datetime) -> int:
        return int(moment.timestamp()) // seconds

    def sealed(newest: Manifest) -> datetime:
        return parse_time(newest.statement.sealed_at)

    if tip.newest is None:
        return False
    if not once and tip.newest is not run.begun.newest:
        return run.begun.newest is None or slot(sealed(run.begun.newest)) != slot(now)
    if not once and slot(sealed(tip.newest)) == slot(now):
        return False
    return not context.store.exists(layout.checkpoint_key(run.writer.log, tip.head.size))


def begin_epoch(settings: Settings, topic: str) -> list[EpochBegun]:
    """Begin a new epoch of those of a topic's partitions that are not what their logs were made from any more.

    That is, after the topic was deleted and created again, or moved to another cluster, or a partition was truncated.
    Each partition's new epoch follows its own newest one.

    Raises:
        LogChanged: nothing of the topic's logs has changed, so that there is no reason for a new epoch.
        CustodyError: as `drain_logs`.
    """
    begun = []
    with ExitStack() as stack:
        context = _enter(settings, stack)
        found = next(iter(context.broker.topics([topic])), None)
        if found is None:
            raise context.broker.missing(topic)
        logs = list_logs(context.store)
        known = _known_heads(context, [topic], [(topic, partition) for partition in range(found.partitions)])
        for partition in range(found.partitions):
            earlier = _newest_epoch(context, logs, (topic, partition), known)
            tip = find_trusted_tip(context.store, earlier, context.archive.id, context.trust)
            if tip.newest is None or not _has_changed(context, found, earlier, tip.newest):
                continue
            run = _open_log(context, found, Log(topic, partition, earlier.epoch + 1), ())
            before, now = tip.newest.statement.log, _log_id(context, found, earlier)
            begun.append(EpochBegun(str(run.writer.log), str(earlier), before == now))
    if not begun:
        raise LogChanged(
            f"topic {topic} is the one that its logs are made from, and goes on where they end: there is no reason to"
            " begin a new epoch"
        )
    return begun


def _enter(settings: Settings, stack: ExitStack) -> _Context:
    store = open_store(settings.archive, settings.s3)
    stack.callback(store.close)
    try:
        archive = read_archive(store)
    except ObjectMissing:
        raise ConfigurationError(f"there is no archive at {store.url}: run 'custody init' first") from None
    signers, trust = settings.signers(datetime.now(UTC)), settings.own_trust()
    signers.hmac()
    problem = check_archive(archive, trust)
    if problem is not None:
        raise ConfigurationError(
            f"{store.url}: {problem}. Nothing is archived: correct the settings `archive`, `keys` and `trust`, or find"
            " out who wrote archive.json, and restore it"
        )
    if settings.drain.event_leaves and signers.leaves is None:
        logger.warning("batches get no leaves: the keys hold no secret for them; `custody keys rotate` makes one")
    broker = stack.enter_context(Broker(settings.kafka.librdkafka(), settings.kafka.group))
    return _Context(
        settings,
        store,
        archive,
        signers,
        trust,
        broker,
        broker.cluster(),
        writer_name(),
        _audited_heads(store, archive.id, trust),
    )


def _audited_heads(store: Store, archive: str, trust: Trust) -> dict[str, KnownHead]:
    """Return the heads in the newest audit that counts. Audits that do not count are passed over, with a warning."""
    judge = Judge(store, layout.AUDIT_LOG, AUDITS, archive, trust)
    try:
        tip = find_audit_tip(store, lambda audit, at: judge.is_of_place(audit, at) and judge.verdict(audit, at).counts)
    except FormatError as error:
        logger.warning("the audits tell nothing of the logs' heads: %s", error)
        return {}
    if tip.passed_over:
        logger.warning(
            "%s and what follows it are no audits that trusted keys signed: find out who wrote them",
            layout.audit_key(tip.head.size),
        )
    if tip.newest is None:
        return {}
    origin = layout.audit_key(tip.head.size - 1)
    heads = tip.newest.statement.heads
    return {log: KnownHead(head.size, bytes.fromhex(head.root), origin) for log, head in heads.items()}


def _open_logs(context: _Context, places: Sequence[TopicPartition]) -> tuple[list[_Run], list[LogResult]]:
    """Open every log; those that cannot be drained are results already."""
    topics = {topic.name: topic for topic in context.broker.topics(sorted({topic for topic, _ in places}))}
    logs = list_logs(context.store)
    known = _known_heads(context, topics, places)

    def open_one(place: TopicPartition) -> _Run | LogResult:
        log = Log(*place)
        try:
            if place[0] not in topics:
                raise context.broker.missing(place[0])
            log = _newest_epoch(context, logs, place, known)
            return _open_log(context, topics[place[0]], log, known.get(str(log), ()))
        except Fenced as error:
            logger.info("%s", error)
            return LogResult(str(log), "fenced", problem=str(error))
        except CustodyError as error:
            logger.error("%s", error)  # noqa: TRY400 - the message says it all; a traceback would not help
            return LogResult(str(log), "failed", problem=str(error))

    with ThreadPoolExecutor(_OPENERS, "open") as pool:
        opened = list(pool.map(open_one, places))
    return [one for one in opened if isinstance(one, _Run)], [one for one in opened if isinstance(one, LogResult)]


def _known_heads(
    context: _Context, topics: Iterable[str], places: Sequence[TopicPartition]
) -> dict[str, list[KnownHead]]:
    """Return the heads of logs that the newest audit and the group's committed offsets remember, as they are signed."""
    known = {log: [head] for log, head in context.audited.items()}
    for name in topics:
        partitions = [partition for topic, partition in places if topic == name]
        for memory in context.broker.remembered(name, partitions, context.archive.id).values():
            log = memory.log
            judge = Judge(context.store, log, statements_of(log), context.archive.id, context.trust)
            head = check_memory(memory, context.trust, judge.proofs)
            if head is not None:
                known.setdefault(str(log), []).append(head)
    return known


def _newest_epoch(
    context: _Context, logs: Sequence[Log], place: TopicPartition, known: Mapping[str, Sequence[KnownHead]]
) -> Log:
    """Return a partition's newest epoch: the last one that holds a statement which counts, or of which a head is known.

    A name begins no epoch: what lies under it has to be signed.
    """
    first = Log(*place)
    epochs = {log.epoch for log in logs if (log.topic, log.partition) == place}
    names = [name for name, heads in known.items() if any(head.size for head in heads)]
    names += [name for name, head in context.trust.heads.items() if head.size]
    remembered = {
        log.epoch
        for name in names
        if (log := layout.parse_log_text(name)) is not None and (log.topic, log.partition) == place
    }
    for epoch in sorted(epochs | remembered, reverse=True):
        log = Log(*place, epoch)
        if epoch == first.epoch or epoch in remembered:
            return log
        if find_trusted_tip(context.store, log, context.archive.id, context.trust).newest is not None:
            return log
        logger.warning("%s holds nothing that trusted keys signed, and begins no epoch", layout.log_prefix(log))
    return first


def _log_id(context: _Context, topic: Topic, log: Log) -> LogId:
    return LogId(context.cluster, topic.name, topic.id, log.partition, log.epoch)


def _open_log(context: _Context, topic: Topic, log: Log, known: Sequence[KnownHead]) -> _Run:
    """Check a log's head against all that is known of it and against the broker, and prepare to go on from it."""
    layout.check_topic(log.topic, log.partition)
    bounds = context.broker.bounds(log.topic, log.partition)
    writer = LogWriter(
        context.store,
        context.archive.id,
        _log_id(context, topic, log),
        signer=context.signers.hmac(),
        trust=context.trust,
        writer=context.writer,
    )
    begun = writer.open(known)
    result = LogResult(str(log))
    if begun.newest is None:
        # Written at once, so that whatever is lost from here on is admitted.
        previous = _previous_epoch(context, log)
        writer.append(Entry(first_offset=bounds.start, next_offset=bounds.start, previous_epoch=previous))
        result.statements += 1
    position = writer.next_offset or 0
    _check_end(log, position, bounds)
    options, leaves = context.settings.drain, context.signers.leaves
    assembler = Assembler(
        position,
        batch_events=options.batch_events,
        segment_bytes=options.segment_bytes,
        level=options.level,
        number=writer.next_batch,
        leaves=LeafMaker(leaves, context.archive.id, str(log)) if options.event_leaves and leaves else None,
    )
    run = _Run((log.topic, log.partition), writer, assembler, bounds.stable, result, begun)
    if begun.newest is not None:
        run.last = begun.newest.statement.last_record
        if run.last is not None and run.last.offset >= bounds.start:
            run.reread = _Reread(run.last, begun.newest.statement.skipped)
    if bounds.start > position:
        assembler.lose(bounds.start)
    return run


def _check_end(log: Log, position: int, bounds: Bounds) -> None:
    if bounds.end < position:
        raise LogChanged(
            f"{log}: the archive ends at offset {position}, and the partition at {bounds.end}: the topic was deleted"
            " and created again, or an unclean election cut it. If that was meant, begin a new epoch of the log with"
            f" 'custody new-epoch {log.topic}'; the old one stays as it is."
        )


def _has_changed(context: _Context, topic: Topic, log: Log, newest: Manifest) -> bool:
    """Return whether a partition is not the one that a log was made from, or does not go on where that ends."""
    statement = newest.statement
    if statement.log != _log_id(context, topic, log):
        return True
    bounds = context.broker.bounds(log.topic, log.partition)
    if bounds.end < statement.next_offset:
        return True
    last = statement.last_record
    return (
        last is not None
        and last.offset >= bounds.start
        and context.broker.disagreement(log.topic, log.partition, last) is not None
    )


def _previous_epoch(context: _Context, log: Log) -> PreviousEpoch | None:
    """Return the head of the partition's newest earlier epoch that has statements."""
    for epoch in range(log.epoch - 1, 0, -1):
        earlier = Log(log.topic, log.partition, epoch)
        head = find_trusted_tip(context.store, earlier, context.archive.id, context.trust).head
        if head.size:
            return PreviousEpoch(epoch, head.size, head.root.hex())
    return None


class _Drain:
    """The loop that reads, assembles and appends."""

    def __init__(
        self,
        context: _Context,
        runs: Sequence[_Run],
        *,
        once: bool,
        deadline: float,
        progress: Callable[[int], None] | None,
        sealed: Callable[[layout.Log], None] | None,
    ) -> None:
        self._context = context
        self._once = once
        self._deadline = deadline
        self._progress = progress
        self._sealed = sealed
        self._runs = {run.place: run for run in runs}
        self._kafka = (context.settings.kafka.librdkafka(), context.settings.kafka.group)
        topics = {topic for topic, _ in self._runs}
        self._one_topic = topics.pop() if len(topics) == 1 else None
        self._pool = ThreadPoolExecutor(min(_UPLOADERS, len(runs)), "append")

    def run(self) -> None:
        """Drain until caught up, out of time, or told to stop; then cut what is in hand and append it."""
        positions = {place: _start_of(run) for place, run in self._runs.items()}
        _keep_freed_memory()
        with _rare_collections(), self._pool, Feed(*self._kafka, positions) as feed:
            self._follow(feed)
            for run in self._active():
                self._finish(run)
            for run in self._active():
                self._settle(run)
        for run in self._runs.values():
            self._report(run)

    def _active(self) -> list[_Run]:
        return [run for run in self._runs.values() if not run.stopped]

    def _follow(self, feed: Feed) -> None:
        last_record = time.monotonic()
        while not stopping.is_set():
            now = time.monotonic()
            active = self._active()
            if not active or now >= self._deadline:
                return
            if self._once:
                behind = [run for run in active if run.assembler.position < run.target or run.reread is not None]
                if not behind:
                    return
                if now - last_record > STALL_SECONDS:
                    for run in behind:
                        self._fail(run, _stalled(run), feed)
                    return
            records, others = self._read(feed)
            if records or others:
                last_record = now
            for place, messages in records.items():
                run = self._runs[place]
                if not run.stopped:
                    self._guard(run, feed, self._receive, messages, feed)
            for message in others:
                self._handle(message, feed)
            self._cut_what_is_due(feed, now)

    def _read(self, feed: Feed) -> tuple[dict[TopicPartition, list[Received]], list[Received]]:
        """Read once, and tell records by log from events and errors."""
        messages = feed.read(READ_RECORDS, READ_SECONDS)
        others: list[Received] = []
        if any(map(error_of, messages)):
            others = [message for message in messages if message.error() is not None]
            messages = [message for message in messages if message.error() is None]
        records: dict[TopicPartition, list[Received]] = defaultdict(list)
        if self._one_topic is None:
            for message in messages:
                records[message.topic(), message.partition()].append(message)
            return records, others
        # The partition is key enough, and saves a call for each record.
        partitions = list(map(partition_of, messages))
        if partitions and partitions.count(partitions[0]) == len(partitions):
            return {(self._one_topic, partitions[0]): messages}, others
        by_partition: dict[int, list[Received]] = defaultdict(list)
        for partition, message in zip(partitions, messages, strict=True):
            by_partition[partition].append(message)
        for partition, found in by_partition.items():
            records[self._one_topic, partition] = found
        return records, others

    def _receive(self, run: _Run, messages: list[Received], feed: Feed) -> None:
        """Take records of one log, once what the archive has of it was read again."""
        if run.reread is not None:
            messages = self._compare(run, run.reread, messages, feed)
        if messages:
            offset, leader_epoch = messages[-1].offset(), messages[-1].leader_epoch()
            run.last = LastRecord(offset, leader_epoch) if leader_epoch is not None and leader_epoch >= 0 else None
            self._take(run, messages)

    def _compare(self, run: _Run, reread: _Reread, messages: list[Received], feed: Feed) -> list[Received]:
        """Compare records with what the archive says of their offsets, and return those behind its end.

        Raises:
            LogChanged: they contradict it.
        """
        log, last, position = run.writer.log, reread.last, run.assembler.position
        for index, message in enumerate(messages):
            offset = message.offset()
            if offset < last.offset:
                continue
            problem = contradiction(last, offset, message.leader_epoch())
            if offset == last.offset:
                reread.agrees = problem is None
            elif problem is None and not reread.agrees:
                problem = reread.suspect
            if problem is None and any(first <= offset < stop for first, stop in reread.skipped):
                problem = f"the broker has a record at offset {offset}, where the archive says that there is none"
            if problem is not None:
                raise truncated(log, problem)
            if offset >= position:
                run.reread = None
                return messages[index:]
            if offset == last.offset and (position - offset == 1 or position - offset > _REREAD_OFFSETS):
                run.reread = None
                if position - offset > 1:
                    feed.seek(*run.place, Position(position))
                    return []
        return []

    def _take(self, run: _Run, messages: list[Received]) -> None:
        """Hand records to the assembler, with every gap before and between them accounted for."""
        assembler = run.assembler
        first, last = messages[0].offset(), messages[-1].offset()
        if first == assembler.position and last - first == len(messages) - 1:
            self._add(run, messages)
            return
        # After a seek librdkafka may give what it has given before.
        messages = [message for message in messages if message.offset() >= assembler.position]
        start: int | None = None
        while messages:
            offset = messages[0].offset()
            if offset > assembler.position:
                if start is None:
                    # Asked after the fetch: what is missing below it may have been deleted, what is missing above was
                    # never there for a read-committed consumer.
                    start = self._context.broker.bounds(*run.place).start
                self._account(run, offset, start)
            joined = 1
            while joined < len(messages) and messages[joined].offset() == offset + joined:
                joined += 1
            self._add(run, messages[:joined])
            messages = messages[joined:]

    def _add(self, run: _Run, messages: list[Received]) -> None:
        while messages:
            if not run.assembler.has_records:
                run.since = time.monotonic()
            messages = messages[run.assembler.add(messages) :]
            if run.assembler.full:
                self._cut(run)

    def _account(self, run: _Run, to: int, start: int) -> None:
        """Account for offsets that no record came for: lost below the log's start, skipped from there on."""
        assembler = run.assembler
        if start > assembler.position:
            if not assembler.is_empty:
                self._cut(run)
            run.since = time.monotonic()
            assembler.lose(min(start, to))
        if to > assembler.position:
            assembler.skip(to)
            if assembler.full:
                self._cut(run)

    def _handle(self, message: Received, feed: Feed) -> None:
        """Act on an event or error that came instead of a record."""
        error = message.error()
        if error is None:
            return
        run = self._runs.get((message.topic(), message.partition()))
        if run is not None and run.stopped:
            return
        if run is not None and error.code() == PARTITION_EOF:
            self._guard(run, feed, self._reach_end, message.offset())
        elif run is not None and error.code() in {OFFSET_OUT_OF_RANGE, LOG_TRUNCATION}:
            self._guard(run, feed, self._resume, feed, error.str() if says_truncated(error) else None)
        elif run is not None and error.code() in DAMAGED:
            self._fail(run, SourceRefused(f"{run.result.log}: the broker gives a damaged batch: {error.str()}"), feed)
        else:
            mapped = map_error(error, run.result.log if run else "Kafka")
            if isinstance(mapped, SourceRefused):
                for one in [run] if run else self._active():
                    self._fail(one, mapped, feed)
            else:
                logger.info("%s", mapped)

    def _reach_end(self, run: _Run, offset: int) -> None:
        """Account for what lies between the last record and the end: transaction markers, aborted records."""
        if run.reread is not None:
            if run.reread.suspect is not None and not run.reread.agrees:
                raise truncated(run.writer.log, run.reread.suspect)
            run.reread = None
        if offset > run.assembler.position:
            self._account(run, offset, self._context.broker.bounds(*run.place).start)

    def _resume(self, run: _Run, feed: Feed, suspect: str | None) -> None:
        """Seek after librdkafka gave a position up: retention has overtaken us, or the log is another."""
        bounds = self._context.broker.bounds(*run.place)
        position = run.assembler.position
        _check_end(run.writer.log, position, bounds)
        last = run.last
        if last is not None and bounds.start <= last.offset < position:
            # By reading alone: what librdkafka found by leader epochs it would find again.
            run.reread = _Reread(last, run.reread.skipped if run.reread else (), suspect)
            feed.seek(*run.place, Position(last.offset))
            return
        run.reread = None
        if bounds.start > position:
            self._account(run, bounds.start, bounds.start)
        feed.seek(*run.place, Position(run.assembler.position))

    def _cut_what_is_due(self, feed: Feed, now: float) -> None:
        active = self._active()
        for run in active:
            # What waited through the pause between two runs does not wait for a whole flush time besides.
            caught_up = not run.caught_up and run.assembler.position >= run.target
            run.caught_up = run.caught_up or caught_up
            waited = now - run.since >= self._context.settings.drain.flush_seconds
            if run.assembler.has_records and (waited or (caught_up and not self._once)):
                self._guard(run, feed, self._cut)
            elif run.append is not None and run.append.done():
                self._guard(run, feed, self._collect)
        while sum(run.assembler.held_bytes for run in self._active()) > HELD_BYTES:
            largest = max(self._active(), key=lambda run: run.assembler.held_bytes)
            self._guard(largest, feed, self._cut)

    def _cut(self, run: _Run) -> None:
        self._submit(run, run.assembler.cut())

    def _submit(self, run: _Run, entry: Entry) -> None:
        """Append in the background, after what this log has under way, and within the memory that all may hold."""
        self._collect(run)
        for other in self._runs.values():
            if sum(one.appending_bytes for one in self._runs.values()) <= HELD_BYTES:
                break
            if other.append is not None and other is not run:
                other.append.exception()
                other.appending_bytes = 0
        run.appending_bytes = sum(map(len, entry.members)) + len(entry.quarantine or b"")
        run.append = self._pool.submit(self._append, run, entry)

    def _collect(self, run: _Run) -> None:
        """Wait for the append that is under way, and raise what it raised."""
        if run.append is not None:
            append, run.append = run.append, None
            append.result()
            run.appending_bytes = 0

    def _append(self, run: _Run, entry: Entry) -> None:
        context, log = self._context, run.writer.log
        known = run.writer.tip.newest
        topic_id = context.broker.topic_id(log.topic, context.cluster)
        if known is not None and topic_id != known.statement.log.topic_id:
            raise LogChanged(
                f"{log}: the topic was deleted and created again during this run; what was read since is thrown away."
                f" Begin a new epoch of the log with 'custody new-epoch {log.topic}'."
            )
        statement = run.writer.append(entry).statement
        head, result = run.writer.tip.head, run.result
        context.broker.commit(log, statement.next_offset, context.archive.id, head, context.signers.hmac())
        events = sum(batch.events for batch in statement.batches)
        quarantined = statement.quarantine.records if statement.quarantine else 0
        result.events += events
        result.quarantined += quarantined
        result.skipped += sum(stop - start for start, stop in statement.skipped)
        result.lost += statement.lost[1] - statement.lost[0] if statement.lost else 0
        result.segments += statement.segment is not None
        result.statements += 1
        result.bytes_in += sum(batch.inflated for batch in statement.batches)
        result.bytes_out += statement.segment.size if statement.segment else 0
        if self._progress is not None:
            self._progress(events + quarantined)
        if self._sealed is not None:
            self._sealed(log)

    def _finish(self, run: _Run) -> None:
        """At the end of the run: write what is in hand, skipped offsets too, or a heartbeat where one is due."""
        if not run.assembler.is_empty:
            self._guard(run, None, self._cut)
            return
        self._guard(run, None, self._collect)
        newest = run.writer.tip.newest
        # What was not read again may be of another log by now: nothing is said of it.
        if run.stopped or newest is None or run.reread is not None:
            return
        idle = datetime.now(UTC) - parse_time(newest.statement.sealed_at)
        if idle.total_seconds() >= self._context.archive.statement.heartbeat:
            position = run.assembler.position
            self._guard(run, None, self._submit, Entry(first_offset=position, next_offset=position))

    def _settle(self, run: _Run) -> None:
        self._guard(run, None, self._collect)

    def _guard(self, run: _Run, feed: Feed | None, step: Callable[..., None], *arguments: object) -> None:
        """Take one step of one log; an error of ours stops that log, and no other."""
        try:
            step(run, *arguments)
        except CustodyError as error:
            self._fail(run, error, feed)

    def _fail(self, run: _Run, error: CustodyError, feed: Feed | None) -> None:
        run.stopped = True
        run.result.problem = str(error)
        if isinstance(error, Fenced):
            run.result.outcome = "fenced"
            logger.info("%s", error)
        else:
            run.result.outcome = "failed"
            logger.error("%s", error)
        if feed is not None:
            feed.stop(*run.place)

    def _report(self, run: _Run) -> None:
        """Fill in where the log stands at the end of the run."""
        head, result, options = run.writer.tip.head, run.result, self._context.settings.drain
        result.size, result.root, result.next_offset = head.size, head.root.hex(), run.writer.next_offset
        try:
            bounds = self._context.broker.bounds(*run.place)
        except CustodyError as error:
            logger.warning("%s: its lag is not known: %s", result.log, error)
            return
        position = run.writer.next_offset or 0
        result.lag = max(0, bounds.end - position)
        if bounds.stable < bounds.end and position >= bounds.stable:
            since = self._context.broker.waits_since(*run.place, bounds.stable)
            waited = time.time() - since if since is not None else 0.0
            if waited > options.hanging_seconds:
                result.hanging = waited
                logger.error(
                    "%s: a transaction has been open for %.0f s and keeps %d offsets from being archived: find its"
                    " producer (kafka-transactions.sh find-hanging) and end it",
                    result.log,
                    waited,
                    result.lag,
                )


@contextmanager
def _rare_collections() -> Iterator[None]:
    """Let the garbage collector look seldom: a read's records are no cycles, and set off a collection every time."""
    before = gc.get_threshold()
    gc.set_threshold(_COLLECT_AFTER, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


def _keep_freed_memory() -> None:
    """Let malloc keep what is freed, for this process's life.

    Else glibc gives each batch's pages back, and faults them in again for the next: up to a fifteenth of the time.
    """
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, 32 * 1024 * 1024)
        mallopt(_M_TRIM_THRESHOLD, _KEEP_BYTES)


def _start_of(run: _Run) -> Position:
    """Return where a run reads its log from: the archive's last record once more, or behind its end."""
    if run.reread is None:
        return Position(run.assembler.position)
    return Position(run.reread.last.offset, run.reread.last.leader_epoch)


def _stalled(run: _Run) -> TransientSourceError:
    return TransientSourceError(
        f"{run.result.log}: no record came for {STALL_SECONDS} s, at offset {run.assembler.position} of {run.target};"
        " what was read is archived, and the next run goes on"
    )
