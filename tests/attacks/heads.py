"""What remembers heads, and logs that went back or fork: rows 9 to 12, 25 to 28, 38, 44, 46 and 54."""

import base64
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from custody.keys.trust import TrustedKey
from tests.attacks.registry import LARGE, Apply, attack, end_key, rebuilt
from tests.helpers.archives import (
    ARCHIVE_ID,
    START,
    Builder,
    archive_line,
    compact_json,
    note,
    origin,
    sha,
    tree_hash,
    two_lines,
    with_signatures,
)
from tests.helpers.scene import AUDIT_LOG, LEAVES, MAIN, ORDERS, OTHER_ID, PUBLIC_ID, REPORT, Scene, private, public

OTHER_ARCHIVE = "00000000-0000-4000-8000-000000000000"
_ORIGIN = origin(ARCHIVE_ID, MAIN)


def newest(count: int, *, objects: bool = True, forget: tuple[str, ...] = (), trusted: bool = False) -> Apply:
    """Delete a log's newest statements, what they name, and what remembers them in the archive."""

    def apply(scene: Scene) -> None:
        main = scene.main
        if trusted:
            scene.remember(MAIN)
        for sequence in range(len(main.entries) - count, len(main.entries)):
            main.path(sequence).unlink()
            named = [main.statements[sequence][kind] for kind in ("segment", "quarantine")]
            scene.delete(*(ref["key"] for ref in named if ref and objects))
        for prefix in forget:
            scene.delete(*scene.listed(prefix))

    return apply


def everything(*, but: str = "", trusted: bool = False) -> Apply:
    def apply(scene: Scene) -> None:
        if trusted:
            scene.remember()
        scene.delete(*(key for key in scene.listed() if key != but))

    return apply


def restored(*, trusted: bool = False) -> Apply:
    """Put the older snapshot in the place of all that is there."""

    def apply(scene: Scene) -> None:
        assert scene.older
        if trusted:
            scene.remember()
        scene.delete(*scene.listed())
        for path in scene.older.rglob("*"):
            if path.is_file():
                scene.put(path.relative_to(scene.older).as_posix(), path.read_bytes())

    return apply


def other_writer(statement: dict[str, Any]) -> None:
    statement["writer"] = "somebody else"


def history(*, log: str = MAIN, change_at: int = 3, forget: tuple[str, ...] = (), trusted: bool = False) -> Apply:
    """Rewrite history from a statement on, and let the archive itself forget what remembers the other one."""

    def apply(scene: Scene) -> None:
        if trusted:
            scene.remember(log)
        rebuilt(scene, log, change_at, other_writer)
        for prefix in forget:
            scene.delete(*scene.listed(prefix))

    return apply


def checkpoint(change: Callable[[bytes], bytes]) -> Apply:
    """Change a checkpoint of the main log."""

    def apply(scene: Scene) -> None:
        key = f"checkpoints/{MAIN}/{9:012}"
        scene.put(key, change(scene.read(key)))

    return apply


def without_signature(data: bytes) -> bytes:
    return data.split("—".encode())[0]


def garbled(data: bytes) -> bytes:
    """Change the last byte of a checkpoint's signature."""
    head, _, value = data.removesuffix(b"\n").rpartition(b" ")
    decoded = base64.b64decode(value)
    return head + b" " + base64.b64encode(decoded[:-1] + bytes([decoded[-1] ^ 1])) + b"\n"


def signed_checkpoint(
    size: int = 5, root: bytes | None = None, first_line: str = _ORIGIN, name: str = PUBLIC_ID, signer: str = ""
) -> Apply:
    """Put a checkpoint that says what it likes, signed, into the slot of size 5."""

    def apply(scene: Scene) -> None:
        truth = tree_hash(scene.main.entries[:size])
        scene.put(f"checkpoints/{MAIN}/{5:012}", note(first_line, size, root or truth, private(signer or name), name))

    return apply


def audit(change: Callable[[bytes], bytes], sequence: int = 0) -> Apply:
    def apply(scene: Scene) -> None:
        key = f"audits/{sequence:012}.json"
        scene.put(key, change(scene.read(key)))

    return apply


def audit_removed(sequence: int) -> Apply:
    return lambda scene: scene.delete(f"audits/{sequence:012}.json")


def audits_removed(scene: Scene) -> None:
    """Remove the audits and leave their checkpoints."""
    scene.delete(*scene.listed("audits/"))


def audit_signed_again(sequence: int) -> Apply:
    """Change what an audit said, and sign it again."""

    def apply(scene: Scene) -> None:
        line = compact_json(json.loads(scene.audits[sequence]) | {"verdict": "notices"})
        scene.put(f"audits/{sequence:012}.json", two_lines(line, "custody/audit/1"))

    return apply


def audit_signed_once(index: int) -> Apply:
    """Take one of the two signatures of an audit."""

    def change(data: bytes) -> bytes:
        line, second, _ = data.split(b"\n")
        return with_signatures(line, [json.loads(second)["signatures"][index]])

    return audit(change)


def audit_by_leaked_key(scene: Scene) -> None:
    """Sign an audit with a leaked key, beyond the head of audits at which the key ended."""
    end_key(scene)
    scene.audit()


def audit_passed_over(data: bytes, *, then: bytes | None = None) -> Apply:
    """Put bytes in the next audit's slot that are none, let the audit after it pass over it, and put others there."""

    def apply(scene: Scene) -> None:
        key = f"audits/{len(scene.audits):012}.json"
        scene.pass_over_audit(data)
        scene.audit()
        if then is not None:
            scene.put(key, then)

    return apply


def report(change: Callable[[bytes], bytes]) -> Apply:
    """Change the report that the newest audit refers to."""

    def apply(scene: Scene) -> None:
        (key,) = scene.listed("audits/objects/")
        assert scene.read(key) == REPORT
        scene.put(key, change(REPORT))

    return apply


def listed_report(change: Callable[[Scene, str], object]) -> Apply:
    """Add an audit that refers to a list of objects, and change what the list names."""

    def apply(scene: Scene) -> None:
        data = b"what the newest audit found, for people"
        ref = {"key": f"audits/objects/{sha(data)}", "size": len(data), "sha256": sha(data)}
        listing = compact_json(ref) + b"\n"
        whole = {"key": f"audits/objects/{sha(listing)}", "size": len(listing), "sha256": sha(listing)}
        scene.put(str(ref["key"]), data)
        scene.put(str(whole["key"]), listing)
        scene.audit(lambda statement: statement.update(objects=[whole]))
        change(scene, str(ref["key"]))

    return apply


def copied_checkpoint(scene: Scene) -> None:
    """Put a copy of the newest checkpoint, which a newer key has signed, where the first one would be."""
    newer = TrustedKey(OTHER_ID, "Ed25519", from_=START, material=public(OTHER_ID))
    scene.trust = replace(scene.trust, keys={**scene.trust.keys, OTHER_ID: newer})
    scene.checkpoint(scene.main, name=OTHER_ID)
    scene.put(f"checkpoints/{MAIN}/{1:012}", scene.read(f"checkpoints/{MAIN}/{len(scene.main.entries):012}"))


def checkpoint_beyond_until(scene: Scene) -> None:
    """Sign a checkpoint with a leaked key, beyond the head at which it ended."""
    end_key(scene, PUBLIC_ID)
    scene.main.append(5)
    scene.checkpoint(scene.main)


def forked_checkpoint(scene: Scene) -> None:
    """Sign a checkpoint of a smaller tree with a leaked key. The tree is no prefix of the log's."""
    end_key(scene, PUBLIC_ID)
    signed_checkpoint(root=bytes(32))(scene)


def signed(line: bytes) -> bytes:
    """Sign as whoever holds our keys."""
    return two_lines(line, "custody/archive/1")


def other_archive(archive: str = ARCHIVE_ID, sign: Callable[[bytes], bytes] = signed, **fields: Any) -> Apply:
    """Put another `archive.json` in the place of the one that is pinned."""
    return lambda scene: scene.put("archive.json", sign(archive_line(archive, **fields)))


def known_by_state(apply: Apply) -> Apply:
    """Remove the pin from `trust.json`, so that only the state file knows the archive."""

    def forgetting(scene: Scene) -> None:
        scene.trust = replace(scene.trust, archive=None)
        apply(scene)

    return forgetting


def by_unknown_keys(line: bytes) -> bytes:
    """Sign as somebody whose keys nobody trusts."""
    secret, key_id = b"0" * 32, "hmac-other"
    return two_lines(
        line, "custody/archive/1", secret=secret, key_id=key_id, private=private(OTHER_ID), public_id=OTHER_ID
    )


def unsigned(line: bytes) -> bytes:
    return with_signatures(line, [])


def signature_removed(scene: Scene) -> None:
    """Leave line 1 of `archive.json` as it is, and take its signatures."""
    scene.put("archive.json", unsigned(scene.read("archive.json").split(b"\n")[0]))


def another_log(scene: Scene) -> None:
    """Delete everything, and begin another archive."""
    scene.delete(*scene.listed())
    Builder(scene.root, archive=OTHER_ARCHIVE).init()


OTHER_ARCHIVES = {
    "of another id": other_archive(OTHER_ARCHIVE),
    "of another heartbeat": other_archive(heartbeat=31_000_000),
    "of another retention": other_archive(heartbeat=2_160_000, retention_days=1),
    "unsigned": other_archive(OTHER_ARCHIVE, unsigned),
    "unsigned, of the same id": other_archive(sign=unsigned),
    "signed by unknown keys": other_archive(OTHER_ARCHIVE, by_unknown_keys),
    "signed by unknown keys, of the same id": other_archive(sign=by_unknown_keys),
}
"""What may stand in the place of the `archive.json` that is pinned, and is not it."""


def garbage_checkpoint(scene: Scene) -> None:
    scene.put(f"checkpoints/{MAIN}/{5:012}", b"garbage")


def checkpoint_of_nothing(scene: Scene) -> None:
    scene.put(f"checkpoints/{MAIN}/{0:012}", note(_ORIGIN, 0, bytes(32)))


def bend(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        assert old in data
        return data.replace(old, new, 1)

    return change


def newest_changed(scene: Scene) -> None:
    """Change the newest statement of a log, which a checkpoint covers, and sign it again."""
    builder = scene.logs[LEAVES]
    scene.delete(*scene.listed("audits/"), *scene.listed("checkpoints/audits/"))
    builder.resign(len(builder.entries) - 1, other_writer)


_ALL_BACK = "head-rollback head-rollback audit head-rollback head-rollback"
CHECKPOINTS = f"checkpoints/{MAIN}/"
AUDITS = ("audits/", "checkpoints/audits/")

ATTACKS = [
    attack(9, "newest deleted, by the state file", newest(1), "head-rollback", 13, "the state file", seen=True),
    attack(9, "newest deleted, by trust.json", newest(1, trusted=True), "head-rollback", 13, "trust.json"),
    attack(9, "newest deleted, by a checkpoint", newest(3, forget=AUDITS), "head-rollback", 13, "checkpoint"),
    attack(9, "newest deleted, by an audit", newest(3, forget=(CHECKPOINTS,)), "head-rollback", 13, "audit"),
    attack(
        9, "newest deleted, by all of them, segments left", newest(3, objects=False), "head-rollback", 13, seen=True
    ),
    # That archive.json is gone, and audits with the rest (row 38), is said too.
    attack(10, "everything deleted, by the state file", everything(), _ALL_BACK + " archive", 13, seen=True),
    attack(10, "everything deleted, by trust.json", everything(trusted=True), "head-rollback " * 4 + "archive", 13),
    attack(10, "all but archive.json deleted", everything(but="archive.json"), _ALL_BACK, 13, seen=True),
    attack(11, "older snapshot, by the state file", restored(), _ALL_BACK, 13, seen=True),
    attack(11, "older snapshot, by trust.json", restored(trusted=True), "head-rollback " * 4, 13),
    attack(12, "fork, by the state file", history(change_at=11), "head-fork", 13, seen=True),
    attack(12, "fork, by trust.json", history(change_at=11, trusted=True), "head-fork", 13),
    attack(12, "fork, by an audit", history(change_at=10, forget=(CHECKPOINTS,)), "head-fork", 13, "audit"),
    attack(26, "newest statement changed that a checkpoint covers", newest_changed, "checkpoint", 13),
    attack(27, "history rewritten, by checkpoints", history(forget=AUDITS), "checkpoint checkpoint", 13),
    attack(27, "history rewritten, by an audit", history(forget=(CHECKPOINTS,)), "head-fork", 13),
    attack(27, "history rewritten, by all", history(), "checkpoint head-fork checkpoint", 13),
    attack(
        28,
        "root changed",
        checkpoint(lambda data: b"\n".join([*data.split(b"\n")[:2], b"A" * 43 + b"=", *data.split(b"\n")[3:]])),
        "checkpoint",
        13,
    ),
    attack(28, "size changed", checkpoint(bend(b"\n9\n", b"\n8\n")), "checkpoint", 13, variant=True),
    attack(28, "signature garbled", checkpoint(garbled), "checkpoint", 13),
    attack(28, "of another root", signed_checkpoint(root=bytes(32)), "checkpoint", 13),
    attack(28, "of another size", signed_checkpoint(6), "checkpoint", 13, variant=True),
    attack(28, "of another log", signed_checkpoint(first_line=_ORIGIN[:-1] + "1"), "checkpoint", 13),
    attack(
        28,
        "of another archive",
        signed_checkpoint(first_line=origin(OTHER_ARCHIVE, MAIN)),
        "checkpoint",
        13,
        variant=True,
    ),
    attack(28, "of no statement, and not the empty tree", checkpoint_of_nothing, "checkpoint", 13),
    attack(25, "leaked key beyond its until, an audit", audit_by_leaked_key, "key-span", 13),
    attack(38, "audit changed", audit(bend(b'"verified"', b'"tampered"')), "audit audit audit", 13),
    attack(38, "newest audit changed", audit(bend(b'"verified"', b'"tampered"'), 1), "audit audit audit", 13),
    attack(38, "audit changed and signed again", audit_signed_again(0), "audit", 13),
    attack(38, "newest audit changed and signed again", audit_signed_again(1), "audit", 13),
    attack(38, "audit signed by HMAC alone", audit_signed_once(0), "audit", 13),
    attack(38, "audit signed by Ed25519 alone", audit_signed_once(1), "audit", 13, variant=True),
    attack(38, "audit removed", audit_removed(0), "audit", 13),
    attack(38, "newest audit removed", audit_removed(1), "audit", 13),
    attack(38, "all audits removed", audits_removed, "audit", 13),
    attack(38, "audit that is noise", audit(lambda _: b"noise"), "audit", 13),
    attack(38, "report of an audit changed", report(lambda data: data + b"!"), "audit", 13),
    attack(38, "report of an audit removed", lambda s: s.delete(*s.listed("audits/objects/")), "audit", 13),
    attack(38, "report that a list names, unchanged", listed_report(lambda *_: None), "", 0, variant=True),
    attack(38, "report that a list names, changed", listed_report(lambda s, key: s.put(key, b"!")), "audit", 13),
    attack(38, "report that a list names, removed", listed_report(lambda s, key: s.delete(key)), "audit", 13),
    attack(28, "copy of a checkpoint by a newer key in the place of an older one", copied_checkpoint, "checkpoint", 13),
    attack(44, "leaked key beyond its until, a checkpoint", checkpoint_beyond_until, "key-span", 13),
    attack(
        44,
        "leaked key in a log that until does not list, checkpoints",
        lambda scene: end_key(scene, PUBLIC_ID, but=(ORDERS,)),
        "key-span",
        13,
    ),
    attack(44, "leaked key before its until, a checkpoint of another tree", forked_checkpoint, "key-span", 13),
    attack(
        44,
        "leaked key in the log of audits, which until does not list",
        lambda scene: end_key(scene, PUBLIC_ID, but=(AUDIT_LOG,)),
        "key-span key-span",
        13,
    ),
    *(attack(46, f"archive.json {name}", apply, "archive", 13) for name, apply in OTHER_ARCHIVES.items()),
    *(
        attack(46, f"archive.json {name}, by the state", known_by_state(apply), "archive", 13, seen=True, variant=True)
        for name, apply in OTHER_ARCHIVES.items()
    ),
    attack(46, "archive.json without its signatures", signature_removed, "archive", 13),
    attack(46, "archive.json that is noise", lambda s: s.put("archive.json", b"noise"), "archive", 13),
    attack(46, "another archive in this one's place", another_log, "archive " + _ALL_BACK, 13, seen=True),
    attack(47, "garbage in the next audit's slot", audit_passed_over(b"garbage"), "passed-over", 3),
    attack(59, "more in the next audit's slot than an audit may have", audit_passed_over(LARGE), "passed-over", 3),
    attack(
        59,
        "other bytes since, too many for an audit",
        audit_passed_over(LARGE, then=LARGE + b"x"),
        "audit",
        13,
        "other bytes",
        variant=True,
    ),
    attack(54, "noise", checkpoint(lambda _: b"\x00\xff noise"), "checkpoint", 10),
    attack(54, "noise in a slot that held none", garbage_checkpoint, "checkpoint", 10, variant=True),
    attack(54, "nothing", checkpoint(lambda _: b""), "checkpoint", 10, variant=True),
    attack(54, "signature removed", checkpoint(without_signature), "checkpoint", 10, variant=True),
    attack(54, "signed by another key", signed_checkpoint(name=OTHER_ID), "checkpoint", 10),
    attack(
        54, "signed by another key of the same name", signed_checkpoint(signer=OTHER_ID), "checkpoint", 10, variant=True
    ),
    attack(
        54, "of another root, signed by another key", signed_checkpoint(root=bytes(32), name=OTHER_ID), "checkpoint", 10
    ),
]
