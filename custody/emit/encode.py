"""Makes an event the bytes that are sent: redacted, checked as the drain checks it, and numbered last.

- `encode` refuses what the drain would quarantine, with the drain's reason, but for the values in it.
- `number` adds `source` and `source_seq` behind the other fields. An event that was checked without them stays one:
  `encode` reserves their bytes, and no event may bring its own.
"""

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final, NewType

import msgspec

from custody.emit.builders import WRITERS_FIELDS, AuditEvent
from custody.emit.errors import AuditError
from custody.emit.identity import SOURCE_BYTES
from custody.emit.redact import Redaction, is_finite
from custody.errors import ConfigurationError
from custody.format import events, limits
from custody.format.lines import oversize
from custody.format.reasons import example_of

_SEQ_BYTES: Final = len(str(limits.INT_MAX))
RESERVED: Final = len(b',"source":"","source_seq":') + SOURCE_BYTES + _SEQ_BYTES
"""Bytes of an event that `encode` leaves for `number`."""


CheckedLine = NewType("CheckedLine", bytes)
"""A line of JSON that has passed the check."""


def encode(event: AuditEvent, redaction: Redaction) -> CheckedLine:
    """Return an event as a line of JSON, without credentials, and without `source` and `source_seq`.

    Raises:
        AuditError: the drain would quarantine it (`Serialization`).
    """
    (encoded,) = encode_all((event,), redaction)
    if isinstance(encoded, AuditError):
        raise encoded
    return encoded


def encode_all(batch: Sequence[AuditEvent], redaction: Redaction) -> list[CheckedLine | AuditError]:
    """Return for each event its line, or the error with which `encode` refuses it. Many are checked at once."""
    made: list[CheckedLine | AuditError] = []
    for event in batch:
        try:
            made.append(CheckedLine(_line(event, redaction)))
        except AuditError as error:
            # Its traceback would keep the event's values in memory, for as long as the error is kept.
            made.append(error.with_traceback(None))
    if len(made) == 1 and isinstance(made[0], bytes):
        # What a batch needs besides costs more than the check.
        reason = events.reason(made[0])
        return made if reason is None else [_refusal(reason)]
    lines = [index for index, line in enumerate(made) if isinstance(line, bytes)]
    checked = events.check([made[index] for index in lines])  # type: ignore[misc]
    for at, reason in checked.refused:
        made[lines[at]] = _refusal(reason)
    return made


def number(line: bytes, source: str, seq: int) -> bytes:
    """Return an encoded event with its source and its number there.

    Args:
        line: what `encode` returned.
        source: the emitting process, as `str(Source(…))`.
        seq: 1 for the source's first event, 2 for the next, and so on.

    Raises:
        ConfigurationError: the source is longer than a source can be.
    """
    return b"%b%b%d}" % (line[:-1], _source_field(source), seq)


@lru_cache(maxsize=64)
def _source_field(source: str) -> bytes:
    encoded = msgspec.json.encode(source)
    if len(encoded) > SOURCE_BYTES + len('""'):
        raise ConfigurationError(f"the source of an event has at most {SOURCE_BYTES} bytes: choose shorter names")
    return b',"source":%b,"source_seq":' % encoded


def _line(event: AuditEvent, redaction: Redaction) -> bytes:
    """Return an event's bytes, which are not checked yet.

    Raises:
        AuditError: they are no JSON, or too many, or the event brings a field of the writer.
    """
    fields = redaction.redact(event.fields)
    for name in WRITERS_FIELDS:
        if name in fields:
            raise AuditError("Serialization", f"{name} is given by the writer: leave it out")
    line = _dump(fields)
    if line is None:
        raise _refusal(_reason_of_odd(fields))
    if len(line) + RESERVED > limits.EVENT_BYTES:
        raise AuditError("Serialization", oversize(len(line) + RESERVED))
    return line


def _dump(fields: dict[str, Any]) -> bytes | None:
    """Return fields as JSON, None where they hold what JSON lacks: half a character, or a number that is not finite."""
    try:
        line = msgspec.json.encode(fields)
    except (ValueError, OverflowError, RecursionError):
        return None
    # msgspec writes such a number as null.
    return None if b"null" in line and not is_finite(fields) else line


def _reason_of_odd(fields: dict[str, Any]) -> str:
    """Return the drain's reason against fields as Python's own encoder writes them."""
    try:
        line = json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")
    except (ValueError, OverflowError, RecursionError) as error:
        return f"not JSON: {type(error).__name__}"
    return events.reason(line) or "not JSON"


def _refusal(reason: str) -> AuditError:
    return AuditError("Serialization", example_of(reason))
