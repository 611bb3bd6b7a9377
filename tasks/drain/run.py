"""One run of the drain: each log from the archive's head to the last stable offset, then following the topic.

The life of a record in a run, and what is left if the process dies there (nothing is lost: the next run asks the
archive):

1. fetched         nothing was written; it is fetched again
2. assembled       likewise: batches are checked and compressed in memory
3. segment put     an orphan that no manifest names; the record is fetched and put again
4. quarantine put  likewise
5. manifest put    the commit: the record is accounted for, and the next run starts after it
6. offset committed in the consumer group, for lag monitors; a run that dies before it leaves monitors behind, no more

While one segment is put, the next is assembled: one append a log is under way at a time, in order. Before each append
the topic's id is asked for again, after what is appended was fetched: ids never come back, so what was fetched under
the same id is of the same topic. A log that fails stops alone; the others go on.

Where each step stands: `resume` says where a log begins, `loop` drives the run, `intake` takes what was fetched,
`assemble` makes statements of it, `appends` puts them, and `checkpoints` signs heads at the end.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from custody.format.layout import Log
from tasks.drain.appends import Appends
from tasks.drain.checkpoints import put_checkpoints
from tasks.drain.context import open_context
from tasks.drain.kafka import Broker
from tasks.drain.log_run import LogResult, TopicPartition
from tasks.drain.loop import Loop
from tasks.drain.resume import open_logs
from tasks.settings import Settings


def find_places(settings: Settings) -> list[TopicPartition]:
    """Return the partitions that the settings name, as they are now; partition 0 of a named topic that is not there.

    Raises:
        SourceError: Kafka does not answer.
    """
    with Broker(settings.kafka.librdkafka(), settings.kafka.group) as broker:
        topics = broker.topics(settings.kafka.topics)
    there = {topic.name for topic in topics}
    # One that is missing is one failed log, and does not keep the others from being drained.
    missing = [name for name in settings.kafka.topics if not name.startswith("^") and name not in there]
    return [
        *((topic.name, partition) for topic in topics for partition in range(topic.partitions)),
        *((name, 0) for name in missing),
    ]


def drain_logs(
    settings: Settings,
    places: Sequence[TopicPartition] | None = None,
    *,
    once: bool = False,
    seconds: float | None = None,
    progress: Callable[[int], None] | None = None,
    sealed: Callable[[Log], None] | None = None,
) -> list[LogResult]:
    """Drain partitions into the archive.

    Args:
        settings: the settings.
        places: the partitions; all that the settings name if None.
        once: end when each log has reached what was its last stable offset at the start.
        seconds: end after this time; the setting's if None, without limit if `once`.
        progress: is called with the number of records archived since the last call.
        sealed: is called with a log once it has a new statement.

    Returns:
        One result a log. A log that failed has its problem there; the others were drained.

    Raises:
        ConfigurationError: there is no archive, or settings or keys cannot be used.
        SourceError: Kafka does not answer at all.
        StoreError: the archive's storage does not answer at all.
    """
    if seconds is None and not once:
        seconds = settings.drain.seconds
    deadline = time.monotonic() + seconds if seconds is not None else float("inf")
    with ExitStack() as stack:
        context = open_context(settings, stack)
        runs, results = open_logs(context, find_places(settings) if places is None else places)
        if runs:
            appends = Appends(context, runs, progress=progress, sealed=sealed)
            Loop(context, runs, appends, once=once, deadline=deadline).run()
            put_checkpoints(context, runs, once=once)
        results.extend(run.result for run in runs)
    return sorted(results, key=lambda result: result.log)
