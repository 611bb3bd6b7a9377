"""Plans a backfill: chooses the statements and batches whose times overlap a range, from the manifests.

It reads no events, and changes nothing. It checks no signatures: `custody verify` does that.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import datetime, timedelta
from functools import partial
from itertools import islice
from typing import Literal, TypeVar, get_args

import msgspec

from custody.archive.reader import Holds, choose_logs, find_tip, list_logs, read_archive, read_manifest, sealed_from
from custody.archive.trusted import standing
from custody.errors import ConfigurationError, FormatError, ObjectMissing
from custody.format.events import EVENT_TYPES
from custody.format.layout import Log
from custody.format.manifest import Batch, Manifest, Statement
from custody.format.times import parse_time
from custody.query import tables
from custody.store.open import open_store
from custody.store.protocol import Store, Tier
from tasks.backfill.targets.target import Part
from tasks.search.documents import LEEWAY
from tasks.settings import Settings

Kind = Literal["elasticsearch", "tables", "topic", "folder"]
"""The target of a backfill."""
KINDS, TIERS = get_args(Kind), get_args(Tier)
ADVICE = "`custody verify` says more"

PARALLEL = 32
_CHUNK = 1024
_RUN_BYTES = 32 * 1_048_576
"""Adjacent batches are read at once, up to this number of bytes."""

_T = TypeVar("_T")
_R = TypeVar("_R")


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
            reading all manifests of a long archive, but does not find events that came later.
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


class Piece(msgspec.Struct, frozen=True):
    """Batches of one statement, by their indexes, and their sums."""

    log: Log
    sequence: int
    key: str
    batches: tuple[int, ...]
    first_offset: int
    next_offset: int
    events: int
    size: int
    reads: int


class Object(msgspec.Struct, frozen=True):
    """A segment to read, its storage class, and whether it can be read there."""

    key: str
    size: int
    storage_class: str | None
    archived: bool
    restored: bool


class Plan(msgspec.Struct, frozen=True):
    """What a backfill reads.

    Attributes:
        request: the request.
        archive: the archive's id.
        statements: number of statements that were searched.
        parts: the parts to copy, each as a whole, in order.
        pieces: for each part, the pieces to read.
        objects: the segments.
        problems: what cannot be read, with reasons.
    """

    request: Request
    archive: str
    statements: int
    parts: tuple[Part, ...]
    pieces: tuple[tuple[Piece, ...], ...]
    objects: tuple[Object, ...]
    problems: tuple[str, ...]

    @property
    def events(self) -> int:
        """Events in the batches that are read: an upper limit for the events that are copied."""
        return sum(piece.events for part in self.pieces for piece in part)

    @property
    def size(self) -> int:
        """Bytes that are read."""
        return sum(piece.size for part in self.pieces for piece in part)

    @property
    def reads(self) -> int:
        """Range reads of segments."""
        return sum(piece.reads for part in self.pieces for piece in part)

    @property
    def archived(self) -> tuple[Object, ...]:
        """The segments that must be restored before they can be read."""
        return tuple(segment for segment in self.objects if segment.archived and not segment.restored)


def check_request(settings: Settings, request: Request) -> None:
    """Check a request before anything is read.

    Raises:
        ConfigurationError: the request, or a setting that it needs, is wrong.
    """
    if request.since.tzinfo is None or request.until.tzinfo is None:
        raise ConfigurationError("since and until need a time zone: end them with Z for UTC")
    if request.since >= request.until:
        raise ConfigurationError(f"until ({request.until}) must be later than since ({request.since})")
    for name in request.types:
        if name not in EVENT_TYPES:
            raise ConfigurationError(f"{name[:100]!r} is not an event type; the types are {', '.join(EVENT_TYPES)}")
    if request.types and request.target == "tables":
        raise ConfigurationError("tables hold whole statements, so types cannot be chosen: leave types out")
    if request.late_days is not None and request.late_days < 0:
        raise ConfigurationError(f"late_days is {request.late_days}; it must be 0 or more")
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
        ConfigurationError: the request is wrong, or there is no archive.
        StoreError: the archive does not answer.
    """
    check_request(settings, request)
    with closing(open_store(settings.archive, settings.s3)) as store, ThreadPoolExecutor(PARALLEL) as threads:
        archive = read_archive(store).id
        holds = standing(store, archive, settings.trust_at_hand())
        problems: list[str] = []
        groups: list[tuple[Part, tuple[Piece, ...]]] = []
        looked_at = 0
        for log in choose_logs(list_logs(store), request.logs):
            walk = _Walk(settings, store, threads, request, log, problems, holds(log))
            groups += _tabled(settings, store, walk) if request.target == "tables" else map(_alone, walk.pieces())
            looked_at += walk.looked_at
        objects = {}
        keys = {piece.key: None for _, pieces in groups for piece in pieces}
        for key, segment in zip(keys, map_in_order(threads, partial(_look, store), keys), strict=True):
            if isinstance(segment, str):
                problems.append(segment)
            else:
                objects[key] = segment
    # A table must not lack a statement of its range. For other targets each part has one piece.
    groups = [(part, pieces) for part, pieces in groups if all(piece.key in objects for piece in pieces)]
    used = {piece.key for _, pieces in groups for piece in pieces}
    return Plan(
        request=request,
        archive=archive,
        statements=looked_at,
        parts=tuple(part for part, _ in groups),
        pieces=tuple(pieces for _, pieces in groups),
        objects=tuple(segment for key, segment in objects.items() if key in used),
        problems=tuple(problems),
    )


class _Walk:
    """One log's manifests, in order."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        threads: ThreadPoolExecutor,
        request: Request,
        log: Log,
        problems: list[str],
        holds: Holds[Manifest],
    ) -> None:
        self._settings, self._store, self._threads, self._problems = settings, store, threads, problems
        self._since, self._until, self._types = request.since, request.until, frozenset(request.types)
        self._whole = request.target == "tables"
        self.log, self._holds = log, holds
        size = find_tip(store, log, holds).head.size
        self.first, self.end = 0, size
        if request.late_days is not None:
            self.first = sealed_from(store, log, size, request.since - LEEWAY, holds)
            self.end = sealed_from(store, log, size, request.until + timedelta(days=request.late_days), holds)
        self.looked_at = 0
        self.empty: set[int] = set()
        """Statements without a batch, and slots without a statement."""

    def pieces(self) -> Iterator[Piece]:
        """Yield the chosen pieces."""
        unread: dict[int, str] = {}
        for sequence, statement in map_in_order(self._threads, self._read, range(self.first, self.end)):
            self.looked_at += 1
            if isinstance(statement, str):
                unread[sequence] = statement
                continue
            # Slots that the writer passed over never had a statement, so they are no problem.
            passed = range(sequence - len(statement.passed_over), sequence)
            self.empty.update(passed)
            self._problems += [problem for slot, problem in unread.items() if slot not in passed]
            unread.clear()
            if not statement.batches:
                self.empty.add(sequence)
            elif (piece := self._piece(statement)) is not None:
                yield piece
        self._problems += unread.values()

    def _read(self, sequence: int) -> tuple[int, Statement | str]:
        try:
            return sequence, read_manifest(self._store, self.log, sequence, self._holds).statement
        except (FormatError, ObjectMissing) as error:
            return sequence, f"{self.log}, sequence {sequence} cannot be read: {error}; {ADVICE}"

    def _piece(self, statement: Statement) -> Piece | None:
        if statement.segment is None or (self._types and not self._types & statement.types.keys()):
            return None
        chosen = [index for index, batch in enumerate(statement.batches) if self._overlaps(batch)]
        if not chosen:
            return None
        chosen = list(range(len(statement.batches))) if self._whole else chosen
        batches = [statement.batches[index] for index in chosen]
        return Piece(
            log=self.log,
            sequence=statement.sequence,
            key=statement.segment.key,
            batches=tuple(chosen),
            first_offset=batches[0].first_offset,
            next_offset=batches[-1].next_offset,
            events=sum(batch.events for batch in batches),
            size=sum(batch.size for batch in batches),
            reads=sum(1 for _ in batch_runs(statement, chosen)),
        )

    def _overlaps(self, batch: Batch) -> bool:
        return parse_time(batch.min_time) < self._until and parse_time(batch.max_time) >= self._since


def _alone(piece: Piece) -> tuple[Part, tuple[Piece, ...]]:
    part = Part(piece.log, piece.sequence, piece.sequence + 1, piece.first_offset, piece.next_offset)
    return part, (piece,)


def _tabled(settings: Settings, store: Store, walk: _Walk) -> Iterator[tuple[Part, tuple[Piece, ...]]]:
    """Yield ranges of statements that have no tables, each with its pieces."""
    keys = (info.key for info in store.list(tables.TABLES))
    tabled = [(files[0].first, files[0].end) for files in tables.whole_ranges(keys) if files[0].log == walk.log]
    held: list[Piece] = []

    def whole() -> tuple[Part, tuple[Piece, ...]]:
        first, last = held[0], held[-1]
        made = tuple(held)
        held.clear()
        return Part(walk.log, first.sequence, last.sequence + 1, first.first_offset, last.next_offset), made

    for piece in walk.pieces():
        if any(first <= piece.sequence < end for first, end in tabled):
            continue
        if held:
            between = range(held[-1].sequence + 1, piece.sequence)
            joined = all(sequence in walk.empty for sequence in between)
            covered = any(first < piece.sequence and end > held[-1].sequence for first, end in tabled)
            full = piece.sequence - held[0].sequence >= settings.audit.piece_statements
            if not joined or covered or full:
                yield whole()
        held.append(piece)
    if held:
        yield whole()


def _look(store: Store, key: str) -> Object | str:
    try:
        status = store.status(key)
    except ObjectMissing as error:
        return f"{error}: it has expired, or is lost; {ADVICE}"
    return Object(key, status.size, status.storage_class, status.archived, status.restored)


def batch_runs(statement: Statement, indexes: Iterable[int]) -> Iterator[list[int]]:
    """Yield the batches that are read at once, because they are adjacent in the segment."""
    run: list[int] = []
    size = 0
    for index in indexes:
        batch = statement.batches[index]
        last = statement.batches[run[-1]] if run else None
        if last is not None and (last.start + last.size != batch.start or size + batch.size > _RUN_BYTES):
            yield run
            run, size = [], 0
        run.append(index)
        size += batch.size
    if run:
        yield run


def map_in_order(threads: ThreadPoolExecutor, function: Callable[[_T], _R], items: Iterable[_T]) -> Iterator[_R]:
    """Map in threads, in order, and with a limited number of items at a time: there may be millions."""
    items = iter(items)
    while chunk := list(islice(items, _CHUNK)):
        yield from threads.map(function, chunk)
