"""The rows of statements that the time index covers: from the Parquet files to which it refers, if they are needed.

What a span guarantees of its rows decides whether its files are opened, and what is known of a run of spans, whether
its part of the index is. A file that is missing, or is not the one that was signed, costs a warning at most: the same
rows are made from the statements.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from threading import RLock
from typing import Any, NamedTuple

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from custody.archive.forms import statements_of
from custody.archive.rows import batches_of
from custody.archive.time_index import TimeIndex
from custody.archive.time_parts import Run
from custody.archive.time_spans import EVENT_SLACK, Bounds, Span
from custody.errors import CustodyError, FormatError, ObjectArchived, ObjectMissing
from custody.format.layout import Log, parse_log_text
from custody.format.manifest import Statement
from custody.query import lazy, statements, tables
from custody.query.entries import Entries
from custody.query.files import Part, Ref, Source, offsets, read_signed, read_table
from custody.query.lazy import Pruned, Spill
from custody.query.recent import Range, Recent, day_of
from custody.query.rows import EventFile, quarantined_rows
from custody.query.warned import Period

Files = Sequence[tuple[tables.TableFile, Ref | None]]
"""The tables of a range of statements, each with what was signed of it."""
_READERS = 16
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
LOST = (FormatError, ObjectMissing, ObjectArchived)
"""Why a file is not there as it was signed."""


def moment(microseconds: int) -> datetime:
    """Return a time of the index."""
    return _EPOCH + timedelta(microseconds=microseconds)


class Indexed:
    """The rows of spans."""

    def __init__(
        self,
        entries: Entries,
        runs: Sequence[Run],
        index: TimeIndex,
        period: Period,
        folder: Path,
        recent: Recent,
        tabled: Callable[[Log, Sequence[Range]], Sequence[tuple[Log, Files]]],
    ) -> None:
        """Set up.

        Args:
            entries: reads statements.
            runs: in order, of spans that may have statements of the period. They are opened if a condition meets what
                is known of them.
            index: opens them.
            period: of which rows are made.
            folder: for files that are made.
            recent: knows what has expired, and takes warnings.
            tabled: returns the tables of a log's slots that count, found by their names.
        """
        self._runs, self._index, self._tabled = runs, index, tabled
        self._entries, self._period, self._folder, self._recent = entries, period, folder, recent
        self._lock = RLock()
        self._made = 0
        self._parts: dict[tuple[str, str, int], list[Part]] = {}
        self._pruned = {name: self._prune(name, runs) for name in _ROWS}
        self._makers: dict[str, Callable[[Span, Log], list[Part]]] = {
            "events": self._events,
            "manifests": partial(self._statements, "manifests"),
            "batches": partial(self._statements, "batches"),
            "quarantined": self._quarantined,
        }

    @property
    def spans(self) -> Sequence[Span]:
        """All spans of all logs, in order."""
        return [run.span for run in self._opened(self._runs, lambda inside: inside)]

    def _opened(self, runs: Sequence[Run], chosen: Callable[[Sequence[Run]], Sequence[Run]]) -> Sequence[Run]:
        """Open runs down to their spans. Each time, those are opened that are chosen."""
        while any(run.part for run in runs):
            runs = chosen([inner for run in runs for inner in self._index.inside(run)])
        return runs

    def _prune(self, name: str, runs: Sequence[Run]) -> Pruned:
        rows = _ROWS[name]
        of_name = [run for run in runs if rows.may_be_in(run.span)]
        return Pruned(lazy.schema_of(name), of_name, lambda several: rows.guarantee([run.span for run in several]))

    def parts(self, name: str, condition: Any) -> Iterator[Part]:
        """Yield the parts of a table that may have rows which meet a condition."""
        chosen = self._opened(
            list(self._pruned[name].meeting(condition)),
            lambda inside: list(self._prune(name, inside).meeting(condition)),
        )

        def parts(span: Span) -> list[Part]:
            key = (name, span.log, span.first)
            if key not in self._parts:
                log = parse_log_text(span.log)
                self._parts[key] = self._makers[name](span, log) if log else []
            return self._parts[key]

        # Each span of events has a list of tables, which is read first.
        with ThreadPoolExecutor(_READERS) as threads:
            for several in threads.map(parts, [run.span for run in chosen]):
                yield from several

    # --- statements

    def _statements(self, name: statements.Name, span: Span, log: Log) -> list[Part]:
        ref = span.manifests if name == "manifests" else span.batches
        make = partial(self._make_statements, name, span, log)
        source = Source(ref.key if ref else None, ref, make, partial(self._changed, span, log))
        return [(source, _ROWS[name].guarantee([span]))]

    def _make_statements(self, name: statements.Name, span: Span, log: Log) -> str:
        with self._lock:
            rows = Spill(lazy.schema_of(name), self._path())
            for statement in self._read(log, [(span.first, span.end)]):
                many = [statements.manifest_row(span.log, statement)] if name == "manifests" else None
                for row in many or batches_of(span.log, statement):
                    rows.add(*row)
            self._entries.warnings.publish()
            return rows.finish()

    def _read(self, log: Log, ranges: Sequence[tuple[int, int]]) -> Iterator[Statement]:
        """Yield the statements in ranges of slots that were sealed in the period."""
        for _, entry in self._entries.audited(log, statements_of(log), ranges):
            if self._period.has(entry.statement.sealed_at):
                yield entry.statement

    # --- quarantined records

    def _quarantined(self, span: Span, log: Log) -> list[Part]:
        make = partial(self._make_quarantined, span, log)
        return [(Source(make=make), _statements_guarantee([span]))]

    def _make_quarantined(self, span: Span, log: Log) -> str:
        with self._lock:
            rows = Spill(lazy.schema_of("quarantined"), self._path())
            unread = self._recent.unread(log)
            for statement in self._read(log, list(self._with_quarantine(span))):
                for row in quarantined_rows(self._entries.store, log, statement, unread):
                    rows.add(*row)
            self._recent.warn(log, unread)
            self._entries.warnings.publish()
            return rows.finish()

    def _with_quarantine(self, span: Span) -> Iterator[tuple[int, int]]:
        """Yield the slots of a span whose statements have a quarantine object; all if that is not known."""
        try:
            columns = statements.span_columns(self._entries.store, span, "sequence", "quarantine")
        except LOST:
            yield span.first, span.end
            return
        for sequence, quarantine in zip(*columns.values(), strict=True):
            if quarantine is not None:
                yield sequence, sequence + 1

    # --- events

    def _events(self, span: Span, log: Log) -> list[Part]:
        """Return the parts of a span's events: its tables; or a file that is made, if it has none that count."""
        if span.sealed is None:
            return self._lost_events(span, log)
        files = self._listed(span, log)
        if files is None:
            if self._is_expired(span, log):
                return []
            return [self._made_events(span, log)]
        return self._of_tables(span, log, files)

    def _made_events(self, span: Span, log: Log) -> Part:
        return Source(make=partial(self._make_events, span, log)), _events_guarantee([span], days=False)

    def _lost_events(self, span: Span, log: Log) -> list[Part]:
        """Return the parts of a span of which nothing is known: tables that are found by name, and files between."""
        parts: list[Part] = []
        reached = span.first
        for _, files in self._tabled(log, [(span.first, span.end)]):
            first, end = files[0][0].first, files[0][0].end
            if reached < first:
                parts.append(self._made_events(Span(log=span.log, first=reached, end=first), log))
            parts += self.found(log, files)
            reached = end
        if reached < span.end:
            parts.append(self._made_events(Span(log=span.log, first=reached, end=span.end), log))
        return parts

    def found(self, log: Log, files: Files) -> list[Part]:
        """Return the parts of a range's tables, which were found by their names: nothing else is known of it."""
        return self._of_tables(Span(log=str(log), first=files[0][0].first, end=files[0][0].end), log, files)

    def _of_tables(self, span: Span, log: Log, files: Files) -> list[Part]:
        parts: list[Part] = []
        guarantee = _events_guarantee([span], days=False)
        for file, ref in files:
            day = day_of(file)
            source = Source(file.key, self._signed(ref))
            if ref is not None:
                source.changed = partial(self._changed, span, log)
                source.make = partial(self._replace, span, log, file, files)
            parts.append((source, guarantee & lazy.on_day(day) if day else guarantee))
        return parts

    def _signed(self, ref: Ref | None) -> Ref | None:
        """Return what counts as signed of a table: without keys nothing does, and it is read as it is."""
        return ref if self._entries.trust.keys else None

    def _listed(self, span: Span, log: Log) -> Files | None:
        """Return the tables in the list to which a span refers; None if it does not count."""
        if span.tables is None:
            return None
        try:
            if tables.parse_list_key(span.tables.key) != (log, span.first, span.end):
                raise FormatError(f"{span.tables.key} is no list of these statements' tables")
            data = read_signed(self._entries.store, span.tables)
            made = msgspec.json.decode(data.split(b"\n")[0], type=tables.TableList)
        except (*LOST, msgspec.MsgspecError) as error:
            if self._is_expired(span, log) and isinstance(error, ObjectMissing):
                return None
            self._entries.warnings.add("ignored", log, f"{error}. Events are read from their segments")
            return None
        files = [(tables.parse_table_key(ref.key), ref) for ref in made.files]
        known: Files = [(file, ref) for file, ref in files if file is not None and file.log == log]
        of = (made.log, made.first, made.end)
        return known if of == (span.log, span.first, span.end) and len(known) == len(files) else None

    def _make_events(self, span: Span, log: Log, keep: Callable[[Any], Any] = lambda table: table) -> str:
        """Write the events of a span from its segments, and return the file's path."""
        with self._lock:
            unread = self._recent.unread(log)
            file = EventFile(self._entries.store, log, self._path(), unread, keep)
            for statement in self._read(log, [(span.first, span.end)]):
                file.put(statement)
            path = file.finish()
            self._recent.warn(log, unread)
            self._entries.warnings.publish()
            return path

    def _replace(
        self,
        span: Span,
        log: Log,
        bad: tables.TableFile,
        files: Files,
    ) -> str:
        """Write the events that a table should have, and return the file's path: those of its day in no good table."""
        with self._lock:
            others = pa.array([], pa.int64())
            for file, ref in files:
                if file.day != bad.day or file == bad or ref is None:
                    continue
                try:
                    # As its own source opens it: a table that is read there has its rows, whatever was signed.
                    table = read_table(self._entries.store, file.key, self._signed(ref))
                except LOST:
                    if file.number < bad.number:
                        # The first one that is bad gets the rows of all that are.
                        return self._make_events(span, log, lambda table: table.slice(0, 0))
                else:
                    others = pa.concat_arrays([others, offsets(file.key, table)])
            day = pa.scalar(day_of(bad), pa.date32())

            def keep(table: Any) -> Any:
                return table.filter((pc.field("day") == day) & ~pc.field("offset").isin(others))

            return self._make_events(span, log, keep)

    def _changed(self, span: Span, log: Log, error: CustodyError) -> None:
        if self._is_expired(span, log) and isinstance(error, ObjectMissing):
            return
        self._entries.warnings.add("ignored", log, f"{error}. Its rows are read from the statements")
        self._entries.warnings.publish()

    def _is_expired(self, span: Span, log: Log) -> bool:
        return span.end <= self._recent.expired.get(log, 0)

    def _path(self) -> Path:
        self._made += 1
        return self._folder / f"made-{self._made}.parquet"


# --- what spans guarantee of their rows


def _joined(bounds: Sequence[Bounds | None]) -> Bounds | None:
    known = [each for each in bounds if each]
    return (min(low for low, _ in known), max(high for _, high in known)) if known else None


def _sealed(spans: Sequence[Span]) -> Bounds | None:
    """Return when the statements of some spans were sealed; None if that is not known of all, as of a lost part's."""
    bounds = [span.sealed for span in spans]
    return _joined(bounds) if all(bounds) else None


def _statements_guarantee(spans: Sequence[Span]) -> Any:
    """Return what each row of some spans meets: it is of their log, and of their statements."""
    first, last = spans[0], spans[-1]
    if first.log != last.log:
        return pc.scalar(True)
    return lazy.of_statements(first.log, first.first, last.end)


def _manifests_guarantee(spans: Sequence[Span]) -> Any:
    guarantee, sealed = _statements_guarantee(spans), _sealed(spans)
    return guarantee & lazy.within("sealed_at", sealed) if sealed else guarantee


def _events_guarantee(spans: Sequence[Span], *, days: bool = True) -> Any:
    """Return what each event of some spans meets. A time that is no time is NULL."""
    guarantee, sealed = _statements_guarantee(spans), _sealed(spans)
    if sealed is None:
        return guarantee
    times = _joined([span.event_times for span in spans])
    if days:
        guarantee = guarantee & lazy.on_days(moment(sealed[0]), moment(sealed[1]))
    if times:
        bounds = (times[0] - EVENT_SLACK, times[1] + EVENT_SLACK)
        guarantee = guarantee & lazy.within("time", bounds, nullable=True)
    return guarantee


def _has_events(span: Span) -> bool:
    return bool(span.events) or span.sealed is None


def _has_quarantined(span: Span) -> bool:
    return bool(span.quarantined) or span.sealed is None


class _Rows(NamedTuple):
    """What is known of a table's rows: whether a span may have some, and what each row of some spans meets."""

    may_be_in: Callable[[Span], bool]
    guarantee: Callable[[Sequence[Span]], Any]


_ROWS = {
    "events": _Rows(_has_events, _events_guarantee),
    "manifests": _Rows(lambda _: True, _manifests_guarantee),
    "batches": _Rows(_has_events, _statements_guarantee),
    "quarantined": _Rows(_has_quarantined, _statements_guarantee),
}
