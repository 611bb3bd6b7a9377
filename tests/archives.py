"""A second implementation of FORMAT.md's writing side, small and slow, from the standard library (and Ed25519) alone.

It builds good archives for the verifier's tests, and bent ones: every level (events, members, statements, signatures,
keys of objects) can be changed before the next is made from it, as somebody who holds the HMAC key could. Nothing of
`custody` is used, so where both agree, they agree on the page.
"""

import base64
import gzip
import hashlib
import hmac
import json
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.corpus import EVENTS, compact

ARCHIVE_ID = "5a0c7a1e-1111-4222-8333-94b1ce1d2f3a"
KEY_ID = "key-2026"
SECRET = bytes(range(32))
START = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
HEARTBEAT = 3600
NOTE_KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32, 64)))
NOTE_NAME = "public"
NOTE_PUBLIC = NOTE_KEY.public_key().public_bytes_raw()


def time_text(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def tree_hash(leaves: Sequence[bytes]) -> bytes:
    """RFC 6962, 2.1, as it is written there."""
    if not leaves:
        return hashlib.sha256().digest()
    if len(leaves) == 1:
        return hashlib.sha256(b"\x00" + leaves[0]).digest()
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    return hashlib.sha256(b"\x01" + tree_hash(leaves[:split]) + tree_hash(leaves[split:])).digest()


def tree_edge(leaves: Sequence[bytes]) -> list[str]:
    edge, start = [], 0
    for bit in reversed(range(len(leaves).bit_length())):
        if len(leaves) >> bit & 1:
            edge.append(tree_hash(leaves[start : start + (1 << bit)]).hex())
            start += 1 << bit
    return edge


def member(payload: bytes, level: int = 6) -> bytes:
    return gzip.compress(payload, level, mtime=0)


def event(offset: int, moment: datetime | None = None, **more: Any) -> bytes:
    """A good event, its type and text told by its offset."""
    types = list(EVENTS)
    fields = EVENTS[types[offset % len(types)]]
    moment = moment or START + timedelta(milliseconds=17 * offset)
    return compact(fields | {"timestamp": time_text(moment), "request_id": f"request-{offset}"} | more)


def ranges(offsets: Sequence[int]) -> list[list[int]]:
    merged: list[list[int]] = []
    for offset in sorted(offsets):
        if merged and merged[-1][1] == offset:
            merged[-1][1] += 1
        else:
            merged.append([offset, offset + 1])
    return merged


def edit_nothing(_: Any) -> None:
    pass


@dataclass
class Builder:
    """Writes one log of an archive in a folder."""

    root: Path
    topic: str = "audit"
    partition: int = 0
    life: int = 1
    archive: str = ARCHIVE_ID
    secret: bytes = SECRET
    key_id: str = KEY_ID
    after: dict[str, Any] | None = None
    next_offset: int = 100
    lines: list[bytes] = field(default_factory=list)
    """The statements."""
    statements: list[dict[str, Any]] = field(default_factory=list)
    batches: int = 0
    clock: datetime = START + timedelta(hours=1)

    @property
    def log(self) -> str:
        return self.topic if self.life == 1 else f"{self.topic}@{self.life}"

    @property
    def name(self) -> str:
        return f"{self.log}/{self.partition}"

    @property
    def head(self) -> tuple[int, bytes]:
        return len(self.lines), tree_hash(self.lines)

    def checkpoint(self, size: int | None = None, root: bytes | None = None) -> str:
        """Write the checkpoint of the first statements, as C2SP has it, and return its key."""
        size = len(self.lines) if size is None else size
        root = tree_hash(self.lines[:size]) if root is None else root
        text = f"{NOTE_NAME}/{self.archive}/{self.name}\n{size}\n{base64.b64encode(root).decode()}\n".encode()
        hint = hashlib.sha256(f"{NOTE_NAME}\n\x01".encode() + NOTE_PUBLIC).digest()[:4]
        signature = base64.b64encode(hint + NOTE_KEY.sign(text)).decode()
        key = f"checkpoints/{self.name}/{size:012}"
        self.put(key, text + f"\n\u2014 {NOTE_NAME} {signature}\n".encode())
        return key

    def init(self, **fields: Any) -> "Builder":
        document = {
            "format": "custody/archive/1",
            "archive": self.archive,
            "created": time_text(START),
            "heartbeat": HEARTBEAT,
        }
        self.put("archive.json", json.dumps(document | fields, separators=(",", ":")).encode())
        return self

    def put(self, key: str, data: bytes) -> None:
        path = self.root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def path(self, sequence: int) -> Path:
        return self.root / f"manifests/{self.log}/{self.partition}/{sequence:012}.json"

    def segment(self, sequence: int) -> Path:
        return self.root / self.statements[sequence]["segment"]["key"]

    def records_key(self, kind: str, first: int, last: int, data: bytes) -> str:
        name = f"{self.log}-{self.partition}-{first:020}-{last:020}-{sha(data)[:16]}.jsonl.gz"
        return f"{kind}/{START:%Y/%m/%d/%H/%M/%S}-{name}"

    def quarantined(self, offset: int, value: bytes = b"no event") -> bytes:
        record = {
            "offset": offset,
            "timestamp": int(START.timestamp() * 1000) + offset,
            "key": None,
            "value": base64.b64encode(value).decode(),
            "headers": [["trace", base64.b64encode(b"\x00\xff").decode()], ["none", None]],
            "error": "not JSON",
        }
        return json.dumps(record, separators=(",", ":")).encode()

    def append(
        self,
        count: int = 0,
        *,
        batch: int = 10,
        skip: Sequence[int] = (),
        quarantine: Sequence[int] = (),
        lose: int = 0,
        tail: int = 0,
        expired: list[int] | None = None,
        step: timedelta = timedelta(seconds=15),
        events: Callable[[int], bytes] = event,
        pack: Callable[[bytes], bytes] = member,
        edit_payloads: Callable[[list[bytes]], None] = edit_nothing,
        edit_members: Callable[[list[bytes]], None] = edit_nothing,
        edit: Callable[[dict[str, Any]], None] = edit_nothing,
    ) -> dict[str, Any]:
        """Append one statement for the next `count` offsets (after `lose` lost ones), and write what it names.

        Offsets relative to the first that is not lost may be skipped or quarantined; `tail` skipped ones follow.
        """
        first = self.next_offset
        start = first + lose
        skipped = [start + one for one in skip] + list(range(start + count, start + count + tail))
        bad = [start + one for one in quarantine]
        offsets = [one for one in range(start, start + count) if one not in skipped and one not in bad]
        groups = [offsets[i : i + batch] for i in range(0, len(offsets), batch)]
        rows = [[events(one) for one in group] for group in groups]
        payloads = [b"".join(row + b"\n" for row in group) for group in rows]
        edit_payloads(payloads)
        members = [pack(payload) for payload in payloads]
        edit_members(members)
        listed, types, place = [], Counter[str](), 0
        for group, lines, payload, packed in zip(groups, rows, payloads, members, strict=True):
            parsed = [json.loads(line) for line in lines]
            types.update(one["event_type"] for one in parsed)
            times = sorted(one["timestamp"] for one in parsed)
            listed.append(
                {
                    "number": self.batches,
                    "first_offset": group[0],
                    "next_offset": group[-1] + 1,
                    "events": len(group),
                    "start": place,
                    "size": len(packed),
                    "inflated": len(payload),
                    "sha256": sha(payload),
                    "min_time": times[0],
                    "max_time": times[-1],
                    "kafka_time": {"type": "create", "min": 1_772_366_400_000, "max": 1_772_366_400_999},
                }
            )
            self.batches += 1
            place += len(packed)
        records = sorted(offsets + bad)
        segment = quarantined = None
        if members:
            data = b"".join(members)
            key = self.records_key("events", records[0], records[-1], data)
            self.put(key, data)
            segment = {"key": key, "size": len(data), "sha256": sha(data)}
        if bad:
            payload = b"".join(self.quarantined(one) + b"\n" for one in bad)
            data = member(payload)
            key = self.records_key("quarantine", records[0], records[-1], data)
            self.put(key, data)
            quarantined = {
                "key": key,
                "size": len(data),
                "sha256": sha(data),
                "inflated": len(payload),
                "records": len(bad),
                "offsets": ranges(bad),
            }
        sequence = len(self.lines)
        statement = {
            "format": "custody/manifest/1",
            "archive": self.archive,
            "log": {
                "cluster": "cluster-1",
                "topic": self.topic,
                "topic_id": f"topic-{self.life}",
                "partition": self.partition,
                "life": self.life,
            },
            "sequence": sequence,
            "tree": {"size": sequence, "root": tree_hash(self.lines).hex(), "edge": tree_edge(self.lines)},
            "after": self.after if sequence == 0 else None,
            "first_offset": first,
            "next_offset": start + count + tail,
            "skipped": ranges(skipped),
            "lost": [first, start] if lose else None,
            "sealed_at": time_text(self.clock),
            "writer": "tests/archives.py 1, localhost, run 1",
            "segment": segment,
            "batches": listed,
            "quarantine": quarantined,
            "expired": expired,
            "types": dict(sorted(types.items())),
        }
        self.clock += step
        edit(statement)
        self.commit(statement)
        self.next_offset = statement["next_offset"]
        return statement

    def commit(self, statement: dict[str, Any]) -> None:
        """Sign a statement and put it in the next place."""
        line = json.dumps(statement, separators=(",", ":")).encode()
        self.put(str(self.path(len(self.lines)).relative_to(self.root)), self.sign(line))
        self.lines.append(line)
        self.statements.append(statement)

    def resign(self, sequence: int, edit: Callable[[dict[str, Any]], None]) -> None:
        """Change a statement where it stands, and sign it again."""
        statement = json.loads(self.path(sequence).read_bytes().split(b"\n")[0])
        edit(statement)
        self.path(sequence).write_bytes(self.sign(json.dumps(statement, separators=(",", ":")).encode()))

    def sign(self, line: bytes, **fields: Any) -> bytes:
        """Return the two lines."""
        text = f"custody/manifest/1\n{sha(line)}\n".encode()
        value = base64.b64encode(hmac.digest(self.secret, text, "sha256")).decode()
        signature = {"key": self.key_id, "algorithm": "HMAC-SHA256", "value": value} | fields
        return line + b"\n" + json.dumps({"signatures": [signature]}, separators=(",", ":")).encode() + b"\n"

    def copy(self, root: Path) -> "Builder":
        """Return this builder over a copy of its archive."""
        shutil.copytree(self.root, root)
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return Builder(**fields | {"root": root, "lines": list(self.lines), "statements": list(self.statements)})


def good(root: Path) -> Builder:
    """A log that shows all that a good one may hold."""
    builder = Builder(root).init()
    builder.append()
    builder.append(35)
    builder.append(30, skip=[4, 5, 29], quarantine=[0, 11, 12], tail=2)
    builder.append(0)
    builder.append(12, quarantine=[11])
    builder.append(0, tail=3)
    builder.append(3, quarantine=[0, 1, 2])
    builder.append(20, batch=7)
    builder.append(25)
    return builder
