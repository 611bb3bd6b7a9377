"""Lines of quarantine objects: what FORMAT.md allows is read, and nothing else, within its limits."""

import base64
import gzip
import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from custody.errors import FormatError
from custody.findings import Finding
from custody.format import limits
from custody.format.manifest import QuarantineRef
from custody.format.quarantine import LeftOut, Omitted, parse_quarantined, quarantine_lines
from custody.store.open import open_store
from custody.verify.contents import check
from custody.verify.work import Work

LINE: dict[str, Any] = {
    "offset": 7,
    "timestamp": 1_772_366_400_000,
    "key": base64.b64encode(b"key").decode(),
    "value": base64.b64encode(b"no event").decode(),
    "headers": [["trace", base64.b64encode(b"a").decode()], ["empty", None]],
    "error": "not JSON",
    "omitted": None,
}
DIGEST = "ab" * 32
LARGE = {"size": limits.QUARANTINE_RECORD, "sha256": DIGEST}
NONE: dict[str, object] = {"key": None, "value": None, "headers": None}


def line(**fields: Any) -> bytes:
    return json.dumps(LINE | fields, separators=(",", ":")).encode()


def test_a_record() -> None:
    """A line gives the record's bytes back."""
    found = parse_quarantined(line())
    assert (found.offset, found.timestamp, found.key, found.value) == (7, 1_772_366_400_000, b"key", b"no event")
    assert found.headers == (("trace", b"a"), ("empty", None))
    assert found.omitted is None


@pytest.mark.parametrize(
    "fields",
    [
        {"key": None, "value": None, "headers": [], "timestamp": None},
        {"key": "", "value": ""},
        {"timestamp": -5},
        {"timestamp": -(2**63)},
        {"offset": 0},
        {"offset": 2**63 - 1},
        {"value": None, "omitted": NONE | {"value": LARGE}},
        {"key": None, "omitted": NONE | {"key": LARGE}},
        {"headers": [], "omitted": NONE | {"headers": LARGE}},
        {"key": None, "value": None, "headers": [], "omitted": dict.fromkeys(NONE, LARGE)},
        {"value": None, "omitted": NONE | {"value": LARGE | {"size": 2**63 - 1}}},
    ],
)
def test_allowed(fields: dict[str, Any]) -> None:
    """Whatever a record may be is read."""
    assert parse_quarantined(line(**fields)).offset == (LINE | fields)["offset"]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"offset": -1}, "offset"),
        ({"offset": 2**63}, ""),
        ({"offset": 1.5}, "offset"),
        ({"offset": True}, "offset"),
        ({"timestamp": "1"}, "timestamp"),
        ({"timestamp": 2**63}, ""),
        ({"timestamp": -(2**63) - 1}, ""),
        ({"key": "a"}, "base64"),
        ({"value": "YQ"}, "base64"),
        ({"value": "YQ==\n"}, "base64"),
        ({"value": "é"}, "base64"),
        ({"value": "YR=="}, "out of order"),
        ({"value": "Ccb+=="}, "base64"),
        ({"headers": None}, "headers"),
        ({"headers": [["a"]]}, "headers"),
        ({"headers": [["a", None, None]]}, "headers"),
        ({"headers": [["a", "?"]]}, "base64"),
        ({"headers": {"a": None}}, "headers"),
        ({"error": None}, "error"),
        ({"more": 1}, "more"),
        ({"omitted": {}}, "omitted"),
        ({"omitted": []}, "omitted"),
        ({"omitted": {"value": LARGE}}, "omitted"),
        ({"value": None, "omitted": NONE | {"more": None, "value": LARGE}}, "more"),
        ({"value": None, "omitted": NONE | {"value": {"size": 2**24}}}, "sha256"),
        ({"value": None, "omitted": NONE | {"value": LARGE | {"size": -1}}}, "size"),
        ({"value": None, "omitted": NONE | {"value": LARGE | {"size": 2**63}}}, ""),
        ({"value": None, "omitted": NONE | {"value": LARGE | {"sha256": DIGEST.upper()}}}, "sha256"),
        ({"value": None, "omitted": NONE | {"value": LARGE | {"sha256": DIGEST + "\n"}}}, "sha256"),
        # What is omitted is not there, and something is, so that the record is too large.
        ({"omitted": NONE | {"value": LARGE}}, "value is there, and omitted"),
        ({"value": "", "omitted": NONE | {"value": LARGE}}, "value is there, and omitted"),
        ({"omitted": NONE | {"key": LARGE}}, "key is there, and omitted"),
        ({"omitted": NONE | {"headers": LARGE}}, "headers is there, and omitted"),
        ({"omitted": NONE}, "omits some"),
        ({"value": None, "headers": [], "omitted": NONE | {"value": LARGE | {"size": 2**23 - 3}}}, "omits some"),
    ],
)
def test_refused(fields: dict[str, Any], reason: str) -> None:
    """Another form, or an omission that cannot be, is a FormatError."""
    with pytest.raises(FormatError, match=f"no quarantined record.*{reason}"):
        parse_quarantined(line(**fields))


def test_fields_are_in_order() -> None:
    """The fields of a line are in FORMAT.md's order, however it is spaced and its text escaped."""
    assert parse_quarantined(json.dumps(LINE | {"error": "é", "timestamp": -5}, indent=1).encode()).timestamp == -5
    with pytest.raises(FormatError, match="out of order"):
        parse_quarantined(json.dumps(dict(reversed(LINE.items()))).encode())


@pytest.mark.parametrize("name", LINE)
def test_each_field_is_required_and_stands_once(name: str) -> None:
    """A line lacks no field, and has none twice."""
    with pytest.raises(FormatError, match=name):
        parse_quarantined(json.dumps({key: value for key, value in LINE.items() if key != name}).encode())
    with pytest.raises(FormatError, match="twice"):
        parse_quarantined(line()[:-1] + f',"{name}":{json.dumps(LINE[name])}}}'.encode())


def test_a_field_twice_within_omitted() -> None:
    """Nor does an object within a line have a field twice."""
    good = line(value=None, omitted=NONE | {"value": LARGE})
    for text in (b'"size":8388608', b'"key":null,"value":{'):
        assert text in good
    with pytest.raises(FormatError, match="twice"):
        parse_quarantined(good.replace(b'"size":8388608', b'"size":8388608,"size":8388608'))
    with pytest.raises(FormatError, match="twice"):
        parse_quarantined(good.replace(b'"key":null,"value":{', b'"key":null,"key":null,"value":{'))


def test_omission_by_size() -> None:
    """The limit counts bytes of key and value, and of the headers' JSON; on either side."""
    headers = [["h", base64.b64encode(bytes(100)).decode()]]
    room = limits.QUARANTINE_RECORD - 3 - len(json.dumps(headers, separators=(",", ":")))
    for size, good in ((room, True), (room + 1, False)):
        held = line(value=base64.b64encode(bytes(size)).decode(), headers=headers)
        left_out = line(value=None, headers=headers, omitted=NONE | {"value": {"size": size, "sha256": DIGEST}})
        for text, fine in ((held, good), (left_out, not good)):
            if fine:
                found = parse_quarantined(text)
                assert found.omitted in (None, Omitted(None, LeftOut(size, DIGEST), None))
            else:
                with pytest.raises(FormatError, match="limit 8388608"):
                    parse_quarantined(text)


# --- whole objects


def findings(root: Path, payload: bytes, offsets: list[tuple[int, int]]) -> list[Finding]:
    """Return what is found in a quarantine object whose hashes fit."""
    data = gzip.compress(payload, 1, mtime=0)
    store = open_store(str(root))
    store.create("quarantine/a", data)
    records = sum(end - start for start, end in offsets)
    ref = QuarantineRef("quarantine/a", len(data), sha256(data).hexdigest(), len(payload), records, offsets)
    return check(store, Work("audit/0", 1, 0, 100, None, [], {}, ref, [])).findings


def padded(size: int) -> bytes:
    """Return a line of exactly this many bytes, by its reason."""
    return line(error="x" * (size - len(line(error=""))))


@pytest.mark.parametrize(
    ("edit", "finding"),
    [
        (lambda rows: rows, None),
        (lambda rows: [rows[0].replace(b'"omitted":null', b'"omitted":{}'), rows[1]], "quarantine"),
        (lambda rows: [rows[0].replace(b',"omitted":null', b""), rows[1]], "quarantine"),
        (lambda rows: rows[:1], "quarantine"),
        (lambda rows: [*rows, line(offset=9)], "quarantine"),
        (lambda rows: rows[::-1], "quarantine"),
        (lambda rows: [rows[0], b"", rows[1]], "quarantine"),
        (lambda rows: [rows[0], b"x" * (limits.QUARANTINE_LINE + 1)], "gzip"),
    ],
)
def test_objects(tmp_path: Path, edit: Callable[[list[bytes]], list[bytes]], finding: str | None) -> None:
    """An object holds the records that its statement names, each in a good line; else one finding says so."""
    rows = edit([line(offset=7), line(offset=8)])
    found = findings(tmp_path, b"".join(row + b"\n" for row in rows), [(7, 9)])
    assert [one.finding for one in found] == ([finding] if finding else [])


@pytest.mark.parametrize("before", [0, 1, 100_000, 1_048_570])
def test_longest_line(tmp_path: Path, before: int) -> None:
    """A line of exactly the limit is read, and one byte more is not, wherever it stands in what is inflated."""
    first = line(offset=6, error="x" * before)
    for number, size in enumerate((limits.QUARANTINE_LINE, limits.QUARANTINE_LINE + 1)):
        payload = first + b"\n" + padded(size) + b"\n"
        found = findings(tmp_path / str(number), payload, [(6, 8)])
        assert [one.finding for one in found] == ["gzip"] * number
        assert all("a line has more than 16777216 bytes" in one.message for one in found)


def test_limits_of_an_object() -> None:
    """An object that is said to be beyond the limits is not inflated."""
    for size, inflated in ((limits.QUARANTINE_BYTES + 1, 1), (1, limits.QUARANTINE_INFLATED + 1)):
        with pytest.raises(FormatError, match="not inflated"):
            next(quarantine_lines(iter(()), size, inflated))
