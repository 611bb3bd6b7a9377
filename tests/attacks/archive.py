"""The good archive that attacks are applied to, written by `tests/archives.py` and this page of FORMAT.md alone.

It holds what an archive may hold: four logs of three topics, segments of several batches, quarantine, skipped offsets,
heartbeats, statements of expiry with the objects gone that they let go, Ed25519 signatures beside the HMAC,
checkpoints, audits, tables. Nothing of `custody` is used but to say what a verifier is given.
"""

import base64
import copy
import hashlib
import hmac
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from custody.keys import Secret
from custody.trust import Head, Trust, TrustedKey
from tests.archives import ARCHIVE_ID, KEY_ID, SECRET, START, Builder, good, sha, time_text, tree_edge, tree_hash

RETENTION_DAYS = 30
HEARTBEAT = timedelta(days=25)
LONG_AGO = START - timedelta(days=45)
"""Beyond the retention, and not so long that a log is silent for two heartbeats."""
PUBLIC_ID = "ed25519-2026"
NEWER_ID, NEWER_SECRET = "key-2027", b"7" * 32
OTHER_ID = "ed25519-other"
_SEEDS = {PUBLIC_ID: bytes(range(100, 132)), OTHER_ID: bytes(range(50, 82))}

MAIN = "audit/0"
"""The log that most attacks are made on: it holds everything, and one statement that no checkpoint covers."""
SIGNED = "audit/1"
"""The log that is signed with Ed25519 as well."""
ORDERS = "orders/0"
OLD = "old/0"
"""The log of which objects have expired."""


def private(name: str = PUBLIC_ID) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(_SEEDS[name])


def public(name: str = PUBLIC_ID) -> bytes:
    return private(name).public_key().public_bytes_raw()


def two_lines(line: bytes, what: str, *, ed25519: bool = False, secret: bytes = SECRET, key_id: str = KEY_ID) -> bytes:
    """Sign a statement or an audit, FORMAT.md's way."""
    text = f"{what}\n{sha(line)}\n".encode()
    value = base64.b64encode(hmac.digest(secret, text, "sha256")).decode()
    signatures = [{"key": key_id, "algorithm": "HMAC-SHA256", "value": value}]
    if ed25519:
        value = base64.b64encode(private().sign(text)).decode()
        signatures.append({"key": PUBLIC_ID, "algorithm": "Ed25519", "value": value})
    return line + b"\n" + json.dumps({"signatures": signatures}, separators=(",", ":")).encode() + b"\n"


def note(origin: str, size: int, root: bytes, name: str = PUBLIC_ID) -> bytes:
    """Return a checkpoint as C2SP's signed-note and tlog-checkpoint have it."""
    text = f"{origin}\n{size}\n{base64.b64encode(root).decode()}\n"
    key_hash = hashlib.sha256(name.encode() + b"\n\x01" + public(name)).digest()[:4]
    signature = base64.b64encode(key_hash + private(name).sign(text.encode())).decode()
    return f"{text}\n— {name} {signature}\n".encode()


@dataclass
class SignedLog(Builder):
    """A log that is signed with Ed25519 beside the HMAC."""

    def sign(self, line: bytes, **fields: Any) -> bytes:
        assert not fields
        return two_lines(line, "custody/manifest/1", ed25519=True, secret=self.secret, key_id=self.key_id)


@dataclass
class Scene:
    """An archive in a folder, who wrote it, and what a verifier of it is given."""

    root: Path
    logs: dict[str, Builder]
    audits: list[bytes] = field(default_factory=list)
    """The audits' statements."""
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
    def now(self) -> datetime:
        return max(log.clock for log in self.logs.values())

    def copy(self, root: Path) -> "Scene":
        """Return a scene that may be changed."""
        shutil.copytree(self.root, root)
        logs = {
            name: replace(log, root=root, lines=list(log.lines), statements=copy.deepcopy(log.statements))
            for name, log in self.logs.items()
        }
        return replace(self, root=root, logs=logs, audits=list(self.audits), options=dict(self.options))

    def put(self, key: str, data: bytes) -> None:
        path = self.root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

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
        """Let trust.json know the heads of some logs, of all if none is named."""
        heads = {name: Head(*self.logs[name].head) for name in names or self.logs}
        self.trust = replace(self.trust, heads=heads)

    def checkpoint(self, log: Builder, size: int | None = None, name: str = PUBLIC_ID) -> str:
        """Write a checkpoint of a log's first statements, of all of them if not said; return its key."""
        lines = log.lines[:size]
        key = f"checkpoints/{log.name}/{len(lines):012}"
        self.put(key, note(f"{name}/{log.archive}/{log.name}", len(lines), tree_hash(lines), name))
        return key

    def audit(self, edit: Callable[[dict[str, Any]], object] | None = None) -> None:
        """Write an audit of the heads as they are, and the checkpoint after it."""
        before = json.loads(self.audits[-1])["heads"] if self.audits else {}
        heads = {name: {"size": log.head[0], "root": log.head[1].hex()} for name, log in sorted(self.logs.items())}
        statement: dict[str, Any] = {
            "format": "custody/audit/1",
            "archive": ARCHIVE_ID,
            "sequence": len(self.audits),
            "tree": {
                "size": len(self.audits),
                "root": tree_hash(self.audits).hex(),
                "edge": tree_edge(self.audits),
            },
            "started_at": time_text(self.now),
            "sealed_at": time_text(self.now + timedelta(seconds=1)),
            "writer": "tests/attacks/archive.py 1, localhost, run 1",
            "heads": heads,
            "covered": {
                name: [{"from": before.get(name, {"size": 0})["size"], "to": head["size"], "read": "new"}]
                for name, head in heads.items()
                if before.get(name, {"size": 0})["size"] < head["size"]
            },
            "counts": {"events": 0, "findings": 0, "heartbeat": int(HEARTBEAT.total_seconds())},
            "findings": [],
            "verdict": "verified",
        }
        if edit:
            edit(statement)
        line = json.dumps(statement, separators=(",", ":")).encode()
        self.put(f"audits/{len(self.audits):012}.json", two_lines(line, "custody/audit/1", ed25519=True))
        self.audits.append(line)
        size = len(self.audits)
        origin = f"{PUBLIC_ID}/{ARCHIVE_ID}/audits/0"
        self.put(f"checkpoints/audits/0/{size:012}", note(origin, size, tree_hash(self.audits)))


def build(folder: Path) -> Scene:
    """Write the good archive, and a snapshot of it in between."""
    root = folder / "archive"
    main = good(root)
    main.init(heartbeat=int(HEARTBEAT.total_seconds()))
    signed = SignedLog(root, partition=1)
    orders = Builder(root, topic="orders")
    old = Builder(root, topic="old", clock=LONG_AGO)
    scene = Scene(root, {MAIN: main, SIGNED: signed, ORDERS: orders, OLD: old})
    signed.append()
    signed.append(12, skip=[3])
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
    signed.append(8)
    orders.append(20, skip=[0])
    old.append(10)
    for log in scene.logs.values():
        scene.checkpoint(log)
    scene.audit()
    # One statement that no checkpoint and no audit knows yet.
    main.append(10)
    scene.put("tables/day=2026-03-01/audit-0.parquet", b"made from the archive")
    scene.trust = Trust(
        archive=ARCHIVE_ID,
        keys={
            KEY_ID: TrustedKey(KEY_ID, "HMAC-SHA256", material=Secret(SECRET)),
            PUBLIC_ID: TrustedKey(PUBLIC_ID, "Ed25519", material=public()),
            NEWER_ID: TrustedKey(NEWER_ID, "HMAC-SHA256", from_=START, material=Secret(NEWER_SECRET)),
        },
        retention_days=RETENTION_DAYS,
    )
    return scene
