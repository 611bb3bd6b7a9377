"""Rows 8, 13 to 20, 23 to 26, 29, 30, 39 and 42: what is done to statements, their order and their signatures."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from custody.trust import Head
from tests.archives import KEY_ID, SECRET, START, Builder, time_text
from tests.attacks.archive import HEARTBEAT, MAIN, NEWER_ID, NEWER_SECRET, OLD, PUBLIC_ID, Scene
from tests.attacks.registry import (
    Apply,
    attack,
    in_log,
    manifest,
    raw_statement,
    signatures,
    statement,
    with_key,
)

_OTHER_ARCHIVE = "00000000-1111-4222-8333-000000000000"


def gap(*sequences: int, segments: bool) -> Apply:
    def apply(scene: Scene) -> None:
        for sequence in sequences:
            scene.main.path(sequence).unlink()
            named = [scene.main.statements[sequence][kind] for kind in ("segment", "quarantine")]
            scene.delete(*(ref["key"] for ref in named if ref and segments))

    return apply


def swap(one: int, other: int) -> Apply:
    def apply(scene: Scene) -> None:
        first, second = scene.main.path(one).read_bytes(), scene.main.path(other).read_bytes()
        scene.main.path(one).write_bytes(second)
        scene.main.path(other).write_bytes(first)

    return apply


def replay(to: int) -> Apply:
    return lambda scene: scene.main.path(to).write_bytes(scene.main.path(3).read_bytes())


def foreign(**fields: Any) -> Apply:
    """Put a manifest of another log or archive, signed with the same key, in the place of one of ours."""

    def apply(scene: Scene) -> None:
        other = Builder(scene.root.parent / "other", **fields).init()
        for _ in range(4):
            other.append()
        scene.main.path(3).write_bytes(other.path(3).read_bytes())

    return apply


def put(**fields: object) -> Any:
    return lambda statement: statement.update(fields)


def archived_twice(builder: Builder) -> None:
    builder.next_offset -= 5
    builder.append(10)


def left_out(builder: Builder) -> None:
    builder.next_offset += 5
    builder.append(10)


def short_of_two(statement: dict[str, Any]) -> None:
    statement["next_offset"] += 2


def second_life(scene: Scene) -> None:
    size, root = scene.main.head
    second = Builder(scene.root, life=2, after={"life": 1, "size": size, "root": root.hex()}, next_offset=0)
    second.clock = scene.main.clock
    second.append()
    second.append(10)


def older_key(scene: Scene) -> None:
    main = scene.main
    main.key_id, main.secret = NEWER_ID, NEWER_SECRET
    main.append(5)
    main.key_id, main.secret = KEY_ID, SECRET
    main.append(5)
    main.append(5)


def beyond_until(scene: Scene) -> None:
    """Let somebody who has a leaked key write on, beyond the head at which it ended."""
    size, root = scene.main.head
    with_key(scene, until={MAIN: Head(size, root)})
    scene.main.append(5)


def unknown_key(builder: Builder) -> None:
    builder.key_id = "who"
    builder.append(5)
    builder.append(5)


def change_again(scene: Scene) -> None:
    scene.main.resign(3, lambda statement: statement.update(writer="somebody else"))


def silent(scene: Scene) -> None:
    """Write nothing for more than two heartbeats, and then go on."""
    scene.options["live"] = True
    scene.trust = replace(scene.trust, retention_days=None)
    for log in scene.logs.values():
        log.clock += 2 * HEARTBEAT + timedelta(minutes=1)
        log.append()


def long_silent(scene: Scene) -> None:
    scene.trust = replace(scene.trust, retention_days=None)
    scene.options.update(live=True, now=scene.now + 2 * HEARTBEAT + timedelta(minutes=1))


def silence_hidden(scene: Scene) -> None:
    """Let archive.json say that a log may be silent for most of a year, as it may say, and write nothing more."""
    long_silent(scene)
    info = json.loads(scene.read("archive.json"))
    info["heartbeat"] *= 10
    scene.put("archive.json", json.dumps(info, separators=(",", ":")).encode())


def expired_too_soon(scene: Scene) -> None:
    main = scene.main
    main.append(expired=[0, 3])
    for sequence in (1, 2):
        scene.delete(main.statements[sequence]["segment"]["key"])
    scene.delete(main.statements[2]["quarantine"]["key"])


def expired_ahead(scene: Scene) -> None:
    """Let expire what is old enough, and one statement more."""
    scene.logs[OLD].append(expired=[3, 6])


ATTACKS = [
    attack(8, "manifest deleted", gap(2, segments=False), "sequence-gap", 11, "1 manifest is missing"),
    attack(8, "manifest deleted with its segment", gap(2, segments=True), "sequence-gap", 11),
    attack(
        8, "several deleted", gap(1, 2, 3, segments=False), "sequence-gap", 11, "3 manifests are missing", variant=True
    ),
    attack(8, "first deleted", gap(0, 1, segments=False), "sequence-gap", 11, variant=True),
    attack(13, "two statements swapped", swap(2, 4), "tree tree", 13, "out of order"),
    attack(13, "two neighbours swapped", swap(6, 7), "tree tree", 13, "out of order", variant=True),
    attack(13, "batches inside a statement reordered", statement(lambda s: s["batches"].reverse()), "batch-order", 13),
    attack(
        13,
        "batches numbered anew",
        statement(lambda s: s["batches"][1].update(number=99)),
        "batch-order",
        13,
        variant=True,
    ),
    attack(14, "older manifest replayed in another's place", replay(5), "identity", 13, "older statement"),
    attack(14, "older manifest replayed at the end", replay(12), "identity", 13),
    attack(15, "manifest of another partition", foreign(partition=1), "identity", 13, "partition"),
    attack(15, "manifest of another topic", foreign(topic="other"), "identity", 13, "topic"),
    attack(15, "manifest of another life", foreign(life=2), "identity", 13, "life", variant=True),
    attack(15, "manifest of another archive", foreign(archive=_OTHER_ARCHIVE), "identity", 13, "archive"),
    attack(16, "offsets archived twice", in_log(archived_twice), "offset-overlap", 13, "archived before"),
    attack(
        16,
        "offsets skipped and archived",
        statement(lambda s: s.update(skipped=[[s["first_offset"] + 3, s["first_offset"] + 5]])),
        "offset-overlap",
        13,
    ),
    attack(17, "offsets left out between statements", in_log(left_out), "offset-gap", 11),
    attack(17, "offsets left out at a statement's end", statement(short_of_two), "offset-gap", 11),
    attack(
        17,
        "offsets left out of a batch",
        lambda scene: scene.main.append(30, skip=[4], edit=put(skipped=[])),
        "offset-gap",
        11,
        variant=True,
    ),
    attack(
        18,
        "markers and compacted offsets",
        in_log(lambda log: (log.append(10, skip=[0, 3, 9]), log.append(tail=4))),
        "",
        0,
    ),
    attack(19, "the seam of a new life", second_life, "new-life", 3),
    attack(20, "admitted loss", lambda scene: scene.main.append(10, lose=7), "offset-lost", 11, "offsets 252 to 258"),
    attack(23, "signature removed", signatures(lambda listed: listed.clear()), "signature", 13),
    attack(23, "signature garbled", signatures(lambda listed: listed[0].update(value="AAAA" * 8)), "signature", 13),
    attack(
        23,
        "signature that is no base64",
        signatures(lambda listed: listed[0].update(value="%%")),
        "signature",
        13,
        variant=True,
    ),
    attack(
        23,
        "signature of another message",
        signatures(lambda listed: listed[0].update(value="A" * 43 + "=")),
        "signature",
        13,
    ),
    attack(23, "line 2 gone", manifest(lambda data: data.split(b"\n")[0] + b"\n"), "signature", 13, variant=True),
    attack(24, "unknown key id", signatures(lambda listed: listed[0].update(key="who")), "key-unknown", 12),
    attack(24, "unknown key throughout", in_log(unknown_key), "key-unknown", 12),
    attack(
        24,
        "algorithm that the key does not have",
        signatures(lambda listed: listed.append({"key": PUBLIC_ID, "algorithm": "HMAC-SHA256", "value": "AAAA"})),
        "key-algorithm",
        13,
    ),
    attack(
        25,
        "key outside its span",
        lambda scene: with_key(scene, to=datetime(2026, 3, 1, 12, tzinfo=UTC)),
        "key-span key-span key-span key-span key-span",
        10,
        "outside its span",
    ),
    attack(25, "older key after a newer one", older_key, "key-span", 13, "older key"),
    attack(25, "leaked key beyond its until", beyond_until, "key-span", 13, "signs beyond it"),
    attack(26, "statement changed and signed again", change_again, "tree", 13),
    attack(26, "tree that does not follow", statement(lambda s: s["tree"].update(root="0" * 64)), "tree", 13),
    attack(
        29,
        "clock back",
        lambda scene: scene.main.append(5, edit=put(sealed_at=time_text(START))),
        "clock",
        3,
        "stepped back",
    ),
    attack(
        29,
        "clock far ahead",
        lambda scene: scene.main.append(5, edit=put(sealed_at="2099-01-01T00:00:00.000000Z")),
        "clock",
        3,
        "future",
    ),
    attack(30, "statements far apart", silent, "stale stale stale stale", 3),
    attack(30, "nothing after the last one", long_silent, "stale stale stale stale", 3, "nothing was written since"),
    attack(30, "nothing after the last one, heartbeat raised", silence_hidden, "archive stale stale stale stale", 13),
    *(
        attack(39, name, raw_statement(old, new), "statement", 13, variant=place > 4)
        for place, (name, old, new) in enumerate(
            [
                ("null", b'"sequence":3', b'"sequence":null'),
                ("float", b'"sequence":3', b'"sequence":3.0'),
                ("negative number", b'"sequence":3', b'"sequence":-3'),
                ("huge number", b'"sequence":3', b'"sequence":' + b"3" * 5000),
                ("deep nesting", b'"skipped":[]', b'"skipped":' + b"[" * 100_000 + b"]" * 100_000),
                ("beyond 63 bits", b'"sequence":3', b'"sequence":9223372036854775808'),
                ("field twice", b'"sequence":3', b'"sequence":3,"sequence":3'),
                ("field more", b'"sequence":3', b'"sequence":3,"more":1'),
                ("another format", b"custody/manifest/1", b"custody/manifest/9"),
            ]
        )
    ),
    attack(39, "100 MB", manifest(lambda _: b" " * 100_000_000), "statement", 13),
    attack(39, "bytes behind", manifest(lambda data: data + b"\n"), "statement", 13, variant=True),
    attack(39, "nothing", manifest(lambda _: b""), "statement", 13, variant=True),
    attack(42, "expired before its time, and deleted", expired_too_soon, "retention", 10),
    attack(42, "expired one statement too many", expired_ahead, "retention", 10),
]
