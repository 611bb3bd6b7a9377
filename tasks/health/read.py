"""Reads the health of an installation from all of its parts."""

import re
from contextlib import closing
from datetime import datetime

from custody.store.open import open_store
from tasks.health.archive import open_archive, read_logs
from tasks.health.audit import read_audit_health
from tasks.health.kafka import read_kafka
from tasks.health.model import Health, Problem
from tasks.settings import Settings

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]{0,31}):", re.IGNORECASE)


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
        logs = read_logs(opened, settings, now)
        kafka = read_kafka(settings, logs, now)
        logs, search, problems = list(kafka.logs), None, [*opened.problems, *kafka.problems]
        if settings.search.url is not None:
            # Imported here: it loads Elasticsearch's client, which is slow.
            from tasks.health.search import read_search

            searched = read_search(settings, opened, logs, now)
            logs, search = list(searched.logs), searched.server
            problems += searched.problems
        audit = read_audit_health(settings, opened, now)
        alerts = alerted(settings)
        problems += audit.problems
        if not alerts:
            remedy = "set alert.urls to where alerts are sent"
            problems.append(Problem("warning", "alerts-nobody", "alerts", "nobody is alerted", remedy))
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


def alerted(settings: Settings) -> tuple[str, ...]:
    """Return the kinds of services in `alert.urls`, such as `slack`. A URL holds secrets, and is never shown."""
    matches = (_SCHEME.match(url.get_secret_value()) for url in settings.alert.urls)
    return tuple(match[1].lower() if match else "unknown" for match in matches)
