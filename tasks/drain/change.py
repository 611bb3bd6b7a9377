"""Whether a partition is still the one that a log was made from."""

from functools import partial

from custody.findings import Finding, finding
from custody.format.layout import Log
from custody.format.manifest import Statement
from tasks.drain.bounds import Bounds
from tasks.drain.kafka import Broker, Topic


def find_change(
    broker: Broker, cluster: str, topic: Topic | None, log: Log, newest: Statement, bounds: Bounds | None = None
) -> Finding | None:
    """Return how a partition differs from the one that a log was made from; None if it continues the log.

    Args:
        broker: the broker.
        cluster: its cluster's id.
        topic: the topic as it is now, None if there is none.
        log: the log.
        newest: its newest statement.
        bounds: where the partition began and ended after that statement was read; asked if None.

    Raises:
        SourceError: Kafka does not answer, or refuses.
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
    bounds = bounds or broker.bounds(log.topic, log.partition)
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
