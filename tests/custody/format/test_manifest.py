"""The statement's exact bytes, and that nothing but a manifest is taken for one."""

import base64
import contextlib
import json
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from custody.errors import FormatError
from custody.format import envelope, manifest
from custody.format.envelope import Signer, Tree
from custody.format.manifest import (
    Batch,
    KafkaTime,
    LastRecord,
    Leaves,
    LogId,
    PreviousEpoch,
    QuarantineRef,
    SegmentRef,
    Statement,
    Unreadable,
)
from custody.format.times import check_time, format_time, parse_time
from custody.keys.key import Ed25519Key, HmacKey
from custody.keys.secret import Secret
from custody.tlog import merkle
from tests.helpers import rfc6962

GOLDEN = Path(__file__).parents[2] / "golden" / "manifest"
SEED = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
PUBLIC = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
HMAC = HmacKey("hmac-golden", Secret(bytes(range(32))))
SIGNERS: list[Signer] = [HMAC, Ed25519Key("ed25519-golden", Secret(SEED))]
LEAVES = [merkle.leaf_hash(b"0"), merkle.leaf_hash(b"1"), merkle.leaf_hash(b"2")]
TIME = "2026-01-02T03:04:05.000006Z"

FULL = Statement(
    archive="6ba7b810-9dad-41d1-80b4-00c04fd430c8",
    log=LogId("q1Sh-9_ISia_zwGINzRvyQ", "audit.events", "H3nB2lUxRdiZlJQ1VZPMZA", 3, 2),
    sequence=3,
    tree=Tree(3, rfc6962.root(LEAVES).hex(), [rfc6962.root(LEAVES[:2]).hex(), LEAVES[2].hex()]),
    previous_epoch=PreviousEpoch(1, 9, sha256(b"epoch 1").hexdigest()),
    first_offset=100,
    next_offset=120,
    last_record=LastRecord(118, 7),
    skipped=[(104, 105), (119, 120)],
    lost=(100, 102),
    unreadable=[Unreadable(108, 109, "no client could decode it: ÿ")],
    passed_over=[sha256(b"noise").hexdigest(), sha256(b"").hexdigest()],
    sealed_at=TIME,
    writer="custody 0.1.0 drain@höst run 1",
    segment=SegmentRef("events/2026/01/02/03/04/05-audit.events@2-3-x.jsonl.gz", 400, sha256(b"s").hexdigest()),
    batches=[
        Batch(
            0,
            102,
            110,
            6,
            0,
            200,
            2040,
            sha256(b"b0").hexdigest(),
            TIME,
            TIME,
            KafkaTime("create", 1, 2),
            Leaves("leaves-golden", sha256(b"leaves").hexdigest()),
        ),
        Batch(1, 110, 119, 8, 200, 200, 2720, sha256(b"b1").hexdigest(), TIME, TIME, None, None),
    ],
    quarantine=QuarantineRef("quarantine/x", 90, sha256(b"q").hexdigest(), 300, 2, [(106, 107), (112, 113)]),
    expired=None,
    types={"auth_attempt": 6, "query_executed": 8},
)
FIRST = Statement(
    archive=FULL.archive,
    log=LogId("cluster", "t", None, 0, 1),
    sequence=0,
    tree=Tree(0, merkle.EMPTY_ROOT.hex(), []),
    previous_epoch=None,
    first_offset=0,
    next_offset=0,
    last_record=None,
    skipped=[],
    lost=None,
    unreadable=[],
    passed_over=[],
    sealed_at=TIME,
    writer="w",
    segment=None,
    batches=[],
    quarantine=None,
    expired=None,
    types={},
)
VALID = envelope.seal(manifest.encode(FULL), manifest.FORMAT, SIGNERS)


def builtins() -> dict[str, Any]:
    """The full statement as JSON types; tuples stay."""
    fields: dict[str, Any] = msgspec.to_builtins(FULL)
    return fields


def with_line(line: bytes | str) -> bytes:
    """A manifest of this line, signed."""
    return envelope.seal(line.encode() if isinstance(line, str) else line, manifest.FORMAT, SIGNERS)


def with_change(change: Callable[[dict[str, Any]], object]) -> bytes:
    """A signed manifest of the full statement, changed."""
    statement = builtins()
    change(statement)
    return with_line(json.dumps(statement, separators=(",", ":")))


def with_second(second: object) -> bytes:
    """A manifest of the full statement with this for line 2."""
    text = second if isinstance(second, str) else json.dumps(second)
    return manifest.encode(FULL) + b"\n" + text.encode() + b"\n"


def at(statement: dict[str, Any], path: tuple[str | int, ...]) -> Any:
    """What lies at a path."""
    found: Any = statement
    for step in path:
        found = found[step]
    return found


OBJECTS: list[tuple[str | int, ...]] = [
    (),
    ("log",),
    ("tree",),
    ("previous_epoch",),
    ("last_record",),
    ("unreadable", 0),
    ("segment",),
    ("batches", 0),
    ("batches", 0, "kafka_time"),
    ("batches", 0, "leaves"),
    ("quarantine",),
]
INTEGERS: list[tuple[str | int, ...]] = [
    ("sequence",),
    ("first_offset",),
    ("next_offset",),
    ("log", "partition"),
    ("log", "epoch"),
    ("tree", "size"),
    ("previous_epoch", "epoch"),
    ("previous_epoch", "size"),
    ("last_record", "offset"),
    ("last_record", "leader_epoch"),
    ("unreadable", 0, "from"),
    ("unreadable", 0, "to"),
    ("skipped", 1, 1),
    ("lost", 1),
    ("segment", "size"),
    ("batches", 0, "number"),
    ("batches", 0, "events"),
    ("batches", 0, "inflated"),
    ("batches", 0, "kafka_time", "max"),
    ("quarantine", "records"),
    ("quarantine", "offsets", 1, 1),
    ("types", "auth_attempt"),
]
FIELDS = [(*path, name) for path in OBJECTS for name in at(builtins(), path)]


def refused(data: bytes) -> None:
    """These bytes are a FormatError, and so are several manifests with them among them."""
    with pytest.raises(FormatError):
        manifest.parse(data)
    for files in ([VALID, data], [data, VALID]):
        with pytest.raises(FormatError):
            manifest.parse_each(files)


# --- what is written -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "statement"), [("full", FULL), ("first", FIRST)])
def test_golden(name: str, statement: Statement) -> None:
    """The same statement and keys give the same bytes for ever."""
    stored = (GOLDEN / f"{name}.json").read_bytes()
    assert envelope.seal(manifest.encode(statement), manifest.FORMAT, [HMAC]) == stored
    assert manifest.parse(stored).statement == statement


def test_the_message_is_as_specified() -> None:
    """What is signed is the format's name, a newline, the statement's hex SHA-256, a newline: 84 bytes."""
    line, second, rest = VALID.split(b"\n")
    assert rest == b""
    message = b"custody/manifest/1\n" + sha256(line).hexdigest().encode() + b"\n"
    assert envelope.message(line, manifest.FORMAT) == manifest.parse(VALID).message == message
    assert len(message) == 84
    signatures = json.loads(second)["signatures"]
    assert [(each["key"], each["algorithm"]) for each in signatures] == [
        ("hmac-golden", "HMAC-SHA256"),
        ("ed25519-golden", "Ed25519"),
    ]
    assert [base64.b64decode(each["value"]) for each in signatures] == [signer.sign(message) for signer in SIGNERS]


def test_the_line_is_compact_ascii() -> None:
    """A statement is written without white space and in ASCII, whatever its strings hold."""
    line = manifest.encode(FULL)
    assert line.isascii()
    assert line == json.dumps(json.loads(line), separators=(",", ":")).encode()
    assert b"h\\u00f6st" in line


def test_a_statement_beyond_the_limit_is_not_written() -> None:
    """What no reader would accept is refused when it is made, with advice."""
    skipped = [(number * 10**13, number * 10**13 + 1) for number in range(1, 300_000)]
    with pytest.raises(FormatError, match="cut segments earlier"):
        manifest.encode(msgspec.structs.replace(FULL, skipped=skipped))


ints = st.integers(0, 2**63 - 1)
digests = st.binary(min_size=32, max_size=32).map(bytes.hex)
texts = st.text(max_size=20)
times = st.datetimes(timezones=st.just(UTC)).map(format_time)
ranges = st.lists(st.integers(0, 2**63 - 1), unique=True, max_size=10).map(
    lambda ends: [(a, b) for a, b in zip(sorted(ends)[::2], sorted(ends)[1::2], strict=False)]
)
spans = st.tuples(ints, ints).filter(lambda pair: pair[0] < pair[1])
batches = st.builds(
    Batch, ints, ints, ints, ints, ints, ints, ints, digests, times, times,
    st.none() | st.builds(KafkaTime, st.sampled_from(["create", "append", "mixed"]), ints, ints),
    st.none() | st.builds(Leaves, texts, digests),
)  # fmt: skip
statements = st.builds(
    Statement,
    archive=st.uuids().map(str),
    log=st.builds(LogId, texts, texts, st.none() | texts, ints, st.integers(1, 2**63 - 1)),
    sequence=st.integers(3, 2**63 - 1),
    tree=st.builds(Tree, ints, digests, st.lists(digests, max_size=4)),
    previous_epoch=st.none() | st.builds(PreviousEpoch, st.integers(1, 2**63 - 1), ints, digests),
    first_offset=ints,
    next_offset=ints,
    last_record=st.none() | st.builds(LastRecord, ints, st.integers(0, 2**31 - 1)),
    unreadable=ranges.flatmap(
        lambda pairs: st.tuples(*(st.builds(Unreadable, st.just(a), st.just(b), texts) for a, b in pairs)).map(list)
    ),
    passed_over=st.lists(digests, max_size=3),
    skipped=ranges,
    lost=st.none() | spans,
    sealed_at=times,
    writer=texts,
    segment=st.none() | st.builds(SegmentRef, texts, ints, digests),
    batches=st.lists(batches, max_size=3),
    quarantine=st.none() | st.builds(QuarantineRef, texts, ints, digests, ints, ints, ranges),
    expired=st.none() | spans,
    types=st.dictionaries(texts, st.integers(1, 2**63 - 1), max_size=4).map(lambda types: dict(sorted(types.items()))),
)


@given(statements)
def test_statements_come_back(statement: Statement) -> None:
    """Whatever a statement says, sealing and parsing gives the same, with its exact bytes."""
    line = manifest.encode(statement)
    parsed = manifest.parse(with_line(line))
    assert parsed.statement == statement
    assert parsed.line == line
    for (signature, value), signer in zip(parsed.signatures, SIGNERS, strict=True):
        assert (signature.key, signature.algorithm) == (signer.key_id, signer.algorithm)
        assert value == signer.sign(parsed.message)


# --- what is read --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rewrite",
    [
        lambda text: json.dumps(json.loads(text), indent=None, separators=(" , ", " : ")),
        lambda text: json.dumps(json.loads(text), ensure_ascii=False),
        lambda text: "\t " + text + " \r",
        lambda text: text.replace("audit.events", "audit\\u002eevents"),
        lambda text: text.replace('"sequence"', '"\\u0073equence"'),
        lambda text: text.replace("events/2026", "events\\/2026"),
    ],
    ids=["spaces", "utf-8", "around", "escaped value", "escaped name", "escaped slash"],
)
def test_another_writers_form_is_read(rewrite: Callable[[str], str]) -> None:
    """White space, escapes and UTF-8 are another writer's choice: the content counts, and the bytes are kept."""
    line = rewrite(manifest.encode(FULL).decode()).encode()
    parsed = manifest.parse(with_line(line))
    assert parsed.statement == FULL
    assert parsed.line == line


@pytest.mark.parametrize("path", FIELDS, ids=str)
def test_a_missing_field(path: tuple[str | int, ...]) -> None:
    """A statement without one of its fields, at any level, is refused."""
    refused(with_change(lambda statement: at(statement, path[:-1]).pop(path[-1])))


@pytest.mark.parametrize("path", FIELDS, ids=str)
def test_a_doubled_field(path: tuple[str | int, ...]) -> None:
    """A field that stands twice, at any level, is refused, even with the same value."""

    class Twice(dict[str, Any]):
        def items(self) -> Any:
            return [pair for name, inner in super().items() for pair in [(name, inner)] * (1 + (name == path[-1]))]

    statement = builtins()
    if len(path) == 1:
        statement = Twice(statement)
    else:
        at(statement, path[:-2])[path[-2]] = Twice(at(statement, path[:-1]))
    text = _dumps(statement)
    assert text.count(f'"{path[-1]}":') >= 2
    with pytest.raises(FormatError, match="twice"):
        manifest.parse(with_line(text))


def _dumps(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ",".join(f"{json.dumps(name)}:{_dumps(inner)}" for name, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(_dumps, value)) + "]"
    return json.dumps(value)


@pytest.mark.parametrize("path", OBJECTS, ids=str)
def test_an_unknown_field(path: tuple[str | int, ...]) -> None:
    """A field that the format does not name, at any level, is refused."""
    refused(with_change(lambda statement: at(statement, path).update(more=None)))


@pytest.mark.parametrize("path", OBJECTS, ids=str)
def test_reordered_fields(path: tuple[str | int, ...]) -> None:
    """Fields in another order, at any level, are refused."""

    def reverse(statement: dict[str, Any]) -> None:
        found = at(statement, path)
        pairs = list(found.items())[::-1]
        found.clear()
        found.update(pairs)

    with pytest.raises(FormatError, match="out of order"):
        manifest.parse(with_change(reverse))


@pytest.mark.parametrize("path", INTEGERS, ids=str)
@pytest.mark.parametrize(
    "number",
    ["-0", "-1", "1.0", "1e2", "1E2", "0.5", "9223372036854775808", "1" * 5000, "1e400", "NaN", "Infinity", "-Infinity",
     "01", "+1", "true", "null", '"1"', "[]", "{}", ""],
    ids=lambda text: text[:20],
)  # fmt: skip
def test_what_is_no_integer(path: tuple[str | int, ...], number: str) -> None:
    """An integer is digits from 0 to 2⁶³-1, and nothing else that some reader takes for one."""
    statement = builtins()
    parent = at(statement, path[:-1])
    if isinstance(parent, tuple):
        at(statement, path[:-2])[path[-2]] = parent = list(parent)
    parent[path[-1]] = "HERE"
    refused(with_line(json.dumps(statement, separators=(",", ":")).replace('"HERE"', number)))


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s.update(format="custody/manifest/2"),
        lambda s: s.update(format=None),
        lambda s: s.update(archive=s["archive"].upper()),
        lambda s: s.update(archive=s["archive"] + "\n"),
        lambda s: s.update(sealed_at="2026-01-02T03:04:05Z"),
        lambda s: s.update(sealed_at="2026-02-30T03:04:05.000000Z"),
        lambda s: s.update(sealed_at="2026-01-02T24:00:00.000000Z"),
        lambda s: s.update(sealed_at="2026-01-02T03:04:60.000000Z"),
        lambda s: s.update(sealed_at="2026-01-02T03:04:05,000000Z"),
        lambda s: s.update(sealed_at="2026-01-02T03:04:05.000000Z\n"),
        lambda s: s.update(sealed_at="0000-01-02T03:04:05.000000Z"),
        lambda s: s["batches"][0].update(min_time="2026-13-02T03:04:05.000000Z"),
        lambda s: s["batches"][1].update(max_time="2026-00-02T03:04:05.000000Z"),
        lambda s: s["tree"].update(root=s["tree"]["root"].upper()),
        lambda s: s["tree"].update(root=s["tree"]["root"][:-1]),
        lambda s: s["tree"].update(compact_range=[s["tree"]["compact_range"][0] + "00"]),
        lambda s: s["log"].update(epoch=0),
        lambda s: s["log"].update(topic=None),
        lambda s: s["batches"][0]["kafka_time"].update(type="other"),
        lambda s: s.update(skipped=[(5, 5)]),
        lambda s: s.update(skipped=[(6, 5)]),
        lambda s: s.update(skipped=[(5, 6), (6, 7)]),
        lambda s: s.update(skipped=[(5, 8), (6, 9)]),
        lambda s: s.update(skipped=[(8, 9), (5, 6)]),
        lambda s: s.update(skipped=[(5, 6, 7)]),
        lambda s: s.update(skipped=[(5,)]),
        lambda s: s.update(skipped=None),
        lambda s: s.update(skipped=[(2 * n, 2 * n + 1) for n in range(50_001)]),
        lambda s: s["quarantine"].update(offsets=[(2 * n, 2 * n + 1) for n in range(50_001)]),
        lambda s: s["quarantine"].update(offsets=[(5, 6), (6, 7)]),
        lambda s: s.update(lost=[5, 5]),
        lambda s: s.update(expired=[5, 4]),
        lambda s: s.update(lost=[]),
        lambda s: s.update(passed_over=["0" * 64] * 4),
        lambda s: s.update(sequence=10_000, passed_over=["0" * 64] * 1_001),
        lambda s: s.update(passed_over=None),
        lambda s: s["last_record"].update(leader_epoch=2**31),
        lambda s: s["unreadable"].append({"from": 108, "to": 110, "error": ""}),
        lambda s: s["unreadable"][0].update(to=108),
        lambda s: s["unreadable"][0].update(error="x" * 257),
        lambda s: s["unreadable"][0].update(error="\u00e9" * 129),
        lambda s: s.update(unreadable=[{"from": n, "to": n + 1, "error": ""} for n in range(1_001)]),
        lambda s: s["batches"][0]["leaves"].update(sha256="0" * 63),
        lambda s: s["batches"][0]["leaves"].update(key=None),
        lambda s: s.update(types={str(n).zfill(4): 1 for n in range(1_001)}),
        lambda s: s.update(types={"b": 1, "a": 1}),
        lambda s: s.update(types={"a": 0}),
        lambda s: s.update(types={"a": {}}),
        lambda s: s.update(writer=1),
        lambda s: s.update(batches={}),
    ],
)
def test_wrong_values(change: Callable[[dict[str, Any]], object]) -> None:
    """Wrong types, times, digests and ranges are refused."""
    refused(with_change(change))


@pytest.mark.parametrize("wrong", ["upper", "short", "long", "newline", "other digits", "empty"])
@pytest.mark.parametrize(
    "place",
    [
        lambda s: (s["tree"], "root"),
        lambda s: (s["tree"]["compact_range"], 0),
        lambda s: (s["tree"]["compact_range"], -1),
        lambda s: (s["previous_epoch"], "root"),
        lambda s: (s["passed_over"], 0),
        lambda s: (s["passed_over"], -1),
        lambda s: (s["segment"], "sha256"),
        lambda s: (s["batches"][0], "sha256"),
        lambda s: (s["batches"][-1], "sha256"),
        lambda s: (s["quarantine"], "sha256"),
    ],
)
def test_digests(place: Callable[[dict[str, Any]], tuple[Any, Any]], wrong: str) -> None:
    """Every digest is SHA-256 in lower case hex, and the error shows the one that is not."""
    bad = {
        "upper": "A" * 64,
        "short": "a" * 63,
        "long": "a" * 65,
        "newline": "a" * 63 + "\n",
        "other digits": "a" * 63 + "\u0663",
        "empty": "",
    }[wrong]

    def change(statement: dict[str, Any]) -> None:
        holder, name = place(statement)
        holder[name] = bad

    with pytest.raises(FormatError) as caught:
        manifest.parse(with_change(change))
    assert str(caught.value) == f"the statement: {bad!r} is no SHA-256 in lower case hex"


def test_two_digests_wrong_together() -> None:
    """Lengths that even out are wrong all the same."""
    refused(with_change(lambda s: s["tree"].update(compact_range=["a" * 63, "a" * 65])))


@pytest.mark.parametrize("name", ["sealed_at", "min_time", "max_time"])
def test_an_endless_time_is_not_printed(name: str) -> None:
    """An error names the field, and shows no more of what stands there than a line holds."""
    long = "2026" * 1000

    def change(statement: dict[str, Any]) -> None:
        where = statement if name == "sealed_at" else statement["batches"][1]
        where[name] = long

    with pytest.raises(FormatError, match=f"^the statement: {name} '2026") as caught:
        manifest.parse(with_change(change))
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize("place", ["skipped", "offsets"])
def test_the_largest_lists_of_ranges(place: str) -> None:
    """50,000 ranges are within the limit."""
    ranges = [(2 * number, 2 * number + 1) for number in range(50_000)]
    data = with_change(lambda s: (s if place == "skipped" else s["quarantine"]).update({place: ranges}))
    assert manifest.parse(data).line


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s.update(sequence=1_000, passed_over=["0" * 64] * 1_000),
        lambda s: s["last_record"].update(leader_epoch=2**31 - 1),
        lambda s: s["unreadable"][0].update(error="\u00e9" * 128),
        lambda s: s.update(unreadable=[{"from": n, "to": n + 1, "error": ""} for n in range(1_000)]),
        lambda s: s.update(types={str(n).zfill(4): 1 for n in range(1_000)}),
        lambda s: s.update(types={"\ud7ff": 1, "\uffff": 1, "\U00010000": 1}),
    ],
)
def test_at_the_limits(change: Callable[[dict[str, Any]], object]) -> None:
    """What is just within a limit is read; types sort as the bytes of their UTF-8 do."""
    assert manifest.parse(with_change(change)).line


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\n",
        b"\n\n",
        VALID[:-1],
        VALID + b"\n",
        VALID + b" ",
        VALID + b"\0",
        VALID + VALID,
        VALID.replace(b"\n", b"\r"),
        b"\xef\xbb\xbf" + VALID,
        VALID.split(b"\n")[0] + b"\n",
        VALID.replace(b"}\n{", b"},\n{", 1),
        VALID.replace(b"}\n{", b"}{}\n{", 1),
        VALID.replace(b"audit.events", b"audit\xff", 1),
        VALID.replace(b"audit.events", b"audit\xed\xa0\x80", 1),
        VALID.replace(b"audit.events", b"audit\\ud800", 1),
        VALID.replace(b"audit.events", b"audit\x01", 1),
        VALID.replace(b'"audit.events"', b"'audit.events'", 1),
        VALID.decode().encode("utf-16"),
        b"null\nnull\n",
        b"[]\n[]\n",
        b"{}\n{}\n",
    ],
    ids=lambda data: repr(data[:12] + b".." + data[-12:]),
)
def test_what_is_not_two_lines_of_json(data: bytes) -> None:
    """Missing and trailing bytes, a byte order mark, bad UTF-8, control characters: all refused."""
    refused(data)


def test_crlf_is_white_space_of_the_line() -> None:
    """A carriage return before the newline is white space of JSON: one of the bytes that are signed."""
    data = VALID.replace(b"\n", b"\r\n")
    parsed = manifest.parse(data)
    assert parsed.line == VALID.split(b"\n")[0] + b"\r"
    assert parsed.message != manifest.parse(VALID).message


@pytest.mark.parametrize("depth", [9, 100, 100_000])
@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_deep_nesting(depth: int, opening: str) -> None:
    """However deep it nests, wherever, it is refused."""
    deep = opening * depth + "1" + {"[": "]", '{"a":': "}"}[opening] * depth
    text = manifest.encode(FULL).decode()
    refused(with_line(deep))
    refused(with_line(text.replace('"skipped":[[', f'"skipped":[{deep},[', 1)))
    refused(with_line(text.replace('"types":{', f'"types":{{"a":{deep},', 1)))
    refused(with_line(text.replace("{", f'{{"more":{deep},', 1)))
    refused(with_second(deep))


def test_brackets_in_strings_are_not_nesting() -> None:
    """A string may hold any number of brackets, quotes and backslashes."""
    statement = msgspec.structs.replace(FULL, writer='[{"\\' * 100)
    assert manifest.parse(with_line(manifest.encode(statement))).statement == statement
    spaced = json.dumps(msgspec.to_builtins(statement))
    assert manifest.parse(with_line(spaced)).statement == statement


@pytest.mark.parametrize(
    "data",
    [
        b"1" * 100_000_000,
        b"\n" * 100_000_000,
        b"[" * 100_000_000,
        b" " * (8 * 1024 * 1024) + VALID,
        VALID.rstrip(b"\n") + b" " * (16 * 1024) + b"\n",
    ],
    ids=["digits", "newlines", "brackets", "line 1", "line 2"],
)
def test_too_large(data: bytes) -> None:
    """What is beyond the limits is refused by its size, before it is looked at."""
    with pytest.raises(FormatError, match=r"limit|two lines"):
        manifest.parse(data)


def test_the_largest_lines() -> None:
    """A statement of 8 MiB and a second line of 16 KiB are within the limits."""
    line = manifest.encode(FULL)
    second = VALID.split(b"\n")[1]
    data = line.ljust(8 * 1024 * 1024) + b"\n" + second.ljust(16 * 1024) + b"\n"
    assert manifest.parse(data).statement == FULL


@pytest.mark.parametrize(
    "second",
    [
        {"signatures": None},
        {"signatures": {}},
        {"signatures": [], "more": 1},
        {"signatures": [{"key": "k", "algorithm": "HMAC-SHA256"}]},
        {"signatures": [{"key": "k", "algorithm": "HMAC-SHA256", "value": "", "more": 1}]},
        {"signatures": [{"algorithm": "HMAC-SHA256", "key": "k", "value": ""}]},
        {"signatures": [{"key": "k", "algorithm": "none", "value": ""}]},
        {"signatures": [{"key": "k", "algorithm": "hmac-sha256", "value": ""}]},
        {"signatures": [{"key": None, "algorithm": "Ed25519", "value": ""}]},
        {"signatures": [{"key": "k", "algorithm": "Ed25519", "value": "AA"}]},
        {"signatures": [{"key": "k", "algorithm": "Ed25519", "value": "AB=="}]},
        {"signatures": [{"key": "k", "algorithm": "Ed25519", "value": "AA==AA=="}]},
        {"signatures": [{"key": "k", "algorithm": "Ed25519", "value": "AA==\n"}]},
        {"signatures": [{"key": "k", "algorithm": "Ed25519", "value": "__8="}]},
        {"signatures": [{"key": "k", "algorithm": "Ed25519", "value": "ÿÿ=="}]},
        {"signatures": [{"key": "k", "algorithm": "Ed25519", "value": "AA=="}] * 2},
        '{"signatures":[],"signatures":[]}',
        '{"signatures":[{"key":"a","key":"b","algorithm":"Ed25519","value":""}]}',
        "",
        "null",
    ],
    ids=str,
)
def test_malformed_signatures(second: object) -> None:
    """Line 2 is as strict as line 1; base64 is canonical, and a key signs once."""
    refused(with_second(second))


def test_removed_signatures_parse_as_none() -> None:
    """A statement whose signatures were all removed is still read, so that the finding can say what it was."""
    parsed = manifest.parse(with_second({"signatures": []}))
    assert parsed.signatures == ()
    assert parsed.statement == FULL


@given(st.binary() | st.tuples(st.binary(), st.binary()).map(lambda lines: b"%b\n%b\n" % lines))
def test_any_bytes(data: bytes) -> None:
    """Whatever the bytes, parsing gives a manifest or a FormatError."""
    with contextlib.suppress(FormatError):
        manifest.parse(data)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from([*FIELDS, ("signatures",)]), json_values)
def test_any_value_anywhere(path: tuple[str | int, ...], value: object) -> None:
    """Whatever stands for a field, parsing gives a manifest that says it, or a FormatError."""
    if path == ("signatures",):
        data = with_second({"signatures": value})
    else:
        data = with_change(lambda statement: at(statement, path[:-1]).__setitem__(path[-1], value))
    try:
        parsed = manifest.parse(data)
    except FormatError:
        return
    shown = json.loads(json.dumps(msgspec.to_builtins(parsed.statement)))
    assert shown == json.loads(parsed.line)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A manifest with bytes cut, put in, changed or doubled."""
    text = bytearray(VALID)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        end = min(len(text), start + draw(st.integers(0, 8)))
        text[start:end] = draw(
            st.binary(max_size=4)
            | st.sampled_from(
                [b'"', b"{", b"}", b"[", b"]", b",", b":", b"\n", b"-", b"\\", bytes(text[start:end]) * 2]
            )
        )
    return bytes(text)


@given(st.data())
@settings(max_examples=300)
def test_mutated_manifests(data: st.DataObject) -> None:
    """A manifest with bytes cut, put in, changed or doubled is a manifest of what it then says, or a FormatError."""
    text = data.draw(mutated())
    try:
        parsed = manifest.parse(text)
    except FormatError:
        return
    assert parsed.line == text.split(b"\n")[0]
    assert json.loads(parsed.line) == json.loads(json.dumps(msgspec.to_builtins(parsed.statement)))


@given(st.lists(st.builds(lambda statement: with_line(manifest.encode(statement)), statements) | mutated(), max_size=4))
def test_several_manifests(files: list[bytes]) -> None:
    """Several are what each of them is alone, or a FormatError where one is no manifest."""
    try:
        alone = [manifest.parse(file) for file in files]
    except FormatError:
        with pytest.raises(FormatError):
            manifest.parse_each(files)
    else:
        assert manifest.parse_each(files) == alone


# --- times ---------------------------------------------------------------------------------------------------------


@given(st.datetimes(timezones=st.just(UTC)))
def test_times_come_back(moment: datetime) -> None:
    """Every moment from year 1 to 9999 is written in 27 characters and read as itself."""
    text = format_time(moment)
    assert len(text) == 27
    assert parse_time(text) == check_time("sealed_at", text) == moment


def test_times_are_written_in_utc() -> None:
    """A moment of another zone is written in UTC, always with six digits."""
    moment = datetime(2026, 1, 1, 1, tzinfo=timezone(timedelta(hours=2)))
    assert format_time(moment) == "2025-12-31T23:00:00.000000Z"


def test_times_are_written_in_utc_wherever_one_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """The zone of the machine has no say."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "Asia/Tokyo")
        time.tzset()
        text = format_time(datetime(2026, 1, 1, tzinfo=UTC))
    time.tzset()
    assert text == "2026-01-01T00:00:00.000000Z"


@given(st.text(max_size=30))
def test_any_text_as_a_time(text: str) -> None:
    """What is no time of ours is a ValueError, and a FormatError in a statement."""
    try:
        assert format_time(parse_time(text)) == text
    except ValueError:
        with pytest.raises(FormatError, match="is no time"):
            check_time("sealed_at", text)


def test_what_is_signed_is_named() -> None:
    """A signature is over the kind of file too, so that an audit's is none for a manifest of the same bytes."""
    line = manifest.encode(FULL)
    for what in (manifest.FORMAT, "custody/audit/1"):
        second = envelope.seal(line, what, SIGNERS).split(b"\n")[1]
        values = [value for _, value in envelope.parse_signatures(second)]
        assert values == [signer.sign(envelope.message(line, what)) for signer in SIGNERS]
