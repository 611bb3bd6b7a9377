"""What a connection reads of an archive: nothing before DuckDB scans a table, and then what that table needs.

- The newest audit that counts refers to the time index. What it covers is read from Parquet files (`indexed`), once a
  condition meets what its map says of it.
- Statements after it, and what it does not cover, are read one by one, at the first scan of any of them (`recent`).
- Audits are read when they, their findings, or `warnings` are scanned.
- `warnings` has what was seen so far, and what listings show: slots without a statement, tables that nobody signed.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cached_property
from itertools import count, islice
from pathlib import Path
from threading import RLock
from typing import Any, cast

import msgspec

from custody.archive import reader, search, time_index
from custody.archive.audit_findings import read_findings
from custody.archive.covered import ask_for_newest
from custody.archive.forms import AUDITS, statements_of
from custody.archive.known_heads import to_heads
from custody.archive.readings import newest_reading
from custody.archive.slots import slots_after
from custody.archive.time_index import TimeIndex
from custody.archive.time_parts import Run
from custody.archive.time_spans import Span, order
from custody.archive.trusted import check_archive, unverified
from custody.errors import FormatError, ObjectMissing
from custody.format import layout, limits, manifest
from custody.format.archive_file import ArchiveFile
from custody.format.audit import Audit
from custody.format.layout import Log
from custody.format.manifest import QuarantineRef, SegmentRef
from custody.format.times import parse_time
from custody.keys.trust import Trust
from custody.query import lazy, statements, tables, views
from custody.query.entries import Entries
from custody.query.excluded import Excluded
from custody.query.files import Part, Source, local, scan
from custody.query.indexed import LOST, Files, Indexed
from custody.query.lazy import Lazy, Spill
from custody.query.recent import Range, Recent, warn_unsigned, whole_tables
from custody.query.warned import Period, Warnings
from custody.store.ahead import MOST_LISTED, AskAhead
from custody.store.protocol import Store
from custody.tlog.log import Form

_LOGS = 64
"""Logs of which what is read first is asked for together."""
_FIRST, _SMALL_BYTES = 4, 64 * 1024
"""New statements of each of these logs that are read first, and the size up to which what they name is read too: of 64
logs, 16 MiB of segments."""

Tabled = tuple[Log, Files]
"""The tables of a range of a log's statements."""


class Reading:
    """The tables of an archive.

    Attributes:
        warnings: what is unverified, damaged or ignored, as far as it was seen.
        failure: what ended the last scan. DuckDB makes an error of its own of it, also of Ctrl-C.
    """

    def __init__(self, store: Store, trust: Trust, file: ArchiveFile, period: Period, folder: Path) -> None:
        """Set up. Reads nothing.

        Args:
            store: the archive.
            trust: the keys at hand.
            file: its `archive.json`.
            period: only statements sealed in it are read.
            folder: for temporary files.
        """
        self._store, self._trust, self._period, self._folder = store, trust, period, folder
        self.warnings = Warnings()
        problem = check_archive(file, trust) if trust.keys else None
        if problem:
            self.warnings.add("unverified", None, problem)
        # None if nothing shows which archive this is.
        archive = file.id if trust.keys and not problem else None
        self._entries = Entries(store, archive, trust, self.warnings)
        self.warnings.set_unverified(unverified(trust, {}))
        self.warnings.publish()
        self._kept_from = datetime.now(UTC) - timedelta(days=file.statement.retention_days)
        self._lock = RLock()
        self.failure: BaseException | None = None
        self._spilled = count(1)
        self._looked_at: set[Log] = set()
        """Logs whose tables were looked for by their names."""

    def views(self) -> dict[str, Lazy]:
        """Return the tables by name; `views.events` makes the table of events of one of them."""
        of_statements = {name: lazy.schema_of(name) for name in ("manifests", "batches", "quarantined")}
        of_audits = {name: lazy.schema_of(name) for name in ("audits", "findings", "warnings")}
        made = {views.SCANNED: Lazy(lazy.EVENTS, self._scan("events", lazy.EVENTS, self._of_statements))}
        for name, schema in of_statements.items():
            made[name] = Lazy(schema, self._scan(name, schema, self._of_statements))
        for name, schema in of_audits.items():
            made[name] = Lazy(schema, self._scan(name, schema, self._of_audits))
        return made

    def _scan(self, name: str, schema: Any, parts: Callable[[str, Any], Sequence[Part]]) -> Callable[..., Any]:
        def scanner(columns: Sequence[str], condition: Any) -> Any:
            with self._lock:
                self.failure = None
                try:
                    made = parts(name, condition)
                except BaseException as error:
                    self._fail(error)
                    raise
                finally:
                    self.warnings.publish()
                return scan(self._store, made, schema, columns, condition, self._rest, self._fail)

        return scanner

    def _fail(self, error: BaseException) -> None:
        self.failure = error

    # --- statements and events

    def _of_statements(self, name: str, condition: Any) -> list[Part]:
        made = [*self._recent.parts[name], *self._indexed.parts(name, condition)]
        self._warn_of_index()
        return made

    def _warn_of_index(self) -> None:
        _, index = self._audited
        for problem in index.problems:
            self.warnings.add("ignored", None, problem)

    @property
    def _recent(self) -> Recent:
        return self._loaded[0]

    @property
    def _indexed(self) -> Indexed:
        return self._loaded[1]

    def _rest(self, key: str | None) -> Any:
        return self._loaded[2].rest(key)

    @cached_property
    def _loaded(self) -> tuple[Recent, Indexed, Excluded]:
        """Read the statements that no index covers, and see which spans may have statements of the period."""
        audit, index = self._audited
        asked = AskAhead(self._store)
        entries = replace(self._entries, store=cast("Store", asked))
        recent = Recent(entries, self._period, self._folder, self._kept_from)
        chosen: list[Run] = []
        tabled: list[Tabled] = []
        for log in _asked_for(asked, entries, index, self._logs, self._period):
            if audit and (marks := audit.marks.get(str(log))):
                recent.expired[log] = marks.expired
            runs, ranges = self._plan(log, index, recent)
            several = self._tabled(log, ranges)
            recent.read(log, ranges, [(files[0][0].first, files[0][0].end) for _, files in several])
            chosen += runs
            tabled += several
        recent.finish()
        self._warn_of_index()
        chosen.sort(key=lambda run: order(run.span))
        indexed = Indexed(self._entries, chosen, index, self._period, self._folder, recent, self._tabled)
        for log, files in tabled:
            recent.parts["events"] += indexed.found(log, files)
        # Files of spans that are read later have no other rows than those of the period.
        return recent, indexed, Excluded(recent.excluded, [run.span for run in chosen])

    def _plan(self, log: Log, index: TimeIndex, recent: Recent) -> tuple[list[Run], list[Range]]:
        """Return the runs of a log that may have statements of the period, and the slots that are read one by one.

        Spans of a run that is within the period are read when a query needs them.
        """
        runs: list[Run] = []
        ranges: list[Range] = [(gap.start, gap.stop) for gap in index.gaps(log, 0, index.end(log))]
        self._choose(log, index, index.runs(log), recent, runs, ranges)
        ranges.append((index.end(log), None))
        return runs, _merged(ranges)

    def _choose(
        self, log: Log, index: TimeIndex, runs: Iterable[Run], recent: Recent, kept: list[Run], ranges: list[Range]
    ) -> None:
        """Add to `kept` those of some runs that have statements of the period, and to `ranges` the slots without rows.

        A run that is partly within the period is opened.
        """
        for run in runs:
            span = run.span
            if span.all_sealed_within(self._period.since, self._period.until):
                kept.append(run)
            elif not span.sealed_within(self._period.since, self._period.until):
                continue
            elif run.part is not None:
                self._choose(log, index, index.inside(run), recent, kept, ranges)
            elif span.sealed is None or (outside := self._outside(log, span)) is None:
                ranges.append((span.first, span.end))
            else:
                kept.append(run)
                recent.excluded += [(log, sequence, sequence + 1) for sequence in outside]

    def _outside(self, log: Log, span: Span) -> list[int] | None:
        """Return which statements of a span were not sealed in the period; None if its rows are not as signed."""
        if span.manifests is None:
            return None
        try:
            columns = statements.span_columns(self._store, span, "sequence", "sealed_at")
        except LOST as error:
            self.warnings.add("ignored", log, f"{error}. Its rows are read from the statements")
            return None
        return [sequence for sequence, at in zip(*columns.values(), strict=True) if not self._period.has(at)]

    def _tabled(self, log: Log, ranges: Sequence[Range]) -> list[Tabled]:
        """Return the tables of slots that no span covers: an audit may have made some before there was an index."""
        audit, _ = self._audited
        head = audit.heads.get(str(log)) if audit else None
        if audit and ranges[0][0] >= (head.size if head else 0):
            return []
        self._looked_at.add(log)
        return [(log, files) for files in whole_tables(self._entries, self._listed, log, ranges)]

    @cached_property
    def _listed(self) -> tables.Listed:
        return tables.list_tables(self._store)

    @cached_property
    def _logs(self) -> list[Log]:
        return reader.named_logs(self._store, {*self._entries.heads, *self._trust.heads})

    @cached_property
    def _audited(self) -> tuple[Audit | None, TimeIndex]:
        """Return the newest audit of statements that counts, and its index."""
        _, holds = self._entries.judge(layout.AUDIT_LOG, AUDITS)
        try:
            tip = reader.find_audit_tip(self._store, holds)
        except FormatError as error:
            self.warnings.add("damaged", layout.AUDIT_LOG, str(error))
            return None, time_index.EMPTY
        signed = bool(self._trust.keys)
        audit = newest_reading(self._store, self._entries.archive, self._trust, tip.head.size, signed=signed)
        newest = tip.newest.statement if tip.newest else None
        known = {each.sequence: each for each in (audit, newest) if each}
        self._entries.heads = {
            name: [(each.heads[name].size, f"audit {each.sequence}") for each in known.values() if name in each.heads]
            for name in {name for each in known.values() for name in each.heads}
        }
        if audit and signed:
            self._entries.signed = to_heads(audit.heads)
        index = time_index.read(self._store, audit) if audit else time_index.EMPTY
        return audit, index

    # --- audits and warnings

    def _of_audits(self, name: str, _: Any) -> list[Part]:
        if name == "warnings":
            self._check()
            return [(self._spilled_warnings(), None)]
        return [(self._audits[name], None)]

    @cached_property
    def _audits(self) -> dict[str, Source]:
        audits, findings = (Spill(lazy.schema_of(name), self._folder / f"{name}.parquet") for name in _OF_AUDITS)
        names = lazy.schema_of("findings").names[1:]
        for sequence, signed in self._entries.read(layout.AUDIT_LOG, AUDITS, [(0, None)]):
            audited = signed.statement
            counts = {"statements": 0, "events": 0, **audited.counts}
            audits.add(
                sequence,
                parse_time(audited.started_at),
                parse_time(audited.sealed_at),
                audited.verdict,
                *map(counts.get, ("statements", "events", "findings", "rejected")),
                msgspec.json.encode(audited.covered).decode(),
                msgspec.json.encode(audited.heads).decode(),
            )
            stated = read_findings(self._store, audited)
            for _, problem in stated.problems:
                self.warnings.add("damaged", layout.AUDIT_LOG, problem)
            for finding in map(msgspec.to_builtins, stated.findings):
                findings.add(sequence, *map(finding.get, names))
        return {"audits": local(audits.finish()), "findings": local(findings.finish())}

    def _spilled_warnings(self) -> Source:
        self.warnings.publish()
        # Each scan has a file of its own: an earlier one may still be read.
        path = self._folder / f"warnings-{next(self._spilled)}.parquet"
        spill = Spill(lazy.schema_of("warnings"), path)
        for row in self.warnings.rows:
            spill.add(*row)
        return local(spill.finish())

    def _check(self) -> None:
        """Warn of all that can be seen without reading what the index covers."""
        _, indexed, _ = self._loaded
        _ = self._audits
        spans_of: dict[str, list[Span]] = {}
        for span in indexed.spans:
            spans_of.setdefault(span.log, []).append(span)
        self._warn_of_index()
        for log in self._logs:
            spans = spans_of.get(str(log), [])
            if spans:
                self._check_slots(log, spans)
            # Where tables were looked for, it was said.
            if self._trust.keys and log not in self._looked_at:
                self._check_tables(log, spans)

    def _check_slots(self, log: Log, spans: Sequence[Span]) -> None:
        """Warn of the slots of spans that have no object, which no later statement passes over."""
        form = statements_of(log)
        judge, holds = self._entries.judge(log, form)
        first, end = spans[0].first, spans[-1].end
        slots = self._entries.slots(form, first)
        within = {slot for slot in slots if slot < end}
        size = slots[-1] + 1 if slots else first
        missing: list[tuple[int, int]] = []
        for start, stop in _holes(spans, within):
            if stop >= size:
                continue
            try:
                number, _ = search.at_or_behind(self._store, log, stop - 1, size, holds)
            except (ObjectMissing, FormatError):
                number = stop - 1
            if number < stop:
                missing.append((start, stop))
        if missing:
            self._entries.warn_missing(log, form, missing, ())
        if size < end:
            self._entries.check_end(log, form, judge, size)

    def _check_tables(self, log: Log, spans: Sequence[Span]) -> None:
        """Warn of tables that nobody signed. Lists are read only where names are not those of one list."""
        known = {(span.first, span.end) for span in spans if span.tables}
        ranges: dict[tuple[int, int], list[tables.TableFile]] = {}
        for file in self._listed.files.get(log, ()):
            if self._period.is_whole or (spans and spans[0].first <= file.first < spans[-1].end):
                ranges.setdefault((file.first, file.end), []).append(file)
        unsigned: list[str] = []
        for (first, end), files in ranges.items():
            numbers = sorted(file.number for file in files)
            if (first, end) in known and numbers == list(range(1, files[0].total + 1)):
                continue
            archive = self._entries.archive or ""
            refs, unread = tables.signed_files(self._store, self._listed, archive, log, first, end, self._trust)
            if unread is not None:
                self.warnings.add("ignored", log, f"the tables of statements {first} to {end - 1}: {unread}")
            unsigned += [file.key for file in files if file.key not in refs]
        warn_unsigned(self._entries, log, unsigned)


def _asked_for(
    asked: AskAhead, entries: Entries, index: TimeIndex, logs: Sequence[Log], period: Period
) -> Iterator[Log]:
    """Yield logs in order, some at a time. What is read first of them was asked for before."""
    for start in range(0, len(logs), _LOGS):
        several = logs[start : start + _LOGS]
        _ask_for_ends(asked, entries, index, several, period)
        yield from several
        asked.forget()


def _ask_for_ends(asked: AskAhead, entries: Entries, index: TimeIndex, logs: Sequence[Log], period: Period) -> None:
    """Ask for what is read first of some logs, from the end of the index on."""
    taken: list[tuple[Form[Any], int]] = []
    named: list[SegmentRef | QuarantineRef] = []

    def ask_for_end(store: Store, log: Log) -> None:
        form, first = statements_of(log), index.end(log)
        slots = list(islice(slots_after(store, form, first - 1), MOST_LISTED))
        if len(slots) == MOST_LISTED:
            # So many statements are listed again when they are read.
            return
        if first and not slots:
            store.exists(form.key(first - 1))
        taken.extend((form, slot) for slot in slots[:_FIRST])
        reader.checkpoint_sizes(store, log, slots[-1] + 1 if slots else first)
        if slots:
            ask_for_newest(store, log, form, entries.trust, entries.near(log))

    def ask_for_entry(store: Store, entry: tuple[Form[Any], int]) -> None:
        form, slot = entry
        statement = manifest.parse(store.read(form.key(slot), limit=limits.FILE_BYTES)).statement
        # Whether it counts is decided in its turn: until then it only says what may be asked for.
        if period.has(statement.sealed_at):
            refs = (statement.segment, statement.quarantine)
            named.extend(ref for ref in refs if ref is not None and ref.size <= _SMALL_BYTES)

    asked.ask(ask_for_end, logs)
    if len(logs) > 1:
        asked.ask(ask_for_entry, taken)
        asked.ask(lambda store, ref: store.read(ref.key, limit=ref.size), named)


_OF_AUDITS = ("audits", "findings")


def _merged(ranges: Sequence[Range]) -> list[Range]:
    """Return ranges of slots in order, joined where one begins at the end of another. Empty ones are left out."""
    merged: list[Range] = []
    for first, end in sorted(ranges, key=lambda each: each[0]):
        if merged and merged[-1][1] == first:
            merged[-1] = (merged[-1][0], end)
        elif first != end:
            merged.append((first, end))
    return merged


def _holes(spans: Sequence[Span], slots: set[int]) -> Iterator[tuple[int, int]]:
    """Yield the ranges of slots of spans that have no object."""
    start: int | None = None
    reached = 0
    for span in spans:
        for slot in range(span.first, span.end):
            if start is not None and (slot in slots or slot != reached):
                yield start, reached
                start = None
            if slot not in slots and start is None:
                start = slot
            reached = slot + 1
    if start is not None:
        yield start, reached
