"""Everything that the verifier reads from outside, each as a function of bytes that raises only where we are wrong.

What is documented comes out as it should: a value, a finding, or the one error that the docstring names. Besides, where
there is something to hold it against, it is held: two readings of one rule, a good archive of which a signed or hashed
byte was changed, bytes that were read and written again.
"""

import gzip
import hashlib
import json
import os
import re
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache, partial
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any

import msgspec

from custody.archive import evidence
from custody.archive.evidence import check_evidence
from custody.archive.known_heads import State
from custody.archive.prove import make_evidence
from custody.errors import ConfigurationError, CustodyError, FormatError, KeyUnavailable, SignatureInvalid
from custody.findings import CATALOGUE, FINDINGS_LIMIT, Finding, Findings, Severity
from custody.format import archive_file, audit, envelope, events, layout, limits, lines, manifest, members
from custody.format.manifest import Batch, QuarantineRef, SegmentRef
from custody.format.offsets import line_of
from custody.format.quarantine import parse_quarantined
from custody.format.times import check_time
from custody.keys.keyring import Keyring
from custody.keys.trust import Trust, _witnesses, read_trust
from custody.query import tables
from custody.store.protocol import ObjectInfo
from custody.store.protocol import check_key as check_object_key
from custody.tlog import checkpoint, merkle
from custody.tlog.signatures import check_checkpoint as judge_checkpoint
from custody.tlog.signatures import note_keys
from custody.verify import acceptance, contents, listing, orphans
from custody.verify.accounting import LogAccount
from custody.verify.audits import AuditLog
from custody.verify.names import Names
from custody.verify.run import verify
from custody.verify.work import Work
from tests.fuzz.edits import Edit, apply
from tests.helpers.archives import event, two_lines
from tests.helpers.corpus import CASES
from tests.helpers.growth import SHAPES
from tests.helpers.memory import MemoryStore
from tests.helpers.reading import anything
from tests.helpers.scene import MAIN, PUBLIC_ID, Scene, build, private, public

Check = Callable[[bytes], None]
Frame = Callable[[bytes], bytes]
"""Puts a shape (`tests.helpers.growth`) where a door comes to look at it."""


class ReadOnlyStore(MemoryStore):
    """A store that none of what is fuzzed writes into."""

    def create(self, key: str, data: bytes) -> None:
        """Fail: nothing that reads creates an object."""
        raise NotImplementedError(key, data)


@dataclass(frozen=True)
class Target:
    """One door, with good bytes to begin from."""

    name: str
    check: Check
    seeds: Sequence[bytes]
    framed: Sequence[Frame] = ()

    @property
    def frames(self) -> Sequence[Frame]:
        """What is put around a shape: nothing; and a good document, for its first string, number, list and object."""
        return self.framed or (_bare, *_within(self.seeds[0]))

    def shaped(self, *sizes: int) -> Iterator[bytes]:
        """Yield each shape in each frame, of these sizes."""
        return (frame(make(size)) for make in SHAPES.values() for frame in self.frames for size in sizes)


def _bare(shape: bytes) -> bytes:
    return shape


def _between(before: bytes, behind: bytes, shape: bytes) -> bytes:
    return before + shape + behind


_LISTS = (b"skipped", b"compact_range", b"passed_over", b"unreadable", b"offsets")
_PLACES = (
    *(rb':\s*("[^"]*")', rb":\s*([0-9]+)", rb":\s*(\[[^]]*\])", rb":\s*(\{[^}]*\})"),
    *(rb'"%b":(\[[^]]*\])' % name for name in _LISTS),
)


def _within(seed: bytes) -> Iterator[Frame]:
    """Yield frames that put a shape in the place of a value of each kind."""
    for place in _PLACES:
        matches = list(re.finditer(place, seed))
        if matches:
            # The last one is passed all others before.
            start, end = matches[-1].span(1)
            yield partial(_between, seed[:start], seed[end:])


@dataclass(frozen=True)
class Good:
    """The good archive, in memory."""

    scene: Scene
    objects: dict[str, bytes]

    @property
    def trust(self) -> Trust:
        """What a verifier is given."""
        return self.scene.trust

    def starting(self, prefix: str) -> list[bytes]:
        """Return the objects whose key begins so."""
        return [data for key, data in sorted(self.objects.items()) if key.startswith(prefix)]


@cache
def good() -> Good:
    """Build the good archive, once a process."""
    with tempfile.TemporaryDirectory() as folder:
        scene = build(Path(folder))
        return Good(scene, {key: scene.read(key) for key in scene.listed()})


def judge(findings: Iterable[Finding]) -> int:
    """Check what is true of every finding, and return the severity of the worst."""
    worst = 0
    for one in findings:
        assert one.finding in CATALOGUE
        assert str(one).isprintable()
        str(one).encode()
        msgspec.json.encode(one.to_dict())
        assert one.where
        worst = max(worst, one.severity)
    return worst


def raises(*allowed: type[CustodyError]) -> Callable[[Check], Check]:
    """Allow a check to raise these errors of ours, if their messages are text that can be shown."""

    def wrap(check: Check) -> Check:
        def held(data: bytes) -> None:
            try:
                check(data)
            except allowed as error:
                said = str(error)
            else:
                return
            # Half of a message that is as long as what it is about helps nobody.
            assert len(said) < 100_000

        return held

    return wrap


# --- statements


@raises(FormatError)
def check_manifest(data: bytes) -> None:
    """A manifest parses or is a FormatError; what parsed is written as what parses to the same."""
    parsed = manifest.parse(data)
    line = manifest.encode(parsed.statement)
    assert manifest.parse(line + data[data.index(b"\n") :]).statement == parsed.statement


def check_chain(line: bytes) -> None:
    """A statement, signed by who holds the key, gives findings; and where a byte is another, it gives one."""
    log = good().scene.main
    original = log.lines[3]
    manifests = [log.path(sequence).relative_to(log.root).as_posix() for sequence in range(len(log.lines))]
    found = Findings()
    chain = LogAccount(layout.Log("audit", 0), log.archive, good().trust.keys, good().scene.now, found)
    for sequence, key in enumerate(manifests):
        data = good().objects[key] if sequence != 3 else two_lines(line, "custody/manifest/1")
        statement = chain.step(sequence, data)
        if statement is not None and sequence == 3:
            assert chain.work(statement).weight >= 0
    chain.end()
    worst = judge(found.sorted())
    assert worst >= Severity.TAMPERED if line != original else worst == 0
    assert len(found.sorted()) <= 20


def check_signatures(second: bytes) -> None:
    """Whatever stands on line 2: findings, and none only if it is exactly one HMAC that holds."""
    log = good().scene.main
    found = Findings()
    chain = LogAccount(layout.Log("audit", 0), log.archive, good().trust.keys, good().scene.now, found)
    for sequence in range(3):
        chain.step(sequence, good().objects[log.path(sequence).relative_to(log.root).as_posix()])
    chain.step(3, log.lines[3] + b"\n" + second)
    chain.end()
    if judge(found.sorted()) < Severity.POLICY:
        parsed = manifest.parse(log.lines[3] + b"\n" + second)
        ((signature, value),) = parsed.signatures
        assert signature.algorithm == "HMAC-SHA256"
        good().trust.keys[signature.key].verify(parsed.message, value)


# --- audits, checkpoints


@raises(FormatError)
def check_audit(data: bytes) -> None:
    """An audit parses or is a FormatError."""
    envelope.encode_line(audit.parse(data).statement)


def check_audits(line: bytes) -> None:
    """An audit, signed by who holds the key, gives findings; and where a byte is another, the next one tells."""
    lines_ = good().scene.audits
    found = Findings()
    chain = AuditLog(good().scene.main.archive, good().trust.keys, found)
    chain.step(0, two_lines(line, "custody/audit/1"))
    chain.step(1, good().objects[layout.audit_key(1)])
    chain.signed.end()
    worst = judge(found.sorted())
    assert worst >= Severity.TAMPERED if line != lines_[0] else worst == 0


@raises(FormatError)
def check_note(data: bytes) -> None:
    """A note parses or is a FormatError; one that counts has a text that was signed."""
    note = checkpoint.parse_note(data)
    assert checkpoint.parse_note(note.encode()) == note
    verdict = judge_checkpoint(
        note, checkpoint.parse_checkpoint(note.text), MAIN, good().trust.keys, within=lambda _: False
    )
    assert verdict.reason
    if not verdict.counts:
        return
    originals = [one.rpartition("— ".encode())[0][:-1] for one in good().starting("checkpoints/")]
    assert note.text in originals


@raises(FormatError)
def check_checkpoint(data: bytes) -> None:
    """A checkpoint's text parses or is a FormatError, and is the only text of what it parsed to."""
    parsed = checkpoint.parse_checkpoint(data)
    assert parsed.text() == data


def check_vkey(data: bytes) -> None:
    """A vkey that a trust.json may hold is one that a cosignature can be checked by."""
    text = data.decode("utf-8", "surrogateescape")
    try:
        parsed = checkpoint.NoteKey.parse(text)
        assert parsed.vkey == text
    except FormatError:
        parsed = None
    try:
        assert _witnesses([text], {}, "trust") == (parsed,)
    except ConfigurationError:
        assert parsed is None or parsed.type != checkpoint.COSIGNATURE


# --- what is given from outside


@raises(ConfigurationError)
def check_keyring(data: bytes) -> None:
    """A keyring parses or is a ConfigurationError; what parsed is written as what parses to the same."""
    ring = Keyring.parse(data)
    assert Keyring.parse(ring.encode()) == ring


_PRIVATE = os.stat_result((0o100600, *(0,) * 9))


@raises(ConfigurationError)
def check_trust(data: bytes) -> None:
    """A trust.json parses or is a ConfigurationError; what it trusts can be used."""
    trust = read_trust(data, _PRIVATE, "trust")
    note_keys(trust.keys)
    Findings(trust.accepted)


@cache
def _scratch() -> Path:
    folder = tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None)  # noqa: S108
    _kept.append(folder)
    return Path(folder.name)


_kept: list[Any] = []


@raises(ConfigurationError)
def check_state(data: bytes) -> None:
    """A state file opens or is a ConfigurationError."""
    path = _scratch() / "state.json"
    path.write_bytes(data)
    state = State(path)
    state.heads("file:///memory")
    state.pin("file:///memory")


@raises(ConfigurationError)
def check_report(data: bytes) -> None:
    """A report to accept findings from is one, or a ConfigurationError."""
    reported = acceptance.read_report(BytesIO(data))
    for one in reported.findings:
        try:
            acceptance.entries(one, "why", "who", "2026-03-01T00:00:00.000000Z")
        except ConfigurationError:
            continue


@raises(FormatError)
def check_archive_file(data: bytes) -> None:
    """An archive.json parses or is a FormatError."""
    parsed = archive_file.parse(data)
    line = envelope.encode_line(parsed.statement)
    assert archive_file.parse(line + data[data.index(b"\n") :]).statement == parsed.statement


# --- bytes


@raises(FormatError)
def check_member(data: bytes) -> None:
    """A gzip member inflates to what it states, as zlib says too, or is a FormatError; nothing beyond is inflated."""
    stated, member = int.from_bytes(data[:2], "big"), data[2:]
    try:
        machine = zlib.decompressobj(wbits=31)
        reference = machine.decompress(member, stated + 1)
        whole = machine.eof and not machine.unused_data and len(reference) == stated
    except zlib.error:
        whole = False
    try:
        payload = members.inflate(member, stated)
    except FormatError:
        assert not whole or member[:8] != b"\x1f\x8b\x08\0\0\0\0\0"
        raise
    assert len(payload) == stated
    assert whole
    assert payload == reference


@raises(FormatError)
def check_stream(data: bytes) -> None:
    """Members one after another inflate piece by piece as they do at once, and never beyond the limit."""
    limit = int.from_bytes(data[:2], "big")
    step = data[2] % 97 + 1 if len(data) > 2 else 1
    body = data[3:]
    pieces = (body[at : at + step] for at in range(0, len(body), step))
    total = b"".join(members.inflate_stream(pieces, limit, any_header=True))
    assert len(total) <= limit
    assert total == gzip.decompress(body)


def _work(**fields: Any) -> Work:
    given: dict[str, Any] = {"segment": None, "batches": [], "types": {}, "quarantine": None, "unlined": []}
    return Work("audit/0", 1, 100, 135, **given | fields)


@cache
def _segment() -> tuple[bytes, Work]:
    """Return a good segment and what its statement says of it."""
    statement = manifest.parse(good().objects[layout.manifest_key(layout.Log("audit", 0), 1)]).statement
    assert statement.segment
    work = _work(segment=statement.segment, batches=statement.batches, types=statement.types)
    return good().objects[statement.segment.key], work


def check_tampered_segment(data: bytes) -> None:
    """A segment whose bytes are others is tampered with, and one finding says so."""
    original, work = _segment()
    assert work.segment
    outcome = contents.check(ReadOnlyStore({work.segment.key: data}), work)
    if data == original:
        assert not outcome.findings
    else:
        assert judge(outcome.findings) == Severity.TAMPERED
        assert len([one for one in outcome.findings if one.finding in {"segment-hash", "segment-size"}]) == 1


def check_forged_segment(data: bytes) -> None:
    """A segment with hashes that fit, of one batch that says what the first bytes say: findings or none, no error."""
    stated, body = int.from_bytes(data[:2], "big"), data[2:]
    _, work = _segment()
    try:
        payload = zlib.decompressobj(wbits=31).decompress(body, 1 << 20)
    except zlib.error:
        payload = b""
    digest = sha256(body).hexdigest()
    batch = msgspec.structs.replace(
        work.batches[0],
        start=0,
        size=len(body),
        inflated=len(payload) if stated & 1 else stated,
        sha256=sha256(payload).hexdigest(),
        events=payload.count(b"\n") if stated & 2 else stated % 40 + 1,
    )
    key = layout.records_key("events", layout.Log("audit", 0), 100, 134, 0, digest)
    forged = _work(segment=SegmentRef(key, len(body), digest), batches=[batch], types={})
    outcome = contents.check(ReadOnlyStore({key: body}), forged)
    assert {one.finding for one in outcome.findings} <= {"gzip", "event", "segment-size", "segment-hash"}
    judge(outcome.findings)


def check_batches(data: bytes) -> None:
    """Batches that say of a good segment what they like: findings, and reads that stay within it."""
    original, work = _segment()
    assert work.segment
    try:
        batches = msgspec.json.decode(data, type=list[Batch])
        for batch in batches:
            check_time("min_time", batch.min_time)
            check_time("max_time", batch.max_time)
    except (msgspec.MsgspecError, ValueError, FormatError, RecursionError):
        return
    outcome = contents.check(
        ReadOnlyStore({work.segment.key: original}), msgspec.structs.replace(work, batches=batches[:200])
    )
    judge(outcome.findings)
    assert outcome.stored <= len(original) + 1


@cache
def _quarantine() -> tuple[bytes, QuarantineRef]:
    statement = manifest.parse(good().objects[layout.manifest_key(layout.Log("audit", 0), 2)]).statement
    assert statement.quarantine
    return good().objects[statement.quarantine.key], statement.quarantine


def check_tampered_quarantine(data: bytes) -> None:
    """A quarantine object whose bytes are others is tampered with."""
    original, ref = _quarantine()
    outcome = contents.check(ReadOnlyStore({ref.key: data}), _work(quarantine=ref))
    assert judge(outcome.findings) == (0 if data == original else Severity.TAMPERED)


def check_forged_quarantine(payload: bytes) -> None:
    """A quarantine object with hashes that fit: the records that are stated, or a finding."""
    _, ref = _quarantine()
    data = gzip.compress(payload, 1, mtime=0)
    digest = sha256(data).hexdigest()
    key = layout.records_key("quarantine", layout.Log("audit", 0), 135, 164, 0, digest)
    forged = msgspec.structs.replace(ref, key=key, size=len(data), sha256=digest, inflated=len(payload))
    outcome = contents.check(ReadOnlyStore({key: data}), _work(quarantine=forged))
    worst = judge(outcome.findings)
    offsets = [offset for start, end in ref.offsets for offset in range(start, end)]
    if not worst:
        assert [parse_quarantined(row).offset for row in payload.splitlines()] == offsets


@raises(FormatError)
def check_quarantined(data: bytes) -> None:
    """A line of a quarantine object parses or is a FormatError."""
    parse_quarantined(data)


def _refuse(constant: str) -> None:
    raise ValueError(constant)


_INSTANT = re.compile(r"(\d{4}-\d\d-\d\dT)(\d\d)(:[0-5]\d:[0-5]\d)(\.\d+)?(Z|[+-](?:[01]\d|2[0-3]):[0-5]\d)", re.ASCII)


def is_event(row: bytes) -> bool:
    """Return whether a line is an event by FORMAT.md, without using our code."""
    if len(row) > 1_048_576 or row.startswith(b"\xef\xbb\xbf"):
        return False
    try:
        text = row.decode()
        pairs: list[tuple[str, Any]] = json.loads(
            text, object_pairs_hook=list, parse_constant=_refuse, parse_int=str, parse_float=str
        )
    except (ValueError, RecursionError):
        return False
    if not text.strip(" \t\r\n").startswith("{") or _deepest(re.sub(r'"(?:[^"\\]|\\.)*"', "", text)) > 64:
        return False
    types = [value for name, value in pairs if name == "event_type"]
    times = [value for name, value in pairs if name == "timestamp"]
    if len(types) != 1 or len(times) != 1:
        return False
    if not all(_is_string(text, name) for name in ("event_type", "timestamp")):
        return False
    try:
        size = len(types[0].encode())
    except UnicodeEncodeError:
        return False
    return 1 <= size <= 255 and _is_time(times[0])


def _is_string(text: str, name: str) -> bool:
    top = json.loads(text, parse_constant=_refuse, parse_int=lambda _: 0, parse_float=lambda _: 0.0)
    return isinstance(top[name], str)


def _deepest(brackets: str) -> int:
    deepest = depth = 0
    for character in brackets:
        depth += (character in "{[") - (character in "}]")
        deepest = max(deepest, depth)
    return deepest


def _is_time(text: str) -> bool:
    match = _INSTANT.fullmatch(text)
    if not match or int(match[2]) > 23:
        return False
    try:
        moment = datetime.fromisoformat(match[1] + match[2] + match[3] + (match[5].replace("Z", "+00:00")))
        return 1970 <= moment.astimezone(UTC).year <= 9999
    except (ValueError, OverflowError):
        return False


def check_lines(payload: bytes) -> None:
    """A batch's lines are events by the fast reading if they are by the slow one, and by FORMAT.md's."""
    found = lines.check(payload)
    rows = payload.split(b"\n")
    ended = rows.pop() == b""
    if not ended:
        rows = payload.split(b"\n")
    assert found.count == len(rows)
    if len(rows) > limits.BATCH_EVENTS:
        assert len(found.faults) == 1
        return
    faults = {fault.line for fault in found.faults}
    times = []
    for number, row in enumerate(rows):
        assert (number not in faults) == is_event(row) or (number == len(rows) - 1 and not ended), row
        try:
            times.append(lines.check_line(row)[1])
        except FormatError:
            assert number in faults
        else:
            assert number not in faults or (number == len(rows) - 1 and not ended)
    assert sum(found.types.values()) == len(times)
    assert (found.first, found.last) == (min(times, default=None), max(times, default=None))


def check_records(data: bytes) -> None:
    """What the writer takes for an event, the verifier takes for one; the writer never raises."""
    values = data.split(b"\n")
    taken = events.check(values, lines=True)
    refused = {at for at, _ in taken.refused}
    assert taken.events == len(values) - len(refused)
    assert not lines.check(taken.payload).faults or not taken.events
    strict = events.check(values, own_types=False)
    assert refused <= {at for at, _ in strict.refused}
    assert strict.types == {name: number for name, number in taken.types.items() if name in events.EVENT_TYPES}


def check_rows(payload: bytes) -> None:
    """Each line that is an event is a row of the tables."""
    good_lines = [row for row in payload.split(b"\n") if row and not lines.check(row + b"\n").faults]
    rows = tables.Rows(layout.Log("audit", 0))
    rows.add(_work(), _segment()[1].batches[0], b"".join(row + b"\n" for row in good_lines))
    assert rows.take().num_rows == len(good_lines)


# --- names


def check_keys(data: bytes) -> None:
    """Keys in a listing, whatever they are: each is counted or foreign, and none costs more than another."""
    listing_ = listing.Listing()
    with Names() as names:
        for key in data.decode("utf-8", "backslashreplace").split("\n"):
            listing_.add(ObjectInfo(key, 1), names)
        names.unnamed()
    for sequences in (*listing_.manifests.values(), *listing_.checkpoints.values(), listing_.audits):
        assert len(list(sequences.filled(0).all())) <= len(list(sequences.all())) + 512 * 5


def check_key(data: bytes) -> None:
    """A key that parses is the one key of what it names."""
    key = data.decode("utf-8", "backslashreplace")
    if parsed := layout.parse_manifest_key(key):
        assert layout.manifest_key(*parsed) == key
    if parsed := layout.parse_checkpoint_key(key):
        assert layout.checkpoint_key(*parsed) == key
    if (number := layout.parse_audit_key(key)) is not None:
        assert layout.audit_key(number) == key
    if records := layout.parse_records_key(key):
        again = layout.records_key(records.kind, records.log, records.first, records.last, 0, records.digest + "0" * 48)
        assert again.split("/")[-1][2:] == key.split("/")[-1][2:]
    name, _, partition = key.rpartition("/")
    if partition.isascii() and partition.isdecimal() and (log := layout.parse_log(name, int(partition[:9]))):
        assert log.name == name


@cache
def _verified() -> dict[str, LogAccount]:
    found = Findings()
    chains = {}
    for name in good().scene.logs:
        topic, _, partition = name.partition("/")
        log = layout.Log(topic, int(partition))
        chain = LogAccount(log, None, good().trust.keys, good().scene.now, found)
        for sequence in range(len(good().scene.logs[name].lines)):
            chain.step(sequence, good().objects[layout.manifest_key(log, sequence)])
        chain.end()
        chains[name] = chain
    assert not found.sorted()
    return chains


def check_orphan(data: bytes) -> None:
    """Bytes that no manifest names are an orphan only if each record is the committed one or lies beyond the head."""
    kind, first, last, body = data[:1], *_span(data[1:5]), data[5:]
    digest = sha256(body).hexdigest()
    which: layout.Kind = "events" if not kind or kind[0] & 1 else "quarantine"
    key = layout.records_key(which, layout.Log("audit", 0), first, last, 0, digest)
    chain = _verified()[MAIN]
    found = orphans.check_unnamed(
        ReadOnlyStore(good().objects | {key: body}), orphans.Extent.of(chain), key, lambda _: anything, live=False
    )
    assert found is not None
    judge([found])
    assert found.finding in {"orphan", "unlisted"}


def _span(data: bytes) -> tuple[int, int]:
    first = 90 + int.from_bytes(data[:2], "big") % 200
    return first, first + int.from_bytes(data[2:4], "big") % 400


# --- evidence


@cache
def _evidence() -> tuple[bytes, bytes]:
    """Return evidence of an event with its whole batch, and of one alone."""
    store_ = ReadOnlyStore(good().objects)
    trust, now = good().trust, good().scene.now
    whole = make_evidence(store_, layout.Log("audit", 0), 123, trust, now)
    alone = make_evidence(store_, layout.Log("audit", 1), 105, trust, now)
    assert whole.others
    assert not alone.others
    return whole.data, alone.data


@raises(FormatError, SignatureInvalid, KeyUnavailable)
def check_evidence_file(data: bytes) -> None:
    """A file is evidence or is refused; what it proves is the event that was archived."""
    result = check_evidence(data, good().trust, good().scene.now)
    result.to_dict()
    if result.proved:
        assert result.event == event(result.proof.offset)


@raises(FormatError, SignatureInvalid, KeyUnavailable)
def check_forged_evidence(data: bytes) -> None:
    """Evidence whose statement and checkpoint were made by who holds all keys: proven or refused, no other error."""
    offset, line = int.from_bytes(data[:2], "big"), data[2:]
    members = evidence.unpack(_evidence()[0])
    statement = two_lines(line, "custody/manifest/1")
    parsed = manifest.parse(statement)
    key_hash = hashlib.sha256(PUBLIC_ID.encode() + b"\n\x01" + public()).digest()[:4]
    origin = f"custody/{good().scene.main.archive}/{MAIN}"
    text = checkpoint.Checkpoint(origin, 1, merkle.leaf_hash(parsed.message)).text()
    note = checkpoint.Note(text, (checkpoint.NoteSignature(PUBLIC_ID, key_hash, private().sign(text)),))
    place = line_of(parsed.statement, offset)
    proof = evidence.Proof(
        log=MAIN,
        offset=offset,
        batch=place[0].number if place else 0,
        line=place[1] if place and place[1] >= 0 else 0,
        salt=None,
        index=0,
        size=1,
        inclusion=[],
        consistency=[],
    )
    members |= {
        evidence.PROOF: evidence.encode_proof(proof),
        evidence.MANIFEST: statement,
        evidence.CHECKPOINT: note.encode(),
    }
    check_evidence(evidence.pack(members), good().trust, good().scene.now).to_dict()


# --- all of it

_NOBODY_REMEMBERS = (f"manifests/{MAIN}/{11:012}.json",)
"""Objects that may go unnoticed where nobody kept a head (FORMAT.md, Not promised), and checkpoints."""


def check_archive(data: bytes) -> None:
    """The good archive with one object changed, removed or added: no error, and nothing sealed changes unnoticed."""
    keys_ = sorted(good().objects)
    what, chosen, body = data[:1], data[1:3], data[3:]
    key = keys_[int.from_bytes(chosen, "big") % len(keys_)]
    objects = dict(good().objects)
    match what[0] % 4 if what else 3:
        case 0:
            objects[key] = body
        case 1:
            edits = [Edit(*body[at : at + 1], *_words(body[at + 1 : at + 7])) for at in range(0, len(body) - 6, 7)]
            objects[key] = apply(objects[key], edits[:8], list(good().objects.values()))
        case 2:
            key = body.decode("utf-8", "backslashreplace")[:300]
            try:
                check_object_key(key)
            except FormatError:
                return
            objects[key] = objects.get(key, b"foreign")
        case _:
            del objects[key]
            if key in _NOBODY_REMEMBERS or key.startswith("checkpoints/"):
                return
    report = verify(ReadOnlyStore(objects), good().trust, now=good().scene.now, workers=0)
    worst = judge(report.findings)
    assert worst == report.exit_code
    assert len(report.findings) < min(60, FINDINGS_LIMIT)
    before, after = good().objects.get(key), objects.get(key)
    if _sealed(key, before) != _sealed(key, after):
        assert worst >= Severity.NOTICE, key
        assert before is None or worst >= Severity.POLICY, key


def _words(data: bytes) -> list[int]:
    return [int.from_bytes(data[at : at + 2], "big") for at in range(0, 6, 2)]


def _sealed(key: str, data: bytes | None) -> bytes | None:
    """Return what of an object is signed or hashed by something that is: no signature, and nothing rebuildable."""
    if data is None or key.startswith(("tables/", "reports/")):
        return None
    if key.startswith(("manifests/", "audits/")) and data.count(b"\n") == 2:
        return data.split(b"\n")[0]
    if key.startswith("checkpoints/"):
        return data.rpartition(b"\n\n")[0]
    if key == layout.ARCHIVE and data.count(b"\n") == 2:
        return data.split(b"\n")[0]
    return data


# --- the doors


def _witness() -> checkpoint.NoteKey:
    return checkpoint.NoteKey("witness", bytes(range(32)), checkpoint.COSIGNATURE)


def _rows(data: bytes) -> list[bytes]:
    return gzip.decompress(data).splitlines(keepends=True)


def _behind(head: bytes) -> list[Frame]:
    """Return frames that put a shape behind some bytes, as it is and in a gzip member."""
    return [lambda shape: head + shape, lambda shape: head + gzip.compress(shape + b"\n", 1, mtime=0)]


def _repacked(parts: dict[str, bytes], name: str, shape: bytes) -> bytes:
    return evidence.pack(parts | {name: shape})


def _in_evidence() -> Iterator[Frame]:
    """Yield frames that put a shape in the place of one member of evidence."""
    for whole in _evidence():
        parts = evidence.unpack(whole)
        for name in parts:
            yield partial(_repacked, parts, name)


def _in_archive(shape: bytes) -> bytes:
    """Put a shape in the place of an object, another one for each shape."""
    return b"\0" + (sum(shape[:9]) + len(shape) % 2).to_bytes(2, "big") + shape


@cache
def targets() -> dict[str, Target]:
    """Return all doors by name."""
    archive = good()
    manifests = archive.starting("manifests/")
    notes = archive.starting("checkpoints/")
    segment, work = _segment()
    batch = work.batches[0]
    member = segment[: batch.size]
    quarantine, _ = _quarantine()
    rows = _rows(quarantine)
    event_lines = b"".join(_rows(segment))
    ring = Keyring.new(archive.scene.now)
    trust = msgspec.json.encode(
        {
            "format": "custody/trust/1",
            "archive": {"id": archive.scene.main.archive, "sha256": "0" * 64},
            "keys": [
                *msgspec.json.decode(ring.encode())["keys"][:1],
                {
                    "id": "ended",
                    "algorithm": "HMAC-SHA256",
                    "from": None,
                    "to": None,
                    "until": {"audit/0": {"size": 3, "root": "0" * 64}},
                },
            ],
            "witnesses": [_witness().vkey],
            "quorum": 1,
            "heads": {"audit/0": {"size": 3, "root": "0" * 64}},
            "retention_days": 30,
            "accepted": [
                {
                    "finding": "offset-lost",
                    "log": "audit/0",
                    "sequence": 3,
                    "sha256": "0" * 64,
                    "reason": "why",
                    "by": "who",
                    "at": "2026-03-01T00:00:00.000000Z",
                }
            ],
        }
    )
    state = msgspec.json.encode(
        {
            "format": "custody/state/1",
            "archives": {
                "file:///memory": {
                    "archive": {"id": archive.scene.main.archive, "sha256": "0" * 64},
                    "heads": {"audit/0": {"size": 3, "root": "0" * 64}},
                }
            },
        }
    )
    report = (
        b'{"kind":"finding","finding":"sequence-gap","severity":"incomplete","log":"audit/0","sequence":3,"through":4,'
        b'"key":"manifests/audit/0/000000000003.json","count":1,"message":"a","action":"b"}\n'
        b'{"kind":"verdict","archive":null}\n'
    )
    size = len(_rows(segment)).to_bytes(2, "big")
    inflated = batch.inflated.to_bytes(2, "big")
    corpus = [case.line for case in CASES]
    start = b'{"event_type":"a","timestamp":"2026-03-01T00:00:00Z","details":'
    of_lines: list[Frame] = [_bare, partial(_between, start, b"}\n")]
    alone = _alone(archive.scene.main.lines[1])
    listed = [
        Target("manifest", check_manifest, manifests),
        Target("chain", check_chain, [archive.scene.main.lines[3], *archive.scene.main.lines]),
        Target("signatures", check_signatures, [data.split(b"\n", 1)[1] for data in manifests]),
        Target("audit", check_audit, archive.starting("audits/")),
        Target("audits", check_audits, archive.scene.audits),
        Target("note", check_note, notes),
        Target("checkpoint", check_checkpoint, [one.split(b"\n\n")[0] + b"\n" for one in notes]),
        Target(
            "vkey",
            check_vkey,
            [*(one.vkey.encode() for one in note_keys(archive.trust.keys)), _witness().vkey.encode()],
        ),
        Target("keyring", check_keyring, [ring.encode()]),
        Target("trust", check_trust, [trust]),
        Target("state", check_state, [state]),
        Target("report", check_report, [report]),
        Target("archive.json", check_archive_file, [archive.objects["archive.json"]]),
        Target("member", check_member, [inflated + member], _behind(b"\xff\xff")),
        Target(
            "stream",
            check_stream,
            [b"\xff\xff" + bytes([5]) + member, b"\xff\xff\x60" + segment],
            _behind(b"\xff\xff\x60"),
        ),
        Target("tampered segment", check_tampered_segment, [segment]),
        Target("forged segment", check_forged_segment, [size + member, inflated + member], _behind(b"\0\3")),
        Target("batches", check_batches, [msgspec.json.encode(work.batches)]),
        Target("tampered quarantine", check_tampered_quarantine, [quarantine]),
        Target("forged quarantine", check_forged_quarantine, [b"".join(rows)]),
        Target("quarantined", check_quarantined, [row[:-1] for row in rows]),
        Target("lines", check_lines, [event_lines, *(one + b"\n" for one in corpus if len(one) < 4000)], of_lines),
        Target("records", check_records, [b"\n".join(corpus[:40]), *corpus[:20]], of_lines),
        Target("rows", check_rows, [event_lines], of_lines),
        Target("key", check_key, [key.encode() for key in archive.objects]),
        Target("keys", check_keys, ["\n".join(archive.objects).encode()]),
        Target(
            "orphan",
            check_orphan,
            [b"\x01\0\x0a\0\x09" + member, b"\0\0\x2d\0\x1d" + quarantine],
            [*_behind(b"\x01\0\x2d\xff\xff"), *_behind(b"\0\0\x2d\xff\xff")],
        ),
        Target("evidence", check_evidence_file, list(_evidence()), [_bare, *_in_evidence()]),
        Target(
            "forged evidence",
            check_forged_evidence,
            [offset.to_bytes(2, "big") + alone for offset in (100, 109, 110, 123, 134)],
            list(_within(b"\0d" + alone)),
        ),
        Target("archive", check_archive, _archive_seeds(), [_in_archive]),
    ]
    return {one.name: one for one in listed}


def _alone(line: bytes) -> bytes:
    """Return a statement as the first of its log, so that a tree of one holds it."""
    tree = {"size": 0, "root": hashlib.sha256().hexdigest(), "compact_range": []}
    return json.dumps(json.loads(line) | {"sequence": 0, "tree": tree}, separators=(",", ":")).encode()


def _archive_seeds() -> list[bytes]:
    seeds = []
    for number, (key, data) in enumerate(sorted(good().objects.items())):
        place = number.to_bytes(2, "big")
        seeds += [
            b"\0" + place + data[:4000],
            b"\1" + place + bytes([number % 10, 1, 2, 3, 4, 5, 6]),
            b"\2" + place + key.encode(),
            b"\3" + place,
        ]
    return seeds
