"""An archive in memory that grows, and is audited night after night by a clock that tests move."""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import pytest

from custody.archive.assemble import TIME_CREATE, Assembler
from custody.archive.writer import LogWriter, create_archive
from custody.format.manifest import LogId
from custody.keys.open import open_signers
from custody.keys.trust import open_trust
from custody.store.protocol import Capabilities, ObjectStatus, S3Options, Version
from tasks.audit.conclude import Outcome
from tasks.settings import AuditSettings, Settings
from tests.helpers.audit import audit
from tests.helpers.memory import PUT_AT, MemoryStore
from tests.helpers.sample import BEGINNING_MS, Growing, Message, event

MODE: Literal["COMPLIANCE"] = "COMPLIANCE"
DAYS = 30
HOUR_MS = 3_600_000
FIRST = 1_000
"""The first offset of each log: Kafka has deleted what was before."""


@dataclass
class LockingStore(MemoryStore):
    """A store that locks each object for some days, and counts its calls by kind."""

    unlocked: set[str] = field(default_factory=set)

    @property
    def url(self) -> str:
        return "s3://memory/archive"

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(versions=self, locks=self)

    def status(self, key: str) -> ObjectStatus:
        if key in self.unlocked:
            return super().status(key)
        return replace(super().status(key), lock_mode=MODE, lock_until=PUT_AT + timedelta(days=DAYS))

    def lock(self, key: str) -> tuple[str, datetime] | None:
        self._call("lock", key)
        return None

    def at_versions(self, chosen: Mapping[str, Version]) -> "LockingStore":
        shown = {key: self.versions[key][int(version.id)] for key, version in chosen.items()}
        objects = self.objects | {key: data for key, data in shown.items() if data is not None}
        return LockingStore(objects, self.versions, self.calls, unlocked=self.unlocked)

    def kinds(self) -> Counter[str]:
        """Return how many calls there were of each kind: its name, and the first folder of its key."""
        return Counter(f"{name} {key.partition('/')[0]}" for name, key in self.calls)


class Spread(Growing):
    """A log in a store, each of whose records is an hour after the one before."""

    def __init__(self, root: Path, store: LockingStore, partition: int = 0) -> None:
        super().__init__(root, partition)
        self.store = store
        self.hours = 0
        """By how many hours its first record is later."""

    def append(self, statements: int, *more: Any, each: int = 5, **named: Any) -> None:
        assert not more
        assert not named
        uri = f"file:{self.keyring}"
        signers = open_signers(uri, datetime.now(UTC))
        writer = LogWriter(
            self.store,
            create_archive(self.store, signers.both, retention_days=self.retention_days).id,
            LogId("cluster", "audit.grows", "topic-id", self._log_id.partition, 1),
            signer=signers.hmac(),
            trust=open_trust([uri]),
            writer=self.writer,
            clock=lambda: self.sealed_at(self._statements),
        )
        writer.open()
        assembler = Assembler(
            writer.next_offset or FIRST, batch_events=3, segment_bytes=2**20, level=1, number=writer.next_batch
        )
        for _ in range(statements):
            at = assembler.position
            assembler.add([Message(offset, event(offset), self._time(offset)) for offset in range(at, at + each)])
            writer.append(assembler.cut())
            self._statements += 1
            self.events += each

    def _time(self, offset: int) -> tuple[int, int]:
        return TIME_CREATE, BEGINNING_MS + (self.hours + offset) * HOUR_MS


@dataclass
class Nights:
    """The nights of an archive."""

    store: LockingStore
    settings: Settings
    now: datetime

    def audit(self, days: float = 1, **request: Any) -> Outcome:
        """Audit once more, some days after the last time."""
        self.now += timedelta(days=days)
        self.store.calls.clear()
        return audit(self.settings, self.now, **request)

    def until(self, days: int) -> Iterator[tuple[int, str, str]]:
        """Audit each night, and yield the findings: the night's number, their name, and their key."""
        for night in range(1, days + 1):
            for problem in self.audit().findings:
                yield night, problem["finding"], problem.get("key", "")


def settings_of(keyring: Path, *, days: int, piece: int, tables: bool = False) -> Settings:
    return Settings(
        archive="s3://memory/archive",
        keys=f"file:{keyring}",
        s3=S3Options(retention_mode=MODE, retention_days=DAYS),
        audit=AuditSettings(piece_statements=piece, reread_days=days, tables=tables),
    )


@contextmanager
def opened(store: LockingStore) -> Iterator[None]:
    """Let all that opens the archive get this store."""
    with pytest.MonkeyPatch.context() as patch:
        for module in ("plan", "pieces", "conclude", "objects"):
            patch.setattr(f"tasks.audit.{module}.open_store", lambda *_: store)
        yield
