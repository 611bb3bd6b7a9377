"""Reads how far Elasticsearch is behind the archive, by the cursor of each log.

A cursor is unsigned: whoever can write to Elasticsearch can change it. So it is only compared, and decides nothing. The
nightly audit finds what a wrong one hides.
"""

import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import datetime

from custody.archive.search import at_or_behind
from custody.errors import FormatError, SearchError, StoreError, counted
from custody.format import layout
from custody.format.layout import Log
from custody.format.times import duration_text
from tasks.health.archive import LogRead, Opened
from tasks.health.deadline import Deadline
from tasks.health.model import Problem, ServerHealth, age_seconds
from tasks.search.client import DOWN, Search
from tasks.search.indices import read_cursor
from tasks.settings import Settings

REQUEST_SECONDS = 3.0
"""Timeout of one request. The first one without an answer is the last."""
SEARCH_SECONDS = 15.0
"""How long logs are compared with their cursors, all together."""
_AUDIT = "find out who wrote it, and run 'custody audit --full'"


@dataclass(frozen=True, slots=True)
class SearchRead:
    """What Elasticsearch said.

    Attributes:
        server: Elasticsearch.
        logs: the logs, with their delay.
        problems: problems that belong to no log.
    """

    server: ServerHealth
    logs: tuple[LogRead, ...]
    problems: tuple[Problem, ...] = ()


def read_search(
    settings: Settings, opened: Opened, logs: Sequence[LogRead], now: datetime, deadline: Deadline
) -> SearchRead:
    """Compare the cursor of each log with its end.

    Args:
        settings: the settings.
        opened: the archive.
        logs: its logs.
        now: the time.
        deadline: how long an answer of the archive's storage is waited for.

    Raises:
        ConfigurationError: `search.url` cannot be used.
    """
    url = settings.search.url or ""
    done: list[LogRead] = []
    until = time.monotonic() + SEARCH_SECONDS
    with closing(Search(settings.search, REQUEST_SECONDS)) as search:
        try:
            for read in logs:
                if time.monotonic() > until:
                    break
                done.append(_compare(settings, opened, search, read, now, deadline))
        except SearchError as error:
            reason = str(error).removesuffix(f": {DOWN}")
            message = f"how far the index is behind is not known: {reason}"
            problem = Problem("warning", "index-unknown", "search", message, "check Elasticsearch; archiving goes on")
            return SearchRead(ServerHealth(url, reachable=False), (*done, *logs[len(done) :]), (problem,))
    left = logs[len(done) :]
    server = ServerHealth(url, reachable=True)
    if not left:
        return SearchRead(server, tuple(done))
    late = counted(len(left), "log was", "logs were")
    message = f"Elasticsearch answers slowly: {late} not compared within {SEARCH_SECONDS:.0f} s"
    problem = Problem("warning", "index-unknown", "search", message, "look at Elasticsearch, and try again")
    return SearchRead(server, (*done, *left), (problem,))


def _compare(
    settings: Settings, opened: Opened, search: Search, read: LogRead, now: datetime, deadline: Deadline
) -> LogRead:
    """Return a log with the delay of its index. Raises SearchError."""
    if read.newest is None or opened.file is None:
        return read
    health, log = read.health, read.name
    cursor = read_cursor(search, opened.file.id, log)
    claim = None
    if cursor is None:
        claim = "is not a cursor"
    elif cursor > health.size and not _exists(opened, log, cursor - 1, deadline):
        claim = (
            f"says that {counted(cursor, 'statement is', 'statements are')} indexed, but the log has {health.size:,}"
        )
    if cursor is None or claim:
        message = f"its document in {search.cursors} {claim}"
        return read.with_health(health, Problem("warning", "index-cursor", health.log, message, _AUDIT))
    try:
        at = cursor
        delay = deadline.call(lambda: _delay(opened, log, at, health.size, now))
    except (FormatError, StoreError) as error:
        message = f"how far its index is behind is not known: {error}"
        remedy = "run 'custody index', and read what it says"
        return read.with_health(health, Problem("warning", "index-unknown", health.log, message, remedy))
    health = replace(health, index_delay_seconds=delay)
    if delay <= settings.search.behind_seconds:
        return read.with_health(health)
    message = f"its newest events cannot be searched: the index is {duration_text(delay)} behind"
    remedy = "run 'custody index', and read what it says"
    return read.with_health(health, Problem("warning", "index-late", health.log, message, remedy))


def _exists(opened: Opened, log: Log, sequence: int, deadline: Deadline) -> bool:
    """Return whether a statement was put since the log's end was read."""
    try:
        return deadline.call(lambda: opened.store.exists(layout.manifest_key(log, sequence)))
    except StoreError:
        return False


def _delay(opened: Opened, log: Log, cursor: int, size: int, now: datetime) -> float:
    """Return how long ago the first statement that is not indexed was sealed; 0 if all are.

    Raises:
        FormatError: it cannot be used, or claims a time of the future.
        StoreError: the store does not give it.
    """
    if cursor >= size:
        return 0.0
    # If its slot was passed over, the statement after it waits.
    sequence, waiting = at_or_behind(opened.store, log, cursor, size, opened.holds(log))
    age = age_seconds(waiting.statement.sealed_at, now)
    if age is None:
        key = layout.manifest_key(log, sequence)
        raise FormatError(f"{key} is not indexed, and was sealed in the future, at {waiting.statement.sealed_at}")
    return age
