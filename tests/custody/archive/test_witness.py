"""A witness cosigns only heads that are consistent with those it cosigned before."""

import json
import shutil
import stat
import subprocess
import sys
from base64 import b64encode
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path

import pytest
from typer.testing import CliRunner

from custody.archive.checkpoints import write_checkpoint
from custody.archive.evidence import check_evidence
from custody.archive.known_heads import State
from custody.archive.prove import make_evidence
from custody.archive.reader import Tip, find_audit_tip, read_archive
from custody.archive.witness import Seen, Witness
from custody.archive.writer import append_audit, create_archive
from custody.cli.evidence import app
from custody.errors import ConfigurationError, HeadRollback, NoArchive
from custody.findings import Accepted
from custody.format.archive_file import Pin
from custody.format.audit import Audit, SignedAudit
from custody.format.layout import AUDIT_LOG, audit_key, checkpoint_key, manifest_key
from custody.format.times import format_time
from custody.keys.keyring import Keyring, new_keyring, rotate_keyring
from custody.keys.trust import Trust
from custody.store.open import open_store
from custody.tlog.checkpoint import NoteKey, parse_checkpoint, parse_note, sign_checkpoint
from custody.tlog.head import Head
from custody.verify import acceptance
from custody.verify.report import Report
from custody.verify.run import verify
from tests.helpers.commands import Command
from tests.helpers.leafy import Leafy, forged, plant, write_trust
from tests.helpers.reading import anything
from tests.helpers.sample import audit_of

NOW = datetime.now(UTC) + timedelta(minutes=1)


@pytest.fixture
def leafy(tmp_path: Path) -> Leafy:
    made = Leafy(tmp_path / "of")
    for _ in range(3):
        grow(made)
    made.checkpoint()
    return made


def grow(of: Leafy, statements: int = 1) -> None:
    for _ in range(statements):
        start = max(of.events, default=-1) + 1
        of.append(range(start, start + 5))


def watch(of: Leafy, folder: Path, trust: Trust | None = None) -> list[Seen]:
    return list(Witness(folder, NOW).watch(of.store, of.public if trust is None else trust, NOW))


def audit(of: Leafy, writer: str = "a test") -> None:
    """Append an audit, and a checkpoint of the log of audits."""

    def make(tip: Tip[SignedAudit]) -> Audit:
        return audit_of(of.id, tip, NOW, writer=writer)

    append_audit(of.store, find_audit_tip(of.store, anything), make, of.signers.both(), of.own)
    write_checkpoint(of.store, AUDIT_LOG, of.id, of.own, of.signers.ed25519())


def look(of: Leafy, state: Path, trust: Trust | None = None) -> Report:
    """Verify with a state file."""
    return verify(of.store, of.public if trust is None else trust, now=NOW, state=state, workers=0)


def judge_all(report: Report, name: str) -> tuple[Accepted, ...]:
    """Return what `custody accept` makes of the findings of a name."""
    findings = [one for one in report.findings if one.finding == name]
    assert findings
    return tuple(entry for one in findings for entry in acceptance.entries(one, "a test", "me", format_time(NOW)))


# --- growth


def test_growth_is_cosigned(leafy: Leafy, tmp_path: Path) -> None:
    """Heads that grow are cosigned one after another; each cosignature holds over the time and the note."""
    folder = tmp_path / "witness"
    (first,) = watch(leafy, folder)
    assert (first.outcome, first.size, first.alarms) == ("first", 3, ())
    assert [one.outcome for one in watch(leafy, folder)] == ["unchanged"]
    grow(leafy, 5)
    leafy.checkpoint()
    (grown,) = watch(leafy, folder)
    assert (grown.outcome, grown.size) == ("grown", 8)
    key = Witness(folder, NOW).key
    kept = sorted(path for path in (folder / "notes").rglob("0*") if path.is_file())
    assert kept == [first.path, grown.path]
    note = parse_note(kept[1].read_bytes())
    assert note.text == parse_note((leafy.folder / checkpoint_key(leafy.log, 8)).read_bytes()).text
    assert [one.name for one in note.signatures][-1] == key.name
    assert NoteKey.parse(key.vkey).verify(note.text, note.signatures[-1].signature) == int(NOW.timestamp())


def test_what_was_cosigned_is_evidence(leafy: Leafy, tmp_path: Path) -> None:
    """The vkey that it shows and the notes that it keeps are what others need for a quorum."""
    (seen,) = watch(leafy, tmp_path / "witness")
    assert seen.path is not None
    trust = replace(leafy.public, witnesses=(Witness(tmp_path / "witness", NOW).key,), quorum=1)
    made = make_evidence(leafy.store, leafy.log, 3, leafy.own, NOW, note=seen.path.read_bytes())
    result = check_evidence(made.data, trust, NOW)
    assert (result.proved, len(result.checkpoint_verdict.witnessed)) == (True, 1)
    bare = make_evidence(leafy.store, leafy.log, 3, leafy.own, NOW)
    assert not check_evidence(bare.data, trust, NOW).proved


def test_audits_are_a_log(leafy: Leafy, tmp_path: Path) -> None:
    """The log of audits is watched as any other: it grows, cannot be rewritten, and cannot go."""
    folder = tmp_path / "witness"
    audit(leafy)
    fork = leafy.copy(tmp_path / "fork")
    audit(leafy)
    assert {one.log: (one.outcome, one.size) for one in watch(leafy, folder)} == {
        "audit.leafy/0": ("first", 3),
        "audits/0": ("first", 2),
    }
    audit(leafy)
    assert {one.log: one.outcome for one in watch(leafy, folder)} == {
        "audit.leafy/0": "unchanged",
        "audits/0": "grown",
    }
    # The fork is shown under the URL of the archive that it was made from.
    shutil.rmtree(leafy.folder)
    shutil.copytree(fork.folder, leafy.folder)
    for _ in range(3):
        audit(leafy, "another history")
    seen = {one.log: one for one in watch(leafy, folder)}
    assert seen["audits/0"].outcome == "refused"
    shutil.rmtree(leafy.folder / "checkpoints/audits")
    shutil.rmtree(leafy.folder / "audits")
    seen = {one.log: one for one in watch(leafy, folder)}
    assert "rolled back" in (seen["audits/0"].problem or "")


# --- what is refused


def test_another_history_is_refused(leafy: Leafy, tmp_path: Path) -> None:
    """A head of another history is refused at every run, and both signed heads are shown complete."""
    folder = tmp_path / "witness"
    fork = leafy.copy(tmp_path / "fork")
    grow(leafy, 2)
    leafy.checkpoint()
    watch(leafy, folder)
    grow(fork, 6)
    fork.checkpoint()
    for _ in range(2):
        # Another URL, and the same archive: a witness signs one history of it.
        (refused,) = watch(fork, folder)
        assert refused.outcome == "refused"
        assert "another history" in (refused.problem or "")
        assert [parse_checkpoint(parse_note(note.encode()).text).size for note in refused.notes] == [5, 9]
        assert not list(folder.rglob(f"{9:012}"))
    assert [one.outcome for one in watch(leafy, folder)] == ["unchanged"]


def test_two_heads_of_one_size(leafy: Leafy, tmp_path: Path) -> None:
    """Two roots signed for one size are refused."""
    folder = tmp_path / "witness"
    fork = leafy.copy(tmp_path / "fork")
    grow(leafy, 2)
    leafy.checkpoint()
    watch(leafy, folder)
    grow(fork, 2)
    fork.checkpoint()
    (refused,) = watch(fork, folder)
    assert (refused.problem or "").startswith("two roots were signed for one size")
    assert len(refused.notes) == 2


def test_a_log_that_went_back(leafy: Leafy, tmp_path: Path) -> None:
    """A checkpoint that is gone or replaced, and a whole log that is gone, are refused, and what is left is shown."""
    folder = tmp_path / "witness"
    grow(leafy, 2)
    leafy.checkpoint()
    watch(leafy, folder)
    path = leafy.folder / checkpoint_key(leafy.log, 5)
    good = path.read_bytes()
    path.unlink()
    (refused,) = watch(leafy, folder)
    assert "is gone: the log was rolled back" in (refused.problem or "")
    assert [parse_checkpoint(parse_note(note.encode()).text).size for note in refused.notes] == [5, 3]
    path.write_bytes(b"garbage")
    (refused,) = watch(leafy, folder)
    assert "was overwritten" in (refused.problem or "")
    signer = Keyring.new(NOW).signers(NOW).ed25519()
    path.write_bytes(sign_checkpoint(signer, leafy.id, leafy.log, Head(5, bytes(32))).encode())
    (refused,) = watch(leafy, folder)
    assert "replaced by one that does not count" in (refused.problem or "")
    path.write_bytes(good)
    assert [one.outcome for one in watch(leafy, folder)] == ["unchanged"]
    shutil.rmtree(leafy.folder / "checkpoints")
    shutil.rmtree(leafy.folder / "manifests")
    (refused,) = watch(leafy, folder)
    assert (refused.outcome, len(refused.notes)) == ("refused", 1)


def test_statements_that_are_gone(leafy: Leafy, tmp_path: Path) -> None:
    """An unchanged checkpoint is not enough: the statements that it covers must exist, too."""
    folder = tmp_path / "witness"
    watch(leafy, folder)
    (leafy.folder / manifest_key(leafy.log, 2)).unlink()
    (refused,) = watch(leafy, folder)
    assert "the log was rolled back, from 3 statements to 2" in (refused.problem or "")
    (refused,) = watch(leafy, tmp_path / "another")
    assert "statements cannot be read" in (refused.problem or "")


def test_a_root_of_other_statements(leafy: Leafy, tmp_path: Path) -> None:
    """A first checkpoint whose root is not that of the archive's statements is not cosigned."""
    path = leafy.folder / checkpoint_key(leafy.log, 3)
    path.unlink()
    path.write_bytes(sign_checkpoint(leafy.signers.ed25519(), leafy.id, leafy.log, Head(3, bytes(32))).encode())
    (refused,) = watch(leafy, tmp_path / "witness")
    assert "not that of the statements" in (refused.problem or "")


# --- what does not count


def test_what_nobody_signed_stops_nothing(leafy: Leafy, tmp_path: Path) -> None:
    """A checkpoint that no trusted key signed is an alarm, and the newest valid one is cosigned."""
    folder = tmp_path / "witness"
    stranger = Keyring.new(NOW).signers(NOW).ed25519()
    place = (leafy.folder / checkpoint_key(leafy.log, 3)).parent
    (place / f"{4:012}").write_bytes(b"")
    (place / f"{999_999_999_999:012}").write_bytes(b"garbage")
    (place / f"{7:012}").write_bytes(sign_checkpoint(stranger, leafy.id, leafy.log, Head(7, bytes(32))).encode())
    other = sign_checkpoint(leafy.signers.ed25519(), "another", leafy.log, Head(8, bytes(32)))
    (place / f"{8:012}").write_bytes(other.encode())
    (first,) = watch(leafy, folder)
    assert (first.outcome, first.size, len(first.alarms)) == ("first", 3, 4)
    assert "999999999999 does not count" in first.alarms[0]
    grow(leafy, 2)
    leafy.checkpoint()
    (grown,) = watch(leafy, folder)
    assert (grown.outcome, grown.size, len(grown.alarms)) == ("grown", 5, 3)
    for number in range(100, 150):
        (place / f"{number:012}").write_bytes(b"")
    (unchanged,) = watch(leafy, folder)
    assert (unchanged.outcome, len(unchanged.alarms)) == ("unchanged", 10)


def test_a_checkpoint_of_nobody(leafy: Leafy, tmp_path: Path) -> None:
    """A log of which no trusted key signed anything is cosigned by nobody, and empty folders are no logs."""
    trust = replace(leafy.public, keys={})
    (unsigned,) = watch(leafy, tmp_path / "witness", trust)
    assert (unsigned.outcome, unsigned.size, len(unsigned.alarms)) == ("unsigned", 0, 1)
    assert not list((tmp_path / "witness").glob("notes/*"))
    (leafy.folder / "checkpoints/audit.other/0").mkdir(parents=True)
    assert [one.log for one in watch(leafy, tmp_path / "witness")] == ["audit.leafy/0"]


def test_an_ended_key(leafy: Leafy, tmp_path: Path) -> None:
    """A checkpoint by a leaked key beyond its end is an alarm, and the newest one before it is cosigned."""
    grow(leafy, 2)
    end = leafy.checkpoint()
    grow(leafy, 2)
    leafy.checkpoint()
    keys = {
        id_: replace(key, until={str(leafy.log): end}) if key.algorithm == "Ed25519" else key
        for id_, key in leafy.public.keys.items()
    }
    (seen,) = watch(leafy, tmp_path / "witness", replace(leafy.public, keys=keys))
    assert (seen.outcome, seen.size, len(seen.alarms)) == ("first", 5, 1)
    assert "ended at this log's size 5" in seen.alarms[0]


def test_keys_that_ended_after_the_first_look(leafy: Leafy, tmp_path: Path) -> None:
    """The archive that a witness has seen is known to be this one, whatever became of its keys since."""
    folder, trust = tmp_path / "witness", replace(leafy.public, archive=None)
    watch(leafy, folder, trust)
    grow(leafy, 2)
    end = leafy.checkpoint()
    keys = {id_: replace(key, until={str(leafy.log): end}) for id_, key in leafy.public.keys.items()}
    (grown,) = watch(leafy, folder, replace(trust, keys=keys))
    assert (grown.outcome, grown.size) == ("grown", end.size)
    # At a first look nothing tells that its keys signed it before they ended.
    (refused,) = watch(leafy, tmp_path / "another", replace(trust, keys=keys))
    assert refused.outcome == "refused"
    assert "has ended" in (refused.problem or "")


def test_slots_that_were_passed_over(leafy: Leafy, tmp_path: Path) -> None:
    """A witness with public keys alone is not stopped by what lies in slots that the writer passed over."""
    folder = tmp_path / "witness"
    watch(leafy, folder)
    plant(leafy, 3, forged(leafy, 3))
    grow(leafy)
    plant(leafy, 5, b"garbage")
    grow(leafy, 2)
    assert leafy.checkpoint().size == 8
    (grown,) = watch(leafy, folder)
    assert (grown.outcome, grown.size) == ("grown", 8)


# --- which archive it is


def replaced(of: Leafy, root: Path) -> Leafy:
    """Put another archive by the same keys in the place of one."""
    shutil.move(of.folder, root)
    of.id = create_archive(of.store, of.signers.both).id
    of.events.clear()
    grow(of)
    of.checkpoint()
    return of


def test_another_archive_is_refused_until_accepted(leafy: Leafy, tmp_path: Path) -> None:
    """Another `archive.json` at the same URL is refused at every look, until somebody accepts it by its digest."""
    folder = tmp_path / "witness"
    trust = replace(leafy.public, archive=None)
    known = leafy.id
    assert [one.outcome for one in watch(leafy, folder, trust)] == ["first"]
    replaced(leafy, tmp_path / "moved")
    for _ in range(3):
        (refused,) = watch(leafy, folder, trust)
        assert (refused.log, refused.outcome) == ("archive.json", "refused")
        assert known in (refused.problem or "")
        assert [parse_checkpoint(parse_note(note.encode()).text).size for note in refused.notes] == [3]
    assert [path.name for path in (folder / "notes").iterdir()] == [known]
    pin = read_archive(leafy.store).pin
    stored = sha256((leafy.folder / "archive.json").read_bytes()).hexdigest()
    for finding, digest in (("archive", pin.sha256), ("identity", pin.sha256), ("identity", stored)):
        accepted = Accepted(finding, "a rebuild", "me", format_time(NOW), key="archive.json", sha256=digest)
        (refused,) = watch(leafy, folder, replace(trust, accepted=(accepted,)))
        assert refused.outcome == "refused"
    assert f"--finding archive --key archive.json --sha256 {stored} " in (refused.problem or "")
    # What verify reports of it, accepted, releases the witness.
    state = tmp_path / "state.json"
    State(state).remember(leafy.store.url, Pin(known, "0" * 64), {})
    judged = judge_all(look(leafy, state, trust), "archive")
    assert judged[0].sha256 == stored
    seen = watch(leafy, folder, replace(trust, accepted=judged))
    assert [(one.log, one.outcome) for one in seen] == [("archive.json", "resumed"), ("audit.leafy/0", "first")]
    # Accepted once, it is the one that belongs there.
    assert [one.outcome for one in watch(leafy, folder, trust)] == ["unchanged"]


def test_a_wrong_pin_is_an_alarm_at_every_look(leafy: Leafy, tmp_path: Path) -> None:
    """The pin in trust.json is compared whatever was accepted, and released by the digest that verify reports."""
    folder = tmp_path / "witness"
    stored = sha256((leafy.folder / "archive.json").read_bytes()).hexdigest()
    wrong = replace(leafy.public, archive=Leafy(tmp_path / "other").public.archive)
    for digest, code, outcomes in (("0" * 64, 13, ["refused"]), (stored, 3, ["resumed", "first"])):
        accepted = Accepted("archive", "a rebuild", "me", format_time(NOW), key="archive.json", sha256=digest)
        trust = replace(wrong, accepted=(accepted,))
        (found,) = (one for one in look(leafy, tmp_path / "state.json", trust).findings if one.finding == "archive")
        assert found.severity == code
        assert [one.outcome for one in watch(leafy, folder, trust)] == outcomes
    (refused,) = watch(leafy, folder, wrong)
    assert "trust.json pins" in (refused.problem or "")


def test_signatures_of_a_pinned_archive_file(leafy: Leafy, tmp_path: Path) -> None:
    """The pinned `archive.json` without its good signatures is refused, as verify reports it, until accepted."""
    folder, path = tmp_path / "witness", leafy.folder / "archive.json"
    watch(leafy, folder)
    line, _, _ = path.read_bytes().split(b"\n")
    signed = json.loads(path.read_bytes().split(b"\n")[1])
    for one in signed["signatures"]:
        one["value"] = b64encode(bytes(64 if one["algorithm"] == "Ed25519" else 32)).decode()
    path.unlink()
    path.write_bytes(line + b"\n" + json.dumps(signed, separators=(",", ":")).encode() + b"\n")
    (refused,) = watch(leafy, folder)
    assert "are not valid" in (refused.problem or "")
    judged = judge_all(look(leafy, tmp_path / "state.json"), "archive")
    assert [one.outcome for one in watch(leafy, folder, replace(leafy.public, accepted=judged))] == [
        "resumed",
        "unchanged",
    ]


def test_a_url_that_was_never_seen(leafy: Leafy, tmp_path: Path) -> None:
    """Where no archive lies and none was seen there is no alarm, but an error; where one was seen it is an alarm."""
    witness = Witness(tmp_path / "witness", NOW)
    with pytest.raises(NoArchive, match="is this the right place"):
        list(witness.watch(open_store(str(tmp_path / "nowhere")), leafy.public, NOW))
    watch(leafy, tmp_path / "witness")
    shutil.rmtree(leafy.folder)
    (refused,) = watch(leafy, tmp_path / "witness", leafy.own)
    assert (refused.log, refused.outcome) == ("archive.json", "refused")
    assert "restore its archive.json" in (refused.problem or "")


# --- what was accepted


def test_a_loss_that_verify_reports_releases_the_witness(leafy: Leafy, tmp_path: Path) -> None:
    """A log that went back is an alarm at every look, until it is back, or what verify says of it is accepted."""
    folder, state = tmp_path / "witness", tmp_path / "state.json"
    audit(leafy)
    grow(leafy, 2)
    leafy.checkpoint()
    audit(leafy)
    before = [one.log for one in watch(leafy, folder)]
    assert look(leafy, state).exit_code in {0, 3}
    kept = tmp_path / "kept"
    shutil.copytree(leafy.folder, kept)
    for log, key, newest in ((leafy.log, manifest_key(leafy.log, 4), 5), (AUDIT_LOG, audit_key(1), 2)):
        (leafy.folder / key).unlink()
        (leafy.folder / checkpoint_key(log, newest)).unlink()
    (leafy.folder / manifest_key(leafy.log, 3)).unlink()
    for _ in range(3):
        seen = watch(leafy, folder)
        assert [(one.log, one.outcome) for one in seen] == [(log, "refused") for log in before]
        report = look(leafy, state)
        assert report.exit_code == 13
        digests = [one.sha256 for one in report.findings if one.finding in {"head-rollback", "audit"}]
        assert len(digests) == 2
        for one in seen:
            assert "the log was rolled back" in (one.problem or "")
            assert "restore" in (one.problem or "")
            assert any(f"--sha256 {digest} " in (one.problem or "") for digest in digests)
    # Back again, there is no alarm: nothing of the memory was lost.
    lost = tmp_path / "lost"
    leafy.folder.rename(lost)
    shutil.copytree(kept, leafy.folder)
    assert [one.outcome for one in watch(leafy, folder)] == ["unchanged", "unchanged"]
    assert look(leafy, state).exit_code in {0, 3}
    shutil.rmtree(leafy.folder)
    lost.rename(leafy.folder)
    # Accepted as verify reports it; one acceptance releases one log.
    judged = judge_all(look(leafy, state), "head-rollback")
    assert [one.outcome for one in watch(leafy, folder, replace(leafy.public, accepted=judged))] == [
        "resumed",
        "refused",
    ]
    judged = judge_all(look(leafy, state), "audit")
    seen = watch(leafy, folder, replace(leafy.public, accepted=judged))
    assert [(one.outcome, one.size) for one in seen] == [("unchanged", 3), ("resumed", 1)]
    assert "continues from here" in (seen[1].remark or "")
    # What it cosigned before is still there, and no longer its memory.
    assert len(list((folder / "notes").glob(f"{leafy.id}/audit.leafy/0/{5:012}.*"))) == 1
    assert [one.outcome for one in watch(leafy, folder)] == ["unchanged", "unchanged"]
    grow(leafy)
    leafy.checkpoint()
    assert [one.outcome for one in watch(leafy, folder)] == ["grown", "unchanged"]


def test_a_log_that_grew_after_its_loss_was_accepted(leafy: Leafy, tmp_path: Path) -> None:
    """A log that is written goes on between the acceptance and the next look, beyond what was cosigned too."""
    for more in (1, 5):
        of, folder, state = leafy.copy(tmp_path / f"of{more}"), tmp_path / f"witness{more}", tmp_path / f"{more}.json"
        of.id = leafy.id
        grow(of, 2)
        of.checkpoint()
        watch(of, folder)
        look(of, state)
        for sequence in (3, 4):
            (of.folder / manifest_key(of.log, sequence)).unlink()
        (of.folder / checkpoint_key(of.log, 5)).unlink()
        of.events = {offset: event for offset, event in of.events.items() if offset < 15}
        judged = replace(of.public, accepted=judge_all(look(of, state), "head-rollback"))
        grow(of, more)
        of.checkpoint()
        assert [one.outcome for one in watch(of, folder)] == ["refused"]
        assert [(one.outcome, one.size) for one in watch(of, folder, judged)] == [("resumed", 3 + more)]
        # It went back further than to where that was accepted.
        for sequence in range(2, 3 + more):
            (of.folder / manifest_key(of.log, sequence)).unlink()
        assert [one.outcome for one in watch(of, folder, judged)] == ["refused"]


@pytest.mark.parametrize("larger", [False, True])
def test_a_head_in_trust_that_went_back(leafy: Leafy, tmp_path: Path, *, larger: bool) -> None:
    """An accepted loss of a head in trust.json counts where that is the larger one, and never for what grew since."""
    folder, state = tmp_path / "witness", tmp_path / "state.json"
    if larger:
        watch(leafy, folder)
    grow(leafy, 2)
    heads = {str(leafy.log): leafy.checkpoint()}
    if not larger:
        grow(leafy)
        leafy.checkpoint()
        watch(leafy, folder)
    for size in range(3, 7):
        for key in (manifest_key(leafy.log, size - 1), checkpoint_key(leafy.log, size)):
            (leafy.folder / key).unlink(missing_ok=True)
    trust = replace(leafy.public, heads=heads)
    trust = replace(trust, accepted=judge_all(look(leafy, state, trust), "head-rollback"))
    (seen,) = watch(leafy, folder, trust)
    assert seen.outcome == ("resumed" if larger else "refused")


@pytest.mark.parametrize("more", [2, 6], ids=["same size", "larger"])
def test_an_accepted_fork(leafy: Leafy, tmp_path: Path, more: int) -> None:
    """A fork is accepted as verify reports it, and the other history is refused from then on."""
    folder, state = tmp_path / "witness", tmp_path / "state.json"
    fork = leafy.copy(tmp_path / "fork")
    fork.id = leafy.id
    grow(leafy, 2)
    leafy.checkpoint()
    watch(leafy, folder)
    look(leafy, state)
    grow(fork, more)
    fork.checkpoint()
    real = tmp_path / "real"
    leafy.folder.rename(real)
    shutil.copytree(fork.folder, leafy.folder)
    (refused,) = watch(leafy, folder)
    (found,) = (one for one in look(leafy, state).findings if one.finding == "head-fork")
    assert f"--finding head-fork --log audit.leafy/0 --sequence 4 --sha256 {found.sha256} " in (refused.problem or "")
    judged = replace(leafy.public, accepted=judge_all(look(leafy, state), "head-fork"))
    assert [(one.outcome, one.size) for one in watch(leafy, folder, judged)] == [("resumed", 3 + more)]
    assert [one.outcome for one in watch(leafy, folder)] == ["unchanged"]
    shutil.rmtree(leafy.folder)
    real.rename(leafy.folder)
    assert [one.outcome for one in watch(leafy, folder, judged)] == ["refused"]


def test_an_accepted_log_that_is_gone(leafy: Leafy, tmp_path: Path) -> None:
    """A whole log that is gone is released as verify reports it, and may begin again."""
    folder, state = tmp_path / "witness", tmp_path / "state.json"
    watch(leafy, folder)
    look(leafy, state)
    for name in ("checkpoints", "manifests"):
        shutil.rmtree(leafy.folder / name)
    judged = replace(leafy.public, accepted=judge_all(look(leafy, state), "head-rollback"))
    (seen,) = watch(leafy, folder, judged)
    assert (seen.outcome, seen.size) == ("resumed", 0)
    assert "no checkpoint is left" in (seen.remark or "")
    assert watch(leafy, folder) == []


@pytest.mark.parametrize("gone", [False, True], ids=["another root", "statements gone"])
def test_an_accepted_checkpoint(leafy: Leafy, tmp_path: Path, *, gone: bool) -> None:
    """A checkpoint that the statements do not bear out is passed by once what verify says of it is accepted."""
    folder, state = tmp_path / "witness", tmp_path / "state.json"
    root = bytes(32)
    if gone:
        grow(leafy)
        root = leafy.checkpoint().root
        (leafy.folder / manifest_key(leafy.log, 3)).unlink()
    else:
        grow(leafy)
        path = leafy.folder / checkpoint_key(leafy.log, 4)
        path.write_bytes(sign_checkpoint(leafy.signers.ed25519(), leafy.id, leafy.log, Head(4, root)).encode())
    name = "head-rollback" if gone else "checkpoint"
    (found,) = (one for one in look(leafy, state).findings if one.finding == name)
    (refused,) = watch(leafy, folder)
    assert f"--sha256 {found.sha256} " in (refused.problem or "")
    judged = replace(leafy.public, accepted=judge_all(look(leafy, state), name))
    assert [(one.outcome, one.size) for one in watch(leafy, folder, judged)] == [("first", 3)]


@pytest.mark.parametrize("data", [None, b"garbage"])
def test_a_checkpoint_alone_that_is_gone(leafy: Leafy, tmp_path: Path, data: bytes | None) -> None:
    """Where the statements still lead to what was cosigned, its checkpoint is brought back, made anew, or accepted."""
    folder, path = tmp_path / "witness", leafy.folder / checkpoint_key(leafy.log, 3)
    watch(leafy, folder)
    path.unlink()
    if data is not None:
        path.write_bytes(data)
    (refused,) = watch(leafy, folder)
    assert f"custody checkpoint --write {leafy.log}" in (refused.problem or "")
    digest = (refused.problem or "").partition("--sha256 ")[2][:64]
    judged = Accepted("checkpoint", "a test", "me", format_time(NOW), key=checkpoint_key(leafy.log, 3), sha256=digest)
    (seen,) = watch(leafy, folder, replace(leafy.public, accepted=(judged,)))
    assert (seen.outcome, seen.size) == ("unchanged", 3)
    assert "accepted in trust.json" in (seen.remark or "")
    assert [one.outcome for one in watch(leafy, folder)] == ["refused"]
    grow(leafy)
    leafy.checkpoint()
    assert [one.outcome for one in watch(leafy, folder)] == ["grown"]


def test_growth_that_cannot_be_proved(leafy: Leafy, tmp_path: Path) -> None:
    """Where a statement in the middle is gone, the refusal prints what accepts that, and that releases the witness."""
    folder = tmp_path / "witness"
    watch(leafy, folder)
    grow(leafy, 4)
    leafy.checkpoint()
    path = leafy.folder / manifest_key(leafy.log, 3)
    data = path.read_bytes()
    path.unlink()
    (refused,) = watch(leafy, folder)
    assert "cannot be proved" in (refused.problem or "")
    words = (refused.problem or "").split()
    given = {name: words[words.index(name) + 1] for name in ("--finding", "--log", "--sequence", "--sha256")}
    judged = Accepted(
        given["--finding"],
        "a test",
        "me",
        format_time(NOW),
        log=given["--log"],
        sequence=int(given["--sequence"]),
        sha256=given["--sha256"],
    )
    state = tmp_path / "copy"
    shutil.copytree(folder, state)
    (seen,) = watch(leafy, folder, replace(leafy.public, accepted=(judged,)))
    assert (seen.outcome, seen.size) == ("resumed", 7)
    path.write_bytes(data)
    assert [one.outcome for one in watch(leafy, state)] == ["grown"]


def test_a_first_look(leafy: Leafy, tmp_path: Path) -> None:
    """At the first look `archive.json` must be the one that trust.json pins, or be signed by trusted keys."""
    folder = tmp_path / "witness"
    stranger = replace(leafy.public, keys={}, archive=None)
    (refused,) = watch(leafy, folder, stranger)
    assert "not signed by trusted keys" in (refused.problem or "")
    other = Leafy(tmp_path / "other").public.archive
    for _ in range(2):
        (refused,) = watch(leafy, folder, replace(leafy.public, archive=other))
        assert "pins" in (refused.problem or "")
    assert [one.outcome for one in watch(leafy, folder)] == ["first"]
    (refused,) = watch(leafy, folder, replace(leafy.public, archive=other))
    assert "pins" in (refused.problem or "")


@pytest.mark.parametrize("data", [None, b"", b"{}\n{}\n", b"garbage"])
def test_an_archive_file_that_is_gone(leafy: Leafy, tmp_path: Path, data: bytes | None) -> None:
    """Without a readable `archive.json` nothing is cosigned, and the known heads are shown."""
    folder, trust = tmp_path / "witness", leafy.public
    watch(leafy, folder)
    (leafy.folder / "archive.json").unlink()
    if data is not None:
        (leafy.folder / "archive.json").write_bytes(data)
    (refused,) = watch(leafy, folder, trust)
    assert (refused.log, refused.outcome, len(refused.notes)) == ("archive.json", "refused", 1)


# --- its own folder


def test_the_folder_is_its_own(leafy: Leafy, tmp_path: Path) -> None:
    """The key is a keyring of the owner's alone, and stays; one that others read, or that is none, is refused."""
    folder = tmp_path / "a" / "witness"
    key = Witness(folder, NOW).key
    assert Witness(folder, NOW).key == key
    path = folder / "keyring.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    ring = Keyring.load(path)
    assert [one.algorithm for one in ring.keys] == ["Ed25519"]
    assert key.vkey in repr(Witness(folder, NOW))
    watch(leafy, folder)
    path.chmod(0o644)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        Witness(folder, NOW)
    path.unlink()
    with pytest.raises(ConfigurationError, match="cosigned before"):
        Witness(folder, NOW)
    new_keyring(path, NOW, None, ["HMAC-SHA256"])
    with pytest.raises(ConfigurationError, match="no Ed25519 key in it is valid now"):
        Witness(folder, NOW)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigurationError, match="cannot be made"):
        Witness(tmp_path / "file" / "witness", NOW)


def test_a_passphrase(tmp_path: Path) -> None:
    """The key may lie under a passphrase, and opens with it alone."""
    key = Witness(tmp_path / "witness", NOW, "open sesame").key
    assert Witness(tmp_path / "witness", NOW, "open sesame").key == key
    with pytest.raises(ConfigurationError, match="passphrase"):
        Witness(tmp_path / "witness", NOW)


def test_a_rotated_key(leafy: Leafy, tmp_path: Path) -> None:
    """After a rotation, heads cosigned before are still known heads, and the new key cosigns."""
    folder = tmp_path / "witness"
    watch(leafy, folder)
    before = Witness(folder, NOW).key
    rotate_keyring(folder / "keyring.json", NOW)
    assert [one.outcome for one in watch(leafy, folder)] == ["unchanged"]
    grow(leafy)
    leafy.checkpoint()
    assert [one.outcome for one in watch(leafy, folder)] == ["grown"]
    assert Witness(folder, NOW).key != before


@pytest.mark.parametrize("data", [b"", b"garbage", b"custody/x\n3\n\n\n", None])
def test_a_memory_that_was_changed(leafy: Leafy, tmp_path: Path, data: bytes | None) -> None:
    """A file in its folder that it did not cosign is an error, and nothing is cosigned."""
    folder = tmp_path / "witness"
    (seen,) = watch(leafy, folder)
    assert seen.path is not None
    stored = (leafy.folder / checkpoint_key(leafy.log, 3)).read_bytes()
    seen.path.write_bytes(stored if data is None else data)
    with pytest.raises(ConfigurationError, match="cosigned"):
        watch(leafy, folder)


# --- commands


def test_commands(leafy: Leafy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`custody checkpoint` prints and writes signed heads; `custody witness` prints a result for each log."""
    monkeypatch.setenv("CUSTODY_ARCHIVE", str(leafy.folder))
    monkeypatch.setenv("CUSTODY_KEYS", f"file:{leafy.keyring}")
    runner = CliRunner()
    printed = runner.invoke(app, ["checkpoint"])
    assert parse_checkpoint(parse_note(printed.stdout.encode()).text).size == 3
    # What nobody signed is not printed for the newest.
    (leafy.folder / checkpoint_key(leafy.log, 9)).write_bytes(
        sign_checkpoint(Keyring.new(NOW).signers(NOW).ed25519(), leafy.id, leafy.log, Head(9, bytes(32))).encode()
    )
    forged = runner.invoke(app, ["checkpoint"])
    assert forged.stdout == printed.stdout
    assert not printed.stderr
    assert "Among the checkpoints of audit.leafy/0, 1 object of a larger size does not count" in forged.stderr
    grow(leafy)
    written = runner.invoke(app, ["checkpoint", "--write", "audit.leafy/0"])
    assert parse_checkpoint(parse_note(written.stdout.encode()).text).size == 4
    audit(leafy)
    (leafy.folder / checkpoint_key(AUDIT_LOG, 1)).unlink()
    assert runner.invoke(app, ["checkpoint"]).stdout == written.stdout
    assert "No checkpoint of audits/0" in runner.invoke(app, ["checkpoint", "audits/0"]).output
    audits = runner.invoke(app, ["checkpoint", "--write", "audits/0"])
    assert parse_checkpoint(parse_note(audits.stdout.encode()).text).origin == f"custody/{leafy.id}/audits/0"
    assert runner.invoke(app, ["checkpoint", "audits/0"]).stdout == audits.stdout

    state = tmp_path / "witness"
    shown = runner.invoke(app, ["witness", "--state", str(state)])
    assert shown.exit_code == 10
    assert shown.output.splitlines()[0] == f"witness {Witness(state, datetime.now(UTC)).key.vkey}"
    assert "audit.leafy/0: first, size 4, kept as " in shown.output
    assert "audit.leafy/0: ALARM: checkpoints/audit.leafy/0/000000000009 does not count" in shown.output
    assert "audits/0: first, size 1" in shown.output
    (leafy.folder / checkpoint_key(leafy.log, 9)).unlink()
    assert runner.invoke(app, ["witness", "--state", str(state)]).exit_code == 0
    trust = write_trust(tmp_path / "trust.json", leafy.public)
    assert runner.invoke(app, ["witness", "--state", str(state), "--trust", str(trust)]).exit_code == 0
    nobody = write_trust(tmp_path / "nobody.json", replace(leafy.public, keys={}))
    fresh = runner.invoke(app, ["witness", "--state", str(tmp_path / "fresh"), "--trust", str(nobody)])
    assert fresh.exit_code == 12
    (leafy.folder / checkpoint_key(leafy.log, 4)).unlink()
    refused = runner.invoke(app, ["witness", "--state", str(state)])
    assert refused.exit_code == 13
    assert f"custody/{leafy.id}/audit.leafy/0" in refused.output


def test_commands_say_why_there_is_nothing(leafy: Leafy, tmp_path: Path, custody: Command) -> None:
    """`custody checkpoint` tells no log, no checkpoint and no trusted one apart; trust is given as elsewhere."""
    stored = (leafy.folder / checkpoint_key(leafy.log, 3)).read_text()
    assert custody("checkpoint", "--archive", leafy.folder).out == stored
    trust = write_trust(tmp_path / "public.json", leafy.public)
    for given in (["--trust", trust], ["--keys", f"file:{leafy.keyring}"]):
        assert custody("checkpoint", "--archive", leafy.folder, *given).out == stored
    foreign = leafy.folder / checkpoint_key(leafy.log, 2)
    (leafy.folder / checkpoint_key(leafy.log, 3)).rename(foreign)
    shown = custody("checkpoint", "--archive", leafy.folder, "--trust", trust)
    assert (shown.code, shown.out) == (0, "")
    assert "it has 1, but no trusted key signed any of them" in shown.err
    foreign.rename(leafy.folder / checkpoint_key(leafy.log, 3))
    new_keyring(tmp_path / "keyring.json", NOW - timedelta(hours=1))
    for more in ([], ["--keys", f"file:{tmp_path}/keyring.json"]):
        shown = custody("checkpoint", "--archive", leafy.folder, *more)
        assert (shown.code, shown.out) == (2, "")
        assert "may not be those of this archive" in shown.err
    assert custody("checkpoint", "--archive", leafy.folder, "--trust", trust).out == stored
    assert custody("checkpoint", "--archive", leafy.folder, "--write", "--keys", "file:keyring.json").code == 2
    empty = Leafy(tmp_path / "empty")
    shown = custody("checkpoint", "--archive", empty.folder, "--keys", empty.keyring)
    assert (shown.code, shown.out) == (0, "")
    assert "has no log yet" in shown.err
    empty.append(range(3))
    assert "it has none yet" in custody("checkpoint", "--archive", empty.folder, "--keys", empty.keyring).err
    (tmp_path / "keyring.json").unlink()
    path = empty.folder / checkpoint_key(empty.log, 1)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"garbage")
    assert "is a checkpoint" in custody("checkpoint", "--archive", empty.folder).err


def test_the_command_of_a_refusal(leafy: Leafy, tmp_path: Path, custody: Command) -> None:
    """The `custody accept` command that a refusal prints releases the witness, and a mistyped path is no tampering."""
    trust = write_trust(tmp_path / "trust.json", leafy.public)
    options = ["--trust", trust, "--state", "w"]
    nowhere = custody("witness", tmp_path / "nowhere", *options)
    assert (nowhere.code, "there is no archive at" in nowhere.err) == (2, True)
    audit(leafy)
    audit(leafy)
    assert custody("witness", leafy.folder, *options).code == 0
    (leafy.folder / manifest_key(leafy.log, 2)).unlink()
    (leafy.folder / audit_key(1)).unlink()
    for log in (leafy.log, AUDIT_LOG):
        shutil.rmtree(leafy.folder / "checkpoints" / log.name)
    refused = custody("witness", leafy.folder, *options)
    assert refused.code == 13
    commands = [line.partition("accept it: custody ")[2] for line in refused.out.splitlines() if "accept it" in line]
    assert len(commands) == 2
    for command in commands:
        assert custody(*command.split()).code == 0
    leafy.checkpoint()
    resumed = custody("witness", leafy.folder, *options)
    assert resumed.code == 0
    assert "audit.leafy/0: resumed, size 2, kept as " in resumed.out
    assert "audits/0: resumed: accepted in trust.json" in resumed.out
    (leafy.folder / "archive.json").unlink()
    assert custody("witness", leafy.folder, *options).code == 13


def test_no_checkpoint_is_written_into_another_archive(leafy: Leafy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is signed for an archive whose `archive.json` the keys did not sign."""
    monkeypatch.setenv("CUSTODY_ARCHIVE", str(leafy.folder))
    monkeypatch.setenv("CUSTODY_KEYS", f"file:{leafy.keyring}")
    path = leafy.folder / "archive.json"
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data.replace(b'"heartbeat":3600', b'"heartbeat":3601'))
    done = CliRunner().invoke(app, ["checkpoint", "--write"])
    assert isinstance(done.exception, HeadRollback)
    assert "archive.json is not signed by trusted keys" in str(done.exception)


def test_a_keyring_for_checkpoints_alone(leafy: Leafy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the Ed25519 key lies in a keyring of its own, that one signs, and is believed."""
    ring = tmp_path / "checkpoints.json"
    new_keyring(ring, datetime.now(UTC) - timedelta(hours=1), None, ["Ed25519"])
    monkeypatch.setenv("CUSTODY_ARCHIVE", str(leafy.folder))
    monkeypatch.setenv("CUSTODY_KEYS", f"file:{leafy.keyring}")
    monkeypatch.setenv("CUSTODY_CHECKPOINT_KEYS", f"file:{ring}")
    grow(leafy)
    written = CliRunner().invoke(app, ["checkpoint", "--write"])
    assert parse_note(written.stdout.encode()).signatures[0].name == Keyring.load(ring).keys[0].key_id
    assert CliRunner().invoke(app, ["checkpoint"]).stdout == written.stdout


def test_a_redirected_checkpoint(leafy: Leafy, tmp_path: Path) -> None:
    """A pipe gets the note byte for byte, so that others can check it without a secret."""
    program = f"from custody.cli.evidence import app; app(['checkpoint', '{leafy.log}', '--archive', '{leafy.folder}'])"
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, check=True, timeout=60, cwd=Path())
    assert done.stdout == (leafy.folder / checkpoint_key(leafy.log, 3)).read_bytes()
    assert not (tmp_path / "keyring.json").exists()


def test_the_memory_is_by_url(leafy: Leafy, tmp_path: Path) -> None:
    """Each URL has its own pin; a moved archive is pinned again at its new URL."""
    folder = tmp_path / "witness"
    watch(leafy, folder)
    moved = leafy.copy(tmp_path / "moved")
    assert [one.outcome for one in watch(moved, folder)] == ["unchanged"]
    archives = json.loads((folder / "state.json").read_bytes())["archives"]
    assert set(archives) == {leafy.store.url, open_store(str(moved.folder)).url}
    assert {one["archive"]["id"] for one in archives.values()} == {leafy.id}
