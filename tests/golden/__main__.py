"""Regenerates the golden archive, `python -m tests.golden`, after a change of format that was meant; read the diff.

The archive lies in `tests/golden/archive`, with `tests/golden/keys/plain.json` as its keyring. Records, clock, key and
writer are fixed. isal's output depends on the processor, so members that are there already are kept as long as they
inflate to what they should, and statements are made from them.
"""

import contextlib
import shutil
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path

import msgspec

from custody.archive.assemble import TIME_APPEND, TIME_CREATE, Assembler
from custody.archive.checkpoints import put_checkpoint
from custody.archive.forms import form_of
from custody.archive.reader import Tip, find_audit_tip
from custody.archive.trusted import Judge
from custody.archive.writer import Entry, LogWriter, append_audit
from custody.format import archive_file, audit, envelope, layout
from custody.format.archive_file import ArchiveStatement
from custody.format.audit import Audit, Covered, Marks, SignedAudit
from custody.format.envelope import HeadRef
from custody.format.leaves import LeafMaker
from custody.format.manifest import LogId, PreviousEpoch, Unreadable
from custody.format.times import format_time
from custody.keys.key import LeafKey
from custody.keys.open import open_signers
from custody.keys.trust import open_trust
from custody.store.open import open_store
from custody.tlog.head import Head
from custody.verify.run import verify
from tests.golden import keyrings
from tests.helpers.corpus import CASES
from tests.helpers.reading import anything, read_folder
from tests.helpers.sample import Message, event

HERE = Path(__file__).parent
ARCHIVE = HERE / "archive"
KEYRING = HERE / "keys" / "plain.json"
BEGIN = datetime(2026, 3, 1, 12, tzinfo=UTC)
INFO = ArchiveStatement(
    archive="6f1ed002-ab59-4c4f-8b0c-d1a4c2b3e4f5",
    created=format_time(BEGIN),
    heartbeat=3600,
    checkpoint=3600,
    retention_days=365,
)
LARGE = bytes(8 * 1_048_576 + 1)
"""The value of a record that is too large for the quarantine: its digest alone is kept."""
TOPIC = "audit.golden"
WRITER = "custody 0, golden, 00000000-0000-4000-8000-000000000000"
STABLE = ("finding", "severity", "log", "sequence", "through", "batch", "offset")
"""Fields of a finding that are no text."""
EDGES = (
    "api_key_id null",
    "client_ip v6",
    "unnamed field",
    "numbers",
    "indented",
    "CR LF",
    "all escapes",
    "line separator in a string",
    "looks like two lines",
    "four bytes",
    "64 deep",
    "event_type nested too",
    "time 1970-01-01T00:00:00Z",
    "time 2026-03-01T12:34:56.999999999999Z",
    "time 2026-03-01T12:34:56-05:30",
    "time 9999-12-31T23:59:59.9999999999Z",
)
"""Cases of the corpus, by name: one that is added there changes nothing here."""
_KNOWN = b'"timestamp":"2026-01-31T12:00:00Z","request_id":"r","api_key_id":null,"client_ip":"10.0.0.1"'
_AUTH = b'"event_type":"auth_attempt",' + _KNOWN
_REST = b'"status":"success","failure_reason":null,"key_version":null,"key_age_days":null'
INVALID = (
    b"",
    b"ping",
    b'["event_type","auth_attempt"]',
    b'{"event_type":"auth_attempt","timestamp":"',
    b"\xff\xfe not UTF-8",
    b"{%b,%b,%b}" % (_AUTH, _REST, _AUTH),
    b'{"event_type":"coffee_break",%b,%b}' % (_KNOWN, _REST),
    b"{%b,%b}" % (_AUTH.replace(b"2026-01-31T12:00:00Z", b"yesterday"), _REST),
    b"{%b,%b}" % (_AUTH.replace(b"10.0.0.1", b"localhost"), _REST),
    b"{%b,%b}" % (_AUTH, _REST.replace(b"success", b"maybe")),
)
"""Values that the strictest writer quarantines, each for another reason."""


def appended(offset: int, value: bytes | None) -> Message:
    """Return a record whose time the broker set."""
    return Message(offset, value, (TIME_APPEND, 1_772_370_000_000 + offset))


def timeless(offset: int, value: bytes | None) -> Message:
    """Return a record without a time."""
    return Message(offset, value, (TIME_CREATE, -1))


@contextlib.contextmanager
def private_keyring() -> Iterator[str]:
    """Give the URI of a copy of the keyring that nobody else can read: git keeps no such mode."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "keyring.json"
        shutil.copy(KEYRING, copy)
        copy.chmod(0o600)
        yield f"file:{copy}"


def members(objects: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return the gzip members of an archive's segments and quarantine objects, by the SHA-256 of what they hold."""
    found = {}
    for key, data in objects.items():
        if not key.endswith(".jsonl.gz"):
            continue
        while data:
            machine = zlib.decompressobj(wbits=31)
            payload = machine.decompress(data)
            rest = machine.unused_data
            found[sha256(payload).hexdigest()] = data[: len(data) - len(rest)]
            data = rest
    return found


def build(folder: Path, kept: Mapping[str, bytes]) -> None:
    """Write the archive into an empty folder, with kept members where there are any."""
    store = open_store(str(folder))
    with private_keyring() as uri:
        signers, trust = open_signers(uri, BEGIN), open_trust([uri])
    store.create(layout.ARCHIVE, envelope.seal(envelope.encode_line(INFO), archive_file.FORMAT, signers.both()))
    moments = (BEGIN + timedelta(seconds=15 * step, microseconds=step) for step in range(1000))

    def writer(epoch: int) -> LogWriter:
        made = LogWriter(
            store,
            INFO.archive,
            LogId("golden-cluster", TOPIC, f"golden-topic-{epoch}", 3, epoch),
            signer=signers.hmac(),
            trust=trust,
            writer=WRITER,
            clock=lambda: next(moments),
        )
        made.open()
        return made

    first = writer(1)
    for entry in first_epoch():
        first.append(with_members(entry, kept))
    second = writer(2)
    head = first.tip.head
    second.append(Entry(first_offset=0, next_offset=0, previous_epoch=PreviousEpoch(1, head.size, head.root.hex())))
    # The second epoch's batches have leaves.
    assert isinstance(signers.leaves, LeafKey)
    maker = LeafMaker(signers.leaves, INFO.archive, str(second.log))
    assembler = Assembler(0, batch_events=10, segment_bytes=2**20, level=1, number=second.next_batch, leaves=maker)
    assembler.add([timeless(offset, event(offset)) for offset in range(3)])
    second.append(with_members(assembler.cut(), kept))
    # Somebody without a key took the next slot: the writer passes over it.
    store.create(layout.manifest_key(second.log, second.tip.size), b"garbage")
    third = writer(2)
    third.append(assembler.cut())
    heads = {str(log.log): log.tip.head for log in (first, third)}

    def put(log: layout.Log, head: Head) -> None:
        judge = Judge(store, log, form_of(log), INFO.archive, trust)
        put_checkpoint(store, INFO.archive, log, head, signers.ed25519(), judge)

    put(first.log, heads[str(first.log)])
    put(third.log, heads[str(third.log)])
    seen = verify(store, trust, now=BEGIN + timedelta(days=1), workers=0)
    findings = [{name: one.to_dict()[name] for name in STABLE if name in one.to_dict()} for one in seen.findings]

    def audited(tip: Tip[SignedAudit]) -> Audit:
        all_of_it = not tip.size
        return Audit(
            format=audit.FORMAT,
            archive=INFO.archive,
            sequence=tip.size,
            tree=tip.tree,
            passed_over=list(tip.passed_over),
            started_at=format_time(BEGIN + timedelta(days=1)),
            sealed_at=format_time(BEGIN + timedelta(days=1, minutes=tip.size)),
            writer=WRITER,
            heads={name: HeadRef(head.size, head.root.hex()) for name, head in heads.items()},
            covered={name: [Covered(0, head.size, "new")] for name, head in heads.items()} if all_of_it else {},
            marks={name: Marks(0, 0, format_time(BEGIN + timedelta(days=1)), 0) for name in heads},
            counts={"events": sum(one.events for one in seen.logs) if all_of_it else 0},
            findings=findings if all_of_it else [],
            objects=[],
            verdict="incomplete" if all_of_it else "verified",
        )

    tip = find_audit_tip(store, anything)
    for _ in range(2):
        tip = append_audit(store, tip, audited, signers.both(), trust)
        put(layout.AUDIT_LOG, tip.head)


def first_epoch() -> Iterator[Entry]:
    """Yield what the first epoch's statements account for: all that FORMAT.md knows but what has expired."""
    assembler = Assembler(1000, batch_events=10, segment_bytes=2**20, level=1, own_types=False)
    yield assembler.cut()
    # Several batches, and edges of the event's definition that every writer may take.
    assembler.add([Message(offset, event(offset)) for offset in range(1000, 1025)])
    cases = {case.name: case.value for case in CASES}
    assembler.add([Message(1025 + place, cases[name]) for place, name in enumerate(EDGES)])
    yield assembler.cut()
    # Skipped and quarantined offsets between, before and after events; both kinds of time.
    assembler.skip(assembler.position + 2)
    for place, value in enumerate([b"no event", *INVALID, None]):
        start = assembler.position
        assembler.add([Message(start, event(start)), Message(start + 1, value), appended(start + 2, event(start + 2))])
        if place % 3 == 0:
            assembler.skip(assembler.position + 1 + place)
    yield assembler.cut()
    # A heartbeat; skipped offsets alone; a loss with events after it; quarantined records alone; a loss alone.
    yield assembler.cut()
    assembler.skip(assembler.position + 7)
    yield assembler.cut()
    assembler.lose(assembler.position + 100)
    start = assembler.position
    assembler.add([Message(offset, event(offset)) for offset in range(start, start + 5)])
    yield assembler.cut()
    start = assembler.position
    assembler.add([Message(start, b""), Message(start + 1, b"\xff")])
    yield assembler.cut()
    assembler.lose(assembler.position + 1)
    yield assembler.cut()
    # A record too large to be kept, and offsets that no client can decode.
    assembler.add([Message(assembler.position, LARGE)])
    yield assembler.cut()
    start = assembler.position
    assembler.skip(start + 2)
    admitted = Unreadable(start, start + 2, "the broker gives a damaged batch")
    yield replace(assembler.cut(), skipped=[], unreadable=[admitted])


def with_members(entry: Entry, kept: Mapping[str, bytes]) -> Entry:
    """Return the entry with kept members in place of those that this processor has just made."""
    chosen, batches, place = [], [], 0
    for batch, fresh in zip(entry.batches, entry.members, strict=True):
        member = kept.get(batch.sha256, fresh)
        chosen.append(member)
        batches.append(msgspec.structs.replace(batch, start=place, size=len(member)))
        place += len(member)
    quarantine = entry.quarantine
    if quarantine is not None:
        payload = zlib.decompress(quarantine, wbits=31)
        quarantine = kept.get(sha256(payload).hexdigest(), quarantine)
    return replace(entry, members=chosen, batches=batches, quarantine=quarantine)


def regenerate() -> None:
    """Write the golden archive anew."""
    kept = members(read_folder(ARCHIVE)) if ARCHIVE.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        build(Path(folder) / "archive", kept)
        shutil.rmtree(ARCHIVE, ignore_errors=True)
        shutil.copytree(Path(folder) / "archive", ARCHIVE, ignore=shutil.ignore_patterns(".staging"))


if __name__ == "__main__":
    keyrings.regenerate()
    regenerate()
