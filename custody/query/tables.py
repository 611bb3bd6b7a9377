"""Events as columns: the Arrow schema that follows from `events.py`, batches as Arrow tables, and the names of files.

Files lie under `tables/`, hive-partitioned by the day on which their statements were sealed, one for a log and a range
of statements (a large range has several). They are made from the archive, can be made again, and are no evidence: a
field that no type names is not among the columns, and one whose type is not its column's is null.
"""

import functools
import json
import operator
import re
import types
import typing
from array import array
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from operator import attrgetter
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from custody.format import layout, lines
from custody.format.events import EVENT_TYPES
from custody.format.manifest import Batch
from custody.format.offsets import line_offsets
from custody.verify.work import Work

TABLES = "tables/"
SIGNED = f"{TABLES}signed/"
"""Lists of the files of a range, signed: names of files say nothing to who may write there."""
ROW_GROUP = 32_768
"""Rows of a file that are sorted, and held in memory, at a time."""

_FILE = re.compile(
    r"tables/day=(?P<day>[0-9]{4}-[0-9]{2}-[0-9]{2})/(?P<log>.+)-(?P<partition>[0-9]{1,10})-(?P<first>[0-9]{12})"
    r"-(?P<end>[0-9]{12})-(?P<number>[0-9]+)of(?P<total>[0-9]+)-(?P<digest>[0-9a-f]{16})\.parquet"
)
_LIST = re.compile(
    r"tables/signed/(?P<log>.+)-(?P<partition>[0-9]{1,10})-(?P<first>[0-9]{12})-(?P<end>[0-9]{12})-[0-9a-f]{16}\.json"
)
_LONGEST = 21
_TIME = pa.timestamp("us")
_ZONED = pa.timestamp("us", tz="UTC")


def _arrow_type(annotation: Any) -> tuple[pa.DataType, Any]:
    """Return the column's type for a field of an event, and the Python type that it is decoded as."""
    while typing.get_origin(annotation) is typing.Annotated:
        annotation = typing.get_args(annotation)[0]
    if typing.get_origin(annotation) in {typing.Union, types.UnionType}:
        return _arrow_type(next(one for one in typing.get_args(annotation) if one is not type(None)))
    if typing.get_origin(annotation) is typing.Literal or annotation is str:
        return pa.string(), str
    if annotation in {bool, int, float}:
        return {bool: pa.bool_(), int: pa.int64(), float: pa.float64()}[annotation], annotation
    # Lists and objects are kept as JSON.
    return pa.string(), msgspec.Raw


def _fields() -> dict[str, tuple[pa.DataType, Any]]:
    found: dict[str, tuple[pa.DataType, Any]] = {"event_type": (pa.string(), str)}
    for kind in EVENT_TYPES.values():
        for name, annotation in typing.get_type_hints(kind, include_extras=True).items():
            if not name.startswith("_"):
                found.setdefault(name, _arrow_type(annotation))
    del found["timestamp"]
    return found


FIELDS = _fields()
"""The columns that come from fields of events: name, Arrow type, Python type."""

SCHEMA = pa.schema(
    [
        pa.field("time", _TIME),
        pa.field("topic", pa.string()),
        pa.field("partition", pa.int32()),
        pa.field("offset", pa.int64()),
        pa.field("batch", pa.int64()),
        pa.field("log", pa.string()),
        pa.field("sequence", pa.int64()),
        *(pa.field(name, type_) for name, (type_, _) in FIELDS.items()),
    ]
)
"""All columns. Times are UTC, and their type does not say so: DuckDB cuts those to minutes ten times as fast. `log` and
`sequence` lead to the statement, `batch` and `offset` to the evidence of an event."""


def _loose(name: str, kind: Any) -> tuple[str, Any, Any]:
    return (name, kind, msgspec.Raw(b"")) if kind is msgspec.Raw else (name, kind | None, None)


def _struct(tag: str, kind: type) -> Any:
    """Return a type's fields as they are decoded for columns: what is no text or number stays JSON."""
    names = [name for name in kind.__struct_fields__ if name != "timestamp"]  # type: ignore[attr-defined]
    fields: list[Any] = [("timestamp", str), *(_loose(name, FIELDS[name][1]) for name in names)]
    return msgspec.defstruct(f"_{kind.__name__}", fields, tag=tag, tag_field="event_type", gc=False)


_STRUCTS = {name: _struct(name, kind) for name, kind in EVENT_TYPES.items()}
_Other = msgspec.defstruct("_Other", [("timestamp", str), *(_loose(name, one) for name, (_, one) in FIELDS.items())])
"""An event that is none of the six types, or has fields of other types than theirs."""

_NAMES = {kind: name for name, kind in _STRUCTS.items()}
_KINDS: dict[type, list[str]] = {
    kind: [name for name in kind.__struct_fields__ if name != "timestamp"] for kind in (*_STRUCTS.values(), _Other)
}
_decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(functools.reduce(operator.or_, _STRUCTS.values()))


_REPEATING = [
    *("event_type", "topic", "log", "api_key_id", "status", "failure_reason", "resource_type", "field_name"),
    *("operation", "tier", "severity", "alert_type", "action_taken", "resource", "changed_by", "approval_status"),
]


@dataclass(frozen=True, slots=True)
class TableFile:
    """What the key of a file says."""

    key: str
    day: str
    log: layout.Log
    first: int
    end: int
    """Statements `[first, end)`."""
    number: int
    """Of the files of that range, from 1 on."""
    total: int
    digest: str


def open_file(path: str) -> Any:
    """Return a writer of Parquet as our files are: zstd, statistics, dictionaries where values repeat."""
    return pq.ParquetWriter(path, SCHEMA, compression="zstd", compression_level=1, use_dictionary=_REPEATING)


def table_key(log: layout.Log, day: str, first: int, end: int, number: int, total: int, data: bytes) -> str:
    """Return the key of a file of a range; it holds a digest of the bytes."""
    digest = sha256(data).hexdigest()[:16]
    return f"{TABLES}day={day}/{log.name}-{log.partition}-{first:012}-{end:012}-{number}of{total}-{digest}.parquet"


def parse_table_key(key: str) -> TableFile | None:
    """Return what the key of a file says, None if it is none of ours."""
    match = _FILE.fullmatch(key)
    log = layout.parse_log(match["log"], int(match["partition"])) if match else None
    if match is None or log is None:
        return None
    first, end, number, total = (int(match[name]) for name in ("first", "end", "number", "total"))
    return TableFile(key, match["day"], log, first, end, number, total, match["digest"])


def list_key(log: layout.Log, first: int, end: int, data: bytes) -> str:
    """Return the key of the signed list of a range's files; it holds a digest of the bytes."""
    return f"{SIGNED}{log.name}-{log.partition}-{first:012}-{end:012}-{sha256(data).hexdigest()[:16]}.json"


def parse_list_key(key: str) -> tuple[layout.Log, int, int] | None:
    """Return log and range `[first, end)` of a signed list, None if the key is none of one."""
    match = _LIST.fullmatch(key)
    log = layout.parse_log(match["log"], int(match["partition"])) if match else None
    return (log, int(match["first"]), int(match["end"])) if match and log else None


def whole_ranges(keys: Iterable[str]) -> Iterator[list[TableFile]]:
    """Yield the files of each range that has all of its files, ranges that overlap a longer earlier one left out."""
    ranges: dict[tuple[layout.Log, int, int], dict[int, TableFile]] = {}
    for file in filter(None, map(parse_table_key, keys)):
        ranges.setdefault((file.log, file.first, -file.end), {}).setdefault(file.number, file)
    reached: dict[layout.Log, int] = {}
    for (log, first, end), files in sorted(ranges.items(), key=lambda one: one[0]):
        total = next(iter(files.values())).total
        if sorted(files) == list(range(1, total + 1)) and first >= reached.get(log, 0):
            reached[log] = -end
            yield [files[number] for number in sorted(files)]


class Rows:
    """Events of one log on their way into a table."""

    def __init__(self, log: layout.Log) -> None:
        self._log = log
        self._kinds: dict[type, _Kind] = {}
        self.count = 0

    def add(self, work: Work, batch: Batch, payload: bytes) -> None:
        """Take a batch: JSON lines, each an event."""
        try:
            rows = _decoder.decode_lines(payload)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            rows = [_row(line) for line in payload.split(b"\n")[:-1]]
        kinds = self._kinds
        # Only a wrong statement leaves its lines no offset of 64 bits. Verification reports it; here they are no rows.
        with suppress(OverflowError):
            for row, offset in zip(rows, line_offsets(batch, work.unlined), strict=False):
                kind = type(row)
                if kind not in kinds:
                    kinds[kind] = _Kind(array("q"), array("q"), array("q"), [])
                held = kinds[kind]
                held.offsets.append(offset)
                held.rows.append(row)
        for held in kinds.values():
            more = len(held.rows) - len(held.batches)
            held.batches.extend([batch.number] * more)
            held.sequences.extend([work.sequence] * more)
            self.count += more

    def take(self) -> Any:
        """Return what was taken as a table sorted by time, and begin anew."""
        tables = [self._table(kind, held) for kind, held in self._kinds.items()]
        self._kinds, self.count = {}, 0
        whole = pa.concat_tables(tables) if tables else SCHEMA.empty_table()
        return whole.take(pc.sort_indices(whole, sort_keys=[("time", "ascending"), ("offset", "ascending")]))

    def _table(self, kind: type, held: "_Kind") -> Any:
        rows, count = held.rows, len(held.rows)
        names = _KINDS[kind]
        known = {
            "time": _times([row.timestamp for row in rows]),
            "topic": pa.repeat(pa.scalar(self._log.topic), count),
            "partition": pa.repeat(pa.scalar(self._log.partition, pa.int32()), count),
            "offset": pa.array(held.offsets, pa.int64()),
            "batch": pa.array(held.batches, pa.int64()),
            "log": pa.repeat(pa.scalar(str(self._log)), count),
            "sequence": pa.array(held.sequences, pa.int64()),
        }
        if kind in _NAMES:
            known["event_type"] = pa.repeat(pa.scalar(_NAMES[kind]), count)
        for name in names:
            type_, decoded = FIELDS[name]
            known[name] = _column(list(map(attrgetter(name), rows)), type_, decoded)
        columns = [known[name] if name in known else pa.nulls(count, SCHEMA.field(name).type) for name in SCHEMA.names]
        return pa.Table.from_arrays(columns, schema=SCHEMA)


@dataclass(slots=True)
class _Kind:
    """Rows of one type."""

    offsets: "array[int]"
    batches: "array[int]"
    sequences: "array[int]"
    rows: list[Any]


def _column(values: list[Any], type_: Any, decoded: Any) -> Any:
    if decoded is msgspec.Raw:
        values = [bytes(value).decode() or None for value in values]
    try:
        return pa.array(values, type_)
    except (pa.ArrowInvalid, OverflowError, UnicodeEncodeError):
        return pa.array(list(map(_held, values)), type_)


def _held(value: Any) -> Any:
    """Return a value that a column holds: an integer of 64 bits, text without half a character."""
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    return value if not isinstance(value, int) or abs(value) < 1 << 63 else None


def _times(texts: list[str]) -> Any:
    try:
        return pa.array(texts, pa.string()).cast(_ZONED).cast(_TIME)
    except pa.ArrowInvalid:
        # More digits than microseconds have, or no time at all.
        found = [lines.parse_time(text) for text in texts]
        return pa.array([time.microseconds[0] if time else None for time in found], pa.int64()).cast(_TIME)


def _row(line: bytes) -> Any:
    """Return a line as a row; of one that is none of the types as they are defined, with what fits its columns."""
    try:
        return _decoder.decode(line)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        pass
    try:
        # Numbers may be of any size, and Python refuses to convert the longest.
        fields = json.loads(line, parse_int=lambda text: int(text) if len(text) < _LONGEST else None)
    except (ValueError, RecursionError):
        fields = {}
    kept: dict[str, Any] = {}
    for name, (_, kind) in FIELDS.items():
        value = fields.get(name)
        if kind is msgspec.Raw:
            kept[name] = msgspec.Raw(json.dumps(value).encode() if name in fields else b"")
        elif isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
            kept[name] = value
    timestamp = fields.get("timestamp")
    return _Other(timestamp if isinstance(timestamp, str) else "", **kept)
