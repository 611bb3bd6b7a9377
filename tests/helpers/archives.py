"""A second implementation of FORMAT.md's writing side, small and slow, from the standard library (and Ed25519) alone.

It builds good archives for the verifier's tests, and bent ones: every level (events, members, statements, signatures,
keys of objects) can be changed before the next is made from it, as somebody who holds the HMAC key could. Nothing of
`custody` is used, so where both agree, they agree on the page.

The tree's entries are the signed messages: 84 bytes for a manifest, another form for a slot that was passed over.
"""

import base64
import copy
import gzip
import hashlib
import hmac
import json
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.helpers.corpus import EVENTS, compact

ARCHIVE_ID = "5a0c7a1e-1111-4222-8333-94b1ce1d2f3a"
KEY_ID = "key-2026"
SECRET = bytes(range(32))
LEAVES_ID = "leaves-2026"
LEAVES_SECRET = bytes(range(64, 96))
START = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
HEARTBEAT = 3600
CHECKPOINT = 3600
RETENTION_DAYS = 1
LEADER_EPOCH = 3
OMIT_ABOVE = 8 << 20
"""Bytes of a quarantined record's key, value and headers together, above which its line holds their digests alone."""
NOTE_KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32, 64)))
NOTE_NAME = "public"
NOTE_PUBLIC = NOTE_KEY.public_key().public_bytes_raw()


Edit = Callable[[dict[str, Any]], object]
"""Changes a statement, a dict as JSON has it, before it is signed; what it returns does not matter."""


def time_text(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def message(line: bytes, form: str = "custody/manifest/1") -> bytes:
    """Return what is signed, and what the tree's leaf is made of."""
    return f"{form}\n{sha(line)}\n".encode()


def passed_over(data: bytes) -> bytes:
    """Return the tree's entry for a slot that was passed over."""
    return f"custody/passed-over/1\n{sha(data)}\n".encode()


def compact_json(value: object) -> bytes:
    """Return compact ASCII JSON."""
    return json.dumps(value, separators=(",", ":")).encode()


def signature(key: str, algorithm: str, value: bytes) -> dict[str, str]:
    """Return one entry of line 2."""
    return {"key": key, "algorithm": algorithm, "value": base64.b64encode(value).decode()}


def with_signatures(line: bytes, signatures: Sequence[Any]) -> bytes:
    """Return the two lines of a signed file."""
    return line + b"\n" + compact_json({"signatures": list(signatures)}) + b"\n"


def two_lines(
    line: bytes,
    form: str,
    *,
    secret: bytes = SECRET,
    key_id: str = KEY_ID,
    private: Ed25519PrivateKey | None = None,
    public_id: str = "",
) -> bytes:
    """Sign line 1: by HMAC-SHA256, and all but manifests by Ed25519 too."""
    text = message(line, form)
    signatures = [signature(key_id, "HMAC-SHA256", hmac.digest(secret, text, "sha256"))]
    if form != "custody/manifest/1":
        signatures.append(signature(public_id or NOTE_NAME, "Ed25519", (private or NOTE_KEY).sign(text)))
    return with_signatures(line, signatures)


def origin(archive: str, log: str) -> str:
    """Return the first line of a log's checkpoints."""
    return f"custody/{archive}/{log}"


def note(first_line: str, size: int, root: bytes, private: Ed25519PrivateKey | None = None, name: str = "") -> bytes:
    """Return a checkpoint as C2SP's signed-note and tlog-checkpoint have it."""
    private, name = private or NOTE_KEY, name or NOTE_NAME
    public = private.public_key().public_bytes_raw()
    text = f"{first_line}\n{size}\n{base64.b64encode(root).decode()}\n".encode()
    key_hash = hashlib.sha256(f"{name}\n\x01".encode() + public).digest()[:4]
    value = base64.b64encode(key_hash + private.sign(text)).decode()
    return text + f"\n\u2014 {name} {value}\n".encode()


def leaves_hash(secret: bytes, archive: str, log: str, number: int, events: Sequence[bytes]) -> str:
    """Return what a batch's `leaves` commits to each event by: the hash of the salted hashes of its events."""
    seed = b"custody/salts/1\n" + secret + f"\n{archive}\n{log}\n{number}\n".encode()
    salts = hashlib.shake_256(seed).digest(16 * len(events))
    leaves = (
        hashlib.sha256(salts[16 * place : 16 * place + 16] + event).digest() for place, event in enumerate(events)
    )
    return sha(b"".join(leaves))


def archive_line(archive: str = ARCHIVE_ID, **fields: Any) -> bytes:
    """Return line 1 of `archive.json`."""
    document = {
        "format": "custody/archive/1",
        "archive": archive,
        "created": time_text(START),
        "heartbeat": HEARTBEAT,
        "checkpoint": CHECKPOINT,
        "retention_days": RETENTION_DAYS,
    }
    return compact_json(document | fields)


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


def tree_range(leaves: Sequence[bytes]) -> list[str]:
    compact_range, start = [], 0
    for bit in reversed(range(len(leaves).bit_length())):
        if len(leaves) >> bit & 1:
            compact_range.append(tree_hash(leaves[start : start + (1 << bit)]).hex())
            start += 1 << bit
    return compact_range


def member(payload: bytes, level: int = 6) -> bytes:
    return gzip.compress(payload, level, mtime=0)


def event(offset: int, moment: datetime | None = None, **more: Any) -> bytes:
    """A good event, its type and text told by its offset."""
    types = list(EVENTS)
    fields = EVENTS[types[offset % len(types)]]
    moment = moment or START + timedelta(milliseconds=17 * offset)
    return compact(fields | {"timestamp": time_text(moment), "request_id": f"request-{offset}"} | more)


def no_value(_: int) -> bytes:
    """Return the value of a record that is no event."""
    return b"no event"


def large_value(_: int) -> bytes:
    """Return the value of a record that is no event, too large to be kept."""
    return bytes(OMIT_ABOVE + 1)


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
    epoch: int = 1
    archive: str = ARCHIVE_ID
    secret: bytes = SECRET
    key_id: str = KEY_ID
    public_id: str = NOTE_NAME
    private: Ed25519PrivateKey = NOTE_KEY
    leaves_id: str = LEAVES_ID
    leaves_secret: bytes | None = None
    """By which batches commit to each event alone; None: they do not."""
    cluster: str = "cluster-1"
    topic_id: str | None = ""
    """'' for one that tells the epoch."""
    leader_epoch: int | None = LEADER_EPOCH
    """Of the records; None where the broker gives none."""
    previous_epoch: dict[str, Any] | None = None
    next_offset: int = 100
    lines: list[bytes] = field(default_factory=list)
    """Line 1 of each manifest; empty for a slot that was passed over."""
    statements: list[dict[str, Any]] = field(default_factory=list)
    """What these lines say; empty for a slot that was passed over."""
    entries: list[bytes] = field(default_factory=list)
    """The entries of the tree."""
    passed: list[str] = field(default_factory=list)
    """Digests of the slots that the next statement passes over."""
    last_record: dict[str, int] | None = None
    batches: int = 0
    clock: datetime = START + timedelta(hours=1)

    @property
    def log(self) -> str:
        return self.topic if self.epoch == 1 else f"{self.topic}@{self.epoch}"

    @property
    def name(self) -> str:
        return f"{self.log}/{self.partition}"

    @property
    def head(self) -> tuple[int, bytes]:
        return len(self.entries), tree_hash(self.entries)

    def tree(self) -> dict[str, Any]:
        """Return what the next statement says of the tree before it."""
        size, root = self.head
        return {"size": size, "root": root.hex(), "compact_range": tree_range(self.entries)}

    def checkpoint(self, size: int | None = None, root: bytes | None = None) -> str:
        """Write the checkpoint of the first statements, as C2SP has it, and return its key."""
        size = len(self.entries) if size is None else size
        root = tree_hash(self.entries[:size]) if root is None else root
        key = f"checkpoints/{self.name}/{size:012}"
        self.put(key, note(origin(self.archive, self.name), size, root, self.private, self.public_id))
        return key

    def init(self, **fields: Any) -> "Builder":
        """Write `archive.json`."""
        line = archive_line(self.archive, **fields)
        self.put("archive.json", self._two_lines(line, "custody/archive/1"))
        return self

    def put(self, key: str, data: bytes) -> None:
        path = self.root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def key(self, sequence: int) -> str:
        """Return the key of a manifest."""
        return f"manifests/{self.name}/{sequence:012}.json"

    def path(self, sequence: int) -> Path:
        return self.root / self.key(sequence)

    def segment(self, sequence: int) -> Path:
        key: str = self.statements[sequence]["segment"]["key"]
        return self.root / key

    def records_key(self, kind: str, first: int, last: int, data: bytes) -> str:
        name = f"{self.log}-{self.partition}-{first:020}-{last:020}-{sha(data)[:16]}.jsonl.gz"
        return f"{kind}/{START:%Y/%m/%d/%H/%M/%S}-{name}"

    def quarantined(self, offset: int, value: bytes = b"no event") -> bytes:
        """Return the line of a quarantined record; one that is too large has its value left out."""
        omitted = {"key": None, "value": {"size": len(value), "sha256": sha(value)}, "headers": None}
        large = len(value) > OMIT_ABOVE
        record = {
            "offset": offset,
            "timestamp": int(START.timestamp() * 1000) + offset,
            "key": None,
            "value": None if large else base64.b64encode(value).decode(),
            "headers": [["trace", base64.b64encode(b"\x00\xff").decode()], ["none", None]],
            "error": "not JSON",
            "omitted": omitted if large else None,
        }
        return compact_json(record)

    def append(
        self,
        count: int = 0,
        *,
        batch: int = 10,
        skip: Sequence[int] = (),
        quarantine: Sequence[int] = (),
        unreadable: Sequence[int] = (),
        lose: int = 0,
        tail: int = 0,
        expired: list[int] | None = None,
        step: timedelta = timedelta(seconds=15),
        events: Callable[[int], bytes] = event,
        values: Callable[[int], bytes] = no_value,
        pack: Callable[[bytes], bytes] = member,
        edit_payloads: Callable[[list[bytes]], None] = edit_nothing,
        edit_members: Callable[[list[bytes]], None] = edit_nothing,
        edit: Edit = edit_nothing,
    ) -> dict[str, Any]:
        """Append one statement for the next `count` offsets (after `lose` lost ones), and write what it names.

        Offsets relative to the first that is not lost may be skipped, quarantined or unreadable; `tail` skipped ones
        follow. Quarantined records have `values`.
        """
        first = self.next_offset
        start = first + lose
        skipped = [start + one for one in skip] + list(range(start + count, start + count + tail))
        bad = [start + one for one in quarantine]
        undecoded = [start + one for one in unreadable]
        offsets = [one for one in range(start, start + count) if one not in {*skipped, *bad, *undecoded}]
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
                    "leaves": self._leaves(payload),
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
            payload = b"".join(self.quarantined(one, values(one)) + b"\n" for one in bad)
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
        sequence = len(self.entries)
        statement: dict[str, Any] = {
            "format": "custody/manifest/1",
            "archive": self.archive,
            "log": {
                "cluster": self.cluster,
                "topic": self.topic,
                "topic_id": f"topic-{self.epoch}" if self.topic_id == "" else self.topic_id,
                "partition": self.partition,
                "epoch": self.epoch,
            },
            "sequence": sequence,
            "tree": self.tree(),
            "previous_epoch": self.previous_epoch if sequence == 0 else None,
            "first_offset": first,
            "next_offset": start + count + tail,
            "last_record": self._last(records, lost=bool(lose)),
            "skipped": ranges(skipped),
            "lost": [first, start] if lose else None,
            "unreadable": [{"from": low, "to": high, "error": "bad compression"} for low, high in ranges(undecoded)],
            "passed_over": self.passed,
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

    def _last(self, records: Sequence[int], *, lost: bool) -> dict[str, int] | None:
        """Return the last record that was read before the range's end."""
        if records:
            return None if self.leader_epoch is None else {"offset": records[-1], "leader_epoch": self.leader_epoch}
        return None if lost or self.last_record is None else dict(self.last_record)

    def _leaves(self, payload: bytes) -> dict[str, str] | None:
        """Return the commitment to each event of the batch that comes next."""
        if self.leaves_secret is None:
            return None
        events = payload.removesuffix(b"\n").split(b"\n")
        digest = leaves_hash(self.leaves_secret, self.archive, self.name, self.batches, events)
        return {"key": self.leaves_id, "sha256": digest}

    def commit(self, statement: dict[str, Any]) -> None:
        """Sign a statement and put it in the next slot."""
        line = compact_json(statement)
        self.put(self.key(len(self.entries)), self.sign(line))
        self.lines.append(line)
        self.statements.append(statement)
        self.entries.append(message(line))
        self.last_record = statement["last_record"]
        self.passed = []

    def pass_over(self, data: bytes = b"garbage") -> None:
        """Put bytes into the next slot that are no manifest, and let the next statement pass over it."""
        self.put(self.key(len(self.entries)), data)
        self.lines.append(b"")
        self.statements.append({})
        self.entries.append(passed_over(data))
        self.passed = [*self.passed, sha(data)]

    def go_back(self, size: int) -> None:
        """Forget all statements from a sequence on, so that the next one is another; what was put stays."""
        before: dict[str, Any] = next((one for one in reversed(self.statements[:size]) if one), {})
        numbers = [batch["number"] for one in self.statements[:size] for batch in one.get("batches", ())]
        self.next_offset = before.get("next_offset", self.statements[0]["first_offset"])
        self.last_record = before.get("last_record")
        self.batches = max(numbers, default=-1) + 1
        for listed in (self.lines, self.statements, self.entries):
            del listed[size:]

    def resign(self, sequence: int, edit: Edit) -> None:
        """Change a statement where it stands, and sign it again."""
        statement = json.loads(self.path(sequence).read_bytes().split(b"\n")[0])
        edit(statement)
        self.path(sequence).write_bytes(self.sign(compact_json(statement)))

    def sign(self, line: bytes, **fields: Any) -> bytes:
        """Return the two lines of a manifest; `fields` change its signature."""
        value = hmac.digest(self.secret, message(line), "sha256")
        return with_signatures(line, [signature(self.key_id, "HMAC-SHA256", value) | fields])

    def _two_lines(self, line: bytes, form: str) -> bytes:
        return two_lines(
            line, form, secret=self.secret, key_id=self.key_id, private=self.private, public_id=self.public_id
        )

    def copy(self, root: Path) -> "Builder":
        """Return this builder over a copy of its archive."""
        shutil.copytree(self.root, root)
        return self.at(root)

    def at(self, root: Path) -> "Builder":
        """Return this builder over another folder, which holds the same."""
        own: dict[str, Any] = {name: list(getattr(self, name)) for name in ("lines", "entries", "passed")}
        return replace(self, root=root, statements=copy.deepcopy(self.statements), **own)


def good(root: Path) -> Builder:
    """A log that shows all that a good one may hold."""
    builder = Builder(root).init()
    builder.append()
    builder.append(35)
    builder.append(30, skip=[4, 5, 29], quarantine=[0, 11, 12], tail=2)
    builder.append(0)
    builder.append(12, quarantine=[11])
    builder.append(0, tail=3)
    builder.append(3, quarantine=[0, 1, 2], values=lambda offset: large_value(offset) if offset % 3 else b"no event")
    builder.append(20, batch=7)
    builder.append(25)
    return builder


def append_quarantine(builder: Builder, change: Callable[[list[bytes]], object]) -> None:
    """Append a statement whose quarantine object is wrong, with hashes that fit."""

    def edit(statement: dict[str, Any]) -> None:
        ref = statement["quarantine"]
        rows = gzip.decompress((builder.root / ref["key"]).read_bytes()).splitlines()
        (builder.root / ref["key"]).unlink()
        change(rows)
        payload = b"".join(row + b"\n" for row in rows)
        data = member(payload)
        first, last = (int(part) for part in ref["key"].split("-")[-3:-1])
        key = builder.records_key("quarantine", first, last, data)
        builder.put(key, data)
        ref.update(key=key, size=len(data), sha256=sha(data), inflated=len(payload))

    builder.append(6, quarantine=[1, 2, 4], edit=edit)
