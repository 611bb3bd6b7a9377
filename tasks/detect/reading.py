"""Reads archived events for detection: what is new, by position, and what is past, by time.

Statements count as they do for the index (`tasks.search.index`): trusted keys signed them, and their batches have the
stated bytes. One that is missing or damaged is named in the problems and passed over.

What is new is read in chunks, the oldest sealed statement of all logs first. A chunk has at most `MOST` events, unless
one statement has more, and no more time than rules in SQL take for one step.
"""

import heapq
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

import msgspec

from custody.archive.reader import Holds, find_tip, list_logs, read_manifest
from custody.archive.trusted import standing
from custody.errors import FormatError, ObjectArchived, ObjectMissing, counted
from custody.format import layout, lines
from custody.format.layout import Log
from custody.format.manifest import Manifest, Statement
from custody.format.members import inflate_batch
from custody.format.times import EPOCH, parse_time
from custody.keys.trust import Trust
from custody.store.ahead import AHEAD, call_ahead
from custody.store.protocol import Store, is_local
from custody.verify.work import work_of
from tasks.detect.listed import SHARE, Listed
from tasks.detect.memory import SPAN
from tasks.detect.positions import Late
from tasks.detect.state import REBUILD
from tasks.detect.views import Events, plain
from tasks.search.following import New, read_new, read_segment

MOST: Final = 100_000
"""Events of a chunk. They and what DuckDB makes of them take about half a gigabyte."""
CLOCKS: Final = timedelta(hours=1)
"""How far the clock of who emits an event may be ahead of the drain's."""
_EPOCH: Final = plain(EPOCH)
_APART: Final = timedelta(minutes=10)
"""Late events that are nearer to each other are looked at together."""


@dataclass(slots=True)
class Chunk:
    """New events, in one step.

    Attributes:
        events: the events.
        positions: of each log that was read, the sequence of the next statement.
        until: the newest time of an event that is known then; None before the first one.
        sealed_at: when the newest statement was sealed.
        late: times of events that came late.
        too_late: how many came so late that nobody looks at their time again.
    """

    until: datetime | None
    events: Events = field(default_factory=Events)
    positions: dict[str, int] = field(default_factory=dict)
    sealed_at: datetime | None = None
    late: list[Late] = field(default_factory=list)
    too_late: int = 0


@dataclass(frozen=True, slots=True, order=True)
class Past:
    """A statement with events of a range of time: their first and last time, and how many there are."""

    first: datetime
    last: datetime
    log: Log
    sequence: int
    events: int = field(compare=False)


class Reading:
    """The events of an archive.

    Attributes:
        problems: statements that could not be read, by log and sequence.
    """

    def __init__(self, store: Store, archive: str, trust: Trust) -> None:
        """Set up. Reads nothing.

        Args:
            store: the archive.
            archive: its id.
            trust: the keys at hand.
        """
        self._store = store
        self.problems: dict[tuple[str, int], str] = {}
        self._holds = standing(store, archive, trust)

    def logs(self) -> list[Log]:
        """Return the archive's logs."""
        return list_logs(self._store)

    def since(self, moment: datetime) -> dict[str, int]:
        """Return where each log is to be read from to get all that was sealed since a time, as positions."""
        positions = {}
        logs = self.logs()
        ends = call_ahead(self._store, lambda log: find_tip(self._store, log, self._holds(log)).head.size, logs)
        for log, end in zip(logs, ends, strict=True):
            statements = self._back(log, end, moment)
            positions[str(log)] = min((sequence for sequence, _ in statements), default=end)
        return positions

    def chunks(
        self,
        positions: Mapping[str, int],
        until: datetime | None,
        *,
        slack: timedelta,
        late: timedelta,
        sealed_before: datetime | None = None,
    ) -> Iterator[Chunk]:
        """Yield what is new. Each chunk is read when it is asked for.

        Args:
            positions: of each log, the sequence of the next statement.
            until: the newest time of an event that is known.
            slack: how much older events may be, and are still in time.
            late: how much older events may be to be looked at again.
            sealed_before: only statements that were sealed before this time; all if None.

        Raises:
            StoreError: the store does not answer.
        """
        chunk, begun = Chunk(until), until
        for log, (statement, segment) in self._merged(positions):
            if sealed_before is not None and plain(parse_time(statement.sealed_at)) >= sealed_before:
                break
            newest = _newest(statement)
            full = chunk.events.count + sum(batch.events for batch in statement.batches) > MOST
            if chunk.events.count and (full or (begun and newest - begun > SPAN)):
                yield chunk
                until, begun = chunk.until, newest
                chunk = Chunk(until)
            begun = begun or newest
            self._add(chunk, log, statement, segment, None if until is None else (until - slack, until - late))
            chunk.until = newest if chunk.until is None else max(chunk.until, newest)
            chunk.positions[str(log)] = statement.sequence + 1
            sealed = plain(parse_time(statement.sealed_at))
            chunk.sealed_at = sealed if chunk.sealed_at is None else max(chunk.sealed_at, sealed)
            self._forgive(log, statement)
        if chunk.positions:
            yield chunk

    def past(self, positions: Mapping[str, int], since: datetime, until: datetime) -> list[Past]:
        """Return the statements with events of a time, those with the oldest events first.

        Args:
            positions: how far each log was read: later statements do not count.
            since: the first time.
            until: the time after the last one.
        """
        chosen = []
        named = ((layout.parse_log_text(name), end) for name, end in positions.items())
        for log, end in ((log, end) for log, end in named if log is not None):
            for sequence, statement in self._back(log, end, since - CLOCKS):
                if statement is None or not statement.batches:
                    continue
                first = min(plain(parse_time(batch.min_time)) for batch in statement.batches)
                last = max(plain(parse_time(batch.max_time)) for batch in statement.batches)
                if first < until and last >= since:
                    events = sum(batch.events for batch in statement.batches)
                    chosen.append(Past(first, last, log, sequence, events))
        return sorted(chosen)

    def read_past(self, past: Iterable[Past]) -> Events:
        """Return the events of statements. What cannot be read was a problem of the run that read it first."""
        chunk = Chunk(None)

        def read(each: Past) -> tuple[Log, New | None]:
            return each.log, read_new(self._store, each.log, each.sequence, self._holds(each.log), SHARE)

        for log, new in call_ahead(self._store, read, past):
            if new is not None:
                self._add(chunk, log, *new, None)
        return chunk.events

    def _merged(self, positions: Mapping[str, int]) -> Iterator[tuple[Log, New]]:
        """Yield the statements behind the positions, the oldest sealed first."""
        heap: list[tuple[str, str, Log, New]] = []

        def push(log: Log, new: New | None, unread: Mapping[int, str]) -> None:
            self.problems |= {(str(log), number): problem for number, problem in unread.items()}
            if new is not None:
                self._forgive(log, new.statement)
                heapq.heappush(heap, (new.statement.sealed_at, str(log), log, new))

        logs = self.logs()
        begins = [positions.get(str(log), 0) for log in logs]
        with ThreadPoolExecutor(AHEAD) as threads:

            def follow(log: Log, begin: int) -> Listed:
                return Listed(self._store, log, self._holds(log), begin, len(logs), threads)

            # In a folder several at once are not faster, and a listing may have all names of a long log in memory.
            with ThreadPoolExecutor(1 if is_local(self._store) else AHEAD) as pool:
                followed = dict(zip(logs, pool.map(follow, logs, begins), strict=True))
                first = pool.map(lambda log, begin: followed[log].next(begin), logs, begins)
                for log, begin, (new, unread) in zip(logs, begins, first, strict=True):
                    push(log, new, unread)
                    if begin and followed[log].last < 0:
                        self.problems[str(log), begin] = (
                            f"the state of detection says that {counted(begin, 'statement')} of {log} were read, but"
                            f" the log has fewer: find out who wrote it, and {REBUILD}"
                        )
            for name in positions.keys() - set(map(str, logs)):
                if positions[name]:
                    self.problems[name, positions[name]] = f"{name[:300]} is gone: run `custody verify`"
            while heap:
                _, _, log, new = heapq.heappop(heap)
                yield log, new
                push(log, *followed[log].next(new.statement.sequence + 1))

    def _forgive(self, log: Log, statement: Statement) -> None:
        """Remove problems that a signed statement explains: slots that it passes over, and segments that expired."""
        passed_over = range(statement.sequence - len(statement.passed_over), statement.sequence)
        expired = range(*statement.expired or (0, 0))
        for name, sequence in list(self.problems):
            if name == str(log) and (sequence in passed_over or sequence in expired):
                del self.problems[name, sequence]

    def _add(
        self,
        chunk: Chunk,
        log: Log,
        statement: Statement,
        segment: bytes | None,
        bounds: tuple[datetime, datetime] | None,
    ) -> None:
        """Add the events of a statement. What cannot be read becomes a problem.

        Args:
            chunk: gets the events.
            log: the log.
            statement: the statement.
            segment: the bytes of its segment, if they were read.
            bounds: events before the first time came late, and those before the second one too late.
        """
        if statement.segment is None:
            return
        work, where = work_of(statement, str(log)), (str(log), statement.sequence)
        try:
            data = segment if segment is not None else read_segment(self._store, statement.segment.key)
        except (FormatError, ObjectMissing, ObjectArchived) as error:
            self.problems[where] = f"sequence {statement.sequence} of {log}: {error}"
            return
        for batch in statement.batches:
            try:
                payload = inflate_batch(batch, data[batch.start : batch.start + batch.size])
            except FormatError as error:
                self.problems[where] = f"sequence {statement.sequence} of {log}, batch {batch.number}: {error}"
                continue
            chunk.events.add(work, batch, payload)
            if bounds is not None and plain(parse_time(batch.min_time)) < bounds[0]:
                _note_late(chunk, payload, *bounds)

    def _back(self, log: Log, end: int, since: datetime) -> Iterator[tuple[int, Statement | None]]:
        """Yield statements before a sequence, the newest first, until a number in a row were sealed before a time.

        A wrong clock may have sealed an old one among recent ones. Slots without a statement yield None.
        """
        holds = self._holds(log)
        with ThreadPoolExecutor(AHEAD) as threads:
            for high in range(end, 0, -AHEAD):
                sequences = range(high - 1, max(high - AHEAD, 0) - 1, -1)
                several = list(threads.map(lambda sequence: _statement(self._store, log, sequence, holds), sequences))
                recent = [each is not None and plain(parse_time(each.sealed_at)) >= since for each in several]
                last = max((at for at, is_recent in enumerate(recent) if is_recent), default=-1)
                yield from zip(sequences[: last + 1], several[: last + 1], strict=True)
                if last < 0:
                    return


def merged(late: Iterable[Late]) -> tuple[Late, ...]:
    """Return times of late events in order, those near to each other as one."""
    joined: list[Late] = []
    for each in sorted(late, key=lambda each: each.first):
        if joined and each.first - joined[-1].last <= _APART:
            joined[-1] = Late(joined[-1].first, max(joined[-1].last, each.last))
        else:
            joined.append(each)
    return tuple(joined)


def _statement(store: Store, log: Log, sequence: int, holds: Holds[Manifest]) -> Statement | None:
    try:
        return read_manifest(store, log, sequence, holds).statement
    except (FormatError, ObjectMissing):
        return None


def _newest(statement: Statement) -> datetime:
    """Return the newest time of an event that is known with a statement. What lies behind its own time is not believed.

    Without an event, nothing happened until it was sealed.
    """
    sealed = parse_time(statement.sealed_at)
    times = [parse_time(batch.max_time) for batch in statement.batches]
    return plain(min(max(times), sealed) if times else sealed)


class _Timed(msgspec.Struct):
    timestamp: str


_timed: msgspec.json.Decoder[_Timed] = msgspec.json.Decoder(_Timed)


def _note_late(chunk: Chunk, payload: bytes, slack: datetime, late: datetime) -> None:
    """Note the times of events of a batch that came late."""
    seconds: set[int] = set()
    for line in payload.splitlines():
        try:
            time = lines.parse_time(_timed.decode(line).timestamp)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            continue
        if time is None:
            continue
        moment = _EPOCH + timedelta(seconds=time.seconds)
        if moment < late:
            chunk.too_late += 1
        elif moment < slack:
            seconds.add(time.seconds)
    moments = (_EPOCH + timedelta(seconds=each) for each in seconds)
    chunk.late = [*merged([*chunk.late, *(Late(moment, moment + timedelta(seconds=1)) for moment in moments)])]
