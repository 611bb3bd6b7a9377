"""Builders make events that the drain takes, and refuse the others, with the drain's reason."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from ipaddress import ip_address
from types import MappingProxyType
from typing import Any

import msgspec
import pytest

from custody.emit import builders
from custody.emit.builders import AuditEvent, own
from custody.emit.errors import AuditError
from custody.format import events
from custody.format.events import EVENT_TYPES
from custody.format.reasons import example_of
from tests.helpers.corpus import EVENTS, compact

BUILDERS: dict[str, Callable[..., AuditEvent]] = {name: getattr(builders, name) for name in EVENT_TYPES}
STAMPED = {"event_type", "timestamp"}


def good(name: str) -> dict[str, Any]:
    """Return the arguments for a good event of a type."""
    actor = {"actor": "key_1"} if name == "api_key_operation" else {}
    return {key: value for key, value in EVENTS[name].items() if key not in STAMPED} | actor


@pytest.mark.parametrize("name", EVENT_TYPES)
def test_a_built_event_is_taken_by_the_drain(name: str) -> None:
    """It has all fields of its type, the fields of one's own, a time and an id."""
    event = BUILDERS[name](**good(name), shard=3)
    assert event.event_type == event.fields["event_type"] == name
    assert {**good(name), "shard": 3}.items() <= dict(event.fields).items()
    assert events.reason(compact(dict(event.fields))) is None
    stamped = datetime.fromisoformat(event.fields["timestamp"])
    assert abs(datetime.now(UTC) - stamped) < timedelta(minutes=1)
    assert len(event.fields["event_id"]) == 36


@pytest.mark.parametrize("name", EVENT_TYPES)
@pytest.mark.parametrize("wrong", [None, -1, 2**63, "x", 1.5, True, [], {}, [1], {"a": 1}, "2001:db8::1%eth0"])
def test_what_a_type_forbids_is_refused_at_building(name: str, wrong: object) -> None:
    """Of each field, whatever it is: a builder and the drain agree, and say the same."""
    for field in good(name).keys() - {"actor"}:
        fields = good(name) | {field: wrong}
        reason = events.reason(compact(EVENTS[name] | fields))
        if reason is None:
            BUILDERS[name](**fields)
            continue
        with pytest.raises(AuditError) as caught:
            BUILDERS[name](**fields)
        assert str(caught.value) == example_of(reason), field
        assert caught.value.kind == "Serialization"


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"timestamp": "yesterday"}, "timestamp '…' is not an RFC 3339 time with zone"),
        ({"timestamp": datetime(2026, 1, 1)}, "timestamp '…' is not an RFC 3339 time with zone"),  # noqa: DTZ001
        ({"timestamp": datetime(1969, 1, 1, tzinfo=UTC)}, "timestamp '…' is not an RFC 3339 time with zone"),
        ({"timestamp": 5}, "timestamp is not a string"),
        ({"event_id": ""}, "event_id is not a text of 1 to 128 characters"),
        ({"event_id": 7}, "event_id is not a text of 1 to 128 characters"),
        ({"source": "x"}, "source is given by the writer: leave it out"),
        ({"source_seq": 1}, "source_seq is given by the writer: leave it out"),
        ({"event_type": "own"}, "event_type stands 2 times"),
    ],
)
def test_what_a_writer_or_builder_gives_is_checked(fields: dict[str, Any], reason: str) -> None:
    """For the six types and own types alike."""
    with pytest.raises(AuditError) as caught:
        BUILDERS["auth_attempt"](**good("auth_attempt"), **fields)
    assert str(caught.value).startswith(reason)
    with pytest.raises(AuditError) as caught:
        own("mine", **fields)
    assert str(caught.value).startswith(reason)


@pytest.mark.parametrize("kind", ["", "x" * 256, "é" * 128, "\ud800", 5])
def test_a_type_that_is_none_is_refused(kind: Any) -> None:
    """An own type has 1 to 255 bytes."""
    with pytest.raises(AuditError, match=r"^event_type "):
        own(kind)


def test_an_own_type_has_the_fields_that_it_is_given() -> None:
    """A name of one of the six must follow its definition, though."""
    assert own("user_login", user="ada", timestamp="2026-01-31T23:59:59+01:00", event_id="1").fields == {
        "event_type": "user_login",
        "timestamp": "2026-01-31T23:59:59+01:00",
        "event_id": "1",
        "user": "ada",
    }
    with pytest.raises(AuditError, match=r"auth_attempt: Object missing required field `request_id`"):
        own("auth_attempt", user="ada")


def test_times_and_addresses_may_be_objects() -> None:
    """They are written as the drain reads them; a mapping of any kind is an object, a tuple a list."""
    moment = datetime(2026, 3, 1, 13, 0, tzinfo=timezone(timedelta(hours=1)))
    event = builders.api_key_operation(
        request_id="r",
        api_key_id="key_2",
        actor=None,
        client_ip=ip_address("2001:db8::1"),
        operation="created",
        permissions=("read",),
        tier="gold",
        timestamp=moment,
    )
    assert event.fields["timestamp"] == "2026-03-01T12:00:00.000000Z"
    assert (event.fields["client_ip"], event.fields["permissions"]) == ("2001:db8::1", ["read"])
    details = MappingProxyType({"a": 1})
    fields = good("security_event") | {"details": details}
    assert msgspec.to_builtins(builders.security_event(**fields).fields["details"]) == {"a": 1}


def test_a_built_event_does_not_change_and_shows_nothing() -> None:
    """Its fields are fixed, and its repr names the type alone."""
    event = BUILDERS["auth_attempt"](**good("auth_attempt"))
    with pytest.raises(TypeError):
        event.fields["status"] = "success"  # type: ignore[index]
    assert repr(event) == "<AuditEvent of auth_attempt, 10 fields>"
    assert repr(own("hunter2", password="hunter2")) == "<AuditEvent of an own type, 4 fields>"
