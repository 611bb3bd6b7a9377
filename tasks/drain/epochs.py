"""Begins a new epoch of a log, after its partition was recreated, moved or truncated."""

from contextlib import ExitStack
from dataclasses import dataclass

from custody.archive.reader import list_logs
from custody.archive.trusted import find_trusted_tip
from custody.errors import LogChanged
from custody.format.layout import Log
from custody.format.manifest import Manifest
from tasks.drain.context import Context, open_context
from tasks.drain.kafka import Topic
from tasks.drain.resume import known_heads, log_id, newest_epoch, open_log
from tasks.settings import Settings


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
        logs = list_logs(context.store)
        known = known_heads(context, [topic], [(topic, partition) for partition in range(current.partitions)])
        for partition in range(current.partitions):
            earlier = newest_epoch(context, logs, (topic, partition), known)
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
