"""An archive whose batches have leaves, written by the writer's own code, for tests of evidence."""

import json
import shutil
from base64 import b64encode
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path

import msgspec

from custody.archive.checkpoints import write_checkpoint
from custody.archive.reader import read_archive
from custody.archive.writer import Entry, LogWriter, create_archive
from custody.format import leaves, manifest
from custody.format.envelope import Tree, seal
from custody.format.layout import Log, manifest_key
from custody.format.manifest import Batch, Leaves, LogId, Unreadable
from custody.format.members import pack
from custody.format.times import format_time
from custody.keys.key import HmacKey, LeafKey
from custody.keys.keyring import new_keyring
from custody.keys.open import open_signers
from custody.keys.secret import Secret
from custody.keys.signers import Signers
from custody.keys.trust import Trust, TrustedKey, open_trust
from custody.store.open import open_store
from custody.store.protocol import Store
from custody.tlog.checkpoint import Note, parse_checkpoint
from custody.tlog.head import Head

BEGINNING = datetime(2026, 3, 1, 12, 34, 56, 789012, UTC)
STEP = timedelta(seconds=1, microseconds=1_003)
TYPES = ("query_executed", "auth_attempt", "security_event")


def event(offset: int) -> bytes:
    """Return an event of which nothing is like another's, but for the names of its fields, and its type."""
    body = {
        "event_type": TYPES[offset % len(TYPES)],
        "timestamp": format_time(BEGINNING + offset * STEP),
        "query_hash": sha256(b"%d" % offset).hexdigest(),
    }
    return json.dumps(body, separators=(",", ":")).encode()


def _field(content: bytes, name: str) -> str:
    value = json.loads(content)[name]
    assert isinstance(value, str)
    return value


class Leafy:
    """A log, in an archive of its own folder and keyring."""

    def __init__(self, root: Path, epoch: int = 1) -> None:
        self.root, self.folder, self.keyring = root, root / "archive", root / "keyring.json"
        root.mkdir(exist_ok=True)
        if not self.keyring.exists():
            new_keyring(self.keyring, datetime.now(UTC) - timedelta(days=1))
        self.id = create_archive(self.store, self.signers.both).id
        self._log_id = LogId("cluster", "audit.leafy", f"topic-{epoch}", 0, epoch)
        self.log = Log("audit.leafy", 0, epoch)
        self.events: dict[int, bytes] = {}

    @property
    def store(self) -> Store:
        return open_store(str(self.folder))

    @property
    def signers(self) -> Signers:
        return open_signers(f"file:{self.keyring}", datetime.now(UTC))

    @property
    def own(self) -> Trust:
        """What the writer trusts, secrets and all."""
        return open_trust([f"file:{self.keyring}"])

    @property
    def public(self) -> Trust:
        """What an auditor trusts: the archive's pin, public halves, ids of the rest."""
        keys = {
            key.id: TrustedKey(key.id, key.algorithm, key.from_, key.to, material=key.public)
            for key in self.own.keys.values()
        }
        return Trust(read_archive(self.store).pin, keys)

    def writer(self, signers: Signers | None = None) -> LogWriter:
        made = LogWriter(
            self.store,
            self.id,
            self._log_id,
            signer=(signers or self.signers).hmac(),
            trust=self.own,
            writer="a test",
        )
        made.open()
        return made

    def append(
        self,
        events: Mapping[int, bytes] | Sequence[int],
        *,
        batch: int = 4,
        with_leaves: bool = True,
        skipped: Sequence[tuple[int, int]] = (),
        unreadable: Sequence[Unreadable] = (),
        lost: tuple[int, int] | None = None,
        quarantined: Sequence[tuple[int, int]] = (),
    ) -> None:
        """Append a statement of these events, or of the events of these offsets."""
        contents = dict(events) if isinstance(events, Mapping) else {offset: event(offset) for offset in events}
        writer = self.writer()
        offsets = sorted(contents)
        ranges = [*skipped, *((one.from_, one.to) for one in unreadable), *quarantined, *([lost] if lost else [])]
        start = writer.next_offset
        first = min([*offsets, *(one[0] for one in ranges)], default=0)
        members, batches = self._pack(contents, batch, writer.next_batch(), with_leaves=with_leaves)
        quarantine = pack(b"{}\n" * sum(end - begin for begin, end in quarantined)) if quarantined else None
        writer.append(
            Entry(
                first_offset=first if start is None else start,
                next_offset=max([*(offset + 1 for offset in offsets), *(one[1] for one in ranges)], default=0),
                skipped=skipped,
                lost=lost,
                unreadable=unreadable,
                members=members,
                batches=batches,
                types=dict(sorted(Counter(_field(contents[offset], "event_type") for offset in offsets).items())),
                quarantine=quarantine.data if quarantine else None,
                quarantine_inflated=quarantine.inflated if quarantine else 0,
                quarantined=quarantined,
                first_record=offsets[0] if offsets else 0,
                last_record=offsets[-1] if offsets else 0,
            )
        )
        self.events |= contents

    def _pack(
        self, contents: Mapping[int, bytes], size: int, number: int, *, with_leaves: bool
    ) -> tuple[list[bytes], list[Batch]]:
        leaf = self.signers.leaves
        assert isinstance(leaf, LeafKey)
        offsets = sorted(contents)
        members, batches, stored = [], [], 0
        for first in range(0, len(offsets), size):
            chosen = offsets[first : first + size]
            member = pack(b"".join(contents[offset] + b"\n" for offset in chosen))
            salts = leaves.salts(leaf.secret, self.id, str(self.log), number, len(chosen))
            digest = sha256(leaves.hashes([contents[offset] for offset in chosen], salts)).hexdigest()
            batches.append(
                Batch(
                    number=number,
                    first_offset=chosen[0],
                    next_offset=chosen[-1] + 1,
                    events=len(chosen),
                    start=stored,
                    size=len(member.data),
                    inflated=member.inflated,
                    sha256=member.sha256,
                    min_time=min(_field(contents[offset], "timestamp") for offset in chosen),
                    max_time=max(_field(contents[offset], "timestamp") for offset in chosen),
                    kafka_time=None,
                    leaves=Leaves(leaf.key_id, digest) if with_leaves else None,
                )
            )
            members.append(member.data)
            stored += len(member.data)
            number += 1
        return members, batches

    def checkpoint(self) -> Head:
        """Sign the log's head as a checkpoint, and return it."""
        note = write_checkpoint(self.store, self.log, self.id, self.own, self.signers.ed25519())
        assert isinstance(note, Note)
        found = parse_checkpoint(note.text)
        return Head(found.size, found.root)

    def copy(self, root: Path) -> "Leafy":
        """Return a copy that grows by itself, into another history."""
        shutil.copytree(self.root, root)
        made = Leafy(root, self.log.epoch)
        made.events = dict(self.events)
        return made


def forged(of: Leafy, sequence: int) -> bytes:
    """Return a statement for a slot by somebody who does not have the key: everything else about it is right."""
    tip = of.writer().tip
    signer = HmacKey(of.signers.hmac().key_id, Secret(bytes(32)))
    assert tip.newest is not None
    line = manifest.encode(
        msgspec.structs.replace(
            tip.newest.statement,
            sequence=sequence,
            tree=Tree(sequence, tip.root.hex(), [node.hex() for node in tip.compact_range]),
            first_offset=tip.newest.statement.next_offset,
            next_offset=10**9,
            segment=None,
            batches=[],
            types={},
            passed_over=[],
        )
    )
    return seal(line, manifest.FORMAT, [signer])


def plant(of: Leafy, sequence: int, data: bytes) -> None:
    """Put something into the slot of a statement, as whoever may write into the folder can."""
    path = of.folder / manifest_key(of.log, sequence)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def write_trust(path: Path, trust: Trust) -> Path:
    """Write what an auditor trusts as a `trust.json`."""

    def heads(given: Mapping[str, Head]) -> dict[str, object]:
        return {name: {"size": head.size, "root": head.root.hex()} for name, head in given.items()}

    keys: list[dict[str, object]] = []
    for key in trust.keys.values():
        entry: dict[str, object] = {"id": key.id, "algorithm": key.algorithm}
        entry |= {"from": format_time(key.from_) if key.from_ else None, "to": format_time(key.to) if key.to else None}
        if key.public is not None:
            entry["public"] = b64encode(key.public).decode()
        if key.until is not None:
            entry["until"] = heads(key.until)
        keys.append(entry)
    document = {
        "format": "custody/trust/1",
        "archive": {"id": trust.archive.id, "sha256": trust.archive.sha256} if trust.archive else None,
        "keys": keys,
        "heads": heads(trust.heads),
        "witnesses": [key.vkey for key in trust.witnesses],
        "quorum": trust.quorum,
    }
    path.write_text(json.dumps(document))
    path.chmod(0o600)
    return path
