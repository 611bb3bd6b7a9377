"""Statements, their order and their signatures: rows 8, 13 to 20, 23 to 26, 29, 30, 39, 42, 43, 45 and 47 to 52."""

import hmac
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from tests.attacks.registry import (
    LARGE,
    Apply,
    attack,
    end_key,
    in_log,
    manifest,
    raw_statement,
    rebuilt,
    several,
    signatures,
    statement,
    with_key,
)
from tests.helpers.archives import (
    KEY_ID,
    LEAVES_ID,
    NOTE_KEY,
    SECRET,
    START,
    Builder,
    message,
    signature,
    time_text,
)
from tests.helpers.scene import (
    HEARTBEAT,
    LEAVES,
    LONG_AGO,
    MAIN,
    NEWER_ID,
    NEWER_SECRET,
    OLD,
    ORDERS,
    PUBLIC_ID,
    Scene,
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


def later_epoch(epoch: int = 2, **fields: Any) -> Apply:
    """Begin a later epoch of the main log."""

    def apply(scene: Scene) -> None:
        size, root = scene.main.head
        previous = {"epoch": 1, "size": size, "root": root.hex()}
        later = Builder(scene.root, epoch=epoch, previous_epoch=previous, next_offset=0, **fields)
        later.clock = scene.main.clock
        later.append()
        later.append(10)

    return apply


def older_key(scene: Scene) -> None:
    main = scene.main
    main.key_id, main.secret = NEWER_ID, NEWER_SECRET
    main.append(5)
    main.key_id, main.secret = KEY_ID, SECRET
    main.append(5)
    main.append(5)


def beyond_until(scene: Scene) -> None:
    """Append a statement with a leaked key, beyond the head at which the key ended."""
    end_key(scene)
    scene.main.append(5)


def rewritten_before_until(scene: Scene) -> None:
    """Rewrite history with a leaked key, before the head at which it ended, and forget all that remembers it."""
    scene.delete(*scene.listed("audits/"), *scene.listed("checkpoints/audits/"), *scene.listed(f"checkpoints/{MAIN}/"))
    scene.audits.clear()
    scene.audit_entries.clear()
    end_key(scene)
    rebuilt(scene, MAIN, 3, put(writer="somebody else"))


def changed_before_a_gap() -> Apply:
    """Change a statement as whoever holds the key can, and remove the next one, which would show it."""

    def apply(scene: Scene) -> None:
        scene.main.resign(8, put(writer="somebody else"))
        scene.delete(scene.main.key(9))

    return apply


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


def delete_objects(scene: Scene, log: Builder, *sequences: int) -> None:
    """Delete the segments and quarantine objects of statements."""
    named = [log.statements[sequence].get(kind) for sequence in sequences for kind in ("segment", "quarantine")]
    scene.delete(*(ref["key"] for ref in named if ref))


def expired_too_soon(scene: Scene) -> None:
    scene.main.append(expired=[0, 3])
    delete_objects(scene, scene.main, 1, 2)


def expired_ahead(scene: Scene) -> None:
    """Expire the statements that are old enough, and one more."""
    scene.logs[OLD].append(expired=[3, 6])


def expired_in_the_future(scene: Scene) -> None:
    """Append an expiry that claims a time at which the statements are old enough."""
    scene.main.append(expired=[0, 3], edit=put(sealed_at="2034-01-01T00:00:00.000000Z"))
    delete_objects(scene, scene.main, 1, 2)


def young_among_old(scene: Scene) -> None:
    """Append an expiry over statements of which one was sealed far later, and delete all their objects."""
    log = Builder(scene.root, topic="young", clock=LONG_AGO)
    log.append()
    log.append(5, edit=put(sealed_at=time_text(START)))
    log.append(5)
    log.append(5)
    log.clock = START + timedelta(hours=1)
    log.append(expired=[0, 4])
    delete_objects(scene, log, 1, 2, 3)
    scene.logs[log.name] = log


def expired_at(age: timedelta, retention_days: int | None) -> Apply:
    """Expire a statement of this age and delete its objects, where the verifier asks for so many days."""

    def apply(scene: Scene) -> None:
        scene.trust = replace(scene.trust, retention_days=retention_days)
        log = Builder(scene.root, topic="aged", clock=START - age)
        log.append()
        log.append(5)
        log.clock = START
        log.append(expired=[0, 2])
        delete_objects(scene, log, 1)
        scene.logs[log.name] = log

    return apply


def expired_by_unknown_key(scene: Scene) -> None:
    """Delete all objects of a log, and let them expire by a key that nobody trusts."""
    main = scene.main
    main.key_id, main.secret = "hmac-0123", b"0" * 32
    size = len(main.entries)
    main.append(expired=[0, size])
    delete_objects(scene, main, *range(size))


def expired_by_leaked_key(scene: Scene) -> None:
    """Sign an expiry with a leaked key, beyond the head at which it ended, and delete the objects."""
    log = Builder(scene.root, topic="aged", clock=LONG_AGO)
    log.append()
    log.append(5)
    scene.logs[log.name] = log
    end_key(scene)
    log.clock = START
    log.append(expired=[0, 2])
    delete_objects(scene, log, 1)


def passed_over(*slots: bytes, then: Callable[[Scene], object] = lambda _: None) -> Apply:
    """Put bytes into the next slots that are no manifest, let the writer pass over them, and do more."""

    def apply(scene: Scene) -> None:
        for data in slots:
            scene.main.pass_over(data)
        scene.main.append(5)
        then(scene)

    return apply


def deleted_slot(sequence: int) -> Apply:
    return lambda scene: scene.delete(scene.main.key(sequence))


def other_garbage(sequence: int) -> Apply:
    return lambda scene: scene.put(scene.main.key(sequence), b"other garbage")


def valid_slot_passed_over(scene: Scene) -> None:
    """Append a statement that passes over a slot with a valid statement."""
    main = scene.main
    size = len(main.entries)
    main.append()
    data = main.path(size).read_bytes()
    main.go_back(size)
    main.pass_over(data)
    main.append(5)


def foreign_slot(key_id: str, secret: bytes) -> Apply:
    """Put a statement into the next slot that whoever has no key of ours has signed, and pass over it."""

    def apply(scene: Scene) -> None:
        main = scene.main
        size = len(main.entries)
        main.key_id, main.secret = key_id, secret
        main.append()
        data = main.path(size).read_bytes()
        main.go_back(size)
        main.key_id, main.secret = KEY_ID, SECRET
        main.pass_over(data)
        main.append(5)

    return apply


def known_slot_passed_over(scene: Scene) -> None:
    """Put garbage in the place of a statement that a checkpoint and an audit cover, and pass over it."""
    main = scene.main
    delete_objects(scene, main, 11)
    scene.delete(main.key(11))
    main.go_back(10)
    main.pass_over()
    main.append(5)


def last_record(count: int, **fields: Any) -> Apply:
    """Append a statement whose last record is another than the one that was read, and a good one after it."""

    def edit(statement: dict[str, Any]) -> None:
        statement["last_record"] |= fields

    return lambda scene: (scene.main.append(count, edit=edit), scene.main.append(5))


def called_unreadable(statement: dict[str, Any]) -> None:
    first = statement["first_offset"]
    statement["unreadable"] = [{"from": first, "to": first + 2, "error": "bad compression"}]


def wrong_leaves(statement: dict[str, Any]) -> None:
    statement["batches"][0]["leaves"]["sha256"] = "0" * 64


def leaves_by(key: str | None) -> Apply:
    """Append leaves that are wrong, to a verifier who has the secret of this key, or of none."""

    def apply(scene: Scene) -> None:
        if key is None:
            scene.trust = replace(scene.trust, leaves={})
        scene.logs[LEAVES].leaves_id = key or LEAVES_ID
        scene.logs[LEAVES].append(10, batch=5, edit=wrong_leaves)

    return apply


def two_signatures(key: str, algorithm: str) -> Apply:
    """Add a valid signature that the format does not allow."""

    def apply(scene: Scene) -> None:
        text = message(scene.main.lines[3])
        value = NOTE_KEY.sign(text) if algorithm == "Ed25519" else hmac.digest(NEWER_SECRET, text, "sha256")
        signatures(lambda listed: listed.append(signature(key, algorithm, value)))(scene)

    return apply


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
    attack(15, "manifest of another epoch", foreign(epoch=2), "identity", 13, "epoch", variant=True),
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
    attack(19, "the seam of a new epoch", later_epoch(), "new-epoch", 3),
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
    attack(23, "signature of Ed25519 beside the HMAC", two_signatures(PUBLIC_ID, "Ed25519"), "signature", 13),
    attack(23, "two HMACs", two_signatures(NEWER_ID, "HMAC-SHA256"), "signature key-span", 13),
    attack(24, "unknown key id", signatures(lambda listed: listed[0].update(key="who")), "key-unknown", 12),
    attack(24, "unknown key throughout", in_log(unknown_key), "key-unknown", 12),
    attack(
        24,
        "algorithm that the key does not have",
        signatures(lambda listed: listed[0].update(key=PUBLIC_ID)),
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
    attack(25, "leaked key in a log that until does not list", lambda s: end_key(s, but=(ORDERS,)), "key-span", 13),
    attack(43, "history rewritten by a leaked key, before its until", rewritten_before_until, "head-fork", 13),
    attack(26, "statement changed and signed again", change_again, "tree", 13),
    attack(60, "changed, and the next one removed", changed_before_a_gap(), "checkpoint sequence-gap", 13),
    attack(
        60,
        "changed by a leaked key before its until, and the next one removed",
        several(changed_before_a_gap(), lambda scene: end_key(scene)),
        "checkpoint key-span sequence-gap",
        13,
    ),
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
    attack(
        30, "nothing after the last one", long_silent, "stale stale stale stale", 3, "nothing has been written since"
    ),
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
    attack(
        42,
        "expired before its time, and deleted",
        expired_too_soon,
        "segment-missing segment-missing segment-missing retention",
        11,
    ),
    attack(42, "expired one statement too many", expired_ahead, "retention", 10),
    attack(
        42,
        "expired by a statement of the future",
        expired_in_the_future,
        "segment-missing segment-missing segment-missing retention clock",
        11,
    ),
    attack(
        42,
        "expired with a young statement among old ones",
        young_among_old,
        "segment-missing segment-missing segment-missing retention clock",
        11,
    ),
    attack(
        42,
        "old enough for trust.json, not for archive.json",
        expired_at(timedelta(days=15), 10),
        "segment-missing retention",
        11,
    ),
    attack(
        42,
        "old enough for archive.json, not for trust.json",
        expired_at(timedelta(days=25), 30),
        "segment-missing retention",
        11,
        variant=True,
    ),
    attack(42, "old enough for archive.json, which alone asks", expired_at(timedelta(days=25), None), "", 0),
    attack(
        45,
        "expired by an unknown key, and deleted",
        expired_by_unknown_key,
        "key-unknown" + " segment-missing" * 11,
        12,
    ),
    attack(45, "expired by a leaked key beyond its until", expired_by_leaked_key, "key-span segment-missing", 13),
    attack(47, "garbage in the next slot", passed_over(b"garbage"), "passed-over", 3),
    attack(47, "an empty object in the next slot", passed_over(b""), "passed-over", 3, variant=True),
    attack(47, "garbage in the next slots", passed_over(b"a", b"b", b"a"), "passed-over", 3),
    attack(59, "more in the next slot than a statement may have", passed_over(LARGE), "passed-over", 3),
    attack(
        59,
        "other bytes since, too many for a statement",
        passed_over(LARGE, then=lambda scene: scene.put(scene.main.key(12), LARGE + b"x")),
        "statement",
        13,
        "other bytes",
        variant=True,
    ),
    attack(
        47,
        "a statement by a wrong secret",
        foreign_slot(KEY_ID, b"0" * 32),
        "passed-over",
        3,
    ),
    attack(47, "a statement by an unknown key", foreign_slot("who", SECRET), "passed-over", 3),
    attack(47, "garbage deleted since", passed_over(b"garbage", then=deleted_slot(12)), "passed-over", 3, "empty now"),
    attack(
        47,
        "one of several deleted since",
        passed_over(b"a", b"b", b"c", then=deleted_slot(13)),
        "passed-over passed-over",
        3,
    ),
    attack(
        47,
        "all of several deleted since",
        passed_over(b"a", b"b", then=several(deleted_slot(12), deleted_slot(13))),
        "passed-over",
        3,
    ),
    attack(48, "other garbage since", passed_over(b"garbage", then=other_garbage(12)), "statement", 13, "other bytes"),
    attack(
        48,
        "other garbage in one of several since",
        passed_over(b"a", b"b", then=other_garbage(13)),
        "statement passed-over",
        13,
        variant=True,
    ),
    attack(48, "garbage that nothing passes over yet", lambda s: s.main.pass_over(), "statement", 13),
    attack(48, "a valid statement passed over", valid_slot_passed_over, "head-fork", 13, "two histories"),
    attack(48, "a known statement passed over", known_slot_passed_over, "head-fork checkpoint passed-over", 13),
    attack(49, "leader epoch that goes back", last_record(10, leader_epoch=2), "statement", 13, "leader epoch"),
    attack(49, "another record than the last one", last_record(10, offset=252), "statement", 13, "last_record"),
    attack(49, "another record repeated", last_record(0, offset=250), "statement", 13, "last_record"),
    attack(
        49,
        "no record repeated",
        lambda scene: (scene.main.append(edit=put(last_record=None)), scene.main.append(5)),
        "statement",
        13,
        "last_record",
        variant=True,
    ),
    attack(
        50,
        "offsets that no client could decode",
        lambda scene: (scene.main.append(10, unreadable=[3, 4]), scene.main.append(5)),
        "offset-unreadable",
        11,
        "offsets 255 to 256",
    ),
    attack(
        50,
        "offsets called undecodable and archived",
        statement(called_unreadable),
        "offset-overlap offset-unreadable",
        13,
        variant=True,
    ),
    attack(51, "leaves of other events", leaves_by(LEAVES_ID), "leaves", 13),
    attack(51, "leaves of other events, without the secret", leaves_by(None), "", 0),
    attack(51, "leaves by a secret that nobody knows", leaves_by("leaves-unknown"), "", 0, variant=True),
    attack(52, "an epoch left out", later_epoch(3), "statement new-epoch", 13, "consecutive"),
    attack(
        52, "a later epoch of the same topic", later_epoch(topic_id="topic-1"), "head-fork new-epoch", 13, "same topic"
    ),
]
