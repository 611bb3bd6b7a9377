"""Finds where a run starts to read each log: its newest epoch, its trusted head, and the record that is read again.

It also begins new epochs, after a partition was recreated, moved or truncated.

The last archived record shows whether the partition is still the one that was archived. A run reads that record again,
and compares its leader epoch with the archive's. It does the same whenever it seeks. So a truncated partition is
noticed even if it has grown again. Limits:

- If compaction removed the record, a truncation shows only in the broker's own leader epochs.
- If retention removed it, or the broker has no leader epochs, a truncation is not noticed.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice

from custody.archive.assemble import Assembler
from custody.archive.forms import statements_of
from custody.archive.reader import Tip, list_logs, read_valid
from custody.archive.slots import sequence_of
from custody.archive.trusted import Judge, find_signed_end, find_trusted_tip
from custody.archive.writer import Entry, LogWriter
from custody.errors import CustodyError, FormatError, HeadRollback, LogChanged, ObjectMissing, SourceRefused
from custody.format import layout, limits
from custody.format.layout import Log
from custody.format.leaves import LeafMaker
from custody.format.manifest import LogId, Manifest, PreviousEpoch
from custody.keys.trust import Trust
from custody.tlog.head import KnownHead
from tasks.drain.bounds import Bounds
from tasks.drain.committed_heads import CommittedHead, check_committed_head
from tasks.drain.context import Context, open_context
from tasks.drain.kafka import Topic
from tasks.drain.log_run import LogResult, LogRun, Reread, TopicPartition, is_idle
from tasks.settings import Settings

OPENERS = 32
"""Logs opened at the same time."""

logger = logging.getLogger(__name__)


def open_logs(context: Context, partitions: Sequence[TopicPartition]) -> tuple[list[LogRun], list[LogResult]]:
    """Open every log, and return the runs, and the results of logs that cannot be drained."""
    topics = {topic.name: topic for topic in context.broker.topics(sorted({topic for topic, _ in partitions}))}
    logs = list_logs(context.store)
    archived = {log.topic for log in logs}
    try:
        committed = context.broker.remembered([each for each in partitions if each[0] in topics], context.archive.id)
    except SourceRefused:
        # Archiving does not wait for what only remembers: audits know heads, too. The run fails at its end.
        if context.broker.group_refusal is None:
            raise
        committed = []
    known = known_heads(context, committed)
    ends = {each.log: each.offset for each in committed}
    epochs = find_epochs(logs, known, context.trust)
    bounds = context.broker.all_bounds([each for each in partitions if each[0] in topics], context.cluster)

    def try_open(topic_partition: TopicPartition) -> LogRun | LogResult:
        log, topic = Log(*topic_partition), topic_partition[0]
        vanished = missing = False
        try:
            if topic not in topics:
                refusal = context.broker.missing(topic, archived=topic in archived)
                vanished, missing = topic in archived, topic not in archived
                raise refusal
            log = newest_epoch(context, epochs, topic_partition)
            found = bounds.get(topic_partition)
            return open_log(context, topics[topic], log, known.get(str(log), ()), ends.get(log), found)
        except CustodyError as error:
            result = LogResult(str(log), vanished=vanished, missing=missing)
            result.stop(error)
            return result

    with ThreadPoolExecutor(OPENERS, "open") as pool:
        opened = list(pool.map(try_open, partitions))
    runs = [run for run in opened if isinstance(run, LogRun)]
    return runs, [result for result in opened if isinstance(result, LogResult)]


def known_heads(context: Context, committed: Iterable[CommittedHead]) -> dict[str, list[KnownHead]]:
    """Return the signed heads of logs in the newest audit and in the group's committed offsets."""
    known = {log: [head] for log, head in context.audited.items()}
    for each in committed:
        log = each.log
        judge = Judge(context.store, log, statements_of(log), context.archive.id, context.trust)
        head = check_committed_head(each, context.trust, judge.proofs)
        if head is not None:
            known.setdefault(str(log), []).append(head)
    return known


@dataclass(frozen=True, slots=True)
class Epochs:
    """The epochs that each partition may have.

    Attributes:
        named: those that the archive has a folder of.
        signed: those of which a known head has statements.
    """

    named: Mapping[TopicPartition, AbstractSet[int]]
    signed: Mapping[TopicPartition, AbstractSet[int]]


def find_epochs(logs: Iterable[Log], known: Mapping[str, Sequence[KnownHead]], trust: Trust) -> Epochs:
    """Return the epochs of all partitions, by the archive's logs, known heads, and heads in the trust file."""
    heads = {name for name, of_log in known.items() if any(head.size for head in of_log)}
    heads |= {name for name, head in trust.heads.items() if head.size}
    return Epochs(_by_partition(logs), _by_partition(log for log in map(layout.parse_log_text, heads) if log))


def _by_partition(logs: Iterable[Log]) -> dict[TopicPartition, set[int]]:
    epochs: dict[TopicPartition, set[int]] = {}
    for log in logs:
        epochs.setdefault((log.topic, log.partition), set()).add(log.epoch)
    return epochs


def newest_epoch(context: Context, epochs: Epochs, topic_partition: TopicPartition) -> Log:
    """Return a partition's newest epoch: the last one with a statement that counts, or with a known head.

    Names of folders, and statements that no trusted key signed, begin no epoch, and stop none.

    Raises:
        KeyUnavailable: an epoch's newest statement has a trusted key that cannot be used now.
        StoreError: the store does not answer.
    """
    newest = max(epochs.signed.get(topic_partition, {1}))
    ignored = []
    for epoch in sorted(epoch for epoch in epochs.named.get(topic_partition, ()) if epoch > newest):
        log = Log(*topic_partition, epoch)
        # Epochs follow each other. So behind a hole the first slot alone is read: more names cost no more than that.
        if _has_begun(context, log) if epoch == newest + 1 else _has_first(context, log):
            newest = epoch
        else:
            ignored.append(log)
    if ignored:
        logger.warning(
            "%s and %d others have no statement signed by trusted keys: they are no epochs; find out who wrote there",
            layout.log_prefix(ignored[0]),
            len(ignored) - 1,
        )
    return Log(*topic_partition, newest)


def _has_first(context: Context, log: Log) -> bool:
    """Return whether the first statement of an epoch counts. Raises as `newest_epoch`."""
    form = statements_of(log)
    judge = Judge(context.store, log, form, context.archive.id, context.trust)
    with suppress(FormatError, HeadRollback, ObjectMissing):
        read_valid(context.store, form, 0, judge.holds)
        return True
    return False


def _has_begun(context: Context, log: Log) -> bool:
    """Return whether an epoch has a statement that counts. Raises as `newest_epoch`."""
    store, form = context.store, statements_of(log)
    judge = Judge(store, log, form, context.archive.id, context.trust)
    try:
        return find_signed_end(store, form, judge).newest is not None
    except (FormatError, HeadRollback) as error:
        logger.warning("%s: %s", log, error, extra={"log": log})
    # Its end is damaged. If it has begun, one of its first slots still shows that: more cannot be passed over.
    sequences = (sequence_of(info.key) for info in store.list(form.prefix))
    for sequence in islice((each for each in sequences if each is not None), limits.PASSED_OVER + 1):
        with suppress(FormatError, HeadRollback, ObjectMissing):
            read_valid(store, form, sequence, judge.holds)
            return True
    return False


def log_id(context: Context, topic: Topic, log: Log) -> LogId:
    """Return the identity of a partition as it is now: cluster, topic, topic id, number and epoch."""
    return LogId(context.cluster, topic.name, topic.id, log.partition, log.epoch)


def open_log(
    context: Context,
    topic: Topic,
    log: Log,
    known: Sequence[KnownHead],
    committed: int | None = None,
    bounds: Bounds | None = None,
) -> LogRun:
    """Check a log's head against the known heads and the broker, and return a run that continues from it.

    If nothing waits, most of that is left to the run's first append (`LogWriter.glance`).

    Args:
        context: what all logs of the run share.
        topic: the log's topic, as it is now.
        log: the log.
        known: its known heads.
        committed: the offset that the group committed last, where it is known. It is a hint: if nothing waits there,
            the run probably appends nothing.
        bounds: where its partition began and ended before logs were opened; asked if None.
    """
    layout.check_topic(log.topic, log.partition)
    bounds = bounds or context.broker.bounds(log.topic, log.partition)
    writer = LogWriter(
        context.store,
        context.archive.id,
        log_id(context, topic, log),
        signer=context.signers.hmac(),
        trust=context.trust,
        writer=context.writer,
    )
    begun = writer.glance(known) if committed == bounds.stable else None
    if begun is None or not _is_quiet(context, begun, bounds):
        begun = writer.open(known)
    result = LogResult(str(log))
    if begun.newest is None:
        # Written at once, so that offsets lost from now on are stated in the log.
        previous = _previous_epoch(context, log)
        writer.append(Entry(first_offset=bounds.start, next_offset=bounds.start, previous_epoch=previous))
        result.statements += 1
    position = writer.next_offset or 0
    if bounds.end < position:
        # Another writer may have archived records that came after Kafka was asked.
        bounds = context.broker.bounds(log.topic, log.partition)
    check_end(log, position, bounds)
    options, leaves = context.settings.drain, context.signers.leaves
    assembler = Assembler(
        position,
        batch_events=options.batch_events,
        segment_bytes=options.segment_bytes,
        level=options.level,
        number=writer.next_batch,
        leaves=LeafMaker(leaves, context.archive.id, str(log)) if options.event_leaves and leaves else None,
        own_types=context.settings.events.own_types,
    )
    run = LogRun((log.topic, log.partition), writer, assembler, bounds.stable, result, begun)
    if begun.newest is not None:
        run.last = begun.newest.statement.last_record
        if run.last is not None and run.last.offset >= bounds.start:
            run.reread = Reread(run.last, begun.newest.statement.skipped)
    if bounds.start > position:
        assembler.lose(bounds.start)
    return run


def _is_quiet(context: Context, tip: Tip[Manifest], bounds: Bounds) -> bool:
    """Return whether a run has nothing to append to a log yet: no record waits, and no heartbeat is due."""
    newest = tip.newest
    if newest is None or newest.statement.next_offset != bounds.stable or bounds.start > bounds.stable:
        return False
    return not is_idle(newest, context.archive.statement.heartbeat, datetime.now(UTC))


def check_end(log: Log, position: int, bounds: Bounds) -> None:
    """Check that a partition does not end before its log does.

    Raises:
        LogChanged: it ends before.
    """
    if bounds.end < position:
        raise LogChanged(
            f"{log}: the archive ends at offset {position}, but the partition ends at {bounds.end}: the topic was"
            " deleted and created again, or an unclean leader election truncated it. If that was intended, begin a new"
            f" epoch of the log with 'custody new-epoch {log.topic}'; the old epoch stays as it is."
        )


def _previous_epoch(context: Context, log: Log) -> PreviousEpoch | None:
    """Return the head of the partition's newest earlier epoch that has statements."""
    for epoch in range(log.epoch - 1, 0, -1):
        earlier = Log(log.topic, log.partition, epoch)
        head = find_trusted_tip(context.store, earlier, context.archive.id, context.trust).head
        if head.size:
            return PreviousEpoch(epoch, head.size, head.root.hex())
    return None


@dataclass(frozen=True, slots=True)
class EpochBegun:
    """A new epoch of a partition.

    Attributes:
        log: the new epoch's log, `<log>/<partition>`.
        earlier: the log of the epoch that it follows.
        same_topic: whether cluster and topic id are those of that epoch, as after a truncation.
    """

    log: str
    earlier: str
    same_topic: bool


def begin_epoch(settings: Settings, topic: str) -> list[EpochBegun]:
    """Begin a new epoch for each partition of a topic that no longer continues its log.

    A partition does not continue its log after the topic was deleted and created again, or moved to another cluster,
    or after the partition was truncated. Each partition's new epoch follows its own newest one.

    Raises:
        LogChanged: every partition continues its log, so there is no reason for a new epoch.
        CustodyError: as `drain_logs`.
    """
    begun = []
    with ExitStack() as stack:
        context = open_context(settings, stack)
        current = next(iter(context.broker.topics([topic])), None)
        if current is None:
            raise context.broker.missing(topic)
        partitions = [(topic, partition) for partition in range(current.partitions)]
        known = known_heads(context, context.broker.remembered(partitions, context.archive.id))
        epochs = find_epochs(list_logs(context.store), known, context.trust)
        for partition in range(current.partitions):
            earlier = newest_epoch(context, epochs, (topic, partition))
            tip = find_trusted_tip(context.store, earlier, context.archive.id, context.trust)
            if tip.newest is None or not _has_changed(context, current, earlier, tip.newest):
                continue
            run = open_log(context, current, Log(topic, partition, earlier.epoch + 1), ())
            before, now = tip.newest.statement.log, log_id(context, current, earlier)
            begun.append(EpochBegun(str(run.writer.log), str(earlier), before == now))
    if not begun:
        raise LogChanged(
            f"topic {topic} is unchanged, and continues where its logs end: there is no reason to begin a new epoch"
        )
    return begun


def _has_changed(context: Context, topic: Topic, log: Log, newest: Manifest) -> bool:
    """Return whether a partition is another one than a log was made from, or does not continue where the log ends."""
    statement = newest.statement
    if statement.log != log_id(context, topic, log):
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
