"""The two implementations of FORMAT.md agree: what `tests.helpers.archives` writes, `custody` parses and checks."""

import hashlib
import json
from datetime import timedelta
from pathlib import Path

import pytest

from custody.format import archive_file, audit, envelope, manifest
from custody.format.envelope import Algorithm, Signatures
from custody.format.layout import parse_checkpoint_key
from custody.tlog import merkle
from custody.tlog.checkpoint import origin_of, parse_checkpoint, parse_note
from custody.tlog.signatures import OUTSIDE, Place, check_checkpoint, check_file, recomputed
from tests.helpers.archives import (
    ARCHIVE_ID,
    LEAVES_SECRET,
    OMIT_ABOVE,
    Builder,
    good,
    leaves_hash,
    passed_over,
)
from tests.helpers.reading import read_archive_records, read_folder
from tests.helpers.scene import AUDIT_LOG, KEYS, LEAVES, Scene, build, pin

BOTH: tuple[Algorithm, ...] = ("HMAC-SHA256", "Ed25519")


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """The archive that attacks are made on."""
    return build(tmp_path_factory.mktemp("scene"))


def extend(entries: list[bytes]) -> list[merkle.CompactRange]:
    """Return the compact ranges of the trees of the first entries, of none first."""
    ranges: list[merkle.CompactRange] = [()]
    for size, entry in enumerate(entries):
        ranges.append(merkle.append(size, ranges[-1], merkle.leaf_hash(entry)))
    return ranges


def holds(message: bytes, signatures: Signatures, wanted: tuple[Algorithm, ...], place: Place | None = OUTSIDE) -> bool:
    """Return whether a file's signatures count, without anything to report."""
    return check_file(message, signatures, KEYS, wanted=wanted, position=place).clean


def test_archive_file(scene: Scene) -> None:
    """`archive.json` is what a verifier pins, signed by both keys."""
    parsed = archive_file.parse(scene.read("archive.json"))
    assert parsed.pin == scene.trust.archive == pin(scene.root)
    assert holds(parsed.message, parsed.signatures, BOTH, None)


def test_manifests(scene: Scene) -> None:
    """Statements parse and are signed once; their messages of 84 bytes are the entries of the tree."""
    for name, log in scene.logs.items():
        ranges = extend(log.entries)
        for sequence, entry in enumerate(log.entries):
            parsed = manifest.parse(log.path(sequence).read_bytes())
            assert (parsed.message, len(parsed.message)) == (entry, 84)
            assert manifest.encode(parsed.statement) == parsed.line
            assert holds(parsed.message, parsed.signatures, ("HMAC-SHA256",), Place(name, sequence))
            assert parsed.statement.tree.compact_range == [node.hex() for node in ranges[sequence]]
            assert parsed.statement.tree.root == merkle.range_root(ranges[sequence]).hex()
        assert log.head == (len(log.entries), merkle.range_root(ranges[-1]))


def test_audits(scene: Scene) -> None:
    """Audits parse, are signed by both keys, and are a tree of their own."""
    ranges = extend(scene.audit_entries)
    for sequence, entry in enumerate(scene.audit_entries):
        parsed = audit.parse(scene.read(f"audits/{sequence:012}.json"))
        assert parsed.message == entry
        assert envelope.encode_line(parsed.statement) == parsed.line
        assert holds(parsed.message, parsed.signatures, BOTH, Place(AUDIT_LOG, sequence))
        assert parsed.statement.tree.root == merkle.range_root(ranges[sequence]).hex()


def test_checkpoints(scene: Scene) -> None:
    """Checkpoints are notes of the root at their size, under an origin without a key's name."""
    keys = scene.listed("checkpoints/")
    assert len(keys) == 10
    for key in keys:
        parsed_key = parse_checkpoint_key(key)
        assert parsed_key
        log, size = parsed_key
        entries = scene.audit_entries if str(log) == AUDIT_LOG else scene.logs[str(log)].entries
        signed = parse_note(scene.read(key))
        checkpoint = parse_checkpoint(signed.text)
        assert (checkpoint.origin, checkpoint.size) == (origin_of(ARCHIVE_ID, log), size)
        assert checkpoint.root == merkle.range_root(extend(entries)[size])
        assert check_checkpoint(signed, checkpoint, str(log), KEYS, within=recomputed).counts


def test_leaves(scene: Scene) -> None:
    """`leaves` commits to the salted hashes of a batch's events, and to nothing else."""
    objects = read_folder(scene.root)
    own_objects = {key: data for key, data in objects.items() if "/audit/1/" in key or "-audit-1-" in key}
    events = [event for _, event in read_archive_records(own_objects)[LEAVES].events]
    batches = [batch for one in scene.logs[LEAVES].statements for batch in one["batches"]]
    assert len(batches) > 2
    for batch in batches:
        own, events = events[: batch["events"]], events[batch["events"] :]
        seed = b"custody/salts/1\n" + LEAVES_SECRET + f"\n{ARCHIVE_ID}\naudit/1\n{batch['number']}\n".encode()
        stream = hashlib.shake_256(seed).digest(16 * len(own))
        hashes = [hashlib.sha256(stream[16 * i : 16 * i + 16] + event).digest() for i, event in enumerate(own)]
        assert batch["leaves"]["sha256"] == hashlib.sha256(b"".join(hashes)).hexdigest()
    assert leaves_hash(LEAVES_SECRET, ARCHIVE_ID, "audit/1", 0, []) == hashlib.sha256().hexdigest()


def test_all_that_a_log_may_hold(tmp_path: Path) -> None:
    """Losses, unreadable offsets, passed-over slots, large records and a later epoch parse and are accounted for."""
    log = good(tmp_path)
    log.append(9, unreadable=[2, 3, 8])
    log.append(4, lose=5)
    log.append(0, lose=5)
    assert log.statements[-1]["last_record"] is None
    log.pass_over()
    log.pass_over(b"")
    log.append()
    log.append(4, expired=None, step=timedelta(days=2))
    log.append(expired=[0, 2])
    size, root = log.head
    previous = {"epoch": 1, "size": size, "root": root.hex()}
    later = Builder(tmp_path, epoch=2, previous_epoch=previous, next_offset=0, leader_epoch=None)
    later.append()
    later.append(3)
    found = read_archive_records(tmp_path)
    assert set(found) == {"audit/0", "audit@2/0"}
    first = found["audit/0"]
    assert (first.passed_over, sum(end - start for start, end in first.unreadable)) == ([12, 13], 3)
    assert first.statements[12]["passed_over"] == [hashlib.sha256(data).hexdigest() for data in (b"garbage", b"")]
    assert log.entries[12] == passed_over(b"garbage")
    for builder in (log, later):
        for sequence, statement in enumerate(builder.statements):
            if statement:
                parsed = manifest.parse(builder.path(sequence).read_bytes())
                assert (parsed.message, parsed.statement.sequence) == (builder.entries[sequence], sequence)
    omitted = [row["omitted"] for row in map(json.loads, first.quarantined) if row["omitted"]]
    assert omitted
    assert all(one["value"]["size"] == OMIT_ABOVE + 1 for one in omitted)


def test_passed_over_audits(scene: Scene, tmp_path: Path) -> None:
    """Audits pass over slots too, by entries of the same kind."""
    again = scene.copy(tmp_path / "archive")
    again.pass_over_audit()
    again.audit()
    parsed = audit.parse(again.read("audits/000000000003.json"))
    assert parsed.statement.passed_over == [hashlib.sha256(b"garbage").hexdigest()]
    assert parsed.statement.tree.root == merkle.range_root(extend(again.audit_entries)[3]).hex()


def test_going_back(tmp_path: Path) -> None:
    """What is written after going back is what would have been written."""
    log = good(tmp_path / "one")
    other = log.copy(tmp_path / "other")
    assert other.append(7)["segment"]
    other.go_back(len(log.entries))
    other.clock = log.clock
    assert other.append(9) == log.append(9)
    assert other.head == log.head
