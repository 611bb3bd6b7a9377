"""Append to a log, find its head, fence a second writer.

The archive is the state: a writer asks it where a log ends and goes on from there. The rules of an append:

1. Before its first append a writer checks the head that it found (`LogWriter.open`): a search among manifests assumes
   that none is missing, and a signed second history must never come from our own writer.
2. Segment first, quarantine next, manifest last, each create-only. The manifest is the commit, and alone decides a
   race.
3. The next manifest is put only once this one is known to be there.
4. Who loses the put of a manifest checks that the winner's statement verifies and joins, and stops (`Fenced`).
5. Nothing that a writer left when it died is taken over: segments that no manifest names are orphans.
"""

import platform
import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from importlib.metadata import version

import msgspec

from custody import audit, checkpoint, layout, manifest, merkle
from custody.audit import Audit, SignedAudit
from custody.errors import (
    Fenced,
    FormatError,
    HeadRollback,
    LogChanged,
    ObjectExists,
    ObjectMissing,
    SigningError,
    StoreError,
)
from custody.layout import Log
from custody.manifest import After, Batch, LogId, Manifest, QuarantineRef, SegmentRef, Signer, Statement, Tree
from custody.store import Store
from custody.trust import Trust

FORMAT = "custody/archive/1"
DEFAULT_HEARTBEAT = 3600
"""Seconds after which an idle log writes a statement, so that silence and a missing tail can be told apart."""

_INFO_LIMIT = 4096
_PARALLEL_READS = 32


class ArchiveInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `archive.json` says: which archive this is, and how often an idle log speaks (seconds)."""

    format: str
    archive: manifest.Uuid
    created: manifest.Time
    heartbeat: manifest.Int


def create_archive(store: Store, heartbeat: int = DEFAULT_HEARTBEAT) -> ArchiveInfo:
    """Write `archive.json`, or return what is there already.

    Raises:
        FormatError: what is there is not of this format.
        StoreError: the store does not take or give it.
    """
    info = ArchiveInfo(FORMAT, str(uuid.uuid4()), manifest.format_time(datetime.now(UTC)), heartbeat)
    try:
        return read_archive(store)
    except ObjectMissing:
        pass
    try:
        store.create(layout.ARCHIVE, msgspec.json.encode(info) + b"\n")
    except ObjectExists:
        return read_archive(store)
    return info


def read_archive(store: Store) -> ArchiveInfo:
    """Read `archive.json`.

    Raises:
        ObjectMissing: there is no archive here.
        FormatError: it is not of this format.
        StoreError: the store does not give it.
    """
    data = store.read(layout.ARCHIVE, limit=_INFO_LIMIT)
    try:
        info = msgspec.json.decode(data, type=ArchiveInfo)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise FormatError(f"{layout.ARCHIVE} of {store.url} is not what custody init writes: {error}") from None
    if info.format != FORMAT:
        raise FormatError(
            f"{layout.ARCHIVE} of {store.url} is of format {info.format!r}; this version knows {FORMAT!r}"
        )
    return info


def list_logs(store: Store) -> list[Log]:
    """Return every log that has a manifest, in order of topic, partition and life."""
    logs = [
        layout.parse_log(name, int(partition))
        for name in store.names(layout.MANIFESTS)
        for partition in store.names(f"{layout.MANIFESTS}{name}/")
        if re.fullmatch(r"0|[1-9][0-9]{0,9}", partition)
    ]
    return sorted(log for log in logs if log is not None)


@dataclass(frozen=True, slots=True)
class Head:
    """Where a log ends: how many statements it has, the tree over them, and the newest one."""

    log: Log
    size: int
    edge: merkle.Edge
    newest: Manifest | None

    @property
    def root(self) -> str:
        """The root of the tree over all statements, in hex."""
        return merkle.edge_root(self.edge).hex()

    @property
    def next_offset(self) -> int | None:
        """The first Kafka offset that is not accounted for, None before the first statement."""
        return self.newest.statement.next_offset if self.newest else None


@dataclass(frozen=True, slots=True)
class Seen:
    """What somebody remembers of a log's head: from the group's committed offset, an audit, a state file."""

    size: int
    root: str
    where: str


def read_manifest(store: Store, log: Log, sequence: int) -> Manifest:
    """Read one manifest.

    Raises:
        ObjectMissing: there is none.
        FormatError: it does not parse; the message names it.
        StoreError: the store does not give it.
    """
    key = layout.manifest_key(log, sequence)
    try:
        return manifest.parse(store.read(key, limit=manifest.MANIFEST_LIMIT))
    except FormatError as error:
        raise FormatError(f"{key}: {error}") from None


def find_head(store: Store, log: Log, hint: int = 0) -> Head:
    """Find a log's head with O(log n) requests, assuming that no manifest is missing.

    Args:
        store: the archive.
        log: the log.
        hint: a size that the log is believed to have; a wrong one costs requests, nothing else.

    Raises:
        FormatError: the newest manifest, or its edge, is not of the format.
        StoreError: the store does not answer.
    """
    low = _last(lambda sequence: store.exists(layout.manifest_key(log, sequence)), hint)
    if low < 0:
        return Head(log, 0, (), None)
    newest = read_manifest(store, log, low)
    edge = tuple(bytes.fromhex(node) for node in newest.statement.tree.edge)
    if len(edge) != low.bit_count():
        raise FormatError(f"{layout.manifest_key(log, low)}: the edge has {len(edge)} nodes, not {low.bit_count()}")
    return Head(log, low + 1, merkle.append(low, edge, merkle.leaf_hash(newest.line)), newest)


def first_sequence(store: Store, log: Log, size: int, wanted: Callable[[Statement], bool]) -> int:
    """Return the first of a log's `size` sequences that is wanted, `size` if none is, in O(log n) reads.

    Args:
        store: the archive.
        log: the log.
        size: how many statements are searched.
        wanted: says no of all before some statement, and yes from there on.

    Raises:
        ObjectMissing: a manifest on the way is not there.
        FormatError: one does not parse.
        StoreError: the store does not give it.
    """
    low, high = 0, size
    while low < high:
        middle = (low + high) // 2
        if wanted(read_manifest(store, log, middle).statement):
            high = middle
        else:
            low = middle + 1
    return low


def sealed_from(store: Store, log: Log, size: int, moment: datetime) -> int:
    """Return the first of a log's `size` sequences that was sealed at a moment or later; raises as `first_sequence`."""
    return first_sequence(store, log, size, lambda one: manifest.parse_time(one.sealed_at) >= moment)


def find_statement(store: Store, log: Log, offset: int) -> tuple[int, Manifest] | None:
    """Return the sequence and manifest that account for an offset, None if none does; raises as `first_sequence`."""
    size = find_head(store, log).size
    sequence = first_sequence(store, log, size, lambda one: one.next_offset > offset)
    if sequence == size:
        return None
    found = read_manifest(store, log, sequence)
    return (sequence, found) if found.statement.first_offset <= offset else None


@dataclass(frozen=True, slots=True)
class AuditHead:
    """Where the log of audits ends."""

    size: int
    edge: merkle.Edge
    newest: SignedAudit | None

    @property
    def root(self) -> bytes:
        """The root of the tree over all audits."""
        return merkle.edge_root(self.edge)


def find_audits(store: Store) -> AuditHead:
    """Find where the log of audits ends, in O(log n) requests.

    Raises:
        FormatError: the newest audit is not of the format.
        StoreError: the store does not answer.
    """
    last = _last(lambda sequence: store.exists(layout.audit_key(sequence)))
    if last < 0:
        return AuditHead(0, (), None)
    key = layout.audit_key(last)
    try:
        newest = audit.parse(store.read(key, limit=manifest.MANIFEST_LIMIT))
    except FormatError as error:
        raise FormatError(f"{key} is no audit of this format: {error}; `custody verify` says more") from None
    edge = tuple(map(bytes.fromhex, newest.statement.tree.edge))
    if len(edge) != last.bit_count() or newest.statement.sequence != last:
        raise FormatError(f"{key} does not belong at its place; `custody verify` says more")
    return AuditHead(last + 1, merkle.append(last, edge, merkle.leaf_hash(newest.line)), newest)


def append_audit(store: Store, head: AuditHead, statement: Audit, signers: Sequence[Signer]) -> AuditHead:
    """Sign and write the next audit; `statement.sequence` and `statement.tree` must be those behind `head`.

    Raises:
        Fenced: somebody else wrote an audit of this sequence first.
        KeyUnavailable: a signer cannot sign now.
        StoreError: the store does not take it.
    """
    line = audit.encode(statement)
    data = manifest.seal(line, signers, audit.FORMAT)
    try:
        store.create(layout.audit_key(statement.sequence), data)
    except ObjectExists:
        raise Fenced(f"audit {statement.sequence} was written by somebody else meanwhile") from None
    edge = merkle.append(head.size, head.edge, merkle.leaf_hash(line))
    return AuditHead(head.size + 1, edge, audit.parse(data))


def put_checkpoint(store: Store, archive: str, log: Log, size: int, root: bytes, signer: Signer) -> checkpoint.Note:
    """Sign a log's head and write it as a checkpoint; one that is there already with the same root is success.

    Returns:
        The checkpoint that is there now.

    Raises:
        HeadRollback: another root was signed for this size before.
        KeyUnavailable: the signer cannot sign now.
        FormatError: the key cannot sign checkpoints, or what lies there is none.
        StoreError: the store does not take it.
    """
    key = layout.checkpoint_key(log, size)
    note = checkpoint.sign_checkpoint(signer, archive, log, size, root)
    try:
        store.create(key, note.encode())
    except ObjectExists:
        there = checkpoint.parse_note(store.read(key, limit=checkpoint.NOTE_LIMIT))
        if checkpoint.parse_checkpoint(there.text).root != root:
            raise HeadRollback(
                f"{key} signs another root than this log has now: `custody verify` says more; keep both as evidence"
            ) from None
        return there
    return note


def audited_heads(store: Store) -> Mapping[str, Seen]:
    """Return what the newest audit saw of each log, by `<log>/<partition>`; nothing where there is no audit.

    Raises:
        FormatError: the newest audit is not of the format.
        StoreError: the store does not answer.
    """
    newest = find_audits(store).newest
    if newest is None:
        return {}
    origin = layout.audit_key(newest.statement.sequence)
    return {name: Seen(head.size, head.root, origin) for name, head in newest.statement.heads.items()}


def _last(there: Callable[[int], bool], hint: int = 0) -> int:
    """Return the last number, of those from 0 on without a hole, of which `there` says yes; -1 if there is none."""
    low = hint - 1 if hint > 0 and there(hint - 1) else -1
    step = 1
    while there(low + step):
        low += step
        step *= 2
    high = low + step
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if there(middle) else (low, middle)
    return low


def writer_name() -> str:
    """Return what signed statements say of the program, host and run; ASCII, whatever the host is called."""
    name = f"custody {version('custody')}, {platform.node()}, {uuid.uuid4()}"
    return name.encode("ascii", "replace").decode()


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What one statement is to account for, and the bytes that go with it.

    Attributes:
        first_offset: where the range starts; in a log that has statements, the head's `next_offset`.
        next_offset: the consumer's position at the cut.
        skipped: offsets that a read-committed consumer gets no record for, merged and sorted.
        lost: offsets that the broker deleted before they were read, or None.
        members: the segment's gzip members, in order.
        batches: what the statement says of each; numbered from 0 within this entry.
        types: events of each type.
        quarantine: the quarantine object's one gzip member, or None.
        quarantine_inflated: the bytes that it inflates to.
        quarantined: offsets of the quarantined records, merged and sorted.
        first_record: offset of the first record, event or quarantined.
        last_record: offset of the last one.
        first_record_ms: Kafka's timestamp of the first record, or None.
        expired: sequences whose objects may be deleted from now on, or None.
        after: in the first statement of a life, the head of the partition's newest earlier life that has statements.
    """

    first_offset: int
    next_offset: int
    skipped: Sequence[tuple[int, int]] = ()
    lost: tuple[int, int] | None = None
    members: Sequence[bytes] = ()
    batches: Sequence[Batch] = ()
    types: Mapping[str, int] = field(default_factory=dict)
    quarantine: bytes | None = None
    quarantine_inflated: int = 0
    quarantined: Sequence[tuple[int, int]] = ()
    first_record: int = 0
    last_record: int = 0
    first_record_ms: int | None = None
    expired: tuple[int, int] | None = None
    after: After | None = None


class LogWriter:
    """Appends statements to one log. Not thread-safe: one append after the other."""

    def __init__(
        self,
        store: Store,
        info: ArchiveInfo,
        log_id: LogId,
        *,
        signers: Sequence[Signer],
        trust: Trust,
        writer: str,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Prepare to write; `open` must come first.

        Args:
            store: the archive's storage.
            info: which archive it is.
            log_id: which log.
            signers: the keys that sign, at least one of them HMAC-SHA256.
            trust: the keys by which the head's signatures are checked.
            writer: what signed statements say of the program, host and run.
            clock: gives `sealed_at`.
        """
        self._store = store
        self._info = info
        self._log_id = log_id
        self._signers = tuple(signers)
        self._trust = trust
        self._writer = writer
        self._clock = clock
        self.log = Log(log_id.topic, log_id.partition, log_id.life)
        self.head = Head(self.log, 0, (), None)
        self._next_batch: int | None = None

    def open(self, seen: Sequence[Seen] = ()) -> Head:
        """Find the head and check it by all that can be known of it, before anything is appended.

        Args:
            seen: what others remember of this log's head.

        Raises:
            LogChanged: the log was made from another topic or cluster than `log_id` names.
            HeadRollback: the head is not what it must be: see the message.
            FormatError: the newest manifest is not of the format.
            StoreError: the store does not answer.
        """
        self.head = head = find_head(self._store, self.log, max((memory.size for memory in seen), default=0))
        if head.newest is not None:
            self._check_statement(head.newest, head.size - 1)
            self._next_batch = _following_batch(head.newest.statement)
        else:
            self._next_batch = 0
        self._check_nothing_beyond(head)
        for memory in seen:
            self._check_memory(head, memory)
        following = layout.manifest_key(self.log, head.size)
        # Where it exists, another writer has just put it, and our own put will lose to it.
        if self._store.has_history(following) and not self._store.exists(following):
            raise self._rollback(f"{following} was there once: the bucket keeps a version or a delete marker of it")
        return head

    def append(self, entry: Entry) -> Manifest:
        """Account for a range of offsets: put its segment, its quarantine and its manifest, and return the manifest.

        Raises:
            Fenced: another writer appended first, rightly.
            HeadRollback: the key of the next manifest is taken by something that does not join.
            KeyUnavailable: the signer cannot sign now.
            StoreError: the store does not take it. What was put so far is an orphan.
        """
        segment = self._put_segment(entry)
        quarantine = self._put_quarantine(entry)
        statement = Statement(
            archive=self._info.archive,
            log=self._log_id,
            sequence=self.head.size,
            tree=Tree(self.head.size, self.head.root, [node.hex() for node in self.head.edge]),
            after=entry.after,
            first_offset=entry.first_offset,
            next_offset=entry.next_offset,
            skipped=list(entry.skipped),
            lost=entry.lost,
            sealed_at=manifest.format_time(self._clock()),
            writer=self._writer,
            segment=segment,
            batches=self._numbered(entry.batches),
            quarantine=quarantine,
            expired=entry.expired,
            types=dict(sorted(entry.types.items())),
        )
        line = manifest.encode(statement)
        data = manifest.seal(line, self._signers)
        key = layout.manifest_key(self.log, self.head.size)
        try:
            self._store.create(key, data)
        except ObjectExists:
            self._yield_to_winner()
        committed = manifest.parse(data)
        self.head = Head(
            self.log,
            self.head.size + 1,
            merkle.append(self.head.size, self.head.edge, merkle.leaf_hash(line)),
            committed,
        )
        if self._next_batch is not None:
            self._next_batch += len(entry.batches)
        return committed

    def _put_segment(self, entry: Entry) -> SegmentRef | None:
        if not entry.members:
            return None
        data = b"".join(entry.members)
        digest = sha256(data).hexdigest()
        key = layout.records_key(
            "events", self.log, entry.first_record, entry.last_record, entry.first_record_ms, digest
        )
        self._store.create(key, data)
        return SegmentRef(key, len(data), digest)

    def _put_quarantine(self, entry: Entry) -> QuarantineRef | None:
        if entry.quarantine is None:
            return None
        digest = sha256(entry.quarantine).hexdigest()
        key = layout.records_key(
            "quarantine", self.log, entry.first_record, entry.last_record, entry.first_record_ms, digest
        )
        self._store.create(key, entry.quarantine)
        records = sum(stop - start for start, stop in entry.quarantined)
        return QuarantineRef(
            key, len(entry.quarantine), digest, entry.quarantine_inflated, records, list(entry.quarantined)
        )

    def _numbered(self, batches: Sequence[Batch]) -> list[Batch]:
        """Number the batches over the log. Only a log that was idle has to look back for the last number."""
        if not batches:
            return []
        if self._next_batch is None:
            self._next_batch = self._count_batches()
        return [msgspec.structs.replace(batch, number=self._next_batch + place) for place, batch in enumerate(batches)]

    def _count_batches(self) -> int:
        """Read back, many manifests at once, to the newest statement that has batches."""
        end = self.head.size - 1
        with ThreadPoolExecutor(_PARALLEL_READS) as pool:
            while end > 0:
                start = max(0, end - _PARALLEL_READS)
                found = pool.map(lambda sequence: read_manifest(self._store, self.log, sequence), range(start, end))
                for older in reversed(list(found)):
                    number = _following_batch(older.statement)
                    if number is not None:
                        return number
                end = start
        return 0

    def _check_statement(self, found: Manifest, sequence: int) -> None:
        """Hold a statement of this log to signature, identity and edge."""
        statement = found.statement
        key = layout.manifest_key(self.log, sequence)
        _check_source(statement.log, self._log_id)
        if (statement.archive, statement.log, statement.sequence) != (self._info.archive, self._log_id, sequence):
            raise self._rollback(f"{key} states to be {_identity(statement)}, and is not of this log and place")
        text = manifest.message(found.line)
        if not any(signature.algorithm == "HMAC-SHA256" for signature, _ in found.signatures):
            raise self._rollback(f"{key} has no HMAC-SHA256 signature")
        for signature, value in found.signatures:
            trusted = self._trust.keys.get(signature.key)
            if trusted is None or trusted.algorithm != signature.algorithm:
                raise self._rollback(f"{key} is signed with the key {signature.key!r}, which the keyring does not hold")
            try:
                trusted.verify(text, value)
            except SigningError as error:
                raise self._rollback(f"the signature of {key} cannot be relied on: {error}") from None
        tree = statement.tree
        edge = tuple(bytes.fromhex(node) for node in tree.edge)
        if tree.size != sequence or len(edge) != sequence.bit_count() or merkle.edge_root(edge).hex() != tree.root:
            raise self._rollback(f"the tree that {key} states does not hold together")

    def _check_nothing_beyond(self, head: Head) -> None:
        newest = layout.manifest_key(self.log, head.size - 1) if head.size else layout.log_prefix(self.log)
        for info in self._store.list(layout.log_prefix(self.log), after=newest):
            parsed = layout.parse_manifest_key(info.key)
            # One more may have been put by a writer at work since the head was found; only a hole is wrong.
            if parsed and parsed[1] > head.size and not self._store.exists(layout.manifest_key(self.log, head.size)):
                raise self._rollback(
                    f"{layout.manifest_key(self.log, head.size)} is missing although {info.key} is there"
                )
        beyond = layout.checkpoint_key(self.log, head.size)
        for info in self._store.list(layout.checkpoint_prefix(self.log), after=beyond):
            parsed = layout.parse_checkpoint_key(info.key)
            if (
                parsed
                and parsed[1] > head.size
                and not self._store.exists(layout.manifest_key(self.log, parsed[1] - 1))
            ):
                raise self._rollback(f"the head has size {head.size} although the checkpoint {info.key} is there")

    def _check_memory(self, head: Head, memory: Seen) -> None:
        if memory.size > head.size:
            raise self._rollback(f"the head has size {head.size}, and {memory.where} saw {memory.size}")
        if memory.size == head.size:
            root = head.root
        else:
            root = read_manifest(self._store, self.log, memory.size).statement.tree.root
        if root != memory.root:
            raise self._rollback(
                f"at size {memory.size} the root is {root}, and {memory.where} saw {memory.root}: the log was forked"
            )

    def _rollback(self, what: str) -> HeadRollback:
        return HeadRollback(
            f"{self.log}: {what}. Nothing is appended, so that no second history is signed."
            f" Run 'custody verify' on {self._store.url}, and bring back what is missing before the next drain."
        )

    def _yield_to_winner(self) -> None:
        """Raise Fenced if the statement that took our place verifies and joins, else HeadRollback."""
        key = layout.manifest_key(self.log, self.head.size)
        try:
            winner = read_manifest(self._store, self.log, self.head.size)
        except FormatError as error:
            raise self._rollback(f"another writer's manifest does not parse: {error}") from None
        except StoreError as error:
            raise Fenced(f"{self.log}: {key} was taken by another writer, and cannot be read now: {error}") from error
        self._check_statement(winner, self.head.size)
        if winner.statement.tree.root != self.head.root:
            raise self._rollback(f"another writer's {key} was made over another history")
        expected = self.head.next_offset
        if expected is not None and winner.statement.first_offset != expected:
            raise self._rollback(
                f"another writer's {key} starts at offset {winner.statement.first_offset}, not {expected}"
            )
        raise Fenced(f"{self.log}: another writer appended {key} first; this run's work on the log is thrown away")


def _check_source(archived: LogId, present: LogId) -> None:
    """Refuse to go on when the topic, or the cluster, is not the one that the log was made from."""
    same_place = (archived.topic, archived.partition, archived.life) == (present.topic, present.partition, present.life)
    if same_place and archived != present:
        before, now = (
            (f"topic id {archived.topic_id}", f"topic id {present.topic_id}")
            if archived.cluster == present.cluster
            else (f"cluster {archived.cluster}", f"cluster {present.cluster}")
        )
        raise LogChanged(
            f"{archived.topic}/{archived.partition}: the archive's log is of {before}, and Kafka has {now}: the topic"
            " was deleted and created again, or moved. If that was meant, begin a new life of the log with"
            f" 'custody new-life {archived.topic}'; the old one stays as it is."
        )


def _following_batch(statement: Statement) -> int | None:
    """Return the number of the batch after this statement's last one, None if it has none to count from."""
    if statement.batches:
        return statement.batches[-1].number + 1
    return 0 if statement.sequence == 0 else None


def _identity(statement: Statement) -> str:
    log = statement.log
    return (
        f"statement {statement.sequence} of {log.topic}/{log.partition}, life {log.life}, cluster {log.cluster},"
        f" topic id {log.topic_id}, archive {statement.archive}"
    )
