"""The state and the result of each log in a run."""

import logging
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

from confluent_kafka import TopicPartition as Position

from custody.archive.assemble import Assembler
from custody.archive.reader import Tip
from custody.archive.writer import LogWriter
from custody.errors import CustodyError, Fenced
from custody.format.manifest import LastRecord, Manifest, Range
from custody.format.reasons import Reasons
from custody.format.times import parse_time

logger = logging.getLogger(__name__)

TopicPartition = tuple[str, int]
"""A topic and a partition's number."""


def is_idle(newest: Manifest, heartbeat: int, now: datetime) -> bool:
    """Return whether a heartbeat is due: a log's newest statement is older than `heartbeat` seconds.

    A statement from the future, by a wrong clock, does not keep the log silent until then.
    """
    return not 0 <= (now - parse_time(newest.statement.sealed_at)).total_seconds() < heartbeat


@dataclass(slots=True)
class LogResult:
    """What a run did to one log.

    Attributes:
        log: the log, `<topic>/<partition>`.
        outcome: `drained`; `fenced` if another writer was first; `failed`, with the reason in `problem`.
        events: events archived.
        quarantined: records put into quarantine.
        reasons: why they are there.
        skipped: offsets without a record for a read-committed consumer.
        lost: offsets that the broker had deleted before they were read.
        unreadable: offsets that the broker holds, and that no client could decode.
        segments: segments written.
        statements: statements written.
        bytes_in: bytes of JSONL.
        bytes_out: bytes of segments as stored.
        next_offset: the first offset that the archive does not account for.
        lag: offsets from there to the read-uncommitted end; None if the broker did not answer.
        size: statements in the log.
        root: root of the tree over them, in hex.
        hanging: seconds for which an open transaction has held back records, if longer than `drain.hanging_seconds`.
        clock: seconds by which the host's clock is ahead of another; behind it, if negative. None below five minutes.
        headroom: of a log that is still behind, seconds until Kafka's retention deletes the first record that is not
            archived; None if nothing is, or no limit is known.
        headroom_unknown: why that could not be found out, although the log is behind; None otherwise.
        vanished: whether Kafka no longer has the topic, and the archive has logs of it.
        missing: whether the settings name a topic that Kafka does not have, and of which the archive has no logs.
        problem: what went wrong, and what to do.
    """

    log: str
    outcome: Literal["drained", "fenced", "failed"] = "drained"
    events: int = 0
    quarantined: int = 0
    reasons: Reasons = field(default_factory=Reasons)
    skipped: int = 0
    lost: int = 0
    unreadable: int = 0
    segments: int = 0
    statements: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    next_offset: int | None = None
    lag: int | None = None
    size: int = 0
    root: str = ""
    hanging: float | None = None
    clock: float | None = None
    headroom: float | None = None
    vanished: bool = False
    headroom_unknown: str | None = None
    missing: bool = False
    problem: str | None = None

    def stop(self, error: CustodyError) -> None:
        """Note the error that stopped the log, and log it. A fenced log is no failure: another writer was first."""
        self.problem = str(error)
        self.outcome = "fenced" if isinstance(error, Fenced) else "failed"
        # A missing topic has no log: whoever runs the drain says that the setting is wrong.
        level = logging.INFO if self.missing or isinstance(error, Fenced) else logging.ERROR
        logger.log(level, "%s", error, extra={"log": self.log})


@dataclass(slots=True)
class Reread:
    """What a run reads again, to check that the partition is still the one that was archived.

    Attributes:
        last: the last record that the archive, or this run, has.
        skipped: offsets after it that the archive calls skipped.
        suspect: librdkafka's report of a truncation; None if there is none.
        agrees: whether that record has been read again.
    """

    last: LastRecord
    skipped: Sequence[Range] = ()
    suspect: str | None = None
    agrees: bool = False


@dataclass(slots=True)
class LogRun:
    """One log in a run."""

    topic_partition: TopicPartition
    writer: LogWriter
    assembler: Assembler
    target: int
    result: LogResult
    begun: Tip[Manifest]
    """The tip that this run began from."""
    last: LastRecord | None = None
    """The last record that was read in this log."""
    reread: Reread | None = None
    """What must be read again and agree before new records are taken."""
    since: float = field(default_factory=time.monotonic)
    """When the first of what is not cut yet came, by `time.monotonic`. A loss is there from the start."""
    silent: float = 0.0
    """Seconds of reading since the last record, event or error of the partition."""
    answered: float = 0.0
    """When the last answer of Kafka about the partition came, by `time.monotonic`."""
    caught_up: bool = False
    """Whether all records that were there at the run's start have been read."""
    append: Future[None] | None = None
    appending_bytes: int = 0
    stopped: bool = False
    _lingers: tuple[Manifest, float] | None = None
    """The newest statement, and until when records linger after it, by `time.monotonic`."""

    def fail(self, error: CustodyError) -> None:
        """Stop the log for this run, and note why."""
        self.stopped = True
        self.result.stop(error)

    def note_answer(self) -> None:
        """Note that an answer of Kafka about the partition came."""
        self.silent, self.answered = 0.0, time.monotonic()

    def lingers(self, seconds: float) -> bool:
        """Return whether a segment that is not full stays open, since the newest statement is younger than this.

        Lost and unreadable offsets do not linger: Kafka may not show them again.
        """
        if not seconds or self.assembler.has_gaps:
            return False
        if self.append is not None:
            # Its statement is not the newest yet.
            return True
        newest = self.writer.tip.newest
        if newest is None:
            return False
        if self._lingers is None or self._lingers[0] is not newest:
            age = (datetime.now(UTC) - parse_time(newest.statement.sealed_at)).total_seconds()
            # One from the future, by a wrong clock, does not hold records back.
            self._lingers = newest, time.monotonic() + (seconds - age if age >= 0 else 0.0)
        return time.monotonic() < self._lingers[1]

    @property
    def start(self) -> Position:
        """Where the run starts to read the log: at the archive's last record again, or after the archive's end.

        With a leader epoch, the client asks the broker whether its log still reaches that offset in this epoch.
        """
        if self.reread is None:
            return Position(*self.topic_partition, self.assembler.position)
        last = self.reread.last
        return Position(*self.topic_partition, last.offset, leader_epoch=last.leader_epoch)
