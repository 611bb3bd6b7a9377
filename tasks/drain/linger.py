"""Decides which open segments wait in Kafka for the next run (`drain.linger_seconds`).

Rules:
- A segment waits until the log's newest statement is that old, and no longer than the log's heartbeat.
- What Kafka may not show again does not wait: lost and unreadable offsets.
- It waits only while Kafka keeps its first record for `drain.headroom_seconds` more, and two runs. So what waits on
  purpose is never lost, and raises no alarm.
- Of a compacted topic nothing waits, unless `min.compaction.lag.ms` is as long as all of that: a newer record of the
  same key lets Kafka remove an older one.
- Where that cannot be known, nothing waits: if the topic has a limit by size, since what comes next decides how soon
  Kafka deletes; if a record has no time; if the broker does not say how long it keeps records.
"""

import logging
import time

from custody.archive.assemble import written_at
from custody.errors import SourceError
from tasks.drain.log_run import LogRun
from tasks.drain.retention import Retention, Retentions
from tasks.settings import DrainSettings

logger = logging.getLogger(__name__)


def least_headroom(options: DrainSettings) -> float:
    """Return for how many seconds Kafka must keep what waits. Until the next run ends, headroom is no problem."""
    return options.headroom_seconds + 2 * options.seconds


class Linger:
    """How long records wait in Kafka in one run."""

    def __init__(self, options: DrainSettings, heartbeat: float, retentions: Retentions) -> None:
        """Take the settings.

        Args:
            options: the drain's.
            heartbeat: of the archive. A log is never silent for longer.
            retentions: of the topics.
        """
        self._seconds = min(options.linger_seconds, heartbeat)
        self._least = least_headroom(options)
        self._retentions = retentions
        self._reported: set[str] = set()

    def holds_back(self, run: LogRun) -> bool:
        """Return whether a log's open segment, if it is not full, stays open."""
        return run.lingers(self._seconds) and self._is_kept(run)

    def _is_kept(self, run: LogRun) -> bool:
        """Return whether Kafka keeps the records of the open segment for long enough."""
        first, topic = run.assembler.first_record, run.topic_partition[0]
        if first is None:
            return True
        try:
            retention = self._retentions.of(topic)
        except SourceError as error:
            if topic not in self._reported:
                self._reported.add(topic)
                logger.warning("%s: nothing lingers, since its retention is not known: %s", topic, error)
            return False
        if retention.compacts_after is not None and retention.compacts_after < self._seconds + self._least:
            return False
        return _headroom(retention, written_at(first)) >= self._least


def _headroom(retention: Retention, written: float | None) -> float:
    """Return for how many seconds Kafka keeps a record for certain, by the time at which it was written."""
    if retention.bytes is not None:
        return 0.0
    limits = [limit for limit in (retention.seconds, retention.compacts_after) if limit is not None]
    if not limits:
        return float("inf")
    now = time.time()
    return min(written, now) + min(limits) - now if written is not None else 0.0
