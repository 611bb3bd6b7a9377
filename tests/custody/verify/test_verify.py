# ruff: noqa: E501 - the table of attacks reads best with one a line
"""The verifier against THREATS.md: each attack on a good archive gives its finding first, and nothing else.

Archives are written by `tests/helpers/archives.py`, which shares nothing with custody.
"""

import base64
import gzip
import json
import struct
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import msgspec
import pytest

from custody.archive.reader import read_manifest
from custody.errors import ConfigurationError, TransientStoreError
from custody.findings import CATALOGUE, Accepted, Findings, Severity, finding
from custody.format.archive_file import Pin
from custody.format.layout import Log
from custody.keys.secret import Secret
from custody.keys.trust import Trust, TrustedKey
from custody.store.open import open_store
from custody.store.protocol import ObjectInfo, Store
from custody.tlog.head import Head
from custody.verify import expiry
from custody.verify.accounting import LogAccount
from custody.verify.listing import Listing, Sequences
from custody.verify.names import Names
from custody.verify.report import Progress, Report
from custody.verify.run import verify
from custody.verify.scope import Scope
from tests.helpers.archives import (
    CHECKPOINT,
    HEARTBEAT,
    KEY_ID,
    NOTE_NAME,
    NOTE_PUBLIC,
    RETENTION_DAYS,
    SECRET,
    START,
    Builder,
    append_quarantine,
    event,
    good,
    member,
    sha,
    time_text,
)
from tests.helpers.corpus import CASES

KEY = TrustedKey(KEY_ID, "HMAC-SHA256", material=Secret(SECRET))
PUBLIC = TrustedKey(NOTE_NAME, "Ed25519", material=NOTE_PUBLIC)
RETENTION = timedelta(days=RETENTION_DAYS)
TRUST = Trust(keys={KEY_ID: KEY, NOTE_NAME: PUBLIC})


def run(builder: Builder, trust: Trust = TRUST, store: Store | None = None, **options: Any) -> Report:
    return verify(store or open_store(str(builder.root)), trust, **{"now": builder.clock, "workers": 0, **options})


def names(report: Report) -> list[str]:
    for one in report.findings:
        assert "\n" not in str(one)
        assert one.action
        json.dumps(one.to_dict())
    return [one.finding for one in report.findings]


@pytest.fixture
def archive(tmp_path: Path) -> Builder:
    return good(tmp_path / "archive")


def test_good_archive(archive: Builder) -> None:
    """An untouched archive, with all that a good one may hold, gives no finding, and its figures are right (row 18)."""
    report = run(archive)
    assert names(report) == []
    assert report.exit_code == 0
    (log,) = report.logs
    assert (log.statements, log.events, log.quarantined, log.skipped) == (9, 115, 7, 8)
    assert (log.size, bytes.fromhex(log.root or "")) == archive.head
    assert log.next_offset == archive.next_offset
    assert "verified" in report.verdict


def test_workers_find_the_same(archive: Builder) -> None:
    """Worker processes see what this process sees, and progress reaches the end."""
    archive.segment(1).unlink()
    archive.segment(7).write_bytes(b"x" + archive.segment(7).read_bytes()[1:])
    seen: list[Progress] = []
    here, there = run(archive), run(archive, workers=2, progress=seen.append)
    assert names(here) == names(there) == ["segment-hash", "segment-missing"]
    assert here.logs == there.logs
    stored = sum(
        path.stat().st_size for part in ("events", "quarantine") for path in archive.root.glob(f"{part}/**/*.gz")
    )
    assert seen[-1].stored == seen[-1].total == stored


# --------------------------------------------------------------------------------------------------------------------
# One attack a row


@dataclass(frozen=True)
class Attack:
    name: str
    apply: Callable[[Builder], object]
    findings: list[str]
    exit_code: int
    message: str = ""


def flip(at: int) -> Callable[[Builder], object]:
    def apply(builder: Builder) -> None:
        data = bytearray(builder.segment(1).read_bytes())
        data[at] ^= 0x10
        builder.segment(1).write_bytes(data)

    return apply


def rewrite_segment(change: Callable[[bytes, list[int]], bytes]) -> Callable[[Builder], object]:
    def apply(builder: Builder) -> None:
        ends = [one["start"] + one["size"] for one in builder.statements[1]["batches"]]
        builder.segment(1).write_bytes(change(builder.segment(1).read_bytes(), ends))

    return apply


def with_members(edit: Callable[[list[bytes]], None], payloads: bool = False) -> Callable[[Builder], object]:
    """Append a statement whose hashes fit members that are wrong, as somebody who holds the key could."""
    if payloads:
        return lambda builder: builder.append(30, edit_payloads=edit)
    return lambda builder: builder.append(30, edit_members=edit)


def shifted(by: int) -> Callable[[Builder], object]:
    """Append a statement that begins this many offsets after the end of the previous one."""

    def apply(builder: Builder) -> None:
        builder.next_offset += by
        builder.append(10)

    return apply


def key_unknown_throughout(builder: Builder) -> None:
    builder.key_id = "who"
    builder.append(5)
    builder.append(5)


def tables_and_reports(builder: Builder) -> None:
    builder.put("tables/a.parquet", b"a")
    builder.put("reports/b.html", b"b")


def at(place: int, change: Callable[[bytes], bytes]) -> Callable[[list[bytes]], None]:
    def edit(items: list[bytes]) -> None:
        items[place] = change(items[place])

    return edit


def rebuilt(edit: Callable[[dict[str, Any]], None]) -> Callable[[Builder], object]:
    """Append a statement that is changed before it is signed, and one more behind it."""

    def apply(builder: Builder) -> None:
        builder.append(30, edit=edit)
        builder.append(10)

    return apply


def put(**fields: object) -> Callable[[dict[str, Any]], None]:
    return lambda statement: statement.update(fields)


def swap(one: int, other: int) -> Callable[[Builder], object]:
    def apply(builder: Builder) -> None:
        first, second = builder.path(one).read_bytes(), builder.path(other).read_bytes()
        builder.path(one).write_bytes(second)
        builder.path(other).write_bytes(first)

    return apply


def swap_signed(builder: Builder) -> None:
    """Swap two statements' contents, number them anew, and sign again."""
    one, other = builder.statements[1], builder.statements[2]
    builder.resign(1, lambda statement: statement.update(other | {"sequence": 1, "tree": one["tree"]}))
    builder.resign(2, lambda statement: statement.update(one | {"sequence": 2, "tree": other["tree"]}))


def change_last(name: str, *, by: int) -> Callable[[dict[str, Any]], None]:
    def edit(statement: dict[str, Any]) -> None:
        statement[name] += by

    return edit


def reorder_batches(statement: dict[str, Any]) -> None:
    statement["batches"].reverse()


def signature(change: Callable[[dict[str, Any]], object]) -> Callable[[Builder], object]:
    def apply(builder: Builder) -> None:
        line, second, _ = builder.path(3).read_bytes().split(b"\n")
        signatures = json.loads(second)
        change(signatures)
        builder.path(3).write_bytes(line + b"\n" + json.dumps(signatures).encode() + b"\n")

    return apply


def raw_manifest(data: bytes | Callable[[bytes], bytes]) -> Callable[[Builder], object]:
    return lambda builder: builder.path(3).write_bytes(
        data if isinstance(data, bytes) else data(builder.path(3).read_bytes())
    )


def raw_line(old: bytes, new: bytes) -> Callable[[Builder], object]:
    """Change bytes of a statement, and sign what comes out."""

    def apply(builder: Builder) -> None:
        line = builder.path(3).read_bytes().split(b"\n")[0]
        assert old in line
        builder.path(3).write_bytes(builder.sign(line.replace(old, new, 1)))

    return apply


def other_line(line: bytes) -> Callable[[Builder], object]:
    return with_members(at(1, lambda payload: payload.split(b"\n", 1)[0] + b"\n" + line + b"\n"), payloads=True)


def replaced_line(value: bytes) -> Callable[[Builder], object]:
    def change(payload: bytes) -> bytes:
        rows = payload.splitlines()
        rows[4] = value
        return b"".join(row + b"\n" for row in rows)

    return with_members(at(1, change), payloads=True)


def newest(count: int, *, segments: bool) -> Callable[[Builder], object]:
    def apply(builder: Builder) -> None:
        builder.checkpoint()
        for sequence in range(len(builder.lines) - count, len(builder.lines)):
            builder.path(sequence).unlink()
            if segments and builder.statements[sequence]["segment"]:
                builder.segment(sequence).unlink()

    return apply


def missing_middle(*sequences: int, segments: bool) -> Callable[[Builder], object]:
    def apply(builder: Builder) -> None:
        for sequence in sequences:
            builder.path(sequence).unlink()
            if segments and builder.statements[sequence]["segment"]:
                builder.segment(sequence).unlink()

    return apply


def foreign_manifest(**fields: Any) -> Callable[[Builder], object]:
    """Put a manifest of another log or archive, signed with the same key, in the place of one of this."""

    def apply(builder: Builder) -> None:
        other = good(builder.root.parent / "other")
        other = Builder(builder.root.parent / "third", **fields).init()
        for _ in range(4):
            other.append(0)
        builder.path(3).write_bytes(other.path(3).read_bytes())

    return apply


def older_key(builder: Builder) -> None:
    builder.key_id, builder.secret = "key-2027", b"7" * 32
    builder.append(5)
    builder.key_id, builder.secret = KEY_ID, SECRET
    builder.append(5)
    builder.append(5)


def bomb(payloads: list[bytes]) -> None:
    payloads[1] = gzip.compress(b"\x00" * 300_000_000, 9, mtime=0)


def foreign(key: str, data: bytes = b"foreign") -> Callable[[Builder], object]:
    return lambda builder: builder.put(key, data)


def unnamed(
    offsets: range, data: bytes | None = None, kind: str = "events", **more: Any
) -> Callable[[Builder], object]:
    """Put an object that no manifest names."""

    def apply(builder: Builder) -> None:
        packed = data if data is not None else member(b"".join(event(one, **more) + b"\n" for one in offsets))
        builder.put(builder.records_key(kind, offsets[0], offsets[-1], packed), packed)

    return apply


def crashed_writer(builder: Builder) -> None:
    """Put the segment of a writer that died before its manifest, and that split the records differently."""
    shadow = Builder(builder.root, next_offset=150)
    keep = builder.path(0).read_bytes()
    # Offsets 150 to 229 as they were committed: 135 and on are statements 2 to 8.
    offsets = [one for one in range(150, 230) if one not in skipped_or_bad(builder)]
    packed = member(b"".join(event(one) + b"\n" for one in offsets[:40]))
    shadow.put(shadow.records_key("events", 150, offsets[39], packed), packed)
    assert builder.path(0).read_bytes() == keep


def skipped_or_bad(builder: Builder) -> set[int]:
    found: set[int] = set()
    for statement in builder.statements:
        for start, end in statement["skipped"] + (statement["quarantine"] or {"offsets": []})["offsets"]:
            found.update(range(start, end))
    return found


def crashed_quarantine(builder: Builder) -> None:
    packed = member(
        b"".join(builder.quarantined(one).replace(b"not JSON", b"other words") + b"\n" for one in (146, 147))
    )
    builder.put(builder.records_key("quarantine", 146, 147, packed), packed)


def edited_quarantine_orphan(builder: Builder) -> None:
    packed = member(builder.quarantined(146, b"something else") + b"\n")
    builder.put(builder.records_key("quarantine", 146, 146, packed), packed)


def quarantine(change: Callable[[bytes], bytes]) -> Callable[[Builder], object]:
    def apply(builder: Builder) -> None:
        path = builder.root / builder.statements[2]["quarantine"]["key"]
        path.write_bytes(change(path.read_bytes()))

    return apply


def signed_quarantine(change: Callable[[list[bytes]], object]) -> Callable[[Builder], object]:
    """Append a statement whose quarantine object is wrong, with hashes that fit."""

    def apply(builder: Builder) -> None:
        append_quarantine(builder, change)

    return apply


def second_epoch(edit: Callable[[dict[str, Any]], None] | None = None, more: int = 0) -> Callable[[Builder], object]:
    def apply(builder: Builder) -> None:
        size, root = builder.head
        previous = {"epoch": 1, "size": size, "root": root.hex()}
        if edit:
            edit(previous)
        second = Builder(builder.root, epoch=2, previous_epoch=previous, next_offset=0)
        second.append()
        second.append(10)
        for _ in range(more):
            builder.append(5)

    return apply


def first_epoch_gone(builder: Builder) -> None:
    second_epoch()(builder)
    for sequence in range(len(builder.lines)):
        builder.path(sequence).unlink()
    for kind in ("events", "quarantine"):
        for path in builder.root.glob(f"{kind}/**/*-audit-0-*.gz"):
            path.unlink()


def moved(builder: Builder, key: str, old: str, new: str) -> str:
    """Rename an object, and return its new key."""
    other = key.replace(old, new)
    (builder.root / key).rename(builder.root / other)
    return other


ATTACKS = [
    Attack("1 flipped byte in a member", flip(60), ["segment-hash"], 13, "damaged: 1 of 4 batches"),
    Attack("1 flipped byte in a gzip header", flip(9), ["segment-hash"], 13, "events are intact"),
    Attack("1 flipped byte at the end", flip(-1), ["segment-hash"], 13),
    Attack(
        "2 recompressed by member",
        lambda b: b.segment(1).write_bytes(
            b"".join(
                member(gzip.decompress(b.segment(1).read_bytes()[one["start"] : one["start"] + one["size"]]), 1)
                for one in b.statements[1]["batches"]
            )
        ),
        ["segment-hash"],
        13,
        "events are intact",
    ),
    Attack(
        "2 recompressed as one member",
        lambda b: b.segment(1).write_bytes(gzip.compress(gzip.decompress(b.segment(1).read_bytes()), 9)),
        ["segment-hash"],
        13,
        "events are intact",
    ),
    Attack("3 bytes behind", rewrite_segment(lambda data, _: data + b"x"), ["segment-size"], 13, "1 byte was added"),
    Attack("3 zeros behind", rewrite_segment(lambda data, _: data + bytes(512)), ["segment-size"], 13),
    Attack("3 bytes before", rewrite_segment(lambda data, _: b"x" + data), ["segment-size"], 13),
    Attack("3 bytes between", rewrite_segment(lambda d, ends: d[: ends[1]] + b"xyz" + d[ends[1] :]), ["segment-size"], 13),
    Attack("3 a member more", rewrite_segment(lambda data, _: data + member(event(1) + b"\n")), ["segment-size"], 13),
    Attack("3 an empty member more", rewrite_segment(lambda data, _: data + member(b"")), ["segment-size"], 13),
    Attack(
        "3 an empty member between",
        rewrite_segment(lambda data, ends: data[: ends[0]] + member(b"") + data[ends[0] :]),
        ["segment-size"],
        13,
    ),
    Attack("3 cut short", rewrite_segment(lambda data, _: data[:-7]), ["segment-size"], 13, "7 bytes of the object"),
    Attack("3 emptied", rewrite_segment(lambda *_: b""), ["segment-size"], 13),
    Attack("4 member cut short", with_members(at(1, lambda one: one[:-9])), ["gzip"], 13),
    Attack("4 member without its trailer", with_members(at(2, lambda one: one[:-8])), ["gzip"], 13, "cut short"),
    Attack("4 wrong CRC", with_members(at(1, lambda one: one[:-8] + bytes(4) + one[-4:])), ["gzip"], 13),
    Attack("4 wrong length", with_members(at(1, lambda one: one[:-4] + struct.pack("<I", 7))), ["gzip"], 13),
    Attack("4 no gzip", with_members(at(1, lambda _: b"plain")), ["gzip"], 13),
    Attack("4 two members in one", with_members(at(1, lambda one: one + member(b""))), ["gzip"], 13, "follow the end"),
    Attack("4 padding in a member", with_members(at(0, lambda one: one + bytes(3))), ["gzip"], 13, "follow the end"),
    Attack("4 other events than stated", with_members(at(1, lambda _: member(b"{}\n"))), ["gzip"], 13),
    Attack(
        "4 a file name",
        with_members(at(1, lambda one: one[:3] + b"\x08" + one[4:10] + b"a\0" + one[10:])),
        ["gzip"],
        13,
        "flags",
    ),
    Attack("5 gzip bomb", with_members(bomb), ["gzip"], 13, "more than"),
    Attack(
        "5 gzip bomb, stated",
        rebuilt(lambda statement: statement["batches"][1].update(inflated=10**12)),
        ["gzip"],
        13,
        "not inflated",
    ),
    Attack("5 a line over the limit", replaced_line(event(1, pad="x" * 1_048_576)), ["gzip"], 13, "more than the 1048576"),
    *(
        Attack(f"6 {case.name}", replaced_line(case.line), ["event"], 13)
        for case in CASES
        if not case.line_is_event
        and case.name
        in {"NaN", "Latin-1 in an unnamed field", "array", "no timestamp", "no event_type", "65 deep", "cut short", "empty"}
    ),
    Attack("6 no last newline", with_members(at(1, lambda one: one[:-1]), payloads=True), ["event"], 13, "newline"),
    Attack(
        "6 a line less", with_members(at(1, lambda one: one.split(b"\n", 1)[1]), payloads=True), ["event"], 13, "lines"
    ),
    Attack("6 types miscounted", rebuilt(lambda s: s["types"].update(query_executed=77)), ["event"], 13, "types"),
    Attack(
        "6 bound of time off",
        rebuilt(lambda s: s["batches"][1].update(max_time=time_text(START + timedelta(days=1)))),
        ["event"],
        13,
        "max_time",
    ),
    Attack("7 segment deleted", lambda b: b.segment(2).unlink(), ["segment-missing"], 11),
    Attack(
        "7 quarantine deleted",
        lambda b: (b.root / b.statements[2]["quarantine"]["key"]).unlink(),
        ["segment-missing"],
        11,
        "quarantine",
    ),
    Attack("8 manifest deleted", missing_middle(2, segments=False), ["sequence-gap"], 11, "1 manifest is missing"),
    Attack("8 with its segment", missing_middle(2, segments=True), ["sequence-gap"], 11),
    Attack("8 several", missing_middle(1, 2, 3, segments=False), ["sequence-gap"], 11, "3 manifests are missing"),
    Attack("8 in two places", missing_middle(1, 4, segments=False), ["sequence-gap", "sequence-gap"], 11),
    Attack("8 the first", missing_middle(0, 1, segments=False), ["sequence-gap"], 11),
    Attack("9 newest deleted", newest(3, segments=True), ["head-rollback"], 13, "a checkpoint of size 9"),
    Attack("9 newest deleted, segments left", newest(3, segments=False), ["head-rollback"], 13),
    Attack("13 swapped", swap(2, 4), ["tree", "tree"], 13, "out of order"),
    Attack("13 batches reordered", rebuilt(reorder_batches), ["batch-order"], 13),
    Attack("13 batch numbers", rebuilt(lambda s: s["batches"][1].update(number=99)), ["batch-order"], 13),
    Attack("14 replayed", lambda b: b.path(5).write_bytes(b.path(3).read_bytes()), ["identity"], 13, "older statement"),
    Attack("14 replayed at the end", lambda b: b.path(9).write_bytes(b.path(3).read_bytes()), ["identity"], 13),
    Attack("15 of another partition", foreign_manifest(partition=1), ["identity"], 13, "partition"),
    Attack("15 of another topic", foreign_manifest(topic="other"), ["identity"], 13, "topic"),
    Attack("15 of another epoch", foreign_manifest(epoch=2), ["identity"], 13, "epoch"),
    Attack("15 of another archive", foreign_manifest(archive="0" * 8 + "-1111-4222-8333-" + "0" * 12), ["identity"], 13),
    Attack(
        "15 of another cluster",
        rebuilt(lambda s: s["log"].update(cluster="cluster-2")),
        ["identity"],
        13,
        "cluster",
    ),
    Attack(
        "15 segment under another range",
        lambda b: b.append(
            10,
            edit=lambda statement: statement["segment"].update(
                key=moved(b, statement["segment"]["key"], f"{statement['first_offset']:020}", f"{7:020}")
            ),
        ),
        ["identity"],
        13,
    ),
    Attack(
        "16 archived twice",
        shifted(-5),
        ["offset-overlap"],
        13,
        "archived before",
    ),
    Attack(
        "16 skipped and there",
        rebuilt(lambda s: s.update(skipped=[[s["first_offset"] + 3, s["first_offset"] + 5]])),
        ["offset-overlap"],
        13,
    ),
    Attack("17 offsets left out", shifted(5), ["offset-gap"], 11),
    Attack("17 left out of the account", rebuilt(change_last("next_offset", by=2)), ["offset-gap"], 11),
    Attack(
        "17 left out between batches",
        lambda b: b.append(30, skip=[10, 11], edit=put(skipped=[])),
        ["offset-gap"],
        11,
    ),
    Attack("17 left out of a batch", lambda b: b.append(30, skip=[4], edit=put(skipped=[])), ["offset-gap"], 11),
    Attack("18 skipped", lambda b: (b.append(10, skip=[0, 3, 9]), b.append(0, tail=4)), [], 0),
    Attack("19 second epoch", second_epoch(), ["new-epoch"], 3),
    Attack("19 of an earlier head", second_epoch(lambda after: after.update(root="0" * 64)), ["head-fork", "new-epoch"], 13),
    Attack("19 the first epoch went on", second_epoch(more=2), ["head-fork", "new-epoch"], 13),
    Attack("19 the first epoch went back", second_epoch(lambda a: a.update(size=30)), ["head-rollback", "new-epoch"], 13),
    Attack("19 the first epoch gone", first_epoch_gone, ["head-rollback", "new-epoch"], 13),
    Attack("20 lost", lambda b: b.append(10, lose=7), ["offset-lost"], 11, "offsets 230 to 236"),
    Attack("40 foreign key among the segments", foreign("events/readme.txt"), ["foreign"], 10),
    Attack("21 unlisted, another log", foreign(f"events/2026/01/01/00/00/00-x-0-{0:020}-{9:020}-{0:016}.jsonl.gz"), ["unlisted"], 13),
    Attack("21 unlisted, noise", unnamed(range(110, 112), b"noise"), ["unlisted"], 13, "not well formed"),
    Attack("21 unlisted, other digest", foreign(f"events/2026/01/01/00/00/00-audit-0-{100:020}-{101:020}-{0:016}.jsonl.gz"), ["unlisted"], 13),
    Attack("21 unlisted, an edited record", unnamed(range(100, 110), note="edited"), ["unlisted"], 13, "offset 100"),
    Attack("21 unlisted, records more", unnamed(range(100, 104), member(b"".join(event(o) + b"\n" for o in range(100, 110)))), ["unlisted"], 13),
    Attack("21 unlisted, no event", unnamed(range(230, 231), member(b"{}\n")), ["unlisted"], 13),
    Attack("21 unlisted quarantine", edited_quarantine_orphan, ["unlisted"], 13),
    Attack("21 orphan, committed records", unnamed(range(103, 125)), ["orphan"], 3),
    Attack("21 orphan, cut elsewhere", crashed_writer, ["orphan"], 3),
    Attack("21 orphan, not committed yet", unnamed(range(230, 240)), ["orphan"], 3),
    Attack("21 orphan, over the head", unnamed(range(205, 250)), ["orphan"], 3),
    Attack("21 orphan quarantine", crashed_quarantine, ["orphan"], 3),
    Attack("23 removed", signature(lambda s: s.update(signatures=[])), ["signature"], 13),
    Attack("23 garbled", signature(lambda s: s["signatures"][0].update(value="AAAA" * 8)), ["signature"], 13),
    Attack("23 no base64", signature(lambda s: s["signatures"][0].update(value="%%")), ["signature"], 13),
    Attack("23 line 2 is noise", raw_manifest(lambda data: data.split(b"\n")[0] + b"\nnoise\n"), ["signature"], 13),
    Attack("23 line 2 is gone", raw_manifest(lambda data: data.split(b"\n")[0] + b"\n"), ["signature"], 13),
    Attack("23 of another message", signature(lambda s: s["signatures"][0].update(value="A" * 43 + "=")), ["signature"], 13),
    Attack("24 unknown key", signature(lambda s: s["signatures"][0].update(key="who")), ["key-unknown"], 12),
    Attack("24 unknown key throughout", key_unknown_throughout, ["key-unknown"], 12),
    Attack(
        "24 another algorithm",
        signature(lambda s: s["signatures"][0].update(key="public")),
        ["key-algorithm"],
        13,
    ),
    Attack("25 older key after newer", older_key, ["key-span"], 13, "older key"),
    Attack(
        "26 changed and signed again",
        lambda b: b.resign(3, lambda s: s.update(writer="somebody else")),
        ["tree"],
        13,
    ),
    Attack("26 tree that does not follow", lambda b: b.append(5, edit=lambda s: s["tree"].update(root="0" * 64)), ["tree"], 13),
    Attack("26 tree of another compact_range", lambda b: b.append(5, edit=lambda s: s["tree"].update(compact_range=["0" * 64])), ["tree"], 13),
    Attack("29 clock back", lambda b: b.append(5, edit=put(sealed_at=time_text(START))), ["clock"], 3, "stepped back"),
    Attack("29 clock ahead", lambda b: b.append(5, edit=put(sealed_at="2099-01-01T00:00:00.000000Z")), ["clock"], 3, "future"),
    *(
        Attack(f"39 {name}", raw_line(old, new), ["statement"], 13)
        for name, old, new in [
            ("null", b'"sequence":3', b'"sequence":null'),
            ("float", b'"sequence":3', b'"sequence":3.0'),
            ("negative", b'"sequence":3', b'"sequence":-3'),
            ("huge", b'"sequence":3', b'"sequence":' + b"3" * 5000),
            ("beyond 63 bits", b'"sequence":3', b'"sequence":9223372036854775808'),
            ("deep", b'"skipped":[]', b'"skipped":' + b"[" * 100_000 + b"]" * 100_000),
            ("a field more", b'"sequence":3', b'"sequence":3,"more":1'),
            ("a field twice", b'"sequence":3', b'"sequence":3,"sequence":3'),
            ("no such day", b'"sealed_at":"2026-03', b'"sealed_at":"2026-33'),
            ("another format", b"custody/manifest/1", b"custody/manifest/9"),
        ]
    ),
    Attack("39 100 MB", raw_manifest(b" " * 100_000_000), ["statement"], 13),
    Attack("39 noise", raw_manifest(b"\x00\xff\n\n"), ["statement"], 13),
    Attack("39 empty", raw_manifest(b""), ["statement"], 13),
    Attack("39 three lines", raw_manifest(lambda data: data + b"\n"), ["statement"], 13),
    Attack("39 types without a batch", lambda b: b.append(0, edit=put(types={"a": 1})), ["statement"], 13),
    Attack("39 a range backwards", lambda b: b.append(0, edit=put(next_offset=5)), ["statement"], 13),
    Attack("39 previous_epoch in the middle", lambda b: b.append(0, edit=put(previous_epoch={"epoch": 1, "size": 1, "root": "0" * 64})), ["statement"], 13),
    Attack("39 expired ahead of itself", lambda b: b.append(0, expired=[0, 99]), ["statement"], 13),
    Attack("40 foreign key", foreign("manifests/notes.txt"), ["foreign"], 10),
    Attack("40 foreign key at the root", foreign("notes.txt"), ["foreign"], 10),
    Attack("40 tables and reports", tables_and_reports, [], 0),
    Attack("quarantine flipped", quarantine(lambda data: data[:-1] + b"x"), ["segment-hash"], 13),
    Attack("quarantine longer", quarantine(lambda data: data + b"x"), ["segment-size"], 13),
    Attack("quarantine of other offsets", signed_quarantine(lambda rows: rows.reverse()), ["quarantine"], 13),
    Attack("quarantine short of a record", signed_quarantine(lambda rows: rows.pop()), ["quarantine"], 13),
    Attack("quarantine of noise", signed_quarantine(lambda rows: rows.insert(1, b"noise")), ["quarantine"], 13),
    Attack("archive.json gone", lambda b: (b.root / "archive.json").unlink(), ["archive"], 12),
    Attack("archive.json is noise", foreign("archive.json", b"{}"), ["archive"], 13),
    Attack("a stray manifest", foreign("manifests/audit/0/999999999999.json"), ["sequence-gap"], 11),
]  # fmt: skip

NEWER = TrustedKey(
    "key-2027", "HMAC-SHA256", from_=datetime(2027, 1, 1, tzinfo=UTC) - timedelta(days=400), material=Secret(b"7" * 32)
)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_attack(archive: Builder, attack: Attack) -> None:
    """The attack gives its finding, no others, and its exit code."""
    attack.apply(archive)
    report = run(archive, Trust(keys={**TRUST.keys, "key-2027": NEWER}))
    assert names(report) == attack.findings, [str(one) for one in report.findings]
    assert report.exit_code == attack.exit_code
    assert not attack.message or attack.message in str(report.findings[0])


# --------------------------------------------------------------------------------------------------------------------
# Memories of heads


def remembered(builder: Builder) -> Trust:
    return replace(TRUST, heads={builder.name: Head(*builder.head)})


def test_rollback_by_trust(archive: Builder) -> None:
    """A known head in trust.json shows that the newest statements are gone (row 9)."""
    trust = remembered(archive)
    assert names(run(archive, trust)) == []
    archive.path(8).unlink()
    report = run(archive, trust)
    assert names(report) == ["head-rollback"]
    assert "size 9" in str(report.findings[0])


def test_rollback_by_state(archive: Builder, tmp_path: Path) -> None:
    """The state file shows that an older snapshot was put in place (row 11). It keeps its heads until the rest is back."""
    state = tmp_path / "state.json"
    snapshot = archive.copy(tmp_path / "snapshot")
    archive.append(10)
    assert run(archive, state=state).exit_code == 0
    before = state.read_bytes()
    archive.root.rename(tmp_path / "real")
    snapshot.root.rename(archive.root)
    for _ in range(2):
        report = run(archive, state=state)
        assert names(report) == ["head-rollback"]
        assert report.exit_code == 13
        assert state.read_bytes() == before
    archive.root.rename(tmp_path / "snapshot")
    (tmp_path / "real").rename(archive.root)
    assert run(archive, state=state).exit_code == 0


@pytest.mark.parametrize("again", [False, True], ids=["nothing left", "begun anew"])
def test_everything_deleted(archive: Builder, tmp_path: Path, *, again: bool) -> None:
    """A missing archive, or another one in its place, is never verified (row 10)."""
    state = tmp_path / "state.json"
    run(archive, state=state)
    archive.root.rename(tmp_path / "away")
    archive.root.mkdir()
    if again:
        Builder(archive.root, archive="0" * 8 + "-1111-4222-8333-" + "0" * 12).init().append(0)
    report = run(archive, state=state)
    assert report.exit_code == 13
    assert names(report) == (["archive", "identity", "head-rollback"] if again else ["head-rollback", "archive"])


def test_fork(archive: Builder, tmp_path: Path) -> None:
    """Another history of the same size is a fork, and both heads are shown (rows 12 and 27)."""
    state = tmp_path / "state.json"
    other = archive.copy(tmp_path / "other")
    archive.append(10)
    other.append(11)
    run(archive, state=state)
    report = run(other, remembered(archive))
    assert names(report) == ["head-fork"]
    text = str(report.findings[0])
    assert archive.head[1].hex() in text
    assert other.head[1].hex() in text
    for _ in range(3):
        other.append(5)
    archive.root.rename(tmp_path / "real")
    other.root.rename(archive.root)
    assert names(run(archive, state=state)) == ["head-fork"]


def test_both_heads_are_evidence(archive: Builder) -> None:
    """If a checkpoint signs another root, the finding names it, and has the texts of both as evidence (row 12)."""
    key = archive.checkpoint(9, b"\xab" * 32)
    trust = TRUST
    (found,) = run(archive, trust).findings
    assert (found.finding, found.key, found.sequence) == ("checkpoint", key, 8)
    assert found.evidence == ((archive.root / key).read_text(), archive.path(8).read_text())
    # Nobody's word where no key is trusted to check it: a notice says so, and no more.
    report = run(archive, Trust(keys={KEY_ID: KEY}))
    assert sorted(names(report)) == ["key-unknown", "unchecked-signature"]


def test_checkpoints_of_other_places(archive: Builder) -> None:
    """A checkpoint counts only for the size, log and archive that its key names."""
    trust = TRUST
    note = (archive.root / archive.checkpoint(5)).read_bytes()
    assert names(run(archive, trust)) == []
    for key in ("checkpoints/audit/0/000000000004", "checkpoints/audit/0/000000000006"):
        archive.put(key, note)
        report = run(archive, trust)
        assert [(one.finding, one.key) for one in report.findings] == [("checkpoint", key)]
        (archive.root / key).unlink()
    other = Builder(archive.root, partition=1)
    for _ in range(6):
        other.append(5)
    archive.put("checkpoints/audit/1/000000000005", note)
    report = run(archive, trust)
    assert [(one.finding, one.log) for one in report.findings] == [("checkpoint", "audit/1")]
    (archive.root / "checkpoints/audit/1/000000000005").unlink()
    # Where nothing says which archive this is, the log alone is asked for.
    (archive.root / "archive.json").unlink()
    assert names(run(archive, trust)) == ["archive"]


def test_state_moves_forward_only_when_verified(archive: Builder, tmp_path: Path) -> None:
    """A head with a bad signature is not saved. A missing segment does not prevent saving the head."""
    state = tmp_path / "state.json"
    archive.secret = b"0" * 32
    archive.append(5)
    assert names(run(archive, state=state)) == ["signature"]
    assert json.loads(state.read_text())["archives"][f"file://{archive.root}"]["heads"] == {}
    archive.path(9).unlink()
    archive.segment(9).unlink()
    archive.segment(1).unlink()
    assert names(run(archive, state=state)) == ["segment-missing"]
    assert json.loads(state.read_text())["archives"][f"file://{archive.root}"]["heads"]["audit/0"]["size"] == 9


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"[]", b"\xff", b'{"format":"custody/state/1","archives":{"x":{}}}', b"[" * 10**5]
)
def test_broken_state_file(archive: Builder, tmp_path: Path, data: bytes) -> None:
    """An invalid state file is an error that names it. It is not replaced."""
    state = tmp_path / "state.json"
    state.write_bytes(data)
    with pytest.raises(ConfigurationError, match=r"state\.json"):
        run(archive, state=state)
    assert state.read_bytes() == data


# --------------------------------------------------------------------------------------------------------------------
# Keys


def test_key_span(archive: Builder) -> None:
    """A key outside its span is policy, one finding however many statements (row 25)."""
    trust = Trust(keys={**TRUST.keys, KEY_ID: replace(KEY, to=START)})
    report = run(archive, trust)
    assert names(report) == ["key-span"]
    assert report.exit_code == 10
    assert (report.findings[0].sequence, report.findings[0].through, report.findings[0].count) == (0, 8, 9)


def test_key_until(archive: Builder) -> None:
    """A leaked key counts for nothing beyond its `until`, and up to it the history must be the one named (row 25)."""
    size, root = archive.head
    trust = Trust(keys={**TRUST.keys, KEY_ID: replace(KEY, until={archive.name: Head(size, root)})})
    assert names(run(archive, trust)) == []
    archive.append(5)
    archive.append(5)
    report = run(archive, trust)
    assert names(report) == ["key-span"]
    assert report.exit_code == 13
    fork = Trust(keys={**TRUST.keys, KEY_ID: replace(KEY, until={archive.name: Head(size, b"0" * 32)})})
    assert "head-fork" in names(run(archive, fork))


def test_key_rotation(archive: Builder) -> None:
    """After a rotation old statements still verify."""
    archive.key_id, archive.secret = "key-2027", b"7" * 32
    archive.append(5)
    archive.append(5)
    assert names(run(archive, Trust(keys={**TRUST.keys, "key-2027": NEWER}))) == []


def test_wrong_secret(archive: Builder) -> None:
    """A wrong secret is one finding and not one for each statement, and archive.json's (row 23)."""
    report = run(archive, Trust(keys={**TRUST.keys, KEY_ID: replace(KEY, material=Secret(b"0" * 32))}))
    assert names(report) == ["archive", "signature"]
    assert report.findings[1].count == 9


def test_no_secret(archive: Builder) -> None:
    """Without the secret what no checkpoint covers waits for one, and is uncovered once it has waited too long."""
    trust = Trust(keys={**TRUST.keys, KEY_ID: replace(KEY, material=None)})
    report = run(archive, trust)
    assert sorted(names(report)) == ["pending-checkpoint", "unchecked-signature"]
    assert (report.exit_code, report.logs[0].pending) == (3, 9)
    assert "9 statements wait for a checkpoint" in report.verdict
    late = archive.clock + 2 * (timedelta(seconds=HEARTBEAT) + timedelta(seconds=CHECKPOINT))
    assert names(run(archive, trust, live=True, now=late))[0] == "uncovered"
    archive.checkpoint(7)
    report = run(archive, trust)
    assert sorted(names(report)) == ["pending-checkpoint", "unchecked-signature"]
    assert report.logs[0].pending == 2
    archive.checkpoint()
    report = run(archive, trust)
    assert names(report) == ["unchecked-signature"]
    assert (report.exit_code, report.logs[0].pending) == (3, 0)


def test_no_keys(archive: Builder) -> None:
    """With no key at all the archive is unverifiable."""
    report = run(archive, Trust())
    assert names(report) == ["key-unknown"] * 3
    assert {one.key for one in report.findings} == {None, "archive.json"}
    assert report.exit_code == 12


def test_trusted_archive(archive: Builder) -> None:
    """Another archive than the one that trust.json names is not taken for it."""
    pin = Pin("0" * 8 + "-1111-4222-8333-" + "0" * 12, "0" * 64)
    report = run(archive, replace(TRUST, archive=pin))
    assert names(report)[0] == "archive"
    assert report.exit_code == 13


# --------------------------------------------------------------------------------------------------------------------
# Judged findings


def test_accepted_loss(archive: Builder) -> None:
    """An accepted loss is a notice, and hides no other loss."""
    archive.append(10, lose=7)
    accepted = Accepted("offset-lost", "disk full", "ops", "2026-03-02", log="audit/0", sequence=9)
    trust = replace(TRUST, accepted=(accepted,))
    report = run(archive, trust)
    assert (names(report), report.exit_code) == (["offset-lost"], 3)
    assert "disk full" in str(report.findings[0])
    archive.append(10, lose=2)
    report = run(archive, trust)
    assert (names(report), report.exit_code) == (["offset-lost", "offset-lost"], 11)


def test_accepted_tampering_by_digest_only(archive: Builder) -> None:
    """Tampering is accepted by its exact digest, so that the next change is seen."""
    flip(60)(archive)
    key = archive.statements[1]["segment"]["key"]
    loose = Accepted("segment-hash", "known", "ops", "2026-03-02", key=key)
    exact = msgspec.structs.replace(loose, sha256=sha(archive.segment(1).read_bytes()))
    assert run(archive, replace(TRUST, accepted=(loose,))).exit_code == 13
    assert run(archive, replace(TRUST, accepted=(exact,))).exit_code == 3
    flip(61)(archive)
    assert run(archive, replace(TRUST, accepted=(exact,))).exit_code == 13


# --------------------------------------------------------------------------------------------------------------------
# Expiry, silence, epoch


def test_expired(archive: Builder) -> None:
    """Objects that a signed statement declared expired may be gone; the next ones may not."""
    archive.clock += RETENTION
    archive.append(0, expired=[0, 3])
    for sequence in (1, 2):
        archive.segment(sequence).unlink()
    (archive.root / archive.statements[2]["quarantine"]["key"]).unlink()
    report = run(archive)
    assert names(report) == []
    assert report.logs[0].expired_events == 35 + 24
    assert report.logs[0].expired_quarantined == archive.statements[2]["quarantine"]["records"] > 0
    assert "59 more and 3 quarantined records have expired (sealed from" in report.verdict
    archive.segment(4).unlink()
    assert names(run(archive)) == ["segment-missing"]
    archive.append(0, expired=[3, 5])
    assert names(run(archive)) == []


@pytest.mark.parametrize("limit", [0, 100_000], ids=["beyond the limit", "one by one"])
def test_what_expired_is_said(archive: Builder, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """No verdict says that every line was read if an expiry counts, whatever is gone: a quarantine object, or nothing."""
    monkeypatch.setattr(expiry, "_MISSING_LIMIT", limit)
    archive.clock += RETENTION
    archive.append(0, expired=[0, 3])
    for gone in (0, 1):
        if gone:
            (archive.root / archive.statements[2]["quarantine"]["key"]).unlink()
        report = run(archive)
        assert report.exit_code == 0
        assert "every line read" not in report.verdict
        assert ("3 quarantined records have expired" in report.verdict) == bool(gone)
        assert (report.logs[0].expired_events, report.logs[0].expired_quarantined) == (0, 3 * gone)
    chain = run(archive, scope=Scope(contents=False))
    assert chain.verdict == (
        "chain verified: 1 log; no segment was read; 3 statements were declared expired: their objects may be gone"
    )


@pytest.mark.parametrize("old", [0, 2, 4])
def test_expired_too_soon(archive: Builder, old: int) -> None:
    """An expiry counts for the statements that are old enough, and hides nothing of the others."""
    for number in range(4):
        if number == old:
            archive.clock += RETENTION
        archive.append(5)
    archive.clock += RETENTION * 1.5 if old == 4 else RETENTION / 2
    first = len(archive.statements)
    archive.append(0, expired=[0, first])
    for sequence in range(9, first):
        archive.segment(sequence).unlink()
    report = run(archive)
    missing = [one.sequence for one in report.findings if one.finding == "segment-missing"]
    assert missing == list(range(9 + old, 13))
    assert ("retention" in names(report)) == bool(missing)
    assert report.logs[0].expired == 9 + old


def test_an_expiry_is_as_old_as_its_youngest(archive: Builder) -> None:
    """The age of a range is that of the statement that was sealed last, wherever it stands; no clock says otherwise."""
    archive.clock += RETENTION
    archive.append(5)
    archive.clock -= RETENTION
    archive.append(5)
    archive.clock += RETENTION * 1.5
    archive.append(0, expired=[0, 11])
    for sequence in (9, 10):
        archive.segment(sequence).unlink()
    report = run(archive)
    assert sorted(names(report)) == ["clock", "retention", "segment-missing", "segment-missing"]
    assert report.logs[0].expired == 9
    # The writer's clock is not enough.
    early = run(archive, now=archive.clock - RETENTION * 1.5)
    assert early.logs[0].expired == 0
    assert "retention" in names(early)


@pytest.mark.parametrize("forged", [{"value": base64.b64encode(bytes(32)).decode()}, None], ids=["wrong value", "none"])
def test_forged_expiry_hides_no_loss(archive: Builder, forged: dict[str, str] | None) -> None:
    """An expiry with an invalid signature does not count: its objects are reported as missing."""
    archive.append(0, expired=[0, 3])
    last = archive.path(len(archive.statements) - 1)
    line = last.read_bytes().split(b"\n")[0]
    last.write_bytes(archive.sign(line, **forged) if forged else line + b'\n{"signatures":[]}\n')
    archive.segment(1).unlink()
    report = run(archive)
    assert sorted(names(report)) == ["segment-missing", "signature"]
    assert report.exit_code == 13


def test_stale_only_live(archive: Builder) -> None:
    """Silence of twice the heartbeat is shown of a live archive, within it and at its end (row 30)."""
    later = archive.clock + timedelta(hours=3)
    assert names(run(archive, now=later)) == []
    assert names(run(archive, now=later, live=True)) == ["stale"]
    archive.clock = later
    archive.append(5)
    report = run(archive, live=True)
    assert names(report) == ["stale"]
    assert report.exit_code == 3


def test_empty(tmp_path: Path) -> None:
    """An archive without statements says so."""
    report = run(Builder(tmp_path).init())
    assert (names(report), report.exit_code) == (["empty"], 3)


def test_no_archive(tmp_path: Path) -> None:
    """A folder that is no archive is unverifiable."""
    assert run(Builder(tmp_path)).exit_code == 12


def test_several_logs(archive: Builder) -> None:
    """A fault of one log stops nothing in another."""
    other = Builder(archive.root, partition=1)
    for _ in range(4):
        other.append(5)
    archive.path(0).write_bytes(b"noise")
    other.segment(2).unlink()
    report = run(archive)
    assert sorted(names(report)) == ["segment-missing", "statement"]
    assert [log.log for log in report.logs] == ["audit/0", "audit/1"]


# --------------------------------------------------------------------------------------------------------------------
# Stores that behave badly


class Bent:
    """A store whose listings and reads a test controls."""

    def __init__(self, builder: Builder, **bent: Any) -> None:
        self._store = open_store(str(builder.root))
        self._bent = bent
        self.url = self._store.url

    def read(self, key: str, **more: Any) -> bytes:
        if self._bent.get("refuse", "\0") in key:
            raise TransientStoreError(f"503 for {key}")
        return self._store.read(key, **more)

    def list(self, prefix: str = "", **more: Any) -> Iterator[ObjectInfo]:
        found = sorted(self._store.list(prefix, **more), key=lambda info: info.key[::-1])
        if self._bent.get("halts"):
            yield from found[:5]
            raise TransientStoreError("503 in the middle of a listing")
        if self._bent.get("before_listed"):
            found = [info for info in found if not info.key.endswith(self._bent["before_listed"])]
        yield from found
        if self._bent.get("twice"):
            yield from reversed(found)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


def bent(builder: Builder, **how: Any) -> Store:
    return Bent(builder, **how)


def test_listing_in_any_order_and_twice(archive: Builder) -> None:
    """Order and repetition of a listing change nothing (row 40)."""
    assert names(run(archive, store=bent(archive, twice=True))) == []
    archive.path(4).unlink()
    unnamed(range(230, 240))(archive)
    assert names(run(archive, store=bent(archive, twice=True))) == ["sequence-gap", "orphan"]


@pytest.mark.parametrize("refuse", ["manifests/audit/0/000000000003", "archive.json", "-00000000000000000100-"])
def test_read_refused(archive: Builder, refuse: str) -> None:
    """A refused read is a finding, and the rest is verified (row 31)."""
    archive.segment(7).unlink()
    report = run(archive, store=bent(archive, refuse=refuse))
    assert names(report) == ["unreadable", "segment-missing"]
    assert report.exit_code == 12


def test_listing_refused(archive: Builder) -> None:
    """An incomplete listing is a finding. The listed part is verified, and no gap is reported (row 31)."""
    assert names(run(archive, store=bent(archive, halts=True))) == ["unreadable"]


def test_manifest_that_came_while_listing(archive: Builder) -> None:
    """A manifest that a listing left out is no gap. With --live, a manifest after the last listed one is read too."""
    assert names(run(archive, store=bent(archive, before_listed="000000000004.json"))) == []
    store = bent(archive, before_listed="000000000008.json")
    report = run(archive, store=store, live=True)
    assert (names(report), report.logs[0].size) == ([], 9)
    unnamed(range(230, 240))(archive)
    assert names(run(archive, store=store, live=True)) == []


# --------------------------------------------------------------------------------------------------------------------
# Bounds


def test_names_spill_to_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names of objects are compared in the same way when they are too many for memory."""
    monkeypatch.setattr("custody.verify.names._BUCKET_BYTES", 64)
    with Names() as held:
        for number in range(1000):
            held.list(f"events/{number}")
            if number % 7:
                held.name(f"events/{number}")
        found = held.unnamed()
        assert {number for number in range(1000) if held.digest(f"events/{number}") in found} == set(range(0, 1000, 7))


def test_sequences() -> None:
    """Sequences are returned in order, once each. Those far beyond the others are kept apart."""
    held = Sequences()
    for sequence in (70_000, 3, 0, 3, 17, 16, 999_999_999_999, 8):
        held.add(sequence)
    found, at = [], held.next(0)
    while at is not None:
        found.append(at)
        at = held.next(at + 1)
    assert found == [0, 3, 8, 16, 17, 70_000]
    assert held.strays == [999_999_999_999]


def test_far_sequences_cost_no_more_than_near_ones() -> None:
    """Memory and work grow with the objects listed, not with the numbers that somebody put into their names."""
    far = (1 << 27) - 1
    tracemalloc.start()
    listing = Listing()
    with Names() as held:
        for number in range(200):
            assert listing.add(ObjectInfo(f"checkpoints/x/{number}/{far:012}", 0), held)
            assert listing.add(ObjectInfo(f"manifests/x/{number}/{far:012}.json", 0), held)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_048_576
    sequences = next(iter(listing.manifests.values()))
    sequences.add(3)
    # Where a listing is not complete, holes are tried too: but not such a one.
    assert len(list(sequences.filled(far).all())) <= 2 * 512
    near = Sequences()
    near.add(5_000)
    assert list(near.filled(5_001).all())[:5_001] == list(range(5_001))


@pytest.mark.parametrize("apart", [1, 512, 1_000, 200 * 512])
def test_holes_that_foreign_names_make_are_not_read(apart: int) -> None:
    """Beyond the known heads few sequences are tried besides those listed, however many empty objects are there."""
    held = Sequences()
    for number in range(1, 1_300):
        held.add(5_000 + number * apart)
    listed = set(held.all())
    tried = set(held.filled(5_000).all())
    assert tried > listed
    assert tried >= set(range(5_000))
    assert len(tried - listed) <= 5_000 + 512 * 6


def test_an_orphan_over_an_idle_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unnamed object that claims all offsets costs little in a log of heartbeats: few of them are read."""
    read = Mock(side_effect=read_manifest)
    monkeypatch.setattr("custody.verify.orphans.read_manifest", read)
    builder = Builder(tmp_path).init()
    for _ in range(2):
        for _ in range(300):
            builder.append(0)
        builder.append(2)
    data = member(b"".join(event(offset) + b"\n" for offset in range(100, builder.next_offset)))
    builder.put(builder.records_key("events", 0, 10**15, data), data)
    assert names(run(builder)) == ["orphan"]
    assert read.call_count < 60


def test_an_orphan_beside_slots_that_were_passed_over(tmp_path: Path) -> None:
    """What was committed is found wherever there are slots without a statement."""
    for before in range(1, 6):
        builder = Builder(tmp_path / str(before)).init()
        for _ in range(before):
            builder.append(1)
        for number in range(8):
            builder.pass_over(b"%d" % number)
        builder.append(10)
        for _ in range(5):
            builder.append(0)
        unnamed(range(100, builder.next_offset))(builder)
        assert "orphan" in names(run(builder)), before


def test_an_orphan_of_too_many_statements(archive: Builder, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unnamed object may repeat what a run archived, and not what a whole log holds."""
    first = archive.next_offset
    for _ in range(4):
        archive.append(2)
    unnamed(range(first, archive.next_offset))(archive)
    assert names(run(archive)) == ["orphan"]
    monkeypatch.setattr("custody.format.limits.ORPHAN_STATEMENTS", 3)
    report = run(archive)
    assert names(report) == ["unlisted"]
    assert "it claims the offsets of more than 3 statements" in report.findings[0].message


def test_findings_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Findings beyond the limit still decide the exit code."""
    monkeypatch.setattr("custody.findings.FINDINGS_LIMIT", 10)
    findings = Findings()
    for number in range(20):
        findings.add(finding("orphan", "x", key=str(number)))
    findings.add(finding("unlisted", "x", key="y"))
    assert len(findings.sorted()) == 10
    assert findings.exit_code == Severity.TAMPERED


def test_unnamed_objects_are_bounded(archive: Builder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only some of many unnamed objects are reported one by one, and the rest are counted, so that memory is bounded."""
    monkeypatch.setattr("custody.verify.orphans._UNNAMED_LIMIT", 3)
    for number in range(5):
        foreign(f"events/2026/01/01/00/00/00-x-0-{0:020}-{9:020}-{number:016}.jsonl.gz")(archive)
    report = run(archive)
    assert names(report) == ["unlisted"] * 3
    assert report.beyond == {Severity.TAMPERED: 2}
    assert report.exit_code == 13
    assert list(report.to_dicts())[-1]["beyond"] == {"tampered": 2}


def test_foreign_objects_crowd_out_nothing(archive: Builder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of very many foreign objects some are shown one by one, and the others are one finding, below what was changed."""
    monkeypatch.setattr("custody.verify.listing.FOREIGN_LIMIT", 3)
    for number in range(8):
        foreign(f"events/{number}")(archive)
    flip(60)(archive)
    report = run(archive)
    assert names(report) == ["segment-hash", *["foreign"] * 4]
    assert sum(one.count for one in report.findings if one.finding == "foreign") == 8
    assert report.exit_code == 13


def test_as_json(archive: Builder) -> None:
    """`--json` gives each finding, each log, the audits' head and then the verdict, with all that the report says."""
    foreign(f"events/2026/01/01/00/00/00-x-0-{0:020}-{9:020}-{1:016}.jsonl.gz")(archive)
    report = run(archive)
    finding, *logs, audits, verdict = report.to_dicts()
    assert finding == {"kind": "finding", **report.findings[0].to_dict()}
    assert [log.pop("kind") for log in logs] == ["log"] * len(report.logs)
    assert [log["log"] for log in logs] == [log.log for log in report.logs]
    assert audits == {"kind": "audits", "log": "audits/0", "size": 0, "root": sha(b"")}
    # `test_part.py` and `test_verdict.py` look at how it was made.
    made = {name: verdict.pop(name) for name in ("at", "seconds", "version", "keys")}
    assert made == report.made.to_dict()
    assert verdict == {
        "kind": "verdict",
        "url": report.url,
        "archive": report.archive,
        "archive_sha256": sha((archive.root / "archive.json").read_bytes().split(b"\n")[0]),
        "exit_code": 13,
        "verdict": "TAMPERED: 1 finding; 115 events in 1 log",
        "findings": 1,
        "beyond": {},
        "part": None,
        "left_out": {"logs": 0, "statements": 0},
    }


def test_findings_print_whatever_they_hold() -> None:
    """Text from an archive cannot break the line or the terminal."""
    text = str(finding("unlisted", "a\nb\x1b[2J", key="\ud800\u202e", found="\x00"))
    assert text.isprintable()
    text.encode()


def test_every_name_has_advice() -> None:
    """Each finding has a severity and says what to do next."""
    for name, (severity, action) in CATALOGUE.items():
        assert severity in Severity
        assert action, name


def test_chain_needs_no_store(archive: Builder) -> None:
    """The chain's rules are pure: bytes in, findings out."""
    findings = Findings()
    chain = LogAccount(Log("audit", 0), archive.archive, TRUST.keys, archive.clock, findings)
    for sequence in range(9):
        chain.step(sequence, archive.path(sequence).read_bytes())
    chain.end()
    assert findings.sorted() == []
    assert (chain.size, chain.signed.root) == archive.head
