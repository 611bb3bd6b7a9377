"""Auditors with public keys alone: what checkpoints cover is verified, the rest is not, and forgery is caught."""

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from custody.keys.trust import Trust, TrustedKey
from custody.tlog.head import Head
from tests.attacks import heads, objects, statements
from tests.attacks.registry import Attack, rebuilt
from tests.attacks.targets import Folder, judge, names
from tests.helpers.archives import ARCHIVE_ID, KEY_ID, Builder, note, origin
from tests.helpers.scene import (
    CHECKPOINT,
    HEARTBEAT,
    LEAVES,
    MAIN,
    ORDERS,
    PUBLIC_ID,
    RETENTION_DAYS,
    Scene,
    pin,
    private,
    public,
)

HMAC = TrustedKey(KEY_ID, "HMAC-SHA256")
PUBLIC = TrustedKey(PUBLIC_ID, "Ed25519", material=public())
KEYS = {KEY_ID: HMAC, PUBLIC_ID: PUBLIC}
_OPEN = {"pending-checkpoint", "uncovered"}


@pytest.fixture
def auditor(scene: Scene) -> Scene:
    """An auditor who knows the HMAC key's name and not its secret."""
    scene.trust = Trust(archive=pin(scene.root), keys=KEYS, retention_days=RETENTION_DAYS)
    return scene


def not_covered(scene: Scene) -> list[tuple[str, str | None, int | None, int | None]]:
    """Return which statements are not verified, and by which finding."""
    report = judge(scene, Folder())
    return [(one.finding, one.log, one.sequence, one.through) for one in report.findings if one.finding in _OPEN]


def test_what_no_checkpoint_covers(auditor: Scene) -> None:
    """A statement that came after the last checkpoint waits for the next one; all others are verified."""
    report = judge(auditor, Folder())
    assert set(names(report)) == {"pending-checkpoint", "unchecked-signature"}
    assert report.exit_code == 3
    assert not_covered(auditor) == [("pending-checkpoint", MAIN, 11, 11)]
    unchecked = [one for one in report.findings if one.finding == "unchecked-signature"]
    assert len({one.log for one in unchecked}) == len(unchecked), "one notice a log"


@pytest.mark.parametrize(
    ("later", "finding", "exit_code"),
    [
        (2 * (CHECKPOINT + HEARTBEAT), "pending-checkpoint", 3),
        (2 * (CHECKPOINT + HEARTBEAT) + timedelta(seconds=1), "uncovered", 12),
    ],
)
def test_how_long_statements_wait(auditor: Scene, later: timedelta, finding: str, exit_code: int) -> None:
    """Statements are pending as long as a checkpoint may take that the archive promises, and uncovered after that."""
    auditor.trust = replace(auditor.trust, retention_days=None)
    auditor.main.clock -= timedelta(seconds=15)
    auditor.main.clock += later
    auditor.main.append()
    assert not_covered(auditor) == [(finding, MAIN, 11, 12)]
    assert judge(auditor, Folder()).exit_code == exit_code


@pytest.mark.parametrize(
    ("later", "finding"), [(timedelta(days=49), "pending-checkpoint"), (timedelta(days=51), "uncovered")]
)
def test_how_long_statements_wait_live(auditor: Scene, later: timedelta, finding: str) -> None:
    """Of an archive that is written to, statements wait until now."""
    auditor.trust = replace(auditor.trust, retention_days=None)
    auditor.options.update(live=True, now=auditor.now + later)
    assert not_covered(auditor) == [(finding, MAIN, 11, 11)]


def test_pending_is_not_verified(auditor: Scene, tmp_path: Path) -> None:
    """What waits for a checkpoint is never remembered: a state file knows the covered head alone."""
    auditor.options["state"] = tmp_path / "state.json"
    judge(auditor, Folder())
    assert auditor.main.head[1].hex() not in (tmp_path / "state.json").read_text()
    auditor.main.path(11).unlink()
    auditor.delete(auditor.main.statements[11]["segment"]["key"])
    assert set(names(judge(auditor, Folder()))) == {"unchecked-signature"}


def test_all_covered(auditor: Scene) -> None:
    """Once a checkpoint covers everything, only notices are left."""
    auditor.checkpoint(auditor.main)
    report = judge(auditor, Folder())
    assert set(names(report)) == {"unchecked-signature"}
    assert report.exit_code == 3
    assert sum(log.events for log in report.logs) == 199


def test_audits_do_not_cover(auditor: Scene) -> None:
    """Heads in audits are known heads, and cover nothing: only a checkpoint can be cosigned, and shown to others."""
    auditor.delete(*auditor.listed("checkpoints/"))
    assert {log for _, log, _, _ in not_covered(auditor)} == {MAIN, LEAVES, ORDERS, "old/0"}


def test_nothing_covered(auditor: Scene) -> None:
    """Without checkpoints and audits nothing of an archive is verified."""
    auditor.delete(*auditor.listed("checkpoints/"), *auditor.listed("audits/"))
    assert {log for _, log, _, _ in not_covered(auditor)} == {MAIN, LEAVES, ORDERS, "old/0"}


def test_public_key_alone(scene: Scene) -> None:
    """A public key alone, with the statements' key not even known by its id, cannot make that key known."""
    scene.trust = Trust(archive=pin(scene.root), keys={PUBLIC_ID: PUBLIC})
    report = judge(scene, Folder())
    assert "key-unknown" in names(report)
    assert report.exit_code == 12
    assert "checkpoint" not in names(report)


def test_no_key(scene: Scene) -> None:
    """With no key at all the archive is unverifiable; its checkpoints are signed by nobody who is known."""
    scene.trust = Trust(archive=pin(scene.root))
    report = judge(scene, Folder())
    assert {"key-unknown"} <= set(names(report)) <= {"key-unknown", "unchecked-signature", "segment-missing"}
    assert report.exit_code == 12


def test_hidden_silence(auditor: Scene) -> None:
    """An auditor without the secret knows the heartbeat too: who raises it in `archive.json` is found."""
    auditor.trust = replace(auditor.trust, retention_days=None)
    auditor.options.update(live=True, now=auditor.now + 2 * HEARTBEAT + timedelta(minutes=1))
    heads.OTHER_ARCHIVES["of another heartbeat"](auditor)
    report = judge(auditor, Folder())
    assert report.findings[0].finding == "archive"
    assert report.exit_code == 13


def test_rewritten_history(auditor: Scene) -> None:
    """Who holds the HMAC key cannot rewrite what a checkpoint covers, for an auditor who does not hold it."""
    auditor.delete(*auditor.listed("audits/"), *auditor.listed("checkpoints/audits/"))
    rebuilt(auditor, MAIN, 3, heads.other_writer)
    report = judge(auditor, Folder())
    assert report.findings[0].finding == "checkpoint"
    assert report.exit_code == 13


def test_forged_and_covered_by_ones_own_key(auditor: Scene) -> None:
    """A checkpoint by a key that the auditor does not know covers nothing."""
    auditor.main.append(5)
    auditor.checkpoint(auditor.main, name="ed25519-other")
    report = judge(auditor, Folder())
    assert "checkpoint" in names(report)
    assert report.exit_code == 10
    assert not_covered(auditor) == [("pending-checkpoint", MAIN, 11, 12)]


@pytest.mark.parametrize("listed", [True, False], ids=["until lists the log", "until lists no log"])
@pytest.mark.parametrize("size", [3, 4, 5])
def test_forged_and_covered_by_an_ended_key(tmp_path: Path, size: int, *, listed: bool) -> None:
    """A statement under any HMAC, and a checkpoint of it by an ended key: neither counts (security, 8)."""
    log = Builder(tmp_path, next_offset=0).init()
    for count in (0, 5, 5, 5):
        log.append(count)
    end = Head(*log.head)
    kept = min(size - 1, 4)
    for sequence in range(kept, 4):
        segment = log.statements[sequence]["segment"]
        (tmp_path / segment["key"]).unlink()
        log.path(sequence).unlink()
    log.go_back(kept)
    log.secret = b"any secret"
    log.append(5)
    log.checkpoint()
    until = {log.name: end} if listed else {}
    keys = {KEY_ID: HMAC, PUBLIC_ID: replace(PUBLIC, until=until)}
    scene = Scene(tmp_path, {log.name: log}, trust=Trust(archive=pin(tmp_path), keys=keys))
    report = judge(scene, Folder())
    assert report.exit_code == 13, [str(one) for one in report.findings]
    assert "key-span" in names(report)


def test_an_ended_key_covers_what_it_covered(auditor: Scene) -> None:
    """Checkpoints of before a key ended still cover: their trees are prefixes of the heads at which it ended."""
    until = auditor.heads
    auditor.trust = replace(auditor.trust, keys=KEYS | {PUBLIC_ID: replace(PUBLIC, until=until)})
    report = judge(auditor, Folder())
    assert set(names(report)) == {"pending-checkpoint", "unchecked-signature"}


def test_a_slot_passed_over_that_nobody_here_can_judge(auditor: Scene) -> None:
    """A forged statement that the writer passed over is no fork for whoever cannot check its HMAC."""
    statements.foreign_slot(KEY_ID, b"0" * 32)(auditor)
    auditor.checkpoint(auditor.main)
    report = judge(auditor, Folder())
    assert set(names(report)) == {"passed-over", "unchecked-signature"}


def test_a_fork_under_a_checkpoint_of_the_smaller_size(auditor: Scene) -> None:
    """A checkpoint by an ended key, of a smaller size over another tree, covers nothing."""
    until = auditor.heads
    auditor.trust = replace(auditor.trust, keys=KEYS | {PUBLIC_ID: replace(PUBLIC, until=until)})
    auditor.put(f"checkpoints/{MAIN}/{5:012}", note(origin(ARCHIVE_ID, MAIN), 5, bytes(32), private(), PUBLIC_ID))
    report = judge(auditor, Folder())
    assert report.findings[0].finding == "key-span"
    assert report.exit_code == 13


@pytest.mark.parametrize(
    "attack",
    [
        one
        for one in [*objects.ATTACKS, *statements.ATTACKS]
        if one.row in {1, 2, 3, 7, 8, 14, 15, 21} and not one.variant
    ],
    ids=lambda one: one.id,
)
def test_objects_and_order_need_no_secret(auditor: Scene, attack: Attack) -> None:
    """What is not a matter of the HMAC is found without its secret, first or right after what is not covered."""
    attack.apply(auditor)
    report = judge(auditor, Folder())
    own = [name for name in names(report) if name not in {*_OPEN, "unchecked-signature"}]
    assert own == list(attack.findings), [str(one) for one in report.findings]
