"""Collects all samples: health, totals of the archive, and what runs measured."""

import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime

from custody.format.reasons import KINDS
from custody.store import retries
from custody.store.open import open_store
from tasks.audit.signed import GOOD
from tasks.health.archive import open_archive
from tasks.health.model import Health, LogHealth
from tasks.health.read import read_health
from tasks.metrics import catalogue
from tasks.metrics.detected import detected
from tasks.metrics.run import Run
from tasks.metrics.samples import Distribution, Sample, Snapshot
from tasks.metrics.state import State, counted_heads
from tasks.metrics.totals import count_logs
from tasks.settings import Settings

COUNT_SECONDS = 5.0
"""How long a run counts statements that are new to it. Only the first runs on an old archive need that long."""


def read_now(settings: Settings) -> Health:
    """Return what metrics have of the installation's health now; raises as `read_health`."""
    return read_health(settings, datetime.now(UTC), counted=counted_heads(settings.metrics.state))


def collect(
    settings: Settings, state: State, health: Health, run: Run | None = None, seconds: float = COUNT_SECONDS
) -> Snapshot:
    """Add a run to the state, count what is new in the archive, and return all samples.

    Args:
        settings: the settings.
        state: what is carried from run to run; it is changed.
        health: the installation's health.
        run: the run that ends.
        seconds: how long to count.

    Raises:
        CustodyError: the archive cannot be read.
    """
    if run is not None:
        state.add(run)
        state.add_retries(retries.take())
    with closing(open_store(settings.archive, settings.s3)) as store:
        opened = open_archive(settings, store)
        count_logs(state, opened, health.logs, seconds)
        now = datetime.now(UTC)
        detection = list(detected(store, opened.file.id, health.logs, now)) if opened.file else []
    samples = (*_of_totals(state), *_of_health(health), *detection, *_of_runs(state))
    return Snapshot(health.archive, state.since, time.time(), samples)


def _of_totals(state: State) -> Iterator[Sample]:
    for log, totals in sorted(state.logs.items()):
        if totals.complete:
            for kind, number in sorted(totals.events.items()):
                yield Sample(catalogue.EVENTS, (log, kind), number)
            yield Sample(catalogue.BYTES, (log, "raw"), totals.raw)
            yield Sample(catalogue.BYTES, (log, "gz"), totals.gz)
            # Zeros too: Prometheus sees no increase in a total that begins above 0.
            for kind in KINDS:
                yield Sample(catalogue.QUARANTINED, (log, kind), totals.reasons.get(kind, 0))


def _of_health(health: Health) -> Iterator[Sample]:
    for log in health.logs:
        # Nothing is archived in the others any more: their age would alert forever.
        if log.drained and not log.ended:
            yield from _of_log(log)
    if health.audit is not None:
        yield Sample(catalogue.AUDIT_OK, (), int(health.audit.verdict in GOOD))
        if health.audit.age_seconds is not None:
            yield Sample(catalogue.AUDIT_AGE, (), health.audit.age_seconds)


def _of_log(log: LogHealth) -> Iterator[Sample]:
    values = {
        catalogue.LAG_RECORDS: log.lag_records,
        catalogue.LAG_SECONDS: log.lag_seconds,
        catalogue.HEADROOM: log.headroom_seconds,
        catalogue.HEAD_AGE: log.head_age_seconds,
        catalogue.INDEX_DELAY: log.index_delay_seconds,
    }
    for metric, value in values.items():
        if value is not None:
            yield Sample(metric, (log.log,), value)


def _of_runs(state: State) -> Iterator[Sample]:
    for step in sorted(state.steps, key=lambda step: (step.flow, step.step)):
        yield Sample(catalogue.STEP, (step.flow, step.step), Distribution(tuple(step.counts), step.sum))
    for totals in sorted(state.retries, key=lambda totals: (totals.backend, totals.error_type)):
        yield Sample(catalogue.RETRIES, (totals.backend, totals.error_type), totals.count)
    for flow, moment in sorted(state.last_success.items()):
        yield Sample(catalogue.LAST_SUCCESS, (flow,), moment)
