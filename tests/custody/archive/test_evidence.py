"""Evidence proves one event to whoever has the public key; whatever of it is changed, it proves nothing."""

import contextlib
import io
import json
import re
import struct
import subprocess
import zipfile
import zlib
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from custody.archive.checkpoints import write_checkpoint
from custody.archive.evidence import FILE_LIMIT, Result, check_evidence, pack, unpack
from custody.archive.prove import Made, make_evidence
from custody.cli.evidence import app
from custody.errors import ConfigurationError, FormatError, ObjectMissing, SignatureInvalid
from custody.findings import Severity
from custody.format import manifest
from custody.format.layout import AUDIT_LOG, Log, checkpoint_key, manifest_key
from custody.format.manifest import Unreadable
from custody.keys.keyring import Keyring, new_keyring
from custody.keys.kms import KmsKey
from custody.keys.secret import Secret
from custody.keys.trust import Trust, TrustedKey, open_trust
from custody.store.open import open_store
from custody.tlog import merkle
from custody.tlog.checkpoint import (
    COSIGNATURE,
    Note,
    NoteKey,
    NoteSignature,
    cosigned,
    parse_checkpoint,
    parse_note,
    sign_checkpoint,
    with_signature,
)
from custody.tlog.head import Head
from tests.helpers import rfc6962
from tests.helpers.leafy import Leafy, event, forged, plant, write_trust
from tests.helpers.sample import Sample, make_archive

NOW = datetime.now(UTC)
LOG = Log("audit.leafy", 0)
NAME = str(LOG)


@pytest.fixture(scope="module")
def leafy(tmp_path_factory: pytest.TempPathFactory) -> Leafy:
    """A log of five statements, with checkpoints of size 3 and 5. Nobody changes it."""
    made = Leafy(tmp_path_factory.mktemp("evidence") / "of")
    made.append(range(10))
    made.append(range(10, 20))
    made.append([20, 21, 24, 26, 29], skipped=[(22, 24)], quarantined=[(25, 26)], unreadable=[UNREADABLE])
    made.checkpoint()
    made.append(range(32, 40), lost=(30, 32))
    made.append(range(40, 45), with_leaves=False)
    made.checkpoint()
    return made


UNREADABLE = Unreadable(27, 29, "a batch of an unknown magic")


def evidence(of: Leafy, offset: int, **given: Any) -> Made:
    return make_evidence(of.store, of.log, offset, of.own, NOW, **given)


def check(data: bytes, trust: Trust) -> Result:
    return check_evidence(data, trust, NOW)


def covered(made: Made) -> int:
    """Return how many statements the checkpoint covers."""
    return parse_checkpoint(parse_note(unpack(made.data)["checkpoint.txt"]).text).size


def ending(of: Leafy, heads: Mapping[str, Head]) -> Trust:
    """Return the trust of an auditor who knows that the Ed25519 key has leaked, and ended at these heads."""
    trust = of.public
    keys = {
        id_: replace(key, until=dict(heads)) if key.algorithm == "Ed25519" else key for id_, key in trust.keys.items()
    }
    return replace(trust, keys=keys)


# --- what it proves


def test_every_event(leafy: Leafy) -> None:
    """Each event can be proved, byte for byte, to somebody with the public key alone; leaves show no other event."""
    for offset, content in leafy.events.items():
        made = evidence(leafy, offset)
        result = check(made.data, leafy.public)
        assert result.proved
        assert (result.event, result.proof.offset, result.proof.log, result.pinned) == (content, offset, NAME, True)
        # The newest checkpoint.
        assert result.checkpoint.size == 5
        assert (result.others, made.others) == ((0, 0) if offset < 40 else (3, 3) if offset < 44 else (0, 0))
        assert not result.statement_verdict.held


def test_no_byte_of_a_neighbour(tmp_path: Path) -> None:
    """Of a batch of a thousand, in a statement of sixty, the file has under 60 KB and nothing of another event."""
    made = Leafy(tmp_path / "of")
    made.append(range(60_000), batch=1000)
    made.checkpoint()
    found = evidence(made, 30_123)
    assert (found.others, found.why) == (0, None)
    assert len(found.data) < 60_000
    members = unpack(found.data)
    own = event(30_123)
    assert members["event.json"] == own
    assert check(found.data, made.public).event == own

    def leaked(manifest_: bytes) -> set[bytes]:
        """Return what 16 bytes of other events the members show, that are not in the event itself."""
        shown = {piece for data in (members | {"manifest.json": manifest_}).values() for piece in windows(data)}
        shown -= windows(own)
        return {piece for other in made.events.values() if other != own for piece in windows(other) & shown}

    # What the manifest states of each batch and of the segment is of other events, too: no more is (FORMAT.md, Leaves).
    stated = members["manifest.json"]
    times = rb'(?<="m(?:in|ax)_time":)"[^"]*"'
    assert len(re.findall(times, stated)) == 120
    assert leaked(stated)
    without_types = re.sub(rb'"types":\{[^}]*\}', lambda found: re.sub(rb'"[a-z_]+":(?=[0-9])', b"", found[0]), stated)
    assert not leaked(re.sub(times, b"", without_types))


def windows(data: bytes) -> set[bytes]:
    return {data[place : place + 16] for place in range(len(data) - 15)}


def test_without_leaves(leafy: Leafy) -> None:
    """Evidence of a batch without leaves holds all of it, and says why; without their secret only if asked to."""
    keyless = replace(leafy.own, leaves={})
    with pytest.raises(ConfigurationError, match=r"3 other events.*--keys.*ask the operator.*--whole-batch"):
        make_evidence(leafy.store, LOG, 5, keyless, NOW)
    made = make_evidence(leafy.store, LOG, 5, keyless, NOW, whole_batch=True)
    assert made.others == 3
    assert "is not available" in (made.why or "")
    assert check(made.data, leafy.public).event == event(5)
    written = evidence(leafy, 41)
    assert "its batch was written without leaves" in (written.why or "")
    assert check(written.data, leafy.public).others == 3


def test_the_same_bytes(leafy: Leafy) -> None:
    """Evidence is the same bytes whenever it is made."""
    for offset in (3, 41):
        assert evidence(leafy, offset).data == evidence(leafy, offset).data


def test_a_later_epoch(tmp_path: Path) -> None:
    """An event of a later epoch is proved in that epoch's log."""
    made = Leafy(tmp_path / "of", epoch=2)
    made.append(range(5))
    made.checkpoint()
    result = check(evidence(made, 2).data, made.public)
    assert (result.proved, result.proof.log) == (True, "audit.leafy@2/0")


def test_the_statement_s_own_signature(leafy: Leafy) -> None:
    """With its secret at hand the statement's signature is checked too, and a wrong one refuses the evidence."""
    data = evidence(leafy, 5).data
    result = check(data, leafy.own)
    assert [result.statement_verdict.counts, len(result.statement_verdict.held)] == [True, 1]
    line, second, _ = unpack(data)["manifest.json"].split(b"\n")
    signatures = json.loads(second)["signatures"]
    signatures[0]["value"] = b64encode(bytes(32)).decode()
    changed = line + b"\n" + json.dumps({"signatures": signatures}).encode() + b"\n"
    forged = pack(unpack(data) | {"manifest.json": changed})
    refused = check(forged, leafy.own)
    assert refused.severity is Severity.TAMPERED
    assert "the statement does not count" in refused.problems[0]
    # Who has no secret believes the checkpoint, which covers line 1.
    assert check(forged, leafy.public).proved


def test_a_statement_by_an_ended_key(leafy: Leafy) -> None:
    """With the secret of an HMAC key that ended before it, a statement does not count."""
    data = evidence(leafy, 15, note=stored(leafy, 3).encode()).data
    own = leafy.own
    for size, proved in ((1, False), (3, True)):
        head = Head(size, root(leafy, size))
        keys = {
            id_: replace(key, until={NAME: head}) if key.algorithm == "HMAC-SHA256" else key
            for id_, key in own.keys.items()
        }
        result = check(data, replace(own, keys=keys))
        assert result.proved is proved
        assert result.severity is (None if proved else Severity.UNVERIFIABLE)


def test_outside_its_span(leafy: Leafy) -> None:
    """A key that signed outside its span is remarked, and the event is proved."""
    trust = leafy.public
    keys = {id_: replace(key, to=NOW - timedelta(hours=1)) for id_, key in trust.keys.items()}
    result = check(evidence(leafy, 5).data, replace(trust, keys=keys))
    assert result.proved
    assert "after its span" in result.remarks[0]


def test_nobody_is_asked(leafy: Leafy) -> None:
    """A key in a KMS is known by its id; checking evidence is offline."""
    data = evidence(leafy, 5).data
    trust = leafy.public
    kms = KmsKey("arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab")
    keys = {
        id_: replace(key, material=kms) if key.algorithm == "HMAC-SHA256" else key for id_, key in trust.keys.items()
    }
    assert check(data, replace(trust, keys=keys)).proved


def test_by_hand(leafy: Leafy, tmp_path: Path) -> None:
    """What the README says to run gives what it says."""
    for offset in (5, 41):
        folder = tmp_path / str(offset)
        folder.mkdir()
        members = unpack(evidence(leafy, offset).data)
        for name, data in members.items():
            (folder / name).write_bytes(data)
        readme = members["README.txt"].decode()
        commands = [line.removeprefix("  1. ").removeprefix("  2. ").strip() for line in readme.splitlines()
                    if re.match(r"(  [12]\. |     )(\(printf|printf|dd |sha256sum|h=|gunzip)", line)]  # fmt: skip
        assert len(commands) == (5 if offset == 5 else 4)

        def run(command: str, folder: Path = folder) -> bytes:
            return subprocess.run(["sh", "-c", command], cwd=folder, capture_output=True, check=True).stdout

        found = manifest.parse(members["manifest.json"])
        batch = next(one for one in found.statement.batches if one.first_offset == (4 if offset == 5 else 40))
        if offset == 5:
            assert batch.leaves is not None
            alone, leaf, all_leaves = (run(command).split(b" ")[0].decode() for command in commands[:3])
            assert alone == leaf
            assert all_leaves == batch.leaves.sha256
        else:
            assert run(commands[0]).split(b" ")[0].decode() == batch.sha256
            assert run(commands[1]) == event(41) + b"\n"
        by_hand = run("\n".join(commands[-2:])).split(b" ")[0].decode()
        assert by_hand == sha256(b"\x00" + found.message).hexdigest()


# --- what was changed


def changes(members: Mapping[str, bytes], step: int) -> list[tuple[str, int]]:
    """Return the places to change a byte at: not those that nothing depends on."""
    places = []
    for name, data in members.items():
        # Line 2 of a file is checked with its keys, and the manifest's key is a secret.
        end = data.index(b"\n") if name in {"manifest.json", "archive.json"} else len(data)
        places += [
            (name, place)
            for place in range(0, end, step)
            if name != "README.txt"
            and (name, place) != ("batch.jsonl.gz", 9)
            and (name, place) != ("batch.jsonl.gz", 8)
        ]
    return places


@pytest.mark.parametrize("offset", [15, 41])
def test_any_change_is_noticed(leafy: Leafy, offset: int) -> None:
    """A bit changed anywhere but in the README, or in what the zip says of itself, proves nothing."""
    members = unpack(evidence(leafy, offset).data)
    trust = leafy.public
    for name, place in changes(members, 7):
        changed = bytearray(members[name])
        changed[place] ^= 4
        try:
            result = check(pack(members | {name: bytes(changed)}), trust)
        except (FormatError, SignatureInvalid):
            continue
        assert not result.proved or compared_alike(name, members[name], bytes(changed)), (name, place)


def compared_alike(name: str, before: bytes, after: bytes) -> bool:
    """Return whether a change is in a proof of consistency alone, which nobody here needs."""
    if name != "proof.json":
        return False
    one, other = json.loads(before), json.loads(after)
    return {**one, "consistency": []} == {**other, "consistency": []}


def test_parts_of_different_evidence(leafy: Leafy) -> None:
    """Parts that are good in themselves and do not belong together prove nothing."""
    one, other = (unpack(evidence(leafy, offset).data) for offset in (5, 15))
    for name in ("event.json", "leaves.bin", "manifest.json", "proof.json"):
        with pytest.raises(FormatError):
            check(pack(one | {name: other[name]}), leafy.public)
    whole = unpack(make_evidence(leafy.store, LOG, 5, replace(leafy.own, leaves={}), NOW, whole_batch=True).data)
    alone = {name: one[name] for name in ("event.json", "leaves.bin")}
    mixed = {name: data for name, data in whole.items() if name != "batch.jsonl.gz"} | alone
    with pytest.raises(FormatError, match="must have a salt if"):
        check(pack(mixed), leafy.public)


def test_another_offset(leafy: Leafy) -> None:
    """Evidence of one event is none of its neighbour."""
    members = unpack(evidence(leafy, 5).data)
    proof = json.loads(members["proof.json"])
    for change in ({"offset": 6}, {"offset": 6, "line": 2}, {"line": 2}, {"batch": 0}, {"salt": "00" * 16}):
        with pytest.raises(FormatError):
            check(pack(members | {"proof.json": json.dumps(proof | change).encode()}), leafy.public)


@pytest.mark.parametrize(
    "change",
    [
        {"format": "custody/evidence/2"},
        {"more": 1},
        {"log": "audit.leafy@2/0"},
        {"line": 10**30},
        {"offset": -1},
        {"index": 1},
        {"size": 4},
        {"salt": "0"},
        {"inclusion": []},
        {"inclusion": ["00" * 32] * 3000},
        {"consistency": [{"size": 3, "proof": []}, {"size": 3, "proof": []}]},
        {"consistency": [{"size": 4, "proof": []}, {"size": 2, "proof": []}]},
    ],
)
def test_a_proof_of_another_form(leafy: Leafy, change: dict[str, object]) -> None:
    """`proof.json` is read strictly."""
    members = unpack(evidence(leafy, 5).data)
    proof = json.loads(members["proof.json"]) | change
    with pytest.raises(FormatError):
        check(pack(members | {"proof.json": json.dumps(proof).encode()}), leafy.public)


# --- which archive it is of


def test_another_archive(leafy: Leafy, tmp_path: Path) -> None:
    """Who trusts one archive takes no evidence of another; without a pin the id is only shown."""
    other = Leafy(tmp_path / "of")
    data = evidence(leafy, 5).data
    with pytest.raises(FormatError, match="pins"):
        check(data, replace(leafy.public, archive=other.public.archive))
    unpinned = check(data, replace(leafy.public, archive=None))
    assert (unpinned.proved, unpinned.pinned, unpinned.statement.archive) == (True, False, leafy.id)
    assert "which archive this is" in unpinned.unproved[0]
    foreign = (other.folder / "archive.json").read_bytes()
    with pytest.raises(FormatError, match=r"but the archive\.json is of"):
        check(pack(unpack(data) | {"archive.json": foreign}), replace(leafy.public, archive=None))


def test_an_archive_file_that_was_changed(leafy: Leafy) -> None:
    """Without a pin, `archive.json` still must have the signatures that trusted keys can check."""
    members = unpack(evidence(leafy, 5).data)
    line = members["archive.json"].replace(b'"retention_days":2555', b'"retention_days":2556')
    assert line != members["archive.json"]
    with pytest.raises(SignatureInvalid, match=r"archive\.json"):
        check(pack(members | {"archive.json": line}), replace(leafy.public, archive=None))


# --- who signed it


def test_nobody_is_trusted(leafy: Leafy) -> None:
    """Without the key that signed it, evidence cannot be checked, and that is not the same as wrong."""
    result = check(evidence(leafy, 5).data, Trust())
    assert result.severity is Severity.UNVERIFIABLE
    assert "none of its signatures is by a trusted key" in result.problems[0]
    assert result.to_dict()["event"] is None


def test_a_wrong_signature(leafy: Leafy) -> None:
    """A signature under a trusted key's name that is not its own is tampering."""
    members = unpack(evidence(leafy, 5).data)
    note = parse_note(members["checkpoint.txt"])
    wrong = replace(note.signatures[0], signature=bytes(64))
    result = check(pack(members | {"checkpoint.txt": Note(note.text, (wrong,)).encode()}), leafy.public)
    assert result.severity is Severity.TAMPERED


WITNESSES = [Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32) for number in (1, 2)]
WITNESS_KEYS = tuple(
    NoteKey(f"witness-{number}", key.public_key().public_bytes_raw(), COSIGNATURE)
    for number, key in enumerate(WITNESSES)
)


def cosign(note: Note, which: int, moment: datetime) -> Note:
    time = int(moment.timestamp())
    value = time.to_bytes(8, "big") + WITNESSES[which].sign(cosigned(note.text, time))
    key = WITNESS_KEYS[which]
    return with_signature(note, NoteSignature(key.name, key.key_hash, value))


def stored(of: Leafy, size: int) -> Note:
    return parse_note((of.folder / checkpoint_key(of.log, size)).read_bytes())


def test_a_cosigned_checkpoint(leafy: Leafy) -> None:
    """A cosigned checkpoint goes into evidence; it counts once as many witnesses cosigned it as are asked for."""
    seen = NOW - timedelta(minutes=3)
    note = cosign(stored(leafy, 5), 0, seen)
    made = evidence(leafy, 5, note=note.encode())
    assert covered(made) == 5
    trust = replace(leafy.public, witnesses=WITNESS_KEYS)
    for quorum, severity in ((0, None), (1, None), (2, Severity.UNVERIFIABLE)):
        result = check(made.data, replace(trust, quorum=quorum))
        assert result.severity is severity
        assert result.checkpoint_verdict.witnessed == (("witness-0", int(seen.timestamp())),)
    both = evidence(leafy, 5, note=cosign(note, 1, seen).encode()).data
    assert check(both, replace(trust, quorum=2)).proved
    assert check(evidence(leafy, 5).data, replace(trust, quorum=1)).severity is Severity.UNVERIFIABLE
    # A stranger's cosignature is nobody's.
    stranger = check(made.data, leafy.public)
    assert (stranger.proved, stranger.checkpoint_verdict.witnessed) == (True, ())


def test_cosignatures_that_do_not_count(leafy: Leafy) -> None:
    """One from the future does not count; one over another note is tampering; a witness alone does not sign a log."""
    trust = replace(leafy.public, witnesses=WITNESS_KEYS, quorum=1)
    future = evidence(leafy, 5, note=cosign(stored(leafy, 5), 0, NOW + timedelta(days=1)).encode()).data
    result = check(future, trust)
    assert result.severity is Severity.UNVERIFIABLE
    assert "from the future" in result.remarks[0]
    assert check(future, replace(trust, quorum=0)).proved
    moved = cosign(stored(leafy, 3), 0, NOW)
    wrong = with_signature(stored(leafy, 5), moved.signatures[-1])
    members = unpack(evidence(leafy, 35).data) | {"checkpoint.txt": wrong.encode()}
    assert check(pack(members), replace(trust, quorum=0)).severity is Severity.TAMPERED
    alone = cosign(stored(leafy, 5), 0, NOW)
    members["checkpoint.txt"] = replace(alone, signatures=alone.signatures[-1:]).encode()
    assert check(pack(members), trust).severity is Severity.UNVERIFIABLE


def test_notes_that_do_not_fit(leafy: Leafy, tmp_path: Path) -> None:
    """A checkpoint that covers too little, is of another log, or is signed by nobody, is not taken into evidence."""
    other = Leafy(tmp_path / "of")
    other.append(range(5))
    other.checkpoint()
    signer = Keyring.new(NOW).signers(NOW).ed25519()
    stranger = sign_checkpoint(signer, leafy.id, LOG, Head(5, root(leafy, 5)))
    for note, said in (
        (stored(leafy, 3).encode(), "covers 3 statements"),
        (stored(other, 1).encode(), "not of this archive's log"),
        (stranger.encode(), "trusted key"),
        (b"no note", "is not a checkpoint"),
    ):
        with pytest.raises(ConfigurationError, match=said):
            evidence(leafy, 35, note=note)


def root(of: Leafy, size: int) -> bytes:
    """Return the root of the tree of the first `size` statements, from the statements alone."""
    store = of.store
    messages = [manifest.parse(store.read(manifest_key(of.log, one), limit=10**7)).message for one in range(size)]
    return rfc6962.root([merkle.leaf_hash(message) for message in messages])


# --- what it is compared with


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
def test_heads_that_the_auditor_knows(leafy: Leafy, size: int) -> None:
    """Evidence made for an auditor is shown to be of the history that he knows; other evidence says that it is not."""
    trust = replace(leafy.public, heads={NAME: Head(size, root(leafy, size))})
    shown = check(evidence(leafy, 15, auditor=trust).data, trust)
    assert shown.proved
    assert [one.relation for one in shown.compared] == ["same" if size == 5 else "consistent"]
    bare = check(evidence(leafy, 15).data, trust)
    assert bare.proved
    # It has the newest checkpoint, and to that one a proof from any other that was asked for.
    relation = "same" if size == 5 else "unshown"
    assert [one.relation for one in bare.compared] == [relation]
    assert any("made with --for" in line for line in bare.unproved) is (relation == "unshown")
    older = check(evidence(leafy, 15, note=stored(leafy, 3).encode()).data, trust)
    relation = {3: "same", 5: "consistent"}.get(size, "unshown")
    assert [one.relation for one in older.compared] == [relation]


def test_a_head_of_nothing(leafy: Leafy) -> None:
    """The empty tree is a prefix of every other, and has one root."""
    data = evidence(leafy, 5).data
    for stated, relation in ((sha256(b"").digest(), "consistent"), (bytes(32), "fork")):
        trust = replace(leafy.public, heads={NAME: Head(0, stated)})
        assert [one.relation for one in check(data, trust).compared] == [relation]


@pytest.fixture(scope="module")
def fork(leafy: Leafy, tmp_path_factory: pytest.TempPathFactory) -> Leafy:
    """The same log, by the same keys, with another statement in the fourth place, and a forged event."""
    made = leafy.copy(tmp_path_factory.mktemp("fork") / "of")
    for sequence in (3, 4):
        (made.folder / manifest_key(LOG, sequence)).unlink()
    (made.folder / checkpoint_key(LOG, 5)).unlink()
    made.append({30: event(1_000_000)})
    made.append(range(31, 33))
    made.checkpoint()
    return made


def test_a_fork_of_the_same_size(leafy: Leafy, fork: Leafy) -> None:
    """Evidence of another history than the auditor's is refused, and both heads are named."""
    trust = replace(leafy.public, heads={NAME: Head(5, root(leafy, 5))})
    result = check(evidence(fork, 30).data, trust)
    assert result.severity is Severity.TAMPERED
    assert root(leafy, 5).hex() in result.problems[0]
    assert result.checkpoint.root.hex() in result.problems[0]


def test_a_fork_of_another_size(leafy: Leafy, fork: Leafy) -> None:
    """A proof that does not lead to the auditor's head is a fork; without one it is said that none was shown."""
    trust = replace(leafy.public, heads={NAME: Head(4, root(leafy, 4))})
    members = unpack(evidence(fork, 30).data)
    assert [one.relation for one in check(pack(members), trust).compared] == ["unshown"]
    theirs = replace(fork.public, heads={NAME: Head(4, root(fork, 4))})
    proven = evidence(fork, 30, auditor=theirs).data
    assert check(proven, theirs).proved
    assert check(proven, trust).severity is Severity.TAMPERED


def test_no_evidence_against_what_is_known(leafy: Leafy, fork: Leafy) -> None:
    """Who makes evidence for an auditor of another history, or of a longer one, is told."""
    with pytest.raises(FormatError, match="is not consistent with the head"):
        evidence(fork, 5, auditor=replace(leafy.public, heads={NAME: Head(4, root(leafy, 4))}))
    with pytest.raises(FormatError, match="at this size its root"):
        evidence(fork, 30, auditor=replace(leafy.public, heads={NAME: Head(5, root(leafy, 5))}))
    with pytest.raises(FormatError, match="is not consistent with the head"):
        evidence(leafy, 5, auditor=replace(leafy.public, heads={NAME: Head(9, bytes(32))}))


# --- keys that have ended


def test_an_ended_key_before_its_end(leafy: Leafy) -> None:
    """A key that ended counts for a tree that is shown to lie within its end, and for no other."""
    for size in (3, 4, 5):
        trust = ending(leafy, {NAME: Head(size, root(leafy, size))})
        assert check(evidence(leafy, 5, auditor=trust).data, trust).proved
    # Not shown: without a proof to size 4 it does not count.
    trust = ending(leafy, {NAME: Head(4, root(leafy, 4))})
    result = check(evidence(leafy, 5, note=stored(leafy, 3).encode()).data, trust)
    assert result.severity is Severity.UNVERIFIABLE
    assert "is not shown to lie within that head" in result.problems[0]


def test_for_an_auditor_who_has_no_newer_key(leafy: Leafy) -> None:
    """Evidence has the newest checkpoint, but for an auditor for whom it does not count: then the first that covers."""
    assert covered(evidence(leafy, 5)) == covered(evidence(leafy, 5, auditor=leafy.public)) == 5
    trust = ending(leafy, {NAME: Head(3, root(leafy, 3))})
    made = evidence(leafy, 5, auditor=trust)
    assert covered(made) == 3
    assert check(made.data, trust).proved


def test_an_ended_key_behind_its_end(leafy: Leafy) -> None:
    """Beyond its end, and in a log that is not listed, a key counts for nothing, whatever is shown."""
    for heads in ({NAME: Head(2, root(leafy, 2))}, {}, {"audit.other/0": Head(9, bytes(32))}):
        trust = ending(leafy, heads)
        result = check(evidence(leafy, 5, auditor=trust).data, trust)
        assert result.severity is Severity.UNVERIFIABLE
        assert "ended at this log's size" in result.problems[0]


def test_an_ended_key_on_another_tree(leafy: Leafy, fork: Leafy) -> None:
    """A checkpoint of a smaller size on another tree does not count, with a proof of that tree or without any."""
    (fork.folder / checkpoint_key(LOG, 4)).unlink(missing_ok=True)
    signer = fork.signers.ed25519()
    smaller = sign_checkpoint(signer, fork.id, LOG, Head(4, root(fork, 4)))
    trust = ending(leafy, {NAME: Head(5, root(leafy, 5))})
    assert check(evidence(fork, 30, note=smaller.encode()).data, trust).severity is Severity.TAMPERED
    members = unpack(evidence(fork, 30, note=smaller.encode()).data)
    proof = json.loads(members["proof.json"]) | {"consistency": []}
    bare = check(pack(members | {"proof.json": json.dumps(proof).encode()}), trust)
    assert bare.severity is Severity.UNVERIFIABLE
    assert "is not shown to lie within that head" in bare.problems[0]


def test_the_maker_believes_no_ended_key(leafy: Leafy) -> None:
    """Who knows that the key has ended takes no checkpoint of it beyond the end into evidence."""
    trust = replace(ending(leafy, {NAME: Head(3, root(leafy, 3))}), leaves=leafy.own.leaves)
    assert covered(make_evidence(leafy.store, LOG, 5, trust, NOW)) == 3
    with pytest.raises(ConfigurationError, match="no checkpoint that a trusted key signed"):
        make_evidence(leafy.store, LOG, 35, trust, NOW)


# --- making it


@pytest.mark.parametrize(
    ("offset", "said"),
    [
        (22, "a read-committed consumer gets no record"),
        (25, "is in quarantine"),
        (28, "no client could decode it: a batch of an unknown magic"),
        (31, "the statement admits the loss"),
        (45, "accounts for"),
        (2**62, "accounts for"),
    ],
)
def test_no_event_there(leafy: Leafy, offset: int, said: str) -> None:
    """Where there is no event, what is there is said."""
    with pytest.raises(ConfigurationError, match=said):
        evidence(leafy, offset)


def test_audits_hold_no_events(leafy: Leafy) -> None:
    """The log of audits is one, and has no events."""
    with pytest.raises(ConfigurationError, match="has no events"):
        make_evidence(leafy.store, AUDIT_LOG, 0, leafy.own, NOW)


def test_no_checkpoint_yet(tmp_path: Path) -> None:
    """Before a checkpoint covers an event, what to do is said."""
    made = Leafy(tmp_path / "of")
    made.append(range(5))
    with pytest.raises(ConfigurationError, match="custody checkpoint --write"):
        evidence(made, 3)


def test_checkpoints_of_nobody(tmp_path: Path) -> None:
    """What no trusted key signed lies among the checkpoints, and is passed over."""
    made = Leafy(tmp_path / "of")
    made.append(range(5))
    made.append(range(5, 10))
    signer = Keyring.new(NOW).signers(NOW).ed25519()
    path = made.folder / checkpoint_key(LOG, 1)
    path.parent.mkdir(parents=True)
    path.write_bytes(sign_checkpoint(signer, made.id, LOG, Head(1, root(made, 1))).encode())
    (made.folder / checkpoint_key(LOG, 7)).write_bytes(b"")
    with pytest.raises(ConfigurationError, match="no checkpoint that a trusted key signed"):
        evidence(made, 3)
    made.checkpoint()
    assert covered(evidence(made, 3)) == 2


def test_slots_that_were_passed_over(tmp_path: Path) -> None:
    """A log whose writer passed over slots, of garbage or of a forged statement, proves its events as any other."""
    made = Leafy(tmp_path / "of")
    for sequence in range(12):
        if sequence in {3, 7, 8}:
            plant(made, sequence, forged(made, sequence) if sequence == 7 else b"garbage\n")
        else:
            made.append(range(len(made.events), len(made.events) + 5))
    assert made.checkpoint().size == 12
    for offset, content in made.events.items():
        result = check(evidence(made, offset).data, made.public)
        assert (result.proved, result.event) == (True, content)


def test_an_archive_that_was_changed(leafy: Leafy, tmp_path: Path) -> None:
    """No evidence comes out of an archive whose segment, leaves or statement is not what was signed."""
    changed = leafy.copy(tmp_path / "segment")
    segment = next(iter(sorted((changed.folder / "events").rglob("*.gz"))))
    data = bytearray(segment.read_bytes())
    data[40] ^= 1
    segment.chmod(0o600)
    segment.write_bytes(data)
    with pytest.raises(FormatError):
        evidence(changed, 1)
    segment.unlink()
    with pytest.raises(ObjectMissing, match="it has expired, or was removed"):
        evidence(changed, 1)
    key = next(iter(leafy.own.leaves))
    wrong = replace(leafy.own, leaves={key: Secret(bytes(32))})
    with pytest.raises(FormatError, match="does not commit to these leaf hashes"):
        make_evidence(leafy.store, LOG, 5, wrong, NOW)


# --- files of any kind


def hostile_files(members: Mapping[str, bytes]) -> dict[str, bytes]:
    def written(kind: int, given: Mapping[str, bytes]) -> bytes:
        made = io.BytesIO()
        with zipfile.ZipFile(made, "w", kind) as file:
            for name, data in given.items():
                file.writestr(name, data)
        return made.getvalue()

    good = pack(members)
    files = {"nothing": b"", "a start": b"PK", "cut short": good[:-30], "cut in half": good[: len(good) // 2]}
    files["too large"] = bytes(FILE_LIMIT + 1)
    files["beyond a limit"] = written(zipfile.ZIP_DEFLATED, {**members, "event.json": bytes(20_000_000)})
    files["another method"] = written(zipfile.ZIP_BZIP2, members)
    files["nested"] = written(zipfile.ZIP_STORED, {**members, "event.json": good})
    files["a path"] = written(zipfile.ZIP_STORED, {f"../{name}": data for name, data in members.items()})
    files["odd names"] = written(zipfile.ZIP_STORED, {f"{name}\u202e": data for name, data in members.items()})
    files["one more"] = written(zipfile.ZIP_STORED, {**members, "batch.jsonl.gz": b""})
    files["a thousand"] = written(zipfile.ZIP_STORED, {str(number): b"" for number in range(1000)})
    for missing in members:
        files[f"without {missing}"] = pack({name: data for name, data in members.items() if name != missing})
        files[f"with nothing in {missing}"] = pack({**members, missing: b""})
    twice = io.BytesIO()
    with zipfile.ZipFile(twice, "w") as file:
        for name in members:
            file.writestr(name, members[name])
        with pytest.warns(UserWarning, match="Duplicate"):
            file.writestr("proof.json", members["proof.json"])
    files["twice"] = twice.getvalue()
    files["a bomb"] = bomb(members)
    return files


def bomb(members: Mapping[str, bytes]) -> bytes:
    """Return a zip whose event inflates to 64 MiB, and says that it has a hundred bytes."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    huge = packer.compress(bytes(64 * 1024 * 1024)) + packer.flush()
    made, directory, count = io.BytesIO(), b"", 0
    for name, data in {**members, "event.json": None}.items():
        packed, size, kind = (huge, 100, 8) if data is None else (data, len(data), 0)
        crc = zlib.crc32(bytes(100) if data is None else data)
        start = made.tell()
        fields = struct.pack("<HHHHHLLLHH", 20, 0, kind, 0, 33, crc, len(packed), size, len(name), 0)
        made.write(b"PK\x03\x04" + fields + name.encode() + packed)
        directory += b"PK\x01\x02" + struct.pack("<H", 20) + fields + struct.pack("<HHHLL", 0, 0, 0, 0, start)
        directory += name.encode()
        count += 1
    place = made.tell()
    made.write(directory + b"PK\x05\x06" + struct.pack("<HHHHLLH", 0, 0, count, count, len(directory), place, 0))
    return made.getvalue()


def test_hostile_files(leafy: Leafy) -> None:
    """What is no evidence is refused, whatever it is, and never inflated beyond what its part may have."""
    import tracemalloc

    members = unpack(evidence(leafy, 5).data)
    for name, data in hostile_files(members).items():
        tracemalloc.start()
        if name == "with nothing in README.txt":
            assert check(data, leafy.public).proved
        else:
            with pytest.raises(FormatError):
                check(data, leafy.public)
        assert tracemalloc.get_traced_memory()[1] < 32 * 1024 * 1024, name
        tracemalloc.stop()


@settings(max_examples=300)
@given(data=st.data())
def test_any_file(leafy: Leafy, data: st.DataObject) -> None:
    """Whatever is done to a file, it is refused, or proves the event that was archived."""
    offset = data.draw(st.sampled_from([5, 41]))
    file = bytearray(evidence(leafy, offset).data)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(file) - 1))
        match data.draw(st.sampled_from(["flip", "cut", "insert", "copy", "end"])):
            case "flip":
                file[place] ^= data.draw(st.integers(1, 255))
            case "cut":
                del file[place : place + data.draw(st.integers(1, 100))]
            case "insert":
                file[place:place] = data.draw(st.binary(max_size=50))
            case "copy":
                file[place : place + 20] = file[-40:-20]
            case "end":
                place = data.draw(st.integers(max(0, len(file) - 700), len(file) - 1))
                file[place] = data.draw(st.integers(0, 255))
        if not file:
            return
    with contextlib.suppress(FormatError, SignatureInvalid):
        result = check(bytes(file), leafy.public)
        result.to_dict()
        assert not result.proved or result.event == event(offset)


@settings(max_examples=200)
@given(st.sampled_from(["proof.json", "archive.json", "manifest.json", "checkpoint.txt", "event.json", "leaves.bin"]),
       st.binary(max_size=300))  # fmt: skip
def test_any_member(leafy: Leafy, name: str, data: bytes) -> None:
    """Whatever stands in a part, it is refused."""
    members = unpack(evidence(leafy, 5).data)
    with contextlib.suppress(FormatError, SignatureInvalid):
        assert not check(pack(members | {name: data}), leafy.public).proved


# --- commands


def test_commands(leafy: Leafy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`custody evidence` writes it, `custody check-evidence` prints event and verdict, and ends as FORMAT.md says."""
    monkeypatch.setenv("CUSTODY_ARCHIVE", str(leafy.folder))
    monkeypatch.setenv("CUSTODY_KEYS", f"file:{leafy.keyring}")
    file, note = tmp_path / "evidence.zip", tmp_path / "note"
    note.write_bytes(cosign(stored(leafy, 5), 0, NOW - timedelta(minutes=1)).encode())
    public = leafy.public
    trust = write_trust(tmp_path / "trust.json", replace(public, heads={NAME: Head(4, root(leafy, 4))}))
    runner = CliRunner()

    def run(*arguments: object) -> tuple[int, str]:
        done = runner.invoke(app, [str(one) for one in arguments])
        return done.exit_code, done.output

    code, said = run("evidence", NAME, 5, "-o", file, "--for", trust)
    assert (code, "this event and no other" in said) == (0, True)
    code, said = run("check-evidence", file, "--trust", trust)
    assert (code, said.splitlines()[0]) == (0, event(5).decode())
    assert "It is consistent with the head of size 4 known from trust.json." in said
    assert "Not proved: that no other event is missing." in said

    witnessed = write_trust(tmp_path / "witnessed.json", replace(public, witnesses=WITNESS_KEYS, quorum=1))
    code, said = run("check-evidence", file, "--trust", witnessed)
    assert (code, "0 of the 1 witnesses" in said, event(5).decode() in said) == (12, True, False)
    assert run("evidence", NAME, 5, "-o", file, "--checkpoint", note)[0] == 0
    code, said = run("check-evidence", file, "--trust", witnessed)
    assert (code, "witness-0 saw that head at 2" in said) == (0, True)
    code, said = run("check-evidence", file, "--trust", witnessed, "--json")
    assert json.loads(said)["checkpoint"]["witnessed"][0]["by"] == "witness-0"

    # The leaf secret comes from the settings' keyring, whoever is trusted.
    code, said = run("evidence", NAME, 5, "-o", file, "--trust", trust)
    assert (code, "this event and no other" in said) == (0, True)

    forked = write_trust(tmp_path / "forked.json", replace(public, heads={NAME: Head(5, bytes(32))}))
    code, said = run("check-evidence", file, "--trust", forked)
    assert (code, "two histories" in said, "\n5\n" in said) == (13, True, True)
    nobody = write_trust(tmp_path / "nobody.json", Trust())
    assert run("check-evidence", file, "--trust", nobody)[0] == 12
    code, said = run("check-evidence", file, "--trust", nobody, "--json")
    assert (code, json.loads(said)["verdict"]) == (12, "unverifiable")
    members = unpack(evidence(leafy, 5).data)
    file.write_bytes(pack(members | {"event.json": event(6)}))
    assert run("check-evidence", file, "--trust", trust)[0] == 13
    code, said = run("check-evidence", file, "--trust", trust, "--json")
    assert (code, json.loads(said)["proved"]) == (13, False)
    # The README in it is for people, and FORMAT.md says that no check reads it.
    file.write_bytes(pack(members | {"README.txt": b"All of this is true."}))
    assert run("check-evidence", file, "--trust", trust)[0] == 0


@pytest.mark.parametrize("given", ["--trust", "CUSTODY_TRUST"])
@pytest.mark.parametrize("secret", ["keys", "checkpoint_keys", "--keys"])
def test_whoever_is_trusted_the_settings_keyring_shows_one_event_alone(
    leafy: Leafy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, secret: str
) -> None:
    """The leaf secret is no matter of trust: it is taken from the settings' keyrings, whatever is trusted."""
    trust, file = write_trust(tmp_path / "trust.json", leafy.public), tmp_path / "evidence.zip"
    monkeypatch.setenv("CUSTODY_ARCHIVE", str(leafy.folder))
    if given == "CUSTODY_TRUST":
        monkeypatch.setenv("CUSTODY_TRUST", str(trust))
    if secret == "checkpoint_keys":
        other = tmp_path / "other.json"
        new_keyring(other, NOW)
        monkeypatch.setenv("CUSTODY_KEYS", f"file:{other}")
    if secret != "--keys":
        monkeypatch.setenv(f"CUSTODY_{secret.upper()}", f"file:{leafy.keyring}")
    arguments = ["evidence", NAME, "5", "-o", str(file)]
    arguments += ["--trust", str(trust)] if given == "--trust" else []
    arguments += ["--keys", f"file:{leafy.keyring}"] if secret == "--keys" else []
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done
    assert "this event and no other" in done.output
    assert check(file.read_bytes(), leafy.public).others == 0


def test_a_whole_batch_is_handed_over_only_where_that_is_asked_for(
    leafy: Leafy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the leaf secret nothing is written, unless --whole-batch says so; without leaves it is."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUSTODY_ARCHIVE", str(leafy.folder))
    trust, file = write_trust(tmp_path / "trust.json", leafy.public), tmp_path / "evidence.zip"
    runner = CliRunner()
    arguments = ["evidence", NAME, "5", "-o", str(file), "--trust", str(trust)]
    refused = runner.invoke(app, arguments)
    assert isinstance(refused.exception, ConfigurationError)
    assert "3 other events" in str(refused.exception)
    assert not file.exists()
    # A keyring that cannot be opened is named, and changes nothing.
    (tmp_path / "keyring.json").write_text("{}")
    (tmp_path / "keyring.json").chmod(0o600)
    refused = runner.invoke(app, arguments)
    assert isinstance(refused.exception, ConfigurationError)
    assert "keyring.json was not used" in refused.output
    done = runner.invoke(app, [*arguments, "--whole-batch"])
    said = " ".join(done.output.split())
    assert (done.exit_code, "Warning: It discloses the whole batch, with 3 other events" in said) == (0, True)
    arguments[2] = "41"
    done = runner.invoke(app, arguments)
    said = " ".join(done.output.split())
    assert (done.exit_code, "3 other events: its batch was written without leaves" in said) == (0, True)


def test_sentences_fit_the_screen(leafy: Leafy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At 80 columns sentences are broken between words; the event, the checkpoint and commands are as they are."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("CUSTODY_ARCHIVE", str(leafy.folder))
    trust = write_trust(Path("trust.json"), leafy.public)
    nobody = write_trust(Path("nobody.json"), Trust())
    runner = CliRunner()
    made = runner.invoke(app, ["evidence", NAME, "5", "-o", "evidence.zip", "--trust", str(trust), "--whole-batch"])
    assert made.exit_code == 0
    assert "`custody check-evidence evidence.zip --trust trust.json`" in made.output
    event, _, *said = runner.invoke(app, ["check-evidence", "evidence.zip", "--trust", str(trust)]).output.splitlines()
    assert json.loads(event)
    assert max(map(len, [*made.output.splitlines(), *said])) <= 80
    refused = runner.invoke(app, ["check-evidence", "evidence.zip", "--trust", str(nobody)])
    sentences, note = refused.output.split("\nThe checkpoint in the file:\n")
    assert (refused.exit_code, max(map(len, sentences.splitlines())) <= 80) == (12, True)
    assert parse_note(note.encode()).encode() == note.encode()


@pytest.mark.parametrize("what", ["empty", "trust.json", "cut", "another zip", "no event"])
def test_what_is_no_evidence_at_all(leafy: Leafy, tmp_path: Path, what: str) -> None:
    """A wrong file is a wrong argument, and no forgery."""
    data = evidence(leafy, 5).data
    trust, file = write_trust(tmp_path / "trust.json", leafy.public), tmp_path / "evidence.zip"
    lacking = {name: member for name, member in unpack(data).items() if name != "event.json"}
    file.write_bytes(
        {
            "empty": b"",
            "trust.json": trust.read_bytes(),
            "cut": data[:-100],
            "another zip": pack({"README.txt": b"Hello"}),
            "no event": pack(lacking),
        }[what]
    )
    done = CliRunner().invoke(app, ["check-evidence", str(file), "--trust", str(trust), "--json"])
    assert isinstance(done.exception, ConfigurationError)
    assert "evidence.zip: not an evidence file" in str(done.exception)


def test_evidence_with_a_damaged_or_foreign_part(leafy: Leafy, tmp_path: Path) -> None:
    """A file that has all members of evidence, and others or damaged ones, stays as bad as a forged one."""
    data = evidence(leafy, 5).data
    trust, file = write_trust(tmp_path / "trust.json", leafy.public), tmp_path / "evidence.zip"
    damaged = bytearray(data)
    damaged[data.index(unpack(data)["leaves.bin"])] ^= 1
    for changed in (bytes(damaged), pack(unpack(data) | {"more.txt": b"more"})):
        file.write_bytes(changed)
        done = CliRunner().invoke(app, ["check-evidence", str(file), "--trust", str(trust)])
        assert (done.exit_code, "NOT PROVED" in done.output) == (13, True)


def test_no_archive(leafy: Leafy, tmp_path: Path) -> None:
    """Where no archive is, the command says so, and nothing of logs."""
    arguments = ["evidence", NAME, "5", "-o", "z.zip", "--archive", str(tmp_path / "no"), "--keys"]
    done = CliRunner().invoke(app, [*arguments, f"file:{leafy.keyring}"])
    assert isinstance(done.exception, ConfigurationError)
    assert "there is no archive at" in str(done.exception)
    assert not (tmp_path / "no").exists()


def test_what_a_command_needs(leafy: Leafy, tmp_path: Path) -> None:
    """Nobody is trusted by default, and a file that cannot be read is named."""
    runner = CliRunner()
    done = runner.invoke(app, ["check-evidence", str(tmp_path / "no")])
    assert isinstance(done.exception, ConfigurationError)
    done = runner.invoke(app, ["check-evidence", str(tmp_path / "no"), "--keys", f"file:{leafy.keyring}"])
    assert isinstance(done.exception, ConfigurationError)
    assert "cannot be read" in str(done.exception)


def test_a_real_assembler_s_archive(tmp_path: Path) -> None:
    """Events that the drain's own assembler packed are proved, among others that are none."""
    sample: Sample = make_archive(tmp_path)
    store = open_store(str(sample.folder))
    own = open_trust([f"file:{sample.keyring}"])
    signer = Keyring.load(sample.keyring).signers(datetime.now(UTC)).ed25519()
    archive = json.loads((sample.folder / "archive.json").read_bytes().split(b"\n")[0])["archive"]
    write_checkpoint(store, sample.log, archive, own, signer)
    public = Trust(keys={key.id: TrustedKey(key.id, key.algorithm, material=key.public) for key in own.keys.values()})
    for offset, content in sample.events.items():
        made = make_evidence(store, sample.log, offset, own, NOW)
        assert check_evidence(made.data, public, NOW).event == content
