"""Times in the answers of S3 are what botocore makes of them, and those of listings cost little."""

from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any

import botocore.parsers
import pytest
from botocore.parsers import DEFAULT_TIMESTAMP_PARSER
from hypothesis import given
from hypothesis import strategies as st

from custody.store.open import open_store
from custody.store.protocol import S3Options
from custody.store.s3_client import parse_timestamp
from tests.servers.s3 import SeaweedServer

MOMENTS = st.datetimes(datetime(1970, 1, 1), datetime(9999, 12, 31), timezones=st.just(UTC))  # noqa: DTZ001 - see timezones


@given(MOMENTS, st.integers(0, 6))
def test_times_are_those_of_botocore(moment: datetime, digits: int) -> None:
    """In each form that S3 and its like write, also with fewer digits of a second."""
    fraction = f".{moment.microsecond:06}"[: digits + 1] if digits else ""
    for text in (f"{moment:%Y-%m-%dT%H:%M:%S}{fraction}Z", moment.isoformat(), format_datetime(moment, usegmt=True)):
        assert parse_timestamp(text) == DEFAULT_TIMESTAMP_PARSER(text)
        assert parse_timestamp(text).utcoffset() == DEFAULT_TIMESTAMP_PARSER(text).utcoffset()


@pytest.mark.parametrize("value", [1780000000, 1780000000.5, "1780000000", "20261130", "2026-11-30", "2026-11-30T17Z"])
def test_other_forms_are_left_to_botocore(value: Any) -> None:
    """Nothing that botocore reads otherwise is taken for a time of a listing."""
    assert parse_timestamp(value) == DEFAULT_TIMESTAMP_PARSER(value)


@pytest.mark.parametrize("value", ["", "yesterday", "2026-13-30T17:37:19Z", "2026-11-30T24:00:00Z", None, [1]])
def test_what_is_no_time_is_refused_as_by_botocore(value: Any) -> None:
    """The error is botocore's, which the store makes one of its own."""
    with pytest.raises(ValueError, match="Invalid timestamp"):
        DEFAULT_TIMESTAMP_PARSER(value)
    with pytest.raises(ValueError, match="Invalid timestamp"):
        parse_timestamp(value)


def test_a_listing_takes_no_time_of_botocores_parser(seaweed: SeaweedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a real server's listings, of objects and of versions, no time needs the slow parser."""
    seaweed.use(monkeypatch)
    url = f"s3://{seaweed.make_bucket(versioned=True)}/a"
    store = open_store(url, S3Options(endpoint_url=seaweed.endpoint_url))
    store.create("a", b"x")

    def slow(value: Any) -> datetime:
        raise AssertionError(f"{value!r} was parsed by botocore")

    monkeypatch.setattr(botocore.parsers, "DEFAULT_TIMESTAMP_PARSER", slow)
    assert [info.key for info in store.list()] == ["a"]
    assert store.capabilities.versions is not None
    assert not list(store.capabilities.versions.history(""))
    store.close()
