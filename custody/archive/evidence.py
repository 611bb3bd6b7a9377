"""Evidence: one file that proves one event to anyone with the public key. Its parts, and how it is checked.

It is a zip of the event, its statement, the proof that the statement is in the log, and a signed head of the log. If
the batch has leaves, the file has no other event: only what the statement says about the others (counts, types, and the
first and last time of each batch). Otherwise it has the whole batch. Checking it needs no archive, no network and no
secret; its README says how to do it by hand. Rules of the check:

1. The parts must belong together, down to the bytes of the event. If they do not, that is a `FormatError`.
2. The signature policy (`custody.tlog.signatures`), with its quorum of witnesses, decides if the checkpoint counts. A
   key that has ended counts only if a consistency proof here shows that the checkpoint's tree is within its end.
3. Each known head of this log, also one at which a key ended, is compared with the checkpoint: by its root if the sizes
   are equal, else by a consistency proof. A difference is a fork. If the file has no such proof, the result says so:
   the file then proves the event in its own history, but not that this history is the known one.
4. The statement's own signature is checked if its secret is available. It is not needed: the checkpoint covers the
   statement.
5. Sizes are claims: nothing is read or inflated beyond the limit of its part.
6. `README.txt` is for people. It is not checked, and proves nothing.

It is one module because the parts of the file, the limits of each and the checks of each are one format. `prove.py`
makes such files.
"""

import io
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import Annotated, Any, Literal

import msgspec

from custody.archive.forms import AUDITS, statements_of
from custody.archive.trusted import known_heads
from custody.errors import FormatError, NotEvidence, SignatureInvalid
from custody.findings import Severity
from custody.format import archive_file, envelope, leaves, limits, manifest
from custody.format.archive_file import ArchiveFile
from custody.format.envelope import Hex, Int
from custody.format.layout import Log, parse_log_text
from custody.format.lines import check_line
from custody.format.manifest import Batch, Manifest, Statement
from custody.format.members import inflate_batch
from custody.format.offsets import line_of
from custody.format.times import parse_time
from custody.keys.trust import Trust
from custody.tlog import checkpoint, merkle
from custody.tlog.checkpoint import Checkpoint, Note
from custody.tlog.head import Head
from custody.tlog.signatures import Keys, NoteVerdict, Place, Verdict, check_checkpoint, check_file

__all__ = ["Result", "check_evidence"]

README, PROOF, ARCHIVE = "README.txt", "proof.json", "archive.json"
MANIFEST, CHECKPOINT = "manifest.json", "checkpoint.txt"
EVENT, LEAVES, BATCH = "event.json", "leaves.bin", "batch.jsonl.gz"

_LIMITS = {
    README: 65_536,
    PROOF: 1_048_576,
    ARCHIVE: limits.ARCHIVE_FILE_BYTES,
    MANIFEST: limits.FILE_BYTES,
    CHECKPOINT: limits.NOTE_BYTES,
    EVENT: limits.EVENT_BYTES,
    LEAVES: limits.BATCH_EVENTS * leaves.HASH_BYTES,
    BATCH: limits.MEMBER_BYTES,
}
_COMMON = {README, PROOF, ARCHIVE, MANIFEST, CHECKPOINT}
_SETS = (_COMMON | {EVENT, LEAVES}, _COMMON | {BATCH})
FILE_LIMIT = sum(_LIMITS.values()) + 65_536
"""The most bytes in the whole file."""
_ZIP_EPOCH = (1980, 1, 1, 0, 0, 0)
_INCOMPRESSIBLE = {LEAVES, BATCH}
_ZIP_ERRORS = (
    *(zipfile.BadZipFile, RuntimeError, OSError, ValueError, EOFError, OverflowError, LookupError),
    *(struct.error, zlib.error),
)
"""What zipfile raises on damaged or hostile bytes."""

Salt = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{32}\Z")]


class Consistency(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A proof between two trees, the checkpoint's and the one of `size`: the smaller is a prefix of the larger."""

    size: Int
    proof: list[Hex]


class Proof(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`proof.json`: where the event is, and the proofs of RFC 6962."""

    format: Literal["custody/evidence/1"] = "custody/evidence/1"
    log: str
    offset: Int
    batch: Int
    line: Int
    """The event's line in the batch, from 0."""
    salt: Salt | None
    """The event's salt, if the file discloses the event alone."""
    index: Int
    size: Int
    inclusion: list[Hex]
    consistency: list[Consistency]


_proof_decoder = msgspec.json.Decoder(Proof)

Relation = Literal["same", "consistent", "unshown", "fork"]


@dataclass(frozen=True, slots=True)
class Compared:
    """How the checkpoint's tree relates to a known head.

    Attributes:
        origin: where the head is known from, for messages.
        head: the known head.
        relation: the same head, proved consistent, not proved, or proved to be another history.
    """

    origin: str
    head: Head
    relation: Relation


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What the evidence proves, and what it does not. Its parts are already checked to belong together.

    Attributes:
        event: its bytes as archived, without a newline.
        proof: where the event is, and the Merkle proofs.
        statement: the statement that commits to the event.
        pinned: whether its `archive.json` is the one that `trust.json` pins.
        others: how many other events the file discloses.
        checkpoint: the head that covers the statement.
        note: the complete signed checkpoint.
        checkpoint_verdict: the policy's verdict on the checkpoint.
        statement_verdict: the policy's verdict on the statement's own signature.
        compared: how the checkpoint compares with each head known of this log.
    """

    event: bytes
    proof: Proof
    statement: Statement
    pinned: bool
    others: int
    checkpoint: Checkpoint
    note: Note
    checkpoint_verdict: NoteVerdict
    statement_verdict: Verdict
    compared: tuple[Compared, ...]

    @property
    def proved(self) -> bool:
        """Whether the event is proved."""
        return self.severity is None

    @property
    def severity(self) -> Severity | None:
        """The severity if the event is not proved, None if it is proved."""
        if not self.problems:
            return None
        problems = [*self.checkpoint_verdict.problems]
        if self.statement_verdict.refused:
            problems += self.statement_verdict.problems
        kinds = {problem.kind for problem in problems if not problem.policy}
        forked = any(known.relation == "fork" for known in self.compared)
        return Severity.TAMPERED if forked or kinds & {"signature", "key-algorithm"} else Severity.UNVERIFIABLE

    @property
    def problems(self) -> tuple[str, ...]:
        """Why the event is not proved, one line each; empty if it is proved."""
        problems = [
            f"two histories: the head of size {known.head.size}, root {known.head.root.hex()}, known from"
            f" {known.origin}, and the checkpoint of size {self.checkpoint.size}, root {self.checkpoint.root.hex()},"
            " are not consistent"
            for known in self.compared
            if known.relation == "fork"
        ]
        if not self.checkpoint_verdict.counts:
            problems.append(f"the checkpoint does not count: {self.checkpoint_verdict.reason}")
        if self.statement_verdict.refused:
            problems.append(f"the statement does not count: {self.statement_verdict.reason}")
        return tuple(problems)

    @property
    def remarks(self) -> tuple[str, ...]:
        """Remarks that do not affect the proof."""
        problems = [*self.checkpoint_verdict.problems, *self.statement_verdict.problems]
        return tuple(problem.message for problem in problems if problem.policy)

    @property
    def unproved(self) -> tuple[str, ...]:
        """What the evidence does not prove, one line each."""
        lines = [
            f"that this history is the one known from {known.origin} at size {known.head.size}: the file has no proof"
            " between the two; ask for evidence that was made with --for and your trust.json"
            for known in self.compared
            if known.relation == "unshown"
        ]
        if not self.pinned:
            archive = self.statement.archive
            lines.append(f"which archive this is: trust.json has no pin, and {archive} is only the file's claim")
        agrees = any(known.relation in {"same", "consistent"} for known in self.compared)
        if not agrees and not self.checkpoint_verdict.witnessed:
            lines.append(
                "that others see the same history: no trusted witness cosigned it, and it is not compared with any head"
                " known here"
            )
        if not self.statement_verdict.counts:
            lines.append(
                "who sealed the statement: the key of its signature is not available; but the checkpoint covers it"
            )
        return (
            *lines,
            "that what the event says is true",
            "when it happened: the times are claims of the application, Kafka and the archiver",
            "that no other event is missing",
        )

    def to_dict(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        return {
            "proved": self.proved,
            "verdict": self.severity.name.lower() if self.severity else "proved",
            "problems": list(self.problems),
            "remarks": list(self.remarks),
            "event": self.event.decode() if self.proved else None,
            "log": self.proof.log,
            "offset": self.proof.offset,
            "archive": {"id": self.statement.archive, "pinned": self.pinned},
            "sequence": self.statement.sequence,
            "sealed_at": self.statement.sealed_at,
            "writer": self.statement.writer,
            "other_events": self.others,
            "checkpoint": {
                "origin": self.checkpoint.origin,
                "size": self.checkpoint.size,
                "root": self.checkpoint.root.hex(),
                "signed_by": list(self.checkpoint_verdict.signers),
                "witnessed": [{"by": name, "at": at} for name, at in self.checkpoint_verdict.witnessed],
                "quorum": self.checkpoint_verdict.quorum,
            },
            "statement_signed_by": list(self.statement_verdict.held),
            "compared": [
                {
                    "with": known.origin,
                    "size": known.head.size,
                    "root": known.head.root.hex(),
                    "relation": known.relation,
                }
                for known in self.compared
            ],
            "not_proved": list(self.unproved),
        }


def check_evidence(data: bytes, trust: Trust, now: datetime) -> Result:
    """Check evidence with the given trust, and return what it proves. Offline: a KMS key is only known by its id.

    Args:
        data: the file.
        trust: keys, heads, witnesses and the archive's pin, from elsewhere.
        now: the time, with its zone: later cosignatures do not count.

    Raises:
        NotEvidence: it is not an evidence file.
        FormatError: its parts do not belong together.
        SignatureInvalid: its `archive.json` has a wrong signature.
    """
    members = unpack(data)
    proof = _parse_proof(members[PROOF])
    archive = archive_file.parse(members[ARCHIVE])
    entry = manifest.parse(members[MANIFEST])
    note = checkpoint.parse_note(members[CHECKPOINT])
    head = checkpoint.parse_checkpoint(note.text)
    statement = entry.statement
    log = Log(statement.log.topic, statement.log.partition, statement.log.epoch)
    keys = trust.at_hand
    _check_archive(archive, entry, keys, trust)
    _check_position(proof, entry, head, log)
    event, others = _check_event(members, proof, entry)
    compared = _Comparison(head.head, {consistency.size: consistency.proof for consistency in proof.consistency})
    sealed_at = parse_time(statement.sealed_at)
    return Result(
        event=event,
        proof=proof,
        statement=statement,
        pinned=trust.archive is not None,
        others=others,
        checkpoint=head,
        note=note,
        checkpoint_verdict=check_checkpoint(
            note,
            head,
            str(log),
            keys,
            within=compared.leads_to,
            witnesses=trust.witnesses,
            quorum=trust.quorum,
            # The checkpoint covers this statement, so it is not older.
            sealed_at=sealed_at,
            now=now,
        ),
        statement_verdict=check_file(
            entry.message,
            entry.signatures,
            keys,
            wanted=statements_of(log).wanted,
            position=Place(str(log), statement.sequence),
            sealed_at=sealed_at,
            within=compared.leads_to,
        ),
        compared=tuple(Compared(origin, known, compared.relation(known)) for origin, known in known_heads(trust, log)),
    )


def leads(first: Head, second: Head, proof: list[bytes]) -> bool:
    """Return whether a consistency proof shows that the smaller of two heads is a prefix of the larger.

    Raises:
        FormatError: the proof is too short or too long for these sizes.
    """
    older, newer = sorted((first, second), key=lambda head: head.size)
    roots = merkle.roots_from_consistency(older.size, newer.size, older.root, proof)
    return roots == (older.root, newer.root)


class _Comparison:
    """Compares the checkpoint's tree with known heads, by the consistency proofs in the file."""

    def __init__(self, head: Head, proofs: Mapping[int, list[str]]) -> None:
        self._head, self._proofs = head, proofs

    def relation(self, head: Head) -> Relation:
        if head.size == self._head.size:
            return "same" if head.root == self._head.root else "fork"
        if not head.size:
            return "consistent" if head.root == merkle.EMPTY_ROOT else "fork"
        proof = self._proofs.get(head.size)
        if proof is None:
            return "unshown"
        return "consistent" if leads(self._head, head, list(map(bytes.fromhex, proof))) else "fork"

    def leads_to(self, head: Head) -> bool:
        return self.relation(head) in {"same", "consistent"}


def _check_archive(archive: ArchiveFile, entry: Manifest, keys: Keys, trust: Trust) -> None:
    if entry.statement.archive != archive.id:
        raise FormatError(
            f"the statement is of the archive {entry.statement.archive}, but the archive.json is of {archive.id}"
        )
    if trust.archive is not None and archive.pin != trust.archive:
        raise FormatError(
            f"the evidence is of the archive {archive.id} with SHA-256 {archive.pin.sha256}, but trust.json pins"
            f" {trust.archive.id} with {trust.archive.sha256}"
        )
    verdict = check_file(
        archive.message, archive.signatures, keys, wanted=AUDITS.wanted, position=None, subject="archive.json"
    )
    if verdict.refused:
        raise SignatureInvalid(f"archive.json in the evidence is not validly signed: {verdict.reason}")


def _check_position(proof: Proof, entry: Manifest, head: Checkpoint, log: Log) -> None:
    """Check that proof, statement and checkpoint are of one log and archive, and that the proof is valid."""
    statement = entry.statement
    origin = checkpoint.origin_of(statement.archive, log)
    if head.origin != origin or proof.log != str(log) or parse_log_text(proof.log) != log:
        raise FormatError("the checkpoint is not of the log and archive of the statement")
    if (proof.index, proof.size) != (statement.sequence, head.size):
        raise FormatError("the proof is not for this statement and checkpoint")
    nodes = list(map(bytes.fromhex, proof.inclusion))
    root = merkle.root_from_inclusion(proof.index, proof.size, merkle.leaf_hash(entry.message), nodes)
    if root != head.root:
        raise FormatError("the statement is not in the tree that the checkpoint signs: one of the two was changed")


def _check_event(members: Mapping[str, bytes], proof: Proof, entry: Manifest) -> tuple[bytes, int]:
    """Return the event, and how many others the file discloses. Check that the statement commits to the event."""
    batch, line = line_of(entry.statement, proof.offset) or (None, None)
    if batch is None or line is None or (batch.number, line) != (proof.batch, proof.line):
        raise FormatError(f"the statement has no event at offset {proof.offset} in this batch and line")
    if line >= batch.events:
        raise FormatError("the batch has fewer events than the proof says")
    if (proof.salt is None) != (BATCH in members):
        raise FormatError("the evidence must have a salt if it discloses the event alone, and otherwise none")
    if proof.salt is None:
        event, others = _event_of_batch(members[BATCH], batch, line), batch.events - 1
    else:
        event, others = _event_alone(members, bytes.fromhex(proof.salt), batch, line), 0
    check_line(event)
    return event, others


def _event_alone(members: Mapping[str, bytes], salt: bytes, batch: Batch, line: int) -> bytes:
    event, hashes = members[EVENT], members[LEAVES]
    if batch.leaves is None or len(hashes) != batch.events * leaves.HASH_BYTES:
        raise FormatError("the evidence discloses the event alone, but the statement has no such leaves")
    if sha256(hashes).hexdigest() != batch.leaves.sha256:
        raise FormatError("the statement does not commit to these leaf hashes")
    start = line * leaves.HASH_BYTES
    if b"\n" in event or leaves.leaf_hash(salt, event) != hashes[start : start + leaves.HASH_BYTES]:
        raise FormatError("the statement does not commit to this event: it or its salt was changed")
    return event


def _event_of_batch(member: bytes, batch: Batch, line: int) -> bytes:
    if len(member) != batch.size:
        raise FormatError("the batch does not have the stated size")
    try:
        events = inflate_batch(batch, member).split(b"\n")
    except FormatError as error:
        raise FormatError(f"the batch does not match the statement: {error}") from None
    if len(events) != batch.events + 1 or events[-1]:
        raise FormatError("the batch does not have the stated number of lines")
    return events[line]


def _parse_proof(data: bytes) -> Proof:
    proof: Proof = envelope.decode_strictly(_proof_decoder, data, "proof.json in the evidence")
    sizes = [consistency.size for consistency in proof.consistency]
    if sizes != sorted(set(sizes)):
        raise FormatError("proof.json in the evidence: its consistency proofs are not sorted by size, one per size")
    return proof


def encode_proof(proof: Proof) -> bytes:
    """Return `proof.json`.

    Raises:
        FormatError: it exceeds the limit.
    """
    data = msgspec.json.format(msgspec.json.encode(proof), indent=1) + b"\n"
    if len(data) > _LIMITS[PROOF]:
        raise FormatError(f"proof.json would have {len(data)} bytes (limit {_LIMITS[PROOF]}): name fewer heads")
    return data


def pack(members: Mapping[str, bytes]) -> bytes:
    """Return a zip of these members. The same zlib always gives the same bytes."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as file:
        for name, data in members.items():
            info = zipfile.ZipInfo(name, _ZIP_EPOCH)
            info.external_attr = 0o644 << 16
            info.create_system = 3
            kind = zipfile.ZIP_STORED if name in _INCOMPRESSIBLE else zipfile.ZIP_DEFLATED
            file.writestr(info, data, kind, 9)
    return made.getvalue()


def unpack(data: bytes) -> dict[str, bytes]:
    """Return the members of the file. Stored sizes are claims: no member is inflated beyond its limit.

    Raises:
        NotEvidence: it is not a zip, or lacks members of evidence.
        FormatError: it has other members too, or one is damaged or exceeds its limit.
    """
    if len(data) > FILE_LIMIT:
        raise NotEvidence(f"not an evidence file: it is larger than the limit of {FILE_LIMIT:,} bytes")
    try:
        file = zipfile.ZipFile(io.BytesIO(data))
    except _ZIP_ERRORS as error:
        raise NotEvidence(f"not an evidence file: it is not a zip ({str(error) or type(error).__name__})") from None
    names = file.namelist()
    if not any(wanted <= set(names) for wanted in _SETS):
        raise NotEvidence(
            "not an evidence file: that is a zip of README.txt, proof.json, archive.json, manifest.json,"
            " checkpoint.txt, and either event.json and leaves.bin or batch.jsonl.gz"
        )
    if sorted(names) not in [sorted(wanted) for wanted in _SETS]:
        raise FormatError("the evidence has a member that is not allowed, or the same member twice")
    try:
        return {info.filename: _member(file, info) for info in file.infolist()}
    except _ZIP_ERRORS as error:
        raise FormatError(f"a part of the evidence is damaged: {str(error) or type(error).__name__}") from None


def _member(file: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    limit = _LIMITS[info.filename]
    if info.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED} or info.file_size > limit:
        raise FormatError(f"{info.filename} in the evidence has an unknown compression, or exceeds its limit")
    with file.open(info) as opened:
        # Bounded: a member may inflate to more than it says.
        data = opened.read(limit + 1)
        if len(data) > limit or len(data) != info.file_size:
            raise FormatError(f"{info.filename} in the evidence does not have its stated size")
    return data
