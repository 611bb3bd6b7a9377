"""Events as Elasticsearch has them: the index template that follows from `events.py`, and the documents of a batch.

A document is the event's own bytes, with one member more behind the others, `@custody`: topic, partition, offset, batch
number and the segment's key, so that a hit leads back to the evidence (`custody evidence LOG OFFSET`). It is made by
joining bytes: nothing is parsed for it but, where a batch crosses midnight, its times.

Elasticsearch reads a key `@custody.offset` of the event's own as one more offset: who produces such events could call
them what they are not. They stay in the archive, and are rejected (`Documents.forged`).

An event goes into the index of its own day. Days far from when it was sealed would let a producer make as many indices
as it likes: those events share one, `<prefix>-outlying`.
"""

import json
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import partial
from typing import Any

import msgspec

from custody.errors import FormatError
from custody.format import limits, lines
from custody.format.events import EVENT_TYPES
from custody.format.layout import Log
from custody.format.manifest import Batch, Statement
from custody.format.members import inflate_batch
from custody.format.offsets import offsets_of
from custody.format.times import EPOCH, parse_time
from custody.store.protocol import Store

ORIGIN = "@custody"
"""The member that says where in the archive an event is."""
TOPIC, PARTITION, OFFSET = f"{ORIGIN}.topic", f"{ORIGIN}.partition", f"{ORIGIN}.offset"
LEEWAY = timedelta(days=1)
"""How far behind its sealing an event's day may be; a producer's clock may be wrong."""

_KEYWORD = {"type": "keyword", "ignore_above": 8191}
_LOOSE: dict[str, Any] = {"ignore_malformed": True}
_FLATTENED = {"type": "flattened", "depth_limit": 64, "ignore_above": 8191}


class _Time(msgspec.Struct, gc=False):
    timestamp: str


# All letters of the name lie at 0x40, or 0x63 to 0x79: only these escapes can spell it in another way.
_ORIGIN_BYTES, _ESCAPED = ORIGIN.encode(), re.compile(rb"\\u00[467]")

_decode_times = msgspec.json.Decoder(_Time).decode_lines
_HOSTILE = (msgspec.MsgspecError, ValueError, TypeError, RecursionError)
"""What decoders raise at what was never checked."""


@dataclass(frozen=True, slots=True)
class Documents:
    """Documents of a log, in order.

    Attributes:
        actions: what bulk requests do with each, a line without its newline.
        sources: each document, the same.
        offsets: where each is in its log.
        forged: offsets of the events that say themselves where they are in the archive; they are not to be indexed.
    """

    actions: Sequence[bytes]
    sources: Sequence[bytes]
    offsets: Sequence[int]
    forged: frozenset[int] = frozenset()

    @classmethod
    def join(cls, parts: Sequence["Documents"]) -> "Documents":
        """Return several as one, in order."""
        return cls(
            [line for one in parts for line in one.actions],
            [line for one in parts for line in one.sources],
            [offset for one in parts for offset in one.offsets],
            frozenset(offset for one in parts for offset in one.forged),
        )

    def at(self, places: Sequence[int]) -> "Documents":
        """Return those at some places."""
        return Documents(
            [self.actions[place] for place in places],
            [self.sources[place] for place in places],
            [self.offsets[place] for place in places],
            self.forged,
        )


def properties() -> dict[str, Any]:
    """Return the mapped fields: those of the six types, and where an event is in the archive."""
    found: dict[str, Any] = {"event_type": _KEYWORD}
    for kind in EVENT_TYPES.values():
        for name, annotation in typing.get_type_hints(kind, include_extras=True).items():
            if not name.startswith("_"):
                found.setdefault(name, _property(name, annotation))
    origin = {
        "topic": {"type": "keyword"},
        "partition": {"type": "integer"},
        "offset": {"type": "long"},
        "batch": {"type": "integer"},
        "segment": {"type": "keyword"},
    }
    return {**found, ORIGIN: {"dynamic": False, "properties": origin}}


def _property(name: str, annotation: Any) -> dict[str, Any]:
    while typing.get_origin(annotation) is typing.Annotated:
        annotation = typing.get_args(annotation)[0]
    if typing.get_origin(annotation) in {typing.Union, types.UnionType}:
        return _property(name, next(one for one in typing.get_args(annotation) if one is not type(None)))
    if name == "timestamp":
        return {"type": "date", "format": "strict_date_optional_time", **_LOOSE}
    if name == "client_ip":
        return {"type": "ip", **_LOOSE}
    if annotation in {int, float}:
        return {"type": "long" if annotation is int else "double", **_LOOSE}
    if annotation is bool:
        return {"type": "boolean", **_LOOSE}
    # Of objects every leaf is a keyword; else each new name in them would be a new field.
    return _FLATTENED if typing.get_origin(annotation) is dict else _KEYWORD


def index_name(prefix: str, day: date) -> str:
    """Return the index of a day."""
    return f"{prefix}-{day:%Y.%m.%d}"


def outlying_name(prefix: str) -> str:
    """Return the index of events whose day is far from when they were sealed."""
    return f"{prefix}-outlying"


BROUGHT = "brought_at"
"""In the `_meta` of an index of restored events: when a backfill last brought some there."""


def restored_name(prefix: str, day: date | None) -> str:
    """Return the index of a day that was brought back after it had aged out, or of such outlying events where None.

    The roll deletes it `search.restored_days` after something was last brought there, whatever the day.
    """
    return outlying_name(f"{prefix}-restored") if day is None else index_name(f"{prefix}-restored", day)


def is_restored(prefix: str, name: str) -> bool:
    """Return whether an index holds what was brought back."""
    return name == restored_name(prefix, None) or index_day(f"{prefix}-restored", name) is not None


def index_day(prefix: str, name: str) -> date | None:
    """Return the day that an index is of, None where it is not one of a day."""
    try:
        found = datetime.strptime(name.removeprefix(f"{prefix}-"), "%Y.%m.%d").replace(tzinfo=UTC).date()
    except ValueError:
        return None
    return found if name == index_name(prefix, found) else None


def date_of(text: str) -> date | None:
    """Return the day of an event's time, in UTC; None if it is no time."""
    time = lines.parse_time(text)
    # The year 9999 ends before what a datetime can hold.
    return None if time is None else (EPOCH + timedelta(seconds=time.seconds)).date()


def make_documents(
    prefix: str,
    days: int,
    log: Log,
    statement: Statement,
    batch: Batch,
    payload: bytes,
    among: Sequence[int] = (),
    naming: Callable[[date | None], str] | None = None,
) -> Documents:
    """Return the documents of a batch.

    Args:
        prefix: what names of indices begin with.
        days: events older than so many days when they were sealed are outlying.
        log: the log.
        statement: what the batch belongs to; it has a segment.
        batch: the batch.
        payload: its lines, each with its newline.
        among: only these offsets; all if empty.
        naming: gives the index of a day, and that of outlying events for None; by default those that the indexer fills.

    Raises:
        FormatError: the lines are not those stated, or one that must be looked into is no event.
    """
    found = payload.split(b"\n")
    offsets = offsets_of(statement, batch)
    if found.pop() or len(found) != len(offsets) or statement.segment is None:
        raise FormatError(
            f"{log}, sequence {statement.sequence}, batch {batch.number} has {len(found)} lines for {len(offsets)}"
            " offsets; `custody verify` says more"
        )
    names = _index_names(days, statement, batch, payload, naming or partial(_own_name, prefix))
    if among:
        wanted = set(among)
        chosen = [place for place, offset in enumerate(offsets) if offset in wanted]
        found, offsets = [found[place] for place in chosen], [offsets[place] for place in chosen]
        names = names if isinstance(names, str) else [names[place] for place in chosen]
    if set(map(_last_byte, found)) != {b"}"}:
        found = [line.rstrip(b" \t\r") for line in found]
    # Topics and keys are plain in JSON: neither Kafka nor FORMAT.md lets them hold a quote, a backslash or a control.
    tail = (
        f',"{ORIGIN}":{{"topic":"{log.name}","partition":{log.partition},"batch":{batch.number},'
        f'"segment":"{statement.segment.key}","offset":'
    ).encode()
    ids = f'"_id":"{log.name}-{log.partition}-'.encode()
    if isinstance(names, str):
        head = b'{"create":{"_index":"' + names.encode() + b'",' + ids
        actions = [b'%b%d"}}' % (head, offset) for offset in offsets]
    else:
        actions = [
            b'{"create":{"_index":"%b",%b%d"}}' % (name.encode(), ids, offset)
            for name, offset in zip(names, offsets, strict=True)
        ]
    sources = [b"%b%b%d}}" % (line[:-1], tail, offset) for line, offset in zip(found, offsets, strict=True)]
    forged = frozenset[int]()
    if _may_be_forged(payload):
        try:
            forged = frozenset(offset for line, offset in zip(found, offsets, strict=True) if _is_forged(line))
        except _HOSTILE as error:
            raise _no_event(statement, batch, error) from None
    return Documents(actions, sources, offsets, forged)


def _may_be_forged(text: bytes) -> bool:
    # One byte is looked for several times as fast as many: most batches have none of the two.
    return (b"@" in text and _ORIGIN_BYTES in text) or (b"\\" in text and _ESCAPED.search(text) is not None)


def _is_forged(line: bytes) -> bool:
    """Return whether an event has a key that Elasticsearch would take for where it is in the archive."""
    if not _may_be_forged(line):
        return False
    # Numbers may be of any size: they are not converted, only passed over.
    names = json.loads(line, parse_int=len, parse_float=len)
    if not isinstance(names, dict):
        raise TypeError("a line is no object")
    return any(name == ORIGIN or name.startswith(f"{ORIGIN}.") for name in names)


def read_documents(store: Store, prefix: str, days: int, log: Log, statement: Statement) -> Iterator[Documents]:
    """Yield the documents of a statement, batch by batch, from its segment.

    Raises:
        StoreError: the store does not give the segment; ObjectArchived before the first batch.
        FormatError: the segment is not what the statement says.
    """
    if statement.segment is None:
        return
    data = store.read(statement.segment.key, limit=limits.SEGMENT_BYTES)
    for batch in statement.batches:
        try:
            payload = inflate_batch(batch, data[batch.start : batch.start + batch.size])
        except FormatError as error:
            raise FormatError(
                f"{statement.segment.key}: batch {batch.number} is not what sequence {statement.sequence} of {log}"
                f" states: {error}; `custody verify` says more"
            ) from None
        yield make_documents(prefix, days, log, statement, batch, payload)


def _own_name(prefix: str, day: date | None) -> str:
    return outlying_name(prefix) if day is None else index_name(prefix, day)


def _last_byte(line: bytes) -> bytes:
    return line[-1:]


def _index_names(
    days: int, statement: Statement, batch: Batch, payload: bytes, naming: Callable[[date | None], str]
) -> str | Sequence[str]:
    """Return the index of all of a batch's events, or of each."""
    sealed = parse_time(statement.sealed_at)
    oldest, newest = (sealed - timedelta(days=days)).date(), (sealed + LEEWAY).date()
    first, last = parse_time(batch.min_time).date(), parse_time(batch.max_time).date()

    def name(day: date) -> str:
        return naming(day if oldest <= day <= newest else None)

    if first == last:
        return name(first)
    named: dict[str, str] = {}

    def name_of(text: str) -> str:
        day = date_of(text)
        if day is None:
            raise FormatError(f"batch {batch.number} of sequence {statement.sequence} has an event without a time")
        return named.setdefault(str(day), name(day))

    try:
        times = _decode_times(payload)
    except _HOSTILE as error:
        raise _no_event(statement, batch, error) from None
    # Blank lines are none to the decoder.
    if len(times) != batch.events:
        raise _no_event(statement, batch, "a line is blank")
    return [name_of(one.timestamp) for one in times]


def _no_event(statement: Statement, batch: Batch, why: object) -> FormatError:
    # Only whoever holds a key can have signed such a batch.
    return FormatError(
        f"batch {batch.number} of sequence {statement.sequence} has a line that is no event ({str(why)[:200]})"
    )


TIER = "routing.allocation.include._tier_preference"
"""The setting of an index that says on which nodes it is: those of the first tier here that the cluster has."""
ON_HOT_NODES: Mapping[str, str] = {TIER: "data_hot,data_content,data_warm"}
"""Where an index begins. By itself Elasticsearch asks for content nodes, and puts it nowhere if there are none."""


def template(prefix: str, replicas: int) -> Mapping[str, Any]:
    """Return the index template of daily indices, without its name."""
    return {
        "index_patterns": [f"{prefix}-*.*.*", outlying_name(prefix), restored_name(prefix, None)],
        "priority": 500,
        "template": {
            "aliases": {prefix: {}},
            # Without an interval of its own an index that nobody searches is refreshed by the first search alone.
            "settings": {"index": {"number_of_replicas": replicas, "refresh_interval": "1s", **ON_HOT_NODES}},
            "mappings": {"dynamic": False, "date_detection": False, "properties": properties()},
        },
        "_meta": {"managed by": "custody"},
    }
