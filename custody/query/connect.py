"""SQL over an archive with DuckDB: events, statements, quarantined records, audits. Reads only.

Events come from the archive's Parquet tables. Statements without one are read from their segments, so each event is
there once. Files are read through the archive's own store: DuckDB downloads no extension and opens no connection.
Nothing is read before a query names a table, and of that only what its conditions leave (`reading`).

A query verifies no contents. What it reads is not signed, or not yet checked, and steers nothing:

- With keys, only statements and audits count that they signed, and only files to which a signed audit, or a signed
  list, refers. A file's bytes are hashed when it is opened. Statements without such a file are read one by one, and
  their events from their segments.
- Without keys, or where a signature cannot be checked and no trusted checkpoint or audit covers the statement, a line
  says `unverified`.
- Slots are listed, not searched for. So a log that lacks its first statement is shown from the next one on.
- What is missing or ignored is a row of the table `warnings`, and a warning of the logger `custody.query.warned`.
"""

import tempfile
from contextlib import suppress
from datetime import datetime
from pathlib import Path

import duckdb

from custody.archive import reader
from custody.archive.trusted import check_keys
from custody.errors import CustodyError, HeadRollback
from custody.format.times import as_utc
from custody.query import detections, ocsf, sources, views
from custody.query.reading import Reading
from custody.query.warned import Period
from custody.settings import Settings
from custody.store.open import open_store

__all__ = ["connect", "open_archive"]


def connect(
    archive: str | None = None,
    *,
    since: datetime | None = None,
    until: datetime | None = None,
    trust: Path | str | None = None,
) -> duckdb.DuckDBPyConnection:
    """Open an archive for SQL.

    Args:
        archive: `s3://BUCKET/PREFIX`, `file:///DIR` or a folder. Default: the `archive` setting.
        since: only statements sealed at or after this time; UTC if it names no zone. No events of others are read.
        until: only statements sealed before this time.
        trust: a `trust.json` with the keys that you trust. Default: the `trust` setting.

    Returns:
        A connection with the tables `events`, `sources`, `detections`, `ocsf`, `batches`, `manifests`, `quarantined`,
        `audits`, `findings` and `warnings`. The last one says what is unverified, damaged or ignored. All times are
        UTC. Its temporary files are removed when the process ends. A cursor of the connection has no tables: use the
        connection itself.

    Raises:
        ConfigurationError: a setting is wrong, or the keys are those of another archive.
        CustodyError: the archive cannot be read. What cannot be read later is an error of the query, `duckdb.Error`.
    """
    connection, _ = open_archive(archive, since=since, until=until, trust=trust)
    return connection


def open_archive(
    archive: str | None = None,
    *,
    since: datetime | None = None,
    until: datetime | None = None,
    trust: Path | str | None = None,
) -> tuple[duckdb.DuckDBPyConnection, Reading]:
    """Open an archive for SQL, as `connect`. Return what it reads too: that knows its warnings and its last failure."""
    given = {"archive": archive, "trust": trust}
    settings = Settings(**{name: value for name, value in given.items() if value is not None})
    store = open_store(settings.archive, settings.s3)
    archive_file = reader.read_archive(store)
    keys = settings.trust_at_hand()
    # If somebody else signed `archive.json`, and these keys the logs, a warning says so.
    with suppress(HeadRollback):
        check_keys(store, archive_file, keys)
    folder = tempfile.TemporaryDirectory(prefix="custody-")
    _folders.append(folder)
    # In a file, so that DuckDB moves to disk what does not fit into memory.
    connection = duckdb.connect(
        f"{folder.name}/archive.duckdb",
        config={"autoinstall_known_extensions": "false", "autoload_known_extensions": "false"},
    )
    try:
        connection.execute("SET TimeZone = 'UTC'")
        period = Period(since and as_utc(since), until and as_utc(until))
        reading = Reading(store, keys, archive_file, period, Path(folder.name))
        for name, table in reading.views().items():
            connection.register(name, table)
        connection.execute(views.events())
        connection.execute(sources.VIEW)
        connection.execute(detections.VIEW)
        connection.execute(ocsf.view())
    except duckdb.Error as error:
        connection.close()
        raise CustodyError(f"the archive {store.url} cannot be opened for SQL: {error}") from None
    return connection, reading


_folders: list[tempfile.TemporaryDirectory[str]] = []
"""Removed when the process ends: a connection does not say when it is closed."""
