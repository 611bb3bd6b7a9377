"""Cursors: how far each log is indexed, stored in Elasticsearch.

So a server that was lost, or restored from an old snapshot, shows by itself what it lacks.
"""

from dataclasses import dataclass
from datetime import UTC, datetime

import msgspec
from elasticsearch import NotFoundError

from custody.format.envelope import Int
from custody.format.layout import Log
from custody.format.times import format_time
from tasks.search.client import Search


@dataclass(frozen=True, slots=True)
class Cursor:
    """How far a log is indexed.

    Attributes:
        sequence: the first statement that is not indexed.
        indexed: events indexed before it.
        rejected: events before it that Elasticsearch did not take.
    """

    sequence: Int = 0
    indexed: Int = 0
    rejected: Int = 0


def read_cursor(search: Search, archive: str, log: Log) -> Cursor | None:
    """Return a log's cursor from Elasticsearch. Whoever can write there can change it.

    Returns:
        The cursor; a cursor at the log's start if there is none; None if the document is not a cursor.

    Raises:
        SearchError: Elasticsearch does not answer, or refuses.
    """
    with search.errors(f"the cursor of {log}"):
        try:
            found = search.client.get(index=search.cursors, id=_cursor_id(archive, log)).get("_source")
        except NotFoundError:
            return Cursor()
    try:
        return msgspec.convert(found, Cursor)
    except msgspec.ValidationError:
        return None


def put_cursor(search: Search, archive: str, log: Log, cursor: Cursor, sealed_at: str | None) -> None:
    """Store a log's cursor. With two indexers at once the last write wins: indexing again does no harm.

    Args:
        search: Elasticsearch.
        archive: the archive's id.
        log: the log.
        cursor: the cursor.
        sealed_at: when the last statement before it was sealed; None if that is not known.

    Raises:
        SearchError: Elasticsearch does not accept it.
    """
    document = {
        "archive": archive,
        "log": str(log),
        "sequence": cursor.sequence,
        "indexed": cursor.indexed,
        "rejected": cursor.rejected,
        "sealed_at": sealed_at,
        "at": format_time(datetime.now(UTC)),
    }
    with search.errors(f"the cursor of {log}"):
        search.client.index(index=search.cursors, id=_cursor_id(archive, log), document=document)


def _cursor_id(archive: str, log: Log) -> str:
    return f"{archive}-{log.name}-{log.partition}"
