"""Plans a backfill: chooses the statements and batches whose times overlap a range.

It reads no events, and changes nothing. The index by time says which statements have no event in the range. The others
are taken from the rows that audits keep, and read one by one where there are none (`tasks.backfill.stated`). Statements
that trusted keys did not sign are left out, and are a problem of the plan; so is a log that was longer. Without keys no
signature is checked, and a warning says so.

The estimate uses the restore times that AWS documents, and rough speeds of our own. Prices depend on the region and the
contract, and are not estimated.
"""

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Literal, get_args

import msgspec

from custody.archive import time_index
from custody.archive.beyond import after_hole
from custody.archive.forms import statements_of
from custody.archive.reader import choose_logs, find_tip, named_logs, read_archive
from custody.archive.search import sealed_between
from custody.archive.time_index import TimeIndex
from custody.archive.time_spans import Span
from custody.archive.trusted import Judge, beyond_end, check_keys, empty_slots, known_heads, unverified
from custody.errors import ConfigurationError, FormatError, ObjectMissing
from custody.format import limits
from custody.format.envelope import Algorithm
from custody.format.events import EVENT_TYPES
from custody.format.layout import Log
from custody.format.lines import type_fault
from custody.format.times import shift
from custody.keys.trust import Trust
from custody.query.tables import TableFile, list_tables, signed_ranges
from custody.store.ahead import AHEAD, call_ahead, in_order
from custody.store.open import open_store
from custody.store.protocol import ObjectStatus, Store, Tier
from custody.tlog.head import Head
from tasks.backfill.stated import ADVICE, PARALLEL, Searched, Stated, StatedReader
from tasks.search.documents import LEEWAY
from tasks.settings import Settings

Kind = Literal["elasticsearch", "tables", "topic", "folder"]
"""The target of a backfill."""
KINDS, TIERS = get_args(Kind), get_args(Tier)
_RESTORE_HOURS: Mapping[tuple[str, Tier], float] = {
    ("GLACIER", "standard"): 5,
    ("GLACIER", "bulk"): 12,
    ("DEEP_ARCHIVE", "standard"): 12,
    ("DEEP_ARCHIVE", "bulk"): 48,
}
"""Longest times, as AWS documents them."""
_EVENTS_SECOND: Mapping[Kind, float] = {
    "elasticsearch": 10_000,
    "tables": 50_000,
    "topic": 60_000,
    "folder": 200_000,
}
"""Events per second of one process on a busy machine with two cores. `folder` and `tables` were measured; the other
two are careful guesses."""
_LATE_LOGS = 4
"""Logs that are searched at once if the times of sealing matter: of each, many statements are read at once then."""

logger = logging.getLogger(__name__)


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """Which events are copied, and where to.

    Attributes:
        since: events at this time or later, by their own time; timezone-aware.
        until: events before this time.
        logs: `<log>/<partition>`, or `<log>` for all its partitions; empty for all logs.
        types: event types; empty for all.
        target: where events are copied to.
        topic: the Kafka topic, for the target `topic`. It gets each event at least once.
        folder: the folder, for the target `folder`.
        tier: how segments in an archive storage class are restored: faster, or cheaper.
        late_days: read only statements sealed between a day before the range and this many days after it. This saves
            reading manifests that no index by time covers, but does not find events that came later.
    """

    since: datetime
    until: datetime
    logs: tuple[str, ...] = ()
    types: tuple[str, ...] = ()
    target: Kind = "elasticsearch"
    topic: str | None = None
    folder: str | None = None
    tier: Tier = "standard"
    late_days: int | None = None


@dataclass(frozen=True, slots=True)
class Piece:
    """Batches of one statement, by their indexes, and their sums. They are read at once, in `size` bytes."""

    sequence: int
    key: str
    batches: tuple[int, ...]
    first_offset: int
    next_offset: int
    events: int
    size: int


@dataclass(frozen=True, slots=True)
class Part:
    """A unit of the copy: a log's statements `[first, end)`, of them the offsets `[first_offset, next_offset)`."""

    log: Log
    first: int
    end: int
    first_offset: int
    next_offset: int
    pieces: tuple[Piece, ...] = ()

    @property
    def events(self) -> int:
        """Events in the batches that are read: an upper limit for the events that are copied."""
        return sum(piece.events for piece in self.pieces)

    @property
    def size(self) -> int:
        """Bytes that are read."""
        return sum(piece.size for piece in self.pieces)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a backfill reads.

    Attributes:
        request: the request.
        archive: the archive's id.
        statements: number of statements that were searched.
        parts: the parts to copy, each as a whole, in order.
        segments: the segments to read, by key.
        problems: what cannot be read, with reasons.
    """

    request: Request
    archive: str
    statements: int
    parts: tuple[Part, ...]
    segments: Mapping[str, ObjectStatus]
    problems: tuple[str, ...]

    @property
    def events(self) -> int:
        """Events in the batches that are read: an upper limit for the events that are copied."""
        return sum(part.events for part in self.parts)

    @property
    def size(self) -> int:
        """Bytes that are read."""
        return sum(part.size for part in self.parts)

    @property
    def archived(self) -> dict[str, ObjectStatus]:
        """The segments that must be restored before they can be read, by key."""
        return {key: status for key, status in self.segments.items() if status.archived and not status.restored}

    @property
    def restore_hours(self) -> float:
        """The longest time until the last segment is restored; 0 if nothing must be restored."""
        classes = {status.storage_class or "DEEP_ARCHIVE" for status in self.archived.values()}
        return max((_RESTORE_HOURS[name, self.request.tier] for name in classes), default=0)

    @property
    def copy_seconds(self) -> float:
        """The time of the copy itself."""
        return self.events / _EVENTS_SECOND[self.request.target]


def check_request(settings: Settings, request: Request) -> None:
    """Check a request before anything is read.

    Raises:
        ConfigurationError: the request, or a setting that it needs, is wrong.
    """
    if request.since.tzinfo is None or request.until.tzinfo is None:
        raise ConfigurationError("since and until need a time zone: end them with Z for UTC")
    if request.since >= request.until:
        raise ConfigurationError(f"--until ({request.until}) must be later than --since ({request.since})")
    for name in request.types:
        if fault := type_fault(name):
            raise ConfigurationError(f"{name[:100]!r} cannot be an event type: {fault}")
    if request.types and request.target == "tables":
        raise ConfigurationError("tables hold whole statements, so types cannot be chosen: leave types out")
    if request.late_days is not None and not 0 <= request.late_days <= limits.RETENTION_DAYS:
        raise ConfigurationError(f"late_days is {request.late_days}; it must be 0 to {limits.RETENTION_DAYS}")
    if request.target == "elasticsearch" and settings.search.url is None:
        raise ConfigurationError("search.url is not set: set it to the URL of Elasticsearch")
    for target, value in (("topic", request.topic), ("folder", request.folder)):
        if target == request.target and not value:
            raise ConfigurationError(f"the target is a {target}, but none is named: name the {target}")
        if target != request.target and value:
            raise ConfigurationError(f"a {target} is named, but the target is {request.target}: remove one of them")


def plan_backfill(settings: Settings, request: Request) -> Plan:
    """Choose what to read. Nothing is changed.

    Raises:
        ConfigurationError: the request is wrong, there is no archive, or the keys are those of another one.
        StoreError: the archive does not answer.
    """
    check_request(settings, request)
    with closing(open_store(settings.archive, settings.s3)) as store, ThreadPoolExecutor(PARALLEL) as threads:
        file = read_archive(store)
        archive, trust = file.id, settings.trust_at_hand()
        check_keys(store, file, trust)
        listed = list_tables(store) if request.target == "tables" else None
        problems: list[str] = []
        missing = set(request.types) - EVENT_TYPES.keys()
        parts: list[Part] = []
        searched = 0
        unchecked: dict[Log, int] = {}
        index = time_index.find(store, archive, trust)
        for problem in index.problems:
            logger.warning("%s", problem)

        def search(log: Log) -> tuple[Judge, list[Searched], list[str]]:
            judge, found = Judge(store, log, statements_of(log), archive, trust), list[str]()
            return judge, _searched(store, log, request, found, judge, known_heads(trust, log), index), found

        logs = choose_logs(named_logs(store, trust.heads), request.logs)
        at_once = AHEAD if request.late_days is None else _LATE_LOGS
        for log, (judge, ranges, found) in zip(logs, call_ahead(store, search, logs, at_once), strict=True):
            problems += found
            searched += sum(len(slots) for slots, _ in ranges)
            if not _may_use_rows(request, trust, statements_of(log).wanted):
                ranges = [(slots, None) for slots, _ in ranges]
            # The end was read, too: only what is chosen counts.
            judge.unchecked = 0
            stated = StatedReader(store, threads, log, judge.stands).read(ranges)
            chosen = choose_pieces(stated, request, problems, missing)
            if listed is not None:
                made = list(signed_ranges(store, listed, archive, log, trust))
                parts += _without_tables(log, chosen, made, settings.audit.piece_statements)
            else:
                parts += (_part(log, [piece]) for _, piece in chosen if piece is not None)
            unchecked[log] = judge.unchecked
        if missing and not problems:
            names = ", ".join(repr(name[:100]) for name in sorted(missing)[:10])
            raise ConfigurationError(
                f"no statement that was searched has an event of type {names}: `custody query` shows the types that"
                " there are, in the column event_type of events"
            )
        for of, message in unverified(trust, unchecked):
            logger.warning("unverified: %s%s", f"{of}: " if of else "", message)
        segments: dict[str, ObjectStatus] = {}
        keys = {piece.key: None for part in parts for piece in part.pieces}
        for key, status in zip(keys, in_order(threads, partial(_status, store), keys), strict=True):
            if isinstance(status, str):
                problems.append(status)
            else:
                segments[key] = status
    # A table must not lack a statement of its range. For other targets each part has one piece.
    parts = [part for part in parts if all(piece.key in segments for piece in part.pieces)]
    used = {piece.key for part in parts for piece in part.pieces}
    segments = {key: status for key, status in segments.items() if key in used}
    return Plan(request, archive, searched, tuple(parts), segments, tuple(problems))


def _may_use_rows(request: Request, trust: Trust, wanted: Collection[Algorithm]) -> bool:
    """Return whether rows of the index are enough, and the copy reads and checks each statement.

    A table is of many statements: one that cannot be read has to be known before. And keys that cannot check each
    statement do not show which ones were changed since the audit.
    """
    return request.target != "tables" and (not trust.keys or trust.checks_all(wanted))


def _searched(
    store: Store,
    log: Log,
    request: Request,
    problems: list[str],
    judge: Judge,
    heads: Sequence[tuple[str, Head]],
    index: TimeIndex,
) -> list[Searched]:
    """Return the statements of a log that are searched: those of which the index does not say that they have no event.

    A log without an end, with slots after it that have no valid statement, or that was longer, is a problem.
    """
    form, holds = statements_of(log), judge.stands
    try:
        tip = find_tip(store, log, holds)
    except FormatError as error:
        problems.append(f"{log} is not searched: {error}; {ADVICE}")
        return []
    if (beyond := after_hole(store, form, tip, holds)) is not None:
        problems.append(f"{log}: {form.key(tip.size)} is missing, but {form.key(beyond)} exists; {ADVICE}")
    size = tip.head.size
    if tip.passed_over:
        problems.append(f"{log}: {empty_slots(form, [(size, tip.size)])}")
    elif shorter := beyond_end(store, log, form, judge, size, [(head.size, origin) for origin, head in heads]):
        problems.append(f"{log}: {shorter}")

    def has_events(span: Span) -> bool:
        return span.events_within(request.since, request.until)

    ranges = index.ranges(log, 0, size, has_events)
    searched: list[Searched] = [(slots, span) for slots, span in ranges if span is None or has_events(span)]
    if request.late_days is None:
        return searched
    since, until = shift(request.since, -LEEWAY), shift(request.until, timedelta(days=request.late_days))
    sealed = set(sealed_between(store, log, size, since, until, holds, index=index))
    return [([slot for slot in slots if slot in sealed], span) for slots, span in searched]


def choose_pieces(
    stated: Iterable[tuple[int, Stated | str]], request: Request, problems: list[str], missing: set[str] | None = None
) -> Iterator[tuple[int, Piece | None]]:
    """Yield the sequence of each chosen statement of a log, with its piece, in order.

    Statements without a batch, and slots that were passed over, are yielded with None: they have no events.

    Args:
        stated: the statements that are searched, in order; a text says why one cannot be read.
        request: chooses the events.
        problems: gets the statements that cannot be read.
        missing: types that are removed from it if a statement has events of them.
    """
    unread: dict[int, str] = {}
    for sequence, statement in stated:
        if isinstance(statement, str):
            unread[sequence] = statement
            continue
        # Slots that the writer passed over never had a statement, so they are no problem.
        for slot in range(sequence - statement.row.passed_over, sequence):
            unread.pop(slot, None)
            yield slot, None
        problems += unread.values()
        unread.clear()
        if missing:
            missing.difference_update(statement.row.types)
        piece = _piece(request, statement)
        if piece is not None or not statement.batches:
            yield sequence, piece
    problems += unread.values()


def _piece(request: Request, statement: Stated) -> Piece | None:
    row, batches = statement.row, statement.batches
    if row.segment is None or (request.types and row.types.keys().isdisjoint(request.types)):
        return None
    chosen = [
        index
        for index, batch in enumerate(batches)
        if batch.min_time < request.until and batch.max_time >= request.since
    ]
    if not chosen:
        return None
    if request.target == "tables":
        chosen = list(range(len(batches)))
    first, last = chosen[0], chosen[-1]
    return Piece(
        sequence=row.sequence,
        key=row.segment,
        batches=tuple(chosen),
        first_offset=batches[first].first_offset,
        next_offset=batches[last].next_offset,
        events=sum(batches[index].events for index in chosen),
        # In a segment, batches follow each other.
        size=sum(batch.stored for batch in batches[first : last + 1]),
    )


def _part(log: Log, pieces: Sequence[Piece]) -> Part:
    first, last = pieces[0], pieces[-1]
    return Part(log, first.sequence, last.sequence + 1, first.first_offset, last.next_offset, tuple(pieces))


def _without_tables(
    log: Log, chosen: Iterable[tuple[int, Piece | None]], tables: Sequence[Sequence[TableFile]], most: int
) -> Iterator[Part]:
    """Yield ranges of at most so many statements that have no tables, and between which is no event."""
    held: list[Piece] = []
    end = 0
    for sequence, piece in chosen:
        tabled = any(files[0].first <= sequence < files[0].end for files in tables)
        if held and (tabled or sequence != end or sequence - held[0].sequence >= most):
            yield _part(log, held)
            held = []
        if piece is not None and not tabled:
            held.append(piece)
        end = sequence + 1
    if held:
        yield _part(log, held)


def _status(store: Store, key: str) -> ObjectStatus | str:
    try:
        return store.status(key)
    except ObjectMissing as error:
        return f"{error}: it has expired, or is lost; {ADVICE}"
