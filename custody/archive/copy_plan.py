"""Plans a copy of an archive: lists both sides into a temporary database, and orders what the target lacks.

Both listings are on disk, so that memory stays bounded for any number of objects.
"""

import sqlite3
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum

from custody.errors import ConfigurationError, FormatError
from custody.format import layout, limits
from custody.store.protocol import ObjectInfo, Store, check_key, is_unicode


class Rank(IntEnum):
    """In what order objects are put. Each refers only to objects of the ranks before it, or of its own log.

    A log's first statement names no records. It comes before all records: those of a log without statements are no
    orphans, but `unlisted`.
    """

    NO_KEY = -1
    ARCHIVE = 0
    FIRST_STATEMENTS = 1
    RECORDS = 2
    STATEMENTS = 3
    CHECKPOINTS = 4
    AUDITS = 5
    AUDIT_CHECKPOINTS = 6
    REST = 7


CHAINED = (Rank.FIRST_STATEMENTS, Rank.STATEMENTS, Rank.AUDITS)
"""Entries of a log: put one after another, in order."""
SIGNED = (*CHAINED, Rank.CHECKPOINTS, Rank.AUDIT_CHECKPOINTS)
"""Objects that are never deleted from an archive."""
_NO_EPOCH = limits.INT_MAX
"""Of what comes after the logs of all epochs."""


@contextmanager
def room_on_disk() -> Iterator[None]:
    """Convert the error of the temporary database."""
    try:
        yield
    except sqlite3.Error as error:
        raise ConfigurationError(
            f"the listings cannot be kept in a temporary file: {error}; make room, or set TMPDIR to another folder."
            " What was copied stays"
        ) from None


@dataclass(frozen=True, slots=True)
class Planned:
    """An object of the source."""

    key: str
    size: int
    rank: Rank
    log: str
    epoch: int
    number: int = 0


def place_of(key: str) -> tuple[Rank, str, int, int]:
    """Return an object's rank, its log or an empty text, that log's epoch, and the object's number in it."""
    if manifest := layout.parse_manifest_key(key):
        log, number = manifest
        return Rank.STATEMENTS if number else Rank.FIRST_STATEMENTS, str(log), _epoch(log), number
    if checkpoint := layout.parse_checkpoint_key(key):
        log, number = checkpoint
        return Rank.AUDIT_CHECKPOINTS if log == layout.AUDIT_LOG else Rank.CHECKPOINTS, str(log), _NO_EPOCH, number
    if (sequence := layout.parse_audit_key(key)) is not None:
        return Rank.AUDITS, str(layout.AUDIT_LOG), _NO_EPOCH, sequence
    if records := layout.parse_records_key(key):
        return Rank.RECORDS, str(records.log), _epoch(records.log), 0
    if layout.parse_audit_object_key(key):
        return Rank.RECORDS, "", _NO_EPOCH, 0
    try:
        check_key(key)
    except FormatError:
        return Rank.NO_KEY, "", 0, 0
    return (Rank.ARCHIVE, "", 0, 0) if key == layout.ARCHIVE else (Rank.REST, "", _NO_EPOCH, 0)


def _epoch(log: layout.Log) -> int:
    """Return a log's epoch, as the database can hold it: a name can have a larger one."""
    return min(log.epoch, _NO_EPOCH - 1)


class Plan:
    """The listings of both archives, in a temporary database, and what follows from them."""

    def __init__(self) -> None:
        # Without a name it is in a file that only this process has.
        self._database = sqlite3.connect("")
        self._database.execute("PRAGMA journal_mode = OFF")
        self._database.execute("CREATE TABLE target (key TEXT PRIMARY KEY, size INTEGER) WITHOUT ROWID")
        self._database.execute(
            "CREATE TABLE source (key TEXT PRIMARY KEY, size INTEGER, rank INTEGER, log TEXT, epoch INTEGER,"
            " number INTEGER) WITHOUT ROWID"
        )

    def close(self) -> None:
        """Delete the database."""
        self._database.close()

    def list_target(self, store: Store, seen: Callable[[], None]) -> None:
        """List the target."""

        def rows() -> Iterator[tuple[str, int]]:
            for info in store.list():
                seen()
                if is_unicode(info.key):
                    yield info.key, info.size

        self._database.executemany("INSERT OR IGNORE INTO target VALUES (?, ?)", rows())

    def list_source(self, store: Store, seen: Callable[[], None]) -> None:
        """List the source: what refers to others before what it refers to."""
        rest = (Rank.REST, Rank.NO_KEY)
        self._take(store.list(layout.checkpoint_prefix(layout.AUDIT_LOG)), seen, Rank.AUDIT_CHECKPOINTS)
        self._take(store.list(layout.AUDITS), seen, Rank.AUDITS)
        self._take(store.list(layout.CHECKPOINTS), seen, Rank.CHECKPOINTS, *rest)
        statements = (Rank.FIRST_STATEMENTS, Rank.STATEMENTS)
        self._take(store.list(layout.MANIFESTS), seen, *statements, *rest)
        # A topic's later epoch refers to the end of the one before, which may have grown after it was listed.
        for log in self._earlier_epochs():
            self._take(store.list(layout.log_prefix(log)), seen, *statements)
        others = store.list(without=(layout.MANIFESTS, layout.CHECKPOINTS))
        self._take(others, seen, Rank.ARCHIVE, Rank.RECORDS, *rest)
        self._leave_new_logs(store)

    def _leave_new_logs(self, store: Store) -> None:
        """Leave records to the next run if their log began after the statements were listed."""
        rows = self._database.execute(
            "SELECT DISTINCT log FROM source WHERE rank = ? EXCEPT SELECT log FROM source WHERE rank IN (?, ?)",
            (Rank.RECORDS, Rank.FIRST_STATEMENTS, Rank.STATEMENTS),
        )
        for (name,) in rows.fetchall():
            log = layout.parse_log_text(name)
            if log is not None and next(iter(store.list(layout.log_prefix(log))), None) is not None:
                self._database.execute("DELETE FROM source WHERE rank = ? AND log = ?", (Rank.RECORDS, name))

    def _take(self, listed: Iterator[ObjectInfo], seen: Callable[[], None], *ranks: Rank) -> None:
        def rows() -> Iterator[tuple[str, int, Rank, str, int, int]]:
            for info in listed:
                seen()
                rank, log, epoch, number = place_of(info.key)
                if rank in ranks:
                    key = info.key if rank != Rank.NO_KEY else info.key.encode("utf-8", "backslashreplace").decode()
                    yield key, info.size, rank, log, epoch, number

        self._database.executemany("INSERT OR IGNORE INTO source VALUES (?, ?, ?, ?, ?, ?)", rows())

    def _earlier_epochs(self) -> list[layout.Log]:
        names = self._database.execute("SELECT DISTINCT log FROM source WHERE rank IN (?, ?)", CHAINED[:2])
        logs = [log for (name,) in names if (log := layout.parse_log_text(name)) is not None]
        newest: dict[tuple[str, int], int] = {}
        for log in logs:
            newest[log.topic, log.partition] = max(log.epoch, newest.get((log.topic, log.partition), 0))
        return [log for log in logs if log.epoch < newest[log.topic, log.partition]]

    def growing(self) -> list[tuple[str, bool]]:
        """Return the logs with a slot that the target lacks, audits first, and whether each has a later epoch."""
        rows = self._database.execute(
            "SELECT DISTINCT log FROM source LEFT JOIN target USING (key)"
            " WHERE target.key IS NULL AND rank IN (?, ?, ?) ORDER BY rank = ? DESC, log",
            (*CHAINED, Rank.AUDITS),
        )
        earlier = set(map(str, self._earlier_epochs()))
        return [(log, log in earlier) for (log,) in rows.fetchall()]

    def slots(self, prefix: str, *, lowest_first: bool = False) -> Generator[Planned, None, None]:
        """Yield the entries of a log in the source, the newest first. `prefix` is what their keys begin with."""
        query = (
            "SELECT key, size, rank, log, epoch, number FROM source WHERE key >= ? AND key < ? AND rank IN (?, ?, ?)"  # noqa: S608
            f" ORDER BY key {'ASC' if lowest_first else 'DESC'}"
        )
        for key, size, rank, *rest in self._database.execute(query, (prefix, f"{prefix}~", *CHAINED)):
            yield Planned(key, size, Rank(rank), *rest)

    def leave(self, prefix: str, last: int) -> tuple[str, int] | None:
        """Leave the entries after a slot that the target lacks to the next run. Return the first, and how many."""
        chosen = (
            "key >= ? AND key < ? AND rank IN (?, ?, ?) AND number > ?"
            " AND NOT EXISTS (SELECT 1 FROM target WHERE target.key = source.key)"
        )
        rest = (prefix, f"{prefix}~", *CHAINED, last)
        ((first, count),) = self._database.execute(f"SELECT min(key), count(*) FROM source WHERE {chosen}", rest)  # noqa: S608
        self._database.execute(f"DELETE FROM source WHERE {chosen}", rest)  # noqa: S608
        return (first, count) if count else None

    def junctions(self) -> list[tuple[Planned, int]]:
        """Return the newest statement of each log that both archives have, and its size in the target."""
        rows = self._database.execute(
            "SELECT key, source.size, rank, log, epoch, max(number), target.size FROM source JOIN target USING (key)"
            " WHERE rank IN (?, ?, ?) GROUP BY log ORDER BY log",
            CHAINED,
        )
        return [(Planned(key, size, Rank(rank), *rest), other) for key, size, rank, *rest, other in rows]

    def lacking(self) -> Iterator[Planned]:
        """Yield what the target lacks, in the order in which it is put."""
        return self._objects("LEFT JOIN target USING (key) WHERE target.key IS NULL AND rank > ?")

    def differing(self) -> Iterator[Planned]:
        """Yield what the target has with another size."""
        return self._objects("JOIN target USING (key) WHERE source.size <> target.size AND rank > ?")

    def nameless(self) -> Iterator[Planned]:
        """Yield objects of the source whose key no store of ours can hold."""
        return self._objects("WHERE rank = ?")

    def _objects(self, chosen: str) -> Iterator[Planned]:
        query = (
            f"SELECT key, source.size, rank, log, epoch, number FROM source {chosen} ORDER BY epoch, rank, number, key"  # noqa: S608
        )
        for key, size, rank, *rest in self._database.execute(query, (Rank.NO_KEY,)):
            yield Planned(key, size, Rank(rank), *rest)

    def sums(self) -> tuple[int, int]:
        """Return how many objects both have in the same size, and the bytes of what the target lacks."""
        ((present,),) = self._database.execute(
            "SELECT count(*) FROM source JOIN target USING (key) WHERE source.size = target.size"
        )
        ((lacking,),) = self._database.execute(
            "SELECT total(source.size) FROM source LEFT JOIN target USING (key) WHERE target.key IS NULL AND rank > ?",
            (Rank.NO_KEY,),
        )
        return present, int(lacking)

    def only_in_target(self) -> Iterator[Planned]:
        """Yield what only the target has."""
        rows = self._database.execute(
            "SELECT key, target.size FROM target LEFT JOIN source USING (key) WHERE source.key IS NULL ORDER BY key"
        )
        for key, size in rows:
            yield Planned(key, size, *place_of(key))
