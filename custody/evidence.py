"""One file that proves one event: its batch, its statement, the proof that the statement is in the log, a signed head.

A zip of five stored members, the same bytes whenever it is made from the same archive and checkpoint. Checking it needs
public keys alone, and no archive; its README says how to do so by hand. What it proves: that the event was in the log
before somebody signed the checkpoint. It does not prove that what the event says is true, nor that no other is missing.
"""

import io
import json
import zipfile
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Literal

import msgspec

from custody import checkpoint, layout, merkle
from custody.archive import find_statement
from custody.chain import unlined_ranges
from custody.checkpoint import Note
from custody.contents import inflate
from custody.errors import ConfigurationError, FormatError, KeyUnavailable, ObjectMissing
from custody.layout import Log
from custody.lines import BATCH_BYTES_LIMIT, check_line
from custody.manifest import MANIFEST_LIMIT, Batch, Hex, Int, Range, Statement, parse
from custody.proofs import Proofs
from custody.store import Store
from custody.trust import Trust

FORMAT: Literal["custody/evidence/1"] = "custody/evidence/1"
_MEMBER_LIMIT = BATCH_BYTES_LIMIT + 65_536
_LIMITS = {
    "README.txt": 65_536,
    "proof.json": 65_536,
    "batch.jsonl.gz": _MEMBER_LIMIT,
    "manifest.json": MANIFEST_LIMIT,
    "checkpoint.txt": checkpoint.NOTE_LIMIT,
}
FILE_LIMIT = sum(_LIMITS.values()) + 65_536
"""Bytes of the whole file."""
_EPOCH = (1980, 1, 1, 0, 0, 0)

_README = """\
Evidence of one event of the log {log}, offset {offset}.

What lies here
  batch.jsonl.gz  the batch that holds the event, as stored: gzip of JSON lines. The event is line {line}, from 1
  manifest.json   the signed statement, as stored: line 1 is the statement, line 2 its signatures
  proof.json      the Merkle proof (RFC 6962) that the statement is number {index}, from 0, of the log's first {size}
  checkpoint.txt  the log's head at that size: a C2SP tlog-checkpoint, signed with Ed25519

To check it with the tool:  custody check-evidence FILE --trust trust.json

To check it by hand
  1. gunzip -c batch.jsonl.gz | sha256sum         must be the "sha256" of the batch whose first_offset is {first}
     gunzip -c batch.jsonl.gz | sed -n {line}p    is the event
  2. (printf '\\0'; head -n 1 manifest.json | tr -d '\\n') | sha256sum
     is the leaf hash. Fold it with the hashes of proof.json as RFC 9162, 2.1.3.2, says, each node being
     SHA-256(0x01 || left || right). The result, in base64, must be line 3 of checkpoint.txt.
  3. Check the signature of checkpoint.txt, an Ed25519 signature over all before its empty line, with any client of C2SP
     signed notes and a public key that you have from elsewhere, never from the archive.

What this proves: the event, byte for byte, was in the log before the checkpoint was signed, and has not changed since.
What it does not prove: that what the event says is true; when it happened, but for the times that the application,
Kafka and the archiver gave; that no other event is missing.
"""


class _Proof(msgspec.Struct, forbid_unknown_fields=True):
    format: Literal["custody/evidence/1"]
    log: str
    offset: Int
    batch: Int
    line: Int
    """Within the batch, from 0."""
    index: Int
    size: Int
    proof: list[Hex]


@dataclass(frozen=True, slots=True)
class Proven:
    """What evidence shows.

    Attributes:
        event: its bytes as archived, without a newline.
        log: `<log>/<partition>`.
        offset: of the record in Kafka.
        sealed_at: when the statement was sealed, by the writer's clock.
        writer: who sealed it.
        size: statements that the checkpoint covers.
        origin: the checkpoint's first line.
        signers: names of the trusted keys that signed the checkpoint.
        witnessed: for each witness among them, when it did, in seconds since 1970.
    """

    event: bytes
    log: str
    offset: int
    sealed_at: str
    writer: str
    size: int
    origin: str
    signers: tuple[str, ...]
    witnessed: tuple[tuple[str, int], ...]


def make_evidence(store: Store, log: Log, offset: int) -> bytes:
    """Return evidence of one event.

    Raises:
        ConfigurationError: the archive holds no event at this offset, or no checkpoint covers it yet.
        FormatError: what is on the way is not of the format.
        StoreError: the store does not give it.
    """
    found = find_statement(store, log, offset)
    if found is None:
        raise ConfigurationError(
            f"no statement of {log} accounts for offset {offset}; `custody show {log}` shows its head"
        )
    sequence, statement = found[0], found[1].statement
    place = _place(statement, offset)
    if place is None or statement.segment is None:
        kind = _other_kind(statement, offset)
        raise ConfigurationError(
            f"{log} has no event at offset {offset}: {kind}; `custody show {log}@{offset}` shows what is known of it"
        )
    batch, line = place
    size, note = _covering(store, log, sequence)
    member = store.read(statement.segment.key, limit=batch.size, start=batch.start, size=batch.size)
    if sha256(inflate(member, batch.inflated)).hexdigest() != batch.sha256:
        raise FormatError(f"the batch of offset {offset} is not the one stated; `custody verify` says more")
    proof = Proofs(store, log).inclusion(sequence, size)
    written = _Proof(FORMAT, str(log), offset, batch.number, line, sequence, size, [node.hex() for node in proof])
    readme = _README.format(log=log, offset=offset, line=line + 1, index=sequence, size=size, first=batch.first_offset)
    manifest = store.read(layout.manifest_key(log, sequence), limit=MANIFEST_LIMIT)
    members = {
        "README.txt": readme.encode(),
        "proof.json": msgspec.json.format(msgspec.json.encode(written), indent=1) + b"\n",
        "batch.jsonl.gz": member,
        "manifest.json": manifest,
        "checkpoint.txt": note,
    }
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_STORED) as file:
        for name, data in members.items():
            info = zipfile.ZipInfo(name, _EPOCH)
            info.external_attr = 0o644 << 16
            info.create_system = 3
            file.writestr(info, data)
    return made.getvalue()


def check_evidence(data: bytes, trust: Trust) -> Proven:
    """Check evidence, with nothing but public keys, and return what it shows.

    Raises:
        KeyUnavailable: no key is trusted that signed its checkpoint.
        SignatureInvalid: a signature of the checkpoint by a trusted key does not hold.
        FormatError: it is no evidence, or its parts do not belong together.
    """
    members = _read(data)
    proof = _parse_proof(members["proof.json"])
    manifest = parse(members["manifest.json"])
    statement = manifest.statement
    note = checkpoint.parse_note(members["checkpoint.txt"])
    head = checkpoint.parse_checkpoint(note.text)
    signers, witnessed = _signers(note, trust)
    log = Log(statement.log.topic, statement.log.partition, statement.log.life)
    if trust.archive is not None and statement.archive != trust.archive:
        raise FormatError(f"the evidence is of the archive {statement.archive}, and {trust.archive} is trusted")
    if not head.origin.endswith(f"/{statement.archive}/{log}") or proof.log != str(log):
        raise FormatError("the checkpoint is not of the log and archive of the statement")
    if (proof.index, proof.size) != (statement.sequence, head.size):
        raise FormatError("the proof is not of the statement and the checkpoint beside it")
    nodes = [bytes.fromhex(node) for node in proof.proof]
    if merkle.root_from_inclusion(proof.index, proof.size, merkle.leaf_hash(manifest.line), nodes) != head.root:
        raise FormatError("the statement is not in the tree that the checkpoint signs: one of the two was changed")
    place = _place(statement, proof.offset)
    if place is None or (place[0].number, place[1]) != (proof.batch, proof.line):
        raise FormatError(f"the statement has no event at offset {proof.offset} at this place")
    batch, line = place
    payload = _inflate(members["batch.jsonl.gz"], batch)
    events = payload.split(b"\n")
    if len(events) != batch.events + 1 or events[-1] or line >= batch.events:
        raise FormatError("the batch has another number of lines than stated")
    check_line(events[line])
    return Proven(
        event=events[line],
        log=str(log),
        offset=proof.offset,
        sealed_at=statement.sealed_at,
        writer=statement.writer,
        size=head.size,
        origin=head.origin,
        signers=signers,
        witnessed=witnessed,
    )


def _read(data: bytes) -> dict[str, bytes]:
    """Return the members of the zip, each within its limit: stored sizes are claims, and nothing is unpacked."""
    if len(data) > FILE_LIMIT:
        raise FormatError(f"the file has {len(data)} bytes (limit {FILE_LIMIT}): it is no evidence")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as file:
            infos = file.infolist()
            if sorted(info.filename for info in infos) != sorted(_LIMITS):
                raise FormatError(f"the file is no evidence: it does not hold exactly {', '.join(_LIMITS)}")
            for info in infos:
                if info.compress_type != zipfile.ZIP_STORED or info.file_size > _LIMITS[info.filename]:
                    raise FormatError(f"{info.filename[:100]} in the evidence is packed, or beyond its limit")
            return {info.filename: file.read(info) for info in infos}
    except (zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, RuntimeError, OSError, ValueError) as error:
        raise FormatError(f"the file is no evidence: {error}") from None
    except (EOFError, OverflowError, KeyError, IndexError) as error:
        raise FormatError(f"the file is no evidence: {type(error).__name__}") from None


def _parse_proof(data: bytes) -> _Proof:
    names: list[str] = []
    try:
        proof = msgspec.json.decode(data, type=_Proof)
        json.loads(data, object_pairs_hook=lambda pairs: names.extend(name for name, _ in pairs))
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise FormatError(f"proof.json in the evidence is not of its form: {str(error)[:200]}") from None
    if len(names) != len(set(names)):
        raise FormatError("proof.json in the evidence is not of its form: a field stands twice")
    return proof


def _signers(note: Note, trust: Trust) -> tuple[tuple[str, ...], tuple[tuple[str, int], ...]]:
    keys = checkpoint.checkpoint_keys(trust)
    names, witnessed = [], []
    for one in note.signatures:
        key = keys.get((one.name, one.key_hash))
        if key is not None:
            time = key.verify(note.text, one.signature)
            names.append(key.name)
            if time is not None:
                witnessed.append((key.name, time))
    if not names:
        found = ", ".join(one.name[:100] for one in note.signatures)
        raise KeyUnavailable(
            f"no trusted key signed the checkpoint ({found} did): put the vkey, as you got it from elsewhere, into"
            " trust.json under checkpoint"
        )
    return tuple(names), tuple(witnessed)


def _inflate(member: bytes, batch: Batch) -> bytes:
    if batch.inflated > BATCH_BYTES_LIMIT or len(member) != batch.size:
        raise FormatError("the batch has another size than stated, or is beyond the limit")
    payload = inflate(member, batch.inflated)
    if sha256(payload).hexdigest() != batch.sha256:
        raise FormatError("the batch is not the one that the statement names: its events were changed")
    return payload


def _place(statement: Statement, offset: int) -> tuple[Batch, int] | None:
    """Return the batch that holds an offset, and the line, from 0; None where no batch does."""
    unlined = unlined_ranges(statement)
    if any(start <= offset < end for start, end in unlined):
        return None
    for batch in statement.batches:
        if batch.first_offset <= offset < batch.next_offset:
            return batch, offset - batch.first_offset - _within(unlined, batch.first_offset, offset)
    return None


def _within(ranges: list[Range], first: int, end: int) -> int:
    return sum(max(min(stop, end) - max(start, first), 0) for start, stop in ranges)


def _other_kind(statement: Statement, offset: int) -> str:
    quarantined = statement.quarantine.offsets if statement.quarantine else []
    for what, ranges in (
        ("it is in quarantine", quarantined),
        ("Kafka gave no record there (a transaction's marker, an aborted or compacted record)", statement.skipped),
        ("it was lost before it was archived", [statement.lost] if statement.lost else []),
    ):
        if any(start <= offset < end for start, end in ranges):
            return what
    return "the statement accounts for it otherwise"


def _covering(store: Store, log: Log, sequence: int) -> tuple[int, bytes]:
    """Return the smallest checkpoint that covers a statement."""
    sizes = []
    for info in store.list(layout.checkpoint_prefix(log), after=layout.checkpoint_key(log, sequence)):
        parsed = layout.parse_checkpoint_key(info.key)
        if parsed:
            sizes.append(parsed[1])
    if not sizes:
        raise ConfigurationError(
            f"no checkpoint covers statement {sequence} of {log} yet: run `custody checkpoint --write {log}`, or wait"
            " for the next audit"
        )
    try:
        return min(sizes), store.read(layout.checkpoint_key(log, min(sizes)), limit=checkpoint.NOTE_LIMIT)
    except ObjectMissing:
        raise FormatError(
            f"the checkpoint of size {min(sizes)} of {log} has gone; `custody verify` says more"
        ) from None


def to_dict(proven: Proven) -> dict[str, Any]:
    """Return what `--json` prints."""
    return {
        "log": proven.log,
        "offset": proven.offset,
        "event": proven.event.decode(),
        "sealed_at": proven.sealed_at,
        "writer": proven.writer,
        "checkpoint": {"origin": proven.origin, "size": proven.size, "signed_by": list(proven.signers)},
        "witnessed": [{"by": name, "at": at} for name, at in proven.witnessed],
    }
