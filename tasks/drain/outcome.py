"""What a run says of its logs at its end: heads, lag, clocks that differ, and how long Kafka keeps what waits."""

import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta

from custody.archive.assemble import written_at
from custody.errors import CustodyError, SourceError, TransientSourceError, counted
from custody.format.times import EPOCH, kafka_moment, parse_time
from custody.store.protocol import CLOCK_SLACK, Store, host_ahead
from tasks.drain.bounds import Bounds
from tasks.drain.context import Context
from tasks.drain.log_run import LogRun, TopicPartition
from tasks.drain.retention import Retentions, read_headroom
from tasks.drain.signals import stop_requested

MEASURED_LOGS = 8
"""At the end of a run, headroom is measured for all that lingers, and for this many of the other logs that are behind:
each of them takes a read."""

logger = logging.getLogger(__name__)


def report(context: Context, runs: Sequence[LogRun], retentions: Retentions) -> None:
    """Fill in the results of a run's logs. Logs of which nothing was archived, although records waited, fail."""
    silence = timedelta(days=1, seconds=context.archive.statement.heartbeat)
    ends = _ask_ends(context, runs)
    for run in runs:
        _report_head(context, run, ends.get(run.topic_partition))
        run.result.clock = _clock_error(context.store, run, silence)
    worst = max((run.result.clock or 0.0 for run in runs), key=abs, default=0.0)
    if worst:
        logger.warning(
            "this host's clock is %.0f s %s the clock of the store, the broker or an earlier writer: correct the"
            " wrong one, unless nothing was archived for so long. Statements are signed with this host's time",
            abs(worst),
            "ahead of" if worst > 0 else "behind",
        )
    _report_behind(context, runs, retentions)


def _ask_ends(context: Context, runs: Iterable[LogRun]) -> dict[TopicPartition, Bounds]:
    """Return where the logs' partitions begin and end, of those of which Kafka says it."""
    found = context.broker.all_bounds([run.topic_partition for run in runs], context.cluster)
    for run in runs:
        if run.topic_partition in found:
            continue
        try:
            found[run.topic_partition] = context.broker.bounds(*run.topic_partition)
        except CustodyError as error:
            logger.warning("%s: the lag is not known: %s", run.result.log, error, extra={"log": run.result.log})
            if isinstance(error, TransientSourceError):
                # The others that are missing would wait for the same broker, one after the other.
                break
    return found


def _report_head(context: Context, run: LogRun, bounds: Bounds | None) -> None:
    """Fill in the log's head at the end of the run, and its lag, if it is known where its partition ends."""
    head, result, options = run.writer.tip.head, run.result, context.settings.drain
    result.size, result.root, result.next_offset = head.size, head.root.hex(), run.writer.next_offset
    if bounds is None:
        return
    result.lag = max(0, bounds.end - (run.writer.next_offset or 0))
    if bounds.stable < bounds.end and run.assembler.position >= bounds.stable:
        try:
            since = context.broker.waits_since(*run.topic_partition, bounds.stable)
        except CustodyError as error:
            logger.warning("%s: a transaction is open, for an unknown time: %s", result.log, error)
            return
        waited = time.time() - since if since is not None else 0.0
        if waited > options.hanging_seconds:
            result.hanging = waited
            logger.error(
                "%s: a transaction has been open for %.0f s, and %d offsets cannot be archived until it ends: find"
                " its producer (kafka-transactions.sh find-hanging) and end the transaction",
                result.log,
                waited,
                result.lag,
                extra={"log": result.log},
            )


def _report_behind(context: Context, runs: Sequence[LogRun], retentions: Retentions) -> None:
    """Fail logs of which nothing was archived, and measure how long Kafka keeps what logs wait for."""
    behind = [run for run in runs if (run.writer.next_offset or 0) < run.target]
    for run in behind:
        # The first statement of a log only begins it. What lingers was read.
        idle = run.result.statements <= (run.begun.newest is None) and run.assembler.is_empty
        if idle and not run.stopped and not stop_requested.is_set():
            run.fail(_no_progress(run))
    for run, written in _to_measure(behind, retentions):
        topic, partition = run.topic_partition
        try:
            headroom = read_headroom(
                context.broker,
                topic,
                partition,
                run.writer.next_offset or 0,
                written,
                retentions.of(topic),
            )
            run.result.headroom, run.result.headroom_unknown = headroom.seconds, headroom.unknown
        except CustodyError as error:
            run.result.headroom_unknown, log = str(error), run.result.log
            logger.warning("%s: how long Kafka keeps its records is not known: %s", log, error, extra={"log": log})


def _to_measure(behind: Iterable[LogRun], retentions: Retentions) -> Iterator[tuple[LogRun, float | None]]:
    """Yield the logs whose headroom is measured, with the time of the first record that waits, if it is known.

    What lingers is in memory, so its time is known, and each is measured. Of the others, those are measured whose
    newest statement is the oldest: the lag of a quiet log is small, however long its records wait.
    """
    others: list[LogRun] = []
    for run in behind:
        lingers = None if run.stopped else run.assembler.first_record
        if lingers is not None:
            yield run, written_at(lingers)
        elif _may_lose(run, retentions):
            others.append(run)
    now = datetime.now(UTC)
    for run in sorted(others, key=lambda run: _sealed(run, now))[:MEASURED_LOGS]:
        yield run, None


def _may_lose(run: LogRun, retentions: Retentions) -> bool:
    """Return whether Kafka deletes records of a log's topic, as far as that is known."""
    try:
        return retentions.of(run.topic_partition[0]).is_limited
    except SourceError:
        return True


def _sealed(run: LogRun, now: datetime) -> datetime:
    """Return when a log's newest statement was sealed; long ago without one, or by a clock that was ahead."""
    newest = run.writer.tip.newest
    sealed_at = parse_time(newest.statement.sealed_at) if newest else EPOCH
    return sealed_at if sealed_at <= now else EPOCH


def _no_progress(run: LogRun) -> TransientSourceError:
    waited = counted(run.target - (run.writer.next_offset or 0), "offset")
    return TransientSourceError(
        f"{run.result.log}: this run archived nothing, although {waited}"
        " waited when it began. The next run tries again; if it fails too, raise drain.seconds, or find out what"
        " keeps this machine or Kafka busy"
    )


def _clock_error(store: Store, run: LogRun, silence: timedelta) -> float | None:
    """Return by how many seconds the host's clock differs from the others; None if by no more than `CLOCK_SLACK`.

    The broker's append times and the statement before this run may be old. So they show that the host is ahead only if
    nothing was archived for more than a day and a heartbeat, which may be true. The roll believes no such jump either.
    Archiving goes on in any case: a wrong time is a notice of the verifier, and events in Kafka expire.
    """
    now, newest, begun = datetime.now(UTC), run.writer.tip.newest, run.begun.newest
    told = [parse_time(begun.statement.sealed_at)] if begun else []
    stamps = [batch.kafka_time for batch in newest.statement.batches if batch.kafka_time] if newest else []
    told += (kafka_moment(stamp.max) or now for stamp in stamps if stamp.type == "append")
    differences = [now - moment for moment in told if moment > now]
    ahead = host_ahead(store)
    if ahead is not None:
        # The store's time is certain.
        differences.append(ahead)
    elif told and now - max(told) > silence:
        differences.append(now - max(told))
    worst = max([*differences, timedelta(0)], key=abs)
    return worst.total_seconds() if abs(worst) > CLOCK_SLACK else None
