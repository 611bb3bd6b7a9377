"""The good archive that attacks are applied to, written by `tests/helpers/archives.py` and this page of FORMAT.md.

It holds what an archive may hold: four logs of three topics, segments of several batches, quarantine with records too
large to be kept, skipped offsets, heartbeats, leaves, statements of expiry with the objects gone that they let go,
checkpoints, audits and their objects, tables. Nothing of `custody` is used but to say what a verifier is given.
"""

import json
import shutil
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from custody.format.archive_file import Pin
from custody.keys.secret import Secret
from custody.keys.trust import Trust, TrustedKey
from custody.tlog.head import Head
from tests.helpers.archives import (
    ARCHIVE_ID,
    KEY_ID,
    LEAVES_ID,
    LEAVES_SECRET,
    NOTE_KEY,
    NOTE_NAME,
    SECRET,
    START,
    Builder,
    Edit,
    compact_json,
    good,
    message,
    note,
    origin,
    passed_over,
    sha,
    time_text,
    tree_hash,
    tree_range,
    two_lines,
)

RETENTION_DAYS = 30
"""What the verifier asks for."""
ARCHIVE_RETENTION_DAYS = 20
"""What `archive.json` asks for: less, so that the verifier's counts."""
HEARTBEAT = timedelta(days=25)
CHECKPOINT = timedelta(hours=1)
LONG_AGO = START - timedelta(days=45)
"""Beyond the retention, and not so long that a log is silent for two heartbeats."""
PUBLIC_ID = NOTE_NAME
NEWER_ID, NEWER_SECRET = "key-2027", b"7" * 32
OTHER_ID = "ed25519-other"
"""A key that nobody trusts."""
_PRIVATE = {PUBLIC_ID: NOTE_KEY, OTHER_ID: Ed25519PrivateKey.from_private_bytes(bytes(range(50, 82)))}

MAIN = "audit/0"
"""The log that most attacks are made on: it holds all but leaves, and one statement that no checkpoint covers."""
LEAVES = "audit/1"
"""The log whose batches commit to each event alone."""
ORDERS = "orders/0"
OLD = "old/0"
"""The log of which objects have expired."""
AUDIT_LOG = "audits/0"
"""What checkpoints and heads call the log of audits."""
REPORT = b"what the first audit found, for people"


def private(name: str = PUBLIC_ID) -> Ed25519PrivateKey:
    return _PRIVATE[name]


def public(name: str = PUBLIC_ID) -> bytes:
    return private(name).public_key().public_bytes_raw()


def pin(root: Path) -> Pin:
    """Return what a verifier pins of the archive in a folder."""
    line = (root / "archive.json").read_bytes().split(b"\n")[0]
    return Pin(json.loads(line)["archive"], sha(line))


KEYS = {
    KEY_ID: TrustedKey(KEY_ID, "HMAC-SHA256", material=Secret(SECRET)),
    PUBLIC_ID: TrustedKey(PUBLIC_ID, "Ed25519", material=public()),
    NEWER_ID: TrustedKey(NEWER_ID, "HMAC-SHA256", from_=START, material=Secret(NEWER_SECRET)),
}
"""What a verifier trusts that may know all secrets."""


@dataclass
class Scene:
    """An archive in a folder, who wrote it, and what a verifier of it is given."""

    root: Path
    logs: dict[str, Builder]
    audits: list[bytes] = field(default_factory=list)
    """Line 1 of each audit; empty for a slot that was passed over."""
    audit_entries: list[bytes] = field(default_factory=list)
    """The entries of the audits' tree."""
    audits_passed: list[str] = field(default_factory=list)
    """Digests of the slots that the next audit passes over."""
    trust: Trust = field(default_factory=Trust)
    options: dict[str, Any] = field(default_factory=dict)
    """More for `verify`."""
    older: Path | None = None
    """A snapshot of the archive, from before its last hours."""
    expired: dict[str, bytes] = field(default_factory=dict)
    """What was deleted when its time had come."""

    @property
    def main(self) -> Builder:
        return self.logs[MAIN]

    @property
    def heads(self) -> dict[str, Head]:
        """The heads of all logs as they are, of the log of audits too."""
        audits = Head(len(self.audit_entries), tree_hash(self.audit_entries))
        return {name: Head(*log.head) for name, log in self.logs.items()} | {AUDIT_LOG: audits}

    @property
    def now(self) -> datetime:
        return max(log.clock for log in self.logs.values())

    def copy(self, root: Path) -> "Scene":
        """Return a scene that may be changed."""
        shutil.copytree(self.root, root)
        own: dict[str, Any] = {name: list(getattr(self, name)) for name in ("audits", "audit_entries", "audits_passed")}
        logs = {name: log.at(root) for name, log in self.logs.items()}
        return replace(self, root=root, logs=logs, options=dict(self.options), **own)

    def put(self, key: str, data: bytes) -> None:
        self.main.put(key, data)

    def read(self, key: str) -> bytes:
        return (self.root / key).read_bytes()

    def expire(self, *keys: str) -> None:
        """Delete what may go, and keep it in mind."""
        self.expired |= {key: self.read(key) for key in keys}
        self.delete(*keys)

    def delete(self, *keys: str) -> None:
        for key in keys:
            (self.root / key).unlink()

    def listed(self, prefix: str = "") -> list[str]:
        """Return the keys of all objects that begin so, sorted."""
        found = (path.relative_to(self.root).as_posix() for path in self.root.rglob("*") if path.is_file())
        return sorted(key for key in found if key.startswith(prefix))

    def remember(self, *names: str) -> None:
        """Put the heads of some logs into trust.json, of all if none is named."""
        heads = {name: Head(*self.logs[name].head) for name in names or self.logs}
        self.trust = replace(self.trust, heads=heads)

    def checkpoint(self, log: Builder, size: int | None = None, name: str = PUBLIC_ID) -> str:
        """Write a checkpoint of a log's first statements, of all of them if not said; return its key."""
        return replace(log, private=private(name), public_id=name).checkpoint(size)

    def audit(self, edit: Edit | None = None, **keys: Any) -> None:
        """Write an audit of the heads as they are, by `keys` if not by the usual ones, and the checkpoint after it."""
        before: dict[str, Any] = next((json.loads(line)["heads"] for line in reversed(self.audits) if line), {})
        heads = {name: {"size": log.head[0], "root": log.head[1].hex()} for name, log in sorted(self.logs.items())}
        report = f"audits/objects/{sha(REPORT)}"
        if self.audits:
            self.put(report, REPORT)
        size = len(self.audit_entries)
        statement: dict[str, Any] = {
            "format": "custody/audit/1",
            "archive": ARCHIVE_ID,
            "sequence": size,
            "tree": {
                "size": size,
                "root": tree_hash(self.audit_entries).hex(),
                "compact_range": tree_range(self.audit_entries),
            },
            "passed_over": self.audits_passed,
            "started_at": time_text(self.now),
            "sealed_at": time_text(self.now + timedelta(seconds=1)),
            "writer": "tests/helpers/scene.py 1, localhost, run 1",
            "heads": heads,
            "covered": {
                name: [{"from": before.get(name, {"size": 0})["size"], "to": head["size"], "read": "new"}]
                for name, head in heads.items()
                if before.get(name, {"size": 0})["size"] < head["size"]
            },
            "marks": {
                name: {
                    "expired": max((one["expired"][1] for one in log.statements if one.get("expired")), default=0),
                    "reread": 0,
                    "reread_at": time_text(START),
                    "indexed": 0,
                }
                for name, log in sorted(self.logs.items())
            },
            "counts": {"events": 0, "findings": 0},
            "findings": [],
            "objects": [{"key": report, "size": len(REPORT), "sha256": sha(REPORT)}] if self.audits else [],
            "verdict": "verified",
        }
        if edit:
            edit(statement)
        line = compact_json(statement)
        self.put(f"audits/{size:012}.json", two_lines(line, "custody/audit/1", **keys))
        self.audits.append(line)
        self.audit_entries.append(message(line, "custody/audit/1"))
        self.audits_passed = []
        self.audits_checkpoint()

    def audits_checkpoint(self) -> None:
        """Write the checkpoint of all audits."""
        size = len(self.audit_entries)
        data = note(origin(ARCHIVE_ID, AUDIT_LOG), size, tree_hash(self.audit_entries))
        self.put(f"checkpoints/{AUDIT_LOG}/{size:012}", data)

    def pass_over_audit(self, data: bytes = b"garbage") -> None:
        """Put bytes into the next slot that are no audit, and let the next audit pass over it."""
        self.put(f"audits/{len(self.audit_entries):012}.json", data)
        self.audits.append(b"")
        self.audit_entries.append(passed_over(data))
        self.audits_passed = [*self.audits_passed, sha(data)]


def build(folder: Path) -> Scene:
    """Write the good archive, and a snapshot of it in between."""
    root = folder / "archive"
    main = good(root)
    main.init(
        heartbeat=int(HEARTBEAT.total_seconds()),
        checkpoint=int(CHECKPOINT.total_seconds()),
        retention_days=ARCHIVE_RETENTION_DAYS,
    )
    leaves = Builder(root, partition=1, leaves_secret=LEAVES_SECRET)
    orders = Builder(root, topic="orders")
    old = Builder(root, topic="old", clock=LONG_AGO)
    scene = Scene(root, {MAIN: main, LEAVES: leaves, ORDERS: orders, OLD: old})
    leaves.append()
    leaves.append(12, batch=5, skip=[3])
    orders.append()
    orders.append(15)
    # A month and a half later what it says may go is gone.
    old.append()
    old.append(5, quarantine=[2])
    old.append(5)
    old.clock = START + timedelta(hours=1)
    old.append(expired=[0, 2])
    scene.expire(old.statements[1]["segment"]["key"], old.statements[1]["quarantine"]["key"])
    old.append(expired=[2, 3])
    scene.expire(old.statements[2]["segment"]["key"])
    for log in scene.logs.values():
        scene.checkpoint(log)
    scene.audit()
    scene.older = folder / "older"
    shutil.copytree(root, scene.older)
    main.append(12, quarantine=[5])
    main.append(0)
    leaves.append(8)
    orders.append(20, skip=[0])
    old.append(10)
    for log in scene.logs.values():
        scene.checkpoint(log)
    scene.audit()
    # One statement that no checkpoint and no audit knows yet.
    main.append(10)
    scene.put("tables/day=2026-03-01/audit-0.parquet", b"made from the archive")
    scene.trust = Trust(
        archive=pin(root), keys=KEYS, leaves={LEAVES_ID: Secret(LEAVES_SECRET)}, retention_days=RETENTION_DAYS
    )
    return scene
