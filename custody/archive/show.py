"""Find one thing in an archive, and its position in the chain. Reads only.

The query is an object's key, or one of `LOG/PARTITION` (the head), `LOG/PARTITION/SEQUENCE` (a statement) and
`LOG/PARTITION@OFFSET` (a record), where `LOG` is `<topic>` or `<topic>@<epoch>`. `audits/0` is the newest audit.
Checks only that a statement has no wrong signature, as far as keys are available, and that no later statement passes
over it.
"""

import json
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from hashlib import sha256
from itertools import islice
from typing import Any

import msgspec

from custody.archive.audited import audited_sizes
from custody.archive.beyond import MOST_BEYOND, beyond_hole
from custody.archive.forms import AUDITS, statements_of
from custody.archive.guesses import nightly_audits
from custody.archive.reader import (
    Holds,
    Tip,
    find_audit_tip,
    find_tip,
    list_logs,
    read_archive,
    read_batch,
    read_manifest,
    unknown_log,
)
from custody.archive.search import find_statement, no_event, unknown_offset
from custody.archive.trusted import Judge
from custody.errors import ConfigurationError, FormatError, NoArchive, ObjectMissing
from custody.format import layout, limits
from custody.format.layout import Log
from custody.format.manifest import Batch, Manifest, QuarantineRef, Statement
from custody.format.members import inflate_stream, inflate_unchecked
from custody.format.offsets import kind_of, line_of
from custody.format.quarantine import parse_quarantined, quarantine_lines
from custody.keys.trust import Trust
from custody.store.pieces import read_pieces, read_stated
from custody.store.protocol import Store
from custody.tlog import merkle
from custody.tlog.log import Form

_TEXT_LIMIT = 4 * limits.MIB
_POSITION = re.compile(
    r"(?P<log>[^/]+)/(?P<partition>[0-9]{1,10})(?:/(?P<sequence>[0-9]{1,12})|@(?P<offset>[0-9]{1,19}))?"
)


@dataclass(frozen=True, slots=True)
class Shown:
    """The answer to a query.

    Attributes:
        position: its position in the chain, as JSON types.
        content: its bytes, in pieces: lines of JSON for records, text for the rest.
        manifest: the statement that accounts for it, if one does.
        behind: of a log's newest entry, how many objects lie in slots after it: they do not count, or a slot before
            them is empty. Of the latter, `MOST_BEYOND` are counted at most.
    """

    position: dict[str, Any]
    content: Iterator[bytes]
    manifest: Manifest | None = None
    behind: int = 0


def show(store: Store, query: str, trust: Trust) -> Shown:
    """Find an object, a statement or a record.

    Args:
        store: the archive.
        query: a key, or a position in a log.
        trust: the available keys: a statement with a wrong signature is not shown.

    Raises:
        ConfigurationError: no archive can have it, or there is no such log, or no statement accounts for the offset, or
            there is no record at it.
        ObjectMissing: the archive does not have it.
        FormatError: the object does not parse.
        StoreError: the store does not give it.
    """
    key = query.removeprefix(f"{store.url}/")
    if key == str(layout.AUDIT_LOG):
        return _newest_audit(store, trust)
    if key == layout.ARCHIVE or key.startswith((layout.AUDITS, layout.CHECKPOINTS)):
        return Shown({"object": key}, iter([store.read(key, limit=_TEXT_LIMIT)]))
    if named := layout.parse_manifest_key(key):
        return _statement(store, *named, _holds(store, named[0], trust))
    if records := layout.parse_records_key(key):
        return _object(store, key, records, trust)
    if position := _POSITION.fullmatch(key):
        log = layout.parse_log(position["log"], int(position["partition"]))
        if log:
            try:
                return _at(store, log, position["offset"], position["sequence"], trust)
            except (ConfigurationError, ObjectMissing):
                if log in (logs := list_logs(store)):
                    raise
                raise unknown_log(str(log), logs) from None
    raise ConfigurationError(
        f"no archive can have {query!r}; name an object's key, or LOG/PARTITION, LOG/PARTITION/SEQUENCE"
        " or LOG/PARTITION@OFFSET"
    )


def _newest_audit(store: Store, trust: Trust) -> Shown:
    """Return the newest audit that counts, whatever else lies in the slots after it.

    Raises:
        ObjectMissing: there is none.
        FormatError: so much lies after it that it is not looked for.
    """
    tip = find_audit_tip(store, Judge(store, layout.AUDIT_LOG, AUDITS, None, trust).may_stand)
    if not tip.head.size:
        raise ObjectMissing(f"the archive {store.url} has no audit yet")
    return replace(show(store, layout.audit_key(tip.head.size - 1), trust), behind=_behind(store, AUDITS, tip))


def _at(store: Store, log: Log, offset: str | None, sequence: str | None, trust: Trust) -> Shown:
    if offset:
        return _record(store, log, int(offset), trust)
    holds = _holds(store, log, trust)
    if sequence:
        try:
            return _statement(store, log, int(sequence), holds)
        except ObjectMissing:
            raise ObjectMissing(f"{log} has no statement {sequence}; `custody show {log}` shows its head") from None
    tip = find_tip(store, log, holds, _audited_size(store, log, trust))
    if not tip.head.size:
        raise ObjectMissing(f"no statement of {log} can be read; run `custody verify`")
    newest = _statement(store, log, tip.head.size - 1, holds)
    return replace(newest, behind=_behind(store, statements_of(log), tip))


def _behind(store: Store, form: Form[Any], tip: Tip[Any]) -> int:
    return len(tip.passed_over) + len(list(islice(beyond_hole(store, form, tip), MOST_BEYOND)))


def events(store: Store, statement: Statement) -> Iterator[bytes]:
    """Return the events of a statement as lines, batch by batch. Bytes that were not signed are never returned.

    Raises:
        FormatError: a batch is damaged. Raised after the last batch before it, with what is left out.
        StoreError: the store does not give it.
    """
    ref, batches = statement.segment, sorted(statement.batches, key=lambda batch: batch.start)
    if ref is None:
        return
    stored = sha256()
    for index, batch in enumerate(batches):
        try:
            lines, member = read_batch(store, ref.key, batch)
        except FormatError as error:
            reason = f"batch {batch.number} in {ref.key} is damaged: {error}"
            raise FormatError(f"{reason}; {_left_out(batches[index:])}; run custody verify") from None
        stored.update(member)
        yield lines
    if stored.hexdigest() != ref.sha256 or store.read(ref.key, limit=1, start=ref.size, size=1):
        raise FormatError(f"{ref.key} is not what was signed, although its events are: run custody verify")


def _left_out(batches: Sequence[Batch]) -> str:
    first, last = batches[0], batches[-1]
    numbers = f"batch {first.number} is" if first is last else f"batches {first.number} to {last.number} are"
    return f"{numbers} left out, from offset {first.first_offset} to {last.next_offset - 1}"


def _holds(store: Store, log: Log, trust: Trust) -> Holds[Manifest]:
    return Judge(store, log, statements_of(log), None, trust).may_stand


def _audited_size(store: Store, log: Log, trust: Trust) -> int:
    """Return the size of a log at the newest audit with a good signature; 0 if that is not known."""
    try:
        archive = read_archive(store)
    except (NoArchive, FormatError):
        return 0
    nights = nightly_audits(archive.statement.created, datetime.now(UTC))
    return audited_sizes(store, archive.id, trust, nights).get(str(log), 0)


def _statement(store: Store, log: Log, sequence: int, holds: Holds[Manifest]) -> Shown:
    entry = read_manifest(store, log, sequence, holds)
    view = {
        "key": layout.manifest_key(log, sequence),
        "leaf": merkle.leaf_hash(entry.message).hex(),
        "statement": json.loads(entry.line),
        "signatures": [msgspec.to_builtins(signature) for signature, _ in entry.signatures],
    }
    return Shown(_chain_position(log, sequence, entry), iter([json.dumps(view, indent=2).encode() + b"\n"]), entry)


def _chain_position(log: Log, sequence: int, entry: Manifest) -> dict[str, Any]:
    statement = entry.statement
    return {
        "log": str(log),
        "sequence": sequence,
        "manifest": layout.manifest_key(log, sequence),
        "leaf": merkle.leaf_hash(entry.message).hex(),
        "offsets": [statement.first_offset, statement.next_offset],
        "sealed_at": statement.sealed_at,
        "keys": [signature.key for signature, _ in entry.signatures],
    }


def _object(store: Store, key: str, records: layout.RecordsKey, trust: Trust) -> Shown:
    """Return a segment or quarantine object, even if no manifest names it."""
    accounting = _find_statement(store, records.log, records.first, trust)
    named = None
    if accounting:
        statement = accounting[1].statement
        named = statement.segment if records.kind == "events" else statement.quarantine
    if not accounting or not named or named.key != key:
        if not store.exists(key):
            raise ObjectMissing(f"there is no object {key} in the archive {store.url}, and no manifest names it")
        position: dict[str, Any] = {"object": key, "log": str(records.log), "manifest": None}
        return Shown(position, _inflated(key, read_pieces(store, key, sys.maxsize)))
    position = {"object": key, "size": named.size, "sha256": named.sha256, **_chain_position(records.log, *accounting)}
    return Shown(position, _inflated(key, read_stated(store, key, named.size, named.sha256)), accounting[1])


def _find_statement(store: Store, log: Log, offset: int, trust: Trust) -> tuple[int, Manifest] | None:
    return find_statement(store, log, offset, _holds(store, log, trust), _audited_size(store, log, trust))


def _record(store: Store, log: Log, offset: int, trust: Trust) -> Shown:
    accounting = _find_statement(store, log, offset, trust)
    if not accounting:
        raise unknown_offset(log, offset)
    sequence, entry = accounting
    statement = entry.statement
    position = {"offset": offset, **_chain_position(log, sequence, entry)}
    match kind_of(statement, offset):
        case "lost" | "skipped" | "unreadable":
            raise no_event(log, sequence, statement, offset)
        case "quarantined" if statement.quarantine:
            position |= {"object": statement.quarantine.key, "quarantined": True}
            return Shown(position, _quarantined(store, statement.quarantine, offset), entry)
    held = line_of(statement, offset)
    if held is None or statement.segment is None:
        raise FormatError(f"{position['manifest']} does not account for offset {offset}: run custody verify")
    batch, line = held
    position |= {"object": statement.segment.key, "batch": batch.number, "line": line}
    return Shown(position, _event(store, statement.segment.key, batch, line), entry)


def _event(store: Store, key: str, batch: Batch, line: int) -> Iterator[bytes]:
    try:
        member = store.read(key, limit=limits.MEMBER_BYTES, start=batch.start, size=batch.size)
        payload = inflate_unchecked(batch, member)
    except FormatError as error:
        raise FormatError(f"batch {batch.number} in {key} is damaged: {error}; run custody verify") from None
    lines = payload.split(b"\n")
    if line < len(lines):
        yield lines[line] + b"\n"
    if sha256(payload).hexdigest() != batch.sha256:
        raise FormatError(f"batch {batch.number} in {key} is not what was signed: run custody verify")


def _quarantined(store: Store, ref: QuarantineRef, offset: int) -> Iterator[bytes]:
    """Return the line of a quarantine object for an offset, with its key and value as `text` where they are UTF-8."""
    wanted = f'{{"offset":{offset},'.encode()
    try:
        for line in quarantine_lines(read_stated(store, ref.key, ref.size, ref.sha256), ref.size, ref.inflated):
            if line.startswith(wanted):
                yield _legible(line) + b"\n"
    except FormatError as error:
        raise FormatError(f"{ref.key} is damaged: {error}; run custody verify") from None


def _legible(line: bytes) -> bytes:
    """Return a line of the quarantine with one more field, `text`: what a person can read of its base64."""
    text: dict[str, str] = {}
    try:
        record = parse_quarantined(line)
    except FormatError:
        # The digest of the object will say that it is damaged.
        return line
    for name in ("key", "value"):
        with suppress(UnicodeDecodeError):
            if (data := getattr(record, name)) is not None:
                text[name] = data.decode()
    return line[:-1] + b',"text":' + json.dumps(text, ensure_ascii=False).encode() + b"}" if text else line


def _inflated(key: str, pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Inflate an object piece by piece."""
    try:
        yield from inflate_stream(pieces, sys.maxsize)
    except FormatError as error:
        raise FormatError(f"{key} is damaged: {error}; run custody verify") from None
