"""Reads the statements that no index covers, one by one: those since the last audit, and those of damaged spans.

Their rows become local files, once for a connection. What an older audit made tables of is taken from these tables.
"""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from datetime import date, datetime
from pathlib import Path

from custody.archive.forms import statements_of
from custody.archive.rows import batches_of
from custody.format.layout import Log
from custody.query import lazy, tables
from custody.query.entries import Entries
from custody.query.files import Part, Ref, local
from custody.query.lazy import Spill
from custody.query.rows import EventFile, quarantined_rows
from custody.query.statements import manifest_row
from custody.query.unread import Unread
from custody.query.warned import Period

Range = tuple[int, int | None]
"""Slots from the first one on and before the second one; to the end of the log if that is None."""


class Recent:
    """The rows of statements that no index covers.

    Attributes:
        parts: of each table.
        excluded: ranges of a log's statements that are in tables, and were not sealed in the period.
        expired: by log, before which statement all were declared expired.
    """

    def __init__(self, entries: Entries, period: Period, folder: Path, kept_from: datetime) -> None:
        """Set up.

        Args:
            entries: reads the statements.
            period: only statements sealed in it are read.
            folder: for the files.
            kept_from: statements sealed before may be expired.
        """
        self._entries, self._period, self._folder, self._kept_from = entries, period, folder, kept_from
        self.parts: dict[str, list[Part]] = {"events": [], "manifests": [], "batches": [], "quarantined": []}
        self.excluded: list[tuple[Log, int, int]] = []
        self.expired: dict[Log, int] = {}
        self._spills = {
            name: Spill(lazy.schema_of(name), folder / f"{name}.parquet") for name in self.parts if name != "events"
        }

    def read(self, log: Log, ranges: Sequence[Range], tabled: Iterable[tuple[int, int]]) -> None:
        """Read a log's statements in ranges of slots. The events of those in `tabled` are in tables."""
        form = statements_of(log)
        in_tables = sorted(tabled)
        starts = [first for first, _ in in_tables]
        unread = self.unread(log)
        path = self._folder / f"events-{len(self.parts['events'])}.parquet"
        file = EventFile(self._entries.store, log, path, unread)
        bounds: list[int] = []
        for sequence, entry in self._entries.read(log, form, ranges):
            statement = entry.statement
            index = bisect_right(starts, sequence) - 1
            has_table = index >= 0 and sequence < in_tables[index][1]
            if not self._period.has(statement.sealed_at):
                if has_table:
                    self.excluded.append((log, sequence, sequence + 1))
                continue
            self._spills["manifests"].add(*manifest_row(str(log), statement))
            for batch in batches_of(str(log), statement):
                self._spills["batches"].add(*batch)
            if statement.expired:
                unread.expired = self.expired[log] = max(unread.expired, statement.expired[1])
            for row in quarantined_rows(self._entries.store, log, statement, unread):
                self._spills["quarantined"].add(*row)
            if not has_table and statement.segment:
                file.put(statement)
                bounds = [min([sequence, *bounds]), sequence]
        if bounds:
            guarantee = lazy.of_statements(str(log), bounds[0], bounds[1] + 1)
            self.parts["events"].append((local(file.finish()), guarantee))
        self.warn(log, unread)

    def finish(self) -> None:
        """Close the files."""
        for name, spill in self._spills.items():
            self.parts[name].append((local(spill.finish()), None))

    def unread(self, log: Log) -> Unread:
        """Return a collector of what cannot be read of a log."""
        kept_from = None if self._period.is_whole else self._kept_from
        return Unread(str(log), kept_from, self.expired.get(log, 0))

    def warn(self, log: Log, unread: Unread) -> None:
        """Warn of what could not be read."""
        for kind, message in unread.warnings():
            self._entries.warnings.add(kind, log, message)


def whole_tables(
    entries: Entries, listed: tables.Listed, log: Log, ranges: Sequence[Range]
) -> list[list[tuple[tables.TableFile, Ref | None]]]:
    """Return the files of each range of a log's tables that lies in ranges of slots, and what was signed of them.

    With keys, only files in lists that they signed; of others it warns.
    """
    files = [
        file
        for file in listed.files.get(log, ())
        if any(first <= file.first and (end is None or file.end <= end) for first, end in ranges)
    ]
    refs: dict[str, Ref] = {}
    if entries.trust.keys:
        for start, stop in sorted({(file.first, file.end) for file in files}):
            signed, unread = tables.signed_files(
                entries.store, listed, entries.archive or "", log, start, stop, entries.trust
            )
            refs |= signed
            if unread is not None:
                entries.warnings.add("ignored", log, f"the tables of statements {start} to {stop - 1}: {unread}")
        warn_unsigned(entries, log, [file.key for file in files if file.key not in refs])
        files = [file for file in files if file.key in refs]
    return [[(file, refs.get(file.key)) for file in several] for several in tables.whole_ranges(files)]


def warn_unsigned(entries: Entries, log: Log, keys: Sequence[str]) -> None:
    """Warn of tables that nobody signed."""
    if keys:
        many = f"{len(keys)} tables are" if len(keys) > 1 else "1 table is"
        entries.warnings.add("ignored", log, f"{many} in no list that a trusted key signed, such as {keys[0]}")


def day_of(file: tables.TableFile) -> date | None:
    """Return the day in a table's key; None if there is no such day."""
    try:
        return date.fromisoformat(file.day)
    except ValueError:
        return None
