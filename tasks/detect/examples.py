"""The tests in a rule file: events that must fire the rule, and events that must not.

    - name: ten failures in five minutes
      events:
        - {event_type: auth_attempt, timestamp: "2026-03-01T10:00:00Z", status: failure, repeat: 10, every: 30s}
      fires: [{api_key_id: key-1}]

An event stands as it is archived. Fields that its type needs and that are missing get a value that means nothing, so
that a test shows what it is about. `repeat` and `every` make several events of one. A test of a SQL rule may have
`before`: events that came earlier, and are remembered as those of a live run are.
"""

from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any, Final

import msgspec

from custody.errors import ConfigurationError
from custody.format.events import EVENT_TYPES
from custody.format.times import format_time
from tasks.detect.rule import Group, RuleTest, text_of

_MOST: Final = 10_000
_NEUTRAL: Final[Mapping[str, Any]] = {
    "request_id": "test",
    "api_key_id": None,
    "client_ip": "192.0.2.1",
    "query_hash": "test",
    "complexity": 1,
    "execution_time": 1.0,
    "result_rows": 1,
    "status": "success",
    "failure_reason": None,
    "key_version": None,
    "key_age_days": None,
    "resource_type": "test",
    "resource_id": "test",
    "field_name": None,
    "permission_granted": True,
    "operation": "created",
    "permissions": [],
    "tier": "test",
    "severity": "low",
    "alert_type": "test",
    "details": {},
    "action_taken": None,
    "resource": "test",
    "changed_by": "test",
    "changes": {},
    "approval_status": "approved",
}
"""What a field is where a test does not give it."""


def tests_of(given: Any, group_by: tuple[str, ...], *, before: bool) -> tuple[RuleTest, ...]:
    """Return the tests of a rule.

    Args:
        given: what the file has.
        group_by: the columns of the rule's group.
        before: whether a test may have events that came earlier.

    Raises:
        ConfigurationError: something is not understood, or there are not both kinds of tests.
    """
    if not isinstance(given, list) or not all(isinstance(each, Mapping) for each in given):
        raise ConfigurationError("'tests' is a list of maps of 'name', 'events' and 'fires'")
    tests = tuple(_test(each, group_by, before=before) for each in given)
    if not any(test.fires for test in tests) or all(test.fires for test in tests):
        raise ConfigurationError("'tests' needs events that must fire the rule, and events that must not")
    return tests


def _test(given: Mapping[str, Any], group_by: tuple[str, ...], *, before: bool) -> RuleTest:
    name = given.get("name")
    if not isinstance(name, str) or set(given) - ({"before"} if before else set()) != {"name", "events", "fires"}:
        known = "'name', 'events' and 'fires'"
        raise ConfigurationError(f"a test has {known}" + (", and may have 'before'" if before else ""))
    fires = given["fires"]
    if not isinstance(fires, list):
        raise ConfigurationError(f"test {name!r}: 'fires' is a list")
    groups = []
    for group in fires:
        if not isinstance(group, Mapping) or set(group) != set(group_by):
            columns = ", ".join(group_by) or "nothing"
            raise ConfigurationError(f"test {name!r}: each of 'fires' is a map of {columns}, as the rule's group")
        groups.append(_group(group, group_by))
    try:
        events, earlier = _expanded(given["events"]), _expanded(given.get("before", []))
    except (ConfigurationError, ValueError, OverflowError) as error:
        raise ConfigurationError(f"test {name!r}: {error}") from None
    if not events:
        raise ConfigurationError(f"test {name!r} has no events")
    return RuleTest(name, events, tuple(groups), earlier)


def _expanded(given: Any) -> tuple[dict[str, Any], ...]:
    """Return all events of a list."""
    if not isinstance(given, list):
        raise ConfigurationError("events are a list")
    made: list[dict[str, Any]] = []
    for event in given:
        made.extend(_events(event))
        if len(made) > _MOST:
            raise ConfigurationError(f"there are more than {_MOST:,} events")
    return tuple(made)


def _group(given: Mapping[str, Any], group_by: tuple[str, ...]) -> Group:
    return tuple((name, text_of(given[name])) for name in group_by)


def _events(given: Any) -> Iterator[dict[str, Any]]:
    """Yield an event as often as it is repeated."""
    if not isinstance(given, Mapping):
        raise ConfigurationError("an event is a map")
    event = dict(given)
    count, every = event.pop("repeat", 1), event.pop("every", "1s")
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= _MOST:
        raise ConfigurationError(f"'repeat' is {count!r}, and may be 1 to {_MOST:,}")
    kind, stamp = event.get("event_type"), event.get("timestamp")
    if not isinstance(kind, str) or not isinstance(stamp, str | datetime):
        raise ConfigurationError("an event has 'event_type', and 'timestamp' in quotes")
    start = datetime.fromisoformat(stamp) if isinstance(stamp, str) else stamp
    if start.tzinfo is None:
        raise ConfigurationError(f"{stamp!r} has no zone: add Z")
    filled = {**_neutral(kind), **event}
    for number in range(count):
        yield {**filled, "timestamp": format_time(start + number * _seconds(every))}


def _seconds(text: Any) -> timedelta:
    units = {"s": 1, "m": 60, "h": 3600, "d": 86400}
    number, unit = str(text)[:-1], str(text)[-1:]
    if not number.isdecimal() or unit not in units:
        raise ConfigurationError(f"'every' is {text!r}: write a number and s, m, h or d, such as 30s")
    return timedelta(seconds=int(number) * units[unit])


def _neutral(kind: str) -> dict[str, Any]:
    """Return the fields that an event of a type needs."""
    defined = EVENT_TYPES.get(kind)
    if defined is None:
        return {}
    fields = [field.name for field in msgspec.structs.fields(defined) if field.name != "timestamp"]
    return {name: _NEUTRAL[name] for name in fields}
