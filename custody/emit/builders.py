"""Builds audit events of the six types and of own types, and refuses what the drain would quarantine.

- Each builder takes keyword arguments alone. More fields than a type names are allowed, and kept.
- A builder stamps the time and gives an `event_id`, unless they are given.
- `source` and `source_seq` are a writer's: no event may bring its own.
- Refusals name the field and the rule, and never show the value.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address
from types import MappingProxyType
from typing import Any, Literal

import msgspec

from custody.emit.errors import AuditError
from custody.emit.identity import uuid7
from custody.format import events
from custody.format.reasons import example_of
from custody.format.times import format_time

__all__ = [
    "AuditEvent",
    "api_key_operation",
    "auth_attempt",
    "authz_check",
    "config_change",
    "own",
    "query_executed",
    "security_event",
]

Address = str | IPv4Address | IPv6Address
WRITERS_FIELDS = ("source", "source_seq")
"""Fields that a writer adds to each event."""

_ANY_TIME = "2026-01-01T00:00:00Z"
_ANY_EVENT: Mapping[str, Any] = {
    "event_type": "auth_attempt",
    "timestamp": _ANY_TIME,
    "request_id": "",
    "api_key_id": None,
    "client_ip": "::",
    "status": "success",
    "failure_reason": None,
    "key_version": None,
    "key_age_days": None,
}
"""An event of one of the six types, into which a field is put that msgspec's types do not check."""


@dataclass(frozen=True, slots=True, repr=False)
class AuditEvent:
    """An event that has no source and no number yet.

    Attributes:
        event_type: its type.
        fields: all its fields, `event_type`, `timestamp` and `event_id` too. They are not redacted yet.
    """

    event_type: str
    fields: Mapping[str, Any]

    def __repr__(self) -> str:
        kind = self.event_type if self.event_type in events.EVENT_TYPES else "an own type"
        return f"<AuditEvent of {kind}, {len(self.fields)} fields>"


def query_executed(
    *,
    request_id: str,
    api_key_id: str | None,
    client_ip: Address,
    query_hash: str,
    complexity: int,
    execution_time: float,
    result_rows: int,
    timestamp: datetime | str | None = None,
    event_id: str | None = None,
    **more: Any,
) -> AuditEvent:
    """Return the event that a GraphQL query ran.

    Args:
        request_id: the request that it belongs to.
        api_key_id: the id of the caller's API key, never its secret; None without a key.
        client_ip: the caller's address, without a zone.
        query_hash: hash of the query's text.
        complexity: what the server computed as its cost, in points of its own, 0 or more.
        execution_time: how long it ran, in milliseconds.
        result_rows: rows in the result.
        timestamp: when it happened; now if not given.
        event_id: a UUID of version 7; a new one if not given.
        more: fields of your own.

    Raises:
        AuditError: the drain would quarantine it (`Serialization`).
    """
    own_fields = {
        "query_hash": query_hash,
        "complexity": complexity,
        "execution_time": execution_time,
        "result_rows": result_rows,
    }
    return _build("query_executed", timestamp, event_id, _caller(request_id, api_key_id, client_ip) | own_fields, more)


def auth_attempt(
    *,
    request_id: str,
    api_key_id: str | None,
    client_ip: Address,
    status: Literal["success", "failure"],
    failure_reason: str | None = None,
    key_version: int | None = None,
    key_age_days: int | None = None,
    timestamp: datetime | str | None = None,
    event_id: str | None = None,
    **more: Any,
) -> AuditEvent:
    """Return the event that somebody tried to authenticate.

    Args:
        request_id: the request that it belongs to.
        api_key_id: the id of the key that was shown, never its secret; None without a key, or if it is unknown.
        client_ip: the caller's address, without a zone.
        status: how it ended.
        failure_reason: why it failed.
        key_version: version of the key that was used.
        key_age_days: days since that key was made.
        timestamp: when it happened; now if not given.
        event_id: a UUID of version 7; a new one if not given.
        more: fields of your own.

    Raises:
        AuditError: the drain would quarantine it (`Serialization`).
    """
    own_fields = {
        "status": status,
        "failure_reason": failure_reason,
        "key_version": key_version,
        "key_age_days": key_age_days,
    }
    return _build("auth_attempt", timestamp, event_id, _caller(request_id, api_key_id, client_ip) | own_fields, more)


def authz_check(
    *,
    request_id: str,
    api_key_id: str | None,
    client_ip: Address,
    resource_type: str,
    resource_id: str,
    permission_granted: bool,
    field_name: str | None = None,
    timestamp: datetime | str | None = None,
    event_id: str | None = None,
    **more: Any,
) -> AuditEvent:
    """Return the event that a permission was asked for.

    Args:
        request_id: the request that it belongs to.
        api_key_id: the id of the caller's API key, never its secret; None without a key.
        client_ip: the caller's address, without a zone.
        resource_type: kind of what was to be accessed.
        resource_id: which of that kind.
        permission_granted: the answer.
        field_name: the field, if only one was asked for.
        timestamp: when it happened; now if not given.
        event_id: a UUID of version 7; a new one if not given.
        more: fields of your own.

    Raises:
        AuditError: the drain would quarantine it (`Serialization`).
    """
    own_fields = {
        "resource_type": resource_type,
        "resource_id": resource_id,
        "field_name": field_name,
        "permission_granted": permission_granted,
    }
    return _build("authz_check", timestamp, event_id, _caller(request_id, api_key_id, client_ip) | own_fields, more)


def api_key_operation(
    *,
    request_id: str,
    api_key_id: str,
    actor: str | None,
    client_ip: Address,
    operation: Literal["created", "rotated", "revoked"],
    permissions: Sequence[Any],
    tier: str,
    timestamp: datetime | str | None = None,
    event_id: str | None = None,
    **more: Any,
) -> AuditEvent:
    """Return the event that an API key was created, rotated or revoked.

    Args:
        request_id: the request that it belongs to.
        api_key_id: the id of the key acted on, never its secret.
        actor: who acts: the id of the caller's API key or user; None if nobody is known.
        client_ip: the caller's address, without a zone.
        operation: what was done.
        permissions: what the key may do.
        tier: the key's plan.
        timestamp: when it happened; now if not given.
        event_id: a UUID of version 7; a new one if not given.
        more: fields of your own.

    Raises:
        AuditError: the drain would quarantine it (`Serialization`).
    """
    own_fields = {"actor": actor, "operation": operation, "permissions": _array(permissions), "tier": tier}
    return _build(
        "api_key_operation", timestamp, event_id, _caller(request_id, api_key_id, client_ip) | own_fields, more
    )


def security_event(
    *,
    request_id: str,
    api_key_id: str | None,
    client_ip: Address,
    severity: Literal["low", "medium", "high", "critical"],
    alert_type: str,
    details: Mapping[str, Any],
    action_taken: str | None = None,
    timestamp: datetime | str | None = None,
    event_id: str | None = None,
    **more: Any,
) -> AuditEvent:
    """Return the event that something suspicious was noticed.

    Args:
        request_id: the request that it belongs to.
        api_key_id: the id of the caller's API key, never its secret; None without a key.
        client_ip: the caller's address, without a zone.
        severity: how bad it is.
        alert_type: what was noticed.
        details: whatever helps to understand it.
        action_taken: what was done about it.
        timestamp: when it happened; now if not given.
        event_id: a UUID of version 7; a new one if not given.
        more: fields of your own.

    Raises:
        AuditError: the drain would quarantine it (`Serialization`).
    """
    own_fields = {
        "severity": severity,
        "alert_type": alert_type,
        "details": _object(details),
        "action_taken": action_taken,
    }
    return _build("security_event", timestamp, event_id, _caller(request_id, api_key_id, client_ip) | own_fields, more)


def config_change(
    *,
    request_id: str,
    api_key_id: str | None,
    client_ip: Address,
    resource: str,
    operation: str,
    changed_by: str,
    changes: Mapping[str, Any],
    approval_status: str,
    timestamp: datetime | str | None = None,
    event_id: str | None = None,
    **more: Any,
) -> AuditEvent:
    """Return the event that a setting of the application was changed.

    Args:
        request_id: the request that it belongs to.
        api_key_id: the id of the caller's API key, never its secret; None without a key.
        client_ip: the caller's address, without a zone.
        resource: what was changed.
        operation: how: created, updated, deleted, …
        changed_by: who changed it.
        changes: the settings, with old and new values.
        approval_status: whether it was approved.
        timestamp: when it happened; now if not given.
        event_id: a UUID of version 7; a new one if not given.
        more: fields of your own.

    Raises:
        AuditError: the drain would quarantine it (`Serialization`).
    """
    own_fields = {
        "resource": resource,
        "operation": operation,
        "changed_by": changed_by,
        "changes": _object(changes),
        "approval_status": approval_status,
    }
    return _build("config_change", timestamp, event_id, _caller(request_id, api_key_id, client_ip) | own_fields, more)


def own(
    event_type: str, /, *, timestamp: datetime | str | None = None, event_id: str | None = None, **fields: Any
) -> AuditEvent:
    """Return an event of a type of your own.

    Args:
        event_type: its name, 1 to 255 bytes. One of the six must follow that type's definition.
        timestamp: when it happened; now if not given.
        event_id: a UUID of version 7; a new one if not given.
        fields: its fields.

    Raises:
        AuditError: the drain would quarantine it (`Serialization`).
    """
    return _build(event_type, timestamp, event_id, {}, fields)


def _caller(request_id: str, api_key_id: str | None, client_ip: Address) -> dict[str, Any]:
    """Return the fields of the six types that say who called."""
    address = str(client_ip) if isinstance(client_ip, IPv4Address | IPv6Address) else client_ip
    return {"request_id": request_id, "api_key_id": api_key_id, "client_ip": address}


def _object(value: object) -> object:
    """Return a mapping of any kind as msgspec knows objects. Anything else stays as it is, and is refused."""
    return dict(value) if isinstance(value, Mapping) else value


def _array(value: object) -> object:
    """Return a sequence of any kind as a list. A text, and anything else, stays as it is, and is refused."""
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str | bytes) else value


def _build(
    event_type: str,
    timestamp: datetime | str | None,
    event_id: str | None,
    fields: dict[str, Any],
    more: Mapping[str, Any],
) -> AuditEvent:
    """Return the event of some fields.

    Raises:
        AuditError: the drain would quarantine it, or a field is the writer's.
    """
    if isinstance(timestamp, datetime):
        # Without a zone it is no moment. The check says so, since the text has none either.
        timestamp = format_time(timestamp) if timestamp.tzinfo is not None else timestamp.isoformat()
    built = {
        "event_type": event_type,
        "timestamp": format_time(datetime.now(UTC)) if timestamp is None else timestamp,
        "event_id": uuid7() if event_id is None else event_id,
        **fields,
        **more,
    }
    # In `own` the name is given by place, so another one can be among the fields.
    if built["event_type"] is not event_type:
        raise AuditError("Serialization", "event_type stands 2 times")
    fault = _fault(built, stamped=timestamp is None)
    if fault is not None:
        raise AuditError("Serialization", fault)
    return AuditEvent(event_type, MappingProxyType(built))


def _fault(fields: dict[str, Any], *, stamped: bool) -> str | None:
    """Return why the drain would quarantine fields that are not encoded yet, in its words but for the values.

    Args:
        fields: those of an event.
        stamped: whether its time was written here.
    """
    if writers := [name for name in WRITERS_FIELDS if name in fields]:
        return f"{writers[0]} is given by the writer: leave it out"
    event_type, event_id = fields["event_type"], fields["event_id"]
    if not isinstance(event_id, str) or not 0 < len(event_id) <= 128:
        return "event_id is not a text of 1 to 128 characters"
    if not stamped and (fault := _event_fault("timestamp", fields["timestamp"])):
        return fault
    if not isinstance(event_type, str) or (kind := events.EVENT_TYPES.get(event_type)) is None:
        return _event_fault("event_type", event_type)
    refusal = None
    try:
        msgspec.convert(fields, kind)
    except (msgspec.MsgspecError, ValueError, RecursionError, OverflowError) as error:
        refusal = example_of(f"{event_type}: {error}")
    if refusal is None and not events.are_addresses([fields["client_ip"]]):
        return _event_fault("client_ip", fields["client_ip"])
    return refusal


def _event_fault(name: str, value: object) -> str | None:
    """Return why an event with a field of a value would be quarantined because of that field, None if it would not."""
    if not isinstance(value, str):
        return f"{name} is not a string"
    # Times do not come again. Types and addresses do.
    return _text_fault(name, value) if name == "timestamp" or len(value) > 64 else _cached_fault(name, value)


def _text_fault(name: str, value: str) -> str | None:
    event = {"event_type": "own", "timestamp": _ANY_TIME} if name == "event_type" else dict(_ANY_EVENT)
    event[name] = value
    encoded = b""
    try:
        encoded = msgspec.json.encode(event)
    except UnicodeEncodeError:
        return f"{name} holds a lone surrogate"
    reason = events.reason(encoded)
    return None if reason is None else example_of(reason)


_cached_fault = lru_cache(maxsize=4096)(_text_fault)
