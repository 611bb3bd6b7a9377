"""Redaction of values of any kind, nested in any way; what JSON lacks has one form, or is refused."""

import copy
import json
import pickle
import threading
from collections import OrderedDict, UserDict, deque, namedtuple
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from ipaddress import ip_address
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import Any
from urllib.parse import quote
from uuid import UUID

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import SecretStr

from custody.emit.errors import AuditError
from custody.emit.redact import DEFAULT, Redaction, redact
from custody.emit.secret_text import REDACTED
from custody.errors import ConfigurationError
from custody.format import limits

SECRET = "hunter2planted"
Login = namedtuple("Login", ["user", "password"])  # noqa: PYI024


@dataclass
class Account:
    """A dataclass with a secret."""

    user: str
    api_key: str


class Packed(msgspec.Struct):
    """A struct with a secret."""

    user: str
    token: str


class Colour(Enum):
    """An enum whose value is a text."""

    RED = "password=hunter2planted"


class Level(IntEnum):
    """A number with a name."""

    HIGH = 3


class Word(StrEnum):
    """A text with a name."""

    READ = "read"


class Loud(str):
    """A text that shows itself in another way."""

    __slots__ = ()

    def __str__(self) -> str:
        return SECRET


@pytest.mark.parametrize(
    ("value", "redacted"),
    [
        ({"password": "x"}, {"password": REDACTED}),
        ({"a": {"b": [{"apiKey": "x", "n": 1}]}}, {"a": {"b": [{"apiKey": REDACTED, "n": 1}]}}),
        (
            {"password": ["x", "y"], "token": {"a": 1}, "pin": 1234},
            dict.fromkeys(("password", "token", "pin"), REDACTED),
        ),
        ({"password": None, "secret": True, "token": ""}, {"password": None, "secret": True, "token": ""}),
        ({"tokens": 5, "pass": 2.5}, {"tokens": 5, "pass": 2.5}),
        ({"tokens": ["x"], "pass": "x"}, {"tokens": REDACTED, "pass": REDACTED}),
        ({"session": {"user": "ada", "token": "x"}}, {"session": {"user": "ada", "token": REDACTED}}),
        ({"session": "x", "auth": "x"}, {"session": REDACTED, "auth": REDACTED}),
        ([["Authorization", "x"], ["Host", "y"]], [["Authorization", REDACTED], ["Host", "y"]]),
        ([(b"cookie", b"x"), (b"host", b"y")], [["cookie", REDACTED], ["host", "y"]]),
        ((("cookie", "x"),), [["cookie", REDACTED]]),
        (("cookie", "x"), ["cookie", REDACTED]),
        (["Host", "y", "Authorization", "x"], ["Host", "y", "Authorization", REDACTED]),
        (["tool", "--password", "x", "--user", "y"], ["tool", "--password", REDACTED, "--user", "y"]),
        (["tool", "--password=x", "y"], ["tool", "--password=[redacted]", "y"]),
        (["curl", "-u", "ada:x y", "z"], ["curl", "-u", "ada:[redacted]", "z"]),
        (["sshpass", "-p", "x y", "ssh", "-p", "22"], ["sshpass", "-p", REDACTED, "ssh", "-p", "22"]),
        (["/bin/mysql", "-u", "root", "-px"], ["/bin/mysql", "-u", "root", "-p[redacted]"]),
        (["docker", "run", "-p", "80:80", "-u", "1:1"], ["docker", "run", "-p", "80:80", "-u", "1:1"]),
        (
            {"x-shop-key": "x", "shop_key": 7, "sortKey": "y"},
            {"x-shop-key": REDACTED, "shop_key": REDACTED, "sortKey": "y"},
        ),
        ([["x-shop-key", "x"], ["Host", "y"]], [["x-shop-key", REDACTED], ["Host", "y"]]),
        (["Host", "y", "X-Shop-Key", "x"], ["Host", "y", "X-Shop-Key", REDACTED]),
        (["read", "write", "tokens"], ["read", "write", "tokens"]),
        (["secrets", "read"], ["secrets", "read"]),
        ({"name": "password", "value": "x", "type": "text"}, {"name": "password", "value": REDACTED, "type": "text"}),
        ({"key": "smtp_pass", "old": "x", "new": "y"}, {"key": "smtp_pass", "old": REDACTED, "new": REDACTED}),
        (
            {"setting": "a.token", "change": {"from": "x", "to": "y"}},
            {"setting": "a.token", "change": {"from": REDACTED, "to": REDACTED}},
        ),
        ({"name": "limit", "value": "x"}, {"name": "limit", "value": "x"}),
        ({"name": "api_key_id", "value": "x"}, {"name": "api_key_id", "value": "x"}),
        ('{"a": [{"password": "x"}]}', '{"a": [{"password": "[redacted]"}]}'),
        (' [["Cookie", "x"]]\n', '[["Cookie", "[redacted]"]]'),
        (json.dumps(json.dumps({"token": "x y"})), json.dumps(json.dumps({"token": REDACTED}))),
        ('{"a":1.10,"b":"é"}', '{"a":1.10,"b":"é"}'),
        ('{"password":"x","password":null}', '{"password":"[redacted]","password":null}'),
        ({b"x-api-key": b"x"}, {"x-api-key": REDACTED}),
        ({"see password=x there": 1}, {"see password=[redacted] there": REDACTED}),
        ({"sk_live_12345678": 1, "sk_live_87654321": 2}, {REDACTED: 1, "[redacted] (1)": 2}),
        ({"a": 1, b"a": 2}, {"a": 1, "a (1)": 2}),
    ],
)
def test_a_secret_is_replaced(value: object, redacted: object) -> None:
    """And nothing else is. What was given stays as it was."""
    before = copy.deepcopy(value)
    assert redact({"x": value}) == {"x": redacted}
    assert value == before
    assert redact({"x": redacted}) == {"x": redacted}


@pytest.mark.parametrize(
    ("value", "form"),
    [
        (b"caf\xc3\xa9", "café"),
        (bytearray(b"\xff"), "\\xff"),
        (memoryview(b"token=x"), "token=[redacted]"),
        (datetime(2026, 3, 1, 13, tzinfo=timezone(timedelta(hours=1))), "2026-03-01T12:00:00.000000Z"),
        (datetime(2026, 3, 1, 13), "2026-03-01T13:00:00"),  # noqa: DTZ001
        (date(2026, 3, 1), "2026-03-01"),
        (time(1, 2), "01:02:00"),
        (Decimal("1.10"), "1.10"),
        (UUID(int=7), "00000000-0000-0000-0000-000000000007"),
        (ip_address("::1"), "::1"),
        (PurePosixPath("/a/b"), "/a/b"),
        (frozenset({"b", "a"}), ["a", "b"]),
        ({3, 1}, [1, 3]),
        (deque([1, "pin=1"]), [1, "pin=[redacted]"]),
        ((1, 2, 3), [1, 2, 3]),
        (Login("ada", "x"), {"user": "ada", "password": REDACTED}),
        (Account("ada", "x"), {"user": "ada", "api_key": REDACTED}),
        (Packed("ada", "x"), {"user": "ada", "token": REDACTED}),
        (MappingProxyType({"token": "x"}), {"token": REDACTED}),
        (UserDict({"token": "x"}), {"token": REDACTED}),
        (OrderedDict(a=1), {"a": 1}),
        (Colour.RED, "password=[redacted]"),
        ([Level.HIGH, Word.READ, {Word.READ: 1}], [3, "read", {"read": 1}]),
        (Loud("loud"), "loud"),
        (SecretStr("x"), REDACTED),
        (True, True),
        (10**30, 10**30),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_json_lacks_has_one_form(value: object, form: object) -> None:
    """Each type has one, and secrets in it are replaced."""
    made = redact({"x": value})["x"]
    assert (made, type(made)) == (form, type(form))


@pytest.mark.parametrize(
    "value", [object(), 1j, iter(()), len, Account, timedelta(1), {1: 1}, {None: 1}, {1.5: 1}], ids=range(9)
)
def test_anything_else_is_refused(value: object) -> None:
    """By its type, with what to do, and without its repr."""
    with pytest.raises(AuditError, match=r"^a (value|key is) of type \w+.* text alone: make it text|JSON: make it"):
        redact({"x": [value]})


def test_trap_14_cycles_and_depth_end() -> None:
    """With the drain's words. What is nested as deep as an event may be is taken."""
    cycle: list[Any] = []
    cycle.append(cycle)
    ring: dict[str, Any] = {}
    ring["a"] = [ring]
    deep: Any = []
    for _ in range(limits.EVENT_DEPTH - 2):
        deep = [deep]
    assert redact({"x": deep}) == {"x": deep}
    for value in (cycle, ring, [deep]):
        with pytest.raises(AuditError, match=r"^nested deeper than 64$"):
            redact({"x": value})


def test_what_holds_itself_many_times_over_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forty lists, each twice in the next, would be more than any memory."""
    monkeypatch.setattr(limits, "EVENT_BYTES", 100_000)
    many: Any = "x"
    for _ in range(40):
        many = [many, many]
    with pytest.raises(AuditError, match=r"more than the 1048576 bytes of an event"):
        redact({"x": many})
    with pytest.raises(AuditError, match=r"more than the 1048576 bytes of an event"):
        redact({"x": ["y" * 60_000] * 2})


def test_fields_that_change_meanwhile_are_an_error_of_ours() -> None:
    """A dict that the application goes on to fill is refused, or taken as it was; nothing else is raised."""
    growing: dict[str, Any] = {}
    stop = threading.Event()

    def grow() -> None:
        at = 0
        while not stop.is_set():
            growing[f"k{at % 997}"] = at
            at += 1
            if at % 997 == 0:
                growing.clear()

    thread = threading.Thread(target=grow)
    thread.start()
    try:
        for _ in range(200):
            try:
                redact({"x": growing})
            except AuditError as error:
                assert str(error).startswith("the fields cannot be read (RuntimeError)")  # noqa: PT017
    finally:
        stop.set()
        thread.join()


def test_trap_14_a_caller_that_is_nested_too_deep_is_an_error_of_ours() -> None:
    """Whatever little stack is left."""

    def down(left: int) -> None:
        if left:
            down(left - 1)
        else:
            redact({"x": [[[[[["a"]]]]]]})

    kinds = set()
    for left in range(900, 1_000):
        try:
            down(left)
        except AuditError as error:
            kinds.add(str(error))
        except RecursionError:
            break
    assert kinds <= {"the fields cannot be read, because the caller is nested too deep"}


Wrap = Callable[[Any], Any]
BASES: list[Any] = [
    f"password={SECRET}",
    f"Authorization: Bearer {SECRET}",
    f"https://a:{SECRET}@h/x",
    f"/x?api_key={SECRET}&y=1",
    {"clientSecret": SECRET},
    [["Cookie", SECRET]],
    ["--token", SECRET],
    {"name": "password", "value": SECRET},
    {"credentials": [{"a": SECRET}]},
    {"password": {"old": SECRET, "new": [SECRET]}},
]
WRAPS: list[Wrap] = [
    lambda value: {"a": value},
    lambda value: [1, value, None],
    lambda value: (value, value, value),
    lambda value: MappingProxyType({"b": value}),
    lambda value: deque([value]),
    lambda value: json.dumps(value, default=str),
    lambda value: json.dumps(value, default=str, indent=1),
    lambda value: repr(value),
    lambda value: f"it was {value} then",
    lambda value: str(value).encode(),
    lambda value: {"message": str(value), "level": "info"},
    lambda value: quote(str(value)),
    lambda value: f"/graphql?variables={quote(str(value), safe='')}&x=1",
]


@given(st.sampled_from(BASES), st.lists(st.sampled_from(WRAPS), max_size=4))
@example([["Cookie", SECRET]], [lambda value: json.dumps(value, indent=1), repr])
def test_trap_14_no_nesting_hides_a_secret(value: Any, wraps: list[Wrap]) -> None:
    """Objects, lists, JSON in texts in JSON, reprs and sentences around it, in any order."""
    for wrap in wraps:
        value = wrap(value)
    made = json.dumps(redact({"x": value}))
    assert SECRET not in made
    assert REDACTED in made


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
        max_leaves=8,
    )
)
def test_redacting_again_changes_nothing(value: Any) -> None:
    """And what has no credential comes back as it was."""
    redacted = redact({"x": value})
    assert redact(redacted) == redacted
    if REDACTED not in json.dumps(redacted):
        assert redacted == {"x": value}


def test_rules_are_a_value() -> None:
    """Equal rules are equal, in any spelling; they are pickled, and show what they are."""
    rules = Redaction(keys=frozenset({"Tax-Id"}), plain=frozenset({"session_id"}), shapes=(r"ACME-[0-9]{4}",))
    assert rules == Redaction(keys=frozenset({"taxId"}), plain=frozenset({"sessionId"}), shapes=(r"ACME-[0-9]{4}",))
    assert pickle.loads(pickle.dumps(rules)) == rules  # noqa: S301
    assert hash(rules) == hash(copy.deepcopy(rules))
    assert repr(rules) == (
        "Redaction(keys=frozenset({'taxid'}), plain=frozenset({'sessionid'}), shapes=('ACME-[0-9]{4}',))"
    )
    assert rules.redact({"a": "see ACME-1234", "session_id": "x"}) == {"a": "see [redacted]", "session_id": "x"}


@pytest.mark.parametrize(
    ("rules", "problem"),
    [
        ({"keys": "password"}, "`keys` of a redaction are several texts"),
        ({"plain": {1}}, "`plain` of a redaction are several texts"),
        ({"shapes": ("a*",)}, "a shape matches an empty text"),
        ({"shapes": "a"}, "`shapes` of a redaction are several"),
        ({"keys": {"--"}}, "a name in `keys` of a redaction has no letter"),
        ({"shapes": ("(",)}, "a shape is no regular expression"),
        ({"keys": {"timestamp"}}, "`keys` would redact timestamp"),
        ({"keys": {"time"}}, "`keys` would redact execution_time"),
        ({"keys": {"Event-Type"}}, "`keys` would redact event_type"),
        ({"keys": {"clientIp"}}, "`keys` would redact client_ip"),
    ],
)
def test_rules_that_cannot_hold_are_refused(rules: Mapping[str, Any], problem: str) -> None:
    """When they are made, not when an event is lost."""
    with pytest.raises(ConfigurationError) as caught:
        Redaction(**rules)
    assert str(caught.value).startswith(problem)


def test_names_are_remembered_within_a_bound() -> None:
    """Names that others choose fill no memory."""
    rules = Redaction()
    for at in range(5_000):
        rules.redact({f"name{at}": at, "k" * 100: f"other{at}=1 token"})
    for known in (rules._names, rules._verdicts):
        assert len(known) <= 4096
        assert all(len(name) <= 64 for name in known)


def test_trap_14_a_mebibyte_takes_well_under_a_second() -> None:
    """Plain text of the largest size."""
    assert redact({"x": "lorem ipsum: dolor=sit " * 40_000})
    assert Redaction() == DEFAULT
