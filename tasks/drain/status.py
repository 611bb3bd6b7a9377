"""The status of each log: its head in the archive, and how far that is behind Kafka."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby

from custody.archive.forms import statements_of
from custody.archive.reader import Holds, Tip, after_hole, find_tip, named_logs, read_archive
from custody.archive.resume import find_checked_tip, rollback
from custody.archive.trusted import Judge, check_archive, standing
from custody.errors import (
    ConfigurationError,
    CustodyError,
    HeadRollback,
    SourceError,
    TransientSourceError,
    TransientStoreError,
)
from custody.findings import Finding, finding
from custody.format import layout
from custody.format.layout import Log
from custody.format.manifest import Manifest, Statement
from custody.keys.open import keyring_path
from custody.keys.trust import Trust
from custody.store.open import open_store
from custody.store.protocol import Store
from custody.tlog.head import KnownHead
from tasks.drain.context import read_audited_heads
from tasks.drain.kafka import DIRECT, Broker, Topic
from tasks.settings import Settings

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LogStatus:
    """One log as it is now.

    Attributes:
        log: `<log>/<partition>`.
        size: statements in it.
        root: root of the tree over them, in hex.
        next_offset: the first offset that the archive does not account for.
        sealed_at: when the newest statement was sealed.
        lag: offsets from there to the partition's read-uncommitted end; None if Kafka did not answer, if the log has
            ended, or if the partition is another one now.
        ended: whether a later epoch follows, so that nothing is archived here any more.
        problem: what is wrong with the log or with its partition, or None.
    """

    log: str
    size: int = 0
    root: str = ""
    next_offset: int | None = None
    sealed_at: str | None = None
    lag: int | None = None
    ended: bool = False
    problem: str | None = None


def read_status(settings: Settings) -> Iterator[LogStatus]:
    """Yield the status of each log of the archive. Neither Kafka nor a key is required.

    With keys, a log's head is the newest one that they signed, and a log that lacks statements has a problem. Without
    keys, signatures are not checked. What is refused is a problem: of `archive.json`, of `kafka`, or of a log.

    Raises:
        StoreError: the archive's storage does not answer.
    """
    with (
        closing(open_store(settings.archive, settings.s3)) as store,
        Broker(settings.kafka.librdkafka(), settings.kafka.group) as broker,
    ):
        find, heads, problem = _finder(settings, store)
        if problem is not None:
            yield LogStatus(layout.ARCHIVE, problem=f"heads are not checked: {problem}")
        logs = named_logs(store, heads)
        cluster, topics = None, {}
        try:
            topics = {topic.name: topic for topic in broker.topics(sorted({log.topic for log in logs}))}
            cluster = broker.cluster()
        except TransientSourceError as error:
            logger.warning("the lag is not known: %s", error)
        except SourceError as error:
            yield LogStatus("kafka", problem=f"the lag is not known: {error}")
        for _, epochs in groupby(logs, key=lambda log: (log.topic, log.partition)):
            statuses = list(filter(None, (_status(find, log) for log in epochs)))
            # Only a statement shows that there is a later epoch.
            last = max((at for at, (_, newest) in enumerate(statuses) if newest), default=0)
            for at, (status, newest) in enumerate(statuses):
                if at < last:
                    yield replace(status, ended=True)
                elif newest is None or cluster is None or newest.log.cluster == DIRECT:
                    yield status
                else:
                    yield _compare(broker, cluster, topics, status, newest)


def _status(find: Callable[[Log], Tip[Manifest]], log: Log) -> tuple[LogStatus, Statement | None] | None:
    """Return a log's status in the archive, and its newest statement; None if nothing shows that there is a log."""
    try:
        tip = find(log)
    except CustodyError as error:
        return LogStatus(str(log), problem=str(error)), None
    if tip.newest is None:
        problem = f"none of its {tip.size} slots has a statement that counts; run 'custody verify'"
        return (LogStatus(str(log), problem=problem), None) if tip.size else None
    statement, head = tip.newest.statement, tip.head
    status = LogStatus(str(log), head.size, head.root.hex(), statement.next_offset, statement.sealed_at)
    return status, statement


def _compare(
    broker: Broker, cluster: str, topics: Mapping[str, Topic], status: LogStatus, newest: Statement
) -> LogStatus:
    """Add the lag to a status, or say that the partition no longer continues the log."""
    log = Log(newest.log.topic, newest.log.partition, newest.log.epoch)
    try:
        changed = find_change(broker, cluster, topics.get(log.topic), log, newest)
        if changed is None:
            end = broker.bounds(log.topic, log.partition).end
            return replace(status, lag=max(0, end - newest.next_offset))
    except TransientSourceError as error:
        logger.warning("%s: the lag is not known: %s", log, error)
        return status
    except SourceError as error:
        return replace(status, problem=f"the log cannot be compared with Kafka: {error}")
    differs = f" (archived: {changed.expected}; now: {changed.found})" if changed.found else ""
    return replace(status, problem=f"{changed.message}{differs}. {changed.action}")


def find_change(broker: Broker, cluster: str, topic: Topic | None, log: Log, newest: Statement) -> Finding | None:
    """Return how a partition differs from the one that a log was made from; None if it continues the log.

    Args:
        broker: the broker.
        cluster: its cluster's id.
        topic: the topic as it is now, None if there is none.
        log: the log.
        newest: its newest statement.

    Raises:
        SourceError: Kafka does not answer.
    """
    archived = newest.log
    changed = partial(finding, "topic-changed", log=str(log), sequence=newest.sequence)
    if archived.cluster != cluster:
        message = "the broker belongs to another cluster than the log"
        return changed(message, expected=archived.cluster, found=cluster)
    if topic is None:
        # A listing leaves out topics that are refused: that is no change.
        broker.check_visible(log.topic)
    if topic is None or log.partition >= topic.partitions:
        return changed("the broker no longer has the partition")
    if archived.topic_id != topic.id:
        message = "the topic was deleted and created again"
        return changed(message, expected=f"topic id {archived.topic_id}", found=f"topic id {topic.id}")
    bounds = broker.bounds(log.topic, log.partition)
    if bounds.end < newest.next_offset:
        message = "the partition ends before the log: it was truncated"
        expected, actual = f"offset {newest.next_offset}", f"offset {bounds.end}"
        return changed(message, offset=bounds.end, expected=expected, found=actual)
    last = newest.last_record
    if last is not None and last.offset >= bounds.start:
        problem = broker.disagreement(log.topic, log.partition, last)
        if problem is not None:
            return changed(f"the partition was truncated and has grown again: {problem}", offset=last.offset)
    return None


def _finder(
    settings: Settings, store: Store
) -> tuple[Callable[[Log], Tip[Manifest]], Mapping[str, KnownHead], str | None]:
    """Return a function that finds where a log ends, the heads that audits know, and why heads are not checked.

    Raises:
        TransientStoreError: the archive's storage does not answer.
    """
    try:
        file = read_archive(store)
        trust = settings.own_trust()
        problem = check_archive(file, trust)
        heads = {} if problem else read_audited_heads(store, file.id, trust)
    except TransientStoreError:
        raise
    except CustodyError as error:
        # The default keyring need not be there.
        unset = isinstance(error, ConfigurationError) and not settings.model_fields_set & {"keys", "checkpoint_keys"}
        keyring = keyring_path(settings.keys)
        refused = None if unset and keyring and not keyring.exists() else str(error)
    else:

        def find(log: Log) -> Tip[Manifest]:
            if problem:
                raise HeadRollback(f"{store.url}: {problem}")
            form = statements_of(log)
            known = [heads[str(log)]] if str(log) in heads else []
            return find_checked_tip(store, log, form, Judge(store, log, form, file.id, trust), trust, known)

        return find, {name: head for name, head in heads.items() if head.size}, None
    holds = standing(store, None, Trust())
    return lambda log: _unchecked_tip(store, log, holds(log)), {}, refused


def _unchecked_tip(store: Store, log: Log, holds: Holds[Manifest]) -> Tip[Manifest]:
    """Find where a log ends, by unchecked statements.

    Raises:
        HeadRollback: there are more statements after a hole.
    """
    form, tip = statements_of(log), find_tip(store, log, holds)
    sequence = after_hole(store, form, tip, holds)
    if sequence is not None:
        raise rollback(store, log, f"{form.key(tip.size)} is missing, but {form.key(sequence)} exists")
    return tip
