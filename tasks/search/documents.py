"""Makes documents for Elasticsearch: the index template, which follows from `events.py`, and the documents of a batch.

A document is the event's own bytes with one more member at the end, `@custody`: topic, partition, offset, batch number
and the segment's key. So a hit leads to its evidence (`custody evidence LOG OFFSET`). Documents are made by joining
bytes. Only if a batch crosses midnight are its events' times parsed.

An event of an own type may have any fields. It is whole in the member `own`, one flattened field, so no field of it can
add to the mapping or contradict it. Fields with a name of the mapping stand beside it if they fit. The same is done
with an event of the six types that has a field of its own under a name that we map, such as `own` or `source`. All
fields of its type stand beside `own`, lists too: otherwise a producer could hide them from searches.

An emitted event ends with `,"source":"…","source_seq":N}`. Its source becomes `source.id`, beside the alias
`source.ip`: Elasticsearch takes no string in the place of an object. Any other `source` is treated as said above.

Names of ECS (Elastic Common Schema) are aliases of our fields, for Kibana and Elastic's rules: `source.ip` finds events
by `client_ip`. Elasticsearch refuses a document that has a value of its own there.

Elasticsearch would read an event's own key `@custody.offset` as another offset, so a producer could fake where an event
is. Such events stay in the archive, and are rejected by the index (`Documents.forged`). In an event that is whole in
`own`, the key is below `own` and fakes nothing, so the event is indexed.

An event goes to the index of its own day. If that day is far from the time of sealing, the event is out of range, and
goes to one shared index, `<prefix>-outlying`. Otherwise a producer could create any number of indices.
"""

import json
import re
import types
import typing
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import cache, partial
from typing import Any

import msgspec

from custody.errors import FormatError
from custody.format import lines
from custody.format.events import EVENT_TYPES
from custody.format.layout import Log
from custody.format.manifest import Batch, Statement
from custody.format.members import inflate_batch
from custody.format.offsets import offsets_of
from custody.format.sources import NUMBER, SOURCE
from custody.format.times import EPOCH, parse_time, shift
from custody.store.protocol import Store
from tasks.search.emitted import SOURCE_ID, is_numbered, opened_line, source_member, tail_of, without_tail
from tasks.search.following import read_segment

ORIGIN = "@custody"
"""The member that says where an event is in the archive."""
TOPIC, PARTITION, OFFSET = f"{ORIGIN}.topic", f"{ORIGIN}.partition", f"{ORIGIN}.offset"
LEEWAY = timedelta(days=1)
"""How far an event's day may be after its sealing, because a producer's clock may be wrong."""

OWN = "own"
"""The member that has an event of an own type whole. Not `event`: ECS has fields below that name."""

ECS = {
    "@timestamp": "timestamp",
    "event.action": "event_type",
    "event.id": "event_id",
    "source.ip": "client_ip",
    "trace.id": "trace_id",
    "user.id": "api_key_id",
}
"""Names of ECS 9, each with our field that has its values."""
_KEYWORD = {"type": "keyword", "ignore_above": 8191}
_LOOSE: dict[str, Any] = {"ignore_malformed": True}
_EXTRA: dict[str, tuple[type, dict[str, Any]]] = {
    "event_id": (str, _KEYWORD),
    "trace_id": (str, _KEYWORD),
    NUMBER: (int, {"type": "long", **_LOOSE}),
}
"""Fields that events of any type may have, with their JSON type and their mapping: no type defines them, so nothing has
checked their values."""
_FLATTENED = {"type": "flattened", "depth_limit": 64, "ignore_above": 8191}


class _Time(msgspec.Struct, gc=False):
    timestamp: str


# All characters of our names are 0x40, 0x5f, or 0x61 to 0x7a: only these escapes can spell them in another way.
_ORIGIN_BYTES, _ESCAPED = ORIGIN.encode(), re.compile(rb"\\u00[4567]")

_times = msgspec.json.Decoder(_Time)
_HOSTILE = (msgspec.MsgspecError, ValueError, TypeError, RecursionError)
"""Errors that decoders raise for unchecked input."""


def _decode(decoder: msgspec.json.Decoder[Any], payload: bytes) -> list[Any]:
    """Return the decoded lines. An event may have half characters, which msgspec refuses."""
    try:
        return decoder.decode_lines(payload)
    except _HOSTILE:
        return decoder.decode_lines(lines.without_half_characters(payload))


@dataclass(frozen=True, slots=True)
class Documents:
    """Documents of a log, in order.

    Attributes:
        actions: the action line of each in a bulk request, without its newline.
        sources: each document as a line, without its newline.
        offsets: each document's offset in its log.
        forged: offsets of events whose own key `@custody` would stand beside ours; they must not be indexed.
    """

    actions: Sequence[bytes]
    sources: Sequence[bytes]
    offsets: Sequence[int]
    forged: frozenset[int] = frozenset()

    @classmethod
    def join(cls, parts: Sequence["Documents"]) -> "Documents":
        """Return several as one, in order."""
        return cls(
            [line for part in parts for line in part.actions],
            [line for part in parts for line in part.sources],
            [offset for part in parts for offset in part.offsets],
            frozenset(offset for part in parts for offset in part.forged),
        )

    def only(self, offsets: Collection[int]) -> "Documents":
        """Return the documents of some offsets."""
        chosen = [position for position, offset in enumerate(self.offsets) if offset in offsets]
        return Documents(
            [self.actions[position] for position in chosen],
            [self.sources[position] for position in chosen],
            [self.offsets[position] for position in chosen],
            self.forged,
        )

    def action(self, position: int) -> dict[str, str]:
        """Return the action of the document at a position: its `_index` and `_id`."""
        action: dict[str, str] = msgspec.json.decode(self.actions[position])["create"]
        return action


def properties() -> dict[str, Any]:
    """Return the mapped fields: those of the six event types, `own`, names of ECS, and those of `@custody`."""
    fields: dict[str, Any] = {"event_type": _KEYWORD, **{name: mapping for name, (_, mapping) in _EXTRA.items()}}
    for kind in EVENT_TYPES.values():
        for name, annotation in typing.get_type_hints(kind).items():
            if not name.startswith("_"):
                fields.setdefault(name, _property(name, annotation))
    origin = {
        "topic": {"type": "keyword"},
        "partition": {"type": "integer"},
        "offset": {"type": "long"},
        "batch": {"type": "integer"},
        "segment": {"type": "keyword"},
    }
    return {**fields, **_aliases(), OWN: _FLATTENED, ORIGIN: {"dynamic": False, "properties": origin}}


def _aliases() -> dict[str, Any]:
    """Return the aliases of ECS, those with a dot within an object, and the emitter's source beside one of them."""
    fields: dict[str, Any] = {SOURCE: {"properties": {SOURCE_ID: _KEYWORD}}}
    for name, path in ECS.items():
        root, _, leaf = name.partition(".")
        alias = {"type": "alias", "path": path}
        if leaf:
            fields.setdefault(root, {"properties": {}})["properties"][leaf] = alias
        else:
            fields[root] = alias
    return fields


def _property(name: str, annotation: Any) -> dict[str, Any]:
    if typing.get_origin(annotation) in {typing.Union, types.UnionType}:
        return _property(name, next(inner for inner in typing.get_args(annotation) if inner is not type(None)))
    if name == "timestamp":
        return {"type": "date", "format": "strict_date_optional_time", **_LOOSE}
    if name == "client_ip":
        return {"type": "ip", **_LOOSE}
    if annotation in {int, float}:
        return {"type": "long" if annotation is int else "double", **_LOOSE}
    if annotation is bool:
        return {"type": "boolean", **_LOOSE}
    # Objects are flattened: otherwise each new name in them would become a new field.
    return _FLATTENED if typing.get_origin(annotation) is dict else _KEYWORD


_BEGINNINGS = {
    **dict.fromkeys(("keyword", "ip", "date"), b'"'),
    **dict.fromkeys(("long", "double"), b"-0123456789"),
    "boolean": b"tf",
    "flattened": b"{",
}
"""What the JSON of a value begins with that fits a field, by the field's type."""
_COMMON = {
    name: _BEGINNINGS[field["type"]]
    for name, field in properties().items()
    if name not in {"event_type", "timestamp", OWN, ORIGIN, *_aliases()}
}
_CHECKED = {kind: frozenset(type_.__struct_fields__) for kind, type_ in EVENT_TYPES.items()}
"""The fields of each of the six types."""
_CLAIMED = frozenset({OWN, *_aliases()})
"""Members in which an event of the six types cannot have a value of its own: Elasticsearch might refuse it."""
_CLAIMED_BYTES = re.compile(
    rb'"(?:%b|event_id(?!": ?["n])|trace_id(?!": ?["n])|source_seq(?!": ?[0-9n]))["\\.]'
    % "|".join(map(re.escape, sorted(_CLAIMED))).encode()
)
"""One of these names, unless it is one of `_EXTRA` whose value begins as one that fits."""
_Fields = msgspec.defstruct(
    "_Fields",
    [("event_type", str), ("timestamp", msgspec.Raw), *((name, msgspec.Raw, msgspec.Raw(b"")) for name in _COMMON)],
    gc=False,
)
_fields: msgspec.json.Decoder[Any] = msgspec.json.Decoder(_Fields)


def _own_document(line: bytes, fields: Any) -> bytes:
    """Return the document of an event that is whole in `own`, without its end."""
    common = [(name, bytes(getattr(fields, name))) for name in _COMMON]
    # The fields of the six types were checked. Elasticsearch takes them here as it does without `own`.
    checked = _CHECKED.get(fields.event_type, frozenset())
    tail = tail_of(line)
    beside = (source_member(tail) if tail else b"") + b"".join(
        b',"%b":%b' % (name.encode(), raw)
        for name, raw in common
        if raw and (name in checked or raw[0] in _COMMON[name])
    )
    kind, time = msgspec.json.encode(fields.event_type), bytes(fields.timestamp)
    return b'{"event_type":%b,"timestamp":%b%b,"%b":%b' % (kind, time, beside, OWN.encode(), line)


def _own_documents(statement: Statement, batch: Batch, payload: bytes, events: Sequence[bytes]) -> Mapping[int, bytes]:
    """Return the documents that have their event in `own`, without their ends, by position.

    Raises:
        FormatError: a line is not an event.
    """
    claims = any(_may_claim(without_tail(line)) for line in events) if is_numbered(payload) else _may_claim(payload)
    if statement.types.keys() <= EVENT_TYPES.keys() and not claims:
        return {}
    try:
        rows = _decode(_fields, payload)
        if len(rows) != len(events):
            raise _no_event(statement, batch, "a line is blank")
        return {
            position: _own_document(events[position], fields)
            for position, fields in enumerate(rows)
            if fields.event_type not in EVENT_TYPES or (claims and _claims(without_tail(events[position])))
        }
    except _HOSTILE as error:
        raise _no_event(statement, batch, error) from None


def index_name(prefix: str, day: date | None) -> str:
    """Return the index of a day; if None, of out-of-range events."""
    return out_of_range_name(prefix) if day is None else f"{prefix}-{day:%Y.%m.%d}"


def out_of_range_name(prefix: str) -> str:
    """Return the index of out-of-range events, whose day is far from the time when they were sealed."""
    return f"{prefix}-outlying"


RESTORED_AT = "brought_at"
"""Key in the `_meta` of an index of restored events: when a backfill last restored some."""


def restored_name(prefix: str, day: date | None) -> str:
    """Return the index for restored events of a day whose own index was deleted; if None, of out-of-range events.

    The roll deletes it `search.restored_days` after the last restore, whatever the day.
    """
    return index_name(f"{prefix}-restored", day)


def is_restored(prefix: str, name: str) -> bool:
    """Return whether an index holds restored events."""
    return name == restored_name(prefix, None) or index_day(f"{prefix}-restored", name) is not None


def index_day(prefix: str, name: str) -> date | None:
    """Return the day of a daily index; None if the index is not a daily one."""
    try:
        day = datetime.strptime(name.removeprefix(f"{prefix}-"), "%Y.%m.%d").replace(tzinfo=UTC).date()
    except ValueError:
        return None
    return day if name == index_name(prefix, day) else None


def date_of(text: str) -> date | None:
    """Return the day of an event's time, in UTC; None if the time is invalid."""
    time = lines.parse_time(text)
    # The year 9999 ends before what a datetime can hold.
    return None if time is None else (EPOCH + timedelta(seconds=time.seconds)).date()


def make_documents(
    days: int,
    log: Log,
    statement: Statement,
    batch: Batch,
    payload: bytes,
    naming: Callable[[date | None], str],
) -> Documents:
    """Return the documents of a batch.

    Args:
        days: events older than this number of days when they were sealed are out of range.
        log: the log.
        statement: the batch's statement; it has a segment.
        batch: the batch.
        payload: its lines, each with its newline.
        naming: returns the index of a day, and that of out-of-range events for None.

    Raises:
        FormatError: the lines are not those stated, or a line that must be parsed is not an event.
    """
    events = payload.split(b"\n")
    offsets = offsets_of(statement, batch)
    if events.pop() or len(events) != len(offsets) or statement.segment is None:
        raise FormatError(
            f"{log}, sequence {statement.sequence}, batch {batch.number} has {len(events)} lines for {len(offsets)}"
            " offsets; `custody verify` says more"
        )
    names = _index_names(days, statement, batch, payload, naming)
    if set(map(_last_byte, events)) != {b"}"}:
        events = [line.rstrip(b" \t\r") for line in events]
    # Topics and keys need no JSON escapes: Kafka and FORMAT.md allow no quotes, backslashes or control characters.
    tail = (
        f',"{ORIGIN}":{{"topic":"{log.name}","partition":{log.partition},"batch":{batch.number},'
        f'"segment":"{statement.segment.key}","offset":'
    ).encode()
    ids = f'","_id":"{log.name}-{log.partition}-'.encode()
    actions = [
        b'{"create":{"_index":"%b%b%d"}}' % (name, ids, offset) for name, offset in zip(names, offsets, strict=True)
    ]
    own = _own_documents(statement, batch, payload, events)
    opened = (
        [own.get(at) or opened_line(line) for at, line in enumerate(events)]
        if own or is_numbered(payload)
        else [line[:-1] for line in events]
    )
    sources = [b"%b%b%d}}" % (document, tail, offset) for document, offset in zip(opened, offsets, strict=True)]
    forged = frozenset[int]()
    if _may_be_forged(payload):
        try:
            # A key below `own` is nobody's place in the archive.
            forged = frozenset(offsets[at] for at, line in enumerate(events) if at not in own and _is_forged(line))
        except _HOSTILE as error:
            raise _no_event(statement, batch, error) from None
    return Documents(actions, sources, offsets, forged)


def _may_claim(text: bytes) -> bool:
    return _CLAIMED_BYTES.search(text) is not None or (b"\\" in text and _ESCAPED.search(text) is not None)


def _claims(line: bytes) -> bool:
    """Return whether an event has a value where Elasticsearch expects ours, or none of its kind.

    Raises:
        ValueError, TypeError, RecursionError: the line is not an event.
    """
    return _may_claim(line) and any(
        name.partition(".")[0] in _CLAIMED or (name in _EXTRA and not _fits(value, _EXTRA[name][0]))
        for name, value in _members(line).items()
    )


def _fits(value: Any, kind: type) -> bool:
    return value is None or (isinstance(value, kind) and not isinstance(value, bool))


def _members(line: bytes) -> dict[str, Any]:
    """Return an event's members.

    Raises:
        ValueError, TypeError, RecursionError: the line is not an event.
    """
    # Numbers may be of any size, so they are not converted.
    members = json.loads(line, parse_int=len, parse_float=len)
    if not isinstance(members, dict):
        raise TypeError("a line is no object")
    return members


def _may_be_forged(text: bytes) -> bool:
    # Searching for one byte is several times faster than for a string, and most batches have neither byte.
    return (b"@" in text and _ORIGIN_BYTES in text) or (b"\\" in text and _ESCAPED.search(text) is not None)


def _is_forged(line: bytes) -> bool:
    """Return whether an event has a key that Elasticsearch would read as its place in the archive."""
    if not _may_be_forged(line):
        return False
    return any(name == ORIGIN or name.startswith(f"{ORIGIN}.") for name in _members(line))


def read_documents(
    store: Store, prefix: str, days: int, log: Log, statement: Statement, segment: bytes | None = None
) -> Iterator[Documents]:
    """Yield the documents of a statement, batch by batch, from its segment; `segment` has its bytes if they were read.

    Raises:
        StoreError: the segment cannot be read; ObjectArchived before the first batch.
        FormatError: the segment differs from its statement.
    """
    if statement.segment is None:
        return
    naming = partial(index_name, prefix)
    data = segment if segment is not None else read_segment(store, statement.segment.key)
    for batch in statement.batches:
        try:
            payload = inflate_batch(batch, data[batch.start : batch.start + batch.size])
        except FormatError as error:
            raise FormatError(
                f"{statement.segment.key}: batch {batch.number} is not what sequence {statement.sequence} of {log}"
                f" states: {error}; `custody verify` says more"
            ) from None
        yield make_documents(days, log, statement, batch, payload, naming)


def _last_byte(line: bytes) -> bytes:
    return line[-1:]


def _index_names(
    days: int, statement: Statement, batch: Batch, payload: bytes, naming: Callable[[date | None], str]
) -> Sequence[bytes]:
    """Return the index of each event of a batch."""
    sealed = parse_time(statement.sealed_at)
    oldest, newest = shift(sealed, timedelta(days=-days)).date(), shift(sealed, LEEWAY).date()
    first, last = parse_time(batch.min_time).date(), parse_time(batch.max_time).date()

    @cache
    def name(day: date | None) -> bytes:
        if day is None:
            raise FormatError(f"batch {batch.number} of sequence {statement.sequence} has an event without a time")
        return naming(day if oldest <= day <= newest else None).encode()

    if first == last:
        return [name(first)] * payload.count(b"\n")
    try:
        times = _decode(_times, payload)
    except _HOSTILE as error:
        raise _no_event(statement, batch, error) from None
    # The decoder skips blank lines.
    if len(times) != batch.events:
        raise _no_event(statement, batch, "a line is blank")
    return [name(date_of(time.timestamp)) for time in times]


def _no_event(statement: Statement, batch: Batch, why: object) -> FormatError:
    # Only the holder of a key can have signed such a batch.
    return FormatError(
        f"batch {batch.number} of sequence {statement.sequence} has a line that is no event ({str(why)[:200]})"
    )


TIER = "routing.allocation.include._tier_preference"
"""The index setting for its nodes: those of the first listed tier that the cluster has."""
ON_HOT_NODES: Mapping[str, str] = {TIER: "data_hot,data_content,data_warm"}
"""Nodes of a new index. Elasticsearch's default is content nodes only; without those, shards stay unassigned."""


def template(prefix: str, replicas: int) -> Mapping[str, Any]:
    """Return the index template of daily indices, without its name."""
    return {
        "index_patterns": [f"{prefix}-*.*.*", out_of_range_name(prefix), restored_name(prefix, None)],
        "priority": 500,
        "template": {
            "aliases": {prefix: {}},
            # Without an explicit interval, Elasticsearch refreshes an idle index only at its next search.
            "settings": {"index": {"number_of_replicas": replicas, "refresh_interval": "1s", **ON_HOT_NODES}},
            "mappings": {"dynamic": False, "date_detection": False, "properties": properties()},
        },
        "_meta": {"managed by": "custody"},
    }
