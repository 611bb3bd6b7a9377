"""Samples of detection: what its newest state in the archive says, and how far behind the archive it is."""

from collections.abc import Iterator, Sequence
from datetime import datetime

from custody.archive.reader import read_manifest
from custody.errors import FormatError, ObjectMissing
from custody.format.layout import parse_log_text
from custody.format.times import parse_time
from custody.store.protocol import Store
from tasks.detect.positions import Facts, newest_facts
from tasks.health.model import LogHealth
from tasks.metrics import catalogue
from tasks.metrics.samples import Sample


def detected(store: Store, archive: str, logs: Sequence[LogHealth], now: datetime) -> Iterator[Sample]:
    """Yield the samples of detection; none before its first run. Raises StoreError.

    Args:
        store: the archive.
        archive: its id.
        logs: the health of its logs.
        now: the time.
    """
    facts = newest_facts(store, archive)
    if facts is None:
        return
    totals = facts.totals
    for metric, counts in ((catalogue.DETECT_ALERTS, totals.alerts), (catalogue.DETECT_SUPPRESSED, totals.suppressed)):
        for name, number in sorted(counts.items()):
            rule, _, level = name.partition("/")
            yield Sample(metric, (rule, level), number)
    for rule, number in sorted(totals.failures.items()):
        yield Sample(catalogue.DETECT_FAILURES, (rule,), number)
    yield Sample(catalogue.DETECT_LATE, (), totals.late)
    yield Sample(catalogue.DETECT_DROPPED, (), totals.dropped)
    for log in logs:
        if log.drained and not log.ended:
            yield Sample(catalogue.DETECT_LAG, (log.log,), _behind(store, facts, log, now))


def _behind(store: Store, facts: Facts, health: LogHealth, now: datetime) -> float:
    """Return how long ago the next statement was sealed, 0 if there is none. It only tells how long it waits."""
    log, position = parse_log_text(health.log), facts.positions.get(health.log, 0)
    if log is None or 0 < health.size == position:
        return 0.0
    try:
        statement = read_manifest(store, log, position, lambda _, __: True).statement
    except (FormatError, ObjectMissing):
        return 0.0
    return max((now - parse_time(statement.sealed_at)).total_seconds(), 0.0)
