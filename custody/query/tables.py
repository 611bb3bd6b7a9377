"""Events as columns: the Arrow schema, made from `events.py`, batches as Arrow tables, and the names of Parquet files.

Files are under `tables/`, hive-partitioned by the day on which their statements were sealed. Each is for one log and a
range of statements; a large range has several. They are made from the archive and can be made again, so they are no
evidence. A field that no event type has gets no column. A value that does not have its column's type is null. An event
of an own type is whole in the column `event`, as JSON.

A file's name proves nothing: anyone who can write there chooses it. So a signed note (`custody.archive.signed_notes`,
over `custody/tables/1`) lists the files of a range, with their digests.
"""

import functools
import json
import operator
import re
import types
import typing
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from operator import attrgetter
from typing import Any, Literal

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from custody.archive import signed_notes
from custody.errors import CustodyError, FormatError, ObjectMissing, SignatureInvalid
from custody.format import layout, lines, sources
from custody.format.events import EVENT_TYPES
from custody.format.manifest import Batch
from custody.format.offsets import line_offsets
from custody.keys.trust import Trust
from custody.store.protocol import Store
from custody.verify.work import Work

TABLES = "tables/"
SIGNED = f"{TABLES}signed/"
"""Signed lists of the files of a range."""
LIST_FORMAT: Literal["custody/tables/1"] = "custody/tables/1"
FILE_LIMIT = 128 * 1_048_576
"""Larger than any file that was ever put."""
ROW_GROUP = 32_768
"""How many rows are sorted, and kept in memory, at a time."""
ROW_BYTES = 32 * 1_048_576
"""How many bytes of events, approximately: an event may have 1 MiB, and its text is kept in two columns."""

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
        return _arrow_type(next(kind for kind in typing.get_args(annotation) if kind is not type(None)))
    if typing.get_origin(annotation) is typing.Literal or annotation is str:
        return pa.string(), str
    if annotation in {bool, int, float}:
        return {bool: pa.bool_(), int: pa.int64(), float: pa.float64()}[annotation], annotation
    # Lists and objects are kept as JSON.
    return pa.string(), msgspec.Raw


def _fields() -> dict[str, tuple[pa.DataType, Any]]:
    fields: dict[str, tuple[pa.DataType, Any]] = {"event_type": (pa.string(), str)}
    for kind in EVENT_TYPES.values():
        for name, annotation in typing.get_type_hints(kind, include_extras=True).items():
            if not name.startswith("_"):
                fields.setdefault(name, _arrow_type(annotation))
    del fields["timestamp"]
    return {**fields, **{name: (kind, msgspec.Raw) for name, (kind, _) in _EXTRA.items()}}


_EXTRA: dict[str, tuple[pa.DataType, Any]] = {
    sources.EVENT_ID: (pa.string(), sources.texts_of),
    sources.SOURCE: (pa.string(), sources.sources_of),
    sources.NUMBER: (pa.int64(), sources.numbers_of),
    "operation_type": (pa.string(), sources.texts_of),
}
"""Fields that events of any type may have, though none defines them: Arrow type, and what reads them from JSON."""


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
        pa.field("event", pa.string()),
    ]
)
"""All columns. Times are UTC, but their type has no zone: DuckDB truncates such times to minutes ten times as fast.
`log` and `sequence` identify the statement, `batch` and `offset` the event. `event` is the whole event as JSON if it is
of an own type, or breaks its type's rules; else NULL, because it would double a table's size."""


def _loose(name: str, kind: Any) -> tuple[str, Any, Any]:
    return (name, kind, msgspec.Raw(b"")) if kind is msgspec.Raw else (name, kind | None, None)


def _struct(tag: str, kind: type) -> Any:
    """Return the struct that an event type is decoded to. Fields that are not text or numbers stay JSON."""
    names = [name for name in kind.__struct_fields__ if name != "timestamp"]  # type: ignore[attr-defined]
    names += _EXTRA
    fields: list[Any] = [("timestamp", str), *(_loose(name, FIELDS[name][1]) for name in names)]
    return msgspec.defstruct(f"_{kind.__name__}", fields, tag=tag, tag_field="event_type", gc=False)


_STRUCTS = {name: _struct(name, kind) for name, kind in EVENT_TYPES.items()}
_Other = msgspec.defstruct(
    "_Other",
    [
        ("timestamp", str),
        *(_loose(name, kind) for name, (_, kind) in FIELDS.items()),
        _loose("event", msgspec.Raw),
    ],
    gc=False,
)
"""An event of an own type, or with a field of another type than its definition. `event` is set to its bytes."""

_NAMES = {kind: name for name, kind in _STRUCTS.items()}
_KINDS: dict[type, list[str]] = {
    kind: [name for name in kind.__struct_fields__ if name != "timestamp"] for kind in (*_STRUCTS.values(), _Other)
}
_decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(functools.reduce(operator.or_, _STRUCTS.values()))
_other_decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(_Other)
_HOSTILE = (msgspec.MsgspecError, ValueError, RecursionError)


REPEATING = [
    *("event_type", "topic", "log", "api_key_id", "status", "failure_reason", "resource_type", "field_name"),
    *("operation", "tier", "severity", "alert_type", "action_taken", "resource", "changed_by", "approval_status"),
    *(sources.SOURCE, "operation_type"),
]


@dataclass(frozen=True, slots=True)
class TableFile:
    """The parts of a file's key."""

    key: str
    day: str
    log: layout.Log
    first: int
    end: int
    """Statements `[first, end)`."""
    number: int
    """Which of the files of that range it is, from 1."""
    total: int
    digest: str


def open_file(path: str) -> Any:
    """Return a writer of a Parquet file, with zstd, statistics, and dictionaries for columns with repeating values."""
    return pq.ParquetWriter(path, SCHEMA, compression="zstd", compression_level=1, use_dictionary=REPEATING)


def table_key(log: layout.Log, day: str, first: int, end: int, number: int, total: int, data: bytes) -> str:
    """Return the key of a file of a range. It contains a digest of the bytes."""
    digest = sha256(data).hexdigest()[:16]
    return f"{TABLES}day={day}/{log.name}-{log.partition}-{first:012}-{end:012}-{number}of{total}-{digest}.parquet"


def parse_table_key(key: str) -> TableFile | None:
    """Return the parts of a file's key, None if it is not the key of such a file."""
    match = _FILE.fullmatch(key)
    log = layout.parse_log(match["log"], int(match["partition"])) if match else None
    if match is None or log is None:
        return None
    first, end, number, total = (int(match[name]) for name in ("first", "end", "number", "total"))
    return TableFile(key, match["day"], log, first, end, number, total, match["digest"])


def list_key(log: layout.Log, first: int, end: int, data: bytes) -> str:
    """Return the key of the signed list of a range's files. It contains a digest of the bytes."""
    return f"{list_prefix(log, first)}{end:012}-{sha256(data).hexdigest()[:16]}.json"


def list_prefix(log: layout.Log, first: int) -> str:
    """Return how the keys of the lists begin whose range begins with a statement of a log."""
    return f"{SIGNED}{log.name}-{log.partition}-{first:012}-"


def parse_list_key(key: str) -> tuple[layout.Log, int, int] | None:
    """Return log and range `[first, end)` of a signed list, None if it is not the key of such a list."""
    match = _LIST.fullmatch(key)
    log = layout.parse_log(match["log"], int(match["partition"])) if match else None
    return (log, int(match["first"]), int(match["end"])) if match and log else None


class TableRef(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A table file: its key, the SHA-256 of its bytes, and its number of events."""

    key: str
    sha256: str
    rows: int


class TableList(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """All table files of a log's statements `[first, end)`; line 1 of its object."""

    format: Literal["custody/tables/1"]
    archive: str
    log: str
    first: int
    end: int
    sealed_at: str
    files: list[TableRef]


@dataclass(frozen=True, slots=True)
class Listed:
    """The names in `tables/`: the files of each log, and the keys of lists by log, first and end."""

    files: Mapping[layout.Log, Sequence[TableFile]]
    lists: Mapping[tuple[layout.Log, int, int], Sequence[str]]


def list_tables(store: Store) -> Listed:
    """List all tables of the archive.

    Raises:
        StoreError: the archive cannot be listed.
    """
    files: dict[layout.Log, list[TableFile]] = {}
    lists: dict[tuple[layout.Log, int, int], list[str]] = {}
    for info in store.list(TABLES):
        if file := parse_table_key(info.key):
            files.setdefault(file.log, []).append(file)
        elif parsed := parse_list_key(info.key):
            lists.setdefault(parsed, []).append(info.key)
    return Listed(files, lists)


def signed_files(
    store: Store, listed: Listed, archive: str, log: layout.Log, first: int, end: int, trust: Trust
) -> tuple[Mapping[str, TableRef], CustodyError | None]:
    """Return the files of a range in lists that trusted keys signed, by key.

    Returns:
        The files, and the error of a list that cannot be read or checked now.
    """
    refs: dict[str, TableRef] = {}
    unread: CustodyError | None = None
    for key in listed.lists.get((log, first, end), ()):
        try:
            made = signed_notes.read(store, key, TableList, LIST_FORMAT, trust)
        except (FormatError, ObjectMissing, SignatureInvalid):
            # A list that is missing or invalid names no files.
            continue
        except CustodyError as error:
            unread = error
        else:
            if (made.archive, made.log, made.first, made.end) == (archive, str(log), first, end):
                refs |= {ref.key: ref for ref in made.files}
    return refs, unread


def signed_ranges(
    store: Store, listed: Listed, archive: str, log: layout.Log, trust: Trust
) -> Iterator[list[TableFile]]:
    """Yield the files of each complete range of a log's tables that is in lists that trusted keys signed."""
    files = listed.files.get(log, ())
    signed: set[str] = set()
    for first, end in sorted({(file.first, file.end) for file in files}):
        signed |= signed_files(store, listed, archive, log, first, end, trust)[0].keys()
    yield from whole_ranges(file for file in files if file.key in signed)


def whole_ranges(files: Iterable[TableFile]) -> Iterator[list[TableFile]]:
    """Yield the files of each complete range. A range that overlaps an earlier, longer one is left out."""
    ranges: dict[tuple[layout.Log, int, int], dict[int, TableFile]] = {}
    for file in files:
        ranges.setdefault((file.log, file.first, -file.end), {}).setdefault(file.number, file)
    reached: dict[layout.Log, int] = {}
    for (log, first, end), numbered in sorted(ranges.items(), key=lambda item: item[0]):
        total = next(iter(numbered.values())).total
        if sorted(numbered) == list(range(1, total + 1)) and first >= reached.get(log, 0):
            reached[log] = -end
            yield [numbered[number] for number in sorted(numbered)]


class Rows:
    """Collects events of one log, and makes Arrow tables of them."""

    def __init__(self, log: layout.Log) -> None:
        self._log = log
        self._kinds: dict[type, _Kind] = {}
        self.count = 0
        self._bytes = 0

    @property
    def full(self) -> bool:
        """Whether there are enough rows to be written."""
        return self.count >= ROW_GROUP or self._bytes >= ROW_BYTES

    def add(self, work: Work, batch: Batch, payload: bytes) -> None:
        """Add a batch: JSON lines, each an event."""
        try:
            rows = _decoder.decode_lines(payload)
        except _HOSTILE:
            rows = [_row(line) for line in payload.split(b"\n")[:-1]]
        kinds = self._kinds
        self._bytes += len(payload)
        # Only a wrong statement gives its lines offsets beyond 64 bits. Here they get no row; verification reports it.
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
        """Return the added events as a table sorted by time, and start an empty one."""
        tables = [self._table(kind, held) for kind, held in self._kinds.items()]
        self._kinds, self.count, self._bytes = {}, 0, 0
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
            values = list(map(attrgetter(name), rows))
            if name in _EXTRA:
                values = _EXTRA[name][1](list(map(bytes, values)))
            elif name == "event" or FIELDS[name][1] is msgspec.Raw:
                values = list(map(_json_text, values))
            known[name] = column(values, SCHEMA.field(name).type)
        columns = [known[name] if name in known else pa.nulls(count, SCHEMA.field(name).type) for name in SCHEMA.names]
        return pa.Table.from_arrays(columns, schema=SCHEMA)


@dataclass(slots=True)
class _Kind:
    """The rows of one event type."""

    offsets: "array[int]"
    batches: "array[int]"
    sequences: "array[int]"
    rows: list[Any]


def _json_text(value: msgspec.Raw) -> str | None:
    """Return JSON as text in which DuckDB finds no fault: it refuses half a character, and fails the whole query."""
    return lines.without_half_characters(bytes(value)).decode(errors="replace") or None


def column(values: Sequence[Any], kind: pa.DataType) -> Any:
    """Return values as a column. What its type cannot hold becomes NULL, and so does what is not finite."""
    try:
        made = pa.array(values, kind)
    except (pa.ArrowException, OverflowError, UnicodeEncodeError):
        made = pa.array([_fitting(value, kind) for value in values], kind)
    # JSON has no infinity. Python reads 1e999 as one, and every sum and average over it would be infinite.
    return pc.if_else(pc.is_finite(made), made, None) if pa.types.is_floating(kind) else made


def _fitting(value: Any, kind: pa.DataType) -> Any:
    if isinstance(value, str):
        # Text may have half a character.
        value = value.encode(errors="backslashreplace").decode()
    try:
        pa.scalar(value, kind)
    except (pa.ArrowException, OverflowError):
        return None
    return value


def _times(texts: list[str]) -> Any:
    try:
        return pa.array(texts, pa.string()).cast(_ZONED).cast(_TIME)
    except pa.ArrowInvalid:
        # One has more digits than microseconds, or is not a time.
        times = [lines.parse_time(text) for text in texts]
        return pa.array([time.microseconds[0] if time else None for time in times], pa.int64()).cast(_TIME)


def _row(line: bytes) -> Any:
    """Return a line as a row. If it does not follow its type's definition, keep the fields that fit their columns."""
    with suppress(*_HOSTILE):
        return _decoder.decode(line)
    with suppress(*_HOSTILE):
        other = _other_decoder.decode(line)
        other.event = msgspec.Raw(line)
        return other
    kept: dict[str, Any] = {}
    try:
        # Numbers have any size, and Python refuses to convert very long ones.
        fields = json.loads(line, parse_int=lambda text: int(text) if len(text) < _LONGEST else None)
    except (ValueError, RecursionError):
        fields = None
    if isinstance(fields, dict):
        kept["event"] = msgspec.Raw(line)
    else:
        # Only the holder of a key can have signed such a line. Verification reports it.
        fields = {}
    for name, (_, kind) in FIELDS.items():
        value = fields.get(name)
        if kind is msgspec.Raw:
            kept[name] = msgspec.Raw(json.dumps(value).encode() if name in fields else b"")
        elif isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
            kept[name] = value
    timestamp = fields.get("timestamp")
    return _Other(timestamp if isinstance(timestamp, str) else "", **kept)
