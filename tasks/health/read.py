"""Reads the health of an installation from all of its parts."""

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from datetime import datetime

from custody.errors import StoreError, TransientStoreError
from custody.store.open import open_store
from custody.store.s3_errors import KeyRefused
from custody.tlog.head import KnownHead
from tasks.alert import CORRECT, TRY, UNREADABLE, receivers, unreadable
from tasks.health.archive import LogRead, Opened, open_archive, read_logs
from tasks.health.audit import AuditRead, read_audit_health
from tasks.health.deadline import Deadline
from tasks.health.kafka import read_kafka
from tasks.health.model import Health, LogHealth, Problem
from tasks.settings import Settings


def read_health(
    settings: Settings,
    now: datetime,
    deadline: Deadline | None = None,
    counted: Mapping[str, KnownHead] | None = None,
) -> Health:
    """Return the health of an installation. Neither Kafka nor Elasticsearch nor a key is required.

    Args:
        settings: the settings.
        now: the time, timezone-aware.
        deadline: how long an answer of the archive's storage is waited for, and then the other parts are returned
            without it. None: as long as it takes, and then its error is raised.
        counted: known heads of logs that metrics have counted, if only what metrics need is wanted; None for all of it.

    Raises:
        ConfigurationError: there is no archive, or a setting cannot be used.
        StoreError: the archive's storage does not answer or accept the credentials, and there is no deadline.
    """
    waits = deadline or Deadline()
    with closing(waits.watch(open_store(settings.archive, settings.s3))) as store:
        audit, silent = AuditRead(None), list[Problem]()
        try:
            opened = waits.call(lambda: open_archive(settings, store))
            opened = replace(opened, brief=counted is not None, counted=counted or {})
            reads, unlisted = read_logs(opened, settings, now, waits)
        except (KeyRefused, TransientStoreError) as error:
            if deadline is None:
                raise
            opened, reads, unlisted = Opened(store, None, None), [], ()
            silent = [_unreachable(error)]
        else:
            try:
                audit = waits.call(lambda: read_audit_health(settings, opened, now))
            except TransientStoreError as error:
                silent = [_unreachable(error)]
        kafka = read_kafka(settings, reads, now, listed=not unlisted and not silent)
        logs, search, problems = list(kafka.logs), None, [*silent, *opened.problems, *unlisted, *kafka.problems]
        if settings.search.url is not None:
            # Imported here: it loads Elasticsearch's client, which is slow.
            from tasks.health.search import read_search

            searched = read_search(settings, opened, logs, now, waits)
            logs, search = list(searched.logs), searched.server
            problems += searched.problems
        return Health(
            archive=store.url,
            at=now,
            kafka=kafka.server,
            search=search,
            logs=tuple(_with_findings(read, audit) for read in logs),
            topics_without_log=kafka.topics_without_log,
            audit=audit.audit,
            alerts=receivers(settings),
            general=(*problems, *audit.problems, *_of_alerts(settings)),
        )


def _unreachable(error: StoreError) -> Problem:
    if isinstance(error, KeyRefused):
        remedy = "check the credentials; run 'custody check'"
        return Problem("failed", "archive-unreachable", "archive", str(error), remedy)
    remedy = "check that the storage answers, and the settings archive and s3; run 'custody check'"
    return Problem("failed", "archive-unreachable", "archive", str(error), remedy)


def _with_findings(read: LogRead, audit: AuditRead) -> LogHealth:
    """Return a log's health with the worst that the newest audit found in it."""
    worst = audit.of_logs.get(read.health.log)
    return replace(read.health, problems=(*read.health.problems, worst)) if worst else read.health


def _of_alerts(settings: Settings) -> Iterator[Problem]:
    """Yield who is not alerted, as far as the settings show it."""
    if not receivers(settings):
        yield Problem("warning", "alerts-nobody", "alerts", "nobody is alerted", TRY)
    for receiver in unreadable(settings):
        yield Problem("warning", "alerts-unreadable", "alerts", f"{receiver} is told nothing: {UNREADABLE}", CORRECT)
