"""Checks how much time there is until Kafka deletes records that are not archived, by the readers of the health."""

from collections.abc import Iterator
from contextlib import closing
from datetime import datetime

from custody.errors import ConfigurationError, StoreError, counted
from custody.format.times import duration_text
from custody.store.open import open_store
from tasks.check.model import Line, Reporter
from tasks.health.archive import open_archive, read_logs
from tasks.health.kafka import read_kafka
from tasks.settings import Settings

_report = Reporter("retention")
_OURS = frozenset({"headroom", "lag", "lag-unknown", "topic-changed", "not-drained"})
"""Kinds of problems that this part repeats. The others belong to another part, or to `custody status`."""


def check(settings: Settings, now: datetime) -> Iterator[Line]:
    """Yield the least headroom of all logs, and each problem of a log with Kafka."""
    try:
        with closing(open_store(settings.archive, settings.s3)) as store:
            logs, unlisted = read_logs(open_archive(settings, store), settings, now)
    except (ConfigurationError, StoreError):
        yield _report.warning("headroom", "it is not known: the archive cannot be read", "see the part archive")
        return
    if unlisted:
        yield _report.warning(
            "headroom", "it is not known: the archive's logs cannot be listed", "see the part archive"
        )
        return
    kafka = read_kafka(settings, logs, now)
    if not kafka.server.reachable:
        yield _report.warning("headroom", "it is not known: Kafka does not answer", "see the part kafka")
        return
    # A topic without records has nothing to lose, and one without logs is what there is before the first drain.
    waiting = {topic.topic for topic in kafka.topics_without_log or () if topic.records != 0}
    for problem in kafka.problems:
        if problem.kind == "topic-without-log" and problem.subject in waiting:
            yield _report.warning(problem.subject, problem.message, problem.remedy)
    problems = [problem for read in kafka.logs for problem in read.health.problems if problem.kind in _OURS]
    for problem in problems:
        yield Line("retention", problem.subject, problem.level, problem.message, problem.remedy)
    known = {
        read.health.log: read.health.headroom_seconds for read in kafka.logs if read.health.headroom_seconds is not None
    }
    if known:
        log = min(known, key=lambda name: known[name])
        message = f"Kafka keeps the first record that waits for {duration_text(known[log])} at least ({log})"
        yield _report.ok("headroom", message)
    elif not problems and not waiting:
        yield _report.ok("headroom", f"no record of {counted(len(logs), 'log')} waits, or Kafka has no limit for it")
