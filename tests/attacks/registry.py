"""What an attack is, and the words that attacks are written in."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from custody.format import limits
from custody.keys.trust import TrustedKey
from custody.store.protocol import Store
from tests.helpers.archives import KEY_ID, Builder, Edit, compact_json, two_lines
from tests.helpers.scene import Scene

Apply = Callable[[Scene], object]

LARGE = b"x" * (limits.FILE_BYTES + 1)
"""More than a statement or an audit may have."""


@dataclass(frozen=True)
class Attack:
    """One row of THREATS.md, or one of the ways of it, and what verification must say."""

    row: int
    name: str
    apply: Apply
    findings: tuple[str, ...]
    """All of them, the first one first."""
    exit_code: int
    says: str = ""
    """Part of the first finding's text."""
    seen: bool = False
    """Whether the verifier saw the archive before, and kept its state file."""
    store: Callable[[Store], Store] | None = None
    """A store that behaves badly, put around the real one."""
    variant: bool = False
    """Whether it is another way of a case that there is already: such a one is made in a folder alone."""

    @property
    def id(self) -> str:
        """The name that pytest shows."""
        return f"{self.row:02} {self.name}"


def attack(row: int, name: str, apply: Apply, findings: str, exit_code: int, says: str = "", **more: Any) -> Attack:
    """Make an attack; findings are named with spaces between."""
    return Attack(row, name, apply, tuple(findings.split()), exit_code, says, **more)


def in_log(apply: Callable[[Builder], object]) -> Apply:
    """Apply an attack to the main log."""
    return lambda scene: apply(scene.main)


def segment(change: Callable[[bytes, list[int]], bytes], sequence: int = 1) -> Apply:
    """Change the bytes of a segment; the ends of its members are known."""

    def apply(scene: Scene) -> None:
        ends = [one["start"] + one["size"] for one in scene.main.statements[sequence]["batches"]]
        path = scene.main.segment(sequence)
        path.write_bytes(change(path.read_bytes(), ends))

    return apply


def forged(**arguments: Any) -> Apply:
    """Append a statement that somebody made who holds the HMAC key: hashes fit what is wrong."""
    return lambda scene: scene.main.append(30, **arguments)


def at(place: int, change: Callable[[bytes], bytes]) -> Callable[[list[bytes]], None]:
    """Change one of a list of members or payloads."""

    def edit(items: list[bytes]) -> None:
        items[place] = change(items[place])

    return edit


def manifest(change: Callable[[bytes], bytes], sequence: int = 3) -> Apply:
    """Change the bytes of a manifest."""

    def apply(scene: Scene) -> None:
        path = scene.main.path(sequence)
        path.write_bytes(change(path.read_bytes()))

    return apply


def signatures(change: Callable[[list[dict[str, Any]]], object], sequence: int = 3) -> Apply:
    """Change the signatures of a manifest."""

    def bend(data: bytes) -> bytes:
        line, second, _ = data.split(b"\n")
        listed = json.loads(second)
        change(listed["signatures"])
        return line + b"\n" + compact_json(listed) + b"\n"

    return manifest(bend, sequence)


def statement(edit: Edit) -> Apply:
    """Append a statement that is changed before it is signed, and a good one after it."""

    def apply(scene: Scene) -> None:
        scene.main.append(20, edit=edit)
        scene.main.append(5)

    return apply


def raw_statement(old: bytes, new: bytes, sequence: int = 3) -> Apply:
    """Change bytes of a statement where it stands, and sign what comes out."""

    def bend(data: bytes) -> bytes:
        line = data.split(b"\n")[0]
        assert old in line
        return two_lines(line.replace(old, new, 1), "custody/manifest/1")

    return manifest(bend, sequence)


def rebuilt(scene: Scene, log: str, change_at: int, edit: Edit) -> None:
    """Change a statement, and write and sign it and all later ones again, each over the tree that follows."""
    builder = scene.logs[log]
    statements = builder.statements[change_at:]
    for listed in (builder.lines, builder.statements, builder.entries):
        del listed[change_at:]
    for sequence, old in enumerate(statements, change_at):
        new = json.loads(json.dumps(old))
        if sequence == change_at:
            edit(new)
        builder.commit(new | {"tree": builder.tree()})


def with_key(scene: Scene, key_id: str = KEY_ID, **changes: Any) -> None:
    """Change what is trusted of a key, the HMAC key if not said."""
    keys = dict(scene.trust.keys)
    keys[key_id] = replace(keys[key_id], **changes)
    scene.trust = replace(scene.trust, keys=keys)


def end_key(scene: Scene, key_id: str = KEY_ID, *, but: tuple[str, ...] = ()) -> None:
    """End a key at the heads as they are; in the logs `but` it ends at size 0, for they are not listed."""
    with_key(scene, key_id, until={name: head for name, head in scene.heads.items() if name not in but})


def without(scene: Scene, *key_ids: str) -> None:
    """Take keys from the verifier."""
    keys: dict[str, TrustedKey] = {name: key for name, key in scene.trust.keys.items() if name not in key_ids}
    scene.trust = replace(scene.trust, keys=keys)


def several(*applied: Apply) -> Apply:
    """Apply one after the other."""

    def apply(scene: Scene) -> None:
        for one in applied:
            one(scene)

    return apply


def members_of(path: Path, batches: list[dict[str, Any]]) -> Iterator[bytes]:
    """Yield the gzip members of a segment."""
    data = path.read_bytes()
    for batch in batches:
        yield data[batch["start"] : batch["start"] + batch["size"]]
