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
"""

import ctypes
import gc
import logging
import platform
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

from custody import layout, manifest
from custody.archive import (
    ArchiveInfo,
    Entry,
    LogWriter,
    Seen,
    audited_heads,
    find_head,
    list_logs,
    put_checkpoint,
    read_archive,
    writer_name,
)
from custody.checkpoints import find_signer
from custody.errors import (
    ConfigurationError,
    CustodyError,
    Fenced,
    LogChanged,
    ObjectMissing,
    SourceRefused,
    TransientSourceError,
)
from custody.keys import open_signers
from custody.layout import Log
from custody.manifest import After, LogId, Signer
from custody.settings import Settings
from custody.store import Store, open_store
from custody.trust import Trust, open_trust
from tasks.assemble import Assembler
from tasks.kafka import (
    DAMAGED,
    OFFSET_OUT_OF_RANGE,
    PARTITION_EOF,
    Bounds,
    Broker,
    Feed,
    Received,
    Topic,
    error_of,
    map_error,
    partition_of,
)

logger = logging.getLogger(__name__)

Place = tuple[str, int]
"""Topic and partition."""

READ_RECORDS = 500
"""Records in one read from librdkafka: so few that their objects stay in the cache, which makes a read 40 % cheaper."""
READ_SECONDS = 0.1
"""How long a read waits for them; also how soon a stop is noticed."""
HELD_BYTES = 64 * 1024 * 1024
"""Assembled, over all logs; beyond it the largest is cut. As much again may be on its way to the store."""
STALL_SECONDS = 30
"""A run that is to end when it has caught up gives up after so long without a record."""
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
class _Run:
    """One log in a run."""

    place: Place
    writer: LogWriter
    assembler: Assembler
    target: int
    result: LogResult
    begun: str | None = None
    """When the head was sealed that this run began from."""
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
    info: ArchiveInfo
    signers: Sequence[Signer]
    trust: Trust
    broker: Broker
    cluster: str
    writer: str
    audited: dict[str, Seen] = field(default_factory=dict)


def find_places(settings: Settings) -> list[Place]:
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
    places: Sequence[Place] | None = None,
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
            _put_checkpoints(context, runs)
        results.extend(run.result for run in runs)
    return sorted(results, key=lambda result: result.log)


def _put_checkpoints(context: _Context, runs: Sequence[_Run]) -> None:
    """Sign the heads of logs for which an hour has begun since the head that this run found.

    The hours are those of the clock, and both times stand in statements: nothing has to be looked up, and a run that
    died here leaves that hour to the next audit. What a checkpoint covers is in the archive already, so that one that
    cannot be put is no failure of the drain.
    """
    settings = context.settings
    due = [run for run in runs if _is_due(run, settings.drain.checkpoint_seconds)]
    if not due:
        return
    uri = settings.checkpoint_keys
    try:
        signers = open_signers(uri, datetime.now(UTC), settings.passphrase()) if uri else context.signers
    except CustodyError as error:
        logger.warning("no checkpoints: %s", error)
        return
    signer = find_signer(signers)
    if signer is None:
        return
    for run in due:
        head = run.writer.head
        try:
            put_checkpoint(
                context.store, context.info.archive, run.writer.log, head.size, bytes.fromhex(head.root), signer
            )
        except CustodyError as error:
            logger.warning("no checkpoint of %s: %s", run.writer.log, error)


def _is_due(run: _Run, seconds: int) -> bool:
    newest = run.writer.head.newest
    if newest is None or run.result.outcome != "drained":
        return False
    if run.begun is None:
        return True
    before, now = (
        int(manifest.parse_time(one).timestamp()) // seconds for one in (run.begun, newest.statement.sealed_at)
    )
    return before != now


def begin_life(settings: Settings, topic: str) -> list[LogResult]:
    """Begin a new life of a topic's logs, after it was deleted and created again, or moved to another cluster.

    Raises:
        LogChanged: nothing of the topic's logs has changed, so that there is no reason for a new life.
        CustodyError: as `drain_logs`.
    """
    results = []
    with ExitStack() as stack:
        context = _enter(settings, stack)
        found = next(iter(context.broker.topics([topic])), None)
        if found is None:
            raise context.broker.missing(topic)
        life = _newest_life(list_logs(context.store), topic)
        places = [(topic, partition) for partition in range(found.partitions)]
        if not any(_has_changed(context, found, partition, life) for partition in range(found.partitions)):
            raise LogChanged(
                f"topic {topic} is the one that its logs of life {life} are made from, and goes on where they end:"
                " there is no reason to begin a new life"
            )
        for place in places:
            run = _open_log(context, found, place[1], life + 1, None)
            run.result.size, run.result.root = run.writer.head.size, run.writer.head.root
            results.append(run.result)
    return results


def _enter(settings: Settings, stack: ExitStack) -> _Context:
    store = open_store(settings.archive, settings.s3)
    stack.callback(store.close)
    try:
        info = read_archive(store)
    except ObjectMissing:
        raise ConfigurationError(f"there is no archive at {store.url}: run 'custody init' first") from None
    passphrase = settings.passphrase()
    broker = stack.enter_context(Broker(settings.kafka.librdkafka(), settings.kafka.group))
    return _Context(
        settings,
        store,
        info,
        open_signers(settings.keys, datetime.now(UTC), passphrase),
        open_trust((settings.keys,), passphrase=passphrase),
        broker,
        broker.cluster(),
        writer_name(),
        dict(audited_heads(store)),
    )


def _open_logs(context: _Context, places: Sequence[Place]) -> tuple[list[_Run], list[LogResult]]:
    """Open every log; those that cannot be drained are results already."""
    topics = {topic.name: topic for topic in context.broker.topics(sorted({topic for topic, _ in places}))}
    logs = list_logs(context.store)
    memories: dict[Place, tuple[Log, Seen]] = {}
    for name in topics:
        partitions = [partition for topic, partition in places if topic == name]
        for partition, memory in context.broker.remembered(name, partitions, context.info.archive).items():
            memories[name, partition] = memory

    def open_one(place: Place) -> _Run | LogResult:
        life = _newest_life(logs, place[0])
        try:
            if place[0] not in topics:
                raise context.broker.missing(place[0])
            return _open_log(context, topics[place[0]], place[1], life, memories.get(place))
        except Fenced as error:
            logger.info("%s", error)
            return LogResult(str(Log(*place, life)), "fenced", problem=str(error))
        except CustodyError as error:
            logger.error("%s", error)  # noqa: TRY400 - the message says it all; a traceback would not help
            return LogResult(str(Log(*place, life)), "failed", problem=str(error))

    with ThreadPoolExecutor(_OPENERS, "open") as pool:
        opened = list(pool.map(open_one, places))
    return [one for one in opened if isinstance(one, _Run)], [one for one in opened if isinstance(one, LogResult)]


def _newest_life(logs: Sequence[Log], topic: str) -> int:
    return max((log.life for log in logs if log.topic == topic), default=1)


def _log_id(context: _Context, topic: Topic, partition: int, life: int) -> LogId:
    return LogId(context.cluster, topic.name, topic.id, partition, life)


def _open_log(context: _Context, topic: Topic, partition: int, life: int, memory: tuple[Log, Seen] | None) -> _Run:
    """Check a log's head against all that is remembered of it and against the broker, and say where to go on."""
    layout.check_topic(topic.name, partition)
    log = Log(topic.name, partition, life)
    bounds = context.broker.bounds(topic.name, partition)
    seen = [context.audited[str(log)]] if str(log) in context.audited else []
    if memory is not None and memory[0] == log:
        seen.append(memory[1])
    writer = LogWriter(
        context.store,
        context.info,
        _log_id(context, topic, partition, life),
        signers=context.signers,
        trust=context.trust,
        writer=context.writer,
    )
    head = writer.open(seen)
    result = LogResult(str(log))
    if head.newest is None:
        # Written at once, so that whatever is lost from here on is admitted.
        after = _earlier_life(context.store, log)
        writer.append(Entry(first_offset=bounds.start, next_offset=bounds.start, after=after))
        result.statements += 1
    position = writer.head.next_offset or 0
    _check_end(log, position, bounds)
    options = context.settings.drain
    assembler = Assembler(
        position, batch_events=options.batch_events, segment_bytes=options.segment_bytes, level=options.level
    )
    if bounds.start > position:
        assembler.lose(bounds.start)
    begun = head.newest.statement.sealed_at if head.newest else None
    return _Run((topic.name, partition), writer, assembler, bounds.stable, result, begun)


def _check_end(log: Log, position: int, bounds: Bounds) -> None:
    if bounds.end < position:
        raise LogChanged(
            f"{log}: the archive ends at offset {position}, and the partition at {bounds.end}: the topic was deleted"
            " and created again, or an unclean election cut it. If that was meant, begin a new life of the log with"
            f" 'custody new-life {log.topic}'; the old one stays as it is."
        )


def _has_changed(context: _Context, topic: Topic, partition: int, life: int) -> bool:
    head = find_head(context.store, Log(topic.name, partition, life))
    if head.newest is None:
        return False
    if head.newest.statement.log != _log_id(context, topic, partition, life):
        return True
    return context.broker.bounds(topic.name, partition).end < head.newest.statement.next_offset


def _earlier_life(store: Store, log: Log) -> After | None:
    """Return the head of the partition's newest earlier life that has statements."""
    for life in range(log.life - 1, 0, -1):
        head = find_head(store, Log(log.topic, log.partition, life))
        if head.size:
            return After(life, head.size, head.root)
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
        positions = {place: run.assembler.position for place, run in self._runs.items()}
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
                behind = [run for run in active if run.assembler.position < run.target]
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
                    self._guard(run, feed, self._take, messages)
            for message in others:
                self._handle(message, feed)
            self._cut_what_is_due(feed, now)

    def _read(self, feed: Feed) -> tuple[dict[Place, list[Received]], list[Received]]:
        """Read once, and tell records by log from events and errors."""
        messages = feed.read(READ_RECORDS, READ_SECONDS)
        others: list[Received] = []
        if any(map(error_of, messages)):
            others = [message for message in messages if message.error() is not None]
            messages = [message for message in messages if message.error() is None]
        records: dict[Place, list[Received]] = defaultdict(list)
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
        elif run is not None and error.code() == OFFSET_OUT_OF_RANGE:
            self._guard(run, feed, self._resume, feed)
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
        if offset > run.assembler.position:
            self._account(run, offset, self._context.broker.bounds(*run.place).start)

    def _resume(self, run: _Run, feed: Feed) -> None:
        """Go on after the offset that was asked for is not there: retention has overtaken us, or the topic changed."""
        bounds = self._context.broker.bounds(*run.place)
        _check_end(run.writer.log, run.assembler.position, bounds)
        if bounds.start > run.assembler.position:
            self._account(run, bounds.start, bounds.start)
        feed.seek(*run.place, run.assembler.position)

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
        known = run.writer.head.newest
        topic_id = context.broker.topic_id(log.topic, context.cluster)
        if known is not None and topic_id != known.statement.log.topic_id:
            raise LogChanged(
                f"{log}: the topic was deleted and created again during this run; what was read since is thrown away."
                f" Begin a new life of the log with 'custody new-life {log.topic}'."
            )
        statement = run.writer.append(entry).statement
        head, result = run.writer.head, run.result
        context.broker.commit(log, statement.next_offset, context.info.archive, head.size, head.root)
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
        newest = run.writer.head.newest
        if run.stopped or newest is None:
            return
        idle = datetime.now(UTC) - manifest.parse_time(newest.statement.sealed_at)
        if idle.total_seconds() >= self._context.info.heartbeat:
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
        head, result, options = run.writer.head, run.result, self._context.settings.drain
        result.size, result.root, result.next_offset = head.size, head.root, head.next_offset
        try:
            bounds = self._context.broker.bounds(*run.place)
        except CustodyError as error:
            logger.warning("%s: its lag is not known: %s", result.log, error)
            return
        position = head.next_offset or 0
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


def _stalled(run: _Run) -> TransientSourceError:
    return TransientSourceError(
        f"{run.result.log}: no record came for {STALL_SECONDS} s, at offset {run.assembler.position} of {run.target};"
        " what was read is archived, and the next run goes on"
    )
