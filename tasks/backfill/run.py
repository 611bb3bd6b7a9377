"""Copies archived events, chosen by their own times, to Elasticsearch, tables, a Kafka topic or a folder.

1. `plan_backfill` walks the manifests and chooses the statements and batches whose times overlap the range. It reads
   no event, and changes nothing.
2. `restore` asks for readable copies of the segments that lie in an archived storage class. It says how many are still
   being made, and waits for none: that takes hours, and the caller comes back.
3. `copy` reads the chosen batches, in ranges of their segments, holds each to the digest that its statement gives, and
   hands the events chosen to a target. What the target has is not copied again; so it can be stopped and started.

Statements' signatures are not checked here: `custody verify` does that, and says what is wrong where something is.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import msgspec

from custody.archive.reader import Holds, find_tip, list_logs, read_archive, read_manifest, sealed_from
from custody.archive.trusted import standing
from custody.errors import ConfigurationError, FormatError, ObjectArchived, ObjectMissing
from custody.format import limits, lines
from custody.format.events import EVENT_TYPES
from custody.format.layout import Log
from custody.format.manifest import Batch, Manifest, Statement
from custody.format.members import inflate_batch
from custody.format.offsets import offsets_of
from custody.format.times import format_time, microseconds_of, parse_time
from custody.query import tables
from custody.settings import Settings
from custody.store.open import open_store
from custody.store.protocol import Store, Tier
from tasks.backfill.targets import (
    Content,
    FolderTarget,
    Part,
    SearchTarget,
    TablesTarget,
    Target,
    TopicTarget,
)
from tasks.search.client import Search, Sent
from tasks.search.documents import LEEWAY

Kind = Literal["elasticsearch", "tables", "topic", "folder"]
"""What events are copied to."""
KINDS, TIERS = get_args(Kind), get_args(Tier)
RESTORE_DAYS = 7
"""How long the copy of an archived object can be read."""

_PARALLEL = 32
_CHUNK = 1024
_AHEAD = 4
_RUN_BYTES = 32 * 1_048_576
"""Neighbouring batches are read at once, up to so many bytes."""
_PROBLEMS = 100
_ADVICE = "`custody verify` says more"

_T = TypeVar("_T")
_R = TypeVar("_R")


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """Which events are wanted, and where.

    Attributes:
        since: events from then on, by their own time; aware.
        until: events before then.
        logs: `<log>/<partition>`, or `<log>` for all its partitions; none for all.
        types: of events; none for all.
        target: what they are copied to.
        topic: the Kafka topic, where that is the target.
        folder: the folder, where that is the target.
        tier: how soon archived segments are restored, and at what price.
        late_days: look only at statements sealed within so many days after the range (and from a day before it on). An
            event that came later is not found then, and a long archive need not be walked as a whole.
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
    """Batches of one statement, by their places in it, and what they amount to."""

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
    """A segment that is read, where it lies, and whether it can be read there."""

    key: str
    size: int
    storage_class: str | None
    archived: bool
    restored: bool


class Plan(msgspec.Struct, frozen=True):
    """What a backfill reads.

    Attributes:
        request: what was asked for.
        archive: its id.
        statements: how many were looked at.
        parts: what is copied as a whole, in order.
        pieces: what is read of each part.
        objects: the segments.
        problems: what cannot be read, and why.
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
        """Events in the batches that are read; those chosen are as many at most."""
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
        return tuple(one for one in self.objects if one.archived and not one.restored)


@dataclass(slots=True)
class Progress:
    """How far a copy is.

    Attributes:
        parts: parts to copy.
        done: parts copied, or there already.
        events: events in the batches that are read.
        looked_at: of them, those that were read, or did not need to.
        created: events copied now.
        there: events that the target had.
        rejected: events that it does not take.
        size: bytes to read.
        read: bytes read.
        left_out: bytes that did not need to be read.
        seconds: since the copy began.
        stopped: whether it was stopped before its end.
        problems: what could not be copied, and why; the first 100.
    """

    parts: int = 0
    done: int = 0
    events: int = 0
    looked_at: int = 0
    created: int = 0
    there: int = 0
    rejected: int = 0
    size: int = 0
    read: int = 0
    left_out: int = 0
    seconds: float = 0.0
    stopped: bool = False
    problems: list[str] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Events created, or found there, a second."""
        return (self.created + self.there) / self.seconds if self.seconds else 0.0

    @property
    def share(self) -> float:
        """How much of the work is done, 0 to 1."""
        return min(1.0, (self.read + self.left_out) / self.size) if self.size else 1.0

    @property
    def remaining(self) -> float | None:
        """Seconds that the rest will take at the speed so far, None where that is not known yet."""
        left = max(0, self.size - self.read - self.left_out)
        return left * self.seconds / self.read if self.read else (None if left else 0.0)


class _Stopped(Exception):
    """The caller wants no more."""


def check_request(settings: Settings, request: Request) -> None:
    """Refuse what makes no sense, before anything is read.

    Raises:
        ConfigurationError: the request, or a setting that it needs.
    """
    if request.since.tzinfo is None or request.until.tzinfo is None:
        raise ConfigurationError("since and until need a time zone: end them with Z for UTC")
    if request.since >= request.until:
        raise ConfigurationError(f"nothing is since {request.since} and before {request.until}: until is to be later")
    for name in request.types:
        if name not in EVENT_TYPES:
            raise ConfigurationError(f"{name[:100]!r} is no type of events; there are {', '.join(EVENT_TYPES)}")
    if request.types and request.target == "tables":
        raise ConfigurationError("tables hold whole statements, so that types cannot be chosen; leave types out")
    if request.late_days is not None and request.late_days < 0:
        raise ConfigurationError(f"late days are {request.late_days}; want 0 or more")
    if request.target == "elasticsearch" and settings.search.url is None:
        raise ConfigurationError("search.url is not set: it says where Elasticsearch is")
    for target, value in (("topic", request.topic), ("folder", request.folder)):
        if target == request.target and not value:
            raise ConfigurationError(f"the target is a {target}: say which")
        if target != request.target and value:
            raise ConfigurationError(f"a {target} is named, and the target is {request.target}: leave one out")


def plan_backfill(settings: Settings, request: Request) -> Plan:
    """Choose what is to be read. Nothing is changed.

    Raises:
        ConfigurationError: the request makes no sense, or there is no archive.
        StoreError: the archive does not answer.
    """
    check_request(settings, request)
    with closing(open_store(settings.archive, settings.s3)) as store, ThreadPoolExecutor(_PARALLEL) as threads:
        archive = read_archive(store).id
        holds = standing(store, archive, settings.trust_at_hand())
        problems: list[str] = []
        groups: list[tuple[Part, tuple[Piece, ...]]] = []
        looked_at = 0
        for log in _choose_logs(store, request.logs):
            walk = _Walk(settings, store, threads, request, log, problems, holds(log))
            groups += _tabled(settings, store, walk) if request.target == "tables" else map(_alone, walk.pieces())
            looked_at += walk.looked_at
        objects = {}
        keys = {piece.key: None for _, pieces in groups for piece in pieces}
        for key, found in zip(keys, _map(threads, partial(_look, store), keys), strict=True):
            if isinstance(found, str):
                problems.append(found)
            else:
                objects[key] = found
    # A table that lacks a statement would hide that it does; of other targets' parts each has one piece.
    groups = [(part, pieces) for part, pieces in groups if all(piece.key in objects for piece in pieces)]
    used = {piece.key for _, pieces in groups for piece in pieces}
    return Plan(
        request=request,
        archive=archive,
        statements=looked_at,
        parts=tuple(part for part, _ in groups),
        pieces=tuple(pieces for _, pieces in groups),
        objects=tuple(found for key, found in objects.items() if key in used),
        problems=tuple(problems),
    )


def _choose_logs(store: Store, wanted: Sequence[str]) -> list[Log]:
    logs = list_logs(store)
    for name in wanted:
        if not any(name in {str(log), log.name} for log in logs):
            raise ConfigurationError(f"the archive has no log {name[:300]!r}; `custody status` lists them")
    return [log for log in logs if not wanted or str(log) in wanted or log.name in wanted]


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
        """Statements without a batch, and slots that hold none."""

    def pieces(self) -> Iterator[Piece]:
        """Yield what is wanted."""
        unread: dict[int, str] = {}
        for sequence, found in _map(self._threads, self._read, range(self.first, self.end)):
            self.looked_at += 1
            if isinstance(found, str):
                unread[sequence] = found
                continue
            # What the writer passed over was never a statement.
            passed = range(sequence - len(found.passed_over), sequence)
            self.empty.update(passed)
            self._problems += [problem for slot, problem in unread.items() if slot not in passed]
            unread.clear()
            if not found.batches:
                self.empty.add(sequence)
            elif (piece := self._piece(found)) is not None:
                yield piece
        self._problems += unread.values()

    def _read(self, sequence: int) -> tuple[int, Statement | str]:
        try:
            return sequence, read_manifest(self._store, self.log, sequence, self._holds).statement
        except (FormatError, ObjectMissing) as error:
            return sequence, f"{self.log}, sequence {sequence} cannot be read: {error}; {_ADVICE}"

    def _piece(self, statement: Statement) -> Piece | None:
        if statement.segment is None or (self._types and not self._types & statement.types.keys()):
            return None
        chosen = [place for place, batch in enumerate(statement.batches) if self._overlaps(batch)]
        if not chosen:
            return None
        chosen = list(range(len(statement.batches))) if self._whole else chosen
        batches = [statement.batches[place] for place in chosen]
        return Piece(
            log=self.log,
            sequence=statement.sequence,
            key=statement.segment.key,
            batches=tuple(chosen),
            first_offset=batches[0].first_offset,
            next_offset=batches[-1].next_offset,
            events=sum(batch.events for batch in batches),
            size=sum(batch.size for batch in batches),
            reads=sum(1 for _ in _runs(statement, chosen)),
        )

    def _overlaps(self, batch: Batch) -> bool:
        return parse_time(batch.min_time) < self._until and parse_time(batch.max_time) >= self._since


def _alone(piece: Piece) -> tuple[Part, tuple[Piece, ...]]:
    part = Part(piece.log, piece.sequence, piece.sequence + 1, piece.first_offset, piece.next_offset)
    return part, (piece,)


def _tabled(settings: Settings, store: Store, walk: _Walk) -> Iterator[tuple[Part, tuple[Piece, ...]]]:
    """Yield ranges of statements that have no tables, each with what is read for it."""
    keys = (info.key for info in store.list(tables.TABLES))
    there = [(files[0].first, files[0].end) for files in tables.whole_ranges(keys) if files[0].log == walk.log]
    held: list[Piece] = []

    def whole() -> tuple[Part, tuple[Piece, ...]]:
        first, last = held[0], held[-1]
        made = tuple(held)
        held.clear()
        return Part(walk.log, first.sequence, last.sequence + 1, first.first_offset, last.next_offset), made

    for piece in walk.pieces():
        if any(first <= piece.sequence < end for first, end in there):
            continue
        if held:
            between = range(held[-1].sequence + 1, piece.sequence)
            joined = all(one in walk.empty for one in between)
            covered = any(first < piece.sequence and end > held[-1].sequence for first, end in there)
            full = piece.sequence - held[0].sequence >= settings.audit.piece_statements
            if not joined or covered or full:
                yield whole()
        held.append(piece)
    if held:
        yield whole()


def _look(store: Store, key: str) -> Object | str:
    try:
        found = store.status(key)
    except ObjectMissing as error:
        return f"{error}: it has expired, or is lost; {_ADVICE}"
    return Object(key, found.size, found.storage_class, found.archived, found.restored)


def _runs(statement: Statement, places: Iterable[int]) -> Iterator[list[int]]:
    """Yield the batches that are read at once: those that lie beside each other in the segment."""
    run: list[int] = []
    size = 0
    for place in places:
        batch = statement.batches[place]
        last = statement.batches[run[-1]] if run else None
        if last is not None and (last.start + last.size != batch.start or size + batch.size > _RUN_BYTES):
            yield run
            run, size = [], 0
        run.append(place)
        size += batch.size
    if run:
        yield run


def restore(settings: Settings, plan: Plan) -> int:
    """Ask for copies of the segments that cannot be read where they lie, and return how many are still being made.

    Raises:
        StoreError: the archive refuses, or does not answer; asking again is safe.
    """
    if not plan.archived:
        return 0
    with closing(open_store(settings.archive, settings.s3)) as store, ThreadPoolExecutor(_PARALLEL) as threads:

        def ask(one: Object) -> bool:
            status = store.status(one.key)
            if status.archived and not status.restored and not status.restoring:
                store.restore(one.key, days=RESTORE_DAYS, tier=plan.request.tier)
                status = store.status(one.key)
            return status.archived and not status.restored

        return sum(_map(threads, ask, plan.archived))


def copy(
    settings: Settings,
    plan: Plan,
    progress: Callable[[Progress], None] = lambda _: None,
    go_on: Callable[[], bool] = lambda: True,
) -> Progress:
    """Copy what was planned to its target; what is there already is not copied again.

    Args:
        settings: the settings.
        plan: what is read.
        progress: is called after each statement.
        go_on: is asked before each statement; what was copied until then stays.

    Returns:
        What was done. What could not be read is among its problems, and the rest was copied.

    Raises:
        CustodyError: the archive does not answer, or the target does not take the events; the next run goes on.
    """
    with closing(open_store(settings.archive, settings.s3)) as store, _target(settings, store, plan) as target:
        holds = standing(store, plan.archive, settings.trust_at_hand())
        return _Copy(store, plan, target, progress, go_on, holds).run()


@contextmanager
def _target(settings: Settings, store: Store, plan: Plan) -> Iterator[Target]:
    request = plan.request
    match request.target:
        case "elasticsearch":
            with closing(Search(settings.search)) as search:
                yield SearchTarget(settings, search)
        case "tables":
            yield TablesTarget(store, plan.archive, settings.signers(datetime.now(UTC)).both())
        case "topic":
            yield TopicTarget(settings, request.topic or "")
        case "folder":
            span = {"since": format_time(request.since), "until": format_time(request.until)}
            yield FolderTarget(Path(request.folder or ""), plan.archive, {**span, "types": sorted(request.types)})


_Fetched = tuple[Statement, dict[int, bytes]]


class _Copy:
    """One copy under way."""

    def __init__(
        self,
        store: Store,
        plan: Plan,
        target: Target,
        progress: Callable[[Progress], None],
        go_on: Callable[[], bool],
        holds: Callable[[Log], Holds[Manifest]],
    ) -> None:
        self._store, self._plan, self._target, self._holds = store, plan, target, holds
        self._progress, self._go_on = progress, go_on
        self._choice = _Choice(plan.request)
        self._begun = time.monotonic()
        self._done = Progress(
            parts=len(plan.parts), events=plan.events, size=plan.size, problems=list(plan.problems[:_PROBLEMS])
        )

    def run(self) -> Progress:
        todo: list[tuple[Part, tuple[Piece, ...]]] = []
        for part, pieces in zip(self._plan.parts, self._plan.pieces, strict=True):
            if self._target.has(part):
                self._done.done += 1
                self._done.left_out += sum(piece.size for piece in pieces)
                self._done.looked_at += sum(piece.events for piece in pieces)
            else:
                todo.append((part, pieces))
        threads = ThreadPoolExecutor(_AHEAD)
        try:
            fetched = _ahead(threads, self._fetch, (piece for _, pieces in todo for piece in pieces))
            for part, pieces in todo:
                self._copy(part, pieces, fetched)
        except _Stopped:
            self._done.stopped = True
        finally:
            threads.shutdown(cancel_futures=True)
        self._tell()
        return self._done

    def _copy(self, part: Part, pieces: Sequence[Piece], fetched: Iterator[Future[_Fetched]]) -> None:
        mine = islice(fetched, len(pieces))
        sent = Sent()
        try:
            self._target.write(part, self._contents(pieces, mine), sent)
        except (FormatError, ObjectMissing, ObjectArchived, msgspec.MsgspecError) as error:
            if len(self._done.problems) < _PROBLEMS:
                place = f"{part.log}, sequence {part.first}" + (f" to {part.end - 1}" if len(pieces) > 1 else "")
                self._done.problems.append(f"{place}: {error}; {_ADVICE}")
            # What belongs to it was asked for ahead.
            for _ in mine:
                pass
        finally:
            sent.add_to(self._done)
        self._done.done += 1

    def _contents(self, pieces: Sequence[Piece], fetched: Iterator[Future[_Fetched]]) -> Iterator[Content]:
        """Yield what is chosen, batch by batch; one that is damaged is raised behind those that are not."""
        problem: FormatError | None = None
        for piece, future in zip(pieces, fetched, strict=True):
            if not self._go_on():
                raise _Stopped
            statement, members = future.result()
            for place, member in members.items():
                try:
                    found = self._choice.choose(piece.log, statement, statement.batches[place], member)
                except FormatError as error:
                    problem = problem or error
                    continue
                if found is not None:
                    yield found
            self._done.read += piece.size
            self._done.looked_at += piece.events
            self._tell()
        if problem is not None:
            raise problem

    def _tell(self) -> None:
        self._done.seconds = time.monotonic() - self._begun
        self._progress(self._done)

    def _fetch(self, piece: Piece) -> _Fetched:
        """Read a piece's batches, those that are neighbours at once."""
        statement = read_manifest(self._store, piece.log, piece.sequence, self._holds(piece.log)).statement
        segment = statement.segment
        if segment is None or segment.key != piece.key or piece.batches[-1] >= len(statement.batches):
            raise FormatError("the manifest is not what it was a moment ago")
        members: dict[int, bytes] = {}
        for run in _runs(statement, piece.batches):
            first, last = statement.batches[run[0]], statement.batches[run[-1]]
            size = last.start + last.size - first.start
            if not 0 < size <= limits.SEGMENT_BYTES:
                raise FormatError(f"batch {first.number} is said to have {size:,} bytes")
            data = self._store.read(segment.key, limit=size, start=first.start, size=size, restored=True)
            for place in run:
                batch = statement.batches[place]
                members[place] = data[batch.start - first.start :][: batch.size]
        return statement, members


class _Envelope(msgspec.Struct, gc=False):
    event_type: str
    timestamp: str


_decode_lines = msgspec.json.Decoder(_Envelope).decode_lines


class _Choice:
    """Chooses events by time and type."""

    def __init__(self, request: Request) -> None:
        # Tables hold whole statements.
        self._all = request.target == "tables"
        self._since, self._until = request.since, request.until
        self._bounds = [microseconds_of(moment) for moment in (request.since, request.until)]
        self._types = frozenset(request.types)

    def choose(self, log: Log, statement: Statement, batch: Batch, member: bytes) -> Content | None:
        """Return a batch's chosen events, None if there are none.

        Raises:
            FormatError: the batch is not as its statement says.
        """
        try:
            payload = inflate_batch(batch, member)
        except FormatError as error:
            raise FormatError(f"batch {batch.number} is not the one that its statement names: {error}") from None
        found, offsets = payload.split(b"\n"), offsets_of(statement, batch)
        if found.pop() or len(found) != len(offsets):
            raise FormatError(f"batch {batch.number} of {log} has {len(found)} lines for {len(offsets)} offsets")
        places = self._places(statement, batch, payload, found)
        if places is None:
            return Content(statement, batch, member, payload, found, offsets, whole=True)
        if not places:
            return None
        chosen = [found[place] for place in places], [offsets[place] for place in places]
        return Content(statement, batch, member, payload, *chosen, whole=len(places) == len(found))

    def _places(
        self, statement: Statement, batch: Batch, payload: bytes, found: Sequence[bytes]
    ) -> Sequence[int] | None:
        """Return which lines are chosen, None for all."""
        inside = parse_time(batch.min_time) >= self._since and parse_time(batch.max_time) < self._until
        all_types = not self._types or statement.types.keys() <= self._types
        if self._all or (inside and all_types):
            return None
        first, end = self._bounds
        return [
            place
            for place, (kind, text) in enumerate(_envelopes(payload, found))
            if (all_types or kind in self._types) and (inside or first <= _microseconds(text) < end)
        ]


def _envelopes(payload: bytes, found: Sequence[bytes]) -> Iterator[tuple[str, Any]]:
    """Yield type and time of each line: its text, or what the slow path has made of it."""
    try:
        rows = _decode_lines(payload)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        rows = []
    if len(rows) == len(found):
        yield from ((one.event_type, one.timestamp) for one in rows)
    else:
        yield from map(lines.check_line, found)


def _microseconds(moment: str | lines.Time) -> int:
    """Return whole microseconds since 1970: what is behind them changes nothing, for bounds have no more digits."""
    parsed = lines.parse_time(moment) if isinstance(moment, str) else moment
    if parsed is None:
        raise FormatError(f"an event's time is {str(moment)[:60]!r}")
    return parsed.microseconds[0]


def _map(threads: ThreadPoolExecutor, function: Callable[[_T], _R], items: Iterable[_T]) -> Iterator[_R]:
    """Map in threads, and in order, with no more than some items under way: there may be millions."""
    items = iter(items)
    while chunk := list(islice(items, _CHUNK)):
        yield from threads.map(function, chunk)


def _ahead(threads: ThreadPoolExecutor, function: Callable[[_T], _R], items: Iterator[_T]) -> Iterator[Future[_R]]:
    """Yield a future for each item, in order, a few of them begun ahead."""
    begun = deque(threads.submit(function, item) for item in islice(items, _AHEAD))
    while begun:
        yield begun.popleft()
        begun.extend(threads.submit(function, item) for item in islice(items, 1))
