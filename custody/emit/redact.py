"""Replaces credentials in the fields of an event, and makes of all values what JSON has.

A value is replaced by `[redacted]` if its name says that it is a secret (`secret_names`), or the part of a text that
reads like a credential (`secret_text`). That holds at any depth, for keys too, and for names beside their values:

- lists of pairs (`[["Authorization", "x"]]`), flat lists of headers, and arguments (`["--password", "x"]`,
  `["curl", "-u", "ada:x"]`);
- objects such as `{"name": "password", "value": "x"}` and `{"setting": "smtp_pass", "old": "x", "new": "y"}`;
- JSON in a text.

Null, true, false and an empty text stay: they are no credentials. Fields of the six types stay what their type asks
for.

Values that JSON lacks get a defined form: bytes are text, an aware datetime is UTC with `Z`, a set is a sorted list, an
enum is its value, a Decimal, UUID, address or path is its text, a dataclass, a named tuple or a msgspec struct is an
object. Anything else is refused. Keys must be text or bytes. Nesting is limited, which ends cycles too.
"""

import dataclasses
import json
import math
import re
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from datetime import date, datetime, time
from decimal import Decimal
from enum import Enum
from ipaddress import IPv4Address, IPv6Address
from pathlib import PurePath
from typing import Any, Final, TypeVar, get_type_hints
from uuid import UUID

import msgspec

from custody.emit.errors import AuditError
from custody.emit.secret_commands import secret_arguments
from custody.emit.secret_names import NAME_CHARACTERS, Verdict, verdict, words_of
from custody.emit.secret_text import BESIDE_NAMES, NAMED_VALUES, REDACTED, TextRules
from custody.errors import ConfigurationError
from custody.format import limits
from custody.format.events import EVENT_TYPES
from custody.format.times import format_time

__all__ = ["Redaction", "redact"]

_Known = TypeVar("_Known")
_KNOWN_NAMES: Final = 4096
"""Names of which the verdict is remembered."""
_HEADERS: Final = frozenset(
    ("authorization", "proxy-authorization", "cookie", "set-cookie", "x-api-key", "x-auth-token")
)
_TEXTS: Final = (Decimal, UUID, IPv4Address, IPv6Address, PurePath)
_CHECKED: Final = frozenset(("timestamp", "client_ip"))
"""Fields of the six types that can have no secret: the check of an event takes nothing but a time and an address."""
_CHECKED_OWN: Final = frozenset(("timestamp",))
"""The same of own types."""


class Signature(str):
    """A GraphQL operation's signature, which has no literals: what stands behind a name is a variable or empty.

    By the rules for other texts it would lose names of variables, and its hash would be another. So only keys by their
    shapes, and words behind a secret's name, are replaced in it.
    """

    __slots__ = ()


class _Refusal(Exception):
    """Fields have no form in JSON, or one that is too large or too deep. Its text has no value."""


def _stand_ins() -> tuple[dict[str, dict[str, Any]], frozenset[str]]:
    """Return for each of the six types what stands for a secret in a field, and the fields for which nothing can.

    A field must stay what its type asks for: a text, else null, a list, an object.
    """
    candidates: tuple[object, ...] = (REDACTED, None, [REDACTED], {REDACTED: REDACTED})
    made: dict[str, dict[str, Any]] = {}
    needed = {"event_type", *_CHECKED}
    for name, kind in EVENT_TYPES.items():
        hints = get_type_hints(kind, include_extras=True)
        fitting = {each: [item for item in candidates if _fits(item, hints[each])] for each in kind.__struct_fields__}
        needed |= {each for each, items in fitting.items() if not items}
        made[name] = {each: items[0] for each, items in fitting.items() if items}
    return made, frozenset(needed)


def _fits(value: object, annotation: Any) -> bool:
    try:
        msgspec.convert(value, annotation)
    except msgspec.ValidationError:
        return False
    return True


_STAND_INS, _NEEDED = _stand_ins()
_NO_STAND_INS: Final[Mapping[str, Any]] = {}


@dataclass(frozen=True, slots=True)
class Redaction:
    """The rules by which events are redacted. The rules that are built in always hold; these are added.

    Attributes:
        keys: more names of secrets, in any spelling: `tax-id` is also `customerTaxId`.
        plain: names that are no secrets, although the rules say so, in any spelling: `session_id`.
        shapes: regular expressions of more strings that are secrets. Bound their quantifiers: `[a-z]{1,64}`, not
            `[a-z]+`. They are searched in texts that others choose.
    """

    keys: frozenset[str] = frozenset()
    plain: frozenset[str] = frozenset()
    shapes: tuple[str, ...] = ()
    _verdicts: dict[str, Verdict] = field(default_factory=dict, init=False, repr=False, compare=False)
    _names: dict[str, tuple[Verdict, str]] = field(default_factory=dict, init=False, repr=False, compare=False)
    _text: TextRules = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Check the rules.

        Raises:
            ConfigurationError: a name has no letter, or is a field that the six types need; a shape is no expression.
        """
        keys, plain = _names("keys", self.keys), _names("plain", self.plain)
        if needed := sorted(name for name in _NEEDED if verdict(name, keys, plain) is not Verdict.PLAIN):
            raise ConfigurationError(
                f"`keys` would redact {needed[0]}, which events need: choose longer names, or add it to `plain`"
            )
        shapes = _several("shapes", self.shapes)
        # A name may be spelled with a separator behind any letter, so its first one is looked for.
        roots = frozenset(key[:1] for key in keys)
        set_field = object.__setattr__
        set_field(self, "keys", keys)
        set_field(self, "plain", plain)
        set_field(self, "shapes", shapes)
        try:
            set_field(self, "_text", TextRules(self.verdict_on, shapes, roots))
        except re.error as error:
            raise ConfigurationError(f"a shape is no regular expression: {error}") from None
        if any(re.search(shape, "") for shape in shapes):
            raise ConfigurationError("a shape matches an empty text, which is everywhere: make a part of it mandatory")

    def __reduce__(self) -> tuple[type["Redaction"], tuple[frozenset[str], frozenset[str], tuple[str, ...]]]:
        return type(self), (self.keys, self.plain, self.shapes)

    def verdict_on(self, name: str) -> Verdict:
        """Return which values a name makes secret."""
        known = self._verdicts.get(name)
        if known is None:
            known = verdict(name, self.keys, self.plain)
            _remember(self._verdicts, name, known)
        return known

    def redact(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields of an event, without credentials, and of types that JSON has.

        Raises:
            AuditError: they have no form in JSON, or one that is too large or nested too deep (`Serialization`).
        """
        refusal = ""
        try:
            return _Walk(self).event(fields)
        except _Refusal as error:
            refusal = str(error)
        except RecursionError:
            refusal = "the fields cannot be read, because the caller is nested too deep"
        except Exception as error:  # noqa: BLE001
            # What a value's own methods raise, or a dict that another thread changes. The text may have a value.
            refusal = f"the fields cannot be read ({type(error).__name__}): give plain values that nobody changes"
        # Raised here, so that the error has no context: that one may have values.
        raise AuditError("Serialization", refusal)

    def _known(self, name: str) -> tuple[Verdict, str]:
        """Return the verdict on a name, and the name without credentials in it."""
        known = self._names.get(name)
        if known is None:
            known = self.verdict_on(name), self._text.redact(name)
            if known[1] == name:
                _remember(self._names, name, known)
        return known


def redact(fields: Mapping[str, Any], rules: Redaction | None = None) -> dict[str, Any]:
    """Return the fields of an event as `Redaction.redact` does, by the rules that are built in if none are given.

    Raises:
        AuditError: they have no form in JSON, or one that is too large or nested too deep (`Serialization`).
    """
    return (DEFAULT if rules is None else rules).redact(fields)


def _remember(known: dict[str, _Known], name: str, value: _Known) -> None:
    """Remember what is known of a name, unless it is long. Names that others choose must fill no memory."""
    if len(name) <= NAME_CHARACTERS:
        if len(known) >= _KNOWN_NAMES:
            known.clear()
        known[name] = value


def _several(kind: str, texts: Iterable[str] | str) -> tuple[str, ...]:
    """Return the user's names or shapes.

    Raises:
        ConfigurationError: they are one text, which is several too: its letters.
    """
    several = () if isinstance(texts, str) else tuple(texts)
    if isinstance(texts, str) or not all(isinstance(text, str) for text in several):
        raise ConfigurationError(f"`{kind}` of a redaction are several texts: give a tuple or a set of them")
    return several


def _names(kind: str, names: Iterable[str]) -> frozenset[str]:
    """Return the user's names as their joined words.

    Raises:
        ConfigurationError: one has none, or they are one text.
    """
    joined = frozenset("".join(words_of(name)) for name in _several(kind, names))
    if "" in joined:
        raise ConfigurationError(f"a name in `{kind}` of a redaction has no letter: give the name of a field")
    return joined


class _Walk:
    """One event's way through the rules: it counts what it has seen, so that nothing endless is followed."""

    __slots__ = ("_characters", "_known", "_names", "_parts", "_redacted", "_text", "_verdict_on")

    def __init__(self, rules: Redaction) -> None:
        self._names = rules._names  # noqa: SLF001
        self._known = rules._known  # noqa: SLF001
        self._verdict_on = rules.verdict_on
        self._text = rules._text  # noqa: SLF001
        self._characters = self._parts = self._redacted = 0

    def event(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Return an event's fields.

        Raises:
            _Refusal: they have no form in JSON, or one that is too large or nested too deep.
        """
        kind = fields.get("event_type")
        typed = _STAND_INS.get(kind) if isinstance(kind, str) else None
        if typed is None:
            return self._object(fields, 1, checked=_CHECKED_OWN)
        return self._object(fields, 1, stand_ins=typed, checked=_CHECKED)

    def _value(self, value: Any, depth: int) -> Any:
        kind = type(value)
        if kind is str:
            return self._string(value, depth)
        if value is None or kind is bool or kind is int or kind is float:
            return value
        if kind is dict:
            return self._object(value, depth)
        if kind is list:
            return self._list(value, depth)
        return self._other(value, depth)

    def _object(
        self,
        value: Mapping[Any, Any],
        depth: int,
        *,
        named: bool = False,
        stand_ins: Mapping[str, Any] = _NO_STAND_INS,
        checked: AbstractSet[str] = frozenset(),
    ) -> dict[str, Any]:
        """Return an object, redacted.

        Args:
            value: its names and values.
            depth: objects and arrays that are open, this one counted.
            named: whether an object around it names a secret that it has the value of.
            stand_ins: what stands for secrets in its fields, if it is the event itself.
            checked: fields of the event that can have no secret.
        """
        self._enter(depth, len(value))
        named = named or (not BESIDE_NAMES.isdisjoint(value) and self._names_a_secret(value))
        made: dict[str, Any] = {}
        known_names = self._names
        for key, item in value.items():
            known = known_names.get(key) if type(key) is str else None
            verdict_, name = self._known(self._key(key)) if known is None else known
            self._characters += len(name)
            if name in made:
                name = self._free(name, made)
            if verdict_ is Verdict.PLAIN and not named:
                skipped = name in checked and type(item) is str
                made[name] = item if skipped else self._value(item, depth + 1)
            elif _is_secret(verdict_, item) or (named and name in NAMED_VALUES and _is_secret(Verdict.SECRET, item)):
                self._redacted += 1
                made[name] = stand_ins.get(name, REDACTED)
            elif named and isinstance(item, Mapping):
                made[name] = self._object(item, depth + 1, named=True)
            else:
                made[name] = self._value(item, depth + 1)
        return made

    def _names_a_secret(self, value: Mapping[Any, Any]) -> bool:
        names = (value[key] for key in BESIDE_NAMES if key in value)
        return any(self._makes_secret(name) for name in names)

    def _makes_secret(self, name: object) -> bool:
        """Return whether a value is the name of a secret."""
        if isinstance(name, bytes):
            name = _decode(name)
        return isinstance(name, str) and self._verdict_on(name) is not Verdict.PLAIN

    def _key(self, key: object) -> str:
        if isinstance(key, Enum):
            key = key.value
        if isinstance(key, str):
            return str.__str__(key)
        if isinstance(key, bytes):
            return _decode(key)
        raise _Refusal(f"a key is of type {type(key).__name__}, and JSON has text alone: make it text")

    def _free(self, name: str, made: Mapping[str, Any]) -> str:
        """Return a name that is free: two keys of one object may be redacted, or bytes and text of one spelling."""
        number = len(made)
        while (free := f"{name} ({number})") in made:
            number += 1
        return free

    def _list(self, items: Sequence[Any], depth: int) -> list[Any]:
        self._enter(depth, len(items))
        if all(map(_is_pair, items)):
            return [self._pair(item, depth + 1) for item in items]
        made: list[Any] = []
        announced = False
        secrets = secret_arguments(items)
        for at, item in enumerate(items):
            if at in secrets:
                self._redacted += 1
                made.append(f"{self._value(item[: secrets[at]], depth + 1)}{REDACTED}")
                announced = False
                continue
            if announced and _is_secret(Verdict.SECRET, item):
                self._redacted += 1
                made.append(REDACTED)
                announced = False
                continue
            value = self._value(item, depth + 1)
            announced = type(value) is str and self._announces(value, at, len(items))
            made.append(value)
        return made

    def _announces(self, text: str, at: int, count: int) -> bool:
        """Return whether the next item of a list is the value of a secret: behind `--password`, or behind a header."""
        if text[:1] == "-":
            return "=" not in text and self._makes_secret(text)
        if at % 2 or count % 2 or len(text) > NAME_CHARACTERS:
            return False
        return text.lower() in _HEADERS or (text[:2].lower() == "x-" and self._makes_secret(text))

    def _pair(self, pair: Sequence[Any], depth: int) -> list[Any]:
        """Return a name and its value, redacted."""
        self._enter(depth, 2)
        name, value = pair
        if self._makes_secret(name) and _is_secret(self._verdict_on(self._key(name)), value):
            self._redacted += 1
            return [self._value(name, depth + 1), REDACTED]
        return [self._value(name, depth + 1), self._value(value, depth + 1)]

    def _string(self, text: str, depth: int) -> str:
        self._characters += len(text)
        if self._characters > limits.EVENT_BYTES:
            raise _Refusal(_TOO_LARGE)
        if len(text) < len("p=ab"):
            return text
        if text[0] in '{["\t\n\r ':
            rewritten = self._json(text, depth)
            if rewritten is not None:
                return rewritten
        redacted = self._text.redact(text)
        if redacted is not text and redacted != text:
            self._redacted += 1
        return redacted

    def _json(self, text: str, depth: int) -> str | None:
        """Return a text that is JSON with credentials in it without them, None if it is not."""
        stripped = text.strip()
        if stripped[:1] + stripped[-1:] not in {"{}", "[]", '""'} or len(stripped) < len("[0]"):
            return None
        before, characters = self._redacted, self._characters
        try:
            # Its characters were counted with the text.
            self._characters = 0
            value = self._value(json.loads(stripped), depth + 1)
            return json.dumps(value, ensure_ascii=False) if self._redacted > before else None
        except (_Refusal, ValueError, RecursionError):
            # It is read as any other text.
            self._redacted = before
            return None
        finally:
            self._characters = characters

    def _other(self, value: Any, depth: int) -> Any:
        """Return a value of a type that JSON lacks."""
        if isinstance(value, Enum):
            return self._value(value.value, depth)
        if isinstance(value, Signature):
            self._characters += len(value)
            return self._text.redact_signature(str.__str__(value))
        if isinstance(value, str):
            return self._string(str.__str__(value), depth)
        if isinstance(value, int | float):
            return int(value) if isinstance(value, int) else float(value)
        if isinstance(value, bytes | bytearray | memoryview):
            return self._string(_decode(bytes(value)), depth)
        if isinstance(value, datetime):
            return format_time(value) if value.tzinfo is not None else value.isoformat()
        if isinstance(value, date | time):
            return value.isoformat()
        if isinstance(value, _TEXTS):
            return self._string(str(value), depth)
        return self._container(value, depth)

    def _container(self, value: Any, depth: int) -> Any:
        if isinstance(value, Mapping):
            return self._object(value, depth)
        if (names := _field_names(value)) is not None:
            return self._object({name: getattr(value, name) for name in names}, depth)
        if isinstance(value, tuple):
            return self._pair(value, depth) if _is_pair(value) else self._list(value, depth)
        if isinstance(value, list | deque):
            return self._list(value, depth)
        if isinstance(value, set | frozenset):
            return sorted(self._list(list(value), depth), key=repr)
        if hasattr(type(value), "get_secret_value"):
            self._redacted += 1
            return REDACTED
        raise _Refusal(
            f"a value of type {type(value).__name__} has no form in JSON: make it text, a number, a list or a dict"
        )

    def _enter(self, depth: int, count: int) -> None:
        if depth > limits.EVENT_DEPTH:
            raise _Refusal(f"nested deeper than {limits.EVENT_DEPTH}")
        self._parts += 1 + count
        # Each has a byte at least. Objects that hold one another many times over would have no end.
        if self._parts > limits.EVENT_BYTES or self._characters > limits.EVENT_BYTES:
            raise _Refusal(_TOO_LARGE)


_TOO_LARGE: Final = f"the value has more than the {limits.EVENT_BYTES} bytes of an event"


def _is_secret(verdict_: Verdict, value: object) -> bool:
    """Return whether a value is a secret, whose name got a verdict."""
    if verdict_ is Verdict.PLAIN or value is None or isinstance(value, bool):
        return False
    if isinstance(value, str | bytes) and not value:
        return False
    if verdict_ is Verdict.TEXTS:
        return isinstance(value, str | bytes)
    return verdict_ is Verdict.SECRET or not isinstance(value, int | float)


def _is_pair(value: object) -> bool:
    """Return whether a value may be a name and its value."""
    return isinstance(value, list | tuple) and len(value) == 2 and isinstance(value[0], str | bytes)


def _field_names(value: object) -> Iterable[str] | None:
    """Return the names of the fields of a dataclass, a named tuple or a msgspec struct, None for anything else."""
    if isinstance(value, type):
        return None
    if dataclasses.is_dataclass(value):
        return [each.name for each in dataclasses.fields(value)]
    if isinstance(value, msgspec.Struct):
        return value.__struct_fields__
    return getattr(value, "_fields", None) if isinstance(value, tuple) else None


def _decode(value: bytes) -> str:
    return value.decode("utf-8", "backslashreplace")


def is_finite(value: Any) -> bool:
    """Return whether all numbers in redacted fields are finite: JSON has no others."""
    if type(value) is float:
        return math.isfinite(value)
    if type(value) is dict:
        return all(map(is_finite, value.values()))
    return all(map(is_finite, value)) if type(value) is list else True


DEFAULT: Final = Redaction()
"""The rules that are built in, and no others."""
