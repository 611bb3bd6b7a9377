"""What an audit knows of sources, and hands on to the next one: their numbers, and which are missing.

An audit reads new statements alone. So what it knows of each source is an object under `reports/`, which the signed
audit refers to by its SHA-256 as it does to lists of tables. It is made from the archive, and is no evidence: a full
audit makes it again. The object is JSON lines: a head, then a line for each source.
"""

from collections.abc import Iterator
from hashlib import sha256
from typing import Literal

import msgspec

from custody.archive.audit_findings import listed_objects
from custody.errors import FormatError, ObjectMissing
from custody.format import limits
from custody.format.audit import Audit, ObjectRef
from custody.store.protocol import Store

FORMAT: Literal["custody/sources/1"] = "custody/sources/1"
FOLDER = "reports/sources/"
SIZE_LIMIT = 256 * limits.MIB


class Hole(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Consecutive numbers that are missing.

    Attributes:
        first: the first number.
        last: the last one.
        audit: the audit that saw it first.
        sealed_at: when the statement was sealed that has the next number.
        after: the time of the event before the hole; None if it is not known.
        before: the time of the event after it.
        log: where the event after it is.
        sequence: its statement.
        offset: its offset.
    """

    first: int
    last: int
    audit: int
    sealed_at: str
    after: str | None = None
    before: str | None = None
    log: str | None = None
    sequence: int | None = None
    offset: int | None = None

    @property
    def size(self) -> int:
        """How many numbers are missing."""
        return self.last - self.first + 1


class Where(msgspec.Struct, array_like=True):
    """Statements `first` to `last` of a log, which have numbers of a source from `low` to `high`."""

    log: str
    first: int
    last: int
    low: int
    high: int
    sealed_at: str


class Source(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """What is known of a source.

    Attributes:
        name: `service/instance/pid-start`.
        base: the number that it is expected to begin with: 1, unless its beginning was not seen by any audit.
        last: the highest number.
        events: how many events it has with a number.
        repeats: how many of them have a number that another one has.
        sealed_at: when the newest statement was sealed that has an event of it.
        started: the time of its `emitter_started`.
        stopped: the time of its `emitter_stopped`.
        holes: which numbers are missing, in order.
        unlisted: how many more are missing that are in no hole of the list, about.
        partial: whether the last audit that could read its numbers may have left out some: the next one adds no hole.
        places: where its numbers are, the oldest first.
    """

    name: str
    base: int
    last: int
    events: int = 0
    repeats: int = 0
    sealed_at: str = ""
    started: str | None = None
    stopped: str | None = None
    holes: list[Hole] = []
    unlisted: int = 0
    partial: bool = False
    places: list[Where] = []

    @property
    def missing(self) -> int:
        """How many numbers are missing."""
        return sum(hole.size for hole in self.holes) + self.unlisted


class _Head(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    format: Literal["custody/sources/1"]
    archive: str
    known_from: str | None
    counted: dict[str, int]


class Sources(msgspec.Struct):
    """All sources that an audit knows.

    Attributes:
        sources: by name.
        known_from: of sources first seen in statements sealed before this time, the beginning may have been missed;
            None if all statements were looked at.
        counted: how many statements of each log are in it. Where a log is damaged, an audit reads some again as new.
    """

    sources: dict[str, Source]
    known_from: str | None = None
    counted: dict[str, int] = {}


_head: msgspec.json.Decoder[_Head] = msgspec.json.Decoder(_Head)
_source: msgspec.json.Decoder[Source] = msgspec.json.Decoder(Source)


def encode(archive: str, known: Sources) -> bytes:
    """Return the bytes of the object."""
    head = _Head(FORMAT, archive, known.known_from, dict(sorted(known.counted.items())))
    lines = (msgspec.json.encode(line) for line in (head, *(known.sources[name] for name in sorted(known.sources))))
    return b"\n".join(lines) + b"\n"


def reference(audit: int, data: bytes) -> ObjectRef:
    """Return the reference to an audit's object."""
    digest = sha256(data).hexdigest()
    return ObjectRef(f"{FOLDER}{audit:012}-{digest[:16]}.jsonl", len(data), digest)


def stated(store: Store, audit: Audit) -> ObjectRef | None:
    """Return which of an audit's objects has what it knew of sources; None if none has."""
    listed = listed_objects(store, audit.objects[0]) if len(audit.objects) == 1 else ()
    return next((ref for ref in (*audit.objects, *listed) if ref.key.startswith(FOLDER)), None)


def read(store: Store, audit: Audit) -> Sources | None:
    """Return what an audit knew of sources; None if it refers to no object for that.

    Raises:
        FormatError: the object is missing, or is not the one that was signed.
        StoreError: the store does not give it.
    """
    ref = stated(store, audit)
    if ref is None:
        return None
    if ref.size > SIZE_LIMIT:
        raise FormatError(f"{ref.key} is larger than {SIZE_LIMIT} bytes")
    try:
        data = store.read(ref.key, limit=ref.size)
    except ObjectMissing:
        raise FormatError(f"{ref.key} is missing") from None
    if sha256(data).hexdigest() != ref.sha256:
        raise FormatError(f"{ref.key} differs from the signed digest")
    try:
        lines = iter(data.splitlines())
        head = _head.decode(next(lines, b""))
        sources = {source.name: source for source in _sources(lines)}
    except (msgspec.MsgspecError, ValueError) as error:
        raise FormatError(f"{ref.key} has another form: {error}") from None
    if head.archive != audit.archive:
        raise FormatError(f"{ref.key} is of another archive")
    return Sources(sources, head.known_from, head.counted)


def _sources(lines: Iterator[bytes]) -> Iterator[Source]:
    for line in lines:
        yield _source.decode(line)
