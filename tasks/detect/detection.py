"""The search identifiers of a Sigma rule (Sigma specification 2.1, "Detection"), written as SQL over `events`.

- A map is true if all its fields are; a list of maps if one of them is; a list of values if one of them is the field's.
- Text compares without regard to case; `*` and `?` are wildcards, unless a backslash stands before them.
- A field that is no column of `events` is read from the event's JSON; `a.b` is the field `b` in the object `a`.
- A field that an event lacks fits nothing but `null` and `exists: false`, so that `not` is true of it.

Anything else is an error: a search that is half understood would be silent about what it misses.
"""

import re
from collections.abc import Callable, Mapping
from datetime import date
from ipaddress import ip_network
from typing import Any, Final

from custody.errors import ConfigurationError
from tasks.detect.rule import literal, quoted
from tasks.detect.views import COLUMNS

_COMPARE: Final = {"lt": "<", "lte": "<=", "gt": ">", "gte": ">="}
_PLACES: Final = {"contains": ("%", "%"), "startswith": ("", "%"), "endswith": ("%", "")}
_MANY: Final = frozenset({*_PLACES, "re"})
"""What can be true of a field for several values at once."""
_FLAGS: Final = {"i": "i", "m": "m", "s": "s"}
_MODIFIERS: Final = frozenset({*_COMPARE, *_PLACES, *_FLAGS, "all", "cased", "cidr", "exists", "re"})
_FIELD: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*(?:\.[A-Za-z0-9_-]+)*", re.ASCII)
_WILDCARD: Final = re.compile(r"\\([*?\\])|([*?])|([%_\\])")
_VALUES: Final = 10_000
_EXACT: Final = 2**53
"""Whole numbers below this are different ones as DOUBLE too."""


def column(field: str) -> str:
    """Return the SQL of a field: a column of `events`, or a field of its JSON as text.

    Raises:
        ConfigurationError: it is no name of a field.
    """
    if not _FIELD.fullmatch(field):
        raise ConfigurationError(f"{field!r} is no name of a field: use letters, digits, '_', '-' and '.'")
    if field not in COLUMNS and field.lower() in COLUMNS:
        raise ConfigurationError(f"{field!r} is not known: write {field.lower()}")
    if field in COLUMNS:
        return quoted(field)
    path = "$" + "".join(f'."{part}"' for part in field.split("."))
    return f"json_extract_string(event, {literal(path)})"


def kind_of(field: str) -> str:
    """Return the DuckDB type of a field."""
    return COLUMNS.get(field, "VARCHAR")


def search_sql(search: Any) -> str:
    """Return a search identifier as SQL that is true or false, never NULL.

    Raises:
        ConfigurationError: it is not understood.
    """
    if isinstance(search, Mapping):
        if not search:
            raise ConfigurationError("a search has no field")
        parts = [_item(str(name), value) for name, value in search.items()]
        return parts[0] if len(parts) == 1 else "(" + " AND ".join(parts) + ")"
    if isinstance(search, list) and search and all(isinstance(each, Mapping) for each in search):
        return "(" + " OR ".join(map(search_sql, search)) + ")"
    raise ConfigurationError("a search is a map of fields, or a list of such maps: words without a field are not known")


def _item(name: str, value: Any) -> str:
    """Return a field with its modifiers and values as SQL."""
    field, *modifiers = name.split("|")
    if unknown := [modifier for modifier in modifiers if modifier not in _MODIFIERS]:
        raise ConfigurationError(
            f"{name}: the modifier {unknown[0]!r} is not known: {', '.join(sorted(_MODIFIERS))} are"
        )
    values = value if isinstance(value, list) else [value]
    if not values or len(values) > _VALUES:
        raise ConfigurationError(f"{name} needs 1 to {_VALUES:,} values")
    if "all" in modifiers and (len(values) == 1 or not _MANY.intersection(modifiers)):
        raise ConfigurationError(f"{name}: 'all' is for several values of {', '.join(sorted(_MANY))}")
    if "exists" in modifiers and len(values) > 1:
        raise ConfigurationError(f"{name}: 'exists' is true or false, and no list")
    word = " AND " if "all" in modifiers else " OR "
    try:
        test = _test(field, [modifier for modifier in modifiers if modifier != "all"])
        parts = [f"coalesce({test(each)}, false)" for each in values]
    except ConfigurationError as error:
        raise ConfigurationError(f"{name}: {error}") from None
    return parts[0] if len(parts) == 1 else "(" + word.join(parts) + ")"


def _test(field: str, modifiers: list[str]) -> Callable[[Any], str]:
    """Return what writes the comparison of a field with one value."""
    sql, kind = column(field), kind_of(field)
    kinds = [modifier for modifier in modifiers if modifier not in {"cased", *_FLAGS}]
    if len(kinds) > 1:
        raise ConfigurationError(f"{' and '.join(kinds)} do not go together")
    how = kinds[0] if kinds else ""
    flags = [modifier for modifier in modifiers if modifier in _FLAGS]
    if flags and how != "re":
        raise ConfigurationError(f"{flags[0]!r} stands behind 're' only")
    if "cased" in modifiers and how not in {"", *_PLACES}:
        raise ConfigurationError(f"'cased' and {how!r} do not go together")
    if how in _COMPARE:
        return lambda value: f"{_number_sql(sql, kind)} {_COMPARE[how]} {_number(value)}"
    if how == "exists":
        return lambda value: f"({sql} IS {'NOT ' if _bool(value) else ''}NULL)"
    if how == "cidr":
        return lambda value: _cidr(field, value)
    if how == "re":
        return lambda value: f"regexp_matches({_text_sql(sql, kind)}, {literal(_regex(value))}, '{''.join(flags)}')"
    before, behind = _PLACES.get(how, ("", ""))
    return lambda value: _equal(sql, kind, value, before, behind, cased="cased" in modifiers)


def _equal(sql: str, kind: str, value: Any, before: str, behind: str, *, cased: bool) -> str:
    placed = bool(before or behind)
    if value is None and not placed:
        return f"({sql} IS NULL)"
    if isinstance(value, bool) and not placed:
        return (
            f"{sql} = {str(value).lower()}"
            if kind == "BOOLEAN"
            else f"lower({_text_sql(sql, kind)}) = '{str(value).lower()}'"
        )
    if kind in {"BIGINT", "DOUBLE"} and not placed:
        return f"{sql} = {_number(value)}"
    if kind == "BOOLEAN":
        raise ConfigurationError(f"{value!r} is compared with true or false")
    if isinstance(value, date):
        raise ConfigurationError(f"{value} is read as a time: write it in quotes")
    if not isinstance(value, str | int | float):
        raise ConfigurationError(f"{value!r} is no text and no number")
    text = str(value)
    fold = (lambda part: part) if cased else (lambda part: f"lower({part})")
    left = fold(_text_sql(sql, kind))
    pattern, has_wildcards = _like(text)
    if placed or has_wildcards:
        return f"{left} LIKE {fold(literal(before + pattern + behind))} ESCAPE '\\'"
    same = f"{left} = {fold(literal(_plain(text)))}"
    if isinstance(value, int | float) and abs(value) < _EXACT:
        # JSON may write a number in another way, such as 1 for 1.0.
        return f"({same} OR TRY_CAST({sql} AS DOUBLE) = {_number(value)})"
    return same


def _like(text: str) -> tuple[str, bool]:
    """Return a text as a pattern of LIKE, and whether it has wildcards."""
    wild = False

    def written(match: re.Match[str]) -> str:
        nonlocal wild
        if match[1]:
            return "\\\\" if match[1] == "\\" else match[1]
        if match[2]:
            wild = True
            return "%" if match[2] == "*" else "_"
        return "\\" + match[3]

    return _WILDCARD.sub(written, text), wild


def _plain(text: str) -> str:
    """Return a text without the backslashes that escape."""
    return re.sub(r"\\([*?\\])", r"\1", text)


def _text_sql(sql: str, kind: str) -> str:
    return sql if kind == "VARCHAR" else f"CAST({sql} AS VARCHAR)"


def _number_sql(sql: str, kind: str) -> str:
    if kind == "BOOLEAN":
        raise ConfigurationError("true and false are not compared with numbers")
    return f"TRY_CAST({sql} AS DOUBLE)" if kind == "VARCHAR" else sql


def _number(value: Any) -> str:
    """Return a number as SQL."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ConfigurationError(f"{value!r} is no number")
    try:
        number = int(value) if isinstance(value, str) and value.isdecimal() else value
        if isinstance(number, str):
            number = float(number)
    except ValueError:
        raise ConfigurationError(f"{value!r} is no number") from None
    if number != number or abs(number) == float("inf") or abs(number) >= 2**63:
        raise ConfigurationError(f"{value!r} is beyond what numbers of events may be")
    return repr(number)


def _bool(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ConfigurationError(f"{value!r} is not true or false")
    return value


def _regex(value: Any) -> str:
    if not isinstance(value, str):
        raise ConfigurationError(f"{value!r} is no regular expression")
    return value


def _cidr(field: str, value: Any) -> str:
    """Return whether an address is in a network: as numbers, so that each spelling of an address counts."""
    if field != "client_ip":
        raise ConfigurationError("only client_ip is known as an address")
    try:
        network = ip_network(str(value), strict=False)
    except ValueError:
        raise ConfigurationError(f"{value!r} is no network, such as 192.0.2.0/24") from None
    mapped = 0xFFFF << 32 if network.version == 4 else 0
    first, last = (f"{mapped | int(end):032x}" for end in (network.network_address, network.broadcast_address))
    return f"(address BETWEEN '{first}' AND '{last}')"
