"""Find one thing in an archive, and say where in the chain it stands. Reads only, and verifies nothing.

What is asked for is an object's key, or one of `LOG/PARTITION` (the head), `LOG/PARTITION/SEQUENCE` (a statement) and
`LOG/PARTITION@OFFSET` (a record), where `LOG` is `<topic>` or `<topic>@<life>`.
"""

import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from custody import layout, merkle
from custody.archive import find_head, find_statement, read_manifest
from custody.errors import ConfigurationError, FormatError, ObjectMissing
from custody.layout import Log
from custody.manifest import Batch, Manifest, Range, Statement
from custody.segment import QUARANTINE_INFLATED_LIMIT, inflate
from custody.store import Store

_CHUNK = 1024 * 1024
_TEXT_LIMIT = 4 * 1024 * 1024
_POSITION = re.compile(
    r"(?P<log>[^/]+)/(?P<partition>[0-9]{1,10})(?:/(?P<sequence>[0-9]{1,12})|@(?P<offset>[0-9]{1,19}))?"
)


@dataclass(frozen=True, slots=True)
class Shown:
    """What was asked for.

    Attributes:
        place: where in the chain it stands, as JSON types.
        content: its bytes, in pieces: lines of JSON for records, text for the rest.
        manifest: the statement that accounts for it, if one does.
    """

    place: dict[str, Any]
    content: Iterator[bytes]
    manifest: Manifest | None = None


def show(store: Store, what: str) -> Shown:
    """Find what is asked for.

    Raises:
        ConfigurationError: it is not something that an archive could hold.
        ObjectMissing: the archive does not hold it.
        FormatError: what is there does not parse.
        StoreError: the store does not give it.
    """
    key = what.removeprefix(f"{store.url}/")
    if key == layout.ARCHIVE or key.startswith((layout.AUDITS, layout.CHECKPOINTS)):
        return Shown({"object": key}, iter([store.read(key, limit=_TEXT_LIMIT)]))
    if named := layout.parse_manifest_key(key):
        return _statement(store, *named)
    if records := layout.parse_records_key(key):
        return _object(store, key, records)
    if position := _POSITION.fullmatch(key):
        log = layout.parse_log(position["log"], int(position["partition"]))
        if log and position["offset"]:
            return _record(store, log, int(position["offset"]))
        if log and position["sequence"]:
            return _statement(store, log, int(position["sequence"]))
        if log:
            head = find_head(store, log)
            if not head.size:
                raise ObjectMissing(f"the archive {store.url} has no log {log}")
            return _statement(store, log, head.size - 1)
    raise ConfigurationError(
        f"{what!r} is nothing that an archive holds; name an object's key, or LOG/PARTITION, LOG/PARTITION/SEQUENCE"
        " or LOG/PARTITION@OFFSET"
    )


def events(store: Store, statement: Statement) -> Iterator[bytes]:
    """Return the events of a statement as lines, in pieces.

    Raises:
        FormatError: the segment is not what the statement says. It is raised after the last piece that could be read.
        StoreError: the store does not give it.
    """
    if statement.segment:
        yield from _inflated(store, statement.segment.key, statement.segment.sha256)


def _statement(store: Store, log: Log, sequence: int) -> Shown:
    found = read_manifest(store, log, sequence)
    view = {
        "key": layout.manifest_key(log, sequence),
        "leaf": merkle.leaf_hash(found.line).hex(),
        "statement": json.loads(found.line),
        "signatures": [
            {"key": signature.key, "algorithm": signature.algorithm, "value": signature.value}
            for signature, _ in found.signatures
        ],
    }
    return Shown(_place(log, sequence, found), iter([json.dumps(view, indent=2).encode() + b"\n"]), found)


def _place(log: Log, sequence: int, found: Manifest) -> dict[str, Any]:
    statement = found.statement
    return {
        "log": str(log),
        "sequence": sequence,
        "manifest": layout.manifest_key(log, sequence),
        "leaf": merkle.leaf_hash(found.line).hex(),
        "offsets": [statement.first_offset, statement.next_offset],
        "sealed_at": statement.sealed_at,
        "keys": [signature.key for signature, _ in found.signatures],
    }


def _object(store: Store, key: str, records: layout.RecordsKey) -> Shown:
    """Show a segment or quarantine object, whether or not a manifest names it."""
    found = find_statement(store, records.log, records.first)
    named = None
    if found:
        statement = found[1].statement
        named = statement.segment if records.kind == "events" else statement.quarantine
    if not found or not named or named.key != key:
        if not store.exists(key):
            raise ObjectMissing(f"there is no object {key} in the archive {store.url}, and no manifest names it")
        place: dict[str, Any] = {"object": key, "log": str(records.log), "manifest": None}
        return Shown(place, _inflated(store, key, None))
    place = {"object": key, "size": named.size, "sha256": named.sha256, **_place(records.log, *found)}
    return Shown(place, _inflated(store, key, named.sha256), found[1])


def _record(store: Store, log: Log, offset: int) -> Shown:
    found = find_statement(store, log, offset)
    if not found:
        raise ObjectMissing(f"no statement of {log} in the archive {store.url} accounts for offset {offset}")
    sequence, accounting = found
    statement = accounting.statement
    place = {"offset": offset, **_place(log, sequence, accounting)}
    if statement.lost and statement.lost[0] <= offset < statement.lost[1]:
        raise ObjectMissing(f"offset {offset} of {log} is lost: statement {sequence} admits it")
    if _within(offset, statement.skipped):
        raise ObjectMissing(
            f"offset {offset} of {log} has no record that a read-committed consumer gets: statement {sequence} skips it"
        )
    quarantine = statement.quarantine
    if quarantine and _within(offset, quarantine.offsets):
        place |= {"object": quarantine.key, "quarantined": True}
        return Shown(place, _quarantined(store, quarantine.key, quarantine.sha256, offset), accounting)
    batch = next((one for one in statement.batches if one.first_offset <= offset < one.next_offset), None)
    if batch is None or statement.segment is None:
        raise FormatError(f"{place['manifest']} does not account for offset {offset}: run custody verify")
    line = _line_of(statement, batch, offset)
    place |= {"object": statement.segment.key, "batch": batch.number, "line": line}
    return Shown(place, _event(store, statement.segment.key, batch, line), accounting)


def _within(offset: int, ranges: list[Range]) -> bool:
    return any(start <= offset < stop for start, stop in ranges)


def _line_of(statement: Statement, batch: Batch, offset: int) -> int:
    """Return the line of an event in its batch: its offset's place among those neither skipped nor quarantined."""
    left_out = [*statement.skipped, *(statement.quarantine.offsets if statement.quarantine else [])]
    before = sum(max(0, min(stop, offset) - max(start, batch.first_offset)) for start, stop in left_out)
    return offset - batch.first_offset - before


def _event(store: Store, key: str, batch: Batch, line: int) -> Iterator[bytes]:
    member = store.read(key, limit=batch.size, start=batch.start, size=batch.size)
    payload = inflate(member, batch.inflated)
    lines = payload.split(b"\n")
    if line < len(lines):
        yield lines[line] + b"\n"
    if sha256(payload).hexdigest() != batch.sha256:
        raise FormatError(f"batch {batch.number} in {key} is not what was signed: run custody verify")


def _quarantined(store: Store, key: str, digest: str, offset: int) -> Iterator[bytes]:
    """Return the one line of a quarantine object that is about an offset."""
    wanted = f'{{"offset":{offset},'.encode()
    line = bytearray()
    for piece in _inflated(store, key, digest):
        for part in piece.splitlines(keepends=True):
            line += part
            if part.endswith(b"\n"):
                if line.startswith(wanted):
                    yield bytes(line)
                line.clear()
        if len(line) > QUARANTINE_INFLATED_LIMIT:
            raise FormatError(f"{key} has a line of more than {QUARANTINE_INFLATED_LIMIT:,} bytes: run custody verify")


def _inflated(store: Store, key: str, digest: str | None) -> Iterator[bytes]:
    """Inflate an object piece by piece, and compare what was stored with its digest at the end."""
    machine = zlib.decompressobj(wbits=31)
    stored = sha256()
    start = 0
    try:
        while chunk := store.read(key, limit=_CHUNK, start=start, size=_CHUNK):
            start += len(chunk)
            stored.update(chunk)
            while chunk:
                if machine.eof:
                    machine = zlib.decompressobj(wbits=31)
                yield machine.decompress(chunk, _CHUNK)
                chunk = machine.unused_data if machine.eof else machine.unconsumed_tail
    except zlib.error as error:
        raise FormatError(f"{key} is damaged after {start:,} bytes: {error}; run custody verify") from None
    if not machine.eof:
        raise FormatError(f"{key} is cut short at {start:,} bytes; run custody verify")
    if digest and stored.hexdigest() != digest:
        raise FormatError(f"{key} is not what was signed: its SHA-256 differs from the statement's; run custody verify")
