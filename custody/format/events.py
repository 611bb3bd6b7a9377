"""The six audit event types, and the writer's verdict on record values: events, or the reason why not.

A value is archived as an event only if it is one by FORMAT.md and by its type's definition below; fields that a type
does not name are kept, since bytes are archived as received. `check` gives the verdict for many values at once:

- The fast way looks at all values together. It vouches only for what cheap tests can prove: msgspec alone lets bad
  UTF-8, deep nesting and doubled keys pass where it skips, and reads two documents on one line, or one on two.
- What it does not vouch for is cut in eight, and again; a value that is left alone takes the slow way, in which the
  standard library's parser decides, and which says why in words that a person understands.
"""

import ipaddress
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import chain
from typing import Annotated, Any, Literal

import msgspec

from custody.format import limits
from custody.format.lines import certain
from custody.format.times import EPOCH, MICROSECOND, YEAR_10000_US

Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Milliseconds = Annotated[float, msgspec.Meta(ge=0)]
Long = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]


class Event(msgspec.Struct, tag_field="event_type", frozen=True, gc=False):
    """What all events have. Times are RFC 3339 with zone; the address is IPv4 or IPv6."""

    timestamp: str
    request_id: str
    api_key_id: str | None
    client_ip: str


class QueryExecuted(Event, tag="query_executed", frozen=True, gc=False):
    """A GraphQL query ran. `execution_time` is in ms."""

    query_hash: str
    complexity: Count
    execution_time: Milliseconds
    result_rows: Count


class AuthAttempt(Event, tag="auth_attempt", frozen=True, gc=False):
    """Somebody tried to authenticate."""

    status: Literal["success", "failure"]
    failure_reason: str | None
    key_version: Long | None
    key_age_days: Long | None


class AuthzCheck(Event, tag="authz_check", frozen=True, gc=False):
    """A permission was asked for."""

    resource_type: str
    resource_id: str
    field_name: str | None
    permission_granted: bool


class ApiKeyOperation(Event, tag="api_key_operation", frozen=True, gc=False):
    """An API key was created, rotated or revoked."""

    operation: Literal["created", "rotated", "revoked"]
    permissions: list[Any]
    tier: str


class SecurityEvent(Event, tag="security_event", frozen=True, gc=False):
    """Something suspicious was noticed."""

    severity: Literal["low", "medium", "high", "critical"]
    alert_type: str
    details: dict[str, Any]
    action_taken: str | None


class ConfigChange(Event, tag="config_change", frozen=True, gc=False):
    """A setting of the application was changed."""

    resource: str
    operation: str
    changed_by: str
    changes: dict[str, Any]
    approval_status: str


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
_HOSTILE = (msgspec.MsgspecError, ValueError, RecursionError, OverflowError)

_TIME = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-5][0-9])(?:\.([0-9]+))?(?:Z|([+-])([01][0-9]|2[0-3]):([0-5][0-9]))"
)
_ZEROES = bytes.maketrans(b"123456789", b"000000000")
_UTC_SHAPE = re.compile(rb"0000-00-00T00:00:00(?:\.0+)?Z")


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


def check(values: Sequence[bytes | None], *, lines: bool = False) -> Checked:
    """Return which record values are events, and why the others must be quarantined. Never raises for bad input.

    Args:
        values: values as received, in order; None where the record has none.
        lines: whether to give the events one by one, too.
    """
    if not values:
        return Checked(b"", 0, Counter(), 0, 0)
    whole = _vouch(values, lines=lines)
    if whole is not None:
        return whole
    if len(values) == 1:
        reason, bounds, kind = _judge(values[0])
        if reason is not None or values[0] is None:
            return Checked(b"", 0, Counter(), 0, 0, ((0, reason or ""),))
        line = values[0].replace(b"\n", b" ")
        return Checked(line + b"\n", 1, Counter((kind,)), *bounds, lines=(line,) if lines else ())
    step = max(1, len(values) // 8)
    runs = [values[at : at + step] for at in range(0, len(values), step)]
    return join([check(run, lines=lines) for run in runs], [len(run) for run in runs])


def join(parts: Sequence[Checked], spans: Sequence[int] | None = None) -> Checked:
    """Put verdicts on consecutive runs together.

    Args:
        parts: the verdicts.
        spans: how many values each run had, for the indices in `refused`; without it `refused` is left out.
    """
    types: Counter[str] = Counter()
    refused: list[tuple[int, str]] = []
    before = 0
    for place, part in enumerate(parts):
        types.update(part.types)
        if spans is not None:
            refused.extend((before + index, reason) for index, reason in part.refused)
            before += spans[place]
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


def reason(value: bytes | None) -> str | None:
    """Return why a value is not an event that custody takes, or None where it is one."""
    return _judge(value)[0]


def _vouch(values: Sequence[bytes | None], *, lines: bool) -> Checked | None:
    """Return the verdict where cheap tests prove that every value is an event, else None."""
    count = len(values)
    try:
        if b"\n" in b"".join(values):  # type: ignore[arg-type]
            # A raw newline may stand between tokens, never in a string: to be decided before it becomes a space.
            for value in values:
                if b"\n" in value:  # type: ignore[operator]
                    _decoder.decode(value)  # type: ignore[arg-type]
            rows = [value.replace(b"\n", b" ") for value in values]  # type: ignore[union-attr]
        else:
            rows = values  # type: ignore[assignment]
        # The empty one at the end gives the last line its newline, without a copy.
        payload = b"\n".join((*rows, b""))
        if len(payload) > limits.EVENT_BYTES and max(map(len, values)) > limits.EVENT_BYTES:  # type: ignore[arg-type]
            return None
        events = _decoder.decode_lines(payload)
        if len(events) != count or not certain(payload, count):
            return None
        bounds = _time_bounds([event.timestamp for event in events])
        if bounds is None or not _are_addresses({event.client_ip for event in events}):
            return None
    except (*_HOSTILE, TypeError, IndexError):
        return None
    types = Counter({_NAMES[kind]: number for kind, number in Counter(map(type, events)).items()})
    return Checked(payload, count, types, *bounds, lines=rows if lines else ())


def _time_bounds(times: list[str]) -> tuple[int, int] | None:
    """Return lower and upper bound of times in µs since 1970, or None if one of them is no time."""
    first, last = min(times), max(times)
    joined = "".join(times).encode()
    shape = first.encode().translate(_ZEROES)
    size = len(first)
    if (
        _UTC_SHAPE.fullmatch(shape)
        and joined.translate(_ZEROES) == shape * len(times)
        # All in one hour of one day, as text; then only minutes and seconds are left to hold.
        and first[:13] == last[:13]
        and not joined[14::size].translate(None, b"012345")
        and not joined[17::size].translate(None, b"012345")
    ):
        low, high = parse_time(first), parse_time(last)
        return (low[0], high[1]) if low and high else None
    bounds = [parse_time(text) for text in times]
    known = [pair for pair in bounds if pair is not None]
    if len(known) != len(bounds):
        return None
    return min(low for low, _ in known), max(high for _, high in known)


def parse_time(text: str) -> tuple[int, int] | None:
    """Return the bounds in µs since 1970 of an event's time, or None if it is none (FORMAT.md, Times in events).

    Both bounds are the same unless the time has digits beyond the microsecond.
    """
    match = _TIME.fullmatch(text)
    if match is None:
        return None
    try:
        moment = datetime.fromisoformat(match[1] + "+00:00")
    except ValueError:
        return None
    floor = (moment - EPOCH) // MICROSECOND
    if match[3]:
        offset = (int(match[4]) * 60 + int(match[5])) * 60_000_000
        floor -= offset if match[3] == "+" else -offset
    fraction = match[2] or ""
    floor += int(fraction[:6].ljust(6, "0"))
    if not 0 <= floor < YEAR_10000_US:
        return None
    beyond = bool(fraction[6:].strip("0")) and floor + 1 < YEAR_10000_US
    return floor, floor + beyond


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    # A zone ("fe80::1%eth0") means something on one host only, and Elasticsearch refuses it.
    return "%" not in text


_known_addresses: set[str] = set()
_KNOWN_LIMIT = 100_000


def _are_addresses(texts: set[str]) -> bool:
    # Clients come again and again: a set difference is ten times as fast as parsing.
    unknown = texts - _known_addresses
    if not all(map(_is_address, unknown)):
        return False
    if len(_known_addresses) + len(unknown) > _KNOWN_LIMIT:
        _known_addresses.clear()
    _known_addresses.update(unknown)
    return True


def _judge(value: bytes | None) -> tuple[str | None, tuple[int, int], str]:  # noqa: C901, PLR0912 - a list of checks
    """Return the reason against a value, or None with the bounds of its time and its type."""
    no_time = (0, 0)
    if value is None:
        return "the record has no value (a tombstone)", no_time, ""
    if not value.strip():
        return "the value is empty", no_time, ""
    if len(value) > limits.EVENT_BYTES:
        return f"the value has {len(value)} bytes, more than the {limits.EVENT_BYTES} of an event", no_time, ""
    text, problem = _text(value)
    if problem is not None:
        return problem, no_time, ""
    members, problem = _members(text)
    if problem is not None:
        return problem, no_time, ""
    fields = dict(members)
    names = [name for name, _ in members]
    for name in ("event_type", "timestamp"):
        if name not in fields:
            return f"{name} is missing", no_time, ""
        if names.count(name) > 1:
            return f"{name} stands {names.count(name)} times", no_time, ""
    kind, time = fields["event_type"], fields["timestamp"]
    if not isinstance(kind, str):
        return "event_type is not a string", no_time, ""
    if kind not in EVENT_TYPES:
        return f"event_type {_short(kind)} is not one of {', '.join(EVENT_TYPES)}", no_time, ""
    if not isinstance(time, str):
        return "timestamp is not a string", no_time, ""
    bounds = parse_time(time)
    if bounds is None:
        return (
            (
                f"timestamp {_short(time)} is not an RFC 3339 time with zone, such as 2026-01-31T23:59:59.123Z,"
                " of the years 1970 to 9999"
            ),
            no_time,
            "",
        )
    try:
        event = _decoder.decode(value)
    except msgspec.ValidationError as error:
        return f"{kind}: {error}", no_time, ""
    except _HOSTILE as error:
        return f"{kind}: {type(error).__name__}: {error}", no_time, ""
    if not _is_address(event.client_ip):
        return f"client_ip {_short(event.client_ip)} is not an IPv4 or IPv6 address", no_time, ""
    return None, bounds, kind


def _text(value: bytes) -> tuple[str, str | None]:
    try:
        text = value.decode()
    except UnicodeDecodeError as error:
        return "", f"not UTF-8: byte 0x{value[error.start]:02x} at {error.start}"
    if text.startswith("\ufeff"):
        return "", "starts with a byte order mark"
    depth = deepest = 0
    for match in re.finditer(r'"(?:[^"\\]|\\.)*"|[\[{]|[\]}]', text, re.DOTALL):
        if match[0] in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif match[0] in "]}":
            depth -= 1
    if deepest > limits.EVENT_DEPTH:
        return "", f"nested {deepest} deep, more than {limits.EVENT_DEPTH}"
    return text, None


def _members(text: str) -> tuple[list[tuple[str, Any]], str | None]:
    """Return the members of the outermost object, doubled ones too."""
    top: list[tuple[str, Any]] = []

    def keep(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        # Inner objects are done before the outer one, so the last call is the outermost object's.
        nonlocal top
        top = pairs
        return {}

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    try:
        # Numbers may be of any size: they are not converted, only passed over.
        document = json.loads(text, object_pairs_hook=keep, parse_int=len, parse_float=len, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        return [], f"not JSON: {error}"
    if not isinstance(document, dict):
        return [], f"a JSON {_json_kind(document)}, not an object"
    return top, None


def _json_kind(document: object) -> str:
    match document:
        case list():
            return "array"
        case str():
            return "string"
        case bool():
            return "boolean"
        case None:
            return "null"
        case _:
            return "number"


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
