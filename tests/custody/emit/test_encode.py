"""What `encode` takes, the drain takes; what it refuses, the drain would quarantine; neither shows a value."""

import json
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from custody.emit import builders
from custody.emit.builders import AuditEvent
from custody.emit.encode import RESERVED, encode, encode_all, number
from custody.emit.errors import AuditError
from custody.emit.identity import SOURCE_BYTES
from custody.emit.redact import DEFAULT, Redaction, redact
from custody.emit.secret_text import REDACTED
from custody.errors import ConfigurationError
from custody.format import events, limits
from custody.format.events import EVENT_TYPES
from custody.format.reasons import example_of
from tests.helpers.corpus import EVENTS

LONGEST = "s" * SOURCE_BYTES
OWN = {"event_type": "mine", "timestamp": "2026-03-01T00:00:00Z", "request_id": "r"}
TYPES = {**EVENTS, "mine": OWN}
PLANTED = "hunter2planted"
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from([2**63, -(2**63) - 1])
texts = st.text(st.characters(exclude_categories=()), max_size=8)
values = st.recursive(
    scalars | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=2),
    max_leaves=6,
)
names = st.sampled_from(sorted({*EVENTS["query_executed"], "x"}))


def drains_reason(fields: dict[str, Any]) -> str | None:
    """Return why the drain would quarantine fields that Python's encoder writes, with the longest source and number."""
    # What is too deep cannot be redacted. The drain says so too.
    with suppress(AuditError):
        fields = redact(fields)
    whole = {**fields, "source": LONGEST, "source_seq": limits.INT_MAX}
    line = json.dumps(whole, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")
    reason = events.reason(line)
    return None if reason is None else example_of(reason)


def agree(fields: dict[str, Any]) -> bytes | None:
    """Check that `encode` and the drain agree, and return the numbered line if both take it."""
    reason = drains_reason(fields)
    (encoded,) = encode_all([AuditEvent(fields.get("event_type", ""), fields)], DEFAULT)
    if isinstance(encoded, AuditError):
        assert reason == str(encoded)
        return None
    assert reason is None
    line = number(encoded, LONGEST, limits.INT_MAX)
    checked = events.check([line])
    assert (checked.events, checked.refused) == (1, ())
    assert json.loads(line) == {**redact(fields), "source": LONGEST, "source_seq": limits.INT_MAX}
    return line


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth - 1):
        value = [value]
    return value


@given(
    st.sampled_from(list(TYPES)),
    st.dictionaries(st.sampled_from(sorted({*EVENTS["query_executed"], "x"})) | texts, values, max_size=3),
)
@example("mine", {"x": float("nan")})
@example("mine", {"x": {"y": [float("-inf"), None]}})
@example("security_event", {"details": {"x": float("inf")}})
@example("query_executed", {"execution_time": float("nan")})
@example("mine", {"x": "\ud800"})
@example("mine", {"\udfff": 1})
@example("query_executed", {"complexity": 2**63})
@example("mine", {"x": 2**63, "y": 10**400})
@example("query_executed", {"execution_time": 2**64})
@example("mine", {"x": nested(63)})
@example("mine", {"x": nested(64)})
@example("mine", {"x": nested(99)})
@example("mine", {"event_type": "", "timestamp": None})
@example("query_executed", {"client_ip": "10.0.0.256"})
def test_encode_and_the_drain_agree(kind: str, changes: dict[str, Any]) -> None:
    """For any JSON-like value in any field of any type: both take it, or both refuse it with the same words."""
    agree(TYPES[kind] | {name: value for name, value in changes.items() if name not in {"source", "source_seq"}})


@pytest.mark.parametrize("missing", ["event_type", "timestamp", "client_ip", "complexity"])
def test_a_field_that_is_missing_is_refused(missing: str) -> None:
    """As the drain does."""
    assert agree({name: value for name, value in EVENTS["query_executed"].items() if name != missing}) is None


def test_the_limit_leaves_room_for_the_number() -> None:
    """An event that is as large as it may be has exactly the drain's limit once it is numbered."""
    bare = len(encode(AuditEvent("mine", OWN | {"pad": ""}), DEFAULT))
    room = limits.EVENT_BYTES - RESERVED - bare
    line = agree(OWN | {"pad": "é" * (room // 2) + "x" * (room % 2)})
    assert line is not None
    assert len(line) == limits.EVENT_BYTES
    assert agree(OWN | {"pad": "x" * (room + 1)}) is None


def test_numbers_are_added_at_the_end() -> None:
    """The checked line stays as it is."""
    line = encode(builders.own("mine", timestamp="2026-03-01T00:00:00Z", event_id="e"), DEFAULT)
    assert number(line, "a/b/1-2", 7) == line[:-1] + b',"source":"a/b/1-2","source_seq":7}'
    with pytest.raises(ConfigurationError, match="at most 255 bytes"):
        number(line, "s" * (SOURCE_BYTES + 1), 1)


def test_many_are_encoded_as_each_alone() -> None:
    """A refused one changes nothing for the others, wherever it stands."""
    good = AuditEvent("mine", OWN)
    bad = AuditEvent("query_executed", EVENTS["query_executed"] | {"complexity": -1})
    unreadable = AuditEvent("mine", OWN | {"x": object()})
    batch = [bad, good, unreadable, good, bad]
    first, second, third, fourth, fifth = encode_all(batch, DEFAULT)
    assert second == fourth == encode(good, DEFAULT)
    assert str(first) == str(fifth) == "query_executed: Expected `int` >= 0 - at `$.complexity`"
    assert isinstance(third, AuditError)
    assert encode_all([], DEFAULT) == []


@pytest.mark.parametrize("name", ["source", "source_seq"])
def test_an_event_brings_no_number_of_its_own(name: str) -> None:
    """Twice the same name in an object would be read as either."""
    with pytest.raises(AuditError, match="is given by the writer"):
        encode(AuditEvent("mine", OWN | {name: 1}), DEFAULT)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({1: 2}, "a key is of type int"),
        ({None: 2}, "a key is of type NoneType"),
        ({(1, 2): 2}, "a key is of type tuple"),
        (object(), "a value of type object has no form in JSON"),
        (iter([1]), "a value of type list_iterator has no form in JSON"),
        (1j, "a value of type complex has no form in JSON"),
        (OWN, None),
        (10**5000, "not JSON: "),
    ],
    ids=["int", "None", "tuple", "object", "iterator", "complex", "event", "digits"],
)
def test_what_json_lacks_is_refused(value: object, reason: str | None) -> None:
    """The words say which type it is, and what to do."""
    event = AuditEvent("mine", OWN | {"x": [value]})
    if reason is None:
        assert encode(event, DEFAULT)
        return
    with pytest.raises(AuditError) as caught:
        encode(event, DEFAULT)
    assert str(caught.value).startswith(reason)


class Hostile(dict[str, Any]):
    """A mapping whose methods raise errors with values in them."""

    def items(self) -> Any:
        raise ValueError(PLANTED)


def hidden_in(name: str) -> Iterator[dict[str, Any]]:
    """Yield events of a type with the planted word in each field, in ways that may be refused."""
    for field in TYPES[name]:
        for value in (PLANTED, [PLANTED], {PLANTED: [PLANTED]}, PLANTED.encode(), [float("nan"), PLANTED]):
            yield TYPES[name] | {field: value}
        yield TYPES[name] | {field: [PLANTED, "\ud800"]}
        yield TYPES[name] | {field: [PLANTED, object()]}
        yield TYPES[name] | {field: [PLANTED, {1: PLANTED}]}
        yield TYPES[name] | {field: [PLANTED, nested(99)]}
        yield TYPES[name] | {field: Hostile({PLANTED: 1})}
        yield TYPES[name] | {PLANTED: Hostile({PLANTED: 1})}


def shown(error: BaseException) -> str:
    """Return all that is ever shown of an error, what led to it too, suppressed or not."""
    texts = []
    seen: list[BaseException | None] = [error]
    while seen:
        if (each := seen.pop()) is not None:
            texts += [str(each), repr(each), *map(repr, each.args), *traceback.format_exception(each)]
            seen += [each.__context__, each.__cause__]
    return "\n".join(texts)


def refusal(call: Callable[[], object]) -> AuditError | None:
    """Return the error that a call ends with."""
    try:
        call()
    except AuditError as error:
        return error
    return None


@pytest.mark.parametrize("name", TYPES)
def test_errors_never_show_a_value(name: str) -> None:
    """Neither text, repr, traceback nor context of an error has what was planted, whichever field it is in."""
    refused = 0
    for fields in hidden_in(name):
        event = AuditEvent(fields["event_type"] if isinstance(fields["event_type"], str) else "", fields)
        assert PLANTED not in repr(event)
        error = refusal(lambda event=event: encode(event, DEFAULT))  # type: ignore[misc]
        refused += error is not None
        assert error is None or PLANTED not in shown(error)
    assert refused > 20


@pytest.mark.parametrize("name", EVENT_TYPES)
def test_builders_errors_never_show_a_value(name: str) -> None:
    """So do builders."""
    refused = 0
    for fields in hidden_in(name):
        arguments = {key: value for key, value in fields.items() if key != "event_type"}
        error = refusal(lambda arguments=arguments: builders.own(name, **arguments))  # type: ignore[misc]
        refused += error is not None
        assert error is None or PLANTED not in shown(error)
    assert refused > 10


SECRETS = {
    "shape": "ghp_" + "A1b2C3d4" * 5,
    "behind a name": f"login failed, password={PLANTED}",
    "URL": f"https://ada:{PLANTED}@db.example.com/x",
    "query string": f"/graphql?access_token={PLANTED}&x=1",
    "header dump": f"POST / HTTP/1.1\r\nAuthorization: Bearer {PLANTED}\r\nHost: x",
    "JSON": json.dumps({"user": "ada", "credentials": [{"x": PLANTED}]}),
}


@pytest.mark.parametrize("name", TYPES)
def test_no_credential_is_in_the_bytes(name: str) -> None:
    """Whichever field of whichever type it is in, nested or not; and the type's rules hold."""
    taken = 0
    for field in [*TYPES[name], "own_field"]:
        for secret in SECRETS.values():
            for value in (
                secret,
                [secret],
                {"a": [{"b": secret}], secret: 1},
                {"apiKey": PLANTED, "nested": {"PASSWORD": [PLANTED]}},
                [["Authorization", PLANTED], ["Cookie", f"a={PLANTED}"]],
                {"name": "client_secret", "value": PLANTED},
            ):
                (encoded,) = encode_all([AuditEvent(name, TYPES[name] | {field: value})], DEFAULT)
                if isinstance(encoded, bytes):
                    taken += 1
                    line = encoded.decode()
                    assert PLANTED not in line
                    assert SECRETS["shape"] not in line
                    assert REDACTED in line
                else:
                    assert PLANTED not in shown(encoded)
    assert taken > 50


@pytest.mark.parametrize("name", EVENT_TYPES)
def test_a_redacted_field_is_what_its_type_asks(name: str) -> None:
    """Whichever name the user calls a secret: the event stays one of its type, or the rule is refused."""
    refused = set()
    for field in EVENTS[name]:
        try:
            rules = Redaction(keys=frozenset({field}))
        except ConfigurationError:
            refused.add(field)
            continue
        line = encode(AuditEvent(name, EVENTS[name]), rules)
        assert events.reason(line) is None
        kept = EVENTS[name][field]
        assert kept is None or json.loads(line)[field] != kept
    assert {"event_type", "timestamp", "client_ip"} <= refused < set(EVENTS[name])
