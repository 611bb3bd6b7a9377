"""The template of the daily indices, and custody's own two indices: cursors and rejected events.

`<prefix>-cursors` stores how far each log is indexed. So a server that was lost, or restored from an old snapshot,
shows by itself what it lacks. The position is not derived from the documents:

- Some statements have no document, for example if their segment is in an archive storage class. Each run of the drain
  would read such statements again, and a long row of them would take longer than a run. Indexing would never pass them.
- A backfill and an audit can index later events before earlier ones. The events between would be skipped.
- A search for a log's last document costs more, the more documents there are. Reading a cursor does not.

`<prefix>-rejected` has the reason for each event that Elasticsearch rejected, for as long as the event would have been
kept (`tasks.roll`).
"""

from datetime import UTC, datetime

import msgspec
from elasticsearch import NotFoundError

from custody.format.envelope import Int
from custody.format.layout import Log
from custody.format.times import format_time
from tasks.search import documents
from tasks.search.client import Search


class _Cursor(msgspec.Struct):
    sequence: Int


def prepare(search: Search) -> None:
    """Set the template, and create custody's own indices. Doing it again changes nothing.

    Raises:
        SearchError: Elasticsearch does not answer, or refuses.
    """
    settings = {"index": {"number_of_replicas": search.settings.replicas, **documents.ON_HOT_NODES}}
    own = {
        search.cursors: {"log": {"type": "keyword"}},
        search.rejected: {
            "log": {"type": "keyword"},
            "offset": {"type": "long"},
            "index": {"type": "keyword"},
            "type": {"type": "keyword"},
            "reason": {"type": "text", "index": False},
            "at": {"type": "date"},
        },
    }
    with search.errors("its templates"):
        search.client.indices.put_index_template(
            name=search.prefix, **documents.template(search.prefix, search.settings.replicas)
        )
        for name, properties in own.items():
            if not search.client.indices.exists(index=name):
                search.create_index(name, settings=settings, mappings={"dynamic": False, "properties": properties})


def read_cursor(search: Search, archive: str, log: Log) -> int | None:
    """Return how many statements of a log are indexed, by its cursor. Whoever can write to Elasticsearch can change it.

    Returns:
        The number; 0 if there is no cursor; None if the document is not a cursor.

    Raises:
        SearchError: Elasticsearch does not answer, or refuses.
    """
    with search.errors(f"the cursor of {log}"):
        try:
            document = search.client.get(index=search.cursors, id=_cursor_id(archive, log)).get("_source")
        except NotFoundError:
            return 0
    try:
        return msgspec.convert(document, _Cursor).sequence
    except msgspec.ValidationError:
        return None


def put_cursor(search: Search, archive: str, log: Log, sequence: int) -> None:
    """Store how many statements of a log are indexed.

    With two indexers at once the last write wins: indexing statements again does no harm.

    Raises:
        SearchError: Elasticsearch does not accept it.
    """
    document = {"archive": archive, "log": str(log), "sequence": sequence, "at": format_time(datetime.now(UTC))}
    with search.errors(f"the cursor of {log}"):
        search.client.index(index=search.cursors, id=_cursor_id(archive, log), document=document)


def _cursor_id(archive: str, log: Log) -> str:
    return f"{archive}-{log.name}-{log.partition}"
