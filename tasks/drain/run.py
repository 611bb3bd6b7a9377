"""One run of the drain: each log from the archive's head to the last stable offset, then following the topic.

The steps of a record in a run, and what is left if the process dies after each. Nothing is lost: the next run resumes
from the archive.

1. fetched         nothing was written; the record is fetched again
2. assembled       the same: batches are checked and compressed in memory. When a run ends, what lingers
                   (`drain.linger_seconds`) is left like this
3. segment put     an orphan that no manifest names; the record is fetched and put again
4. quarantine put  the same
5. manifest put    the commit: the record is accounted for, and the next run starts after it
6. offset committed in the consumer group, for lag monitors; a run that dies before this step only leaves them behind

While one segment is uploaded, the next is assembled. Each log has at most one append at a time, in order. Before each
append, and after its records were fetched, the topic's id is read again. Topic ids are never reused, so records that
were fetched before the same id was read belong to the same topic. A log that fails stops alone; the others continue.

Modules: `resume` finds where a log starts. `loop` drives the run, and takes the fetched records. `assemble` makes
entries of them. `appends` writes the entries, and signs checkpoints at the end.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING

from custody.archive.forms import statements_of
from custody.archive.reader import list_logs, read_archive, read_manifest
from custody.archive.trusted import Judge
from custody.errors import CustodyError
from custody.format.layout import Log
from custody.format.manifest import DIRECT
from custody.store.open import open_store
from custody.store.protocol import Store
from tasks.drain.appends import Appends, put_checkpoints
from tasks.drain.context import open_context
from tasks.drain.kafka import Broker, is_wanted
from tasks.drain.log_run import LogResult, TopicPartition
from tasks.drain.loop import Loop
from tasks.drain.resume import open_logs
from tasks.settings import Settings

if TYPE_CHECKING:
    from tasks.search.index import IndexResult

READING_SECONDS = 10.0
"""How long a run reads at least, however long it took to open its logs: otherwise each run on a busy machine would end
before it reads, while the lag grows."""


def find_partitions(settings: Settings) -> list[TopicPartition]:
    """Return the partitions of the topics in the settings, and those that should exist.

    A missing partition becomes one failed log, so that the others are still drained. A named topic that does not exist
    counts as partition 0. Whatever the archive has logs of should exist too, if the settings still name its topic.

    Raises:
        SourceError: Kafka does not answer.
        StoreError: the archive's storage does not answer.
    """
    wanted = settings.kafka.topics
    with Broker(settings.kafka.librdkafka(), settings.kafka.group) as broker:
        topics = broker.topics(wanted)
    existing = [(topic.name, partition) for topic in topics for partition in range(topic.partitions)]
    known, names = set(existing), {topic.name for topic in topics}
    missing = {(name, 0) for name in wanted if not name.startswith("^") and name not in names}
    with closing(open_store(settings.archive, settings.s3)) as store:
        for log in list_logs(store):
            partition = (log.topic, log.partition)
            if partition not in known and is_wanted(log.topic, wanted) and not _is_direct(settings, store, log):
                missing.add(partition)
    return [*existing, *sorted(missing)]


def _is_direct(settings: Settings, store: Store, log: Log) -> bool:
    """Return whether a log was never in Kafka. Only a statement that counts says so: without one, it was."""
    try:
        holds = Judge(store, log, statements_of(log), read_archive(store).id, settings.own_trust()).holds
        return read_manifest(store, log, 0, holds).statement.log.cluster == DIRECT
    except CustodyError:
        return False


def drain_logs(
    settings: Settings,
    partitions: Sequence[TopicPartition] | None = None,
    *,
    once: bool = False,
    seconds: float | None = None,
    sealed: Callable[[Log], None] | None = None,
) -> list[LogResult]:
    """Drain partitions into the archive.

    Args:
        settings: the settings.
        partitions: the partitions; all that the settings name if None.
        once: end when each log has reached the last stable offset that it had at the start.
        seconds: end after this time, but read for `READING_SECONDS`, or for this time if it is less. If None, the
            setting `drain.seconds`, or no limit with `once`.
        sealed: called with a log after it got a new statement.

    Returns:
        One result a log. A log that failed has the problem in its result; the others were drained.

    Raises:
        ConfigurationError: there is no archive, or settings or keys cannot be used.
        SourceError: Kafka does not answer at all.
        StoreError: the archive's storage does not answer at all.
    """
    if seconds is None and not once:
        seconds = settings.drain.seconds
    seconds = float("inf") if seconds is None else seconds
    deadline = time.monotonic() + seconds
    with ExitStack() as stack:
        context = open_context(settings, stack)
        runs, results = open_logs(context, find_partitions(settings) if partitions is None else partitions)
        if runs:
            deadline = max(deadline, time.monotonic() + min(seconds, READING_SECONDS))
            appends = Appends(context, runs, sealed)
            Loop(context, runs, appends, once=once, deadline=deadline).run()
            put_checkpoints(context, runs, once=once)
        refusal = context.broker.group_refusal
        for run in runs:
            if refusal is not None and run.result.outcome == "drained":
                run.result.stop(refusal)
        results.extend(run.result for run in runs)
    return sorted(results, key=lambda result: result.log)


def drain_and_index(
    settings: Settings,
    partitions: Sequence[TopicPartition] | None = None,
    *,
    once: bool = False,
    seconds: float | None = None,
) -> "tuple[list[LogResult], list[IndexResult]]":
    """Drain partitions, and index their new events at the same time.

    Args:
        settings: the settings.
        partitions: the partitions; all that the settings name if None.
        once: as in `drain_logs`.
        seconds: as in `drain_logs`.

    Raises:
        CustodyError: as `drain_logs`. Problems with Elasticsearch do not fail a drain; they are in the results.
    """
    if settings.search.url is None:
        return drain_logs(settings, partitions, once=once, seconds=seconds), []
    # Imported here: it loads Elasticsearch's client, which is slow.
    from tasks.search.index import Follower

    follower = Follower(settings, partitions)
    try:
        drained = drain_logs(settings, partitions, once=once, seconds=seconds, sealed=follower.sealed)
    finally:
        indexed = follower.end()
    return drained, indexed
