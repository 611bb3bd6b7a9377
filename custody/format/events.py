"""The six audit event types, and the writer's verdict on record values: events, or the reason why not.

A value is archived as an event only if FORMAT.md calls it one. If its type is one of the six below, it must follow that
type's definition too. Other types are an application's own: they are archived, unless `own_types` is False. Fields that
a type does not name are kept, because bytes are archived as received. `check` gives the verdict on many values at once:

- The fast way decodes all values together. `lines.certain` then proves what msgspec does not check. Where some are of
  own types, only the envelopes are decoded together, and then the events of the six types.
- If the fast way cannot vouch for a run of values, the run is cut in eight, and each part is tried again.
- A value that is left alone takes the slow way. `lines.check_line` decides, and its error is the reason for people.
"""

import ipaddress
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Annotated, Any, Literal

import msgspec

from custody.errors import FormatError
from custody.format import limits
from custody.format.lines import Envelope, Time, certain, check_line, parse_time, shorten, time_bounds, type_fault
from custody.format.times import YEAR_10000_US

Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Milliseconds = Annotated[float, msgspec.Meta(ge=0)]
Long = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]


def _means(text: str) -> msgspec.Meta:
    """Return what a field means, for docs/events.md. It changes nothing about what is taken."""
    return msgspec.Meta(description=text)


class Event(msgspec.Struct, tag_field="event_type", frozen=True, gc=False):
    """The fields of all events."""

    timestamp: Annotated[str, _means("when it happened, in RFC 3339 with zone")]
    request_id: Annotated[str, _means("the request that it belongs to")]
    api_key_id: Annotated[str | None, _means("the API key of the caller, never its secret")]
    client_ip: Annotated[str, _means("the caller's IPv4 or IPv6 address, without a zone")]


class QueryExecuted(Event, tag="query_executed", frozen=True, gc=False):
    """A GraphQL query ran."""

    query_hash: Annotated[str, _means("hash of the query's text")]
    complexity: Annotated[Count, _means("what the server computed as its cost")]
    execution_time: Annotated[Milliseconds, _means("how long it ran, in ms")]
    result_rows: Annotated[Count, _means("rows in the result")]


class AuthAttempt(Event, tag="auth_attempt", frozen=True, gc=False):
    """Somebody tried to authenticate."""

    status: Annotated[Literal["success", "failure"], _means("how it ended")]
    failure_reason: Annotated[str | None, _means("why it failed")]
    key_version: Annotated[Long | None, _means("version of the key that was used")]
    key_age_days: Annotated[Long | None, _means("days since that key was made")]


class AuthzCheck(Event, tag="authz_check", frozen=True, gc=False):
    """A permission was asked for."""

    resource_type: Annotated[str, _means("kind of what was to be accessed")]
    resource_id: Annotated[str, _means("which of that kind")]
    field_name: Annotated[str | None, _means("the field, if only one was asked for")]
    permission_granted: Annotated[bool, _means("the answer")]


class ApiKeyOperation(Event, tag="api_key_operation", frozen=True, gc=False):
    """An API key was created, rotated or revoked."""

    operation: Annotated[Literal["created", "rotated", "revoked"], _means("what was done")]
    permissions: Annotated[list[Any], _means("what the key may do")]
    tier: Annotated[str, _means("the key's plan")]


class SecurityEvent(Event, tag="security_event", frozen=True, gc=False):
    """Something suspicious was noticed."""

    severity: Annotated[Literal["low", "medium", "high", "critical"], _means("how bad it is")]
    alert_type: Annotated[str, _means("what was noticed")]
    details: Annotated[dict[str, Any], _means("whatever helps to understand it")]
    action_taken: Annotated[str | None, _means("what was done about it")]


class ConfigChange(Event, tag="config_change", frozen=True, gc=False):
    """A setting of the application was changed."""

    resource: Annotated[str, _means("what was changed")]
    operation: Annotated[str, _means("how: created, updated, deleted, …")]
    changed_by: Annotated[str, _means("who changed it")]
    changes: Annotated[dict[str, Any], _means("the settings, with old and new values")]
    approval_status: Annotated[str, _means("whether it was approved")]


EVENT_TYPES: dict[str, type[Event]] = {
    "query_executed": QueryExecuted,
    "auth_attempt": AuthAttempt,
    "authz_check": AuthzCheck,
    "api_key_operation": ApiKeyOperation,
    "security_event": SecurityEvent,
    "config_change": ConfigChange,
}
"""Each type by its name: what decoding, Elasticsearch mapping, DuckDB and Parquet columns are made from."""

_NAMES = {kind: name for name, kind in EVENT_TYPES.items()}
_decoder: msgspec.json.Decoder[Event] = msgspec.json.Decoder(
    QueryExecuted | AuthAttempt | AuthzCheck | ApiKeyOperation | SecurityEvent | ConfigChange
)
_envelopes: msgspec.json.Decoder[Envelope] = msgspec.json.Decoder(Envelope)
_HOSTILE = (msgspec.MsgspecError, ValueError, RecursionError, OverflowError)


@dataclass(frozen=True, slots=True)
class Checked:
    """The verdict on a run of values.

    Attributes:
        payload: the events' bytes, each followed by a newline.
        events: how many they are.
        types: events of each type.
        earliest: lower bound of their times, µs since 1970.
        latest: upper bound of their times, µs since 1970, less than 1 µs off like `earliest`.
        refused: index in the run and reason of each value that is no event, in order.
        lines: the events one by one, without newlines, if they were asked for.
    """

    payload: bytes
    events: int
    types: Counter[str]
    earliest: int
    latest: int
    refused: tuple[tuple[int, str], ...] = ()
    lines: Sequence[bytes] = ()


def check(values: Sequence[bytes | None], *, lines: bool = False, own_types: bool = True) -> Checked:
    """Return which record values are events, and why the others must be quarantined. Never raises for bad input.

    Args:
        values: values as received, in order; None where the record has none.
        lines: whether to give the events one by one, too.
        own_types: whether events of other types than the six are taken.
    """
    if not values:
        return Checked(b"", 0, Counter(), 0, 0)
    whole = _vouch(values, lines=lines, own_types=own_types)
    if whole is not None:
        return whole
    if len(values) == 1:
        try:
            kind, time = _read(values[0], own_types=own_types)
        except FormatError as error:
            return Checked(b"", 0, Counter(), 0, 0, ((0, str(error)),))
        line = (values[0] or b"").replace(b"\n", b" ")
        return Checked(line + b"\n", 1, Counter((kind,)), *_microseconds(time, time), lines=(line,) if lines else ())
    step = max(1, len(values) // 8)
    runs = [values[start : start + step] for start in range(0, len(values), step)]
    return join([check(run, lines=lines, own_types=own_types) for run in runs], [len(run) for run in runs])


def join(parts: Sequence[Checked], spans: Sequence[int] | None = None) -> Checked:
    """Put verdicts on consecutive runs together.

    Args:
        parts: the verdicts.
        spans: how many values each run had, for the indices in `refused`; without it `refused` is left out.
    """
    types: Counter[str] = Counter()
    refused: list[tuple[int, str]] = []
    before = 0
    for part_index, part in enumerate(parts):
        types.update(part.types)
        if spans is not None:
            refused.extend((before + index, reason) for index, reason in part.refused)
            before += spans[part_index]
    held = [part for part in parts if part.events]
    return Checked(
        b"".join([part.payload for part in held]),
        sum(part.events for part in held),
        types,
        min((part.earliest for part in held), default=0),
        max((part.latest for part in held), default=0),
        tuple(refused),
        list(chain.from_iterable([part.lines for part in held])),
    )


def reason(value: bytes | None, *, own_types: bool = True) -> str | None:
    """Return why a value is not an event that custody takes, or None where it is one."""
    if value is not None and _is_known(value):
        return None
    try:
        _read(value, own_types=own_types)
    except FormatError as error:
        return str(error)
    return None


def _is_known(value: bytes) -> bool:
    """Return whether cheap tests prove that a value is an event of the six types."""
    try:
        event = _decoder.decode(value)
    except _HOSTILE:
        return False
    return (
        len(value) <= limits.EVENT_BYTES
        and b"\n" not in value
        and certain(value + b"\n", 1)
        and parse_time(event.timestamp) is not None
        and are_addresses([event.client_ip])
    )


def _vouch(values: Sequence[bytes | None], *, lines: bool, own_types: bool) -> Checked | None:
    """Return the verdict where cheap tests prove that every value is an event, else None."""
    try:
        # Who writes newlines writes them in each event. `certain` finds the others, because it counts newlines.
        if b"\n" not in values[0]:  # type: ignore[operator]
            checked = _vouch_rows(values, lines=lines, own_types=own_types)  # type: ignore[arg-type]
            if checked is not None or b"\n" not in b"".join(values):  # type: ignore[arg-type]
                return checked
        return _vouch_rows(list(map(_in_one_line, values)), lines=lines, own_types=own_types)  # type: ignore[arg-type]
    except (*_HOSTILE, TypeError, IndexError):
        return None


def _in_one_line(value: bytes) -> bytes:
    """Return a value without newlines.

    Raises:
        msgspec.MsgspecError: it has a newline within a string, or is no JSON.
    """
    if b"\n" not in value:
        return value
    # A raw newline may stand between tokens, never in a string: to be decided before it becomes a space.
    _envelopes.decode(value)
    return value.replace(b"\n", b" ")


def _vouch_rows(rows: Sequence[bytes], *, lines: bool, own_types: bool) -> Checked | None:
    """Return the verdict where every value is an event that holds no newline; None where that is not certain."""
    # The empty one at the end gives the last line its newline, without a copy.
    payload = b"\n".join((*rows, b""))
    if len(payload) > limits.EVENT_BYTES and max(map(len, rows)) > limits.EVENT_BYTES:
        return None
    try:
        events = _decoder.decode_lines(payload)
    except msgspec.ValidationError:
        checked = _read_mixed(payload, rows) if own_types else None
    else:
        checked = _read_known(payload, events, len(rows))
    if checked is None:
        return None
    types, bounds = checked
    return Checked(payload, len(rows), types, *_microseconds(*bounds), lines=rows if lines else ())


def _read_known(payload: bytes, events: Sequence[Event], count: int) -> tuple[Counter[str], tuple[Time, Time]] | None:
    """Return types and time bounds of lines that were decoded as events of the six types, None if one may be none."""
    if len(events) != count or not certain(payload, count):
        return None
    bounds = time_bounds([event.timestamp for event in events])
    if bounds is None or not are_addresses([event.client_ip for event in events]):
        return None
    types: Counter[str] = Counter()
    for kind, number in Counter(map(type, events)).items():
        types[_NAMES[kind]] = number
    return types, bounds


def _read_mixed(payload: bytes, rows: Sequence[bytes]) -> tuple[Counter[str], tuple[Time, Time]] | None:
    """Return types and time bounds of lines of which some are of own types, None if a line may be no event.

    Raises:
        msgspec.MsgspecError, RecursionError: a line is no event, or not what its type says.
    """
    envelopes = _envelopes.decode_lines(payload)
    if len(envelopes) != len(rows) or not certain(payload, len(rows)):
        return None
    types = Counter([envelope.event_type for envelope in envelopes])
    known = [row for row, envelope in zip(rows, envelopes, strict=True) if envelope.event_type in EVENT_TYPES]
    # If all are of the six types, one of them is not what its type says.
    if len(known) == len(rows) or any(map(type_fault, types)):
        return None
    # Each line is one document, so these are as many events.
    if known and not are_addresses([event.client_ip for event in _decoder.decode_lines(b"\n".join(known))]):
        return None
    bounds = time_bounds([envelope.timestamp for envelope in envelopes])
    return None if bounds is None else (types, bounds)


def _microseconds(first: Time, last: Time) -> tuple[int, int]:
    """Return the bounds in µs since 1970 of events between two times."""
    latest, beyond = last.microseconds
    return first.microseconds[0], min(latest + beyond, YEAR_10000_US - 1)


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    # A zone ("fe80::1%eth0") means something on one host only, and Elasticsearch refuses it.
    return "%" not in text


_known_addresses: set[str] = set()
_KNOWN_LIMIT = 100_000


def are_addresses(texts: Collection[str]) -> bool:
    """Return whether all are IPv4 or IPv6 addresses, as `client_ip` must be."""
    # Clients come again and again: to look one up is many times as fast as to parse it.
    if _known_addresses.issuperset(texts):
        return True
    unknown = set(texts) - _known_addresses
    if not all(map(_is_address, unknown)):
        return False
    if len(_known_addresses) + len(unknown) > _KNOWN_LIMIT:
        _known_addresses.clear()
    _known_addresses.update(unknown)
    return True


def _read(value: bytes | None, *, own_types: bool) -> tuple[str, Time]:
    """Return the type and the time of one event. This is the slow way.

    Raises:
        FormatError: it is not an event that custody takes; the message says why.
    """
    if value is None:
        raise FormatError("the record has no value (a tombstone)")
    if not value.strip():
        raise FormatError("the value is empty")
    kind, time = check_line(value)
    if kind not in EVENT_TYPES:
        if own_types:
            return kind, time
        raise FormatError(f"event_type {shorten(kind)} is not one of {', '.join(EVENT_TYPES)}")
    try:
        event = _decoder.decode(value)
    except msgspec.ValidationError as error:
        raise FormatError(f"{kind}: {error}") from None
    except _HOSTILE as error:
        raise FormatError(f"{kind}: {type(error).__name__}: {error}") from None
    if not _is_address(event.client_ip):
        raise FormatError(f"client_ip {shorten(event.client_ip)} is not an IPv4 or IPv6 address")
    return kind, time
