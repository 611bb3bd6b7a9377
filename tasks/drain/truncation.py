"""How a partition shows that it was truncated: it lost records that the archive has, and may have grown again."""

from confluent_kafka import KafkaError

from custody.errors import LogChanged
from custody.format.layout import Log
from custody.format.manifest import LastRecord

LOG_TRUNCATION: int = KafkaError._LOG_TRUNCATION  # noqa: SLF001


def says_truncated(error: KafkaError) -> bool:
    """Return whether librdkafka found by leader epochs that a partition was truncated."""
    # With auto.offset.reset=error, the text of that error is part of the error for the position.
    return error.code() == LOG_TRUNCATION or _TRUNCATED in error.str()


_TRUNCATED = KafkaError(LOG_TRUNCATION).str()


def contradiction(last: LastRecord, offset: int, leader_epoch: int | None) -> str | None:
    """Return how the broker's record contradicts the archive's last one; None if it does not.

    At the same offset, a record with the same leader epoch is the same record. If compaction removed that record, the
    next one must not have an earlier leader epoch, because leader epochs never decrease. With the same or a later
    epoch it shows nothing.

    Args:
        last: the archive's last record.
        offset: the offset of the broker's first record at or after it.
        leader_epoch: the leader epoch of that record.
    """
    if leader_epoch is None or leader_epoch < 0 or leader_epoch == last.leader_epoch or offset < last.offset:
        return None
    if offset > last.offset and leader_epoch > last.leader_epoch:
        return None
    return (
        f"the archive has the record at offset {last.offset} from leader epoch {last.leader_epoch}, but the broker has"
        f" one at offset {offset} from leader epoch {leader_epoch}"
    )


def truncated(log: Log, reason: str) -> LogChanged:
    """Return the error for a partition that lost records which the archive has."""
    return LogChanged(
        f"{log}: {reason}: the partition was truncated, by an unclean leader election or a broker that lost its disk,"
        " and may have grown again. New records at offsets that the archive has already would be left out, so nothing"
        f" is appended. Compare with 'custody verify --kafka'. Then 'custody new-epoch {log.topic}' begins a new epoch"
        " of the log, from the partition's present start; the old epoch stays as it is."
    )
