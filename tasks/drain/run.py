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

While one segment is uploaded, the next is assembled. Each log has at most one append at a time, in order. Each append
needs the topic's id by an answer to a question that was asked after its records were fetched; logs share such answers.
Topic ids are never reused, so records that were fetched before the same id was read belong to the same topic. A log
that fails stops alone; the others continue.

Where the backlog is worth it, the logs are divided among processes (`shares`, `processes`). Each runs the steps above
for its own logs. They share nothing but the memory limit, so the archive is the same as from one process.

Modules: `resume` finds where a log starts. `loop` drives the run, and takes the fetched records. `assemble` makes
entries of them. `appends` writes the entries, and signs checkpoints at the end. `topic_ids` has the answers that logs
share. `outcome` says what became of each log.
"""

import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
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
from tasks.drain.context import Context, open_context
from tasks.drain.kafka import Broker, is_wanted
from tasks.drain.log_run import LogResult, LogRun, TopicPartition
from tasks.drain.loop import Loop
from tasks.drain.resume import open_logs
from tasks.drain.shares import divide, most_processes
from tasks.settings import Settings

if TYPE_CHECKING:
    from tasks.search.follower import Follower
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
    share_of: int | None = None,
) -> list[LogResult]:
    """Drain partitions into the archive.

    Args:
        settings: the settings.
        partitions: the partitions; all that the settings name if None.
        once: end when each log has reached the last stable offset that it had at the start.
        seconds: end after this time, but read for `READING_SECONDS`, or for this time if it is less. If None, the
            setting `drain.seconds`, or no limit with `once`.
        share_of: the number of processes that share the logs, if this is one of them. It starts no others.

    Returns:
        One result a log. A log that failed has the problem in its result; the others were drained.

    Raises:
        ConfigurationError: there is no archive, or settings or keys cannot be used.
        SourceError: Kafka does not answer at all.
        StoreError: the archive's storage does not answer at all.
    """
    return _drain(settings, partitions, once=once, seconds=seconds, share_of=share_of)[0]


def drain_and_index(
    settings: Settings,
    partitions: Sequence[TopicPartition] | None = None,
    *,
    once: bool = False,
    seconds: float | None = None,
    share_of: int | None = None,
) -> "tuple[list[LogResult], list[IndexResult]]":
    """Drain partitions, and index their new events at the same time.

    Args:
        settings: the settings.
        partitions: the partitions; all that the settings name if None.
        once: as in `drain_logs`.
        seconds: as in `drain_logs`.
        share_of: as in `drain_logs`.

    Raises:
        CustodyError: as `drain_logs`. Problems with Elasticsearch do not fail a drain; they are in the results.
    """
    if settings.search.url is None:
        return drain_logs(settings, partitions, once=once, seconds=seconds, share_of=share_of), []
    # Imported here: it loads Elasticsearch's client, which is slow.
    from tasks.search.follower import Follower, joined

    follower = Follower(settings, partitions)
    try:
        drained, indexed = _drain(
            settings, partitions, once=once, seconds=seconds, share_of=share_of, follower=follower
        )
    finally:
        own = follower.end()
    return drained, joined(own, indexed)


def _drain(
    settings: Settings,
    partitions: Sequence[TopicPartition] | None,
    *,
    once: bool,
    seconds: float | None,
    share_of: int | None,
    follower: "Follower | None" = None,
) -> "tuple[list[LogResult], list[IndexResult]]":
    """Drain partitions, and return the results; also those of indexing in other processes."""
    if seconds is None and not once:
        seconds = settings.drain.seconds
    seconds = float("inf") if seconds is None else seconds
    deadline = time.monotonic() + seconds
    indexed: Sequence[IndexResult] = ()
    with ExitStack() as stack:
        context = open_context(settings, stack)
        runs, results = open_logs(context, find_partitions(settings) if partitions is None else partitions)
        if follower is not None:
            # Slots without a valid entry are the indexer's to report.
            tips = [(run.writer.log, run.writer.tip) for run in runs]
            follower.opened({log: tip.size for log, tip in tips if not tip.passed_over})
        if runs:
            deadline = max(deadline, time.monotonic() + min(seconds, READING_SECONDS))
            shares = [runs] if share_of else divide(runs, most_processes(settings.drain))
            context = replace(context, processes=share_of or len(shares))
            if len(shares) == 1:
                _drain_here(context, runs, once=once, deadline=deadline, follower=follower)
            else:
                runs, drained, indexed = _drain_shares(context, shares, once=once, deadline=deadline, follower=follower)
                results.extend(drained)
        refusal = context.broker.group_refusal
        for run in runs:
            if refusal is not None and run.result.outcome == "drained":
                run.result.stop(refusal)
        results.extend(run.result for run in runs)
    return sorted(results, key=lambda result: result.log), list(indexed)


def _drain_here(
    context: Context, runs: Sequence[LogRun], *, once: bool, deadline: float, follower: "Follower | None"
) -> None:
    """Drain logs in this process."""
    appends = Appends(context, runs, follower.sealed if follower else None)
    Loop(context, runs, appends, once=once, deadline=deadline).run()
    put_checkpoints(context, runs, once=once)


def _drain_shares(
    context: Context, shares: Sequence[list[LogRun]], *, once: bool, deadline: float, follower: "Follower | None"
) -> "tuple[list[LogRun], list[LogResult], list[IndexResult]]":
    """Drain the first share here, and each other one in a process of its own.

    Returns:
        The logs that were drained here, and the results of the others: of draining, and of indexing.
    """
    # Imported here: most runs have too little to do for it.
    from tasks.drain.processes import Processes, task_for

    here = list(shares[0])
    with Processes() as processes:
        for share in shares[1:]:
            task = task_for(context, share, once=once, deadline=deadline, index=follower is not None)
            if not processes.start(task, share):
                here += share
            elif follower is not None:
                follower.leave([run.topic_partition for run in share])
        _drain_here(context, here, once=once, deadline=deadline, follower=follower)
        drained, indexed = processes.collect()
    return here, drained, indexed
