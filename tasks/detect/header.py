"""What each rule file says about its rule, whether it is Sigma or SQL: its id, level, texts and spans of time."""

import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Final

from custody.errors import ConfigurationError
from tasks.detect.rule import OF_MATCH, Level

LONGEST: Final = timedelta(days=7)
"""A run reads so far back at most. What must be known for longer is remembered: see SQL rules."""
_LEVELS: Final[Mapping[str, Level]] = {
    "informational": "low",
    "low": "low",
    "medium": "medium",
    "high": "high",
    "critical": "critical",
}
_ID: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_TIMESPAN: Final = re.compile(r"([1-9][0-9]{0,6})([smhd])")
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def identity(document: Mapping[str, Any]) -> str:
    """Return the rule's id.

    Raises:
        ConfigurationError: it has none.
    """
    given = str(document.get("id", ""))
    if not _ID.fullmatch(given):
        raise ConfigurationError(
            "'id' is a UUID in lower case: `python -c 'import uuid; print(uuid.uuid4())'` makes one"
        )
    return given


def level(document: Mapping[str, Any]) -> Level:
    """Return the rule's level.

    Raises:
        ConfigurationError: it is not known.
    """
    known = _LEVELS.get(str(document.get("level")))
    if known is None:
        raise ConfigurationError(f"'level' is {document.get('level')!r}: {', '.join(_LEVELS)} are known")
    return known


def text(document: Mapping[str, Any], name: str) -> str:
    """Return a text, in one line.

    Raises:
        ConfigurationError: it is missing, or no text.
    """
    value = document.get(name)
    if not isinstance(value, str) or not value.strip():
        raise ConfigurationError(f"{name!r} is missing, or no text")
    return " ".join(value.split())


def texts(value: Any, name: str) -> list[str]:
    """Return a list of texts; one text is a list too.

    Raises:
        ConfigurationError: it is neither.
    """
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not all(isinstance(each, str) for each in values):
        raise ConfigurationError(f"{name!r} is a list of texts")
    return list(values)


def columns_of_group(document: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the columns of `group-by`.

    Raises:
        ConfigurationError: one is there twice, or is a column that each match has.
    """
    columns = texts(document.get("group-by", []), "group-by")
    if len({column.lower() for column in columns}) < len(columns):
        raise ConfigurationError("'group-by' names a column twice")
    if own := [column for column in columns if column.lower() in OF_MATCH]:
        raise ConfigurationError(f"'group-by' names {own[0]}, which is another one for each match")
    return tuple(columns)


def timespan(value: Any, name: str) -> timedelta:
    """Return a time span, such as `5m`.

    Raises:
        ConfigurationError: it is none.
    """
    match = _TIMESPAN.fullmatch(str(value))
    if match is None:
        raise ConfigurationError(f"{name} is {value!r}: write a number and s, m, h or d, such as 5m")
    return timedelta(**{_UNITS[match[2]]: int(match[1])})
