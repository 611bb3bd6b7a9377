"""Copies archived events, chosen by their own times, to Elasticsearch, tables, a Kafka topic or a folder.

1. `plan_backfill` reads the manifests and chooses the statements and batches whose times overlap the range. It reads
   no events, and changes nothing.
2. `restore` requests readable copies of the segments in an archive storage class. It returns how many are not ready,
   and does not wait: a restore takes hours, and the caller tries again later.
3. `copy` reads the chosen batches with one range read of each segment, checks each against the digest in its statement,
   and passes the chosen events to a target. It does not copy what the target already has, so it can be stopped and
   started again. A topic gets each event at least once (`tasks.backfill.topic`).

Statements' signatures are not checked here: `custody verify` does that.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import msgspec

from custody.archive.reader import Holds, read_manifest
from custody.archive.trusted import standing
from custody.errors import CustodyError, FormatError, ObjectArchived, ObjectMissing, counted
from custody.format import limits, lines
from custody.format.layout import Log
from custody.format.manifest import Batch, Manifest, Statement
from custody.format.members import inflate_batch
from custody.format.offsets import offsets_of
from custody.format.times import format_time, microseconds_of, parse_time
from custody.store.ahead import in_order
from custody.store.open import open_store
from custody.store.protocol import Store
from tasks.backfill.plan import Part, Piece, Plan, Request
from tasks.backfill.stated import ADVICE, PARALLEL
from tasks.backfill.targets import Content, FolderTarget, SearchTarget, TablesTarget, Target
from tasks.backfill.topic import TopicTarget
from tasks.search.bulk import Sent
from tasks.search.client import Search
from tasks.settings import Settings

RESTORE_DAYS = 7
"""How long a restored copy can be read."""
_AHEAD, _AHEAD_BYTES = 32, 64 * limits.MIB
"""Pieces that are fetched ahead at most, and bytes of them: more pieces of few bytes. Of large ones, a few all the
same."""
_FEW = 4
_OF_PART = (FormatError, ObjectMissing, ObjectArchived, msgspec.MsgspecError)
"""Errors of a part, which end no other."""
_PROBLEMS = 100
_SUMS = ("created", "there", "rejected", "parts", "done", "events", "looked_at", "size", "read", "left_out")
"""What the results of shares add up to."""


@dataclass(slots=True)
class Progress(Sent):
    """How far a copy is, in addition to the events created now, already there, and rejected.

    Attributes:
        parts: parts to copy.
        done: parts copied, or already there.
        events: events in the batches to read.
        looked_at: events of these that were read, or did not need to be.
        size: bytes to read.
        read: bytes read.
        left_out: bytes that did not need to be read.
        seconds: time since the copy began.
        stopped: whether it was stopped before its end.
        problems: parts that could not be copied, with reasons; the first 100.
    """

    parts: int = 0
    done: int = 0
    events: int = 0
    looked_at: int = 0
    size: int = 0
    read: int = 0
    left_out: int = 0
    seconds: float = 0.0
    stopped: bool = False
    problems: list[str] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Events per second that were created or already there."""
        return (self.created + self.there) / self.seconds if self.seconds else 0.0

    @property
    def share(self) -> float:
        """The share of the work that is done, 0 to 1."""
        return min(1.0, (self.read + self.left_out) / self.size) if self.size else 1.0

    @property
    def remaining(self) -> float | None:
        """Seconds that the rest will take at the speed so far; None if that is not known yet."""
        left = max(0, self.size - self.read - self.left_out)
        return left * self.seconds / self.read if self.read else (None if left else 0.0)


class _Stopped(Exception):
    """The caller asked to stop."""


def restore(settings: Settings, plan: Plan) -> int:
    """Request the restore of segments that cannot be read, and return how many are not restored yet.

    Raises:
        StoreError: the archive refuses, or does not answer. It is safe to try again.
    """
    if not plan.archived:
        return 0
    with closing(open_store(settings.archive, settings.s3)) as store, ThreadPoolExecutor(PARALLEL) as threads:
        restores = store.capabilities.restores

        def ask(key: str) -> bool:
            status = store.status(key)
            if restores and status.archived and not status.restored and not status.restoring:
                restores.restore(key, days=RESTORE_DAYS, tier=plan.request.tier)
                status = store.status(key)
            return status.archived and not status.restored

        return sum(in_order(threads, ask, plan.archived))


def copy(
    settings: Settings,
    plan: Plan,
    progress: Callable[[Progress], None] = lambda _: None,
    go_on: Callable[[], bool] = lambda: True,
) -> Progress:
    """Copy planned events to their target. Parts that are known to be there are not copied again.

    Args:
        settings: the settings.
        plan: the plan.
        progress: called after each statement.
        go_on: called before each statement; the copy stops if it returns False. Events copied until then stay.

    Returns:
        The result. Parts that could not be read are in its problems, and the rest was copied.

    Raises:
        CustodyError: the archive does not answer, or the target does not accept the events. The next run continues.
    """
    done = copy_share(settings, plan, progress, go_on)
    _check_copied(plan.request, done)
    return done


def copy_share(
    settings: Settings,
    plan: Plan,
    progress: Callable[[Progress], None] = lambda _: None,
    go_on: Callable[[], bool] = lambda: True,
) -> Progress:
    """Copy as `copy` does. A plan that has none of the chosen events is no problem: it may be a share of another."""
    with closing(open_store(settings.archive, settings.s3)) as store, _target(settings, store, plan) as target:
        holds = standing(store, plan.archive, settings.trust_at_hand())
        return _Copy(store, plan, target, progress, go_on, holds).run()


def shares(plan: Plan, number: int) -> list[Plan]:
    """Return a plan as at most so many plans, each of parts that follow each other. The first has its problems.

    A topic gets one share: its positions are of all logs, and one writer commits them.
    """
    number = 1 if plan.request.target == "topic" else min(number, len(plan.parts))
    if number <= 1:
        return [plan]
    ends = [len(plan.parts) * end // number for end in range(number + 1)]
    made = [replace(plan, parts=plan.parts[begin:end], problems=()) for begin, end in pairwise(ends)]
    keys = [{piece.key for part in share.parts for piece in part.pieces} for share in made]
    segments = [{key: plan.segments[key] for key in used} for used in keys]
    made = [replace(share, segments=own) for share, own in zip(made, segments, strict=True)]
    return [replace(made[0], problems=plan.problems), *made[1:]]


def join(plan: Plan, parts: Sequence[Plan], results: Sequence[Progress | CustodyError], seconds: float) -> Progress:
    """Return the result of a plan whose shares were copied in parallel.

    Args:
        plan: the plan.
        parts: its shares.
        results: the result of each, or the error that ended it. What it copied until then is not counted.
        seconds: how long it took.
    """
    done = [
        _failed(part, result) if isinstance(result, CustodyError) else result
        for part, result in zip(parts, results, strict=True)
    ]
    whole = Progress(seconds=seconds, stopped=any(share.stopped for share in done))
    for share in done:
        for name in _SUMS:
            setattr(whole, name, getattr(whole, name) + getattr(share, name))
        whole.reasons.update(share.reasons)
        whole.problems = [*whole.problems, *share.problems][:_PROBLEMS]
    _check_copied(plan.request, whole)
    return whole


def _failed(plan: Plan, error: CustodyError) -> Progress:
    """Return the result of a share that an error ended."""
    problems = [*plan.problems[: _PROBLEMS - 1], str(error)]
    return Progress(parts=len(plan.parts), events=plan.events, size=plan.size, problems=problems)


def _check_copied(request: Request, done: Progress) -> None:
    """Note a problem if none of the chosen events is at the target. The archive's tables may all be there."""
    if done.stopped or done.problems or done.created or done.there or done.left_out:
        return
    if request.target == "tables" and not done.parts:
        return
    reason = "the archive has no such event"
    if done.rejected:
        reason = f"the target rejected {'the only event' if done.rejected == 1 else f'all {done.rejected:,} events'}"
    if done.reasons:
        # Elasticsearch's; a topic has no list of them.
        reason += f", most often because of {done.reasons.most_common(1)[0][0]}; <search.prefix>-rejected lists each"
    done.problems.append(f"nothing was copied: {reason}, {request.since} to {request.until}")


@contextmanager
def _target(settings: Settings, store: Store, plan: Plan) -> Iterator[Target]:
    request = plan.request
    match request.target:
        case "elasticsearch":
            with closing(Search(settings.search)) as search:
                search.reach()
                yield SearchTarget(settings, search)
        case "tables":
            yield TablesTarget(store, plan.archive, settings.signers(datetime.now(UTC)).both())
        case "topic":
            # `late_days` is part of the name: with more days, statements appear between those already sent.
            choice = _choice(plan, late_days=request.late_days)
            with closing(TopicTarget(settings, request.topic or "", choice, complete=not plan.problems)) as topic:
                yield topic
        case "folder":
            yield FolderTarget(Path(request.folder or ""), _choice(plan))


def _choice(plan: Plan, **more: int | None) -> bytes:
    """Return a name for the choice of events: archive, times and types. Targets keep logs apart themselves."""
    request = plan.request
    span = {"since": format_time(request.since), "until": format_time(request.until)}
    chosen = {"archive": plan.archive, **span, "types": sorted(request.types), **more}
    return json.dumps(chosen, sort_keys=True).encode() + b"\n"


_Fetched = tuple[Statement, list[bytes]]
"""A statement, and the stored bytes of the batches that are copied."""


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
        self._begun = time.monotonic()
        self._done = Progress(
            parts=len(plan.parts), events=plan.events, size=plan.size, problems=list(plan.problems[:_PROBLEMS])
        )

    def run(self) -> Progress:
        todo: list[Part] = []
        for part in self._plan.parts:
            if self._target.has(part):
                self._done.done += 1
                self._done.left_out += part.size
                self._done.looked_at += part.events
            else:
                todo.append(part)
        largest = max((piece.size for part in todo for piece in part.pieces), default=0)
        ahead = min(_AHEAD, max(_FEW, _AHEAD_BYTES // max(1, largest)))
        threads = ThreadPoolExecutor(ahead)
        try:
            pieces = ((part.log, piece) for part in todo for piece in part.pieces)
            fetched = in_order(threads, self._fetched, pieces, ahead)
            for part in todo:
                self._copy(part, islice(fetched, len(part.pieces)))
        except _Stopped:
            self._done.stopped = True
        finally:
            threads.shutdown(cancel_futures=True)
        if not self._done.stopped and not self._done.problems:
            self._target.finish()
        self._report()
        return self._done

    def _copy(self, part: Part, fetched: Iterator[_Fetched | Exception]) -> None:
        try:
            self._target.write(part, self._contents(part, fetched), self._done)
        except _OF_PART as error:
            if len(self._done.problems) < _PROBLEMS:
                name = f"{part.log}, sequence {part.first}" + (f" to {part.end - 1}" if len(part.pieces) > 1 else "")
                self._done.problems.append(f"{name}: {error}; {ADVICE}")
            # Skip the rest of this part, which may be fetched already.
            for _ in fetched:
                pass
        self._done.done += 1

    def _contents(self, part: Part, fetched: Iterator[_Fetched | Exception]) -> Iterator[Content]:
        """Yield the chosen events, batch by batch. The error of a damaged batch is raised after all good ones."""
        problem: FormatError | None = None
        for piece, of_piece in zip(part.pieces, fetched, strict=True):
            if not self._go_on():
                raise _Stopped
            if isinstance(of_piece, Exception):
                raise of_piece
            statement, members = of_piece
            for index, member in zip(piece.batches, members, strict=True):
                try:
                    content = choose(self._plan.request, part.log, statement, statement.batches[index], member)
                except FormatError as error:
                    problem = problem or error
                    continue
                if content is not None:
                    yield content
            self._done.read += piece.size
            self._done.looked_at += piece.events
            self._report()
        if problem is not None:
            raise problem

    def _report(self) -> None:
        self._done.seconds = time.monotonic() - self._begun
        self._progress(self._done)

    def _fetched(self, item: tuple[Log, Piece]) -> _Fetched | Exception:
        """Return a piece's statement and batches; or the error that ends its part, and no other."""
        try:
            return self._fetch(item)
        except _OF_PART as error:
            return error

    def _fetch(self, item: tuple[Log, Piece]) -> _Fetched:
        """Read a piece's statement, and the stored bytes of its batches, in one read."""
        log, piece = item
        statement = read_manifest(self._store, log, piece.sequence, self._holds(log)).statement
        segment = statement.segment
        if segment is None or segment.key != piece.key or piece.batches[-1] >= len(statement.batches):
            raise FormatError("the manifest was changed since the plan was made")
        batches = [statement.batches[index] for index in piece.batches]
        start, size = batches[0].start, batches[-1].start + batches[-1].size - batches[0].start
        if not 0 < size <= limits.SEGMENT_BYTES:
            raise FormatError(f"batches of {segment.key} are stated to have {size:,} bytes, which is not possible")
        data = self._store.read(segment.key, limit=size, start=start, size=size, restored=True)
        return statement, [data[batch.start - start :][: batch.size] for batch in batches]


class _Envelope(msgspec.Struct, gc=False):
    event_type: str
    timestamp: str


_decode_lines = msgspec.json.Decoder(_Envelope).decode_lines


def choose(request: Request, log: Log, statement: Statement, batch: Batch, member: bytes) -> Content | None:
    """Return a batch's events that a request chooses by time and type; None if there are none.

    Raises:
        FormatError: the batch differs from its statement.
    """
    try:
        payload = inflate_batch(batch, member)
    except FormatError as error:
        raise FormatError(f"batch {batch.number} differs from its statement: {error}") from None
    all_lines, offsets = payload.split(b"\n"), offsets_of(statement, batch)
    if all_lines.pop() or len(all_lines) != len(offsets):
        raise FormatError(
            f"batch {batch.number} of {log} has {len(all_lines)} lines for {counted(len(offsets), 'offset')}"
        )
    numbers = _numbers(request, statement, batch, payload, all_lines)
    if numbers is None:
        return Content(statement, batch, member, payload, all_lines, offsets, whole=True)
    if not numbers:
        return None
    chosen = [all_lines[number] for number in numbers], [offsets[number] for number in numbers]
    return Content(statement, batch, member, payload, *chosen, whole=len(numbers) == len(all_lines))


def _numbers(
    request: Request, statement: Statement, batch: Batch, payload: bytes, all_lines: Sequence[bytes]
) -> Sequence[int] | None:
    """Return the numbers of the chosen lines, counted from 0; None for all lines. Tables hold whole statements."""
    types = frozenset(request.types)
    inside = parse_time(batch.min_time) >= request.since and parse_time(batch.max_time) < request.until
    all_types = not types or statement.types.keys() <= types
    if request.target == "tables" or (inside and all_types):
        return None
    first, end = microseconds_of(request.since), microseconds_of(request.until)
    return [
        number
        for number, (kind, text) in enumerate(_envelopes(payload, all_lines))
        if (all_types or kind in types) and (inside or first <= _microseconds(text) < end)
    ]


def _envelopes(payload: bytes, all_lines: Sequence[bytes]) -> Iterator[tuple[str, Any]]:
    """Yield type and time of each line; the time as text, or as parsed by the slow path."""
    try:
        envelopes = _decode_lines(payload)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        envelopes = []
    if len(envelopes) == len(all_lines):
        yield from ((envelope.event_type, envelope.timestamp) for envelope in envelopes)
    else:
        yield from map(lines.check_line, all_lines)


def _microseconds(moment: str | lines.Time) -> int:
    """Return whole microseconds since 1970. Further digits do not matter, because the bounds have none."""
    parsed = lines.parse_time(moment) if isinstance(moment, str) else moment
    if parsed is None:
        raise FormatError(f"an event's time is {str(moment)[:60]!r}")
    return parsed.microseconds[0]
