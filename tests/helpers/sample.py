"""A small archive in a folder, written by the writer's own code, for tests that read one."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec

from custody.archive.assemble import TIME_CREATE, Assembler
from custody.archive.reader import Tip, read_archive
from custody.archive.writer import DEFAULT_RETENTION_DAYS, Entry, LogWriter, create_archive
from custody.format.audit import Audit, SignedAudit
from custody.format.layout import Log
from custody.format.leaves import LeafMaker
from custody.format.manifest import LogId, Manifest
from custody.format.times import format_time
from custody.keys import trust_file
from custody.keys.keyring import new_keyring
from custody.keys.open import open_public, open_signers
from custody.keys.trust import open_trust
from custody.store.open import open_store
from tests.helpers.corpus import EVENTS

BEGINNING_MS = 1_772_368_496_789


@dataclass(frozen=True, slots=True)
class Message:
    """A Kafka record."""

    at: int
    content: bytes | None
    time: tuple[int, int] | None = None
    """The kind of its time, and the time in ms; by default its own for each offset."""

    def offset(self) -> int:
        return self.at

    def value(self) -> bytes | None:
        return self.content

    def key(self) -> bytes | None:
        return b"key"

    def headers(self) -> list[tuple[str, bytes | None]] | None:
        return [("trace", None)]

    def timestamp(self) -> tuple[int, int]:
        return self.time or (TIME_CREATE, BEGINNING_MS + self.at)

    def __len__(self) -> int:
        return len(self.value() or b"")

    def leader_epoch(self) -> int | None:
        return 4


def event(offset: int) -> bytes:
    """Return the event at an offset: each of the six types in turn."""
    kind = list(EVENTS)[offset % len(EVENTS)]
    return json.dumps({**EVENTS[kind], "request_id": f"request-{offset}"}).encode()


@dataclass(frozen=True, slots=True)
class Sample:
    """What was written.

    Attributes:
        folder: the archive.
        keyring: its keys.
        log: its one log.
        tip: where that ends.
        events: the events by offset, in order.
        quarantined: the offset of a record that is no event.
        skipped: an offset without a record.
    """

    folder: Path
    keyring: Path
    log: Log
    tip: Tip[Manifest]
    events: dict[int, bytes]
    quarantined: int
    skipped: int


def make_archive(root: Path, passphrase: str | None = None) -> Sample:
    """Write `root/archive` and its keyring: an empty statement, then three of 50 offsets, in batches of 10."""
    folder, keyring = root / "archive", root / "keyring.json"
    new_keyring(keyring, datetime.now(UTC), passphrase)
    uri = f"file:{keyring}"
    store = open_store(str(folder))
    signers = open_signers(uri, datetime.now(UTC), passphrase)
    archive = create_archive(store, signers.both).id
    log_id = LogId("cluster", "audit.events", "topic-id", 0, 1)
    writer = LogWriter(
        store,
        archive,
        log_id,
        signer=signers.hmac(),
        trust=open_trust([uri], passphrase=passphrase),
        writer="a test",
    )
    writer.open()
    start, step = 1000, 50
    assembler = Assembler(
        start,
        batch_events=10,
        segment_bytes=2**20,
        level=1,
        number=writer.next_batch,
        leaves=LeafMaker(signers.leaves, archive, str(writer.log)) if signers.leaves else None,
    )
    writer.append(assembler.cut())
    events: dict[int, bytes] = {}
    quarantined, skipped = start + 13, start + 27
    for begin in range(start, start + 3 * step, step):
        for offset in range(begin, begin + step):
            if offset == skipped:
                assembler.skip(offset + 1)
                continue
            content = b"no event" if offset == quarantined else event(offset)
            assembler.add([Message(offset, content)])
            if offset != quarantined:
                events[offset] = content
        writer.append(assembler.cut())
    return Sample(folder, keyring, writer.log, writer.tip, events, quarantined, skipped)


def _hour_of_one_day(now: datetime) -> datetime:
    """Return the begin of an hour of one day that began lately: what goes by days is the same at midnight."""
    begun = now - timedelta(minutes=50)
    midnight = (begun + timedelta(hours=1)).replace(hour=0, minute=0, second=0, microsecond=0)
    return midnight - timedelta(hours=1) if begun < midnight else begun


class Growing:
    """An archive of one log that grows by small statements, a minute apart."""

    def __init__(
        self,
        root: Path,
        partition: int = 0,
        begun: datetime | None = None,
        retention_days: int = DEFAULT_RETENTION_DAYS,
    ) -> None:
        self.root, self.folder, self.keyring = root, root / "archive", root / "keyring.json"
        self.begun = begun or _hour_of_one_day(datetime.now(UTC))
        root.mkdir(exist_ok=True)
        if not self.keyring.exists():
            new_keyring(self.keyring, self.begun - timedelta(days=1))
        self.retention_days = retention_days
        self.events = 0
        self.writer = "a test"
        self._log_id = LogId("cluster", "audit.grows", "topic-id", partition, 1)
        self.log = f"audit.grows/{partition}"
        self._statements = 0

    def append(
        self,
        statements: int,
        content: Callable[[int], bytes] = event,
        edit: Callable[[Entry], Entry] = lambda entry: entry,
        each: int = 5,
    ) -> None:
        """Append statements of `each` events, those that `content` gives by offset, `edit`ed before the signing."""
        writer = self._open()
        assembler = Assembler(
            writer.next_offset or 0, batch_events=3, segment_bytes=2**20, level=1, number=writer.next_batch
        )
        for _ in range(statements):
            start = assembler.position
            assembler.add([Message(offset, content(offset)) for offset in range(start, start + each)])
            writer.append(edit(assembler.cut()))
            self._statements += 1
            self.events += each

    def expire(self, first: int, end: int) -> None:
        """Append a statement that calls others expired; nothing is deleted."""
        writer = self._open()
        at = writer.next_offset or 0
        writer.append(Entry(first_offset=at, next_offset=at, expired=(first, end)))
        self._statements += 1

    def heartbeat(self, moment: datetime) -> None:
        """Append an empty statement that is sealed at a time."""
        self.begun = moment - timedelta(minutes=self._statements)
        writer = self._open()
        at = writer.next_offset or 0
        writer.append(Entry(first_offset=at, next_offset=at))
        self._statements += 1

    def publish(self) -> Path:
        """Write what an auditor is given, `trust.json` beside the archive, and return its path."""
        path = self.root / "trust.json"
        trust_file.publish(path, read_archive(open_store(str(self.folder))).pin, open_public(f"file:{self.keyring}"))
        return path

    def _open(self) -> LogWriter:
        uri = f"file:{self.keyring}"
        store = open_store(str(self.folder))
        signers = open_signers(uri, datetime.now(UTC))
        writer = LogWriter(
            store,
            create_archive(store, signers.both, retention_days=self.retention_days).id,
            self._log_id,
            signer=signers.hmac(),
            trust=open_trust([uri]),
            writer=self.writer,
            clock=lambda: self.sealed_at(self._statements),
        )
        writer.open()
        return writer

    @property
    def size(self) -> int:
        """How many statements there are."""
        return self._statements

    def sealed_at(self, sequence: int) -> datetime:
        """When a statement was sealed."""
        return self.begun + timedelta(minutes=sequence)

    def copy(self, root: Path) -> "Growing":
        """Return a copy that grows by itself, into another history."""
        shutil.copytree(self.root, root, ignore=lambda _, names: [name for name in names if name == root.name])
        made = Growing(root)
        made.writer = "another"
        made.begun, made.events, made._statements = self.begun, self.events, self._statements
        return made


def audit_of(archive: str, tip: Tip[SignedAudit], moment: datetime, /, **fields: object) -> Audit:
    """Return the audit of an archive behind a tip: it read and found nothing, but for the fields given."""
    made = Audit(
        format="custody/audit/1",
        archive=archive,
        sequence=tip.size,
        tree=tip.tree,
        passed_over=list(tip.passed_over),
        started_at=format_time(moment),
        sealed_at=format_time(moment),
        writer="a test",
        heads={},
        covered={},
        marks={},
        counts={},
        findings=[],
        objects=[],
        verdict="verified",
    )
    return msgspec.structs.replace(made, **fields)
