"""Append to a log, and fence a second writer.

The archive is the state: a writer finds where a log ends, and continues there. The rules of an append:

1. Before its first append a writer checks the head that it found (`LogWriter.open`): its signature, and that it is
   consistent with all known heads. Our own writer must never sign a second history. `LogWriter.glance` leaves most of
   that to the append, since nearly all runs of a quiet log append nothing.
2. It puts the segment first, then the quarantine, and the manifest last, each create-only. The manifest is the commit:
   only its put decides a race.
3. It puts the next manifest only after it knows that this one is stored.
4. A writer that loses the race verifies the winner's manifest. If it is valid and continues the log, the writer raises
   `Fenced`.
5. A slot whose object has no valid signature is passed over, by its digest: an attacker who can write into the store,
   but has no key, cannot stop the archiving. A slot is never passed over if it has a good signature but does not
   continue the log, or is signed by an unknown key.
6. Leftovers of a dead writer are never used: segments that no manifest names are orphans.
7. Unsigned data decides nothing: names, versions and checkpoints only count if their signature is valid.
"""

import logging
import platform
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256

from custody.archive.forms import AUDITS, statements_of
from custody.archive.reader import Tip, read_archive, read_entry, read_manifest
from custody.archive.resume import find_checked_tip, find_known_tip, rollback
from custody.archive.trusted import Judge
from custody.errors import (
    Fenced,
    FormatError,
    HeadRollback,
    KeyUnavailable,
    LogChanged,
    NoArchive,
    ObjectExists,
    ObjectMissing,
    StoreError,
)
from custody.format import archive_file, audit, envelope, layout, limits, manifest
from custody.format.archive_file import ArchiveFile, ArchiveStatement
from custody.format.audit import Audit, SignedAudit
from custody.format.envelope import Signer
from custody.format.layout import Log
from custody.format.times import format_time
from custody.keys.trust import Trust
from custody.store.protocol import Store
from custody.tlog.head import KnownHead
from custody.version import version

__all__ = ["Entry", "LogWriter", "create_archive"]

logger = logging.getLogger(__name__)

DEFAULT_HEARTBEAT = 3600
"""Seconds after which an idle log writes a statement, so that an idle log differs from one with a missing end."""
DEFAULT_CHECKPOINT = 3600
"""Seconds after which a log that grew gets a checkpoint."""
DEFAULT_RETENTION_DAYS = 2555
"""The least days for which evidence is kept: seven years."""

_PARALLEL_READS = 32


def create_archive(
    store: Store,
    signers: Callable[[], Sequence[Signer]],
    *,
    heartbeat: int = DEFAULT_HEARTBEAT,
    checkpoint: int = DEFAULT_CHECKPOINT,
    retention_days: int = DEFAULT_RETENTION_DAYS,
) -> ArchiveFile:
    """Write `archive.json`, or return the existing one.

    Args:
        store: where to create the archive.
        signers: returns the HMAC-SHA256 and the Ed25519 key that sign it; called only if it is written.
        heartbeat: seconds after which an idle log writes a statement.
        checkpoint: seconds after which a log that grew gets a checkpoint.
        retention_days: evidence younger than this may not be deleted.

    Raises:
        FormatError: the existing one does not follow the format, or a number is out of bounds.
        KeyUnavailable: a signer cannot sign now.
        StoreError: the store does not take or give it.
    """
    try:
        return read_archive(store)
    except NoArchive:
        pass
    created = format_time(datetime.now(UTC))
    made = ArchiveStatement(
        archive=str(uuid.uuid4()),
        created=created,
        heartbeat=heartbeat,
        checkpoint=checkpoint,
        retention_days=retention_days,
    )
    data = envelope.seal(envelope.encode_line(made), archive_file.FORMAT, signers())
    written = archive_file.parse(data)
    try:
        store.create(layout.ARCHIVE, data)
    except ObjectExists:
        return read_archive(store)
    return written


def writer_name() -> str:
    """Return the name of this program, host and run for signed statements. Always ASCII."""
    name = f"custody {version()}, {platform.node()}, {uuid.uuid4()}"
    return name.encode("ascii", "replace").decode()


def append_audit(
    store: Store,
    tip: Tip[SignedAudit],
    make: Callable[[Tip[SignedAudit]], Audit],
    signers: Sequence[Signer],
    trust: Trust,
) -> Tip[SignedAudit]:
    """Sign and write the next audit, and return the tip after it.

    Args:
        store: the archive.
        tip: where the audits end.
        make: returns the audit after a tip. Called again if a slot has something that is not a valid audit.
        signers: the HMAC-SHA256 and the Ed25519 key.
        trust: decides if another audit in the slot is valid.

    Raises:
        Fenced: another writer wrote a valid audit of this sequence first.
        HeadRollback: the object in the slot must not be passed over.
        KeyUnavailable: a signer cannot sign now.
        StoreError: the store does not take it.
    """
    while True:
        statement = make(tip)
        data = envelope.seal(envelope.encode_line(statement, f"audit {statement.sequence}"), audit.FORMAT, signers)
        made = audit.parse(data)
        key = layout.audit_key(tip.size)
        try:
            store.create(key, data)
        except ObjectExists:
            judge = Judge(store, layout.AUDIT_LOG, AUDITS, statement.archive, trust)
            digest, winner = read_entry(store, AUDITS, tip.size, judge.holds)
            if winner is not None and winner.statement.tree.root == tip.root.hex():
                raise Fenced(f"audit {tip.size} was written by another process meanwhile") from None
            if winner is not None:
                raise HeadRollback(f"{key} is signed, but continues another history of audits") from None
            logger.warning("%s is not a valid audit, and is passed over: find out who wrote it", key)
            tip = tip.pass_over(digest)
        else:
            return tip.behind(made)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What one statement accounts for, and the bytes that it commits to.

    Attributes:
        first_offset: where the range starts. If the log has statements, it is the head's `next_offset`.
        next_offset: the consumer's position at the cut.
        skipped: offsets that a read-committed consumer gets no record for, merged and sorted.
        lost: offsets that the broker deleted before they were read, or None.
        unreadable: offsets that the broker has but no client could decode, merged and sorted.
        members: the segment's gzip members, in order.
        batches: what the statement says about each; numbered along the log, from `LogWriter.next_batch` on.
        types: events of each type.
        quarantine: the quarantine object's one gzip member, or None.
        quarantine_inflated: the bytes that it inflates to.
        quarantined: offsets of the quarantined records, merged and sorted.
        first_record: offset of the first record, event or quarantined.
        last_record: offset of the last one.
        leader_epoch: the leader epoch of the last record, None if the broker does not tell it.
        first_record_ms: Kafka's timestamp of the first record, or None.
        expired: sequences whose objects may be deleted from now on, or None.
        previous_epoch: only in the first statement of an epoch: the head of the partition's newest earlier epoch with
            statements.
    """

    first_offset: int
    next_offset: int
    skipped: Sequence[tuple[int, int]] = ()
    lost: tuple[int, int] | None = None
    unreadable: Sequence[manifest.Unreadable] = ()
    members: Sequence[bytes] = ()
    batches: Sequence[manifest.Batch] = ()
    types: Mapping[str, int] = field(default_factory=dict)
    quarantine: bytes | None = None
    quarantine_inflated: int = 0
    quarantined: Sequence[tuple[int, int]] = ()
    first_record: int = 0
    last_record: int = 0
    leader_epoch: int | None = None
    first_record_ms: int | None = None
    expired: tuple[int, int] | None = None
    previous_epoch: manifest.PreviousEpoch | None = None


class LogWriter:
    """Appends statements to one log. Not thread-safe: one append after the other."""

    def __init__(
        self,
        store: Store,
        archive: str,
        log_id: manifest.LogId,
        *,
        signer: Signer,
        trust: Trust,
        writer: str,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Set up. Call `open` before the first append.

        Args:
            store: the archive's storage.
            archive: the archive's id.
            log_id: which log.
            signer: the HMAC-SHA256 key that signs.
            trust: the keys and known heads to check the head with.
            writer: the name of the program, host and run for signed statements.
            clock: gives `sealed_at`.
        """
        self._store = store
        self._archive = archive
        self._log_id = log_id
        self._signer = signer
        self._trust = trust
        self._writer = writer
        self._clock = clock
        self.log = Log(log_id.topic, log_id.partition, log_id.epoch)
        self._form = statements_of(self.log)
        self.judge = Judge(store, self.log, self._form, archive, trust)
        self.tip: Tip[manifest.Manifest] = Tip()
        self._next_batch: int | None = None
        self._glanced: Sequence[KnownHead] | None = None
        """The known heads of a log whose end was only glanced at."""

    @property
    def next_offset(self) -> int | None:
        """The first Kafka offset that no statement accounts for, None before the first statement."""
        return self.tip.newest.statement.next_offset if self.tip.newest else None

    def open(self, known: Sequence[KnownHead] = ()) -> Tip[manifest.Manifest]:
        """Find the head and check it, before anything is appended.

        Args:
            known: more known heads of this log, beside those in `trust.json` and in signed checkpoints.

        Raises:
            LogChanged: the log was made from another topic or cluster than that in `log_id`.
            HeadRollback: the head contradicts what is known: see the message.
            KeyUnavailable: the signature of the head cannot be checked now.
            FormatError: the newest manifest's tree does not hold together.
            StoreError: the store does not answer.
        """
        tip = find_checked_tip(self._store, self.log, self._form, self.judge, self._trust, known)
        self._glanced = None
        return self._begin(tip)

    def glance(self, known: Sequence[KnownHead]) -> Tip[manifest.Manifest] | None:
        """Return the head if it is the largest known one, by two requests, else None: then call `open`.

        What else `open` checks is checked before the first append (`check`).

        Raises:
            LogChanged: as `open`.
            KeyUnavailable: as `open`.
            StoreError: as `open`.
        """
        tip = find_known_tip(self._store, self.log, self._form, self.judge, self._trust, known)
        if tip is None:
            return None
        self._glanced = known
        return self._begin(tip)

    def check(self) -> None:
        """Check what `glance` left out.

        Raises:
            Fenced: another writer appended after the glance, or before it where no known head tells of that.
            CustodyError: as `open`.
        """
        if self._glanced is None:
            return
        tip = find_checked_tip(self._store, self.log, self._form, self.judge, self._trust, self._glanced)
        if tip.head != self.tip.head:
            raise Fenced(f"{self.log}: another writer appended behind the head that this run began from")
        self.tip, self._glanced = tip, None

    def _begin(self, tip: Tip[manifest.Manifest]) -> Tip[manifest.Manifest]:
        if tip.newest is not None:
            _check_source(tip.newest.statement.log, self._log_id)
            self._next_batch = _following_batch(tip.newest.statement)
        else:
            self._next_batch = 0
        self.tip = tip
        return tip

    def append(self, entry: Entry) -> manifest.Manifest:
        """Account for a range of offsets: put its segment, its quarantine and its manifest, and return the manifest.

        Raises:
            Fenced: another writer validly appended first.
            FormatError: the entry exceeds a limit of the format; nothing was signed.
            HeadRollback: the key of the next manifest is taken by a manifest that does not continue the log.
            KeyUnavailable: the signer cannot sign now.
            StoreError: the store does not take it. Objects put so far are orphans.
        """
        self.check()
        _check_limits(entry)
        segment = manifest.SegmentRef(*self._put("events", entry, b"".join(entry.members))) if entry.members else None
        quarantine = None
        if entry.quarantine is not None:
            quarantine = manifest.QuarantineRef(
                *self._put("quarantine", entry, entry.quarantine),
                inflated=entry.quarantine_inflated,
                records=sum(stop - start for start, stop in entry.quarantined),
                offsets=list(entry.quarantined),
            )
        while True:
            line = manifest.encode(self._statement(entry, segment, quarantine))
            manifest.parse_statement(line)
            data = envelope.seal(line, manifest.FORMAT, [self._signer])
            try:
                self._store.create(self._form.key(self.tip.size), data)
            except ObjectExists:
                self._yield_to_winner()
            else:
                break
        committed = manifest.parse(data)
        self.tip = self.tip.behind(committed)
        if self._next_batch is not None:
            self._next_batch += len(entry.batches)
        return committed

    def next_batch(self) -> int:
        """Return the number of the next batch. Reads earlier manifests if the newest ones have no batch.

        Raises:
            CustodyError: an earlier manifest cannot be read.
        """
        if self._next_batch is None:
            self._next_batch = self._count_batches()
        return self._next_batch

    def _statement(
        self, entry: Entry, segment: manifest.SegmentRef | None, quarantine: manifest.QuarantineRef | None
    ) -> manifest.Statement:
        batches = list(entry.batches)
        if batches and batches[0].number != self.next_batch():
            raise FormatError(f"{self.log}: batch {batches[0].number} does not follow: {self.next_batch()} is next")
        return manifest.Statement(
            archive=self._archive,
            log=self._log_id,
            sequence=self.tip.size,
            tree=self.tip.tree,
            previous_epoch=entry.previous_epoch,
            first_offset=entry.first_offset,
            next_offset=entry.next_offset,
            last_record=self._last_record(entry),
            skipped=list(entry.skipped),
            lost=entry.lost,
            unreadable=list(entry.unreadable),
            passed_over=list(self.tip.passed_over),
            sealed_at=format_time(self._clock()),
            writer=self._writer,
            segment=segment,
            batches=batches,
            quarantine=quarantine,
            expired=entry.expired,
            types=dict(sorted(entry.types.items())),
        )

    def _last_record(self, entry: Entry) -> manifest.LastRecord | None:
        if entry.members or entry.quarantine is not None:
            return (
                manifest.LastRecord(entry.last_record, entry.leader_epoch) if entry.leader_epoch is not None else None
            )
        return None if entry.lost or self.tip.newest is None else self.tip.newest.statement.last_record

    def _put(self, kind: layout.Kind, entry: Entry, data: bytes) -> tuple[str, int, str]:
        """Write a segment or quarantine object. Return its key, size and SHA-256."""
        digest = sha256(data).hexdigest()
        key = layout.records_key(kind, self.log, entry.first_record, entry.last_record, entry.first_record_ms, digest)
        self._store.create(key, data)
        return key, len(data), digest

    def _count_batches(self) -> int:
        """Read backwards, several manifests at once, to the newest statement with batches."""
        end = self.tip.head.size - 1
        with ThreadPoolExecutor(_PARALLEL_READS) as pool:
            while end > 0:
                start = max(0, end - _PARALLEL_READS)
                for older in reversed(list(pool.map(self._read, range(start, end)))):
                    number = _following_batch(older.statement) if older else None
                    if number is not None:
                        return number
                end = start
        return 0

    def _read(self, sequence: int) -> manifest.Manifest | None:
        """Return a valid statement, None if its slot was passed over."""
        try:
            return read_manifest(self._store, self.log, sequence, self.judge.holds)
        except (ObjectMissing, FormatError):
            return None

    def _rollback(self, message: str) -> HeadRollback:
        return rollback(self._store, self.log, message)

    def _yield_to_winner(self) -> None:
        """Raise Fenced if a valid manifest took our slot, HeadRollback if it does not join; else pass over the slot."""
        key = self._form.key(self.tip.size)
        try:
            digest, winner = read_entry(self._store, self._form, self.tip.size, self.judge.holds)
        except HeadRollback as error:
            raise self._rollback(f"another writer's {error}") from None
        except (StoreError, KeyUnavailable) as error:
            raise Fenced(
                f"{self.log}: {key} was taken by another writer, and cannot be checked now: {error}"
            ) from error
        if winner is None:
            where = {"log": self.log, "sequence": self.tip.size}
            logger.warning("%s is not a valid statement, and is passed over: find out who wrote it", key, extra=where)
            self.tip = self.tip.pass_over(digest)
            return
        if winner.statement.log != self._log_id:
            raise self._rollback(f"another writer's {key} is of another topic or cluster")
        if winner.statement.tree.root != self.tip.root.hex():
            raise self._rollback(f"another writer's {key} continues another history")
        if self.next_offset is not None and winner.statement.first_offset != self.next_offset:
            raise self._rollback(
                f"another writer's {key} starts at offset {winner.statement.first_offset}, not {self.next_offset}"
            )
        raise Fenced(f"{self.log}: another writer appended {key} first; this run's work on the log is thrown away")


def _check_limits(entry: Entry) -> None:
    """Check the sizes of a statement's objects. The fields of the statement are checked when it is parsed.

    Raises:
        FormatError: a size exceeds the format's limit.
    """
    numbers = [
        ("a segment's bytes", sum(map(len, entry.members)), limits.SEGMENT_BYTES),
        ("a quarantine object's bytes", len(entry.quarantine or b""), limits.QUARANTINE_BYTES),
        ("a quarantine object's inflated bytes", entry.quarantine_inflated, limits.QUARANTINE_INFLATED),
        ("a batch's events", max((batch.events for batch in entry.batches), default=0), limits.BATCH_EVENTS),
        ("a batch's inflated bytes", max((batch.inflated for batch in entry.batches), default=0), limits.BATCH_BYTES),
        ("a batch's stored bytes", max((batch.size for batch in entry.batches), default=0), limits.MEMBER_BYTES),
    ]
    for name, number, limit in numbers:
        if number > limit:
            raise FormatError(f"{name}: {number:,}, but the limit is {limit:,}; nothing was signed")


def _check_source(archived: manifest.LogId, present: manifest.LogId) -> None:
    """Raise an error if the topic or the cluster is not the one that the log was made from."""
    if archived != present:
        before, now = (
            (f"topic id {archived.topic_id}", f"topic id {present.topic_id}")
            if archived.cluster == present.cluster
            else (f"cluster {archived.cluster}", f"cluster {present.cluster}")
        )
        raise LogChanged(
            f"{archived.topic}/{archived.partition}: the archive's log is of {before}, but Kafka has {now}: the topic"
            " was deleted and created again, or moved. If that was on purpose, begin a new epoch of the log with"
            f" 'custody new-epoch {archived.topic}'; the old epoch stays as it is."
        )


def _following_batch(statement: manifest.Statement) -> int | None:
    """Return the number of the batch after this statement's last one, None if it has no batches."""
    if statement.batches:
        return statement.batches[-1].number + 1
    return 0 if statement.sequence == 0 else None
