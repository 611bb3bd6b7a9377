"""Turns one log's records, in order of their offsets, into entries for its statements. No I/O.

Rules of the state machine. `position` is the first offset that is not accounted for.

1. `add` takes records at consecutive offsets from `position` on. Offsets without a record must be accounted for first,
   by `skip`, `admit` or `lose`. Otherwise the records are refused, because nothing may be dropped.
2. Records are checked at once and not kept: their keys and headers may be large, and are not counted as held.
   Events are collected until they fill a batch. A batch ends at `batch_events` events or at `CUT_BYTES`, whichever
   comes first, and is compressed at once to save memory.
3. A record that is not a valid event goes to quarantine with its reason, and keeps its offset. If it is too large, its
   largest parts are left out, and their size and SHA-256 are kept. An event whose type would be one more than a
   statement may name waits for the next statement.
4. `skip` notes offsets that have no record for a read-committed consumer.
5. `admit` notes offsets of a batch that no client can decode.
6. `lose` notes offsets that the broker deleted. A statement begins with them, so earlier offsets must be cut first.
7. `cut` closes the open batch and returns the entry from the last cut to `position`.

Memory is bounded: `full` asks for a cut at `segment_bytes` of JSONL, and before any limit of the format is reached.
"""

import gc
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Literal, Protocol

import msgspec

from custody.archive.writer import Entry
from custody.format import limits, members
from custody.format.events import Checked, check, join
from custody.format.leaves import LeafMaker, OpenLeaves
from custody.format.manifest import Batch, KafkaTime, Unreadable
from custody.format.quarantine import encode_quarantined
from custody.format.times import format_us

CUT_BYTES = limits.BATCH_BYTES // 4
"""A batch of more than one event ends at about this size."""
RANGES = 20_000
"""Skipped or quarantined ranges in a statement; the format's limit is 50,000 each."""
BATCHES = 5_000
"""Batches in a statement: less than 700 bytes each, which leaves room for the ranges in the format's limit of 8 MiB."""
CUT_QUARANTINE_BYTES = 16 * limits.MIB
"""Bytes of quarantine lines in a statement, without the last line; the format's limits are far above."""
REASON_CHARACTERS = 1_000
"""Characters of a quarantined record's `error`: a reason may quote the value, which may be large."""

Ranges = list[tuple[int, int]]
TIME_NOT_AVAILABLE, TIME_CREATE, TIME_APPEND = 0, 1, 2
"""librdkafka's kinds of timestamp."""
_NO_TIME = -1
"""The timestamp from a producer that sets none."""
_NO_EPOCH = -1
"""librdkafka's leader epoch if the broker names none."""


class Record(Protocol):
    """A Kafka record, such as confluent-kafka's Message."""

    def offset(self) -> int:
        """Its offset."""

    def value(self) -> bytes | None:
        """Its value, None for a tombstone."""

    def key(self) -> bytes | None:
        """Its key."""

    def headers(self) -> list[tuple[str, bytes | None]] | None:
        """Its headers."""

    def timestamp(self) -> tuple[int, int]:
        """The kind of its time, and the time in ms since 1970."""

    def leader_epoch(self) -> int | None:
        """The leader epoch in which it was written; None or -1 if the broker names none."""


class RecordApart(msgspec.Struct, array_like=True, tag=True, frozen=True):
    """A record that was read in another process. Unless it is an event, value, key and headers are in `line` alone."""

    at: int
    stamp: tuple[int, int]
    epoch: int | None
    content: bytes | None
    line: bytes | None
    """Its line in a quarantine object."""

    def offset(self) -> int:
        """Its offset."""
        return self.at

    def value(self) -> bytes | None:
        """The event; None for any other record."""
        return self.content

    def key(self) -> None:
        """None: a record with a key that is kept has a line."""

    def headers(self) -> None:
        """None, as the key."""

    def timestamp(self) -> tuple[int, int]:
        """The kind of its time, and the time in ms since 1970."""
        return self.stamp

    def leader_epoch(self) -> int | None:
        """The leader epoch in which it was written."""
        return self.epoch


class Assembler:
    """Collects what one log received since the last cut.

    Attributes:
        position: the first offset that is not accounted for.
        first_record: the first record since the last cut; None without one.
        dense: whether batches take more time for fewer bytes from now on. The open batch is compressed as it ends.
    """

    def __init__(
        self,
        position: int,
        *,
        batch_events: int,
        segment_bytes: int,
        level: int,
        dense: bool = False,
        number: Callable[[], int] = lambda: 0,
        leaves: LeafMaker | None = None,
        own_types: bool = True,
    ) -> None:
        """Begin at an offset.

        Args:
            position: first offset that is not accounted for.
            batch_events: events in a batch.
            segment_bytes: bytes of JSONL after which `full` asks for a cut.
            level: isal's compression level.
            dense: begin with dense batches, which have no level.
            number: returns the number of the first batch (`LogWriter.next_batch`), which may cost reads of the archive.
                It is called once: when the first batch is closed, or with `leaves` when it begins. Later batches are
                numbered from there. The default is right for a log without batches.
            leaves: commits to each event of a batch; with None, `Batch.leaves` is null.
            own_types: whether events of other types than the six are taken.
        """
        self.position = position
        self._batch_events = batch_events
        self._segment_bytes = segment_bytes
        self._level = level
        self.dense = dense
        self._first_number = number
        self._number: int | None = None
        self._leaves = leaves
        self._own_types = own_types
        self._begin()

    def _begin(self) -> None:
        self._start = self.position
        self._lost: tuple[int, int] | None = None
        self._skipped: Ranges = []
        self._unreadable: list[Unreadable] = []
        self.first_record: Record | None = None
        self._last_record = 0
        self._leader_epoch: int | None = None
        self._members: list[bytes] = []
        self._batches: list[Batch] = []
        self._types: Counter[str] = Counter()
        self._type_names: set[str] = set()
        self._stored = 0
        self._inflated = 0
        self._quarantine: list[bytes] = []
        self._quarantine_bytes = 0
        self._quarantined: Ranges = []
        self._begin_batch()

    def _begin_batch(self) -> None:
        self._open: list[Checked] = []
        self._open_events = 0
        self._open_bytes = 0
        self._open_from = 0
        self._open_to = 0
        self._open_leaves: OpenLeaves | None = None
        self._times: set[tuple[int, int]] = set()

    @property
    def is_empty(self) -> bool:
        """Whether nothing was received, skipped or lost since the last cut."""
        return self.position == self._start

    @property
    def has_records(self) -> bool:
        """Whether there are records, lost or unreadable offsets, which should be written before the run ends."""
        return self.first_record is not None or self.has_gaps

    @property
    def has_gaps(self) -> bool:
        """Whether there are lost or unreadable offsets, which Kafka may not show again."""
        return self._lost is not None or bool(self._unreadable)

    @property
    def held_bytes(self) -> int:
        """Bytes of memory that the next cut frees, approximately."""
        return self._stored + self._open_bytes + self._quarantine_bytes

    @property
    def full(self) -> bool:
        """Whether it is time to cut."""
        return (
            self._inflated + self._open_bytes >= self._segment_bytes
            or len(self._batches) >= BATCHES
            or self._quarantine_bytes >= CUT_QUARANTINE_BYTES
            or len(self._skipped) >= RANGES
            or len(self._quarantined) >= RANGES
            or len(self._unreadable) >= limits.UNREADABLE_RANGES
            or len(self._type_names) >= limits.TYPES
        )

    def add(self, records: Sequence[Record]) -> int:
        """Add records at consecutive offsets, the first at `position`. All must be of the same class.

        Returns:
            How many were taken: all, unless the quarantine or the list of types is full, and the rest must wait for
            the next statement.

        Raises:
            ValueError: there is a gap that the caller has not accounted for.
        """
        first, last = records[0].offset(), records[-1].offset()
        if first != self.position or last - first != len(records) - 1:
            raise ValueError(f"offsets {first} to {last} do not join at {self.position}: the gap is not accounted for")
        # Mapping the class's function over a list takes two thirds of the time of method calls.
        values = list(map(type(records[0]).value, records))
        if self.first_record is None:
            self.first_record = records[0]
        taken = self._gather(records, values)
        self.position = first + taken
        self._last_record = self.position - 1
        self._leader_epoch = records[taken - 1].leader_epoch()
        return taken

    def skip(self, to: int) -> None:
        """Note that there are no records for a read-committed consumer from `position` to `to`."""
        _merge(self._skipped, self.position, to)
        self.position = to

    def admit(self, to: int, error: str) -> None:
        """Note that the broker holds the offsets from `position` to `to`, and that no client can decode them."""
        error = error.encode("ascii", "replace")[: limits.UNREADABLE_ERROR].decode()
        last = self._unreadable[-1] if self._unreadable else None
        if last is not None and (last.to, last.error) == (self.position, error):
            self._unreadable[-1] = Unreadable(last.from_, to, error)
        else:
            self._unreadable.append(Unreadable(self.position, to, error))
        self.position = to

    def lose(self, to: int) -> None:
        """Note that the broker deleted the records from `position` to `to`. Allowed only right after a cut."""
        if not self.is_empty:
            raise ValueError("a loss starts a statement: cut first")
        self._lost = (self.position, to)
        self.position = to

    def cut(self) -> Entry:
        """Close the open batch, and return the entry from the last cut to `position`."""
        self._close_batch()
        lines = b"".join(self._quarantine)
        quarantine = members.pack(lines, self._level, dense=self.dense) if lines else None
        # Compared with None, because a message without a value is false.
        first = self.first_record
        kind, stamp = first.timestamp() if first is not None else (TIME_NOT_AVAILABLE, -1)
        entry = Entry(
            first_offset=self._start,
            next_offset=self.position,
            skipped=self._skipped,
            lost=self._lost,
            unreadable=self._unreadable,
            members=self._members,
            batches=self._batches,
            types=self._types,
            quarantine=quarantine.data if quarantine else None,
            quarantine_inflated=quarantine.inflated if quarantine else 0,
            quarantined=self._quarantined,
            first_record=first.offset() if first is not None else 0,
            last_record=self._last_record,
            leader_epoch=None if self._leader_epoch in {None, _NO_EPOCH} else self._leader_epoch,
            first_record_ms=None if kind == TIME_NOT_AVAILABLE else stamp,
        )
        self._begin()
        return entry

    def _gather(self, records: Sequence[Record], values: Sequence[bytes | None]) -> int:
        """Put records into the open batch, close it whenever it is full, and return how many were put."""
        done = 0
        while done < len(records) and (not done or not self._no_room):
            chunk = values[done : done + self._batch_events - self._open_events]
            room = CUT_BYTES - self._open_bytes
            size = _size(chunk)
            if size > room:
                # Take as many as fit, and at least one. If none fits, the open batch is closed first.
                fitting = bisect_right(list(accumulate(len(value or b"") + 1 for value in chunk)), room)
                chunk = chunk[: max(1, fitting)]
                if not fitting and self._open_events:
                    self._close_batch()
                    continue
            done += self._take(records[done : done + len(chunk)], chunk)
            if self._open_events >= self._batch_events or self._open_bytes >= CUT_BYTES:
                self._close_batch()
        return done

    @property
    def _no_room(self) -> bool:
        """Whether a statement has no room for more quarantined records, or for another type."""
        return self._quarantine_bytes >= CUT_QUARANTINE_BYTES or len(self._type_names) >= limits.TYPES

    def _check(self, values: Sequence[bytes | None]) -> tuple[Checked, int]:
        """Return the verdict on as many values as the statement has room for types, and their number."""
        taken = len(values)
        while True:
            checked = check(values[:taken], lines=self._leaves is not None, own_types=self._own_types)
            if len(self._type_names) + len(checked.types) <= limits.TYPES:
                return checked, taken
            # A single event adds one type, for which there is room while the list is not full.
            if taken == 1 or len(self._type_names.union(checked.types)) <= limits.TYPES:
                return checked, taken
            taken //= 2

    def _take(self, records: Sequence[Record], values: Sequence[bytes | None]) -> int:
        checked, taken = self._check(values)
        if checked.refused:
            for index, reason in checked.refused:
                self._put_aside(records[index], values[index], reason)
                if self._quarantine_bytes >= CUT_QUARANTINE_BYTES:
                    checked, taken = self._check(values[: index + 1])
                    break
            refused = dict(checked.refused)
            records = [record for index, record in enumerate(records[:taken]) if index not in refused]
        elif taken < len(records):
            records = records[:taken]
        if not checked.events:
            return taken
        self._type_names.update(checked.types)
        if not self._open_events:
            self._open_from = records[0].offset()
        if self._leaves is not None:
            if self._open_leaves is None:
                self._open_leaves = self._leaves.begin(self._next_number(), self._batch_events)
            # At once, while the lines are in the CPU's cache; then they are dropped.
            self._open_leaves.add(checked.lines)
            checked = replace(checked, lines=())
        self._open_to = records[-1].offset() + 1
        self._open.append(checked)
        self._open_events += checked.events
        self._open_bytes += len(checked.payload)
        # Records come nearly sorted. Of those that all have a time of one kind, the outermost are enough.
        times = sorted(map(type(records[0]).timestamp, records))
        (kind, stamp), last = times[0], times[-1]
        self._times.update((times[0], last) if kind == last[0] and stamp >= 0 else times)
        return taken

    def _put_aside(self, record: Record, value: bytes | None, reason: str) -> None:
        offset, line = record.offset(), quarantine_line(record, value, reason)
        self._quarantine.append(line + b"\n")
        self._quarantine_bytes += len(line) + 1
        _merge(self._quarantined, offset, offset + 1)

    def _close_batch(self) -> None:
        if not self._open_events:
            return
        whole = self._open[0] if len(self._open) == 1 else join(self._open)
        member = members.pack(whole.payload, self._level, dense=self.dense)
        number = self._next_number()
        self._number = number + 1
        self._members.append(member.data)
        self._batches.append(
            Batch(
                number=number,
                first_offset=self._open_from,
                next_offset=self._open_to,
                events=whole.events,
                start=self._stored,
                size=len(member.data),
                inflated=member.inflated,
                sha256=member.sha256,
                min_time=format_us(whole.earliest),
                max_time=format_us(whole.latest),
                kafka_time=self._kafka_time(),
                leaves=self._open_leaves.end() if self._open_leaves else None,
            )
        )
        self._types.update(whole.types)
        self._stored += len(member.data)
        self._inflated += member.inflated
        self._begin_batch()

    def _next_number(self) -> int:
        if self._number is None:
            self._number = self._first_number()
        return self._number

    def _kafka_time(self) -> KafkaTime | None:
        times = [(stamp, kind) for kind, stamp in self._times if kind != TIME_NOT_AVAILABLE and stamp >= 0]
        if not times:
            return None
        kinds = {kind for _, kind in times}
        name: Literal["create", "append", "mixed"] = (
            "mixed" if len(kinds) > 1 else "append" if TIME_APPEND in kinds else "create"
        )
        return KafkaTime(name, min(times)[0], max(times)[0])


def written_at(record: Record) -> float | None:
    """Return a record's Kafka timestamp in seconds since 1970; None if it has none."""
    kind, stamp = record.timestamp()
    return None if kind == TIME_NOT_AVAILABLE or stamp == _NO_TIME else stamp / 1000


def quarantine_line(record: Record, value: bytes | None, reason: str) -> bytes:
    """Return a record's line in a quarantine object, without its newline.

    Args:
        record: the record.
        value: its value.
        reason: why it is no event.
    """
    if isinstance(record, RecordApart) and record.line is not None:
        return record.line
    kind, stamp = record.timestamp()
    reason = reason[:REASON_CHARACTERS]
    try:
        headers: Sequence[tuple[str, bytes | None]] = record.headers() or []
        readable = _has_all_names(headers)
    except (SystemError, UnicodeDecodeError):
        readable = False
    if not readable:
        # Kafka allows a name that is not UTF-8, but the client cannot read it.
        headers = []
        reason += "; its headers are left out, since a name among them is not UTF-8"
    timestamp = None if kind == TIME_NOT_AVAILABLE or stamp == _NO_TIME else stamp
    return encode_quarantined(record.offset(), timestamp, record.key(), value, headers, reason)


def _has_all_names(headers: Sequence[tuple[str, bytes | None]]) -> bool:
    """Return whether each header of a record has its name. Accessing a missing name crashes the process.

    confluent-kafka leaves the name out if it is not UTF-8. Python up to 3.11 may lose the exception for this in a
    garbage collection, or raise it a call later.
    """
    return all(len(gc.get_referents(header)) == 2 for header in headers)


def _size(values: Sequence[bytes | None]) -> int:
    try:
        return sum(map(len, values))  # type: ignore[arg-type]
    except TypeError:
        return sum(len(value) for value in values if value is not None)


def _merge(ranges: Ranges, start: int, stop: int) -> None:
    """Add a range after all others, and join it to the last one if they touch."""
    if ranges and ranges[-1][1] == start:
        ranges[-1] = (ranges[-1][0], stop)
    else:
        ranges.append((start, stop))
