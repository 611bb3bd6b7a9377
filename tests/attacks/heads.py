"""Rows 9 to 12, 26 to 28 and 38: logs that went back or fork, and the memories of heads that notice it."""

import json
from collections.abc import Callable
from typing import Any

from custody.trust import Head
from tests.archives import ARCHIVE_ID, tree_hash
from tests.attacks.archive import MAIN, OTHER_ID, PUBLIC_ID, SIGNED, Scene, note, two_lines
from tests.attacks.registry import Apply, attack, rebuilt, with_key

_ORIGIN = f"{PUBLIC_ID}/{ARCHIVE_ID}/{MAIN}"


def newest(count: int, *, objects: bool = True, forget: tuple[str, ...] = (), trusted: bool = False) -> Apply:
    """Delete a log's newest statements, what they name, and what remembers them in the archive."""

    def apply(scene: Scene) -> None:
        main = scene.main
        if trusted:
            scene.remember(MAIN)
        for sequence in range(len(main.lines) - count, len(main.lines)):
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


def signed_checkpoint(size: int, root: bytes | None = None, origin: str = _ORIGIN, name: str = PUBLIC_ID) -> Apply:
    """Put a checkpoint that says what it likes, signed."""

    def apply(scene: Scene) -> None:
        truth = tree_hash(scene.main.lines[:size])
        scene.put(f"checkpoints/{MAIN}/{5:012}", note(origin, size, root or truth, name))

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


def audit_signed_again(scene: Scene) -> None:
    """Change what an audit said, and sign it again."""
    statement = json.loads(scene.audits[0])
    statement["verdict"] = "notices"
    line = json.dumps(statement, separators=(",", ":")).encode()
    scene.put(f"audits/{0:012}.json", two_lines(line, "custody/audit/1", ed25519=True))


def newest_audit_signed_again(scene: Scene) -> None:
    statement = json.loads(scene.audits[1])
    statement["verdict"] = "notices"
    line = json.dumps(statement, separators=(",", ":")).encode()
    scene.put(f"audits/{1:012}.json", two_lines(line, "custody/audit/1", ed25519=True))


def audit_by_leaked_key(scene: Scene) -> None:
    """Let somebody who has a leaked key sign an audit, beyond the head of audits at which the key ended."""
    with_key(scene, until={"audits/0": Head(len(scene.audits), tree_hash(scene.audits))})
    scene.audit()
    key = f"audits/{len(scene.audits) - 1:012}.json"
    scene.put(key, two_lines(scene.audits[-1], "custody/audit/1"))
    scene.delete(f"checkpoints/audits/0/{len(scene.audits):012}")


def heartbeat_signed(seconds: int) -> Apply:
    """Let the audits begin anew, signed by who has the key, with a heartbeat that hides any silence."""

    def apply(scene: Scene) -> None:
        scene.options["live"] = True
        scene.delete(*scene.listed("audits/"), *scene.listed("checkpoints/audits/"))
        scene.audits.clear()
        scene.audit(lambda statement: statement["counts"].update(heartbeat=seconds))

    return apply


def checkpoint_of_nothing(scene: Scene) -> None:
    scene.put(f"checkpoints/{MAIN}/{0:012}", note(_ORIGIN, 0, bytes(32)))


def bend(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        assert old in data
        return data.replace(old, new, 1)

    return change


def newest_changed(scene: Scene) -> None:
    """Change the newest statement of a log, which a checkpoint covers, and sign it again."""
    builder = scene.logs[SIGNED]
    scene.delete(*scene.listed("audits/"), *scene.listed("checkpoints/audits/"))
    builder.resign(len(builder.lines) - 1, other_writer)


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
    attack(28, "signature garbled", checkpoint(lambda data: data[:-10] + b"AAAAAAA=\n"), "checkpoint", 13),
    attack(
        28, "signature removed", checkpoint(lambda data: data.split("—".encode())[0]), "checkpoint", 13, variant=True
    ),
    attack(28, "noise", checkpoint(lambda _: b"\x00\xff noise"), "checkpoint", 13),
    attack(28, "nothing", checkpoint(lambda _: b""), "checkpoint", 13, variant=True),
    attack(
        28,
        "signed by another key",
        signed_checkpoint(5, name=OTHER_ID, origin=f"{OTHER_ID}/{ARCHIVE_ID}/{MAIN}"),
        "checkpoint",
        13,
    ),
    attack(28, "of another root", signed_checkpoint(5, bytes(32)), "checkpoint", 13),
    attack(28, "of another size", signed_checkpoint(6), "checkpoint", 13, variant=True),
    attack(28, "of another log", signed_checkpoint(5, origin=_ORIGIN[:-1] + "1"), "checkpoint", 13),
    attack(
        28,
        "of another archive",
        signed_checkpoint(5, origin=_ORIGIN.replace(ARCHIVE_ID, "0" * 8 + ARCHIVE_ID[8:])),
        "checkpoint",
        13,
        variant=True,
    ),
    attack(28, "of no statement, and not the empty tree", checkpoint_of_nothing, "checkpoint", 13),
    attack(25, "leaked key beyond its until, an audit", audit_by_leaked_key, "key-span", 13),
    attack(38, "heartbeat beyond any time", heartbeat_signed(2**62), "audit", 13, "a heartbeat", variant=True),
    attack(38, "heartbeat beyond half of time", heartbeat_signed(8 * 10**13), "audit", 13, "a heartbeat", variant=True),
    attack(38, "heartbeat of no time", heartbeat_signed(0), "audit", 13, "a heartbeat", variant=True),
    attack(38, "audit changed", audit(bend(b'"verified"', b'"tampered"')), "audit audit audit", 13),
    attack(38, "newest audit changed", audit(bend(b'"verified"', b'"tampered"'), 1), "audit audit audit", 13),
    attack(38, "audit changed and signed again", audit_signed_again, "audit", 13),
    attack(38, "newest audit changed and signed again", newest_audit_signed_again, "audit", 13),
    attack(38, "audit removed", audit_removed(0), "audit", 13),
    attack(38, "newest audit removed", audit_removed(1), "audit", 13),
    attack(38, "all audits removed", audits_removed, "audit", 13),
    attack(38, "audit that is noise", audit(lambda _: b"noise"), "audit", 13),
]
