"""`archive.json`: its exact form, its bounds, and the pin by which others know it."""

import json
from collections.abc import Callable
from hashlib import sha256
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from custody.errors import FormatError
from custody.format import archive_file, envelope
from custody.format.archive_file import ArchiveStatement
from custody.format.envelope import Signer
from custody.keys.key import Ed25519Key, HmacKey
from custody.keys.secret import Secret

SEED = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
PUBLIC = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
SIGNERS: list[Signer] = [
    HmacKey("hmac-golden", Secret(bytes(range(32)))),
    Ed25519Key("ed25519-golden", Secret(SEED)),
]
MADE = ArchiveStatement(
    archive="6ba7b810-9dad-41d1-80b4-00c04fd430c8",
    created="2026-01-02T03:04:05.000006Z",
    heartbeat=3600,
    checkpoint=1800,
    retention_days=2555,
)


def written(statement: dict[str, Any] | None = None) -> bytes:
    line = json.dumps(statement or msgspec.to_builtins(MADE), separators=(",", ":")).encode()
    return envelope.seal(line, archive_file.FORMAT, SIGNERS)


def changed(**fields: Any) -> bytes:
    return written(msgspec.to_builtins(MADE) | fields)


def test_as_it_is_written() -> None:
    """Its first line is compact, with all fields in their order; its second holds both signatures over its digest."""
    data = envelope.seal(envelope.encode_line(MADE), archive_file.FORMAT, SIGNERS)
    line = data.split(b"\n")[0]
    assert line == (
        b'{"format":"custody/archive/1","archive":"6ba7b810-9dad-41d1-80b4-00c04fd430c8",'
        b'"created":"2026-01-02T03:04:05.000006Z","heartbeat":3600,"checkpoint":1800,"retention_days":2555}'
    )
    parsed = archive_file.parse(data)
    assert (parsed.statement, parsed.line, parsed.id) == (MADE, line, MADE.archive)
    message = b"custody/archive/1\n" + sha256(line).hexdigest().encode() + b"\n"
    assert parsed.message == message
    assert [value for _, value in parsed.signatures] == [signer.sign(message) for signer in SIGNERS]


def test_the_pin_is_of_the_first_line() -> None:
    """The pin is the id and the SHA-256 of line 1: other signatures leave it as it is, and any other field does not."""
    parsed = archive_file.parse(written())
    assert (parsed.pin.id, parsed.pin.sha256) == (MADE.archive, sha256(parsed.line).hexdigest())
    signed_by_one = envelope.seal(parsed.line, archive_file.FORMAT, SIGNERS[:1])
    assert archive_file.parse(signed_by_one).pin == parsed.pin
    assert archive_file.parse(changed(heartbeat=3601)).pin != parsed.pin


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [("heartbeat", 1, 31_622_400), ("checkpoint", 1, 31_622_400), ("retention_days", 1, 36_525)],
)
def test_bounds(name: str, least: int, most: int) -> None:
    """Each number has the bounds of FORMAT.md."""
    for number in (least, most):
        assert getattr(archive_file.parse(changed(**{name: number})).statement, name) == number
    for wrong in (least - 1, most + 1, -1, 1.5, None, "1"):
        with pytest.raises(FormatError):
            archive_file.parse(changed(**{name: wrong}))


@pytest.mark.parametrize(
    "fields",
    [
        {"format": "custody/archive/2"},
        {"archive": "6BA7B810-9dad-41d1-80b4-00c04fd430c8"},
        {"archive": "6ba7b810-9dad-11d1-80b4-00c04fd430c8"},
        {"archive": "6ba7b810-9dad-41d1-c0b4-00c04fd430c8"},
        {"archive": "6ba7b810-9dad-41d1-70b4-00c04fd430c8"},
        {"created": "2026-01-02T03:04:05Z"},
        {"created": "2026-02-30T03:04:05.000000Z"},
        {"more": 1},
    ],
    ids=str,
)
def test_wrong_fields(fields: dict[str, Any]) -> None:
    """Another format, an id that is no UUID of version 4, what is no time, and any field beside are refused."""
    with pytest.raises(FormatError):
        archive_file.parse(changed(**fields))


@pytest.mark.parametrize("variant", "89ab")
def test_every_variant_of_a_uuid(variant: str) -> None:
    """A UUID of version 4 has one of four variants."""
    id_ = f"6ba7b810-9dad-41d1-{variant}0b4-00c04fd430c8"
    assert archive_file.parse(changed(archive=id_)).id == id_


@pytest.mark.parametrize("name", list(msgspec.to_builtins(MADE)))
def test_a_field_that_lacks_or_stands_twice(name: str) -> None:
    """Each field stands there exactly once, in its order."""
    fields = msgspec.to_builtins(MADE)
    value = fields.pop(name)
    for wrong in (fields, {name: value, **fields} if name != "format" else {**fields, name: value}):
        with pytest.raises(FormatError):
            archive_file.parse(written(wrong))
    text = written().replace(b"{", b'{"%b":%b,' % (name.encode(), json.dumps(value).encode()), 1)
    line, _, second = text.partition(b"\n")
    with pytest.raises(FormatError):
        archive_file.parse(line + b"\n" + second)


@pytest.mark.parametrize(
    "bend",
    [
        lambda data: data[:-1],
        lambda data: data + b"\n",
        lambda data: data.split(b"\n")[0],
        lambda data: b"\n".join(data.split(b"\n")[1:]),
        lambda data: data[:0],
    ],
)
def test_not_two_lines(bend: Callable[[bytes], bytes]) -> None:
    """It has exactly two lines, each with its newline."""
    with pytest.raises(FormatError):
        archive_file.parse(bend(written()))


@given(st.binary() | st.tuples(st.binary(), st.binary()).map(lambda lines: b"%b\n%b\n" % lines))
def test_any_bytes(data: bytes) -> None:
    """Whatever the bytes, parsing gives an archive.json or a FormatError."""
    try:
        parsed = archive_file.parse(data)
    except FormatError:
        return
    assert parsed.line == data.split(b"\n")[0]
