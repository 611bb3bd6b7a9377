"""Makes evidence of one event (`custody.archive.evidence`) from an archive.

The parts of the file must be valid for its maker, and the file is checked before it is returned. So an archive that was
tampered with gives an error, not evidence that others reject.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, cast

from custody.archive import evidence
from custody.archive.audited import audited_sizes
from custody.archive.forms import statements_of
from custody.archive.guesses import checkpoints_on, nightly_audits
from custody.archive.reader import read_archive, read_batch
from custody.archive.search import find_statement, no_event, unknown_offset
from custody.archive.trusted import Judge, known_heads, newest_checkpoint
from custody.errors import ConfigurationError, FormatError, ObjectMissing, SignatureInvalid, counted
from custody.format import layout, leaves, limits
from custody.format.layout import Log
from custody.format.manifest import Batch, SegmentRef
from custody.format.offsets import line_of
from custody.keys.trust import Trust
from custody.store.over import Over
from custody.store.protocol import Store
from custody.tlog import checkpoint
from custody.tlog.checkpoint import Checkpoint, Note
from custody.tlog.head import Head

__all__ = ["Made", "make_evidence"]

_README = """\
Evidence of one event of the log {log}, offset {offset}.

What is in this file
{contents}
  manifest.json   the signed statement, as stored: line 1 is the statement, line 2 its signatures. It tells about all
                  events of its segment how many there are, their types, and the first and last time of each batch
  archive.json    which archive this is, as stored
  proof.json      the Merkle proof (RFC 6962) that the statement is number {index}, from 0, of the log's first {size};
                  and proofs that the log's trees of other sizes and this one are of one history
  checkpoint.txt  the log's head at that size: a C2SP tlog-checkpoint, signed with Ed25519

To check it with the tool:  custody check-evidence FILE --trust trust.json

To check it by hand
{by_hand}
  2. h=$(head -n 1 manifest.json | tr -d '\\n' | sha256sum | cut -c 1-64)
     printf '\\000custody/manifest/1\\n%s\\n' "$h" | sha256sum
     is the leaf hash. Fold it with the hashes of "inclusion" in proof.json as RFC 9162, 2.1.3.2, says, each node being
     SHA-256(0x01 || left || right). The result, in base64, must be line 3 of checkpoint.txt.
  3. Check the signature of checkpoint.txt, an Ed25519 signature over all before its empty line, with any client of C2SP
     signed notes and a public key that you have from elsewhere, never from the archive.

What this proves: the event, byte for byte, was in the log before the checkpoint was signed, and has not changed since.
What it does not prove: that what the event says is true; when it happened, but for the times that the application,
Kafka and the archiver gave; that no other event is missing.
"""

_ALONE = """\
  event.json      the event, byte for byte as archived; no other event is here
  leaves.bin      one salted SHA-256, of 32 bytes, for each event of its batch"""

_ALONE_BY_HAND = """\
  1. (printf '{salt}'; cat event.json) | sha256sum
     with the event's salt from proof.json before it, must be hash number {line}, from 0, of leaves.bin:
     dd if=leaves.bin bs=32 skip={line} count=1 2>/dev/null | od -An -v -tx1 | tr -d ' \\n'
     sha256sum leaves.bin
     must be the "sha256" of "leaves" of the batch in manifest.json whose first_offset is {first}."""

_WHOLE = """\
  batch.jsonl.gz  the batch that holds the event, as stored: gzip of JSON lines. The event is line {number}, from 1"""

_WHOLE_BY_HAND = """\
  1. gunzip -c batch.jsonl.gz | sha256sum
     must be the "sha256" of the batch in manifest.json whose first_offset is {first}
     gunzip -c batch.jsonl.gz | sed -n {number}p
     is the event."""


class _ReadOnce(Over):
    """A store from which each whole object is read once. For the few small ones that a proof needs."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self._read: dict[str, bytes] = {}

    def read(self, key: str, *, limit: int, **part: Any) -> bytes:
        if part or limit > limits.FILE_BYTES:
            return self._store.read(key, limit=limit, **part)
        if key not in self._read:
            self._read[key] = self._store.read(key, limit=limit)
        return self._read[key]


@dataclass(frozen=True, slots=True)
class Made:
    """An evidence file.

    Attributes:
        data: its bytes.
        others: other events that it discloses: the batch has no leaves, or their secret is not available.
        why: which of these two it is.
    """

    data: bytes
    others: int
    why: str | None

    @property
    def summary(self) -> str:
        """What the file discloses besides the event, in a sentence for its maker."""
        if self.why is not None:
            return f"It discloses the whole batch, with {counted(self.others, 'other event')}: {self.why}."
        return (
            "It discloses this event and no other. Its manifest shows how many others there are, their types, and the"
            " first and last time of each batch."
        )


def make_evidence(
    store: Store,
    log: Log,
    offset: int,
    trust: Trust,
    now: datetime,
    *,
    note: bytes | None = None,
    auditor: Trust | None = None,
    whole_batch: bool = False,
) -> Made:
    """Return evidence of one event.

    Args:
        store: the archive.
        log: the event's log.
        offset: of the record in Kafka.
        trust: the maker's trust, with the leaf secrets.
        now: the time, with its zone.
        note: a checkpoint of this log that witnesses have cosigned, to use instead of one from the archive.
        auditor: the trust of the person who checks the evidence: proofs to its heads are added, and if the log's newest
            checkpoint does not count for it, the first one that covers the event is taken.
        whole_batch: disclose the whole batch if it has leaves but their secret is not available.

    Raises:
        ConfigurationError: the archive has no event at this offset, no checkpoint covers it yet, the note does not
            fit, or the leaf secret is not available and the whole batch was not asked for.
        FormatError: an object does not follow the format, or is not what was signed.
        StoreError: the store does not give it.
    """
    if log == layout.AUDIT_LOG:
        raise ConfigurationError("the log of audits has no events; name a topic's log, LOG/PARTITION")
    # The search, the proofs and the file itself need the same manifests.
    store = cast("Store", _ReadOnce(store))
    archive = read_archive(store)
    judge = Judge(store, log, statements_of(log), archive.id, trust)
    near = audited_sizes(store, archive.id, trust, nightly_audits(archive.statement.created, now)).get(str(log), 0)
    newest, _ = newest_checkpoint(store, log, archive.id, trust, near)
    latest = checkpoint.parse_checkpoint(newest.text) if newest is not None else None
    accounting = find_statement(store, log, offset, judge.may_stand, latest.size if latest else near)
    if accounting is None:
        raise unknown_offset(log, offset)
    sequence, entry = accounting
    segment, position = entry.statement.segment, line_of(entry.statement, offset)
    if position is None or segment is None:
        raise no_event(log, sequence, entry.statement, offset)
    batch, line = position
    if batch.leaves is not None and batch.leaves.key not in trust.leaves and batch.events > 1 and not whole_batch:
        raise ConfigurationError(
            f"the leaf secret {batch.leaves.key!r} is not available, and without it the evidence would disclose"
            f" {counted(batch.events - 1, 'other event')}, the whole batch. Only the operator's keyring has it: as the"
            " operator, name it with --keys file:KEYRING, or in the setting `keys` or `checkpoint_keys`. As an auditor,"
            " ask the operator for the evidence, or disclose the batch with --whole-batch"
        )
    reader = Judge(store, log, statements_of(log), archive.id, auditor) if auditor else judge
    if note is not None:
        signed, head = _given(note, sequence, log, judge)
    elif newest is not None and latest and latest.size > sequence and reader.refusal(newest, latest) is None:
        signed, head = newest, latest
    else:
        # The newest is none, or its key counts for the maker alone. The oldest one is by the oldest key.
        signed, head = _covering(store, log, sequence, judge)
    heads = [*known_heads(trust, log), *(known_heads(auditor, log) if auditor else [])]
    if latest is not None:
        heads.append((layout.checkpoint_key(log, latest.size), latest.head))
    payload, member = _read_batch(store, segment, batch)
    salts, why = _salts(trust, archive.id, log, batch)
    proof = evidence.Proof(
        log=str(log),
        offset=offset,
        batch=batch.number,
        line=line,
        salt=salts[line * leaves.SALT_BYTES :][: leaves.SALT_BYTES].hex() if salts else None,
        index=sequence,
        size=head.size,
        inclusion=[node.hex() for node in judge.proofs.inclusion(sequence, head.size)],
        consistency=_consistency(judge, log, head.head, heads),
    )
    if salts:
        events = payload.split(b"\n")[:-1]
        shown = {evidence.EVENT: events[line], evidence.LEAVES: leaves.hashes(events, salts)}
    else:
        shown = {evidence.BATCH: member}
    members = {
        evidence.README: _readme(proof, batch).encode(),
        evidence.PROOF: evidence.encode_proof(proof),
        evidence.ARCHIVE: store.read(layout.ARCHIVE, limit=limits.ARCHIVE_FILE_BYTES),
        evidence.MANIFEST: store.read(layout.manifest_key(log, sequence), limit=limits.FILE_BYTES),
        evidence.CHECKPOINT: signed.encode(),
        **shown,
    }
    data = evidence.pack(members)
    _check(data, trust, now, offset)
    return Made(data, 0 if salts else batch.events - 1, why)


def _given(data: bytes, sequence: int, log: Log, judge: Judge) -> tuple[Note, Checkpoint]:
    """Return the given checkpoint. Check that it is valid, of this log, and covers the statement."""
    try:
        note = checkpoint.parse_note(data)
        head = checkpoint.parse_checkpoint(note.text)
    except FormatError as error:
        raise ConfigurationError(f"the given note is not a checkpoint: {error}") from None
    refusal = judge.refusal(note, head)
    if refusal is not None:
        raise ConfigurationError(f"the given checkpoint does not count: {refusal}")
    if head.size <= sequence:
        raise ConfigurationError(
            f"the given checkpoint covers {counted(head.size, 'statement')} of {log}, but the event is in statement"
            f" {sequence}, counted from 0: give a later one"
        )
    return note, head


def _covering(store: Store, log: Log, sequence: int, judge: Judge) -> tuple[Note, Checkpoint]:
    """Return the smallest valid checkpoint that covers a statement."""
    signed = next(judge.checkpoints(checkpoints_on(store, log, sequence)), None)
    if signed is not None:
        return signed
    raise ConfigurationError(
        f"no checkpoint that a trusted key signed covers statement {sequence} of {log} yet: run `custody checkpoint"
        f" --write {log}`, or wait for the next drain"
    )


def _consistency(judge: Judge, log: Log, ours: Head, heads: Sequence[tuple[str, Head]]) -> list[evidence.Consistency]:
    """Return proofs between the checkpoint and each head of another size.

    Raises:
        FormatError: the archive is not consistent with one of them.
    """
    proofs: dict[int, evidence.Consistency] = {}
    for origin, known in heads:
        if not known.size or known == ours:
            continue
        try:
            proof = _proof_between(judge, ours, known)
        except FormatError as error:
            raise FormatError(
                f"the archive is not consistent with the head of {log} known from {origin}, size {known.size}, root"
                f" {known.root.hex()}: {error}; run `custody verify`"
            ) from None
        proofs[known.size] = evidence.Consistency(known.size, [node.hex() for node in proof])
    return [proofs[size] for size in sorted(proofs)]


def _proof_between(judge: Judge, ours: Head, known: Head) -> list[bytes]:
    """Return the proof between two different heads of a log.

    Raises:
        FormatError: there is none.
    """
    if known.size == ours.size:
        raise FormatError(f"at this size its root is {ours.root.hex()}")
    proof = judge.proofs.consistency(min(known.size, ours.size), max(known.size, ours.size))
    if not evidence.leads(ours, known, proof):
        raise FormatError("its statements are of another history")
    return proof


def _read_batch(store: Store, segment: SegmentRef, batch: Batch) -> tuple[bytes, bytes]:
    """Return a batch's inflated bytes, and its gzip member as stored."""
    wrong = f"batch {batch.number} in {segment.key} is not the stated one"
    try:
        payload, member = read_batch(store, segment.key, batch)
    except ObjectMissing:
        raise ObjectMissing(
            f"the segment {segment.key} does not exist: it has expired, or was removed; `custody verify` says which"
        ) from None
    except FormatError as error:
        raise FormatError(f"{wrong}: {error}; run `custody verify`") from None
    if payload.count(b"\n") != batch.events:
        raise FormatError(f"{wrong}: it has another number of lines; run `custody verify`")
    return payload, member


def _salts(trust: Trust, archive: str, log: Log, batch: Batch) -> tuple[bytes, str | None]:
    """Return the salts of a batch's events, or why there are none and the event cannot be disclosed alone."""
    if batch.leaves is None:
        return b"", "its batch was written without leaves (the setting `drain.event_leaves` was off)"
    secret = trust.leaves.get(batch.leaves.key)
    if secret is None:
        return b"", f"the leaf secret {batch.leaves.key!r} is not available"
    return leaves.salts(secret, archive, str(log), batch.number, batch.events), None


def _readme(proof: evidence.Proof, batch: Batch) -> str:
    alone = proof.salt is not None
    salt = "".join(f"\\{byte:03o}" for byte in bytes.fromhex(proof.salt or ""))
    values = {"line": proof.line, "number": proof.line + 1, "first": batch.first_offset, "salt": salt}
    return _README.format(
        log=proof.log,
        offset=proof.offset,
        index=proof.index,
        size=proof.size,
        contents=(_ALONE if alone else _WHOLE).format_map(values),
        by_hand=(_ALONE_BY_HAND if alone else _WHOLE_BY_HAND).format_map(values),
    )


def _check(data: bytes, trust: Trust, now: datetime, offset: int) -> None:
    """Check evidence before it is returned. A quorum of witnesses is not needed yet: they may cosign later."""
    try:
        result = evidence.check_evidence(data, replace(trust, quorum=0), now)
    except (FormatError, SignatureInvalid) as error:
        reason = str(error)
    else:
        reason = "; ".join(result.problems)
    if reason:
        raise FormatError(
            f"the evidence of offset {offset} does not pass its own check: {reason}; run `custody verify`"
        )
