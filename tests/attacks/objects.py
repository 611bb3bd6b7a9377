"""Rows 1 to 7, 21 and 35: what is done to the stored bytes of segments and quarantine objects."""

import gzip
import struct
from collections.abc import Callable

from tests.attacks.registry import Apply, at, attack, forged, members_of, segment
from tests.helpers.archives import Builder, append_quarantine, event, member
from tests.helpers.corpus import CASES
from tests.helpers.scene import LONG_AGO, ORDERS, Scene

_LINES = {case.name: case.line for case in CASES if not case.line_is_event}
_NOT_EVENTS = (
    "Latin-1 in an unnamed field",
    "NaN",
    "cut short",
    "array",
    "no event_type",
    "no timestamp",
    "Infinity",
    "null",
    "65 deep",
    "empty",
)


def flip(place: int, bit: int = 0x10) -> Callable[[bytes, list[int]], bytes]:
    def change(data: bytes, _: list[int]) -> bytes:
        bent = bytearray(data)
        bent[place] ^= bit
        return bytes(bent)

    return change


def quarantine(change: Callable[[bytes], bytes], sequence: int = 2) -> Apply:
    def apply(scene: Scene) -> None:
        path = scene.root / scene.main.statements[sequence]["quarantine"]["key"]
        path.write_bytes(change(path.read_bytes()))

    return apply


def recompress(scene: Scene) -> None:
    path = scene.main.segment(1)
    batches = scene.main.statements[1]["batches"]
    path.write_bytes(b"".join(member(gzip.decompress(one), 1) for one in members_of(path, batches)))


def forged_quarantine(change: Callable[[list[bytes]], object]) -> Apply:
    """Append a statement whose quarantine object is wrong, with hashes that fit."""

    def apply(scene: Scene) -> None:
        append_quarantine(scene.main, change)

    return apply


def line(value: bytes) -> Apply:
    """Append a batch of which one line is another, with hashes that fit."""

    def change(payload: bytes) -> bytes:
        rows = payload.splitlines()
        rows[4] = value
        return b"".join(row + b"\n" for row in rows)

    return forged(edit_payloads=at(1, change))


def stored(sequence: int, kind: str = "segment") -> Apply:
    return lambda scene: scene.delete(scene.main.statements[sequence][kind]["key"])


def unnamed(
    offsets: range, lines: Callable[[Builder, int], bytes], kind: str = "events", take: int | None = None
) -> Apply:
    """Put an object that no manifest names; its key claims more than it holds where `take` says so."""

    def apply(scene: Scene) -> None:
        builder = scene.main
        data = member(b"".join(lines(builder, one) + b"\n" for one in offsets))
        builder.put(builder.records_key(kind, offsets[0], (take or offsets[-1]), data), data)

    return apply


def committed(_: Builder, offset: int) -> bytes:
    return event(offset)


def edited(_: Builder, offset: int) -> bytes:
    return event(offset, note="edited")


def put(key: str, data: bytes = b"foreign") -> Apply:
    return lambda scene: scene.put(key, data)


def not_committed_yet(scene: Scene) -> None:
    end = scene.main.next_offset
    unnamed(range(end, end + 10), committed)(scene)


def crashed_quarantine(scene: Scene) -> None:
    """What a writer leaves that died, and gave another reason for the records it put aside."""
    rows = [scene.main.quarantined(one).replace(b"not JSON", b"other words") for one in (146, 147)]
    data = member(b"".join(row + b"\n" for row in rows))
    scene.put(scene.main.records_key("quarantine", 146, 147, data), data)


def flipped_beneath_orphans(scene: Scene) -> None:
    """Change what orphans are to be compared with: they are not blamed for it."""
    unnamed(range(103, 125), committed)(scene)
    crashed_quarantine(scene)
    segment(flip(60))(scene)
    quarantine(lambda data: data[:-1] + bytes([data[-1] ^ 1]))(scene)


def carriage_returns(scene: Scene) -> None:
    """Archive events that hold a carriage return, which is white space in JSON and no end of a line, and an orphan."""
    start = scene.main.next_offset
    scene.main.append(10, events=returned)
    unnamed(range(start + 2, start + 7), lambda _, offset: returned(offset))(scene)


def returned(offset: int) -> bytes:
    return event(offset).replace(b",", b",\r ", 1) + b"\r"


def kept_too_long(scene: Scene) -> None:
    """Keep objects whose retention ended long ago, and append no expiry."""
    long_ago = Builder(scene.root, topic="forgotten", clock=LONG_AGO)
    long_ago.append()
    long_ago.append(5)
    scene.logs["forgotten/0"] = long_ago


def kept_in_part(what: str) -> Apply:
    """Keep objects of two statements too long, and delete one object of each."""

    def apply(scene: Scene) -> None:
        kept_too_long(scene)
        long_ago = scene.logs["forgotten/0"]
        long_ago.append(5, quarantine=[2])
        scene.delete(long_ago.statements[1]["segment"]["key"], long_ago.statements[2][what]["key"])

    return apply


ATTACKS = [
    attack(1, "byte of a member changed", segment(flip(60)), "segment-hash", 13, "damaged: 1 of 4 batches"),
    attack(1, "byte of a gzip header changed", segment(flip(9)), "segment-hash", 13, "events are intact"),
    attack(1, "last byte changed", segment(flip(-1)), "segment-hash", 13, variant=True),
    attack(
        1,
        "byte of a quarantine object changed",
        quarantine(lambda data: data[:-1] + bytes([data[-1] ^ 1])),
        "segment-hash",
        13,
    ),
    attack(
        1,
        "members swapped",
        segment(lambda data, ends: data[ends[0] : ends[1]] + data[: ends[0]] + data[ends[1] :]),
        "segment-hash",
        13,
    ),
    attack(1, "bytes changed that orphans repeat", flipped_beneath_orphans, "segment-hash segment-hash", 13),
    attack(2, "recompressed member by member", recompress, "segment-hash", 13, "events are intact"),
    attack(
        2,
        "recompressed as one member",
        segment(lambda data, _: gzip.compress(gzip.decompress(data), 9)),
        "segment-hash",
        13,
        "events are intact",
        variant=True,
    ),
    attack(3, "bytes behind", segment(lambda data, _: data + b"x"), "segment-size", 13, "1 byte was added"),
    attack(
        3,
        "bytes between members",
        segment(lambda data, ends: data[: ends[1]] + b"xyz" + data[ends[1] :]),
        "segment-size",
        13,
    ),
    attack(3, "second member", segment(lambda data, _: data + member(event(1) + b"\n")), "segment-size", 13),
    attack(
        3,
        "empty member",
        segment(lambda data, ends: data[: ends[0]] + member(b"") + data[ends[0] :]),
        "segment-size",
        13,
        variant=True,
    ),
    attack(3, "zero padding", segment(lambda data, _: data + bytes(512)), "segment-size", 13, "512 bytes were added"),
    attack(3, "bytes behind quarantine", quarantine(lambda data: data + b"x"), "segment-size", 13),
    attack(4, "member cut short", forged(edit_members=at(1, lambda one: one[:-9])), "gzip", 13),
    attack(
        4,
        "member without its trailer",
        forged(edit_members=at(2, lambda one: one[:-8])),
        "gzip",
        13,
        "cut short",
        variant=True,
    ),
    attack(4, "wrong CRC", forged(edit_members=at(1, lambda one: one[:-8] + bytes(4) + one[-4:])), "gzip", 13),
    attack(4, "wrong length", forged(edit_members=at(1, lambda one: one[:-4] + struct.pack("<I", 7))), "gzip", 13),
    attack(
        4,
        "second member in a batch's place",
        forged(edit_members=at(1, lambda one: one + member(b""))),
        "gzip",
        13,
        variant=True,
    ),
    attack(4, "quarantine that is no gzip", forged_quarantine(lambda rows: rows.insert(1, b"noise")), "quarantine", 13),
    attack(
        5,
        "gzip bomb",
        forged(edit_members=at(1, lambda _: gzip.compress(bytes(64 << 20), 9, mtime=0))),
        "gzip",
        13,
        "more than",
    ),
    attack(
        5,
        "gzip bomb of a stated size",
        lambda scene: scene.main.append(30, edit=lambda s: s["batches"][1].update(inflated=10**12)),
        "gzip",
        13,
        "not inflated",
    ),
    attack(
        5, "line over the limit of an event", line(event(1, pad="x" * 1_048_576)), "gzip", 13, "more than the 1048576"
    ),
    attack(5, "line over the limit of a batch", line(event(1, pad="x" * (16 << 20))), "gzip", 13, "limit"),
    *(attack(6, name, line(_LINES[name]), "event", 13, variant=place > 5) for place, name in enumerate(_NOT_EVENTS)),
    attack(
        6, "member without its last newline", forged(edit_payloads=at(1, lambda one: one[:-1])), "event", 13, "newline"
    ),
    attack(
        6,
        "types miscounted",
        lambda scene: scene.main.append(5, edit=lambda s: s["types"].update(query_executed=77)),
        "event",
        13,
        "types",
    ),
    attack(7, "segment deleted", stored(2), "segment-missing", 11),
    attack(
        7,
        "segment of another log deleted",
        lambda scene: scene.delete(scene.logs[ORDERS].statements[1]["segment"]["key"]),
        "segment-missing",
        11,
        variant=True,
    ),
    attack(7, "quarantine deleted", stored(2, "quarantine"), "segment-missing", 11, "quarantine"),
    attack(
        21,
        "key of another log",
        put(f"events/2026/01/01/00/00/00-x-0-{0:020}-{9:020}-{0:016}.jsonl.gz"),
        "unlisted",
        13,
    ),
    attack(21, "noise under a good key", unnamed(range(110, 112), lambda *_: b"noise"), "unlisted", 13),
    attack(21, "an edited record", unnamed(range(100, 110), edited), "unlisted", 13, "offset 100"),
    attack(21, "records beyond its key", unnamed(range(100, 110), committed, take=103), "unlisted", 13, variant=True),
    attack(
        21,
        "an edited quarantined record",
        unnamed(range(146, 147), lambda b, o: b.quarantined(o, b"something else"), "quarantine"),
        "unlisted",
        13,
    ),
    attack(21, "orphan: committed records, cut elsewhere", unnamed(range(103, 125), committed), "orphan", 3),
    attack(21, "orphan: lines with carriage returns", carriage_returns, "orphan", 3),
    attack(21, "orphan: not committed yet", not_committed_yet, "orphan", 3),
    attack(21, "orphan: quarantine with another reason", crashed_quarantine, "orphan", 3),
    attack(35, "deleted before its time", stored(1), "segment-missing", 11),
    attack(35, "kept past its time", kept_too_long, "retention", 10),
    attack(
        35, "quarantine kept, segments gone", kept_in_part("segment"), "segment-missing segment-missing retention", 11
    ),
    attack(
        35, "segment kept, quarantine gone", kept_in_part("quarantine"), "segment-missing segment-missing retention", 11
    ),
]
