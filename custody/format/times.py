"""Times that custody writes: UTC, `YYYY-MM-DDTHH:MM:SS.ffffffZ`, always six digits (FORMAT.md, Event).

Times from elsewhere may be any number: producers set Kafka's, and whoever may write a file sets its date. They pass
through here. So do sums of times: who signs a statement may choose the first or the last day that there is.
"""

from datetime import UTC, datetime, timedelta
from typing import Final

from custody.errors import FormatError

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND: Final = timedelta(microseconds=1)
YEAR_10000: Final = 253_402_300_800
"""Seconds from 1970 to the year 10000: a time is before it."""
YEAR_10000_MS: Final = YEAR_10000 * 1_000
YEAR_10000_US: Final = YEAR_10000 * 1_000_000

DIGITS: Final = bytes.maketrans(b"123456789", b"0" * 9)
"""Makes each digit a 0: a text of a fixed form is compared as a whole then, in a tenth of what a pattern takes."""
HEX_DIGITS: Final = bytes.maketrans(b"123456789abcdef", b"0" * 15)
"""The same for hexadecimal digits, in lower case."""
_FORM = b"0000-00-00T00:00:00.000000Z"


def as_utc(moment: datetime) -> datetime:
    """Return a moment, taken as UTC where it names no zone."""
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def check_time(name: str, text: str) -> datetime:
    """Parse a time that custody writes; an error begins with `name`.

    Raises:
        FormatError: no such date or time of day.
    """
    try:
        return parse_time(text)
    except ValueError:
        raise FormatError(f"{name} {text[:100]!r} is no time of the form YYYY-MM-DDTHH:MM:SS.ffffffZ") from None


def moment_of(seconds: float) -> datetime:
    """Return the time that is so many seconds after 1970. Before 1970 and after 9999 it is the first or last second."""
    return EPOCH + timedelta(seconds=min(max(seconds, 0), YEAR_10000 - 1))


def kafka_moment(milliseconds: int | None) -> datetime | None:
    """Return the time of a Kafka timestamp; None if there is none, or if it is not of the years 1970 to 9999."""
    known = milliseconds is not None and 0 <= milliseconds < YEAR_10000_MS
    return EPOCH + timedelta(milliseconds=milliseconds) if known else None  # type: ignore[arg-type]


def shift(moment: datetime, by: timedelta) -> datetime:
    """Return a time moved by a span, within the years that a time can have."""
    try:
        return moment + by
    except OverflowError:
        return datetime.max.replace(tzinfo=UTC) if by > timedelta(0) else datetime.min.replace(tzinfo=UTC)


def format_time(moment: datetime) -> str:
    """Return an aware datetime as custody writes times: UTC, six digits, `Z`."""
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def format_us(microseconds: int) -> str:
    """Return a time given in µs since 1970 as custody writes times."""
    return format_time(EPOCH + timedelta(microseconds=microseconds))


def microseconds_of(moment: datetime) -> int:
    """Return the whole microseconds from 1970 to an aware datetime."""
    return (moment - EPOCH) // MICROSECOND


def parse_time(text: str) -> datetime:
    """Return the aware datetime of a time that custody wrote.

    Raises:
        ValueError: it is not of that form.
    """
    # What fromisoformat lets in differs from one Python to the next: 24:00, a comma, other digits.
    if text.encode().translate(DIGITS) != _FORM or text[11:13] == "24":
        raise ValueError(f"{text[:100]!r} is not of the form YYYY-MM-DDTHH:MM:SS.ffffffZ")
    return datetime.fromisoformat(text)


def duration_text(seconds: float) -> str:
    """Return a duration for people, such as `5 min`, in the unit that suits it."""
    if abs(seconds) < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if abs(minutes) < 120:
        return f"{minutes} min"
    hours = minutes / 60
    return f"{hours:.1f} h" if abs(hours) < 48 else f"{hours / 24:,.0f} d"
