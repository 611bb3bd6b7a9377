"""Times that custody writes: their one form, and nothing else taken for it."""

import re
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from custody.format.times import format_time, parse_time

FORM = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}[.][0-9]{6}Z")


@given(st.datetimes(timezones=st.just(UTC)))
def test_a_time_comes_back(moment: datetime) -> None:
    """A time that was written parses to itself."""
    assert parse_time(format_time(moment)) == moment


@given(st.datetimes(timezones=st.just(UTC)), st.data())
def test_a_time_with_another_character(moment: datetime, data: st.DataObject) -> None:
    """One character more, less or other: it is of the form and a time that there is, or an error."""
    text = format_time(moment)
    at = data.draw(st.integers(0, len(text)))
    put = data.draw(st.sampled_from(["", "0", "2", "9", "+", ",", ":", " ", "z", "\n", "\u0660", "\ud800"]))
    changed = text[:at] + put + text[at + data.draw(st.integers(0, 1)) :]
    try:
        assert format_time(parse_time(changed)) == changed
    except ValueError:
        if FORM.fullmatch(changed):
            with pytest.raises(ValueError, match=r"range|month|hour|minute|second|Z"):
                datetime.strptime(changed, "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=UTC)


@pytest.mark.parametrize(
    "text",
    [
        "2026-11-24T24:00:00.000000Z",
        "2026-11-24T23:59:60.000000Z",
        "2026-02-30T00:00:00.000000Z",
        "0000-01-01T00:00:00.000000Z",
        "2026-11-24 00:00:00.000000Z",
        "2026-11-24T00:00:00,000000Z",
        "2026-11-24T00:00:00.000Z",
        "2026-11-24T00:00:00.000000+00:00",
        "2026-W48-2T00:00:00.000000Z",
        "2026-11-24T00:00:00.000000Z\n",
        "\u0662026-11-24T00:00:00.000000Z",
        "",
    ],
)
def test_what_is_no_time(text: str) -> None:
    """What another parser would let in is an error."""
    with pytest.raises(ValueError, match=r"form|range|month|day|hour|second"):
        parse_time(text)
