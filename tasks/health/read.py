"""Reads the health of an installation from all of its parts."""

from contextlib import closing
from datetime import datetime

from custody.store.open import open_store
from tasks.alert import TRY, receivers
from tasks.health.archive import open_archive, read_logs
from tasks.health.audit import read_audit_health
from tasks.health.kafka import read_kafka
from tasks.health.model import Health, Problem
from tasks.settings import Settings


def read_health(settings: Settings, now: datetime) -> Health:
    """Return the health of an installation. Neither Kafka nor Elasticsearch nor a key is required.

    Args:
        settings: the settings.
        now: the time, timezone-aware.

    Raises:
        ConfigurationError: there is no archive, or a setting cannot be used.
        StoreError: the archive's storage does not answer.
    """
    with closing(open_store(settings.archive, settings.s3)) as store:
        opened = open_archive(settings, store)
        logs, unlisted = read_logs(opened, settings, now)
        kafka = read_kafka(settings, logs, now, listed=not unlisted)
        logs, search, problems = list(kafka.logs), None, [*opened.problems, *unlisted, *kafka.problems]
        if settings.search.url is not None:
            # Imported here: it loads Elasticsearch's client, which is slow.
            from tasks.health.search import read_search

            searched = read_search(settings, opened, logs, now)
            logs, search = list(searched.logs), searched.server
            problems += searched.problems
        audit = read_audit_health(settings, opened, now)
        alerts = receivers(settings)
        problems += audit.problems
        if not alerts:
            problems.append(Problem("warning", "alerts-nobody", "alerts", "nobody is alerted", TRY))
        return Health(
            archive=store.url,
            at=now,
            kafka=kafka.server,
            search=search,
            logs=tuple(read.health for read in logs),
            topics_without_log=kafka.topics_without_log,
            audit=audit.audit,
            alerts=alerts,
            general=tuple(problems),
        )
