"""The times that users give on the command line.

- A date or a time of ISO 8601: `2026-05-03`, `2026-05-03T14:00`, `2026-05-03T14:00:05+02:00`, `2026-05-03T14:00Z`.
  Without a zone it is in UTC. A date is its first moment.
- `now`, `today` or `yesterday`: the last two are the first moment of that day in UTC.
- An age: `90s`, `30min`, `12h`, `2d`, `6w`. It is that long ago.
"""

import re
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import typer

from custody.format.times import as_utc, shift

_UNITS = {
    "s": timedelta(seconds=1),
    "min": timedelta(minutes=1),
    "h": timedelta(hours=1),
    "d": timedelta(days=1),
    "w": timedelta(weeks=1),
}
_AGE = re.compile(r"([0-9]{1,6}) ?(s|min|h|d|w)", re.ASCII)
_ISO = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}(?:[T ][0-9]{2}:[0-9]{2}(?::[0-9]{2}(?:\.[0-9]{1,6})?)?(?:Z|[+-][0-9]{2}:?[0-9]{2})?)?",
    re.ASCII,
)
EXAMPLES = "2026-05-03, 2026-05-03T14:00+02:00, yesterday or 2d"


def parse_moment(text: str, now: datetime) -> datetime:
    """Return the aware time that a user means.

    Raises:
        ValueError: it is no time of these forms, or not of the years 1 to 9999.
    """
    word = text.strip()
    today = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    named = {"now": now, "today": today, "yesterday": today - timedelta(days=1)}
    if word.lower() in named:
        return named[word.lower()]
    if age := _AGE.fullmatch(word):
        return shift(now, -int(age[1]) * _UNITS[age[2]])
    if _ISO.fullmatch(word):
        with suppress(ValueError, OverflowError):
            return as_utc(datetime.fromisoformat(_six_digits(word))).astimezone(UTC)
    raise ValueError(f"{text[:100]!r} is not a time; write it as {EXAMPLES}")


def _six_digits(text: str) -> str:
    """Return a time with six digits of the second: Python 3.11 and 3.12 differ on other numbers of digits."""
    return re.sub(r"\.([0-9]{1,6})", lambda fraction: f".{fraction[1]:0<6}", text)


def parse_option(value: str | datetime) -> datetime:
    """Return the time that an option names. Typer passes on a default as it is."""
    if isinstance(value, datetime):
        return value
    try:
        return parse_moment(value, datetime.now(UTC))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def time_option(meaning: str) -> Any:
    """Return an option that takes a time."""
    return typer.Option(parser=parse_option, metavar="TIME", help=f"{meaning} Such as 2026-05-03T14:00+02:00, or 2d.")
